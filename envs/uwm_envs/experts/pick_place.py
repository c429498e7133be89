"""Pick something up, carry it over, put it down: the phases that Stack, PickPlaceCan and NutAssemblySquare share.

    approach -> close -> carry -> lower -> release -> retreat
       ^          |        |        |                    |
       +----------+--------+--------+-- object lost -----+

A subclass says what to grasp, how high to carry, where the object belongs, and when it is low enough to let go.
Lengths are metres, angles radians, poses in the world frame.
"""

import numpy as np

from uwm_envs.experts.motion import CLOSE, OPEN, ArmExpert, pointing_down, rotation_vector, servo, yaw_rotation

NEAR_M = 0.010  # arrived in a position
TURNED_RAD = 0.08  # arrived in a yaw
STALLED_M = 0.0004  # fingers that move less than this in a tick have met something
SHORTEST_CLOSE_TICKS = 4
LONGEST_CLOSE_TICKS = 14
RELEASE_TICKS = 4
RETREAT_M = 0.08


class PickAndPlace(ArmExpert):
    """Phases of a pick and place; see the hooks at the end for what a task has to say."""

    hover_m = 0.08  # height above the grasp while still away from it
    carry_height_m = 1.0  # height of the gripper, world, while moving sideways with the object
    lost_m = 0.05  # object further from its place in the hand than this: dropped
    lower_gain = 1.5

    def begin(self, state):
        self._enter("approach")
        self._fingers = state["fingers"]
        self._grasp_yaw = self.grasp_yaw(state)

    def intend(self, state):
        if self.phase in ("close", "carry", "lower") and self._lost(state):
            self._enter("approach")
            self._grasp_yaw = self.grasp_yaw(state)
        action = getattr(self, f"_{self.phase}")(state)
        self._ticks += 1
        self._fingers = state["fingers"]
        return action

    def _enter(self, phase: str) -> None:
        self.phase = phase
        self._ticks = 0

    def _lost(self, state) -> bool:
        return np.linalg.norm(self.grasp_point(state) - state["eef_pos"]) > self.lost_m

    # -- phases ---------------------------------------------------------------------------------------------------

    def _approach(self, state):
        point, eef = self.grasp_point(state), state["eef_pos"]
        rotation = pointing_down(self._grasp_yaw)
        away = np.linalg.norm((point - eef)[:2])
        turn = np.linalg.norm(rotation_vector(rotation @ state["eef_rot"].T))
        # Come down only as fast as the gripper gets over the object and in line with it.
        height = np.clip(2.0 * (away - 0.01) + 0.15 * max(turn - 0.1, 0.0), 0.0, self.hover_m)
        target = point + np.array([0.0, 0.0, height])
        target += self.detour(state)
        if np.linalg.norm(point - eef) < NEAR_M and turn < 2 * TURNED_RAD:
            self._enter("close")
        return servo(state, target, rotation, OPEN)

    def _close(self, state):
        stalled = np.abs(state["fingers"] - self._fingers).max() < STALLED_M
        if (self._ticks >= SHORTEST_CLOSE_TICKS and stalled) or self._ticks >= LONGEST_CLOSE_TICKS:
            self._enter("carry")
            self._lift_from = state["eef_pos"][2]
        return servo(state, self.grasp_point(state), pointing_down(self._grasp_yaw), CLOSE)

    def _carry(self, state):
        error, turn = self._placement_error(state)
        eef = state["eef_pos"]
        missing = max(self.carry_height_m - eef[2], 0.0)
        risen = 1.0 - missing / max(self.carry_height_m - self._lift_from, 1e-3)
        target = eef + np.array([*(error[:2] * np.clip(2.0 * risen - 0.6, 0.0, 1.0)), 0.0])
        target[2] = self.carry_height_m
        if np.linalg.norm(error[:2]) < self.placed_m and abs(turn) < TURNED_RAD:
            self._enter("lower")
        return servo(state, target, self._turned(state, turn * np.clip(2.0 * risen - 0.6, 0.0, 1.0)), CLOSE, top_speed=0.85)

    def _lower(self, state):
        error, turn = self._placement_error(state)
        if error[2] > -self.drop_m:
            self._enter("release")
        elif np.linalg.norm(error[:2]) > 3 * self.placed_m and error[2] < -0.03:
            self._enter("carry")
        # Wait with the descent while still off to the side, or the object lands on an edge.
        error[2] *= np.clip(2.0 - np.linalg.norm(error[:2]) / self.placed_m, 0.0, 1.0)
        return servo(state, state["eef_pos"] + error, self._turned(state, turn), CLOSE, gain=self.lower_gain)

    def _release(self, state):
        if self._ticks >= RELEASE_TICKS:
            self._enter("retreat")
            self._retreat_to = state["eef_pos"] + np.array([0.0, 0.0, RETREAT_M])
        return servo(state, state["eef_pos"], self._turned(state, 0.0), OPEN)

    def _retreat(self, state):
        if self._ticks > 15:  # still not a success: try again from the start
            self._enter("approach")
            self._grasp_yaw = self.grasp_yaw(state)
        return servo(state, self._retreat_to, self._turned(state, 0.0), OPEN)

    def _placement_error(self, state):
        """What is missing to the object's place: a shift (3,) and a turn about the vertical."""
        place, turn = self.placement(state)
        return place - self.object_point(state), turn

    def _turned(self, state, turn: float) -> np.ndarray:
        """The gripper upright, turned by `turn` from where it is now."""
        finger_axis = state["eef_rot"][:, 0]
        yaw = np.arctan2(finger_axis[1], finger_axis[0]) - np.pi / 2
        return yaw_rotation(turn) @ pointing_down(yaw)

    # -- what a task says -------------------------------------------------------------------------------------------

    placed_m = 0.008  # sideways accuracy asked for before lowering
    drop_m = 0.004  # height above its place at which the object is let go

    def detour(self, state) -> np.ndarray:
        """Shift (3,) of the approach that makes one strategy differ from another; none by default."""
        return np.zeros(3)
