"""robomimic's HDF5 (v0.2 to v0.5; robosuite 1.2, 1.4 and 1.5 files, and its gym ones): demonstrations as episodes.

| in the file | here |
|---|---|
| `data/demo_<i>`, in the order of i | episodes; `filter_key` takes those that `mask/<filter_key>` names |
| `actions` (T, A), `actions_abs` | streams `action` and `action_abs` (with actions="actions_abs": `action_recorded` and `action`) |
| `action_dict/<k>` | action streams `action_<k>` |
| `obs/<k>` (T, ...) | images (`agentview_image`: stream `agentview`), the rest as states; depth keeps its shape (H, W, 1) |
| `next_obs/<k>` (T, ...) | its last row is the frame after the last action. The rest must be obs one tick later, or it is not used |
| `states`, `rewards`, `dones`, `datagen_info/...` | label streams of T frames |
| attributes, masks, small arrays without a row a tick | metadata key "robomimic"; those of `data` in the card's "robomimic" |

Images stand upright in the file: robomimic itself turns the rows that the renderer delivers upside down. Files that were made
with the renderer set to IMAGE_CONVENTION = "opencv" got turned the wrong way: read those with images_stored="upside down".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from uwm_data.errors import FormatError
from uwm_data.formats.controllers import action_card, control_rate, robots
from uwm_data.formats.demonstrations import DEMO, Demo, DemoSource, demos_of, opened, stale_total, surveyed
from uwm_data.formats.hdf5 import Hdf5File, json_object, looks_like_hdf5, to_json
from uwm_data.formats.robomimic_encoding import KEPT
from uwm_data.formats.robomimic_layout import ACTIONS, Kept, Layout, kept_in
from uwm_data.formats.robomimic_writing import write
from uwm_data.streams import StreamSpec

__all__ = ["read", "recognise", "write"]

ROBOSUITE = 1  # robomimic's number for the kind of environment
RATE_HZ = 20.0  # robosuite's control_freq where env_args do not tell one
TIMED = re.compile(r"actions|actions_abs|states|rewards|dones|(obs|next_obs|action_dict|labels)/.*")
FROM_STREAMS = ("cameras", "rates_hz", "units")  # of a card: what a store fills in by itself
PROPRIO = re.compile(r"(robot\d+_)?((right|left)_)?(eef_pos|eef_quat|gripper_qpos)")


def recognise(path: str | Path) -> bool:
    """Whether a file is robomimic's: `data` with demonstrations that have observations, or env_args with env_name and type.

    LIBERO's files are another format, and so are demonstrations without observations that robosuite's collector (attribute `env`)
    wrote: they have to be replayed.
    """
    if not looks_like_hdf5(path):
        return False
    try:
        file = Hdf5File(path, members=40)
        known = set(file.structure.attributes.get("data", ()))
        demo = next((name for name in file.structure.groups.get("data", ()) if DEMO.fullmatch(name)), None)
        if f"data/{demo}/actions" not in file.structure.datasets or {"problem_info", "bddl_file_name"} & known:
            return False
        told = json_object(file.attribute("data", "env_args", ""))
        file.close()
    except FormatError:
        return False
    return f"data/{demo}/obs" in file.structure.groups or ("env" not in known and {"env_name", "type"} <= set(told))


def read(
    path: str | Path,
    filter_key: str | None = None,
    actions: str | None = None,
    images: bool = True,
    leave_out: str | Collection[str] = (),
    next_obs: str = "check",
    images_stored: str = "upright",
    complete: bool = True,
    rate_hz: float | None = None,
) -> DemoSource:
    """The demonstrations of a robomimic file; FormatError where they are not sound.

    filter_key: a mask; only its demonstrations. actions: which dataset is the stream `action`, "actions" or "actions_abs"
    (default: the first, or what a writer of ours noted). images: False leaves out cameras and depth.
    leave_out: paths inside a demonstration, such as "obs/object", not to look at.
    next_obs: "check" compares it with obs, "trust" takes its last row as it is, "ignore" does without.
    images_stored: "upright" or "upside down" (see the module's text). complete: False reads files whose masks or total name more
    demonstrations than there are. rate_hz: ticks per second where the file's control_freq is absent or wrong.
    """
    _refuse_unknown(actions=(actions, (None, *ACTIONS)), next_obs=(next_obs, ("check", "trust", "ignore")))
    _refuse_unknown(images_stored=(images_stored, ("upright", "upside down")))
    file = opened(path)
    kept, env_args, left_out = kept_in(file), json_object(file.attribute("data", "env_args", "")), _unread(file)
    demos, masks = demos_of(file, 0, leave_out), _masks(file)
    _check_whole(file, demos, masks, complete, left_out)
    demos = _chosen(file, demos, masks, filter_key, left_out)
    survey = surveyed([file], demos, TIMED.fullmatch, {"states"})
    actions = actions or kept.action
    if survey.timed.get(actions, ((), "", 0))[2] < len(demos):
        raise FormatError(f"{path}: not every demonstration has {actions}; it has {[key for key in survey.timed if 'action' in key]}")
    told_rate = rate_hz or control_rate(_kwargs(env_args)) or kept.rate_hz
    layout = Layout(file, demos, survey, kept, actions, images, next_obs, images_stored == "upside down", float(told_rate or RATE_HZ))
    origin = {"images_stored": images_stored, "rate_hz": "told" if told_rate else "assumed", "filter_key": filter_key}
    card = _card(file, env_args, layout, masks, kept if actions == kept.action else Kept(), origin)
    describe = partial(_meta, task=card["env"], places=_places(masks), untimed=sorted(survey.untimed))
    return DemoSource([file], demos, layout.streams, layout.columns, describe, card, [*left_out, *layout.left_out, *survey.left_out])


def _refuse_unknown(**options: tuple[Any, Sequence[Any]]) -> None:
    for name, (value, known) in options.items():
        if value not in known:
            raise FormatError(f"{name}={value!r} is unknown; use one of {', '.join(str(one) for one in known if one)}")


def _kwargs(env_args: Mapping) -> dict:
    kwargs = env_args.get("env_kwargs")
    return kwargs if isinstance(kwargs, dict) else {}


def _unread(file: Hdf5File) -> list[str]:
    """What stands in the file beside demonstrations and masks, in words."""
    structure = file.structure
    told = [f"{name}: not part of robomimic's layout" for name in structure.groups[""] if name not in ("data", "mask")]
    told += [f"data/{name}: not a demonstration" for name in structure.groups["data"] if not DEMO.fullmatch(name)]
    deeper = {path.split("/", 2)[2] for path in structure.attributes if path.count("/") > 1}
    told += [f"attributes of {path} in a demonstration" for path in sorted(deeper)]
    odd = sorted({re.sub(r"demo_\d+", "demo_<i>", path) for path in structure.refused if "@" in path})
    return told + [f"attribute {path}: neither text nor plain numbers" for path in odd]


def _masks(file: Hdf5File) -> dict[str, list[str]]:
    """{filter key: names of demonstrations, in the order of the file}."""
    return {name: file.texts(f"mask/{name}") for name in file.below("mask")}


def _places(masks: Mapping[str, Sequence[str]]) -> dict[str, dict[str, int]]:
    """{demonstration: {mask: its place there}}."""
    places: dict[str, dict[str, int]] = {}
    for mask, names in masks.items():
        for place, name in enumerate(names):
            places.setdefault(name, {})[mask] = place
    return places


def _check_whole(file: Hdf5File, demos: Sequence[Demo], masks: Mapping[str, Sequence[str]], complete: bool, left_out: list[str]) -> None:
    """Whether masks and total speak of the demonstrations that are there."""
    held = {demo.name for demo in demos}
    complaints = [stale_total(file, demos)]
    for mask, names in masks.items():
        gone = [name for name in names if name not in held]
        twice = [name for name, times in Counter(names).items() if times > 1]
        complaints.append(f"{file.path}: mask/{mask} names {gone[0]} and {len(gone) - 1} more that are not there" if gone else "")
        complaints.append(f"{file.path}: mask/{mask} names {twice[0]} twice" if twice else "")
    complaints = [text for text in complaints if text]
    if complaints and complete:
        raise FormatError(f"{complaints[0]}; is the file complete? complete=False reads what is there")
    left_out += complaints


def _chosen(file: Hdf5File, demos: list[Demo], masks: Mapping[str, Sequence[str]], key: str | None, left_out: list[str]) -> list[Demo]:
    if key is not None and key not in masks:
        raise FormatError(f"{file.path} has no filter key {key!r}; it has {', '.join(masks) or 'none'}")
    wanted = None if key is None else set(masks[key])
    chosen = [demo for demo in demos if wanted is None or demo.name in wanted]
    empty = [demo.name for demo in chosen if not demo.ticks]
    if empty:
        left_out.append(f"{', '.join(empty[:5])}: no actions in them ({len(empty)} demonstrations)")
    chosen = [demo for demo in chosen if demo.ticks]
    if not chosen:
        raise FormatError(f"{file.path} has no demonstration with an action{f' in mask/{key}' if key else ''}")
    return chosen


def _card(file: Hdf5File, env_args: Mapping, layout: Layout, masks: Mapping[str, Any], kept: Kept, origin: Mapping) -> dict:
    """The card; what a writer of ours kept stands before what robomimic's attributes tell."""
    kwargs = _kwargs(env_args) if env_args.get("type") == ROBOSUITE else {}
    streams = layout.streams
    acts = {name: column.path for name, column in layout.columns.items() if column.path in ACTIONS}
    cards = {name: action_card(kwargs, int(np.prod(streams[name].shape)), path == "actions_abs") for name, path in acts.items()}
    if not kept.card:
        for name, told in cards.items():
            named = {"names": told["names"], "units": told["units"]} if len(told["names"]) in streams[name].shape else {}
            streams[name] = replace(streams[name], **named)
    action = layout.action
    cameras = [name for name, spec in streams.items() if spec.kind == "video"]
    policy = {"cameras": cameras, "proprio": _proprio(streams), "action": action}
    return {
        "env": str(env_args.get("env_name", "unknown")),
        "robot": ", ".join(robots(kwargs)) or "unknown",
        "action": cards.pop(action),
        **({"other_actions": cards} if cards else {}),
        "image_orientation": "upright" if cameras else "none",
        **{key: value for key, value in kept.card.items() if key not in FROM_STREAMS},
        "policy": _narrowed(kept.card.get("policy"), streams) or policy,
        "rate_hz": streams[action].rate_hz,
        "source": {
            "format": "robomimic",
            "version": f"robosuite {env_args.get('env_version', 'unknown')}" if kwargs else "unknown",
            "name": file.path.name,
            "names": {name: column.path for name, column in layout.columns.items()},
            **{key: value for key, value in origin.items() if value},
        },
        "robomimic": _attributes(file, masks),
    }


def _narrowed(policy: Any, streams: Mapping[str, StreamSpec]) -> dict:
    """A kept policy without the streams that are not read; nothing where there is none that fits."""
    try:
        fitting = {key: [name for name in policy[key] if name in streams] for key in ("cameras", "proprio")}
        return {**policy, **fitting} if policy["action"] in streams else {}
    except (KeyError, TypeError):
        return {}


def _attributes(file: Hdf5File, masks: Mapping[str, Any]) -> dict:
    """What only robomimic knows about the whole file. env_args stay readable."""
    attributes = {name: to_json(value) for name, value in file.attributes("data").items() if name != "total"}
    if isinstance(text := file.attribute("data", "env_args"), str):
        attributes["env_args"] = text
    root = {name: to_json(value) for name, value in file.attributes("").items() if name != KEPT}
    return {"attributes": attributes, "root": root, "masks": {name: file.structure.datasets[f"mask/{name}"].dtype for name in masks}}


def _meta(
    file: Hdf5File, demo: Demo, arrays: Mapping[str, np.ndarray], task: str, places: Mapping[str, Mapping], untimed: Sequence[str]
) -> dict:
    """An episode's metadata: what a writer of ours kept, or what the file's attributes and rewards tell."""
    meta, sections, derived = _kept_meta(file, demo)
    attributes = {name: value for name, value in file.attributes(demo.group).items() if name not in {"num_samples", KEPT, *derived}}
    own = {
        "attributes": {name: to_json(value) for name, value in attributes.items()},
        "arrays": {path: to_json(file.values(demo.datasets[path])) for path in untimed if path in demo.datasets},
        "masks": dict(places.get(demo.name, {})),
    }
    own = {key: value for key, value in own.items() if (value if meta is None else key in sections)}
    meta = _told(file, demo, attributes, arrays, task) if meta is None else meta
    return {**meta, **({"robomimic": own} if own else {})}


def _kept_meta(file: Hdf5File, demo: Demo) -> tuple[dict | None, list, list[str]]:
    """(metadata, sections of its key "robomimic", attributes made up) as our writer kept them; None in other files."""
    kept = json_object(file.attribute(demo.group, KEPT, ""))
    if not kept:
        return None, [], []
    try:
        return dict(kept["meta"]), list(kept["sections"]), list(map(str, kept["derived"]))
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{file.path}: {demo.name}: its attribute {KEPT} is damaged ({error!r})") from error


def _told(file: Hdf5File, demo: Demo, attributes: Mapping, arrays: Mapping[str, np.ndarray], task: str) -> dict:
    meta: dict[str, Any] = {"task": task, "source": {"format": "robomimic", "file": file.path.name, "name": demo.name}}
    instruction = json_object(attributes.get("ep_meta")).get("lang")
    if isinstance(instruction, str) and instruction:
        meta["instruction"] = instruction
    rewards = arrays.get("reward")
    # Shaped rewards do not tell success; sparse ones are 1 where the task's own test holds.
    if rewards is not None and rewards.size and np.isin(rewards, (0, 1)).all():
        meta["success"] = bool(rewards.any())
    return meta


def _proprio(streams: Mapping[str, StreamSpec]) -> list[str]:
    """Gripper pose and fingers of each robot, in that order."""
    found = [name for name, spec in streams.items() if spec.kind == "state" and PROPRIO.fullmatch(name)]
    order = ("eef_pos", "eef_quat", "gripper_qpos")
    return sorted(found, key=lambda name: next((name.removesuffix(end), place) for place, end in enumerate(order) if name.endswith(end)))
