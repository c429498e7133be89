"""LIBERO's HDF5: a file a task (`<task>_demo.hdf5`), or a folder of them, as episodes.

| in the file | here |
|---|---|
| `obs/agentview_rgb`, `obs/eye_in_hand_rgb` | cameras `agentview`, `eye_in_hand`, turned upright: they are stored upside down |
| `obs/ee_states`, `gripper_states`, `joint_states`, ... , `robot_states` | state streams |
| `actions`, `rewards`, `dones` | streams `action`, `reward`, `done` |
| `states` | label stream; left out of a folder whose tasks have states of different sizes |
| `problem_info`, the BDDL text | the instruction; both are kept in the card's "libero" |
| `init_state`, `model_file` | metadata key "libero" |

**Observation and action of one row.** LIBERO's recorder steps first and then looks: row k of `obs` is what is seen *after*
`actions[k]`. (`states` are not late: row k is the state before it.) The published policies are trained on the rows as they stand.

    actions   a0  a1  a2   ...  a(T-1)      timing="stored" (default): o'k goes with ak, as in LIBERO's own loader
    obs           o'0 o'1  ...  o'(T-2) o'(T-1)    timing="causal": o'0 is seen before a1, and o'(T-1) is the frame after the last
                                                   action; a0 is left out, because what was seen before it is not in the file
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from uwm_data.errors import FormatError
from uwm_data.formats.controllers import action_card, control_rate, robots
from uwm_data.formats.demonstrations import DEMO, Column, Demo, DemoSource, Survey, demos_of, opened, stale_total, stream_names, surveyed
from uwm_data.formats.hdf5 import Hdf5File, from_json, json_object, looks_like_hdf5, structures, to_json
from uwm_data.formats.libero_states import read_initial_states
from uwm_data.streams import KINDS, StreamSpec

MARKS = {"problem_info", "bddl_file_name"}
RATE_HZ = 20.0
TIMED = re.compile(r"actions|states|robot_states|rewards|dones|obs/.*")
NAMES = {"actions": "action", "rewards": "reward", "dones": "done", "obs/agentview_rgb": "agentview", "obs/eye_in_hand_rgb": "eye_in_hand"}
UNITS = {"ee_pos": "m", "ee_ori": "rad", "joint_states": "rad", "gripper_states": "m"}
LABELS = ("states", "rewards", "dones")
LANGUAGE = re.compile(r"\(:language\s([^()]{1,1000})\)")


def recognise(path: str | Path) -> bool:
    """Whether a file is LIBERO's, or a folder holds such files."""
    path = Path(path)
    try:
        first = next(iter(_files(path)), path) if path.is_dir() else path
        if not looks_like_hdf5(first):
            return False
        file = Hdf5File(first, members=40)
    except (FormatError, OSError):
        return False
    has_demos = any(DEMO.fullmatch(name) for name in file.structure.groups.get("data", ()))
    return has_demos and bool(MARKS & set(file.structure.attributes.get("data", ())))


def read(
    path: str | Path,
    images: bool = True,
    leave_out: str | Collection[str] = (),
    timing: str = "stored",
    initial_states: str | Path | None = None,
    complete: bool = True,
) -> DemoSource:
    """The demonstrations of a LIBERO file, or of all `*.hdf5` of a folder in the order of their names; FormatError if not sound.

    images: False leaves out cameras. leave_out: paths inside a demonstration not to look at. timing: "stored" or "causal" (see the
    module's text). initial_states: a folder with `<task>.pruned_init` files, or one such file; they are kept in the card
    (`initial_states_of` gives them back). They are pickles: they are read without running anything in them.
    complete: False reads files whose total names more ticks than there are.
    """
    if timing not in ("stored", "causal"):
        raise FormatError(f"timing={timing!r} is unknown; use stored or causal")
    files, left_out = _opened(Path(path)), []
    skipped = int(timing == "causal")
    demos = [demo for number, file in enumerate(files) for demo in _demos(file, number, leave_out, complete, skipped, left_out)]
    if not demos:
        raise FormatError(f"{path} has no demonstration with an action")
    survey = surveyed(files, demos, TIMED.fullmatch, {"states"})
    if survey.timed["actions"][2] < len(demos):
        raise FormatError(f"{path}: not every demonstration has actions")
    tasks = [_task(file) for file in files]
    kwargs = _kwargs(tasks[0])
    columns, streams = _streams(survey, demos, images, skipped, control_rate(kwargs) or RATE_HZ, _are_upside_down(files))
    card = _card(files, tasks, kwargs, columns, streams, timing)
    if initial_states is not None:
        card["libero"]["initial_states"] = _initial_states(Path(initial_states), tasks)
    if skipped:
        left_out.append("the first action of every demonstration: what was seen before it is not in the file")
    describe = partial(_meta, tasks=[(task["task"], task["instruction"]) for task in tasks], untimed=sorted(survey.untimed))
    return DemoSource(files, demos, streams, columns, describe, card, [*left_out, *survey.left_out])


