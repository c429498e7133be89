"""Codecs: arrays of a stream to clean tokens and back. Normalisation and its inverse live together here.

| stream | array | tokens |
|---|---|---|
| action | (B, T, A) physical units | (B, T, A) normalised, one token a step |
| state | (B, T, P) physical units | (B, T, P) normalised |
| video | (B, T, 3, H, W) in [0, 1] | (B, T * h * w, C * 4) patches of autoencoder latents |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from uwm.core.shapes import Float
from uwm.nn.autoencoder import FrameCoder, from_tokens, to_tokens

NORMALISERS = ("mean-std", "min-max", "quantile")
SMALLEST = 1e-12  # a spread below this is nothing in any unit; dividing by it would leave float32
COLLAPSED = 1e-3  # of the whole range: quantiles this close tell nothing of a dimension that does change


@dataclass(frozen=True)
class NormaliseConfig:
    """Which normaliser each stream gets: mean-std, min-max or quantile (see `Normaliser`)."""

    action: str = "mean-std"
    proprio: str = "mean-std"

    def __post_init__(self):
        for stream in ("action", "proprio"):
            if getattr(self, stream) not in NORMALISERS:
                raise ValueError(f"normaliser of {stream} must be one of {NORMALISERS}, got {getattr(self, stream)!r}")


class Normaliser(nn.Module):
    """Per-dimension shift and scale; `restore` is the inverse everywhere, since nothing is clipped.

    | kind | becomes |
    |---|---|
    | mean-std | mean 0 and spread 1 |
    | min-max | -1 and 1 at the smallest and the largest value |
    | quantile | -1 and 1 at the quantiles q01 and q99; where these two (nearly) coincide, as min-max |

    A dimension that never changes in the training data is shifted only: it normalises to 0 and comes back as its
    constant. A dimension that hardly changes is divided by at least `floor` times the largest spread, so that its noise
    is not blown up to the size of the others; heavy-tailed dimensions do not count there, or one of them would flatten the rest.
    """

    def __init__(self, size: int, floor: float = 0.05, kind: str = "mean-std"):
        super().__init__()
        self.floor, self.kind = floor, kind
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    @property
    def size(self) -> int:
        """Dimensions."""
        return len(self.mean)

    @torch.no_grad()
    def fit(self, statistics: Mapping[str, Any]) -> None:
        """Takes what the kind needs of the statistics per dimension, as `uwm_data.statistics` gives them."""
        centre, spread = self._centre_and_spread({key: torch.tensor(statistics[key]) for key in self._needed})
        constant = torch.tensor(statistics["constant"], dtype=torch.bool)
        if centre.shape != self.mean.shape:
            raise ValueError(f"statistics have {len(centre)} dimensions, the stream has {len(self.mean)}")
        if not bool(torch.isfinite(centre).all() and torch.isfinite(spread).all()):
            raise ValueError("the data has values beyond the range of float32; leave those episodes out")
        spread = torch.where(constant, 0.0, spread)
        heavy = torch.tensor(statistics.get("heavy_tailed", [False] * len(spread)), dtype=torch.bool)
        usual = spread[~heavy] if bool((~heavy & ~constant).any()) else spread
        scale = spread.clamp(min=self.floor * float(usual.max()))
        self.mean.copy_(centre)
        self.scale.copy_(torch.where(constant | (scale <= SMALLEST), 1.0, scale))

    @property
    def _needed(self) -> tuple[str, ...]:
        return {"mean-std": ("mean", "std"), "min-max": ("min", "max"), "quantile": ("min", "max", "q01", "q99")}[self.kind]

    def _centre_and_spread(self, told: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        if self.kind == "mean-std":
            return told["mean"], told["std"]
        low, high = told["min"], told["max"]
        if self.kind == "quantile":
            # A gripper that moves in fewer than one frame of a hundred: q01 = q99, and 1 / (q99 - q01) explodes.
            collapsed = told["q99"] - told["q01"] <= COLLAPSED * (high - low)
            low, high = torch.where(collapsed, low, told["q01"]), torch.where(collapsed, high, told["q99"])
        return low / 2 + high / 2, high / 2 - low / 2

    def normalise(self, value: Float[Tensor, "*B P"]) -> Float[Tensor, "*B P"]:
        return (value - self.mean) / self.scale

    def restore(self, value: Float[Tensor, "*B P"]) -> Float[Tensor, "*B P"]:
        return value * self.scale + self.mean


class Embodiment(nn.Module):
    """The normalisers of one dataset's robot, each of its own size."""

    def __init__(self, action_size: int, proprio_size: int, kinds: NormaliseConfig):
        super().__init__()
        self.action = Normaliser(action_size, kind=kinds.action)
        # Metres of a finger stand beside entries of a rotation: a high floor would hide the gripper.
        self.proprio = Normaliser(proprio_size, floor=0.01, kind=kinds.proprio)


class VideoCodec:
    """Frames to patch tokens through a frozen autoencoder. It owns no weights: it borrows the autoencoder.

    A token stands for `patch` x `patch` latents of `merge` frames.
    """

    def __init__(self, autoencoder: FrameCoder, patch: int = 2, merge: int = 1):
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
