"""Numbers for normalisers, from the episodes that are trained on and no others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from uwm_data.errors import StoreError
from uwm_data.store import EpisodeStore
from uwm_data.streams import StreamSpec

CONSTANT_RANGE = 1e-6  # relative to the largest magnitude of the dimension
QUANTILES = {"q01": 0.01, "q99": 0.99}


def statistics(store: EpisodeStore, streams: Iterable[str] | None, episodes: Sequence[int]) -> dict[str, dict]:
    """{stream: {mean, std, min, max, q01, q99, count, constant}} over the given episodes, in float64, JSON-able.

    Each entry is a list shaped like a frame; for video it is one number per channel, of values in [0, 1]. `std` is the
    population's. `constant` marks dimensions with (max - min) <= 1e-6 of their magnitude: do not divide by their std.
    `count` is the number of frames. Small streams are held in memory for true quantiles, video is not.
    """
    episodes = [int(index) for index in episodes]
    if not episodes:
        raise StoreError("statistics need at least one episode")
    names = list(store.streams) if streams is None else list(streams)
    return {name: _stream_statistics(store, name, episodes) for name in names}


def _stream_statistics(store: EpisodeStore, name: str, episodes: list[int]) -> dict:
    count = sum(store.length(index, name) for index in episodes)
    if store.streams[name].kind == "video":
        result = _from_histogram(_histogram(store, name, episodes))
    else:
        result = _from_frames(np.concatenate([store.read(index, name) for index in episodes]).astype(np.float64))
    span = result["max"] - result["min"]
    constant = span <= CONSTANT_RANGE * np.maximum(np.abs(result["min"]), np.abs(result["max"]))
    return {**{key: value.tolist() for key, value in result.items()}, "count": count, "constant": constant.tolist()}


def _from_frames(frames: np.ndarray) -> dict[str, np.ndarray]:
    low, high = np.quantile(frames, list(QUANTILES.values()), axis=0)
    return {
        "mean": frames.mean(0),
        "std": frames.std(0),
        "min": frames.min(0),
        "max": frames.max(0),
        **dict(zip(QUANTILES, (low, high), strict=True)),
    }


def _histogram(store: EpisodeStore, name: str, episodes: list[int]) -> np.ndarray:
    """How often each of the 256 values occurs per channel, (C, 256): exact for uint8, and small."""
    spec: StreamSpec = store.streams[name]
    counts = np.zeros((spec.shape[-1], 256), np.int64)
    for index in episodes:
        pixels = store.read(index, name).reshape(-1, spec.shape[-1])
        for channel in range(spec.shape[-1]):
            counts[channel] += np.bincount(pixels[:, channel], minlength=256)
    return counts


def _from_histogram(counts: np.ndarray) -> dict[str, np.ndarray]:
    levels = np.arange(256) / 255.0
    total = counts.sum(1)
    mean = counts @ levels / total
    variance = (counts * (levels - mean[:, None]) ** 2).sum(1) / total
    seen = [levels[np.flatnonzero(row)] for row in counts]
    quantiles = {key: np.array([_histogram_quantile(row, share) for row in counts]) for key, share in QUANTILES.items()}
    return {
        "mean": mean,
        "std": np.sqrt(variance),
        "min": np.array([values[0] for values in seen]),
        "max": np.array([values[-1] for values in seen]),
        **quantiles,
    }


def _histogram_quantile(row: np.ndarray, share: float) -> float:
    """Linear interpolation between order statistics, as numpy's default does on the pixels themselves."""
    ends = np.cumsum(row)
    place = share * (ends[-1] - 1)
    low, high = (int(np.searchsorted(ends, rank, side="right")) for rank in (np.floor(place), np.ceil(place)))
    return (low + (place - np.floor(place)) * (high - low)) / 255.0
