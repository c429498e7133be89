"""Latents and metrics on what is known: components that span all are exact, distances of Gaussians in closed form, views that agree."""

import math

import numpy as np
import pytest
import torch

from uwm.media import latents, metrics
from uwm_envs.clips import cameras, make


@pytest.fixture(scope="module")
def clips():
    return make(4, seed=0, frames=4, side=32)


def test_all_components_are_exact_and_fewer_are_the_best_that_few_can_be(clips):
    frames = torch.from_numpy(clips.frames["top"])
    whole = latents.fit(frames, patch=4, size=48)
    assert torch.equal(whole.decode(whole.encode(frames), 32), frames) and whole.floor(frames) == math.inf
    few, more = (latents.fit(frames, patch=8, size=size) for size in (4, 24))
    assert 15 < few.floor(frames) < more.floor(frames)
    tokens = more.encode(frames)
    assert tokens.shape == (4, 4 * 16, 24) and more.size == 24
    assert torch.allclose(tokens.flatten(0, 1).var(dim=0), torch.ones(24), atol=0.05)
    assert torch.allclose(more.components @ more.components.T, torch.eye(24), atol=1e-4)


def test_frames_that_do_not_divide_are_refused(clips):
    with pytest.raises(ValueError, match="divide into patches"):
        latents.fit(torch.from_numpy(clips.frames["top"]), patch=7)


def test_psnr_and_ssim_of_equal_pictures_and_of_a_known_error():
    picture = torch.randint(0, 200, (2, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert metrics.psnr(picture, picture) == math.inf and metrics.ssim(picture, picture) == pytest.approx(1.0)
    assert metrics.psnr(picture + 10, picture) == pytest.approx(20 * math.log10(25.5))
    noise = torch.randint(-60, 60, picture.shape, generator=torch.Generator().manual_seed(1))
    assert metrics.ssim((picture.int() + noise).clamp(0, 255).to(torch.uint8), picture) < 0.95
    with pytest.raises(ValueError, match="one shape"):
        metrics.psnr(picture, picture[:1])


def test_the_perceptual_distance_is_of_directions_layer_by_layer():
    one, two = torch.tensor([[[3.0, 0.0]], [[0.0, 2.0]]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert metrics.perceptual([one, two], [5 * one, two]) == 0.0, "lengths do not count"
    assert metrics.perceptual([one], [one.flip(0)]) == pytest.approx(2.0) and metrics.perceptual([one], [-one]) == pytest.approx(4.0)
    assert metrics.perceptual([one, two], [-one, two]) == pytest.approx(2.0), "layers weigh the same"
    for other in ([two], [one, two], []):
        with pytest.raises(ValueError, match="same layers"):
            metrics.perceptual(other, [one])


def test_the_frechet_distance_is_that_of_gaussians_in_closed_form():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(40_000, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5])
    b = torch.randn(40_000, 3, generator=generator, dtype=torch.float64) * torch.tensor([2.0, 2.0, 1.5]) + torch.tensor([1.0, 0.0, 0.0])
    assert metrics.frechet(a, b) == pytest.approx(1.0 + 1.0 + 0.0 + 1.0, rel=0.05)  # shift, then (s1 - s2)^2 per axis
    assert metrics.frechet(a, a) == pytest.approx(0.0, abs=1e-6)
    turned = a @ torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    assert metrics.frechet(a, turned) == pytest.approx(metrics.frechet(turned, a), rel=1e-6)
    with pytest.raises(ValueError, match="more than two samples"):
        metrics.frechet(a[:2], b)


def test_true_depths_of_two_cameras_agree_and_shifted_ones_do_not(clips):
    both = [(clips.intrinsics[name], clips.extrinsics[name]) for name in ("top", "front")]
    top, front = (torch.from_numpy(clips.depth[name][0, 0]) for name in ("top", "front"))
    right = metrics.reprojection(top, front, (both[0], both[1]), cameras.FAR)
    wrong = metrics.reprojection(top, front - 0.5, (both[0], both[1]), cameras.FAR, near_enough=0.6)
    shifted = metrics.reprojection(top - 0.3, front, (both[0], both[1]), cameras.FAR)
    assert right < 0.1 and wrong < 1.0 and shifted > 3 * right
    assert math.isnan(metrics.reprojection(torch.full((32, 32), cameras.FAR), front, (both[0], both[1]), cameras.FAR))
    assert isinstance(clips.intrinsics["top"], np.ndarray)
