"""One stream on disk: zarr v3 shards that only ever grow at their end.

A zarr shard is a file of compressed chunks with a table of (offset, length) per chunk as its last bytes. zarr-python
rewrites a whole shard to add a frame. We add the new chunks and a new table behind the old ones instead; the format
allows unused bytes, so the file stays a legal shard, and no committed byte is ever written again:

    after episode 0   | c0 c1 c2 | table |
    after episode 1   | c0 c1 c2 | table | c3 c4 | table'|       the old table is dead weight (16 bytes per chunk)
    crash in episode 2| c0 c1 c2 | table | c3 c4 | table'| c5 c  the committed size ends before c5: readers stop there
                                                         ^ committed size, kept in the journal

Reading is done here too, because one frame costs about 30 microseconds this way and a millisecond through zarr. A test
reads every store with zarr as well.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

try:
    import google_crc32c
    from numcodecs import Blosc
except ImportError as error:
    raise ImportError("episode stores need zarr and what comes with it: pip install 'uwm[data]'") from error

from uwm_data.streams import StreamSpec

MISSING = np.uint64(2**64 - 1)
_SHUFFLE = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}
_OPEN_FILES = 64
_LOW_DIM_CHUNK_BYTES = 8192


class ShardDamage(Exception):
    """A chunk of a shard cannot be read; `row` is the first frame of it, counted over the whole stream."""

    def __init__(self, row: int, reason: str):
        super().__init__(reason)
        self.row = row


@dataclass(frozen=True)
class Piece:
    """Bytes to be added to shard number `shard` at `offset`, which is its committed size."""

    shard: int
    path: Path
    offset: int
    payload: bytes

    @property
    def size(self) -> int:
        """Size of the file once the piece is written."""
        return self.offset + len(self.payload)


def compression_for(spec: StreamSpec) -> dict:
    """Blosc settings: rendered images are 15 % smaller unshuffled (flat areas repeat whole pixels), numbers shuffled.

    Level 1, because level 3 costs twice the time for another 8 %.
    """
    return {"cname": "zstd", "clevel": 1, "shuffle": "noshuffle" if spec.kind == "video" else "bitshuffle"}


def grid_for(spec: StreamSpec, shard_bytes: int) -> tuple[int, int]:
    """(frames per chunk, frames per shard) of a new stream.

    Images are one frame per chunk, so that any frame is one read. Small frames share a chunk of about 8 KB. A table is
    written per append, so the number of chunks in a shard is bounded.
    """
    power = lambda number: 1 << max(0, int(number).bit_length() - 1)  # noqa: E731
    if spec.kind == "video":
        return 1, min(512, power(shard_bytes // spec.frame_bytes))
    chunk = min(4096, power(_LOW_DIM_CHUNK_BYTES // spec.frame_bytes))
    return chunk, chunk * min(128, power(shard_bytes // (chunk * spec.frame_bytes)))


class Shards:
    """Reads frames of one stream and encodes new ones; which bytes are committed is told by `sizes` (shard -> bytes)."""

    def __init__(self, folder: Path, spec: StreamSpec, frames_per_chunk: int, frames_per_shard: int):
        self.folder, self.spec = folder, spec
        self.frames_per_chunk, self.frames_per_shard = frames_per_chunk, frames_per_shard
        self.chunks_per_shard = frames_per_shard // frames_per_chunk
        self.frames_decoded = 0
        settings = compression_for(spec)
        self._codec = Blosc(settings["cname"], settings["clevel"], _SHUFFLE[settings["shuffle"]])
        self._files: OrderedDict[int, int] = OrderedDict()
        self._tables: dict[tuple[int, int], np.ndarray] = {}
        self._lock = threading.Lock()

    def path(self, shard: int) -> Path:
        """File of a shard: the zarr chunk key with dots, so that a stream is one flat folder."""
        return self.folder / ".".join(["c", str(shard), *["0"] * len(self.spec.shape)])

    def shard_of(self, row: int) -> int:
        """Number of the shard that holds a frame."""
        return row // self.frames_per_shard

    def read(self, rows: np.ndarray, sizes: Mapping[int, int]) -> np.ndarray:
        """Frames `rows` (n,), sorted, counted over the whole stream -> (n, *shape). Each chunk is decoded once."""
        out = np.empty((len(rows), *self.spec.shape), self.spec.dtype)
        chunks, local = np.divmod(rows, self.frames_per_chunk)
        for start, stop in _runs(chunks):
            chunk = int(chunks[start])
            if self.frames_per_chunk == 1:
                self._decode(chunk, sizes, out[start:stop])
            else:
                whole = np.empty((self.frames_per_chunk, *self.spec.shape), self.spec.dtype)
                out[start:stop] = self._decode(chunk, sizes, whole)[local[start:stop]]
        return out

    def encode(self, start: int, values: np.ndarray, sizes: Mapping[int, int]) -> list[Piece]:
        """What has to be added to which shard so that frames `values` (n, *shape) stand at rows `start`, `start`+1, ..."""
        if not len(values):
            return []
        per_chunk = self.frames_per_chunk
        head = start % per_chunk
        if head:
            # The last chunk is partly filled: a longer copy of it is added, the committed one stays where it is.
            values = np.concatenate([self.read(np.arange(start - head, start), sizes), values])
        first = (start - head) // per_chunk
        chunks = [self._encode_chunk(values[k : k + per_chunk]) for k in range(0, len(values), per_chunk)]
        pieces = []
        for shard in range(first // self.chunks_per_shard, (first + len(chunks) - 1) // self.chunks_per_shard + 1):
            low, high = shard * self.chunks_per_shard - first, (shard + 1) * self.chunks_per_shard - first
            pieces.append(self._piece(shard, max(0, -low), chunks[max(0, low) : high], sizes))
        return pieces

    def close(self) -> None:
        """Close the files; they open again by themselves when needed."""
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])

    def _piece(self, shard: int, first: int, chunks: list[bytes], sizes: Mapping[int, int]) -> Piece:
        offset = begin = sizes.get(shard, 0)
        table = np.full((self.chunks_per_shard, 2), MISSING, "<u8")
        if begin:
            table[:] = self._table(shard, begin, shard * self.frames_per_shard)
        for place, chunk in enumerate(chunks, first):
            table[place] = offset, len(chunk)
            offset += len(chunk)
        return Piece(shard, self.path(shard), begin, b"".join([*chunks, _with_crc(table.tobytes())]))

    def _encode_chunk(self, values: np.ndarray) -> bytes:
        if len(values) < self.frames_per_chunk:
            padding = np.zeros((self.frames_per_chunk - len(values), *self.spec.shape), self.spec.dtype)
            values = np.concatenate([values, padding])
        return _with_crc(self._codec.encode(np.ascontiguousarray(values)))

    def _decode(self, chunk: int, sizes: Mapping[int, int], out: np.ndarray) -> np.ndarray:
        shard, place = divmod(chunk, self.chunks_per_shard)
        row = chunk * self.frames_per_chunk
        offset, length = self._table(shard, sizes.get(shard, 0), row)[place].tolist()
        if offset == MISSING:
            raise ShardDamage(row, f"{self.path(shard).name} has no chunk {place}")
        data = _without_crc(self._read_bytes(shard, row, length, offset))
        if data is None:
            raise ShardDamage(row, f"{self.path(shard).name}: the check sum of chunk {place} does not match")
        try:
            self._codec.decode(data, out=out)
        except (RuntimeError, ValueError) as error:
            raise ShardDamage(row, f"{self.path(shard).name}: chunk {place} does not decode ({error})") from error
        self.frames_decoded += self.frames_per_chunk
        return out

    def _table(self, shard: int, size: int, row: int) -> np.ndarray:
        key = (shard, size)
        if key not in self._tables:
            length = 16 * self.chunks_per_shard + 4
            data = self._read_bytes(shard, row, length, max(0, size - length))
            data = _without_crc(data) if len(data) == length else None
            if data is None:
                raise ShardDamage(row, f"the table of {self.path(shard).name} at its committed size {size} is damaged")
            # Tables of older, smaller sizes of this shard are not needed again.
            self._tables = {known: table for known, table in self._tables.items() if known[0] != shard}
            self._tables[key] = np.frombuffer(data, "<u8").reshape(-1, 2)
        return self._tables[key]

    def _read_bytes(self, shard: int, row: int, length: int, offset: int) -> bytes:
        # Under the lock, so that another thread cannot close the file between opening and reading.
        with self._lock:
            if shard not in self._files:
                try:
                    self._files[shard] = os.open(self.path(shard), os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError as error:
                    raise ShardDamage(row, f"{self.path(shard).name} is missing") from error
                if len(self._files) > _OPEN_FILES:
                    os.close(self._files.popitem(last=False)[1])
            self._files.move_to_end(shard)
            return os.pread(self._files[shard], length, offset)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": OrderedDict(), "_tables": {}, "_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __del__(self):
        if getattr(self, "_files", None):
            self.close()


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """(start, stop) of each run of equal neighbours."""
    borders = np.flatnonzero(np.diff(values)) + 1
    edges = [0, *borders.tolist(), len(values)]
    return ((a, b) for a, b in pairwise(edges) if a < b)


def _with_crc(data: bytes) -> bytes:
    data = bytes(data)
    return data + google_crc32c.value(data).to_bytes(4, "little")


def _without_crc(data: bytes) -> bytes | None:
    body = data[:-4]
    return body if google_crc32c.value(body).to_bytes(4, "little") == data[-4:] else None
