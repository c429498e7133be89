"""Encoders: observations to context tokens at level 0. They are computed once per observation."""

import itertools

import torch
from einops import rearrange
from torch import Tensor, nn

from uwm.core.shapes import Float


def _coordinates(height: int, width: int) -> Float[Tensor, "1 2 H W"]:
    """Row and column of every pixel in [-1, 1]: a small network cannot count pixels from the border (CoordConv)."""
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]


class ImageEncoder(nn.Module):
    """An upright RGB frame in [0, 1] to a `grid` x `grid` patch of tokens by strided convolutions.

    Each stage halves the image, so the image size must be `grid` times a power of two.
    """

    def __init__(self, image_size: int, grid: int, width: int, channels: int = 32):
        super().__init__()
        stages = (image_size // grid).bit_length() - 1
        if image_size != grid << stages or stages < 1:
            raise ValueError(f"image size must be grid x 2, 4, 8, ...; got image {image_size}, grid {grid}")
        self.grid = grid
        sizes = [5] + [min(channels << stage, width) for stage in range(stages)]
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(itertools.pairwise(sizes)):
            kernel = 5 if index == 0 else 3
            layers += [nn.Conv2d(before, after, kernel, 2, kernel // 2), nn.GroupNorm(8, after), nn.SiLU()]
        self.convolutions = nn.Sequential(*layers)
        self.out = nn.Linear(sizes[-1], width)
        self.register_buffer("coordinates", _coordinates(image_size, image_size), persistent=False)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B P D"]:
        if image.shape[1:] != (3, *self.coordinates.shape[2:]):
            wanted = (3, *self.coordinates.shape[2:])
            raise ValueError(f"images must be (B, {wanted}) in [0, 1], got {tuple(image.shape)}")
        coordinates = self.coordinates.to(image).expand(len(image), -1, -1, -1)
        features = self.convolutions(torch.cat([2 * image - 1, coordinates], dim=1))
        return self.out(rearrange(features, "b c h w -> b (h w) c"))


class StateEncoder(nn.Module):
    """A normalised state vector to one token."""

    def __init__(self, size: int, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, state: Float[Tensor, "B P"]) -> Float[Tensor, "B 1 D"]:
        return self.mlp(state)[:, None]
