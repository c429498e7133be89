"""Worlds: gymnasium environments and scripted experts, numpy in and numpy out.

    import uwm_envs
    env = uwm_envs.make("Lift", cameras=("agentview", "wrist"), image_size=64)
    expert = uwm_envs.make_expert("Lift", noise=0.1)
    obs, info = env.reset(seed=7)
    expert.start(env, np.random.default_rng(7))
    action, intended = expert.act(env)

Importing this package only registers names; a simulator is imported when a world that needs it is made.
"""

import difflib
import importlib

try:
    import gymnasium
except ImportError as error:
    raise ImportError("worlds need gymnasium, which is not installed: pip install 'uwm[sim]'") from error

from uwm_envs.metaworld import TASKS as METAWORLD_TASKS
from uwm_envs.simulator import choose_gl

choose_gl()  # before anything imports mujoco: it reads the choice once

# world -> (environment class, its fixed arguments, expert class)
_WORLDS = {
    "Lift": ("uwm_envs.manipulation:Manipulation", {"task": "Lift"}, "uwm_envs.experts.lift:LiftExpert"),
    "Stack": ("uwm_envs.manipulation:Manipulation", {"task": "Stack"}, "uwm_envs.experts.stack:StackExpert"),
    "PickPlaceCan": ("uwm_envs.manipulation:Manipulation", {"task": "PickPlaceCan"}, "uwm_envs.experts.can:CanExpert"),
    "NutAssemblySquare": (
        "uwm_envs.manipulation:Manipulation",
        {"task": "NutAssemblySquare"},
        "uwm_envs.experts.nut:NutExpert",
    ),
    "Door": ("uwm_envs.manipulation:Manipulation", {"task": "Door"}, "uwm_envs.experts.door:DoorExpert"),
    "PushT": ("uwm_envs.pusht:PushT", {}, "uwm_envs.experts.pusht:PushTExpert"),
    "Toy": ("uwm_envs.toy:Toy", {}, "uwm_envs.toy:ToyExpert"),
    "ToyColours": ("uwm_envs.toy_colours:ToyColours", {}, "uwm_envs.toy:ToyExpert"),
    **{
        f"metaworld-{task}": ("uwm_envs.metaworld:MetaWorld", {"task": task}, "uwm_envs.experts.metaworld:MetaWorldExpert")
        for task in METAWORLD_TASKS
    },
}

NAMES = tuple(_WORLDS)
FELT = ("PushT", *(name for name, (_, fixed, _) in _WORLDS.items() if fixed.get("task") == name))  # as a whole, with proprio="state"


def _register() -> None:
    for name, (entry_point, fixed, _) in _WORLDS.items():
        world_id = f"uwm/{name}-v0"
        if world_id not in gymnasium.registry:
            gymnasium.register(id=world_id, entry_point=entry_point, kwargs=fixed)


def _known(name: str) -> str:
    if name in _WORLDS:
        return name
    close = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    short = [world for world in NAMES if not world.startswith("metaworld-")]
    raise ValueError(f"no world named {name!r}: expected one of {', '.join(short)}, or metaworld-TASK (uwm_envs.NAMES lists all){hint}")


def make(name: str, **options) -> gymnasium.Env:
    """Make a world by name.

    Options of the image worlds: `cameras` (tuple of names, () for none), `image_size` (pixels), `render`
    ("fast" or "quality"), `max_steps` (ticks, None for the task's own limit); of those in `FELT` also
    `proprio="state"`, for policies without a camera. Raises ValueError for an unknown
    name and ImportError, naming the extra to install, when the world's simulator is missing.
    """
    # gymnasium's passive checker would look at every step of every run; the test suite calls check_env instead.
    return gymnasium.make(f"uwm/{_known(name)}-v0", disable_env_checker=True, **options)


def make_expert(name: str, noise: float = 0.0, strategy: str = "random"):
    """Make the scripted expert of a world.

    `noise` scales correlated action noise (0 is none, 0.3 is already rough); `strategy` is one of the expert's
    `strategies`, or "random" to draw one per episode. Call `start(env, rng)` after each reset, then `act(env)`,
    which gives the action to execute and the noise-free action that was intended.
    """
    module, _, attribute = _WORLDS[_known(name)][2].partition(":")
    return getattr(importlib.import_module(module), attribute)(noise=noise, strategy=strategy)


_register()

__all__ = ["FELT", "NAMES", "make", "make_expert"]
