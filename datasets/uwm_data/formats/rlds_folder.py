"""Where the records of an RLDS dataset lie: its version folder, its splits, its shards and what dataset_info.json says of them.

<name>/<version>/  features.json  dataset_info.json  <name>-<split>.tfrecord-00000-of-00012 ...
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from uwm_data.errors import FormatError
from uwm_data.formats.rlds_features import FEATURES_FILE, read_json
from uwm_data.formats.tfrecord import record_borders

INFO_FILE = "dataset_info.json"
DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_SHARD = re.compile(r"(?P<name>.+)-(?P<split>[^-]+)\.tfrecord-\d{5,}-of-(?P<count>\d{5,})")
_VARIABLE = re.compile(r"\$?\{(\w+)\}")


@dataclass(frozen=True)
class Split:
    """Some of the episodes: shard files in order, and the records that each must have (none where it is not told)."""

    name: str
    files: tuple[Path, ...]
    lengths: tuple[int, ...] = ()


def version_folder(path: Path) -> Path | None:
    """The folder with features.json at `path`, or one or two levels below; None when there is none.

    FormatError when there are several: versions, or configurations, are different datasets.
    """
    for pattern in ("", "*/", "*/*/"):
        found = sorted(file.parent for file in path.glob(pattern + FEATURES_FILE) if file.is_file())
        if len(found) > 1:
            raise FormatError(f"{path} holds several datasets: {', '.join(str(f.relative_to(path)) for f in found[:8])}; name one of them")
        if found:
            return found[0]
    return None


def dataset_of(folder: Path) -> tuple[str, str, list[Split]]:
    """(name, version, splits) from dataset_info.json or, where that is missing, from the names of the shards."""
    if not (folder / INFO_FILE).is_file():
        return _from_names(folder)
    info = read_json(folder / INFO_FILE)
    file_format = info.get("fileFormat") or "tfrecord"
    if file_format != "tfrecord":
        raise FormatError(
            f"{folder} keeps its episodes as {file_format!r}; only TFRecord shards are read: write the dataset again as tfrecord"
        )
    name, version = str(info.get("name") or folder.parent.name), str(info.get("version") or "unknown")
    try:
        splits = [_split(folder, name, dict(split)) for split in info.get("splits", [])]
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{folder / INFO_FILE}: the splits cannot be understood ({error})") from error
    return name, version, splits


def _split(folder: Path, dataset: str, split: dict) -> Split:
    name, lengths = str(split["name"]), tuple(int(length) for length in split.get("shardLengths", []))
    template = split.get("filepathTemplate") or DEFAULT_TEMPLATE
    return Split(name, tuple(folder / _file_name(template, dataset, name, shard, len(lengths)) for shard in range(len(lengths))), lengths)


def _file_name(template: str, dataset: str, split: str, shard: int, shards: int) -> str:
    values = {
        "DATASET": dataset,
        "SPLIT": split,
        "FILEFORMAT": "tfrecord",
        "SHARD_INDEX": f"{shard:05d}",
        "NUM_SHARDS": f"{shards:05d}",
        "SHARD_X_OF_Y": f"{shard:05d}-of-{shards:05d}",
    }
    # Replaced by hand: `str.format` would let a template reach into Python objects.
    name = _VARIABLE.sub(lambda found: values.get(found[1], found[0]), template)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise FormatError(f"{INFO_FILE} names the file {name!r}, which lies outside the dataset")
    return name


def _from_names(folder: Path) -> tuple[str, str, list[Split]]:
    splits: dict[str, list[Path]] = {}
    name = folder.parent.name
    for file in sorted(folder.glob("*.tfrecord-*-of-*")):
        if found := _SHARD.fullmatch(file.name):
            name = found["name"]
            splits.setdefault(found["split"], []).append(file)
    for split, files in splits.items():
        count = int(_SHARD.fullmatch(files[0].name)["count"])
        if len(files) != count:
            raise FormatError(f"{folder}: split {split!r} has {len(files)} of {count} shards; copy the missing ones")
    return name, folder.name, [Split(split, tuple(files)) for split, files in splits.items()]


def chosen_splits(folder: Path, splits: Sequence[Split], wanted: str) -> tuple[list[Split], list[str]]:
    """(splits to read, what is left out) for "all" or names joined by "+".

    With "all", a split of which no file is there is left out; missing shards of a split are an error.
    """
    known = {split.name: split for split in splits}
    names = list(known) if wanted == "all" else wanted.split("+")
    if unknown := [name for name in names if name not in known]:
        raise FormatError(f"{folder} has no split {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    chosen, left_out = [], []
    for split in (known[name] for name in names):
        missing = [file.name for file in split.files if not file.is_file()]
        if not missing:
            chosen.append(split)
        elif wanted == "all" and len(missing) == len(split.files):
            left_out.append(f"split {split.name}: {INFO_FILE} tells of {sum(split.lengths)} episodes, and none of its files is there")
        else:
            raise FormatError(
                f"{folder}: split {split.name!r} lacks {len(missing)} of {len(split.files)} shards, {missing[0]} the first; copy them"
            )
    if not chosen or not any(split.files for split in chosen):
        raise FormatError(
            f"{folder} has a {FEATURES_FILE} and no finished shards (*.tfrecord-00000-of-...): copy them too or, if its conversion was "
            "interrupted, run that again"
        )
    return chosen, left_out


@dataclass(frozen=True)
class Place:
    """One record: its split, its number there, its file and borders."""

    split: str
    number: int
    file: Path
    start: int
    stop: int


class Records:
    """All records of some splits, one after another, found by their headers when this is made."""

    def __init__(self, splits: Sequence[Split]):
        self._files, self._splits, self._borders, firsts, within = [], [], [], [0], []
        for split in splits:
            number = 0
            for shard, file in enumerate(split.files):
                borders = record_borders(file)
                count = len(borders) - 1
                if split.lengths and split.lengths[shard] != count:
                    raise FormatError(f"{file} has {count} records, and {INFO_FILE} says {split.lengths[shard]}; copy both again")
                self._files.append(file)
                self._splits.append(split.name)
                self._borders.append(borders)
                within.append(number)
                number += count
                firsts.append(firsts[-1] + count)
        self._firsts, self._within = np.array(firsts, np.int64), within

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def place(self, index: int) -> Place:
        """Where record `index` stands."""
        shard = int(np.searchsorted(self._firsts, index, side="right")) - 1
        at = index - int(self._firsts[shard])
        start, stop = (int(border) for border in self._borders[shard][at : at + 2])
        return Place(self._splits[shard], self._within[shard] + at, self._files[shard], start, stop)
