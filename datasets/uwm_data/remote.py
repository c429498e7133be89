"""Stores at any fsspec URL, for reading: ranges over the network, through a cache of blocks on the local disk.

A store needs four things of a file system: list the files, their sizes, a small file whole, ranges of shards. `RemotePath`
answers the first three as `pathlib.Path` does, `RemoteFiles` the last as `LocalFiles` does, so that the rest of the package
does not know where a store lies.

    frames of a batch -> ranges -> blocks of 256 KB -> in the cache? -> those that lack: concurrent requests, then kept
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from uwm_data.block_cache import BlockCache
from uwm_data.errors import StoreError
from uwm_data.journal import JOURNAL

BLOCK_BYTES = 256 << 10  # about fifteen frames of 128 pixels: neighbours in time come along
CACHE_BYTES = 8 << 30
_TOGETHER = 64  # ranges that are asked for at once
_RUN_BYTES = 4 << 20
_ATTEMPTS, _PAUSE_S = 4, 0.2
# What a file system tells about the state of a file; the first group names the content, the second one its last change.
_BY_CONTENT = ("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "Digest", "generation", "sha256", "hash")
_BY_TIME = ("mtime", "LastModified", "last_modified", "Last-Modified", "created", "ino")


def is_url(path: object) -> bool:
    """Is this the URL of a remote place? (`file://` is not: it is a path in other words.)"""
    text = str(path)
    return not isinstance(path, Path) and ("://" in text or "::" in text) and not text.startswith(("file://", "local://"))


def local_path(path: str | Path) -> Path:
    """The path that a path or a `file://` URL means."""
    return Path(str(path).removeprefix("file://").removeprefix("local://")) if "://" in str(path) else Path(path)


def remote_path(
    url: str, options: Mapping | None = None, cache_dir: str | Path | None = None, cache_bytes: int = CACHE_BYTES
) -> RemotePath:
    """The folder at a URL. `options` go to its fsspec file system; `cache_bytes=0` keeps nothing on the local disk."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = BlockCache(Path(cache_dir or home / "uwm" / "blocks"), cache_bytes) if cache_bytes else None
    return RemotePath(Remote(url, options or {}, cache))


@dataclass(frozen=True)
class FileState:
    """Size of a remote file, and words that change when its content does."""

    size: int
    version: str


