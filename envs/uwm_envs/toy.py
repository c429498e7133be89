"""A point robot that must get past a disc to a green target: a whole world in numpy, for tests that train.

y +1 +-----------------+      agentview sees the whole square, +x right, +y up (upright).
     |     target      |      wrist sees a square of 0.8 m centred on the robot.
     |                 |
     |  left (O) right |      Going left or right of the disc is equally good, so
     |                 |      demonstrations have two modes.
     |      robot      |
  -1 +-----------------+ x
    -1                +1      metres
"""

import copy
from typing import ClassVar

import gymnasium
import numpy as np

from uwm_envs.action_limits import checked_action

BODIES = ("position", "target", "obstacle")
CAMERAS = ("agentview", "wrist")
RATE_HZ = 10
MAX_SPEED_M_S = 1.0
ROBOT_RADIUS_M = 0.08
TARGET_RADIUS_M = 0.12
OBSTACLE_RADIUS_M = 0.25
SUCCESS_RADIUS_M = 0.1
WRIST_WIDTH_M = 0.8
BACKGROUND, OUTSIDE = (235, 235, 225), (60, 60, 60)
ROBOT_COLOUR, TARGET_COLOUR, OBSTACLE_COLOUR = (40, 80, 220), (40, 180, 70), (200, 60, 50)


class Toy(gymnasium.Env):
    """The toy world; `image_size` is in pixels, `cameras=()` gives no images.

    Observation: each camera uint8 (image_size, image_size, 3), "proprio" float32 (2,) robot position in m, [-1, 1].
    Action: float32 (2,) in [-1, 1], velocity as a fraction of 1 m/s along x and y, held for 0.1 s.
    Reward 1 on the tick that reaches the target (centre within 0.1 m), else 0. Ends after `max_steps` (40).
    `render` is accepted for uniformity: both profiles draw the same picture.
    """

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": RATE_HZ}

    def __init__(self, cameras=CAMERAS, image_size=32, render="fast", max_steps=None, render_mode=None):
        unknown = [name for name in cameras if name not in CAMERAS]
        if unknown:
            raise ValueError(f"unknown camera {unknown[0]!r}; Toy has {CAMERAS}")
        if render not in ("fast", "quality"):
            raise ValueError(f"render must be 'fast' or 'quality', got {render!r}")
        self.cameras, self.image_size = tuple(cameras), int(image_size)
        self.max_steps, self.render_mode = int(max_steps or 40), render_mode
        box = gymnasium.spaces.Box
        self.action_space = box(-1.0, 1.0, (2,), np.float32)
        self._low, self._high = np.full(2, -1.0), np.full(2, 1.0)
        image = box(0, 255, (self.image_size, self.image_size, 3), np.uint8)
        spaces = dict.fromkeys(self.cameras, image)
        self.observation_space = gymnasium.spaces.Dict({**spaces, "proprio": box(-1.0, 1.0, (2,), np.float32)})
        self.card = _card(self.cameras, self.image_size, render, self.max_steps)
        self._position = self._target = self._obstacle = np.zeros(2)
        self._steps, self._still = 0, None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._place()
        self._steps, self._still = 0, None
        return self.observe(), {"success": self._success()}

    def _place(self) -> None:
        """Draw where everything is."""
        draw = self.np_random.uniform
        self._position = draw((-0.3, -0.9), (0.3, -0.7))
        self._target = draw((-0.3, 0.7), (0.3, 0.85))
        self._obstacle = draw((-0.1, -0.1), (0.1, 0.1))

    def step(self, action):
        velocity = checked_action(action, self._low, self._high) * MAX_SPEED_M_S
        self._position = self._free(self._position + velocity / RATE_HZ)
        self._steps += 1
        success = self._success()
        return self.observe(), float(success), success, self._steps >= self.max_steps, {"success": success}

    def observe(self) -> dict[str, np.ndarray]:
        """The observation of the current state (also right after `set_state`)."""
        images = {name: self._image(name) for name in self.cameras}
        return {**images, "proprio": self._position.astype(np.float32)}

    def render(self):
        return self._image(self.cameras[0] if self.cameras else "agentview")

    def privileged(self) -> dict[str, np.ndarray]:
        """The whole scene in m: "position", "target", "obstacle", each (2,). For experts, never for a policy."""
        return {name: getattr(self, "_" + name).copy() for name in BODIES}

    def get_state(self) -> dict:
        """Everything that the future depends on; feed it to `set_state` to continue bit for bit."""
        vectors = {name: getattr(self, "_" + name).copy() for name in BODIES}
        return {**vectors, "steps": self._steps, "rng": copy.deepcopy(self.np_random.bit_generator.state)}

    def set_state(self, state: dict) -> None:
        for name in BODIES:
            setattr(self, "_" + name, np.array(state[name], dtype=np.float64))
        self._steps, self._still = int(state["steps"]), None
        self.np_random.bit_generator.state = copy.deepcopy(state["rng"])

    def _success(self) -> bool:
        return bool(np.hypot(*(self._position - self._target)) <= SUCCESS_RADIUS_M)

    def _free(self, position):
        """Keep the robot inside the walls and outside the disc; it slides along both."""
        inside = np.clip(position, -1 + ROBOT_RADIUS_M, 1 - ROBOT_RADIUS_M)
        away, reach = inside - self._obstacle, OBSTACLE_RADIUS_M + ROBOT_RADIUS_M
        distance = np.hypot(*away)
        if distance >= reach:
            return inside
        direction = away / distance if distance > 1e-9 else np.array([0.0, -1.0])
        return self._obstacle + direction * reach

    def _image(self, camera):
        if camera == "wrist":
            view = _View(self._position, WRIST_WIDTH_M, self.image_size)
            image = view.floor()
            self._draw_still(view, image)
        else:
            view = _View(np.zeros(2), 2.0, self.image_size)
            if self._still is None:  # target and disc do not move within an episode
                self._still = view.floor()
                self._draw_still(view, self._still)
            image = self._still.copy()
        view.disc(image, self._position, ROBOT_RADIUS_M, ROBOT_COLOUR)
        return np.rint(image).astype(np.uint8)

    def _draw_still(self, view, image):
        view.disc(image, self._target, TARGET_RADIUS_M, TARGET_COLOUR)
        view.disc(image, self._obstacle, OBSTACLE_RADIUS_M, OBSTACLE_COLOUR)


