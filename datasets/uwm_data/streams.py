"""What a stream is, and which arrays make up a legal episode.

Legend: `T` ticks (actions) of an episode, `r` rate of a stream in Hz, `r_a` rate of the actions.

    tick         0     1     2   ...   T-1
    action       a0    a1    a2  ...   a(T-1)          T frames
    observation  o0    o1    o2  ...   o(T-1)   oT     T + 1 frames: o_k is seen before a_k, oT after the last action
    at r = r_a/2 o0          o1  ...                   floor(T r / r_a) + 1 frames

Other people's files often end before oT: a stream with `closing=False` has the T frames o0 ... o(T-1) only (at r = r_a; the
frames before the end of the last tick at other rates). A stream with `optional=True` may be missing in an episode, which
then has 0 frames of it: a camera that was off, or the actions of a plain video.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from uwm_data.errors import StoreError

KINDS = ("video", "state", "action", "label")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_RATE_SLACK = 1e-6  # of one frame: 60 ticks at 20 Hz are 90.00000000000001 frames at 30 Hz


@dataclass(frozen=True)
class StreamSpec:
    """One stream of an episode: `shape` and `dtype` of a frame, its own `rate_hz`, and what it means.

    `kind` is one of video (uint8 H, W, C), state, action, label. `units` and `names` are free text per dimension.
    `closing` says that one more frame follows the last action (see the drawing above; actions never have it);
    `optional` that episodes may lack the stream.
    Raises StoreError on anything that could not be stored.
    """

    shape: tuple[int, ...]
    dtype: str
    rate_hz: float
    kind: str
    units: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    closing: bool = True
    optional: bool = False

    def __post_init__(self):
        # A bare string would become a tuple of its letters.
        as_tuple = lambda text: (text,) if isinstance(text, str) else tuple(map(str, text))  # noqa: E731
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        object.__setattr__(self, "dtype", _storable(self.dtype))
        object.__setattr__(self, "rate_hz", float(self.rate_hz))
        object.__setattr__(self, "units", as_tuple(self.units))
        object.__setattr__(self, "names", as_tuple(self.names))
        object.__setattr__(self, "closing", bool(self.closing))
        object.__setattr__(self, "optional", bool(self.optional))
        self._refuse_nonsense()

    def _refuse_nonsense(self) -> None:
        if self.kind not in KINDS:
            raise StoreError(f"stream kind {self.kind!r} is unknown; it must be one of {', '.join(KINDS)}")
        if not (math.isfinite(self.rate_hz) and self.rate_hz > 0):
            raise StoreError(f"rate_hz must be a positive number, got {self.rate_hz}")
        if any(size < 1 for size in self.shape):
            raise StoreError(f"every size of a frame must be at least 1, got shape {self.shape}")
        if self.kind == "video" and (len(self.shape) != 3 or self.dtype != "uint8"):
            raise StoreError(f"a video stream holds uint8 frames (H, W, C), got {self.dtype} {self.shape}")
        if self.names and len(self.names) != (self.shape[-1] if self.shape else 1):
            raise StoreError(f"{len(self.names)} names for frames of shape {self.shape}; give one per dimension")

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame in memory."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def to_json(self) -> dict:
        """A JSON-able copy; `StreamSpec(**copy)` gives the spec back.

        `closing` and `optional` are told only where they differ from the usual, so that older stores keep their checksum.
        """
        told = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {key: value for key, value in told.items() if (key, value) not in (("closing", True), ("optional", False))}

    def frames(self, ticks: int, rate_hz: float) -> int:
        """Frames in an episode of `ticks` ticks at `rate_hz`."""
        span = ticks * self.rate_hz / rate_hz
        if self.kind == "action":
            return round(span)
        return math.floor(span + _RATE_SLACK) + 1 if self.closing else math.ceil(span - _RATE_SLACK)

    def ticks(self, frames: int) -> int:
        """Ticks of the stream's own rate in an episode that has `frames` frames of it."""
        return frames - 1 if self.closing and self.kind != "action" else frames


