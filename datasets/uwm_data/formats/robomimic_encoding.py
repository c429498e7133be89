"""One demonstration as robomimic keeps it: which stream goes where, and the small HDF5 file that a worker makes of an episode."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from uwm_data.errors import FormatError
from uwm_data.formats import RawEpisode
from uwm_data.formats.hdf5 import from_json, h5py_module
from uwm_data.journal import canonical
from uwm_data.streams import StreamSpec, check_episode

KEPT = "uwm"  # the attribute that keeps what robomimic has no place for
VERSION = 1
LIKE_THE_NAME = {"reward": "rewards", "done": "dones", "states": "states"}
SPLITS = {"validation": "valid", "val": "valid"}


@dataclass(frozen=True)
class Plan:
    """What goes where: every stream of the episodes, and for those that are written their path in a demonstration."""

    streams: dict[str, StreamSpec]
    paths: dict[str, str]
    action: str
    next_obs: bool
    compress: bool
    done_mode: str
    derives: bool = True

    @property
    def derived(self) -> list[str]:
        """Paths that are made up here, because no stream holds them; nothing is added to what came from a robomimic file."""
        return [path for path in ("rewards", "dones") if self.derives and path not in self.paths.values()]


def paths_of(streams: Mapping[str, StreamSpec], card: Mapping, action: str) -> tuple[dict[str, str], list[str]]:
    """({stream: its path in a demonstration}, streams that find no place, in words)."""
    source = card.get("source", {})
    before = source.get("names", {}) if source.get("format") == "robomimic" else {}
    paths, left_out = {}, []
    for name, spec in streams.items():
        if spec.rate_hz != streams[action].rate_hz:
            left_out.append(f"{name}: {spec.rate_hz:g} Hz, and a robomimic file has one rate, the actions' {streams[action].rate_hz:g} Hz")
            continue
        path = before.get(name) or _path(name, spec, action)
        taken = set(paths.values())
        paths[name] = path if path not in taken else f"obs/{name}"
        if paths[name] in taken:
            raise FormatError(f"streams {name!r} and another one would both be written as {path}; rename one of them")
    return paths, left_out


def _path(name: str, spec: StreamSpec, action: str) -> str:
    if name == action:
        return "actions"
    if name == "action_abs":
        return "actions_abs"
    if spec.kind == "action":
        return f"action_dict/{name.removeprefix('action_')}"
    if spec.kind == "label" and not spec.closing:
        return LIKE_THE_NAME.get(name, f"labels/{name}")
    return f"obs/{name}_image" if spec.kind == "video" else f"obs/{name}"


def not_kept(plan: Plan) -> list[str]:
    """What the layout cannot hold, in words."""
    told = []
    observed = {name: plan.streams[name].closing for name, path in plan.paths.items() if path.startswith("obs/")}
    closing = [name for name, is_closing in observed.items() if is_closing]
    if closing and not plan.next_obs:
        told.append(f"the frame after the last action of {', '.join(closing)} (next_obs is off)")
    elif closing and len(closing) < len(observed):
        open_ended = ", ".join(name for name in observed if name not in closing)
        told.append(f"next_obs of {open_ended}: these end with the last action; load the file with hdf5_load_next_obs off, or without them")
    lost = [name for name, path in plan.paths.items() if plan.streams[name].closing and not path.startswith("obs/")]
    lost = [name for name in lost if plan.streams[name].kind != "action"]
    told += [f"{name}: its frame after the last action, as it is not an observation" for name in lost]
    maybe = [name for name in plan.paths if plan.streams[name].optional and name != plan.action]
    if maybe:
        told.append(f"{', '.join(maybe)} may be missing in a demonstration, and robomimic's loader wants all keys in all of them")
    return told


def encoded(plan: Plan, raw: RawEpisode) -> bytes:
    """A small HDF5 file with one demonstration in the group `demo`; FormatError on an episode that is not legal."""
    arrays = check_episode(plan.streams, raw.arrays)
    if not len(arrays[plan.action]):
        raise FormatError("the episode has no actions, and robomimic keeps demonstrations only; leave it out")
    try:
        return _image(plan, arrays, json.loads(canonical(raw.meta)))
    except (OSError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"the episode cannot be written as HDF5: {error}") from error


def _image(plan: Plan, arrays: Mapping[str, np.ndarray], meta: dict) -> bytes:
    kept = meta.pop("robomimic", {})
    derived = plan.derived
    with h5py_module().File("demo", "w", driver="core", backing_store=False) as file:
        demo = file.create_group("demo")
        for name, path in plan.paths.items():
            _add_stream(demo, plan, path, plan.streams[name], arrays[name], len(arrays[plan.action]))
        _add_derived(demo, plan, arrays, meta)
        for path, value in kept.get("arrays", {}).items():
            demo[path] = plain(value)
        for name, value in kept.get("attributes", {}).items():
            demo.attrs[name] = plain(value)
        if meta.get("instruction") and "ep_meta" not in demo.attrs:
            demo.attrs["ep_meta"] = json.dumps({"lang": meta["instruction"]})
            derived = [*derived, "ep_meta"]
        demo.attrs["num_samples"] = len(arrays[plan.action])
        demo.attrs[KEPT] = json.dumps({"meta": meta, "derived": derived, "sections": sorted(kept)})
        file.attrs["name"] = _name(meta)
        file.attrs["masks"] = json.dumps(kept.get("masks") or _split(meta))
        file.flush()
        return file.id.get_file_image()


def _add_stream(demo: Any, plan: Plan, path: str, spec: StreamSpec, values: np.ndarray, ticks: int) -> None:
    if not len(values):
        return  # an optional stream that this episode lacks
    frames = {path: values[:ticks]}
    if plan.next_obs and spec.closing and path.startswith("obs/"):
        frames[f"next_{path}"] = values[1:]
    for place, rows in frames.items():
        if plan.compress and spec.kind == "video":
            demo.create_dataset(place, data=rows, chunks=(1, *spec.shape), compression="gzip", compression_opts=4)
        else:
            demo.create_dataset(place, data=rows)


def _add_derived(demo: Any, plan: Plan, arrays: Mapping[str, np.ndarray], meta: Mapping) -> None:
    """`rewards` and `dones` where no stream holds them; the reward is 1 on the tick that ends in success, where that is told."""
    last = np.zeros(len(arrays[plan.action]))
    last[-1] = 1
    rewards = next((arrays[name] for name, path in plan.paths.items() if path == "rewards"), None)
    if "rewards" in plan.derived and "success" in meta:
        demo["rewards"] = rewards = last * bool(meta["success"])
    if "dones" in plan.derived:
        succeeded = np.zeros(len(last), bool) if rewards is None or rewards.ndim != 1 or not len(rewards) else rewards >= 1
        done = {"both": succeeded | (last > 0), "end": last > 0, "success": succeeded}[plan.done_mode]
        demo["dones"] = done.astype(np.int64)


def plain(value: Any) -> Any:
    """A kept value as h5py writes it; texts as variable-length strings."""
    told = from_json(value)
    if isinstance(told, np.ndarray) and told.dtype.kind == "O":
        return told.astype(h5py_module().string_dtype())
    return told


def _name(meta: Mapping) -> str:
    source = meta.get("source", {})
    return str(source.get("name", "")) if isinstance(source, Mapping) and source.get("format") == "robomimic" else ""


def _split(meta: Mapping) -> dict[str, None]:
    split = meta.get("split")
    return {SPLITS.get(split, split): None} if isinstance(split, str) and split else {}
