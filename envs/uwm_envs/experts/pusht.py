"""A planner for Push-T: try many straight pushes in a quick model, carry out the best one, look again.

    plan ---> approach ---> push ---> plan ...      approach: around the block without touching it
      ^           |                                 push: along a line, as far as the plan says
      +-----------+ the block is not where the plan left it

A plan looks two pushes ahead: `samples` random first pushes, each stopped where it helps most; from the best of
those, as many second pushes again. What counts is the pose error after the second push, the way to walk included.
"""

import dataclasses

import numpy as np

from uwm_envs import tee
from uwm_envs.experts.detour import CLEARANCE_M, REACH_M, Detours
from uwm_envs.experts.motion import Pushes
from uwm_envs.experts.quasi_static import push
from uwm_envs.pusht import HALF_WIDTH_M, PUSHER_RADIUS_M, WALL_M

STEPS = 40  # a push is tried at this many lengths
BEAM = 24
LONGEST_M, SHORTEST_M = 0.16, 0.015
WIDEST_RAD = 0.6  # between the push and the edge's normal
RUN_UP_M = 0.008
WALK_COST = 0.01  # m of error that a metre of walking must gain
PUSH_COST_M = 0.0005
LEAST_M = 0.0005  # a push must move the block so far: one that does nothing postpones the good one for ever
READY_M, DONE_M = 0.002, 0.0007  # how close to where a push begins and ends
NOISE_UNIT = 0.1  # action units; a noise of 0.3 then means the same trouble here as in the other worlds
PUSH_CHANCE = 1 / 30  # a tick, of being pushed aside
NEAR_M = 0.02  # error below which turning and moving count as they do in coverage
# m of error for a radian; 0.05 is about the T's radius of gyration
TURN_M = {"turn_first": 0.15, "move_first": 0.02, "near": 0.05}


@dataclasses.dataclass(frozen=True)
class Push:
    """A straight push: `ready` is where to stand before it, `end` where the disc stops, `block` the pose it was planned for."""

    ready: np.ndarray
    end: np.ndarray
    block: np.ndarray


class PushTExpert:
    """Pushes the T onto the goal. `strategy`: turn it right first, then move it, or the other way round.

    noise: standard deviation of what is added to the executed action, in NOISE_UNIT: 1 is 26 mm, 0.2 is mild, 0.5 is
    rough (it then takes four times as many ticks). `intended` stays free of it.
    samples: first pushes tried per plan; fewer is quicker and clumsier.
    pushed_m: how far off the executed action is for three to six ticks, about once in 30 (`motion.Pushes`): recoveries from
    being where nobody wished to be, and actions under way that do not give away what the planner sees.
    """

    strategies = ("turn_first", "move_first")

    def __init__(self, noise=0.0, strategy="random", samples=256, pushed_m=0.0):
        if strategy not in (*self.strategies, "random"):
            raise ValueError(f"unknown strategy {strategy!r}; PushT has {self.strategies} and 'random'")
        self.noise, self.strategy, self.samples, self.pushed_m = float(noise), strategy, int(samples), float(pushed_m)

    def start(self, env, rng: np.random.Generator) -> None:
        chosen = rng.choice(self.strategies) if self.strategy == "random" else self.strategy
        self.chosen, self._rng = str(chosen), rng
        self._push, self._pushing, self._ticks = None, False, 0
        self._offset = Pushes(self.pushed_m / HALF_WIDTH_M, 2, rng, PUSH_CHANCE) if self.pushed_m else lambda: 0.0

    def act(self, env) -> tuple[np.ndarray, np.ndarray]:
        """Return (executed, intended), both float32 (2,)."""
        target = self._target(env.unwrapped.privileged())
        intended = np.clip(target, -REACH_M, REACH_M) / HALF_WIDTH_M
        executed = np.clip(intended + self.noise * NOISE_UNIT * self._rng.standard_normal(2) + self._offset(), -1, 1)
        return executed.astype(np.float32), intended.astype(np.float32)

    def _target(self, scene):
        """Where the pusher should be sent now (m)."""
        block, disc = scene["block"], scene["pusher"]
        self._ticks += 1
        if self._pushing and (np.hypot(*(self._push.end - disc)) < DONE_M or self._ticks > 12):
            self._push, self._pushing = None, False
        touched = self._push is not None and not self._pushing and _moved(block, self._push.block)
        if self._push is None or touched or (not self._pushing and self._ticks > 40):
            self._push, self._pushing, self._ticks = self._plan(block, disc), False, 0
        if self._push is None:
            return _step_away(disc, block)
        if not self._pushing and np.hypot(*(self._push.ready - disc)) < READY_M:
            self._pushing, self._ticks = True, 0
        if self._pushing:
            return _towards(disc, self._push.end, 0.05)
        return self._walk(disc, block)

    def _walk(self, disc, block):
        if tee.distance(disc, block) < CLEARANCE_M:
            return _step_away(disc, block)
        way = Detours(disc, block).way(self._push.ready)
        if not len(way):
            self._push = None
            return disc
        return _towards(disc, way[0], 0.08)

    def _plan(self, block, disc):
        """The first of the two pushes that leave the least error, or None when no push can be reached."""
        weight = self._weight(block)
        error = _error(block, weight)
        first = _Tries(block[None], self.samples, _longest(error), weight, self._rng)
        leave = disc if tee.distance(disc, block) >= CLEARANCE_M else _step_away(disc, block)
        walk = Detours(leave, block).length(first.ready)
        costs = first.error + WALK_COST * walk + PUSH_COST_M
        order = np.argsort(costs)[:BEAM]
        order = order[np.isfinite(costs[order])]
        if not len(order):
            return None
        second = _Tries(first.block[order], self.samples, _longest(error), weight, self._rng)
        follow = second.error + WALK_COST * np.hypot(*(second.ready - first.end[order][second.parent]).T) + PUSH_COST_M
        ahead = np.full(len(order), np.inf)
        np.minimum.at(ahead, second.parent, follow)
        total = np.minimum(costs[order], ahead + WALK_COST * walk[order] + PUSH_COST_M)
        best = order[np.argmin(total)]
        return Push(first.ready[best], first.end[best], block.copy())

    def _weight(self, block):
        return TURN_M["near" if _error(block, TURN_M["near"]) < NEAR_M else self.chosen]


