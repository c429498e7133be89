"""A recorded episode as a robot: readings come by time, and what is sent is compared with what was sent then.

```
recorded     o0 --a0--> o1 --a1--> o2 --a2--> o3          T actions, T or T + 1 observations
time         0          T          2T         3T          from connect on
read at 1.3T            o1, stamped T
send at 1.3T            compared with a1, logged, nothing moves
after the end                                 o3, which grows stale
```

Neither hardware nor simulator: for finding out what a control loop does with an episode that went wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from uwm.robot.clock import Clock
from uwm.robot.interface import ActionSpec, Reading, RobotError, RobotSpec, SensorSpec
from uwm.robot.robots.hold import Hold
from uwm.robot.robots.simulated import clipped

EARLY = 1e-6  # of a period: a tick that is due exactly at a frame's time sees that frame


@dataclass(frozen=True)
class Sent:
    """One action that a controller sent: when, at which recorded tick, and what was recorded there (None past the end)."""

    now_s: float
    tick: int
    action: np.ndarray
    recorded: np.ndarray | None


class ReplayRobot:
    """`arrays` {sensor: (T, *shape), "action": (T, A)} on `clock`, as `spec` says; each connect starts from the beginning.

    `log` holds every `Sent` since the last connect. ValueError when arrays and specification do not fit.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], spec: RobotSpec, clock: Clock, name: str = ""):
        self.spec, self.clock, self.log = spec, clock, []
        self._arrays = {key: np.asarray(arrays[key]) for key in ("action", *spec.sensors) if key in arrays}
        _check(self._arrays, spec)
        self._hold, self._began_s, self._stopped = Hold(name), 0.0, False

    def connect(self) -> None:
        """Begin the episode now."""
        self._hold.take()
        self._began_s, self._stopped, self.log = self.clock.now_s(), False, []

    def read(self) -> dict[str, Reading]:
        """The newest frame of every sensor at this time of the recording."""
        self._hold.demand()
        elapsed_s = self.clock.now_s() - self._began_s
        return {name: self._newest(name, sensor, elapsed_s) for name, sensor in self.spec.sensors.items()}

    def send(self, action: np.ndarray) -> np.ndarray:
        """Log `action` beside the recorded one; returned as clipped to the limits. RobotError for NaN and after a stop."""
        self._hold.demand()
        sent = clipped(self.spec.action, action)
        if self._stopped:
            raise RobotError("the replay was stopped; close and connect it again to start from the beginning")
        now_s = self.clock.now_s()
        tick, recorded = int((now_s - self._began_s) * self.spec.rate_hz + EARLY), self._arrays["action"]
        self.log.append(Sent(now_s, tick, sent, recorded[tick].copy() if tick < len(recorded) else None))
        return sent.copy()

    def stop(self) -> None:
        """No action is logged from now on."""
        self._stopped = True

    def close(self) -> None:
        """Let go; the log stays."""
        self.stop()
        self._hold.release()

    @property
    def ended(self) -> bool:
        """True when every recorded action's time is past."""
        return (self.clock.now_s() - self._began_s) * self.spec.rate_hz + EARLY >= len(self._arrays["action"])

    def comparison(self) -> dict[str, Any]:
        """Figures of the log: ticks compared, ticks that got no action, mean and largest difference per dimension (A,)."""
        pairs = [(each.action, each.recorded) for each in self.log if each.recorded is not None]
        difference = np.abs([sent - recorded for sent, recorded in pairs]).reshape(-1, self.spec.action.size)
        met = {each.tick for each in self.log if each.recorded is not None}
        return {
            "compared": len(pairs),
            "missed": len(self._arrays["action"]) - len(met),
            "mean_difference": difference.mean(axis=0) if pairs else np.full(self.spec.action.size, np.nan),
            "largest_difference": difference.max(axis=0) if pairs else np.full(self.spec.action.size, np.nan),
        }

    def _newest(self, name: str, sensor: SensorSpec, elapsed_s: float) -> Reading:
        frames = self._arrays[name]
        index = min(int(elapsed_s * sensor.rate_hz + EARLY), len(frames) - 1)
        return Reading(frames[index].copy(), self._began_s + index / sensor.rate_hz)


def recorded(store: Any, episode: int) -> tuple[dict[str, np.ndarray], RobotSpec]:
    """(arrays, specification) of one episode of `store`: an object with `streams`, `card` and `read(episode, stream)`.

    Streams of kind video and state become sensors. Limits are the card's where it tells them, else those of the recording.
    """
    streams, card = store.streams, dict(store.card)
    names = ["action", *(name for name, stream in streams.items() if stream.kind in ("video", "state"))]
    if "action" not in streams:
        raise ValueError(f"an episode without a stream 'action' cannot be compared with; the store has {sorted(streams)}")
    arrays = {name: np.asarray(store.read(episode, name)) for name in names}
    told, size, free = card.get("action", {}), arrays["action"].shape[1], np.full(arrays["action"].shape[1], np.inf, np.float32)
    dims = tuple(told.get("names") or (f"action_{index}" for index in range(size)))
    low, high = (np.asarray(told.get(key, end), np.float32) for key, end in zip(("low", "high"), _extent(arrays["action"]), strict=True))
    gripper = tuple(index for index, name in enumerate(dims) if "gripper" in name)
    action = ActionSpec(dims, tuple(told.get("units") or ["?"] * size), low, high, free, free, told.get("mode", "absolute"), gripper)
    sensors = {
        name: SensorSpec(arrays[name].shape[1:], str(arrays[name].dtype), streams[name].rate_hz, tuple(streams[name].units))
        for name in names[1:]
    }
    return arrays, RobotSpec(f"recorded episode {episode}", streams["action"].rate_hz, action, sensors, {}, card)


def _extent(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values.min(axis=0), values.max(axis=0)


def _check(arrays: Mapping[str, np.ndarray], spec: RobotSpec) -> None:
    missing = {"action", *spec.sensors} - set(arrays)
    if missing:
        raise ValueError(f"the recording lacks {sorted(missing)}, which the specification names")
    wanted = {"action": (spec.action.size,), **{name: tuple(sensor.shape) for name, sensor in spec.sensors.items()}}
    for name, shape in wanted.items():
        if arrays[name].shape[1:] != shape or not len(arrays[name]):
            raise ValueError(f"{name} must be (T, {', '.join(map(str, shape))}) with T > 0, got {arrays[name].shape}")
