"""Human teleoperation of simulated arms: robosuite's own demonstration files, replayed to images, as a `Source` of episodes.

    demo.hdf5   data (env, env_info, repository_version)   demo_1   states (N, 1 + nq + nv)   actions (N, 7)   [model_file]
                                                               |
                uwm_envs.replay: robosuite 1.5.2 ------------> cameras, proprio, action, action_recorded, states

A folder of such files is one dataset. `states` (float64) replay to the same frames again; with several tasks, whose states
differ in size, there is an optional stream of states for each.
`uwm.fetch` gets some.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from uwm_data import StreamSpec
from uwm_data.errors import FormatError
from uwm_data.formats import RawEpisode
from uwm_data.formats.demonstrations import demos_of, opened
from uwm_data.formats.hdf5 import Hdf5File, looks_like_hdf5

DEMO = re.compile(r"demo_\d+")
SUFFIXES = (".hdf5", ".h5")
LOOKED_INTO = 20


def recognise(path: str | Path) -> bool:
    """Whether `path` is a demonstration file of robosuite (not of robomimic or LIBERO), or a folder with one among its first files."""
    path = Path(path)
    if path.is_dir():
        return any(_is_ours(file) for file in islice(_hdf5_below(path), LOOKED_INTO))
    return _is_ours(path)


def _is_ours(path: Path) -> bool:
    if not looks_like_hdf5(path):
        return False
    try:
        structure = Hdf5File(path, members=8).structure
    except FormatError:
        return False
    known = set(structure.attributes.get("data", ()))
    demos = [name for name in structure.groups.get("data", ()) if DEMO.fullmatch(name)]
    if not demos or "env" not in known or {"problem_info", "bddl_file_name"} & known or f"data/{demos[0]}/obs" in structure.groups:
        return False
    return {f"data/{demos[0]}/states", f"data/{demos[0]}/actions"} <= set(structure.datasets)


def _hdf5_below(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.suffix in SUFFIXES and file.is_file())


# --------------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Recording:
    """Demonstration `name` (states of `width` numbers) and what its file says: robosuite's task name, version, the rest in `notes`."""

    file: Hdf5File
    name: str
    width: int
    task: str
    version: str
    notes: dict


def read(path: str | Path, cameras: Sequence[str] = ("agentview", "wrist"), image_size: int = 64, render: str = "fast") -> HumanSource:
    """The demonstrations at `path`; FormatError where they are not sound, or of a task that cannot be replayed.

    In a folder, files that cannot be replayed (two arms, another robot) are named in `left_out`.
    """
    path, cameras = Path(path), (cameras,) if isinstance(cameras, str) else tuple(cameras)
    files = [file for file in sorted(_hdf5_below(path)) if _is_ours(file)] if path.is_dir() else [path]
    recordings, left_out = [], []
    for file in files:
        try:
            recordings += _recordings(file)
        except _NotReplayed as error:
            if not path.is_dir():
                raise
            left_out.append(str(error))
    if not recordings:
        raise FormatError(f"{path} holds no demonstration of robosuite that can be replayed: {'; '.join(left_out) or 'no such file'}")
    return HumanSource(path, recordings, cameras, int(image_size), render, left_out)


class _NotReplayed(FormatError):
    """A sound recording of something that our worlds cannot show."""


def _recordings(path: Path) -> list[Recording]:
    from uwm_envs.replay import replayed_task

    file = opened(path)
    task, version = (str(file.attribute("data", name, "")) for name in ("env", "repository_version"))
    notes = {name: str(told) for name in ("env_info", "date", "time") if (told := file.attribute("data", name)) is not None}
    try:
        replayed_task(task)
    except ValueError as error:
        raise _NotReplayed(f"{path}: {error}") from error
    robots = _robots(path, notes.get("env_info"))
    if robots not in ([], ["Panda"]):
        raise _NotReplayed(f"{path}: recorded with {' and '.join(robots)}; demonstrations of one Panda arm can be replayed")
    demos = demos_of(file)
    for demo in demos:
        if "states" not in demo.datasets or len(demo.datasets["states"].shape) != 2:
            raise FormatError(f"{path}: {demo.name} has no `states` (N, 1 + nq + nv), so there is nothing to replay")
    return [Recording(file, demo.name, demo.datasets["states"].shape[1], task, version, notes) for demo in demos]


def _robots(path: Path, env_info: str | None) -> list[str]:
    try:
        told = json.loads(env_info or "{}").get("robots", [])
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: the attribute env_info is not the JSON that robosuite writes: {error}") from error
    return [str(name) for name in ([told] if isinstance(told, str) else told)]


