"""LeRobotDataset v3.0: many episodes in one parquet table, many in one mp4 per camera.

    meta/info.json   meta/stats.json   meta/tasks.parquet
    meta/episodes/chunk-000/file-000.parquet          where each episode lies
    data/chunk-000/file-000.parquet
    videos/<feature>/chunk-000/file-000.mp4

Reading: every row and frame is found through the table of episodes, so memory holds one episode. LeRobot has T rows an
episode and no observation after the last action. Writing: see `lerobot_writing`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uwm_data.errors import FormatError
from uwm_data.formats.lerobot_info import (
    MAX_EPISODES,
    TOLERANCE_S,
    Place,
    check_totals,
    filled,
    frame_at,
    known_version,
    rate_of,
    version_told,
    video_features,
    whole_number,
)
from uwm_data.streams import StreamSpec

VERSIONS = ((3, 0),)
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


def recognise(path: str | Path) -> bool:
    """Whether a LeRobot dataset of version 3 or later stands there (a later one is refused by name when it is read)."""
    version = version_told(Path(path))
    return version is not None and version[0] >= 3


def read(path: str | Path, tolerance_s: float = TOLERANCE_S):
    """The dataset at `path` as a Source. `tolerance_s` is how far a row's timestamp may be from frame / fps."""
    from uwm_data.formats.lerobot_reading import LeRobotSource

    root = Path(path)
    info, version = known_version(root, VERSIONS, "For older ones name the format lerobot-v2.1; a newer one needs a newer uwm.")
    return LeRobotSource(root, version, info, _tasks(root), _places(root, info), tolerance_s)


def write(
    path: str | Path,
    streams: Mapping[str, StreamSpec],
    card: Mapping[str, Any],
    codec: str | None = None,
    crf: int | None = None,
    data_files_size_in_mb: float = 100,
    video_files_size_in_mb: float = 200,
    chunks_size: int = 1000,
):
    """A Sink that writes v3.0 at `path`, or continues what an earlier call with the same arguments began.

    `codec` is h264, av1, h264-lossless or png (pictures inside the tables; always for cameras that the codec cannot hold);
    by default what the card's source had, else h264. `crf` is the codec's quality, lower is better. A file that would grow
    over its size in MB is followed by the next; a folder holds up to `chunks_size` files.
    """
    from uwm_data.formats.lerobot_files import ChunkedFiles
    from uwm_data.formats.lerobot_writing import LeRobotSink

    files = ChunkedFiles(Path(path), data_files_size_in_mb, video_files_size_in_mb, chunks_size)
    return LeRobotSink(Path(path), streams, card, files, codec, crf)


def _tasks(root: Path) -> dict[int, str]:
    from uwm_data.formats.lerobot_rows import read_whole

    table = read_whole(root / "meta" / "tasks.parquet")
    # The text is the index of a pandas frame, whose column is called so when it has no name of its own.
    texts = next((table[name] for name in ("__index_level_0__", "task") if name in table), None)
    numbers = table.get("task_index")
    if texts is None or numbers is None or not all(isinstance(text, str) for text in texts):
        raise FormatError(f"{root}/meta/tasks.parquet must hold task_index and the tasks' texts as index, found {list(table)}")
    return {whole_number(number, "tasks.parquet: task_index"): text for number, text in zip(numbers, texts, strict=True)}


def _places(root: Path, info: Mapping[str, Any]) -> list[Place]:
    from uwm_data.formats.lerobot_rows import read_whole

    table: dict[str, list] = {}
    files = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    for file in files:
        part = read_whole(file, without="stats/")
        rows = len(table.get("episode_index", ()))
        for name in {*table, *part}:
            table.setdefault(name, [None] * rows)
            table[name] += part.get(name, [None] * len(part.get("episode_index", ())))
    if not files or "episode_index" not in table or len(table["episode_index"]) > MAX_EPISODES:
        raise FormatError(f"{root}/meta/episodes must hold tables with episode_index, of up to {MAX_EPISODES} episodes")
    reader = _Episodes(root, info, table)
    places = [reader.place(row) for row in range(len(table["episode_index"]))]
    check_totals(info, [place.number for place in places], [place.length for place in places], "meta/episodes")
    return places


class _Episodes:
    """The table of episodes, row by row; keeps where each data file begins and which videos exist."""

    def __init__(self, root: Path, info: Mapping[str, Any], table: Mapping[str, list]):
        self.root, self.info, self.table = root, info, table
        self.cameras = [key for key in video_features(info) if f"videos/{key}/file_index" in table]
        self.rate_hz = rate_of(info)
        self.next_row: dict[str, int] = {}
        self.next_index = 0
        self.exists: dict[str, bool] = {}

    def place(self, row: int) -> Place:
        """Where the episode of a row lies."""
        number = self._number("episode_index", row)
        length = self._number("length", row, 1)
        start, stop = self._number("dataset_from_index", row), self._number("dataset_to_index", row)
        if (start, stop - start) != (self.next_index, length):
            raise FormatError(
                f"meta/episodes: episode {number} has length {length} and rows {start} to {stop}, expected from {self.next_index} on"
            )
        data = self._file("data", row, self.info.get("data_path", DATA))
        tasks = self._told("tasks", row) if "tasks" in self.table else []
        first = self.next_row.get(data, 0)
        self.next_row[data], self.next_index = first + length, stop
        videos = {key: found for key in self.cameras if (found := self._video(key, row, length)) is not None}
        return Place(number, length, tuple(map(str, tasks or ())), data, first, start, videos)

    def _video(self, key: str, row: int, length: int) -> tuple[str, int] | None:
        told = self.table[f"videos/{key}/file_index"][row]
        if told is None or told != told:  # pandas writes what is missing as NaN
            return None
        path = self._file(f"videos/{key}", row, self.info.get("video_path") or VIDEO, video_key=key)
        if not self.exists.setdefault(path, (self.root / path).exists()):
            return None
        what = f"meta/episodes: episode {row}, videos/{key}/"
        start = frame_at(self._told(f"videos/{key}/from_timestamp", row), self.rate_hz, f"{what}from_timestamp")
        end = self._told(f"videos/{key}/to_timestamp", row)
        if not isinstance(end, int | float) or not end * self.rate_hz - start > length - 0.5:
            raise FormatError(f"{what}to_timestamp is {end}: the video has fewer frames than the episode's {length} rows")
        return path, start

    def _file(self, prefix: str, row: int, template: Any, **names: str) -> str:
        chunk, file = (self._number(f"{prefix}/{part}_index", row) for part in ("chunk", "file"))
        return filled(template, chunk_index=chunk, file_index=file, **names)

    def _number(self, name: str, row: int, least: int = 0) -> int:
        return whole_number(self._told(name, row), f"meta/episodes: {name} of row {row}", least)

    def _told(self, name: str, row: int) -> Any:
        if name not in self.table:
            raise FormatError(f"meta/episodes lacks the column {name!r}; it has {sorted(self.table)}")
        return self.table[name][row]
