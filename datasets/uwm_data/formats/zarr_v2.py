"""zarr format 2, read by hand: nothing is decoded before its description is proved harmless, and no size is believed.

    .zgroup  data/img/.zarray  data/img/0.0.0.0  data/img/1.0.0.0 ...       a folder, or the same names inside a zip

Only codecs of a list are used; those that can run code or make objects (pickle, json2, msgpack2, vlen-*, categorize) and
dtypes that hold objects or text are refused. What a chunk must decode to is known from shape and dtype; decoders are given
that size and no more. A chunk that is missing holds the fill value, as the format says (writers leave out chunks of zeros).
"""

from __future__ import annotations

import bz2
import io
import itertools
import json
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numcodecs
import numpy as np
from PIL import Image

from uwm_data.errors import FormatError

LARGEST_CHUNK = 512 << 20  # bytes, decoded
LARGEST_READ = 8 << 30
_LARGEST_MISSING = 256 << 20  # bytes of one read that no file speaks for
_MOST_CHUNKS = 1 << 20
_LARGEST_JSON = 16 << 20
_ENCODED_SLACK = 1 << 16  # what no codec adds to incompressible data
JPEG2K = "imagecodecs_jpeg2k"
COMPRESSORS = ("blosc", "zstd", "lz4", "zlib", "gzip", "bz2", "lzma", JPEG2K)
FILTERS = ("delta", "shuffle", "packbits", "quantize", "fixedscaleoffset", "astype", "bitround")


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
                content = opened.read(limit + 1)
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
    """Entries of a store that is a zip, opened when needed. Nothing is unpacked to disk."""

    def __init__(self, path: Path):
        self.path, self._file = path, None
        names = [info.filename for info in self._opened().infolist()]
        if len(set(names)) != len(names):
            raise FormatError(f"{path} names an entry twice; it is damaged, or made to deceive")
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
        self._compressor = _codec(about.get("compressor"), COMPRESSORS, self._place)
        self._filters = [_codec(one, FILTERS, self._place) for one in _list(about.get("filters"), self._place)]
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
            chunk = np.full(self.chunks, self._filled(entry), self.dtype) if content is None else self._decoded(content)
        except FormatError as error:
            raise FormatError(f"{self._store.path}: {entry} {error}") from error
        self._last = (index, chunk)
        return chunk

    def _filled(self, entry: str) -> object:
        if self._fill is None:
            raise FormatError("is missing, and there is no fill value; copy the dataset again")
        return self._fill

    def _decoded(self, content: bytes) -> np.ndarray:
        if self._is_image():
            return _jpeg2k(content, self.chunks, self.dtype)
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


def number_type(dtype: object, place: str) -> np.dtype:
    """A dtype of plain numbers from its zarr name; FormatError for objects (they are pickles), text, records."""
    try:
        found = np.dtype(dtype) if isinstance(dtype, str) else None
    except (TypeError, ValueError, SyntaxError):
        found = None
    if found is None or found.kind not in "biuf" or found.itemsize > 8 or found.subdtype:
        raise FormatError(f"{place} has dtype {dtype!r}; only plain numbers are read (objects are pickles, and pickles can run code)")
    return found


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


def _codec(config: object, allowed: Sequence[str], place: str) -> dict | None:
    """The config of a codec that may be used; FormatError for any other, before anything is decoded."""
    if config is None:
        return None
    name = config.get("id") if isinstance(config, dict) else None
    if name not in allowed:
        raise FormatError(
            f"{place} uses the codec {name!r}; only these are read: {', '.join(allowed)} (others can run code, or make objects)"
        )
    if name not in COMPRESSORS:
        for key in ("dtype", "astype", "encode_dtype", "decode_dtype"):
            if key in config:
                number_type(config[key], f"{place}, codec {name}")
        if name == "shuffle" and config.get("elementsize") not in (1, 2, 4, 8):
            raise FormatError(f"{place} shuffles elements of {config.get('elementsize')!r} bytes; numbers have 1, 2, 4 or 8")
    return config


