"""zarr format 2, read by hand: nothing is decoded before its description is proved harmless, and no size is believed.

    .zgroup  data/img/.zarray  data/img/0.0.0.0  data/img/1.0.0.0 ...       a folder, or the same names inside a zip

Only codecs of a list are used; those that can run code or make objects (pickle, json2, msgpack2, vlen-*, categorize) and
dtypes that hold objects or text are refused. What a chunk must decode to is known from shape and dtype; decoders are given
that size and no more. A chunk that is missing holds the fill value, as the format says (writers leave out chunks of zeros).
"""

from __future__ import annotations

import itertools
import json
import math
import os
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numcodecs
import numpy as np

from uwm_data.errors import FormatError
from uwm_data.formats.chunk_codecs import COMPRESSORS, FILTERS, JPEG2K, checked_codec, decompressed, jpeg2k, number_type

LARGEST_CHUNK = 512 << 20  # bytes, decoded
LARGEST_READ = 8 << 30
_LARGEST_MISSING = 256 << 20  # bytes of one read that no file speaks for
_MOST_CHUNKS = 1 << 20
_LARGEST_JSON = 16 << 20
_ENCODED_SLACK = 1 << 16  # what no codec adds to incompressible data


class Folder:
    """Entries of a store that is a folder."""

    def __init__(self, path: Path):
        self.path = path

    def read(self, name: str, limit: int) -> bytes | None:
        """The content of an entry; None when there is none; FormatError when it is longer than `limit`."""
        file = self.path / name
        try:
            if not file.is_file():
                return None
            with file.open("rb") as opened:
                # Asked for more than there is, `read` would take memory for all of it.
                content = opened.read(min(limit, os.fstat(opened.fileno()).st_size) + 1)
        except (OSError, ValueError) as error:
            raise FormatError(f"{file} cannot be read: {error}") from error
        return _within(content, limit, str(file))

    def has(self, name: str) -> bool:
        """Is there such an entry?"""
        return (self.path / name).is_file()

    def children(self, name: str) -> list[str]:
        """What lies directly below a folder of the store."""
        folder = self.path / name
        return sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []

    def close(self) -> None:
        """Nothing is open between two reads."""


