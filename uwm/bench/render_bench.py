"""Claim: the fast profile draws a frame at a third or less of the cost of robosuite's default."""

import statistics
from pathlib import Path

from uwm.bench.gates import Gate
from uwm.bench.runner import Result

CLAIM = "The fast rendering profile costs at most a third of robosuite's default per frame, in the same process and scene."
FULL, QUICK = (tuple(range(6)), 40), ((0,), 24)  # seeds, frames per seed


def run(quick: bool, out: Path | None) -> Result:
    """Measures Lift at 64 pixels from its front camera; the ratio is the median over seeds of ratios of medians."""
    from uwm_envs import render

    seeds, frames = QUICK if quick else FULL
    found = [render.measure("Lift", frames=frames, seed=seed) for seed in seeds]
    return Result(CLAIM, [gate([part["fast_over_robosuite"] for part in found])], seeds, {"runs": found})


def gate(ratios: list[float]) -> Gate:
    """The median ratio. From six runs on, lowest to highest covers the true median with 1 - 2 / 2^n >= 96.9 %."""
    enough = len(ratios) >= len(FULL[0])
    interval = (min(ratios), max(ratios)) if enough else None
    name = "wall time per frame, fast / robosuite"
    return Gate(name, statistics.median(ratios), "<=", 1 / 3, enough, "robosuite's default camera", interval)
