"""One still picture as bytes: PNG out, PNG or JPEG in, its size looked at before its pixels are unpacked."""

from __future__ import annotations

import io

import numpy as np

from uwm_data.errors import FormatError

try:
    from PIL import Image
except ImportError as error:
    raise ImportError("pictures need Pillow: pip install 'uwm[data]'") from error

MAX_PIXELS = 1 << 25
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def can_hold(shape: tuple[int, ...]) -> bool:
    """Whether a PNG takes frames (H, W, C): one, three or four channels."""
    return len(shape) == 3 and shape[2] in _MODES


def encode_png(frame: np.ndarray) -> bytes:
    """A frame (H, W, C) uint8 as PNG, without loss; equal frames give equal bytes."""
    held = io.BytesIO()
    Image.fromarray(frame[..., 0] if frame.shape[2] == 1 else frame, _MODES[frame.shape[2]]).save(held, "PNG", compress_level=4)
    return held.getvalue()


def size_of(data: bytes, where: str) -> tuple[int, int]:
    """Height and width that a picture claims, without unpacking it."""
    with _opened(data, where) as picture:
        return picture.height, picture.width


def decode(data: bytes, shape: tuple[int, int, int], where: str) -> np.ndarray:
    """The frame (H, W, C) uint8 in a PNG or JPEG; FormatError names `where` when it is damaged or of another size."""
    with _opened(data, where) as picture:
        if (picture.height, picture.width) != shape[:2]:
            raise FormatError(f"{where}: the picture is {picture.height} x {picture.width}, expected {shape[0]} x {shape[1]}")
        try:
            pixels = np.asarray(picture.convert(_MODES[shape[2]]))
        except (OSError, ValueError, SyntaxError, MemoryError, EOFError) as error:
            raise FormatError(f"{where}: the picture is damaged: {error}") from error
    return pixels.reshape(shape)


def _opened(data: bytes, where: str) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    except (OSError, ValueError, SyntaxError, TypeError, MemoryError, EOFError, Image.DecompressionBombError) as error:
        raise FormatError(f"{where}: not a PNG or JPEG picture") from error
    if picture.height * picture.width > MAX_PIXELS:
        raise FormatError(f"{where} claims {picture.height} x {picture.width} pixels; up to {MAX_PIXELS} are read")
    return picture
