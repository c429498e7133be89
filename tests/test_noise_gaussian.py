"""Gaussian paths: exact ends, predictions that translate into each other, slopes, and the schedule of the papers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oracle import DTYPE, PATHS, SHIFTED, unchecked_shapes
from uwm.core.levels import from_index
from uwm.noise import gaussian
from uwm.noise.gaussian import corrupt, log_ratio, target, to_clean, to_noise

EVERY = {**PATHS, **SHIFTED}
EVERY_PATH = pytest.mark.parametrize("path", EVERY.values(), ids=list(EVERY))
# Square root of the cumulated alpha of the squared-cosine table with 100 entries (offset 0.008, steps capped at 0.999).
TABLE = {0: 0.9997, 7: 0.9907, 9: 0.9859, 15: 0.9660, 24: 0.9203, 33: 0.8566, 49: 0.7027, 50: 0.6916, 65: 0.5054,
         66: 0.4919, 74: 0.3798, 90: 0.1398, 95: 0.0623, 99: 0.0005}  # fmt: skip


def tokens(seed=0, dtype=DTYPE, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(2, 2, 4, 3, generator=generator, dtype=dtype)).unbind(0)


@EVERY_PATH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_ends_are_exact_to_the_last_bit(path, dtype):
    clean, noise = tokens(dtype=dtype, scale=100.0)
    level = torch.tensor([[0.0, 1.0, 0.0, 1.0]], dtype=dtype).expand(2, 4)
    x = corrupt(path, clean, noise, level)
    assert torch.equal(x[:, [0, 2]], clean[:, [0, 2]])
    assert torch.equal(x[:, [1, 3]], noise[:, [1, 3]])
    assert path.alpha(level[0]).tolist() == [1, 0, 1, 0] and path.sigma(level[0]).tolist() == [0, 1, 0, 1]


@EVERY_PATH
def test_the_signal_falls_and_the_noise_rises_all_the_way(path):
    level = torch.linspace(0, 1, 101, dtype=DTYPE)
    alpha, sigma, ratio = path.alpha(level), path.sigma(level), log_ratio(path, level)
    assert bool((alpha.diff() < 0).all()) and bool((sigma.diff() > 0).all()) and bool((ratio.diff() < 0).all())
    assert float(ratio[0]) == math.inf and float(ratio[-1]) == -math.inf
    assert float(ratio[50]) == pytest.approx(-math.log(path.shift), abs=1e-12)


def test_cosine_preserves_variance_and_rectified_is_straight():
    level = torch.linspace(0, 1, 101, dtype=DTYPE)
    cosine, straight = PATHS["cosine"], PATHS["rectified"]
    assert torch.allclose(cosine.alpha(level) ** 2 + cosine.sigma(level) ** 2, torch.ones_like(level), atol=1e-15)
    assert torch.allclose(straight.alpha(level) + straight.sigma(level), torch.ones_like(level), atol=1e-15)


@EVERY_PATH
def test_slopes_are_the_derivatives(path):
    level = torch.linspace(0, 1, 41, dtype=DTYPE, requires_grad=True)
    for value, slope in ((path.alpha, path.alpha_slope), (path.sigma, path.sigma_slope)):
        (derivative,) = torch.autograd.grad(value(level).sum(), level)
        assert torch.allclose(slope(level), derivative, atol=1e-13)


@EVERY_PATH
@pytest.mark.parametrize("prediction", gaussian.PREDICTIONS)
@given(level=st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4), seed=st.integers(0, 99))
def test_a_perfect_prediction_gives_back_the_clean_value_and_the_noise(path, prediction, level, seed):
    """A noise prediction is tested up to level 0.99: at 1 it says nothing of the clean value."""
    clean, noise = tokens(seed)
    level = torch.tensor([level], dtype=DTYPE).expand(2, 4).clamp(max=0.99 if prediction == "noise" else 1.0)
    x = corrupt(path, clean, noise, level)
    predicted = target(path, prediction, clean, noise, level)
    assert torch.allclose(to_clean(path, prediction, predicted, x, level), clean, atol=1e-11)
    readable = path.sigma(level)[..., None] > 1e-3
    found = to_noise(path, x, clean, level)
    assert torch.allclose(torch.where(readable, found, noise), noise, atol=1e-10)
    assert not bool(found[(level == 0)].any())


@EVERY_PATH
def test_the_velocity_is_the_slope_of_the_token_in_level(path):
    """dx / dlevel up to a positive factor of the level alone: pi / 2 for the cosine path, 1 for the straight one."""
    clean, noise = tokens(3)
    level = torch.tensor([[0.1, 0.4, 0.7, 0.95]], dtype=DTYPE).repeat(2, 1).requires_grad_()
    x = corrupt(path, clean, noise, level)
    slope = torch.stack([torch.autograd.grad(x[..., i].sum(), level, retain_graph=True)[0] for i in range(3)], dim=-1)
    velocity = target(path, "velocity", clean, noise, level)
    scale = slope[..., :1] / velocity[..., :1]
    assert torch.allclose(slope, scale * velocity, atol=1e-12) and bool((scale > 0).all())
    if path.shift == 1:
        assert torch.allclose(scale, torch.full_like(scale, math.pi / 2 if path.name == "cosine" else 1.0))
    alpha, sigma = path.alpha(level)[..., None], path.sigma(level)[..., None]
    usual = alpha * noise - sigma * clean if path.name == "cosine" else noise - clean
    assert torch.allclose(velocity, usual, atol=1e-12)


@EVERY_PATH
def test_a_noise_prediction_at_level_one_stays_finite(path):
    clean, noise = tokens()
    level = torch.ones(2, 4, dtype=DTYPE)
    assert bool(torch.isfinite(to_clean(path, "noise", noise + 0.1, noise, level)).all())
    assert torch.allclose(to_clean(path, "noise", noise, noise, level), torch.zeros_like(clean), atol=1e-12)


def table_share(index):
    """Our cosine at the level that the papers' table means with this entry."""
    return float(PATHS["cosine"].alpha(from_index(torch.tensor(index), 100)))


