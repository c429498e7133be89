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
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from uwm_data import durable, layout
from uwm_data.creation import build_store, clear_target
from uwm_data.errors import StoreError
from uwm_data.journal import JOURNAL, Episode, Journal, Span, canonical, digest_of, read_journal
from uwm_data.lock import WriterLock
from uwm_data.remote import CACHE_BYTES, RemotePath, is_url, local_path, remote_path
from uwm_data.shards import Piece, ShardDamage
from uwm_data.streams import StreamSpec, check_episode, check_names
from uwm_data.wholeness import refuse_missing_shards, unfinished_files

SHARD_BYTES = 8 << 20  # of raw frames: a few MB on disk


class EpisodeStore:
    """Episodes of several streams in one folder. Make one with `create` or `open`, not directly.

    A reader sees the episodes committed when it opened (or last called `refresh`), also while a writer appends.
    Pickles and forks: files open lazily in each process. Only the process that opened it for writing may append.
    """

    def __init__(self, path: Path | RemotePath, lock: WriterLock | None = None, tolerate_missing: bool = False):
        self.path = path if isinstance(path, RemotePath) else Path(path)
        self.streams, self._card, self.shards = layout.read_layout(self.path)
        self._lock = lock
        self.journal = Journal(self.streams)
        self._clean = False
        self.refresh()
        if not tolerate_missing:
            refuse_missing_shards(self)
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
        compression: str = "zstd",
    ) -> EpisodeStore:
        """A new, empty store, open for writing. The store appears whole, by one rename.

        `card` is a JSON-able description (units, image orientation, action convention, ...); cameras, rates, code
        version and creation time are filled in. `overwrite` replaces an episode store, never another folder.
        `compression` of video frames, lossless: "zstd" (smallest), "lz4" (a third larger, twice as fast to read),
        "none".
        """
        path = _for_writing(path)
        check_names(streams)
        old_lock = clear_target(path, overwrite)
        try:
            lock = build_store(path, streams, card or {}, shard_bytes, compression)
        finally:
            if old_lock:
                old_lock.release()
        return cls(path, lock)

    @classmethod
    def open(
        cls,
        path: str | Path,
        write: bool = False,
        storage_options: Mapping | None = None,
        cache_dir: str | Path | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> EpisodeStore:
        """An existing store; `write=True` continues it (waits for nobody: a second writer is a StoreError).

        `path` may be any fsspec URL (s3://bucket/lift.zarr), for reading: `storage_options` go to its file system, and at
        most `cache_bytes` of it are kept in `cache_dir` (~/.cache/uwm/blocks), shared by all processes; 0 keeps nothing.
        """
        if not write:
            return cls(remote_path(str(path), storage_options, cache_dir, cache_bytes) if is_url(path) else local_path(path))
        path = _for_writing(path)
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

    def __exit__(self, kind, *_) -> None:
        try:
            self.close()
        except StoreError:
            # On a full disk the append has failed already, and that is the error to show.
            if kind is None:
                raise

    def close(self) -> None:
        """Let go of files and lock. A writer first tells plain zarr readers how long the arrays are."""
        if self._lock and self._lock.release.alive and self._lock.process == os.getpid():
            try:
                if not self._clean:
                    self._drop_unfinished()
                summary = {"episodes": len(self), "checksum": self.checksum}
                layout.publish(self.path, {name: self.journal.frames(name) for name in self.streams}, summary)
            except OSError as error:
                raise StoreError(
                    f"{self.path}: every episode is safe, but the summary for other readers could not be written "
                    f"({error.strerror or error}); free some space and run `uwm data check {self.path} --repair`"
                ) from error
            finally:
                self._lock.release()
        for shards in self.shards.values():
            shards.close()

    # ---- reading ---------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Committed episodes, the damaged ones included: indices never shift."""
        return len(self.journal)

    @property
    def episodes(self) -> list[int]:
        """Indices of the episodes that may be used (all but those that a repair marked as damaged)."""
        return [index for index in range(len(self)) if index not in self.journal.damaged]

    @property
    def damaged(self) -> dict[int, str]:
        """Episodes that a repair set aside, with the reason."""
        return dict(self.journal.damaged)

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
        return digest_of(canonical([streams, [self.journal.digest(self._usable(index)) for index in episodes]]))

    def episode(self, index: int) -> Episode:
        """The journal entry of an episode; StoreError when it does not exist or was set aside as damaged."""
        return self.journal[self._usable(index)]

    def _usable(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise StoreError(f"{self.path} has episodes 0 to {len(self) - 1}, asked for {index}")
        if index in self.journal.damaged:
            raise StoreError(f"{self.path}: episode {index} was set aside: {self.journal.damaged[index]}; use store.episodes")
        return int(index)

    def meta(self, index: int) -> dict:
        """A copy of the metadata that was appended with an episode."""
        return json.loads(json.dumps(self.episode(index).meta))

    def length(self, index: int, stream: str) -> int:
        """Frames of a stream in an episode."""
        return len(self.journal.span(self._usable(index), self._known(stream)))

    def extents(self, stream: str, episodes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(first frame in the whole stream, number of frames), (n,) int64 each, of some episodes; StoreError as `episode`."""
        episodes = np.asarray(episodes, np.int64)
        aside = np.isin(episodes, list(self.journal.damaged))
        for index in episodes[(episodes < 0) | (episodes >= len(self)) | aside].tolist():
            self._usable(index)
        starts, stops = self.journal.extents(self._known(stream))
        return starts[episodes], (stops - starts)[episodes]

    def span(self, index: int, stream: str) -> Span:
        """Where the frames of an episode stand in the whole stream."""
        return self.episode(index).spans[self._known(stream)]

    def read(self, index: int, stream: str, frames: Sequence[int] | slice | None = None) -> np.ndarray:
        """Frames (n, *shape) of one episode in the order asked for, all of them by default; reads nothing else.

        Frame numbers outside 0..length-1, negative ones too, are a StoreError: padding is the business of Windows.
        """
        span = self.journal.span(self._usable(index), self._known(stream))
        every = np.arange(len(span))
        chosen = every if frames is None else every[frames] if isinstance(frames, slice) else np.asarray(frames, np.int64)
        if chosen.size and not (0 <= chosen.min() and chosen.max() < len(span)):
            raise StoreError(f"episode {index} has frames 0 to {len(span) - 1} of {stream!r}, asked for {chosen.tolist()}")
        return self.read_rows(stream, span.start + chosen.reshape(-1))

    def read_rows(self, stream: str, rows: np.ndarray, out: np.ndarray | None = None, at: np.ndarray | None = None) -> np.ndarray:
        """Frames (n, *shape) by their place in the whole stream; each distinct frame is read once, in disk order.

        With `out` (m, *shape) frame k is written to `out[at[k]]` (`at` is 0, 1, 2, ... by default) and `out` is returned.
        """
        shards = self.shards[self._known(stream)]
        rows = np.asarray(rows, np.int64)
        if out is None:
            out = np.empty((len(rows), *shards.spec.shape), shards.spec.dtype)
        try:
            shards.read(rows, self.journal.sizes[stream], out, np.arange(len(rows)) if at is None else at)
        except ShardDamage as damage:
            raise self._explained(stream, damage) from damage
        return out

    @property
    def frames_decoded(self) -> dict[str, int]:
        """Frames decoded from disk since opening, per stream (for small frames: whole chunks)."""
        return {name: shards.frames_decoded for name, shards in self.shards.items()}

    def refresh(self) -> int:
        """Look again what is committed (a writer may have appended); returns the number of episodes."""
        if isinstance(self.path, RemotePath):
            self.path.remote.look_again()
        self.journal = read_journal(self.path / JOURNAL, self.streams)
        return len(self)

    def _explained(self, stream: str, damage: ShardDamage) -> StoreError:
        starts = self.journal.extents(stream)[0].tolist()
        return StoreError(
            f"{self.path}: stream {stream!r} of episode {bisect_right(starts, damage.row) - 1} is damaged: {damage}; "
            f"run `uwm data check {self.path} --repair` to set the damaged episodes aside"
        )

    def _known(self, stream: str) -> str:
        if stream not in self.streams:
            raise StoreError(f"{self.path} has no stream {stream!r}; it has {list(self.streams)}")
        return stream

    # ---- writing ---------------------------------------------------------------------------------------------

    def append(self, data: Mapping[str, np.ndarray], meta: Mapping | None = None) -> int:
        """Add one whole episode and return its index; when this returns, the episode survives a power cut.

        `data` holds an array (frames, *shape) per stream: T actions, T + 1 observations at equal rates. `meta` is
        JSON-able: task, instruction, seed, success, source, ... Raises StoreError on bad data or a failing disk; then the
        store is as it was before the call. After Ctrl-C it holds the whole episode or nothing of it.
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
        try:
            return self.shards[stream].encode(self.journal.frames(stream), values, self.journal.sizes[stream])
        except ShardDamage as damage:
            # The last chunk or table is needed to continue behind it.
            raise self._explained(stream, damage) from damage

    def set_aside(self, reasons: Mapping[int, str]) -> None:
        """Mark episodes as damaged, by one rename of the journal. Their bytes and numbers stay; readers skip them."""
        self._refuse_foreign_writer()
        episodes = [replace(episode, damaged=reasons.get(episode.index, episode.damaged)) for episode in self.journal]
        if episodes:
            episodes[-1] = self._ended_before_damage(episodes[-1])
        durable.replace_file(self.path / JOURNAL, b"".join(episode.to_line() for episode in episodes))
        self.refresh()

    def _ended_before_damage(self, last: Episode) -> Episode:
        """If the end of a stream cannot be read, the last episode is given the rest of that shard, so that the next one
        starts in a new shard."""
        spans = dict(last.spans)
        for name, span in spans.items():
            shards = self.shards[name]
            try:
                shards.frames(np.arange(max(0, span.stop - 1), span.stop), self.journal.sizes[name])
            except ShardDamage:
                end = (shards.shard_of(span.stop - 1) + 1) * shards.frames_per_shard
                spans[name] = replace(span, stop=end)
        return replace(last, spans=spans)

    def _next_span(self, stream: str, values: np.ndarray) -> Span:
        start = self.journal.frames(stream)
        return Span(start, start + len(values), digest_of(values.reshape(-1).view(np.uint8)))

    def _commit(self, episode: Episode, pieces: list[Piece]) -> None:
        line = episode.to_line()
        self._clean = False
        try:
            for piece in pieces:
                durable.write_at(piece.path, piece.offset, piece.payload)
            for folder in {piece.path.parent for piece in pieces if not piece.offset}:
                durable.sync_folder(folder)
            durable.write_at(self.path / JOURNAL, self.journal.committed_bytes, line)
        except OSError as error:
            self._roll_back()
            raise StoreError(self._disk_trouble(error, sum(len(p.payload) for p in pieces) + len(line))) from error
        except BaseException:
            self._roll_back()
            raise
        self.journal.add(episode, line[:-1])
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
        if self.journal.tail_bytes:
            durable.truncate(self.path / JOURNAL, self.journal.committed_bytes)
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


def _for_writing(path: str | Path) -> Path:
    if is_url(path):
        raise StoreError(f"{path} is remote, and episodes are added on a local disk: do so, then uwm_data.copy_store(folder, {path!r})")
    return local_path(path)
