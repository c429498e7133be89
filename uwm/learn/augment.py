"""Augmentation of observed frames. Every sample of a batch gets its own draw (the UWM reference shared one, U8)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from uwm.core.shapes import Float


@dataclass(frozen=True)
class AugmentConfig:
    """`shift` pixels at most to each side; `brightness` and `contrast` as relative half ranges; 0 is off."""

    shift: int = 3
    brightness: float = 0.15
    contrast: float = 0.15


def augment(images: Float[Tensor, "B C H W"], config: AugmentConfig, generator: Generator) -> Float[Tensor, "B C H W"]:
    """Random shift (edges repeated), contrast and brightness, independent per sample. Input and output in [0, 1].

    C = 3 colours, or those of several frames of a sample, which then share its draw.
    """
    if config.shift:
        images = _shift(images, config.shift, generator)
    if config.contrast or config.brightness:
        draw = 2 * torch.rand(2, len(images), 1, 1, 1, generator=generator) - 1
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        images = (images - mean) * (1 + config.contrast * draw[0]) + mean * (1 + config.brightness * draw[1])
    return images.clamp(0, 1)


def _shift(images: Tensor, most: int, generator: Generator) -> Tensor:
    """Whole-pixel shifts by gathering from an edge-padded copy: no interpolation, so no blur."""
    batch, _, height, width = images.shape
    padded = F.pad(images, (most,) * 4, mode="replicate")
    down, right = torch.randint(0, 2 * most + 1, (2, batch), generator=generator)
    rows = (down[:, None] + torch.arange(height))[:, None, :, None]
    columns = (right[:, None] + torch.arange(width))[:, None, None, :]
    sample = torch.arange(batch)[:, None, None, None]
    return padded[sample, torch.arange(images.shape[1])[None, :, None, None], rows, columns]
