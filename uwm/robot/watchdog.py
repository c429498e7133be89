"""What can be seen to be wrong from outside the policy: silence, old or impossible readings, a clock that steps.

```
stamps of a camera    |  |  |                    age = now - newest stamp, and also the time since a new one came
now               ----------------o              stale once one of them reaches `stale_after_s`
```

Time of its own runs along with the clock but neither back nor in leaps, so that a stepping clock is one fault, not an
hour of silence.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from uwm.robot.interface import Reading, RobotSpec, SensorSpec

FAULTS = ("silent", "stale", "malformed", "frozen", "blank", "spike", "clock", "workspace")
_SLACK_S = 1e-9  # twenty ticks of 0.05 s are a second and not a hair less
_FUTURE_S = 0.01  # a stamp may be so far ahead: read after the tick's moment was taken


@dataclass(frozen=True)
class WatchdogConfig:
    """Limits of what is normal. Times in seconds; infinity turns a check off.

    `silent_after_s` without a usable proposal. `jump_after_s`: two ticks further apart than this are a step of the clock
    or a stall. `frozen_after_s`: a camera's bytes unchanged while the arm was sent to move for so long (a motion counts
    from `moving` units per second on); infinity for worlds whose pictures have no noise and may rightly stand still.
    `blank_below`: a picture whose darkest and brightest values are closer than this shows nothing. `spike_per_s`
    {sensor: largest believable change per second}. `position`: the sensor that the workspace is about. `unwatched`:
    sensors that may be missing or anything.
    """

    silent_after_s: float = 0.5
    jump_after_s: float = 0.5
    frozen_after_s: float = 1.0
    moving: float = 1e-3
    blank_below: int = 4
    spike_per_s: dict[str, float] = field(default_factory=dict)
    position: str = "proprio"
    unwatched: tuple[str, ...] = ()

    def __post_init__(self):
        if min(self.silent_after_s, self.jump_after_s, self.frozen_after_s, *self.spike_per_s.values()) <= 0:
            raise ValueError("silent_after_s, jump_after_s, frozen_after_s and spike_per_s must be above 0; infinity turns one off")


@dataclass
class _Seen:
    """The newest reading of a sensor: when it came, in own time, and what was wrong with it."""

    stamp_s: float
    arrived_s: float
    complaint: tuple[str, str] | None = None
    digest: int = 0
    moved_s: float = 0.0  # the watchdog's when this picture was first seen
    good: Reading | None = None  # the newest one that was no spike


class Watchdog:
    """What it saw so far. `elapsed_s` is its own time; `position` the newest good proprioception, or None.

    `guided`: dimensions of the workspace that somebody else keeps, so that being outside is no fault.
    """

    def __init__(self, spec: RobotSpec, config: WatchdogConfig, guided: frozenset[int] = frozenset()):
        self.spec, self.config, self.guided = spec, config, guided
        self.jump_after_s = max(config.jump_after_s, 2.5 * spec.period_s)
        unknown = {*config.spike_per_s, *config.unwatched} - set(spec.sensors)
        if unknown:
            raise ValueError(f"the watchdog is told of sensors {sorted(unknown)}; {spec.name} has {sorted(spec.sensors)}")
        if spec.workspace and (config.position not in spec.sensors or config.position in config.unwatched):
            raise ValueError(f"{spec.name} has a workspace, so the sensor {config.position!r} has to be there and watched")
        self.elapsed_s, self._moved_s, self._last_s = 0.0, 0.0, None
        self._heard_s = 0.0
        self._seen: dict[str, _Seen] = {}
        self.position: np.ndarray | None = None

    def moved(self, motion: np.ndarray, period_s: float) -> None:
        """The arm was sent to move like this for a period."""
        if (np.abs(motion) > self.config.moving).any():
            self._moved_s += period_s

    def look(self, is_proposal_usable: bool, readings: Mapping[str, Reading], now_s: float) -> dict[str, str]:
        """{fault: what is wrong} of this tick."""
        faults = self._clock(now_s)
        self._heard_s = self.elapsed_s if is_proposal_usable else self._heard_s
        silence_s = self.elapsed_s - self._heard_s
        if silence_s >= self.config.silent_after_s - _SLACK_S:
            faults.append(("silent", f"the policy proposed nothing usable for {silence_s:.3g} s"))
        for name, sensor in self.spec.sensors.items():
            if name not in self.config.unwatched:
                faults += self._sensor(name, sensor, readings.get(name), now_s)
        faults += self._outside()
        return {kind: "; ".join(text for other, text in faults if other == kind) for kind, _ in faults}

    def _clock(self, now_s: float) -> list[tuple[str, str]]:
        step_s = 0.0 if self._last_s is None else now_s - self._last_s
        self._last_s = now_s
        if 0 <= step_s < self.jump_after_s:
            self.elapsed_s += step_s
            return []
        self.elapsed_s += self.spec.period_s
        return [("clock", f"the clock stepped by {step_s:.3g} s between two ticks of {self.spec.period_s:.3g} s")]

    # ---- one sensor ------------------------------------------------------------------------------------------

    def _sensor(self, name: str, sensor: SensorSpec, reading: Reading | None, now_s: float) -> list[tuple[str, str]]:
        seen = self._seen.get(name)
        if reading is not None and not math.isfinite(reading.stamp_s):
            return [("malformed", f"{name} has the stamp {reading.stamp_s}")]
        if reading is not None and (seen is None or reading.stamp_s != seen.stamp_s):
            seen = self._seen[name] = self._arrived(name, sensor, reading, seen)
        if seen is None:
            age_s = self.elapsed_s
        else:
            age_s = max(now_s - seen.stamp_s, self.elapsed_s - seen.arrived_s)
            if seen.stamp_s > now_s + _FUTURE_S:
                return [("clock", f"{name} is stamped {seen.stamp_s - now_s:.3g} s in the future")]
        faults = [seen.complaint] if seen and seen.complaint else []
        if age_s >= sensor.stale_after_s - _SLACK_S:
            faults.append(("stale", f"{name} is {age_s:.3g} s old, more than {sensor.stale_after_s:g} s"))
        return faults

    def _arrived(self, name: str, sensor: SensorSpec, reading: Reading, before: _Seen | None) -> _Seen:
        seen = _Seen(reading.stamp_s, self.elapsed_s, malformed(name, sensor, reading.value), good=before and before.good)
        if seen.complaint:
            return seen
        value = np.asarray(reading.value)
        if is_camera(sensor):
            seen.digest, seen.moved_s = zlib.crc32(np.ascontiguousarray(value)), self._moved_s
            if before and before.digest == seen.digest:
                seen.moved_s = before.moved_s
            seen.complaint = self._picture(name, value, seen)
        else:
            seen.complaint = self._spike(name, sensor, reading, seen.good)
            seen.good = seen.good if seen.complaint else Reading(value.copy(), reading.stamp_s)
        return seen

    def _picture(self, name: str, value: np.ndarray, seen: _Seen) -> tuple[str, str] | None:
        if int(value.max()) - int(value.min()) < self.config.blank_below:
            return "blank", f"{name} shows nothing: all its values are {int(value.min())}..{int(value.max())}"
        frozen_s = self._moved_s - seen.moved_s
        if frozen_s >= self.config.frozen_after_s - _SLACK_S:
            return "frozen", f"{name} did not change at all while the arm moved for {frozen_s:.3g} s"
        return None

    def _spike(self, name: str, sensor: SensorSpec, reading: Reading, good: Reading | None) -> tuple[str, str] | None:
        limit = self.config.spike_per_s.get(name, math.inf)
        if good is None or math.isinf(limit):
            return None
        passed_s = max(abs(reading.stamp_s - good.stamp_s), 0.5 / sensor.rate_hz)
        step = np.abs(np.asarray(reading.value, np.float64) - good.value)
        if (step <= limit * passed_s).all():
            return None
        worst = int(step.argmax())
        return "spike", f"{name} dimension {worst} jumped by {step.flat[worst]:.3g} in {passed_s:.3g} s, more than {limit:g} per second"

    def _outside(self) -> list[tuple[str, str]]:
        seen = self._seen.get(self.config.position)
        if seen is None or seen.good is None:
            return []
        self.position = np.asarray(seen.good.value, np.float64).reshape(-1)
        return [
            ("workspace", f"{self.config.position} dimension {index} is {self.position[index]:.4g}, outside {low:g}..{high:g}")
            for index, (low, high) in self.spec.workspace.items()
            if index not in self.guided and not low <= self.position[index] <= high
        ]


def is_camera(sensor: SensorSpec) -> bool:
    """Whether readings are pictures (H, W, C)."""
    return sensor.dtype == "uint8" and len(sensor.shape) == 3


def malformed(name: str, sensor: SensorSpec, value: Any) -> tuple[str, str] | None:
    """("malformed", why) if `value` is not what the sensor's specification promises."""
    if not isinstance(value, np.ndarray):
        return "malformed", f"{name} gave {type(value).__name__}, expected an array"
    if value.shape != tuple(sensor.shape) or value.dtype != np.dtype(sensor.dtype):
        return "malformed", f"{name} gave {value.dtype} {value.shape}, expected {sensor.dtype} {tuple(sensor.shape)}"
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        return "malformed", f"{name} gave {value[~np.isfinite(value)][0]} at {np.argwhere(~np.isfinite(value))[0].tolist()}"
    return None
