"""Claim: a model that was pretrained on many tasks learns another from ten demonstrations better than one from scratch, and LoRA will do.

| arm | begins with | learns |
|---|---|---|
| scratch | random weights | everything |
| dp | random weights | everything, as Diffusion Policy's transformer (`baseline=dp-dit`) |
| full | the pretrained model | everything |
| frozen | the pretrained model | what reads and writes; the trunk is fixed |
| lora | the pretrained model | the same, and matrices of rank 16 beside the trunk's linear layers |

Pretrained once on five tasks of robosuite and seven of Meta-World's ML10 (Yu et al. 2020), by their experts' demonstrations, each task an
equal share, at its own rate and with its own normaliser, told its instruction. The new task is one of ML10's held-out ones. All arms have
its same 10, 25 or 50 demonstrations, steps, batches, policy and episodes; three seeds of training. Data and models are made the first
time, in about ten hours on two cores; a number of demonstrations may be measured by itself (`--only 10`); a stopped bench goes on.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from uwm.bench import base, experiment
from uwm.bench.experiment import SEEDS, Found
from uwm.bench.gates import Gate
from uwm.bench.runner import Result, beside
from uwm.build import collect, make_world
from uwm.composing import compose
from uwm.core.config import from_mapping, to_mapping
from uwm.learn import finetune
from uwm.learn.finetune import AdaptConfig
from uwm.nn import trunks
from uwm.nn.robot_model import ModelConfig
from uwm.robot import evaluate as evaluation
from uwm.robot.policy import Policy
from uwm.runs import EvalRun, MemberConfig, MixtureConfig, TrainRun
from uwm.training import load_model, train

CLAIM = "Pretraining on twelve tasks helps with ten demonstrations of another one, and LoRA loses little against full finetuning."
FIRST_SEED = 120_000  # of rollouts: no demonstration has it
LOST = 0.1  # of successes, LoRA against full finetuning
KINDS = ("full", "frozen", "lora")
ARMS: dict[str, tuple[str, ...]] = {
    "scratch": (),
    "dp": ("baseline=dp-dit",),
    "full": ("adapt.kind=full", "train.optim.rate=1.0e-3"),
    "frozen": ("adapt.kind=frozen",),
    "lora": ("adapt.kind=lora", "adapt.rank=16"),
}
SHAPE = ("model.past=0", "model.horizon=16", "logger=off", "threads=1", "train.precision=float32")  # of every arm


@dataclass(frozen=True)
class Task:
    """A task and the overrides that choose its world, of `uwm collect` and `uwm eval`."""

    name: str
    world: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """What is pretrained on (`episodes` of each task), what is held out, how many demonstrations of it (`counts`), and budgets.

    `model`: overrides of our own model's trainings; `pretraining`, `finetuning`: of these. `acting`: of the rollouts.
    """

    folder: str
    tasks: tuple[Task, ...]
    held_out: Task
    episodes: int
    counts: tuple[int, ...]
    model: tuple[str, ...]
    pretraining: tuple[str, ...]
    finetuning: tuple[str, ...]
    acting: tuple[str, ...] = ()
    rollouts: int = 50
    workers: int = 2


def metaworld(task: str) -> Task:
    """A task of Meta-World seen as robosuite's are: from afar and from the hand."""
    return Task(f"metaworld-{task}", ("world=metaworld", f"world.name=metaworld-{task}", "world.cameras=[agentview,wrist]"))


ROBOSUITE = tuple(Task(name, (f"world={name}",)) for name in ("lift", "can", "square", "stack", "door"))
ML10 = ("reach", "push", "pick-place", "door-open", "drawer-close", "button-press-topdown", "window-open")
FULL = Study(
    "runs/bench/finetune", (*ROBOSUITE, *map(metaworld, ML10)), metaworld("drawer-open"), 50, (10, 25, 50),
    ("model.language.kind=minilm", "model.video_frames=[8,16]"), ("train.steps=6000", "threads=0"), ("train.steps=1000",),
    ("world.max_steps=200",),  # experts need about a hundred
)  # fmt: skip
PARTS = {str(count): count for count in FULL.counts}


def toy(folder: str) -> Study:
    """Two toy worlds, tiny models, two steps and two rollouts: it shows that everything fits."""
    tiny = ("model=tiny", "autoencoder.steps=2", "train.steps=2", "train.batch=4")
    tasks = Task("toy", ("world=toy",)), Task("toy-colours", ("world=toy-colours",))
    return Study(folder, tasks, tasks[0], 3, (3,), ("model.video_frames=[8]",), tiny, tiny, ("world.max_steps=8",), rollouts=2, workers=1)


def run(quick: bool, out: Path | None, only: Sequence[str] = ()) -> Result:
    """All arms with every number of demonstrations. A quick run judges nothing."""
    if not quick:
        counts = [PARTS[part] for part in only or PARTS]
        found = by_count(study(FULL, counts, SEEDS, *experiment.where(False)), counts)
        return result(FULL, beside(found, only, out, PARTS), SEEDS, True)
    with tempfile.TemporaryDirectory() as folder:
        chosen = toy(folder)
        found = study(chosen, chosen.counts, SEEDS[:1], *experiment.where(True))
        return result(chosen, by_count(found, chosen.counts), SEEDS[:1], False)


