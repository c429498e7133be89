"""Replacement: known tokens are overwritten at every row by themselves at the row's level, with fresh noise.

What a model of one level per sample can do with known frames (Song et al. 2021, app. I.2); the rest of the row meets them noisy, and
agrees with them less than a model does that sees them clean. Kept as the baseline of held frames.
"""

import torch

from uwm.core.shapes import Bool, Float
from uwm.noise.gaussian import corrupt
from uwm.sample.steps import Moved, StepRule


def replaced(rule: StepRule, clean: Float[torch.Tensor, "B N S"], known: Bool[torch.Tensor, " N"]) -> StepRule:
    """`rule`, after which the `known` tokens are `clean` at the next level. They fall with all others in the plan."""
    if clean.ndim != 3 or known.shape != clean.shape[1:2]:
        raise ValueError(f"clean must be (B, N, S) and known (N,), got {tuple(clean.shape)} and {tuple(known.shape)}")

    def move(denoise, path, x, level_from, level_to, carry, randomness):
        if randomness is None:
            raise ValueError("replacement draws noise: pass randomness")
        moved = rule(denoise, path, x, level_from, level_to, carry, randomness)
        noise, randomness = moved.randomness.normal(*x.shape[1:], dtype=x.dtype)
        at = corrupt(path, clean.to(x), noise, level_to)
        return Moved(torch.where(known[:, None], at, moved.x), moved.carry, randomness)

    return StepRule(f"{rule.name}, replaced", rule.calls, move)
