"""Reading a LeRobot dataset of either version: rows from parquet, frames from mp4, one episode at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from uwm_data.errors import FormatError, StoreError
from uwm_data.formats import RawEpisode
from uwm_data.formats.lerobot_features import INDEX_DTYPES, PICTURES, Field, fields_of, modality_names, parted, spec_of
from uwm_data.formats.lerobot_info import OURS, TOLERANCE_S, Notes, Place, load_json, rate_of, splits_of
from uwm_data.formats.lerobot_rows import Rows, decoded_pictures, integers, numbers, texts
from uwm_data.formats.video import VideoFile
from uwm_data.streams import StreamSpec, check_names

MAX_EPISODE_BYTES = 64 << 30


class LeRobotSource:
    """A LeRobot dataset, open for reading (see `Source`).

    `tasks` are the texts by task_index; `tolerance_s` is how far a row's timestamp may be from frame / fps.
    """

    def __init__(
        self, root: Path, version: str, info: Mapping, tasks: Mapping[int, str], places: list[Place], tolerance_s: float = TOLERANCE_S
    ):
        self.path, self._tasks, self._places, self._tolerance_s = Path(root), dict(tasks), places, tolerance_s
        self.left_out: list[str] = []
        self._splits = splits_of(info, self.left_out)
        self.rate_hz = rate_of(info)
        self._fields = self._with_modality(self._without_lost_cameras(fields_of(info, self.left_out)))
        self.streams = {name: spec for each in self._fields for name, spec in self._specs(each)}
        if any(len(place.tasks) > 1 for place in places):
            self.streams["task_index"] = StreamSpec((), "int64", self.rate_hz, "label", closing=False)
        self.card = self._make_card(version, info)
        self._notes: Notes | None = None
        self._take_our_own()
        if not self.streams:
            raise FormatError(f"{root} has no feature that can be a stream: {'; '.join(self.left_out)}")
        self._refuse_absurd()
        self._rows: Rows | None = None
        self._videos: dict[str, VideoFile] = {}

    def __len__(self) -> int:
        return len(self._places)

    # ---- what is there -------------------------------------------------------------------------------------------

    def _without_lost_cameras(self, fields: list[Field]) -> list[Field]:
        lost = [each for each in fields if each.dtype == "video" and not any(each.key in place.videos for place in self._places)]
        self.left_out += [f"feature {each.key!r}: no episode has its video" for each in lost]
        return [each for each in fields if each not in lost]

    def _with_modality(self, fields: list[Field]) -> list[Field]:
        path = self.path / "meta" / "modality.json"
        self._modality = load_json(path, 1 << 20) if path.exists() else None
        parts = {"observation.state": "state", "state": "state", "action": "action"}
        named = []
        for each in fields:
            names = modality_names(self._modality, parts[each.key], each.shape[-1]) if each.key in parts and each.shape else ()
            named.append(replace(each, names=list(names)) if names else each)
        return named

    def _specs(self, each: Field) -> Iterable[tuple[str, StreamSpec]]:
        optional = each.dtype == "video" and not all(each.key in place.videos for place in self._places)
        try:
            return [(name, spec_of(each, self.rate_hz, optional)) for name in each.streams]
        except StoreError as error:
            raise FormatError(f"info.json: feature {each.key!r} cannot be a stream: {error}") from error

    def _make_card(self, version: str, info: Mapping) -> dict:
        by_kind = lambda kind: [name for name, spec in self.streams.items() if spec.kind == kind]  # noqa: E731
        states = ["state"] if "state" in self.streams and self.streams["state"].kind == "state" else by_kind("state")
        actions = by_kind("action")
        action = "action" if "action" in actions else next(iter(actions), None)
        source = {
            "format": "lerobot",
            "version": version,
            "name": self.path.name,
            "names": {name: each.key for each in self._fields for name in each.streams},
            "features": {each.key: each.describe() for each in self._fields},
            "text": {each.key: each.dtype for each in self._fields if each.is_text},
        }
        if "task_index" in self.streams:
            source["tasks"] = [self._tasks.get(number, "") for number in range(max(self._tasks, default=-1) + 1)]
        if self._modality is not None:
            source["modality"] = self._modality
        card = {
            # LeRobot keeps pictures as a viewer shows them and does not say more.
            "image_orientation": "upright",
            "rate_hz": self.rate_hz,
            "env": "unknown",
            "robot": info.get("robot_type") or "unknown",
            "policy": {"cameras": by_kind("video"), "proprio": states, "action": action},
            "source": source,
        }
        if action:
            unknown = dict.fromkeys(("convention", "mode", "frame", "gripper"), "unknown")
            card["action"] = {"names": list(self.streams[action].names), "units": [], **unknown}
        return card

    def _take_our_own(self) -> None:
        """What we wrote beside the dataset restores names, units, card and metadata, if it still fits."""
        card, noted = self.path / OURS / "card.json", self.path / OURS / "episodes.jsonl"
        if not (card.exists() and noted.exists()):
            return
        try:
            told, notes = load_json(card), Notes(noted)
            fields, streams = self._our_streams(told)
            if notes.lengths != [place.length for place in self._places] or not isinstance(told["card"], dict):
                raise FormatError("its episodes are others")
        except (FormatError, StoreError, KeyError, TypeError, ValueError, AttributeError) as error:
            self.left_out.append(f"{OURS} does not fit this dataset any more and is not used: {error}")
            return
        source = {**self.card["source"], "names": {name: each.key for each in fields for name in each.streams}}
        if "source" in told["card"]:
            source["before"] = told["card"]["source"]
        self._fields, self.streams, self.card, self._notes = fields, streams, {**told["card"], "source": source}, notes

    def _our_streams(self, told: dict) -> tuple[list[Field], dict[str, StreamSpec]]:
        streams = {spec["name"]: StreamSpec(**{key: value for key, value in spec.items() if key != "name"}) for spec in told["streams"]}
        check_names(streams)
        parts, fields = told["features"], []
        for each in self._fields:
            names = tuple(parts.get(each.key, ()))
            if not each.is_text and not _fit(each, [streams[name] for name in names]):
                raise FormatError(f"feature {each.key!r} is another")
            fields.append(replace(each, streams=names))
        if {name for each in fields for name in each.streams} | ({"task_index"} & set(streams)) != set(streams):
            raise FormatError("its streams are others")
        return fields, streams

    def _refuse_absurd(self) -> None:
        row = sum(each.frame_bytes for each in self._fields if not each.is_text)
        longest = max(place.length for place in self._places)
        if row * longest > MAX_EPISODE_BYTES:
            claim = f"an episode of {longest} rows of {row} bytes"
            raise FormatError(f"{self.path} claims {claim}; up to {MAX_EPISODE_BYTES >> 30} GB are read")

    # ---- reading an episode --------------------------------------------------------------------------------------

    def read(self, index: int) -> RawEpisode:
        """Episode `index`; FormatError names file, episode and feature."""
        if not 0 <= index < len(self):
            raise FormatError(f"{self.path} has episodes 0 to {len(self) - 1}, asked for {index}")
        place = self._places[index]
        where = f"{self.path / place.table}, episode {index}"
        table = self._table(place)
        self._check_index(table, place, where)
        missing = self._notes.missing[index] if self._notes else frozenset()
        arrays: dict[str, np.ndarray] = {}
        for each in self._fields:
            if not each.is_text:
                arrays |= self._values(each, table, place, where, missing)
        numbers_of_tasks = self._task_numbers(table, place, where)
        if "task_index" in self.streams:
            arrays["task_index"] = numbers_of_tasks
        arrays = {name: arrays[name] for name in self.streams}
        return RawEpisode(arrays, self._meta(index, place, table, numbers_of_tasks, where))

    def _table(self, place: Place):
        path = self.path / place.table
        if self._rows is None or self._rows.path != path:
            if self._rows is not None:
                self._rows.close()
                self._rows = None
            columns = [each.key for each in self._fields if each.dtype != "video"] + list(INDEX_DTYPES)
            self._rows = Rows(path, columns)
        return self._rows.read(place.first_row, place.length)

    def _check_index(self, table, place: Place, where: str) -> None:
        count = np.arange(place.length)
        for name, due in (("episode_index", np.full(place.length, place.number)), ("frame_index", count), ("index", place.index + count)):
            found = integers(table, name, where)
            if not np.array_equal(found, due):
                row = int((found != due).argmax())
                raise FormatError(f"{where}: row {row} has {name} {found[row]}, expected {due[row]}; rows are missing or not in order")
        times = numbers(table, Field("timestamp", "float64", ()), where)
        late = np.abs(times - count / self.rate_hz)
        # Tables keep float32 seconds, which are coarser than the tolerance in very long episodes.
        if not (late <= np.maximum(self._tolerance_s, np.spacing(times.astype(np.float32)))).all():
            row = int(np.nan_to_num(late, nan=np.inf).argmax())
            raise FormatError(
                f"{where}: row {row} has timestamp {times[row]:g} s, expected {row / self.rate_hz:g} s at {self.rate_hz:g} Hz; "
                "give tolerance_s=... if that is meant"
            )

    def _values(self, each: Field, table, place: Place, where: str, missing: frozenset[str]) -> dict[str, np.ndarray]:
        gone = [name for name in each.streams if name in missing]
        if gone or (each.dtype == "video" and each.key not in place.videos):
            return {name: np.zeros((0, *self.streams[name].shape), self.streams[name].dtype) for name in each.streams}
        if each.dtype == "video":
            values = self._frames(each, place)
        elif each.dtype == "image":
            values = decoded_pictures(table, each, where)
        else:
            values = numbers(table, each, where)
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                row, *dimension = np.argwhere(~np.isfinite(values))[0].tolist()
                raise FormatError(f"{where}: feature {each.key!r} is {values[(row, *dimension)]} in row {row}, dimension {dimension}")
        return parted(values, each, self.streams)

    def _frames(self, each: Field, place: Place) -> np.ndarray:
        name, start = place.videos[each.key]
        path = self.path / name
        held = self._videos.get(each.key)
        if held is None or held.path != path:
            if held is not None:
                held.close()
                del self._videos[each.key]
            self._videos[each.key] = held = VideoFile(path, self.rate_hz)
            if (held.height, held.width) != each.shape[:2]:
                told = f"{each.shape[0]} x {each.shape[1]}"
                raise FormatError(f"{path} has frames of {held.height} x {held.width}, feature {each.key!r} promises {told}")
        try:
            return held.read(start, place.length)
        except FormatError as error:
            raise FormatError(f"episode {place.number}, feature {each.key!r}: {error}") from error

    def _task_numbers(self, table, place: Place, where: str) -> np.ndarray:
        found = integers(table, "task_index", where)
        unknown = sorted(set(found.tolist()) - set(self._tasks))
        if unknown:
            raise FormatError(f"{where}: task_index {unknown[0]} is not in the table of tasks (0 to {max(self._tasks, default=-1)})")
        return found

    def _meta(self, index: int, place: Place, table, numbers_of_tasks: np.ndarray, where: str) -> dict:
        if self._notes:
            return self._notes.meta(index)
        meta: dict[str, Any] = {"source": {"format": "lerobot", "name": self.path.name, "episode": place.number}}
        text = self._tasks[int(numbers_of_tasks[0])]
        if text:
            meta |= {"task": text, "instruction": text}
        only_here: dict[str, Any] = {}
        if len(place.tasks) > 1:
            only_here["tasks"] = list(place.tasks)
        splits = [name for name, episodes in self._splits.items() if index in episodes]
        if splits and splits != ["train"]:
            only_here["split"] = splits[0]
        told = {each.key: _run_lengths(self._texts(each, table, where)) for each in self._fields if each.is_text}
        if told:
            only_here["text"] = told
        return {**meta, "lerobot": only_here} if only_here else meta

    def _texts(self, each: Field, table, where: str) -> list[str]:
        if each.dtype == "string":
            return texts(table, each, where)
        return [self._tasks.get(int(number), str(number)) for number in integers(table, each.key, where)]

    def close(self) -> None:
        """Let go of files."""
        for held in (self._rows, *self._videos.values()):
            if held is not None:
                held.close()
        self._rows, self._videos = None, {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_rows": None, "_videos": {}}


def _fit(each: Field, specs: Sequence[StreamSpec]) -> bool:
    """Whether these streams are what the feature holds."""
    dtype = "uint8" if each.dtype in PICTURES else each.dtype
    if not specs or any(spec.dtype != dtype for spec in specs):
        return False
    if len(specs) == 1:
        return int(np.prod(specs[0].shape)) == int(np.prod(each.shape))
    return all(len(spec.shape) == 1 for spec in specs) and (sum(spec.shape[0] for spec in specs),) == each.shape


def _run_lengths(texts_of_rows: Sequence[str]) -> Any:
    """The text, if it stays the same; else [first row, text] wherever it changes."""
    starts = [row for row, text in enumerate(texts_of_rows) if not row or text != texts_of_rows[row - 1]]
    return texts_of_rows[0] if len(starts) == 1 else [[row, texts_of_rows[row]] for row in starts]
