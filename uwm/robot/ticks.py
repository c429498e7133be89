"""What a control loop tells: every period as a record for listeners, and the counts of a whole run."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from uwm.robot.evaluate import percentiles
from uwm.robot.interface import Reading
from uwm.robot.safety import Verdict

KEPT = 100_000  # latencies and delays that statistics are over: memory stays flat


@dataclass(frozen=True)
class Tick:
    """Everything about one period, for listeners.

    `due_s`, `began_s` monotonic seconds; `missed` periods skipped before this one; `readings` as they came, `missing` names of
    sensors without a usable new value; `delay` ticks that a plan is assumed to take; `asked`, `finished` index of a plan asked
    for or arrived in this tick, with its `latency_s`, `calls` and how many of its actions were `late`, or its `failure`;
    `proposed`, `verdict`, `sent` the action on its way, None where there was none; `plan` the index of the plan that it comes
    from; `ahead` (k, A) the actions that are planned next; `instruction` what the policy is told to do, "" without language.
    """

    index: int
    due_s: float
    began_s: float
    missed: int
    readings: dict[str, Reading]
    missing: tuple[str, ...]
    delay: int
    asked: int | None
    finished: int | None
    latency_s: float | None
    calls: int
    late: int
    failure: str
    proposed: np.ndarray | None
    plan: int
    ahead: np.ndarray
    verdict: Verdict
    sent: np.ndarray | None
    instruction: str = ""

    @property
    def queue(self) -> int:
        """Actions that are planned after this one."""
        return len(self.ahead)


class Listener(Protocol):
    """Gets every tick: an audit log, a recorder, a monitor. It must be quick, and an error in it never stops the robot."""

    def tick(self, tick: Tick) -> None:
        """One period is over."""

    def close(self) -> None:
        """The run is over."""


@dataclass
class Statistics:
    """Counts of a run. `gaps`: ticks after the first action for which no plan had one. `ended`: why the run was over.

    `missing` {sensor: ticks}; `behaviours` {verdict: ticks}; `first_action_s` seconds from the start.
    """

    ticks: int = 0
    missed: int = 0
    gaps: int = 0
    late: int = 0
    plans: int = 0
    calls: int = 0
    failures: int = 0
    robot_errors: int = 0
    listener_errors: int = 0
    first_action_s: float = math.nan
    missing: Counter = field(default_factory=Counter)
    behaviours: Counter = field(default_factory=Counter)
    latencies_s: deque = field(default_factory=lambda: deque(maxlen=KEPT))
    delays_s: deque = field(default_factory=lambda: deque(maxlen=KEPT))
    ended: str = ""

    def summary(self) -> dict:
        """Plain figures: counts, latency of plans and lateness of ticks (jitter) in milliseconds."""
        series = ("latencies_s", "delays_s")
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in series}
        plain |= {"missing": dict(self.missing), "behaviours": dict(self.behaviours)}
        for name, values in (("latency_ms", self.latencies_s), ("jitter_ms", self.delays_s)):
            scaled = [1e3 * value for value in values]
            plain[name] = {**percentiles(scaled), "p99.9": float(np.percentile(scaled, 99.9)), "max": max(scaled)} if scaled else {}
        return plain
