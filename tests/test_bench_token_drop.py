"""The claim of token drop: the shapes are the paper's, the verdicts follow the figures, and a small model obeys it."""

import pytest
import torch

from uwm.bench import token_drop_bench as bench
from uwm.bench.gates import FAILS, HOLDS, NOT_JUDGED
from uwm.nn.paper import PRESETS


@pytest.mark.parametrize(("preset", "tokens"), [("uwm-libero", 138), ("uwm-droid", 171)])
def test_our_presets_have_the_papers_trunk_and_tokens_at_a_third_of_its_weights(preset, tokens):
    with torch.device("meta"):
        model = bench.ours(preset)
    config, paper = model.config.backbone, PRESETS[preset]
    assert (config.width, config.depth, config.heads) == (paper.width, paper.depth, paper.heads)
    assert model.layout.tokens + config.registers == tokens == paper.tokens
    assert sum(p.numel() for p in model.parameters()) < 130e6


def figures(**changed):
    found = {
        "flops": {"deleted": 1.0, "kept": 4.0, "paper": 5.0},
        "difference": 1e-6,
        "latency_ms": {kind: {"p50": value} for kind, value in (("deleted", 1.0), ("kept", 2.0), ("paper", 3.0))},
    }
    return found | changed


def test_counts_are_judged_at_once_and_latencies_only_with_enough_calls():
    assert [gate.verdict for gate in bench.judged("x", figures(), 3.0, True)] == [HOLDS] * 5
    quick = [gate.verdict for gate in bench.judged("x", figures(), 3.0, False)]
    assert quick == [HOLDS] * 3 + [NOT_JUDGED] * 2
    assert bench.judged("x", figures(), 7.0, True)[0].verdict == FAILS
    assert bench.judged("x", figures(difference=0.1), 3.0, True)[2].verdict == FAILS


def test_every_kind_of_call_is_timed_equally_often():
    made = []
    calls = {kind: lambda kind=kind: made.append(kind) for kind in ("deleted", "kept")}
    times = bench._timed(calls, 3)
    assert made == ["deleted", "kept"] * 5 and set(times["kept"]) == {"p50", "p95", "p99"}