class _Tries:
    """Random pushes of each of `blocks` (B, 3), each cut where it leaves the least error; invalid ones have infinite error.

    After construction, for M = B * samples tries: ready, end (M, 2), block (M, 3) afterwards, error (M,), parent (M,).
    """

    def __init__(self, blocks, samples, longest_m, weight, rng):
        self.parent = np.repeat(np.arange(len(blocks)), samples)
        before = blocks[self.parent]
        start, direction, valid = _contacts(before, samples, rng)
        self.ready = start - RUN_UP_M * direction
        valid &= (np.abs(self.ready).max(-1) <= REACH_M) & (tee.distance(self.ready, before) >= CLEARANCE_M)
        step = longest_m / STEPS * rng.uniform(0.3, 1.0, len(before))
        trace = push(before, start, direction, step, STEPS)
        error = _error(trace, weight)
        inside = np.abs(tee.outline(trace)).max((-1, -2)) <= WALL_M - 0.001
        error[~np.logical_and.accumulate(inside, axis=0)] = np.inf
        cut = error.argmin(0)
        rows = np.arange(len(before))
        self.block = trace[cut, rows]
        shift = self.block - before
        valid &= np.hypot(shift[:, 0], shift[:, 1]) + TURN_M["near"] * np.abs(shift[:, 2]) >= LEAST_M
        self.end = start + direction * (step * (cut + 1))[:, None]
        valid &= np.abs(self.end).max(-1) <= REACH_M
        self.error = np.where(valid, error[cut, rows], np.inf)


def _contacts(poses, samples, rng):
    """Disc centres touching the outline, unit directions into it, and whether the disc fits there; (M, 2), (M, 2), (M,)."""
    corners = tee.outline(np.zeros(3))
    edges = np.roll(corners, -1, axis=0) - corners
    lengths = np.hypot(*edges.T)
    ends = np.cumsum(lengths)
    # one try per equal piece of the outline, so that no edge is forgotten
    along = (np.tile(np.arange(samples), len(poses) // samples) + rng.random(len(poses))) / samples * ends[-1]
    edge = np.minimum(np.searchsorted(ends, along, side="right"), len(ends) - 1)
    unit = edges[edge] / lengths[edge, None]
    touch = corners[edge] + unit * (along - ends[edge] + lengths[edge])[:, None]
    outward = np.stack((unit[:, 1], -unit[:, 0]), -1)
    start = touch + outward * (PUSHER_RADIUS_M + 0.0003)
    tilt = rng.uniform(-WIDEST_RAD, WIDEST_RAD, len(poses))
    direction = -_turned(outward, tilt)
    world = _turned(start, poses[:, 2]) + poses[:, :2]
    fits = tee.distance(world, poses) >= PUSHER_RADIUS_M + 0.0002
    return world, _turned(direction, poses[:, 2]), fits


def _turned(vectors, angles):
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack((cos * vectors[:, 0] - sin * vectors[:, 1], sin * vectors[:, 0] + cos * vectors[:, 1]), -1)


def _error(pose, turn_m):
    """Distance of `pose` (..., 3) from the goal in m, a radian counting as `turn_m` (chord, so it never wraps)."""
    gx, gy, angle = tee.GOAL_POSE
    chord2 = 2 - 2 * np.cos(pose[..., 2] - angle)
    return np.sqrt((pose[..., 0] - gx) ** 2 + (pose[..., 1] - gy) ** 2 + turn_m**2 * chord2)


def _longest(error):
    return float(np.clip(1.5 * error, SHORTEST_M, LONGEST_M))


def _moved(a, b):
    return np.hypot(*(a - b)[:2]) > 0.001 or abs(a[2] - b[2]) > 0.02


def _towards(here, there, most_m):
    gap = there - here
    return here + gap * min(1.0, most_m / max(np.hypot(*gap), 1e-9))


def _step_away(disc, block):
    offset, touched = tee.nearest(disc, block)
    return touched + offset / max(np.hypot(*offset), 1e-9) * (CLEARANCE_M + 0.004)
