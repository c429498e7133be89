"""The five robosuite tasks: their names, limits, instructions, and where their objects are."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

ROTATION_UNIT = "rotation matrix entry, first two columns"


@dataclass(frozen=True)
class Task:
    """A task: `max_steps` in ticks of 50 ms; `objects(sim_env, data)` gives the poses an expert needs (m, world frame).

    `loose(sim_env)` is the body of the object that the task is about, if it lies about freely.
    """

    name: str
    robosuite_name: str
    max_steps: int
    instruction: str
    objects: Callable
    loose: Callable | None = None


def _pose(data, body: int, name: str) -> dict[str, np.ndarray]:
    return {f"{name}_pos": data.xpos[body].copy(), f"{name}_rot": data.xmat[body].reshape(3, 3).copy()}


def as_numbers(objects: dict[str, np.ndarray], gripper_pos: np.ndarray) -> dict[str, tuple[str, float]]:
    """{name: (unit, number)} of what `Task.objects` gives: places, how far they are from the gripper, rotations by two columns, angles."""
    told = {}
    for name, value in objects.items():
        if name.endswith("_pos"):
            told |= {f"{name}_{axis}": ("m (world)", number) for axis, number in zip("xyz", value, strict=True)}
            away = f"gripper_to_{name.removesuffix('_pos')}"
            told |= {f"{away}_{axis}": ("m", number) for axis, number in zip("xyz", value - gripper_pos, strict=True)}
        elif name.endswith("_rot"):
            entries = [(row, column) for column in (0, 1) for row in range(3)]
            told |= {f"{name[:-3]}r{row}{column}": (ROTATION_UNIT, value[row, column]) for row, column in entries}
        else:
            told |= {f"{name}_{index}": ("rad", number) for index, number in enumerate(value)}
    return told


def _lift(sim_env, data):
    return _pose(data, sim_env.cube_body_id, "cube")


def _stack(sim_env, data):
    return _pose(data, sim_env.cubeA_body_id, "cubeA") | _pose(data, sim_env.cubeB_body_id, "cubeB")


def _can(sim_env, data):
    middle_of_compartment = sim_env.target_bin_placements[sim_env.object_id].copy()
    return _pose(data, sim_env.obj_body_id["Can"], "can") | {"bin_pos": middle_of_compartment}


def _nut(sim_env, data):
    handle = data.site_xpos[sim_env.object_site_ids[sim_env.nut_id]].copy()
    peg = data.xpos[sim_env.peg1_body_id].copy()
    return _pose(data, sim_env.obj_body_id["SquareNut"], "nut") | {"handle_pos": handle, "peg_pos": peg}


def _door(sim_env, data):
    angles = {"hinge": sim_env.hinge_qpos_addr, "latch": sim_env.handle_qpos_addr}
    return (
        _pose(data, sim_env.object_body_ids["door"], "door")
        | _pose(data, sim_env.object_body_ids["latch"], "latch")
        | {"handle_pos": data.site_xpos[sim_env.door_handle_site_id].copy()}
        | {"hinge_pos": data.xanchor[sim_env.sim.model.joint_name2id(sim_env.door.joints[0])].copy()}
        | {f"{name}_angle": data.qpos[[address]] for name, address in angles.items()}
    )


TASKS = {
    task.name: task
    for task in (
        Task("Lift", "Lift", 150, "lift the red cube", _lift, lambda sim_env: sim_env.cube_body_id),
        Task("Stack", "Stack", 250, "stack the red cube on the green cube", _stack, lambda sim_env: sim_env.cubeA_body_id),
        Task("PickPlaceCan", "PickPlaceCan", 400, "put the can into its bin", _can, lambda sim_env: sim_env.obj_body_id["Can"]),
        Task(
            "NutAssemblySquare", "NutAssemblySquare", 400, "put the square nut on the square peg", _nut,
            lambda sim_env: sim_env.obj_body_id["SquareNut"],
        ),
        Task("Door", "Door", 300, "open the door", _door),
    )
}  # fmt: skip


def task_named(name: str) -> Task:
    """Return a task; ValueError lists the known names."""
    if name not in TASKS:
        raise ValueError(f"no robosuite task {name!r}: expected one of {', '.join(TASKS)}")
    return TASKS[name]
