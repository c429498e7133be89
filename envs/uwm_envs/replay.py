"""Other people's robosuite demonstrations, shown state by state in robosuite 1.5.2: images, proprioception, actions.

    recorded    s0 ---- a0 ----> s1 ---- a1 ----> s2 ... s(N-1)      a(N-1) leads nowhere and is left out
    shown       o0               o1               o2     o(N-1)      cameras and proprio, as in our own worlds
    action      c0               c1               ...    c(N-2)      recomputed from the poses

Only the state vector (time, joint positions, joint velocities) is used: the model files of robosuite 1.0 to 1.4 do not load in
1.5. The recorded actions belong to other controllers (other delta frames, values that were cut off inside), so those of
our convention are recomputed: `commands` asks which goal takes *our* controller from one recorded pose to the next.

What the states do not tell: where the door stood (drawn from 2 cm and 14 degrees; shown in the middle of that), the
exact size of Lift's cube (within 2 mm), and the dirt of Wipe (not shown; whether it was wiped is not known).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from uwm_envs.experts.motion import ROTATION_UNIT_RAD, TRANSLATION_UNIT_M, rotation_vector
from uwm_envs.manipulation import ACTION_NAMES, RATE_HZ, Manipulation
from uwm_envs.simulator import load_mujoco
from uwm_envs.tasks import TASKS, Task

STIFFNESS = 150.0  # of the arm's controller, 1/s^2, critically damped: a test holds it to the world's


def _nothing(sim_env, data) -> dict:
    return {}


# What people recorded and no expert of ours does. `max_steps` never matters: a replay is as long as its recording.
_ONLY_REPLAYED = (
    Task("NutAssembly", "NutAssembly", 1000, "put both nuts on their pegs", _nothing),
    Task("NutAssemblyRound", "NutAssemblyRound", 1000, "put the round nut on the round peg", _nothing),
    Task("PickPlace", "PickPlace", 1000, "put milk, bread, cereal and can into their bins", _nothing),
    Task("PickPlaceMilk", "PickPlaceMilk", 1000, "put the milk into its bin", _nothing),
    Task("PickPlaceBread", "PickPlaceBread", 1000, "put the bread into its bin", _nothing),
    Task("PickPlaceCereal", "PickPlaceCereal", 1000, "put the cereal into its bin", _nothing),
    Task("Wipe", "Wipe", 1000, "wipe the table", _nothing),
)
REPLAYED = TASKS | {task.name: task for task in _ONLY_REPLAYED}


def replayed_task(name: str) -> Task:
    """The task of a recording by robosuite's name for it; ValueError says what cannot be replayed, and why."""
    if name in REPLAYED:
        return REPLAYED[name]
    why = "two arms are more than our worlds have" if name.startswith("TwoArm") else "it is not a single-arm task of robosuite 1.x"
    raise ValueError(f"demonstrations of {name!r} cannot be replayed: {why}; replayed are {', '.join(REPLAYED)}")


@dataclass(frozen=True)
class Replayed:
    """T + 1 observations and T actions; `recorded` are the recorded actions in seven numbers; `success` None: unknown.

    `clipped` tells what the limits of the action cut off: "values" (how many numbers), "share" of all, "largest" before.
    """

    observations: dict[str, np.ndarray]
    action: np.ndarray
    recorded: np.ndarray
    success: bool | None
    clipped: dict


class Replay:
    """One task's world, showing recorded states; owns a GL context like every world, so close it in its process.

    `version` is the robosuite that recorded: 1.0 had a smaller cereal box. Options as in `uwm_envs.make`.
    """

    def __init__(self, task: str, cameras=("agentview", "wrist"), image_size=64, render="fast", version: str = ""):
        self.world = Manipulation(replayed_task(task), cameras=cameras, image_size=image_size, render=render)
        # Before the first reset: that draws, and a mesh goes to the graphics card once.
        _ADJUSTMENTS.get(task, lambda world, version: None)(self.world, version)
        self.world.reset(seed=0)

    def close(self) -> None:
        """Free the world."""
        self.world.close()

    def show(self, states: np.ndarray, actions: np.ndarray) -> Replayed:
        """Replay `states` (N, 1 + nq + nv), float64, recorded before `actions` (N, 7; Wipe has 6: no gripper).

        N - 1 actions result. ValueError on states of another model or rate, fewer than two, or numbers that are not finite.
        """
        states, recorded = _checked(states), _with_gripper(actions, len(states))
        frames, poses = [], []
        for state in states:
            self.world.set_flat_state(state)
            frames.append(self.world.observe())
            poses.append(self._pose())
        action, clipped = self._actions(poses, recorded[:-1, -1])
        observations = {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}
        # The last state is the current one, contacts included.
        success = None if self.world.card["env"] == "Wipe" else self.world.succeeded()
        return Replayed(observations, action, recorded[:-1].astype(np.float32), success, clipped)

    def _pose(self) -> tuple[np.ndarray, ...]:
        """Position (3,), rotation (3, 3), velocity (3,) and angular velocity (3,) of the gripper in the robot base's frame."""
        world, seen = self.world, self.world.privileged()
        turn, spin = np.empty((2, 3, world.model.nv))
        load_mujoco().mj_jacSite(world.model, world.data, turn, spin, world.gripper_site)
        to_base = seen["base_rot"].T
        velocity = to_base @ turn @ world.data.qvel, to_base @ spin @ world.data.qvel
        return to_base @ seen["eef_pos"], to_base @ seen["eef_rot"], *velocity

    def _actions(self, poses, gripper) -> tuple[np.ndarray, dict]:
        wanted = commands(*(np.stack(part) for part in zip(*poses, strict=True)))
        beyond = np.abs(wanted) > 1.0
        clipped = {"values": int(beyond.sum()), "share": float(beyond.mean()), "largest": float(np.abs(wanted).max())}
        action = np.concatenate([np.clip(wanted, -1.0, 1.0), np.sign(gripper)[:, None]], axis=1)
        return action.astype(np.float32), clipped


