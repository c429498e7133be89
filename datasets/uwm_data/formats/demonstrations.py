"""What the HDF5 formats of demonstrations share: `data/demo_<i>` groups, each with datasets that have a row a tick.

    data/demo_0   actions (T, A)   rewards (T,)   states (T, S)   obs/<key> (T, ...)   anything else
                  ^ timed: T rows in every demo: a stream                              ^ untimed: small ones go into the metadata

Files are surveyed once: every demo must agree on type and shape of what becomes a stream. Reading takes one demo at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from uwm_data.errors import FormatError, StoreError
from uwm_data.formats import RawEpisode
from uwm_data.formats.hdf5 import Hdf5File, Stored
from uwm_data.streams import StreamSpec, check_episode

DEMO = re.compile(r"demo_([0-9]{1,18})")
MOST_UNTIMED_BYTES = 64 << 10  # a dataset without a row a tick: larger ones do not belong into metadata


class Demo(NamedTuple):
    """A demonstration: number of its file, its name there, its ticks, and the datasets in it by path from the demo."""

    file: int
    name: str
    ticks: int
    datasets: dict[str, Stored]

    @property
    def group(self) -> str:
        """Its path in the file."""
        return f"data/{self.name}"


class Column(NamedTuple):
    """Where the frames of a stream stand in a demo; `closing` is the dataset that ends with the frame after the last action."""

    path: str
    closing: str = ""
    is_checked: bool = True
    upside_down: bool = False
    skipped: int = 0  # rows at the beginning that are left out


@dataclass
class Survey:
    """What the demos hold: timed datasets (frame shape, dtype, in how many demos), untimed ones, and what is left out."""

    timed: dict[str, tuple[tuple[int, ...], str, int]] = field(default_factory=dict)
    untimed: set[str] = field(default_factory=set)
    left_out: list[str] = field(default_factory=list)


def opened(path: str | Path) -> Hdf5File:
    """A file with a group `data`; FormatError otherwise."""
    file = Hdf5File(path)
    if "data" not in file.structure.groups:
        raise FormatError(f"{path} has no group `data` and so no demonstrations; it holds {list(file.structure.groups[''])[:8]}")
    return file


def demos_of(file: Hdf5File, number: int = 0, leave_out: str | Collection[str] = ()) -> list[Demo]:
    """The demonstrations of a file, in the order of their numbers; those without a tick are kept, with 0 ticks.

    `leave_out` are paths inside a demonstration ("obs/object"), or one text with commas between them, that are not looked at.
    """
    leave_out = leave_out.split(",") if isinstance(leave_out, str) else leave_out
    names = [name for name in file.structure.groups["data"] if DEMO.fullmatch(name)]
    if not names:
        raise FormatError(f"{file.path}: `data` holds no demonstration (demo_0, demo_1, ...)")
    return [_demo(file, number, name, leave_out) for name in sorted(names, key=lambda name: int(name[5:]))]


def _demo(file: Hdf5File, number: int, name: str, leave_out: Collection[str]) -> Demo:
    group = f"data/{name}"
    if group not in file.structure.groups:
        raise FormatError(f"{file.path}: {group} is {file.structure.refused.get(group, 'a dataset')}, expected a demonstration's group")
    datasets = file.below(group, leave_out)
    if "actions" not in datasets or not datasets["actions"].shape:
        raise FormatError(f"{file.path}: {name} has no dataset `actions` with a row a tick")
    ticks = datasets["actions"].shape[0]
    told = file.attribute(group, "num_samples", ticks)
    if told != ticks:
        raise FormatError(f"{file.path}: {name} has {ticks} actions, and num_samples says {told}; is the file complete?")
    return Demo(number, name, ticks, datasets)


def surveyed(files: Sequence[Hdf5File], demos: Iterable[Demo], is_timed: Callable[[str], bool], may_differ: Collection[str] = ()) -> Survey:
    """Sort the datasets of all demos. `is_timed` tells which must have a row a tick; `may_differ` which may change their shape."""
    found: dict[str, list[tuple[Demo, Stored]]] = {}
    for demo in demos:
        for path, stored in demo.datasets.items():
            found.setdefault(path, []).append((demo, stored))
    survey = Survey()
    for path, places in found.items():
        odd = next(((demo, stored) for demo, stored in places if stored.shape[:1] != (demo.ticks,)), None)
        if odd and is_timed(path):
            demo, stored = odd
            rows = stored.shape[0] if stored.shape else "no"
            raise FormatError(
                f"{files[demo.file].path}: {demo.name}: {path} has {rows} rows, expected one for each of its {demo.ticks} actions"
            )
        _sort(survey, files, path, places, bool(odd), path in may_differ)
    return survey


def _sort(survey: Survey, files: Sequence[Hdf5File], path: str, places: list[tuple[Demo, Stored]], is_untimed: bool, may_differ: bool):
    first_demo, first = places[0]
    odd = next(((demo, stored) for demo, stored in places if _frame(stored) != _frame(first)), None)
    if is_untimed or _frame(first)[1] == "text" or 0 in first.shape[1:]:
        if max(_bytes(stored) for _, stored in places) > MOST_UNTIMED_BYTES:
            survey.left_out.append(f"{path}: it has no row a tick and is too large for metadata")
        else:
            survey.untimed.add(path)
    elif not odd:
        survey.timed[path] = (*_frame(first), len(places))
    elif may_differ:
        survey.left_out.append(f"{path}: frames of {first.shape[1:]} in {first_demo.name} and of {odd[1].shape[1:]} in {odd[0].name}")
    else:
        raise FormatError(
            f"{files[odd[0].file].path}: {path} is {_frame(odd[1])} in {odd[0].name} and {_frame(first)} in {first_demo.name}, "
            f"which cannot be one stream; read it with leave_out=({path!r},)"
        )


def _frame(stored: Stored) -> tuple[tuple[int, ...], str]:
    plain = stored.dtype if stored.dtype == "text" or np.dtype(stored.dtype).kind == "S" else np.dtype(stored.dtype).name
    return stored.shape[1:], "text" if plain[:2] == "|S" else plain


def _bytes(stored: Stored) -> int:
    return int(np.prod(stored.shape, dtype=object)) * (64 if stored.dtype == "text" else np.dtype(stored.dtype).itemsize)


def stream_names(paths: Iterable[str], chosen: Mapping[str, str]) -> dict[str, str]:
    """{path: legal stream name}: the `chosen` one, else after the path's last part; a second one of a name gets a number."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in sorted(paths, key=lambda path: path not in chosen):
        base = re.sub(r"\W", "_", chosen.get(path) or path.removeprefix("obs/"), flags=re.ASCII)
        base = base if re.match(r"[A-Za-z]", base) else f"x_{base}"
        names[path] = next(name for name in chain([base], (f"{base}_{number}" for number in count(2))) if name not in taken)
        taken.add(names[path])
    return names


