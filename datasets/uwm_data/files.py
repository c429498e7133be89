"""Bytes of the files in a local folder: each file is opened once and kept open for a while."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

_OPEN_FILES = 64


class LocalFiles:
    """Reads ranges of files in `folder`. Pickles and forks: files open lazily in each process."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, ranges: Iterable[tuple[str, int, int]]) -> Iterator[bytes]:
        """The bytes of each (file name, offset, length) in the order given, fewer at the end of a file; FileNotFoundError."""
        return (self._read(*each) for each in ranges)

    def forget(self, name: str) -> None:
        """Nothing is kept of local files that could be wrong."""

    def close(self) -> None:
        """Close the files; they open again by themselves when needed."""
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])

    def _read(self, name: str, offset: int, length: int) -> bytes:
        # Under the lock, so that another thread cannot close the file between opening and reading.
        with self._lock:
            if name not in self._open:
                self._open[name] = os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC)
                if len(self._open) > _OPEN_FILES:
                    os.close(self._open.popitem(last=False)[1])
            self._open.move_to_end(name)
            return os.pread(self._open[name], length, offset)

    def __getstate__(self) -> dict:
        return {"folder": self.folder}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["folder"])

    def __del__(self):
        if getattr(self, "_open", None):
            self.close()
