"""Claim: one checkpoint serves every mode, and each beats its simplest baseline on episodes it never saw."""

from pathlib import Path

import numpy as np
import torch

from uwm import build
from uwm.bench import modes
from uwm.bench.gates import Gate, relative
from uwm.bench.runner import Result
from uwm.learn.checkpoint import CheckpointError

CHECKPOINT = Path("runs/demo/model")
CLAIM = "One checkpoint serves every mode; each beats its simplest baseline on held-out windows."
ROWS = 12
FULL, QUICK = (256, 8), (24, 2)  # windows, and samples of actions per window
ENOUGH = 128  # windows below which an error is no evidence


def run(quick: bool, out: Path | None) -> Result:
    """Measures the demo's checkpoint on its own held-out episodes; nothing is kept between runs, since it takes minutes."""
    if not (CHECKPOINT / "checkpoint.json").is_file():
        raise CheckpointError(f"there is no checkpoint in {CHECKPOINT}: `python3 run.py demo` or `uwm demo` makes one")
    model, windows = build.held_out(CHECKPOINT)
    count, samples = QUICK if quick else FULL
    chosen = spread(windows.windows, max(model.config.video_frames), count)
    batch, frames, groups = windows.batch(chosen), windows.future_frames(chosen), windows.windows.locate(chosen)[0]
    seeds = [int(index) for index in chosen]
    figures = modes.measure(model, batch, frames, batch.observation.images, ROWS, seeds, samples, torch.from_numpy(groups), examples=0)
    del figures["examples"]
    return Result(CLAIM, gates(figures), seeds, {**figures, "checkpoint": _about(model)})


def _about(model) -> dict:
    return {"path": str(CHECKPOINT), "parameters": sum(p.numel() for p in model.parameters())}


def spread(windows, longest: int, count: int) -> np.ndarray:
    """Window numbers spread evenly over those whose future frames all lie inside their episode."""
    every = np.arange(len(windows))
    place, tick = windows.locate(every)
    ticks = np.bincount(place)
    inside = every[tick + longest <= ticks[place]]
    if not len(inside):
        raise ValueError(f"no held-out episode is longer than {longest} ticks, so no window has all its future frames")
    return inside[np.linspace(0, len(inside) - 1, min(count, len(inside))).astype(int)]


def gates(figures: dict) -> list[Gate]:
    """The gates of the demo for inverse and forward dynamics, and the plain promise of a mode for the others."""
    enough = figures["windows"] >= ENOUGH
    mean, copy = "predict the mean action", "copy the last frame"
    wanted = (
        ("inverse dynamics: action RMSE, relative", figures["inverse"], "<=", 0.5, mean),
        ("forward dynamics: image MSE, relative", figures["forward"], "<", 1.0, copy),
        ("video prediction: image MSE, relative", figures["video"], "<", 1.0, copy),
        ("joint: action RMSE, relative", figures["joint"]["action"], "<", 1.0, mean),
        ("joint: image MSE, relative", figures["joint"]["image"], "<", 1.0, copy),
        ("policy: action RMSE, relative", figures["policy"], "<", 1.0, mean),
    )  # fmt: skip
    return [relative(*gate, enough=enough) for gate in wanted]
