"""The bench of delays: its cases fit their policies, its figures follow the ticks, and a quick run judges time only."""

import numpy as np
import pytest

from oracle import unchecked_shapes
from uwm.bench import delay_bench as bench
from uwm.bench.gates import FAILS, HOLDS, NOT_JUDGED
from uwm.robot.chunking import KINDS
from uwm.robot.controller import Tick
from uwm.robot.safety import Verdict


def tick(index, asked=None, plan=-1):
    none = np.zeros((0, 1), np.float32)
    return Tick(index, 0.0, 0.0, 0, {}, (), 0, asked, None, None, 0, 0, "", None, plan, none, Verdict(None, "hold"), None)


def test_reaction_is_from_the_tick_after_asking_to_the_first_action_of_the_next_plan():
    ticks = [tick(0, 0), tick(1), tick(2, 1, 0), tick(3, None, 0), tick(4, 2, 1), tick(5, None, 1), tick(6, None, 2)]
    assert bench.reaction(ticks) == max(4 - 1, 6 - 3) == 3
    assert bench.reaction(ticks[:2]) == 0


def cell(kind, delay, successes, gaps=0.0, ratio=1.0, jitter=0.0):
    return {"kind": kind, "delay": delay, "jitter": jitter, "gaps": gaps, "jump_ratio": ratio, "jump_interval": None,
            "success": successes / 20, "succeeded": [True] * successes + [False] * (20 - successes)}  # fmt: skip


def found(**late):
    late = {"successes": 18, **late}
    cells = [cell("committed", 0, 19), cell("committed", 4, **late), cell("naive", 4, 10), cell("committed", 4, 9, 5.0, jitter=1.0)]
    return {bench.Cell(each["kind"], each["delay"], each["jitter"]).name: each for each in cells}


LIFT = bench.Case("Lift", "", chunk=3, buffer=3, whole=6)


def test_a_world_with_a_score_is_judged_by_it_too():
    pusht, both = bench.Case("PushT", "", 4, 3, 5, full=0.9), found()
    for name, score in (("committed, 0", 0.8), ("committed, 4", 0.74), ("naive, 4", 0.7)):
        both[name] |= {"scores": [score] * 20}
    success, score = bench.judged(pusht, both, True)[:2]
    assert (success.verdict, score.verdict) == (HOLDS, FAILS) and score.value == pytest.approx(0.06) and "naive 0.70" in score.baseline


def test_gates_follow_the_figures_and_success_needs_enough_episodes():
    assert [gate.verdict for gate in bench.judged(LIFT, found(), True)] == [HOLDS] * 3
    assert [gate.verdict for gate in bench.judged(LIFT, found(), False)] == [NOT_JUDGED, HOLDS, NOT_JUDGED]
    for late, place in (({"successes": 17}, 0), ({"gaps": 0.1}, 1), ({"ratio": 1.3}, 2)):
        assert bench.judged(LIFT, found(**late), True)[place].verdict == FAILS
    lost = bench.judged(LIFT, found(), True)[0]
    assert lost.value == pytest.approx(0.05) and lost.interval[0] < 0.05 < lost.interval[1]


@pytest.mark.parametrize("kind", ["committed", "guided"])
def test_a_cell_measures_the_toy_world_at_a_delay(kind):
    case = bench.Case("Toy", "", 2, 2, 8, rows=2, max_steps=24)
    with unchecked_shapes():
        measured = bench.measure(case, bench.Cell(kind, 4), [0, 1])
    assert measured["rollouts"] == 2 and len(measured["succeeded"]) == 2 and measured["ticks"] <= 24
    assert measured["first_action"] == 4.0 and measured["gaps"] == 0.0
    assert measured["reaction"] >= 4 + 3, "asked every four ticks, and four until it is there"
    assert measured["jump_inside"] > 0 and "scores" not in measured


def test_the_cells_of_a_world_with_a_score_can_be_judged_as_they_were_measured():
    case = bench.Case("Toy", "", 2, 2, 8, rows=2, max_steps=8, full=0.5)
    with unchecked_shapes():
        measured = {bench.Cell(kind, delay).name: bench.measure(case, bench.Cell(kind, delay), [0, 1])
                    for kind, delay in (("committed", 0), ("committed", 4), ("naive", 4))}  # fmt: skip
    assert all(len(each["scores"]) == 2 and max(each["scores"]) <= 1 for each in measured.values())
    assert "score lost" in bench.judged(case, measured, True)[1].name


def test_every_kind_is_measured_at_every_delay_and_with_jitter():
    chosen = bench.cells(range(9))
    assert len(chosen) == len({each.name for each in chosen}) == len(KINDS) * 10