class DemoSource:
    """Demonstrations of one or more HDF5 files as episodes (the `Source` of formats). `describe(file, demo)` makes the metadata."""

    def __init__(
        self,
        files: Sequence[Hdf5File],
        demos: Sequence[Demo],
        streams: Mapping[str, StreamSpec],
        columns: Mapping[str, Column],
        describe: Callable[[Hdf5File, Demo, dict[str, np.ndarray]], dict],
        card: dict,
        left_out: Sequence[str],
    ):
        self.files = list(files)
        self.streams = dict(streams)
        self.card = card
        self.left_out = list(left_out)
        self._demos = list(demos)
        self._columns = dict(columns)
        self._describe = describe

    def __len__(self) -> int:
        return len(self._demos)

    def read(self, index: int) -> RawEpisode:
        """One demonstration; FormatError names file, demo and dataset."""
        if not 0 <= index < len(self):
            raise FormatError(f"{self.files[0].path} has episodes 0 to {len(self) - 1}, asked for {index}")
        demo = self._demos[index]
        file = self.files[demo.file]
        arrays = {name: self._frames(file, demo, column, self.streams[name]) for name, column in self._columns.items()}
        try:
            arrays = check_episode(self.streams, arrays)
        except StoreError as error:
            raise FormatError(f"{file.path}: {demo.name}: {error}") from error
        return RawEpisode(arrays, self._describe(file, demo, arrays))

    def _frames(self, file: Hdf5File, demo: Demo, column: Column, spec: StreamSpec) -> np.ndarray:
        if column.path not in demo.datasets:
            return np.empty((0, *spec.shape), spec.dtype)
        frames = file.array(f"{demo.group}/{column.path}")
        if column.closing:
            frames = _with_closing(file, demo, column, frames)
        frames = frames[column.skipped :]
        return np.ascontiguousarray(frames[:, ::-1]) if column.upside_down else frames

    def close(self) -> None:
        """Let go of the files."""
        for file in self.files:
            file.close()


def _with_closing(file: Hdf5File, demo: Demo, column: Column, frames: np.ndarray) -> np.ndarray:
    """The T frames and the one after the last action; FormatError where the two datasets do not tell the same story."""
    following = file.array(f"{demo.group}/{column.closing}", slice(0 if column.is_checked else demo.ticks - 1, demo.ticks))
    if column.is_checked and not same(following[:-1], frames[1:]):
        raise FormatError(
            f"{file.path}: {demo.name}: {column.closing} is not {column.path} one tick later, so the frame after the last action is not "
            'certain; read it with next_obs="ignore"'
        )
    return np.concatenate([frames, following[-1:]])


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays agree in every bit that counts (NaN equals NaN)."""
    return one.shape == other.shape and one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def agrees_when_sampled(file: Hdf5File, demo: Demo, column: Column, most_bytes: int = 1 << 20) -> bool:
    """Whether `closing` is `path` one tick later: all of it where it is small, else three frames."""
    stored = demo.datasets[column.path]
    if demo.datasets[column.closing].shape != stored.shape:
        return False
    if _bytes(stored) <= most_bytes:
        places = [slice(0, demo.ticks - 1)]
    else:
        places = [slice(tick, tick + 1) for tick in sorted({0, (demo.ticks - 1) // 2, demo.ticks - 2}) if 0 <= tick < demo.ticks - 1]
    later = [slice(place.start + 1, place.stop + 1) for place in places]
    path, closing = f"{demo.group}/{column.path}", f"{demo.group}/{column.closing}"
    return all(same(file.array(closing, now), file.array(path, then)) for now, then in zip(places, later, strict=True))


def evenly(demos: Sequence[Demo], count: int) -> list[Demo]:
    """Some demos, first and last among them."""
    return [demos[place] for place in np.unique(np.linspace(0, len(demos) - 1, min(count, len(demos))).round().astype(int))]


def stale_total(file: Hdf5File, demos: Sequence[Demo]) -> str:
    """ "" or what is wrong with the attribute `total`, which counts the ticks of all demos."""
    held = sum(demo.ticks for demo in demos)
    told = file.attribute("data", "total", held)
    if told == held:
        return ""
    missing = [f"demo_{a + 1}" for a, b in pairwise(int(demo.name[5:]) for demo in demos) if b != a + 1][:3]
    gaps = f" (numbers are missing from {', '.join(missing)} on)" if missing else ""
    return f"{file.path}: the attribute total says {told} ticks, its {len(demos)} demos have {held}{gaps}"