# ---- decompressing, into a size that is known ------------------------------------------------------------------------


def decompressed(config: dict | None, content: bytes, size: int) -> bytes | np.ndarray:
    """`content` decompressed to exactly `size` bytes; FormatError when it is anything else."""
    try:
        data = content if config is None else _DECODERS[config["id"]](config, content, size)
    except FormatError:
        raise
    except Exception as error:
        raise FormatError(f"cannot be decompressed ({error}); it is damaged: copy it again") from error
    if len(data) != size:
        raise FormatError(f"holds {len(data)} bytes or more, expected {size}; it is damaged: copy it again")
    return data


def _by_numcodecs(config: dict, content: bytes, size: int) -> np.ndarray:
    """For codecs that write down the decoded size: it must be the expected one before anything is allocated."""
    claimed = _CLAIMS[config["id"]](content)
    if claimed != size:
        raise FormatError(f"claims {claimed} bytes, expected {size}; it is damaged: copy it again")
    out = np.empty(size, np.uint8)
    numcodecs.get_codec({"id": config["id"]}).decode(content, out=out)
    return out


def _zstd_claim(content: bytes) -> int | None:
    """The content size in the header of a Zstandard frame (RFC 8878, 3.1.1.1), None when it is not told."""
    if content[:4] != b"\x28\xb5\x2f\xfd":
        return None
    flags = content[4]
    single, size_flag = flags >> 5 & 1, flags >> 6
    width = (1 if single else 0, 2, 4, 8)[size_flag]
    start = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
    value = int.from_bytes(content[start : start + width], "little")
    return None if not width else value + 256 if width == 2 else value


def _by_stream(decompressor: Any, content: bytes, size: int) -> bytes:
    """For codecs that do not say how much comes out: no more than one byte too many, and to the end of the stream."""
    data = decompressor.decompress(content, size + 1)
    if len(data) <= size and not decompressor.eof:
        raise FormatError("is cut off; copy it again")
    return data


def _blosc_claim(content: bytes) -> int | None:
    """The decoded size in a Blosc header; None when its encoded size is not that of `content` (the library would read on)."""
    size, _, encoded_size = struct.unpack_from("<III", content, 4)
    return size if encoded_size == len(content) else None


_CLAIMS = {
    "blosc": _blosc_claim,
    "lz4": lambda content: struct.unpack_from("<I", content)[0],
    "zstd": _zstd_claim,
}
_DECODERS = {
    **dict.fromkeys(_CLAIMS, _by_numcodecs),
    "zlib": lambda _, content, size: _by_stream(zlib.decompressobj(), content, size),
    "gzip": lambda _, content, size: _by_stream(zlib.decompressobj(zlib.MAX_WBITS | 16), content, size),
    "bz2": lambda _, content, size: _by_stream(bz2.BZ2Decompressor(), content, size),
    "lzma": lambda _, content, size: _by_stream(lzma.LZMADecompressor(memlimit=256 << 20), content, size),
}


def _jpeg2k(content: bytes, chunks: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """One image a chunk, by Pillow: the imagecodecs package, which made it, needs numpy 2."""
    shape = tuple(size for place, size in enumerate(chunks) if place or size != 1)
    mode = {2: "L", 3: {1: "L", 3: "RGB", 4: "RGBA"}.get(shape[-1])}.get(len(shape))
    if dtype != np.uint8 or mode is None:
        raise FormatError(f"is JPEG 2000 for chunks of {dtype} {chunks}; one uint8 image a chunk is read")
    try:
        image = Image.open(io.BytesIO(content), formats=("JPEG2000",))
    except Exception as error:
        raise FormatError(f"is no JPEG 2000 image ({error})") from error
    if (image.height, image.width) != shape[:2]:
        raise FormatError(f"is an image of {image.height} x {image.width} pixels, expected {shape[0]} x {shape[1]}")
    try:
        return np.asarray(image.convert(mode)).reshape(chunks)
    except Exception as error:
        raise FormatError(f"cannot be decoded ({error}); it is damaged: copy it again") from error
