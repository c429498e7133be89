"""robosuite table-top tasks as gymnasium environments: Panda arm, pose deltas at 20 Hz, upright images.

A tick:

    action --> controller goal --> 25 x (controller torque, 2 ms of physics) --> proprio, images, success

Observations describe the end of the tick. (robosuite's own sensors sample at its first physics step, so they
are one tick old; they are switched off here.)
"""

import copy
from typing import ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

from uwm_envs import simulator, tasks
from uwm_envs.action_limits import checked_action
from uwm_envs.render import CameraRenderer, profile_named

RATE_HZ = 20
ACTION_NAMES = ("dx", "dy", "dz", "rx", "ry", "rz", "gripper")
ACTION_UNITS = ("0.05 m", "0.05 m", "0.05 m", "0.5 rad", "0.5 rad", "0.5 rad", "-1 opens, +1 closes")
CONVENTION = (
    "robosuite 1.5 OSC_POSE: change of the gripper's pose from where it is now, in the robot base frame "
    "(x forward, y left, z up), translation in units of 0.05 m, rotation vector in units of 0.5 rad; "
    "gripper by its sign, -1 opens, +1 closes, 0 holds; one action per 50 ms"
)
PROPRIO_NAMES = (
    *("eef_x", "eef_y", "eef_z"),
    *("eef_r00", "eef_r10", "eef_r20", "eef_r01", "eef_r11", "eef_r21"),
    *("finger_left", "finger_right"),
)
PROPRIO_UNITS = ("m (world)",) * 3 + (tasks.ROTATION_UNIT,) * 6 + ("m",) * 2
_PROPRIO_LIMIT = np.array([3.0] * 3 + [1.0] * 6 + [0.05] * 2, dtype=np.float32)
_OBJECTS_LIMIT = 10.0  # of metres and radians: what falls off the table goes no further
_FEELS = ("arm", "state")

# What the arm's controller carries from tick to tick: its goal, and the posture it leans to (the episode's first).
_ARM_MEMORY = ("goal_pos", "goal_ori", "initial_joint")

_CAMERAS = {"wrist": "robot0_eye_in_hand"}


