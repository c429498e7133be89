"""The five robosuite tasks: their names, limits, instructions, and where their objects are."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Task:
    """A task: `max_steps` in ticks of 50 ms; `objects(sim_env, data)` gives the poses an expert needs (m, world frame)."""

    name: str
    robosuite_name: str
    max_steps: int
    instruction: str
    objects: Callable
    options: dict = field(default_factory=dict)


def _pose(data, body: int, name: str) -> dict[str, np.ndarray]:
    return {f"{name}_pos": data.xpos[body].copy(), f"{name}_rot": data.xmat[body].reshape(3, 3).copy()}


def _lift(sim_env, data):
    return _pose(data, sim_env.cube_body_id, "cube")


TASKS = {
    task.name: task
    for task in (
        Task("Lift", "Lift", 150, "lift the red cube", _lift),
    )
}


def task_named(name: str) -> Task:
    """Return a task; ValueError lists the known names."""
    if name not in TASKS:
        raise ValueError(f"no robosuite task {name!r}: expected one of {', '.join(TASKS)}")
    return TASKS[name]
