"""The bench of cameras: every choice is an arm, a camera dies at its tick and stays dead, gates follow the figures."""

import numpy as np
import pytest
import torch

import uwm_envs
from oracle import unchecked_shapes
from uwm.bench import base
from uwm.bench import cameras_bench as bench
from uwm.bench.gates import FAILS, HOLDS, NOT_JUDGED
from uwm.robot.history import observe
from uwm.robot.policy import Policy


def test_every_choice_of_cameras_is_an_arm_and_each_of_them_dies():
    arms = bench.arms(bench.CAMERAS)
    assert len(arms) == 7 + 3 and next(iter(arms)) == "agentview, wrist, sideview"
    assert arms["wrist, sideview"] == (("wrist", "sideview"), "") and arms["wrist dies"] == (bench.CAMERAS, "wrist")


def test_a_camera_dies_at_a_tick_of_the_seed_and_stays_dead_until_the_next_episode():
    env = bench.Dying(uwm_envs.make("Toy"), "wrist")
    for seed in (3, 4):
        seen = [env.reset(seed=seed)[0]]
        seen += [env.step(np.zeros(2, np.float32))[0] for _ in range(bench.DIES[1])]
        there = ["wrist" in each for each in seen]
        assert there == [tick < bench.dies_at(seed) for tick in range(len(seen))] and all("agentview" in each for each in seen)
    ticks = {bench.dies_at(seed) for seed in range(200)}
    assert min(ticks) == bench.DIES[0] and max(ticks) == bench.DIES[1] - 1


def test_what_a_camera_showed_before_it_died_has_no_influence_on_what_is_done_without_it():
    policy = Policy(base.random_model(("agentview", "wrist"), 32, horizon=18, video_frames=()), bench.POLICY)
    shown = [uwm_envs.make("Toy", cameras=some).reset(seed=0)[0] for some in (("agentview", "wrist"), ("agentview",))]
    dead = bench.Dying(uwm_envs.make("Toy"), "wrist")
    dead.left = 0
    with torch.inference_mode():
        both, one, died = (policy.act(policy.start([0]), observe([o], policy.cameras))[1] for o in (*shown, dead._seen(shown[0])))
    assert torch.equal(one, died) and not torch.allclose(both, one)


def found(**changes):
    """50 episodes of three cameras, 48 successes unless told otherwise."""
    outcomes = lambda count: {"succeeded": [True] * count + [False] * (50 - count), "interval": (0.0, 1.0)}  # noqa: E731
    plain = {arm: outcomes(48) for arm in bench.arms(bench.CAMERAS)}
    return {bench.OURS: plain | {f"{camera} dies": outcomes(count) for camera, count in changes.items()}, bench.OTHER: plain}


def test_gates_follow_the_figures():
    def verdicts(figures, enough=True):
        return [gate.verdict for gate in bench.judged(figures, bench.CAMERAS, enough)]

    assert verdicts(found()) == [HOLDS] * 4
    assert verdicts(found(agentview=43, wrist=42)) == [HOLDS, HOLDS, FAILS, HOLDS], "5 of 50 is a tenth, 6 is more"
    assert set(verdicts(found(), enough=False)) == {NOT_JUDGED}
    weak = found()
    whole = next(iter(bench.arms(bench.CAMERAS)))
    weak[bench.OURS][whole] = {"succeeded": [True] * 44 + [False] * 6, "interval": (0.0, 1.0)}
    gates = bench.judged(weak, bench.CAMERAS, True)
    assert gates[0].verdict == FAILS and gates[0].baseline.startswith("agentview, wrist 0.96") and gates[1].value == pytest.approx(-0.08)


def test_a_quick_run_drives_every_arm_and_a_dying_camera_is_met():
    with unchecked_shapes():
        result = bench.run(True, None)
    assert result.verdict == NOT_JUDGED and set(result.figures[bench.OURS]) == set(bench.arms(("agentview", "wrist")))
    assert result.figures[bench.OURS]["wrist dies"]["died in"] == 2
    assert set(result.figures["success by the number of cameras"][bench.OURS]) == {2, 1}
