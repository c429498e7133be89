"""Claim: a policy that deletes its future video succeeds as often as one that marginalises it with noise, as the UWM paper does.

| arm | video tokens, same weights and seeds |
|---|---|
| absent | not there: no influence, and cheaper |
| noise | held at level 1: pure noise, which actions see (UWM, Zhu et al. 2025, sec. III-C) |
| denoised along | fall together with the actions: what will be seen is drawn too |

Lift and PickPlaceCan from two cameras. Weights of `configs/patterns/unified.yaml`: in training video is absent in two thirds of the
samples, at level 1 in a fiftieth, and at a level of its own in a fourteenth. So noise is a case that they know, but not the usual one. A
world in which no arm succeeds in half of the episodes is not judged.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from uwm.bench import base, experiment
from uwm.bench.gates import ROLLOUTS, Gate
from uwm.bench.runner import Result, beside
from uwm.bench.tracker_bench import PLANS, entered
from uwm.robot import evaluate as evaluation
from uwm.robot.modes import ModePolicy
from uwm.robot.policy import Policy

CLAIM = "A policy may delete its future video instead of marginalising it with noise: it succeeds as often, for less."
ARMS = ("absent", "noise", "denoised along")
PARTS = {"Lift": ("lift", None), "PickPlaceCan": ("can", 250)}  # the checkpoint, and ticks in which it must be done
COST = 0.05  # of successes
FIRST_SEED = 90_000


def run(quick: bool, out: Path | None, only: Sequence[str] = ()) -> Result:
    """All arms in both worlds on the same seeds; a quick run drives the toy world with random weights and judges nothing."""
    seeds, figures = list(range(FIRST_SEED, FIRST_SEED + (2 if quick else ROLLOUTS))), {}
    for world in ("Toy",) if quick else only or PARTS:
        name, max_steps = PARTS.get(world, (None, None))
        checkpoint = base.unified(name) if name else None
        told = [base.weights_of(checkpoint) if checkpoint else "", repr(PLANS), seeds]
        measuring = {arm: partial(measured, world, checkpoint, max_steps, arm, seeds) for arm in ARMS}
        runs = experiment.run_arms(f"marginal-{world}", measuring, (0,), told, *experiment.where(quick))
        figures[world] = {arm: each[0] for arm, each in runs.items()}
    figures = beside(figures, only, out, PARTS)
    gates = [each for world, found in figures.items() for each in judged(world, found, not quick)]
    return Result(CLAIM, gates, seeds, figures)


def judged(world: str, found: dict, enough: bool) -> list[Gate]:
    """What is lost by deleting, seed by seed, and what a plan then takes."""
    outcomes = {arm: np.array(figures["succeeded"], float) for arm, figures in found.items()}
    lost, interval = experiment.paired(outcomes["noise"] - outcomes["absent"])
    rates = ", ".join(f"{arm} {each.mean():.2f}" for arm, each in outcomes.items())
    able = bool(max(each.mean() for each in outcomes.values()) >= 0.5)
    faster = found["noise"]["plan_ms"]["p50"] / found["absent"]["plan_ms"]["p50"]
    return [
        Gate(f"{world}: success lost by absent video", lost, "<=", COST, enough and able, rates, interval),
        Gate(f"{world}: p50 of a plan, noise / absent", faster, ">", 1.0, enough, "video held at level 1"),
    ]


def measured(world: str, checkpoint: Path | None, max_steps: int | None, arm: str, seeds: list[int], _: int) -> dict:
    """Episodes of one arm."""
    model, env = entered(world, checkpoint, max_steps)
    whole = replace(PLANS, chunks=model.config.horizon // PLANS.chunk, marginal=arm == "noise")
    policy = ModePolicy(model, PLANS, model.config.cameras) if arm == "denoised along" else Policy(model, whole)
    results = [evaluation.rollout(env, policy, seed) for seed in seeds]
    env.close()
    plan_ms = evaluation.percentiles([1e3 * seconds for result in results for seconds in result.act_s])
    return {**evaluation.summary(results), "succeeded": [result.success for result in results], "plan_ms": plan_ms}
