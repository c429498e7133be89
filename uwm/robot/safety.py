"""The last word before the robot: what may be sent now, whatever the policy proposes and the sensors show.

```
proposed, readings, now --> watchdog: faults? --+-- none, and has been good long enough --> send      the proposal, limited
                                                +-- some ------------------------------> hold      stand still   } limited
                                                +-- some, by config -------------------> retract   back the way  } as well
                                                +-- lasts `stop_after_s`, or by config --> stop      nothing is sent, latched

fault    . . . x x x . . . . . .        x: a fault this tick        recover_after = 3
verdict  s s s h h h h h s s s s        s: send    h: hold
```

It knows nothing of policies, networks or workers, only the specification, the proposals and the readings. What is sent in
any behaviour goes through the same limits (`uwm.robot.limits`). A tick without a usable proposal is a hold at once, so the
limit `silent_after_s` only decides when it becomes a fault; every other fault is answered in the tick that sees it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from uwm.robot.interface import Reading, RobotSpec
from uwm.robot.limits import Limits
from uwm.robot.watchdog import FAULTS, Watchdog, WatchdogConfig

BEHAVIOURS = ("send", "hold", "retract", "stop")  # from the mildest to the strongest
LIMITS = ("position", "velocity", "acceleration", "workspace")


@dataclass(frozen=True)
class SafetyConfig:
    """What is a fault, and what answers it.

    `on_limit` {limit: "clamp" or "stop"}, limits as in LIMITS, clamp where not told. `answers` {fault: "hold", "retract"
    or "stop"}, faults as in `uwm.robot.watchdog.FAULTS`, hold where not told. `stop_after_s`: a fault that lasts so long
    (with the recovery from it) becomes a stop. `recover_after`: good ticks in a row before proposals are sent again.
    `retract_s`: seconds of executed path that a retract can go back. `drives`: see `uwm.robot.limits.Limits`.
    """

    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    on_limit: dict[str, str] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    stop_after_s: float = 5.0
    recover_after: int = 5
    retract_s: float = 2.0
    drives: tuple[tuple[int, int, float], ...] = ()

    def __post_init__(self):
        _only(self.on_limit, LIMITS, ("clamp", "stop"), "on_limit")
        _only(self.answers, FAULTS, BEHAVIOURS[1:], "answers")
        if self.stop_after_s < 0 or self.recover_after < 1 or self.retract_s < 0:
            raise ValueError("stop_after_s and retract_s must be at least 0 and recover_after at least 1")


def _only(given: Mapping[str, str], keys: tuple[str, ...], values: tuple[str, ...], where: str) -> None:
    for key, value in given.items():
        if key not in keys or value not in values:
            raise ValueError(f"{where} has {key}: {value}; expected one of {', '.join(keys)} and one of {', '.join(values)}")


@dataclass(frozen=True)
class Verdict:
    """What to do this tick: `action` (A,) float32 to send, or None for nothing to send; why it is not the proposal.

    `behaviour` one of BEHAVIOURS; on "stop" call the robot's own `stop`. `reason` in words, empty when nothing is wrong.
    `changed`: the limits that changed the action that was wanted.
    """

    action: np.ndarray | None
    behaviour: str
    reason: str = ""
    changed: tuple[str, ...] = ()


class Safety:
    """One robot's safety layer. `check` once a tick, then `sent` with what the robot really executed.

    `stopped` is the reason of a stop, which lasts until `reset`, or "".
    """

    def __init__(self, spec: RobotSpec, config: SafetyConfig | None = None):
        self.spec, self.config = spec, config or SafetyConfig()
        self.limits = Limits(spec, tuple(map(tuple, self.config.drives)))
        # Where the workspace limits the action itself, the way back inside stays open: being outside is no fault.
        is_clamped = self.config.on_limit.get("workspace", "clamp") == "clamp"
        self._guided = frozenset(place for place, _, _ in self.config.drives if is_clamped)
        self._path: deque[np.ndarray] = deque(maxlen=max(1, math.ceil(self.config.retract_s * spec.rate_hz)))
        self.reset()

    def reset(self) -> None:
        """Begin anew after a stop, by somebody's decision: nothing is remembered of the robot or of its sensors."""
        self.watchdog = Watchdog(self.spec, self.config.watchdog, self._guided)
        self.limits.forget()
        self._path.clear()
        self.stopped, self._behaviour = "", "send"
        self._fault_s: float | None = None
        self._good, self._answer, self._told = 0, "hold", ""

    def check(self, proposed: Any, readings: Mapping[str, Reading], now_s: float) -> Verdict:
        """The verdict on one tick. Never raises for what a policy or a sensor did, and never returns an action outside limits."""
        wanted, complaint = self._usable(proposed)
        faults = self.watchdog.look(wanted is not None, readings, now_s)
        proprio = self.watchdog.position
        if proprio is not None:
            self.limits.seed(proprio)
        behaviour, reason = self._decide(faults, complaint)
        verdict = self._act(behaviour, reason, wanted, proprio, now_s)
        stops = [name for name in verdict.changed if self.config.on_limit.get(name) == "stop"]
        if behaviour == "send" and stops:
            verdict = self._stop(f"the proposal breaks the limit of {' and '.join(stops)}")
        self._behaviour = verdict.behaviour
        return verdict

    def sent(self, action: np.ndarray, now_s: float) -> None:
        """`action` (A,) in the specification's units is what the robot really executed in this tick."""
        action = np.asarray(action, np.float64)
        if action.shape != (self.limits.size,) or not np.isfinite(action).all():
            self.limits.forget()  # whatever it did, it is not known: rates count from the next action
            return
        before = self.limits.place
        self.limits.sent(action, now_s)
        if self._behaviour == "send" and np.isfinite(before).all():
            self._path.append(before)
        self.watchdog.moved(self.limits.motion[self.limits.arm], self.spec.period_s)

    # ---- which behaviour -------------------------------------------------------------------------------------

    def _decide(self, faults: dict[str, str], complaint: str) -> tuple[str, str]:
        """The behaviour and its reason, from this tick's faults and from how long there have been some."""
        elapsed_s = self.watchdog.elapsed_s
        if self.stopped:
            return "stop", self.stopped
        if faults:
            self._fault_s = elapsed_s if self._fault_s is None else self._fault_s
            self._good, self._told = 0, "; ".join(faults.values())
            self._answer = max((self.config.answers.get(name, "hold") for name in faults), key=BEHAVIOURS.index)
        elif self._fault_s is not None:
            self._good = 0 if complaint else self._good + 1
        if self._fault_s is None:
            return ("hold", complaint) if complaint else ("send", "")
        if self._good >= self.config.recover_after:
            self._fault_s = None
            return "send", ""
        if elapsed_s - self._fault_s >= self.config.stop_after_s:
            return "stop", f"{self._told}; this has lasted {self.config.stop_after_s:g} s"
        if faults:
            return self._answer, self._told
        return "hold", f"recovering, {self._good} of {self.config.recover_after} good ticks, from: {self._told}"

    def _usable(self, proposed: Any) -> tuple[np.ndarray | None, str]:
        """The proposal as numbers, or None and what is wrong with it."""
        if proposed is None:
            return None, "the policy proposed nothing for this tick"
        try:
            wanted = np.asarray(proposed, np.float64)
        except (TypeError, ValueError, OverflowError):
            return None, f"the proposal is no array of numbers but {type(proposed).__name__}"
        if wanted.shape != (self.limits.size,):
            return None, f"the proposal has shape {wanted.shape}, expected ({self.limits.size},)"
        if not (np.abs(wanted) <= np.finfo(np.float32).max).all():  # false for NaN too
            return None, f"the proposal is not finite: {wanted.tolist()}"
        return wanted, ""

    # ---- what it sends ---------------------------------------------------------------------------------------

    def _act(self, behaviour: str, reason: str, wanted: np.ndarray | None, proprio: np.ndarray | None, now_s: float) -> Verdict:
        if behaviour == "stop":
            return self._stop(reason)
        if behaviour == "retract":
            wanted = self._backwards()
        elif behaviour == "hold":
            wanted = self.limits.rest()
        if not np.isfinite(wanted).all():
            return Verdict(None, behaviour, reason)  # nothing was sent yet: what is not sent cannot move the robot
        action, changed = self.limits.limit(wanted, now_s, proprio)
        if behaviour == "send" and changed:
            reason = f"limited by {', '.join(changed)}"
        return Verdict(action, behaviour, reason, changed)

    def _backwards(self) -> np.ndarray:
        """Towards the last place of the executed path that is not reached yet; the start of the path is held."""
        arm, place = self.limits.arm, self.limits.place
        while self._path and np.allclose(place[arm], self._path[-1][arm], rtol=1e-6, atol=1e-6):
            self._path.pop()
        return self.limits.toward(self._path[-1]) if self._path else self.limits.rest()

    def _stop(self, reason: str) -> Verdict:
        self.stopped = self.stopped or reason
        return Verdict(None, "stop", self.stopped)