class Manipulation(gymnasium.Env):
    """One robosuite task, by its name or as a `Task` of one's own.

    Observation: a dict with each camera as uint8 (image_size, image_size, 3), upright, and "proprio" as float32 (11,):
    gripper position (3, metres, world frame), the first two columns of its rotation matrix (6), finger joints (2, metres).
    With `proprio="state"`, for policies without a camera, the task's objects follow there, as `card["proprio"]` names them.
    Action: float32 (7,) in [-1, 1], see CONVENTION. Reward 1.0 on success, else 0.0. Ends on success, is cut at
    `max_steps` ticks. Raises ValueError for an action that is not finite, out of range or of another shape.
    """

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": RATE_HZ}

    def __init__(
        self, task, cameras=("agentview", "wrist"), image_size=64, render="fast", max_steps=None, render_mode=None, proprio="arm"
    ):
        if proprio not in _FEELS:
            raise ValueError(f"proprio must be one of {_FEELS}, got {proprio!r}")
        self._feels_state = proprio == "state"
        self._task = task if isinstance(task, tasks.Task) else tasks.task_named(task)
        self._profile = profile_named(render)
        self._profile_name = render
        self.cameras = tuple(cameras)
        self._image_size = int(image_size)
        self._max_steps = int(max_steps or self._task.max_steps)
        self.render_mode = render_mode
        self._renderer = None
        self._sim_env = _construct(self._task)
        self._engine = simulator.load_mujoco()
        self._check_cameras()
        self._tick = 0
        self._proprio_limit = self._limit()
        self.action_space = spaces.Box(-1.0, 1.0, (len(ACTION_NAMES),), np.float32)
        self.observation_space = self._observation_space()

    # -- gymnasium --------------------------------------------------------------------------------------------------

    def reset(self, *, seed=None, options=None):
        """Begin an episode; the same seed gives the same episode in any process and after any history."""
        super().reset(seed=seed)
        self._assign_generator()
        self._sim_env.reset()
        self._tick = 0
        self._refresh()
        return self.observe(), {"success": self.succeeded()}

    def step(self, action):
        action = checked_action(action, self.action_space.low, self.action_space.high)
        self._advance(action)
        self._tick += 1
        self._refresh()
        success = self.succeeded()
        truncated = self._tick >= self._max_steps
        return self.observe(), float(success), success, truncated and not success, {"success": success}

    def render(self):
        """The first camera's frame (agentview when there is none), uint8, upright."""
        return self.frame(self.cameras[0] if self.cameras else "agentview")

    def close(self):
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if self._sim_env is not None:
            self._sim_env.close()
            self._sim_env = None

    # -- what experts and analysis may see --------------------------------------------------------------------------

    def privileged(self) -> dict[str, np.ndarray]:
        """Simulator state that a policy never sees: gripper pose and the task's objects, SI units, world frame."""
        site, data = self.gripper_site, self.data
        state = {
            "eef_pos": data.site_xpos[site].copy(),
            "eef_rot": data.site_xmat[site].reshape(3, 3).copy(),
            "fingers": data.qpos[self._finger_index].copy(),
            "base_rot": self._base_rot(),
        }
        state.update(self._task.objects(self._sim_env, data))
        return state

    @property
    def card(self) -> dict:
        """What a store or checkpoint must know about this world; JSON-able."""
        told = card(self._task.name, self.cameras, self._image_size, self._profile_name)
        if self._feels_state:
            objects = self._objects()
            units = [*PROPRIO_UNITS, *(unit for unit, _ in objects.values())]
            told["proprio"] = {"names": [*PROPRIO_NAMES, *objects], "units": units}
        return told | {"instruction": self._task.instruction, "max_steps": self._max_steps}

    # -- the whole state ----------------------------------------------------------------------------------------------

    def get_state(self) -> dict:
        """Everything that the future depends on, as copies: feed it to `set_state` to continue bit for bit."""
        arm, gripper = self._controllers()
        physics = np.empty(self._physics_size())
        self._engine.mj_getState(self.model, self.data, physics, self._engine.mjtState.mjSTATE_INTEGRATION)
        return {
            "task": self._task.name,
            "tick": self._tick,
            "physics": physics,
            # The door and the bins are placed by moving bodies of the model, not joints.
            "body_pos": self.model.body_pos.copy(),
            "body_quat": self.model.body_quat.copy(),
            "arm": {name: np.array(getattr(arm, name)) for name in _ARM_MEMORY},
            "fingers_goal": np.array(gripper.goal_qvel),
            "fingers_command": np.array(self._sim_env.robots[0].gripper["right"].current_action),
            "random": copy.deepcopy(self.np_random.bit_generator.state),
        }

    def set_state(self, state: dict) -> None:
        """Return to a state from `get_state` of the same task, also of another process; ValueError for another task's."""
        if state["task"] != self._task.name or np.shape(state["physics"]) != (self._physics_size(),):
            raise ValueError(f"this state is of {state['task']!r}, the world is {self._task.name!r}: make that world instead")
        arm, gripper = self._controllers()
        self.model.body_pos[:], self.model.body_quat[:] = state["body_pos"], state["body_quat"]
        self._engine.mj_setState(self.model, self.data, np.asarray(state["physics"]), self._engine.mjtState.mjSTATE_INTEGRATION)
        for name in _ARM_MEMORY:
            setattr(arm, name, np.array(state["arm"][name]))
        gripper.goal_qvel = np.array(state["fingers_goal"])
        self._sim_env.robots[0].gripper["right"].current_action = np.array(state["fingers_command"])
        self.np_random.bit_generator.state = copy.deepcopy(state["random"])
        self._assign_generator()
        self._tick = int(state["tick"])
        self._refresh()

    def shift_object(self, offset: np.ndarray) -> None:
        """Moves the task's object by (x, y) metres at once, as a hand might between two ticks; it lies still then.

        ValueError for a task whose object does not lie about freely. What else is there is not asked: mind where it goes.
        """
        if self._task.loose is None:
            raise ValueError(f"nothing lies about freely in {self._task.name!r}")
        joint = self.model.body_jntadr[self._task.loose(self._sim_env)]
        place, speed = self.model.jnt_qposadr[joint], self.model.jnt_dofadr[joint]
        self.data.qpos[place : place + 2] += np.asarray(offset, np.float64)
        self.data.qvel[speed : speed + 6] = 0.0
        self._refresh()

    def set_flat_state(self, state: np.ndarray) -> None:
        """Show a flattened MuJoCo state (1 + nq + nv,): time, positions, velocities, as robosuite records them.

        Poses, cameras and the task's test follow; the controller's goal does not, so it is for looking, not for going on.
        Raises ValueError for a state of another size.
        """
        model, data, state = self.model, self.data, np.asarray(state)
        if state.shape != (1 + model.nq + model.nv,):
            raise ValueError(
                f"a state of {self._task.name} has {1 + model.nq + model.nv} numbers (time, {model.nq} positions, {model.nv} "
                f"velocities), got shape {state.shape}: was it recorded in another task or with another robot?"
            )
        data.time, data.qpos[:], data.qvel[:] = state[0], state[1 : 1 + model.nq], state[1 + model.nq :]
        self._engine.mj_forward(model, data)

    # -- inside -----------------------------------------------------------------------------------------------------

    @property
    def sim_env(self):
        """robosuite's own environment."""
        return self._sim_env

    @property
    def gripper_site(self) -> int:
        """The site, in MuJoCo's numbering, whose pose is the gripper's."""
        return self._sim_env.robots[0].eef_site_id["right"]

    @property
    def sim(self):
        """robosuite's simulation object, for measurements."""
        return self._sim_env.sim

    @property
    def model(self):
        """MuJoCo's MjModel."""
        return self._sim_env.sim.model._model

    @property
    def data(self):
        """MuJoCo's MjData."""
        return self._sim_env.sim.data._data

    def _controllers(self):
        parts = self._sim_env.robots[0].part_controllers
        return parts["right"], parts["right_gripper"]

    def _physics_size(self) -> int:
        return self._engine.mj_stateSize(self.model, self._engine.mjtState.mjSTATE_INTEGRATION)

    @property
    def _finger_index(self):
        return self._sim_env.robots[0]._ref_gripper_joint_pos_indexes["right"]

    def _base_rot(self):
        site = self._sim_env.sim.model.site_name2id("robot0_right_center")
        return self.data.site_xmat[site].reshape(3, 3).copy()

    def _assign_generator(self) -> None:
        """Let every random draw of a reset come from this environment's own generator."""
        self._sim_env.rng = self.np_random
        sampler = getattr(self._sim_env, "placement_initializer", None)
        for part in (sampler, *getattr(sampler, "samplers", {}).values()) if sampler else ():
            part.rng = self.np_random

    def _advance(self, action) -> None:
        """One tick of control: the goal is set at the first physics step, torques follow at each of the 25."""
        sim_env = self._sim_env
        for substep in range(round(1.0 / RATE_HZ / sim_env.model_timestep)):
            sim_env.sim.step1()
            sim_env._pre_action(action, policy_step=substep == 0)
            sim_env.sim.step2()

    def _refresh(self) -> None:
        """Bring poses and cameras up to the end of the tick without touching anything that physics will read."""
        self._engine.mj_kinematics(self.model, self.data)
        self._engine.mj_comPos(self.model, self.data)
        self._engine.mj_camlight(self.model, self.data)

    def succeeded(self) -> bool:
        """The task's own test at the current state."""
        return bool(self._sim_env._check_success())

    def place_cameras(self) -> None:
        """Recompute where cameras and lights are after their entries in the model were changed."""
        self._engine.mj_camlight(self.model, self.data)

    def observe(self) -> dict[str, np.ndarray]:
        """The observation of the current state, also right after `set_state`."""
        observation = {camera: self.frame(camera) for camera in self.cameras}
        observation["proprio"] = self._proprio()
        return observation

    def _proprio(self) -> np.ndarray:
        site = self.gripper_site
        rotation = self.data.site_xmat[site].reshape(3, 3)
        fingers = self.data.qpos[self._finger_index] if len(self._finger_index) else np.zeros(2)  # a wiping tool has none
        values = (self.data.site_xpos[site], rotation[:, 0], rotation[:, 1], fingers)
        objects = [number for _, number in self._objects().values()] if self._feels_state else []
        # Rounding can carry a cosine to 1 + 1e-16; the declared bounds are exact.
        return np.clip(np.concatenate([*values, objects]).astype(np.float32), -self._proprio_limit, self._proprio_limit)

    def _objects(self) -> dict[str, tuple[str, float]]:
        return tasks.as_numbers(self._task.objects(self._sim_env, self.data), self.data.site_xpos[self.gripper_site])

    def _limit(self) -> np.ndarray:
        objects = self._objects().values() if self._feels_state else ()
        own = [1.0 if unit == tasks.ROTATION_UNIT else _OBJECTS_LIMIT for unit, _ in objects]
        return np.concatenate([_PROPRIO_LIMIT, np.array(own, np.float32)])

    def frame(self, camera: str) -> np.ndarray:
        """One frame of any camera of the scene, listed in `cameras` or not: uint8 (image_size, image_size, 3), upright."""
        if self._renderer is None:
            self._renderer = CameraRenderer(self.model, self._image_size, self._profile)
        return self._renderer.draw(self.data, _CAMERAS.get(camera, camera))

    def _observation_space(self) -> spaces.Dict:
        image = (self._image_size, self._image_size, 3)
        members = {camera: spaces.Box(0, 255, image, np.uint8) for camera in self.cameras}
        members["proprio"] = spaces.Box(-self._proprio_limit, self._proprio_limit, dtype=np.float32)
        return spaces.Dict(members)

    def _check_cameras(self) -> None:
        known = list(self._sim_env.sim.model.camera_names)
        for camera in self.cameras:
            if _CAMERAS.get(camera, camera) not in known:
                raise ValueError(f"no camera {camera!r} in {self._task.name}: expected wrist or one of {', '.join(known)}")


