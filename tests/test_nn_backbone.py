"""The network: levels per token, tokens that are not there, prefixes that are kept. Weights are random, the heads included.

In float64 two routes agree to 1e-10; in float32, which adds in another order, to 1e-5.
"""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from oracle import unchecked_shapes
from uwm.core import roles
from uwm.core.levels import per_token
from uwm.core.streams import Layout
from uwm.nn.backbone import Backbone, BackboneConfig
from uwm.nn.model import UnifiedModel
from uwm.nn.robot_model import ModelConfig, Observation

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
EVERY_DTYPE = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])


def randomised(module, seed=0):
    """Every weight and bias drawn anew: zero-initialised heads and modulations would make every test here pass."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            fan = weight.shape[1:].numel() if weight.ndim > 1 else 4
            weight.copy_(torch.randn(weight.shape, generator=generator) / fan**0.5)
    return module.eval()


def case(dtype=torch.float64, batch=3, seed=0):
    """(model, x, level, role, observation): a batch of the whole layout in which everything is there."""
    model = randomised(tiny.model().to(dtype))
    generator = torch.Generator().manual_seed(seed)
    layout = model.layout
    x = torch.randn(batch, layout.tokens, layout.size, generator=generator, dtype=dtype) * layout.filled
    level = torch.rand(batch, layout.tokens, generator=generator, dtype=dtype)
    return model, x, level, roles.full(batch, layout.tokens), tiny.observation(batch, seed, model.config)


def cast(observation, dtype):
    images = {name: image.to(dtype) for name, image in observation.images.items()}
    return dataclasses.replace(observation, images=images, proprio=observation.proprio.to(dtype))


def run(model, x, level, role, observation, layout=None):
    prefix = model.encode(cast(observation, x.dtype))
    return model(x, level, role, layout or model.layout, prefix)


def close(first, second, dtype):
    return torch.allclose(first, second, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def chosen(observation, index):
    """Some samples of an observation."""
    images = {name: image[index] for name, image in observation.images.items()}
    present = {name: there[index] for name, there in observation.present.items()}
    return Observation(images, observation.proprio[index], present)


def hidden(layout, *extra):
    """A role row in which both cameras' video and the named tokens are absent."""
    role = roles.full(1, layout.tokens)
    role[:, layout.mask(*layout.of_kind("video"))] = roles.ABSENT
    role[:, list(extra)] = roles.ABSENT
    return role


@EVERY_DTYPE
@pytest.mark.parametrize("content", [0.0, 1e4, torch.nan, torch.inf], ids=str)
def test_what_absent_tokens_hold_changes_no_output_and_no_gradient(dtype, content):
    model, x, level, role, seen = case(dtype)
    role = hidden(model.layout, 0, 5).expand(len(x), -1)
    there = role[0] != roles.ABSENT
    other, other_level = x.clone(), level.clone()
    other[:, ~there], other_level[:, ~there] = content, 0.123 if content == 1e4 else content

    results = []
    for values, at in ((x, level), (other, other_level)):
        values = values.clone().requires_grad_()
        model.zero_grad()
        out = run(model, values, at, role, seen)[:, there]
        out.square().mean().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((out, values.grad, gradients))
    (out, at_x, gradients), (other_out, other_at_x, other_gradients) = results
    assert close(out, other_out, dtype)
    assert close(at_x[:, there], other_at_x[:, there], dtype)
    assert not bool(at_x[:, ~there].any()) and not bool(other_at_x[:, ~there].any())
    assert gradients.keys() == other_gradients.keys()
    for name, gradient in gradients.items():
        assert close(gradient, other_gradients[name], dtype), name


@torch.no_grad()
def test_the_same_change_in_a_token_that_is_there_does_matter():
    """The control of the test above: without it a network that ignores everything would pass."""
    model, x, level, role, seen = case()
    out = run(model, x, level, role, seen)
    changed = x.clone()
    changed[:, 5] += 1.0
    others = torch.arange(x.shape[1]) != 5
    assert float((run(model, changed, level, role, seen) - out)[:, others].abs().max()) > 1e-3
    level = level.clone()
    level[:, 5] = 1 - level[:, 5]
    assert float((run(model, x, level, role, seen) - out)[:, others].abs().max()) > 1e-3


@EVERY_DTYPE
@pytest.mark.parametrize("kept", [("action",), ("agentview", "wrist"), ("action", "wrist"), ("agentview",)], ids=str)
def test_deleting_streams_equals_marking_them_absent(dtype, kept):
    model, x, level, _, seen = case(dtype)
    whole, part = model.layout, model.layout.select(kept)
    role = torch.where(whole.mask(*kept), roles.ACTIVE, roles.ABSENT).to(torch.int8).expand(len(x), -1)
    index = part.index_in(whole)
    masked = run(model, x, level, role, seen)[:, index, : part.size]
    deleted = run(model, x[:, index, : part.size], level[:, index], role[:, index], seen, part)
    assert float(deleted.detach().abs().max()) > 0.01 and close(masked, deleted, dtype)


