"""Clips as tokens for the benches of video: drawn once, encoded by components that were fitted on the training part.

The model is small and deep, since frames are copied and moved in steps; predicting the clean frame at a high rate learned most in
1200 small steps (docs/log.md).
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from uwm.core.streams import Layout, Stream
from uwm.learn.optim import OptimConfig
from uwm.media import latents
from uwm.media.latents import PatchPCA
from uwm.nn.backbone import BackboneConfig
from uwm.nn.stream_model import StreamModel, StreamModelConfig, initialised
from uwm_envs import clips as drawn

FOLDER = Path("runs/bench/clips")
FRAMES, SIDE, PATCH, SIZE = 8, 32, 16, 24
GRID = SIDE // PATCH
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


@cache
def tokens(count: int, held: int, seed: int = 0) -> Tokens:
    """`count` clips to learn from and `held` others."""
    train, other = (drawn.make(number, seed + part, FRAMES, SIDE, ("top",), FOLDER) for part, number in enumerate((count, held)))
    pca = latents.fit(torch.from_numpy(train.frames["top"]), PATCH, SIZE, whiten=False)
    return Tokens(_encoded(train, pca), _encoded(other, pca), pca, train, other)


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
