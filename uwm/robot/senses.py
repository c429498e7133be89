"""What a policy may see of a robot: the newest usable reading of each sensor, and none that is older than its limit."""

from __future__ import annotations

import contextlib

import numpy as np

from uwm.robot.history import History
from uwm.robot.interface import Reading, RobotSpec


class Senses:
    """The newest usable reading of every sensor. What is missing, of another shape or not finite is not used, and is named."""

    def __init__(self, spec: RobotSpec, cameras: tuple[str, ...]):
        self.sensors = {name: spec.sensors[name] for name in ("proprio", *cameras) if name in spec.sensors}
        self.seen: dict[str, Reading] = {}

    def look(self, readings: dict[str, Reading], now_s: float) -> tuple[str, ...]:
        """Takes over what is usable; names the sensors whose value is old, or gone."""
        missing = []
        for name, sensor in self.sensors.items():
            usable = name in readings and self._usable(name, readings[name].value)
            if usable:
                self.seen[name] = readings[name]
            if not usable or now_s - readings[name].stamp_s > sensor.stale_after_s:
                missing.append(name)
        return tuple(missing)

    def _usable(self, name: str, value: np.ndarray) -> bool:
        sensor, value = self.sensors[name], np.asarray(value)
        if value.shape != tuple(sensor.shape) or value.dtype.kind != np.dtype(sensor.dtype).kind:
            return False
        with contextlib.suppress(ValueError):
            return bool(History(1).add({name: value}))
        return False

    def observation(self, now_s: float) -> dict[str, np.ndarray] | None:
        """What a policy may act on: no camera older than its limit; None while proprioception is, or was never seen."""
        fresh = {n: r.value for n, r in self.seen.items() if now_s - r.stamp_s <= self.sensors[n].stale_after_s}
        return fresh if "proprio" in fresh or "proprio" not in self.sensors else None
