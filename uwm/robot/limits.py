"""How far and how fast the next action may go: limits of value, velocity, acceleration and workspace, dimension by dimension.

All limits are limits of the **motion** m, in units of the action per second:

| dimension | motion of action a_k | the value's limits as limits of m |
|---|---|---|
| absolute, and a gripper's in every mode | (a_k - a_(k-1)) / dt | so slow that it can still brake before `low` or `high` |
| delta | a_k / dt | low / period ... high / period |
| velocity | a_k | low ... high |

|m| <= velocity, and m changes by at most acceleration * dt. m = 0 obeys all but the last, so whatever was sent before, a
dimension can brake at its acceleration without leaving its limits:

    distance left  D |\\             before the step, the largest m that leaves enough to brake:
                     |  \\           D - m dt  >=  m^2 / (2 acceleration)
             place --+---\\--> limit

dt is a tick's share of time: it fills with the clock, holds at most `jitter_periods` beyond one period, and a tick takes
at most one period of it. Ticks that jitter around their period get exactly one; two in the same moment get one together.
A tick that came late finds the motion already braked by acceleration * lateness: nobody moved the robot meanwhile.
"""

from __future__ import annotations

import numpy as np

from uwm.robot.interface import RobotSpec

SLACK = 1e-6  # of an action's unit: what float32 rounds off is no breach
_LEAST_SHARE = 0.01  # of a period: a motion over less time than this is only rounding


