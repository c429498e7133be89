"""Any mode in one call: what is given comes in physical units, what is asked for comes back so, and the rest is absent."""

import pytest
import torch

import tiny
from oracle import unchecked_shapes
from test_robot_policy import Summing
from uwm.robot.modes import ModePolicy, sample
from uwm.robot.policy import Policy, PolicyConfig

NET = tiny.model()
SEEN = tiny.observation(1, 0, NET.config)


@pytest.mark.parametrize(
    ("targets", "given"),
    [
        (("action",), ()), (("agentview", "wrist"), ("action",)), (("action",), ("agentview", "wrist")),
        (("wrist",), ()), (("action", "agentview"), ("wrist",)),
    ],
)  # fmt: skip
def test_every_mode_gives_its_targets_in_their_shapes(targets, given):
    shapes = {"action": (8, 2), "agentview": (2, 3, 32, 32), "wrist": (2, 3, 32, 32)}
    values = {name: torch.rand(3, *shapes[name]) for name in given}
    found = sample(NET, SEEN, targets, values, rows=2, seeds=[1, 2, 3])
    assert {name: tuple(value.shape[1:]) for name, value in found.items()} == {name: shapes[name] for name in targets}
    alone = sample(NET, SEEN, targets, {name: value[1:2] for name, value in values.items()}, rows=2, seeds=[2])
    for name in targets:
        torch.testing.assert_close(found[name][1:2], alone[name], rtol=1e-4, atol=1e-5)


def test_policy_mode_is_a_chunked_policys_plan():
    config = PolicyConfig("chunked", rows=4, chunk=8, chunks=1, past=2)
    policy, executed = Policy(NET, config), torch.tensor([[[0.3, -0.2], [0.1, 0.5]]])
    memory = policy.recall(policy.start([7]), executed)
    _, planned = policy.act(memory, SEEN)
    assert sample(NET, SEEN, ["action"], executed=executed, rows=4, seeds=[7])["action"].shape == planned.shape
    more = torch.cat([torch.full((1, 3, 2), 9.0), executed], dim=1)
    same = [sample(NET, SEEN, ["action"], executed=each, rows=4)["action"] for each in (executed, more)]
    assert torch.equal(*same), "the last ones count"
    assert not torch.equal(same[0], sample(NET, SEEN, ["action"], rows=4)["action"])


def test_dynamics_that_are_known_go_both_ways():
    net = tiny.feeling(prediction="clean")
    net.__class__ = Summing
    net.normalise_proprio.scale.copy_(torch.tensor([2.0, 3.0, 1.0]))
    now, actions = tiny.observation(1, 0, net.config), torch.rand(1, 8, 2)
    state = sample(net, now, ["state"], {"action": actions}, rows=1)["state"]
    moved = (state - now.proprio[:, None])[..., :2] / torch.tensor([2.0, 3.0])
    torch.testing.assert_close(moved, actions.cumsum(dim=1)[:, :4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.to_proprio(now.proprio, net.from_proprio(now.proprio, state)), state)
    assert sample(net, now, ["action"], {"state": state}, rows=2)["action"].shape == (1, 8, 2)


def test_noise_in_a_place_is_not_absence():
    absent = sample(NET, SEEN, ["action"], rows=3)["action"]
    noisy = sample(NET, SEEN, ["action"], marginal=["agentview", "wrist"], rows=3)["action"]
    assert absent.shape == noisy.shape and not torch.allclose(absent, noisy)


def test_a_policy_of_a_mode_sends_its_plans_and_remembers_what_was_executed():
    ticks, config = [], PolicyConfig("chunked", rows=3, chunk=3)
    films = {name: torch.rand(1, 2, 3, 32, 32) for name in tiny.CAMERAS}
    tracker = ModePolicy(NET, config, film=lambda tick: ticks.append(tick) or films)
    memory, first = tracker.act(tracker.start([5]), SEEN)
    assert torch.equal(first, sample(NET, SEEN, ["action"], films, rows=3, seeds=[5])["action"][:, :3])
    executed = first / 2
    memory, second = tracker.act(tracker.done(memory, executed), SEEN)
    again = sample(NET, SEEN, ["action"], films, executed=executed, rows=3, seeds=[5 + (3 << 32)])["action"][:, :3]
    assert torch.equal(second, again) and ticks == [0, 3] and tracker.calls == 6
    beside = ModePolicy(NET, config, tiny.CAMERAS).act((5, executed), SEEN)[1]
    assert not torch.allclose(beside, second)


@pytest.mark.parametrize("config", [PolicyConfig("streaming"), PolicyConfig("chunked", chunk=9)])
def test_a_policy_of_a_mode_keeps_no_buffer_and_sends_no_more_than_it_plans(config):
    with pytest.raises(ValueError, match="kind chunked and a chunk within 8 actions"):
        ModePolicy(NET, config)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"targets": ["front"]}, r"no stream 'front'; it has \['action', 'agentview', 'wrist'\]"),
        ({"targets": []}, "nothing to generate"),
        ({"targets": ["action"], "marginal": ["action"]}, "a stream has one role"),
        ({"targets": ["wrist"], "given": {"action": torch.zeros(1, 7, 2)}}, r"given 'action' must be \(B, 8, 2\) and finite"),
        ({"targets": ["action"], "given": {"wrist": torch.full((1, 2, 3, 32, 32), torch.nan)}}, "given 'wrist' must be .* finite"),
        ({"targets": ["action"], "seeds": [0, 1], "observation": tiny.observation(3, 0, NET.config)}, "2 seeds need as many observations"),
    ],
)
def test_what_cannot_be_sampled_is_refused(asked, words):
    with unchecked_shapes(), pytest.raises(ValueError, match=words):
        sample(**{"model": NET, "observation": SEEN, **asked})
