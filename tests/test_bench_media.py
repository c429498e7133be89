"""The benches of media: gates follow the figures, a paper's claim is told apart, and their data and texts are what they say."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from uwm.bench import (
    ar_diffusion_bench,
    clip_data,
    fvdm_bench,
    pusa_bench,
    radd_bench,
    streaming_video_bench,
    unidiffuser_bench,
    unidiffuser_robot_bench,
)
from uwm.bench.gates import FAILS, HOLDS, NOT_REPRODUCED
from uwm.media import judges
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


def unidiffuser(arms, right, wrong, **changes):
    """What would satisfy every gate: the joint model as the dedicated ones, the one with a shared level far behind."""
    found = {arm: dict(right) for arm in arms} | {"shared level": wrong}
    found["joint"] |= changes
    return {arm: [figures] * 3 for arm, figures in found.items()}


def check_verdicts(judged, found, cases):
    """Every gate holds of what is right, and the gates of a case fail as it says when its figures are put in."""
    assert {gate.verdict for gate in judged(found(), True)} == {HOLDS}
    for changes, verdicts in cases:
        told = {gate.name: gate.verdict for gate in judged(found(**changes), True)}
        assert verdicts.items() <= told.items(), changes


def test_unidiffuser_judges_the_joint_model_of_digits_against_those_made_for_one_question():
    right = {"label to image": 0.9, "image to label": 0.95, "agree": 0.9, "label to image, guided": 0.95}
    wrong = {"label to image": 0.3, "image to label": 0.3}
    cases = (
        ({"label to image": 0.8}, {"label to image: lost to a model made for it": FAILS}),
        ({"image to label": 0.4}, {"image to label: ahead of one shared level": NOT_REPRODUCED}),
        ({"agree": 0.7}, {"digit and label drawn together agree": FAILS}),
        ({"label to image, guided": 0.9}, {"label to image: gained by guidance of weight 1": NOT_REPRODUCED}),
    )
    check_verdicts(unidiffuser_bench.judged, partial(unidiffuser, unidiffuser_bench.ARMS, right, wrong), cases)


def test_unidiffuser_judges_the_joint_model_of_a_robot_against_those_made_for_one_question():
    error = dict.fromkeys(("forward", "inverse", "policy", "video"), 0.3)
    right, wrong = error | {"caption": 0.8, "together": 0.4, "told": 0.9}, dict.fromkeys(error, 0.9)
    cases = (
        ({"policy": 0.4}, {"policy: error / of a model made for it": FAILS}),
        ({"inverse": 0.6}, {"inverse: error / of one shared level": NOT_REPRODUCED, "inverse: error / of a model made for it": FAILS}),
        ({"caption": 0.7}, {"caption: lost to a model made for it": FAILS}),
        ({"told": 0.5}, {"frames and words drawn together: the words name the way": FAILS}),
        ({"together": 0.9}, {"actions and frames drawn together: tip apart / shuffled": FAILS}),
    )
    check_verdicts(unidiffuser_robot_bench.judged, partial(unidiffuser, unidiffuser_robot_bench.ARMS, right, wrong), cases)


def pusa(arm="random", **changes):
    """Figures that satisfy every gate, with those of one arm changed."""
    base = {"from_frame": 1.0, "between": 1.0, "frechet": 1.0, "sees_first": 0.1}
    taught = {"from_frame": 0.4, "between": 0.4, "frechet": 1.05, "sees_first": 0.3, "share": 0.1, "changed_when_off": 0.0}
    found = {"none": base, "random": taught, "ptss": taught, "first frame": {**taught, "between": 0.8}}
    found[arm] = {**found[arm], **changes}
    return {name: [figures] * 3 for name, figures in found.items()}


def test_pusa_judges_the_adapted_model_against_the_one_it_was_and_a_fixed_pattern():
    assert {gate.verdict for gate in pusa_bench.judged(pusa(), True)} == {HOLDS}
    cases = (
        (0, "random", {"from_frame": 0.6}, NOT_REPRODUCED), (1, "first frame", {"between": 0.3}, NOT_REPRODUCED),
        (2, "random", {"frechet": 1.2}, NOT_REPRODUCED), (3, "random", {"sees_first": 0.05}, NOT_REPRODUCED),
        (4, "ptss", {"changed_when_off": 1e-7}, FAILS), (5, "random", {"share": 0.2}, FAILS),
    )  # fmt: skip
    for place, arm, changes, verdict in cases:
        assert pusa_bench.judged(pusa(arm, **changes), True)[place].verdict == verdict


def ar_diffusion(arm="fopp", **changes):
    gaps = {"tip, gap 4": 0.1, "tip, gap 12": 0.2, "calls, gap 4": 100, "calls, gap 12": 276}
    found = {"overlap": {"tip": 0.15}, "independent": {"loss": 0.5, **gaps}, "fopp": {"loss": 0.4, **gaps}}
    found[arm] = {**found[arm], **changes}
    return {name: [figures] * 3 for name, figures in found.items()}


def test_ar_diffusion_judges_a_gap_in_between_against_one_frame_after_the_other():
    judged = lambda found: ar_diffusion_bench.judged(found, ar_diffusion_bench.FULL, True)  # noqa: E731
    assert {gate.verdict for gate in judged(ar_diffusion())} == {HOLDS}
    cases = (
        (0, "independent", {"loss": 0.3}, NOT_REPRODUCED), (1, "fopp", {"tip, gap 4": 0.25}, NOT_REPRODUCED),
        (2, "fopp", {"calls, gap 4": 300}, FAILS), (3, "overlap", {"tip": 0.05}, NOT_REPRODUCED),
    )  # fmt: skip
    for place, arm, changes, verdict in cases:
        assert judged(ar_diffusion(arm, **changes))[place].verdict == verdict


def streamed(**changes):
    flights = {"calls a frame": (13.0, 5.0), "latents": (1.0, 1.0), "tip at the end": (0.3, 0.3)}
    figures = {f"{name}, {flight}": value for name, both in flights.items() for flight, value in zip((1, 3), both, strict=True)}
    return {"causal": [{**figures, **changes}] * 3}


def test_streaming_video_judges_calls_and_errors_against_resampling():
    judged = lambda found, enough=True: streaming_video_bench.judged(found, streaming_video_bench.FULL, enough)  # noqa: E731
    assert [gate.verdict for gate in judged(streamed())] == [HOLDS] * 3
    for place, changes in enumerate(({"calls a frame, 3": 6.0}, {"latents, 3": 1.06}, {"tip at the end, 3": 0.33})):
        assert judged(streamed(**changes))[place].verdict == FAILS
    assert judged(streamed(), enough=False)[0].verdict == HOLDS, "calls are counted, not sampled"


def test_the_tip_of_long_clips_is_measured_where_it_is():
    told = judges.Judge(SimpleNamespace(predict=lambda frames: np.tile([0.3, 0.4], (len(frames), 1))), score=1.0)
    length = ar_diffusion_bench.LONG
    whole, tips = torch.zeros(2, length * 4, 24), np.tile([0.3, 0.4], (2, length, 1))
    tips[:, -1] = 0.0
    assert clip_data.tips_apart(told, whole, tips) == pytest.approx([0.0] * (length - 1) + [0.5])
    assert ar_diffusion_bench._at_the_end(told, whole, tips) == pytest.approx(0.5 / clip_data.FRAMES)


def test_what_a_held_frame_changes_is_nothing_in_a_model_that_has_learned_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_data, "FOLDER", tmp_path)
    clip_data.tokens.cache_clear()
    budget = {**pusa_bench.QUICK, "clips": 12, "held": 4}
    model = clip_data.model_of(0)  # its last layers are zero
    assert pusa_bench._sees_first(model, budget) == 0.0
    torch.nn.init.normal_(model.write["top"].weight)
    assert pusa_bench._sees_first(model, budget) > 0.0
    clip_data.tokens.cache_clear()


def test_a_caption_is_right_when_it_can_be_read_and_names_what_moved():
    said = "push the red block to the left and the blue block to top"
    assert all(unidiffuser_robot_bench._names(said, wanted) for wanted in (["red", "left"], ["blue", "top"]))
    assert unidiffuser_robot_bench._goes(said, "top") and not unidiffuser_robot_bench._goes(said, "right")
    assert not unidiffuser_robot_bench._goes("push", "top"), "what cannot be read names nothing"
    assert not unidiffuser_robot_bench._names(said, ["red", "top"]) and not unidiffuser_robot_bench._names(f"{said} then", ["red", "left"])


def test_digits_become_patches_row_by_row():
    image = torch.arange(64.0).reshape(1, 8, 8)
    patches = unidiffuser_bench._patches(image)
    assert patches.shape == (1, 16, 4) and patches[0, 0].tolist() == [0, 1, 8, 9] and patches[0, 5].tolist() == [18, 19, 26, 27]


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


def test_clips_are_tokens_of_mean_square_one_with_the_action_that_led_to_each_frame(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_data, "FOLDER", tmp_path)
    clip_data.tokens.cache_clear()
    data = clip_data.tokens(12, 4, seed=5)
    assert data.train["top"].shape == (12, 8 * 4, 24) and data.held["action"].shape == (4, 8, 2)
    assert not data.held["action"][:, 0].any() and torch.allclose(data.held["action"][:, 1:] * 0.1, torch.from_numpy(data.clips.action))
    assert float(data.train["top"].std()) == pytest.approx(1.0, abs=0.05)
    assert clip_data.packed(data.train).shape == (12, 8 * 4 + 8, 24)
    clip_data.tokens.cache_clear()
