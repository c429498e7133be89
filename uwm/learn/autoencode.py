"""Trains the autoencoder on frames, and keeps the latents of a dataset so that no step encodes a frame twice."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from uwm.core.shapes import Float, Int, UInt8
from uwm.learn.optim import OptimConfig, Optimiser, rate_at
from uwm.learn.precision import autocast
from uwm.nn.autoencoder import Autoencoder, merged
from uwm.nn.codecs import VideoCodec, frames_to_unit


@dataclass(frozen=True)
class AutoencodeConfig:
    """Steps and frames per step of the autoencoder's own training, which comes before the model's."""

    steps: int = 250
    batch: int = 64
    rate: float = 2e-3


def train_autoencoder(
    autoencoder: Autoencoder,
    frames: UInt8[Tensor, "F H W 3"],
    config: AutoencodeConfig,
    seed: int,
    precision: str = "float32",
    on_step: Callable[[int, float], None] | None = None,
) -> float:
    """Minimises the squared error of reconstructed frames, then measures the latents' spread; returns the last error."""
    generator = Generator().manual_seed(seed)
    autoencoder.requires_grad_(True)
    optim = OptimConfig(rate=config.rate, weight_decay=1e-4, warmup=20, final=0.01)
    update, error = Optimiser(autoencoder, optim), float("nan")
    for step in range(config.steps):
        chosen = torch.randint(len(frames), (config.batch,), generator=generator)
        image = frames_to_unit(frames[chosen])
        with autocast(precision):
            loss = (autoencoder.reconstruct(image).float() - image).square().mean()
        update.zero_grad()
        loss.backward()
        update.step(rate_at(step, config.steps, optim))
        error = float(loss.detach())
        if on_step:
            on_step(step, error)
    update.zero_grad()  # a gradient left behind would count in the clipping of the model that holds this part
    autoencoder.requires_grad_(False)
    chosen = torch.randint(len(frames), (min(512, len(frames)),), generator=generator)
    autoencoder.measure_spread(frames_to_unit(frames[chosen]))
    return error


class LatentTable:
    """Video tokens of every frame of some episodes, one row a frame: encoded once, looked up ever after.

    `episodes` yields {camera: (T, H, W, 3) uint8} in the order of the window numbers' episodes; an episode may have no frame
    of a camera.
    """

    def __init__(self, codec: VideoCodec, episodes: Iterable[dict[str, Tensor]], cameras: tuple[str, ...]):
        rows: dict[str, list[Tensor]] = {camera: [] for camera in cameras}
        lengths: dict[str, list[int]] = {camera: [] for camera in cameras}
        self.codec, single = codec, VideoCodec(codec.autoencoder, codec.patch)  # frames are merged when they are asked for
        for frames in episodes:
            for camera in cameras:
                image = frames_to_unit(frames[camera])[:, None]
                rows[camera] += [single.encode(part) for part in image.split(256) if len(part)]
                lengths[camera].append(len(image))
        blank = torch.zeros(1, single.grid[0] * single.grid[1], single.size)  # for a camera that no episode has
        self.tokens = {camera: torch.cat(parts or [blank]) for camera, parts in rows.items()}
        self.lengths = {camera: torch.tensor(counts) for camera, counts in lengths.items()}

    def at(
        self, camera: str, place: Int[Tensor, " B"], frames: Int[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B N S"], Tensor]:
        """Tokens of frames of the place-th episode, clamped into it, and which of the tokens' frames were all there (B, N)."""
        length = self.lengths[camera]
        starts, own = (length.cumsum(0) - length)[place][:, None], length[place][:, None]
        inside = frames.clamp(min=0).minimum((own - 1).clamp(min=0))
        # An episode without frames of this camera at the very end has no row of its own to point at.
        rows = (starts + inside).clamp(max=len(self.tokens[camera]) - 1)
        return merged_tokens(self.codec, self.tokens[camera][rows], (inside == frames) & (own > 0))


def merged_tokens(codec: VideoCodec, tokens: Float[Tensor, "B T P Z"], there: Tensor) -> tuple[Float[Tensor, "B N S"], Tensor]:
    """Tokens of single frames, and which frames were there (B, T), to those of `codec.merge` frames each: there if all are."""
    whole = there.unflatten(1, (-1, codec.merge)).all(dim=2).repeat_interleave(tokens.shape[2], dim=1)
    return merged(tokens, codec.autoencoder.config.latent, codec.merge), whole
