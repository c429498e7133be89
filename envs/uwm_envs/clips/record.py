"""Clips: the arm does what an instruction says, seen by several cameras, with everything that is known about it.

    clips = make(64, seed=0)                                   seconds; the same arrays wherever it runs
    clips = make(2000, seed=0, cache=Path("runs/clips"))       drawn once, then read back
    clips = make(64, seed=0, world="mujoco")                   with MuJoCo's contacts and renderer

```
frame    0     1     2    ...   T - 1          frames, depth, segmentation, tip, blocks, proprio: T of each
action      0     1     2   ...                action, touched: T - 1 of each; action t leads from frame t to frame t + 1
```
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from uwm_envs.clips import arm, cameras, grammar

VERSION = 1  # of what is drawn: other pictures or motions are other clips
NOISE = 0.03  # metres a frame on the expert's action, so that actions matter


@dataclass(frozen=True)
class Clips:
    """C clips of T frames. `frames` {camera: (C, T, H, W, 3) uint8}; `depth` {camera: (C, T, H, W) float32, metres along the axis};
    `segmentation` {camera: (C, T, H, W) uint8, see `cameras`}; `action` (C, T - 1, 2) metres a frame; `proprio` (C, T, 6); `tip` (C, T, 2)
    and `blocks` (C, T, 4, 2) in metres; `touched` (C, T - 1, 4); `instruction`, `plan`: C texts; `intrinsics`, `extrinsics` {camera:
    (3, 3), (3, 4)}."""

    frames: dict[str, np.ndarray]
    depth: dict[str, np.ndarray]
    segmentation: dict[str, np.ndarray]
    action: np.ndarray
    proprio: np.ndarray
    tip: np.ndarray
    blocks: np.ndarray
    touched: np.ndarray
    instruction: list[str]
    plan: list[str]
    intrinsics: dict[str, np.ndarray]
    extrinsics: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.action)


def make(
    count: int,
    seed: int = 0,
    frames: int = 8,
    side: int = 32,
    views: Sequence[str] = tuple(cameras.CAMERAS),
    cache: Path | None = None,
    world: str = "table",
    on_clip: Callable[[int], None] = lambda index: None,
) -> Clips:
    """`count` clips; clip i follows from (seed, i) alone. ValueError for no clip, fewer than two frames, or an unknown camera or world.

    `cache`: a folder where they are kept; a file that is damaged or of other settings is not used but made anew. `world`: "table" is
    plain numpy (`arm.py`, `cameras.py`), the same wherever it runs; "mujoco" is the same scene with dynamics (`scene.py`).
    """
    if world not in WORLDS:
        raise ValueError(f"clips are made in the worlds {list(WORLDS)}, got {world!r}")
    unknown = sorted(set(views) - set(cameras.CAMERAS))
    if unknown or not views:
        raise ValueError(f"cameras are {list(cameras.CAMERAS)}, got {unknown or 'none'}")
    if count < 1 or frames < 2 or side < 4 or seed < 0:
        raise ValueError(f"there must be a clip, two frames, four pixels and a seed >= 0, got {count}, {frames}, {side}, {seed}")
    told = {"version": VERSION, "count": count, "seed": seed, "frames": frames, "side": side, "views": list(views), "noise": NOISE}
    told |= {} if world == "table" else {"world": world}
    file = None if cache is None else Path(cache) / f"clips-{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]}.npz"
    kept = None if file is None else _read(file, told)
    if kept is not None:
        return kept
    parts = []
    with WORLDS[world](side) as place:
        for index in range(count):
            parts.append(_clip(np.random.default_rng([seed, index]), frames, views, place))
            on_clip(index)
    clips = _together(parts, side, views)
    if file is not None:
        _write(file, clips, told)
    return clips


def _clip(generator: np.random.Generator, frames: int, views: Sequence[str], place: "Place") -> dict:
    goals = grammar.draw_instruction(generator)
    plan = grammar.draw_plan(goals, generator)
    goal = plan[0].goal  # what comes first in the plan is what is seen
    table, look = place(arm.draw_table(generator, goal))
    states, actions, touched = [], [], []
    for frame in range(frames):
        seen = {name: look(name) for name in views}
        states.append({"seen": seen, "proprio": table.proprio, "tip": table.tip.copy(), "blocks": table.blocks.copy()})
        if frame + 1 < frames:
            actions.append(arm.expert(table, goal) + generator.normal(0, NOISE, 2))
            table.move(actions[-1])
            touched.append(table.touched)
    return {"states": states, "action": np.array(actions, np.float32), "touched": np.array(touched),
            "instruction": grammar.say_instruction(goals), "plan": grammar.say_plan(plan)}  # fmt: skip


# A world gives, for where things are at the beginning, what moves from there and `look(camera) -> (frame, depth, segmentation)`.
Place = Callable[[arm.Table], tuple[Any, Callable]]


@contextmanager
def _drawn(side: int) -> Iterator[Place]:
    yield lambda table: (table, lambda name: cameras.picture(table, cameras.CAMERAS[name], side))


@contextmanager
def _simulated(side: int) -> Iterator[Place]:
    from uwm_envs.clips.scene import Scene

    scene = Scene(side)

    def place(table: arm.Table) -> tuple[Scene, Callable]:
        scene.place(table)
        return scene, scene.picture

    try:
        yield place
    finally:
        scene.close()


WORLDS = {"table": _drawn, "mujoco": _simulated}


def _together(parts: list[dict], side: int, views: Sequence[str]) -> Clips:
    stacked = lambda name, kind: np.array([[state[name] for state in part["states"]] for part in parts], kind)  # noqa: E731
    seen = [{name: np.stack([np.stack([state["seen"][name][which] for state in part["states"]]) for part in parts]) for name in views}
            for which in range(3)]  # fmt: skip
    return Clips(
        *seen, np.stack([part["action"] for part in parts]), stacked("proprio", np.float32), stacked("tip", np.float32),
        stacked("blocks", np.float32), np.stack([part["touched"] for part in parts]), [part["instruction"] for part in parts],
        [part["plan"] for part in parts], {name: cameras.CAMERAS[name].intrinsics(side) for name in views},
        {name: cameras.CAMERAS[name].extrinsics for name in views},
    )  # fmt: skip


def _write(file: Path, clips: Clips, told: dict) -> None:
    """In one move: the file is whole or not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"told": np.array(json.dumps(told))}
    for field in fields(clips):
        value = getattr(clips, field.name)
        inside = {f"{field.name}/{name}": each for name, each in value.items()} if isinstance(value, dict) else {}
        arrays |= inside or {field.name: np.array(value)}
    part = file.with_suffix(f".{os.getpid()}.part.npz")  # processes may want the same clips at once
    np.savez_compressed(part, **arrays)
    part.replace(file)


def _read(file: Path, told: dict) -> Clips | None:
    """What a file holds; None when there is none, or it is damaged or tells of other settings."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            arrays = {name: kept[name] for name in kept.files}
        if json.loads(str(arrays["told"])) != told:
            return None
        found = {}
        for field in fields(Clips):
            inside = {name.partition("/")[2]: value for name, value in arrays.items() if name.startswith(field.name + "/")}
            found[field.name] = inside or arrays[field.name]
        return Clips(**{**found, "instruction": found["instruction"].tolist(), "plan": found["plan"].tolist()})
    except (FileNotFoundError, OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
