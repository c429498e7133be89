"""A multilayer perceptron from what is observed to a whole plan: behaviour cloning at its simplest (Pomerleau 1991)."""

import itertools
from dataclasses import dataclass

from torch import Tensor, nn

from uwm.core.shapes import Float


@dataclass(frozen=True)
class MLPSizes:
    """Width and number of hidden layers, and numbers of a feature (of a camera, of proprioception)."""

    width: int = 512
    depth: int = 3
    feature: int = 64

    def __post_init__(self):
        if min(self.width, self.depth, self.feature) < 1:
            raise ValueError(f"width, depth and feature of an MLP must be positive, got {self}")


class MLP(nn.Module):
    """forward(actions, level, condition) -> `length` actions, of the condition alone: actions and their levels are not looked at."""

    def __init__(self, sizes: MLPSizes, action_size: int, condition: int, length: int):
        super().__init__()
        self.length = length
        widths = [condition, *[sizes.width] * sizes.depth]
        hidden = [nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.Mish()) for a, b in itertools.pairwise(widths)]
        self.layers = nn.Sequential(*hidden, nn.Linear(sizes.width, length * action_size))

    def forward(
        self, x: Float[Tensor, "B T A"], level: Float[Tensor, "B T"], condition: Float[Tensor, "B G"]
    ) -> Float[Tensor, "B T A"]:
        """The first T actions of the plan."""
        return self.layers(condition).unflatten(1, (self.length, -1))[:, : x.shape[1]]