def initial_states_of(card: Mapping, task: str) -> np.ndarray:
    """The initial states (count, numbers) of a task that `read(..., initial_states=...)` put into a card."""
    known = card.get("libero", {}).get("initial_states", {})
    if task not in known:
        raise FormatError(
            f"the card has no initial states of {task!r}; it has {', '.join(known) or 'none'}: read with initial_states=FOLDER"
        )
    return from_json(known[task])


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".hdf5", ".h5") and path.is_file())


def _opened(path: Path) -> list[Hdf5File]:
    """The file, or the files of a folder, each proved to be LIBERO's."""
    try:
        paths = _files(path) if path.is_dir() else [path]
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}") from error
    if not paths:
        raise FormatError(f"{path} holds no *.hdf5; LIBERO has one file a task, <task>_demo.hdf5")
    structures(paths)  # all of them by one child process
    files = [opened(one) for one in paths]
    for file in files:
        if not MARKS & set(file.structure.attributes.get("data", ())):
            raise FormatError(f"{file.path} is not LIBERO's: `data` has neither of the attributes {', '.join(sorted(MARKS))}")
    return files


def _demos(file: Hdf5File, number: int, leave_out: Collection[str], complete: bool, skipped: int, left_out: list[str]) -> list[Demo]:
    demos = demos_of(file, number, leave_out)
    complaint = stale_total(file, demos)
    if complaint and complete:
        raise FormatError(f"{complaint}; is the file complete? complete=False reads what is there")
    short = [demo.name for demo in demos if demo.ticks <= skipped]
    left_out += ([complaint] if complaint else []) + ([f"{file.path.name}: {', '.join(short)}: no action left"] if short else [])
    return [demo for demo in demos if demo.ticks > skipped]


def _task(file: Hdf5File) -> dict:
    """Name, instruction and description of a file's task."""
    told = {name: value for name, value in file.attributes("data").items() if isinstance(value, str)}
    return {
        "task": file.path.stem.removesuffix("_demo"),
        "instruction": _instruction(told, file.path),
        "problem_info": json_object(told.get("problem_info")),
        "env_args": json_object(told.get("env_args")),
        **{name: told[name] for name in ("bddl_file_name", "bddl_file_content", "macros_image_convention") if name in told},
    }


def _instruction(told: Mapping[str, str], path: Path) -> str:
    """What the robot is told to do: from problem_info, else the BDDL text, else the file's name."""
    words = json_object(told.get("problem_info")).get("language_instruction")
    if isinstance(words, list):
        words = " ".join(map(str, words))
    found = LANGUAGE.search(told.get("bddl_file_content", ""))
    if not isinstance(words, str) or not words.strip():
        words = found[1] if found else re.sub(r"^[A-Z_0-9]+(?=[a-z])", "", path.stem.removesuffix("_demo")).replace("_", " ")
    return words.strip().strip('"')


def _kwargs(task: Mapping) -> dict:
    kwargs = task["env_args"].get("env_kwargs")
    return kwargs if isinstance(kwargs, dict) else {}


def _are_upside_down(files: Sequence[Hdf5File]) -> bool:
    """Whether images are stored in OpenGL's row order, which is how LIBERO comes."""
    told = {file.attribute("data", "macros_image_convention", "opengl") for file in files}
    if len(told) > 1:
        raise FormatError(f"{files[0].path.parent}: its files store images in different row orders ({told}); read them one by one")
    return told != {"opencv"}


