"""Meta-World's fifty table-top tasks as gymnasium environments: Sawyer arm, hand displacements at 80 Hz, upright images.

The package is `metaworld` (MIT, extra `uwm[metaworld]`), imported when a world is made. A tick:

    action --> mocap target moves (up to 1 cm along each axis) --> 5 x 2.5 ms of physics --> proprio, images, success
"""

import copy
import importlib.metadata
from typing import ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

from uwm_envs.action_limits import checked_action
from uwm_envs.render import CameraRenderer, profile_named
from uwm_envs.simulator import choose_gl, load_mujoco

TASKS = (
    "assembly", "basketball", "bin-picking", "box-close", "button-press", "button-press-topdown", "button-press-topdown-wall",
    "button-press-wall", "coffee-button", "coffee-pull", "coffee-push", "dial-turn", "disassemble", "door-close", "door-lock",
    "door-open", "door-unlock", "drawer-close", "drawer-open", "faucet-close", "faucet-open", "hammer", "hand-insert",
    "handle-press", "handle-press-side", "handle-pull", "handle-pull-side", "lever-pull", "peg-insert-side", "peg-unplug-side",
    "pick-out-of-hole", "pick-place", "pick-place-wall", "plate-slide", "plate-slide-back", "plate-slide-back-side",
    "plate-slide-side", "push", "push-back", "push-wall", "reach", "reach-wall", "shelf-place", "soccer", "stick-pull",
    "stick-push", "sweep", "sweep-into", "window-close", "window-open",
)  # fmt: skip
RATE_HZ = 80
MAX_STEPS = 500
ACTION_NAMES = ("dx", "dy", "dz", "gripper")
ACTION_UNITS = ("0.01 m", "0.01 m", "0.01 m", "effort: -1 opens, +1 closes")
CONVENTION = (
    "Meta-World: change of the target that the hand is pulled to, in the world frame (x right, y away from the robot, z up), in "
    "units of 0.01 m; gripper effort, -1 opens, +1 closes; one action per 12.5 ms"
)
PROPRIO_NAMES = ("hand_x", "hand_y", "hand_z", "gripper_opening")
PROPRIO_UNITS = ("m (world)", "m (world)", "m (world)", "0.1 m, 0 closed, 1 open")
_PROPRIO_HIGH = np.array([2.0, 2.0, 2.0, 1.0], dtype=np.float32)
_PROPRIO_LOW = np.array([-2.0, -2.0, -2.0, 0.0], dtype=np.float32)
_CAMERAS = {"agentview": "corner2", "wrist": "gripperPOV"}  # what our other worlds call a view like that: one model sees both
_PLACED = ("body_pos", "body_quat", "site_pos", "geom_pos", "geom_quat")  # of the model: tasks move these at a reset
_PLAIN = (bool, int, float, str, tuple, list, dict, np.ndarray, np.generic, type(None))


