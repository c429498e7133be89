"""Claim: one unified net acts at least as well as the best of seven baselines, and does every mode as well as a specialist for it.

| arm | training | acting |
|---|---|---|
| UWM | `patterns: unified`, the mixture of all modes | as DP; and streaming |
| dp-unet, dp-dit | Diffusion Policy (Chi et al. 2023), U-Net and transformer | 16 rows of DDIM, 16 actions, 8 sent |
| pad | actions and future at one level (PAD, Guo et al. 2024) | the same, the future sampled too |
| gr1 | regression of actions and future (GR-1, Wu et al. 2024) | one call, 16 actions, 8 sent |
| bc-mlp, bc-transformer | regression of actions | the same |
| act | the same with a style (ACT, Zhao et al. 2023) | the same |
| streaming, forward, inverse, video, joint | our network for one mode alone; dp-dit is that of the policy | - |

All have the same demonstrations, steps, optimiser, horizon and rollouts, and parameters within 5 % of each other, none shown past actions.
Our network sees two cameras, or on Push-T the whole state, and foresees 8 and 16 ticks ahead. What counts on Push-T is the score. Each arm
is trained and measured once a seed and kept: 156 runs, a day on two cores, thirteen for each seed of a task, which may be measured by
themselves (`--only lift-0`); a stopped bench goes on. A task is judged when all its seeds are there.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from uwm.bench import base, baselines, delay_bench, experiment
from uwm.bench.baselines import BASELINES, MODES, OURS, Task
from uwm.bench.experiment import SEEDS, Found, gate, values
from uwm.bench.gates import Gate
from uwm.bench.runner import Result, beside
from uwm.core.config import to_mapping
from uwm_envs.pusht import SUCCESS_COVERAGE

CLAIM = "One unified net acts at least as well as the best baseline of equal size, and does every mode as well as a specialist for it."
FIRST_SEED = 80_000
FOLDER = "runs/bench/unified"
LOST, WORSE, EQUAL = 0.03, 1.05, 0.05  # of successes, of a held-out loss, of parameters
PUSHT, FLOAT = str(delay_bench.PUSHT_DATA), "train.precision=float32"


def collected(world: str, data: str, episodes: int, *training: str, workers: int = 2, **more) -> Task:
    """A task whose demonstrations `uwm collect` makes."""
    made = ("-m", "uwm.cli", "collect", f"world={world}", f"out={data}", f"episodes={episodes}", f"workers={workers}")
    return Task(world, data, made, (*training, FLOAT), **more)


TASKS = (
    Task(
        "pusht-state", PUSHT, ("datasets/make_pusht_state.py", *delay_bench.PUSHT_MADE, "--out", PUSHT),
        ("streams.proprio=[state]", "train.steps=6000", "train.batch=96", "train.objective.draws=1", FLOAT),
        states=True, full=SUCCESS_COVERAGE, rollouts=100, sizes=(("bc-mlp", "model.mlp.width=576"),),
    ),
    collected("lift", str(delay_bench.LIFT_DATA), 400, "train.steps=1500"),
    collected("can", str(base.UNIFIED["can"][0]), 200, "train.steps=1500"),
    collected("square", str(base.UNIFIED["square"][0]), 200, "train.steps=1500"),
)  # fmt: skip
PARTS = {f"{task.world}-{seed}": (task, seed) for task in TASKS for seed in SEEDS}
TINY = ("model=tiny", "autoencoder.steps=2", "train.steps=2", "train.batch=4")
TINY_SIZES = (("dp-unet", "model.unet.widths=[8,16]"), ("bc-mlp", "model.mlp.width=32"))


def run(quick: bool, out: Path | None, only: Sequence[str] = ()) -> Result:
    """All arms on all tasks, three seeds. A quick run trains tiny models for two steps on the toy world: it shows that everything fits."""
    if not quick:
        figures = {part: study(*PARTS[part], FOLDER, *experiment.where(False)) for part in only or PARTS}
        return result(beside(figures, only, out, PARTS), PARTS, True)
    with tempfile.TemporaryDirectory() as folder:
        parts = {"toy-0": (toy(folder), 0)}
        return result({part: study(*which, folder, *experiment.where(True)) for part, which in parts.items()}, parts, False)


def toy(folder: str) -> Task:
    """A few demonstrations of the toy world, and one rollout."""
    return collected("toy", f"{folder}/toy.zarr", 4, *TINY, workers=1, rollouts=1, windows=4, sizes=TINY_SIZES)


def study(task: Task, seed: int, folder: str, kept: Path | None, workers: int) -> dict[str, dict]:
    """{arm: figures} of one seed of a task; the demonstrations are made the first time."""
    baselines.demonstrations(task)
    measuring = {arm: partial(baselines.measured, task, arm, folder, FIRST_SEED) for arm in baselines.arms()}
    configs = {arm: to_mapping(baselines.run_of(task, arm, 0, Path(folder))) for arm in measuring} if kept else {}
    found = experiment.run_arms(f"unified-{task.world}", measuring, (seed,), [asdict(task), FIRST_SEED, configs], kept, workers)
    return {arm: runs[0] for arm, runs in found.items()}


def result(figures: dict[str, dict], parts: Mapping[str, tuple[Task, int]], is_full: bool) -> Result:
    """Gates of every task and of their mean. ValueError when an arm of a full run has more or fewer parameters than ours."""
    tasks: dict[str, Found] = {}
    for part, found in figures.items():
        of_task = tasks.setdefault(parts[part][0].world, {arm: [] for arm in found})
        for arm, each in found.items():
            of_task[arm].append(each)
    if is_full:
        for task, found in tasks.items():
            refuse_unequal(task, {arm: int(runs[0]["parameters"]) for arm, runs in found.items()})
    gates = [each for task, found in tasks.items() for each in judged(task, found, is_full)]
    gates += judged_together(tasks, is_full and set(figures) == set(PARTS))
    means = {task: experiment.summary(found)[experiment.MEANS] for task, found in tasks.items()}
    return Result(CLAIM, gates, sorted({parts[part][1] for part in figures}), {experiment.MEANS: means, **figures})


def refuse_unequal(task: str, parameters: dict[str, int]) -> None:
    """ValueError unless all arms have as many parameters as ours."""
    wrong = {arm: count for arm, count in parameters.items() if abs(count / parameters[OURS] - 1) > EQUAL}
    if wrong:
        raise ValueError(f"{task}: arms must have {parameters[OURS]:,} parameters within {EQUAL:.0%}, got {wrong}: change their sizes")


def judged(task: str, found: Found, enough: bool) -> list[Gate]:
    """Ours against the best baseline, episode by episode, and the held-out loss of every mode against its specialist's, seed by seed."""
    best = max(BASELINES, key=lambda arm: _outcomes(found, arm).mean())
    ahead, interval = experiment.paired(_outcomes(found, OURS) - _outcomes(found, best))
    told = f"{best}, {_outcomes(found, best).mean():.3f}"
    gates = [Gate(f"{task}: UWM ahead of the best baseline", ahead, ">=", 0.0, enough and len(found[OURS]) == len(SEEDS), told, interval)]
    for mode in MODES:
        ratio = values(found, OURS, f"loss {mode}") / values(found, _specialist(mode), f"loss {mode}")
        gates.append(gate(f"{task}: held-out loss, {mode}, UWM / specialist", ratio, "<=", WORSE, enough, "same steps and size"))
    return gates


