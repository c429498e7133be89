"""Guidance: a wrapped `denoise` whose clean estimate leans toward values that some tokens should have.

```
x, level --> denoise --> clean --(+ scale * J^T W (wanted - clean))--> clean          J = d clean / d x
```
"""

import torch
from torch import Tensor

from uwm.core.shapes import Float
from uwm.noise.gaussian import GaussianPath
from uwm.sample.steps import Denoise

SMALLEST = 1e-6  # floor of alpha, where the clip decides anyway


def toward(
    denoise: Denoise, path: GaussianPath, wanted: Float[Tensor, "B N S"], weight: Float[Tensor, "B N"], clip: float = 5.0
) -> Denoise:
    """`denoise` guided to `wanted` where `weight` in [0, 1] is above 0 (Song et al. 2023, pseudo-inverse guidance).

    As in real-time chunking (Black et al. 2025, eqs. 1 to 4; their beta is `clip`), written for any Gaussian path: the clean
    estimate moves by min((alpha^2 + sigma^2) / alpha, clip * sigma) times J^T W (wanted - clean). One backward pass a call.
    """

    def guided(x: Tensor, level: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            clean = denoise(x, level)
            error = (weight[..., None] * (wanted - clean)).detach()
            (gradient,) = torch.autograd.grad((clean * error).sum(), x)
        alpha, sigma = path.alpha(level)[..., None], path.sigma(level)[..., None]
        scale = torch.minimum((alpha**2 + sigma**2) / alpha.clamp(min=SMALLEST), clip * sigma)
        return clean.detach() + scale * gradient

    return guided
