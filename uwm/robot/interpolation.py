"""Set-points a thousand times a second from targets twenty times a second, with limited velocity, acceleration and jerk.

```
targets   x-----------------x-----------------x      20 Hz, absolute
ramp      /                                          straight from the last to the newest in one period of the policy
motion    ~ follows the ramp ~~~~~~~~~~~~~~~~~~.__   1 kHz; could stop at the newest target at any moment, and does if none follows
```

The state is a value and every dimension moves for itself: joints, or positions in space. In each step the jerk is that of a
linear follower of the ramp, held between bounds such that (1) the acceleration stays in its limit, (2) so does the velocity
after the acceleration has been brought back to zero, (3) the place where the motion would stop does not pass the target.
Braking is always inside these bounds, so a motion that keeps the limits can go on keeping them, whatever targets arrive.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STEP_S = 0.001
FOLLOW_PER_S = 30.0  # the follower's three poles: it closes a small gap in some 0.2 s without overshoot
_CANDIDATES = np.linspace(0.0, 1.0, 9)[:, None]


@dataclass(frozen=True)
class Motion:
    """Where each of D dimensions is: position, velocity and acceleration (D,), in units, units/s, units/s^2."""

    position: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray

    @classmethod
    def at(cls, position: np.ndarray) -> Motion:
        """At rest."""
        position = np.array(position, np.float64)
        return cls(position, np.zeros_like(position), np.zeros_like(position))

    @property
    def resting(self) -> bool:
        """True when nothing moves."""
        return not (self.velocity.any() or self.acceleration.any())


@dataclass(frozen=True)
class MotionLimits:
    """Limits per dimension (D,): of the position, and the largest velocity, acceleration and jerk either way, or one for all.

    `step_s`: between two set-points. ValueError when limits leave no room, or when a step is too long for them.
    """

    low: np.ndarray
    high: np.ndarray
    velocity: np.ndarray | float
    acceleration: np.ndarray | float
    jerk: np.ndarray | float
    step_s: float = STEP_S

    def __post_init__(self):
        size = np.shape(self.low)
        for name in ("low", "high", "velocity", "acceleration", "jerk"):
            value = np.broadcast_to(np.asarray(getattr(self, name), np.float64), size).copy()
            object.__setattr__(self, name, value)
            if not np.isfinite(value).all() or (name not in ("low", "high") and (value <= 0).any()):
                raise ValueError(f"motion limit {name} must be finite, and above 0 where it is a rate; got {value}")
        if (self.inner_low >= self.inner_high).any():
            raise ValueError(f"motion limits leave no room: low {self.low}, high {self.high}")
        if (self.acceleration < 2 * self.jerk * self.step_s).any() or (self.velocity < 2 * self.acceleration * self.step_s).any():
            raise ValueError(f"a step of {self.step_s} s is too long: jerk reaches acceleration, or that velocity, within two steps")

    # A jerk lasts a whole step, so the ends of a profile lie a little beside those of continuous time.
    @property
    def inner_low(self) -> np.ndarray:
        """The lowest target."""
        return self.low + self._margin

    @property
    def inner_high(self) -> np.ndarray:
        """The highest target."""
        return self.high - self._margin

    @property
    def cruise(self) -> np.ndarray:
        """The velocity that is aimed at most."""
        return self.velocity - 0.05 * self.jerk * self.step_s**2

    @property
    def _margin(self) -> np.ndarray:
        return 2 * self.velocity * self.step_s

    @property
    def longest_stop_s(self) -> float:
        """Within this time `brake` brings any motion inside the limits to rest."""
        return float((self.velocity / self.acceleration + 2 * self.acceleration / self.jerk).max()) + 10 * self.step_s


@dataclass(frozen=True)
class Ramp:
    """A straight reference from `start` at `start_s` to `goal` (D,) one `period_s` later, and then at rest there."""

    start: np.ndarray
    goal: np.ndarray
    start_s: float
    period_s: float

    def at(self, now_s: float) -> tuple[np.ndarray, np.ndarray]:
        """Position and velocity (D,) of the reference."""
        share = (now_s - self.start_s) / self.period_s
        if share >= 1:
            return self.goal, np.zeros_like(self.goal)
        slope = self.goal - self.start
        return self.start + max(share, 0.0) * slope, slope / self.period_s

    def to(self, goal: np.ndarray, now_s: float) -> Ramp:
        """From where the reference is now to a new goal."""
        return Ramp(self.at(now_s)[0], np.array(goal, np.float64), now_s, self.period_s)


def follow(motion: Motion, ramp: Ramp, now_s: float, limits: MotionLimits) -> Motion:
    """One step towards `ramp`; goals beyond the position limits count as the limits."""
    goal = np.clip(ramp.goal, limits.inner_low, limits.inner_high)
    place, slope = ramp.at(now_s)
    place = np.clip(place, limits.inner_low, limits.inner_high)
    wanted = FOLLOW_PER_S**3 * (place - motion.position) + 3 * FOLLOW_PER_S**2 * (slope - motion.velocity)
    wanted -= 3 * FOLLOW_PER_S * motion.acceleration
    lowest, highest = _jerks(motion, -limits.cruise, limits.cruise, limits)
    return _moved(motion, _stoppable(motion, np.clip(wanted, lowest, highest), lowest, highest, goal, limits), limits.step_s)


def brake(motion: Motion, limits: MotionLimits) -> Motion:
    """One step of the fastest stop inside the limits; at rest it stays at rest, exactly."""
    ahead = _velocity_ahead(motion.velocity, motion.acceleration, limits.jerk) > 0
    zero = np.zeros_like(motion.position)
    lowest, highest = _jerks(motion, np.where(ahead, zero, -limits.cruise), np.where(ahead, limits.cruise, zero), limits)
    jerk = np.where(ahead, lowest, highest)
    # The last two steps together end at rest: velocity and acceleration are two numbers, and so are two jerks.
    step_s = limits.step_s
    last = -(motion.velocity / step_s + 1.5 * motion.acceleration) / step_s
    after_last = -motion.acceleration / step_s - last
    ending = np.maximum(np.abs(last), np.abs(after_last)) <= limits.jerk
    after = _moved(motion, np.where(ending, last, jerk), step_s)
    # What is left by rounding is rest.
    rest = (np.abs(after.velocity) < 1e-9 * limits.velocity) & (np.abs(after.acceleration) < 1e-9 * limits.acceleration)
    return Motion(after.position, np.where(rest, 0.0, after.velocity), np.where(rest, 0.0, after.acceleration))


def _moved(motion: Motion, jerk: np.ndarray, step_s: float) -> Motion:
    position, velocity, acceleration = motion.position, motion.velocity, motion.acceleration
    return Motion(
        position + step_s * (velocity + step_s * (acceleration / 2 + step_s / 6 * jerk)),
        velocity + step_s * (acceleration + step_s / 2 * jerk),
        acceleration + step_s * jerk,
    )


def _jerks(motion: Motion, slowest: np.ndarray, fastest: np.ndarray, limits: MotionLimits) -> tuple[np.ndarray, np.ndarray]:
    """Bounds (D,) of the jerk that keep the acceleration, and let the velocity settle in slowest..fastest."""
    step_s, now = limits.step_s, motion.acceleration
    half = motion.velocity + now * step_s / 2
    least = np.clip(_settling(slowest - half, limits), -limits.acceleration, limits.acceleration)
    most = np.clip(_settling(fastest - half, limits), -limits.acceleration, limits.acceleration)
    return np.clip((least - now) / step_s, -limits.jerk, limits.jerk), np.clip((most - now) / step_s, -limits.jerk, limits.jerk)


def _settling(change: np.ndarray, limits: MotionLimits) -> np.ndarray:
    """The acceleration b after one step from which b dt/2 + b|b|/(2 jerk), its own share and its way back to 0, is `change`."""
    half = limits.step_s / 2
    return np.sign(change) * limits.jerk * (np.sqrt(half**2 + 2 * np.abs(change) / limits.jerk) - half)


def _velocity_ahead(velocity: np.ndarray, acceleration: np.ndarray, jerk: np.ndarray) -> np.ndarray:
    """The velocity when the acceleration has been brought to zero."""
    return velocity + acceleration * np.abs(acceleration) / (2 * jerk)


def _stoppable(motion: Motion, jerk: np.ndarray, lowest: np.ndarray, highest: np.ndarray, goal: np.ndarray, limits: MotionLimits):
    """`jerk`, or what of it leaves room to stop before the goal: the stop's place grows with the jerk, so it is interpolated."""
    side = np.where(goal >= motion.position, 1.0, -1.0)
    past = side * (_stop_at(_moved(motion, jerk, limits.step_s), limits) - goal)
    if not (past > 0).any():
        return jerk
    hardest = np.where(side > 0, lowest, highest)  # brakes most, seen from the goal
    tried = hardest + _CANDIDATES * (jerk - hardest)
    pasts = side * (_stop_at(_moved(motion, tried, limits.step_s), limits) - goal)
    below = np.clip((pasts <= 0).sum(axis=0) - 1, 0, len(tried) - 2)
    column = np.arange(len(goal))
    first, second = pasts[below, column], pasts[below + 1, column]
    share = np.clip(-first / np.where(second > first, second - first, 1.0), 0.0, 1.0)
    between = tried[below, column] + share * (tried[below + 1, column] - tried[below, column])
    return np.where(past > 0, between, jerk)


def _stop_at(motion: Motion, limits: MotionLimits) -> np.ndarray:
    """Where the fastest stop from here ends (.., D): acceleration down to -peak, held there, back to zero."""
    jerk, most = limits.jerk, limits.acceleration
    side = np.where(_velocity_ahead(motion.velocity, motion.acceleration, jerk) >= 0, 1.0, -1.0)
    velocity, now = side * motion.velocity, side * motion.acceleration
    peak = np.minimum(np.sqrt(np.maximum(jerk * velocity + now**2 / 2, 0.0)), most)
    down_s = np.maximum(now + peak, 0.0) / jerk
    slower = velocity + down_s * (now - jerk * down_s / 2)
    ending = peak**2 / (2 * jerk)
    held_s = np.maximum(slower - ending, 0.0) / np.maximum(peak, 1e-12)
    held_s = np.where(peak < most, 0.0, held_s)
    way = down_s * (velocity + down_s * (now / 2 - jerk * down_s / 6)) + held_s * (slower + ending) / 2 + peak**3 / (6 * jerk**2)
    return motion.position + side * way
