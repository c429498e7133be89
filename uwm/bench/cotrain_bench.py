"""Claim: where few episodes have actions, the video of the others makes a better policy of them, and costs nothing where all have.

| arm | learns from |
|---|---|
| policy only | the episodes with actions: 5, 10, 25, 50 or 100 % of all, `patterns: actions` |
| co-trained | the same, and all episodes as video without actions (a member with `use_actions: false`), `patterns: unified` |

Lift from two cameras, 400 demonstrations (of 200 the smallest share is nine, from which success is a lottery, docs/log.md); the actions
are hidden, what the robot felt is not. Both arms have the same network, steps and robot samples: for every two of these a co-trained
batch holds one of video more. Datasets of one robot share a normaliser. A smaller share is part of a larger one, and what is held out is
the same for all, neither imitated nor seen as video. Each arm is trained and measured once a seed and kept: 30 trainings, six for each
share, which may be measured by themselves (`--only 5%`); a stopped bench goes on. Intervals of gates are over seeds, those of the curve
over rollouts.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from uwm.bench import base, baselines, experiment
from uwm.bench.baselines import DRAWS, MODES, Task
from uwm.bench.experiment import SEEDS, Found, gate, values
from uwm.bench.gates import Gate
from uwm.bench.runner import Result, beside
from uwm.bench.unified_bench import TINY, collected
from uwm.build import make_world
from uwm.composing import compose
from uwm.core.config import from_mapping, to_mapping
from uwm.learn import objective
from uwm.learn.loop import generator_at
from uwm.robot import evaluate as evaluation
from uwm.robot.policy import Policy
from uwm.runs import EvalRun, MemberConfig, MixtureConfig, TrainRun
from uwm.training import held_out, load_model, train

CLAIM = "Video of episodes without actions helps a policy that has few with actions, and costs nothing where all have them."
ALONE, COTRAINED = ARMS = ("policy only", "co-trained")
SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)  # of the training episodes that have actions
PARTS = {f"{share:.0%}": share for share in SHARES}
FEW, LOST = 0.25, 0.03  # up to which share a gain is claimed; of successes, where all have actions
FILM = 0.5  # samples of video without actions for every sample of the robot
LOSS = "held-out action loss"
FIRST_SEED, FOLDER = 60_000, "runs/bench/cotrain"
LIFT = collected("lift", str(base.LIFT_DATA), 400, "train.steps=1000", "train.objective.draws=2")


def run(quick: bool, out: Path | None, only: Sequence[str] = ()) -> Result:
    """The curve of both arms, three seeds. A quick run trains tiny models for two steps on the toy world: it shows that everything fits."""
    if not quick:
        shares = [PARTS[part] for part in only or PARTS]
        found = by_share(study(LIFT, shares, FOLDER, SEEDS, *experiment.where(False)), shares)
        return result(beside(found, only, out, PARTS), SEEDS, True)
    with tempfile.TemporaryDirectory() as folder:
        toy = collected("toy", f"{folder}/toy.zarr", 4, *TINY, "model.horizon=18", workers=1, rollouts=1, windows=4)
        shares = (FEW, 1.0)
        return result(by_share(study(toy, shares, folder, SEEDS[:1], *experiment.where(True)), shares), SEEDS[:1], False)


def study(task: Task, shares: Sequence[float], folder: str, seeds: Sequence[int], kept: Path | None, workers: int) -> Found:
    """{arm at a share: figures for every seed}; the demonstrations are made the first time."""
    baselines.demonstrations(task)
    points = {name(arm, share): (arm, share) for share in shares for arm in ARMS}
    measuring = {told: partial(measured, task, *point, folder) for told, point in points.items()}
    configs = {told: to_mapping(run_of(task, *point, 0, Path(folder))) for told, point in points.items()}
    return experiment.run_arms("cotrain", measuring, seeds, [asdict(task), FIRST_SEED, configs], kept, workers)


def name(arm: str, share: float) -> str:
    """An arm at a share."""
    return f"{arm}, {share:.0%}"


def run_of(task: Task, arm: str, share: float, seed: int, out: Path) -> TrainRun:
    """The training of an arm: the same steps and robot samples in both, and in one of them video beside."""
    told = [f"out={out}", *task.training, f"train.seed={seed}", "logger=off"]
    told += ["patterns@train.objective.patterns=actions", "model.video_frames=[]"] if arm == ALONE else []
    run = from_mapping(TrainRun, compose("train", told))
    members = [MemberConfig("robot", task.data, episodes=share)]
    batch = run.train.batch
    if arm == COTRAINED:
        members.append(MemberConfig("film", task.data, weight=FILM, use_actions=False))
        batch = round(batch * (1 + FILM))
    mixture = MixtureConfig(tuple(members), normaliser="shared")
    return replace(run, mixture=mixture, train=replace(run.train, batch=batch))


def measured(task: Task, arm: str, share: float, folder: str, seed: int) -> dict:
    """Trains an arm, or goes on with its training; its success in closed loop, and its loss on episodes that it never saw."""
    path = train(run_of(task, arm, share, seed, Path(folder) / f"{arm.replace(' ', '-')}-{share:g}-{seed}"))
    run = from_mapping(EvalRun, compose("eval", [f"world={task.world}"]))
    seeds = range(FIRST_SEED, FIRST_SEED + task.rollouts)
    results = base.rolled_out(partial(make_world, run.world), Policy(load_model(path)[0], run.policy), seeds)
    return {**evaluation.summary(results), LOSS: loss(task, path)}


def loss(task: Task, path: Path) -> float:
    """The denoising loss of the actions, video absent, on held-out windows; in spreads of the actions that the arm was trained on."""
    model, windows = held_out(path)
    batch = windows.batch(np.linspace(0, len(windows) - 1, min(task.windows, len(windows))).astype(int))
    asked = objective.ObjectiveConfig(DRAWS, patterns=(MODES["policy"],))
    with torch.no_grad():
        return float(objective.loss(model, batch, asked, generator_at(0, 0))[0])


def by_share(found: Found, shares: Sequence[float]) -> dict[str, dict]:
    """{share: figures of both arms}."""
    return {f"{share:.0%}": experiment.summary({name(arm, share): found[name(arm, share)] for arm in ARMS}) for share in shares}


def result(figures: dict[str, dict], seeds: Sequence[int], is_full: bool) -> Result:
    """Gates, and the curve with the figures behind it, of the shares that were measured."""
    found: Found = {arm: runs for part in figures.values() for arm, runs in part["by seed"].items()}
    shares = [PARTS[part] for part in figures]
    return Result(CLAIM, list(judged(found, shares, is_full)), seeds, {"curve": curve(found, shares), **figures})


def judged(found: Found, shares: Sequence[float], is_full: bool) -> Iterator[Gate]:
    """What video gains where few episodes have actions, over these shares, and what it loses where all have; seed by seed."""
    gained = {share: values(found, name(COTRAINED, share), "success") - values(found, name(ALONE, share), "success") for share in shares}
    rates = {share: [values(found, name(arm, share), "success").mean() for arm in ARMS] for share in shares}
    few = [share for share in shares if share <= FEW]
    if few:
        gain = np.mean([gained[share] for share in few], axis=0).round(9)  # in whole rollouts: 0.85 - 0.8 is not quite 0.05
        told = f"{ALONE} / {COTRAINED}: " + ", ".join(f"{share:.0%} {alone:.2f} / {both:.2f}" for share, (alone, both) in rates.items())
        enough = is_full and few == [share for share in SHARES if share <= FEW]
        yield gate(f"success gained by video, actions in {FEW:.0%} or less", gain, ">", 0.0, enough, told)
    if 1.0 in shares:
        told = f"{ALONE}, {rates[1.0][0]:.2f}"
        yield gate("success lost with video, actions in all episodes", -gained[1.0], "<=", LOST, is_full, told)


def curve(found: Found, shares: Sequence[float]) -> dict:
    """{share: {arm: success of all seeds' rollouts with its Wilson 95 % interval, and the mean held-out loss}}."""
    return {f"{share:g}": {arm: _point(found[name(arm, share)]) for arm in ARMS} for share in shares}


def _point(runs: list[dict]) -> dict:
    successes, rollouts = (sum(each[figure] for each in runs) for figure in ("successes", "rollouts"))
    told = float(np.mean([each[LOSS] for each in runs]))
    return {"success": successes / rollouts, "interval": evaluation.wilson(successes, rollouts), LOSS: told}
