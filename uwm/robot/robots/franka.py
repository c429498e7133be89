"""A Franka arm (FR3) through its maker's own client, pylibfranka: absolute joint targets at the policy's rate.

```
policy's process             shared memory                the arm's own process (franka_arm.py)         the arm
send(action)  ------>  target, when, how often  ------>  set-points within the limits, 1 kHz  ----->  1 ms or a reflex
read()        <------  joints, pose, stamp      <------  states, 1 kHz                       <-----
```

The arm does not depend on the policy's process: killed, hung or silent, the arm comes to a controlled stop and its motion ends in
order. What follows a stop, a silence or a reflex of the robot is refused until `recover()` or a new `connect()`.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from dataclasses import asdict

import numpy as np

from uwm.robot.clock import Clock, MonotonicClock
from uwm.robot.interface import ActionSpec, Reading, RobotError, RobotSpec, SensorSpec
from uwm.robot.robots.franka_arm import CONNECT_S, ArmSettings
from uwm.robot.robots.franka_board import JOINTS, Board, Mode, told
from uwm.robot.robots.hold import Hold
from uwm.robot.robots.simulated import clipped

START_S = 20.0  # for the processes to start and to connect, on a busy machine
CLOSE_S = 5.0
MOST_WIDTH_M = 0.08
_REFUSED = {
    Mode.STOPPED: "the robot was stopped",
    Mode.SILENT: "no action came for longer than silent_after_s, so the arm was brought to a controlled stop",
    Mode.ERROR: "the robot refused or stopped the motion",
    Mode.LOST: "the connection to the robot is lost",
    Mode.STARTING: "the arm's process has not connected",
}


class FrankaRobot:
    """The arm at `address`: actions are 7 joint angles (rad) and, with `gripper`, the width between the fingers (m).

    "proprio" is joint angles (7, rad), joint velocities (7, rad/s), the end effector in the base's frame as position (3, m) and
    quaternion (4, x y z w), and the gripper's width (m). `settings`: see `ArmSettings`. Stamps are of the machine's monotonic
    clock, so `clock` must be that. RobotError names the extra when pylibfranka is not installed.
    """

    def __init__(self, address: str, rate_hz: float = 20.0, gripper: bool = True, clock: Clock | None = None, **settings):
        if importlib.util.find_spec("pylibfranka") is None:
            raise RobotError("a Franka arm needs its maker's client: pip install 'uwm[franka]'")
        self.settings = ArmSettings(address=address, period_s=1.0 / rate_hz, **settings)
        self.gripper, self.clock = gripper, clock or MonotonicClock()
        self.spec = _spec(self.settings, rate_hz, gripper)
        self._hold, self._guard = Hold(), threading.Lock()  # the lock of the machine is the arm's process's
        self._board: Board | None = None
        self._processes: dict[str, subprocess.Popen] = {}

    def connect(self) -> None:
        """Start the arm's process and wait for the first state; RobotError says what it met."""
        self._hold.take()
        try:
            self._board = Board()
            for part in ("arm", "gripper") if self.gripper else ("arm",):
                self._processes[part] = self._started(part)
            self._await(lambda: self._board.arm.read()["stamp_s"] > 0, START_S, "no state of the arm")
            if self.gripper:
                self._await(lambda: self._board.gripper.read()["stamp_s"] > 0, START_S, "no state of the gripper (gripper=False if none)")
        except BaseException:
            self.close()
            raise

    def read(self) -> dict[str, Reading]:
        """The newest state; RobotError when the arm's process or its connection is gone."""
        self._hold.demand()
        self._refuse_the_dead()
        arm = self._board.arm.read()
        pose = arm["pose"].reshape(4, 4).T  # Franka's matrices come column by column
        parts = [arm["q"], arm["dq"], pose[:3, 3], _quaternion(pose[:3, :3])]
        if self.gripper:
            parts.append([self._board.gripper.read()["width"]])
        return {"proprio": Reading(np.concatenate(parts).astype(np.float32), float(arm["stamp_s"]))}

    def send(self, action: np.ndarray) -> np.ndarray:
        """A new target for the next period, clipped to the limits; what of it is reached is for the interpolator's limits to say."""
        self._hold.demand()
        self._refuse_the_dead()
        wanted = clipped(self.spec.action, action)
        mode = Mode(self._board.arm.read()["mode"])
        if mode not in (Mode.IDLE, Mode.MOVING):
            raise RobotError(f"{_REFUSED[mode]}{self._cause()}; call recover(), or close and connect again, to go on")
        with self._guard:
            orders = self._board.orders.read()
            if orders["stops"] > self._stops:
                raise RobotError("the robot was stopped; call recover(), or close and connect again, to go on")
            width = float(wanted[JOINTS]) if self.gripper else 0.0
            goal = wanted[:JOINTS].astype(np.float64)
            self._board.orders.write(goal=goal, width=width, stamp_s=self.clock.now_s(), goals=orders["goals"] + 1)
        return wanted

    def stop(self) -> None:
        """Begin a controlled stop; the arm stands still within `settings.limits.longest_stop_s`. Refuses actions afterwards."""
        board = self._board
        if board is not None:
            with self._guard:
                board.orders.write(stops=board.orders.read()["stops"] + 1)

    def recover(self) -> None:
        """Take actions again after a stop, a silence or an error that the robot can recover from; RobotError when it cannot."""
        self._hold.demand()
        self._refuse_the_dead()
        with self._guard:
            orders = self._board.orders.read()
            count, self._stops = orders["recoveries"] + 1, int(orders["stops"])
            self._board.orders.write(recoveries=count, forgiven=self._stops)
        self._await(lambda: self._board.arm.read()["recovered"] >= count, CLOSE_S, "no recovery")
        if Mode(self._board.arm.read()["mode"]) is Mode.ERROR:
            raise RobotError(f"the robot did not recover{self._cause()}; look at the arm, then try again")

    def close(self) -> None:
        """Stop, and end the arm's process when the arm stands still."""
        if not self._hold.taken:
            return
        self.stop()
        for process in self._processes.values():
            process.stdin.close()
        for process in self._processes.values():
            try:
                process.wait(CLOSE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes, board, self._board = {}, self._board, None
        if board is not None:
            board.close()
        self._hold.release()

    @property
    def mode(self) -> Mode:
        """What the arm is about."""
        return Mode(self._board.arm.read()["mode"]) if self._board is not None else Mode.LOST

    @property
    def lost_cycles(self) -> int:
        """Milliseconds for which the robot had no set-point in time, since `connect`."""
        return int(self._board.arm.read()["lost"]) if self._board is not None else 0

    def _started(self, part: str) -> subprocess.Popen:
        self._stops = 0
        fd = self._board.fd
        command = [sys.executable, "-m", "uwm.robot.robots.franka_arm", part, str(fd), json.dumps(asdict(self.settings))]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=(fd,), start_new_session=True)

    def _await(self, ready, patience_s: float, what: str) -> None:
        give_up_s = self.clock.now_s() + patience_s
        while not ready():
            self._refuse_the_dead()
            if self.clock.now_s() > give_up_s:
                raise RobotError(f"{what} within {patience_s:g} s from {self.settings.address}{self._cause()}")
            self.clock.sleep_until(self.clock.now_s() + 0.005)

    def _refuse_the_dead(self) -> None:
        for part, process in self._processes.items():
            if process.poll() is not None:
                hint = f"is the robot on, its FCI active, and no other controller on it (waited {CONNECT_S:g} s)?"
                raise RobotError(f"the process of the {part} at {self.settings.address} has ended{self._cause()}; {hint}")

    def _cause(self) -> str:
        texts = [told(block.read()) for block in (self._board.arm, self._board.gripper)]
        return "".join(f": {text}" for text in texts if text)