@settings(max_examples=15)
@given(data=st.data())
def test_deleting_any_tokens_equals_marking_them_absent(data):
    """In the backbone: any subset, per sample, blocks and all."""
    net = randomised(Backbone(BackboneConfig(width=16, depth=2, heads=2, registers=2, waist=8)).double())
    count = 6
    keep = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=count, unique=True).map(sorted))
    block = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)))
    # A register belongs to the last block that is there; if that block is deleted the registers see less.
    block[keep[-1]] = 2
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    tokens = torch.randn(1, count, 16, generator=generator).double()
    level, place = torch.rand(1, count, generator=generator).double(), torch.randn(count, 3, generator=generator)
    seen = torch.zeros(1, count, dtype=torch.bool)
    seen[:, keep] = True
    masked, _ = net(tokens, level, place, block, seen)
    deleted, _ = net(tokens[:, keep], level[:, keep], place[keep], block[keep], seen[:, keep])
    assert torch.allclose(masked[:, keep], deleted, rtol=0, atol=1e-10)


def test_a_row_in_which_everything_is_absent_stays_finite_and_harms_nobody():
    model, x, level, role, seen = case()
    role = role.clone()
    role[1] = roles.ABSENT
    out = run(model, x, level, role, seen)
    assert bool(torch.isfinite(out).all())
    alone = run(model, x[:1], level[:1], role[:1], chosen(seen, [0]))
    assert torch.allclose(out[:1], alone, rtol=0, atol=1e-10)


@EVERY_DTYPE
def test_a_constant_level_per_token_equals_one_level_per_sample_and_per_run(dtype):
    """`per_token` is the only door: a scalar, (B,) and (B, N) that say the same give the same numbers."""
    model, x, _, role, seen = case(dtype)
    batch, tokens = x.shape[:2]
    scalar = run(model, x, per_token(torch.tensor(0.3, dtype=dtype), batch, tokens), role, seen)
    sample = run(model, x, per_token(torch.full((batch,), 0.3, dtype=dtype), batch, tokens), role, seen)
    token = run(model, x, torch.full((batch, tokens), 0.3, dtype=dtype), role, seen)
    assert close(scalar, token, dtype) and close(sample, token, dtype)
    assert not close(token, run(model, x, torch.full((batch, tokens), 0.4, dtype=dtype), role, seen), dtype)


@pytest.mark.parametrize("registers", [0, 3])
def test_keeping_a_prefix_equals_one_forward_over_context_and_tokens(registers):
    config = BackboneConfig(width=16, depth=3, heads=2, registers=registers, waist=8)
    net = randomised(Backbone(config).double())
    generator = torch.Generator().manual_seed(1)
    context, tokens = (torch.randn(2, n, 16, generator=generator).double() for n in (5, 4))
    level = torch.cat([torch.zeros(2, 5), torch.rand(2, 4, generator=generator)], dim=1).double()
    place = torch.randn(9, 3, generator=generator)
    block = torch.tensor([0] * 5 + [1, 1, 2, 2])
    seen = torch.ones(2, 9, dtype=torch.bool)
    seen[1, 3], seen[0, 6] = False, False
    together, _ = net(torch.cat([context, tokens], dim=1), level, place, block, seen)
    _, prefix = net(context, level[:, :5], place[:5], block[:5], seen[:, :5], with_registers=False)
    apart, _ = net(tokens, level[:, 5:], place[5:], block[5:], seen[:, 5:], prefix)
    assert torch.allclose(apart[seen[:, 5:]], together[:, 5:][seen[:, 5:]], rtol=0, atol=1e-10)
    changed, _ = net(torch.cat([context.flip(2), tokens], dim=1), level, place, block, seen)
    assert not torch.allclose(changed[:, 5:], together[:, 5:], rtol=0, atol=1e-3)


