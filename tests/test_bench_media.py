"""The benches of media: gates follow the figures, a paper's claim is told apart, and their data and texts are what they say."""

import pytest
import torch

from uwm.bench import clip_data, fvdm_bench, radd_bench
from uwm.bench.gates import FAILS, HOLDS, NOT_REPRODUCED
from uwm_envs.clips import grammar


def fvdm(**changes):
    errors = {"from_frame": 0.5, "from_frame_replaced": 1.0, "between": 0.5, "between_replaced": 1.0, "blend": 0.8}
    figures = {**errors, "held_moved": 0.0, "frechet": 1.0}
    return {arm: [{**figures, **(changes if arm == "ptss" else {})}] * 3 for arm in fvdm_bench.ARMS}


def test_fvdm_judges_held_against_replaced():
    assert {gate.verdict for gate in fvdm_bench.judged(fvdm(), True)} == {HOLDS}
    cases = (
        (0, {"from_frame": 0.8}, NOT_REPRODUCED), (1, {"between": 0.75}, NOT_REPRODUCED), (2, {"between": 0.81}, FAILS),
        (3, {"frechet": 1.2}, NOT_REPRODUCED), (4, {"held_moved": 1e-6}, FAILS),
    )  # fmt: skip
    for place, changes, verdict in cases:
        assert fvdm_bench.judged(fvdm(**changes), True)[place].verdict == verdict


def radd(**changes):
    rows = {f"{name}_{n}": value for n in radd_bench.ROWS for name, value in (("calls", 9.0), ("formula", 9.0), ("calls_error", 0.1))}
    kinds = {f"{kind}_{name}": value for kind in ("t", "level", "order", "score") for name, value in (("mean", 6.0), ("apart", 0.1))}
    figures = {**rows, **kinds, "different": 0, "entropy": 5.8, "valid": 0.95}
    return {"time-free": [{**figures, **changes}] * 3, "told the level": [figures] * 3}


def test_radd_judges_losses_caches_and_texts():
    assert {gate.verdict for gate in radd_bench.judged(radd(), True)} == {HOLDS}
    worse = {f"{kind}_mean": 7.0 for kind in ("t", "level", "order", "score")}
    wrong = ({"t_mean": 6.5}, {"different": 1}, {"calls_8": 9.5}, worse, {"valid": 0.8})
    for place, changes in zip((0, 1, 2, 3, 5), wrong, strict=True):
        assert radd_bench.judged(radd(**changes), True)[place].verdict == FAILS
    assert radd_bench.judged(radd(**wrong[3]), True)[4].verdict == NOT_REPRODUCED


def test_texts_are_an_instruction_and_a_plan_for_it_and_the_parser_judges_them():
    words, meant = radd_bench.texts(5, seed=0)
    assert words.shape == (5, 35) and all(radd_bench._is_valid(each) for each in words)
    assert all(grammar.chance(goals, plan) > 0 for goals, plan in meant)
    broken = words.clone()
    broken[:, 14] = 0
    assert not any(radd_bench._is_valid(each) for each in broken)


def test_the_loss_of_texts_counts_the_plan_alone():
    model = radd_bench.model_of(0, told=True)
    words, _ = radd_bench.texts(8, seed=0)
    clean = {"text": torch.nn.functional.one_hot(words, radd_bench.SIZE).float(), "level": torch.zeros(8, 1, 1)}
    total, figures = radd_bench.loss(model, radd_bench.StreamBatch(model.layout.pack(clean)), torch.Generator().manual_seed(0))
    # A network that knows nothing: log V nats a masked word, in expectation log V a word of the plan.
    assert figures["text"] == pytest.approx(float(total.detach())) and float(total.detach()) == pytest.approx(3.3, abs=0.4)


def test_clips_are_tokens_of_unit_spread_with_the_action_that_led_to_each_frame(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_data, "FOLDER", tmp_path)
    clip_data.tokens.cache_clear()
    data = clip_data.tokens(12, 4, seed=5)
    assert data.train["top"].shape == (12, 8 * 16, 16) and data.held["action"].shape == (4, 8, 2)
    assert not data.held["action"][:, 0].any() and torch.allclose(data.held["action"][:, 1:] * 0.1, torch.from_numpy(data.clips.action))
    assert float(data.train["top"].std()) == pytest.approx(1.0, abs=0.05)
    assert clip_data.packed(data.train).shape == (12, 8 * 16 + 8, 16)
    clip_data.tokens.cache_clear()
