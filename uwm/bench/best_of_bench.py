"""Claim: the best of eight plans, by what the same weights foresee of them, reaches the goal more often than the first one.

| arm | plans drawn | sent |
|---|---|---|
| one plan | 1 | it: a chunked policy (Diffusion Policy, Chi et al. 2023) |
| best of 2, best of 8 | 2, 8 | the one that leads to the largest foreseen coverage |
| best of 8, outcomes shuffled | 8 | the one whose neighbour leads there: as much choice, and no foresight |

Push-T from states; the checkpoint of `uwm bench delay`, made the first time. What is foreseen is the block's pose after eight actions,
in one call of the policy's own forward dynamics. The score knows the task: how much of the goal a block in that pose covers. A
demonstrator's policy does not, so this is what foresight adds to imitation when somebody says what is wanted.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uwm.bench import base, delay_bench, experiment
from uwm.bench.delay_bench import FIRST_SEED, Case
from uwm.bench.gates import ROLLOUTS, Gate
from uwm.bench.runner import Result
from uwm.nn.robot_model import RobotModel
from uwm.robot import evaluate as evaluation
from uwm.robot.best import BestOf, Outcome
from uwm.robot.policy import PolicyConfig
from uwm.training import load_model
from uwm_envs import tee
from uwm_envs.pusht import SUCCESS_COVERAGE

CLAIM = "Of eight plans, the one that the same weights foresee to lead furthest reaches the goal more often than a single plan."
ARMS = {"one plan": (1, False), "best of 2": (2, False), "best of 8": (8, False), "best of 8, outcomes shuffled": (8, True)}
GAINED, CHANCE = 0.05, 0.05  # of successes, by choosing with foresight, and without


def run(quick: bool, out: Path | None) -> Result:
    """All arms on the same seeds; a quick run drives Push-T with random weights and judges nothing."""
    case = Case("PushT", "", 2, 2, 4, rows=4, max_steps=16, full=SUCCESS_COVERAGE) if quick else delay_bench.pusht()
    seeds = list(range(FIRST_SEED, FIRST_SEED + (2 if quick else ROLLOUTS)))
    told = [base.weights_of(case.checkpoint) if case.checkpoint else "", asdict(case), seeds]
    measuring = {name: partial(measured, case, *arm, seeds) for name, arm in ARMS.items()}
    runs = experiment.run_arms("best-of", measuring, (0,), told, *experiment.where(quick))
    found = {name: each[0] for name, each in runs.items()}
    return Result(CLAIM, judged(found, not quick), seeds, found)


def measured(case: Case, samples: int, shuffled: bool, seeds: list[int], _: int) -> dict:
    """Rollouts of one arm."""
    model = load_model(case.checkpoint)[0] if case.checkpoint else random_model()
    config = PolicyConfig("chunked", case.rows, case.chunk, case.whole)
    policy = BestOf(model, config, samples, partial(covered, shuffled=shuffled))
    results = base.rolled_out(partial(delay_bench.world, case, model), policy, seeds, at_once=1)
    seconds = [each for result in results for each in result.act_s]
    return {
        **evaluation.summary(results), "succeeded": [each.success for each in results],
        "scores": [case.score(each.best) for each in results], "plan_ms": evaluation.percentiles([1e3 * each for each in seconds]),
    }  # fmt: skip


def random_model() -> RobotModel:
    """A small model of Push-T's states."""
    return base.random_model((), 32, 6, horizon=8, video_frames=(), state_frames=(1, 4))


def covered(outcome: Outcome, shuffled: bool = False) -> Tensor:
    """The share of the goal that the block covers where each plan leads: of states (pusher x y, block x y, cosine and sine)."""
    poses = [(x, y, float(np.arctan2(sine, cosine))) for _, _, x, y, cosine, sine in outcome.proprio[:, -1].tolist()]
    scores = torch.tensor([tee.coverage(list(pose)) for pose in poses])
    return scores.roll(1) if shuffled else scores


def judged(found: dict, enough: bool) -> list[Gate]:
    """What choosing gains, seed by seed."""
    outcomes = {name: np.array(figures["succeeded"], float) for name, figures in found.items()}
    one, gates = outcomes["one plan"], []
    for name, op, limit in (("best of 8", ">=", GAINED), ("best of 8, outcomes shuffled", "<=", CHANCE)):
        mean, interval = experiment.paired(outcomes[name] - one)
        gates.append(Gate(f"success gained by {name}", mean, op, limit, enough, f"one plan, {one.mean():.2f}", interval))
    return gates
