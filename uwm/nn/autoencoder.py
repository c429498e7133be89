"""Frames to a grid of latents and back: a small convolutional autoencoder, trained by the project on its own frames.

Latents are divided by a measured spread per channel, so that diffusion sees about unit variance. `uwm.nn.pretrained` has one
with weights from elsewhere behind the same face.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from uwm.core.shapes import Float

PART = 64  # frames that are encoded at once where there are many


@dataclass(frozen=True)
class AutoencoderConfig:
    """`image_size` pixels a side are halved three times to a grid of latents with `latent` channels.

    `path`: the folder of a pretrained one, "" for our own of `channels`; `fingerprint`: of its weights.
    """

    image_size: int = 64
    channels: int = 32
    latent: int = 8
    path: str = ""
    fingerprint: str = ""

    def __post_init__(self):
        if self.image_size % 16:
            raise ValueError(f"image_size must be a multiple of 16 (8x down, patches of 2), got {self.image_size}")


class FrameCoder(nn.Module):
    """encode: (B, 3, H, W) in [0, 1] -> (B, C, H/8, W/8); decode is its inverse.

    What a network has to do is `raw` (frames in [-1, 1] to latents of any spread) and `unraw`.
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        self.register_buffer("shift", torch.zeros(1, config.latent, 1, 1))
        self.register_buffer("spread", torch.ones(1, config.latent, 1, 1))

    def encode(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        return (self.raw(2 * image - 1) - self.shift) / self.spread

    def decode(self, latent: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        return ((self.unraw(latent * self.spread + self.shift) + 1) / 2).clamp(0, 1)

    def reconstruct(self, image: Tensor) -> Tensor:
        """Decoded encoding, without the clamp: what training compares with the image."""
        return (self.unraw(self.raw(2 * image - 1)) + 1) / 2

    @torch.no_grad()
    def measure_spread(self, image: Tensor) -> None:
        """Sets the latents' mean and spread from frames, so that they have about mean 0 and variance 1."""
        latent = torch.cat([self.raw(2 * part - 1) for part in image.split(PART)])
        self.shift.copy_(latent.mean(dim=(0, 2, 3), keepdim=True))
        self.spread.copy_(latent.std(dim=(0, 2, 3), keepdim=True).clamp(min=1e-3))


class Autoencoder(FrameCoder):
    """Our own: three strided convolutions down, three up."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__(config)
        c, z = config.channels, config.latent
        self.encoder = nn.Sequential(
            _down(3, c), _down(c, 2 * c), _down(2 * c, 4 * c), nn.Conv2d(4 * c, z, 3, 1, 1)
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(z, 4 * c, 3, 1, 1), nn.SiLU(), _up(4 * c, 2 * c), _up(2 * c, c), _up(c, 16), nn.Conv2d(16, 3, 3, 1, 1)
        )

    def raw(self, image: Tensor) -> Tensor:
        return self.encoder(image)

    def unraw(self, latent: Tensor) -> Tensor:
        return self.decoder(latent)


def _down(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 4, 2, 1), nn.GroupNorm(8, after), nn.SiLU())


def _up(before: int, after: int) -> nn.Module:
    # Nearest plus convolution: transposed convolutions leave a checkerboard.
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, 1, 1), nn.GroupNorm(8, after), nn.SiLU())


def to_tokens(latent: Float[Tensor, "B T C h w"], patch: int = 2, merge: int = 1) -> Float[Tensor, "B N S"]:
    """Patches of `patch` x `patch` latents of `merge` frames as tokens, in the order time, row, column."""
    return rearrange(latent, "b (t m) c (h p) (w q) -> b (t h w) (c m p q)", m=merge, p=patch, q=patch)


def from_tokens(
    tokens: Float[Tensor, "B N S"], frames: int, grid: tuple[int, int], patch: int = 2, merge: int = 1
) -> Float[Tensor, "B T C h w"]:
    """The inverse of `to_tokens`; `frames` counts single frames."""
    return rearrange(
        tokens, "b (t h w) (c m p q) -> b (t m) c (h p) (w q)", t=frames // merge, h=grid[0], w=grid[1], m=merge, p=patch, q=patch
    )


def merged(tokens: Float[Tensor, "B T P S"], channels: int, merge: int) -> Float[Tensor, "B N Z"]:
    """Tokens of single frames, P a frame, to those of `merge` frames each: what `to_tokens` makes of the frames together."""
    return rearrange(tokens, "b (t m) p (c r) -> b (t p) (c m r)", m=merge, c=channels)
