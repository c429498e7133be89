"""What both versions of LeRobot's format tell about themselves in JSON, and none of it believed: version, rate, paths, counts.

The versions differ in where an episode lies. Each tells it as `Place`s:

    Place   rows first_row ... first_row + length - 1 of a table, and per camera a video and the frame in it to begin with
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from uwm_data.errors import FormatError

MAX_JSON_BYTES = 64 << 20
MAX_EPISODES = 1_000_000
TOLERANCE_S = 1e-4  # how far a time may be from frame / fps; LeRobot's own
OURS = "meta/uwm"  # what we keep beside their files: the card, and metadata of episodes
_WIDTH = re.compile(r"0?\d?d?")


@dataclass(frozen=True)
class Place:
    """Where an episode lies. `index` is the number of its first row in the whole dataset; `videos` lacks missing cameras."""

    number: int
    length: int
    tasks: tuple[str, ...]
    table: str
    first_row: int
    index: int
    videos: dict[str, tuple[str, int]] = field(default_factory=dict)


def load_json(path: Path, at_most: int = MAX_JSON_BYTES) -> Any:
    """A JSON file; FormatError when it is missing, too large or not JSON."""
    try:
        with open(path, "rb") as file:
            data = file.read(at_most + 1)
        if len(data) > at_most:
            raise FormatError(f"{path} is larger than {at_most >> 20} MB, which no such file is")
        return json.loads(data)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error}") from error


def load_lines(path: Path) -> list[dict]:
    """A file of one JSON object per line."""
    return [_object(line, path) for line in _lines(path) if line.strip()]


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            yield from file
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}") from error


def _object(line: bytes, path: Path) -> dict:
    try:
        told = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} has a line that is not JSON: {error}") from error
    if not isinstance(told, dict):
        raise FormatError(f"{path}: every line must be a JSON object")
    return told


class Notes:
    """What we noted of each episode (`meta/uwm/episodes.jsonl`): lengths and missing streams in memory, metadata on demand."""

    def __init__(self, path: Path):
        self.path = path
        self.lengths: list[Any] = []
        self.missing: list[frozenset[str]] = []
        self._offsets: list[int] = []
        offset = 0
        for line in _lines(path):
            told = _object(line, path)
            self.lengths.append(told.get("length"))
            self.missing.append(frozenset(map(str, told.get("missing") or ())))
            self._offsets.append(offset)
            offset += len(line)

    def meta(self, index: int) -> dict:
        """The metadata with which an episode was appended."""
        with open(self.path, "rb") as file:
            file.seek(self._offsets[index])
            return dict(_object(file.readline(), self.path).get("meta") or {})


def version_told(path: Path) -> tuple[int, int] | None:
    """The format's version in meta/info.json, or None where there is no LeRobot dataset; never raises."""
    try:
        told = load_json(Path(path) / "meta" / "info.json")["codebase_version"]
        major, _, minor = str(told).removeprefix("v").partition(".")
        return int(major), int(re.match(r"\d*", minor).group() or 0)
    except (FormatError, OSError, KeyError, TypeError, ValueError):
        return None


def known_version(path: Path, known: Sequence[tuple[int, int]], advice: str) -> tuple[dict, str]:
    """info.json and its version; FormatError where there is no dataset, or of a version that is not among the known."""
    info, version = load_json(Path(path) / "meta" / "info.json"), version_told(path)
    if version is None or not isinstance(info, dict):
        raise FormatError(f"{path} is not a LeRobot dataset: meta/info.json tells no codebase_version")
    if version not in known:
        ours = " and ".join(f"v{major}.{minor}" for major, minor in known)
        raise FormatError(f"{path} is LeRobot {info['codebase_version']}; {ours} is read here. {advice}")
    return info, f"v{version[0]}.{version[1]}"


def filled(template: Any, **numbers: int | str) -> str:
    """A path from a template of info.json, like "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet".

    Only the given names may stand in it, with a width at most; the path must stay inside the dataset.
    """
    if not isinstance(template, str):
        raise FormatError(f"info.json: a path template must be text, got {template!r}")
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise FormatError(f"info.json: {template!r} is not a path template: {error}") from error
    for _, name, width, conversion in pieces:
        if name is not None and (name not in numbers or conversion or not _WIDTH.fullmatch(width)):
            raise FormatError(f"info.json: {template!r} may name {', '.join(numbers)} with a width like 03d, nothing else")
    try:
        path = PurePosixPath(template.format(**numbers))
    except ValueError as error:
        raise FormatError(f"info.json: {template!r} cannot be filled: {error}") from error
    if path.is_absolute() or ".." in path.parts or "\0" in str(path):
        raise FormatError(f"info.json: {str(path)!r} leads out of the dataset; nothing outside is read")
    return str(path)


def whole_number(value: Any, what: str, least: int = 0) -> int:
    """An integer that a file tells, at least `least`; FormatError says what it should be."""
    number = int(value) if isinstance(value, int) or (isinstance(value, float) and value.is_integer()) else None
    if number is None or isinstance(value, bool) or not least <= number < 1 << 53:
        raise FormatError(f"{what} must be a whole number of at least {least}, got {value!r}")
    return number


def check_totals(info: Mapping[str, Any], numbers: Sequence[int], lengths: Sequence[int], where: str) -> None:
    """Episodes must be numbered 0, 1, 2, ... in this order, and be as many and as long together as info.json tells."""
    for due, number in enumerate(numbers):
        if number != due:
            raise FormatError(f"{where}: episode {number} stands where episode {due} is due; episodes are missing or not in order")
    for key, found in (("total_episodes", len(lengths)), ("total_frames", sum(lengths))):
        if key in info and whole_number(info[key], f"info.json: {key}") != found:
            raise FormatError(f"info.json tells {key} {info[key]}, {where} has {found}; one of them is cut off or out of date")
    if not lengths:
        raise FormatError(f"{where} lists no episode")


def rate_of(info: Mapping[str, Any]) -> float:
    """Frames per second."""
    try:
        rate = float(info["fps"])
    except (KeyError, TypeError, ValueError, OverflowError):
        rate = 0.0
    if not 0 < rate < 1e5:
        raise FormatError(f"info.json: fps must be a positive number, got {info.get('fps')!r}")
    return rate


def frame_at(seconds: Any, rate_hz: float, what: str) -> int:
    """The number of the frame at a time that a table tells; FormatError where none stands there."""
    if not isinstance(seconds, int | float) or not 0 <= seconds < 1e9:
        raise FormatError(f"{what} must be seconds, got {seconds!r}")
    number = round(seconds * rate_hz)
    if abs(seconds - number / rate_hz) > max(TOLERANCE_S, 1e-9 * seconds):
        raise FormatError(f"{what} is {seconds} s, where no frame stands at {rate_hz:g} frames a second")
    return number


def video_features(info: Mapping[str, Any]) -> list[str]:
    """Keys of the features that are videos."""
    features = info.get("features")
    told = features.items() if isinstance(features, dict) else ()
    return [key for key, feature in told if isinstance(feature, dict) and feature.get("dtype") == "video"]


def splits_of(info: Mapping[str, Any], left_out: list[str]) -> dict[str, range]:
    """The episodes of each split, from "0:40"; splits that are told otherwise are left out."""
    found = {}
    told = info.get("splits")
    for name, span in told.items() if isinstance(told, dict) else ():
        match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", str(span))
        if match:
            found[name] = range(int(match[1]), int(match[2]))
        else:
            left_out.append(f"split {name!r}: {span!r} is not first:end")
    return found
