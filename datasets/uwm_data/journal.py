"""The list of committed episodes: one line per episode, and the line is the commit.

    {"episode": 2, "meta": {...}, "shards": {"agentview": {"0": 913411}}, "streams": {"agentview": {"start": 122, ...}},
     "line": "<digest of this line>"}

A line that is not complete (no newline) was never committed and is ignored. A complete line with a wrong digest is
damage, and is reported, because skipping it silently would lose an episode.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np

from uwm_data.errors import StoreError

JOURNAL = "episodes.jsonl"


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
    def from_line(cls, line: bytes) -> Episode:
        """Parse one line (without newline); raises StoreError when it was changed or torn."""
        try:
            record = json.loads(line)
            told = record.pop("line")
            if told != digest_of(canonical(record)):
                raise StoreError("its digest does not match its content")
            return cls(
                record["episode"],
                record["meta"],
                {name: Span(**span) for name, span in record["streams"].items()},
                {name: {int(k): size for k, size in sizes.items()} for name, sizes in record["shards"].items()},
                record.get("damaged", ""),
            )
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
            raise StoreError(f"it is not a journal line ({type(error).__name__}: {error})") from error


@dataclass
class Journal:
    """All committed episodes, the committed size of every shard, and how many bytes of the file are committed."""

    episodes: list[Episode] = field(default_factory=list)
    sizes: dict[str, dict[int, int]] = field(default_factory=dict)
    committed_bytes: int = 0
    tail_bytes: int = 0

    def add(self, episode: Episode, line_bytes: int) -> None:
        """Take in an episode whose line is on disk."""
        if episode.index != len(self.episodes):
            raise StoreError(f"it is episode {episode.index} where episode {len(self.episodes)} is due")
        for name, span in episode.spans.items():
            if span.start != self.frames(name) or span.stop < span.start:
                raise StoreError(f"its frames of {name!r} start at {span.start}, the episode before ends elsewhere")
        self.episodes.append(episode)
        for name, sizes in episode.sizes.items():
            self.sizes.setdefault(name, {}).update(sizes)
        self.committed_bytes += line_bytes

    def frames(self, stream: str) -> int:
        """Committed frames of a stream."""
        return self.episodes[-1].spans[stream].stop if self.episodes else 0


def read_journal(path: Path, streams: Mapping[str, object]) -> Journal:
    """Read the committed lines of a store's journal; raises StoreError naming the first damaged line."""
    try:
        *lines, tail = path.read_bytes().split(b"\n")
    except FileNotFoundError as error:
        raise StoreError(f"{path} is missing: without it no episode can be found; copy it back or collect again") from error
    journal = Journal(sizes={name: {} for name in streams}, tail_bytes=len(tail))
    for number, line in enumerate(lines):
        try:
            episode = Episode.from_line(line)
            if set(episode.spans) != set(streams):
                raise StoreError(f"it holds the streams {sorted(episode.spans)}")
            journal.add(episode, len(line) + 1)
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