def test_cosine_is_the_papers_table_up_to_its_offset():
    """Without the offset of 0.008 the signal share is up to 0.0044 larger, most in the middle."""
    difference = [table_share(index) - share for index, share in TABLE.items()]
    assert max(difference) == pytest.approx(0.0044, abs=3e-4)
    assert min(difference) == pytest.approx(-0.0005, abs=1e-4), "only the last entry, which the cap of 0.999 lifts off 0"
    assert table_share(99) == 0.0


def test_with_the_offset_put_back_the_table_is_met_to_its_last_digit():
    """cos(pi/2 (s + o) / (1 + o)) / cos(pi/2 o / (1 + o)): so our level is the table's, moved by its offset o."""
    moved = lambda level: (level + 0.008) / 1.008  # noqa: E731
    cosine = PATHS["cosine"]
    for index, share in TABLE.items():
        level = from_index(torch.tensor(index, dtype=torch.int64), 100).to(DTYPE)
        ours = cosine.alpha(moved(level)) / cosine.alpha(moved(torch.zeros((), dtype=DTYPE)))
        if index < 99:  # the cap changes the last entry only
            assert float(ours) == pytest.approx(share, abs=6e-5)


@pytest.mark.parametrize("shift", [0.0, -1.0, math.nan])
def test_a_shift_that_is_not_positive_is_refused(shift):
    with pytest.raises(ValueError, match="the noise shift must be > 0"):
        gaussian.path("cosine", shift)


def test_unknown_names_are_refused_with_the_names_there_are():
    clean, noise = tokens()
    level = torch.ones(2, 4, dtype=DTYPE)
    with pytest.raises(ValueError, match=r"\['cosine', 'rectified'\], got 'linear'"):
        gaussian.path("linear")
    with unchecked_shapes():
        with pytest.raises(ValueError, match=r"prediction must be one of .*velocity"):
            target(PATHS["cosine"], "score", clean, noise, level)
        with pytest.raises(ValueError, match=r"prediction must be one of .*velocity"):
            to_clean(PATHS["cosine"], "score", clean, noise, level)
