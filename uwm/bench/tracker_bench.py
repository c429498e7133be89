"""Claim: inverse dynamics follows an expert's film, and is done sooner than the same weights in policy mode (UWM, table III).

```
expert    frame 0 ...... t ...... t + 8 ..... t + 16      an episode of its own on the same seed, seen by both cameras
tracker         observation of its own, the film's frames t + 8 and t + 16 --> actions; eight are sent, then it looks again
```

| arm | sees, beside its observation |
|---|---|
| policy | nothing: the video is absent |
| tracker | the film's next frames, wherever it is itself |
| another film | those of the next seed's film: what following is worth where the film does not fit |

Lift, seeds that were never trained on; all arms in the same code, with the same noise. The time limit is a quarter more than the expert
took. The paper (Zhu et al. 2025) has 0.65 and 0.55 for the tracker on two tasks of LIBERO, 0.47 and 0.26 for the policy.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import torch
from torch import Tensor

import uwm_envs
from uwm.bench import base, experiment
from uwm.bench.gates import ROLLOUTS, Gate
from uwm.bench.runner import Result
from uwm.nn.codecs import frames_to_unit
from uwm.nn.robot_model import RobotModel
from uwm.robot import evaluate as evaluation
from uwm.robot.collect import Episode, record
from uwm.robot.modes import ModePolicy
from uwm.robot.policy import PolicyConfig
from uwm.training import load_model

CLAIM = "Led along an expert's film by inverse dynamics, a model is done sooner than in policy mode, with the same weights."
ARMS: dict[str, int | None] = {"policy": None, "tracker": 0, "another film": 1}  # the film of which seed, counted from one's own
PLANS = PolicyConfig("chunked", rows=12, chunk=8)
LIMITS, LIMIT = (1.0, 1.1, 1.25, 1.5), 1.25  # of the expert's ticks: those that are told, and the one that is judged
FIRST_SEED = 80_000


def run(quick: bool, out: Path | None) -> Result:
    """All arms on the same seeds; a quick run drives the toy world with random weights and judges nothing."""
    world, checkpoint = ("Toy", None) if quick else ("Lift", base.unified("lift"))
    seeds = list(range(FIRST_SEED, FIRST_SEED + (2 if quick else ROLLOUTS)))
    told = ["" if checkpoint is None else base.weights_of(checkpoint), repr(PLANS), seeds]
    measuring = {arm: partial(measured, world, checkpoint, ahead, seeds) for arm, ahead in ARMS.items()}
    found = {arm: runs[0] for arm, runs in experiment.run_arms("tracker", measuring, (0,), told, *experiment.where(quick)).items()}
    return Result(CLAIM, judged(found, not quick), seeds, found)


def judged(found: dict, enough: bool) -> list[Gate]:
    """Successes within the time limit, seed by seed."""
    policy, tracker, other = (np.array(found[arm]["in time"], float) for arm in ARMS)
    sooner, fits = experiment.paired(tracker - policy), experiment.paired(tracker - other)
    rates = f"policy {policy.mean():.2f}, tracker {tracker.mean():.2f}"
    return [
        Gate("success within the limit gained over policy mode", sooner[0], ">", 0.0, enough, rates, sooner[1], paper=True),
        Gate("success within the limit gained over another film", fits[0], ">", 0.0, enough, f"another film {other.mean():.2f}", fits[1]),
    ]


def measured(world: str, checkpoint: Path | None, ahead: int | None, seeds: list[int], _: int) -> dict:
    """Episodes of one arm: which were done within the limit, and which within the world's own."""
    (model, env), expert = entered(world, checkpoint), uwm_envs.make_expert(world)
    results, ticks = [], []
    for seed in seeds:
        shown = {shift: record(env, expert, seed + shift) for shift in {0, ahead or 0}}
        ticks.append(len(shown[0].action))
        led = None if ahead is None else film(model, shown[ahead])
        results.append(evaluation.rollout(env, ModePolicy(model, PLANS, film=led), seed))
    env.close()
    done = {k: [each.success and each.ticks <= k * own for each, own in zip(results, ticks, strict=True)] for k in LIMITS}
    within = {str(k): [sum(each) / len(seeds), *evaluation.wilson(sum(each), len(seeds))] for k, each in done.items()}
    return {
        "in time": done[LIMIT], "success within, and its interval": within, "whenever": evaluation.summary(results),
        "ticks": [each.ticks for each in results], "ticks of the expert": ticks,
    }  # fmt: skip


def entered(world: str, checkpoint: Path | None, max_steps: int | None = None) -> tuple[RobotModel, gymnasium.Env]:
    """A checkpoint's model and a world as it sees it; a model of random weights without one."""
    model = load_model(checkpoint)[0] if checkpoint else base.random_model(("agentview", "wrist"), 32, horizon=8, video_frames=(4, 8))
    side = model.config.autoencoder.image_size
    return model, uwm_envs.make(world, cameras=model.config.cameras, image_size=side, max_steps=max_steps)


def film(model: RobotModel, shown: Episode) -> Callable[[int], dict[str, Tensor]]:
    """From a tick to the model's future frames (1, T, 3, H, W) of what was shown; behind its end the last one stands still."""
    ticks = torch.tensor(model.config.video_frames)

    def ahead(tick: int) -> dict[str, Tensor]:
        there = (tick + ticks).clamp(max=len(shown.action)).numpy()
        return {name: frames_to_unit(torch.from_numpy(shown.observations[name][there]))[None] for name in model.config.cameras}

    return ahead
