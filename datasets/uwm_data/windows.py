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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from uwm_data.errors import StoreError
from uwm_data.store import EpisodeStore
from uwm_data.streams import reference_stream

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

    `offsets` maps streams to frame offsets. Streams whose selected episodes fit into `cache_bytes` together (small ones
    first) are decoded once at first use and kept in memory; the others are read frame by frame. Safe to fork and to
    pickle (the cache stays behind). Raises StoreError on unknown streams and on damaged episodes.
    """

    def __init__(
        self,
        store: EpisodeStore,
        offsets: Mapping[str, Iterable[int]],
        episodes: Sequence[int] | None = None,
        anchor: str = "action",
        cache_bytes: int = 2 << 30,
    ):
        self.store, self.anchor = store, anchor
        self.episodes = np.asarray(store.episodes if episodes is None else list(episodes), np.int64)
        self.offsets = {name: _checked_offsets(name, some) for name, some in offsets.items()}
        for name in (anchor, *self.offsets):
            if name not in store.streams:
                raise StoreError(f"{store.path} has no stream {name!r}; it has {list(store.streams)}")
        spans = {name: self._spans(name) for name in self.offsets}
        self._starts = {name: starts for name, (starts, _) in spans.items()}
        self._lengths = {name: lengths for name, (_, lengths) in spans.items()}
        self._first_window = np.concatenate([[0], np.cumsum(self._ticks())]).astype(np.int64)
        self.cached = _streams_that_fit(self, cache_bytes)
        self._cache: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._first_window[-1])

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(place in `episodes` (B,), tick (B,)) of window numbers (B,)."""
        place = np.searchsorted(self._first_window, indices, side="right") - 1
        return place, indices - self._first_window[place]

    def batch(self, indices: Sequence[int]) -> WindowBatch:
        """The windows with these numbers, in the order given; only the frames in them are read."""
        indices = np.asarray(indices, np.int64).reshape(-1)
        if indices.size and not (0 <= indices.min() and indices.max() < len(self)):
            raise StoreError(f"window numbers run from 0 to {len(self) - 1}, asked for {indices.min()} to {indices.max()}")
        place, tick = self.locate(indices)
        values, valid = {}, {}
        for name, offsets in self.offsets.items():
            frames = self._frame_at(name, tick)[:, None] + offsets
            lengths = self._lengths[name][place]
            frames, valid[name] = clamp_frames(frames, np.maximum(lengths, 1)[:, None])
            values[name] = self._read_present(name, place, frames, valid[name], lengths > 0)
        return WindowBatch(values, valid, self.episodes[place], tick)

    def _frame_at(self, stream: str, tick: np.ndarray) -> np.ndarray:
        """Newest frame of a stream at the time of a tick, counted from the start of the episode."""
        ratio = self.store.streams[stream].rate_hz / self.store.streams[self.anchor].rate_hz
        return np.floor(tick * ratio + _RATE_SLACK).astype(np.int64)

    def _read_present(self, stream: str, place: np.ndarray, frames: np.ndarray, valid: np.ndarray, there: np.ndarray) -> np.ndarray:
        if there.all():
            return self._read(stream, place, frames)
        valid[~there] = False
        spec = self.store.streams[stream]
        values = np.zeros((*frames.shape, *spec.shape), spec.dtype)
        values[there] = self._read(stream, place[there], frames[there])
        return values

    def _read(self, stream: str, place: np.ndarray, frames: np.ndarray) -> np.ndarray:
        if stream in self.cached:
            kept = self._load(stream)
            return np.take(kept, self._kept_starts(stream)[place][:, None] + frames, axis=0)
        rows = self._starts[stream][place][:, None] + frames
        return self.store.read_rows(stream, rows.reshape(-1)).reshape(*rows.shape, *self.store.streams[stream].shape)

    def _load(self, stream: str) -> np.ndarray:
        if stream not in self._cache:
            spec, starts, lengths = self.store.streams[stream], self._starts[stream], self._lengths[stream]
            kept = np.empty((int(lengths.sum()), *spec.shape), spec.dtype)
            # Episode by episode: one read of everything would need the memory twice.
            for start, length, target in zip(starts, lengths, self._kept_starts(stream), strict=True):
                kept[target : target + length] = self.store.read_rows(stream, np.arange(start, start + length))
            self._cache[stream] = kept
        return self._cache[stream]

    def _kept_starts(self, stream: str) -> np.ndarray:
        return np.cumsum(self._lengths[stream]) - self._lengths[stream]

    def _ticks(self) -> np.ndarray:
        """Windows of each episode: the anchor's frames or, where it is missing, ticks counted by another stream."""
        streams, counts = self.store.streams, np.empty(len(self.episodes), np.int64)
        for place, index in enumerate(self.episodes):
            spans = self.store.episode(int(index)).spans
            counts[place] = len(spans[self.anchor])
            if not counts[place]:
                name = reference_stream(streams, [name for name, span in spans.items() if len(span)])
                ticks = streams[name].ticks(len(spans[name]))
                counts[place] = streams[self.anchor].frames(ticks, streams[name].rate_hz)
        return counts

    def _spans(self, stream: str) -> tuple[np.ndarray, np.ndarray]:
        spans = [self.store.span(int(index), stream) for index in self.episodes]
        return np.array([span.start for span in spans], np.int64), np.array([len(span) for span in spans], np.int64)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": {}}


def _checked_offsets(stream: str, offsets: Iterable[int]) -> np.ndarray:
    given = list(offsets)
    if not given or any(int(offset) != offset for offset in given):
        raise StoreError(f"offsets of {stream!r} must be whole frames, at least one; got {given}")
    return np.array(given, np.int64)


def _streams_that_fit(windows: Windows, budget: int) -> frozenset[str]:
    specs = windows.store.streams
    needed = {name: int(windows._lengths[name].sum()) * specs[name].frame_bytes for name in windows.offsets}
    fitting = set()
    for name in sorted(needed, key=needed.get):
        budget -= needed[name]
        if budget >= 0:
            fitting.add(name)
    return frozenset(fitting)