class Limits:
    """What was sent so far, and what may be sent next. Raises ValueError on a specification that no action can satisfy.

    `drives` says which action moves which part of the robot, for the workspace: (dimension of the proprioception,
    dimension of the action, gain), with gain = change of the one per unit of motion of the other.
    """

    def __init__(self, spec: RobotSpec, drives: tuple[tuple[int, int, float], ...] = (), jitter_periods: float = 0.5):
        action = spec.action
        self.spec, self.drives, self.period_s, self.jitter_periods = spec, drives, spec.period_s, jitter_periods
        self.mode, self.size = action.mode, action.size
        self.low, self.high, self.velocity, self.acceleration = (
            _per_dimension(getattr(action, name), action.size, name) for name in ("low", "high", "velocity", "acceleration")
        )
        self.kept = np.full(self.size, self.mode == "absolute")
        self.kept[list(action.gripper)] = True
        self.arm = ~np.isin(np.arange(self.size), action.gripper)
        self._refuse_nonsense()
        if self.mode == "absolute":
            for _, own, bounds in self._workspace():
                self.low[own], self.high[own] = max(self.low[own], bounds[0]), min(self.high[own], bounds[1])
        self._low32, self._high32 = _inwards(self.low, +np.inf), _inwards(self.high, -np.inf)
        self.forget()

    def _refuse_nonsense(self) -> None:
        if self.mode not in ("delta", "absolute", "velocity"):
            raise ValueError(f"action mode must be delta, absolute or velocity, got {self.mode!r}")
        wrong = {
            "low above high": self.low > self.high,
            "velocity or acceleration not above 0": (self.velocity <= 0) | (self.acceleration <= 0),
            "0, which means standing still, outside low..high": ~self.kept & ((self.low > 0) | (self.high < 0)),
        }
        for what, where in wrong.items():
            if where.any():
                names = [self.spec.action.names[index] for index in np.flatnonzero(where)]
                raise ValueError(f"{self.spec.name}: {what} for {names}; no action could satisfy this, correct the robot's ActionSpec")
        for place, own, gain in self.drives:
            if not (0 <= own < self.size and gain and place in self.spec.workspace):
                raise ValueError(
                    f"drives has ({place}, {own}, {gain}): expected (a dimension of the workspace {sorted(self.spec.workspace)}, "
                    f"a dimension of the action below {self.size}, a gain that is not 0)"
                )

    def _workspace(self, position: np.ndarray | None = None):
        """(dimension of the proprioception, of the action, [lower, upper] in action units from `position` or from 0)."""
        for place, own, gain in self.drives:
            here = 0.0 if position is None else position[place]
            yield place, own, np.sort([(bound - here) / gain for bound in self.spec.workspace[place]])

    # ---- what was sent ---------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Nothing is known of the robot: the next action is held to its value limits only, and its rates count from it."""
        self.place = np.where(self.kept, np.nan, 0.0)
        self.motion = np.zeros(self.size)
        self._at_s, self._credit_s, self._asked = None, self.period_s, None

    def seed(self, proprio: np.ndarray) -> None:
        """Take unknown places from where the robot is, as far as `drives` tells."""
        for place, own, gain in self.drives if self.mode == "absolute" else ():
            if np.isnan(self.place[own]):
                self.place[own] = np.clip(proprio[place] / gain, self.low[own], self.high[own])

    def sent(self, action: np.ndarray, now_s: float) -> None:
        """`action` (A,) was executed by the robot at `now_s`; it is what the next one is measured against."""
        self._at_s, credit_s, share_s = self._asked or self._time(now_s)
        self._credit_s, self._asked = credit_s - share_s, None
        action = np.asarray(action, np.float64)
        if share_s:
            moved = np.where(np.isnan(self.place), 0.0, action - self.place) / share_s
            self.motion = np.where(self.kept, moved, action if self.mode == "velocity" else action / share_s)
        self.place = np.where(self.kept, action, self.place + self.motion * share_s)

    def _time(self, now_s: float) -> tuple[float, float, float]:
        """The moment, the time saved up, and this tick's share of it."""
        credit_s = min(self.period_s * (1 + self.jitter_periods), self._credit_s + self._gap_s(now_s))
        share_s = min(self.period_s, credit_s)
        return now_s, credit_s, share_s if share_s >= _LEAST_SHARE * self.period_s else 0.0

    def _gap_s(self, now_s: float) -> float:
        return 0.0 if self._at_s is None else max(0.0, now_s - self._at_s)

    # ---- what may be sent ------------------------------------------------------------------------------------

    def limit(self, wanted: np.ndarray, now_s: float, proprio: np.ndarray | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
        """The action nearest to `wanted` (A,), finite, that keeps all limits, float32, and the names of those that changed it.

        `proprio` is where the robot is, for the workspace of delta and velocity actions; None: not known, not limited.
        Where limits contradict each other (only after the robot did something else than it was sent), value and
        workspace win over velocity, and velocity wins over acceleration.
        """
        self._asked = self._time(now_s)
        share_s, wanted = self._asked[2], np.asarray(wanted, np.float64)
        inside = np.clip(wanted, self.low, self.high)
        changed = {"position"} if _differs(inside, wanted, wanted) else set()
        if share_s:
            motion = self._motion_of(inside, share_s)
            inside, more = self._slowed(inside, motion, share_s, self._bounds(now_s, share_s, proprio))
            changed |= more
        else:
            inside = np.where(self.kept, np.where(np.isnan(self.place), inside, self.place), self.motion * (self.mode == "velocity"))
            changed |= {"velocity"} if _differs(inside, wanted, wanted) else set()
        return np.clip(inside.astype(np.float32), self._low32, self._high32), tuple(sorted(changed))

    def toward(self, target: np.ndarray) -> np.ndarray:
        """The action that moves the arm to `target`, a former `place`, as fast as it can still stop there; the gripper keeps."""
        left = np.where(self.arm, target - self.place, 0.0)
        motion = np.sign(left) * np.minimum(np.abs(left) / self.period_s, _brakeable(np.abs(left), self.acceleration, self.period_s))
        return self._action_of(motion, self.period_s, self.place)

    def rest(self) -> np.ndarray:
        """The action that stands still: the last one where values are kept, zeros elsewhere; NaN where nothing is known."""
        return np.where(self.kept, self.place, 0.0)

    def _slowed(self, inside: np.ndarray, motion: np.ndarray, share_s: float, bounds: dict) -> tuple[np.ndarray, set[str]]:
        """The action after the bounds of its motion, the last of which win, and which of them had something to change."""
        unit_s = 1.0 if self.mode == "velocity" else share_s
        changed = {name for name, bound in bounds.items() if _differs(_clipped(motion, bound) * unit_s, motion * unit_s, inside)}
        for bound in bounds.values():
            motion = _clipped(motion, bound)
        return (self._action_of(motion, share_s, inside) if changed else inside), {name.partition(":")[0] for name in changed}

    def _bounds(self, now_s: float, share_s: float, proprio: np.ndarray | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Bounds of the motion in this tick; all but the first contain 0, so that clipping to one after the other keeps all."""
        late_s = max(0.0, now_s - self._at_s - self.period_s) if self._at_s is not None else 0.0
        braked = np.sign(self.motion) * np.maximum(0.0, np.abs(self.motion) - (self.acceleration * late_s if late_s else 0.0))
        step = self.acceleration * share_s
        # An unknown place has no rate yet: the motion there is 0 by definition.
        below = np.where(self.kept, _brakeable(self.place - self.low, self.acceleration, share_s), -self.low / self._own_s)
        above = np.where(self.kept, _brakeable(self.high - self.place, self.acceleration, share_s), self.high / self._own_s)
        bounds = {
            "acceleration": (braked - step, braked + step),
            "velocity": (-self.velocity, self.velocity),
            "acceleration:to brake": (-below, above),
        }
        if proprio is not None and self.drives and self.mode != "absolute":
            bounds["workspace"] = self._inwards_only(share_s, proprio)
        return bounds

    def _inwards_only(self, share_s: float, proprio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slowest, fastest = np.full(self.size, -np.inf), np.full(self.size, np.inf)
        for _, own, (down, up) in self._workspace(proprio):
            if not self.kept[own]:
                slowest[own] = -_brakeable(-down, self.acceleration[own], share_s)
                fastest[own] = _brakeable(up, self.acceleration[own], share_s)
        return slowest, fastest

    @property
    def _own_s(self) -> float:
        """Seconds over which an action that is not kept moves the robot by its value."""
        return 1.0 if self.mode == "velocity" else self.period_s

    def _motion_of(self, action: np.ndarray, share_s: float) -> np.ndarray:
        kept = np.where(np.isnan(self.place), 0.0, action - self.place) / share_s
        return np.where(self.kept, kept, action if self.mode == "velocity" else action / share_s)

    def _action_of(self, motion: np.ndarray, share_s: float, unknown: np.ndarray) -> np.ndarray:
        """The inverse; where the place is unknown the action is `unknown`."""
        kept = np.where(np.isnan(self.place), unknown, self.place + motion * share_s)
        return np.where(self.kept, kept, motion if self.mode == "velocity" else motion * share_s)


def _brakeable(left: np.ndarray | float, acceleration: np.ndarray | float, share_s: float) -> np.ndarray:
    """The fastest motion during `share_s` that leaves enough of `left` to brake; none where nothing is left, any before infinity.

    The larger root m of left - m dt = m^2 / (2 a), in the form that has no difference of large numbers and takes a = inf.
    """
    left = np.maximum(np.nan_to_num(left, nan=np.inf, posinf=np.inf, neginf=0.0), 0.0)
    finite = np.where(np.isinf(left), 0.0, left)
    return np.where(np.isinf(left), np.inf, 2 * finite / (share_s + np.sqrt(share_s**2 + 2 * finite / acceleration)))


def _clipped(motion: np.ndarray, bounds: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return np.clip(motion, *bounds)


def _differs(action: np.ndarray, other: np.ndarray, scale: np.ndarray) -> bool:
    return bool((np.abs(action - other) > SLACK * (1 + np.abs(scale))).any())


def _per_dimension(value: np.ndarray, size: int, name: str) -> np.ndarray:
    value = np.asarray(value, np.float64)
    if value.shape not in ((), (size,)) or np.isnan(value).any():
        raise ValueError(f"ActionSpec.{name} has shape {value.shape}; expected a number or one for each of {size} dimensions, no NaN")
    return np.broadcast_to(value, (size,)).copy()


def _inwards(bound: np.ndarray, towards: float) -> np.ndarray:
    """The float32 nearest to `bound` that does not lie outside it."""
    rounded = bound.astype(np.float32)
    outside = rounded < bound if towards > 0 else rounded > bound
    return np.where(outside, np.nextafter(rounded, np.float32(towards)), rounded)
