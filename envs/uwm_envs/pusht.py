"""Push-T in MuJoCo: a disc pushes a T-shaped block onto its outline.

y +0.256 +----------------+    The square of 512 x 512 pixels of the known task, one pixel a millimetre,
         |  .             |    origin in the middle and y up. Walls at 0.251 m.
         |     T   goal   |    The action is where the pusher should go: [-1, 1] is [-0.256, 0.256] m.
         |  o             |    The pusher follows like a damped spring (20 rad/s), so it arrives late.
  -0.256 +----------------+ x
"""

import copy
import os
import sys
from pathlib import Path
from typing import ClassVar

import gymnasium
import numpy as np

from uwm_envs import tee
from uwm_envs.action_limits import checked_action

CAMERAS = ("agentview",)
RATE_HZ = 10
HALF_WIDTH_M = 0.256
WALL_M = 0.251
PUSHER_RADIUS_M = 0.015
SUCCESS_COVERAGE = 0.90
XML = Path(__file__).parent / "assets" / "pusht.xml"


class PushT(gymnasium.Env):
    """The world; `observation` is "image" or "state", `render` is "fast" or "quality", `image_size` in pixels.

    Observation: "proprio" float32 (2,), pusher x and y in m; with `proprio="state"` the whole state, for policies without a camera.
    With "image": "agentview" uint8 (image_size, image_size, 3),
    from straight above, +x right, +y up. With "state": "state" float32 (6,), pusher x y, block x y (centre of mass, m),
    cosine and sine of its angle; cameras then only when asked for.
    Action: float32 (2,) in [-1, 1], absolute target of the pusher in units of 0.256 m, held for 0.1 s.
    Reward: coverage, the share of the goal that the block covers, in [0, 1]. (Diffusion Policy, Chi et al. 2023, rewards
    clip(coverage / 0.95, 0, 1) instead.) `terminated` and info["success"] once coverage >= 0.90; truncated after `max_steps` (300).
    """

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": RATE_HZ}

    def __init__(
        self, cameras=None, image_size=64, render="fast", max_steps=None, observation="image", render_mode=None, proprio="pusher"
    ):
        _check_choice("observation", observation, ("image", "state"))
        _check_choice("proprio", proprio, ("pusher", "state"))
        _check_choice("render", render, ("fast", "quality"))
        self.cameras = tuple((CAMERAS if observation == "image" else ()) if cameras is None else cameras)
        for name in self.cameras:
            _check_choice("camera", name, CAMERAS)
        self.image_size, self.profile = int(image_size), render
        self.max_steps, self.render_mode = int(max_steps or 300), render_mode
        self._mujoco = _import_mujoco()
        self._model, self._data = _load(self._mujoco, render, self.image_size)
        self._substeps = round(1 / RATE_HZ / self._model.opt.timestep)
        self._shows_state, self._renderer, self._steps = observation == "state", None, 0
        self._feels_state = proprio == "state"
        self._low, self._high = np.full(2, -1.0), np.full(2, 1.0)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = self._space()
        self.card = _card(self, observation)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        draw = self.np_random.uniform
        block = draw((-0.15, -0.15, -np.pi), (0.15, 0.15, np.pi))
        pusher = draw((-0.2, -0.2), (0.2, 0.2))
        while tee.distance(pusher, block) < PUSHER_RADIUS_M + 0.005:
            pusher = draw((-0.2, -0.2), (0.2, 0.2))
        self.place(pusher, block)
        return self.observe(), self._info()

    def step(self, action):
        self._data.ctrl[:] = checked_action(action, self._low, self._high) * HALF_WIDTH_M
        self._mujoco.mj_step(self._model, self._data, self._substeps)
        self._refresh()
        self._steps += 1
        info = self._info()
        return self.observe(), info["coverage"], info["success"], self._steps >= self.max_steps, info

    def place(self, pusher, block) -> None:
        """Start over with the pusher at (x, y) and the block at (x, y, angle), at rest; m and rad, not checked for contact."""
        self._mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:] = (*block, *pusher)
        self._data.ctrl[:] = pusher
        self._steps = 0
        self._refresh()

    def shift_object(self, offset: np.ndarray) -> None:
        """Moves the block by (x, y) metres at once, as a hand might between two ticks; it lies still then."""
        self._data.qpos[:2] += np.asarray(offset, np.float64)
        self._data.qvel[:3] = 0.0
        self._refresh()

    def observe(self) -> dict[str, np.ndarray]:
        """The observation of the current state (also right after `set_state`)."""
        x, y, angle, *pusher = self._data.qpos
        observation = {name: self._image(name) for name in self.cameras}
        state = np.array((*pusher, x, y, np.cos(angle), np.sin(angle)), dtype=np.float32)
        observation["proprio"] = state if self._feels_state else state[:2].copy()
        if self._shows_state:
            observation["state"] = state
        return observation

    def render(self):
        return self._image("agentview")

    def close(self):
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def privileged(self) -> dict[str, np.ndarray]:
        """The scene for experts: "block" and "goal" (x, y, angle), "pusher" and "pusher_velocity" (x, y); m, rad, m/s."""
        qpos, qvel = self._data.qpos.copy(), self._data.qvel.copy()
        return {"block": qpos[:3], "goal": np.array(tee.GOAL_POSE), "pusher": qpos[3:], "pusher_velocity": qvel[3:]}

    def get_state(self) -> dict:
        """Everything that the future depends on; feed it to `set_state` to continue bit for bit."""
        kind = self._mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.empty(self._mujoco.mj_stateSize(self._model, kind))
        self._mujoco.mj_getState(self._model, self._data, physics, kind)
        return {"physics": physics, "steps": self._steps, "rng": copy.deepcopy(self.np_random.bit_generator.state)}

    def set_state(self, state: dict) -> None:
        kind = self._mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.asarray(state["physics"], dtype=np.float64)
        expected = self._mujoco.mj_stateSize(self._model, kind)
        if physics.shape != (expected,):
            raise ValueError(f"state['physics'] must hold {expected} numbers, got shape {physics.shape}; is it of another world?")
        self._mujoco.mj_setState(self._model, self._data, physics, kind)
        self._steps = int(state["steps"])
        self.np_random.bit_generator.state = copy.deepcopy(state["rng"])
        self._refresh()

    def _refresh(self):
        # mj_step leaves the drawn positions one physics tick behind qpos. mj_forward would mend that too, but it also
        # writes the solver's warm start, and a restored episode would no longer be bitwise equal.
        self._mujoco.mj_kinematics(self._model, self._data)
        self._mujoco.mj_camlight(self._model, self._data)

    def _info(self):
        covered = tee.coverage(self._data.qpos[:3].tolist())
        return {"success": covered >= SUCCESS_COVERAGE, "coverage": covered}

    def _image(self, camera):
        if self._renderer is None:
            self._renderer = self._mujoco.Renderer(self._model, self.image_size, self.image_size)
        self._renderer.update_scene(self._data, camera)
        if self.profile == "fast":  # update_scene does not keep them
            flags = self._mujoco.mjtRndFlag
            for flag in (flags.mjRND_SHADOW, flags.mjRND_REFLECTION):
                self._renderer.scene.flags[flag] = 0
        return self._renderer.render()

    def _space(self):
        box, pixels = gymnasium.spaces.Box, (self.image_size, self.image_size, 3)
        spaces = {name: box(0, 255, pixels, np.uint8) for name in self.cameras}
        limit = np.array([HALF_WIDTH_M] * 4 + [1.0] * 2, dtype=np.float32)
        own = limit if self._feels_state else limit[:2]
        spaces["proprio"] = box(-own, own, dtype=np.float32)
        if self._shows_state:
            spaces["state"] = box(-limit, limit, dtype=np.float32)
        return gymnasium.spaces.Dict(spaces)