def card(env: str, cameras, image_size: int, render: str) -> dict:
    """What the card of any world with this arm says."""
    return {
        "env": env,
        "robot": "Panda",
        "rate_hz": RATE_HZ,
        "cameras": list(cameras),
        "image_size": image_size,
        "image_orientation": "upright",
        "render_profile": render,
        "action": {
            "names": list(ACTION_NAMES),
            "units": list(ACTION_UNITS),
            "low": [-1.0] * len(ACTION_NAMES),
            "high": [1.0] * len(ACTION_NAMES),
            "convention": CONVENTION,
            "mode": "delta",
            "frame": "robot base",
            "gripper": "-1 opens, +1 closes",
        },
        "proprio": {"names": list(PROPRIO_NAMES), "units": list(PROPRIO_UNITS)},
        "versions": simulator.versions(),
    }


def _construct(task):
    """Build the robosuite environment without its renderer, sensors and time limit."""
    robosuite = simulator.load_robosuite()
    sim_env = robosuite.make(
        task.robosuite_name,
        robots="Panda",
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        renderer="mujoco",  # anything else makes robosuite prepare a viewer window
        control_freq=RATE_HZ,
        ignore_done=True,
        # A soft reset keeps the model, so the renderer survives it and a reset costs milliseconds. What is drawn when
        # the model is built (the size of Lift's cube) is pinned by this seed; poses are drawn anew at every reset.
        hard_reset=False,
        seed=0,
    )
    for observable in sim_env._observables.values():
        observable.set_enabled(False)
    return sim_env
