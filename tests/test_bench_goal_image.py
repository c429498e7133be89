"""The bench of goal images: goals ask for something, who does what the expert did reaches them, and gates follow what was reached."""

import numpy as np
import pytest

from uwm.bench import goal_image_bench as bench
from uwm.bench.gates import FAILS, HOLDS

PUSHT = bench.WORLDS[1]


@pytest.fixture(scope="module")
def world():
    env = PUSHT.make(32)
    yield env
    env.close()


def test_a_goal_is_reached_by_the_experts_own_actions_and_not_by_standing_still(world, monkeypatch):
    done = []
    step = type(world.unwrapped).step
    monkeypatch.setattr(type(world.unwrapped), "step", lambda self, action: done.append(np.array(action)) or step(self, action))
    (seed, goal), *_ = bench.goals(PUSHT, world, range(60_003, 60_004))
    monkeypatch.undo()
    assert seed == 60_003 and goal.seen["agentview"].shape == (32, 32, 3) and not bench._near(bench._off(goal.began, goal.places))
    begin = goal.start["steps"]
    told = iter(np.array(done[begin : begin + bench.AHEAD]).reshape(-1, bench.CHUNK, 2))
    off = bench.attempt(world, goal, lambda seen, executed, wanted, ahead: next(told))
    assert max(off.values()) < 1e-6, "a state, and what was done from there, repeat themselves"
    still = bench.attempt(world, goal, lambda *told: bench._unmoved(*told, seed=0))
    assert not bench._near(still) and still["block"] < 0.3


def test_the_policy_is_told_how_far_ahead_the_goal_is_and_what_was_done(world):
    seen = []

    def act(observation, executed, goal, ahead):
        seen.append((len(executed), ahead))
        return np.zeros((bench.AHEAD, 2), np.float32)

    (_, goal), *_ = bench.goals(PUSHT, world, range(60_000, 60_001))
    bench.attempt(world, goal, act)
    assert seen == [(0, 24), (8, 16), (16, 8)]


def test_angles_are_compared_the_short_way_round():
    off = bench._off({"angle": np.array([3.1])}, {"angle": np.array([-3.1])})
    assert off["angle"] == pytest.approx(2 * np.pi - 6.2)
    assert bench._near({"block": 0.02, "angle": 0.26}) and not bench._near({"block": 0.021, "angle": 0.0})
    assert not bench._near({"block": 0.0, "angle": 0.27})


def test_gates_follow_what_was_reached():
    arms = lambda film, policy, still: {  # noqa: E731
        name: {"reached": [True] * count + [False] * (50 - count)} for name, count in (("film", film), ("policy", policy), ("still", still))
    }
    verdicts = lambda *counts: [gate.verdict for gate in bench.judged("Lift", arms(*counts), enough=True)]  # noqa: E731
    assert verdicts(40, 42, 5) == [HOLDS, HOLDS] and verdicts(30, 42, 5) == [FAILS, HOLDS] and verdicts(10, 12, 5) == [HOLDS, FAILS]
