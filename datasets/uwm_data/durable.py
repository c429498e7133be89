"""The few file operations that commits rest on; nothing else in the package writes to disk.

Two kinds of write are allowed: adding bytes behind the committed end of a file, and replacing a small file by rename.
Committed bytes are never overwritten in place.
"""

from __future__ import annotations

import os
from pathlib import Path

PARTIAL_SUFFIX = ".partial"


def write_at(path: Path, offset: int, payload: bytes) -> None:
    """Write `payload` at `offset` and wait until the disk has it. Raises OSError (the caller rolls back)."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(payload)
        while view:
            # A short write is legal, and on a full disk it is what comes before ENOSPC.
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def truncate(path: Path, size: int) -> None:
    """Cut a file back to its committed size."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, payload: bytes) -> None:
    """Replace `path` by one rename: a reader sees the old bytes or the new ones, never a mixture."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        partial.unlink(missing_ok=True)
        write_at(partial, 0, payload)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make new and renamed names in a folder survive a power cut (the files' own fsync does not cover their names)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
