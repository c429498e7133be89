"""Codecs: arrays to tokens and back, normalisation that survives constant dimensions, and the autoencoder's shapes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oracle import unchecked_shapes
from uwm.nn.autoencoder import Autoencoder, AutoencoderConfig, from_tokens, merged, to_tokens
from uwm.nn.codecs import NormaliseConfig, Normaliser, VideoCodec, frames_to_unit, unit_to_frames
from uwm.nn.encoders import ImageEncoder
from uwm_data.statistics import summarise


def fitted(values, constant=None):
    """A normaliser fitted to rows of values (n, P), with statistics as a store gives them: JSON-able lists."""
    values = torch.as_tensor(values, dtype=torch.float64)
    std = values.std(dim=0, correction=0)
    statistics = {"mean": values.mean(dim=0).tolist(), "std": std.tolist(), "constant": (std == 0).tolist()}
    normaliser = Normaliser(values.shape[1])
    normaliser.fit(statistics if constant is None else {**statistics, "constant": constant})
    return normaliser


@given(seed=st.integers(0, 999), size=st.integers(1, 5), spread=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_restore_undoes_normalise(seed, size, spread, shift):
    values = shift + spread * torch.randn(50, size, generator=torch.Generator().manual_seed(seed))
    normaliser = fitted(values)
    back = normaliser.restore(normaliser.normalise(values))
    assert torch.allclose(back, values, rtol=1e-5, atol=1e-5 * (spread + abs(shift)))


def test_normalised_values_have_mean_zero_and_spread_one():
    values = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 0.5]) + 7
    normalised = fitted(values).normalise(values)
    assert torch.allclose(normalised.mean(dim=0), torch.zeros(3), atol=1e-4)
    assert torch.allclose(normalised.std(dim=0, correction=0), torch.ones(3), atol=1e-4)


def test_a_constant_dimension_becomes_exactly_zero_and_comes_back():
    values = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    values[:, 1] = 0.1
    normaliser = fitted(values, [False, True, False])
    normalised = normaliser.normalise(values)
    assert not bool(normalised[:, 1].any()) and bool(torch.isfinite(normalised).all())
    assert torch.equal(normaliser.restore(normalised)[:, 1], values[:, 1])
    # A sensor that then moves after all is seen, in its own units, and not as a division by nothing.
    assert float(normaliser.normalise(torch.tensor([0.0, 0.6, 0.0]))[1]) == pytest.approx(0.5)


def test_all_dimensions_constant_is_no_division_by_zero():
    normaliser = fitted(torch.tensor([[2.0, -1.0]] * 4))
    assert normaliser.normalise(torch.tensor([[2.0, -1.0]])).tolist() == [[0.0, 0.0]]


def test_the_noise_of_a_dimension_that_hardly_moves_is_not_blown_up():
    """1e-6 of sensor noise beside a spread of 1: divided by 0.05, not by 1e-6."""
    values = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1e-6])
    normaliser = fitted(values)
    assert float(normaliser.scale[1] / normaliser.scale[0]) == pytest.approx(0.05, rel=1e-3)
    assert float(normaliser.normalise(values)[:, 1].abs().max()) < 1e-3


def test_statistics_of_another_robot_are_refused():
    with pytest.raises(ValueError, match="statistics have 2 dimensions, the stream has 3"):
        Normaliser(3).fit({"mean": [0.0, 0.0], "std": [1.0, 1.0], "constant": [False, False]})


# ------------------------------------------------------------------------------------------------------- the other kinds

KINDS = ("mean-std", "min-max", "quantile")
# What robots send: free dimensions, a constant, one far from zero that hardly moves, a gripper that moved once, wild ones.
COLUMNS = {
    "free": lambda random: random.normal(size=2000),
    "constant": lambda random: np.full(2000, 0.1),
    "tiny": lambda random: 1000 + 0.01 * random.uniform(size=2000),
    "gripper": lambda random: np.where(np.arange(2000) < 5, 1.0, -1.0),
    "wild": lambda random: random.standard_cauchy(2000),
    "minute": lambda random: 1e-9 * random.normal(size=2000),
    "nothing": lambda random: 1e-30 * random.normal(size=2000),
}


def fitted_to(columns, kind, seed=0):
    random = np.random.default_rng(seed)
    values = np.stack([COLUMNS[name](random) for name in columns], axis=1).astype("f4")
    normaliser = Normaliser(len(columns), kind=kind)
    normaliser.fit(summarise([values]))
    return normaliser, torch.from_numpy(values)


@given(
    kind=st.sampled_from(KINDS),
    columns=st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=5),
    outside=st.lists(st.floats(-1e6, 1e6, width=32), min_size=5, max_size=5),
)
def test_every_normaliser_is_undone_exactly_inside_and_outside_the_range_of_the_data(kind, columns, outside):
    normaliser, values = fitted_to(columns, kind)
    values = torch.cat([values[::50], torch.tensor(outside)[: len(columns)].expand(1, -1)])
    normalised = normaliser.normalise(values)
    assert bool(torch.isfinite(normalised).all())
    rounding = 4 * 2.0**-24 * (values.abs() + normaliser.mean.abs())
    assert bool(((normaliser.restore(normalised) - values).abs() <= rounding).all())


@given(kind=st.sampled_from(KINDS), columns=st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=5))
def test_no_ordinary_value_explodes_under_any_normaliser(kind, columns):
    """Near-zero ranges are floored: of all but the wild dimension, data stays within a few units."""
    normaliser, values = fitted_to(columns, kind)
    tame = torch.tensor([name not in ("wild", "gripper") for name in columns])
    assert float(normaliser.normalise(values)[:, tame].abs().max() if tame.any() else 0) < 8


def test_min_max_and_quantiles_put_their_ends_at_one():
    for kind, share in (("min-max", 0.0), ("quantile", 0.01)):
        normaliser, values = fitted_to(["free", "wild"], kind)
        ends = torch.from_numpy(np.quantile(values.double().numpy(), [share, 1 - share], axis=0)).float()
        torch.testing.assert_close(normaliser.normalise(ends), torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), rtol=0, atol=1e-3)
    assert float(normaliser.normalise(values)[:, 1].abs().max()) > 5, "beyond the quantiles nothing is clipped"


def test_quantiles_that_coincide_fall_back_to_the_whole_range():
    """A gripper that moved in five of 2000 frames: q99 - q01 = 0, and its opening must not be a million."""
    normaliser, values = fitted_to(["gripper"], "quantile")
    assert normaliser.normalise(values).unique().tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_wild_dimension_does_not_flatten_the_others(kind):
    normaliser, _ = fitted_to(["free", "wild"], kind)
    alone, _ = fitted_to(["free"], kind)
    torch.testing.assert_close(normaliser.scale[0], alone.scale[0])


def test_values_beyond_float32_are_refused():
    with pytest.raises(ValueError, match="beyond the range of float32"):
        Normaliser(1).fit(summarise([np.array([[0.0], [1e200]])]))


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="normaliser of proprio must be one of"):
        NormaliseConfig(proprio="sigmoid")


def test_the_normaliser_travels_with_the_weights():
    normaliser, loaded = fitted(torch.randn(9, 2)), Normaliser(2)
    loaded.load_state_dict(normaliser.state_dict())
    assert torch.equal(loaded.mean, normaliser.mean) and torch.equal(loaded.scale, normaliser.scale)


@given(frames=st.integers(1, 3), channels=st.integers(1, 4), rows=st.integers(1, 3), columns=st.integers(1, 3))
def test_latents_to_tokens_and_back_lose_nothing(frames, channels, rows, columns):
    latent = torch.arange(2.0 * frames * channels * 4 * rows * columns).reshape(2, frames, channels, 2 * rows, 2 * columns)
    tokens = to_tokens(latent)
    assert tokens.shape == (2, frames * rows * columns, 4 * channels)
    assert torch.equal(from_tokens(tokens, frames, (rows, columns)), latent)


@given(patch=st.sampled_from([1, 2, 4]), merge=st.integers(1, 3), groups=st.integers(1, 2), channels=st.integers(1, 3))
def test_patches_of_any_size_over_several_frames_lose_nothing_and_merge_afterwards(patch, merge, groups, channels):
    """Merging the tokens of single frames gives the tokens of the frames together: latents can be kept frame by frame."""
    latent = torch.randn(2, groups * merge, channels, 2 * patch, 3 * patch)
    tokens = to_tokens(latent, patch, merge)
    assert tokens.shape == (2, groups * 6, channels * merge * patch**2)
    assert torch.equal(from_tokens(tokens, groups * merge, (2, 3), patch, merge), latent)
    single = to_tokens(latent, patch).unflatten(1, (groups * merge, 6))
    assert torch.equal(merged(single, channels, merge), tokens)


def test_a_token_is_a_patch_of_two_by_two_in_reading_order():
    latent = torch.zeros(1, 2, 3, 4, 6)
    latent[0, 1, :, 2:4, 4:6] = 1.0  # second frame, second row, third column
    tokens = to_tokens(latent)
    assert tokens[0].sum(dim=1).nonzero().flatten().tolist() == [6 + 3 + 2]
    assert bool((tokens[0, 11] == 1).all())


def autoencoder(image_size=32, latent=3):
    torch.manual_seed(0)
    return Autoencoder(AutoencoderConfig(image_size, 8, latent)).eval()


@pytest.mark.parametrize("image_size", [16, 32, 64])
def test_the_autoencoder_halves_three_times_and_returns_the_size(image_size):
    net = autoencoder(image_size)
    image = torch.rand(2, 3, image_size, image_size)
    latent = net.encode(image)
    assert latent.shape == (2, 3, image_size // 8, image_size // 8)
    decoded = net.decode(latent)
    assert decoded.shape == image.shape and float(decoded.min()) >= 0 and float(decoded.max()) <= 1


def test_measured_latents_have_mean_zero_and_spread_one_and_decode_the_same():
    net, image = autoencoder(), torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    before = net.decode(net.encode(image))
    net.measure_spread(image)
    latent = net.encode(image)
    assert torch.allclose(latent.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(latent.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3)
    assert torch.allclose(net.decode(latent), before, atol=1e-5)
    assert torch.allclose(net.reconstruct(image).clamp(0, 1), before, atol=1e-5)


def test_the_video_codec_is_the_autoencoder_frame_by_frame():
    net = autoencoder()
    codec = VideoCodec(net)
    frames = torch.rand(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    tokens = codec.encode(frames)
    assert codec.grid == (2, 2) and tokens.shape == (2, 3 * 4, codec.size) and not tokens.requires_grad
    alone = codec.encode(frames[:1, 1:2])
    assert torch.allclose(tokens[:1, 4:8], alone, atol=1e-5)
    assert torch.allclose(codec.decode(tokens, 3)[1, 2], net.decode(net.encode(frames[1, 2:3]))[0], atol=1e-5)


def test_frames_to_unit_and_back_is_the_identity_on_every_byte():
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(-1, -1, -1, 3)
    unit = frames_to_unit(frames)
    assert unit.shape == (1, 3, 16, 16) and float(unit.max()) == 1.0
    assert torch.equal(unit_to_frames(unit), frames)
    assert unit_to_frames(torch.tensor([-0.2, 1.2, 0.5])[:, None, None].expand(3, 1, 1)).tolist() == [[[0, 255, 128]]]


@pytest.mark.parametrize("wrong", [torch.zeros(4, 4, 3), torch.zeros(3, 4, 4, dtype=torch.uint8)])
def test_frames_of_another_kind_are_refused(wrong):
    with pytest.raises(ValueError, match=r"uint8 \(\.\.\., H, W, 3\), got"):
        frames_to_unit(wrong)


def test_image_sizes_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match="multiple of 16"):
        AutoencoderConfig(image_size=40)
    with pytest.raises(ValueError, match="image 48, grid 4"):
        ImageEncoder(48, 4, 16)
    with unchecked_shapes(), pytest.raises(ValueError, match=r"images must be \(B, \(3, 32, 32\)\)"):
        ImageEncoder(32, 4, 16)(torch.zeros(1, 3, 16, 16))
