"""NutAssemblySquare: take the square nut by its handle, turn it to the peg's edges, lower it over the peg.

Seen from above with the robot on the left, the handle points to the robot or to a side:

                                  +--+
                             =====|[]|   the hand stays in reach
                                  +--+
"""

import numpy as np

from uwm_envs.experts.motion import wrapped
from uwm_envs.experts.pick_place import PickAndPlace

_HALF_TURN = np.pi
_WRIST_LIMIT_RAD = 1.9  # yaw of the gripper that the last joint reaches in both directions
_ON_PEG_Z_M = 0.85


class NutExpert(PickAndPlace):
    """One strategy: the handle sticks out on one side only, and the cheapest pair of grasp and turn is taken."""

    strategies = ("handle",)
    carry_height_m = 0.985
    placed_m = 0.006
    lost_m = 0.04

    def grasp_yaw(self, state):
        """Choose how to take and how to turn the nut together, so that the wrist never runs into its limit."""
        yaw = _yaw(state)
        options = []
        for grasp in (wrapped(yaw, _HALF_TURN) + turn for turn in (-_HALF_TURN, 0.0, _HALF_TURN)):
            # Handle away from the robot (0) is left out: there the hand is at the end of the arm's reach.
            for handle in (np.pi / 2, np.pi, -np.pi / 2):
                turn = wrapped(handle - yaw, 2 * np.pi)
                if max(abs(grasp), abs(grasp + turn)) < _WRIST_LIMIT_RAD:
                    options.append((abs(turn) + 0.5 * abs(grasp), grasp, handle))
        _, grasp, self._handle_direction = min(options)
        return grasp

    def grasp_point(self, state):
        return state["handle_pos"]

    def object_point(self, state):
        return state["nut_pos"]

    def placement(self, state):
        place = np.array([*state["peg_pos"][:2], _ON_PEG_Z_M])
        return place, wrapped(self._handle_direction - _yaw(state), 2 * np.pi)


def _yaw(state) -> float:
    """Direction of the handle as seen from the nut's middle, radians about the vertical."""
    return np.arctan2(state["nut_rot"][1, 0], state["nut_rot"][0, 0])
