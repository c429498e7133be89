"""One file for each of five papers: what it adds, on data that is made in a moment, on a CPU in seconds.

```
python -m uwm.examples.roles        UniDiffuser (Bao et al. 2023): one model answers in every direction
python -m uwm.examples.frames       FVDM (Liu et al. 2024): frames with levels of their own can be held
python -m uwm.examples.adapting     Pusa (Liu et al. 2025): a model of one level per sample learns levels per frame, and can unlearn them
python -m uwm.examples.wavefront    AR-Diffusion (Sun et al. 2025): frames one behind the other, each as soon as it is clean
python -m uwm.examples.words        RADD (Ou et al. 2025): texts are unmasked, and a call that sees nothing new is not made
```

Every file has a `main()` that prints and returns its figures.
"""

import math

import torch
from torch import Tensor

from uwm.nn.backbone import BackboneConfig

FRAMES = 8
SMALL = BackboneConfig(width=32, depth=3, heads=2, registers=2, waist=16)


def circles(count: int, seed: int = 0) -> Tensor:
    """The films of these examples: points (count, FRAMES, 2) that go round by 45 degrees a frame, a token a frame, either way."""
    generator = torch.Generator().manual_seed(seed)
    radius, begin = 0.5 + torch.rand(count, 1, generator=generator), 2 * math.pi * torch.rand(count, 1, generator=generator)
    way = torch.where(torch.rand(count, 1, generator=generator) < 0.5, -1, 1)
    angle = begin + way * math.pi / 4 * torch.arange(FRAMES)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)


def apart(found: Tensor, wanted: Tensor) -> float:
    """Root of the mean squared distance of points."""
    return float((found - wanted).square().sum(dim=-1).mean().sqrt())
