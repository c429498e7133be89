"""Step rules keep their one promise (a token whose levels are equal is not touched), and sampling its manners."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle import DTYPE, PATHS, SHIFTED, correlated, unchecked_shapes
from uwm.core import plans, roles
from uwm.core.streams import Layout, Stream
from uwm.sample import steps
from uwm.sample.denoise import Denoiser
from uwm.sample.loop import sample, start
from uwm.sample.randomness import Randomness

RULES = {**steps.RULES, "half": steps.ddim(0.5)}
LEVELS = st.sampled_from([0.0, 1e-6, 0.25, 0.5, 1 - 1e-6, 1.0])


EVERY = {**PATHS, **SHIFTED}
EVERY_PATH = pytest.mark.parametrize("path", EVERY.values(), ids=list(EVERY))


def bits(x):
    return x.view(torch.int64 if x.dtype == torch.float64 else torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@EVERY_PATH
@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
@settings(max_examples=15)
@given(pairs=st.lists(st.tuples(LEVELS, LEVELS), min_size=4, max_size=4), broken=st.booleans(), seed=st.integers(0, 99))
def test_a_token_with_equal_levels_is_bit_identical_whatever_its_neighbours_do(rule, path, dtype, pairs, broken, seed):
    """Two steps (the second has a carry), a denoiser that may answer NaN, and values that arithmetic would change."""
    x = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    x[0, 4], x[1, 5] = torch.inf, torch.nan
    x[0, 5] = -0.0
    pairs = torch.tensor([*pairs, (0.0, 0.0), (0.3, 0.3)], dtype=dtype)
    level_from, level_to = pairs.T[:, None].expand(2, 2, 6)
    denoise = lambda x, level: torch.full_like(x, torch.nan) if broken else 2 * x  # noqa: E731
    first, carry, randomness = rule(denoise, path, x, level_from, level_to, None, Randomness.seeded([1, 2]))
    second = rule(denoise, path, first, level_to, level_to.roll(1, 0), carry, randomness).x
    still = level_from == level_to
    assert torch.equal(bits(first)[still], bits(x)[still])
    assert torch.equal(bits(second), bits(first))
    if not broken:
        moved = ~still & torch.isfinite(x).all(-1) & (x != 0).all(-1)
        assert not bool((first == x).all(-1)[moved & (level_from > 0.1) & ((level_from - level_to).abs() > 0.1)].any())


@EVERY_PATH
@pytest.mark.parametrize("name", steps.RULES)
def test_what_is_given_comes_out_bit_for_bit_and_the_rest_is_finite(name, path):
    layout = Layout((Stream("action", "action", (-1, 0, 1), 2), Stream("camera", "video", (4,), 3)))
    plan = plans.mode(layout, "inverse", 7)
    known = torch.randn(3, layout.tokens, layout.size, generator=torch.Generator().manual_seed(2))
    x, randomness = start(path, known, plan.level[0], Randomness.seeded([0, 1, 2]))
    world = correlated(layout.tokens)
    denoise = lambda x, level: world.denoiser(path)(x.to(DTYPE), level.to(DTYPE)).to(x)  # noqa: E731
    out, _ = sample(denoise, path, x, plan.level, steps.rule(name), randomness)
    given_ = plan.role == roles.GIVEN
    assert torch.equal(out[:, given_], known[:, given_])
    assert bool(torch.isfinite(out).all()) and not torch.equal(out[:, ~given_], x[:, ~given_])


@EVERY_PATH
def test_an_ancestral_step_is_bayes_rule_for_the_less_noisy_token(path):
    """q(x_t | x_f, c): prior N(a_t c, s_t^2), seen as x_f = r x_t + noise with r = a_f / a_t, which is DDPM's posterior.

    Any share of fresh noise samples the same distribution in the limit, so only one step can tell whether it is DDPM's.
    """
    generator = torch.Generator().manual_seed(0)
    clean, x = torch.randn(2, 1, 4, 1, generator=generator, dtype=DTYPE)
    level_from, level_to = torch.tensor([[[1.0, 0.9, 0.5, 0.2]], [[0.9, 0.3, 0.4, 0.01]]], dtype=DTYPE)
    (a_f, s_f), (a_t, s_t) = ((path.alpha(level)[..., None], path.sigma(level)[..., None]) for level in (level_from, level_to))
    ratio = a_f / a_t
    precision = 1 / s_t**2 + ratio**2 / (s_f**2 - ratio**2 * s_t**2)
    mean = (a_t * clean / s_t**2 + ratio * x / (s_f**2 - ratio**2 * s_t**2)) / precision
    randomness = Randomness.seeded([7])
    fresh, _ = randomness.normal(4, 1, dtype=DTYPE)
    moved = steps.ancestral(lambda x, level: clean, path, x, level_from, level_to, None, randomness)
    assert torch.allclose(moved.x, mean + fresh / precision.sqrt(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", steps.RULES)
def test_a_sample_does_not_depend_on_the_batch_it_travels_in(name):
    path, world, seeds = PATHS["cosine"], correlated(5), [11, 12, 13]
    level = plans.staircase(5, 6, 2)

    def run(seeds):
        x, randomness = start(path, torch.zeros(len(seeds), 5, 2, dtype=DTYPE), level[0], Randomness.seeded(seeds))
        return sample(world.denoiser(path), path, x, level, steps.rule(name), randomness)[0]

    together = run(seeds)
    for index, seed in enumerate(seeds):
        assert torch.allclose(run([seed])[0], together[index], rtol=0, atol=1e-10)
    assert torch.equal(run(seeds[::-1]).flip(0), together)


@pytest.mark.parametrize("name", steps.RULES)
def test_levels_per_sample_equal_runs_of_their_own(name):
    path, world = PATHS["cosine"], correlated(4)
    first, second = plans.staircase(4, 4, 1), plans.staircase(4, 7, 0)
    level = torch.stack([first, second], dim=1)
    x = torch.randn(2, 4, 1, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    rule = steps.rule(name)
    both, _ = sample(world.denoiser(path), path, x, level, rule, Randomness.seeded([0, 1]))
    for index, own in enumerate((first, second)):
        alone = sample(world.denoiser(path), path, x[[index]], own, rule, Randomness.seeded([index]))[0]
        assert torch.allclose(both[[index]], alone, rtol=0, atol=1e-10)


def test_a_consistency_step_noises_the_clean_estimate_afresh():
    path, answer = PATHS["cosine"], torch.full((400, 3, 2), 0.5)
    denoise = lambda x, level: answer  # noqa: E731
    high, low = torch.tensor([0.9, 0.9, 0.4]).expand(400, -1), torch.tensor([0.5, 0.0, 0.4]).expand(400, -1)
    x = torch.randn(400, 3, 2, generator=torch.Generator().manual_seed(0))
    moved = steps.consistency(denoise, path, x, high, low, None, Randomness.seeded(range(400))).x
    assert torch.equal(moved[:, 1], answer[:, 1]) and torch.equal(moved[:, 2], x[:, 2])
    noise = (moved[:, 0] - path.alpha(torch.tensor(0.5)) * 0.5) / path.sigma(torch.tensor(0.5))
    assert abs(float(noise.mean())) < 0.15 and abs(float(noise.std()) - 1) < 0.1
    assert abs(float(torch.corrcoef(torch.stack([noise[:, 0], x[:, 0, 0]]))[0, 1])) < 0.2, "the old noise is gone"
    with pytest.raises(ValueError, match="pass randomness"):
        steps.consistency(denoise, path, x, high, low)


def test_noise_is_named_by_key_and_count_alone():
    state = Randomness.seeded([3, 4])
    first, later = state.normal(2, 5)
    second, _ = later.normal(2, 5)
    assert torch.equal(first, Randomness.seeded([3, 4]).normal(2, 5)[0])
    assert torch.equal(first[1], Randomness.seeded([4]).normal(2, 5)[0][0])
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])
    mixed = later.where(torch.tensor([True, False]), state)
    assert torch.equal(mixed.normal(2, 5)[0], torch.stack([second[0], first[1]]))
    many = Randomness.seeded(range(400)).normal(50)[0]
    assert abs(float(many.mean())) < 0.03 and abs(float(many.var()) - 1) < 0.04


def test_the_denoiser_counts_its_calls_and_clips():
    path = PATHS["rectified"]
    layout = Layout((Stream("action", "action", (0, 1), 1),))
    network = lambda x, level, role, layout, context: torch.full_like(x, 9.0)  # noqa: E731
    for rule, calls in ((steps.ddim(), 5), (steps.heun, 10), (steps.dpmpp_2m, 5)):
        denoise = Denoiser(network, path, "clean", layout, roles.full(1, 2), limit=3.0)
        out, _ = sample(denoise, path, torch.zeros(1, 2, 1), plans.mode(layout, "policy", 5).level, rule)
        assert denoise.calls == calls == rule.calls * 5
        assert torch.allclose(out, torch.full_like(out, 3.0))


@pytest.mark.parametrize("rule", ["ddim", "heun", "dpmpp_2m"])
def test_a_token_that_waits_on_its_way_goes_on_as_if_it_had_not(rule):
    denoise, x = lambda x, level: torch.tanh(x) * (1.2 - level[..., None]), torch.ones(1, 1, 1, dtype=DTYPE)
    straight, waiting = [1.0, 0.7, 0.4, 0.2, 0.0], [1.0, 0.7, 0.7, 0.4, 0.4, 0.4, 0.2, 0.0]
    levels = [torch.tensor(each, dtype=DTYPE)[:, None] for each in (straight, waiting)]
    assert torch.equal(*(sample(denoise, PATHS["cosine"], x, each, steps.rule(rule))[0] for each in levels))


def test_on_row_sees_every_row():
    path, level = PATHS["rectified"], plans.staircase(2, 3, 1)
    seen = []
    out, _ = sample(lambda x, level: 0 * x, path, torch.ones(1, 2, 1), level, steps.euler, on_row=lambda i, x: seen.append((i, x)))
    assert [index for index, _ in seen] == list(range(len(level)))
    assert torch.equal(seen[0][1], torch.ones(1, 2, 1)) and torch.equal(seen[-1][1], out)


@pytest.fixture
def unchecked():
    with unchecked_shapes():
        yield


@pytest.mark.usefixtures("unchecked")
def test_errors_of_sampling_say_what_was_expected():
    path, x = PATHS["cosine"], torch.zeros(2, 3, 1)
    with pytest.raises(ValueError, match=r"\(B, N\) = \(2, 3\)"):
        steps.euler(None, path, x, torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="pass randomness"):
        sample(lambda x, level: x, path, x, torch.tensor([[1.0] * 3, [0.0] * 3]), steps.ancestral)
    with pytest.raises(ValueError, match=r"\(B, N, S\)"):
        sample(lambda x, level: x, path, x[0], torch.ones(2, 3), steps.euler)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        sample(lambda x, level: x, path, x, torch.tensor([[1.1] * 3, [0.0] * 3]), steps.euler)
    with pytest.raises(ValueError, match="step rule must be one of"):
        steps.rule("rk45")
    with pytest.raises(ValueError, match="eta"):
        steps.ddim(1.5)
    with pytest.raises(ValueError, match="seeds"):
        Randomness.seeded([-1])
