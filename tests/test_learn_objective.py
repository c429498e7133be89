"""The objective: means per stream, absent tokens, shared observations."""

from dataclasses import replace

import pytest
import torch

import tiny
from uwm.core.patterns import Pattern
from uwm.learn import objective
from uwm.learn.augment import AugmentConfig, augment
from uwm.learn.objective import ObjectiveConfig, loss
from uwm.learn.optim import Average, OptimConfig, rate_at
from uwm.nn.robot_model import Observation


def _loss(net, batch, patterns=tiny.PATTERNS, draws=2, seed=0):
    config = ObjectiveConfig(draws=draws, patterns=patterns)
    return loss(net, batch, config, torch.Generator().manual_seed(seed))


def test_invalid_tokens_have_no_influence_on_loss_or_gradient():
    net = tiny.model()
    batch = tiny.batch(net)
    batch.valid[:, -20:] = False
    batch.valid[1, :5] = False
    spoilt = replace(batch, clean=torch.where(batch.valid[..., None], batch.clean, torch.nan))
    results = []
    for given in (batch, spoilt):
        net.zero_grad()
        total, _ = _loss(net, given)
        total.backward()
        results.append((total.detach(), [p.grad.clone() for p in net.parameters() if p.grad is not None]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)
    assert torch.isfinite(results[1][0])


def test_deleting_absent_video_gives_the_loss_of_keeping_it():
    net = tiny.model()
    batch = tiny.batch(net)
    pattern = (Pattern(1.0, "constant", "absent"),)
    dropped, figures = _loss(net, batch, pattern)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "_groups", lambda layout, role: [(layout, torch.arange(len(role)))])
        kept, _ = _loss(net, batch, pattern)
    torch.testing.assert_close(dropped, kept, rtol=1e-5, atol=1e-6)
    assert set(figures) == {"action"}


@pytest.mark.parametrize(
    ("action", "video", "imitates"),
    [
        ("constant", "absent", True), ("ladder", "noise", True), ("constant", "constant", True), ("ladder", "along", True),
        ("constant", "given", False), ("constant", "film", False), ("given", "constant", False),
    ],
)  # fmt: skip
def test_actions_to_imitate_are_the_intended_ones_and_dynamics_use_the_executed_ones(action, video, imitates):
    net = tiny.model()
    batch = tiny.batch(net)
    acts = net.layout.select(["action"])
    other = replace(batch, intended=torch.zeros(4, acts.tokens, acts.size))
    pattern = (Pattern(1.0, action, video, chunk=2),)
    assert (_loss(net, batch, pattern)[0] != _loss(net, other, pattern)[0]) == imitates


def test_what_is_foreseen_is_of_executed_actions_and_costs_nothing_where_it_is_absent():
    net = tiny.feeling()
    batch = tiny.batch(net)
    acts = net.layout.select(["action"])
    other = replace(batch, intended=torch.zeros(4, acts.tokens, acts.size))
    policy, outcome = Pattern(1.0, "constant", state="absent"), Pattern(1.0, "film", state="outcome")
    assert _loss(net, batch, (policy,))[0] != _loss(net, other, (policy,))[0]
    assert _loss(net, batch, (outcome,))[0] == _loss(net, other, (outcome,))[0]
    assert set(_loss(net, batch, (policy,))[1]) == {"action"} and set(_loss(net, batch, (outcome,))[1]) == {"action", "state"}
    both = (replace(policy, weight=0.5), replace(outcome, weight=0.5))
    dropped, _ = _loss(net, batch, both, draws=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "_groups", lambda layout, role: [(layout, torch.arange(len(role)))])
        kept, _ = _loss(net, batch, both, draws=8)
    torch.testing.assert_close(dropped, kept, rtol=1e-5, atol=1e-6)


def test_a_batch_without_any_action_gives_a_finite_loss():
    net = tiny.model()
    total, figures = _loss(net, tiny.batch(net), (Pattern(1.0, "absent", "constant"),))
    assert torch.isfinite(total) and figures["action"] == 0.0


def test_every_sample_gets_its_own_augmentation_and_off_is_the_identity():
    images = torch.rand(1, 3, 16, 16).expand(6, -1, -1, -1).clone()
    generator = torch.Generator().manual_seed(0)
    moved = augment(images, AugmentConfig(), generator)
    assert all(not torch.equal(moved[0], other) for other in moved[1:])
    torch.testing.assert_close(augment(images, AugmentConfig(0, 0.0, 0.0), generator), images, rtol=0, atol=0)


def test_the_rate_warms_up_and_falls_to_its_end():
    config = OptimConfig(rate=1.0, warmup=10, final=0.1)
    assert rate_at(0, 100, config) == pytest.approx(0.1)
    assert rate_at(10, 100, config) == pytest.approx(1.0)
    assert rate_at(100, 100, config) == pytest.approx(0.1)


