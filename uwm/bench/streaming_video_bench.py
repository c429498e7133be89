"""Claim: streamed forward dynamics: noisy frames survive from one finished frame to the next, which saves calls and harms none.

| arm | calls a frame |
|---|---|
| resampled | every frame from noise to clean by itself, behind the finished ones: all rows |
| streamed, h in flight | h frames on a ladder, 1/h of the rows, and one to read a finished frame |

A hundred frames with all actions given, twelve times the trained length, of one causal model; frames in flight share every call. The
errors are of the frames' latents, whose mean square is 1, and of the arm's tip, as a judge that knows only real frames sees it.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from uwm.bench import clip_data, experiment
from uwm.bench.ar_diffusion_bench import CAUSAL
from uwm.bench.clip_data import FRAMES, PER_FRAME, error
from uwm.bench.experiment import SEEDS, gate, values
from uwm.bench.gates import Gate
from uwm.bench.runner import Result
from uwm.core.patterns import Pattern
from uwm.nn.stream_model import StreamModel
from uwm.sample.rollout import rollout

CLAIM = "Streamed forward dynamics: frames in flight share the calls, over a hundred frames, and are as good as resampled ones."
FULL = {"clips": 2400, "held": 32, "steps": 1200, "batch": 16, "rows": 12, "flights": (2, 3, 4, 6), "judged": 3, "frames": 100}
QUICK = {"clips": 64, "held": 8, "steps": 30, "batch": 8, "rows": 4, "flights": (2,), "judged": 2, "frames": 16}
KNOWN = 2
SLACK, WORSE = 1.3, 1.05  # of h times fewer calls; of the resampled error


def run(quick: bool, out: Path | None) -> Result:
    """The same model on every ladder, for all seeds."""
    budget, seeds = (QUICK, SEEDS[:1]) if quick else (FULL, SEEDS)
    found = experiment.run_arms("streaming-video", {"causal": partial(measured, budget)}, seeds, budget, *experiment.where(quick))
    return Result(CLAIM, judged(found, budget, not quick), seeds, experiment.summary(found))


def judged(found: experiment.Found, budget: dict, enough: bool) -> list[Gate]:
    """One ladder against resampling; calls are exact, errors are compared seed by seed."""
    flight = budget["judged"]
    over = lambda figure: values(found, "causal", f"{figure}, {flight}") / values(found, "causal", f"{figure}, 1")  # noqa: E731
    fewer = 1 / over("calls a frame")
    return [
        Gate(f"calls a frame, resampled / {flight} in flight", float(fewer.min()), ">=", flight / SLACK, True, "every frame by itself"),
        gate(f"error of latents, {flight} in flight / resampled", over("latents"), "<=", WORSE, enough, "every frame by itself"),
        gate(f"tip at the end, {flight} in flight / resampled", over("tip at the end"), "<=", WORSE, enough, "every frame by itself"),
    ]


def trained(budget: dict, seed: int) -> StreamModel:
    """A causal model of clips for forward dynamics: all actions are given."""
    return clip_data.trained(budget, Pattern(video="fopp", action="given"), seed, CAUSAL, registers=0)


def measured(budget: dict, seed: int) -> dict:
    """One model: errors and calls with 1 (resampled) and more frames in flight."""
    model = trained(budget, seed)
    long = clip_data.longer(budget["clips"], budget["held"], budget["frames"])
    judge = clip_data.tokens(budget["clips"], budget["held"]).places
    true, actions, tips = long.held["top"], {"action": long.held["action"]}, long.clips.tip
    known, rows, ahead = true[:, : KNOWN * PER_FRAME], budget["rows"], budget["frames"] - KNOWN
    found: dict = {"judge of places": judge.score, "tip, seen in true frames": float(clip_data.tips_apart(judge, true, tips).mean())}
    still = known[:, -PER_FRAME:].repeat(1, budget["frames"], 1)
    found["latents, the last known frame"] = error(still, true, range(KNOWN, budget["frames"]))
    for flight in (1, *budget["flights"]):
        frames = list(rollout(model, {"top": known}, ahead, actions, rows // flight, rows, FRAMES, range(len(true))))
        whole = torch.cat([known, *(each.values["top"] for each in frames)], dim=1)
        apart = clip_data.tips_apart(judge, whole, tips)
        found |= {
            f"calls a frame, {flight}": (frames[-1].calls - frames[0].calls) / (ahead - 1),
            f"latents, {flight}": error(whole, true, range(KNOWN, budget["frames"])),
            f"tip, {flight}": float(apart[KNOWN:].mean()), f"tip at the end, {flight}": float(apart[-FRAMES:].mean()),
            **{f"tip, {flight}, frame {at}": apart_at for at, apart_at in _at(apart, budget["frames"])},
        }  # fmt: skip
    return found


def _at(apart: np.ndarray, frames: int) -> Iterable[tuple[int, float]]:
    """The drift: the tip's distance at eight frames along the clip."""
    return [(int(at), float(apart[at])) for at in np.linspace(KNOWN, frames - 1, 8).astype(int)]
