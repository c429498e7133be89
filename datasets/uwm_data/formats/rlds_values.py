"""One feature of an episode: the values of all its steps, out of a record and into one. Images are PNG or JPEG."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from uwm_data.errors import FormatError
from uwm_data.formats import pictures
from uwm_data.formats.rlds_features import Feature
from uwm_data.formats.tf_example import Values

LARGEST_EPISODE = 8 << 30  # bytes of one feature of one episode


def steps_in(feature: Feature, values: Values, place: str) -> int:
    """Steps whose values a list holds; FormatError when its kind or number does not fit the feature."""
    if len(values) == 0:
        return 0
    is_list = feature.kind != "tensor" or feature.encoding != "none"
    if isinstance(values, np.ndarray) == is_list or (not is_list and (values.dtype.kind == "f") != (np.dtype(feature.dtype).kind == "f")):
        kind = f"{values.dtype} numbers" if isinstance(values, np.ndarray) else "byte strings"
        raise FormatError(f"{place} holds {kind}, and features.json says {feature.kind} of {feature.dtype}, encoding {feature.encoding}")
    size = 1 if is_list else math.prod(feature.shape)
    if len(values) % size:
        raise FormatError(f"{place} holds {len(values)} numbers: no whole number of steps of shape {feature.shape}")
    steps = len(values) // size
    if feature.kind != "text" and steps * feature.step_bytes > LARGEST_EPISODE:
        raise FormatError(
            f"{place} would take {steps * feature.step_bytes / 1e9:.1f} GB in memory ({steps} steps); no episode is that large"
        )
    return steps


def decoded(feature: Feature, values: Values, place: str) -> np.ndarray | list[str]:
    """Array (steps, *shape) of the declared dtype, or the texts; FormatError names `place`."""
    steps = steps_in(feature, values, place)
    if feature.kind == "text":
        return [_text(value, place) for value in values]
    if feature.kind == "image":
        return _frames(feature, values, place)
    if feature.encoding != "none":
        values = _raw(feature, values, place)
    elif steps:
        values = _cast(values, np.dtype(feature.dtype), place)
    return np.asarray(values, feature.dtype).reshape(steps, *feature.shape)


def _frames(feature: Feature, values: Values, place: str) -> np.ndarray:
    # The first image proves that the size is not only claimed; the others get memory after that.
    first = [pictures.decode(value, feature.shape, f"{place}, step 0") for value in values[:1]]
    frames = np.empty((len(values), *feature.shape), np.uint8)
    frames[:1] = first
    for step, value in enumerate(values[1:], 1):
        frames[step] = pictures.decode(value, feature.shape, f"{place}, step {step}")
    return frames


def _text(value: bytes | memoryview, place: str) -> str:
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{place} is not UTF-8 ({error})") from error


def _cast(values: np.ndarray, dtype: np.dtype, place: str) -> np.ndarray:
    if dtype.kind in "iu" and dtype.itemsize < 8:
        limits = np.iinfo(dtype)
        low, high = int(limits.min), int(limits.max)
    elif dtype.kind == "b":
        low, high = 0, 1
    else:
        # int64 that was uint64 comes back as it went in; float64 was rounded when it was written.
        return values.astype(dtype)
    if values.min() < low or values.max() > high:
        raise FormatError(f"{place} holds values from {values.min()} to {values.max()}, and {dtype} ends at {low} and {high}")
    return values.astype(dtype)


def _raw(feature: Feature, values: Sequence[bytes | memoryview], place: str) -> np.ndarray:
    size = feature.step_bytes
    if feature.encoding == "zlib":
        try:
            values = [zlib.decompressobj().decompress(value, size + 1) for value in values]
        except zlib.error as error:
            raise FormatError(f"{place} cannot be decompressed ({error})") from error
    for step, value in enumerate(values):
        if len(value) != size:
            raise FormatError(f"{place}, step {step} has {len(value)} bytes, expected {size} ({feature.dtype} {feature.shape})")
    data = np.frombuffer(b"".join(values), np.uint8)
    return data != 0 if feature.dtype == "bool" else data.view(np.dtype(feature.dtype).newbyteorder("<"))


def with_shape_of(feature: Feature, values: Values, place: str) -> Feature:
    """The feature with the sizes that features.json leaves open taken from the first image."""
    if feature.kind != "image" or 0 not in feature.shape or not len(values):
        return feature
    return replace(feature, shape=(*pictures.size_of(values[0], place), feature.shape[2]))


def encoded(feature: Feature, values: np.ndarray, quality: int) -> Values:
    """What a record holds of an array (steps, *shape). `quality` is JPEG's."""
    if feature.kind == "image":
        return [_compressed(frame, feature, quality) for frame in values]
    if feature.encoding == "bytes":
        values = np.ascontiguousarray(values, np.dtype(feature.dtype).newbyteorder("<"))
        return [step.tobytes() for step in values]
    return values.reshape(-1).astype(np.float32 if values.dtype.kind == "f" else np.int64)


def _compressed(frame: np.ndarray, feature: Feature, quality: int) -> bytes:
    if feature.encoding == "png":
        return pictures.encode_png(frame)
    out = io.BytesIO()
    Image.fromarray(frame[..., 0] if feature.shape[2] == 1 else frame).save(out, "JPEG", quality=quality, subsampling=0)
    return out.getvalue()
