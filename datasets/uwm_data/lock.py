"""One writer per store, by an operating-system lock that dies with its process."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
import weakref
from pathlib import Path

from uwm_data.errors import StoreError

LOCK_FILE = "writer.lock"
# POSIX locks do not exclude a second lock of the same process, and closing any descriptor of the file drops them.
# So this table is asked first, and the file of a lock that we hold is never opened twice.
_HELD: set[tuple[int, int, int]] = set()


class WriterLock:
    """Held from creation to `release()`; a dead holder leaves nothing behind that blocks the next one.

    POSIX record locks rather than flock: a forked worker does not inherit them, so an orphaned worker of a killed
    collector cannot keep the store locked. Raises StoreError naming the process that holds the lock.
    """

    def __init__(self, store: Path):
        path = store / LOCK_FILE
        descriptor = -1 if _held_here(path) else os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if descriptor < 0 or not _try_lock(descriptor):
            owner = f"process {os.getpid()} (this one)" if descriptor < 0 else _owner(descriptor)
            raise StoreError(f"{store} is being written by {owner}; wait until it closes the store, or end it. Reading needs no lock")
        text = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
        status = os.fstat(descriptor)
        self.process = os.getpid()
        key = (status.st_dev, status.st_ino, self.process)
        _HELD.add(key)
        self.release = weakref.finalize(self, _release, descriptor, key)


def _held_here(path: Path) -> bool:
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    return (status.st_dev, status.st_ino, os.getpid()) in _HELD


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            os.close(descriptor)
            raise StoreError(f"this file system cannot lock files ({error}); put the store on a local disk") from error
        return False
    return True


def _owner(descriptor: int) -> str:
    text = os.pread(descriptor, 200, 0).decode(errors="replace")
    os.close(descriptor)
    return text or "another process"


def _release(descriptor: int, key: tuple[int, int, int]) -> None:
    _HELD.discard(key)
    os.close(descriptor)