class _View:
    """A square window on the plane: `centre` (2,) and `width_m`, drawn on `pixels` x `pixels`, row 0 at the largest y."""

    def __init__(self, centre, width_m, pixels):
        self.pixel_m = width_m / pixels
        offsets = (np.arange(pixels, dtype=np.float32) + 0.5) * self.pixel_m - width_m / 2
        self.x, self.y = centre[0] + offsets, centre[1] - offsets

    def floor(self):
        image = np.empty((len(self.y), len(self.x), 3), np.float32)
        image[:] = BACKGROUND
        image[np.abs(self.y) > 1] = OUTSIDE
        image[:, np.abs(self.x) > 1] = OUTSIDE
        return image

    def disc(self, image, centre, radius_m, colour):
        """Blend a disc in place. The soft edge of one pixel shows positions finer than the pixel grid."""
        reach = radius_m + self.pixel_m
        columns = slice(*np.searchsorted(self.x, (centre[0] - reach, centre[0] + reach)))
        rows = slice(*np.searchsorted(-self.y, (-centre[1] - reach, -centre[1] + reach)))
        dx, dy = self.x[columns] - centre[0], self.y[rows] - centre[1]
        distance = np.sqrt(dx[None, :] ** 2 + dy[:, None] ** 2)
        cover = np.minimum(np.maximum((radius_m - distance) / self.pixel_m + 0.5, 0), 1)[..., None]
        patch = image[rows, columns]
        patch += cover * (np.asarray(colour, np.float32) - patch)


class ToyExpert:
    """Goes around the disc by two way points, where there is one, then to the target.

    noise: standard deviation of what is added to the executed action, in action units. strategy: "left", "right"
    (seen from above, +y ahead) or "random" (a fair coin per episode).
    """

    strategies = ("left", "right")

    def __init__(self, noise=0.0, strategy="random"):
        if strategy not in (*self.strategies, "random"):
            raise ValueError(f"unknown strategy {strategy!r}; Toy has {self.strategies} and 'random'")
        self.noise, self.strategy = float(noise), strategy

    def start(self, env, rng: np.random.Generator) -> None:
        chosen = rng.choice(self.strategies) if self.strategy == "random" else self.strategy
        self.chosen, self._rng = str(chosen), rng
        scene = env.unwrapped.privileged()
        side = -0.45 if self.chosen == "left" else 0.45
        around = [scene["obstacle"] + (side, y) for y in (-0.3, 0.3)] if "obstacle" in scene else []
        self._way = [*around, scene["target"]]

    def act(self, env) -> tuple[np.ndarray, np.ndarray]:
        """Return (executed, intended), both float32 (2,)."""
        position = env.unwrapped.privileged()["position"]
        while len(self._way) > 1 and np.hypot(*(self._way[0] - position)) < 0.12:
            self._way.pop(0)
        wish = (self._way[0] - position) * RATE_HZ / MAX_SPEED_M_S
        intended = wish / max(1.0, np.hypot(*wish))
        executed = np.clip(intended + self.noise * self._rng.standard_normal(2), -1, 1)
        return executed.astype(np.float32), intended.astype(np.float32)


def _card(cameras, image_size, render, max_steps):
    return {
        "env": "Toy",
        "robot": "point",
        "rate_hz": RATE_HZ,
        "cameras": list(cameras),
        "image_size": image_size,
        "image_orientation": "upright",
        "render_profile": render,
        "action": {
            "names": ["velocity_x", "velocity_y"],
            "units": ["m/s", "m/s"],
            "low": [-1.0, -1.0],
            "high": [1.0, 1.0],
            "convention": "velocity of the point in the world frame, 1.0 is 1 m/s, held for one tick",
            "mode": "velocity",
            "frame": "world",
            "gripper": "none",
        },
        "proprio": {"names": ["x", "y"], "units": ["m", "m"]},
        "versions": {"gymnasium": gymnasium.__version__, "numpy": np.__version__},
        "max_steps": max_steps,
    }