class MetaWorld(gymnasium.Env):
    """One Meta-World task.

    Observation: a dict with each camera as uint8 (image_size, image_size, 3), upright, and "proprio" as float32 (4,): hand
    position (3, metres, world), gripper opening in [0, 1]. Action: float32 (4,) in [-1, 1], see CONVENTION. Reward 1.0 on
    success, else 0.0. Ends on success, is cut at `max_steps` ticks. The green and red balls that mark goals are Meta-World's.
    """

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": RATE_HZ}

    def __init__(self, task, cameras=("corner2",), image_size=64, render="fast", max_steps=None, render_mode=None):
        if task not in TASKS:
            raise ValueError(f"no Meta-World task {task!r}: expected one of {', '.join(TASKS)}")
        self.task, self.cameras, self.render_mode = task, tuple(cameras), render_mode
        self._profile, self._profile_name = profile_named(render), render
        self._image_size, self._max_steps = int(image_size), int(max_steps or MAX_STEPS)
        self._renderer = None
        self._engine = load_mujoco()
        self.inner = _construct(task, self._max_steps)
        self._check_cameras()
        self._placed = {name: getattr(self.model, name).copy() for name in _PLACED}
        self._upside_down = self._cameras_upside_down()
        self._tick, self._seen = 0, np.zeros(39)
        self.action_space = spaces.Box(-1.0, 1.0, (len(ACTION_NAMES),), np.float32)
        image = spaces.Box(0, 255, (self._image_size, self._image_size, 3), np.uint8)
        members = dict.fromkeys(self.cameras, image) | {"proprio": spaces.Box(_PROPRIO_LOW, _PROPRIO_HIGH, dtype=np.float32)}
        self.observation_space = spaces.Dict(members)

    def reset(self, *, seed=None, options=None):
        """Begin an episode; the same seed gives the same episode in any process and after any history."""
        super().reset(seed=seed)
        self.inner.np_random = self.np_random
        for name, values in self._placed.items():
            getattr(self.model, name)[:] = values
        self._engine.mj_resetData(self.model, self.data)
        self._seen, _ = self.inner.reset()
        self._tick = 0
        # The reset moved bodies of the model: their poses are only now up to date.
        self._engine.mj_forward(self.model, self.data)
        return self.observe(), {"success": False}

    def step(self, action):
        action = checked_action(action, self.action_space.low, self.action_space.high)
        self._seen, _, _, _, info = self.inner.step(action)
        self._tick += 1
        success = bool(info["success"])
        truncated = self._tick >= self._max_steps
        return self.observe(), float(success), success, truncated and not success, {"success": success}

    def render(self):
        """The first camera's frame (corner2 when there is none), uint8, upright."""
        return self.frame(self.cameras[0] if self.cameras else "corner2")

    def close(self):
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if self.inner is not None:
            self.inner.close()
            self.inner = None

    def observe(self) -> dict[str, np.ndarray]:
        """The observation of the current state, also right after `set_state`."""
        observation = {camera: self.frame(camera) for camera in self.cameras}
        observation["proprio"] = np.clip(self._seen[:4].astype(np.float32), _PROPRIO_LOW, _PROPRIO_HIGH)
        return observation

    def frame(self, camera: str) -> np.ndarray:
        """One frame of any camera of the scene, listed in `cameras` or not: uint8 (image_size, image_size, 3), upright."""
        if self._renderer is None:
            self._renderer = CameraRenderer(self.model, self._image_size, self._profile, hidden_groups=())
        camera = _CAMERAS.get(camera, camera)
        frame = self._renderer.draw(self.data, camera)
        return np.ascontiguousarray(frame[::-1, ::-1]) if camera in self._upside_down else frame

    def privileged(self) -> dict[str, np.ndarray]:
        """What Meta-World's own policies see: "observation" (39,): hand, objects, both a tick ago, and the goal; m."""
        return {"observation": np.array(self._seen)}

    @property
    def model(self):
        """MuJoCo's MjModel."""
        return self.inner.model

    @property
    def data(self):
        """MuJoCo's MjData."""
        return self.inner.data

    @property
    def card(self) -> dict:
        """What a store or checkpoint must know about this world; JSON-able."""
        return {
            "env": f"metaworld-{self.task}",
            "robot": "Sawyer",
            "rate_hz": RATE_HZ,
            "cameras": list(self.cameras),
            "image_size": self._image_size,
            "image_orientation": "upright",
            "render_profile": self._profile_name,
            "action": {
                "names": list(ACTION_NAMES),
                "units": list(ACTION_UNITS),
                "low": [-1.0] * len(ACTION_NAMES),
                "high": [1.0] * len(ACTION_NAMES),
                "convention": CONVENTION,
                "mode": "delta",
                "frame": "world",
                "gripper": "-1 opens, +1 closes",
            },
            "proprio": {"names": list(PROPRIO_NAMES), "units": list(PROPRIO_UNITS)},
            "instruction": self.task.replace("-", " "),
            "max_steps": self._max_steps,
            "versions": {name: importlib.metadata.version(name) for name in ("metaworld", "mujoco", "gymnasium", "numpy")},
        }

    # -- the whole state ----------------------------------------------------------------------------------------------

    def get_state(self) -> dict:
        """Everything that the future depends on, as copies: feed it to `set_state` to continue bit for bit."""
        physics = np.empty(self._physics_size())
        self._engine.mj_getState(self.model, self.data, physics, self._engine.mjtState.mjSTATE_INTEGRATION)
        return {
            "task": self.task,
            "tick": self._tick,
            "physics": physics,
            "placed": {name: getattr(self.model, name).copy() for name in _PLACED},
            "episode": {name: copy.deepcopy(value) for name, value in vars(self.inner).items() if isinstance(value, _PLAIN)},
            "seen": self._seen.copy(),
            "random": copy.deepcopy(self.np_random.bit_generator.state),
        }

    def set_state(self, state: dict) -> None:
        """Return to a state from `get_state` of the same task, also of another process; ValueError for another task's."""
        if state["task"] != self.task or np.shape(state["physics"]) != (self._physics_size(),):
            raise ValueError(f"this state is of {state['task']!r}, the world is {self.task!r}: make that world instead")
        for name, values in state["placed"].items():
            getattr(self.model, name)[:] = values
        self._engine.mj_setState(self.model, self.data, np.asarray(state["physics"]), self._engine.mjtState.mjSTATE_INTEGRATION)
        vars(self.inner).update(copy.deepcopy(state["episode"]))
        self.np_random.bit_generator.state = copy.deepcopy(state["random"])
        self.inner.np_random = self.np_random
        self._tick, self._seen = int(state["tick"]), np.array(state["seen"])
        for bring_up_to_date in (self._engine.mj_kinematics, self._engine.mj_comPos, self._engine.mj_camlight):
            bring_up_to_date(self.model, self.data)  # nothing that physics reads again: a full mj_forward would warm-start otherwise

    def _physics_size(self) -> int:
        return self._engine.mj_stateSize(self.model, self._engine.mjtState.mjSTATE_INTEGRATION)

    # -- cameras --------------------------------------------------------------------------------------------------------

    def _check_cameras(self) -> None:
        known = [self.model.camera(number).name for number in range(self.model.ncam)]
        for camera in self.cameras:
            if _CAMERAS.get(camera, camera) not in known:
                raise ValueError(f"no camera {camera!r} in Meta-World: expected one of {', '.join([*_CAMERAS, *known])}")

    def _cameras_upside_down(self) -> set[str]:
        """Cameras that hang with their top side down: what is high in the world must be high in the picture.

        corner, corner2 and corner3 do. Cameras that look straight down have no such side and stay as they are.
        """
        self._engine.mj_forward(self.model, self.data)
        up = self.data.cam_xmat.reshape(-1, 3, 3)[:, 2, 1]  # world height of each camera's own upwards axis
        return {self.model.camera(number).name for number in np.flatnonzero(up < -0.2)}


def load_metaworld():
    """Import Meta-World; ImportError names the extra when it is missing."""
    choose_gl()
    try:
        import metaworld
    except ImportError as error:
        raise ImportError(
            f"this world needs Meta-World, which could not be imported ({error}); install it with: pip install 'uwm[metaworld]'"
        ) from error
    return metaworld


def _construct(task: str, max_steps: int):
    """Meta-World's own environment of a task, with the goal in its observation and scenes from its generator."""
    load_metaworld()
    from metaworld.env_dict import ENV_CLS_MAP

    inner = ENV_CLS_MAP[f"{task}-v3"]()
    # What `set_task` would set from a pickled benchmark task: scenes come from seeds here instead.
    inner._set_task_called, inner._freeze_rand_vec, inner.seeded_rand_vec = True, False, True
    inner._partially_observable = False
    vars(inner).pop("sawyer_observation_space", None)  # it was cached without the goal, and would cut the goal off to zeros
    inner.max_path_length = max_steps + 1  # it raises there; the limit is ours
    return inner
