"""Best of N: the plan that is sent is the one whose outcome scores best, and outcomes are where the plans lead."""

from dataclasses import replace

import pytest
import torch

import tiny
import uwm_envs
from test_robot_policy import Summing
from uwm.robot import evaluate as evaluation
from uwm.robot.best import BestOf
from uwm.robot.policy import Policy, PolicyConfig

CHUNKED = PolicyConfig("chunked", rows=3, chunk=2, chunks=4, past=2)


def furthest(outcome):
    """How far the first number of the state comes in the end."""
    return outcome.proprio[:, -1, 0]


def test_the_plan_that_leads_furthest_is_sent_and_its_outcome_is_where_it_leads():
    net = tiny.feeling(prediction="clean")
    net.__class__ = Summing
    best, seen = BestOf(net, CHUNKED, 6, furthest), tiny.observation(1, 0, net.config)
    memory = best.start([3])
    memory, actions = best.act(memory, seen)
    assert actions.shape == (1, 2, 2) and best.calls == 3 + 1
    drawn = memory.future[..., :2]
    found = best.imagined(memory, seen)
    assert found.ticks == {"state": (1, 2, 3, 4)} and not found.images
    reached = drawn.cumsum(dim=1)[:, :4]
    torch.testing.assert_close(found.proprio[..., :2], seen.proprio[:, None, :2] + reached, rtol=1e-4, atol=1e-5)
    chosen = reached[:, -1, 0].argmax()
    torch.testing.assert_close(actions[0], net.to_actions(drawn[chosen][None])[0, :2])
    assert len(set(reached[:, -1, 0].tolist())) == 6, "the plans differ"
    after = best.done(memory, actions)
    assert torch.equal(after.past, after.past[:1].expand(6, -1, -1)), "whichever was sent, all go on from it"


def test_one_sample_is_the_policy_itself():
    policy = Policy(tiny.feeling(), CHUNKED)
    best, seen = BestOf(policy.model, CHUNKED, 1, furthest), tiny.observation(1, 0, policy.model.config)
    assert torch.equal(best.act(best.start([5]), seen)[1], policy.act(policy.start([5]), seen)[1])


def test_frames_are_outcomes_too_and_a_rollout_takes_it_for_a_policy():
    model = tiny.model()
    best = BestOf(model, replace(CHUNKED, rows=2), 3, lambda outcome: outcome.images["agentview"].mean(dim=(1, 2, 3, 4)), rows=2)
    memory, _ = best.act(best.start([0]), tiny.observation(1, 0, model.config))
    found = best.imagined(memory, tiny.observation(1, 0, model.config))
    assert found.images["wrist"].shape == (3, 2, 3, 32, 32) and found.proprio is None and found.ticks["wrist"] == (4, 8)
    env = uwm_envs.make("Toy", cameras=tiny.CAMERAS, image_size=32, max_steps=5)
    first, second = (evaluation.rollout(env, best, 1) for _ in range(2))
    assert first.ticks == second.ticks <= 5 and first.calls == 3 * (2 + 2)


def test_what_cannot_be_chosen_among_is_refused():
    model = tiny.feeling()
    for wrong in ({"samples": 0}, {"config": replace(CHUNKED, kind="streaming")}):
        with pytest.raises(ValueError, match="N >= 1 plans of a chunked policy"):
            BestOf(**{"model": model, "config": CHUNKED, "samples": 2, "score": furthest, **wrong})
    with pytest.raises(ValueError, match="foresees nothing within 8 ticks"):
        BestOf(tiny.model(cameras=(), video_frames=()), CHUNKED, 2, furthest)
    for score in (lambda outcome: outcome.proprio[:, 0], lambda outcome: outcome.proprio[:, 0, 0] / 0):
        with pytest.raises(ValueError, match="2 finite numbers, one a plan"):
            best = BestOf(model, CHUNKED, 2, score)
            best.act(best.start([0]), tiny.observation(1, 0, model.config))
