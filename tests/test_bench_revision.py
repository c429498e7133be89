"""The bench of revision: objects are moved to places that make sense, once an episode, and gates follow what came out."""

import numpy as np
import pytest

from uwm.bench import revision_bench as bench
from uwm.bench.gates import FAILS, HOLDS, NOT_JUDGED
from uwm_envs import tee
from uwm_envs.pusht import PUSHER_RADIUS_M


@pytest.mark.parametrize("seed", range(5))
def test_objects_are_put_where_they_could_have_begun_and_not_onto_the_pusher(seed):
    generator = np.random.default_rng(seed)
    cube = generator.uniform(-0.03, 0.03, 3)
    by = bench.elsewhere("Lift", {"cube_pos": cube}, generator)
    assert np.linalg.norm(by) >= 0.03 and np.abs(cube[:2] + by).max() <= 0.03
    block, pusher = np.array([0.05, -0.1, 1.0]), np.array([0.12, -0.05])
    by = bench.elsewhere("PushT", {"block": block, "pusher": pusher}, generator)
    moved = block + np.array([*by, 0.0])
    assert 0.05 <= np.linalg.norm(by) <= 0.08 and np.abs(moved[:2]).max() < 0.15
    assert tee.distance(pusher, moved) > PUSHER_RADIUS_M


def test_every_episode_has_one_move_and_counts_calls_on_both_sides_of_it(monkeypatch):
    case = bench.replace(bench.PUSHT, max_steps=40, moves=(8, 20))
    env = case.world.make()
    moves = []
    shift = type(env.unwrapped).shift_object
    monkeypatch.setattr(type(env.unwrapped), "shift_object", lambda self, by: moves.append(self._steps) or shift(self, by))
    policies = {name: bench._policy(case, config) for name, config in bench.arms(case, usual=[1.0]).items()}
    runs = {name: bench.episode(case, env, policy, 70_000) for name, policy in policies.items()}
    env.close()
    assert len(moves) == len(runs) and len(set(moves)) == 1, "the same move at the same tick in every arm"
    at = moves[0]
    for run in runs.values():
        assert run["ticks before"] == at and run["ticks behind"] == 40 - at and run["ticks to recover"] == 40 - at and not run["recovered"]
    calls = {name: run["calls behind"] / run["ticks behind"] for name, run in runs.items()}
    assert calls["restart"] == 12 / 4 and calls["no revision"] == calls["SDP"] == 3 / 4, "all rows a tick, or a quarter of them"
    assert runs["SDP"]["surprise"] is None and runs["revision"]["surprise"] >= 0


def test_gates_follow_the_arms():
    def verdicts(revision, restart, plain, calls, noticed, calm=1.0):
        arm = lambda count, calls: {  # noqa: E731
            "outcomes": [1.0] * count + [0.0] * (50 - count), "noticed": [True] * noticed + [False] * (50 - noticed),
            "calls a tick, behind the move": calls, "calls a tick, before the move": 1.0,
        }  # fmt: skip
        found = {"revision": arm(revision, calls), "restart": arm(restart, 4.0), "no revision": arm(plain, 1.0), "SDP": arm(plain, 1.0)}
        return [gate.verdict for gate in bench.judged("Lift", found | {"nothing moved": {"success": calm}}, enough=True)]

    assert verdicts(45, 45, 30, 1.5, 50) == [HOLDS] * 6
    assert set(verdicts(45, 45, 30, 1.5, 50, calm=0.5)) == {NOT_JUDGED}, "what cannot do the task cannot find its way back to it"
    assert verdicts(40, 45, 40, 3.0, 20) == [FAILS, FAILS, FAILS, FAILS, HOLDS, FAILS]
