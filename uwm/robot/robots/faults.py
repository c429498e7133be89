"""Sensor faults on any robot, at given times, for tests of everything above it.

```
          measured  o0  o1  o2  o3  o4          what a fault from t1 to t3 shows
frozen              o0  o1' o1' o1' o4          a new stamp on an old value: only the value tells
delayed             o0  o0  o1  o2  o4          old values with their own old stamps
slow                o0  o0  o2  o2  o4          every second one only, with its own stamp
dropped             o0   .   .   .  o4          no reading at all
black, nan, shape, spike                        the value is wrong, the stamp is right
```
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from uwm.robot.clock import Clock
from uwm.robot.interface import Reading, Robot

KEPT = 256  # readings per sensor, for the faults that look back


@dataclass(frozen=True)
class Fault:
    """`kind` (one of KINDS) on `sensor` while begin_s <= now < end_s on the robot's clock.

    `delay_s` for "delayed"; `every` readings for "slow"; `size` for "spike": what is added to the first number.
    """

    sensor: str
    kind: str
    begin_s: float = 0.0
    end_s: float = float("inf")
    delay_s: float = 0.5
    every: int = 2
    size: float = 1e3

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"no fault {self.kind!r}: expected one of {', '.join(KINDS)}")


class FaultyRobot:
    """`robot` with sensors that fail as `faults` (a list that may change meanwhile) say; all else is the robot's own."""

    def __init__(self, robot: Robot, clock: Clock, faults: Sequence[Fault] = ()):
        self.robot, self.clock, self.faults = robot, clock, list(faults)
        self.spec = robot.spec
        self._seen: dict[str, deque[Reading]] = {}
        self.send, self.stop, self.close = robot.send, robot.stop, robot.close

    def connect(self) -> None:
        """Take hold of the robot; what was read before is forgotten."""
        self.robot.connect()
        self._seen = {sensor: deque(maxlen=KEPT) for sensor in self.spec.sensors}

    def read(self) -> dict[str, Reading]:
        """What the robot reads, as the faults of this moment show it."""
        now, readings = self.clock.now_s(), self.robot.read()
        for sensor, reading in readings.items():
            seen = self._seen[sensor]
            if not seen or reading.stamp_s > seen[-1].stamp_s:
                seen.append(reading)
        for fault in self.faults:
            if fault.begin_s <= now < fault.end_s and fault.sensor in readings:
                shown = KINDS[fault.kind](fault, list(self._seen[fault.sensor]), readings.pop(fault.sensor))
                readings |= {} if shown is None else {fault.sensor: shown}
        return readings


def _frozen(fault: Fault, seen: list[Reading], reading: Reading) -> Reading:
    before = [each for each in seen if each.stamp_s <= fault.begin_s] or seen[:1]
    return Reading(before[-1].value, reading.stamp_s)


def _delayed(fault: Fault, seen: list[Reading], reading: Reading) -> Reading | None:
    old = [each for each in seen if each.stamp_s <= reading.stamp_s - fault.delay_s]
    return old[-1] if old else None


def _slow(fault: Fault, seen: list[Reading], reading: Reading) -> Reading:
    since = sum(each.stamp_s >= fault.begin_s for each in seen) - 1
    return seen[-1 - since % fault.every] if since >= 0 else reading


def _spike(fault: Fault, seen: list[Reading], reading: Reading) -> Reading:
    value = np.array(reading.value)
    value.reshape(-1)[0] += np.asarray(fault.size).astype(value.dtype)
    return Reading(value, reading.stamp_s)


def _nan(fault: Fault, seen: list[Reading], reading: Reading) -> Reading:
    return Reading(np.full(reading.value.shape, np.nan, np.float32), reading.stamp_s)


# what a sensor shows: None is no reading
KINDS: dict[str, Callable[[Fault, list[Reading], Reading], Reading | None]] = {
    "frozen": _frozen,
    "black": lambda fault, seen, reading: Reading(np.zeros_like(reading.value), reading.stamp_s),
    "nan": _nan,
    "dropped": lambda fault, seen, reading: None,
    "delayed": _delayed,
    "slow": _slow,
    "shape": lambda fault, seen, reading: Reading(reading.value[:-1], reading.stamp_s),
    "spike": _spike,
}
