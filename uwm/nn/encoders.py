"""Encoders: observations to context tokens at level 0. They are computed once per observation."""

import itertools
import math

import torch
from einops import rearrange
from torch import Tensor, nn

from uwm.core.shapes import Bool, Float


def _coordinates(height: int, width: int) -> Float[Tensor, "1 2 H W"]:
    """Row and column of every pixel in [-1, 1]: a small network cannot count pixels from the border (CoordConv)."""
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]


def _convolution(before: int, after: int, kernel: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, kernel, stride, kernel // 2), nn.GroupNorm(math.gcd(8, after), after), nn.SiLU())


class Keypoints(nn.Module):
    """Where things are: each map of a feature grid becomes a distribution over places, and its mean place is kept.

    The spatial softmax of Levine et al. 2016, sec. 5.1. A place is read off in one layer and to a fraction of a cell, which
    strided tokens take many training steps to learn.
    """

    def __init__(self, channels: int, side: int, width: int, points: int = 32):
        super().__init__()
        self.maps = nn.Sequential(_convolution(channels, channels, 3), nn.Conv2d(channels, points, 1))
        self.out = nn.Sequential(nn.Linear(2 * points, width), nn.SiLU(), nn.Linear(width, width))
        self.register_buffer("place", _coordinates(side, side)[0].flatten(1), persistent=False)

    def forward(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 1 D"]:
        share = self.maps(features).flatten(2).softmax(dim=-1)
        # A product and a sum, not a matrix product: autocast would round places to half a pixel.
        where = (share[:, :, None] * self.place).sum(dim=-1)
        return self.out(2 * where.flatten(1))[:, None]  # twice: means of broad maps lie near the middle


class Film(nn.Module):
    """What is said scales and shifts the channels of what is seen (Perez et al. 2018; of instructions: RT-1, Brohan et al. 2022, sec. V).

    So a map may show where the thing is that is spoken of. Nothing said (None, or zeros) changes nothing, and neither does an untrained
    one. `words` 0: of a model without language.
    """

    def __init__(self, words: int, channels: int):
        super().__init__()
        self.modulation = nn.Linear(words, 2 * channels, bias=False) if words else None
        if self.modulation:
            nn.init.zeros_(self.modulation.weight)

    def forward(self, features: Float[Tensor, "B C *K"], said: Float[Tensor, "B S"] | None) -> Float[Tensor, "B C *K"]:
        if said is None or self.modulation is None:
            return features
        scale, shift = self.modulation(said).reshape(len(features), -1, *[1] * (features.ndim - 2)).chunk(2, dim=1)
        return features * (1 + scale) + shift


class Eye(nn.Module):
    """An upright RGB frame in [0, 1] to `tokens` tokens: `grid` x `grid` of cells, row by row, and one of the whole frame.

    A network of this kind has `look(image, said) -> (tokens of cells (B, P - 1, D), the other (B, 1, D))`. `said` (B, S), of a model
    with language: the instruction, zeros where there is none.
    """

    def __init__(self, image_size: int, grid: int):
        super().__init__()
        self.image_size, self.grid, self.tokens = image_size, grid, grid**2 + 1

    @property
    def places(self) -> Float[Tensor, "P 3"]:
        """(frame, row, column) of every token: the present frame, the cells of the grid, and its middle for the last."""
        cells = torch.cartesian_prod(torch.arange(self.grid), torch.arange(self.grid)).float()
        return nn.functional.pad(torch.cat([cells, cells.mean(dim=0, keepdim=True)]), (1, 0))

    def forward(self, image: Float[Tensor, "B 3 H W"], said: Float[Tensor, "B S"] | None = None) -> Float[Tensor, "B P D"]:
        wanted = (3, self.image_size, self.image_size)
        if image.shape[1:] != wanted:
            raise ValueError(f"images must be (B, {wanted}) in [0, 1], got {tuple(image.shape)}")
        cells, whole = self.look(image, said)
        return torch.cat([cells, whole.to(cells.dtype)], dim=1)


class ImageEncoder(Eye):
    """Cells by strided convolutions, and keypoints.

    Each stage halves the image, so the image size must be `grid` times a power of two. The keypoints are read after two
    stages, at a quarter of the image's side, or after the last one if there are fewer.
    """

    def __init__(self, image_size: int, grid: int, width: int, words: int = 0, channels: int = 32):
        super().__init__(image_size, grid)
        stages = (image_size // grid).bit_length() - 1
        if image_size != grid << stages or stages < 1:
            raise ValueError(f"image size must be grid x 2, 4, 8, ...; got image {image_size}, grid {grid}")
        early = min(2, stages)
        sizes = [5] + [min(channels << stage, width) for stage in range(stages)]
        layers = [_convolution(a, b, 5 if a == 5 else 3, 2) for a, b in itertools.pairwise(sizes)]
        self.early, self.late = nn.Sequential(*layers[:early]), nn.Sequential(*layers[early:])
        self.out = nn.Linear(sizes[-1], width)
        self.film = Film(words, sizes[early])
        self.keypoints = Keypoints(sizes[early], image_size >> early, width)
        self.register_buffer("coordinates", _coordinates(image_size, image_size), persistent=False)

    def look(self, image: Float[Tensor, "B 3 H W"], said: Float[Tensor, "B S"] | None) -> tuple[Tensor, Tensor]:
        coordinates = self.coordinates.to(image).expand(len(image), -1, -1, -1)
        features = self.film(self.early(torch.cat([2 * image - 1, coordinates], dim=1)), said)
        return self.out(rearrange(self.late(features), "b c h w -> b (h w) c")), self.keypoints(features)


class StateEncoder(nn.Module):
    """A normalised state vector to one token."""

    def __init__(self, size: int, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, state: Float[Tensor, "B P"]) -> Float[Tensor, "B 1 D"]:
        return self.mlp(state)[:, None]


class Summary(nn.Module):
    """Tokens as one vector of `size` numbers: a learned question attends to those that are there."""

    def __init__(self, width: int, heads: int, size: int):
        super().__init__()
        self.question = nn.Parameter(0.02 * torch.randn(width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True, add_zero_attn=True)  # where nothing is there: zero
        self.out = nn.Linear(width, size)

    def forward(self, tokens: Float[Tensor, "B M D"], seen: Bool[Tensor, "B M"]) -> Float[Tensor, "B G"]:
        question = self.question.expand(len(tokens), 1, -1)
        found, _ = self.attention(question, tokens, tokens, key_padding_mask=~seen, need_weights=False)
        return self.out(found[:, 0])