def _spec(settings: ArmSettings, rate_hz: float, gripper: bool) -> RobotSpec:
    limits, hand = settings.limits, int(gripper)
    names = tuple(f"joint{index + 1}" for index in range(JOINTS)) + ("gripper",) * hand
    units = ("rad",) * JOINTS + ("m",) * hand
    ends = [(limits.inner_low, 0.0), (limits.inner_high, MOST_WIDTH_M), (limits.velocity, np.inf), (limits.acceleration, np.inf)]
    low, high, velocity, acceleration = (np.append(arm, [more] * hand).astype(np.float32) for arm, more in ends)
    action = ActionSpec(names, units, low, high, velocity, acceleration, "absolute", (JOINTS,) * hand)
    seen = ("rad",) * 7 + ("rad/s",) * 7 + ("m",) * 3 + ("1",) * 4 + ("m",) * hand
    card = {"robot": "franka fr3", "rate_hz": rate_hz, "cameras": [], "action": {"names": list(names)}}
    return RobotSpec("Franka FR3", rate_hz, action, {"proprio": SensorSpec((len(seen),), "float32", 1000.0, seen, 0.1)}, {}, card)


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    """Of a rotation matrix, as x y z w with w >= 0, from its largest component, which divides without loss."""
    (a, b, c), (d, e, f), (g, h, i) = rotation
    squares = np.array([1 + a - e - i, 1 - a + e - i, 1 - a - e + i, 1 + a + e + i])
    rows = np.array([[squares[0], b + d, c + g, h - f], [b + d, squares[1], f + h, c - g],
                     [c + g, f + h, squares[2], d - b], [h - f, c - g, d - b, squares[3]]])  # fmt: skip
    chosen = rows[int(np.argmax(squares))]
    chosen = chosen / np.linalg.norm(chosen)
    return -chosen if chosen[3] < 0 else chosen
