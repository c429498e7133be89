"""Methods on equal terms: a config each, the same demonstrations, steps, trainer and rollouts, and as many parameters.

```
uwm train baseline=NAME  -->  success in closed loop, with the policy that belongs to it
                         -->  for our own model: the loss of every mode on episodes that it never saw
```

All arms imitate what the expert wished for. Figures of an arm depend on this file: tasks and gates stand in `unified_bench`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from uwm.bench import base
from uwm.build import make_world
from uwm.composing import compose
from uwm.core.config import from_mapping
from uwm.core.patterns import Pattern
from uwm.learn import objective
from uwm.learn.loop import generator_at
from uwm.nn.robot_model import RobotModel
from uwm.robot import evaluate as evaluation
from uwm.robot.policy import Policy
from uwm.runs import EvalRun, TrainRun
from uwm.training import held_out, load_model, train

AHEAD = ("model.past=0", "model.horizon=16")  # of every arm; its frames are 8 and 16 ticks ahead
DRAWS = 8  # noise draws per held-out window
NOT_ACTING = ("autoencoder", "posterior")  # parts that no policy needs

MODES = {
    "policy": Pattern(1.0, "constant", "absent"),
    "streaming": Pattern(1.0, "ladder", "absent", chunk=3),
    "forward": Pattern(1.0, "given", "constant"),
    "inverse": Pattern(1.0, "constant", "given"),
    "video": Pattern(1.0, "absent", "constant"),
    "joint": Pattern(1.0, "constant", "constant"),
}
SPECIALISTS = {mode: (pattern,) for mode, pattern in MODES.items() if mode != "policy"}  # dp-dit is that of the policy
SPECIALISTS["streaming"] = (replace(MODES["streaming"], weight=0.8), replace(MODES["policy"], weight=0.2))  # SDP: a fifth fills the buffer
BASELINES = {  # and the policy that belongs to each
    "dp-unet": "dp", "dp-dit": "dp", "pad": "pad", "gr1": "gr1",
    "bc-mlp": "regression", "bc-transformer": "regression", "act": "regression",
}  # fmt: skip
FORESEE = ("pad", "gr1")  # baselines that do
OURS = "UWM"
STREAMING = ("policy=streaming", "policy.past=0", "policy.rows=15", "policy.chunk=3", "policy.chunks=5")


@dataclass(frozen=True)
class Task:
    """A world of `configs/world`, where its demonstrations are and the command that makes them, and what every arm's training has.

    `states`: the model has no cameras and foresees what it will feel. `full`: the best reward that is a score of 1, 0: success counts.
    `sizes`: of networks whose parameters are not ours, so that they are as many.
    """

    world: str
    data: str
    made: tuple[str, ...]
    training: tuple[str, ...]
    states: bool = False
    full: float = 0.0
    rollouts: int = 50
    windows: int = 256
    sizes: tuple[tuple[str, str], ...] = ()

    @property
    def frames(self) -> tuple[str, ...]:
        """The overrides of a model that foresees."""
        return ("model.video_frames=[]", "model.state_frames=[8,16]") if self.states else ("model.video_frames=[8,16]",)


def arms() -> list[str]:
    """Ours, the baselines, and the specialists."""
    return [OURS, *BASELINES, *SPECIALISTS]


def run_of(task: Task, arm: str, seed: int, out: Path) -> TrainRun:
    """The training of an arm, composed as its command would be."""
    told = [f"data={task.data}", f"out={out}", *task.training, *AHEAD, f"train.seed={seed}", "logger=off", "streams.action=action_intended"]
    told += task.frames if arm not in BASELINES or arm in FORESEE else ["model.video_frames=[]"]
    told += [size for name, size in task.sizes if name == arm]
    run = from_mapping(TrainRun, compose("train", [*told, *([f"baseline={arm}"] if arm in BASELINES else [])]))
    patterns = SPECIALISTS.get(arm, run.train.objective.patterns)
    return replace(run, train=replace(run.train, objective=replace(run.train.objective, patterns=_seen_as(task, patterns))))


def _seen_as(task: Task, patterns: tuple[Pattern, ...]) -> tuple[Pattern, ...]:
    """Patterns for what the task foresees: where it is states, the rules of video are theirs."""
    return tuple(replace(pattern, state=pattern.video, video="absent") for pattern in patterns) if task.states else patterns


def acting(model: RobotModel) -> int:
    """Parameters that a policy needs."""
    return sum(p.numel() for name, p in model.named_parameters() if name.partition(".")[0] not in NOT_ACTING)


def measured(task: Task, arm: str, folder: str, first_seed: int, seed: int) -> dict:
    """Trains an arm, or goes on with its training, and measures it."""
    out = Path(folder) / task.world / f"{arm}-{seed}"
    path = train(run_of(task, arm, seed, out))
    model, _ = load_model(path)
    found = {"parameters": acting(model), **dict(_losses(task, path, arm))}
    for name, overrides in _policies(arm):
        found |= _driven(task, model, name, overrides, range(first_seed, first_seed + task.rollouts))
    return found


def _policies(arm: str) -> list[tuple[str, tuple[str, ...]]]:
    """(what it is called in the figures, its config): ours acts in both loops, a specialist of another mode in none."""
    if arm in BASELINES:
        return [("", (f"policy={BASELINES[arm]}",))]
    return [*([("", ("policy=dp",))] if arm == OURS else []), *([("streaming ", STREAMING)] if arm in (OURS, "streaming") else [])]


def _losses(task: Task, path: Path, arm: str) -> Iterator[tuple[str, float]]:
    """Denoising losses on held-out windows, of the modes that an arm was made for."""
    modes = [mode for mode in MODES if arm in (OURS, mode) or (arm, mode) == ("dp-dit", "policy")]
    if not modes:
        return
    model, windows = held_out(path)
    config = from_mapping(TrainRun, load_model(path)[1]["config"]).train.objective
    batch = windows.batch(np.linspace(0, len(windows) - 1, min(task.windows, len(windows))).astype(int))
    for mode in modes:
        asked = replace(config, draws=DRAWS, patterns=_seen_as(task, (MODES[mode],)))
        with torch.no_grad():
            yield f"loss {mode}", float(objective.loss(model, batch, asked, generator_at(0, 0))[0])


def _driven(task: Task, model: RobotModel, name: str, overrides: tuple[str, ...], seeds: range) -> dict:
    """Rollouts of one policy: success with its interval, and what counts, episode by episode: the score where there is one."""
    run = from_mapping(EvalRun, compose("eval", [f"world={task.world}", *overrides]))
    results = base.rolled_out(partial(make_world, run.world), Policy(model, run.policy), seeds)
    outcomes = [min(each.best / task.full, 1.0) if task.full else float(each.success) for each in results]
    told = evaluation.summary(results)
    return {
        f"{name}success": told["success"], f"{name}interval": told["interval"], f"{name}calls_per_action": told["calls_per_action"],
        f"{name}outcome": float(np.mean(outcomes)), f"{name}outcomes": outcomes,
    }  # fmt: skip


def demonstrations(task: Task) -> None:
    """Makes a task's data; does nothing when it is there."""
    base.made(*task.made)
