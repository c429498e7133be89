"""The bench of co-training: arms have equal robot samples, nothing held out is seen as video, gates follow the figures."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from oracle import unchecked_shapes
from test_training import store_of
from uwm.bench import cotrain_bench as bench
from uwm.bench.baselines import Task
from uwm.bench.gates import FAILS, HOLDS, NOT_JUDGED
from uwm.bench.unified_bench import TINY
from uwm.learn import checkpoint as checkpoints


def test_arms_differ_in_video_alone(tmp_path):
    alone, both = (bench.run_of(bench.LIFT, arm, 0.1, 2, tmp_path) for arm in bench.ARMS)
    robot, film = both.mixture.members
    assert alone.mixture.members == (robot,) and (robot.episodes, film.episodes, film.use_actions) == (0.1, 1.0, False)
    assert robot.data == film.data and {run.mixture.normaliser for run in (alone, both)} == {"shared"}
    assert both.train.batch * robot.weight / (robot.weight + film.weight) == alone.train.batch, "equal robot samples a step"
    assert alone.model == replace(both.model, video_frames=()) and both.model.video_frames
    same = ("steps", "seed", "precision", "optim")
    assert all(getattr(alone.train, each) == getattr(both.train, each) for each in same) and alone.train.seed == 2
    assert all(pattern.video == "absent" for pattern in alone.train.objective.patterns)


def found(few, many=(45, 45)):
    """Three seeds of 50 rollouts: (policy only, co-trained) successes at the small shares, and at the others."""
    figures = {}
    for share in bench.SHARES:
        for arm, count in zip(bench.ARMS, few if share <= bench.FEW else many, strict=True):
            figures[bench.name(arm, share)] = [{"success": count / 50, "successes": count, "rollouts": 50, bench.LOSS: 0.2}] * 3
    return figures


def test_gates_follow_the_figures():
    def verdicts(figures, enough=True):
        return [gate.verdict for gate in bench.judged(figures, bench.SHARES, enough)]

    assert verdicts(found((20, 21))) == [HOLDS, HOLDS] and verdicts(found((20, 20))) == [FAILS, HOLDS], "no gain is none"
    assert verdicts(found((20, 21), (45, 43))) == [HOLDS, FAILS] and verdicts(found((20, 21), (45, 44))) == [HOLDS, HOLDS]
    assert set(verdicts(found((20, 21)), enough=False)) == {NOT_JUDGED}
    mixed = found((20, 20))
    mixed[bench.name(bench.COTRAINED, 0.05)][0] = {**mixed[bench.name(bench.ALONE, 0.05)][0], "success": 26 / 50}
    gate = next(bench.judged(mixed, bench.SHARES, True))
    assert gate.value == pytest.approx(0.12 / 9) and gate.verdict == HOLDS and gate.interval[0] < 0 < gate.interval[1]
    assert gate.baseline.startswith("policy only / co-trained: 5% 0.40 / 0.44, 10% 0.40 / 0.40, 25%")


def test_shares_that_were_measured_by_themselves_are_judged_with_the_others(tmp_path):
    figures = bench.by_share(found((20, 21)), bench.SHARES)
    told = lambda only: [(gate.verdict, gate.text) for gate in bench.result({part: figures[part] for part in only}, (0, 1, 2), True).gates]  # noqa: E731
    assert told(bench.PARTS) == [(HOLDS, "> 0"), (HOLDS, "<= 0.03")]
    assert told(["5%", "25%"]) == [(NOT_JUDGED, "> 0")] and told(["50%"]) == [] and told(["100%"]) == [(HOLDS, "<= 0.03")]
    again = json.loads(json.dumps(bench.result(figures, (0, 1, 2), True).figures))
    assert set(again) == {"curve", *bench.PARTS} and set(again["curve"]) == {"0.05", "0.1", "0.25", "0.5", "1"}


def test_the_curve_has_the_intervals_of_all_rollouts():
    point = bench.curve(found((20, 25)), bench.SHARES)["0.05"][bench.COTRAINED]
    assert point["success"] == 0.5 and point["interval"] == pytest.approx((0.421, 0.579), abs=1e-3)
    assert point[bench.LOSS] == pytest.approx(0.2)


def test_arms_are_trained_and_measured_in_the_toy_world_with_equal_robot_samples(tmp_path):
    data = store_of(tmp_path / "toy.zarr", cameras=("agentview", "wrist"), episodes=6)
    task = Task("toy", str(data), (), (*TINY, "model.horizon=18"), rollouts=1, windows=4)
    with unchecked_shapes():
        figures = {arm: bench.measured(task, arm, 0.25, str(tmp_path), 0) for arm in bench.ARMS}
        again = bench.measured(task, bench.COTRAINED, 0.25, str(tmp_path), 0)
    assert again[bench.LOSS] == figures[bench.COTRAINED][bench.LOSS] > 0 and all(each["rollouts"] == 1 for each in figures.values())
    alone, both = (checkpoints.describe(Path(tmp_path) / f"{arm}-0.25-0" / "model")["card"] for arm in ("policy-only", "co-trained"))
    samples = [{pool["dataset"]: pool["samples"] for pool in card["drawn"]["pools"]} for card in (alone, both)]
    assert samples == [{"robot": 8}, {"robot": 8, "film": 4}]
    robot, film = (both["members"][each]["split"] for each in ("robot", "film"))
    assert robot == alone["members"]["robot"]["split"] and len(robot["training"]) == 1 and len(film["training"]) == 5
    assert set(robot["training"]) < set(film["training"]) and film["held_out"] == robot["held_out"] and robot["held_out"]
    spread = [card["members"]["robot"]["statistics"]["action"] for card in (alone, both)]
    assert json.dumps(spread[0]) == json.dumps(spread[1]), "losses of the two arms are in the same unit"
