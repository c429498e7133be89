"""Frames as they finish: kept frames are exact, the future does not reach the past, and gaps trade calls for latency."""

import pytest
import torch

import tiny
from uwm.core import roles
from uwm.core.plans import spread, staircase
from uwm.core.streams import Stream
from uwm.nn.backbone import BackboneConfig
from uwm.nn.stream_model import StreamModel, StreamModelConfig
from uwm.noise.gaussian import path
from uwm.sample.denoise import denoiser
from uwm.sample.loop import sample
from uwm.sample.randomness import Randomness
from uwm.sample.rollout import rollout
from uwm.sample.steps import ddim, dpmpp_2m

FRAMES = 6
FRONT = Stream("front", "video", tuple(range(FRAMES)), 3, (1, 2), causal=True)
ACTION = Stream("action", "action", tuple(range(FRAMES)), 2, causal=True)


@pytest.fixture(scope="module")
def model():
    return tiny.stream_model(FRONT, ACTION)


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def frames(model, gap, horizon=4, given=2, rows=6, seeds=(1, 2), actions=None, window=FRAMES, **options):
    front = seeded(len(seeds), 2 * given, 3)
    actions = seeded(len(seeds), given + horizon, 2, seed=1) if actions is None else actions
    return list(rollout(model, {"front": front}, horizon, {"action": actions}, gap, rows, window, seeds, **options))


@pytest.mark.parametrize("rule", [ddim(), dpmpp_2m], ids=lambda rule: rule.name)
@pytest.mark.parametrize("gap", [0, 1, 2, 4, 6])
def test_kept_frames_give_what_one_whole_row_gives(model, gap, rule):
    """The same plan as one row of all frames in every call, nothing kept; a rule that looks back does so from call to call."""
    found = frames(model, gap, step=rule)
    layout = model.layout
    video = layout.mask("front")
    x = layout.pack({"front": torch.zeros(2, 12, 3), "action": seeded(2, 6, 2, seed=1)})
    x[:, layout.span("front")][:, :4, :3] = seeded(2, 4, 3)
    randomness = Randomness.seeded((1, 2))
    for number in range(2, 6):
        noise, randomness = randomness.normal(2, 3)
        x[:, layout.span("front")][:, 2 * number : 2 * number + 2, :3] = noise
    plan = staircase(4, 6, gap)
    level = torch.where(video & (layout.frame >= 2), spread(plan, (layout.frame - 2).clamp(min=0)), 0.0)
    with torch.no_grad():
        whole, _ = sample(denoiser(model, roles.full(2, layout.tokens)), path("cosine"), x, level, rule)
    whole = whole[:, layout.span("front"), :3]
    for frame in found:
        assert torch.allclose(frame.values["front"], whole[:, 2 * frame.number : 2 * frame.number + 2], atol=1e-4)


@pytest.mark.parametrize(("gap", "calls"), [(0, 6), (2, 6 + 2 * 3), (6, 24)])
def test_frames_come_in_order_after_the_calls_of_the_plan(model, gap, calls):
    found = frames(model, gap)
    assert [frame.number for frame in found] == [2, 3, 4, 5]
    kept = 2 + 3  # given frames, and every finished one that another still looks at
    assert found[-1].calls == calls + kept
    assert found[0].calls == 6 + 2 + 1


def test_later_actions_do_not_reach_earlier_frames_at_all(model):
    actions = seeded(2, 6, 2, seed=1)
    changed = actions.clone()
    changed[:, 4:] += 3.0
    before, after = frames(model, 2, actions=actions), frames(model, 2, actions=changed)
    for first, second in zip(before, after, strict=True):
        assert torch.equal(first.values["front"], second.values["front"]) == (first.number < 4)


def test_a_sample_does_not_depend_on_its_batch_and_a_horizon_beyond_training_goes_on(model):
    together, alone = frames(model, 3, seeds=(1, 2), horizon=15, window=5), None
    front, actions = seeded(2, 4, 3)[1:], seeded(2, 17, 2, seed=1)[1:]
    alone = list(rollout(model, {"front": front}, 15, {"action": actions}, 3, 6, 5, (2,)))
    assert len(alone) == 15 and all(bool(torch.isfinite(frame.values["front"]).all()) for frame in together)
    for first, second in zip(together, alone, strict=True):
        assert torch.allclose(first.values["front"][1:], second.values["front"], atol=1e-4)


def test_where_frames_stand_does_not_matter_only_how_far_apart_they_are(model):
    """Rotary places are relative, so frames beyond those of training are no new places."""
    net = model.double()
    layout, moved = model.layout, model.fresh({"front": tuple(range(40, 46)), "action": tuple(range(40, 46))})
    x, role = seeded(2, layout.tokens, layout.size).double() * layout.filled, roles.full(2, layout.tokens)
    assert torch.allclose(net(x, 0.3, role, layout), net(x, 0.3, role, moved), atol=1e-6)
    model.float()


def test_frames_can_be_drawn_from_nothing_and_taken_one_by_one(model):
    frames_of = rollout(model, {"front": torch.zeros(2, 0, 3)}, 4, {"action": torch.zeros(1, 4, 2)}, 3, 6, FRAMES, (1, 2))
    first = next(frames_of)
    assert first.number == 0 and first.values["front"].shape == (2, 2, 3) and first.calls == 6 + 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gap": -1}, "gap lies between 0 and rows"),
        ({"gap": 7}, "gap lies between 0 and rows"),
        ({"gap": 1, "horizon": 0}, "there must be a frame"),
        ({"gap": 0, "window": 4}, "must hold the 4 frames in flight and one before them"),
        ({"gap": 2, "window": 7}, "at most the 6 frames"),
        ({"gap": 2, "actions": torch.zeros(2, 5, 2)}, "conditions must reach over 6 frames, got 5"),
        ({"gap": 2, "actions": torch.zeros(2, 6, 3)}, r"conditions of 'action' must be"),
        ({"gap": 2, "actions": torch.full((2, 6, 2), torch.inf)}, "not finite"),
    ],
)
def test_what_cannot_be_rolled_out_is_refused_before_the_first_frame(model, changes, words):
    with pytest.raises(ValueError, match=words):
        frames(model, **changes)


def test_a_model_that_sees_the_future_or_has_registers_is_refused():
    for causal, registers in ((False, 0), (True, 2)):
        stream = Stream("front", "video", tuple(range(FRAMES)), 3, (1, 2), causal=causal)
        net = StreamModel(StreamModelConfig((stream,), backbone=BackboneConfig(32, 1, 2, registers=registers, waist=16)))
        with pytest.raises(ValueError, match="causal streams and no registers"):
            rollout(net, {"front": torch.zeros(1, 2, 3)}, 2)
