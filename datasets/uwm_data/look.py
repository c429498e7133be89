"""A look at a dataset of any format, in one pass over its episodes: what `uwm data show` prints and draws.

A store's numbers are read of every episode and its video of some; of another format, whole episodes have to be read, so a
large one is looked at in evenly spaced episodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from uwm_data import cards
from uwm_data.errors import StoreError
from uwm_data.formats import RawEpisode, Source
from uwm_data.formats.own import StoreSource
from uwm_data.statistics import Histogram, Summary
from uwm_data.streams import StreamSpec, reference_stream

FOREIGN_EPISODES = 50  # of another format that are read, unless all are asked for
VIDEO_EPISODES = 24  # of a store whose frames are counted
SCENES = 8  # episodes that the contact sheet shows
SCENE_TIMES = 5


@dataclass(frozen=True)
class Scene:
    """What a contact sheet shows of an episode: {camera: [(seconds, frame (H, W, C)), ...]}."""

    row: dict
    pictures: dict[str, list[tuple[float, np.ndarray]]]


@dataclass
class Look:
    """`rows` describe the episodes that were looked at; `statistics` are of those, of video only over `video_episodes`."""

    streams: dict[str, StreamSpec]
    card: dict
    left_out: list[str]
    episodes: int
    rows: list[dict] = field(default_factory=list)
    statistics: dict[str, dict] = field(default_factory=dict)
    video_episodes: int = 0
    scenes: list[Scene] = field(default_factory=list)
    unreadable: dict[int, str] = field(default_factory=dict)

    @property
    def rate_hz(self) -> float:
        """Ticks per second."""
        return self.streams[reference_stream(self.streams)].rate_hz


def look(source: Source, everything: bool = False) -> Look:
    """Look at a dataset; `everything` reads every frame of it. An episode that cannot be read is noted, not raised."""
    found = Look(dict(source.streams), cards.complete(source.card, source.streams), list(source.left_out), len(source))
    is_store = isinstance(source, StoreSource)
    chosen = spread(len(source), None if everything or is_store else FOREIGN_EPISODES)
    filmed = spread(len(source), VIDEO_EPISODES) if is_store and not everything else chosen
    shown = {filmed[place] for place in spread(len(filmed), SCENES)}
    summaries = {name: Histogram(spec.shape[-1]) if spec.kind == "video" else Summary() for name, spec in source.streams.items()}
    for index in chosen:
        try:
            raw = _read(source, index, index in filmed)
        except StoreError as error:
            found.unreadable[index] = str(error)
            continue
        for name, values in raw.arrays.items():
            if len(values):
                summaries[name].update(values)
        row = _row(source, index, raw)
        found.rows.append(row)
        if index in shown:
            found.scenes.append(Scene(row, _pictures(source.streams, raw)))
    found.video_episodes = len(set(filmed) - set(found.unreadable))
    found.statistics = {name: summary.result() for name, summary in summaries.items() if summary.count}
    return found


def spread(count: int, most: int | None) -> list[int]:
    """At most `most` numbers below `count`, evenly spaced, both ends among them."""
    if most is None or count <= most:
        return list(range(count))
    return sorted({round(place) for place in np.linspace(0, count - 1, most)})


def _read(source: Source, index: int, with_video: bool) -> RawEpisode:
    if with_video or not isinstance(source, StoreSource):
        return source.read(index)
    return source.read(index, [name for name, spec in source.streams.items() if spec.kind != "video"])


def _row(source: Source, index: int, raw: RawEpisode) -> dict[str, Any]:
    """One line of the episode table."""
    present = [name for name, values in raw.arrays.items() if len(values)]
    if isinstance(source, StoreSource):
        place = source.episodes[index]
        lengths = {name: source.store.length(place, name) for name in source.streams}
        present = [name for name, length in lengths.items() if length]
    else:
        place, lengths = index, {name: len(values) for name, values in raw.arrays.items()}
    name = reference_stream(source.streams, present)
    spec, meta = source.streams[name], raw.meta
    ticks = spec.ticks(lengths[name])
    told = {key: meta.get(key) for key in ("task", "instruction", "success")}
    return {"index": place, "ticks": ticks, "seconds": ticks / spec.rate_hz, **told, "source": _origin(meta.get("source"))}


def _origin(told: Any) -> str | None:
    """Where an episode came from, in a few words."""
    if isinstance(told, Mapping):
        return " ".join(str(value) for value in told.values())
    return None if told is None else str(told)


def _pictures(streams: Mapping[str, StreamSpec], raw: RawEpisode) -> dict[str, list[tuple[float, np.ndarray]]]:
    pictures = {}
    for name, spec in streams.items():
        if spec.kind == "video":
            frames = raw.arrays[name]
            # Copies, so that the rest of the episode can be let go of.
            pictures[name] = [(place / spec.rate_hz, frames[place].copy()) for place in spread(len(frames), SCENE_TIMES)]
    return pictures
