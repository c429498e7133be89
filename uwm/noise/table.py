"""The discrete table of the UWM paper's code, as a path: N training steps of a squared cosine.

```
level    0      0.01     0.02   ...   0.91   ...   1.00       level = (label + 1) / N
label    clean  0        1            90           99
signal   1      0.9997   ...          0.140        0.0005     its last entry is not quite noise
```

Levels between two entries mean the nearer one. Ours (`uwm.noise.gaussian`) has exact ends instead; this one is kept so that
published weights see exactly the numbers that they were trained on.
"""

import math

import torch
from torch import Tensor

from uwm.core.levels import to_index

OFFSET = 0.008
LARGEST_BETA = 0.999


class SquaredCosineTable:
    """alpha = sqrt(prod(1 - beta)) with beta from cos^2 (Nichol & Dhariwal 2021, eq. 17), `entries` steps."""

    name = "squared_cosine_table"

    def __init__(self, entries: int = 100):
        share = [math.cos((step / entries + OFFSET) / (1 + OFFSET) * math.pi / 2) ** 2 for step in range(entries + 1)]
        kept = torch.tensor([1 - min(1 - share[i + 1] / share[i], LARGEST_BETA) for i in range(entries)], dtype=torch.float64)
        # Entry 0 is the clean end, so that label + 1 is the place.
        self.signal = torch.cat([torch.ones(1, dtype=torch.float64), kept.cumprod(0)])

    def alpha(self, level: Tensor) -> Tensor:
        return self._share(level).sqrt().to(level.dtype)

    def sigma(self, level: Tensor) -> Tensor:
        return (1 - self._share(level)).sqrt().to(level.dtype)

    def _share(self, level: Tensor) -> Tensor:
        return self.signal.to(level.device)[to_index(level, len(self.signal) - 1) + 1]

    def alpha_slope(self, level: Tensor) -> Tensor:
        raise NotImplementedError("a table has no slope: use ddim, or one of uwm.noise.gaussian's paths")

    sigma_slope = alpha_slope
