"""EpisodeStore: whole episodes in, single frames out; a crash at any point leaves every committed episode readable.

    append(episode)
      1 check the arrays        nothing written yet; bad data ends here
      2 encode                  in memory, so the bytes needed are known
      3 add behind the committed end of each stream's shard, fsync
      4 add one line to episodes.jsonl, fsync           <- the commit: before it nothing happened, after it all did

    episodes.jsonl  | line 0 | line 1 |                 committed
    agentview       | e0     | e1     | e2 (no line)    a crash between 3 and 4: readers never look past e1,
    action          | e0     | e1     | e               the next writer cuts the tail off
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from uwm_data import durable, layout
from uwm_data.errors import StoreError
from uwm_data.journal import JOURNAL, Episode, Journal, Span, canonical, digest_of, read_journal
from uwm_data.lock import LOCK_FILE, WriterLock
from uwm_data.shards import Piece, ShardDamage, Shards
from uwm_data.streams import StreamSpec, check_episode, check_names

SHARD_BYTES = 8 << 20  # of raw frames: a few MB on disk


class EpisodeStore:
    """Episodes of several streams in one folder. Make one with `create` or `open`, not directly.

    A reader sees the episodes committed when it opened (or last called `refresh`), also while a writer appends.
    Pickles and forks: files open lazily in each process. Only the process that opened it for writing may append.
    """

    def __init__(self, path: Path, lock: WriterLock | None = None):
        self.path = Path(path)
        self.streams, self._card, self._shards = layout.read_layout(self.path)
        self._lock = lock
        self._journal = Journal()
        self._clean = False
        self.refresh()
        _refuse_missing_shards(self)
        if lock:
            self._drop_unfinished()

    # ---- making and opening ----------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | Path,
        streams: Mapping[str, StreamSpec],
        card: Mapping | None = None,
        overwrite: bool = False,
        shard_bytes: int = SHARD_BYTES,
    ) -> EpisodeStore:
        """A new, empty store, open for writing. The store appears whole, by one rename.

        `card` is a JSON-able description (units, image orientation, action convention, ...); cameras, rates, code
        version and creation time are filled in. `overwrite` replaces an episode store, never another folder.
        """
        path = Path(path)
        check_names(streams)
        old_lock = _clear_target(path, overwrite)
        partial = path.with_name(f".{path.name}.{os.getpid()}{durable.PARTIAL_SUFFIX}")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            layout.write_layout(partial, dict(streams), _full_card(streams, card or {}), shard_bytes)
            durable.replace_file(partial / JOURNAL, b"")
            lock = WriterLock(partial)
            _move_into_place(partial, path)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise StoreError(f"cannot create a store at {path}: {error.strerror or error}") from error
        finally:
            if old_lock:
                old_lock.release()
        return cls(path, lock)

    @classmethod
    def open(cls, path: str | Path, write: bool = False) -> EpisodeStore:
        """An existing store; `write=True` continues it (waits for nobody: a second writer is a StoreError)."""
        path = Path(path)
        if not write:
            return cls(path)
        layout.read_layout(path)  # before the lock, so that a foreign folder gets no lock file of ours
        try:
            lock = WriterLock(path)
        except OSError as error:
            raise StoreError(f"cannot write to {path}: {error.strerror or error}") from error
        try:
            return cls(path, lock)
        except BaseException:
            lock.release()
            raise

    def __enter__(self) -> EpisodeStore:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Let go of files and lock. A writer first tells plain zarr readers how long the arrays are."""
        if self._lock and self._lock.release.alive and self._lock.process == os.getpid():
            try:
                if not self._clean:
                    self._drop_unfinished()
                summary = {"episodes": len(self), "checksum": self.checksum}
                layout.publish(self.path, {name: self._journal.frames(name) for name in self.streams}, summary)
            except OSError as error:
                raise StoreError(
                    f"{self.path}: every episode is safe, but the summary for other readers could not be written "
                    f"({error.strerror or error}); free some space and run `uwm data check {self.path} --repair`"
                ) from error
            finally:
                self._lock.release()
        for shards in self._shards.values():
            shards.close()

    # ---- reading ---------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Committed episodes, the damaged ones included: indices never shift."""
        return len(self._journal.episodes)

    @property
    def episodes(self) -> list[int]:
        """Indices of the episodes that may be used (all but those that a repair marked as damaged)."""
        return [episode.index for episode in self._journal.episodes if not episode.damaged]

    @property
    def damaged(self) -> dict[int, str]:
        """Episodes that a repair set aside, with the reason."""
        return {episode.index: episode.damaged for episode in self._journal.episodes if episode.damaged}

    @property
    def card(self) -> dict:
        """A copy of the card, with the checksum of the episodes as they are now."""
        return {**json.loads(json.dumps(self._card)), "checksum": self.checksum}

    @property
    def checksum(self) -> str:
        """Names the content of all usable episodes: streams, metadata and every byte, not their place on disk."""
        return self.checksum_of(self.episodes)

    def checksum_of(self, episodes: Iterable[int]) -> str:
        """The same for some episodes, in the given order."""
        streams = {name: spec.to_json() for name, spec in self.streams.items()}
        return digest_of(canonical([streams, [self.episode(index).digest for index in episodes]]))

    def episode(self, index: int) -> Episode:
        """The journal entry of an episode; StoreError when it does not exist or was set aside as damaged."""
        if not 0 <= index < len(self):
            raise StoreError(f"{self.path} has episodes 0 to {len(self) - 1}, asked for {index}")
        episode = self._journal.episodes[index]
        if episode.damaged:
            raise StoreError(f"{self.path}: episode {index} was set aside: {episode.damaged}; use store.episodes")
        return episode

    def meta(self, index: int) -> dict:
        """A copy of the metadata that was appended with an episode."""
        return json.loads(json.dumps(self.episode(index).meta))

    def length(self, index: int, stream: str) -> int:
        """Frames of a stream in an episode."""
        return len(self.span(index, stream))

    def span(self, index: int, stream: str) -> Span:
        """Where the frames of an episode stand in the whole stream."""
        return self.episode(index).spans[self._known(stream)]

    def read(self, index: int, stream: str, frames: Sequence[int] | slice | None = None) -> np.ndarray:
        """Frames (n, *shape) of one episode in the order asked for, all of them by default; reads nothing else.

        Frame numbers outside 0..length-1, negative ones too, are a StoreError: padding is the business of Windows.
        """
        span = self.span(index, stream)
        every = np.arange(len(span))
        chosen = every if frames is None else every[frames] if isinstance(frames, slice) else np.asarray(frames, np.int64)
        if chosen.size and not (0 <= chosen.min() and chosen.max() < len(span)):
            raise StoreError(f"episode {index} has frames 0 to {len(span) - 1} of {stream!r}, asked for {chosen.tolist()}")
        return self.read_rows(stream, span.start + chosen.reshape(-1))

    def read_rows(self, stream: str, rows: np.ndarray) -> np.ndarray:
        """Frames (n, *shape) by their place in the whole stream; each distinct frame is read once, in disk order."""
        shards = self._shards[self._known(stream)]
        distinct, back = np.unique(rows, return_inverse=True)
        try:
            values = shards.read(distinct, self._journal.sizes[stream])
        except ShardDamage as damage:
            starts = [episode.spans[stream].start for episode in self._journal.episodes]
            raise StoreError(
                f"{self.path}: stream {stream!r} of episode {bisect_right(starts, damage.row) - 1} is damaged: {damage}; "
                f"run `uwm data check {self.path} --repair` to set the damaged episodes aside"
            ) from damage
        return values if len(distinct) == len(rows) and np.array_equal(distinct, rows) else values[back]

    @property
    def frames_decoded(self) -> dict[str, int]:
        """Frames decoded from disk since opening, per stream (for small frames: whole chunks)."""
        return {name: shards.frames_decoded for name, shards in self._shards.items()}

    def refresh(self) -> int:
        """Look again what is committed (a writer may have appended); returns the number of episodes."""
        self._journal = read_journal(self.path / JOURNAL, self.streams)
        return len(self)

    def _known(self, stream: str) -> str:
        if stream not in self.streams:
            raise StoreError(f"{self.path} has no stream {stream!r}; it has {list(self.streams)}")
        return stream

    # ---- writing ---------------------------------------------------------------------------------------------

    def append(self, data: Mapping[str, np.ndarray], meta: Mapping | None = None) -> int:
        """Add one whole episode and return its index; when this returns, the episode survives a power cut.

        `data` holds an array (frames, *shape) per stream: T actions, T + 1 observations at equal rates. `meta` is
        JSON-able: task, instruction, seed, success, source, ... Raises StoreError on bad data or a failing disk; then,
        as after Ctrl-C, the store is as it was before the call.
        """
        self._refuse_foreign_writer()
        if not self._clean:
            self._drop_unfinished()
        arrays = check_episode(self.streams, data)
        meta = json.loads(canonical(dict(meta or {})))
        pieces = {name: self._encode(name, values) for name, values in arrays.items()}
        episode = Episode(
            len(self),
            meta,
            {name: self._next_span(name, values) for name, values in arrays.items()},
            {name: {piece.shard: piece.size for piece in some} for name, some in pieces.items()},
        )
        self._commit(episode, [piece for some in pieces.values() for piece in some])
        return episode.index

    def _encode(self, stream: str, values: np.ndarray) -> list[Piece]:
        return self._shards[stream].encode(self._journal.frames(stream), values, self._journal.sizes[stream])

    def _next_span(self, stream: str, values: np.ndarray) -> Span:
        start = self._journal.frames(stream)
        return Span(start, start + len(values), digest_of(values.reshape(-1).view(np.uint8)))

    def _commit(self, episode: Episode, pieces: list[Piece]) -> None:
        line = episode.to_line()
        self._clean = False
        try:
            for piece in pieces:
                durable.write_at(piece.path, piece.offset, piece.payload)
            for folder in {piece.path.parent for piece in pieces if not piece.offset}:
                durable.sync_folder(folder)
            durable.write_at(self.path / JOURNAL, self._journal.committed_bytes, line)
        except OSError as error:
            self._roll_back()
            raise StoreError(self._disk_trouble(error, sum(len(p.payload) for p in pieces) + len(line))) from error
        except BaseException:
            self._roll_back()
            raise
        self._journal.add(episode, len(line))
        self._clean = True

    def _roll_back(self) -> None:
        try:
            self._drop_unfinished()
        except (OSError, StoreError):
            # The disk is in a bad way. Nothing committed is at risk: the next append, or the next writer, tries again.
            self._clean = False

    def _drop_unfinished(self) -> None:
        """Cut everything off that no complete journal line speaks for."""
        self.refresh()
        for path, size in unfinished_files(self):
            if size:
                durable.truncate(path, size)
            else:
                path.unlink()
        if self._journal.tail_bytes:
            durable.truncate(self.path / JOURNAL, self._journal.committed_bytes)
        self._clean = True

    def _disk_trouble(self, error: OSError, needed: int) -> str:
        free = shutil.disk_usage(self.path).free
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full" if full else f"writing failed ({error.strerror or error})"
        return (
            f"{self.path}: {what} while adding episode {len(self)}: {needed / 1e6:.2f} MB needed, {free / 1e6:.2f} MB free. "
            f"The {len(self)} episodes before it stay readable; free some space and append again"
        )

    def _refuse_foreign_writer(self) -> None:
        if not self._lock or not self._lock.release.alive:
            raise StoreError(f"{self.path} is open for reading; use EpisodeStore.open(path, write=True) to append")
        if self._lock.process != os.getpid():
            raise StoreError(f"{self.path} was opened for writing by process {self._lock.process}; append there")

    def __getstate__(self) -> dict:
        if self._lock and self._lock.release.alive:
            raise StoreError(f"{self.path} is open for writing and cannot be sent to another process; open it there")
        return {**self.__dict__, "_lock": None}


