"""Slots: memory that two processes share for one batch after another, without a name and without copies.

    worker    allocate, fill | send descriptor (once) and places |                         allocate, fill | ...
    consumer                 | map, arrays over a lease          | last array gone -> free |
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile

import numpy as np

from uwm_data.errors import StoreError

_ALIGNED = 64  # bytes, so that every array of a slot starts on a cache line


class Slot:
    """Shared memory for one batch after another; the first one shows how much is needed."""

    def __init__(self):
        self.size, self._used, self._new = 0, 0, 0
        self._memory = np.empty(0, np.uint8)

    def clear(self) -> None:
        """For the next batch."""
        self._used = 0

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array in the slot or, where there is no room, somewhere else."""
        size, start = size_of(shape, dtype), self._used
        if start + size > self.size:
            return np.empty(shape, dtype)
        self._used = start + aligned(size)
        return self._memory[start : start + size].view(dtype).reshape(shape)

    def has_room(self, size: int) -> bool:
        """For so many bytes more?"""
        return self._used + size <= self.size

    def grow(self, size: int) -> None:
        """Another, larger memory."""
        self._new = _shared_memory(size)
        self._memory, self.size, self._used = mapped(os.dup(self._new), size), size, 0

    def place_of(self, values: np.ndarray) -> int | None:
        """Where an array stands in the slot, None if it stands somewhere else."""
        start = values.__array_interface__["data"][0] - self._memory.__array_interface__["data"][0]
        return start if values.flags.c_contiguous and 0 <= start <= self.size - values.nbytes else None

    def keep(self, values: np.ndarray) -> int:
        """The place of an array in the slot, moved there if it stands somewhere else."""
        start = self.place_of(values)
        if start is None:
            start = self._used
            self.allocate(values.shape, values.dtype)[...] = values
        return start

    def take_new(self) -> int:
        """The descriptor of memory that the other side does not know yet, or 0."""
        new, self._new = self._new, 0
        return new


def _shared_memory(size: int) -> int:
    """A descriptor of memory without a name: it is gone when both sides are, however they end."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("uwm-batch")  # not in /dev/shm, which containers keep small
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)  # an error here, and not a dead worker at the first write
    except OSError as error:
        os.close(descriptor)
        needed = f"{size / 1e6:.0f} MB of shared memory for a batch"
        raise StoreError(f"cannot get {needed}: {error.strerror}; use fewer workers, less `ahead` or smaller batches") from error
    return descriptor


def mapped(descriptor: int, size: int) -> np.ndarray:
    """(size,) bytes of a descriptor, which is closed."""
    memory = mmap.mmap(descriptor, size)
    os.close(descriptor)
    return np.frombuffer(memory, np.uint8)


def size_of(shape: tuple[int, ...], dtype: np.dtype | str) -> int:
    """Bytes of an array."""
    return math.prod(shape) * np.dtype(dtype).itemsize


def aligned(size: int) -> int:
    """Bytes that it takes in a slot."""
    return -(-size // _ALIGNED) * _ALIGNED


class Lease:
    """Owns the arrays of a batch: they keep it alive, it keeps their memory mapped."""

    def __init__(self, memory: np.ndarray):
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__
