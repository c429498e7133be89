"""Frames of one stream in memory, as many as a budget allows: read when first asked for, then kept."""

from __future__ import annotations

import numpy as np

from uwm_data.store import EpisodeStore


class FrameMemory:
    """The first `limit` frames of some episodes of a stream are kept once read; the others are read each time.

    Under shuffled access that serves as large a share from memory as the least-recently-used rule would, without its
    bookkeeping. Memory grows with what was read, up to the limit.

        episodes    | e3      | e0          | e7   |         selected, in this order
        number      0 1 2 3 4 5 ...     limit              < limit: kept; from there on: read each time
    """

    def __init__(self, store: EpisodeStore, stream: str, starts: np.ndarray, lengths: np.ndarray, limit: int):
        self.store, self.stream, self.limit = store, stream, limit
        self._starts, self._lengths = starts, lengths
        self._first = np.cumsum(lengths) - lengths
        # Small frames share a chunk, so a whole episode costs hardly more than one of them.
        self._by_episode = store.shards[stream].frames_per_chunk > 1
        self._forget()

    def read(self, place: np.ndarray, frames: np.ndarray, out: np.ndarray) -> None:
        """Write frames (B, n) of the episodes at `place` (B,) to `out` (B, n, *shape)."""
        rows = (self._starts[place][:, None] + frames).reshape(-1)
        numbers = (self._first[place][:, None] + frames).reshape(-1)
        flat = out.reshape(-1, *out.shape[2:])
        kept = numbers < self.limit
        if kept.any():
            self._keep(numbers[kept], rows[kept])
        if kept.all():
            # "clip" writes into `out` directly; no number is outside.
            np.take(self._frames, numbers, axis=0, out=flat, mode="clip")
            return
        flat[kept] = self._frames[numbers[kept]]
        self.store.read_rows(self.stream, rows[~kept], flat, np.flatnonzero(~kept))

    def _keep(self, numbers: np.ndarray, rows: np.ndarray) -> None:
        lacking = ~self._there[numbers]
        if not lacking.any():
            return
        if not self._by_episode:
            self._load(numbers[lacking], rows[lacking])
            return
        for place in np.unique(np.searchsorted(self._first, numbers[lacking], side="right") - 1).tolist():
            first = self._first[place]
            whole = np.arange(first, min(first + self._lengths[place], self.limit))
            self._load(whole, whole + (self._starts[place] - first))

    def _load(self, numbers: np.ndarray, rows: np.ndarray) -> None:
        self.store.read_rows(self.stream, rows, self._frames, numbers)
        self._there[numbers] = True

    def _forget(self) -> None:
        spec = self.store.streams[self.stream]
        self._frames = np.empty((self.limit, *spec.shape), spec.dtype)  # costs memory only where it is written
        self._there = np.zeros(self.limit, bool)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_frames": None, "_there": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._forget()
