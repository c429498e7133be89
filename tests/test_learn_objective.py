"""The objective: means per stream, absent tokens, shared observations."""

from dataclasses import replace

import pytest
import torch

import tiny
from uwm.core.patterns import Pattern
from uwm.learn.augment import AugmentConfig, augment
from uwm.learn.objective import ObjectiveConfig, loss
from uwm.learn.optim import Average, OptimConfig, rate_at


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
        import uwm.learn.objective as objective

        patch.setattr(objective, "_groups", lambda layout, role: [(layout, torch.arange(len(role)))])
        kept, _ = _loss(net, batch, pattern)
    torch.testing.assert_close(dropped, kept, rtol=1e-5, atol=1e-6)
    assert set(figures) == {"action"}


def test_actions_to_imitate_are_the_intended_ones_and_dynamics_use_the_executed_ones():
    net = tiny.model()
    batch = tiny.batch(net)
    acts = net.layout.select(["action"])
    other = replace(batch, intended=torch.zeros(4, acts.tokens, acts.size))
    policy, dynamics = (Pattern(1.0, "constant", "absent"),), (Pattern(1.0, "constant", "given"),)
    assert _loss(net, batch, policy)[0] != _loss(net, other, policy)[0]
    assert _loss(net, batch, dynamics)[0] == _loss(net, other, dynamics)[0]


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


def test_the_average_of_constant_weights_is_those_weights():
    net = tiny.model()
    average = Average(net, 0.9)
    for step in range(5):
        average.update(net, step)
    torch.testing.assert_close(average.weights, dict(net.state_dict()))
