"""Holds any robot to `uwm.robot.interface`: what is wrong comes back as a list of findings, one rule each.

    for finding in check(lambda: MyRobot(...), MonotonicClock()):
        print(finding)

With the real clock this moves hardware: `quiet` actions by default (zeros for deltas and velocities, the middle of the limits
for absolute targets), and one action just outside each limit, which a robot refuses or clips. Give `action=` one that is safe
where your arm stands, and `limits=False` where the limits are not to be reached. A check takes some 30 control periods.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from uwm.robot.clock import Clock
from uwm.robot.interface import Reading, Robot, RobotError, RobotSpec

MODES = ("delta", "absolute", "velocity")
TICKS = 12
WAIT_S = 10.0  # of the machine, for a stop in another thread
RULES = {
    "spec": "the specification is complete and consistent",
    "unconnected": "read and send before connect raise RobotError",
    "connect": "connect works, also again after close",
    "hold": "a second connect while connected raises RobotError",
    "readings": "read gives readings of declared sensors, shapes and dtypes, finite",
    "stamps": "stamps are not of the future, never go back, and are fresh",
    "rate": "a sensor gives new readings at its declared rate",
    "quick": "read and send return within a control period",
    "sent": "send returns what was sent: (A,), finite, inside the limits, the action itself when that is legal",
    "limits": "an action beyond a limit is clipped, and told, or raises RobotError",
    "malformed": "NaN, infinity and wrong shapes raise RobotError",
    "argument": "send leaves its argument alone",
    "stop": "stop never raises, from any thread, twice, and after it actions are refused until the robot is connected again",
}
Act = Callable[[RobotSpec, dict[str, Reading]], np.ndarray]


@dataclass(frozen=True)
class Finding:
    """What a robot does against `rule` (a key of RULES)."""

    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.message} (rule: {RULES[self.rule]})"


def quiet(spec: RobotSpec, readings: dict[str, Reading]) -> np.ndarray:
    """An action (A,) that moves little: zeros, or the middle of the limits where the targets are absolute."""
    low, high = np.asarray(spec.action.low, np.float32), np.asarray(spec.action.high, np.float32)
    return (low + high) / 2 if spec.action.mode == "absolute" else np.clip(np.zeros_like(low), low, high)


def check(make: Callable[[], Robot], clock: Clock, action: Act = quiet, limits: bool = True) -> list[Finding]:
    """Everything that `make()`'s robot does against the rules, in the order of RULES' first sight; empty when it conforms.

    `action(spec, readings)` gives a legal action for the state the robot is in; `limits`: also send actions beyond them.
    """
    robot, found = make(), []
    found += _spec(robot.spec)
    if found:  # nothing else means anything without a specification
        return found
    try:
        with _rule(found, "unconnected"):
            _must_refuse(robot.read, "read before connect")
            _must_refuse(lambda: robot.send(quiet(robot.spec, {})), "send before connect")
        if _connect(robot, found):
            with _rule(found, "hold"):
                _must_refuse(robot.connect, "a second connect")
            _drive(robot, clock, action, found)
            _bad_actions(robot, clock, action, limits, found)
            _stopping(robot, clock, action, found)
        with _rule(found, "connect"):
            robot.close()
            robot.connect()
            _demand(bool(robot.read()), "after close and connect there are no readings")
            robot.send(np.array(action(robot.spec, robot.read()), np.float32))
    finally:
        with _rule(found, "connect"):
            robot.close()
    return list(dict.fromkeys(found))


class _Broken(Exception):
    """A rule is broken: the message of a finding."""


@contextmanager
def _rule(found: list[Finding], rule: str) -> Iterator[None]:
    """Turns whatever goes wrong inside into a finding."""
    try:
        yield
    except _Broken as broken:
        found.append(Finding(rule, str(broken)))
    except Exception as error:  # noqa: BLE001 - a robot under test may raise anything
        found.append(Finding(rule, f"{type(error).__name__}: {error}"))


def _demand(holds: object, message: str) -> None:
    if not holds:
        raise _Broken(message)


def _must_refuse(work: Callable[[], object], what: str) -> None:
    try:
        result = work()
    except RobotError:
        return
    except Exception as error:
        raise _Broken(f"{what} raised {type(error).__name__} instead of RobotError: {error}") from error
    raise _Broken(f"{what} was accepted and returned {result!r}")


def _spec(spec: RobotSpec) -> list[Finding]:
    found: list[Finding] = []
    act = spec.action
    with _rule(found, "spec"):
        _demand(0 < spec.rate_hz < np.inf, f"rate_hz must be positive, got {spec.rate_hz}")
        _demand(act.size > 0 and len(set(act.names)) == act.size, f"action names must be different, got {act.names}")
        _demand(len(act.units) == act.size, f"{act.size} actions have {len(act.units)} units")
        for name in ("low", "high", "velocity", "acceleration"):
            value = np.asarray(getattr(act, name))
            _demand(value.shape == (act.size,) and not np.isnan(value).any(), f"action.{name} must be ({act.size},) numbers, got {value}")
        _demand(bool((np.asarray(act.low) < act.high).all()), f"action limits must have low < high, got {act.low} and {act.high}")
        _demand(bool(np.isfinite([act.low, act.high]).all()), "action limits must be finite: nothing else would hold an action")
        _demand(bool((np.minimum(act.velocity, act.acceleration) > 0).all()), "velocity and acceleration limits must be positive")
        _demand(act.mode in MODES, f"action.mode must be one of {MODES}, got {act.mode!r}")
        _demand(all(0 <= index < act.size for index in act.gripper), f"action.gripper {act.gripper} is not among {act.size} actions")
        _demand(bool(spec.sensors), "a robot without sensors cannot be controlled")
        for name, sensor in spec.sensors.items():
            np.dtype(sensor.dtype)
            _demand(sensor.rate_hz > 0 and sensor.stale_after_s > 0, f"{name}: rate_hz and stale_after_s must be positive")
            image = sensor.dtype != "uint8" or (len(sensor.shape) == 3 and sensor.shape[2] == 3)
            _demand(image, f"{name}: images are uint8 (H, W, 3), got {sensor.shape}")
            _demand(len(sensor.units) in (0, *sensor.shape[:1]), f"{name}: {len(sensor.units)} units for shape {sensor.shape}")
        for index, (low, high) in spec.workspace.items():
            known = "proprio" in spec.sensors and 0 <= index < spec.sensors["proprio"].shape[0]
            _demand(known and low < high, f"workspace {index}: ({low}, {high}) must be an interval of a proprio dimension")
    return found


def _connect(robot: Robot, found: list[Finding]) -> bool:
    before = len(found)
    with _rule(found, "connect"):
        robot.connect()
    return len(found) == before


def _drive(robot: Robot, clock: Clock, action: Act, found: list[Finding]) -> None:
    """Some ordinary ticks, at the robot's rate."""
    spec, history = robot.spec, []
    due_s = clock.now_s()
    for _ in range(TICKS):
        began_s, before = clock.now_s(), len(found)
        with _rule(found, "readings"):
            readings = robot.read()
            _check_values(spec, readings)
        if len(found) > before:
            return
        with _rule(found, "stamps"):
            _check_stamps(spec, readings, history[-1] if history else {}, clock.now_s())
        history.append({name: reading.stamp_s for name, reading in readings.items()})
        _check_send(robot, action(spec, readings), found)
        took_s = clock.now_s() - began_s
        with _rule(found, "quick"):
            _demand(took_s <= spec.period_s, f"read and send took {took_s:.4f} s of a period of {spec.period_s:.4f} s")
        due_s += spec.period_s
        clock.sleep_until(due_s)
    with _rule(found, "rate"):
        _check_rates(spec, history)


