"""Every mode, path and step rule against the closed form of a correlated Gaussian."""

import pytest
import torch

from oracle import DTYPE, PATHS, SHIFTED, Columns, Gaussian, affine, autoregressive, correlated, relative, unchecked_shapes
from uwm.core import plans, roles
from uwm.core.streams import Layout, Stream
from uwm.sample import steps
from uwm.sample.loop import sample, start
from uwm.sample.randomness import Randomness

LAYOUT = Layout(
    (
        Stream("action", "action", (-1, 0, 1, 2, 3), 1),
        Stream("camera", "video", (2, 4), 1, grid=(1, 2)),
        Stream("seen", "state", (-1, 0), 1, block=0),
    )
)
WORLD = correlated(LAYOUT.tokens, seed=3)
# The largest relative error at 20 rows, and the factor by which 40 rows make it smaller: 2 is first order, 4 second.
LEFT = {"ddim": (0.14, 1.8, 2.1), "euler": (0.14, 1.8, 2.1), "heun": (5e-3, 3.7, 4.4), "dpmpp_2m": (0.02, 2.2, 5.0)}
EVERY_PATH = pytest.mark.parametrize("path", PATHS.values(), ids=list(PATHS))
EVERY_RULE = pytest.mark.parametrize("rule", LEFT)


@pytest.fixture(autouse=True)
def fast():
    """These runs make tens of thousands of calls; `test_sample_steps` checks the shapes of the same ones."""
    with unchecked_shapes():
        yield


def plan_of(mode, rows):
    """The mode's plan, with the observation's tokens given."""
    return plans.together(LAYOUT, {**plans.MODES[mode], "state": plans.GIVEN}, rows)


def errors(plan, path, rule, world=WORLD):
    """Relative errors of (dependence on the known tokens, constant part, covariance) of what the plan samples. Exact."""
    known = (plan.role == roles.GIVEN) & (plan.level[0] == 0)
    falling = plan.role == roles.ACTIVE
    matrix, shift = affine(world.denoiser(path, plan.role), path, plan.level, steps.rule(rule))
    gain, constant, covariance = world.conditional(falling, known)
    noise = matrix[falling][:, ~known & (plan.role != roles.ABSENT)]
    return (
        relative(matrix[falling][:, known], gain),
        relative(shift[falling], constant),
        relative(noise @ noise.T, covariance),
    )


@EVERY_RULE
@EVERY_PATH
@pytest.mark.parametrize("mode", plans.MODES)
def test_a_mode_samples_its_conditional_and_the_error_falls_at_the_order_of_the_rule(mode, path, rule):
    coarse, fine = (errors(plan_of(mode, rows), path, rule) for rows in (20, 40))
    limit, least, most = LEFT[rule]
    assert max(coarse) < limit
    assert least < max(coarse) / max(fine) < most


@pytest.mark.parametrize("path", SHIFTED.values(), ids=list(SHIFTED))
@pytest.mark.parametrize("mode", plans.MODES)
def test_a_path_with_more_or_less_noise_samples_the_same_conditional(mode, path):
    coarse, fine = (errors(plan_of(mode, rows), path, "ddim") for rows in (100, 200))
    assert max(fine) < 0.1
    assert 1.7 < max(coarse) / max(fine) < 2.2


@EVERY_PATH
@pytest.mark.parametrize("rule", ["ddim", "dpmpp_2m"])
def test_rules_that_keep_the_noise_have_the_mean_right_at_any_number_of_rows(path, rule):
    for rows in (1, 3, 10):
        dependence, constant, _ = errors(plan_of("joint", rows), path, rule)
        assert max(dependence, constant) < 1e-12


@EVERY_PATH
@pytest.mark.parametrize("rule", ["ddim", "heun"])
@pytest.mark.parametrize("lag", [1, 4, 16], ids=["asynchronous", "pyramid", "one-by-one"])
def test_staircases_sample_the_joint_distribution(lag, path, rule):
    """Frames -1, 0, ... fall one after another while the observation (the last two tokens) is given."""

    def staircase(rows, lag):
        unit = plans.staircase(5, rows, lag)
        frame = torch.tensor([0, 1, 2, 3, 4, 2, 2, 4, 4])
        level = torch.nn.functional.pad(plans.spread(unit, frame), (0, 2))
        return plans.Plan(level, torch.tensor([roles.ACTIVE] * 9 + [roles.GIVEN] * 2))

    coarse, fine = (max(errors(staircase(16 * k, lag * k), path, rule)) for k in (1, 2))
    limit, least, _ = LEFT[rule]
    assert fine < coarse < 2.5 * limit
    assert coarse / fine > min(least, 2.5)


