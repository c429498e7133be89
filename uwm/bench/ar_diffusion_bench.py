"""Claim: frames on a wavefront, each finished before the next, go on for three times the trained length, better and in fewer calls than
one frame after the other.

| arm | levels in training | sampling |
|---|---|---|
| overlap | per frame in a fifth of the samples | all frames of a part together, the last four of the part before held |
| independent | per frame, independent (Diffusion Forcing, Chen et al. 2024) | wavefront |
| fopp | never falling along the frames (AR-Diffusion, Sun et al. 2025) | wavefront |

Clips of 8 frames in training; 24 to draw, of which two are known, with all actions given. The wavefront's models are causal and keep
finished frames. Errors are of the pushing arm's tip, in metres, as a judge that knows only real frames sees it.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uwm.bench import clip_data, experiment
from uwm.bench.clip_data import FRAMES, GRID, PER_FRAME, SIZE
from uwm.bench.experiment import SEEDS, gate, values
from uwm.bench.gates import Gate
from uwm.bench.runner import Result
from uwm.core.patterns import Pattern, draw
from uwm.core.streams import Stream
from uwm.learn.stream_objective import stream_errors
from uwm.media import judges, video
from uwm.sample.rollout import rollout

CLAIM = "Frames on a wavefront go on for three times the trained length, better and in fewer calls than one frame after the other."
ARMS = {"overlap": "ptss(0.2)", "independent": "independent", "fopp": "fopp"}
FULL = {"clips": 1200, "held": 64, "steps": 800, "batch": 16, "rows": 12, "gaps": (2, 4, 12), "between": 4}
QUICK = {"clips": 64, "held": 8, "steps": 30, "batch": 8, "rows": 4, "gaps": (1, 2, 4), "between": 2}
LONG, KNOWN, OVERLAP = 3 * FRAMES, 2, 4
CAUSAL = (
    Stream("top", "video", tuple(range(FRAMES)), SIZE, (GRID, GRID), causal=True),
    Stream("action", "action", tuple(range(FRAMES)), 2, causal=True),
)


def run(quick: bool, out: Path | None) -> Result:
    """All arms for all seeds, the same clips and steps."""
    budget = QUICK if quick else FULL
    arms = {name: partial(measured, budget, name) for name in ARMS}
    seeds = SEEDS[:1] if quick else SEEDS
    found = experiment.run_arms("ar-diffusion", arms, seeds, budget, *experiment.where(quick))
    return Result(CLAIM, judged(found, budget, not quick), seeds, experiment.summary(found))


def judged(found: experiment.Found, budget: dict, enough: bool) -> list[Gate]:
    """A gap in between against one frame after the other; FoPP's law against independent levels on what a wavefront shows."""
    of, gap, rows = partial(values, found, "fopp"), budget["between"], budget["rows"]
    lower = of("loss") / values(found, "independent", "loss")
    late = of(f"tip, gap {gap}") / of(f"tip, gap {rows}")
    calls = of(f"calls, gap {gap}") / of(f"calls, gap {rows}")
    over = of(f"tip, gap {gap}") / values(found, "overlap", "tip")
    alone = "one frame after the other"
    return [
        gate("loss on levels that never fall, fopp / independent", lower, "<", 1.0, enough, "independent levels", paper=True),
        gate(f"tip at 3 x the length, gap {gap} / gap {rows}", late, "<", 1.0, enough, alone, paper=True),
        gate(f"calls, gap {gap} / gap {rows}", calls, "<", 1.0, True, alone),
        gate(f"tip at 3 x the length, gap {gap} / parts with overlap", over, "<", 1.0, enough, "four frames held", paper=True),
    ]


def measured(budget: dict, arm: str, seed: int) -> dict:
    """One model: its loss, and tips of long clips for every gap (or, of the `overlap` arm, part by part)."""
    causal = {} if arm == "overlap" else {"streams": CAUSAL, "registers": 0}
    model = clip_data.trained(budget, Pattern(video=ARMS[arm], action="given"), seed, **causal)
    data, long = clip_data.tokens(budget["clips"], budget["held"]), clip_data.longer(budget["clips"], budget["held"], LONG)
    where = data.places
    begin, tips = long.held["top"][:, : KNOWN * PER_FRAME], long.clips.tip
    found = {"judge of places": where.score}
    if arm == "overlap":
        given = {"action": long.held["action"]}
        whole = video.from_frame(model, {"top": begin[:, :PER_FRAME]}, range(len(begin)), rows=budget["rows"],
                                 given={"action": given["action"][:, :FRAMES]})["top"]  # fmt: skip
        whole = video.go_on(model, {"top": whole}, LONG - FRAMES, OVERLAP, range(len(begin)), given, rows=budget["rows"])["top"]
        return found | {"tip": _at_the_end(where, whole, tips)}
    pattern = Pattern(video="fopp", action="given")
    clean = clip_data.packed(data.held)
    generator = torch.Generator().manual_seed(0)
    drawn = draw(pattern, model.layout, len(clean), generator)
    with torch.no_grad():
        found["loss"] = float(stream_errors(model, clean, drawn, generator)[:, model.layout.span("top")].mean())
    conditions = {"action": long.held["action"]}
    for gap in budget["gaps"]:
        frames = list(rollout(model, {"top": begin}, LONG - KNOWN, conditions, gap, budget["rows"], FRAMES, range(len(begin))))
        whole = torch.cat([begin, *(each.values["top"] for each in frames)], dim=1)
        found |= {f"tip, gap {gap}": _at_the_end(where, whole, tips), f"calls, gap {gap}": frames[-1].calls,
                  f"calls of the first, gap {gap}": frames[0].calls}  # fmt: skip
    return found


def _at_the_end(judge: judges.Judge, whole: Tensor, tips: np.ndarray) -> float:
    """Mean distance of the tip from where it was, over the last `FRAMES` of long clips."""
    return float(clip_data.tips_apart(judge, whole, tips)[-FRAMES:].mean())
