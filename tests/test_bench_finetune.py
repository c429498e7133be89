"""The bench of finetuning: arms differ in how they begin and in what learns, gates follow the figures, and a quick run drives every arm."""

import pytest

import uwm_envs
from oracle import unchecked_shapes
from uwm.bench import finetune_bench as bench
from uwm.bench.gates import FAILS, HOLDS, NOT_JUDGED
from uwm.composing import compose


def test_at_least_ten_tasks_are_pretrained_on_and_the_new_one_is_none_of_them():
    run = bench.pretraining(bench.FULL)
    assert len(run.mixture.members) >= 10 and run.mixture.rate_hz == "own" and run.model.language.hears
    worlds = [compose("collect", [*task.world])["world"] for task in (*bench.FULL.tasks, bench.FULL.held_out)]
    names = [world["name"] for world in worlds]
    assert set(names) <= set(uwm_envs.NAMES) and len(set(names)) == len(names)
    assert {tuple(world["cameras"]) for world in worlds} == {("agentview", "wrist")} and {world["image_size"] for world in worlds} == {64}
    assert sum(name.startswith("metaworld-") for name in names[:-1]) >= 6 and names[-1] not in names[:-1]


def test_arms_have_the_same_demonstrations_and_steps_and_only_the_finetuned_begin_with_the_pretrained_model():
    runs = {arm: bench.run_of(bench.FULL, "begun", arm, 10, 2) for arm in bench.ARMS}
    assert {(run.data, run.train.steps, run.train.batch, run.train.seed, run.model.horizon, run.validation) for run in runs.values()} == {
        ("runs/bench/finetune/data/metaworld-drawer-open-10.zarr", 1000, 32, 2, 16, 0.0)
    }
    assert {arm for arm, run in runs.items() if run.init} == set(bench.KINDS) == {run.adapt.kind for run in runs.values()}
    models = {arm: run.model for arm, run in runs.items() if arm != "dp"}
    assert all(model == bench.pretraining(bench.FULL).model for model in models.values()) and not runs["dp"].model.video_frames
    assert len({run.out for run in runs.values()}) == len(runs)


def found(**successes):
    """Three seeds of fifty episodes with every number of demonstrations."""
    return {
        bench.name(arm, count): [{"outcomes": [1.0] * successes.get(arm, 20) + [0.0] * (50 - successes.get(arm, 20))}] * 3
        for arm in bench.ARMS
        for count in bench.FULL.counts
    }


def test_gates_follow_the_figures():
    def verdicts(figures, enough=True):
        return [gate.verdict for gate in bench.judged(bench.FULL, figures, enough)]

    assert verdicts(found(frozen=30)) == [HOLDS] * 3
    assert verdicts(found()) == [FAILS, FAILS, HOLDS], "as good is not ahead"
    assert verdicts(found(full=30, lora=25)) == [HOLDS] * 3 and verdicts(found(full=30, lora=24)) == [HOLDS, HOLDS, FAILS]
    assert verdicts(found(lora=30, dp=31)) == [HOLDS, FAILS, HOLDS]
    assert set(verdicts(found(), enough=False)) == {NOT_JUDGED}
    ahead = next(bench.judged(bench.FULL, found(lora=30), True))
    assert ahead.name == "10 demonstrations: lora ahead of scratch" and ahead.value == pytest.approx(0.2)
    assert ahead.interval[0] < 0.2 < ahead.interval[1] and ahead.baseline == "scratch 0.40"


def test_numbers_of_demonstrations_that_were_measured_by_themselves_are_judged_with_the_others():
    figures = bench.by_count(found(frozen=30), bench.FULL.counts)

    def told(only):
        gates = bench.result(bench.FULL, {part: figures[part] for part in only}, (0,), True).gates
        return [(gate.verdict, gate.text) for gate in gates]

    assert told(bench.PARTS) == [(HOLDS, "> 0"), (HOLDS, "> 0"), (HOLDS, "<= 0.1")]
    assert told(["10"]) == [(HOLDS, "> 0"), (HOLDS, "> 0"), (NOT_JUDGED, "<= 0.1")] and told(["25", "50"]) == [(NOT_JUDGED, "<= 0.1")]
    intervals = bench.result(bench.FULL, figures, (0,), True).figures["intervals of success"]
    assert intervals["frozen, 10"] == pytest.approx((0.52, 0.675), abs=1e-2) and set(intervals) == set(found())


def test_a_quick_run_pretrains_finetunes_and_drives_every_arm():
    with unchecked_shapes():
        result = bench.run(True, None)
    figures = {arm: runs[0] for arm, runs in result.figures["3"]["by seed"].items()}
    assert set(figures) == {bench.name(arm, 3) for arm in bench.ARMS} and result.verdict == NOT_JUDGED
    assert all(len(each["outcomes"]) == 2 and each["demonstrations"] == 3 for each in figures.values())
    learned = {arm.partition(",")[0]: each["learned"] for arm, each in figures.items()}
    assert learned["frozen"] < learned["lora"] < learned["full"]
