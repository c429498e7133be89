"""Numbers for normalisers, from the episodes that are trained on and no others, in one pass and bounded memory.

| number | how | error |
|---|---|---|
| count, min, max | running | none |
| mean, std | running in float64, merged in pairs (Chan, Golub and LeVeque 1983) | rounding of float64 |
| quantiles of video | the histogram of its 256 values | none |
| other quantiles | all frames while they fit into a budget, else a random sample of k of them | none, else of the rank below |

The sample is of the k frames with the smallest hashes of their numbers: uniform, always the same, whatever the portions.
The share of frames below a sampled quantile q has a standard error of sqrt(q (1 - q) / k). With 7 dimensions of float32 and
the default budget, quantiles are exact up to 1.8 million frames, then k is 0.9 million and the error 0.0001 at q01 and 0.0005
at the median.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from uwm_data.errors import StoreError
from uwm_data.store import EpisodeStore
from uwm_data.streams import StreamSpec

CONSTANT_RANGE = 1e-6  # relative to the largest magnitude of the dimension
TINY_RANGE = 1024 * 2.0**-23  # the same, for a range of less than about 1000 steps of float32
HEAVY_TAIL = 10.0  # ranges beyond this many times q99 - q01; a normal distribution of a million has 2
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
BUDGET_BYTES = 64 << 20
VIDEO_PART = 64  # frames that are decoded at a time


def statistics(
    store: EpisodeStore, streams: Iterable[str] | None, episodes: Sequence[int], budget_bytes: int = BUDGET_BYTES
) -> dict[str, dict]:
    """{stream: {mean, std, min, max, q01, q10, q50, q90, q99, count, constant, tiny, heavy_tailed}}, JSON-able.

    Over the given episodes, in float64; each entry is a list shaped like a frame; for video it is one number per channel, of
    values in [0, 1]. `std` is the population's, `count` the number of frames. Episodes that lack an optional stream count
    nothing; a stream that all of them lack is left out. Memory is one episode and `budget_bytes`. Marked dimensions:

    constant      (max - min) <= 1e-6 of the largest magnitude: do not divide by its std
    tiny          (max - min) <= 1.2e-4 of it: mostly rounding
    heavy_tailed  (max - min) > 10 (q99 - q01): min and max say little, or the quantiles do (a gripper that seldom moves)
    """
    episodes = [int(index) for index in episodes]
    if not episodes:
        raise StoreError("statistics need at least one episode")
    names = list(store.streams) if streams is None else list(streams)
    found = {name: _stream_summary(store, name, episodes, budget_bytes) for name in names}
    return {name: summary.result() for name, summary in found.items() if summary.count}


def summarise(parts: Iterable[np.ndarray], budget_bytes: int = BUDGET_BYTES) -> dict | None:
    """The same of any frames, given in portions (n, *shape); None when there are none."""
    summary = Summary(budget_bytes)
    for frames in parts:
        summary.update(frames)
    return summary.result() if summary.count else None


def _stream_summary(store: EpisodeStore, name: str, episodes: list[int], budget_bytes: int) -> Summary | Histogram:
    spec: StreamSpec = store.streams[name]
    summary = Histogram(spec.shape[-1]) if spec.kind == "video" else Summary(budget_bytes)
    for index in episodes:
        count = store.length(index, name)
        part = VIDEO_PART if spec.kind == "video" else max(count, 1)
        for start in range(0, count, part):
            summary.update(store.read(index, name, slice(start, start + part)))
    return summary


def _flags(result: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Which dimensions are constant, tiny and heavy-tailed, from their min, max, q01 and q99."""
    span, core = result["max"] - result["min"], result["q99"] - result["q01"]
    magnitude = np.maximum(np.abs(result["min"]), np.abs(result["max"]))
    constant = span <= CONSTANT_RANGE * magnitude
    tiny = ~constant & (span <= TINY_RANGE * magnitude)
    return {"constant": constant, "tiny": tiny, "heavy_tailed": ~constant & (span > HEAVY_TAIL * core)}


