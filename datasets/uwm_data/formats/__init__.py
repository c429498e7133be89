"""Other people's datasets: one module a format, all behind one contract, so that any of them converts to any other.

A format's module has

    recognise(path) -> bool             looks at names and first bytes only; never raises, executes nothing
    read(path, **options) -> Source     what is there; FormatError on anything that is not sound
    write(path, streams, card, **options) -> Sink          where we write the format; continues what it began itself

Nothing of a source is trusted: no pickle, no object arrays, no size that is only claimed. Reading leaves the source as it
is; a write that fails leaves whole episodes, and the same call goes on behind them.

Stream names are ours: letters, digits, underscores; the action that a policy sends is called `action`, cameras have their
short names. Keys of the card that every source fills in (a value that the source does not tell is "unknown"):

| key | holds |
|---|---|
| `image_orientation` | "upright": a reader turns what is stored otherwise, and says so in `source` |
| `rate_hz` | ticks per second |
| `action` | names, units, `convention` in words; `mode` (delta, absolute, velocity, unknown), `frame`, `gripper` (which sign opens) |
| `policy` | what a policy would use: {"cameras": [...], "proprio": [state streams, joined in this order], "action": name} |
| `source` | format, version, name, and `names`: {stream: its name there}, so that writing the format again restores them |
| `env`, `robot` | names, where told |

Keys of an episode's metadata: `task`, `instruction`, `success`, `seed` and `source` (format, name or number there) where told;
what only one format knows stands under that format's name, so that writing it again loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from uwm_data.errors import FormatError
from uwm_data.streams import StreamSpec

FORMATS: dict[str, str] = {
    "store": "uwm_data.formats.own",
    "robomimic": "uwm_data.formats.robomimic",
    "libero": "uwm_data.formats.libero",
    "diffusion-policy": "uwm_data.formats.diffusion_policy",
    "lerobot": "uwm_data.formats.lerobot",
    "lerobot-v2.1": "uwm_data.formats.lerobot_v21",
    "rlds": "uwm_data.formats.rlds",
    "videos": "uwm_data.formats.videos",
}


@dataclass(frozen=True)
class RawEpisode:
    """One episode: arrays (frames, *shape) per stream as `EpisodeStore.append` takes them, and JSON-able metadata."""

    arrays: dict[str, np.ndarray]
    meta: dict = field(default_factory=dict)


class Source(Protocol):
    """A dataset of some format, open for reading. Pickles; files open lazily in each process."""

    streams: dict[str, StreamSpec]
    card: dict
    left_out: Sequence[str]  # what it holds and an episode store cannot, in words

    def __len__(self) -> int:
        """Episodes, in the source's own order."""

    def read(self, index: int) -> RawEpisode:
        """One whole episode; FormatError names file, episode and field. Memory grows with the episode, not the dataset."""

    def close(self) -> None:
        """Let go of files."""


class Sink(Protocol):
    """A dataset of some format, being written, one episode after another."""

    left_out: Sequence[str]  # what the streams, card or metadata hold and this format cannot, in words

    def __len__(self) -> int:
        """Episodes that are safe on disk, those of an interrupted earlier call included."""

    def encoder(self) -> Callable[[RawEpisode], Any]:
        """A picklable function for worker processes: it does the costly part (compressing, encoding video)."""

    def append(self, encoded: Any) -> None:
        """Add what the encoder made; when this returns, the episode survives a crash."""

    def close(self) -> None:
        """Bring what the format keeps about the whole (counts, statistics, splits) up to date, and let go of files."""


def module_of(name: str, formats: Mapping[str, str] = FORMATS) -> ModuleType:
    """The module of a format; FormatError lists the known ones."""
    if name not in formats:
        raise FormatError(f"unknown format {name!r}; there are {', '.join(sorted(formats))}")
    return import_module(formats[name])


def recognised(path: str | Path, formats: Mapping[str, str] = FORMATS) -> str:
    """The name of the format that is at `path`; FormatError when there is none, or nothing."""
    path = Path(path)
    if not path.exists():
        raise FormatError(f"{path} does not exist")
    for name in formats:
        if module_of(name, formats).recognise(path):
            return name
    raise FormatError(f"{path} is not a dataset that is known here ({', '.join(formats)}); name its format with --from if it is one")
