"""Conversion: any format that can be read into any that can be written, in parallel, going on where it stopped.

    source --read--> raw episode --encode--> encoded        in worker processes, a few episodes ahead
                                                |
    target <--append, one after another---------+           in this process, in the source's order

Every appended episode is safe at once. The same call again goes on behind the last one; a note beside the target
(`uwm_data.note`) refuses another source.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from uwm_data import cards
from uwm_data.errors import FormatError, StoreError
from uwm_data.formats import FORMATS, RawEpisode, Sink, Source, module_of, recognised
from uwm_data.note import Note, begun, fingerprint, is_begun, place_of
from uwm_data.remote import is_url, local_path
from uwm_data.streams import reference_stream
from uwm_data.verification import Likeness, verified
from uwm_data.workers import in_order, interrupts_held


@dataclass
class Report:
    """What a conversion did. `added` and `ticks` count this call; `left_out` says what one side could not give or keep."""

    source: str
    target: str
    format: str
    to: str
    episodes: int = 0
    added: int = 0
    ticks: int = 0
    seconds: float = 0.0
    left_out: dict[str, list[str]] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)
    likeness: dict[str, Likeness] = field(default_factory=dict)

    def to_json(self) -> dict:
        """A JSON-able copy."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report in short lines."""
        rate = f"{self.ticks} ticks in {self.seconds:.1f} s, {self.added / max(self.seconds, 1e-9):.1f} episodes/s"
        had = self.episodes - self.added
        added = f"added {self.added}{f' to the {had} that were there' if had else ''} ({rate})" if self.added else "already complete"
        told = [f"{self.source} ({self.format}) -> {self.target} ({self.to}): {self.episodes} episodes, {added}"]
        told += [f"not read from {self.format}: {line}" for line in self.left_out.get("source", [])]
        told += [f"not kept by {self.to}: {line}" for line in self.left_out.get("target", [])]
        if self.likeness:
            told.append("read back and compared: " + ", ".join(f"{name} {like}" for name, like in self.likeness.items()))
        told += [f"skipped episode {index}: {reason}" for index, reason in self.skipped.items()]
        return told


def convert(
    source: str | Path,
    target: str | Path,
    to: str = "store",
    from_: str | None = None,
    *,
    workers: int | None = None,
    source_options: Mapping[str, Any] | None = None,
    target_options: Mapping[str, Any] | None = None,
    progress: bool = False,
    skip_bad: bool = False,
    verify: bool = False,
    formats: Mapping[str, str] = FORMATS,
) -> Report:
    """Convert a dataset; a target that an interrupted call left behind is continued.

    `from_` names the source's format where it is not recognised. `workers` processes read and encode (0: none but this
    one; default: one a core, at most 8). `skip_bad` goes on behind damaged episodes and lists them in the report.
    `verify` reads the target back and compares every frame. `progress` draws a bar on stderr.
    Raises StoreError (FormatError below it) naming file, episode and field; whole episodes stay, also after Ctrl-C.
    """
    _refuse_overlap(str(source), str(target))
    target, wishes, answers = Path(target), dict(source_options or {}), dict(target_options or {})
    crew = default_workers() if workers is None else workers
    name, opened = open_source(source, from_, wishes, formats)
    try:
        write = _writer(to, answers, formats)
        if not len(opened):
            raise FormatError(f"{source} holds no episodes")
        note = begun(target, Note(str(source), name, wishes, fingerprint(str(source), opened), to, answers))
        sink = _sink(write, target, opened, answers)
        report = Report(str(source), str(target), name, to, skipped={int(key): told for key, told in note.skipped.items()})
        _Conversion(opened, sink, target, note, report, skip_bad).run(crew, progress)
        if verify:
            _verify(opened, report, crew, formats)
        note.report = report.to_json()
        note.save(target)
        return report
    finally:
        opened.close()


def open_source(
    path: str | Path, from_: str | None = None, options: Mapping[str, Any] | None = None, formats: Mapping[str, str] = FORMATS
) -> tuple[str, Source]:
    """(name of the format, the dataset at `path`); FormatError when there is none or an option is unknown.

    What lies at a URL is a store of ours: no other format can be read from there.
    """
    if is_url(path):
        formats = {name: module for name, module in formats.items() if name == "store"}
    else:
        path = local_path(path)
    name = from_ or ("store" if is_url(path) else recognised(path, formats))
    module = module_of(name, formats)
    _check_options(module.read, f"reading {name}", options or {})
    return name, module.read(path, **(options or {}))


def default_workers() -> int:
    """One process a core that this process may use, at most 8: beyond that the one that writes is the limit."""
    return min(8, len(os.sched_getaffinity(0)))


@dataclass(frozen=True)
class _Reading:
    """What a worker does with one episode: (encoded, ticks)."""

    source: Source
    encode: Callable[[RawEpisode], Any]

    def __call__(self, index: int) -> tuple[Any, int]:
        raw = self.source.read(index)
        present = [name for name, values in raw.arrays.items() if len(values)]
        counted = reference_stream(self.source.streams, present) if present else None
        ticks = self.source.streams[counted].ticks(len(raw.arrays[counted])) if counted else 0
        return self.encode(raw), ticks


