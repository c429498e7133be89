"""The bench of streaming: equal calls are equal, gates follow the figures, and a cell measures what a policy does."""

from dataclasses import asdict, replace

import pytest

import tiny
from oracle import unchecked_shapes
from uwm.bench import streaming_bench as bench
from uwm.bench.delay_bench import Case
from uwm.bench.gates import FAILS, HOLDS, NOT_JUDGED
from uwm.explain import calls_per_action
from uwm.training import load_model

CAN = Case("PickPlaceCan", "", 3, 6, 6)
LIFT, PUSHT, TOY = Case("Lift", "", 3, 3, 6), Case("PushT", "", 4, 3, 5, full=0.9), Case("Toy", "", 2, 2, 4, rows=4, max_steps=8)


@pytest.mark.parametrize(("case", "few"), [(LIFT, 2), (PUSHT, 4)])
def test_cheap_chunked_policies_have_the_calls_of_streaming_and_the_reference_h_times_as_many(case, few):
    world = bench.WORLDS[case.world]
    of = {name: config for name, (_, config) in bench.arms(world, case, case, case).items()}
    calls = calls_of_a_chunk(case, of)
    assert calls["SDP"] == calls["SDP, zero primer"] == calls["DP, few calls"] == pytest.approx(calls["DP, warm"]) == few
    assert calls["SDP, one call"] == calls["SDP, distilled, one call"] == calls[bench.ONE_STEP] == 1
    assert calls[bench.REFERENCE] / calls["SDP"] >= world.held
    assert {config.past for config in of.values()} == {0 if case == PUSHT else 2}, "all arms of a world are shown the same"
    assert [len(bench.seeds_of(world, of[name])) for name in ("SDP", "DP, DDPM 100")] == [world.seeds, 50]


def lift_arms():
    return bench.arms(bench.WORLDS["Lift"], LIFT, LIFT, LIFT)


def calls_of_a_chunk(case, of):
    return {name: calls_per_action(config) * case.chunk * config.warm for name, config in of.items()}


def test_where_chunked_plans_are_kept_to_for_longer_cheap_ones_have_as_many_calls_an_action():
    of = {name: config for name, (_, config) in bench.arms(bench.WORLDS["PickPlaceCan"], CAN, CAN, CAN).items()}
    calls = calls_of_a_chunk(CAN, of)
    assert calls["SDP"] == calls["DP, few calls"] == pytest.approx(calls["DP, warm"]) == 2
    assert (of[bench.REFERENCE].chunk, of[bench.EAGER].chunk, of["SDP"].chunk) == (9, 3, 3)
    assert calls[bench.EAGER] == 16 and bench.EAGER not in lift_arms()
    assert {config.chunk * config.chunks for config in of.values()} == {18}


@pytest.mark.parametrize("part", ["PushT", "PushT-images", "NutAssemblySquare"])
def test_a_policy_that_is_made_for_this_bench_learns_the_plans_and_the_buffer_that_it_is_measured_with(part, monkeypatch):
    made, trained = [], []
    monkeypatch.setattr(bench.base, "made", lambda *command: made.append(" ".join(command)))
    monkeypatch.setattr(bench, "train", lambda run: trained.append(run) or "there")
    case, world = bench.PARTS[part](), bench.WORLDS[part]
    assert case.checkpoint == "there" and trained[0].data in made[0]
    whole, buffer = trained[0].train.objective.patterns
    assert (whole.action, buffer.action) == ("constant", "ladder") and whole.weight == buffer.weight
    assert (buffer.chunk, buffer.rungs) == (case.chunk, case.buffer) == (case.chunk, world.held)
    assert trained[0].model.horizon == case.chunk * case.whole and set(bench.PARTS) | {"Toy"} == set(bench.WORLDS)


