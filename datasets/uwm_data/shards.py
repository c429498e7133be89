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

from uwm_data.errors import StoreError
from uwm_data.files import LocalFiles
from uwm_data.streams import StreamSpec

MISSING = np.uint64(2**64 - 1)
_SHUFFLE = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}
_LOW_DIM_CHUNK_BYTES = 8192
_TABLE_BYTES = 8 << 20  # of chunk tables that are kept per stream, whatever the size of the store
_CRC_OF_ANY_WHOLE = 0x48674BC7  # CRC-32C of any bytes followed by their own CRC-32C
# Video by the user's choice: (Blosc compressor, level). See the table in datasets/README.md.
COMPRESSIONS = {"zstd": ("zstd", 1), "lz4": ("lz4hc", 2), "none": None}


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


def compression_for(spec: StreamSpec, compression: str = "zstd") -> dict | None:
    """Blosc settings, or None for plain bytes; `compression` is that of video: zstd, lz4 or none.

    Rendered images are 15 % smaller unshuffled (flat areas repeat whole pixels), numbers shuffled. Zstd at level 1, because
    level 3 costs twice the time for another 8 %.
    """
    if compression not in COMPRESSIONS:
        raise StoreError(f"compression {compression!r} is unknown; video may be stored with {', '.join(COMPRESSIONS)}")
    if spec.kind != "video":
        return {"cname": "zstd", "clevel": 1, "shuffle": "bitshuffle"}
    chosen = COMPRESSIONS[compression]
    return chosen and {"cname": chosen[0], "clevel": chosen[1], "shuffle": "noshuffle"}


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
    """Reads frames of one stream and encodes new ones; which bytes are committed is told by `sizes` (shard -> bytes).

    `codec` holds Blosc settings (None: chunks are plain bytes).
    """

    def __init__(self, folder: Path, spec: StreamSpec, frames_per_chunk: int, frames_per_shard: int, codec: Mapping | None):
        self.folder, self.spec = folder, spec
        self.frames_per_chunk, self.frames_per_shard = frames_per_chunk, frames_per_shard
        self.chunks_per_shard = frames_per_shard // frames_per_chunk
        self.frames_decoded = 0
        self._codec = codec and Blosc(codec["cname"], codec["clevel"], _SHUFFLE[codec["shuffle"]])
        self._files = folder.files() if hasattr(folder, "files") else LocalFiles(folder)
        self._tables: dict[tuple[int, int], np.ndarray] = {}

    def name(self, shard: int) -> str:
        """File name of a shard: the zarr chunk key with dots, so that a stream is one flat folder."""
        return f"c.{shard}" + ".0" * len(self.spec.shape)

    def path(self, shard: int) -> Path:
        """File of a shard."""
        return self.folder / self.name(shard)

    def shard_of(self, row: int) -> int:
        """Number of the shard that holds a frame."""
        return row // self.frames_per_shard

    def frames(self, rows: np.ndarray, sizes: Mapping[int, int]) -> np.ndarray:
        """Frames `rows` (n,), counted over the whole stream -> (n, *shape)."""
        out = np.empty((len(rows), *self.spec.shape), self.spec.dtype)
        self.read(rows, sizes, out, np.arange(len(rows)))
        return out

    def read(self, rows: np.ndarray, sizes: Mapping[int, int], out: np.ndarray, at: np.ndarray) -> None:
        """Write frame `rows[k]` to `out[at[k]]` for all k. Each chunk is read and decoded once, in disk order."""
        order = np.argsort(rows, kind="stable")
        chunks, local = np.divmod(rows[order], self.frames_per_chunk)
        at = at[order]
        runs = list(_runs(chunks))
        wanted = chunks[[start for start, _ in runs]].tolist()
        whole = np.empty((self.frames_per_chunk, *self.spec.shape), self.spec.dtype)
        for (start, stop), chunk, data in zip(runs, wanted, self._chunks(wanted, sizes), strict=True):
            if self.frames_per_chunk > 1:
                self._decode(chunk, data, whole)
                out[at[start:stop]] = whole[local[start:stop]]
                continue
            first = int(at[start])
            self._decode(chunk, data, out[first])
            if stop > start + 1:
                out[at[start + 1 : stop]] = out[first]

    def stored(self, shard: int, size: int) -> bytes:
        """The first `size` bytes of a shard's file as they are."""
        (data,) = self._files.read([(self.name(shard), 0, size)])
        return data

    def encode(self, start: int, values: np.ndarray, sizes: Mapping[int, int]) -> list[Piece]:
        """What has to be added to which shard so that frames `values` (n, *shape) stand at rows `start`, `start`+1, ..."""
        if not len(values):
            return []
        per_chunk = self.frames_per_chunk
        head = start % per_chunk
        if head:
            # The last chunk is partly filled: a longer copy of it is added, the committed one stays where it is.
            values = np.concatenate([self.frames(np.arange(start - head, start), sizes), values])
        first = (start - head) // per_chunk
        chunks = [self._encode_chunk(values[k : k + per_chunk]) for k in range(0, len(values), per_chunk)]
        pieces = []
        for shard in range(first // self.chunks_per_shard, (first + len(chunks) - 1) // self.chunks_per_shard + 1):
            low, high = shard * self.chunks_per_shard - first, (shard + 1) * self.chunks_per_shard - first
            pieces.append(self._piece(shard, max(0, -low), chunks[max(0, low) : high], sizes))
        return pieces

    def close(self) -> None:
        """Let go of the files; they open again by themselves when needed."""
        self._files.close()

    def _piece(self, shard: int, first: int, chunks: list[bytes], sizes: Mapping[int, int]) -> Piece:
        offset = begin = sizes.get(shard, 0)
        table = np.full((self.chunks_per_shard, 2), MISSING, "<u8")
        if begin:
            table[:] = self._tables_of([shard], sizes)[0]
        for place, chunk in enumerate(chunks, first):
            table[place] = offset, len(chunk)
            offset += len(chunk)
        return Piece(shard, self.path(shard), begin, b"".join([*chunks, _with_crc(table.tobytes())]))

    def _encode_chunk(self, values: np.ndarray) -> bytes:
        if len(values) < self.frames_per_chunk:
            padding = np.zeros((self.frames_per_chunk - len(values), *self.spec.shape), self.spec.dtype)
            values = np.concatenate([values, padding])
        values = np.ascontiguousarray(values)
        return _with_crc(self._codec.encode(values) if self._codec else values.tobytes())

    # ---- reading: places of the chunks, then their bytes, then frames -----------------------------------------

    def _chunks(self, chunks: list[int], sizes: Mapping[int, int]) -> Iterator[bytes]:
        """The stored bytes of chunks in ascending order; those of a batch are asked for together (remote stores gain by it)."""
        numbers, places = np.divmod(np.array(chunks, np.int64), self.chunks_per_shard)
        shards, which = np.unique(numbers, return_inverse=True)
        tables = self._tables_of(shards.tolist(), sizes)
        entries = [tables[k][place].tolist() for k, place in zip(which.tolist(), places.tolist(), strict=True)]
        ranges = []
        for chunk, shard, (offset, length) in zip(chunks, numbers.tolist(), entries, strict=True):
            if not 0 <= offset <= offset + length <= sizes.get(shard, 0):
                raise self._damage(chunk, "is not there" if offset == MISSING else f"lies at {offset}, outside the committed bytes")
            ranges.append((self.name(shard), offset, length))
        return self._checked(ranges, chunks, "chunk")

    def _checked(self, ranges: list[tuple[str, int, int]], chunks: list[int], what: str) -> Iterator[bytes]:
        """The files' bytes with right check sums; what is damaged or missing is told with the first chunk that needs it."""
        reader = self._files.read(ranges)
        for (name, offset, length), chunk in zip(ranges, chunks, strict=True):
            try:
                data = next(reader)
                if not _is_whole(data, length):
                    data = self._again(name, offset, length)
            except FileNotFoundError as error:
                raise ShardDamage(chunk * self.frames_per_chunk, f"{name} is missing") from error
            if data is None:
                reason = f"{name}: the check sum of its {what} at byte {offset} does not match"
                raise ShardDamage(chunk * self.frames_per_chunk, reason)
            yield data

    def _again(self, name: str, offset: int, length: int) -> bytes | None:
        """Damaged bytes once more from the source, as a cache on the way may be what is damaged; None if they still are."""
        self._files.forget(name)
        (data,) = self._files.read([(name, offset, length)])
        return data if _is_whole(data, length) else None

    def _decode(self, chunk: int, data: bytes, out: np.ndarray) -> None:
        body = memoryview(data)[:-4]
        raw = int.from_bytes(body[4:8], "little") if self._codec else len(body)
        if raw != out.nbytes:
            raise self._damage(chunk, f"holds {raw} bytes, expected {out.nbytes}")
        try:
            if self._codec:
                self._codec.decode(body, out=out)
            else:
                out.reshape(-1).view(np.uint8)[:] = np.frombuffer(body, np.uint8)
        except (RuntimeError, ValueError) as error:
            raise self._damage(chunk, f"does not decode ({error})") from error
        self.frames_decoded += self.frames_per_chunk

    def _tables_of(self, shards: list[int], sizes: Mapping[int, int]) -> list[np.ndarray]:
        """Chunk tables (chunks per shard, 2) of offset and length."""
        keys = [(shard, sizes.get(shard, 0)) for shard in shards]
        found = {key: self._tables[key] for key in keys if key in self._tables}
        missing = [key for key in keys if key not in found]
        length = 16 * self.chunks_per_shard + 4
        ranges = [(self.name(shard), max(0, size - length), length) for shard, size in missing]
        first = [shard * self.chunks_per_shard for shard, _ in missing]
        for key, data in zip(missing, self._checked(ranges, first, "table"), strict=True):
            if len(self._tables) >= max(1, _TABLE_BYTES // length):
                self._tables.clear()
            found[key] = self._tables[key] = np.frombuffer(data, "<u8", 2 * self.chunks_per_shard).reshape(-1, 2)
        return [found[key] for key in keys]

    def _damage(self, chunk: int, reason: str) -> ShardDamage:
        shard, place = divmod(chunk, self.chunks_per_shard)
        return ShardDamage(chunk * self.frames_per_chunk, f"{self.name(shard)}: chunk {place} {reason}")

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_tables": {}}


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """(start, stop) of each run of equal neighbours."""
    borders = np.flatnonzero(np.diff(values)) + 1
    edges = [0, *borders.tolist(), len(values)]
    return ((a, b) for a, b in pairwise(edges) if a < b)


def _with_crc(data: bytes) -> bytes:
    data = bytes(data)
    return data + google_crc32c.value(data).to_bytes(4, "little")


def _is_whole(data: bytes, length: int) -> bool:
    """Are there `length` bytes, and do the last four hold the check sum of those before?"""
    return len(data) == length >= 4 and google_crc32c.value(data) == _CRC_OF_ANY_WHOLE
