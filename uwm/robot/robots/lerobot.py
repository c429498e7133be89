"""LeRobot's robots (0.4, 0.5, 0.6) behind our interface, by their methods alone: nothing of LeRobot is imported.

```
get_observation()  {"shoulder.pos": 12.5, "elbow.pos": -3.0, "front": (480, 640, 3) uint8}
                       \\______ "proprio" (2,) ______/         "front"
send_action()      {"shoulder.pos": 13.0, "elbow.pos": -3.0}   <-- (2,) by the names in action_features
```

LeRobot tells neither limits nor units, and no times: limits are an argument, and a reading is stamped with the moment
before it was asked for, so that its age is never told too small. Use it with `lerobot` installed beside us:

    LeRobotRobot(make_robot_from_config(SO101FollowerConfig(port=...)), clock, rate_hz=30, limits={"shoulder.pos": (-100, 100), ...})
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from uwm.robot.clock import Clock
from uwm.robot.interface import ActionSpec, Reading, RobotError, RobotSpec, SensorSpec
from uwm.robot.robots.hold import Hold
from uwm.robot.robots.simulated import clipped, rest

BUS_WAIT_S = 1.0  # for the bus, which one thread may use at a time, when stopping


class LeRobotRobot:
    """`robot` has LeRobot's observation_features, action_features, connect, get_observation, send_action and disconnect.

    `rate_hz` of control; `limits` {action name: (low, high)} in the robot's own units, for every action; `velocity` and
    `acceleration` {action name: per second}, none where not told; `units` of one and all; `card` is added to the
    specification's; `mode`, `gripper` (action names): see `ActionSpec`. ValueError when names do not fit.
    """

    def __init__(
        self,
        robot: Any,
        clock: Clock,
        rate_hz: float,
        limits: Mapping[str, tuple[float, float]],
        velocity: Mapping[str, float] | None = None,
        acceleration: Mapping[str, float] | None = None,
        mode: str = "absolute",
        gripper: tuple[str, ...] | None = None,
        units: str = "the robot's own",
        calibrate: bool = False,
        card: Mapping | None = None,
        name: str = "",
    ):
        self.robot, self.clock, self.calibrate = robot, clock, calibrate
        self.names = tuple(robot.action_features)
        self.state = tuple(key for key, feature in robot.observation_features.items() if not isinstance(feature, tuple))
        _check_names(self.names, limits, "limits", every=True)
        rates = [_check_names(self.names, given or {}, what) for given, what in ((velocity, "velocity"), (acceleration, "acceleration"))]
        held = tuple(each for each in self.names if "gripper" in each) if gripper is None else gripper
        _check_names(self.names, held, "gripper")
        low, high = np.array([limits[each] for each in self.names], np.float32).T.copy()
        fastest = [np.array([given.get(each, np.inf) for each in self.names], np.float32) for given in rates]
        places = tuple(self.names.index(each) for each in held)
        action = ActionSpec(self.names, (units,) * len(self.names), low, high, *fastest, mode, places)
        kind = getattr(robot, "name", type(robot).__name__)
        sensors = _sensors(robot.observation_features, self.state, rate_hz, units)
        self.spec = RobotSpec(f"LeRobot {kind}", rate_hz, action, sensors, {}, {**_card(self, kind, rate_hz), **(card or {})})
        self._hold, self._bus = Hold(name), threading.Lock()
        self._stopped, self._last = False, None

    def connect(self) -> None:
        """Take hold and connect; RobotError says what LeRobot said."""
        self._hold.take()
        try:
            self._ask("connect", self.calibrate)
        except BaseException:
            self._hold.release()
            raise
        self._stopped, self._last = False, None

    def read(self) -> dict[str, Reading]:
        """Proprioception by the names of the scalar features, and every camera that gave a picture."""
        self._hold.demand()
        stamp_s = self.clock.now_s()
        seen = self._ask("get_observation")
        lacking = [key for key in self.state if key not in seen]
        values = {} if lacking or not self.state else {"proprio": np.array([seen[key] for key in self.state], np.float32)}
        values |= {key: np.asarray(seen[key]) for key in self.spec.sensors if key != "proprio" and seen.get(key) is not None}
        return {key: Reading(value, stamp_s) for key, value in values.items()}

    def send(self, action: np.ndarray) -> np.ndarray:
        """Send `action` (A,) by its names; returns what LeRobot says it sent, after its own clipping."""
        self._hold.demand()
        wanted = clipped(self.spec.action, action)
        if self._stopped:
            raise RobotError("the robot was stopped; close and connect it again to go on")
        self._last = self._send(wanted)
        return self._last.copy()

    def stop(self) -> None:
        """Hold where the joints are now, if they are read under the actions' names, else the last action's rest."""
        self._stopped = True
        if not self._hold.taken:
            return
        try:
            still = self._here() if self.spec.action.mode == "absolute" else None
            if still is None and self._last is not None:
                still = rest(self.spec.action, self._last)
            if still is not None:
                self._send(still)
        except Exception:  # noqa: BLE001 - a stop never raises: whoever stops has trouble enough, and close() disconnects
            pass

    def close(self) -> None:
        """Stop and disconnect; many of LeRobot's robots then switch their motors off, as they are configured."""
        if not self._hold.taken:
            return
        self.stop()
        try:
            self._ask("disconnect")
        finally:
            self._hold.release()

    def _here(self) -> np.ndarray | None:
        if not set(self.names) <= set(self.state):
            return None
        seen = self._ask("get_observation")
        return clipped(self.spec.action, np.array([seen[name] for name in self.names], np.float32))

    def _send(self, wanted: np.ndarray) -> np.ndarray:
        told = self._ask("send_action", {name: float(value) for name, value in zip(self.names, wanted, strict=True)})
        return np.array([told.get(name, value) for name, value in zip(self.names, wanted, strict=True)], np.float32)

    def _ask(self, method: str, *arguments: Any) -> Any:
        if not self._bus.acquire(timeout=BUS_WAIT_S):
            raise RobotError(f"{self.spec.name}: another thread has been talking to the robot for {BUS_WAIT_S:g} s")
        try:
            return getattr(self.robot, method)(*arguments)
        except Exception as error:
            raise RobotError(f"{self.spec.name}: {method} failed: {error}") from error
        finally:
            self._bus.release()


def _check_names(names: tuple[str, ...], given: Any, what: str, every: bool = False) -> Any:
    strangers, missing = sorted(set(given) - set(names)), [name for name in names if name not in given] if every else []
    if strangers or missing:
        raise ValueError(f"{what}: the robot's actions are {list(names)}; unknown are {strangers}, missing are {missing}")
    return given


def _sensors(features: Mapping[str, Any], state: tuple[str, ...], rate_hz: float, units: str) -> dict[str, SensorSpec]:
    proprio = {"proprio": SensorSpec((len(state),), "float32", rate_hz, (units,) * len(state))} if state else {}
    cameras = {key: SensorSpec(tuple(shape), "uint8", rate_hz) for key, shape in features.items() if isinstance(shape, tuple)}
    return proprio | cameras


def _card(robot: LeRobotRobot, kind: str, rate_hz: float) -> dict:
    """What can be known; the rest of a checkpoint's card (orientation, convention) is for the argument `card` to say."""
    cameras = [key for key, feature in robot.robot.observation_features.items() if isinstance(feature, tuple)]
    return {"robot": kind, "rate_hz": rate_hz, "cameras": cameras, "proprio": {"names": list(robot.state)},
            "action": {"names": list(robot.names)}}  # fmt: skip
