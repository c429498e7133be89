r"""Lift: come down onto the cube in an arc from the left or from the right, close, raise.

Seen from the robot's side, two arcs of one length; the sideways offset shrinks with the height that is left:

    o----.          .----o
          \        /
           [ cube ]
"""

import numpy as np

from uwm_envs.experts.motion import CLOSE, OPEN, ArmExpert, pointing_down, servo, wrapped

REACH_M = 0.012  # how near the cube's middle the gripper must be before it closes
LOST_M = 0.04  # further away than this, a closed gripper has missed
GRIPPED_TICKS = 5  # the fingers need about this long to meet the cube


class LiftExpert(ArmExpert):
    """Strategies: `left` and `right`, the side of the approach arc (world +y and -y)."""

    strategies = ("left", "right")

    def begin(self, state):
        self._closing = 0
        # The cube looks the same after a quarter turn; take the nearest one and keep it for the whole episode.
        cube_yaw = np.arctan2(state["cube_rot"][1, 0], state["cube_rot"][0, 0])
        self._yaw = wrapped(cube_yaw, np.pi / 2)

    def intend(self, state):
        offset = state["cube_pos"] - state["eef_pos"]
        if self._closing and np.linalg.norm(offset) > LOST_M:
            self._closing = 0
        if self._closing or np.linalg.norm(offset) < REACH_M:
            return self._grip_and_raise(state)
        return self._approach(state)

    def _approach(self, state):
        cube, eef = state["cube_pos"], state["eef_pos"]
        side = 1.0 if self.strategy == "left" else -1.0
        away = np.linalg.norm((eef - cube)[:2])
        # Stay above the cube until nearly over it: the closer in the plane, the lower the target.
        target = cube + np.array([0.0, 0.0, np.clip(2.0 * (away - 0.01), 0.0, 0.08)])
        target[1] += side * 0.5 * np.clip(eef[2] - cube[2] - 0.06, 0.0, 0.12)
        return servo(state, target, pointing_down(self._yaw), OPEN)

    def _grip_and_raise(self, state):
        self._closing += 1
        target = state["cube_pos"].copy()
        if self._closing > GRIPPED_TICKS:
            target = state["eef_pos"] + np.array([0.0, 0.0, 0.02])
        return servo(state, target, pointing_down(self._yaw), CLOSE)
