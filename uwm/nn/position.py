"""Rotary positions over frame, row and column (Su et al. 2021, extended by axis).

A head's width is split into three parts, turned by frame, row and column. Frames are ticks and may be negative or
fractional; nothing depends on how many tokens there are, so any horizon and any grid fit the same weights.
"""

import torch
from torch import Tensor

from uwm.core.shapes import Float

LONGEST_TICKS, LONGEST_CELLS = 256.0, 64.0


def frequencies(head_width: int) -> list[Tensor]:
    """Turning speeds (radians per tick, per row, per column) of the three parts of a head; half the width in all."""
    if head_width % 2:
        raise ValueError(f"a head needs an even width for rotary positions, got {head_width}")
    pairs = head_width // 2
    cell = pairs // 4
    longest = (LONGEST_TICKS, LONGEST_CELLS, LONGEST_CELLS)
    return [
        (torch.pi / 2) * top ** -torch.linspace(0, 1, max(count, 1))[:count]
        for count, top in zip((pairs - 2 * cell, cell, cell), longest, strict=False)
    ]


def angles(place: Float[Tensor, "N 3"], head_width: int) -> Float[Tensor, "N F"]:
    """Turning angle of every pair of a head for tokens at (frame, row, column)."""
    return torch.cat([place[:, i : i + 1] * f for i, f in enumerate(frequencies(head_width))], dim=-1)


def rotate(x: Float[Tensor, "B H N W"], cosine: Float[Tensor, "N F"], sine: Float[Tensor, "N F"]) -> Tensor:
    """Turns the first and second half of every head against each other."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