class Summary:
    """A running summary of frames of any shape and number type, given to `update` in any portions."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES):
        self.budget_bytes, self.count = budget_bytes, 0
        self.mean, self.squares = np.zeros(()), np.zeros(())  # squares: the sum of squared distances from the mean
        self.low, self.high = np.array(np.inf), np.array(-np.inf)
        self.keys: list[np.ndarray] = []  # hash numbers (n,) of the frames that are kept
        self.kept: list[np.ndarray] = []
        self.held = self.limit = 0

    def update(self, frames: np.ndarray) -> None:
        """Counts frames (n, *shape)."""
        if not len(frames):
            return
        exact = frames.astype(np.float64)
        mean, before, after = exact.mean(0), self.count, self.count + len(frames)
        apart = mean - self.mean
        with np.errstate(over="ignore", invalid="ignore"):  # squares beyond 1e308 are infinite, and a normaliser refuses them
            self.squares = self.squares + np.square(exact - mean).sum(0) + np.square(apart) * (before * len(frames) / after)
        self.mean = self.mean + apart * (len(frames) / after)
        self.low, self.high = np.minimum(self.low, exact.min(0)), np.maximum(self.high, exact.max(0))
        self.keys.append(_hash(before, len(frames)))
        self.kept.append(np.array(frames))
        self.count, self.held = after, self.held + len(frames)
        self.limit = self.limit or max(self.budget_bytes // (2 * (frames[0].nbytes + 8)), 1000)
        if self.held > 2 * self.limit:
            self._thin()

    def result(self) -> dict:
        """What `statistics` tells of a stream."""
        is_whole = self.held == self.count
        if not is_whole:
            self._thin()
        frames = np.concatenate(self.kept).astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = (frames.mean(0), frames.std(0)) if is_whole else (self.mean, np.sqrt(self.squares / self.count))
        quantiles = np.quantile(frames, list(QUANTILES.values()), axis=0)
        result = {"mean": mean, "std": std, "min": self.low, "max": self.high, **dict(zip(QUANTILES, quantiles, strict=True))}
        return _told(result, self.count)

    def _thin(self) -> None:
        """Keeps the frames with the smallest keys. Those thrown out earlier had larger ones, so the choice is the same as of all."""
        keys, frames = np.concatenate(self.keys), np.concatenate(self.kept)
        chosen = np.sort(np.argsort(keys)[: self.limit])
        self.keys, self.kept, self.held = [keys[chosen]], [frames[chosen]], self.limit


def _hash(start: int, count: int) -> np.ndarray:
    """Well-mixed 64-bit numbers of start, start + 1, ...: the finaliser of splitmix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        mixed = (np.arange(start, start + count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


class Histogram:
    """How often each of the 256 values occurs per channel: exact for uint8, and small."""

    def __init__(self, channels: int):
        self.counts, self.count = np.zeros((channels, 256), np.int64), 0

    def update(self, frames: np.ndarray) -> None:
        """Counts frames (n, H, W, C)."""
        self.count += len(frames)
        for channel, row in enumerate(self.counts):
            row += np.bincount(frames[..., channel].reshape(-1), minlength=256)

    def result(self) -> dict:
        """What `statistics` tells of a video: per channel, of values in [0, 1]."""
        levels, total = np.arange(256) / 255.0, self.counts.sum(1)
        mean = self.counts @ levels / total
        variance = (self.counts * (levels - mean[:, None]) ** 2).sum(1) / total
        seen = [levels[np.flatnonzero(row)] for row in self.counts]
        quantiles = {key: np.array([_quantile(row, share) for row in self.counts]) for key, share in QUANTILES.items()}
        ends = {"min": np.array([values[0] for values in seen]), "max": np.array([values[-1] for values in seen])}
        return _told({"mean": mean, "std": np.sqrt(variance), **ends, **quantiles}, self.count)


def _quantile(row: np.ndarray, share: float) -> float:
    """Linear interpolation between order statistics, as numpy's default does on the pixels themselves."""
    ends = np.cumsum(row)
    place = share * (ends[-1] - 1)
    low, high = (int(np.searchsorted(ends, rank, side="right")) for rank in (np.floor(place), np.ceil(place)))
    return (low + (place - np.floor(place)) * (high - low)) / 255.0


def _told(result: dict[str, np.ndarray], count: int) -> dict:
    marked = {**result, **_flags(result)}
    return {**{key: np.asarray(value).tolist() for key, value in marked.items()}, "count": count}