def _check_choice(what, value, choices):
    if value not in choices:
        raise ValueError(f"PushT: {what} must be one of {choices}, got {value!r}")


def _import_mujoco():
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # read once, when mujoco is first imported
    try:
        import mujoco
    except ImportError as error:
        raise ImportError("PushT needs mujoco: pip install 'uwm[sim]'") from error
    return mujoco


def _load(mujoco, render, image_size):
    model = mujoco.MjModel.from_xml_path(str(XML))
    if render == "fast":
        model.vis.quality.offsamples = 0  # only counts before the GL context exists
    model.vis.global_.offwidth = model.vis.global_.offheight = image_size
    return model, mujoco.MjData(model)


def _card(env, observation):
    card = {
        "env": "PushT",
        "robot": "planar pusher",
        "rate_hz": RATE_HZ,
        "cameras": list(env.cameras),
        "image_size": env.image_size,
        "image_orientation": "upright",
        "render_profile": env.profile,
        "observation": observation,
        "action": {
            "names": ["target_x", "target_y"],
            "units": ["0.256 m", "0.256 m"],
            "low": [-1.0, -1.0],
            "high": [1.0, 1.0],
            "convention": "absolute target position of the pusher in the world frame, 1.0 is 0.256 m, held for one tick",
            "mode": "absolute",
            "frame": "world",
            "gripper": "none",
        },
        "proprio": {"names": ["pusher_x", "pusher_y"], "units": ["m", "m"]},
        "versions": {"mujoco": env._mujoco.__version__, "gymnasium": gymnasium.__version__, "numpy": np.__version__},
        "max_steps": env.max_steps,
        "success_coverage": SUCCESS_COVERAGE,
    }
    names = ["pusher_x", "pusher_y", "block_x", "block_y", "block_cos", "block_sin"]
    state = {"names": names, "units": ["m", "m", "m", "m", "1", "1"]}
    return card | ({"state": state} if observation == "state" else {}) | ({"proprio": state} if env._feels_state else {})
