"""Clips as tokens for the benches of video: drawn once, encoded by components that were fitted on the training part."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from uwm.core.streams import Layout, Stream
from uwm.media import latents
from uwm.media.latents import PatchPCA
from uwm_envs import clips as drawn

FOLDER = Path("runs/bench/clips")
FRAMES, SIDE, PATCH, SIZE = 8, 32, 8, 16
GRID = SIDE // PATCH
ACTION_SCALE = 0.1  # metres a frame: actions are of this size
# Video of the camera above, and per frame the action that led to it (zero for the first).
STREAMS = (Stream("top", "video", tuple(range(FRAMES)), SIZE, (GRID, GRID)), Stream("action", "action", tuple(range(FRAMES)), 2))


@dataclass(frozen=True)
class Tokens:
    """Clean tokens {stream: (C, n, S)} of training and held-out clips, the components, and the held-out clips themselves."""

    train: dict[str, Tensor]
    held: dict[str, Tensor]
    pca: PatchPCA
    clips: drawn.Clips


@cache
def tokens(count: int, held: int, seed: int = 0) -> Tokens:
    """`count` clips to learn from and `held` others."""
    train, other = (drawn.make(number, seed + part, FRAMES, SIDE, ("top",), FOLDER) for part, number in enumerate((count, held)))
    pca = latents.fit(torch.from_numpy(train.frames["top"]), PATCH, SIZE)
    return Tokens(_encoded(train, pca), _encoded(other, pca), pca, other)


def packed(part: dict[str, Tensor]) -> Tensor:
    """All streams in one row."""
    return Layout(STREAMS).pack(part)


def _encoded(clips: drawn.Clips, pca: PatchPCA) -> dict[str, Tensor]:
    actions = torch.nn.functional.pad(torch.from_numpy(clips.action) / ACTION_SCALE, (0, 0, 1, 0))
    return {"top": pca.encode(torch.from_numpy(clips.frames["top"])), "action": actions}
