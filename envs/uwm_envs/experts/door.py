"""Door: take the lever from the front, turn it down with the wrist until the latch is free, pull the door open.

    seen from the robot:           hinge |                    (o)---.  lever, pivot at (o)
                                         |  panel       <------'       the hand grips its far end, follows an arc
                                         |                             down, then another towards the robot

The hand points at the panel. Pointing down, as in the other tasks, its broad side would touch the panel before the
fingers were around the lever.
"""

from typing import ClassVar

import numpy as np

from uwm_envs.experts.motion import CLOSE, OPEN, ArmExpert, about, pointing_down, rotation_vector, servo

NEAR_M = 0.012
TURNED_RAD = 0.2
LOST_M = 0.05
BEFORE_M = 0.09  # distance before the lever at which the hand finishes turning towards the panel
CLOSE_TICKS = 7
FREE_RAD = 1.25  # lever angle at which the latch no longer touches the frame
PULL_RAD = 1.5  # lever angle asked for while pulling
LEVER_STEP_RAD = 0.30  # how far ahead on its arc the lever is sent
HINGE_STEP_RAD = 0.15
_VERTICAL = np.array([0.0, 0.0, 1.0])


class DoorExpert(ArmExpert):
    """Strategies: `outer` and `inner`, where on the lever the hand takes hold (metres from its pivot)."""

    strategies = ("outer", "inner")
    _HOLD_M: ClassVar = {"outer": 0.135, "inner": 0.120}

    def begin(self, state):
        self._enter("approach")

    def intend(self, state):
        lever = _Lever(state, self._HOLD_M[self.strategy])
        if self.phase != "approach" and np.linalg.norm(lever.hold - state["eef_pos"]) > LOST_M:
            self._enter("approach")
        self._ticks += 1
        return getattr(self, f"_{self.phase}")(state, lever)

    def _enter(self, phase):
        self.phase = phase
        self._ticks = 0

    def _approach(self, state, lever):
        missing = lever.hold - state["eef_pos"]
        sideways = np.linalg.norm(missing - lever.normal * (missing @ lever.normal))
        turn = np.linalg.norm(rotation_vector(lever.grip @ state["eef_rot"].T))
        before = np.clip(4.0 * (sideways - 0.01) + 0.3 * (turn - 0.15), 0.0, BEFORE_M)
        if np.linalg.norm(missing) < NEAR_M and turn < TURNED_RAD:
            self._enter("close")
        return servo(state, lever.hold + lever.normal * before, lever.grip, OPEN)

    def _close(self, state, lever):
        if self._ticks >= CLOSE_TICKS:
            self._enter("turn")
        return servo(state, lever.hold, lever.grip, CLOSE)

    def _turn(self, state, lever):
        if lever.angle > FREE_RAD:
            self._enter("pull")
        step = about(-lever.normal, LEVER_STEP_RAD)
        return servo(state, lever.pivot + step @ (lever.hold - lever.pivot), step @ lever.grip, CLOSE)

    def _pull(self, state, lever):
        # Keep pressing the lever down while pulling: its spring would let the latch catch the frame again.
        press = about(-lever.normal, max(PULL_RAD - lever.angle, 0.0))
        pressed = lever.pivot + press @ (lever.hold - lever.pivot)
        step = about(_VERTICAL, HINGE_STEP_RAD)
        target = state["hinge_pos"] + step @ (pressed - state["hinge_pos"])
        return servo(state, target, step @ press @ lever.grip, CLOSE)


class _Lever:
    """Where the lever is now and how a hand holds it: positions (3,) in metres, `grip` a rotation (3, 3)."""

    def __init__(self, state, hold_m: float):
        self.angle = float(state["latch_angle"][0])
        self.normal = -state["door_rot"][:, 1]  # out of the panel, towards the robot
        self.pivot = state["latch_pos"]
        along = state["latch_rot"][:, 0]
        outward = state["handle_pos"] - self.pivot
        self.hold = state["handle_pos"] + along * (hold_m - outward @ along)
        yaw = np.arctan2(-self.normal[0], self.normal[1])
        level = about(_VERTICAL, yaw) @ about(np.array([1.0, 0.0, 0.0]), -np.pi / 2) @ pointing_down()
        self.grip = about(self.normal, -self.angle) @ level
