"""A goal image: it is held as it is, what leads to it is dreamt, and actions depend on both."""

import pytest
import torch

import tiny
from uwm.nn.robot_model import Observation
from uwm.robot import goals
from uwm.robot.goals import GoalPolicy

SIDE = 32


def images(seed, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(batch, 3, SIDE, SIDE, generator=generator) for name in tiny.CAMERAS}


@pytest.fixture
def model():
    made = tiny.model(0)
    for parameter in made.write.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def acted(model, goal=1, film=True, ticks=None, executed=1, seeds=(0, 1)):
    policy = GoalPolicy(model, rows=3, film=film)
    seen = Observation(images(0), torch.zeros(2, model.config.proprio_size))
    told = torch.zeros(2, executed, model.config.action_size)
    actions = policy.act(seen, told, images(goal), ticks or model.config.video_frames[-1], seeds)
    return actions, policy.calls


def test_actions_depend_on_the_goal_and_repeat_themselves(model):
    actions, calls = acted(model)
    assert actions.shape == (2, model.config.horizon, model.config.action_size) and calls == 6, "a film, and what leads along it"
    assert torch.equal(actions, acted(model)[0]) and not torch.equal(actions, acted(model, goal=2)[0])
    alone, calls = acted(model, film=False)
    assert calls == 3 and not torch.equal(alone, actions)
    _, calls = acted(model, ticks=model.config.video_frames[0])
    assert calls == 3, "nothing lies before the first frame, so nothing is dreamt"


def test_the_goal_is_held_bit_for_bit_while_the_way_is_dreamt(model, monkeypatch):
    seen = {}
    lead = GoalPolicy._lead

    def watched(self, frames, film, *rest):
        seen.update(frames=frames, film=film)
        return lead(self, frames, film, *rest)

    monkeypatch.setattr(goals.GoalPolicy, "_lead", watched)
    acted(model)
    assert seen["frames"] == model.config.video_frames
    for name, image in images(1).items():
        tokens = model.video.encode(image[:, None])
        assert torch.equal(seen["film"][name][:, -tokens.shape[1] :], tokens)


def test_batched_is_as_single_and_past_actions_count(model):
    both, _ = acted(model, seeds=(5, 6))
    policy = GoalPolicy(model, rows=3)
    one = lambda told: {name: image[1:] for name, image in told.items()}  # noqa: E731
    seen = Observation(one(images(0)), torch.zeros(1, model.config.proprio_size))
    alone = policy.act(seen, torch.zeros(1, 1, model.config.action_size), one(images(1)), model.config.video_frames[-1], [6])
    torch.testing.assert_close(alone, both[1:], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(acted(model, executed=0)[0], acted(model, executed=2)[0])


def test_a_goal_that_the_model_does_not_know_is_refused(model):
    with pytest.raises(ValueError, match="ticks ahead"):
        acted(model, ticks=3)
    policy = GoalPolicy(model)
    seen = Observation(images(0), torch.zeros(2, model.config.proprio_size))
    with pytest.raises(ValueError, match="cameras"):
        policy.act(seen, torch.zeros(2, 0, model.config.action_size), {"wrist": images(1)["wrist"]}, model.config.video_frames[-1], [0, 1])
