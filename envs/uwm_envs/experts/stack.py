"""Stack: take the red cube, from the left or from the right, and set it on the green one."""

import numpy as np

from uwm_envs.experts.motion import wrapped
from uwm_envs.experts.pick_place import PickAndPlace

_ROOM_FOR_FINGERS_M = 0.11  # between the middles of the cubes
_RED_HALF_M, _GREEN_HALF_M = 0.020, 0.025


class StackExpert(PickAndPlace):
    """Strategies: `left` and `right`, the side of the approach arc (world +y and -y)."""

    strategies = ("left", "right")
    carry_height_m = 0.94

    def grasp_yaw(self, state):
        """The nearest quarter turn, or, with the green cube close by, the one that keeps the fingers off it."""
        red = state["cubeA_rot"]
        near = wrapped(np.arctan2(red[1, 0], red[0, 0]), np.pi / 2)
        other = near - np.copysign(np.pi / 2, near)
        to_green = (state["cubeB_pos"] - state["cubeA_pos"])[:2]
        if np.linalg.norm(to_green) > _ROOM_FOR_FINGERS_M:
            return near
        return min((near, other), key=lambda yaw: abs(to_green @ (-np.sin(yaw), np.cos(yaw))))

    def grasp_point(self, state):
        return state["cubeA_pos"]

    def detour(self, state):
        side = 1.0 if self.strategy == "left" else -1.0
        height = state["eef_pos"][2] - state["cubeA_pos"][2]
        return np.array([0.0, side * 0.5 * np.clip(height - 0.06, 0.0, 0.12), 0.0])

    def object_point(self, state):
        return state["cubeA_pos"]

    def placement(self, state):
        return state["cubeB_pos"] + np.array([0.0, 0.0, _RED_HALF_M + _GREEN_HALF_M]), 0.0
