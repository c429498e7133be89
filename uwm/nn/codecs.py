"""Codecs: arrays of a stream to clean tokens and back. Normalisation and its inverse live together here.

| stream | array | tokens |
|---|---|---|
| action | (B, T, A) physical units | (B, T, A) normalised, one token a step |
| state | (B, T, P) physical units | (B, T, P) normalised |
| video | (B, T, 3, H, W) in [0, 1] | (B, T * h * w, C * 4) patches of autoencoder latents |
"""

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from uwm.core.shapes import Float
from uwm.nn.autoencoder import Autoencoder, from_tokens, to_tokens


class Normaliser(nn.Module):
    """Per-dimension shift and scale to mean 0 and spread 1.

    A dimension that never changes in the training data is shifted only: it normalises to 0 and comes back as its
    constant. A dimension that hardly changes is divided by at least `floor` times the largest spread, so that its noise
    is not blown up to the size of the others.
    """

    def __init__(self, size: int, floor: float = 0.05):
        super().__init__()
        self.floor = floor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    @torch.no_grad()
    def fit(self, statistics: Mapping[str, Any]) -> None:
        """Takes `mean`, `std` and `constant` per dimension, as `uwm_data.statistics` gives them."""
        mean, std = torch.tensor(statistics["mean"]), torch.tensor(statistics["std"])
        constant = torch.tensor(statistics["constant"], dtype=torch.bool)
        if mean.shape != self.mean.shape:
            raise ValueError(f"statistics have {len(mean)} dimensions, the stream has {len(self.mean)}")
        spread = torch.where(constant, 0.0, std)
        scale = spread.clamp(min=self.floor * float(spread.max()))
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(constant | (scale <= 0), 1.0, scale))

    def normalise(self, value: Float[Tensor, "*B P"]) -> Float[Tensor, "*B P"]:
        return (value - self.mean) / self.scale

    def restore(self, value: Float[Tensor, "*B P"]) -> Float[Tensor, "*B P"]:
        return value * self.scale + self.mean


class VideoCodec:
    """Frames to patch tokens through a frozen autoencoder. It owns no weights: it borrows the autoencoder.

    A token stands for `patch` x `patch` latents of `merge` frames.
    """

    def __init__(self, autoencoder: Autoencoder, patch: int = 2, merge: int = 1):
        self.autoencoder, self.patch, self.merge = autoencoder, patch, merge
        side = autoencoder.config.image_size // (8 * patch)
        self.grid = (side, side)
        self.size = autoencoder.config.latent * patch**2 * merge

    @torch.no_grad()
    def encode(self, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B N S"]:
        latent = self.autoencoder.encode(rearrange(frames, "b t c h w -> (b t) c h w"))
        return to_tokens(rearrange(latent, "(b t) c h w -> b t c h w", t=frames.shape[1]), self.patch, self.merge)

    @torch.no_grad()
    def decode(self, tokens: Float[Tensor, "B N S"], frames: int) -> Float[Tensor, "B T 3 H W"]:
        latent = from_tokens(tokens, frames, self.grid, self.patch, self.merge)
        image = self.autoencoder.decode(rearrange(latent, "b t c h w -> (b t) c h w"))
        return rearrange(image, "(b t) c h w -> b t c h w", t=frames)


def frames_to_unit(frames: Tensor) -> Tensor:
    """uint8 frames (..., H, W, 3) to float (..., 3, H, W) in [0, 1]."""
    if frames.dtype != torch.uint8 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be uint8 (..., H, W, 3), got {frames.dtype} {tuple(frames.shape)}")
    return frames.movedim(-1, -3).float() / 255


def unit_to_frames(image: Tensor) -> Tensor:
    """The inverse of `frames_to_unit`, rounded and clamped."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1)
