"""A folder of plain videos (or of folders of numbered pictures) as episodes without actions.

    recordings/
      kitchen/001.mp4   kitchen/001.txt        the instruction, if there is one
      kitchen/002.mkv
      instructions.jsonl                       or here: {"video": "kitchen/002.mkv", "instruction": "open the drawer"}
      frames/take_7/0001.png, 0002.png ...     a folder of numbered pictures; needs rate_hz

One size and one rate make a dataset. Without `size` and `rate_hz` the most frequent ones count, and what differs is left
out; with them everything is fitted. Long videos are cut into episodes, so memory stays bounded.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from uwm_data.errors import FormatError
from uwm_data.formats import RawEpisode
from uwm_data.streams import StreamSpec

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".mts", ".m2ts", ".wmv", ".flv", ".ogv", ".gif")
PICTURES = (".png", ".jpg", ".jpeg")
EPISODE_BYTES = 256 << 20
_LOOKED_AT = 20_000  # names, before a folder counts as none of ours
_MAX_TEXT = 10_000
_TEXT_KEYS = ("instruction", "text", "task")
_SLACK = 1e-6  # of one frame


def recognise(path: str | Path) -> bool:
    """Whether there is a video file at `path` or somewhere below it; looks at names only."""
    path = Path(path)
    if path.is_file():
        return path.suffix.lower() in VIDEOS
    names = (name for number, (_, _, files) in zip(range(_LOOKED_AT), os.walk(path), strict=False) for name in files)
    return any(Path(name).suffix.lower() in VIDEOS for _, name in zip(range(_LOOKED_AT), names, strict=False))


def read(
    path: str | Path,
    size: tuple[int, int] | None = None,
    rate_hz: float | None = None,
    frames_per_episode: int | None = None,
    stream: str = "video",
) -> VideoFolder:
    """The videos at `path` as a Source of one stream.

    `size` (height, width) scales and crops all videos to it; `rate_hz` takes the newest frame at each tick. Longer videos
    are cut every `frames_per_episode` frames (by default about 256 MB of them).
    """
    return VideoFolder(Path(path), size, rate_hz, frames_per_episode, stream)


def write(*_: Any, **__: Any) -> None:
    """Plain videos hold no actions and no states; always a FormatError that names formats which do."""
    raise FormatError("plain videos are only read; write `lerobot`, which keeps its cameras as mp4, or `store`")


@dataclass(frozen=True)
class Clip:
    """One video, or one folder of numbered pictures: `frames` of `size` (upright) at `rate`; `pictures` holds names in order."""

    name: str
    frames: int
    size: tuple[int, int]
    rate: Fraction | None
    quarter_turns: int = 0
    pictures: tuple[str, ...] = ()


class VideoFolder:
    """A folder of videos, open for reading (see `Source`). Files that cannot be used are told in `left_out`, with the reason."""

    def __init__(self, path: Path, size: tuple[int, int] | None, rate_hz: float | None, frames_per_episode: int | None, stream: str):
        self.path = path if path.is_dir() else path.parent
        self.left_out: list[str] = []
        clips = list(self._clips([path] if path.is_file() else None))
        if not clips:
            raise FormatError(f"{path} holds no video that can be read. {'; '.join(self.left_out[:20])}")
        self._size = _checked_size(size) if size else _most_frequent(clip.size for clip in clips)
        rates = [clip.rate for clip in clips if clip.rate]
        if rate_hz is None and not rates:
            raise FormatError(f"{path} holds folders of pictures only, which tell no rate; give rate_hz=...")
        self._rate = _checked_rate(rate_hz) if rate_hz else _most_frequent(rates)
        chosen = [clip for clip in clips if self._suits(clip, size is not None, rate_hz is not None)]
        spec = StreamSpec((*self._size, 3), "uint8", float(self._rate), "video", closing=False)
        per_episode = frames_per_episode or max(1, EPISODE_BYTES // spec.frame_bytes)
        self._episodes = [(clip, part) for clip in chosen for part in _parts(self._length(clip), per_episode)]
        self._stream, self.streams = stream, {stream: spec}
        self._instructions = self._read_instructions()
        self.card = {
            "image_orientation": "upright",
            "rate_hz": spec.rate_hz,
            "env": "unknown",
            "robot": "unknown",
            "policy": {"cameras": [stream], "proprio": [], "action": None},
            "source": {"format": "videos", "version": "1", "name": self.path.name, "names": {stream: stream}},
        }

    def __len__(self) -> int:
        return len(self._episodes)

    # ---- finding -------------------------------------------------------------------------------------------------

    def _clips(self, files: list[Path] | None) -> Iterator[Clip]:
        for place in files if files is not None else _places(self.path):
            name = place.relative_to(self.path).as_posix()
            try:
                yield self._pictures(place, name) if place.is_dir() else _video(place, name)
            except (FormatError, OSError) as error:
                self.left_out.append(f"{name}: {error}")

    def _pictures(self, folder: Path, name: str) -> Clip:
        from uwm_data.formats import pictures

        names = _numbered(folder)
        height, width = pictures.size_of((folder / names[0]).read_bytes(), f"{name}/{names[0]}")
        return Clip(name, len(names), (height, width), None, pictures=tuple(names))

    def _suits(self, clip: Clip, any_size: bool, any_rate: bool) -> bool:
        if clip.size != self._size and (clip.pictures or not any_size):
            ours, wanted = (f"{height} x {width}" for height, width in (clip.size, self._size))
            self.left_out.append(f"{clip.name}: {ours}, expected {wanted}; size=... fits videos, not pictures")
            return False
        if clip.rate and clip.rate != self._rate and not any_rate:
            self.left_out.append(f"{clip.name}: {float(clip.rate):g} Hz, expected {float(self._rate):g} Hz; rate_hz=... fits all")
            return False
        return True

    def _length(self, clip: Clip) -> int:
        """Frames of a clip at the common rate: those whose time is not behind its last frame."""
        return int((clip.frames - 1) * (self._rate / (clip.rate or self._rate))) + 1

    def _read_instructions(self) -> dict[str, str]:
        found = {}
        for clip in {clip.name: clip for clip, _ in self._episodes}.values():
            beside = (self.path / clip.name).with_suffix(".txt")
            if beside.is_file():
                found[clip.name] = beside.read_text(encoding="utf-8", errors="replace")[:_MAX_TEXT].strip()
        for listing in sorted(self.path.rglob("instructions.jsonl")):
            found |= self._listed(listing)
        return {name: text for name, text in found.items() if text}

    def _listed(self, listing: Path) -> dict[str, str]:
        found = {}
        with open(listing, encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                try:
                    told = json.loads(line)
                    name = (listing.parent / str(told["video"])).relative_to(self.path).as_posix()
                    found[name] = str(next(told[key] for key in _TEXT_KEYS if key in told))[:_MAX_TEXT].strip()
                except (ValueError, KeyError, TypeError, StopIteration, RecursionError):
                    if line.strip():
                        where = listing.relative_to(self.path).as_posix()
                        self.left_out.append(f'{where}, line {number}: expected {{"video": name, "instruction": text}}')
        return found

    # ---- reading -------------------------------------------------------------------------------------------------

    def read(self, index: int) -> RawEpisode:
        """Episode `index`: frames, and the instruction if there is one."""
        if not 0 <= index < len(self):
            raise FormatError(f"{self.path} has episodes 0 to {len(self) - 1}, asked for {index}")
        clip, part = self._episodes[index]
        ratio = (clip.rate or self._rate) / self._rate
        numbers = np.minimum(np.floor(np.arange(part.start, part.stop) * float(ratio) + _SLACK).astype(np.int64), clip.frames - 1)
        frames = self._decoded_pictures(clip, numbers) if clip.pictures else self._decoded(clip, numbers)
        meta: dict[str, Any] = {"source": {"format": "videos", "name": clip.name, "first_frame": int(numbers[0])}}
        text = self._instructions.get(clip.name)
        return RawEpisode({self._stream: frames}, {**meta, "task": text, "instruction": text} if text else meta)

    def _decoded(self, clip: Clip, numbers: np.ndarray) -> np.ndarray:
        from uwm_data.formats.video import VideoFile

        with VideoFile(self.path / clip.name) as video:
            return video.pick(numbers, self._size, clip.quarter_turns)

    def _decoded_pictures(self, clip: Clip, numbers: np.ndarray) -> np.ndarray:
        from uwm_data.formats import pictures

        frames = np.empty((len(numbers), *self._size, 3), np.uint8)
        for place, number in enumerate(numbers):
            file = self.path / clip.name / clip.pictures[number]
            try:
                data = file.read_bytes()
            except OSError as error:
                raise FormatError(f"{file} cannot be read: {error.strerror or error}") from error
            frames[place] = pictures.decode(data, (*self._size, 3), str(file))
        return frames

    def close(self) -> None:
        """Nothing stays open between episodes."""


def _places(root: Path) -> Iterator[Path]:
    """Videos, and folders of pictures, in order of their names."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        videos = sorted((name for name in files if Path(name).suffix.lower() in VIDEOS and not name.startswith(".")), key=_by_number)
        yield from (Path(folder, name) for name in videos)
        if not videos and sum(Path(name).suffix.lower() in PICTURES for name in files) > 1:
            yield Path(folder)