def _storable(dtype: str) -> str:
    try:
        known = np.dtype(dtype)
    except TypeError:
        known = None
    if known is None or known.kind not in "biuf" or known.itemsize > 8:
        raise StoreError(f"stream dtype {dtype!r} cannot be stored; use a bool, integer or float type")
    return known.name


def check_names(streams: Mapping[str, StreamSpec]) -> None:
    """Refuse stream names that cannot be a folder name and a Python keyword argument at once."""
    if not streams:
        raise StoreError("a store needs at least one stream")
    for name in streams:
        if not _NAME.fullmatch(name):
            raise StoreError(f"stream name {name!r}: use letters, digits and underscores, a letter first")


def reference_stream(streams: Mapping[str, StreamSpec], present: Container[str] | None = None) -> str:
    """The stream that counts the ticks: the first action stream, else the first stream; of those `present`, if told."""
    names = [name for name in streams if present is None or name in present]
    return next((name for name in names if streams[name].kind == "action"), names[0])


def expected_lengths(streams: Mapping[str, StreamSpec], reference_frames: int, reference: str | None = None) -> dict[str, int]:
    """Frames that each stream must have, given the frames of the reference stream (see the drawing above)."""
    spec = streams[reference or reference_stream(streams)]
    return {name: other.frames(spec.ticks(reference_frames), spec.rate_hz) for name, other in streams.items()}


def check_episode(streams: Mapping[str, StreamSpec], data: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of one episode, contiguous and proved legal; raises StoreError naming stream, frame and dimension."""
    missing, unknown = set(streams) - set(data), set(data) - set(streams)
    if missing or unknown:
        raise StoreError(
            f"the episode lacks {sorted(missing) or 'nothing'} and brings unknown {sorted(unknown) or 'nothing'}; "
            f"this store holds the streams {list(streams)}"
        )
    arrays = {name: _check_frames(name, spec, data[name]) for name, spec in streams.items()}
    _check_lengths(streams, arrays)
    return arrays


def _check_frames(name: str, spec: StreamSpec, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype != np.dtype(spec.dtype):
        raise StoreError(f"stream {name!r}: dtype {values.dtype}, expected {spec.dtype}; convert on purpose with .astype(np.{spec.dtype})")
    if values.ndim == 0 or values.shape[1:] != spec.shape:
        raise StoreError(f"stream {name!r}: shape {values.shape}, expected (frames, {str(spec.shape)[1:-1]})")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        first = np.argwhere(~np.isfinite(values))[0]
        where = f" dimension {tuple(first[1:].tolist())}" if spec.shape else ""
        raise StoreError(
            f"stream {name!r}: {values[tuple(first)]} at frame {first[0]}{where}; "
            "a store keeps finite numbers only: fix the source or leave the episode out"
        )
    return np.ascontiguousarray(values)


def _check_lengths(streams: Mapping[str, StreamSpec], arrays: Mapping[str, np.ndarray]) -> None:
    present = [name for name, values in arrays.items() if len(values) or not streams[name].optional]
    if not present:
        raise StoreError("the episode is empty: every stream is optional and none has a frame")
    reference = reference_stream(streams, present)
    counted = len(arrays[reference])
    if not counted:
        raise StoreError(f"the episode is empty: stream {reference!r} has 0 frames")
    expected = expected_lengths(streams, counted, reference)
    for name in present:
        if len(arrays[name]) != expected[name]:
            spec = streams[name]
            raise StoreError(
                f"stream {name!r} has {len(arrays[name])} frames, expected {expected[name]}: stream {reference!r} has "
                f"{counted} at {streams[reference].rate_hz:g} Hz, this one is {spec.kind} at {spec.rate_hz:g} Hz, and an "
                f"episode of T ticks has T actions and {'T + 1' if spec.closing else 'T'} observations at equal rates"
            )