def _check_values(spec: RobotSpec, readings: dict[str, Reading]) -> None:
    _demand(set(readings) == set(spec.sensors), f"the readings are {sorted(readings)}, the specification names {sorted(spec.sensors)}")
    for name, sensor in spec.sensors.items():
        value = np.asarray(readings[name].value)
        same = (value.shape, value.dtype) == (tuple(sensor.shape), np.dtype(sensor.dtype))
        _demand(same, f"{name} must be {sensor.dtype} {sensor.shape}, got {value.dtype} {value.shape}")
        _demand(value.dtype.kind != "f" or bool(np.isfinite(value).all()), f"{name} is not finite: {value}")


def _check_stamps(spec: RobotSpec, readings: dict[str, Reading], before: dict[str, float], now_s: float) -> None:
    for name, reading in readings.items():
        age_s = now_s - reading.stamp_s
        _demand(age_s >= -1e-6, f"{name} is stamped {-age_s:.4f} s into the future: stamps are of the controller's clock")
        _demand(age_s <= spec.sensors[name].stale_after_s, f"{name} is {age_s:.3f} s old, stale after {spec.sensors[name].stale_after_s} s")
        _demand(reading.stamp_s >= before.get(name, -np.inf), f"{name}'s stamp went back from {before.get(name)} to {reading.stamp_s}")


