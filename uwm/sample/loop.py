"""The one loop: every mode, ladder and staircase is this function with another plan."""

import itertools
from collections.abc import Callable

from torch import Tensor

from uwm.core.levels import checked, per_token
from uwm.core.shapes import Float
from uwm.noise.gaussian import GaussianPath, corrupt
from uwm.sample.denoise import Denoiser
from uwm.sample.randomness import Randomness
from uwm.sample.steps import Denoise, StepRule, ddim


def sample(
    denoise: Denoise,
    path: GaussianPath,
    x: Float[Tensor, "B N S"],
    level: Float[Tensor, "K1 N"] | Float[Tensor, "K1 B N"],
    step: StepRule,
    randomness: Randomness | None = None,
    on_row: Callable[[int, Tensor], None] | None = None,
) -> tuple[Tensor, Randomness | None]:
    """Walks down the rows of levels (K + 1, N) or (K + 1, B, N), from x at the first row to x at the last.

    `x` must already be at the levels of the first row: clean where given, pure noise at 1. `on_row(index, x)` sees
    every row, the first included. Reading a plan upwards inverts (deterministic rules only).
    """
    if x.ndim != 3:
        raise ValueError(f"tokens must be (B, N, S), got {tuple(x.shape)}")
    rows = [per_token(checked(row)[None] if row.ndim == 1 else row, *x.shape[:2]) for row in level]
    carry = None
    if on_row:
        on_row(0, x)
    for index, (level_from, level_to) in enumerate(itertools.pairwise(rows), start=1):
        x, carry, randomness = step(denoise, path, x, level_from.to(x), level_to.to(x), carry, randomness)
        if on_row:
            on_row(index, x)
    return x, randomness


def start(
    path: GaussianPath, known: Float[Tensor, "B N S"], level: Tensor, randomness: Randomness
) -> tuple[Tensor, Randomness]:
    """Tokens at the first row of a plan: `known` values (anything finite where nothing is known) noised to `level`."""
    noise, randomness = randomness.normal(*known.shape[1:], dtype=known.dtype)
    level = per_token(level[None] if level.ndim == 1 else level, *known.shape[:2]).to(known)
    return corrupt(path, known, noise, level), randomness


def follow(
    denoise: Denoiser, known: Float[Tensor, "B N S"], level: Tensor, randomness: Randomness, step: StepRule | None = None
) -> tuple[Float[Tensor, "B N S"], Randomness]:
    """A whole plan: `known` values noised to its first row, then down to its last along the denoiser's path (DDIM unless told)."""
    x, randomness = start(denoise.path, known, level[0], randomness)
    return sample(denoise, denoise.path, x, level, step or ddim(), randomness)
