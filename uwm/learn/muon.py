"""Muon (Jordan et al. 2024): momentum whose matrices are orthogonalised before they are applied.

```
gradients ---> momentum (Nesterov) ---> stacked by shape ---> Newton-Schulz, float32 ---> weights
```

torch's Muon takes one matrix after the other, in bfloat16. A processor without instructions for bfloat16 multiplies it some twenty
times slower than float32, and four fifths of a small model's training step went there.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from uwm.core.shapes import Float

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the quintic: steepest at zero, so that five rounds are enough
ROUNDS, TINY = 5, 1e-7


class Muon(torch.optim.Optimizer):
    """Moves matrices by their orthogonalised momentum, scaled to the size of AdamW's steps (Liu et al. 2025, sec. 2.2).

    Its state is that of torch's Muon ("momentum_buffer"), so that checkpoints of either resume.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.95):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for matrix in self.param_groups[0]["params"]:
            if matrix.ndim != 2:
                raise ValueError(f"Muon moves matrices, got a parameter of shape {tuple(matrix.shape)}")

    @torch.no_grad()
    def step(self) -> None:
        """One update of all matrices that have a gradient."""
        for group in self.param_groups:
            wanted: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    wanted.setdefault(matrix.shape, []).append((matrix, self._momentum(matrix, group["momentum"])))
            for shape, pairs in wanted.items():
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))
                for (matrix, _), step in zip(pairs, orthogonal(torch.stack([each for _, each in pairs])), strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(step, alpha=-rate)

    def _momentum(self, matrix: Tensor, keep: float) -> Tensor:
        """The running mean of gradients, moved on, and from it the gradient looked at once more (Nesterov)."""
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        mean = state["momentum_buffer"].lerp_(matrix.grad, 1 - keep)
        return matrix.grad.lerp(mean, keep)


def orthogonal(matrices: Float[Tensor, "B m n"]) -> Float[Tensor, "B m n"]:
    """Nearly the orthogonal part of every matrix: singular values between about 0.7 and 1.2, whatever they were; float32."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).float()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=TINY)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
