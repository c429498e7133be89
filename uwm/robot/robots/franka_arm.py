"""The process that holds a Franka arm: a set-point every millisecond, whatever becomes of the process that has the policy.

```
                      a target                     no target for `silent_after_s`, a stop, the policy's process gone
   IDLE  ------------------------------>  MOVING  -------------------------------------------------> braking, then the motion
    ^                                        |                                                         ends: STOPPED, SILENT
    '------- recover() ------ ERROR <--------'  the robot's own reflex                                 or the process
```

Run as `python -m uwm.robot.robots.franka_arm arm|gripper FD SETTINGS` by `uwm.robot.robots.franka`, which holds the other end of the
standard input: when that ends, so does this process, after a controlled stop.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from uwm.robot.clock import Clock, MonotonicClock
from uwm.robot.interface import RobotError
from uwm.robot.interpolation import Motion, MotionLimits, Ramp, brake, follow
from uwm.robot.robots.franka_board import TEXT_BYTES, Board, Mode
from uwm.robot.robots.hold import Hold

CONNECT_S = 3.0  # for the hold, and for a robot that still ends the motion of a controller before us
# A motion begins at rest, and after a reflex the arm swings for a moment. All its joints swing together, so at the turning points all
# velocities are small at once: rest is what lasts.
STILL_RAD_S = 0.02
STILL_CYCLES = 50
GRIPPER_STEP_M = 0.001  # a smaller change of the width is none
GRASP_M = 0.005  # a width below means: hold what is between the fingers, with the force
PRIORITY = 60  # of the real-time scheduler, where the system lets us

# Franka's own limits of an FR3 are 10 rad/s^2 and 5000 rad/s^3, and of the position these, with a velocity that falls near the ends.
FR3_LOW = (-2.7501, -1.7918, -2.9065, -3.0481, -2.8101, 0.54092, -3.0196)
FR3_HIGH = (2.7501, 1.7918, 2.9065, -0.1458, 2.8101, 4.5205, 3.0196)


@dataclass(frozen=True)
class ArmSettings:
    """How an arm moves: limits of all joints in rad, rad/s, rad/s^2 and rad/s^3, and how long the policy may be silent.

    `margin`: distance from the ends of Franka's joint ranges; with 0.2 rad and 3 rad/s^2 a joint that is about to end before them
    is slower than Franka wants it there. `period_s`: of the policy. `enforce`: libfranka's real-time mode, for a real-time kernel.
    """

    address: str
    period_s: float = 0.05
    velocity: float = 1.0
    acceleration: float = 3.0
    jerk: float = 1000.0
    margin: float = 0.2
    silent_after_s: float = 0.25
    enforce: bool = False
    grip_speed: float = 0.1
    grip_force: float = 20.0

    @property
    def limits(self) -> MotionLimits:
        """The interpolator's."""
        low, high = np.array(FR3_LOW) + self.margin, np.array(FR3_HIGH) - self.margin
        return MotionLimits(low, high, self.velocity, self.acceleration, self.jerk)


class Arm:
    """One robot (pylibfranka's Robot, of the module `franka`) served cycle by cycle; `alive()` tells whether the policy's process is."""

    def __init__(self, franka: Any, robot: Any, board: Board, settings: ArmSettings, clock: Clock, alive: Callable[[], bool]):
        self.franka, self.robot, self.board, self.settings, self.clock, self.alive = franka, robot, board, settings, clock, alive
        self.limits = settings.limits
        self.mode, self.text, self.lost, self.cycles, self._still = Mode.IDLE, "", 0, 0, 0
        self._active, self._motion, self._ramp = None, None, None
        self._ending: Mode | None = None
        self._leaving = False
        orders = board.orders.read()
        self._goals, self._stops, self._recoveries = int(orders["goals"]), int(orders["stops"]), int(orders["recoveries"])

    def run(self) -> None:
        """Until the policy's process lets go and the arm stands still, or the connection is lost."""
        while self.cycle():
            pass

    def cycle(self) -> bool:
        """One packet of the robot, some millisecond; False when this process is to end."""
        self._leaving = self._leaving or not self.alive()
        try:
            state = self._moving() if self._active is not None else self._waiting()
        except self.franka.NetworkException as error:
            self._fail(Mode.LOST, error)
            self.board.arm.write(mode=self.mode, text=_encoded(self.text))
            return False
        except (self.franka.FrankaException, self.franka.ControlException, self.franka.CommandException,
                self.franka.InvalidOperationException, self.franka.RealtimeException) as error:  # fmt: skip
            self._fail(Mode.ERROR, error)
            state = None
        self._tell(state)
        return not (self._leaving and self._active is None)

    def _fail(self, mode: Mode, error: Exception) -> None:
        self.mode, self.text = mode, f"{type(error).__name__}: {error}"
        self._active = self._motion = self._ending = None

    def _waiting(self) -> Any:
        """Nothing moves: answer to orders, and see how the robot is."""
        orders = self.board.orders.read()
        if orders["recoveries"] != self._recoveries:
            self._recover(orders)
        if orders["stops"] != self._stops:
            self._stops = int(orders["stops"])
            self.mode = Mode.STOPPED if self.mode in (Mode.IDLE, Mode.SILENT) else self.mode
        state = self.robot.read_once()
        self._still = self._still + 1 if np.abs(state.dq).max() < STILL_RAD_S else 0
        if self.mode is Mode.IDLE and orders["goals"] != self._goals and self._still >= STILL_CYCLES and not self._leaving:
            self._active = self.robot.start_joint_position_control(self.franka.ControllerMode.JointImpedance)
            self.mode, self._motion, self._still = Mode.MOVING, None, 0
        return state

    def _recover(self, orders: np.void) -> None:
        self._recoveries, self._goals, self._stops = (int(orders[name]) for name in ("recoveries", "goals", "forgiven"))
        if self.mode is Mode.ERROR:
            self.robot.automatic_error_recovery()
        self.mode, self.text = Mode.IDLE, ""

    def _moving(self) -> Any:
        """One set-point, towards the newest target or to a standstill."""
        state, elapsed = self._active.readOnce()
        now_s, orders = self.clock.now_s(), self.board.orders.read()
        missed = max(0, round(elapsed.to_sec() / self.limits.step_s) - 1)
        if self._motion is None:
            self._motion = Motion.at(state.q_d)
            self._ramp = Ramp(self._motion.position, self._motion.position, now_s, self.settings.period_s)
        elif missed:  # the robot went on by itself, with the acceleration that it had; from there we go on
            self._motion = Motion(*(np.array(each, np.float64) for each in (state.q_d, state.dq_d, state.ddq_d)))
            self.lost += missed
        self._ending, finished = self._ending or self._why_end(orders, now_s), False
        if self._ending is None:
            if orders["goals"] != self._goals:
                self._ramp, self._goals = self._ramp.to(orders["goal"], now_s), int(orders["goals"])
            self._motion = follow(self._motion, self._ramp, now_s, self.limits)
        else:
            finished, self._motion = self._motion.resting, brake(self._motion, self.limits)
        command = self.franka.JointPositions(self._motion.position.tolist())
        command.motion_finished = finished  # with the same set-point as the one before, which is rest also by differences
        self._active.writeOnce(command)
        if finished:
            self.mode, self._ending, self._active = self._ending, None, None
        return state

    def _why_end(self, orders: np.void, now_s: float) -> Mode | None:
        if orders["stops"] != self._stops:
            self._stops = int(orders["stops"])
            return Mode.STOPPED
        silent = now_s - orders["stamp_s"] > self.settings.silent_after_s
        return Mode.SILENT if self._leaving or silent else None

    def _tell(self, state: Any) -> None:
        self.cycles += 1
        seen = {} if state is None else {"stamp_s": self.clock.now_s(), "q": state.q, "dq": state.dq, "pose": state.O_T_EE}
        about = {"mode": self.mode, "recovered": self._recoveries, "lost": self.lost, "cycles": self.cycles, "text": _encoded(self.text)}
        self.board.arm.write(**seen, **about)