def _check_rates(spec: RobotSpec, history: list[dict[str, float]]) -> None:
    """At least half of the new stamps that the declared rate, or the slower control rate, would give."""
    for name, sensor in spec.sensors.items():
        fresh = len({stamps[name] for stamps in history if name in stamps}) - 1
        wanted = (len(history) - 1) * min(1.0, sensor.rate_hz / spec.rate_hz)
        told = f"{name} gave {fresh} new readings in {len(history)} ticks; at {sensor.rate_hz:g} Hz there are {wanted:.0f}"
        _demand(fresh >= int(wanted / 2), told)


def _check_send(robot: Robot, wanted: np.ndarray, found: list[Finding]) -> None:
    given = np.array(wanted, np.float32)
    with _rule(found, "sent"):
        sent = _inside(robot.spec, robot.send(given))
        free = not np.isfinite(np.minimum(robot.spec.action.velocity, robot.spec.action.acceleration)).any()
        same = np.allclose(sent, wanted, rtol=1e-4, atol=1e-5)
        _demand(same or not free, f"a legal action {wanted} became {sent}, and the specification has no limit that says why")
    with _rule(found, "argument"):
        _demand(np.array_equal(given, np.asarray(wanted, np.float32)), "send changed the array that it was given")


def _inside(spec: RobotSpec, sent: np.ndarray) -> np.ndarray:
    act, value = spec.action, np.asarray(sent)
    _demand(value.shape == (act.size,) and value.dtype.kind == "f", f"send must return ({act.size},) numbers, got {sent!r}")
    _demand(bool(np.isfinite(value).all()), f"send returned {value}, which is not finite")
    slack = 1e-5 * (np.abs(act.low) + np.abs(act.high))
    _demand(bool(((value >= act.low - slack) & (value <= act.high + slack)).all()), f"send returned {value}, outside its own limits")
    return value


def _bad_actions(robot: Robot, clock: Clock, action: Act, limits: bool, found: list[Finding]) -> None:
    legal = np.array(action(robot.spec, robot.read()), np.float32)
    for bad in (np.nan, np.inf):
        with _rule(found, "malformed"):
            _must_refuse(lambda bad=bad: robot.send(_replaced(legal, 0, bad)), f"an action with {bad}")
    for shape in ((legal.size + 1,), (1, legal.size), ()):
        with _rule(found, "malformed"):
            _must_refuse(lambda shape=shape: robot.send(np.zeros(shape, np.float32)), f"an action of shape {shape}")
    act = robot.spec.action
    beyond = 0.1 * (np.asarray(act.high) - act.low)
    edges = [(index, end) for index in range(act.size) for end in (act.low - beyond, act.high + beyond)]
    for index, end in edges if limits else ():
        clock.sleep_until(clock.now_s() + robot.spec.period_s)
        with _rule(found, "limits"):
            try:
                sent = robot.send(_replaced(legal, index, float(end[index])))
            except RobotError:
                continue
            _inside(robot.spec, sent)


def _replaced(action: np.ndarray, index: int, value: float) -> np.ndarray:
    copy = action.copy()
    copy[index] = value
    return copy


def _stopping(robot: Robot, clock: Clock, action: Act, found: list[Finding]) -> None:
    legal, raised = np.array(action(robot.spec, robot.read()), np.float32), []

    def stop_twice() -> None:
        try:
            robot.stop()
            robot.stop()
        except BaseException as error:  # noqa: BLE001 - told below
            raised.append(error)

    thread = threading.Thread(target=stop_twice, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    with _rule(found, "stop"):
        _demand(not thread.is_alive(), f"stop in another thread did not return within {WAIT_S:g} s")
        _demand(not raised, f"stop raised {raised[:1]!r}")
        robot.stop()
        clock.sleep_until(clock.now_s() + robot.spec.period_s)
        _must_refuse(lambda: robot.send(legal), "an action after stop")
        _demand(isinstance(robot.read(), dict), "a robot that was stopped still tells what it sees")