def _streams(
    survey: Survey, demos: Sequence[Demo], images: bool, skipped: int, rate_hz: float, are_upside_down: bool
) -> tuple[dict[str, Column], dict[str, StreamSpec]]:
    """Where each stream stands, and what it is; with `skipped`, what is observed begins a tick earlier than the actions."""
    is_picture = {path: path.startswith("obs/") and len(survey.timed[path][0]) == 3 for path in survey.timed}
    paths = [path for path in survey.timed if images or not is_picture[path]]
    names = stream_names(paths, {path: name for path, name in NAMES.items() if path in paths})
    columns, streams = {}, {}
    kinds = {path: _kind(path, is_picture[path] and survey.timed[path][1] == "uint8") for path in paths}
    for path in sorted(paths, key=lambda path: KINDS.index(kinds[path])):
        shape, dtype, count = survey.timed[path]
        is_late = skipped and path not in (*LABELS, "actions")
        spec = StreamSpec(shape, dtype, rate_hz, kinds[path], closing=bool(is_late) or path == "actions", optional=count < len(demos))
        unit = UNITS.get(names[path])
        streams[names[path]] = replace(spec, units=(unit,) * shape[0]) if unit and shape else spec
        columns[names[path]] = Column(path, upside_down=are_upside_down and is_picture[path], skipped=0 if is_late else skipped)
    return columns, streams


def _kind(path: str, is_camera: bool) -> str:
    if path == "actions":
        return "action"
    if path in LABELS or not TIMED.fullmatch(path):
        return "label"
    return "video" if is_camera else "state"


def _card(
    files: Sequence[Hdf5File], tasks: Sequence[dict], kwargs: dict, columns: Mapping[str, Column], streams: dict, timing: str
) -> dict:
    action = action_card(kwargs, int(np.prod(streams["action"].shape)))
    if len(action["names"]) in streams["action"].shape:
        streams["action"] = replace(streams["action"], names=action["names"], units=action["units"])
    cameras = [name for name, spec in streams.items() if spec.kind == "video"]
    states = [name for name in ("ee_states", "gripper_states") if name in streams]
    late = "row k of obs is seen after action k, as LIBERO stores it" if timing == "stored" else "moved by one tick, so that it is causal"
    return {
        "env": "LIBERO",
        "robot": ", ".join(robots(kwargs)) or "unknown",
        "image_orientation": "upright" if cameras else "none",
        "rate_hz": streams["action"].rate_hz,
        "action": action,
        "policy": {
            "cameras": cameras,
            "proprio": states or [name for name in ("ee_pos", "ee_ori", "gripper_states") if name in streams],
            "action": "action",
        },
        "source": {
            "format": "libero",
            "version": "1",
            "name": files[0].path.name if len(files) == 1 else files[0].path.parent.name,
            "names": {name: column.path for name, column in columns.items()},
            "images_stored": "upside down" if any(column.upside_down for column in columns.values()) else "upright",
            "timing": f"{timing}: {late}",
        },
        "libero": {"tasks": {task["task"]: {key: value for key, value in task.items() if key != "task"} for task in tasks}},
    }


def _meta(
    file: Hdf5File, demo: Demo, arrays: Mapping[str, np.ndarray], tasks: Sequence[tuple[str, str]], untimed: Sequence[str]
) -> dict[str, Any]:
    task, instruction = tasks[demo.file]
    attributes = {name: value for name, value in file.attributes(demo.group).items() if name != "num_samples"}
    state = attributes.pop("init_state", None)
    kept: dict[str, Any] = {"attributes": {name: to_json(value) for name, value in attributes.items()}}
    if isinstance(state, np.ndarray) and state.dtype.kind == "f" and np.isfinite(state).all():
        kept["init_state"] = state.tolist()
    kept |= {"arrays": {path: to_json(file.values(demo.datasets[path])) for path in untimed if path in demo.datasets}} if untimed else {}
    meta = {"task": task, "instruction": instruction, "libero": kept}
    if "reward" in arrays:
        meta["success"] = bool(np.any(arrays["reward"] > 0))
    return {**meta, "source": {"format": "libero", "file": file.path.name, "name": demo.name}}


def _initial_states(path: Path, tasks: Sequence[Mapping]) -> dict[str, Any]:
    """{task: its packed initial states}, as far as there are files; FormatError when there are none at all."""
    places = {task["task"]: path / f"{task['task']}.pruned_init" if path.is_dir() else path for task in tasks}
    found = {task: to_json(read_initial_states(place)) for task, place in places.items() if place.is_file()}
    if not found or (len(tasks) > 1 and not path.is_dir()):
        raise FormatError(f"{path}: expected {next(iter(places))}.pruned_init, or a folder with such a file for each task")
    return found
