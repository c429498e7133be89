"""The bench of best-of-N: the score is the coverage that is foreseen, and gates follow the figures."""

import numpy as np
import pytest
import torch

from oracle import unchecked_shapes
from uwm.bench import best_of_bench as bench
from uwm.bench.gates import FAILS, HOLDS, NOT_JUDGED
from uwm.robot.best import Outcome
from uwm_envs import tee


def test_a_block_on_the_goal_is_covered_and_shuffling_gives_it_to_its_neighbour():
    x, y, angle = tee.GOAL_POSE
    there, away = (0.0, 0.0, x, y, np.cos(angle), np.sin(angle)), (0.0, 0.0, x + 0.2, y, np.cos(angle), np.sin(angle))
    outcome = Outcome({"state": (1, 8)}, {}, torch.tensor([[away, away], [away, there], [there, away]], dtype=torch.float32))
    assert bench.covered(outcome).tolist() == pytest.approx([0.0, 1.0, 0.0], abs=1e-3)
    assert bench.covered(outcome, shuffled=True).tolist() == pytest.approx([0.0, 0.0, 1.0], abs=1e-3)


def test_gates_follow_the_figures():
    def found(eight, shuffled):
        told = lambda count: {"succeeded": [True] * count + [False] * (50 - count)}  # noqa: E731
        return {"one plan": told(40), "best of 2": told(42), "best of 8": told(eight), "best of 8, outcomes shuffled": told(shuffled)}

    assert [gate.verdict for gate in bench.judged(found(45, 41), True)] == [HOLDS, HOLDS]
    assert [gate.verdict for gate in bench.judged(found(41, 45), True)] == [FAILS, FAILS]
    assert {gate.verdict for gate in bench.judged(found(45, 41), False)} == {NOT_JUDGED}


def test_a_quick_run_drives_every_arm():
    with unchecked_shapes():
        result = bench.run(True, None)
    assert set(result.figures) == set(bench.ARMS) and result.verdict == NOT_JUDGED
    calls = {name: figures["calls_per_action"] for name, figures in result.figures.items()}
    assert calls["one plan"] == 2.0 and calls["best of 8"] == calls["best of 2"] == 2.5, "a call of foresight for a chunk of two"
