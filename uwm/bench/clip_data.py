"""Clips as tokens for the benches of video: drawn once, encoded by components that were fitted on the training part.

The model is small and deep, since frames are copied and moved in steps; predicting the clean frame at a high rate learned most in
1200 small steps (docs/log.md).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uwm.core.patterns import Pattern
from uwm.core.streams import Layout, Stream
from uwm.learn.fit import fit
from uwm.learn.optim import OptimConfig
from uwm.learn.stream_objective import StreamObjective
from uwm.media import judges, latents
from uwm.media.latents import PatchPCA
from uwm.media.metrics import frechet
from uwm.nn.backbone import BackboneConfig
from uwm.nn.stream_model import StreamModel, StreamModelConfig, initialised
from uwm.sample.modes import generate
from uwm_envs import clips as drawn

FOLDER = Path("runs/bench/clips")
FRAMES, SIDE, PATCH, SIZE = 8, 32, 16, 24
GRID = SIDE // PATCH
PER_FRAME, COMPONENTS = GRID * GRID, 12
ACTION_SCALE = 0.1  # metres a frame: actions are of this size
# Video of the camera above, and per frame the action that led to it (zero for the first).
STREAMS = (Stream("top", "video", tuple(range(FRAMES)), SIZE, (GRID, GRID)), Stream("action", "action", tuple(range(FRAMES)), 2))
OPTIM = OptimConfig(rate=5e-3, weight_decay=0.01, warmup=50, final=0.02, clip=1.0, average=0.99)


@dataclass(frozen=True)
class Tokens:
    """Clean tokens {stream: (C, n, S)} of training and held-out clips, the components, and the clips themselves, `clips` those held out."""

    train: dict[str, Tensor]
    held: dict[str, Tensor]
    pca: PatchPCA
    train_clips: drawn.Clips
    clips: drawn.Clips

    @cached_property
    def places(self) -> judges.Judge:
        """Tells where the arm's tip is in the tokens of a frame; it knows real frames only."""
        return judges.of_places(self.train["top"].unflatten(1, (FRAMES, PER_FRAME)).flatten(0, 1), self.train_clips.tip.reshape(-1, 2))


@cache
def tokens(count: int, held: int, seed: int = 0) -> Tokens:
    """`count` clips to learn from and `held` others."""
    train, other = (drawn.make(number, seed + part, FRAMES, SIDE, ("top",), FOLDER) for part, number in enumerate((count, held)))
    pca = latents.fit(torch.from_numpy(train.frames["top"]), PATCH, SIZE, whiten=False)
    return Tokens(_encoded(train, pca), _encoded(other, pca), pca, train, other)


@cache
def longer(count: int, held: int, frames: int, seed: int = 2) -> Tokens:
    """The same components, and `held` clips of more frames than those of training."""
    data = tokens(count, held)
    clips = drawn.make(held, seed, frames, SIDE, ("top",), FOLDER)
    return replace(data, held=_encoded(clips, data.pca), clips=clips)


def model_of(seed: int, streams: tuple[Stream, ...] = STREAMS, registers: int = 4) -> StreamModel:
    """0.4 M parameters that predict clean tokens."""
    backbone = BackboneConfig(64, 6, 4, registers=registers, waist=32)
    return initialised(StreamModelConfig(streams, "clean", noise_shift=2.0, backbone=backbone), seed)


def packed(part: dict[str, Tensor]) -> Tensor:
    """All streams in one row."""
    return Layout(STREAMS).pack(part)


def _encoded(clips: drawn.Clips, pca: PatchPCA) -> dict[str, Tensor]:
    actions = torch.nn.functional.pad(torch.from_numpy(clips.action) / ACTION_SCALE, (0, 0, 1, 0))
    return {"top": pca.encode(torch.from_numpy(clips.frames["top"])), "action": actions}


def trained(budget: dict, pattern: Pattern, seed: int, streams: tuple[Stream, ...] = STREAMS, registers: int = 4) -> StreamModel:
    """A model of clips whose levels and roles were drawn by `pattern`, after the budget's `steps` of `batch` clips."""
    data, model = tokens(budget["clips"], budget["held"]), model_of(seed, streams, registers)
    return fit(model, packed(data.train), StreamObjective((pattern,)), budget["steps"], budget["batch"], seed, OPTIM)


def frame(values: Tensor, place: int) -> Tensor:
    """The tokens of one frame."""
    return values[:, place * PER_FRAME : (place + 1) * PER_FRAME]


def error(found: Tensor, true: Tensor, places: Iterable[int]) -> float:
    """Mean squared error of these frames' latents, whose mean square is 1."""
    return float(torch.stack([(frame(found, place) - frame(true, place)).square().mean() for place in places]).mean())


def frechet_of(model: StreamModel, budget: dict) -> float:
    """Fréchet distance of drawn clips to true ones, in the main components of whole clips; actions are those of training clips."""
    train = tokens(budget["clips"], budget["held"]).train
    count = min(budget["samples"], len(train["top"]))
    drawn = generate(model, ["top"], {"action": train["action"][:count]}, rows=budget["rows"], seeds=range(count))["top"]
    real = train["top"].flatten(1)
    _, _, axes = torch.pca_lowrank(real, q=COMPONENTS, niter=4)
    return frechet(drawn.flatten(1) @ axes, real[-len(drawn) :] @ axes)


def tips_apart(judge: judges.Judge, whole: Tensor, tips: np.ndarray) -> np.ndarray:
    """Mean distance, frame by frame (F,), in metres, of the tip from where it was: tokens (B, F * n, S), places (B, F, 2)."""
    frames = whole.unflatten(1, (tips.shape[1], PER_FRAME))
    return np.linalg.norm(judge(frames.flatten(0, 1)).reshape(tips.shape) - tips, axis=2).mean(axis=0)
