"""What LeRobot's features are in words of streams, and back. Both versions of the format describe them in the same way.

    feature in info.json                                      stream
    observation.images.front  video or image (96, 96, 3)      front   video
    observation.state         float32 (7,)                    state   state
    action                    float32 (7,)                    action  action
    next.reward               float32 (1,)                    reward  label
    language                  string                          metadata of the episode
    timestamp, index, ...     the five that always exist      made from frame numbers

A feature may hold several streams side by side: LeRobot's policies want one `observation.state`, so the state streams that
a policy uses are joined when they are written, and `meta/uwm/card.json` tells how to part them again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from uwm_data.errors import FormatError, StoreError
from uwm_data.streams import StreamSpec

INDEX_DTYPES = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64"}
PICTURES = ("video", "image")
MAX_FEATURES = 1000
_CAMERA = "observation.images."
_ANNOTATION = "annotation."
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Field:
    """One feature: its key, dtype ("video", "image", "string", "task" or numpy's), shape of a frame (pictures: H, W, C), its
    `names` as in info.json, and the `streams` it holds side by side along the last axis.

    "task" is ours: an integer column whose numbers stand for lines of the tasks table (GR00T's annotations).
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: Any = None
    streams: tuple[str, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether its values are texts, which go to an episode's metadata."""
        return self.dtype in ("string", "task")

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame in memory."""
        return math.prod(self.shape) * (1 if self.dtype in PICTURES else np.dtype(self.dtype).itemsize)

    def describe(self) -> dict:
        """Its entry in info.json."""
        return {"dtype": "int64" if self.dtype == "task" else self.dtype, "shape": list(self.shape), "names": self.names}


# ---- reading: features -> streams ---------------------------------------------------------------------------------


def fields_of(info: Mapping[str, Any], left_out: list[str]) -> list[Field]:
    """The features that can be read, each with the stream it becomes; what cannot is told in `left_out`."""
    features = info.get("features")
    if not isinstance(features, dict) or not 0 < len(features) <= MAX_FEATURES:
        raise FormatError(f"info.json: `features` must hold 1 to {MAX_FEATURES} entries")
    fields, taken = [], set()
    for key, told in features.items():
        if key in INDEX_DTYPES:
            continue
        field = _field(key, told)
        if isinstance(field, str):
            left_out.append(f"feature {key!r}: {field}")
            continue
        if not field.is_text:
            field = replace(field, streams=(_stream_name(key, taken),))
            taken.update(field.streams)
        fields.append(field)
    return fields


def _field(key: str, told: Any) -> Field | str:
    """The field, or why there is none."""
    try:
        dtype, shape = str(told["dtype"]), tuple(int(size) for size in told.get("shape") or ())
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return "it tells no dtype and shape"
    if any(size < 1 for size in shape) or len(shape) > 5:
        return f"its frames have the shape {shape}"
    if dtype == "string":
        return Field(key, dtype, shape or (1,), told.get("names"))
    if key.startswith(_ANNOTATION) and dtype == "int64" and shape in ((), (1,)):
        return Field(key, "task", (1,), told.get("names"))
    if dtype in PICTURES:
        return _picture(key, dtype, shape, told)
    try:
        dtype = StreamSpec((), dtype, 1, "label").dtype
    except StoreError:
        return f"dtype {dtype!r} cannot be a stream"
    return Field(key, dtype, shape, told.get("names"))


def _picture(key: str, dtype: str, shape: tuple[int, ...], told: Mapping) -> Field | str:
    names, facts = told.get("names"), told.get("info") or told.get("video_info") or {}
    if isinstance(facts, dict) and facts.get("video.is_depth_map"):
        return "depth does not fit into 8 bits"
    if len(shape) != 3:
        return f"its pictures have the shape {shape}, expected height, width and channels"
    names_say_first = isinstance(names, list) and names and str(names[0]).startswith("channel")
    if names_say_first or (shape[2] not in _CHANNELS and shape[0] in _CHANNELS):
        shape, names = (shape[1], shape[2], shape[0]), ["height", "width", "channels"]
    if shape[2] not in _CHANNELS:
        return f"its pictures have {shape[2]} channels"
    return Field(key, dtype, shape if dtype == "image" else (*shape[:2], 3), names)


def _stream_name(key: str, taken: set[str]) -> str:
    if key in ("action", "actions"):
        wanted = "action"
    else:
        wanted = key.removeprefix(_CAMERA).removeprefix("observation.").removeprefix("next.")
    for text in (wanted, key):
        name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_")
        name = name if name[:1].isalpha() else f"stream_{name}".rstrip("_")
        if name not in taken and name not in INDEX_DTYPES:
            return name
    return next(f"{name}_{number}" for number in range(2, len(taken) + 3) if f"{name}_{number}" not in taken)


def spec_of(field: Field, rate_hz: float, optional: bool) -> StreamSpec:
    """The stream that a feature becomes: T frames, one per row."""
    if field.dtype in PICTURES:
        return StreamSpec(field.shape, "uint8", rate_hz, "video", closing=False, optional=optional)
    names = flat_names(field.names)
    names = names if field.shape and len(names) == field.shape[-1] else ()
    return StreamSpec(field.shape, field.dtype, rate_hz, _kind(field), names=names, closing=False, optional=optional)


def _kind(field: Field) -> str:
    if field.streams == ("action",) or field.key.startswith("action."):
        return "action"
    of_robot = field.key.startswith("observation.") or field.key == "state"
    return "state" if of_robot and np.dtype(field.dtype).kind == "f" else "label"


def flat_names(names: Any) -> tuple[str, ...]:
    """Names of dimensions from what LeRobot's `names` may be: a list, or a dictionary of lists."""
    if isinstance(names, dict):
        names = [name for some in names.values() for name in (some if isinstance(some, list) else [some])]
    return tuple(map(str, names)) if isinstance(names, list) else ()


def modality_names(modality: Any, part: str, width: int) -> tuple[str, ...]:
    """Names of dimensions from GR00T's named slices of a vector; empty where they do not cover it exactly."""
    slices = modality.get(part) if isinstance(modality, dict) else None
    names: dict[int, str] = {}
    for name, told in slices.items() if isinstance(slices, dict) else ():
        start, end = (told.get("start"), told.get("end")) if isinstance(told, dict) else (None, None)
        if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= width):
            continue
        names |= {place: name if end - start == 1 else f"{name}.{place - start}" for place in range(start, end)}
    return tuple(names[place] for place in range(width)) if len(names) == width else ()


# ---- writing: streams -> features ---------------------------------------------------------------------------------


def fields_for(streams: Mapping[str, StreamSpec], card: Mapping, codec_for: Any) -> list[Field]:
    """The features that hold these streams. `codec_for(name, spec)` is the dtype of a camera: video, image, or "" for neither."""
    theirs = names_there(card)
    together = _written_together(streams, card, theirs)
    fields: list[Field] = []
    for name, spec in streams.items():
        key, parts = next(((key, parts) for key, parts in together.items() if name in parts), (_key(name, spec, theirs), (name,)))
        if name != parts[0]:
            continue
        dtype = codec_for(name, spec) if spec.kind == "video" else ""
        shape = spec.shape or (1,) if len(parts) == 1 else (sum(streams[part].shape[0] for part in parts),)
        names = ["height", "width", "channels"] if dtype else _names_of(parts, streams)
        fields.append(Field(_free_key(key, fields), dtype or spec.dtype, shape, names, parts))
    return fields


def names_there(card: Mapping) -> dict[str, str]:
    """What the streams were called in the LeRobot dataset that they came from; empty where they came from elsewhere."""
    source = card.get("source")
    names = source.get("names") if isinstance(source, Mapping) else None
    if not isinstance(names, Mapping) or not str(source.get("format", "")).startswith("lerobot"):
        return {}
    return {str(stream): key for stream, key in names.items() if isinstance(key, str) and key not in INDEX_DTYPES and "/" not in key}


def _written_together(streams: Mapping[str, StreamSpec], card: Mapping, theirs: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Streams that share a feature: what shared one before, else the state that a policy uses as `observation.state`."""
    if theirs:
        wanted = {key: tuple(name for name in streams if theirs.get(name) == key) for key in theirs.values()}
        return {key: parts for key, parts in wanted.items() if len(parts) > 1 and _can_join([streams[name] for name in parts])}
    policy = card.get("policy")
    proprio = tuple(policy.get("proprio") or ()) if isinstance(policy, Mapping) else ()
    fit = proprio and len(set(proprio)) == len(proprio) and set(proprio) <= set(streams)
    return {"observation.state": proprio} if fit and _can_join([streams[name] for name in proprio]) else {}


def _can_join(specs: Sequence[StreamSpec]) -> bool:
    vectors = all(spec.kind == "state" and len(spec.shape) == 1 and not spec.optional for spec in specs)
    return vectors and len({(spec.dtype, spec.rate_hz) for spec in specs}) == 1


def _key(name: str, spec: StreamSpec, theirs: Mapping[str, str]) -> str:
    if name in theirs:
        return theirs[name]
    if spec.kind == "video":
        # LeRobot demands three channels of everything that has "image" in its name.
        return f"{_CAMERA}{name}" if spec.shape[2] == 3 else f"observation.cameras.{name}"
    if spec.kind == "state":
        return f"observation.{name}"
    return f"next.{name}" if name in ("reward", "done", "success") and spec.kind == "label" else name


def _free_key(key: str, fields: Sequence[Field]) -> str:
    taken = {field.key for field in fields} | set(INDEX_DTYPES)
    return next(text for text in (key, f"stream.{key}", *(f"stream.{key}.{n}" for n in range(2, len(taken) + 3))) if text not in taken)


def _names_of(parts: Sequence[str], streams: Mapping[str, StreamSpec]) -> list[str] | None:
    if len(parts) == 1:
        return list(streams[parts[0]].names) or None
    return [f"{part}.{name}" for part in parts for name in streams[part].names or range(streams[part].shape[-1])]


def parted(values: np.ndarray, field: Field, streams: Mapping[str, StreamSpec]) -> dict[str, np.ndarray]:
    """The streams (T, *shape) in the values (T, ...) of a feature."""
    if len(field.streams) == 1:
        name = field.streams[0]
        return {name: values.reshape(len(values), *streams[name].shape)}
    ends = np.cumsum([streams[name].shape[-1] for name in field.streams])[:-1]
    return dict(zip(field.streams, np.split(values, ends, axis=-1), strict=True))


def joined(arrays: Mapping[str, np.ndarray], field: Field) -> np.ndarray:
    """The values (T, *shape) of a feature from its streams; the inverse of `parted`."""
    values = [arrays[name] for name in field.streams]
    return values[0].reshape(len(values[0]), *field.shape) if len(values) == 1 else np.concatenate(values, axis=-1)
