"""Large arrays between two processes without copying them through a pipe: memory that both have, one writer at a time.

```
controller's process                      the policy's process
put(frames) --- bytes ---> [ shelf ] ---> taken(places): views, no copy
     '-- places (offset, shape, dtype) -- pipe --'
```

The memory has no name: it ends with the last process that has it, killed or not. What the writer puts there next takes the place
of what was there before, so a reader is done with one job before the next is put.
"""

import mmap
import os
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import numpy as np

SMALL = 4096  # bytes; a smaller array is no worse off in the pipe
SIZE = 64 * 2**20  # bytes of address space; only what is written takes memory
ALIGNED = 64


class Place(NamedTuple):
    """Where an array lies on the shelf."""

    offset: int
    shape: tuple[int, ...]
    dtype: str


class Shelf:
    """The shared memory, as one of the two processes sees it; `fd` (None: new memory) is what the other process needs."""

    def __init__(self, fd: int | None = None):
        self.fd = os.memfd_create("uwm-shelf") if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, SIZE)
        self._memory = mmap.mmap(self.fd, SIZE)

    def put(self, arrays: Mapping[Hashable, np.ndarray]) -> dict[Hashable, np.ndarray | Place]:
        """Every large array in a place of the shelf, others (and what does not fit) as they are."""
        found, offset = {}, 0
        for name, array in arrays.items():
            if array.nbytes < SMALL or offset + array.nbytes > SIZE:
                found[name] = array
                continue
            place = Place(offset, array.shape, array.dtype.str)
            np.copyto(self._view(place), array)
            found[name], offset = place, -(-(offset + array.nbytes) // ALIGNED) * ALIGNED
        return found

    def taken(self, found: Mapping[Hashable, np.ndarray | Place]) -> dict[Hashable, np.ndarray]:
        """The inverse of `put`, as views that hold until the next `put`."""
        return {name: self._view(each) if isinstance(each, Place) else each for name, each in found.items()}

    def _view(self, place: Place) -> np.ndarray:
        return np.frombuffer(self._memory, place.dtype, int(np.prod(place.shape)), place.offset).reshape(place.shape)

    def close(self) -> None:
        """Let go of the descriptor; the memory goes with the last view of it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
