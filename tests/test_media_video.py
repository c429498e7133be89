"""Videos with held frames: bit for bit where they are held, noisy in proportion where they may be mended, part by part beyond training."""

import pytest
import torch

import tiny
from uwm.core import roles
from uwm.core.plans import Plan, hold
from uwm.core.streams import Stream
from uwm.media import video
from uwm.sample.denoise import denoiser
from uwm.sample.modes import Assignment

FRAMES = 5
FRONT, WRIST = (Stream(name, "video", tuple(range(0, 2 * FRAMES, 2)), 3, (1, 2)) for name in ("front", "wrist"))
ACTION = Stream("action", "action", tuple(range(0, 2 * FRAMES, 2)), 2)


@pytest.fixture(scope="module")
def model():
    return tiny.stream_model(FRONT, WRIST, ACTION, registers=1)


def frame(seed, batch=2):
    return {name: torch.randn(batch, 2, 3, generator=torch.Generator().manual_seed(seed + i)) for i, name in enumerate(("front", "wrist"))}


def at(value, place):
    return value[:, 2 * place : 2 * place + 2]


def test_held_frames_come_back_bit_for_bit_and_the_others_depend_on_them(model):
    first, last = frame(0), frame(10)
    made = video.between(model, first, last, (1, 2), rows=6)
    for name in ("front", "wrist"):
        assert made[name].shape == (2, 2 * FRAMES, 3)
        assert torch.equal(at(made[name], 0), first[name]) and torch.equal(at(made[name], FRAMES - 1), last[name])
    other = video.between(model, first, frame(20), (1, 2), rows=6)
    assert not torch.allclose(at(made["front"], 2), at(other["front"], 2))
    begun = video.from_frame(model, first, (1, 2), rows=6, given={"action": torch.ones(1, FRAMES, 2)})
    assert torch.equal(at(begun["wrist"], 0), first["wrist"])


def test_a_multiplier_lets_a_frame_follow_the_plan_and_at_zero_holds_it(model):
    first = frame(0)
    held, loose = (video.from_frame(model, first, (1, 2), rows=8, levels={0: m}, scale=True)["front"] for m in (0.0, 0.3))
    assert torch.equal(at(held, 0), first["front"]) and not torch.equal(at(loose, 0), first["front"])
    still = video.from_frame(model, first, (1, 2), rows=8, levels={0: 0.3})["front"]
    assert not torch.equal(at(still, 0), first["front"]), "held at a level, it is noisy and stays so"


def test_levels_of_a_held_frame_are_constant_and_of_a_scaled_one_in_proportion(model):
    layout = model.layout.select(["front"])
    plan = Assignment(("front",)).plan(layout, 4)
    first = layout.frame == 0
    held, scaled = hold(plan, layout, {("front", 0): 0.2}), hold(plan, layout, {("front", 0): 0.5}, scale=True)
    assert bool((held.level[:, first] == 0.2).all()) and set(held.role[first].tolist()) == {roles.GIVEN}
    assert torch.equal(scaled.level[:, first], 0.5 * plan.level[:, first]) and set(scaled.role[first].tolist()) == {roles.ACTIVE}
    assert torch.equal(held.level[:, ~first], plan.level[:, ~first])


def test_permuting_levels_of_frames_permutes_nothing_away(model):
    """A level per frame counts: were they averaged, another order of them would give the same prediction."""
    layout = model.layout.select(["front"])
    x = torch.randn(1, layout.tokens, layout.size, generator=torch.Generator().manual_seed(0))
    level = torch.linspace(0.1, 0.9, FRAMES).repeat_interleave(2)[None]
    denoise = denoiser(model, roles.full(1, layout.tokens), layout)
    with torch.no_grad():
        assert not torch.allclose(denoise(x, level), denoise(x, level.flip(1)), atol=1e-3)


def test_a_long_video_goes_on_from_its_own_last_frames(model):
    begin = {name: torch.cat([frame(seed)[name] for seed in (0, 2, 4)], dim=1) for name in ("front", "wrist")}
    made = video.go_on(model, begin, 7, 2, (1, 2), rows=4)
    assert made["front"].shape == (2, 2 * 10, 3) and torch.equal(made["front"][:, :6], begin["front"])
    assert bool(torch.isfinite(made["front"]).all())
    part = video.with_frames(model, {0: {n: at(begin[n], 1) for n in begin}, 1: {n: at(begin[n], 2) for n in begin}}, (1, 2), rows=4)
    assert torch.equal(made["front"][:, 6:12], part["front"][:, 4:]), "its first part is the ordinary one"
    actions = {"action": torch.randn(2, 12, 2, generator=torch.Generator().manual_seed(3))}
    conditioned = video.go_on(model, begin, 6, 2, (1, 2), given=actions, rows=4)
    assert conditioned["front"].shape == (2, 18, 3)
    with pytest.raises(ValueError, match="'action' must reach over 6 frames, got 5"):
        video.go_on(model, begin, 6, 2, (1, 2), given={"action": actions["action"][:, :5]}, rows=4)


def everything(model):
    return {place: frame(place) for place in range(FRAMES)}


@pytest.mark.parametrize(
    ("known", "options", "words"),
    [
        ({9: frame(0)}, {}, "has 5 frames, there is no frame at place 9"),
        ({0: frame(0)}, {"levels": {0: 1.2}}, r"lies in \[0, 1\], got 1.2"),
        ({0: frame(0)}, {"levels": {1: 0.2}}, r"levels are of known frames, got some for \[1\]"),
        ({0: frame(0), 1: {"front": frame(0)["front"]}}, {}, "in the same streams"),
        ({}, {}, "no frame"),
        ({0: {"front": torch.zeros(2, 3, 3)}}, {}, r"a frame of 'front' is \(B, 2, 3\), got \(2, 3, 3\)"),
    ],
)
def test_what_cannot_be_held_is_refused(model, known, options, words):
    with pytest.raises(ValueError, match=words):
        video.with_frames(model, known, (1, 2), **options)


def test_all_frames_held_and_overlaps_that_leave_nothing_new_are_refused(model):
    with pytest.raises(ValueError, match="every frame is held"):
        video.with_frames(model, everything(model), (1, 2))
    for overlap in (0, FRAMES, 4):
        with pytest.raises(ValueError, match="overlap lies between 1 and 4 and not above the 1 frames"):
            video.go_on(model, frame(0), 3, overlap, (1, 2))


def test_holding_a_frame_that_is_not_there_is_refused(model):
    layout = model.layout.select(["front"])
    plan = Plan(torch.ones(2, layout.tokens), roles.full(1, layout.tokens)[0])
    with pytest.raises(ValueError, match="'front' has no frame 1"):
        hold(plan, layout, {("front", 1): 0.0})