def study(chosen: Study, counts: Sequence[int], seeds: Sequence[int], kept: Path | None, workers: int) -> Found:
    """{arm and number of demonstrations: its figures for every seed}; pretrains first, or goes on with it."""
    for task, count in dict.fromkeys([(task, chosen.episodes) for task in chosen.tasks] + [(chosen.held_out, n) for n in counts]):
        demonstrations(chosen, task, count)
    begun = str(train(pretraining(chosen)))
    cells = {name(arm, count): (arm, count) for count in counts for arm in ARMS}
    measuring = {cell: partial(measured, chosen, begun, *which) for cell, which in cells.items()}
    configs = {cell: to_mapping(run_of(chosen, begun, *which, 0)) for cell, which in cells.items()} if kept else {}
    told = [asdict(chosen), base.weights_of(begun), FIRST_SEED, configs]
    return experiment.run_arms("finetune", measuring, seeds, told, kept, workers)


def name(arm: str, count: int) -> str:
    """An arm with so many demonstrations."""
    return f"{arm}, {count}"


# ------------------------------------------------------------------------------------------------------------- data and runs


def data_of(chosen: Study, task: Task, count: int) -> Path:
    """Where so many demonstrations of a task are; the first ten are among the first fifty."""
    return Path(chosen.folder) / "data" / f"{task.name}-{count}.zarr"


def demonstrations(chosen: Study, task: Task, count: int) -> None:
    """Makes them; does nothing when they are there."""
    collect(compose("collect", [*task.world, f"out={data_of(chosen, task, count)}", f"episodes={count}", f"workers={chosen.workers}"]))


def pretraining(chosen: Study) -> TrainRun:
    """One model on all tasks, each a member of the mixture."""
    told = [*SHAPE, *chosen.model, *chosen.pretraining, f"out={chosen.folder}/pretrained"]
    members = tuple(MemberConfig(task.name, str(data_of(chosen, task, chosen.episodes))) for task in chosen.tasks)
    return replace(from_mapping(TrainRun, compose("train", told)), mixture=MixtureConfig(members, rate_hz="own"))


def run_of(chosen: Study, begun: str, arm: str, count: int, seed: int) -> TrainRun:
    """The training of an arm, composed as its command would be. All demonstrations teach: none is held out for validation."""
    out = Path(chosen.folder) / f"{arm}-{count}-{seed}"
    told = [*SHAPE, *(chosen.model if arm != "dp" else ()), *chosen.finetuning, *ARMS[arm], f"out={out}", f"train.seed={seed}"]
    told += [f"data={data_of(chosen, chosen.held_out, count)}", "validation=0.0", *([f"init={begun}"] if arm in KINDS else [])]
    return from_mapping(TrainRun, compose("train", told))


# ------------------------------------------------------------------------------------------------------------- what is found


def measured(chosen: Study, begun: str, arm: str, count: int, seed: int) -> dict:
    """Trains an arm, or goes on with its training, and lets it act."""
    training = run_of(chosen, begun, arm, count, seed)
    model, card = load_model(train(training))
    acting = from_mapping(EvalRun, compose("eval", [*chosen.held_out.world, *chosen.acting, "policy=dp"]))
    seeds = range(FIRST_SEED, FIRST_SEED + chosen.rollouts)
    results = base.rolled_out(partial(make_world, acting.world), Policy(model, acting.policy), seeds)
    outcomes = [float(each.success) for each in results]
    learned = {"demonstrations": len(card["split"]["training"]), "learned": learned_by(model.config, training.adapt)}
    return {**evaluation.summary(results), **learned, "outcomes": outcomes}


def learned_by(config: ModelConfig, adapt: AdaptConfig) -> int:
    """Numbers that a training moves."""
    fresh = trunks.make(config)
    finetune.begin(fresh, adapt)
    return sum(parameter.numel() for parameter in fresh.parameters() if parameter.requires_grad)


def outcomes(found: Found, arm: str, counts: Sequence[int]) -> np.ndarray:
    """Success of all seeds' episodes."""
    return np.concatenate([each["outcomes"] for count in counts for each in found[name(arm, count)]])


def by_count(found: Found, counts: Sequence[int]) -> dict[str, dict]:
    """{number of demonstrations: figures of all arms}."""
    return {str(count): experiment.summary({name(arm, count): found[name(arm, count)] for arm in ARMS}) for count in counts}


def result(chosen: Study, figures: dict[str, dict], seeds: Sequence[int], enough: bool) -> Result:
    """The gates, and all figures with the intervals of success over the seeds, of the numbers of demonstrations that were measured."""
    found: Found = {arm: runs for part in figures.values() for arm, runs in part["by seed"].items()}
    pooled = {arm: np.concatenate([each["outcomes"] for each in runs]) for arm, runs in found.items()}
    intervals = {arm: evaluation.wilson(int(sum(each)), len(each)) for arm, each in pooled.items()}
    return Result(CLAIM, list(judged(chosen, found, enough)), seeds, {"intervals of success": intervals, **figures})


def judged(chosen: Study, found: Found, enough: bool) -> Iterator[Gate]:
    """The best way to finetune against both that begin with nothing, episode by episode; and LoRA against all weights."""
    counts = [count for count in chosen.counts if name("full", count) in found]
    if chosen.counts[0] in counts:
        yield from _ahead(chosen.counts[0], found, enough)
    lost, interval = experiment.paired(outcomes(found, "full", counts) - outcomes(found, "lora", counts))
    told = f"full {outcomes(found, 'full', counts).mean():.2f}"
    yield Gate("mean of all numbers: lost by lora", lost, "<=", LOST, enough and len(counts) == len(chosen.counts), told, interval)


def _ahead(count: int, found: Found, enough: bool) -> Iterator[Gate]:
    best = max(KINDS, key=lambda kind: outcomes(found, kind, [count]).mean())
    for other in ("scratch", "dp"):
        ahead, interval = experiment.paired(outcomes(found, best, [count]) - outcomes(found, other, [count]))
        told = f"{other} {outcomes(found, other, [count]).mean():.2f}"
        yield Gate(f"{count} demonstrations: {best} ahead of {other}", ahead, ">", 0.0, enough, told, interval)
