"""The benches of media: gates follow the figures, a paper's claim is told apart, and their data and texts are what they say."""

import pytest
import torch

from uwm.bench import clip_data, fvdm_bench, radd_bench, unidiffuser_bench
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


def unidiffuser(**changes):
    """What would satisfy every gate: the joint model as the dedicated ones, the one with a shared level far behind."""
    right = {"label to image": 0.9, "image to label": 0.95, "agree": 0.9, "label to image, guided": 0.95}
    wrong = {"label to image": 0.3, "image to label": 0.3}
    error, caption = dict.fromkeys(("forward", "inverse", "policy", "video"), 0.3), {"caption": 0.8, "together": 0.4}
    found = {f"digits, {arm}": right for arm in unidiffuser_bench.DIGIT_ARMS} | {"digits, shared level": wrong}
    found |= {f"robot, {arm}": error | caption for arm in unidiffuser_bench.ROBOT_ARMS}
    found["robot, shared level"] = dict.fromkeys(error, 0.9)
    for arm in ("digits, joint", "robot, joint"):
        found[arm] = {**found[arm], **changes}
    return {arm: [figures] * 3 for arm, figures in found.items()}


def test_unidiffuser_judges_the_joint_model_against_those_made_for_one_question():
    judged = lambda found: [*unidiffuser_bench._judged_digits(found, True), *unidiffuser_bench._judged_robot(found, True)]  # noqa: E731
    assert {gate.verdict for gate in judged(unidiffuser())} == {HOLDS}
    cases = (
        ({"label to image": 0.8}, {"label to image: lost to a model made for it": FAILS}),
        ({"image to label": 0.4}, {"image to label: ahead of one shared level": NOT_REPRODUCED}),
        ({"agree": 0.7}, {"digit and label drawn together agree": FAILS}),
        ({"label to image, guided": 0.9}, {"label to image: gained by guidance of weight 1": NOT_REPRODUCED}),
        ({"policy": 0.4}, {"policy: error / of a model made for it": FAILS}),
        ({"inverse": 0.6}, {"inverse: error / of one shared level": NOT_REPRODUCED, "inverse: error / of a model made for it": FAILS}),
        ({"caption": 0.7}, {"caption: lost to a model made for it": FAILS}),
        ({"together": 0.9}, {"actions and frames drawn together: tip apart / shuffled": FAILS}),
    )
    for changes, verdicts in cases:
        told = {gate.name: gate.verdict for gate in judged(unidiffuser(**changes))}
        assert verdicts.items() <= told.items(), changes


def test_a_caption_is_right_when_it_can_be_read_and_names_what_moved():
    said = "push the red block to the left and the blue block to top"
    assert all(unidiffuser_bench._names(said, wanted) for wanted in (["red", "left"], ["blue", "top"]))
    assert not unidiffuser_bench._names(said, ["red", "top"]) and not unidiffuser_bench._names(f"{said} then", ["red", "left"])


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
