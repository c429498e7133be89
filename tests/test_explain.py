"""`explain` says the numbers that the model, the plans and the policy really have."""

import re
from dataclasses import replace

import pytest

import bench_figures as figures
import tiny
from uwm import explain
from uwm.core.patterns import Pattern
from uwm.core.streams import Layout
from uwm.learn.objective import ObjectiveConfig
from uwm.robot.policy import Policy, PolicyConfig

POLICY = PolicyConfig(rows=4, chunk=2, chunks=4)
OBJECTIVE = ObjectiveConfig(draws=3, patterns=(Pattern(3, "ladder", "absent", 2, 1), Pattern(1, "constant", "given")))


@pytest.fixture(scope="module")
def text():
    return explain.explain(figures.CONFIG, OBJECTIVE, POLICY)


@pytest.fixture(scope="module")
def model():
    return figures.tiny_model()


def test_parameters_are_the_models(text, model):
    total = sum(p.numel() for p in model.parameters())
    backbone = sum(p.numel() for p in model.backbone.parameters())
    assert re.search(rf"^total +{total:,} ", text, re.M)
    assert re.search(rf"^backbone +{backbone:,} ", text, re.M)
    assert f"modulation: {100 * model.modulation_share:.1f} %" in text


def test_tokens_and_shares_are_those_of_the_layout_and_the_mixture(text, model):
    assert f"{model.layout.tokens} tokens; observed" in text
    assert re.search(r"^left +video +3, 6 +2 x 2 +8 +16$", text, re.M)
    assert re.search(r"^action +action +-2\.\.7 +1 x 1 +10 +3$", text, re.M)
    assert re.search(r"^75\.0 % +ladder +absent +chunks of 2, clean prefix of 0 to 1$", text, re.M)
    assert re.search(r"^25\.0 % +constant +given$", text, re.M)


def linears_and_attention(model, tokens, seen):
    """FLOPs of one call by hand: 2 per weight and token of each linear layer, 4 per query, key and width in attention."""
    c = model.config.backbone
    inside, width = tokens + c.registers, c.width
    block = 2 * inside * (4 * width**2 + 2 * c.ratio * width**2) + 4 * inside * (inside + seen) * width
    # two layers of the level's embedding from 64 waves, the shared modulation, the last norm's
    level = 2 * inside * (64 * c.waist + c.waist**2 + c.waist * 6 * width) + 2 * tokens * c.waist * 2 * width
    return c.depth * block + level


def test_flops_of_a_call_are_those_of_its_matrices_attention_included(model):
    layout = Layout((model.layout["action"],))
    seen = 1 + 2 * (model.config.grid**2 + 1)
    width, size = model.config.backbone.width, model.config.action_size
    ends = 2 * layout.tokens * (2 * width * size + width**2)
    wanted = linears_and_attention(model, layout.tokens, seen) + ends
    assert explain.count_flops(model, layout) == pytest.approx(wanted, rel=0.01)


def test_calls_per_action_are_those_of_the_running_policy(model):
    observation = figures.windows(model, 1)[0].observation
    for kind in ("streaming", "chunked"):
        config = replace(POLICY, kind=kind, primer="zero")
        policy = Policy(model, config)
        memory, sent = policy.start([0]), 0
        for _ in range(2 * config.chunks):
            memory, actions = policy.act(memory, observation)
            memory = policy.done(memory, actions)
            sent += actions.shape[1]
        assert policy.calls / sent == explain.calls_per_action(config)


def test_plans_are_drawn_for_every_mode_and_for_two_ticks_of_streaming(text):
    for mode in explain.MODES:
        assert re.search(rf"^{mode}\n +action +left +right$", text, re.M)
    assert text.count("\ntick ") == 2
    before, after = re.search(r"tick 0\n.*\nrow 0 +(\S+)\nrow 1 +(\S+)\n", text).groups()
    assert before[:2] == after[:2] == ".."  # two past actions, given
    assert after[2:4] == ".."  # the chunk that is sent
    # Each chunk now stands where the one before it stood: rows = chunks, so one call is one rung of the ladder.
    assert after[4:] == before[2:8]


def test_a_policy_that_the_model_was_not_trained_for_is_refused():
    with pytest.raises(ValueError, match="the model was trained on -2 to 7"):
        explain.explain(figures.CONFIG, OBJECTIVE, replace(POLICY, chunks=5))


def test_a_model_without_cameras_has_only_the_policy_to_show():
    text = explain.explain(replace(figures.CONFIG, cameras=()), OBJECTIVE, POLICY)
    assert "inverse" not in text.partition("Mixture")[0]
    assert "10 tokens; observed" in text


def test_a_bent_ladder_is_told_as_a_ladder():
    objective = ObjectiveConfig(patterns=(Pattern(action="ladder(2)", video="absent", chunk=3),))
    told = explain._mixture(objective, ("action", "state"))
    assert "ladder(2)" in told and "chunks of 3" in told and told.split("\n")[0].split() == ["share", "action", "video", "state", "details"]


def test_a_policy_with_frames_shows_them_in_its_buffer_and_in_its_calls():
    """A frame stands at the level of the chunk that leads to it."""
    policy = PolicyConfig(rows=2, chunk=4, chunks=2, past=2, frames=True)
    text = explain.explain(tiny.model().config, OBJECTIVE, policy)
    before = re.search(r"tick 0\n +action +agentview +wrist\nrow 0 +(\S+) +(\S+) +(\S+)\n", text).groups()
    assert before[0][:2] == ".." and before[0][2:] == 4 * before[1][0] + 4 * before[1][1] and before[1] == before[2]
    assert re.search(r"a policy's call +26 tokens", text), "ten actions, and two frames of four tokens of two cameras"
