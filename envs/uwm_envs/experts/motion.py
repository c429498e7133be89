"""What every arm expert shares: a smooth servo towards a pose, correlated disturbances, and the start/act protocol.

An expert decides from the current state what to do next, never from a recorded time line, so a push or a slip is
answered by going back to the phase that the state calls for.
"""

import numpy as np

TRANSLATION_UNIT_M = 0.05
ROTATION_UNIT_RAD = 0.5
OPEN, CLOSE = -1.0, 1.0

# The gripper's frame when it points straight down and its fingers open along the world's y axis.
_DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])


def yaw_rotation(yaw: float) -> np.ndarray:
    """Rotation matrix (3, 3) about the world's z axis by `yaw` radians."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def about(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rotation matrix (3, 3) about a unit `axis` by `angle` radians (Rodrigues' formula)."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * (cross @ cross)


def pointing_down(yaw: float = 0.0) -> np.ndarray:
    """Gripper rotation (3, 3) that points down, turned by `yaw` radians about the vertical."""
    return yaw_rotation(yaw) @ _DOWN


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle (3,), in radians, of a rotation matrix; fine for angles below pi."""
    twice_sine = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    sine = np.linalg.norm(twice_sine) / 2.0
    angle = np.arctan2(sine, (np.trace(rotation) - 1.0) / 2.0)
    return twice_sine * (0.5 if sine < 1e-9 else angle / (2.0 * sine))


def wrapped(angle: float, period: float) -> float:
    """The representative of `angle` nearest to zero, modulo `period` (radians)."""
    return angle - period * np.round(angle / period)


def shortened(vector: np.ndarray, limit: float) -> np.ndarray:
    """`vector` scaled down to length `limit` if it is longer, so that its direction stays."""
    length = np.linalg.norm(vector)
    return vector if length <= limit else vector * (limit / length)


def servo(state, position, rotation=None, gripper=OPEN, gain=1.5, top_speed=0.6) -> np.ndarray:
    """Action (7,) that moves the gripper towards a pose: proportional, with a soft limit below the action limits.

    `position` in metres, `rotation` a matrix (3, 3) or None to keep pointing down as it is; both in the world frame.
    A gain of 1 asks for the whole error in one tick; the arm lags, so 1.5 is quick and still does not overshoot.
    """
    to_base = state["base_rot"].T
    action = np.zeros(7)
    shift = to_base @ (np.asarray(position) - state["eef_pos"]) * gain / TRANSLATION_UNIT_M
    action[:3] = shortened(shift, top_speed)
    if rotation is not None:
        turn = to_base @ rotation_vector(rotation @ state["eef_rot"].T) * gain / ROTATION_UNIT_RAD
        action[3:6] = shortened(turn, 0.5)
    action[6] = gripper
    return action


class Pushes:
    """Constant vectors (size,) of `length` in a random direction for three to six ticks, each tick with this chance of a new one."""

    def __init__(self, length: float, size: int, rng: np.random.Generator, chance: float = 1.0 / 60.0):
        self.length, self.chance, self._rng = length, chance, rng
        self._value, self._left = np.zeros(size), 0

    def __call__(self) -> np.ndarray:
        self._left -= 1
        if self._left == 0:
            self._value = np.zeros(len(self._value))
        if self._left <= 0 and self._rng.random() < self.chance:
            self._left = int(self._rng.integers(3, 7))
            direction = self._rng.standard_normal(len(self._value))
            self._value = self.length * direction / np.linalg.norm(direction)
        return self._value


class Disturbance:
    """Correlated action noise with occasional pushes; acts on motion only, never on the gripper.

    The noise is an Ornstein-Uhlenbeck process with standard deviation `scale` on translation and a sixth of it on
    rotation (action units) and a correlation time of ten ticks: slow errors spread the places that are visited without
    hiding what was meant, where noise of the same reach that changes every tick would drown the intended action. Pushes
    are four times that length, on average one in 60 ticks, so that recoveries appear in the data.
    """

    MEMORY = np.exp(-1.0 / 10.0)

    def __init__(self, scale: float, rng: np.random.Generator):
        self._spread = scale * np.array([1.0, 1.0, 1.0, 1 / 6, 1 / 6, 1 / 6])
        self._rng = rng
        self._value = self._spread * rng.standard_normal(6)
        self.pushes = Pushes(4.0 * scale, 3, rng)

    def __call__(self) -> np.ndarray:
        fresh = self._rng.standard_normal(6)
        self._value = self.MEMORY * self._value + np.sqrt(1 - self.MEMORY**2) * self._spread * fresh
        return self._value + np.pad(self.pushes(), (0, 3))


class ArmExpert:
    """Base of the arm experts: subclasses give `strategies`, `begin(state)` and `intend(state) -> action (7,)`."""

    strategies: tuple[str, ...] = ("only",)

    def __init__(self, noise: float = 0.0, strategy: str = "random"):
        if strategy != "random" and strategy not in self.strategies:
            raise ValueError(f"no strategy {strategy!r}: expected random or one of {', '.join(self.strategies)}")
        if not noise >= 0.0:
            raise ValueError(f"noise is {noise}, expected a number of at least 0")
        self.noise = noise
        self._wanted = strategy

    def start(self, env, rng: np.random.Generator) -> None:
        """Begin an episode after `env.reset`; draws the strategy and all noise from `rng`."""
        drawn = self.strategies[int(rng.integers(len(self.strategies)))]
        self.strategy = drawn if self._wanted == "random" else self._wanted
        self._disturb = Disturbance(self.noise, rng)
        self.begin(env.unwrapped.privileged())

    def act(self, env) -> tuple[np.ndarray, np.ndarray]:
        """The action to execute and the one intended without noise, both float32 (7,) within [-1, 1]."""
        intended = np.clip(self.intend(env.unwrapped.privileged()), -1.0, 1.0)
        action = intended.copy()
        action[:6] = np.clip(action[:6] + self._disturb(), -1.0, 1.0)
        return action.astype(np.float32), intended.astype(np.float32)