def judged_together(tasks: dict[str, Found], enough: bool) -> list[Gate]:
    """Over the tasks: ours against the best baseline, and against the specialists of both loops; intervals are paired, task by task."""

    def mean_of(arm: str, loop: str = "") -> float:
        return float(np.mean([_outcomes(found, arm, loop).mean() for found in tasks.values()]))

    def ahead(arm: str, other: str, loop: str) -> tuple[float, tuple[float, float]]:
        pairs = [experiment.paired(_outcomes(found, arm, loop) - _outcomes(found, other, loop)) for found in tasks.values()]
        mean = round(float(np.mean([each for each, _ in pairs])), 9)
        half = float(np.sqrt(sum(((high - low) / 2) ** 2 for _, (low, high) in pairs))) / len(pairs)  # tasks are independent
        return mean, (mean - half, mean + half)

    best = max(BASELINES, key=mean_of)
    mean, interval = ahead(OURS, best, "")
    gates = [Gate("mean of the tasks: UWM ahead of the best baseline", mean, ">", 0.0, enough, f"{best}, {mean_of(best):.3f}", interval)]
    for mode, loop in (("policy", ""), ("streaming", "streaming ")):
        mean, interval = ahead(_specialist(mode), OURS, loop)
        told = f"{_specialist(mode)}, {mean_of(_specialist(mode), loop):.3f}"
        gates.append(Gate(f"mean of the tasks: lost to the specialist, {mode}", mean, "<=", LOST, enough, told, interval))
    return gates


def _specialist(mode: str) -> str:
    return "dp-dit" if mode == "policy" else mode


def _outcomes(found: Found, arm: str, loop: str = "") -> np.ndarray:
    """Outcomes of all seeds' episodes."""
    return np.concatenate([each[f"{loop}outcomes"] for each in found[arm]])
