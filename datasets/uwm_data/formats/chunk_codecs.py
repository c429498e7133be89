"""What turns the chunks of zarr format 2 back into numbers: an allowed few codecs, into a size that is known beforehand.

Codecs that can run code or make objects (pickle, json2, msgpack2, vlen-*, categorize) are refused when a description is
read; decoders get the size that shape and dtype ask for, and no more.
"""

from __future__ import annotations

import bz2
import io
import lzma
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numcodecs
import numpy as np
from PIL import Image

from uwm_data.errors import FormatError

JPEG2K = "imagecodecs_jpeg2k"
COMPRESSORS = ("blosc", "zstd", "lz4", "zlib", "gzip", "bz2", "lzma", JPEG2K)
FILTERS = ("delta", "shuffle", "packbits", "quantize", "fixedscaleoffset", "astype", "bitround")


def number_type(dtype: object, place: str) -> np.dtype:
    """A dtype of plain numbers from its zarr name; FormatError for objects (they are pickles), text, records."""
    try:
        found = np.dtype(dtype) if isinstance(dtype, str) else None
    except (TypeError, ValueError, SyntaxError):
        found = None
    if found is None or found.kind not in "biuf" or found.itemsize > 8 or found.subdtype:
        raise FormatError(f"{place} has dtype {dtype!r}; only plain numbers are read (objects are pickles, and pickles can run code)")
    return found


def checked_codec(config: object, allowed: Sequence[str], place: str) -> dict | None:
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


def jpeg2k(content: bytes, chunks: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
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
