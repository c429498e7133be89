"""The files of v3.0: pieces of single episodes while writing, joined into files of many episodes as those fill up.

    meta/uwm/pieces/000007.parquet, 000007.0.mp4 ...     an episode, durable before its line is written
    data/chunk-000/file-000.parquet                      all pieces of a file, behind one another; then the pieces go

Which episodes share a file follows from the sizes of their pieces alone, so an interrupted writer finds its place again:
where all pieces of a file are there it is joined (again), where some are gone it had been joined already. Pieces go from
the last episode backwards: if the newest one's are gone, its file is closed, and the next episode begins a new one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from uwm_data import durable
from uwm_data.errors import FormatError
from uwm_data.formats import lerobot_statistics, video
from uwm_data.formats.lerobot import DATA, VIDEO
from uwm_data.formats.lerobot_features import INDEX_DTYPES, Field
from uwm_data.formats.lerobot_info import OURS
from uwm_data.formats.lerobot_ledger import Ledger
from uwm_data.formats.lerobot_rows import column_of, explained, pa, pq, write_tables

_STATISTICS_BYTES = 64 << 20  # of values at once
_ROWS_AT_ONCE = 500  # of the table of episodes
_TABLE = "data"


@dataclass
class _Track:
    """The table or a camera: which episodes share a file (`spans`), how many files are joined, and where pieces lie."""

    name: str
    folder: Path
    suffix: str
    limit: float
    spans: list[range] = field(default_factory=list)
    size: int = 0
    joined: int = 0

    def piece(self, index: int) -> Path:
        """The piece of an episode."""
        return self.folder / f"{index:06d}{self.suffix}"

    def follow(self, lines: list[dict]) -> None:
        """Take in episodes that were committed since the last call."""
        for index in range(self.spans[-1].stop if self.spans else 0, len(lines)):
            told = lines[index]["files"]
            if not self.spans or told["fresh"] or self.size + told["sizes"][self.name] > self.limit:
                self.spans.append(range(index, index))
                self.size = 0
            self.spans[-1] = range(self.spans[-1].start, index + 1)
            self.size += told["sizes"][self.name]


class ChunkedFiles:
    """Where v3.0 keeps episodes (see `lerobot_writing.Files`); sizes in MB, `chunks_size` files in a folder."""

    version = "v3.0"

    def __init__(self, root: Path, data_mb: float, video_mb: float, chunks_size: int):
        if not (data_mb > 0 and video_mb > 0 and chunks_size >= 1):
            raise FormatError(f"file sizes and files per folder must be positive, got {data_mb} MB, {video_mb} MB and {chunks_size}")
        self.root, self.chunks_size = root, int(chunks_size)
        self.megabytes = {"data_files_size_in_mb": data_mb, "video_files_size_in_mb": video_mb}
        self.options = {**self.megabytes, "chunks_size": self.chunks_size}
        self._tracks: list[_Track] = []

    # ---- episodes ------------------------------------------------------------------------------------------------

    def store(self, index: int, table: bytes, videos: Mapping[str, bytes], ledger: Ledger) -> dict:
        """The episode's pieces; then files that cannot grow any more are joined."""
        tracks = self._up_to_date(ledger, list(videos))
        fresh = index > 0 and not all(track.piece(index - 1).exists() for track in tracks)
        tracks[0].folder.mkdir(parents=True, exist_ok=True)
        sizes = {}
        for track, payload in zip(tracks, (table, *videos.values()), strict=True):
            durable.replace_file(track.piece(index), payload)
            sizes[track.name] = len(payload)
            self._join(track, ledger.lines, but=1)
        return {"fresh": fresh, "sizes": sizes}

    def discard(self, index: int, cameras: list[str]) -> None:
        """Remove the pieces of an episode."""
        for track in self._of(cameras):
            track.piece(index).unlink(missing_ok=True)

    def _of(self, cameras: list[str]) -> list[_Track]:
        """The table, then the cameras."""
        if not self._tracks:
            folder = self.root / OURS / "pieces"
            limits = [megabytes * (1 << 20) for megabytes in self.megabytes.values()]
            self._tracks = [_Track(_TABLE, folder, ".parquet", limits[0])]
            self._tracks += [_Track(name, folder, f".{number}.mp4", limits[1]) for number, name in enumerate(cameras)]
        return self._tracks

    def _up_to_date(self, ledger: Ledger, cameras: list[str]) -> list[_Track]:
        for track in self._of(cameras):
            track.follow(ledger.lines)
        return self._tracks

    def _target(self, track: str, number: int) -> Path:
        chunk, file = divmod(number, self.chunks_size)
        template = DATA if track == _TABLE else VIDEO
        return self.root / template.format(chunk_index=chunk, file_index=file, video_key=track)

    def _join(self, track: _Track, lines: list[dict], but: int = 0) -> None:
        """Join the files of a track that are not joined yet, except the last `but` ones."""
        while track.joined < len(track.spans) - but:
            span, target = track.spans[track.joined], self._target(track.name, track.joined)
            pieces = [track.piece(index) for index in span]
            if all(piece.exists() for piece in pieces):
                _write_joined(target, pieces, None if track.name == _TABLE else sum(lines[index]["length"] for index in span))
            elif not target.exists():
                raise FormatError(f"{target} and pieces of episodes {span.start} to {span.stop - 1} are gone; write to another folder")
            for piece in reversed(pieces):
                piece.unlink(missing_ok=True)
            track.joined += 1

    # ---- the whole -----------------------------------------------------------------------------------------------

    def finish(self, sink: Any) -> None:
        """Join what is left, then the tables of tasks and episodes and the statistics of all."""
        for track in self._up_to_date(sink.ledger, sink.cameras):
            self._join(track, sink.ledger.lines)
        shutil.rmtree(self._tracks[0].folder, ignore_errors=True)
        self._write_tasks(sink.ledger.tasks)
        self._write_episodes(sink)
        told = lerobot_statistics.to_json(self._statistics(sink))
        durable.replace_file(self.root / "meta" / "stats.json", json.dumps(told, indent=4).encode())

    def info(self, sink: Any) -> dict:
        """What only v3.0 tells."""
        return {"chunks_size": self.chunks_size, **self.megabytes, "data_path": DATA, "video_path": VIDEO if sink.cameras else None}

    def _write_tasks(self, tasks: Mapping[str, int]) -> None:
        # The texts are the index of a pandas frame; its loader finds them by this note.
        column = {"field_name": None, "metadata": None, "pandas_type": "unicode", "numpy_type": "object", "name": None}
        note = {
            "index_columns": ["__index_level_0__"],
            "column_indexes": [{**column, "metadata": {"encoding": "UTF-8"}}],
            "columns": [
                {**column, "name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
                {**column, "field_name": "__index_level_0__"},
            ],
            "creator": {"library": "pyarrow", "version": pa.__version__},
            "pandas_version": "2.0.0",
        }
        schema = pa.schema([("task_index", pa.int64()), ("__index_level_0__", pa.string())], {b"pandas": json.dumps(note).encode()})
        _write_file(self.root / "meta" / "tasks.parquet", [pa.table([list(tasks.values()), list(tasks)], schema=schema)], schema)

    def _write_episodes(self, sink: Any) -> None:
        schema = _episodes_schema(sink.fields)
        target = self.root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
        _write_file(target, _batched(self._episode_rows(sink), schema), schema)

    def _episode_rows(self, sink: Any) -> Iterator[dict]:
        lines = sink.ledger.lines
        place = {track.name: self._places(lines, track) for track in self._tracks}
        index = 0
        for number, (line, (statistics, _)) in enumerate(zip(lines, sink.ledger.statistics(), strict=True)):
            row = {"episode_index": number, "tasks": line["tasks"], "length": line["length"]}
            row |= {"dataset_from_index": index, "dataset_to_index": index + line["length"]}
            row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
            index += line["length"]
            for track, (chunk, file, first) in ((track, places[number]) for track, places in place.items()):
                prefix = track if track == _TABLE else f"videos/{track}"
                row |= {f"{prefix}/chunk_index": chunk, f"{prefix}/file_index": file}
                if track != _TABLE:
                    times = (first / sink.rate_hz, (first + line["length"]) / sink.rate_hz)
                    row |= dict(zip((f"{prefix}/from_timestamp", f"{prefix}/to_timestamp"), times, strict=True))
            row |= {f"stats/{key}/{name}": values for key, told in statistics.items() for name, values in told.items()}
            yield row

    def _places(self, lines: list[dict], track: _Track) -> list[tuple[int, int, int]]:
        """(chunk, file, first row or frame in that file) of each episode."""
        found = []
        for number, span in enumerate(track.spans):
            first = 0
            for index in span:
                found.append((*divmod(number, self.chunks_size), first))
                first += lines[index]["length"]
        return found

    def _statistics(self, sink: Any) -> dict[str, dict[str, np.ndarray]]:
        lines = sink.ledger.lines
        tables = [self._target(_TABLE, number) for number in range(len(self._tracks[0].spans))]
        found = _of_pictures(sink)
        for each in [*sink.fields, *(Field(key, dtype, (1,)) for key, dtype in INDEX_DTYPES.items())]:
            if each.key in found or each.is_text or each.dtype in ("video", "image"):
                continue
            there = [not set(line["missing"]) & set(each.streams) for line in lines]
            if any(there):
                found[each.key] = _of_column(tables, each, np.repeat(there, [line["length"] for line in lines]))
        return found


def _of_pictures(sink: Any) -> dict[str, dict[str, np.ndarray]]:
    counts: dict[str, np.ndarray] = {}
    frames: dict[str, int] = {}
    for line, (_, told) in zip(sink.ledger.lines, sink.ledger.statistics(), strict=True):
        for key, values in told.items():
            counts[key] = counts.get(key, 0) + values
            frames[key] = frames.get(key, 0) + line["length"]
    return {key: lerobot_statistics.of_counts(values, frames[key]) for key, values in counts.items()}


def _of_column(tables: list[Path], each: Field, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Exact statistics of a column over all tables; a few dimensions at a time, so that memory stays bounded."""
    width = int(np.prod(each.shape))
    parts = np.array_split(np.arange(width), min(width, -(-width * len(chosen) * 8 // _STATISTICS_BYTES)))
    told = []
    for dimensions in parts:
        values = [column_of(table, each).reshape(-1, width)[:, dimensions] for table in tables]
        told.append(lerobot_statistics.of_values(np.concatenate(values)[chosen]))
    whole = {name: np.concatenate([part[name] for part in told]).reshape(each.shape) for name in told[0] if name != "count"}
    return {**whole, "count": told[0]["count"]}


def _episodes_schema(fields: list[Field]) -> pa.Schema:
    numbers = ["episode_index", "length", "dataset_from_index", "dataset_to_index", "meta/episodes/chunk_index", "meta/episodes/file_index"]
    columns = {name: pa.int64() for name in [*numbers, "data/chunk_index", "data/file_index"]}
    columns["tasks"] = pa.list_(pa.string())
    for each in fields:
        if each.dtype == "video":
            columns |= {f"videos/{each.key}/{part}": pa.int64() for part in ("chunk_index", "file_index")}
            columns |= {f"videos/{each.key}/{part}": pa.float64() for part in ("from_timestamp", "to_timestamp")}
    for each in [*fields, *(Field(key, dtype, (1,)) for key, dtype in INDEX_DTYPES.items())]:
        if each.is_text:
            continue
        kind = pa.float64()
        for _ in each.shape:
            kind = pa.list_(kind)
        columns |= {f"stats/{each.key}/{name}": kind for name in lerobot_statistics.NAMES}
        columns[f"stats/{each.key}/count"] = pa.list_(pa.int64())
    return pa.schema(columns)


def _batched(rows: Iterator[dict], schema: pa.Schema) -> Iterator[pa.Table]:
    held: list[dict] = []
    for row in rows:
        held.append(row)
        if len(held) == _ROWS_AT_ONCE:
            yield pa.Table.from_pylist(held, schema)
            held = []
    if held:
        yield pa.Table.from_pylist(held, schema)


def _write_joined(target: Path, pieces: list[Path], frames: int | None) -> None:
    if frames is None:
        with explained(pieces[0]):
            schema = pq.read_schema(pieces[0])
        _write_file(target, (pq.read_table(piece) for piece in pieces), schema)
    else:
        _write_file_by(target, lambda file: video.join(pieces, file, frames))


def _write_file(target: Path, tables: Any, schema: pa.Schema) -> None:
    _write_file_by(target, lambda file: write_tables(file, tables, schema))


def _write_file_by(target: Path, write: Any) -> None:
    """A file by one rename, durable, however large: `write` is given the open file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + durable.PARTIAL_SUFFIX)
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    durable.sync_folder(target.parent)