def move_gripper(hand: Any, board: Board, settings: ArmSettings, clock: Clock, alive: Callable[[], bool], refused: type[Exception]) -> None:
    """Serve a gripper (pylibfranka's) until the policy's process lets go: widths are told by a second thread while it moves."""

    def tell() -> None:
        while alive():
            state = hand.read_once()
            board.gripper.write(stamp_s=clock.now_s(), width=state.width, most=state.max_width)

    reader = threading.Thread(target=tell, daemon=True)
    reader.start()
    width, goals = None, int(board.orders.read()["goals"])
    while alive() and reader.is_alive():
        orders = board.orders.read()
        wanted = float(orders["width"])
        if orders["goals"] != goals and (width is None or abs(wanted - width) > GRIPPER_STEP_M):
            width = wanted
            with contextlib.suppress(refused):  # something is in the way: the width that is read tells
                if wanted < GRASP_M:
                    hand.grasp(wanted, settings.grip_speed, settings.grip_force, 1.0, 1.0)
                else:
                    hand.move(wanted, settings.grip_speed)
        clock.sleep_until(clock.now_s() + 0.005)


def main(arguments: list[str]) -> int:
    """The processes' beginning; 0 when they ended as they were told to."""
    part, board, settings, clock = arguments[0], Board(int(arguments[1])), ArmSettings(**json.loads(arguments[2])), MonotonicClock()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer; the arm stops when the parent lets go
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    alive, hold = _parent_alive(), Hold(f"franka-{part}-{settings.address}")
    block = board.arm if part == "arm" else board.gripper
    try:
        _patiently(hold.take, (RobotError,), clock)
        import pylibfranka as franka

        if part == "gripper":
            move_gripper(franka.Gripper(settings.address), board, settings, clock, alive, franka.CommandException)
            return 0
        kind = franka.RealtimeConfig.kEnforce if settings.enforce else franka.RealtimeConfig.kIgnore
        robot = _patiently(lambda: franka.Robot(settings.address, kind), (franka.NetworkException,), clock)
        arm = Arm(franka, robot, board, settings, clock, alive)
        _undisturbed()
        arm.run()
    except Exception as error:  # noqa: BLE001 - told to the parent, which makes a RobotError of it
        block.write(text=_encoded(f"{type(error).__name__}: {error}"), **({"mode": Mode.LOST} if part == "arm" else {}))
        return 1
    return 0 if arm.mode is not Mode.LOST else 1


def _patiently(attempt: Callable[[], Any], refusals: tuple[type[Exception], ...], clock: Clock) -> Any:
    """`attempt()`, again while it is refused, for CONNECT_S: a controller before us may still be stopping the arm."""
    give_up_s = clock.now_s() + CONNECT_S
    while True:
        try:
            return attempt()
        except refusals:
            if clock.now_s() > give_up_s:
                raise
            clock.sleep_until(clock.now_s() + 0.1)


def _parent_alive() -> Callable[[], bool]:
    """False once the other end of the standard input is closed, which the system does for a process that is killed."""
    return lambda: not select.select([sys.stdin], [], [], 0)[0]


def _undisturbed() -> None:
    """No pauses for garbage, and before other processes where the system allows it."""
    gc.collect()
    gc.freeze()
    gc.disable()
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))


def _encoded(text: str) -> bytes:
    return text.encode()[:TEXT_BYTES]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