def _by_number(name: str) -> list:
    """Names in the order of the numbers in them: clip_2 before clip_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d{1,18})", name)]


def _numbered(folder: Path) -> list[str]:
    names = sorted((name for name in os.listdir(folder) if Path(name).suffix.lower() in PICTURES), key=_by_number)
    numbers = [int(match[1]) if (match := re.search(r"(\d{1,18})\D*$", name)) else -1 for name in names]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))) or numbers[0] < 0:
        raise FormatError("its pictures are not numbered one after another, so their order is not told")
    return names


def _video(path: Path, name: str) -> Clip:
    from uwm_data.formats.video import VideoFile

    if not path.stat().st_size:
        raise FormatError("the file is empty")
    with VideoFile(path) as video:
        turns, frames = video.quarter_turns(), video.count()
        clip = Clip(name, frames, (video.height, video.width), video.rate, turns)
    return replace(clip, size=clip.size[::-1]) if turns % 2 else clip


def _parts(frames: int, at_most: int) -> list[range]:
    """Frames 0 ... `frames` - 1 in as few parts as fit, all about equally long."""
    if at_most < 1:
        raise FormatError(f"frames_per_episode must be at least 1, got {at_most}")
    ends = np.linspace(0, frames, -(-frames // at_most) + 1).round().astype(int).tolist()
    return [range(start, stop) for start, stop in pairwise(ends)]


def _most_frequent(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _checked_size(size: Any) -> tuple[int, int]:
    height, width = (int(side) for side in size)
    if not (0 < height <= 8192 and 0 < width <= 8192):
        raise FormatError(f"size must be height and width in pixels, got {size}")
    return height, width


def _checked_rate(rate_hz: float) -> Fraction:
    from uwm_data.formats.video import exact_rate

    if not 0 < float(rate_hz) < 1e5:
        raise FormatError(f"rate_hz must be positive, got {rate_hz}")
    return exact_rate(float(rate_hz))
