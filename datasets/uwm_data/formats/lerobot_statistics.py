"""Statistics as LeRobot keeps them (min, max, mean, std, count and five quantiles per feature), exact and in float64.

Pictures are counted: how often each of the 256 values occurs in each channel. From the counts of all frames every statistic
follows exactly, sums of squares of uint8 never overflow, and counts of episodes add up, which their quantiles do not.
"""

from __future__ import annotations

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
NAMES = ("min", "max", "mean", "std", "count", *QUANTILES)


def of_values(values: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics over the first axis of (T, *shape), T >= 1; scalars come out as (1,)."""
    values = values.reshape(len(values), *(values.shape[1:] or (1,))).astype(np.float64)
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    return {
        "min": values.min(0),
        "max": values.max(0),
        "mean": values.mean(0),
        "std": values.std(0),
        "count": np.array([len(values)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def counts_of(frames: np.ndarray) -> np.ndarray:
    """How often each value occurs per channel, (C, 256) int64, in frames (T, H, W, C) uint8."""
    channels = range(frames.shape[3])
    # Frame by frame, so that no second copy of the episode is made.
    counts = [[np.bincount(frame[..., channel].reshape(-1), minlength=256) for channel in channels] for frame in frames]
    return np.sum(counts, axis=0)


def of_counts(counts: np.ndarray, frames: int) -> dict[str, np.ndarray]:
    """Statistics (C, 1, 1), in [0, 1], of pictures with these `counts` (C, 256); `count` is the number of frames."""
    levels = np.arange(256) / 255
    pixels = counts.sum(1)
    mean = counts @ levels / pixels
    deviation = np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(1) / pixels)
    found = {
        "min": levels[(counts > 0).argmax(1)],
        "max": levels[255 - (counts > 0)[:, ::-1].argmax(1)],
        "mean": mean,
        "std": deviation,
        **{name: _quantile(counts, share) / 255 for name, share in QUANTILES.items()},
    }
    return {"count": np.array([frames]), **{name: values.reshape(-1, 1, 1) for name, values in found.items()}}


def _quantile(counts: np.ndarray, share: float) -> np.ndarray:
    """numpy's (linear) quantile of the values 0..255 that occur `counts` (C, 256) times."""
    ends = counts.cumsum(1)
    place = share * (ends[:, -1] - 1)
    below, above = np.floor(place), np.ceil(place)
    value_at = [[np.searchsorted(end, rank, side="right") for end, rank in zip(ends, ranks, strict=True)] for ranks in (below, above)]
    low, high = np.array(value_at, np.float64)
    return low + (high - low) * (place - below)


def to_json(statistics: dict[str, dict[str, np.ndarray]]) -> dict:
    """The same with lists for arrays."""
    return {key: {name: values.tolist() for name, values in told.items()} for key, told in statistics.items()}