def unfinished_files(store: EpisodeStore) -> list[tuple[Path, int]]:
    """(file, committed size) of every file that is longer than what is committed; size 0 means none of it is."""
    journal = store._journal
    found = [(path, 0) for path in sorted(store.path.rglob("*" + durable.PARTIAL_SUFFIX)) if path.is_file()]
    for name, shards in store._shards.items():
        committed = {shards.path(shard): size for shard, size in journal.sizes[name].items()}
        for path in sorted(shards.folder.glob("c.*")):
            if not path.name.endswith(durable.PARTIAL_SUFFIX) and path.stat().st_size > committed.get(path, 0):
                found.append((path, committed.get(path, 0)))
    return found


def missing_shards(store: EpisodeStore) -> dict[int, str]:
    """Usable episodes that need a shard which is gone or shorter than committed, with the reason."""
    bad = {}
    for name, shards in store._shards.items():
        short = {
            shard: f"{shards.path(shard).relative_to(store.path)} {reason}"
            for shard, size in store._journal.sizes[name].items()
            if (reason := _shortfall(shards.path(shard), size))
        }
        for index in store.episodes if short else []:
            span = store.span(index, name)
            for shard in range(shards.shard_of(span.start), shards.shard_of(max(span.start, span.stop - 1)) + 1):
                if shard in short:
                    bad.setdefault(index, short[shard])
    return bad


