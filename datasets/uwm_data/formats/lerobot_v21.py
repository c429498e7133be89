"""LeRobotDataset v2.1 (and v2.0): one parquet table and one mp4 per camera for each episode.

    meta/info.json            meta/tasks.jsonl          meta/episodes.jsonl   meta/episodes_stats.jsonl
    data/chunk-000/episode_000000.parquet
    videos/chunk-000/<feature>/episode_000000.mp4

GR00T's flavour adds meta/modality.json and annotation columns; both are read, and written again. Rows, frames and
everything that does not depend on the version: `lerobot_reading`, `lerobot_writing`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uwm_data import durable
from uwm_data.errors import FormatError
from uwm_data.formats.lerobot_info import (
    MAX_EPISODES,
    TOLERANCE_S,
    Place,
    check_totals,
    filled,
    known_version,
    load_lines,
    version_told,
    video_features,
    whole_number,
)
from uwm_data.streams import StreamSpec

VERSIONS = ((2, 0), (2, 1))
DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


def recognise(path: str | Path) -> bool:
    """Whether a LeRobot dataset of version 2 or earlier stands there (version 1 is refused by name when it is read)."""
    version = version_told(Path(path))
    return version is not None and version[0] < 3


def read(path: str | Path, tolerance_s: float = TOLERANCE_S):
    """The dataset at `path` as a Source. `tolerance_s` is how far a row's timestamp may be from frame / fps."""
    from uwm_data.formats.lerobot_reading import LeRobotSource

    root = Path(path)
    info, version = known_version(root, VERSIONS, "For v3.0 name the format lerobot; convert older ones with LeRobot's own script.")
    tasks = {}
    for line in load_lines(root / "meta" / "tasks.jsonl"):
        tasks[whole_number(line.get("task_index"), "tasks.jsonl: task_index")] = str(line.get("task", ""))
    return LeRobotSource(root, version, info, tasks, _places(root, info), tolerance_s)


def write(
    path: str | Path,
    streams: Mapping[str, StreamSpec],
    card: Mapping[str, Any],
    codec: str | None = None,
    crf: int | None = None,
    chunks_size: int = 1000,
):
    """A Sink that writes v2.1 at `path`, or continues what an earlier call with the same arguments began.

    `codec` and `crf` as in `lerobot.write`; a folder holds up to `chunks_size` episodes.
    """
    from uwm_data.formats.lerobot_writing import LeRobotSink

    return LeRobotSink(Path(path), streams, card, EpisodeFiles(Path(path), chunks_size), codec, crf)


def _places(root: Path, info: Mapping[str, Any]) -> list[Place]:
    lines = load_lines(root / "meta" / "episodes.jsonl")
    if len(lines) > MAX_EPISODES:
        raise FormatError(f"meta/episodes.jsonl lists {len(lines)} episodes; up to {MAX_EPISODES} are read")
    numbers = [whole_number(line.get("episode_index"), "episodes.jsonl: episode_index") for line in lines]
    lengths = [whole_number(line.get("length"), f"episodes.jsonl: length of line {row}", 1) for row, line in enumerate(lines)]
    check_totals(info, numbers, lengths, "meta/episodes.jsonl")
    per_chunk = whole_number(info.get("chunks_size", 1000), "info.json: chunks_size", 1)
    cameras = video_features(info)
    places, first = [], 0
    for number, (line, length) in enumerate(zip(lines, lengths, strict=True)):
        names = {"episode_chunk": number // per_chunk, "episode_index": number}
        table = filled(info.get("data_path", DATA), **names)
        videos = {key: filled(info.get("video_path") or VIDEO, **names, video_key=key) for key in cameras}
        there = {key: (video, 0) for key, video in videos.items() if (root / video).exists()}
        tasks = line.get("tasks")
        places.append(Place(number, length, tuple(map(str, tasks if isinstance(tasks, list) else ())), table, 0, first, there))
        first += length
    return places


class EpisodeFiles:
    """Where v2.1 keeps episodes (see `lerobot_writing.Files`)."""

    version = "v2.1"

    def __init__(self, root: Path, chunks_size: int):
        if chunks_size < 1:
            raise FormatError(f"episodes per folder must be positive, got {chunks_size}")
        self.root, self.chunks_size = root, int(chunks_size)
        self.options = {"chunks_size": self.chunks_size}

    def store(self, index: int, table: bytes, videos: Mapping[str, bytes], ledger: Any) -> dict:
        """The episode's table and videos, in their places."""
        for path, payload in ((self._table(index), table), *((self._video(index, key), data) for key, data in videos.items())):
            path.parent.mkdir(parents=True, exist_ok=True)
            durable.replace_file(path, payload)
        return {}

    def discard(self, index: int, cameras: list[str]) -> None:
        """Remove the files of an episode."""
        for path in (self._table(index), *(self._video(index, key) for key in cameras)):
            for left in (path, path.with_name(path.name + durable.PARTIAL_SUFFIX)):
                left.unlink(missing_ok=True)

    def _table(self, index: int) -> Path:
        return self.root / DATA.format(episode_chunk=index // self.chunks_size, episode_index=index)

    def _video(self, index: int, key: str) -> Path:
        return self.root / VIDEO.format(episode_chunk=index // self.chunks_size, episode_index=index, video_key=key)

    def finish(self, sink: Any) -> None:
        """The lists of tasks and episodes, and statistics of each episode."""
        lines = sink.ledger.lines
        self._write_lines("tasks.jsonl", [{"task_index": number, "task": text} for text, number in sink.ledger.tasks.items()])
        told = [{"episode_index": number, "tasks": line["tasks"], "length": line["length"]} for number, line in enumerate(lines)]
        self._write_lines("episodes.jsonl", told)
        statistics = enumerate(told for told, _ in sink.ledger.statistics())
        self._write_lines("episodes_stats.jsonl", [{"episode_index": number, "stats": told} for number, told in statistics])

    def _write_lines(self, name: str, lines: list[dict]) -> None:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        durable.replace_file(self.root / "meta" / name, text.encode())

    def info(self, sink: Any) -> dict:
        """What only v2.1 tells."""
        return {
            "total_videos": len(sink) * len(sink.cameras),
            "total_chunks": -(-len(sink) // self.chunks_size),
            "chunks_size": self.chunks_size,
            "data_path": DATA,
            "video_path": VIDEO if sink.cameras else None,
        }