@EVERY_PATH
def test_ancestral_sampling_has_the_exact_covariance_in_the_limit(path):
    """Its fresh noise is a basis too (`Columns`), so this is exact: no sampling error hides in the tolerance."""
    error = []
    for rows in (16, 32):
        plan = plan_of("joint", rows)
        known, falling = plan.role == roles.GIVEN, plan.role == roles.ACTIVE
        size = LAYOUT.tokens * (rows + 1) + 1
        x, randomness = Columns.fresh().normal(LAYOUT.tokens, size)
        out, _ = sample(WORLD.denoiser(path, plan.role), path, x, plan.level, steps.ancestral, randomness)
        matrix = (out - out[..., -1:])[0, falling]
        gain, constant, covariance = WORLD.conditional(falling, known)
        at_known = torch.zeros(size, dtype=torch.bool)
        at_known[: LAYOUT.tokens] = known
        assert relative(matrix[:, at_known], gain) < 1e-12
        assert relative(out[0, falling, -1], constant) < 1e-12
        error.append(relative(matrix[:, ~at_known] @ matrix[:, ~at_known].T, covariance))
    assert error[0] < 0.25
    assert 1.7 < error[0] / error[1] < 2.3


@EVERY_PATH
def test_ancestral_sampling_from_a_real_generator_agrees_within_its_sampling_error(path):
    """10,000 copies: the covariance of 8 tokens is then known to about 2 %; 5 % more are left to 80 rows."""
    plan, copies = plan_of("joint", 80), 10_000
    known, falling = plan.role == roles.GIVEN, plan.role == roles.ACTIVE
    value = WORLD.mean + 0.5
    x, randomness = start(path, value[None, :, None].expand(1, -1, copies), plan.level[0], Randomness.seeded([5]))
    out, _ = sample(WORLD.denoiser(path, plan.role), path, x, plan.level, steps.ancestral, randomness)
    gain, constant, covariance = WORLD.conditional(falling, known)
    assert torch.equal(out[0, known], value[known, None].expand(-1, copies))
    assert relative(torch.cov(out[0, falling]), covariance) < 0.08
    standard_error = (covariance.diagonal() / copies).sqrt()
    assert bool(((out[0, falling].mean(-1) - constant - gain @ value[known]).abs() < 4 * standard_error).all())


@EVERY_PATH
@pytest.mark.parametrize("rule", ["ddim", "euler", "heun"])
def test_inversion_then_sampling_returns_the_start(path, rule):
    """A plan read upwards takes clean tokens to their noise; the same plan brings them back, up to the rule's own error."""
    world = Gaussian(torch.zeros(4, dtype=DTYPE), autoregressive(4, 0.5))
    clean = torch.tensor([[1.0, -0.5, 2.0, 0.1]], dtype=DTYPE)[..., None]
    layout = Layout((Stream("action", "action", (0, 1, 2, 3), 1),))
    back = []
    for rows in (50, 100):
        plan = plans.mode(layout, "policy", rows)
        noise, _ = sample(world.denoiser(path), path, clean, plan.reversed().level, steps.rule(rule))
        returned, _ = sample(world.denoiser(path), path, noise, plan.level, steps.rule(rule))
        assert relative(noise, clean) > 0.1, "the noise is not the clean value"
        back.append(relative(returned, clean))
    assert back[0] < 0.06
    assert back[0] / back[1] > 1.8


def test_inverted_data_is_standard_noise():
    """Upwards, data with the world's covariance becomes white noise: exact, by columns."""
    for path in PATHS.values():
        level = plans.staircase(1, 100, 0).expand(-1, LAYOUT.tokens).flip(0)
        matrix, _ = affine(WORLD.denoiser(path), path, level, steps.heun)
        assert relative(matrix @ WORLD.covariance @ matrix.T, torch.eye(LAYOUT.tokens, dtype=DTYPE)) < 0.02


def test_absent_tokens_of_the_oracle_are_marginalised_and_level_zero_is_exact():
    """The oracle itself: what it says without tokens 3 and 7 is what the smaller Gaussian says."""
    path, keep = PATHS["cosine"], torch.tensor([0, 1, 2, 4, 5, 6, 8, 9, 10])
    role = roles.full(1, 11)[0]
    role[[3, 7]] = roles.ABSENT
    level = torch.linspace(0, 1, 11, dtype=DTYPE)[None].expand(2, -1)
    x = torch.randn(2, 11, 3, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    x[:, [3, 7]] = torch.nan
    smaller = Gaussian(WORLD.mean[keep], WORLD.covariance[keep][:, keep])
    whole, part = WORLD.denoiser(path, role)(x, level), smaller.denoiser(path)(x[:, keep], level[:, keep])
    assert torch.allclose(whole[:, keep], part, atol=1e-12)
    assert torch.equal(whole[:, 0], x[:, 0])
    nothing = torch.ones(2, 11, dtype=DTYPE)
    assert torch.allclose(WORLD.denoiser(path, role)(x, nothing), WORLD.mean[None, :, None].expand_as(x), atol=1e-12)
