"""Any episodes as a replay buffer of diffusion_policy, one after another, safe against crashes.

    DST/.zgroup .zattrs                  attributes, under "uwm": streams, card, keys: what the format has no place for
        uwm_episodes.jsonl               one line an episode (its end, its metadata): the line is the commit
        data/<key>/.zarray 0.0.0.0 ...   rows behind the committed end do not count, and are written over
        meta/episode_ends                last: brought up to date when closed, like the lengths of the arrays

Chunks lie along time; the last one of each array is replaced by rename when it grows. A reader sees what was there when the
buffer was closed last, whatever happens in between.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np

from uwm_data import cards, durable
from uwm_data.errors import FormatError
from uwm_data.formats import RawEpisode
from uwm_data.formats.diffusion_policy_reading import ENDS, OWN_ATTRIBUTE, OWN_LINES, OWN_VERSION, own_lines
from uwm_data.formats.ticks import ticks_of, to_rows, written_specs
from uwm_data.formats.zarr_v2 import Array, Folder, read_json
from uwm_data.lock import LOCK_FILE, WriterLock
from uwm_data.streams import StreamSpec, check_episode, check_names

_BLOSC = {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 2, "blocksize": 0}
_SMALL_CHUNK_BYTES = 128 << 10  # of arrays of few numbers: their last chunk is written anew for each episode
_SMALL_ROW_BYTES = 4096
_ENDS_CHUNK = 1024
_KEY = re.compile(r"[A-Za-z0-9_][\w.-]*")


@dataclass(frozen=True)
class Plan:
    """What the encoder of an episode needs: `specs` as rows hold them, `dtypes` on disk; `extra` rows behind the last tick."""

    streams: Mapping[str, StreamSpec]
    specs: Mapping[str, StreamSpec]
    keys: Mapping[str, str]
    dtypes: Mapping[str, str]
    rate_hz: float
    extra: int


class ReplayBufferSink:
    """A replay buffer that is open for writing (see `diffusion_policy.write`)."""

    def __init__(self, path: Path, plan: Plan, own: dict, left_out: Sequence[str], chunk_bytes: int):
        self.path, self.plan, self.left_out = path, plan, tuple(left_out)
        _refuse_other(path, own)
        path.mkdir(parents=True, exist_ok=True)
        self._lock = WriterLock(path)
        try:
            _begin(path, own)
            lines = path / OWN_LINES
            content = lines.read_bytes() if lines.exists() else b""
            self._written = content.rfind(b"\n") + 1
            if len(content) > self._written:
                durable.truncate(lines, self._written)
            self._ends = [line["end"] for line in own_lines(content[: self._written], path)]
            self._arrays = {
                name: _Rows(path, f"data/{plan.keys[name]}", spec.shape, np.dtype(plan.dtypes[name]), chunk_bytes, self._steps)
                for name, spec in plan.specs.items()
            }
        except BaseException:
            self._lock.release()
            raise

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def _steps(self) -> int:
        return self._ends[-1] if self._ends else 0

    def encoder(self) -> Callable[[RawEpisode], Any]:
        """Proves an episode legal and makes its rows; they are compressed when added, as chunks cross episodes."""
        return partial(rows_of, self.plan)

    def append(self, encoded: tuple[dict[str, np.ndarray], dict]) -> None:
        """Add the rows of one episode; when this returns, they survive a power cut. FormatError on a full disk."""
        rows, line = encoded
        start, count = self._steps, len(next(iter(rows.values())))
        content = json.dumps({"end": start + count, **line}).encode() + b"\n"
        try:
            for name, values in rows.items():
                self._arrays[name].put(start, values)
            durable.write_at(self.path / OWN_LINES, self._written, content)
            if not self._written:
                durable.sync_folder(self.path)
        except BaseException as error:
            self._take_back(start)
            if isinstance(error, OSError):
                raise FormatError(
                    f"{self.path}: writing failed ({error.strerror or error}); the {len(self)} episodes before stay: "
                    "free some space and go on"
                ) from error
            raise
        self._written += len(content)
        self._ends.append(start + count)

    def _take_back(self, start: int) -> None:
        for array in self._arrays.values():
            array.forget(start)
        try:
            if (self.path / OWN_LINES).exists():
                durable.truncate(self.path / OWN_LINES, self._written)
        except OSError:
            # The disk is in a bad way; whoever continues cuts the torn line off.
            return

    def close(self) -> None:
        """Bring the lengths of the arrays and then `episode_ends` up to date; let go of the lock."""
        if not self._lock.release.alive:
            return
        try:
            for array in self._arrays.values():
                array.publish(self._steps)
            _publish_ends(self.path / ENDS, self._ends)
        except OSError as error:
            raise FormatError(
                f"{self.path}: every episode is safe, but it could not be finished ({error.strerror or error}); go on later"
            ) from error
        finally:
            self._lock.release()


class _Rows:
    """One array, growing by whole episodes; `tail` holds the rows of its last, unfinished chunk."""

    def __init__(self, root: Path, name: str, shape: tuple[int, ...], dtype: np.dtype, chunk_bytes: int, rows: int):
        self.folder = root / name
        self._shape, self._dtype = shape, dtype.newbyteorder("<")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / ".zarray").exists():
            row_bytes = math.prod(shape) * dtype.itemsize
            aim = chunk_bytes if row_bytes >= _SMALL_ROW_BYTES else min(chunk_bytes, _SMALL_CHUNK_BYTES)
            self._chunk = max(1, aim // row_bytes)
            self.publish(0)
        array = Array(Folder(root), name)
        if array.shape[1:] != shape or array.dtype != self._dtype:
            raise FormatError(
                f"{self.folder} holds {array.dtype} {array.shape[1:]}, the episodes to add {dtype} {shape}; choose another path"
            )
        self._chunk = array.chunks[0]
        start = rows - rows % self._chunk
        self._tail = array.rows(start, rows) if rows > start else np.empty((0, *shape), dtype)
        self._committed = (rows, self._tail)

    def put(self, start: int, values: np.ndarray) -> None:
        """Write rows from `start` on; the rows before stay as they are."""
        self._committed = (start, self._tail)
        rows = np.concatenate([self._tail, values])
        first = start // self._chunk
        for number in range(-(-len(rows) // self._chunk)):
            part = rows[number * self._chunk : (number + 1) * self._chunk]
            durable.replace_file(self.folder / ".".join([str(first + number), *["0"] * len(self._shape)]), self._encoded(part))
        self._tail = rows[len(rows) - len(rows) % self._chunk :].copy()

    def forget(self, start: int) -> None:
        """Go back to the rows before an episode that could not be added."""
        if self._committed[0] == start:
            self._tail = self._committed[1]

    def _encoded(self, part: np.ndarray) -> bytes:
        chunk = np.zeros((self._chunk, *self._shape), self._dtype)
        chunk[: len(part)] = part
        return bytes(numcodecs.get_codec(_BLOSC).encode(chunk))

    def publish(self, rows: int) -> None:
        """Tell readers how long the array is."""
        durable.replace_file(self.folder / ".zarray", _array_json((rows, *self._shape), (self._chunk, *self._shape), self._dtype, _BLOSC))


def planned(streams: Mapping[str, StreamSpec], card: Mapping) -> tuple[Plan, dict, list[str]]:
    """(plan, the attributes to keep, what a replay buffer cannot hold in words) for these streams."""
    check_names(streams)
    source = card.get("source") if isinstance(card.get("source"), Mapping) else {}
    source = source if source.get("format") == "diffusion-policy" else {}
    kept = {name: replace(spec, closing=spec.closing and spec.kind == "action") for name, spec in streams.items()}
    specs, rate, lost = written_specs(kept)
    acts = any(spec.kind == "action" for spec in streams.values())
    closing = [name for name, spec in streams.items() if spec.closing and spec.kind != "action"]
    if acts:
        lost += [f"{name}: the frame behind the last action" for name in closing]
    lost += [f"{name}: where an episode lacks it, others read zeros" for name, spec in streams.items() if spec.optional]
    told = source.get("names") if isinstance(source.get("names"), Mapping) else {}
    keys = {name: told.get(name, name) for name in specs}
    if len(set(map(str, keys.values()))) < len(keys) or not all(isinstance(key, str) and _KEY.fullmatch(key) for key in keys.values()):
        keys = {name: name for name in specs}
    stored = source.get("stored") if isinstance(source.get("stored"), Mapping) else {}
    stored = {
        name: dtype for name, dtype in stored.items() if name in specs and specs[name].kind == "video" and dtype in ("float32", "float64")
    }
    dtypes = {name: stored.get(name, spec.dtype) for name, spec in specs.items()}
    plan = Plan(dict(streams), specs, keys, dtypes, rate, 0 if acts or not closing else 1)
    own = {
        "version": OWN_VERSION,
        "streams": {name: spec.to_json() for name, spec in specs.items()},
        "keys": keys,
        "stored": stored,
        "rate_hz": rate,
        "card": {key: value for key, value in card.items() if key != "checksum"},
    }
    return plan, own, lost


def rows_of(plan: Plan, episode: RawEpisode) -> tuple[dict[str, np.ndarray], dict]:
    """(rows of each stream as they lie on disk, the rest of the episode's line); StoreError when it is not legal."""
    arrays = check_episode(plan.streams, episode.arrays)
    count = ticks_of(plan.streams, arrays, plan.rate_hz) + plan.extra
    rows = {
        name: to_rows(arrays[name], plan.streams[name].rate_hz, count, plan.rate_hz).astype(plan.dtypes[name], copy=False)
        for name in plan.specs
    }
    return rows, {"meta": episode.meta, "absent": [name for name in plan.specs if not len(arrays[name])]}


# ---- files -----------------------------------------------------------------------------------------------------------


def _refuse_other(path: Path, own: dict) -> None:
    """FormatError unless there is nothing yet, or what the same call began."""
    if not path.exists() or not any(file.name not in (LOCK_FILE, ".zattrs" + durable.PARTIAL_SUFFIX) for file in path.iterdir()):
        return
    old = (read_json(Folder(path), ".zattrs") or {}).get(OWN_ATTRIBUTE)
    if not isinstance(old, dict):
        raise FormatError(f"{path} holds something else; choose another path")
    for key in ("version", "streams", "keys", "stored", "rate_hz"):
        if old.get(key) != json.loads(json.dumps(own[key])):
            raise FormatError(
                f"{path} cannot be continued: its {key} is {old.get(key)}, that of the episodes to add {own[key]}; choose another path"
            )
    found = cards.differences(old.get("card", {}), own["card"])
    if found:
        raise FormatError(f"{path} cannot be continued: {cards.sentence(found, 'it', 'the episodes to add')}; choose another path")


def _begin(path: Path, own: dict) -> None:
    """Write what is missing of the groups; the attributes come first: they mark the folder as ours to continue."""
    files = {path / ".zattrs": json.dumps({OWN_ATTRIBUTE: own}, indent=1).encode()}
    files |= {folder / ".zgroup": b'{"zarr_format": 2}' for folder in (path, path / "data", path / "meta")}
    for file, content in files.items():
        file.parent.mkdir(exist_ok=True)
        if not file.exists():
            durable.replace_file(file, content)


def _publish_ends(folder: Path, ends: Sequence[int]) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(-(-len(ends) // _ENDS_CHUNK)):
        chunk = np.zeros(_ENDS_CHUNK, "<i8")
        part = ends[number * _ENDS_CHUNK : (number + 1) * _ENDS_CHUNK]
        chunk[: len(part)] = part
        durable.replace_file(folder / str(number), chunk.tobytes())
    durable.replace_file(folder / ".zarray", _array_json((len(ends),), (_ENDS_CHUNK,), np.dtype("<i8"), None))


def _array_json(shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype, compressor: dict | None) -> bytes:
    about = {
        "zarr_format": 2, "shape": shape, "chunks": chunks, "dtype": dtype.str, "compressor": compressor,
        "fill_value": 0, "order": "C", "filters": None,
    }  # fmt: skip
    return json.dumps(about, indent=1).encode()