@dataclass
class _Conversion:
    """One call of `convert` behind its checks."""

    source: Source
    sink: Sink
    target: Path
    note: Note
    report: Report
    skip_bad: bool

    def run(self, workers: int, progress: bool) -> None:
        start = time.perf_counter()
        try:
            self._add(self._to_do(), workers, progress)
        except BaseException:
            # The error that stopped us is the one to show, not one that it causes while closing.
            with suppress(StoreError, OSError):
                self._finish()
            raise
        self._finish()
        self.report.episodes = len(self.source) - len(self.report.skipped)
        self.report.seconds = time.perf_counter() - start

    def _to_do(self) -> list[int]:
        usable = [index for index in range(len(self.source)) if index not in self.report.skipped]
        have = len(self.sink)
        if have > len(usable):
            self.sink.close()
            raise FormatError(f"{self.target} holds {have} episodes, its source only {len(usable)}; choose another path")
        return usable[have:]

    def _add(self, items: Sequence[int], workers: int, progress: bool) -> None:
        reading = _Reading(self.source, self.sink.encoder())
        outcomes = in_order(reading, items, workers, f"{self.report.source}: episode")
        total = len(self.source) - len(self.report.skipped)
        bar = _bar(total, total - len(items), "convert") if progress and items else None
        try:
            for outcome in outcomes:
                error = outcome.error or self._append(*outcome.value)
                if error:
                    self._skip(outcome.item, error)
                if bar is not None:
                    bar.update()
        finally:
            outcomes.close()
            if bar is not None:
                bar.close()

    def _append(self, encoded: Any, ticks: int) -> StoreError | None:
        """Add one episode; what is wrong with the episode is returned, what is wrong with the disk is raised."""
        try:
            with interrupts_held():
                self.sink.append(encoded)
        except OSError as error:
            raise FormatError(
                f"{self.target}: writing failed ({error.strerror or error}) at episode {len(self.sink)}; those before it stay. "
                "Free some space and run the same command again"
            ) from error
        except StoreError as error:
            if isinstance(error.__cause__, OSError):
                raise
            return error
        self.report.added += 1
        self.report.ticks += ticks
        return None

    def _skip(self, index: int, error: StoreError) -> None:
        place = f"{self.report.source}: episode {index}"
        reason = str(error).removeprefix(place).lstrip(":, ")
        if not self.skip_bad:
            have = len(self.sink)
            raise FormatError(f"{place}: {reason}. The {have} episodes before it are in {self.target}; --skip-bad leaves it out") from error
        self.report.skipped[index] = self.note.skipped[str(index)] = reason
        self.note.save(self.target)

    def _finish(self) -> None:
        try:
            # Not held against Ctrl-C, unlike an append: some formats are put together here, which may take long.
            self.sink.close()
        finally:
            for side, told in (("source", self.source.left_out), ("target", self.sink.left_out)):
                self.note.left_out[side] = list(dict.fromkeys([*self.note.left_out.get(side, []), *told]))
            self.report.left_out = self.note.left_out
            self.note.save(self.target)


def _verify(source: Source, report: Report, workers: int, formats: Mapping[str, str]) -> None:
    written = module_of(report.to, formats).read(report.target)
    try:
        usable = [index for index in range(len(source)) if index not in report.skipped]
        report.likeness = verified(source, usable, written, report.target, bool(report.left_out.get("target")), workers)
    finally:
        written.close()


def _bar(total: int, have: int, does: str) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, initial=have, desc=does, unit="episode")


def _writer(to: str, options: Mapping[str, Any], formats: Mapping[str, str]) -> Callable[..., Sink]:
    module = module_of(to, formats)
    if not hasattr(module, "write"):
        raise FormatError(f"{to} can be read, but not written; `uwm convert --help` lists what can be written")
    _check_options(module.write, f"writing {to}", options)
    return module.write


def _sink(write: Callable[..., Sink], target: Path, source: Source, options: Mapping[str, Any]) -> Sink:
    # A checksum names the content of the store that it was read from.
    card = cards.complete({key: value for key, value in source.card.items() if key != "checksum"}, source.streams)
    try:
        return write(target, source.streams, card, **options)
    except BaseException:
        if not is_begun(target):
            place_of(target).unlink(missing_ok=True)
        raise


def _check_options(function: Callable, doing: str, options: Iterable[str]) -> None:
    """Refuse options that a format's `read` or `write` does not know."""
    parameters = inspect.signature(function).parameters
    known = [key for key, value in parameters.items() if key not in ("path", "streams", "card") and value.kind != value.VAR_KEYWORD]
    for option in options:
        if option not in known:
            close = get_close_matches(option, known, 1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            raise FormatError(f"{doing} has no option {option!r}{hint}; it has {', '.join(known) or 'none'}")


def _refuse_overlap(source: str, target: str) -> None:
    if "://" in target:
        raise FormatError(f"{target}: convert to a local path, then copy the result there (uwm_data.copy_store)")
    if is_url(source):
        return
    here, there = local_path(source).resolve(), Path(target).resolve()
    if here == there or here in there.parents or there in here.parents:
        raise FormatError(f"{target} and its source {source} are the same place, or one is inside the other; choose another path")
