"""Claim: of several things that could be done, a policy does the one that it is told, also in words that it was never told.

| arm | instruction |
|---|---|
| right | what the episode asks for, in one of the four wordings of training |
| other words | the same in wordings that training never had |
| wrong | another colour |
| none | none, as a tenth of the training samples have none |

The world of four colours (`uwm_envs.toy_colours`): what is wanted cannot be seen, and the first target that is touched ends the
episode. One policy that sees through one camera; 100 episodes, the same in all arms. Data and policy are made the first time, in twenty
minutes on a core. Its settings are those with which listening was learnt at all (docs/log.md).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

import uwm_envs
from uwm.bench import base, experiment
from uwm.bench.gates import Gate
from uwm.bench.runner import Result
from uwm.nn.language import LanguageConfig
from uwm.nn.robot_model import RobotModel
from uwm.robot import evaluate as evaluation
from uwm.robot.policy import Policy, PolicyConfig
from uwm.training import load_model
from uwm_envs.toy_colours import COLOURS, WORDINGS

CLAIM = "A policy does which of four things it is told: it needs the instruction, follows a wrong one, and understands other words."
LANGUAGE = LanguageConfig("minilm")
DATA, OUT = Path("runs/bench/toy_colours.zarr"), Path("runs/bench/toy_colours")
SIZE, CAMERAS = 32, ("agentview",)
FIRST_SEED, EPISODES = 50_000, 100
POLICY = PolicyConfig(rows=12, chunk=3, chunks=4, past=0)
TRAINING = (
    "model=tiny", "model.language.kind=minilm", "model.video_frames=[]", "model.horizon=12", "model.grid=4", "model.backbone.width=64",
    "model.backbone.depth=3", "model.backbone.heads=4", "model.backbone.waist=32", "patterns@train.objective.patterns=listening",
    "model.past=0", "train.steps=3000", "train.batch=128", "train.objective.draws=1", "train.optim.rate=5e-4", "train.optim.matrices=adamw",
    "augment.shift=0", "augment.brightness=0", "augment.contrast=0", "camera_dropout=0", "instruction_dropout=0.05",
    "threads=1", "logger=off",
)  # fmt: skip
OTHERS = ("head for the {} spot", "please touch the {} thing")
RIGHT, MATTERS, LOST = 0.8, 0.3, 0.1  # success when told; what a wrong instruction or none costs; what other words may

Wording = Callable[[int, int], str]  # (seed, number of the wanted colour) -> instruction


def said(wordings: tuple[str, ...], turn: int, seed: int, wanted: int) -> str:
    """One of the wordings for the colour that comes `turn` places after the wanted one."""
    return wordings[seed % len(wordings)].format(tuple(COLOURS)[(wanted + turn) % len(COLOURS)])


ARMS: dict[str, Wording] = {
    "right": partial(said, WORDINGS, 0),
    "other words": partial(said, OTHERS, 0),
    "wrong": lambda seed, wanted: said(WORDINGS, 1 + seed % 3, seed, wanted),
    "none": lambda seed, wanted: "",
}


def run(quick: bool, out: Path | None) -> Result:
    """All arms on the same episodes; a quick run drives the world with random weights and judges nothing."""
    seeds = list(range(FIRST_SEED, FIRST_SEED + (2 if quick else EPISODES)))
    checkpoint = "" if quick else str(trained())
    told = [base.weights_of(checkpoint) if checkpoint else "", seeds]
    measuring = {arm: partial(measured, checkpoint, arm, seeds) for arm in ARMS}
    runs = experiment.run_arms("language", measuring, (0,), told, *experiment.where(quick))
    found = {arm: each[0] for arm, each in runs.items()}
    return Result(CLAIM, judged(found, not quick), seeds, found)


def trained() -> Path:
    """The checkpoint, made the first time."""
    base.made("-m", "uwm.cli", "collect", "world=toy-colours", f"out={DATA}", "episodes=4000", "noise=0.3")
    base.made("-m", "uwm.cli", "train", f"data={DATA}", f"out={OUT}", *TRAINING)
    return OUT / "model"


def measured(checkpoint: str, arm: str, seeds: list[int], _: int) -> dict:
    """Rollouts of one arm: which succeeded, and which ended at the colour that was named."""
    policy = Policy(model_of(checkpoint), POLICY)
    envs = [uwm_envs.make("ToyColours", image_size=SIZE, max_steps=None if checkpoint else 6) for _ in seeds]
    for env, seed in zip(envs, seeds, strict=True):
        env.reset(seed=seed)
    told = [ARMS[arm](seed, tuple(COLOURS).index(env.unwrapped.wanted)) for env, seed in zip(envs, seeds, strict=True)]
    results = evaluation.together(envs, policy, seeds, instructions=told)
    reached = [env.unwrapped.reached for env in envs]
    for env in envs:
        env.close()
    followed = [bool(colour) and colour in instruction for colour, instruction in zip(reached, told, strict=True)]
    return {**evaluation.summary(results), "succeeded": [result.success for result in results], "followed": float(np.mean(followed))}


def model_of(checkpoint: str) -> RobotModel:
    """The checkpoint's model, or a small one of random weights."""
    if checkpoint:
        return load_model(checkpoint)[0]
    return base.random_model(CAMERAS, SIZE, horizon=12, video_frames=(), language=LANGUAGE.resolved())


def judged(found: dict, enough: bool) -> list[Gate]:
    """Success with the right instruction, and what the others cost, episode by episode."""
    outcomes = {arm: np.array(figures["succeeded"], float) for arm, figures in found.items()}
    right = outcomes["right"]
    gates = [Gate("success with the right instruction", right.mean(), ">=", RIGHT, enough, "", tuple(found["right"]["interval"]))]
    for arm, sense, limit in (("wrong", ">=", MATTERS), ("none", ">=", MATTERS), ("other words", "<=", LOST)):
        lost, interval = experiment.paired(right - outcomes[arm])
        what = "other words" if arm == "other words" else f"{'a wrong' if arm == 'wrong' else 'no'} instruction"
        gates.append(Gate(f"success lost with {what}", lost, sense, limit, enough, f"{arm} {outcomes[arm].mean():.2f}", interval))
    return gates
