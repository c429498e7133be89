"""Trains the autoencoder on frames, and keeps the latents of a dataset so that no step encodes a frame twice."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from uwm.core.shapes import Float, Int, UInt8
from uwm.learn.optim import OptimConfig, Optimiser, rate_at
from uwm.learn.precision import autocast
from uwm.nn.autoencoder import PART, Autoencoder, FrameCoder, merged
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
    measure_spread(autoencoder, frames, generator)
    return error


def measure_spread(autoencoder: FrameCoder, frames: UInt8[Tensor, "F H W 3"], generator: Generator) -> None:
    """Takes the latents' mean and spread from some frames: all that a pretrained autoencoder has to learn."""
    chosen = torch.randint(len(frames), (min(512, len(frames)),), generator=generator)
    autoencoder.measure_spread(frames_to_unit(frames[chosen]))


class LatentTable:
    """Video tokens of every frame of some episodes, one row a frame: encoded once, looked up ever after.

    `episodes` yields {camera: (T, H, W, 3) uint8} in the order of the window numbers' episodes; an episode may have no frame
    of a camera. With a `folder` the tokens lie there and not in memory, and a later table of the same `data` (anything that names
    it) encodes nothing; ValueError when the folder is of other data or another autoencoder.
    """

    def __init__(
        self,
        codec: VideoCodec,
        episodes: Iterable[dict[str, Tensor]],
        cameras: tuple[str, ...],
        folder: Path | None = None,
        data: str = "",
    ):
        self.codec, single = codec, VideoCodec(codec.autoencoder, codec.patch)  # frames are merged when they are asked for
        encoded = ({camera: _tokens(single, frames[camera]) for camera in cameras} for frames in episodes)
        if folder is None:
            parts = list(encoded)
            self.tokens = {camera: torch.cat([part[camera] for part in parts]) for camera in cameras}
            lengths = {camera: [len(part[camera]) for part in parts] for camera in cameras}
        else:
            told = {"data": data, "autoencoder": fingerprint(codec.autoencoder), "patch": codec.patch, "cameras": list(cameras)}
            self.tokens, lengths = _kept(folder, told, encoded)
        blank = torch.zeros(1, single.grid[0] * single.grid[1], single.size)  # for a camera that no episode has
        self.tokens = {camera: rows if len(rows) else blank for camera, rows in self.tokens.items()}
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


def fingerprint(autoencoder: FrameCoder) -> str:
    """Sixteen letters for what an autoencoder makes of a frame: its config and all weights."""
    digest = hashlib.sha256(repr(autoencoder.config).encode())
    for name, value in sorted(autoencoder.state_dict().items()):
        digest.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _tokens(codec: VideoCodec, frames: UInt8[Tensor, "T H W 3"]) -> Float[Tensor, "T P S"]:
    parts = [codec.encode(part) for part in frames_to_unit(frames)[:, None].split(PART) if len(part)]
    return torch.cat(parts) if parts else torch.zeros(0, codec.grid[0] * codec.grid[1], codec.size)


def _kept(folder: Path, told: dict, encoded: Iterable[dict[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """Tokens as files of a folder, mapped into memory, and how many each episode has; written when the folder is not there."""
    about = folder / "latents.json"
    if not about.is_file():
        _write(folder, told, encoded)
    found = json.loads(about.read_text())
    if found["of"] != told:
        differing = [name for name in told if told[name] != found["of"].get(name)]
        raise ValueError(f"the latents in {folder} are of another {', '.join(differing)}: remove that folder or choose another")
    lengths, tokens = found["lengths"], {}
    for camera, counts in lengths.items():
        shape = (sum(counts), *found["shape"])  # copy on write: torch wants arrays that it may write to
        rows = np.memmap(folder / f"{camera}.f32", np.float32, "c", shape=shape) if shape[0] else np.zeros(shape, np.float32)
        tokens[camera] = torch.from_numpy(rows)
    return tokens, lengths


def _write(folder: Path, told: dict, encoded: Iterable[dict[str, Tensor]]) -> None:
    """A folder that is there is whole: it gets its name last."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    lengths: dict[str, list[int]] = {camera: [] for camera in told["cameras"]}
    shape: tuple[int, ...] = ()
    with contextlib.ExitStack() as stack:
        files = {camera: stack.enter_context(open(part / f"{camera}.f32", "wb")) for camera in lengths}
        for episode in encoded:
            for camera, rows in episode.items():
                files[camera].write(rows.numpy().tobytes())
                lengths[camera].append(len(rows))
                shape = tuple(rows.shape[1:])
    (part / "latents.json").write_text(json.dumps({"of": told, "lengths": lengths, "shape": shape}))
    part.replace(folder)
