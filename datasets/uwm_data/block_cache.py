"""A folder of blocks of remote files, shared by all processes of a machine, that never grows beyond its limit.

folder/
  lock, bytes      a lock that is held for moments, and how many bytes there are
  3f/3fa9...       a block and its check sum; its modification time is its last use

A block appears by a rename, so a killed process leaves at most a file that nobody reads, and the next clearing removes it.
The least recently used blocks go first.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import google_crc32c

from uwm_data.durable import PARTIAL_SUFFIX
from uwm_data.errors import StoreError

_AFTER_CLEARING = 0.9  # of the limit, so that clearing, which lists the folder, is rare
_ABANDONED_S = 600.0
_CHECKED = 100_000  # keys that are remembered as whole


class BlockCache:
    """At most `limit` bytes of blocks by key (letters and digits) in `folder`. Pickles and forks."""

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = Path(folder), limit
        self._whole: set[str] = set()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._counted() as count:
                count(0)
        except OSError as error:
            raise StoreError(f"cannot keep a cache in {self.folder} ({error.strerror or error}); name another cache_dir") from error

    def get(self, key: str, start: int, stop: int) -> bytes | None:
        """Bytes start..stop of a block, or None where it is not (or no longer) here."""
        path = self._path(key)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            with suppress(OSError):  # somebody else's file: its use is not noted
                os.utime(descriptor)
            if key not in self._whole:
                if not _is_whole(_all_of(descriptor)):
                    self.drop(key)
                    return None
                if len(self._whole) >= _CHECKED:
                    self._whole.clear()
                self._whole.add(key)
            data = os.pread(descriptor, stop - start, start)
            return data if len(data) == stop - start else None
        finally:
            os.close(descriptor)

    def put(self, blocks: Mapping[str, bytes]) -> None:
        """Keep blocks. A full or failing disk only means that they are not kept."""
        blocks = {key: data for key, data in blocks.items() if len(data) + 4 <= self.limit // 2}
        try:
            with self._counted() as count:
                count(sum(len(data) + 4 for data in blocks.values()))
            for key, data in blocks.items():
                self._write(self._path(key), bytes(data))
        except OSError:
            return

    def drop(self, key: str) -> None:
        """Forget a block, as it is damaged."""
        self._whole.discard(key)
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _write(self, path: Path, data: bytes) -> None:
        partial = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}{PARTIAL_SUFFIX}")
        path.parent.mkdir(exist_ok=True)
        try:
            partial.write_bytes(data + google_crc32c.value(data).to_bytes(4, "little"))
            os.replace(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise

    @contextmanager
    def _counted(self) -> Iterator:
        """A function that makes room for so many bytes and counts them in, under the lock of all processes."""
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield self._make_room
        finally:
            os.close(descriptor)

    def _make_room(self, needed: int) -> None:
        counter = self.folder / "bytes"
        try:
            total = int(counter.read_text())
        except (FileNotFoundError, ValueError):
            total = self._clear(needed, self.limit)
        if total + needed > self.limit:
            total = self._clear(needed, int(self.limit * _AFTER_CLEARING))
        counter.write_text(str(total + needed))

    def _clear(self, needed: int, allowed: int) -> int:
        """Remove what was used longest ago until `needed` more bytes fit into `allowed`; returns the bytes left."""
        found = []
        for path in self.folder.glob("??/*"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            is_abandoned = path.name.endswith(PARTIAL_SUFFIX) and time.time() - status.st_mtime > _ABANDONED_S
            found.append((0 if is_abandoned else status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for used, size, path in sorted(found, key=lambda each: each[0]):
            if used and total + needed <= allowed:
                break
            path.unlink(missing_ok=True)
            total -= size
        return total


def _all_of(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _is_whole(data: bytes) -> bool:
    return google_crc32c.value(data[:-4]).to_bytes(4, "little") == data[-4:]