def commands(position, rotation, velocity, spin) -> np.ndarray:
    """The arm's action (N - 1, 6) that takes our controller from each of N poses to the next, in action units.

    position (N, 3) m, rotation (N, 3, 3), velocity (N, 3) m/s, spin (N, 3) rad/s, all in the robot base's frame. Contact
    and joint friction are not in it: what the arm pushed against shows as less motion, not as a larger command, and rotations
    come out about a quarter too small (translations 4 %).
    """
    turn = np.stack([rotation_vector(after @ before.T) for before, after in pairwise(rotation)])
    shift = _goal_of_spring(np.diff(position, axis=0), velocity[:-1]) / TRANSLATION_UNIT_M
    return np.concatenate([shift, _goal_of_spring(turn, spin[:-1]) / ROTATION_UNIT_RAD], axis=1)


def _goal_of_spring(moved, velocity) -> np.ndarray:
    """How far away the goal was, if a critically damped spring with this velocity at first moved so far in one tick.

    With w^2 the stiffness, x'' = w^2 (g - x) - 2 w x' from x = 0 gives x(t) = g (1 - (1 + wt) e^-wt) + v t e^-wt. A tick
    from rest covers only an eighth of the way to the goal: this is why a displacement is not a command.
    """
    tick = 1.0 / RATE_HZ
    decay = np.exp(-np.sqrt(STIFFNESS) * tick)
    return (moved - velocity * tick * decay) / (1.0 - (1.0 + np.sqrt(STIFFNESS) * tick) * decay)


def _checked(states) -> np.ndarray:
    states = np.asarray(states)
    if states.ndim != 2 or len(states) < 2 or states.dtype.kind != "f":
        raise ValueError(f"expected at least two states, floats (N, 1 + nq + nv), got {states.dtype} {states.shape}")
    if not np.isfinite(states).all():
        row, column = np.argwhere(~np.isfinite(states))[0]
        raise ValueError(f"state {row} is not finite: {states[row, column]} at number {column}")
    apart = np.diff(states[:, 0])
    if np.abs(apart - 1.0 / RATE_HZ).max() > 1e-3:
        row = int(np.abs(apart - 1.0 / RATE_HZ).argmax())
        raise ValueError(
            f"states {row} and {row + 1} are {apart[row]:.4f} s apart, expected {1.0 / RATE_HZ} s ({RATE_HZ} Hz): "
            "record one state per control step, without gaps"
        )
    return states


def _with_gripper(actions, count: int) -> np.ndarray:
    """Recorded actions as (N, 7); a tool without fingers gets a gripper column of 0, which holds."""
    actions, size = np.asarray(actions), len(ACTION_NAMES)
    if actions.ndim != 2 or actions.dtype.kind != "f" or len(actions) != count or actions.shape[1] not in (size - 1, size):
        raise ValueError(f"expected {count} actions of {size} numbers, one per state, got {actions.dtype} {actions.shape}")
    if not np.isfinite(actions).all():
        row, column = np.argwhere(~np.isfinite(actions))[0]
        raise ValueError(f"action {row} is not finite: {actions[row, column]} at number {column}")
    return np.pad(actions, ((0, 0), (0, size - actions.shape[1])))


# ---------------------------------------------------------------------------------- what a recording's model had and ours has not


def _door_in_the_middle(world: Manipulation, version: str) -> None:
    """Let the reset put the door in the middle of where robosuite draws its place from."""
    sampler = world.sim_env.placement_initializer
    for name in ("x_range", "y_range", "rotation"):
        setattr(sampler, name, [float(np.mean(getattr(sampler, name)))] * 2)


def _small_cereal(world: Manipulation, version: str) -> None:
    """robosuite 1.0 scaled the mesh of the cereal box by 0.4 in width and height."""
    if not version.startswith("1.0."):
        return
    model, mesh = world.model, world.model.mesh("Cereal_cereal_mesh")
    rotation = np.empty(9)
    load_mujoco().mju_quat2Mat(rotation, model.mesh_quat[mesh.id])
    into_body = rotation.reshape(3, 3)
    scale = into_body.T @ np.diag([0.4, 1.0, 0.4]) @ into_body
    rows = slice(int(mesh.vertadr[0]), int(mesh.vertadr[0] + mesh.vertnum[0]))
    model.mesh_vert[rows] = model.mesh_vert[rows] @ scale


def _clean_table(world: Manipulation, version: str) -> None:
    """Hide the dirt; in robosuite 1.0 the table of Wipe was lower, deeper and nearer, and the robot stood farther back."""
    model = world.model
    for marker in world.sim_env.model.mujoco_arena.markers:
        for name in marker.visual_geoms:
            model.geom(name).group = 0  # not drawn
    if version.startswith("1.0."):
        model.body("table").pos += (-0.15, 0.0, -0.1)
        model.body("robot0_base").pos[0] -= 0.05
        for name in ("table_collision", "table_visual"):
            model.geom(name).size[0] = 0.3


_PICK_PLACE = {name: _small_cereal for name in REPLAYED if name.startswith("PickPlace")}
_ADJUSTMENTS: dict[str, Callable[[Manipulation, str], None]] = {"Door": _door_in_the_middle, "Wipe": _clean_table, **_PICK_PLACE}
