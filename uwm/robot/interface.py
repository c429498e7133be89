"""What a robot is to the controller: a specification, stamped readings, one action at a time, and a stop.

```
          read() -> {"wrist": Reading(image, stamp), "proprio": Reading(numbers, stamp)}
robot  <--------------------------------------------------------------------------------  controller
          send(action) -> the action that was really sent           every period
          stop()       -> stands still, by the robot's own means     on any fault
```

Writing a robot for new hardware is writing these few methods; `uwm.robot.conformance` checks any implementation.
Numbers are in physical units as the specification names them; images are uint8 (H, W, 3), upright.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


class RobotError(RuntimeError):
    """The robot, or the way to it, failed: what happened, and what to try. The controller answers with its safe behaviour."""


@dataclass(frozen=True)
class ActionSpec:
    """An action (A,): names and units per dimension, limits, and how fast it may change.

    `low`, `high`: limits of the value. `velocity`, `acceleration`: largest change per second of the value, and of that
    change, per dimension; infinity where the robot sets none. `mode` is delta, absolute or velocity (as in a store's card):
    what the value means when a controller holds it; holding a delta or a velocity means sending zeros (see `rest`).
    `gripper`: dimensions that keep their value in every mode when the rest of the arm holds still.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    mode: str = "absolute"
    gripper: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Numbers of an action."""
        return len(self.names)


@dataclass(frozen=True)
class SensorSpec:
    """One sensor: shape and dtype of a reading, its own rate, units per dimension, and how old a reading may be."""

    shape: tuple[int, ...]
    dtype: str
    rate_hz: float
    units: tuple[str, ...] = ()
    stale_after_s: float = 0.5


@dataclass(frozen=True)
class RobotSpec:
    """Everything that a controller and a safety layer must know before the first action.

    `rate_hz`: actions per second. `workspace`: {proprio dimension: (low, high)} limits of where the robot itself may be.
    `card` is compared with the checkpoint's (`uwm.learn.checkpoint.refuse_mismatch`): cameras, orientation, conventions.
    """

    name: str
    rate_hz: float
    action: ActionSpec
    sensors: Mapping[str, SensorSpec]
    workspace: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    card: Mapping = field(default_factory=dict)

    @property
    def period_s(self) -> float:
        """Seconds between two actions."""
        return 1.0 / self.rate_hz


@dataclass(frozen=True)
class Reading:
    """A sensor's newest value and when it was measured, in the controller's monotonic seconds."""

    value: np.ndarray
    stamp_s: float


class Robot(Protocol):
    """One robot. Only one controller may hold it: `connect` raises RobotError while another has it."""

    spec: RobotSpec

    def connect(self) -> None:
        """Take hold of the robot; RobotError says what is missing."""

    def read(self) -> dict[str, Reading]:
        """The newest reading of every sensor that has one; returns within a fraction of a period. A sensor that is dead is left out."""

    def send(self, action: np.ndarray) -> np.ndarray:
        """Execute `action` (A,) float32 during the next period and return what was really sent; does not wait for the motion."""

    def stop(self) -> None:
        """Stand still as fast as the robot safely can. Never raises; may be called at any time, from any thread, twice."""

    def close(self) -> None:
        """Stop and let go of the robot."""
