"""The list of committed episodes: one line per episode, and the line is the commit.

    {"episode": 2, "meta": {...}, "shards": {"agentview": {"0": 913411}}, "streams": {"agentview": {"start": 122, ...}},
     "line": "<digest of this line>"}

A line that is not complete (no newline) was never committed and is ignored. A complete line with a wrong digest is
damage, and is reported, because skipping it silently would lose an episode.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from uwm_data.errors import StoreError

JOURNAL = "episodes.jsonl"
_PARSED = 1024  # episodes that are kept parsed


@dataclass(frozen=True)
class Span:
    """Frames `start` (inclusive) to `stop` (exclusive) of a stream, and the digest of their bytes ("" if unknown)."""

    start: int
    stop: int
    digest: str

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Episode:
    """One committed episode. `sizes[stream][shard]` are the bytes of a shard file that its commit made valid.

    `damaged` is empty, or the reason why the episode must not be used.
    """

    index: int
    meta: dict
    spans: dict[str, Span]
    sizes: dict[str, dict[int, int]]
    damaged: str = ""

    @property
    def digest(self) -> str:
        """Digest of what a learner sees: metadata, lengths and bytes, independent of compression and place on disk."""
        content = [self.meta, {name: [len(span), span.digest] for name, span in self.spans.items()}]
        return digest_of(canonical(content))

    def to_line(self) -> bytes:
        """The journal line, newline included."""
        record = {
            "episode": self.index,
            "meta": self.meta,
            "streams": {name: {"start": s.start, "stop": s.stop, "digest": s.digest} for name, s in self.spans.items()},
            "shards": {name: {str(k): size for k, size in sizes.items()} for name, sizes in self.sizes.items()},
        }
        if self.damaged:
            record["damaged"] = self.damaged
        return canonical({**record, "line": digest_of(canonical(record))}) + b"\n"

    @classmethod
    def from_line(cls, line: bytes, verify: bool = True) -> Episode:
        """Parse one line (without newline); raises StoreError when it was changed or torn."""
        try:
            record = json.loads(line)
            told = record.pop("line")
            if verify and told != digest_of(canonical(record)):
                raise StoreError("its digest does not match its content")
            return cls(
                record["episode"],
                record["meta"],
                {name: Span(int(s["start"]), int(s["stop"]), str(s["digest"])) for name, s in record["streams"].items()},
                {name: {int(k): int(size) for k, size in sizes.items()} for name, sizes in record["shards"].items()},
                record.get("damaged", ""),
            )
        except StoreError:
            raise
        except (ValueError, AttributeError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise StoreError(f"it is not a journal line ({type(error).__name__}: {error})") from error


class Journal:
    """All committed episodes, the committed size of every shard, and how many bytes of the file are committed.

    Kept small, so that a hundred thousand episodes open in seconds: the lines as they are, and where each stream ends after
    each episode. An `Episode` is made from its line when it is asked for.
    """

    def __init__(self, streams: Iterable[str]):
        self.sizes: dict[str, dict[int, int]] = {name: {} for name in streams}
        self.damaged: dict[int, str] = {}
        self.committed_bytes = 0
        self.tail_bytes = 0
        self._lines: list[bytes] = []
        self._stops = {name: array("q") for name in self.sizes}
        self._digests: dict[int, str] = {}
        self._parsed: dict[int, Episode] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[Episode]:
        return (Episode.from_line(line, verify=False) for line in self._lines)

    def __getitem__(self, index: int) -> Episode:
        if index not in self._parsed:
            if len(self._parsed) >= _PARSED:
                self._parsed.clear()
            self._parsed[index] = Episode.from_line(self._lines[index], verify=False)
        return self._parsed[index]

    def add(self, episode: Episode, line: bytes | None = None) -> None:
        """Take in an episode whose line (without newline) is on disk."""
        if episode.index != len(self):
            raise StoreError(f"it is episode {episode.index} where episode {len(self)} is due")
        if episode.spans.keys() != self.sizes.keys():
            raise StoreError(f"it holds the streams {sorted(episode.spans)}")
        for name, span in episode.spans.items():
            if span.start != self.frames(name) or span.stop < span.start:
                raise StoreError(f"its frames of {name!r} start at {span.start}, the episode before ends elsewhere")
        line = episode.to_line()[:-1] if line is None else line
        for name, span in episode.spans.items():
            self._stops[name].append(span.stop)
            self.sizes[name].update(episode.sizes.get(name, {}))
        if episode.damaged:
            self.damaged[episode.index] = episode.damaged
        self._lines.append(line)
        self.committed_bytes += len(line) + 1

    def frames(self, stream: str) -> int:
        """Committed frames of a stream."""
        return self._stops[stream][-1] if self._lines else 0

    def extents(self, stream: str) -> tuple[np.ndarray, np.ndarray]:
        """(first frame, frame behind the last one), (episodes,) each, of every episode in a stream."""
        stops = np.array(self._stops[stream], np.int64)
        return np.concatenate([[0], stops[:-1]]).astype(np.int64)[: len(stops)], stops

    def span(self, index: int, stream: str) -> range:
        """The frames of an episode, counted over the whole stream."""
        stops = self._stops[stream]
        return range(stops[index - 1] if index else 0, stops[index])

    def digest(self, index: int) -> str:
        """`Episode.digest`, kept once it is known."""
        if index not in self._digests:
            self._digests[index] = self[index].digest
        return self._digests[index]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_parsed": {}}


def read_journal(path: Path, streams: Iterable[str]) -> Journal:
    """Read the committed lines of a store's journal; raises StoreError naming the first damaged line."""
    try:
        *lines, tail = path.read_bytes().split(b"\n")
    except FileNotFoundError as error:
        raise StoreError(f"{path} is missing: without it no episode can be found; copy it back or collect again") from error
    journal = Journal(streams)
    journal.tail_bytes = len(tail)
    for number, line in enumerate(lines):
        try:
            journal.add(Episode.from_line(line), line)
        except StoreError as error:
            raise StoreError(
                f"{path}: line {number + 1} (episode {number}) is damaged: {error}; try `uwm data check {path.parent} --repair`"
            ) from error
    return journal


def canonical(value: object) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, no NaN. Raises StoreError on what JSON cannot hold."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain).encode()
    except (TypeError, ValueError) as error:
        raise StoreError(f"metadata must be JSON-able (text, finite numbers, lists, dicts): {error}") from error


def _plain(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} is a {type(value).__name__}")


def digest_of(data: bytes | memoryview) -> str:
    """128 bits of BLAKE2b, as hex."""
    return blake2b(data, digest_size=16).hexdigest()