def _shortfall(path: Path, size: int) -> str:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        return "is missing"
    return f"has {found} of {size} committed bytes" if found < size else ""


def _refuse_missing_shards(store: EpisodeStore) -> None:
    bad = missing_shards(store)
    if bad:
        numbers = ", ".join(map(str, list(bad)[:8])) + (" ..." if len(bad) > 8 else "")
        raise StoreError(
            f"{store.path} is damaged: {next(iter(bad.values()))}; {len(bad)} of {len(store)} episodes need it ({numbers}). "
            f"Copy the file back, or run `uwm data check {store.path} --repair` to go on without these episodes"
        )


def _clear_target(path: Path, overwrite: bool) -> WriterLock | None:
    """Prove that a store may be made at `path`; returns the lock of the old store when it may be overwritten."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    try:
        layout.read_layout(path)
    except StoreError as error:
        raise StoreError(f"{path} is not empty and not an episode store, so it is left alone; choose another path ({error})") from error
    if not overwrite:
        raise StoreError(
            f"{path} already holds an episode store: resume it with EpisodeStore.open(path, write=True), "
            "or replace it with create(..., overwrite=True)"
        )
    return WriterLock(path)


def _move_into_place(partial: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        os.replace(path, old)
    os.replace(partial, path)
    durable.sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _full_card(streams: Mapping[str, StreamSpec], card: Mapping) -> dict:
    try:
        version = metadata.version("uwm")
    except metadata.PackageNotFoundError:
        version = "not installed"
    filled = {
        "cameras": [name for name, spec in streams.items() if spec.kind == "video"],
        "rates_hz": {name: spec.rate_hz for name, spec in streams.items()},
        "units": {name: list(spec.units) for name, spec in streams.items()},
        "code_version": version,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    return json.loads(canonical({**filled, **card}))


OWN_FILES = ("zarr.json", JOURNAL, LOCK_FILE)
