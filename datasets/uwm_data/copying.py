"""Copies of a store, to and from any fsspec URL, that are whole or not there at all.

shards, committed bytes only  ->  zarr.json of streams and group  ->  episodes.jsonl
                                                                      ^ the commit, as for a single episode

Until the journal is there no reader opens the copy; a copy that had fewer episodes keeps serving those. Committed bytes
never change, so a file of the right size from an earlier, interrupted copy of the same store is not sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from uwm_data import durable
from uwm_data.errors import StoreError
from uwm_data.journal import JOURNAL, canonical, digest_of
from uwm_data.lock import LOCK_FILE, WriterLock
from uwm_data.remote import Remote, is_url, local_path
from uwm_data.store import EpisodeStore

MARKER = "copying.json"  # names the store whose copy has begun
_GROUP_BYTES = 32 << 20


def copy_store(
    source: str | Path,
    target: str | Path,
    source_options: Mapping | None = None,
    target_options: Mapping | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Copy a store, local or at a URL, to a folder or URL; returns the bytes that were sent.

    The same call goes on after an interruption, and brings an older copy up to date. `progress(done, total)` in bytes.
    Raises StoreError when the target holds anything else than an older copy of this store; then nothing is written.
    """
    store = EpisodeStore.open(source, storage_options=source_options, cache_bytes=0)
    place = _Url(str(target), target_options or {}) if is_url(target) else _Folder(local_path(target))
    have = place.sizes()
    _refuse_other_content(store, target, target_options, place, have)
    shards = [(name, shard, size) for name in store.streams for shard, size in store.journal.sizes[name].items()]
    total, done = sum(size for *_, size in shards), 0
    with place.writing():
        if JOURNAL not in have:
            place.write({MARKER: _marker(store)})
        sent = 0
        for group in _groups(shards):
            lacking = [each for each in group if have.get(f"{each[0]}/{store.shards[each[0]].name(each[1])}") != each[2]]
            place.write(dict(_payload(store, *each) for each in lacking))
            sent, done = sent + sum(size for *_, size in lacking), done + sum(size for *_, size in group)
            if progress:
                progress(done, total)
        place.write({f"{name}/zarr.json": (store.path / name / "zarr.json").read_bytes() for name in store.streams})
        place.write({"zarr.json": (store.path / "zarr.json").read_bytes()})
        place.write({JOURNAL: b"".join(episode.to_line() for episode in store.journal)})
        if JOURNAL not in have:
            place.remove(MARKER)
    store.close()
    return sent


def _groups(shards: list[tuple[str, int, int]]) -> Iterator[list[tuple[str, int, int]]]:
    group, size = [], 0
    for each in shards:
        if group and size + each[2] > _GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(each)
        size += each[2]
    if group:
        yield group


def _payload(store: EpisodeStore, stream: str, shard: int, size: int) -> tuple[str, bytes]:
    shards = store.shards[stream]
    data = shards.stored(shard, size)
    if len(data) != size:
        raise StoreError(f"{shards.path(shard)} has {len(data)} of {size} committed bytes; run `uwm data check {store.path}`")
    return f"{stream}/{shards.name(shard)}", data


def _about(store: EpisodeStore) -> list:
    card = store.card
    card.pop("checksum")
    return [{name: spec.to_json() for name, spec in store.streams.items()}, card]


def _marker(store: EpisodeStore) -> bytes:
    """The same for a store and for the same store with more episodes."""
    return canonical({"copy_of": digest_of(canonical([*_about(store), store.journal.digest(0) if len(store) else ""]))})


def _refuse_other_content(store: EpisodeStore, target: str | Path, options: Mapping | None, place: _Folder | _Url, have: Mapping) -> None:
    if JOURNAL in have:
        old = EpisodeStore.open(target, storage_options=options, cache_bytes=0)
        known = range(len(old))
        if _about(old) != _about(store) or len(old) > len(store) or any(old.journal.digest(k) != store.journal.digest(k) for k in known):
            raise StoreError(f"{target} holds another store, or episodes that {store.path} lacks; choose another place, or remove it first")
        old.close()
    elif MARKER in have:
        if place.read(MARKER) != _marker(store):
            raise StoreError(f"{target} holds the unfinished copy of another store; finish that one, choose another place, or remove it")
    elif set(have) - {LOCK_FILE}:
        raise StoreError(f"{target} is not empty and not a copy of {store.path}; choose another place")


class _Folder:
    """A local folder as target."""

    def __init__(self, folder: Path):
        self.folder = folder

    def sizes(self) -> dict[str, int]:
        if self.folder.exists() and not self.folder.is_dir():
            raise StoreError(f"{self.folder} is a file; choose a folder for the copy")
        files = [file for file in self.folder.rglob("*") if file.is_file()]
        return {file.relative_to(self.folder).as_posix(): file.stat().st_size for file in files}

    @contextmanager
    def writing(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = WriterLock(self.folder)
            try:
                yield
            finally:
                lock.release()
        except OSError as error:
            raise StoreError(
                f"{self.folder}: writing the copy failed ({error.strerror or error}); the same call goes on where it stopped"
            ) from error

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def write(self, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            (self.folder / name).parent.mkdir(exist_ok=True)
            durable.replace_file(self.folder / name, data)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink()


class _Url:
    """An fsspec URL as target."""

    def __init__(self, url: str, options: Mapping):
        self.remote = Remote(url, options, None)

    def sizes(self) -> dict[str, int]:
        return self.remote.sizes()

    @contextmanager
    def writing(self) -> Iterator[None]:
        yield

    def read(self, name: str) -> bytes:
        return self.remote.whole(name)

    def write(self, files: Mapping[str, bytes]) -> None:
        self.remote.write(files)

    def remove(self, name: str) -> None:
        self.remote.remove(name)