class Remote:
    """The files below a URL. Pickles and forks: each process connects by itself when it first needs to.

    Raises ImportError naming the extra that brings the URL's file system, StoreError when the network or the server fails
    several times.
    """

    def __init__(self, url: str, options: Mapping, cache: BlockCache | None):
        self.url, self.options, self.cache = url.rstrip("/"), dict(options), cache
        self._connection: tuple[int, Any, str] | None = None
        self._states: dict[str, FileState | None] = {}
        self._journal = ""
        self.is_listed = False

    def connect(self) -> tuple[Any, str]:
        """(fsspec file system, path of the store in it) of this process."""
        if self._connection is None or self._connection[0] != os.getpid():
            try:
                from fsspec.core import url_to_fs

                # Listings that fsspec keeps would hide what a writer elsewhere has added.
                found = url_to_fs(self.url, **{"use_listings_cache": False, "skip_instance_cache": True, **self.options})
            except ImportError as error:
                raise ImportError(f"{self.url} needs a package ({error}): pip install 'uwm[{_extra(self.url)}]'") from error
            except ValueError as error:
                raise StoreError(f"{self.url} is not a URL that can be read: {error}") from error
            self._connection = (os.getpid(), found[0], found[1].rstrip("/"))
        return self._connection[1:]

    def state(self, inside: str) -> FileState | None:
        """What is known about a file, None where there is none. The first question lists the whole store, if that can be."""
        if not self._states:
            self._look()
        if inside not in self._states and not self.is_listed:
            self._states[inside] = self._ask(inside)
        return self._states.get(inside)

    def look_again(self) -> None:
        """Forget what is known about files: a writer elsewhere may have added to them."""
        self._states, self._journal = {}, ""

    def whole(self, inside: str) -> bytes:
        """A whole file; FileNotFoundError."""
        state = self.state(inside)
        if state is None:
            raise FileNotFoundError(f"{self.url}/{inside}")
        return next(self.read([(inside, 0, state.size)])) if state.size else b""

    def read(self, ranges: Iterable[tuple[str, int, int]]) -> Iterator[bytes]:
        """The bytes of each (file, offset, length) in the order given, fewer at the end of a file; FileNotFoundError."""
        ranges = iter(ranges)
        while group := list(islice(ranges, _TOGETHER)):
            yield from self._read_group(group)

    def forget(self, inside: str) -> None:
        """Drop all cached blocks of a file."""
        state = self.state(inside)
        for number in range(-(-state.size // BLOCK_BYTES) if self.cache and state else 0):
            self.cache.drop(self._key(inside, state, number))

    def sizes(self) -> dict[str, int]:
        """Bytes of every file below the URL."""
        filesystem, root = self.connect()
        try:
            found = self._patiently(lambda: filesystem.find(root, detail=True), "list the files")
        except FileNotFoundError:
            return {}
        return {name[len(root) :].lstrip("/"): int(info["size"]) for name, info in found.items()}

    def write(self, files: Mapping[str, bytes]) -> None:
        """Put whole files there, each at once or not at all (object stores do so)."""
        filesystem, root = self.connect()
        try:
            self._patiently(lambda: filesystem.pipe({f"{root}/{name}": data for name, data in files.items()}), f"write {list(files)[:3]}")
        except FileNotFoundError as error:
            raise StoreError(f"{self.url}: there is no place to write to ({error}); make the bucket or folder first") from error
        self.look_again()

    def remove(self, inside: str) -> None:
        """Remove a file."""
        filesystem, root = self.connect()
        self._patiently(lambda: filesystem.rm_file(f"{root}/{inside}"), f"remove {inside}")
        self.look_again()

    # ---- what is there ----------------------------------------------------------------------------------------

    def _look(self) -> None:
        self.is_listed = False
        self._states = {"zarr.json": self._ask("zarr.json")}
        filesystem, root = self.connect()
        # Not before there is a store: whoever mistypes a URL should not wait for the list of a whole bucket.
        if self._states["zarr.json"] is None or "http" in filesystem.protocol:
            return
        found = self._patiently(lambda: filesystem.find(root, detail=True), "list the files")
        states = {name[len(root) :].lstrip("/"): _state_of(info) for name, info in found.items()}
        if "zarr.json" in states:
            self._states, self.is_listed = states, True

    def _ask(self, inside: str) -> FileState | None:
        filesystem, root = self.connect()
        try:
            return _state_of(self._patiently(lambda: filesystem.info(f"{root}/{inside}"), f"look at {inside}"))
        except (FileNotFoundError, NotADirectoryError):
            return None

    # ---- bytes ------------------------------------------------------------------------------------------------

    def _read_group(self, ranges: list[tuple[str, int, int]]) -> list[bytes]:
        known = {inside: self.state(inside) for inside, _, _ in ranges}
        for inside, state in known.items():
            if state is None:
                raise FileNotFoundError(f"{self.url}/{inside}")
        ends = [min(offset + length, known[inside].size) for inside, offset, length in ranges]
        if self.cache is None:
            return self._fetch([(inside, offset, end) for (inside, offset, _), end in zip(ranges, ends, strict=True)])
        parts = [list(_blocks(inside, offset, end)) for (inside, offset, _), end in zip(ranges, ends, strict=True)]
        have = {part: self.cache.get(self._key(part[0], known[part[0]], part[1]), *part[2:]) for some in parts for part in some}
        lacking = sorted({part[:2] for part, data in have.items() if data is None})
        blocks = self._fetch_blocks(lacking, known)
        return [b"".join(blocks[part[:2]][part[2] : part[3]] if have[part] is None else have[part] for part in some) for some in parts]

    def _fetch_blocks(self, wanted: list[tuple[str, int]], known: Mapping[str, FileState]) -> dict[tuple[str, int], bytes]:
        runs: list[list[tuple[str, int]]] = []
        for inside, number in wanted:
            last = runs[-1][-1] if runs else None
            if last == (inside, number - 1) and len(runs[-1]) * BLOCK_BYTES < _RUN_BYTES:
                runs[-1].append((inside, number))
            else:
                runs.append([(inside, number)])
        ranges = [(r[0][0], r[0][1] * BLOCK_BYTES, min((r[-1][1] + 1) * BLOCK_BYTES, known[r[0][0]].size)) for r in runs]
        blocks = {}
        for run, data in zip(runs, self._fetch(ranges), strict=True):
            for place, block in enumerate(run):
                blocks[block] = data[place * BLOCK_BYTES : (place + 1) * BLOCK_BYTES]
        self.cache.put({self._key(inside, known[inside], number): data for (inside, number), data in blocks.items()})
        return blocks

    def _fetch(self, ranges: list[tuple[str, int, int]]) -> list[bytes]:
        """The bytes of each (file, start, stop), all asked for at once; those that fail are asked for again."""
        filesystem, root = self.connect()
        answers: dict[int, bytes] = {place: b"" for place, (_, start, stop) in enumerate(ranges) if stop <= start}

        def ask() -> None:
            left = [place for place in range(len(ranges)) if place not in answers]
            names, starts, stops = zip(*(ranges[place] for place in left), strict=True)
            found = filesystem.cat_ranges([f"{root}/{name}" for name in names], list(starts), list(stops), on_error="return")
            for place, answer in zip(left, found, strict=True):
                if isinstance(answer, bytes):
                    answers[place] = self._checked(answer, *ranges[place])
            trouble = next((answer for answer in found if not isinstance(answer, bytes)), None)
            if trouble is not None:
                raise trouble

        if len(answers) < len(ranges):
            self._patiently(ask, f"read {len(ranges)} pieces of {ranges[0][0]} and others")
        return [answers[place] for place in range(len(ranges))]

    def _checked(self, answer: bytes, inside: str, start: int, stop: int) -> bytes:
        if len(answer) > stop - start:
            raise StoreError(
                f"{self.url}/{inside}: the server sent {len(answer)} bytes where {stop - start} were asked for: it does not serve "
                "ranges of files. Use one that does, or put the store on a local disk"
            )
        if len(answer) < stop - start:
            raise OSError(f"only {len(answer)} of {stop - start} bytes of {inside} came")
        return answer

    def _patiently(self, action: Callable[[], Any], what: str) -> Any:
        """The action's result; what may be a moment's trouble is tried again, with growing pauses."""
        for attempt in range(_ATTEMPTS):
            try:
                return action()
            except (FileNotFoundError, NotADirectoryError, StoreError):
                raise
            except PermissionError as error:
                raise StoreError(f"{self.url}: not allowed to {what} ({error}); check the credentials in storage_options") from error
            except Exception as error:  # every file system has error classes of its own
                if attempt == _ATTEMPTS - 1:
                    raise StoreError(
                        f"{self.url}: could not {what}, tried {_ATTEMPTS} times: {error or type(error).__name__}; "
                        "check the address, the network and the credentials"
                    ) from error
            time.sleep(_PAUSE_S * 3**attempt)
        raise AssertionError("not reached")

    def _key(self, inside: str, state: FileState, number: int) -> str:
        version = state.version or self._journal_version()
        return blake2b(repr((self.url, inside, version, state.size, BLOCK_BYTES, number)).encode(), digest_size=20).hexdigest()

    def _journal_version(self) -> str:
        """Names the state of the whole store where the server tells nothing about a file: its journal's digest."""
        if not self._journal:
            filesystem, root = self.connect()
            journal = self._patiently(lambda: filesystem.cat_file(f"{root}/{JOURNAL}"), f"read {JOURNAL}")
            self._journal = blake2b(journal).hexdigest()
        return self._journal

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_connection": None}


@dataclass(frozen=True)
class RemotePath:
    """A file or folder of a remote store, with those members of `pathlib.Path` that reading a store needs."""

    remote: Remote
    inside: str = ""

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(self.remote, f"{self.inside}/{name}".lstrip("/"))

    def __str__(self) -> str:
        return f"{self.remote.url}/{self.inside}".rstrip("/")

    @property
    def is_listed(self) -> bool:
        """Are the sizes of all files known at once?"""
        return self.remote.is_listed

    @property
    def name(self) -> str:
        """The last part."""
        return str(self).rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        """The folder around it."""
        return RemotePath(self.remote, self.inside.rpartition("/")[0])

    def relative_to(self, folder: RemotePath) -> str:
        """The way from a folder above."""
        return self.inside.removeprefix(folder.inside).lstrip("/")

    def exists(self) -> bool:
        """Is there such a file?"""
        return self.remote.state(self.inside) is not None

    def is_dir(self) -> bool:
        """Always: object stores have no folders, what is there shows by its files."""
        return True

    def stat(self) -> os.stat_result:
        """Only `st_size`; FileNotFoundError."""
        state = self.remote.state(self.inside)
        if state is None:
            raise FileNotFoundError(str(self))
        return os.stat_result((0, 0, 0, 0, 0, 0, state.size, 0, 0, 0))

    def read_bytes(self) -> bytes:
        """The whole file; FileNotFoundError."""
        return self.remote.whole(self.inside)

    def files(self) -> RemoteFiles:
        """Ranges of the files in this folder."""
        return RemoteFiles(self)


@dataclass(frozen=True)
class RemoteFiles:
    """What `LocalFiles` is for a local folder."""

    folder: RemotePath

    def read(self, ranges: Iterable[tuple[str, int, int]]) -> Iterator[bytes]:
        """The bytes of each (file name, offset, length) in the order given; FileNotFoundError, StoreError."""
        return self.folder.remote.read(((self.folder / name).inside, offset, length) for name, offset, length in ranges)

    def forget(self, name: str) -> None:
        """Drop what the cache holds of a file: it may be damaged."""
        self.folder.remote.forget((self.folder / name).inside)

    def close(self) -> None:
        """Nothing is held open."""


def _blocks(inside: str, start: int, stop: int) -> Iterator[tuple[str, int, int, int]]:
    """(file, block number, first byte, byte behind the last one) of each block that a range touches."""
    for number in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)):
        begin = number * BLOCK_BYTES
        yield inside, number, max(start - begin, 0), min(stop - begin, BLOCK_BYTES)


def _state_of(info: Mapping) -> FileState:
    if info.get("size") is None:
        raise StoreError(f"{info.get('name')}: the server does not tell the size of the file; copy the store to a local disk")
    content = next((f"{key} {info[key]}" for key in _BY_CONTENT if info.get(key)), "")
    return FileState(int(info["size"]), content or " ".join(str(info[key]) for key in _BY_TIME if info.get(key)))


def _extra(url: str) -> str:
    return "s3" if url.startswith(("s3://", "s3a://")) or "::s3://" in url else "data"