class Zip:
    """Entries of a store that is a zip, opened when needed; of entries with one name the last counts, as for zarr itself.

    Nothing is unpacked to disk.
    """

    def __init__(self, path: Path):
        self.path, self._file = path, None
        names = [info.filename for info in self._opened().infolist()]
        for info in self._opened().infolist():
            parts = PurePosixPath(info.filename).parts
            if info.filename.startswith("/") or ".." in parts or "\\" in info.filename or info.flag_bits & 1:
                raise FormatError(
                    f"{path}: the entry {info.filename!r} is encrypted or lies outside the archive; no replay buffer has such"
                )
        roots = [name.removesuffix("meta/episode_ends/.zarray") for name in names if name.endswith("meta/episode_ends/.zarray")]
        self._root = roots[0] if len(roots) == 1 else ""
        self._names = frozenset(names)

    def _opened(self) -> zipfile.ZipFile:
        if self._file is None:
            try:
                self._file = zipfile.ZipFile(self.path)
            except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, struct.error) as error:
                raise FormatError(f"{self.path} is no zip that can be read ({error}); copy it again") from error
        return self._file

    def read(self, name: str, limit: int) -> bytes | None:
        """The content of an entry; None when there is none; FormatError when it is longer than `limit`, or damaged."""
        if not self.has(name):
            return None
        try:
            with self._opened().open(self._root + name) as file:
                content = file.read(limit + 1)
        except Exception as error:
            raise FormatError(f"{self.path}: the entry {name} is damaged ({error}); copy the file again") from error
        return _within(content, limit, f"{self.path}: {name}")

    def has(self, name: str) -> bool:
        """Is there such an entry?"""
        return self._root + name in self._names

    def children(self, name: str) -> list[str]:
        """What lies directly below a folder of the store."""
        start = f"{self._root}{name}/"
        return sorted({entry[len(start) :].partition("/")[0] for entry in self._names if entry.startswith(start)} - {""})

    def close(self) -> None:
        """Let go of the file; it opens again when needed."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}


def entries_of(path: Path) -> Folder | Zip:
    """The store at `path`."""
    return Folder(path) if path.is_dir() else Zip(path)


def _within(content: bytes, limit: int, place: str) -> bytes:
    if len(content) > limit:
        raise FormatError(f"{place} is longer than the {limit} bytes that its description allows")
    return content


def read_json(store: Folder | Zip, name: str) -> dict | None:
    """A JSON object of the store, None when it is not there."""
    content = store.read(name, _LARGEST_JSON)
    if content is None:
        return None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{store.path}: {name} is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise FormatError(f"{store.path}: {name} holds a {type(found).__name__}, expected an object")
    return found


class Array:
    """One array of a store: `shape`, `dtype` and rows of it. Keeps the chunk that was decoded last."""

    def __init__(self, store: Folder | Zip, name: str):
        self._store, self._name, self._last = store, name, (None, None)
        self._place = f"{store.path}, array {name}"
        about = read_json(store, f"{name}/.zarray")
        if about is None:
            raise FormatError(f"{self._place} has no .zarray; it is no array of zarr format 2")
        if about.get("zarr_format") != 2:
            raise FormatError(f"{self._place} has zarr format {about.get('zarr_format')!r}; 2 is read")
        self.shape, self.chunks = (_sizes(about.get(key), f"{self._place}: {key}") for key in ("shape", "chunks"))
        self.dtype = number_type(about.get("dtype"), self._place)
        if len(self.shape) != len(self.chunks) or not self.shape or 0 in self.chunks or 0 in self.shape[1:]:
            raise FormatError(f"{self._place} has shape {self.shape} in chunks of {self.chunks}; that does not fit together")
        if self.chunk_bytes > LARGEST_CHUNK:
            raise FormatError(f"{self._place} has chunks of {self.chunk_bytes / 1e9:.1f} GB; at most {LARGEST_CHUNK >> 20} MB are read")
        self._order = "F" if about.get("order") == "F" else "C"
        self._separator = "/" if about.get("dimension_separator") == "/" else "."
        self._fill = _fill(about.get("fill_value"), self.dtype, self._place)
        self._compressor = checked_codec(about.get("compressor"), COMPRESSORS, self._place)
        self._filters = [checked_codec(one, FILTERS, self._place) for one in _list(about.get("filters"), self._place)]
        if self._filters and self._is_image():
            raise FormatError(f"{self._place} has filters before images of JPEG 2000; that cannot be read")

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk in memory."""
        return math.prod(self.chunks) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in memory."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def _is_image(self) -> bool:
        return bool(self._compressor) and self._compressor["id"] == JPEG2K

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1, native byte order; decodes the chunks that hold them."""
        wanted = self._chunks_of(start, stop)
        out = np.empty((stop - start, *self.shape[1:]), self.dtype.newbyteorder("="))
        for index in wanted:
            first = [number * size for number, size in zip(index, self.chunks, strict=True)]
            low, high = max(first[0], start), min(first[0] + self.chunks[0], stop)
            rest = [slice(at, min(at + size, end)) for at, size, end in zip(first[1:], self.chunks[1:], self.shape[1:], strict=True)]
            part = self._chunk(index)[(slice(low - first[0], high - first[0]), *(slice(0, one.stop - one.start) for one in rest))]
            out[(slice(low - start, high - start), *rest)] = part
        return out

    def _chunks_of(self, start: int, stop: int) -> list[tuple[int, ...]]:
        """Numbers of the chunks that hold some rows; FormatError when a hostile description makes them too many or too empty."""
        if (stop - start) * self.row_bytes > LARGEST_READ:
            raise FormatError(f"{self._place}: rows {start} to {stop} would take {(stop - start) * self.row_bytes / 1e9:.1f} GB in memory")
        spans = [range(start // self.chunks[0], -(-stop // self.chunks[0]))]
        spans += [range(-(-size // chunk)) for size, chunk in zip(self.shape[1:], self.chunks[1:], strict=True)]
        if math.prod(map(len, spans)) > _MOST_CHUNKS:
            raise FormatError(
                f"{self._place}: rows {start} to {stop} lie in {math.prod(map(len, spans))} chunks; no writer makes that many"
            )
        wanted = list(itertools.product(*spans))
        missing = sum(not self._store.has(self._entry(index)) for index in wanted)
        if missing * self.chunk_bytes > max(_LARGEST_MISSING, self.chunk_bytes):
            raise FormatError(
                f"{self._place}: {missing} of the {len(wanted)} chunks of rows {start} to {stop} are missing; copy the dataset again"
            )
        return wanted

    def _entry(self, index: Sequence[int]) -> str:
        return f"{self._name}/{self._separator.join(map(str, index))}"

    def _chunk(self, index: tuple[int, ...]) -> np.ndarray:
        if self._last[0] == index:
            return self._last[1]
        entry = self._entry(index)
        content = self._store.read(entry, 2 * self.chunk_bytes + _ENCODED_SLACK)
        try:
            chunk = np.full(self.chunks, self._filled(), self.dtype) if content is None else self._decoded(content)
        except FormatError as error:
            raise FormatError(f"{self._store.path}: {entry} {error}") from error
        self._last = (index, chunk)
        return chunk

    def _filled(self) -> object:
        if self._fill is None:
            raise FormatError("is missing, and there is no fill value; copy the dataset again")
        return self._fill

    def _decoded(self, content: bytes) -> np.ndarray:
        if self._is_image():
            return jpeg2k(content, self.chunks, self.dtype)
        sizes = self._encoded_sizes()
        data = decompressed(self._compressor, content, sizes[-1])
        try:
            for config, size in zip(reversed(self._filters), reversed(sizes[:-1]), strict=True):
                data = np.ascontiguousarray(numcodecs.get_codec(config).decode(data)).view(np.uint8).reshape(-1)
                if len(data) != size:
                    raise FormatError(f"has {len(data)} bytes behind its filter {config['id']}, expected {size}")
        except (ValueError, TypeError, RuntimeError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"cannot be decoded ({error}); it is damaged: copy it again") from error
        return np.frombuffer(data, self.dtype).reshape(self.chunks, order=self._order)

    def _encoded_sizes(self) -> list[int]:
        """Bytes of a chunk before the filters, and behind each of them."""
        items, sizes, dtype = math.prod(self.chunks), [self.chunk_bytes], self.dtype
        for config in self._filters:
            if config["id"] == "packbits":
                sizes.append(1 + -(-items // 8))
            elif config["id"] != "shuffle":
                told = config.get("encode_dtype") if config["id"] == "astype" else config.get("astype", config.get("dtype"))
                dtype = number_type(told, self._place) if told is not None else dtype
                sizes.append(items * dtype.itemsize)
            else:
                sizes.append(sizes[-1])
        return sizes

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_last": (None, None)}


def _sizes(value: object, place: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 8 or not all(type(size) is int and 0 <= size < 1 << 48 for size in value):
        raise FormatError(f"{place} is {value!r}, expected a list of sizes")
    return tuple(value)


def _list(value: object, place: str) -> list:
    if value is not None and (not isinstance(value, list) or len(value) > 8):
        raise FormatError(f"{place}: filters are {value!r}, expected a short list")
    return value or []


def _fill(value: object, dtype: np.dtype, place: str) -> object:
    if value is None:
        return None
    try:
        if not isinstance(value, str | int | float):
            raise TypeError
        return np.asarray(float(value) if isinstance(value, str) else value).astype(dtype)[()]
    except (TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"{place}: the fill value {value!r} is no {dtype}") from error