def test_a_restart_begins_again_and_leaves_what_was_before_it_alone():
    once, twice = OptimConfig(rate=1.0, warmup=10, final=0.1), OptimConfig(rate=1.0, warmup=10, final=0.1, restarts=(100,))
    first = [rate_at(step, 100, once) for step in range(100)]
    assert [rate_at(step, 300, twice) for step in range(100)] == first
    assert [rate_at(step, 200, twice) for step in range(100, 200)] == first
    assert rate_at(300, 300, twice) == pytest.approx(0.1) and rate_at(60, 80, twice) == rate_at(60, 80, once)
    for wrong in ((0,), (5, 3), (4, 4)):
        with pytest.raises(ValueError, match="restarts are steps above 0 in ascending order"):
            OptimConfig(restarts=wrong)


def test_the_average_of_constant_weights_is_those_weights():
    net = tiny.model()
    average = Average(net, 0.9)
    for step in range(5):
        average.update(net, step)
    torch.testing.assert_close(average.weights, dict(net.state_dict()))


# ----------------------------------------------------------------------------------------------- samples of several robots


def several(net, count=4):
    """A batch whose second half has one number in an action instead of two."""
    dims = torch.ones(count, 2, dtype=torch.bool)
    dims[count // 2 :, 1] = False
    return replace(tiny.batch(net, count), dims=dims)


def test_numbers_that_a_robot_does_not_have_change_no_loss_and_no_gradient():
    net = tiny.model()
    batch, span = several(net), net.layout.span("action")
    spoilt = batch.clean.clone()
    spoilt[:, span, :2] = torch.where(batch.dims[:, None], spoilt[:, span, :2], torch.nan)
    results = []
    for given in (batch, replace(batch, clean=spoilt)):
        net.zero_grad()
        total, _ = _loss(net, given)
        total.backward()
        results.append((total.detach(), [p.grad.clone() for p in net.parameters() if p.grad is not None]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert torch.isfinite(results[0][0])


def test_a_robot_with_fewer_numbers_counts_as_much_as_another():
    """The error of a token is the mean over its own numbers: predictions of 0 for targets of 1 are wrong by 1 everywhere."""
    squares = torch.ones(2, 3, 4)
    squares[1, :, 1:] = 100.0  # what stands in foreign places
    dims = torch.tensor([[True] * 4, [True, False, False, False]])
    assert objective._mean(squares, dims).tolist() == [[1.0] * 3] * 2
    assert objective._mean(squares, torch.zeros(2, 4, dtype=torch.bool)).tolist() == [[0.0] * 3] * 2


def test_all_numbers_marked_as_there_is_the_loss_of_no_marks():
    net = tiny.model()
    batch = tiny.batch(net)
    marked = replace(batch, dims=torch.ones(4, 2, dtype=torch.bool), has={"action": torch.ones(4, dtype=torch.bool)})
    torch.testing.assert_close(_loss(net, batch)[0], _loss(net, marked)[0], rtol=1e-6, atol=1e-7)


def test_the_action_loss_does_not_shrink_with_the_share_of_robots_in_the_batch():
    """The mean is over robot samples alone, and samples without actions draw patterns with video."""
    net = tiny.model()
    robots, span = tiny.batch(net, 8), net.layout.span("action")
    acts = torch.arange(8) < 2
    mixed = replace(robots, valid=robots.valid.clone(), has={"action": acts})
    mixed.valid[~acts, span] = False
    alone, few = (_loss(net, batch, (Pattern(1.0),), draws=64)[1]["action"] for batch in (_part(robots, 2), mixed))
    assert few == pytest.approx(alone, rel=0.15)


def _part(batch, count):
    seen = Observation({name: image[:count] for name, image in batch.observation.images.items()}, batch.observation.proprio[:count])
    return replace(batch, observation=seen, clean=batch.clean[:count], valid=batch.valid[:count])


def test_a_batch_without_any_robot_gives_a_finite_loss_and_gradient_of_video_alone():
    net = tiny.model()
    nobody = torch.zeros(4, dtype=torch.bool)
    batch = replace(tiny.batch(net), has={"action": nobody}, dims=torch.zeros(4, 2, dtype=torch.bool))
    batch.valid[:, net.layout.span("action")] = False
    observation = replace(batch.observation, present={"proprio": nobody})
    total, figures = _loss(net, replace(batch, observation=observation), tiny.PATTERNS, draws=4)
    total.backward()
    assert torch.isfinite(total) and figures["action"] == 0 and figures["wrist"] > 0
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    assert not net.write["action"].weight.grad.any()


def test_absent_proprioception_has_no_influence_whatever_it_holds():
    net = tiny.model()
    seen = replace(tiny.observation(3), present={"proprio": torch.tensor([True, False, False])})
    other = replace(seen, proprio=torch.stack([seen.proprio[0], seen.proprio[1] + 5, torch.full((2,), torch.nan)]))
    role, x = torch.ones(3, net.layout.tokens, dtype=torch.int8), torch.randn(3, net.layout.tokens, net.layout.size)
    level = torch.full((3, net.layout.tokens), 0.5)
    outputs = [net(x, level, role, net.layout, net.encode(given)) for given in (seen, other)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
