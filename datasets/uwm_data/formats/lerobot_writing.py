"""Writing a LeRobot dataset of either version: encoding in workers, one commit per episode, statistics that are exact.

LeRobot has one rate, and rows: observation k, action k and what followed. So the observation after the last action has no
place, a stream of another rate is held or thinned, and a stream that an episode lacks is filled with zeros (its loader
demands every camera of every episode). `left_out` says so; `meta/uwm` remembers which are filled.

    append:  files of the episode -> line of statistics -> line of the episode        <- the commit
    close:   tables that speak of the whole -> meta/info.json                         <- now it is a dataset for others
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from uwm_data import durable
from uwm_data.errors import FormatError
from uwm_data.formats import RawEpisode, lerobot_statistics, pictures, video
from uwm_data.formats.lerobot_features import INDEX_DTYPES, PICTURES, Field, fields_for, joined, names_there
from uwm_data.formats.lerobot_ledger import Ledger
from uwm_data.formats.lerobot_rows import parquet_bytes, schema_for, table_of
from uwm_data.streams import StreamSpec, check_episode, check_names, reference_stream

_SLACK = 1e-6  # of one frame, as in streams


@dataclass(frozen=True)
class Encoded:
    """What the encoder makes of an episode: columns (arrays, PNG bytes or texts), mp4 bytes, statistics, and what is told."""

    length: int
    columns: dict[str, Any]
    videos: dict[str, bytes]
    tasks: list[str]
    task_rows: np.ndarray
    statistics: dict[str, dict[str, np.ndarray]]
    counts: dict[str, np.ndarray]
    missing: list[str]
    meta: dict


class Files(Protocol):
    """Where a version of the format puts the files of episodes."""

    version: str
    options: dict

    def store(self, index: int, table: bytes, videos: Mapping[str, bytes], ledger: Ledger) -> dict:
        """Make an episode's files durable; what is returned becomes part of its line. Raises OSError."""

    def discard(self, index: int, cameras: list[str]) -> None:
        """Remove what an uncommitted episode left."""

    def finish(self, sink: LeRobotSink) -> None:
        """Bring everything that speaks of the whole up to date, except info.json."""

    def info(self, sink: LeRobotSink) -> dict:
        """What info.json tells in this version only."""


@dataclass(frozen=True)
class Encoder:
    """Turns an episode into what is written; runs in worker processes. `codec` is that of the fields of dtype video."""

    streams: dict[str, StreamSpec]
    fields: list[Field]
    rate_hz: float
    codec: str
    crf: int | None
    tasks: list[str] = field(default_factory=list)
    keeps_last: bool = False

    def __call__(self, episode: RawEpisode) -> Encoded:
        """The encoded episode; StoreError names what is wrong with its arrays."""
        arrays = check_episode(self.streams, episode.arrays)
        missing = [name for name, values in arrays.items() if not len(values)]
        length = self._rows(arrays)
        rows = {name: self._by_row(name, values, length) for name, values in arrays.items()}
        made = Encoded(length, {}, {}, *self._task_of_rows(episode.meta, rows, length), {}, {}, missing, dict(episode.meta))
        for each in self.fields:
            if each.is_text:
                made.columns[each.key] = _expanded(_told_text(episode.meta, each.key), length)
            else:
                self._add(made, each, joined(rows, each))
        return made

    def _add(self, made: Encoded, each: Field, values: np.ndarray) -> None:
        there = not set(each.streams) & set(made.missing)
        if there and each.dtype in PICTURES:
            made.counts[each.key] = lerobot_statistics.counts_of(values)
            made.statistics[each.key] = lerobot_statistics.of_counts(made.counts[each.key], made.length)
        elif there:
            made.statistics[each.key] = lerobot_statistics.of_values(values)
        if each.dtype == "video":
            made.videos[each.key] = video.encode(values, self.rate_hz, self.codec, self.crf)
        else:
            made.columns[each.key] = [pictures.encode_png(frame) for frame in values] if each.dtype == "image" else values

    def _rows(self, arrays: Mapping[str, np.ndarray]) -> int:
        name = reference_stream(self.streams, [name for name, values in arrays.items() if len(values)])
        spec = self.streams[name]
        if self.keeps_last:
            return len(arrays[name])
        length = round(spec.ticks(len(arrays[name])) * self.rate_hz / spec.rate_hz)
        if length < 1:
            raise FormatError(f"an episode without a tick has no row in LeRobot: stream {name!r} has {len(arrays[name])} frames")
        return length

    def _by_row(self, name: str, values: np.ndarray, length: int) -> np.ndarray:
        """The newest frame at each row's time."""
        if not len(values):
            return np.zeros((length, *values.shape[1:]), values.dtype)
        if self.streams[name].rate_hz == self.rate_hz:
            return values[:length]
        newest = np.floor(np.arange(length) * (self.streams[name].rate_hz / self.rate_hz) + _SLACK).astype(int)
        return values[np.minimum(newest, len(values) - 1)]

    def _task_of_rows(self, meta: Mapping, rows: Mapping[str, np.ndarray], length: int) -> tuple[list[str], np.ndarray]:
        if self.tasks and "task_index" in rows:
            numbers = [int(number) if 0 <= number < len(self.tasks) else -1 for number in rows["task_index"]]
            texts = [self.tasks[number] if number >= 0 else "" for number in numbers]
        else:
            texts = [str(meta.get("instruction") or meta.get("task") or "")] * length
        tasks = list(dict.fromkeys(texts))
        return tasks, np.array([tasks.index(text) for text in texts], np.int64)


