"""Optimiser groups, the learning-rate schedule, and the moving average of weights."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up and a cosine down to `final` times the rate; `average` caps the EMA's memory."""

    rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 50
    final: float = 0.02
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.98)
    average: float = 0.995


def optimiser(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Weight decay on matrices and kernels only: biases, tags and offsets are left alone."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.rate, betas=config.betas)


def rate_at(step: int, steps: int, config: OptimConfig) -> float:
    """The learning rate of a step: a function of the step alone, so that resuming needs no schedule state."""
    if step < config.warmup:
        return config.rate * (step + 1) / config.warmup
    done = min(1.0, (step - config.warmup) / max(1, steps - config.warmup))
    return config.rate * (config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * done)))


class Average:
    """Exponential moving average of a model's weights; its memory grows as 1 - (1 + t)^-0.75 up to a cap.

    The schedule is the one of diffusion_policy and SDP (Karras et al. 2020, app. B, in another form).
    """

    def __init__(self, model: nn.Module, cap: float):
        self.cap = cap
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Moves the average towards the weights after step `step` (counted from 0)."""
        keep = min(self.cap, 1 - (1 + step) ** -0.75)
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - keep)
            else:
                self.weights[name].copy_(value)


def clip_gradients(model: nn.Module, limit: float) -> Tensor:
    """Clips the gradient norm; raises FloatingPointError when it is not finite, before the weights are spoilt."""
    norm = nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], limit)
    if not bool(torch.isfinite(norm)):
        raise FloatingPointError(
            "the gradient is not finite: look for NaN or huge values in the data (uwm data check), or lower optim.rate"
        )
    return norm
