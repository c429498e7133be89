"""The bench of the control node judges what a robot would notice, and needs ten minutes to do so."""

import pytest

from uwm.bench import base
from uwm.bench import control_bench as bench
from uwm.bench.gates import FAILS, HOLDS, NOT_JUDGED
from uwm.learn.checkpoint import CheckpointError


def told(**changes):
    figures = {"missed": 0, "gaps": 0, "ticks": 12000, "period_ms": 50.0}
    return {**figures, "jitter_ms": {"p99.9": 0.5}, "memory_mb": {"start": 1400.0, "growth": 2.0}, **changes}


def test_a_run_on_time_holds_and_a_short_one_is_not_judged():
    assert [gate.verdict for gate in bench.judged(told(), True)] == [HOLDS] * 4
    assert {gate.verdict for gate in bench.judged(told(), False)} == {NOT_JUDGED}


@pytest.mark.parametrize(
    ("place", "changes"),
    [(0, {"missed": 1}), (1, {"jitter_ms": {"p99.9": 5.1}}), (2, {"gaps": 1}), (3, {"memory_mb": {"start": 1400.0, "growth": 51.0}})],
)
def test_each_gate_fails_on_its_own_figure(place, changes):
    verdicts = [gate.verdict for gate in bench.judged(told(**changes), True)]
    assert verdicts == [FAILS if index == place else HOLDS for index in range(4)]


def test_without_a_checkpoint_the_error_says_what_makes_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="uwm demo"):
        base.lift()
