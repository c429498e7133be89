"""PickPlaceCan: take the can by its upper part and set it down in the far right of the four compartments."""

import numpy as np

from uwm_envs.experts.pick_place import PickAndPlace

_ABOVE_MIDDLE_M = 0.02
# The compartment's middle is at the end of the arm's reach; aim nearer to the robot, still well inside.
_NEARER = np.array([-0.04, -0.06, 0.0])


class CanExpert(PickAndPlace):
    """Strategies: `along` and `across`, the direction of the fingers on the round can (world y and world x)."""

    strategies = ("along", "across")
    carry_height_m = 1.0
    placed_m = 0.02
    drop_m = 0.03
    lost_m = 0.06

    def grasp_yaw(self, state):
        return 0.0 if self.strategy == "along" else np.pi / 2

    def grasp_point(self, state):
        return state["can_pos"] + np.array([0.0, 0.0, _ABOVE_MIDDLE_M])

    def object_point(self, state):
        return state["can_pos"]

    def placement(self, state):
        return state["bin_pos"] + _NEARER + np.array([0.0, 0.0, 0.06]), 0.0
