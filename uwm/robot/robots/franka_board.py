"""What the policy's process and the arm's processes tell each other: shared memory with one writer a block.

A block carries a count that is odd while it is being written: who reads takes a copy between two equal even counts. A writer
that is killed in the middle leaves an odd count, and readers keep the copy that they had.
"""

from __future__ import annotations

import mmap
import os
from enum import IntEnum

import numpy as np

JOINTS = 7
TEXT_BYTES = 400
_TRIES = 50
_BLOCKS = {
    # from the policy's process; `goals`, `stops` and `recoveries` count up, a recovery forgives the first `forgiven` stops
    "orders": [("stamp_s", "f8"), ("goals", "i8"), ("stops", "i8"), ("recoveries", "i8"), ("forgiven", "i8"), ("goal", "f8", JOINTS),
               ("width", "f8")],
    "arm": [("stamp_s", "f8"), ("mode", "i8"), ("recovered", "i8"), ("lost", "i8"), ("cycles", "i8"),
            ("q", "f8", JOINTS), ("dq", "f8", JOINTS), ("pose", "f8", 16), ("text", f"S{TEXT_BYTES}")],
    "gripper": [("stamp_s", "f8"), ("width", "f8"), ("most", "f8"), ("text", f"S{TEXT_BYTES}")],
}  # fmt: skip


class Mode(IntEnum):
    """What the arm's process is about; only IDLE and MOVING take new targets."""

    STARTING = 0
    IDLE = 1
    MOVING = 2
    STOPPED = 3
    SILENT = 4
    ERROR = 5
    LOST = 6


class Block:
    """One record of shared memory."""

    def __init__(self, memory: mmap.mmap, offset: int, fields: list):
        self._count = np.frombuffer(memory, "i8", 1, offset)
        self._record = np.frombuffer(memory, np.dtype(fields, align=True), 1, offset + 8)
        self._copy = self._record.copy()

    def write(self, **values: object) -> None:
        """Change these fields."""
        self._count[0] |= 1
        for name, value in values.items():
            self._record[name][0] = value
        self._count[0] += 1

    def read(self) -> np.void:
        """The newest whole record; the one before if the writer is in the middle of it for long."""
        for _ in range(_TRIES):
            before = self._count[0]
            if before % 2 == 0:
                copy = self._record.copy()
                if self._count[0] == before:
                    self._copy = copy
                    break
        return self._copy[0]


class Board:
    """All blocks, on memory without a name that ends with the last process that has it; `fd` is what a child needs."""

    def __init__(self, fd: int | None = None):
        self.fd = os.memfd_create("uwm-franka") if fd is None else fd
        size = sum(8 + np.dtype(fields, align=True).itemsize for fields in _BLOCKS.values()) + 64
        if fd is None:
            os.ftruncate(self.fd, size)
        memory, offset = mmap.mmap(self.fd, size), 0
        for name, fields in _BLOCKS.items():
            setattr(self, name, Block(memory, offset, fields))
            offset += 8 + (np.dtype(fields, align=True).itemsize + 7) // 8 * 8

    orders: Block
    arm: Block
    gripper: Block

    def close(self) -> None:
        """Let go of the descriptor; the memory goes with the last view of it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def told(record: np.void) -> str:
    """The text of a record."""
    return bytes(record["text"]).decode(errors="replace")
