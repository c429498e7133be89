"""Windows of an episode around a tick: the frames asked for, and masks that say which of them are real.

Offsets count frames of a stream's own rate from the newest frame at the tick's time (never a later one: a robot has not
seen it yet). Frames before the start or after the end repeat the edge frame and are marked invalid:

    action at 20 Hz, offsets -2..3, tick 1 of 4         images at 10 Hz, offsets -1, 0, 1, tick 3 of 4

    frame      -1  0  1  2  3  4                        frame (ticks 0 2 4)   0  1  2      3 / 2 -> frame 1
    read        0  0  1  2  3  3                        read                  0  1  2
    valid       .  x  x  x  x  .                        valid                 x  x  x

A stream that an episode lacks reads as zeros, none of them valid. An episode that lacks the anchor has as many windows as
its other streams have ticks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from uwm_data.errors import StoreError
from uwm_data.memory import FrameMemory
from uwm_data.store import EpisodeStore
from uwm_data.streams import reference_stream

CACHE_BYTES = 256 << 20  # a process with its libraries, this and a batch stays below 500 MB
_RATE_SLACK = 1e-6  # of one frame, so that 3 ticks of 1/30 s are 3 frames and not 2


@dataclass(frozen=True)
class WindowBatch:
    """`values[s]` (B, n, *shape), `valid[s]` (B, n) bool, `episode` (B,) and `tick` (B,) int64."""

    values: dict[str, np.ndarray]
    valid: dict[str, np.ndarray]
    episode: np.ndarray
    tick: np.ndarray


def clamp_frames(frames: np.ndarray, length: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    """The padding rule: (frame numbers moved into 0..length-1, True where none was moved)."""
    clamped = np.clip(frames, 0, np.asarray(length) - 1)
    return clamped, clamped == frames


class Windows:
    """One window per tick of the anchor stream of every selected episode, read in batches.

    `offsets` maps streams to frame offsets. Frames stay in memory once read, as many as fit into `cache_bytes` (small
    streams first, see FrameMemory); `cached` names the streams that fit whole. Safe to fork and to pickle (the memory
    stays behind). Raises StoreError on unknown streams and on damaged episodes.
    """

    def __init__(
        self,
        store: EpisodeStore,
        offsets: Mapping[str, Iterable[int]],
        episodes: Sequence[int] | None = None,
        anchor: str = "action",
        cache_bytes: int = CACHE_BYTES,
    ):
        self.store, self.anchor = store, anchor
        self.episodes = np.asarray(store.episodes if episodes is None else list(episodes), np.int64)
        self.offsets = {name: _checked_offsets(name, some) for name, some in offsets.items()}
        for name in (anchor, *self.offsets):
            if name not in store.streams:
                raise StoreError(f"{store.path} has no stream {name!r}; it has {list(store.streams)}")
        extents = {name: store.extents(name, self.episodes) for name in self.offsets}
        self._lengths = {name: lengths for name, (_, lengths) in extents.items()}
        self._first_window = np.concatenate([[0], np.cumsum(self._ticks())]).astype(np.int64)
        self._memory, fitting, budget = {}, set(), cache_bytes
        sizes = {name: store.streams[name].frame_bytes for name in self.offsets}
        for name in sorted(self.offsets, key=lambda name: self._lengths[name].sum() * sizes[name]):
            frames = int(self._lengths[name].sum())
            limit = max(0, min(frames, budget // sizes[name]))
            self._memory[name] = FrameMemory(store, name, *extents[name], limit)
            budget -= limit * sizes[name]
            fitting |= {name} if limit == frames else set()
        self.cached = frozenset(fitting)

    def __len__(self) -> int:
        return int(self._first_window[-1])

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(place in `episodes` (B,), tick (B,)) of window numbers (B,)."""
        place = np.searchsorted(self._first_window, indices, side="right") - 1
        return place, indices - self._first_window[place]

    def batch(self, indices: Sequence[int], allocate: Callable[..., np.ndarray] = np.empty) -> WindowBatch:
        """The windows with these numbers, in the order given; only the frames in them are read.

        `allocate(shape, dtype)` makes the arrays of `values`: a Loader's workers put them into shared memory.
        """
        indices = np.asarray(indices, np.int64).reshape(-1)
        if indices.size and not (0 <= indices.min() and indices.max() < len(self)):
            raise StoreError(f"window numbers run from 0 to {len(self) - 1}, asked for {indices.min()} to {indices.max()}")
        place, tick = self.locate(indices)
        values, valid = {}, {}
        for name, offsets in self.offsets.items():
            frames = self._frame_at(name, tick)[:, None] + offsets
            lengths = self._lengths[name][place]
            frames, valid[name] = clamp_frames(frames, np.maximum(lengths, 1)[:, None])
            spec = self.store.streams[name]
            values[name] = allocate((*frames.shape, *spec.shape), np.dtype(spec.dtype))
            self._read(name, place, frames, valid[name], values[name], lengths > 0)
        return WindowBatch(values, valid, self.episodes[place], tick)

    def _frame_at(self, stream: str, tick: np.ndarray) -> np.ndarray:
        """Newest frame of a stream at the time of a tick, counted from the start of the episode."""
        ratio = self.store.streams[stream].rate_hz / self.store.streams[self.anchor].rate_hz
        return np.floor(tick * ratio + _RATE_SLACK).astype(np.int64)

    def _read(self, stream: str, place: np.ndarray, frames: np.ndarray, valid: np.ndarray, out: np.ndarray, there: np.ndarray) -> None:
        if there.all():
            self._memory[stream].read(place, frames, out)
            return
        part = np.empty((int(there.sum()), *out.shape[1:]), out.dtype)
        self._memory[stream].read(place[there], frames[there], part)
        valid[~there], out[~there], out[there] = False, 0, part

    def _ticks(self) -> np.ndarray:
        """Windows of each episode: the anchor's frames or, where it is missing, ticks counted by another stream."""
        streams, (_, counts) = self.store.streams, self.store.extents(self.anchor, self.episodes)
        for place in np.flatnonzero(counts == 0).tolist():
            index = int(self.episodes[place])
            lengths = {name: length for name in streams if (length := self.store.length(index, name))}
            if lengths:
                name = reference_stream(streams, lengths)
                counts[place] = streams[self.anchor].frames(streams[name].ticks(lengths[name]), streams[name].rate_hz)
        return counts


def _checked_offsets(stream: str, offsets: Iterable[int]) -> np.ndarray:
    given = list(offsets)
    if not given or any(int(offset) != offset for offset in given):
        raise StoreError(f"offsets of {stream!r} must be whole frames, at least one; got {given}")
    return np.array(given, np.int64)
