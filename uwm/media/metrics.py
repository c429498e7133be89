"""How near pictures and distributions are to each other: PSNR, SSIM, perceptual and Fréchet distance, reprojection error."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from uwm.core.shapes import Float


def psnr(found: Tensor, true: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of uint8 pictures of one shape, over all pixels; infinite when they are equal."""
    if found.shape != true.shape:
        raise ValueError(f"pictures must have one shape, got {tuple(found.shape)} and {tuple(true.shape)}")
    error = float((found.double() - true.double()).square().mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(found: Tensor, true: Tensor) -> float:
    """Mean structural similarity of uint8 pictures (..., H, W, 3), window 7 (Wang et al. 2004)."""
    from skimage.metrics import structural_similarity

    if found.shape != true.shape or found.shape[-1] != 3:
        raise ValueError(f"pictures must have one shape that ends in 3 colours, got {tuple(found.shape)} and {tuple(true.shape)}")
    pairs = zip(found.flatten(0, -4).numpy(), true.flatten(0, -4).numpy(), strict=True)
    return float(np.mean([structural_similarity(a, b, channel_axis=-1, data_range=255) for a, b in pairs]))


def perceptual(found: Sequence[Float[Tensor, "B ..."]], true: Sequence[Float[Tensor, "B ..."]]) -> float:
    """How far apart pictures are to a network, 0 to 4: features of its layers, each of length one, mean squared distance over layers.

    LPIPS (Zhang et al. 2018, eq. 1) with layers that all weigh the same. ValueError for other layers or shapes.
    """
    if not found or [each.shape for each in found] != [each.shape for each in true]:
        shapes = [[tuple(each.shape) for each in layers] for layers in (found, true)]
        raise ValueError(f"both sides need the same layers, at least one, got {shapes[0]} and {shapes[1]}")
    pairs = [(normalize(a, dim=-1), normalize(b, dim=-1)) for a, b in zip(found, true, strict=True)]
    return float(torch.stack([(a - b).square().sum(dim=-1).mean() for a, b in pairs]).mean())


def frechet(found: Float[Tensor, "M D"], true: Float[Tensor, "N D"]) -> float:
    """Fréchet distance of two Gaussians with the samples' means and covariances (Heusel et al. 2017, eq. 6).

    ValueError for samples that are too few for a covariance. |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).
    """
    if min(len(found), len(true)) <= 2 or found.shape[1] != true.shape[1]:
        raise ValueError(f"there must be more than two samples of one size on both sides, got {tuple(found.shape)}, {tuple(true.shape)}")
    found, true = found.double(), true.double()
    first, second = (torch.atleast_2d(torch.cov(samples.T)) for samples in (found, true))
    # The trace of the root of C1 C2 is that of R C2 R, symmetric, with R the root of C1.
    root = _root(first)
    cross = _root(root @ second @ root)
    apart = (found.mean(dim=0) - true.mean(dim=0)).square().sum()
    return float(apart + first.trace() + second.trace() - 2 * cross.trace())


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def reprojection(
    depth: Float[Tensor, "H W"],
    other: Float[Tensor, "H W"],
    cameras: tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    far: float,
    near_enough: float = 0.1,
) -> float:
    """Share of pixels whose point, seen from the other camera and not hidden there, has another depth than that camera tells.

    `cameras`: (intrinsics (3, 3), extrinsics (3, 4)) of both; depth along the axis. Points beyond `far`, outside the other picture, or
    behind something there do not count. NaN when none is left.
    """
    (k, e), (k_other, e_other) = [tuple(torch.as_tensor(each, dtype=torch.float64) for each in pair) for pair in cameras]
    height, width = depth.shape
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    rays = torch.stack([u, v, torch.ones_like(u)], dim=-1).double() @ torch.linalg.inv(k).T
    world = (rays * depth.double()[..., None] - e[:, 3]) @ e[:, :3]
    there = world @ e_other[:, :3].T + e_other[:, 3]
    pixel = there @ k_other.T
    place = (pixel[..., :2] / pixel[..., 2:]).floor().long()
    inside = (depth < far) & (there[..., 2] > 0) & (place >= 0).all(-1) & (place[..., 0] < width) & (place[..., 1] < height)
    told = other.double()[place[..., 1].clamp(0, height - 1), place[..., 0].clamp(0, width - 1)]
    visible = inside & (there[..., 2] < told + near_enough)
    if not bool(visible.any()):
        return math.nan
    return float(((told - there[..., 2]).abs() > near_enough)[visible].double().mean())