def test_a_token_sees_blocks_up_to_its_own_and_no_later_one():
    net = randomised(Backbone(BackboneConfig(width=16, depth=2, heads=2, registers=0, waist=8)).double())
    tokens = torch.randn(1, 6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    level, place = torch.full((1, 6), 0.5).double(), torch.arange(18.0).reshape(6, 3)
    block, seen = torch.tensor([0, 0, 1, 1, 2, 2]), torch.ones(1, 6, dtype=torch.bool)
    out, _ = net(tokens, level, place, block, seen)
    for index in range(6):
        changed = tokens.clone()
        changed[:, index] += torch.linspace(-1, 1, 16)
        moved = (net(changed, level, place, block, seen)[0] - out)[0].abs().amax(dim=-1) > 1e-9
        assert torch.equal(moved, block >= block[index])


@pytest.mark.parametrize("route", ["encode", "forward"])
def test_batched_equals_single(route):
    model, x, level, role, seen = case(batch=4)
    role = role.clone()
    role[1] = hidden(model.layout)[0]
    seen = dataclasses.replace(seen, present={"wrist": torch.tensor([True, True, False, True])})
    together = run(model, x, level, role, seen)
    prefix = model.encode(cast(seen, x.dtype))
    for index in range(4):
        one = [index]
        own = chosen(cast(seen, x.dtype), one)
        kept = model.encode(own) if route == "encode" else prefix.at(torch.tensor(one))
        single = model(x[one], level[one], role[one], model.layout, kept)
        there = role[index] != roles.ABSENT
        assert torch.allclose(single[0, there], together[index, there], rtol=0, atol=1e-10)


def test_the_order_of_tokens_means_nothing_because_their_tags_say_all():
    model, x, level, role, seen = case()
    turned = Layout(model.layout.streams[::-1])
    index = turned.index_in(model.layout)
    straight = run(model, x, level, role, seen)
    other = run(model, x[:, index], level[:, index], role[:, index], seen, turned)
    assert torch.allclose(other, straight[:, index], rtol=0, atol=1e-10)


@pytest.mark.parametrize("pixels", [0.0, 0.7, torch.nan], ids=str)
def test_a_missing_camera_equals_an_absent_one_whatever_its_pixels(pixels):
    """Values and gradients; left out altogether, or marked missing in some samples."""
    model, x, level, role, seen = case()
    without = dataclasses.replace(seen, images={"agentview": seen.images["agentview"]})
    broken = {**seen.images, "wrist": torch.full_like(seen.images["wrist"], pixels)}
    marked = Observation(broken, seen.proprio, {"wrist": torch.zeros(3, dtype=torch.bool)})
    results = []
    for observation in (without, marked):
        model.zero_grad()
        out = run(model, x, level, role, observation)
        out.square().mean().backward()
        results.append((out, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (out, gradients), (other, other_gradients) = results
    assert torch.allclose(out, other, rtol=0, atol=1e-10)
    for name in gradients:
        assert torch.allclose(gradients[name], other_gradients[name], rtol=0, atol=1e-10), name
    assert not torch.allclose(out, run(model, x, level, role, seen), rtol=0, atol=1e-4)

    some = Observation({**seen.images, "wrist": seen.images["wrist"].clone()}, seen.proprio, {"wrist": torch.tensor([True, False, True])})
    some.images["wrist"][1] = pixels
    mixed = run(model, x, level, role, some)
    assert torch.allclose(mixed[1], out[1], rtol=0, atol=1e-10)
    assert torch.allclose(mixed[[0, 2]], run(model, x, level, role, seen)[[0, 2]], rtol=0, atol=1e-10)


def test_modulation_is_a_small_share_of_the_weights():
    share = UnifiedModel(ModelConfig(("agentview", "wrist"), 11, 7)).modulation_share
    assert 0.02 < share < 0.30


def test_a_global_condition_vector_is_one_switch_away_and_moves_every_token():
    net = randomised(Backbone(BackboneConfig(width=16, depth=2, heads=2, waist=8, condition=5)))
    tokens, level, place = torch.randn(2, 3, 16), torch.full((2, 3), 0.5), torch.zeros(3, 3)
    block, seen = torch.zeros(3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool)
    first, second = (net(tokens, level, place, block, seen, condition=v * torch.ones(2, 5))[0] for v in (0.0, 1.0))
    assert bool(((first - second).abs().amax(dim=-1) > 1e-3).all())
    with pytest.raises(ValueError, match="if and only if"):
        net(tokens, level, place, block, seen)


def test_the_whole_bfloat16_autocast_route_is_near_the_exact_one():
    model, x, level, role, seen = case(torch.float32)
    exact = run(model, x, level, role, seen)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = run(model, x, level, role, seen)
    assert rounded.dtype == torch.float32
    assert float((rounded - exact).norm() / exact.norm()) < 0.05


def test_wrong_shapes_and_sizes_are_refused_in_words():
    model, x, level, role, seen = case(torch.float32)
    with unchecked_shapes():
        prefix = model.encode(seen)
        with pytest.raises(ValueError, match=r"tokens must be \(B, \d+, \d+\), got"):
            model(x[:, :-1], level, role, model.layout, prefix)
        with pytest.raises(ValueError, match=r"proprio must be \(B, 2\), got \(3, 1\)"):
            model.encode(dataclasses.replace(seen, proprio=seen.proprio[:, :1]))
        with pytest.raises(ValueError, match=r"images must be \(B, \(3, 32, 32\)\) in \[0, 1\], got \(3, 3, 32, 30\)"):
            model.encode(dataclasses.replace(seen, images={"wrist": seen.images["wrist"][..., :30]}))
    with pytest.raises(ValueError, match="heads times an even number, got width 30, heads 4"):
        BackboneConfig(width=30, heads=4)
