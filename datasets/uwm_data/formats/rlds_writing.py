"""Any episodes as an RLDS folder that TensorFlow Datasets opens, one episode after another, safe against crashes.

    DST/1.0.0/  uwm.json                                  streams, card, where each stream lies: what RLDS has no place for
                features.json
                NAME-train.tfrecord-00000 ...             while writing: a whole record is the commit, a torn one is cut off
                NAME-train.tfrecord-00000-of-00002 ...    renamed when closed
                dataset_info.json                         last, by one rename; while it is missing, the folder is not finished

Rows are ticks. Where observations close an episode there are T + 1 rows, and the last action is zeros: `uwm.json` says so.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from uwm_data import cards, durable
from uwm_data.errors import FormatError
from uwm_data.formats import RawEpisode
from uwm_data.formats.rlds_features import FEATURES_FILE, STEPS, Feature, features_json, read_json
from uwm_data.formats.rlds_folder import DEFAULT_TEMPLATE, INFO_FILE
from uwm_data.formats.rlds_reading import EPISODE, FLAGS, OWN_FEATURE, OWN_FILE, OWN_VERSION
from uwm_data.formats.rlds_values import encoded
from uwm_data.formats.tf_example import encode
from uwm_data.formats.tfrecord import FRAMING_BYTES, framed, read_record, whole_records
from uwm_data.formats.ticks import ticks_of, to_rows, written_specs
from uwm_data.lock import LOCK_FILE, WriterLock
from uwm_data.streams import StreamSpec, check_episode, check_names, reference_stream

VERSION = "1.0.0"
SPLIT = "train"
_INSTRUCTION = "language_instruction"
_RESERVED = (*FLAGS, _INSTRUCTION, "reward", "discount", "observation", "action", "action_dict", "labels")
_PATH = re.compile(r"[\w.-]+(/[\w.-]+)*")
_FEW_INTEGERS = 64


@dataclass(frozen=True)
class Plan:
    """What the encoder of an episode needs: `features` of the streams, `texts` (paths of step texts), `episode` features."""

    streams: Mapping[str, StreamSpec]
    features: Mapping[str, Feature]
    texts: Sequence[str]
    episode: Sequence[Feature]
    rate_hz: float
    rows_close: bool
    quality: int

    def all_features(self) -> list[Feature]:
        """Every leaf of features.json."""
        paths = {feature.path for feature in self.features.values()}
        usual = [Feature(f"{STEPS}/{name}", "tensor", (), "bool") for name in FLAGS]
        usual += [Feature(f"{STEPS}/{name}", "tensor", (), "float32") for name in ("reward", "discount") if f"{STEPS}/{name}" not in paths]
        texts = [Feature(f"{STEPS}/{path}", "text") for path in self.texts]
        return [*self.features.values(), *usual, *texts, *self.episode, Feature(OWN_FEATURE, "text")]


class RldsSink:
    """An RLDS folder that is open for writing (see `rlds.write`)."""

    def __init__(self, path: Path, plan: Plan, own: dict, left_out: Sequence[str], shard_bytes: int):
        self.path, self.plan, self.left_out = path / VERSION, plan, tuple(left_out)
        self._name, self._shard_bytes = own["name"], shard_bytes
        if self.path.exists():
            _refuse_other(self.path, own)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = WriterLock(self.path)
        try:
            # The first of the two marks the folder as ours to continue.
            for file, content in ((OWN_FILE, json.dumps(own, indent=1).encode()), (FEATURES_FILE, features_json(plan.all_features()))):
                if not (self.path / file).exists():
                    durable.replace_file(self.path / file, content)
            self._shards, self._borders = _recovered(self.path, self._name)
        except BaseException:
            self._lock.release()
            raise

    def __len__(self) -> int:
        return sum(len(borders) - 1 for borders in self._borders)

    def encoder(self) -> Callable[[RawEpisode], bytes]:
        """Makes the whole record, images compressed."""
        return partial(encoded_episode, self.plan)

    def append(self, encoded: bytes) -> None:
        """Add one record; when this returns, it survives a power cut. FormatError on a full disk: then nothing was added."""
        if not self._shards or self._borders[-1][-1] >= self._shard_bytes:
            self._shards.append(self.path / f"{self._name}-{SPLIT}.tfrecord-{len(self._shards):05d}")
            self._borders.append([0])
        file, start = self._shards[-1], self._borders[-1][-1]
        try:
            # From here to `close` the folder is not finished for anybody.
            (self.path / INFO_FILE).unlink(missing_ok=True)
            durable.write_at(file, start, encoded)
            if not start:
                durable.sync_folder(self.path)
        except BaseException as error:
            self._cut_off(file, start)
            if isinstance(error, OSError):
                raise FormatError(
                    f"{file}: writing failed ({error.strerror or error}); the {len(self)} episodes before stay: free some space and go on"
                ) from error
            raise
        self._borders[-1].append(start + len(encoded))

    def _cut_off(self, file: Path, start: int) -> None:
        try:
            if start:
                durable.truncate(file, start)
            else:
                file.unlink(missing_ok=True)
                self._shards.pop(), self._borders.pop()
        except OSError:
            # The disk is in a bad way; whoever continues cuts the torn record off.
            return

    def close(self) -> None:
        """Give the shards their final names, write dataset_info.json, let go of the lock."""
        if not self._lock.release.alive:
            return
        try:
            for number, file in enumerate(self._shards):
                final = self.path / f"{self._name}-{SPLIT}.tfrecord-{number:05d}-of-{len(self._shards):05d}"
                os.replace(file, final)
                self._shards[number] = final
            durable.replace_file(self.path / INFO_FILE, self._info())
        except OSError as error:
            raise FormatError(
                f"{self.path}: every episode is safe, but it could not be finished ({error.strerror or error}); go on later"
            ) from error
        finally:
            self._lock.release()

    def _info(self) -> bytes:
        lengths = [len(borders) - 1 for borders in self._borders]
        payload = sum(borders[-1] for borders in self._borders) - FRAMING_BYTES * sum(lengths)
        split = {"filepathTemplate": DEFAULT_TEMPLATE, "name": SPLIT, "numBytes": str(payload), "shardLengths": [str(n) for n in lengths]}
        info = {"name": self._name, "version": VERSION, "fileFormat": "tfrecord", "splits": [split] if lengths else []}
        return json.dumps(
            {**info, "description": "Robot episodes, written by uwm.", "releaseNotes": {VERSION: "Written by uwm."}}, indent=2
        ).encode()


def planned(streams: Mapping[str, StreamSpec], card: Mapping, name: str, image: str, quality: int) -> tuple[Plan, dict, list[str]]:
    """(plan, content of uwm.json, what RLDS cannot hold in words) for these streams and a dataset of that name."""
    check_names(streams)
    specs, rate, lost = written_specs(streams)
    source = card.get("source") if isinstance(card.get("source"), Mapping) else {}
    source = source if source.get("format") == "rlds" else {}
    paths = _paths(streams, source)
    features = {name: _feature(paths[name], spec, image) for name, spec in specs.items()}
    texts = dict.fromkeys([_INSTRUCTION, *(path for path in source.get("texts", []) if _is_free(path, paths.values()))])
    rows_close = any(spec.closing and spec.kind != "action" for spec in specs.values())
    plan = Plan(dict(streams), features, tuple(texts), tuple(_episode_features(source)), rate, rows_close, quality)
    own = {
        "version": OWN_VERSION,
        "name": name,
        "image": image,
        "streams": {name: spec.to_json() for name, spec in specs.items()},
        "features": paths,
        "rate_hz": rate,
        "rows_close": rows_close,
        "last_action": "padding" if rows_close else "real",
        "card": {key: value for key, value in card.items() if key != "checksum"},
    }
    lost += [f"{name}: where an episode lacks it, others read zeros" for name, spec in streams.items() if spec.optional]
    if image == "jpeg":
        lost += [f"{name}: exact pixels (JPEG, quality {quality})" for name, feature in features.items() if feature.encoding == "jpeg"]
    return plan, own, lost


def _paths(streams: Mapping[str, StreamSpec], source: Mapping) -> dict[str, str]:
    """Where each stream lies below `steps`: where it lay in the RLDS dataset that it came from or, if that clashes, as usual."""
    usual = {name: _usual_path(name, spec, streams) for name, spec in streams.items()}
    told = source.get("names") if isinstance(source.get("names"), Mapping) else {}
    paths = {name: told.get(name, usual[name]) for name in streams}
    every = list(paths.values())
    fit = all(_is_free(path, every[:place] + every[place + 1 :]) for place, path in enumerate(every))
    return paths if fit else usual


def _usual_path(name: str, spec: StreamSpec, streams: Mapping[str, StreamSpec]) -> str:
    if spec.kind == "action":
        acts = "action" if "action" in streams else reference_stream(streams)
        return "action" if name == acts else f"action_dict/{name}"
    if spec.kind == "label":
        is_usual = name in ("reward", "discount") and not spec.shape
        return name if is_usual or name not in _RESERVED else f"labels/{name}"
    return f"observation/{name}"


def _is_free(path: object, others: Sequence[str]) -> bool:
    """Is this a path below `steps`, not taken, and neither above nor below another?"""
    if not isinstance(path, str) or not _PATH.fullmatch(path) or path in (*FLAGS, _INSTRUCTION):
        return False
    return all(f"{path}/" != f"{other}/"[: len(path) + 1] and f"{other}/" != f"{path}/"[: len(other) + 1] for other in map(str, others))


def _feature(path: str, spec: StreamSpec, image: str) -> Feature:
    place, integers = f"{STEPS}/{path}", np.dtype(spec.dtype).kind in "iu"
    if spec.kind == "video" and spec.shape[2] in (1, 3, 4):
        return Feature(place, "image", spec.shape, "uint8", "png" if spec.shape[2] == 4 else image)
    # In a list of numbers float64 becomes float32, uint64 overflows, and many small integers take much room.
    is_raw = spec.dtype in ("float64", "uint64") or (integers and np.prod(spec.shape) > _FEW_INTEGERS)
    return Feature(place, "tensor", spec.shape, spec.dtype, "bytes" if is_raw else "none")


def _episode_features(source: Mapping) -> list[Feature]:
    """The episode fields of the RLDS dataset that the episodes came from."""
    found = []
    told = source.get("episode")
    for path, (dtype, shape) in (told if isinstance(told, Mapping) else {}).items():
        if _PATH.fullmatch(path) and EPISODE + path != OWN_FEATURE:
            found.append(Feature(EPISODE + path, "text") if dtype == "string" else Feature(EPISODE + path, "tensor", tuple(shape), dtype))
    return found


# ---- one episode -----------------------------------------------------------------------------------------------------


def encoded_episode(plan: Plan, episode: RawEpisode) -> bytes:
    """The record of an episode; StoreError when it is not legal."""
    arrays = check_episode(plan.streams, episode.arrays)
    rows = ticks_of(plan.streams, arrays, plan.rate_hz) + plan.rows_close
    meta = json.loads(json.dumps(episode.meta))
    kept = meta.get("rlds") if isinstance(meta.get("rlds"), dict) else {}
    found = _usual_values(meta, kept, rows, rows - plan.rows_close)
    for name, values in arrays.items():
        per_row = to_rows(values, plan.streams[name].rate_hz, rows, plan.rate_hz)
        found[plan.features[name].path] = encoded(plan.features[name], per_row, plan.quality)
    for path in plan.texts:
        found[f"{STEPS}/{path}"] = _texts(meta.get("instruction") if path == _INSTRUCTION else None, kept.get("steps"), path, rows)
    for feature in plan.episode:
        found[feature.path] = _episode_value(feature, kept.get("episode"))
    own = {"meta": meta, "absent": [name for name, values in arrays.items() if not len(values)]}
    found[OWN_FEATURE] = [json.dumps(own).encode()]
    return framed(encode(found))


def _usual_values(meta: Mapping, kept: Mapping, rows: int, ticks: int) -> dict:
    """is_first, is_last, is_terminal, and a reward of 1 for the last action of a success; what the source told comes first."""
    success = meta.get("success") is True
    marks = {"is_first": [0], "is_last": [rows - 1], "is_terminal": [rows - 1] if success else []}
    told = kept.get("flags")
    marks |= told if isinstance(told, dict) else {}
    found = {}
    for name in FLAGS:
        found[f"{STEPS}/{name}"] = np.isin(np.arange(rows), marks[name])
    reward = np.zeros(rows, np.float32)
    reward[max(ticks - 1, 0)] = success
    return {**found, f"{STEPS}/reward": reward, f"{STEPS}/discount": np.ones(rows, np.float32)}


def _texts(instruction: object, kept: object, path: str, rows: int) -> list[bytes]:
    text = kept.get(path) if isinstance(kept, dict) else None
    text = (instruction or "") if text is None else text
    if isinstance(text, list) and len(text) == rows:
        return [str(line).encode() for line in text]
    return [str(text).encode()] * rows


def _episode_value(feature: Feature, kept: object) -> list[bytes] | np.ndarray:
    value = kept.get(feature.path.removeprefix(EPISODE)) if isinstance(kept, dict) else None
    if feature.kind == "text":
        return [str("" if value is None else value).encode()]
    empty = np.zeros(feature.shape, feature.dtype)
    try:
        numbers = empty if value is None else np.asarray(value, feature.dtype).reshape(feature.shape)
    except (TypeError, ValueError, OverflowError):
        numbers = empty  # the exact value stands in the episode's own metadata
    return encoded(feature, numbers[None], 0)


# ---- continuing ------------------------------------------------------------------------------------------------------


def _refuse_other(folder: Path, own: dict) -> None:
    """FormatError unless the folder is empty or holds what the same call began."""
    if not (folder / OWN_FILE).is_file():
        strange = sorted(file.name for file in folder.iterdir() if file.name not in (LOCK_FILE, OWN_FILE + durable.PARTIAL_SUFFIX))
        if strange:
            raise FormatError(f"{folder} holds something else ({strange[0]}, ...); choose another path")
        return
    old = read_json(folder / OWN_FILE)
    for key in ("version", "name", "image", "streams", "features", "rate_hz", "rows_close"):
        if old.get(key) != json.loads(json.dumps(own[key])):
            raise FormatError(
                f"{folder} cannot be continued: its {key} is {old.get(key)}, that of the episodes to add {own[key]}; choose another path"
            )
    found = cards.differences(old.get("card", {}), own["card"])
    if found:
        raise FormatError(f"{folder} cannot be continued: {cards.sentence(found, 'it', 'the episodes to add')}; choose another path")


def _recovered(folder: Path, name: str) -> tuple[list[Path], list[list[int]]]:
    """(shards, borders of their records) that an earlier call left, without the record that it was writing."""
    pattern = re.compile(re.escape(f"{name}-{SPLIT}.tfrecord-") + r"(\d{5})(-of-\d{5})?")
    found = sorted((int(match[1]), file) for file in folder.iterdir() if (match := pattern.fullmatch(file.name)))
    if [number for number, _ in found] != list(range(len(found))):
        raise FormatError(f"{folder} lacks a shard: it has the numbers {[number for number, _ in found]}; delete the folder and begin anew")
    shards, every = [file for _, file in found], []
    for number, file in enumerate(shards):
        borders, trouble = whole_records(file)
        is_last = number == len(shards) - 1
        if trouble and not is_last:
            raise FormatError(f"{file}: {trouble}; delete the folder and begin anew")
        every.append(borders.tolist())
        if is_last:
            _drop_torn_end(file, every[-1])
    if every and len(every[-1]) == 1:
        shards.pop().unlink()
        every.pop()
    return shards, every


def _drop_torn_end(file: Path, borders: list[int]) -> None:
    """Cut off what a crash left behind the last whole record. Only that one may be torn: those before it were synced."""
    if len(borders) > 1:
        try:
            read_record(file, *borders[-2:])
        except FormatError:
            borders.pop()
    if file.stat().st_size > borders[-1]:
        durable.truncate(file, borders[-1])
