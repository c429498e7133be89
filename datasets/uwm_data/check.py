"""Is a store whole? `check` looks and changes nothing; `repair` makes it whole without throwing an episode away unseen."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from uwm_data import durable, layout
from uwm_data.errors import StoreError
from uwm_data.journal import JOURNAL, Episode, Journal, Span, digest_of, read_journal
from uwm_data.lock import LOCK_FILE, WriterLock
from uwm_data.remote import RemotePath, is_url, local_path, remote_path
from uwm_data.shards import Shards
from uwm_data.store import EpisodeStore
from uwm_data.wholeness import missing_shards, unfinished_files

DAMAGED_LINES = JOURNAL + ".damaged"
_OWN_FILES = {"zarr.json", JOURNAL, LOCK_FILE, DAMAGED_LINES}


@dataclass(frozen=True)
class Finding:
    """One thing that `check` found; `episode` is set when that episode cannot be used. A note needs no action."""

    kind: str
    text: str
    episode: int | None = None
    is_note: bool = False


@dataclass
class Report:
    """What a store looks like now, and what a repair did to it."""

    path: Path | RemotePath
    episodes: int = 0
    findings: list[Finding] = field(default_factory=list)
    done: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[Finding]:
        """Findings that need a repair or a backup."""
        return [finding for finding in self.findings if not finding.is_note]


def check(path: str | Path, verify: bool = True) -> Report:
    """Look at a store without changing it. `verify` reads every frame and compares it with the digest of its episode.

    At a URL the episodes are checked, and not what else lies there.
    """
    report = Report(remote_path(path, cache_bytes=0) if is_url(path) else local_path(path))
    try:
        store = EpisodeStore(report.path, tolerate_missing=True)
    except StoreError as error:
        report.findings.append(Finding("metadata", str(error)))
        return report
    report.episodes = len(store)
    if isinstance(report.path, RemotePath):
        report.findings = [*_summary(store), *_unusable(store, verify)]
    else:
        report.findings = [*_unfinished(store), *_summary(store), *_unusable(store, verify), *_notes(store)]
    store.close()
    return report


def repair(path: str | Path, verify: bool = True) -> Report:
    """Drop the unfinished tail, set damaged episodes aside (bytes and numbers stay), renew the summary.

    Raises StoreError when somebody writes to the store, or when its zarr metadata is beyond repair.
    """
    if is_url(path):
        raise StoreError(f"{path} is remote: repair the local store, then copy it again with uwm_data.copy_store")
    path = local_path(path)
    _, _, shards = layout.read_layout(path)
    lock = WriterLock(path)
    try:
        done = _repair_journal(path, shards)
        before = check(path, verify)
        store = EpisodeStore(path, lock, tolerate_missing=True)
        done += [f"dropped: {finding.text}" for finding in before.findings if finding.kind == "unfinished"]
        bad = {finding.episode: finding.text for finding in before.findings if finding.episode is not None and not finding.is_note}
        store.set_aside(bad)
        done += [f"set aside: {text}" for text in bad.values()]
        store.close()
    finally:
        lock.release()
    after = check(path, verify)
    after.done = done
    return after


def main_check(path: str | Path, repair_it: bool = False, verify: bool = True) -> int:
    """`uwm data check`: one line per finding; 0 when nothing is left to repair, 1 when something is, 2 when refused."""
    try:
        report = repair(path, verify) if repair_it else check(path, verify)
    except (StoreError, OSError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    for line in report.done:
        print(line)
    for finding in report.findings:
        print(f"{'note' if finding.is_note else 'problem'}: {finding.kind}: {finding.text}")
    hint = "" if repair_it or not report.problems else f"; try `uwm data check {path} --repair`"
    print(f"{path}: {report.episodes} episodes, {len(report.problems)} problems{hint}")
    return 1 if report.problems else 0


def _unfinished(store: EpisodeStore) -> Iterator[Finding]:
    sizes = unfinished_files(store)
    cut = [f"{file.relative_to(store.path)} beyond byte {size}" for file, size in sizes]
    if store.journal.tail_bytes:
        cut.append(f"{JOURNAL} beyond byte {store.journal.committed_bytes}")
    if cut:
        text = f"an episode that was never committed left bytes in {', '.join(cut)}"
        # While a writer is at work these are the bytes of the episode it is just adding.
        yield Finding("unfinished", text + (" (a writer is at work)" if _is_being_written(store.path) else ""))


def _is_being_written(path: Path) -> bool:
    try:
        WriterLock(path).release()
    except StoreError:
        return True
    except OSError:
        return False  # a read-only disk: nobody writes there
    return False


def _summary(store: EpisodeStore) -> Iterator[Finding]:
    published = layout.read_published(store.path, store.streams)
    committed = {name: store.journal.frames(name) for name in store.streams}
    if published != committed:
        text = f"plain zarr readers see {published} frames, committed are {committed} (the last writer was not closed)"
        yield Finding("summary", text)


def _unusable(store: EpisodeStore, verify: bool) -> Iterator[Finding]:
    missing = missing_shards(store)
    for index in store.episodes:
        if index in missing:
            yield Finding("missing shard", f"episode {index}: {missing[index]}", index)
        elif verify:
            yield from _verify(store, index)


def _verify(store: EpisodeStore, index: int) -> Iterator[Finding]:
    """At most one finding: the first stream of the episode that does not read as it was written."""
    for stream in store.streams:
        try:
            values = store.read(index, stream)
        except StoreError as error:
            cause = error.__cause__ or error
            yield Finding("unreadable chunk", f"episode {index}, stream {stream!r}: {cause}", index)
            return
        if digest_of(values.reshape(-1).view(np.uint8)) != store.span(index, stream).digest:
            yield Finding("checksum mismatch", f"episode {index}, stream {stream!r}: the bytes are not those appended", index)
            return


def _notes(store: EpisodeStore) -> Iterator[Finding]:
    for index, reason in store.damaged.items():
        yield Finding("set aside", f"episode {index}: {reason}", index, is_note=True)
    shards = {path for name in store.streams for path in (store.path / name).glob("c.*")}
    for file in sorted(store.path.rglob("*")):
        inside = file.relative_to(store.path)
        own = inside.as_posix() in _OWN_FILES or inside.as_posix() in {f"{name}/zarr.json" for name in store.streams}
        if file.is_file() and not own and file not in shards and not file.name.endswith(durable.PARTIAL_SUFFIX):
            yield Finding("stray file", f"{inside} is not part of the store; it is left alone", is_note=True)


def _repair_journal(path: Path, shards: dict[str, Shards]) -> list[str]:
    """Replace unreadable journal lines by placeholders; the lines themselves are kept in a file beside the journal."""
    file = path / JOURNAL
    try:
        read_journal(file, shards)
        return []
    except StoreError:
        lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else None
    if lines is None:
        raise StoreError(f"{file} is missing: without it no episode can be found; copy it back or collect again")
    journal, broken = Journal(shards), []
    for line in lines:
        try:
            episode = Episode.from_line(line)
            _fill_gap(journal, episode, shards)
            journal.add(episode, line)
        except (StoreError, KeyError):
            broken.append(line)
    keep = path / DAMAGED_LINES
    kept = keep.read_bytes() if keep.exists() else b""
    durable.replace_file(keep, kept + b"".join(line + b"\n" for line in broken))
    durable.replace_file(file, b"".join(episode.to_line() for episode in journal))
    lost = [f"set aside: episode {e.index}: {e.damaged}" for e in journal if e.damaged]
    return [
        f"moved {len(broken)} unreadable journal lines to {DAMAGED_LINES}; the journal ends with episode "
        f"{len(journal) - 1} now (an unreadable last line cannot be placed, its frames are cut off)",
        *lost,
    ]


def _fill_gap(journal: Journal, following: Episode, shards: dict[str, Shards]) -> None:
    """Stand-ins for the lines lost before `following`; the first takes all frames in between, so none is overwritten."""
    while len(journal) < following.index:
        spans, sizes = {}, {}
        for name, some in shards.items():
            spans[name] = Span(journal.frames(name), following.spans[name].start, "")
            # A shard that was left behind is final, so its size on disk is its committed size.
            left = range(some.shard_of(spans[name].start), some.shard_of(spans[name].stop))
            sizes[name] = {shard: some.path(shard).stat().st_size for shard in left if some.path(shard).exists()}
        journal.add(Episode(len(journal), {}, spans, sizes, "its journal line could not be read"))
