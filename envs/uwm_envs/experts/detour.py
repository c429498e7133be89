"""Shortest ways for the disc around the T, without touching it.

*------------------*      Way points (*) stand off the six outer corners of the T. A way is a chain of
| +--------------+ |      straight legs over some of them; a leg is free when points along it
*-+---+      +---+-*      keep their distance. Six points make every shortest way worth having.
      |      |
  *---+------+---*
"""

import numpy as np

from uwm_envs import tee
from uwm_envs.pusht import PUSHER_RADIUS_M, WALL_M

CLEARANCE_M = PUSHER_RADIUS_M + 0.004
STAND_OFF_M = PUSHER_RADIUS_M + 0.008
REACH_M = WALL_M - PUSHER_RADIUS_M - 0.001  # farthest the disc's centre may go along each axis
_SHARES = np.linspace(0.0, 1.0, 24)[1:, None]
_OUTER = (0, 1, 3, 4, 6, 7)
_OUTWARD = np.array([(-1, 1), (-1, -1), (-1, -1), (1, -1), (1, -1), (1, 1)])


class Detours:
    """All shortest ways from `start` (2,) around the T at `pose` (3,); made anew whenever either has moved."""

    def __init__(self, start, pose):
        self._pose, self._start = np.asarray(pose), np.asarray(start)
        corners = _stand_off(self._pose)
        self._nodes = np.concatenate((self._start[None], corners[np.abs(corners).max(-1) <= REACH_M]))
        legs = self._legs(self._nodes[:, None], self._nodes[None])
        self._length, self._before = _shortest(legs)

    def length(self, ends) -> np.ndarray:
        """Length (M,) in m of the way to each of `ends` (M, 2); infinite where there is none."""
        return (self._length[:, None] + self._legs(self._nodes[:, None], ends[None])).min(0)

    def way(self, end) -> np.ndarray:
        """Points (n, 2) of the shortest way, without the start; empty when there is none."""
        total = self._length + self._legs(self._nodes, np.asarray(end)[None])
        node = int(np.argmin(total))
        if not np.isfinite(total[node]):
            return np.empty((0, 2))
        points = [np.asarray(end)]
        while node:
            points.append(self._nodes[node])
            node = self._before[node]
        return np.array(points[::-1])

    def _legs(self, a, b):
        """Length of each leg, infinite where it comes too close to the T. The disc may leave from where it is."""
        points = a[..., None, :] + _SHARES * (b - a)[..., None, :]
        here = tee.distance(self._start, self._pose)
        free = (tee.distance(points, self._pose) >= min(CLEARANCE_M, here - 1e-4)).all(-1)
        return np.where(free, np.hypot(*np.moveaxis(b - a, -1, 0)), np.inf)


def _stand_off(pose):
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    turn = np.array([(cos, -sin), (sin, cos)])
    return tee.outline(pose)[list(_OUTER)] + STAND_OFF_M * _OUTWARD @ turn.T


def _shortest(legs):
    """Dijkstra's lengths from node 0 and each node's predecessor, by relaxing all legs as often as there are nodes."""
    length, before = legs[0].copy(), np.zeros(len(legs), dtype=int)
    length[0] = 0.0
    for _ in range(len(legs)):
        through = length[:, None] + legs
        best = through.argmin(0)
        better = through[best, np.arange(len(legs))] < length - 1e-12
        length = np.where(better, through[best, np.arange(len(legs))], length)
        before = np.where(better, best, before)
    return length, before
