"""Streams at several rates in formats that know one row a tick: what is repeated, what comes back, what is lost.

    tick              0    1    2    3    4    5            rate r_a of the actions
    r = r_a / 3       o0   o0   o0   o1   o1   o1           repeated; the first tick of each comes back: nothing is lost
    r = 2 r_a         o0   o2   o4   o6   o8   o10          thinned: o1, o3, ... are lost
    r = r_a / 1.5     o0   o0   o1   o2   o2   o3           the newest frame at each tick, and it stays like that

A row shows the newest frame at its time, never a later one, as Windows do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from uwm_data.errors import FormatError
from uwm_data.streams import StreamSpec, reference_stream

_RATE_SLACK = 1e-6  # of one frame


def checked_rate(rate_hz: float | str | None) -> float | None:
    """The option as readers take it; FormatError when it is no rate."""
    try:
        rate = None if rate_hz is None else float(rate_hz)
    except (TypeError, ValueError):
        rate = 0.0
    if rate is not None and not 0 < rate < float("inf"):
        raise FormatError(f"rate_hz={rate_hz} is no rate; it is a positive number")
    return rate


def written_specs(streams: Mapping[str, StreamSpec]) -> tuple[dict[str, StreamSpec], float, list[str]]:
    """(specs as rows can hold them, rate of the ticks, what is lost in words)."""
    rate = streams[reference_stream(streams)].rate_hz
    specs, lost = {}, []
    for name, spec in streams.items():
        ratio = rate / spec.rate_hz
        if abs(ratio - round(ratio)) <= _RATE_SLACK:
            specs[name] = spec
        else:
            specs[name] = replace(spec, rate_hz=rate)
            lost.append(f"{name}: its frames at {spec.rate_hz:g} Hz; each row has the newest one at {rate:g} Hz")
    return specs, rate, lost


def ticks_of(streams: Mapping[str, StreamSpec], arrays: Mapping[str, np.ndarray], rate: float) -> int:
    """Ticks of an episode, counted by the first stream that it has (the actions, if it has them)."""
    name = reference_stream(streams, [name for name, values in arrays.items() if len(values)])
    return round(streams[name].ticks(len(arrays[name])) * rate / streams[name].rate_hz)


def to_rows(values: np.ndarray, rate_hz: float, rows: int, rate: float) -> np.ndarray:
    """(rows, *shape): the newest frame at each tick; zeros where the stream is absent, or over (actions behind the last)."""
    shown = np.floor(np.arange(rows) * rate_hz / rate + _RATE_SLACK).astype(np.int64)
    if len(values) == rows and rate_hz == rate:
        return values
    out = np.zeros((rows, *values.shape[1:]), values.dtype)
    there = shown < len(values)
    out[there] = values[shown[there]]
    return out


def from_rows(rows: np.ndarray, spec: StreamSpec, ticks: int, rate: float) -> np.ndarray:
    """The frames of a stream in an episode of so many ticks, out of the rows that `to_rows` made of them.

    FormatError when there are too few rows.
    """
    frames = spec.frames(ticks, rate)
    first_rows = np.ceil(np.arange(frames) * rate / spec.rate_hz - _RATE_SLACK).astype(np.int64)
    if frames and first_rows[-1] >= len(rows):
        raise FormatError(f"{len(rows)} rows are too few for {frames} frames at {spec.rate_hz:g} Hz of an episode of {ticks} ticks")
    return rows[first_rows]
