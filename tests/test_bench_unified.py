"""The bench of baselines: arms are of equal size, gates follow the figures, and an arm is trained and measured from its config."""

from dataclasses import replace

import pytest
import torch

from oracle import unchecked_shapes
from uwm.bench import baselines
from uwm.bench import unified_bench as bench
from uwm.bench.gates import FAILS, HOLDS, NOT_JUDGED
from uwm.nn import trunks


@pytest.mark.parametrize(("task", "world"), [(0, ((), 6, 2)), (1, (("agentview", "wrist"), 11, 7))])
def test_all_arms_of_a_full_run_have_as_many_parameters(task, world, tmp_path):
    count = {}
    for arm in (baselines.OURS, *baselines.BASELINES):
        with torch.device("meta"):
            count[arm] = baselines.acting(trunks.make(baselines.run_of(bench.TASKS[task], arm, 0, tmp_path).model.model(*world, 64)))
    bench.refuse_unequal("x", count)
    with pytest.raises(ValueError, match=r"x: arms must have .* within 5%, got \{'act': 1\}"):
        bench.refuse_unequal("x", {**count, "act": 1})


def test_arms_learn_the_same_frames_steps_and_wishes_and_a_specialist_one_mode(tmp_path):
    pusht, lift = bench.TASKS[:2]
    runs = {arm: baselines.run_of(lift, arm, 3, tmp_path) for arm in ("UWM", "pad", "forward")}
    assert {(run.model.video_frames, run.train.steps, run.train.seed, run.streams.action) for run in runs.values()} == {
        ((8, 16), 1500, 3, "action_intended")
    }
    assert runs["forward"].train.objective.patterns == (baselines.MODES["forward"],) and len(runs["UWM"].train.objective.patterns) > 5
    (felt,) = baselines.run_of(pusht, "gr1", 0, tmp_path).train.objective.patterns
    assert (felt.action, felt.video, felt.state) == ("once", "absent", "once")
    assert baselines.run_of(pusht, "gr1", 0, tmp_path).model.state_frames == (8, 16)


def figures(**changes):
    """Three seeds of fifty episodes, 40 successes and losses of 1 unless told otherwise."""
    told = lambda arm: changes.get(arm.replace("-", "_"), 40)  # noqa: E731
    losses = {f"loss {mode}": changes.get("loss", 1.0) for mode in baselines.MODES}
    plain = dict.fromkeys(losses, 1.0)
    outcomes = lambda count: [1.0] * count + [0.0] * (50 - count)  # noqa: E731
    found = {arm: {"outcomes": outcomes(told(arm)), "streaming outcomes": outcomes(40), **plain} for arm in baselines.arms()}
    found[baselines.OURS] |= {**losses, "streaming outcomes": outcomes(changes.get("streams", 40))}
    return {arm: [each] * 3 for arm, each in found.items()}


def test_gates_follow_the_figures():
    def verdicts(found, enough=True):
        return [gate.verdict for gate in (*bench.judged("x", found, enough), *bench.judged_together({"x": found, "y": found}, enough))]

    assert verdicts(figures(UWM=41)) == [HOLDS] * 10
    assert verdicts(figures(UWM=40)) == [HOLDS] * 7 + [FAILS] + [HOLDS] * 2, "as good is enough for a task, not for the mean"
    assert verdicts(figures(UWM=41, act=42))[0] == FAILS and verdicts(figures(UWM=41, streams=38))[-1] == FAILS
    assert verdicts(figures(UWM=41, loss=1.06))[1:7] == [FAILS] * 6
    assert set(verdicts(figures(), enough=False)) == {NOT_JUDGED}
    best = bench.judged("x", figures(UWM=41, act=42), True)[0]
    assert best.baseline == "act, 0.840" and best.value == pytest.approx(-0.02) and best.interval[0] < -0.02 < best.interval[1]


def test_seeds_that_were_measured_by_themselves_are_judged_with_the_others():
    one = {arm: {**runs[0], "parameters": 7} for arm, runs in figures(UWM=41).items()}
    told = lambda *parts: {gate.name: gate.verdict for gate in bench.result(dict.fromkeys(parts, one), bench.PARTS, True).gates}  # noqa: E731
    lift = [f"lift-{seed}" for seed in bench.SEEDS]
    assert set(told(*lift[:2]).values()) == {NOT_JUDGED}, "two seeds are too few"
    whole = told(*lift, "can-0")
    assert {verdict for name, verdict in whole.items() if name.startswith("lift")} == {HOLDS}
    assert {verdict for name, verdict in whole.items() if not name.startswith("lift")} == {NOT_JUDGED}
    assert set(told(*bench.PARTS).values()) == {HOLDS} and len(bench.PARTS) == 12
    found = bench.result(dict.fromkeys(lift, one), bench.PARTS, True)
    assert list(found.seeds) == [0, 1, 2] and set(found.figures) == {*lift, bench.experiment.MEANS}


def test_an_arm_is_trained_and_measured_in_the_toy_world(tmp_path):
    task = bench.toy(str(tmp_path))
    baselines.demonstrations(task)
    ours, pad = (baselines.measured(task, arm, str(tmp_path), 0, 0) for arm in ("UWM", "pad"))
    assert {f"loss {mode}" for mode in baselines.MODES} < set(ours) and len(ours["streaming outcomes"]) == len(pad["outcomes"]) == 1
    assert not any(name.startswith("loss") for name in pad) and pad["calls_per_action"] >= 16 / 8
    with unchecked_shapes():
        assert baselines.measured(replace(task, rollouts=2), "inverse", str(tmp_path), 0, 0).keys() == {"parameters", "loss inverse"}