class HumanSource:
    """Replayed demonstrations as a `Source`. The world of the last task stays open in each process that reads."""

    def __init__(
        self, path: Path, recordings: list[Recording], cameras: tuple[str, ...], image_size: int, render: str, left_out: list[str]
    ):
        self.path, self.recordings = path, recordings
        self.left_out = [*left_out, "the models that were recorded in (model_file): they do not load in robosuite 1.5"]
        self._look = {"cameras": cameras, "image_size": image_size, "render": render}
        self._widths = {each.task: each.width for each in recordings}
        self._names = _state_streams(tuple(self._widths))
        self.streams, self.card = self._described()
        self._stage: tuple[int, tuple[str, str], Any] | None = None

    def __len__(self) -> int:
        return len(self.recordings)

    def _described(self) -> tuple[dict[str, StreamSpec], dict]:
        from uwm_envs import manipulation

        look, tasks = self._look, list(self._widths)
        card = manipulation.card(tasks[0] if len(tasks) == 1 else "unknown", **look)
        rate, action, proprio = card["rate_hz"], card["action"], card["proprio"]
        side = look["image_size"]
        acts = StreamSpec((len(action["names"]),), "float32", rate, "action", action["units"], action["names"])
        streams = {camera: StreamSpec((side, side, 3), "uint8", rate, "video") for camera in look["cameras"]}
        streams["proprio"] = StreamSpec((len(proprio["names"]),), "float32", rate, "state", proprio["units"], proprio["names"])
        streams["action"] = acts
        streams["action_recorded"] = StreamSpec(acts.shape, "float32", rate, "action", (), action["names"])
        several = len(tasks) > 1
        for task, width in self._widths.items():
            streams[self._names[task]] = StreamSpec((width,), "float64", rate, "label", optional=several)
        card["policy"] = {"cameras": list(look["cameras"]), "proprio": ["proprio"], "action": "action"}
        card["source"] = {
            "format": "robosuite",
            "version": ", ".join(sorted({each.version for each in self.recordings})),
            "name": self.path.name,
            "names": {"action_recorded": "actions", **dict.fromkeys(self._names.values(), "states")},
            "replayed": "state by state in robosuite 1.5.2; action: the command of our controller from pose to pose, cut off at +-1",
        }
        return streams, card

    def read(self, index: int) -> RawEpisode:
        """Replay one demonstration; FormatError names file and demo. About 60 ticks a second with two cameras."""
        if not 0 <= index < len(self):
            raise FormatError(f"{self.path} has demonstrations 0 to {len(self) - 1}, asked for {index}")
        recording = self.recordings[index]
        states, actions = (recording.file.array(f"data/{recording.name}/{kind}") for kind in ("states", "actions"))
        try:
            shown = self._staged(recording).show(states, actions)
        except ValueError as error:
            raise FormatError(f"{recording.file.path}: {recording.name}: {error}") from error
        arrays = {**shown.observations, "action": shown.action, "action_recorded": shown.recorded}
        for task, name in self._names.items():
            kept = states if task == recording.task else states[:0]
            arrays[name] = np.ascontiguousarray(kept[:, : self._widths[task]], np.float64).reshape(-1, self._widths[task])
        return RawEpisode(arrays, _meta(recording, shown))

    def _staged(self, recording: Recording) -> Any:
        from uwm_envs.replay import Replay

        wanted = recording.task, recording.version
        if self._stage is None or self._stage[:2] != (os.getpid(), wanted):
            self._clear()
            self._stage = os.getpid(), wanted, Replay(recording.task, version=recording.version, **self._look)
        return self._stage[2]

    def _clear(self) -> None:
        # A graphics context belongs to the process that made it: a forked child only forgets its parent's.
        if self._stage is not None and self._stage[0] == os.getpid():
            self._stage[2].close()
        self._stage = None

    def close(self) -> None:
        """Let go of files and of the world."""
        self._clear()
        for recording in self.recordings:
            recording.file.close()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_stage": None}


def _state_streams(tasks: tuple[str, ...]) -> dict[str, str]:
    return {tasks[0]: "states"} if len(tasks) == 1 else {task: f"states_{task}" for task in tasks}


def _meta(recording: Recording, shown: Any) -> dict:
    from uwm_envs.replay import replayed_task

    success = {} if shown.success is None else {"success": shown.success}
    return {
        "task": recording.task,
        "instruction": replayed_task(recording.task).instruction,
        **success,
        "source": {"format": "robosuite", "file": recording.file.path.name, "demo": recording.name, "version": recording.version},
        "robosuite": {**recording.notes, "clipped": shown.clipped},
    }