def _told_text(meta: Mapping, key: str) -> Any:
    ours = meta.get("lerobot")
    told = ours.get("text") if isinstance(ours, Mapping) else None
    return told.get(key, "") if isinstance(told, Mapping) else ""


def _expanded(told: Any, length: int) -> list[str]:
    """A text per row from one text, or from [first row, text] pairs."""
    if not isinstance(told, list):
        return [str(told)] * length
    texts = [""] * length
    for row, text in told:
        texts[int(row) :] = [str(text)] * (length - int(row))
    return texts


class LeRobotSink:
    """A LeRobot dataset, being written (see `Sink`); `files` is what differs between the versions."""

    def __init__(
        self,
        root: Path,
        streams: Mapping[str, StreamSpec],
        card: Mapping[str, Any],
        files: Files,
        codec: str | None,
        crf: int | None,
    ):
        check_names(streams)
        self.root, self.streams, self.card, self.files = root, dict(streams), dict(card), files
        self.rate_hz = _rate_of(card, streams)
        self.codec, self.crf = ("h264" if codec in (None, "png") else codec), crf
        video.codec_of(self.codec, crf)
        self._all_png = codec == "png"
        source = self.card.get("source") if names_there(card) else None
        self._source: Mapping = source if isinstance(source, Mapping) else {}
        tasks = self._source.get("tasks")
        self._tasks = [str(text) for text in tasks] if isinstance(tasks, list) and "task_index" in streams else []
        self.fields = self._make_fields(codec)
        rates = {spec.rate_hz for spec in streams.values()}
        self.keeps_last = rates == {self.rate_hz} and all(spec.closing and spec.kind != "action" for spec in streams.values())
        self.left_out = self._cannot_hold()
        options = {"codec": codec, "crf": crf, **files.options}
        self.ledger = Ledger(root, {"format": "lerobot", "version": files.version, "options": options, **self._description()})
        self._began = False

    def _make_fields(self, codec: str | None) -> list[Field]:
        held = {name: spec for name, spec in self.streams.items() if not (self._tasks and name == "task_index")}
        texts = self._source.get("text")
        told = [
            Field(str(key), dtype, (1,))
            for key, dtype in (texts.items() if isinstance(texts, Mapping) else ())
            if dtype in ("string", "task") and "/" not in str(key)
        ]
        fields = fields_for(held, self.card, lambda name, spec: self._picture_dtype(name, spec, codec))
        taken = {each.key for each in fields}
        return [self._as_it_was(each) for each in fields] + [each for each in told if each.key not in taken]

    def _picture_dtype(self, name: str, spec: StreamSpec, codec: str | None) -> str:
        features = self._source.get("features")
        told = features.get(names_there(self.card).get(name)) if isinstance(features, Mapping) else None
        as_image = self._all_png or (codec is None and isinstance(told, Mapping) and told.get("dtype") == "image")
        if not as_image and video.can_hold(self.codec, spec.shape):
            return "video"
        return "image" if pictures.can_hold(spec.shape) else ""

    def _as_it_was(self, each: Field) -> Field:
        """With the `names` of info.json that it came with, where they still fit (a dictionary, for instance)."""
        features = self._source.get("features")
        told = features.get(each.key) if isinstance(features, Mapping) else None
        if isinstance(told, Mapping) and told.get("shape") == list(each.shape) and told.get("names"):
            return replace(each, names=told["names"])
        return each

    def _cannot_hold(self) -> list[str]:
        found = []
        last = [name for name, spec in self.streams.items() if spec.closing and spec.kind != "action"]
        if last and not self.keeps_last:
            found.append(f"the observation after the last action (streams {', '.join(last)}): LeRobot has as many observations as actions")
        for name, spec in self.streams.items():
            if spec.rate_hz != self.rate_hz:
                found.append(f"stream {name!r} at its own {spec.rate_hz:g} Hz: each row at {self.rate_hz:g} Hz holds its newest frame")
        lossy = [name for each in self.fields if each.dtype == "video" for name in each.streams]
        if lossy and video.CODECS[self.codec].crf is not None:
            found.append(f"exact pixels of {', '.join(lossy)}: {self.codec} loses a little; codec png or h264-lossless does not")
        return found

    def _description(self) -> dict:
        held = {name: replace(spec, rate_hz=self.rate_hz, closing=self.keeps_last) for name, spec in self.streams.items()}
        return {
            "streams": [{"name": name, **spec.to_json()} for name, spec in held.items()],  # a list, for their order counts
            "features": {each.key: list(each.streams) for each in self.fields},
            "card": self.card,
        }

    def __len__(self) -> int:
        return len(self.ledger.lines)

    def encoder(self) -> Encoder:
        """A picklable function: frames to mp4 or PNG, statistics of the episode."""
        return Encoder(self.streams, self.fields, self.rate_hz, self.codec, self.crf, self._tasks, self.keeps_last)

    def append(self, encoded: Encoded) -> None:
        """Add an episode; FormatError on a failing disk, and then the dataset is as it was before the call."""
        index = len(self)
        try:
            self._begin()
            table, own = self._table(index, encoded)
            places = self.files.store(index, table, encoded.videos, self.ledger)
            line = {"length": encoded.length, "tasks": encoded.tasks, "other_tasks": self._texts_that_are_tasks(encoded)}
            line |= {"missing": encoded.missing, "meta": encoded.meta, "split": _split_of(encoded.meta), "files": places}
            statistics = lerobot_statistics.to_json({**encoded.statistics, **own})
            self.ledger.commit(line, statistics, encoded.counts)
        except OSError as error:
            self._roll_back(self.ledger.roll_back)
            raise FormatError(self._disk_trouble(error, index)) from error
        except BaseException:
            # Ctrl-C may come between the commit and its being counted, so what is on disk decides.
            self._roll_back(self.ledger.reload)
            raise
        self._tell_missing(encoded.missing)

    def _begin(self) -> None:
        if not self._began:
            # With info.json gone nobody takes half of the new episodes for a dataset.
            (self.root / "meta" / "info.json").unlink(missing_ok=True)
            self._began = True

    def _table(self, index: int, encoded: Encoded) -> tuple[bytes, dict]:
        """The rows as parquet, with the columns that only the whole knows, and statistics of those."""
        numbers = dict(self.ledger.tasks)
        for text in encoded.tasks + self._texts_that_are_tasks(encoded):
            numbers.setdefault(text, len(numbers))
        count = np.arange(encoded.length)
        own = {
            "timestamp": count / self.rate_hz,
            "frame_index": count,
            "episode_index": np.full(encoded.length, index),
            "index": self.ledger.frames + count,
            "task_index": np.array([numbers[text] for text in encoded.tasks])[encoded.task_rows],
        }
        own = {key: values.astype(INDEX_DTYPES[key]) for key, values in own.items()}
        as_tasks = {
            each.key: np.array([numbers[text] for text in encoded.columns[each.key]]) for each in self.fields if each.dtype == "task"
        }
        table = table_of({**encoded.columns, **as_tasks, **own}, schema_for(self.fields))
        return parquet_bytes(table), {key: lerobot_statistics.of_values(values) for key, values in own.items()}

    def _texts_that_are_tasks(self, encoded: Encoded) -> list[str]:
        return [text for each in self.fields if each.dtype == "task" for text in dict.fromkeys(encoded.columns[each.key])]

    def _roll_back(self, put_right: Callable[[], None]) -> None:
        try:
            put_right()
            self.files.discard(len(self), self.cameras)
        except OSError:
            pass  # The disk is in a bad way; without a line the episode is not there, and the next call clears up.

    def _tell_missing(self, missing: list[str]) -> None:
        for name in missing:
            text = f"that episodes lack stream {name!r}: their rows hold zeros there"
            if text not in self.left_out:
                self.left_out.append(text)

    def _disk_trouble(self, error: OSError, index: int) -> str:
        what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"writing failed ({error.strerror or error})"
        free = shutil.disk_usage(self.root).free / 1e6
        return (
            f"{self.root}: {what} at episode {index}, {free:.0f} MB free. The {len(self)} episodes before it are safe; "
            "free some space and make the same call again"
        )

    @property
    def cameras(self) -> list[str]:
        """Features that are videos."""
        return [each.key for each in self.fields if each.dtype == "video"]

    def close(self) -> None:
        """Finish the dataset, so that LeRobot's loader opens it, and let another writer in."""
        try:
            if len(self) and (self._began or not (self.root / "meta" / "info.json").exists()):
                self.files.discard(len(self), self.cameras)
                self.files.finish(self)
                self._write_json("modality.json", self._source.get("modality"))
                self._write_json("info.json", self._info())
                self._began = False
        except OSError as error:
            raise FormatError(self._disk_trouble(error, len(self))) from error
        finally:
            self.ledger.release()

    def _write_json(self, name: str, value: Any) -> None:
        if value is not None:
            durable.replace_file(self.root / "meta" / name, json.dumps(value, indent=4, ensure_ascii=False).encode())

    def _info(self) -> dict:
        features = {each.key: {**each.describe(), **self._video_facts(each)} for each in self.fields}
        for key, dtype in INDEX_DTYPES.items():
            features[key] = {"dtype": dtype, "shape": [1], "names": None}
        whole = int(self.rate_hz) if self.rate_hz.is_integer() else self.rate_hz
        robot = self.card.get("robot")
        return {
            "codebase_version": self.files.version,
            "robot_type": robot if isinstance(robot, str) and robot != "unknown" else None,
            "total_episodes": len(self),
            "total_frames": self.ledger.frames,
            "total_tasks": len(self.ledger.tasks),
            **self.files.info(self),
            "fps": whole,
            "splits": _splits(self.ledger.lines, self.left_out),
            "features": features,
        }

    def _video_facts(self, each: Field) -> dict:
        if each.dtype != "video":
            return {}
        how = video.CODECS[self.codec]
        facts = {
            "height": each.shape[0],
            "width": each.shape[1],
            "codec": self.codec.partition("-")[0],
            "pix_fmt": "gbrp" if how.pixel_format == "rgb24" else how.pixel_format,
            "is_depth_map": False,
            "fps": int(self.rate_hz) if self.rate_hz.is_integer() else self.rate_hz,
            "channels": 3,
        }
        return {"info": {**{f"video.{name}": value for name, value in facts.items()}, "has_audio": False}}


def _rate_of(card: Mapping, streams: Mapping[str, StreamSpec]) -> float:
    told = card.get("rate_hz")
    return float(told) if isinstance(told, int | float) and told > 0 else streams[reference_stream(streams)].rate_hz


def _split_of(meta: Mapping) -> str:
    ours = meta.get("lerobot")
    return str(ours.get("split", "train")) if isinstance(ours, Mapping) else "train"


def _splits(lines: list[dict], left_out: list[str]) -> dict[str, str]:
    """The splits that episodes came with, where they lie together; else one for all."""
    told = [line["split"] for line in lines]
    starts = [number for number, name in enumerate(told) if not number or name != told[number - 1]]
    if len({told[start] for start in starts}) == len(starts):
        return {told[start]: f"{start}:{end}" for start, end in zip(starts, [*starts[1:], len(told)], strict=True)}
    left_out.append("splits: their episodes do not lie together, so all stand in `train`")
    return {"train": f"0:{len(lines)}"}