@pytest.mark.parametrize(("kind", "rows", "calls"), [(bench.CONSISTENCY, 16, 4), (bench.PROGRESSIVE, 12, 6)])
def test_a_student_is_trained_once_from_the_cases_own_checkpoint(tmp_path, kind, rows, calls):
    card = {"action": {"names": ["x", "y"]}, "proprio": {"names": ["a", "b", "c"]}, "rate_hz": 10.0}
    checkpoint = tiny.trained(tmp_path, card, 3)
    world, case = bench.World(distilled=1), Case("Lift", str(checkpoint), 1, 6, 6)
    student = bench.student_of(world, case, kind)
    _, about = load_model(student.checkpoint)
    assert about["config"]["distil"] == {"teacher": str(checkpoint), "kind": kind, "rows": rows, "calls": calls} and about["step"] == 1
    assert bench.student_of(world, case, kind) == student and bench.student_of(world, TOY, kind) == TOY
    both = [student if each == kind else case for each in bench.STUDENTS]
    acting = {name for name, (own, _) in bench.arms(world, case, *both).items() if own == student}
    whole = {bench.ONE_STEP, "DP, distilled, 3 calls"}
    assert acting == (whole if kind == bench.CONSISTENCY else {"SDP, distilled, one call"})


def test_actions_and_frames_stand_in_one_buffer_where_there_is_such_a_model(monkeypatch):
    monkeypatch.setattr(bench.revision_bench, "trained", lambda case: replace(case, checkpoint="both"))
    monkeypatch.setattr(bench.revision_bench, "calm", lambda case, count: {"usual": [0.25]} if case.checkpoint == "both" else {})
    ((name, (own, config)),) = bench.with_frames(replace(LIFT, checkpoint="acts")).items()
    assert own == replace(LIFT, checkpoint="both") and (config.frames, config.revise, config.usual) == (True, 1.0, (0.25,))
    assert config.chunk * config.chunks == 18 and not bench.with_frames(PUSHT) and name not in lift_arms()


def figures(**outcomes):
    """Fifty outcomes an arm, 45 of them 1 unless told otherwise."""
    calls = {bench.REFERENCE: 5.3, "SDP": 0.67, "SDP, zero primer": 0.67}
    names = lift_arms()
    told = lambda name: outcomes.get(name, 45)  # noqa: E731
    return {name: {"outcomes": [1.0] * told(name) + [0.0] * (50 - told(name)), "calls_per_action": calls.get(name, 1.0)} for name in names}


def test_gates_follow_the_figures():
    cheap = {"DP, few calls": 40, "DP, warm": 41, bench.ONE_STEP: 44}
    assert [gate.verdict for gate in bench.judged("Lift", figures(), True)] == [HOLDS] * 6
    assert [gate.verdict for gate in bench.judged_together(dict.fromkeys("abc", figures(**cheap)), True)] == [HOLDS] * 3
    assert [gate.verdict for gate in bench.judged("Lift", figures(SDP=43), True)] == [HOLDS, FAILS, *[HOLDS] * 4]
    assert [gate.verdict for gate in bench.judged("Lift", figures(**{"SDP, one call": 42}), True)] == [*[HOLDS] * 4, FAILS, HOLDS]
    assert [gate.verdict for gate in bench.judged_together(dict.fromkeys("abc", figures()), True)] == [FAILS] * 3, "as good is not better"
    assert {gate.verdict for gate in bench.judged_together(dict.fromkeys("ab", figures()), True)} == {NOT_JUDGED}
    assert {gate.verdict for gate in bench.judged("Lift", figures(), False)} == {NOT_JUDGED}
    lost = dict.fromkeys(figures(), 3)
    assert {gate.verdict for gate in bench.judged("Lift", figures(**lost), True)} == {NOT_JUDGED}, "nobody can do the task"
    assert {gate.verdict for gate in bench.judged_together(dict.fromkeys("abc", figures(**lost)), True)} == {NOT_JUDGED}
    together = bench.judged_together({**dict.fromkeys("abc", figures(**cheap)), "d": figures(**lost)}, True)
    assert together == bench.judged_together(dict.fromkeys("abc", figures(**cheap)), True)
    assert ">= 2" in [gate.to_json()["gate"] for gate in bench.judged("PickPlaceCan", figures(), True)]
    assert "score lost" in bench.judged("PushT", figures(), True)[1].name


@pytest.mark.parametrize("name", [bench.REFERENCE, "DP, warm", "SDP", bench.ONE_STEP])
def test_a_cell_measures_the_toy_world(name):
    with unchecked_shapes():
        found = bench.measured(TOY, asdict(bench.arms(bench.WORLDS["Toy"], TOY, TOY, TOY)[name][1]), [0, 1], 0)
    assert found["rollouts"] == len(found["outcomes"]) == 2 and found["mean_ticks"] <= 8
    assert found["calls_per_action"] > 0 and found["jump_inside"] >= 0 and found["jump_border"] > 0
