"""Optimiser groups, the learning-rate schedule, and the moving average of weights."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from uwm.learn.muon import Muon


@dataclass(frozen=True)
class OptimConfig:
    """Linear warm-up and a cosine down to `final` times the rate; `average` caps the EMA's memory.

    `restarts`: steps at which both begin again, e.g. where a finished run goes on (warm restarts; Loshchilov and Hutter 2017).
    `matrices`: what moves the weight matrices of the transformer's blocks, "muon" or "adamw"; AdamW moves all the rest.
    """

    rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 50
    final: float = 0.02
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.98)
    average: float = 0.995
    matrices: str = "muon"
    restarts: tuple[int, ...] = ()

    def __post_init__(self):
        if self.matrices not in ("muon", "adamw"):
            raise ValueError(f"matrices must be moved by 'muon' or 'adamw', got {self.matrices!r}")
        if list(self.restarts) != sorted({step for step in self.restarts if step > 0}):
            raise ValueError(f"restarts are steps above 0 in ascending order, got {list(self.restarts)}")


class Optimiser:
    """torch's AdamW, and Muon beside it for the matrices of the blocks, as one.

    Both share one rate, since Muon's step is scaled to the size of AdamW's. Weight decay is on matrices and kernels only:
    biases, tags and offsets are left alone.
    """

    def __init__(self, model: nn.Module, config: OptimConfig):
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        inner = {name for name, p in named.items() if p.ndim == 2 and ".blocks." in name and name.endswith("weight")}
        inner = inner if config.matrices == "muon" else set()
        rest = [p for name, p in named.items() if name not in inner]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.parts: dict[str, torch.optim.Optimizer] = {"adamw": torch.optim.AdamW(groups, config.rate, config.betas, fused=True)}
        if inner:
            matrices, decay = [named[name] for name in sorted(inner)], config.weight_decay
            self.parts["muon"] = Muon(matrices, config.rate, decay)

    def zero_grad(self) -> None:
        for part in self.parts.values():
            part.zero_grad(set_to_none=True)

    def step(self, rate: float) -> None:
        """One update at this learning rate."""
        for part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = rate
            part.step()

    def tensors(self) -> dict[str, Tensor]:
        """The moments as named tensors: what a checkpoint keeps."""
        return {
            f"{kind}.{index}.{name}": torch.as_tensor(value)
            for kind, part in self.parts.items()
            for index, slot in part.state_dict()["state"].items()
            for name, value in slot.items()
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`, for the same parameters."""
        slots: dict[str, dict[int, dict[str, Tensor]]] = {kind: {} for kind in self.parts}
        for key, value in tensors.items():
            kind, index, name = key.split(".")
            slots[kind].setdefault(int(index), {})[name] = value
        for kind, part in self.parts.items():
            part.load_state_dict({"state": slots[kind], "param_groups": part.state_dict()["param_groups"]})


def rate_at(step: int, steps: int, config: OptimConfig) -> float:
    """The learning rate of a step: a function of the step alone, so that resuming needs no schedule state."""
    begun = max((restart for restart in config.restarts if restart <= step), default=0)
    end = min((restart for restart in config.restarts if step < restart < steps), default=steps)
    at, length = step - begun, end - begun
    if at < config.warmup:
        return config.rate * (at + 1) / config.warmup
    done = min(1.0, (at - config.warmup) / max(1, length - config.warmup))
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
