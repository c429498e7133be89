"""Claim: one checkpoint acts from any number of its cameras, and one that dies in the middle of an episode costs little.

| arm | the observation has |
|---|---|
| all three, two, one of them | these cameras, the whole episode: every choice |
| X dies | all, until a tick drawn from the seed; from then on X is missing |

Lift from two cameras of the scene and the one on the wrist; every arm runs the same 50 seeds. A camera that dies is missing from the
observation, as a robot's interface leaves it out: noticing that a picture is frozen or black is the safety layer's work. Two
checkpoints that differ in `camera_dropout` alone (0.4 and none); the second is told beside the first and not judged. Data and
checkpoints are made the first time.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import combinations
from pathlib import Path

import gymnasium
import numpy as np

import uwm_envs
from uwm.bench import base, experiment
from uwm.bench.gates import ROLLOUTS, Gate
from uwm.bench.runner import Result
from uwm.robot import evaluate as evaluation
from uwm.robot.policy import Policy, PolicyConfig
from uwm.training import load_model

CLAIM = "One checkpoint acts from any number of its cameras, and a camera that dies in the middle of an episode costs at most 10 points."
CAMERAS = ("agentview", "wrist", "sideview")
DATA, OUT, EPISODES = Path("runs/bench/cameras_lift.zarr"), "runs/bench/cameras_lift", 400
MODELS = {"view dropout": 0.4, "no view dropout": 0.0}  # `camera_dropout` of each
OURS, OTHER = MODELS
TRAINING = ("patterns@train.objective.patterns=actions", "model.video_frames=[]", "train.steps=2000", "threads=1", "logger=off")
POLICY = PolicyConfig()  # that of `uwm eval`
DIES = (5, 30)  # ticks, the last one not; an expert takes about forty
FIRST_SEED = 70_000
ABLE, LOST = 0.9, 0.1  # success with all cameras, and what a dying one may cost

View = tuple[tuple[str, ...], str]  # cameras that there are, and the one of them that dies ("": none)


def arms(cameras: tuple[str, ...]) -> dict[str, View]:
    """Every choice of cameras, the most first, and every one that dies."""
    chosen = [some for count in range(len(cameras), 0, -1) for some in combinations(cameras, count)]
    return {", ".join(some): (some, "") for some in chosen} | {f"{camera} dies": (cameras, camera) for camera in cameras}


class Dying(gymnasium.Wrapper):
    """A world one of whose cameras is missing from the observation from the tick `dies_at(seed)` on; episodes need a seed."""

    def __init__(self, env: gymnasium.Env, camera: str):
        super().__init__(env)
        self.camera, self.left = camera, 0

    def reset(self, *, seed: int, options: dict | None = None):
        observation, info = self.env.reset(seed=seed, options=options)
        self.left = dies_at(seed)
        return self._seen(observation), info

    def step(self, action):
        observation, *rest = self.env.step(action)
        self.left -= 1
        return self._seen(observation), *rest

    def _seen(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return observation if self.left > 0 else {name: value for name, value in observation.items() if name != self.camera}


def dies_at(seed: int) -> int:
    """The first tick without the camera, the same for whichever camera it is."""
    return int(np.random.default_rng([seed, 3]).integers(*DIES))


def run(quick: bool, out: Path | None) -> Result:
    """All arms of both checkpoints on the same seeds; a quick run drives the toy world with random weights and judges nothing."""
    seeds = list(range(FIRST_SEED, FIRST_SEED + (2 if quick else ROLLOUTS)))
    world, cameras, checkpoints = ("Toy", CAMERAS[:2], dict.fromkeys(MODELS)) if quick else ("Lift", CAMERAS, trained())
    found = {}
    for name, checkpoint in checkpoints.items():
        told = [base.weights_of(checkpoint) if checkpoint else "", repr(POLICY), seeds]
        measuring = {arm: partial(measured, world, checkpoint, view, seeds) for arm, view in arms(cameras).items()}
        runs = experiment.run_arms(f"cameras-{name.replace(' ', '-')}", measuring, (0,), told, *experiment.where(quick))
        found[name] = {arm: each[0] for arm, each in runs.items()}
    counts = {name: by_count(outcomes_of(each), cameras) for name, each in found.items()}
    return Result(CLAIM, judged(found, cameras, not quick), seeds, {**found, "success by the number of cameras": counts})


def trained() -> dict[str, Path]:
    """The checkpoints, trained beside each other the first time."""
    base.made("-m", "uwm.cli", "collect", "world=lift", f"world.cameras=[{','.join(CAMERAS)}]", f"out={DATA}", f"episodes={EPISODES}")
    with ThreadPoolExecutor(experiment.WORKERS) as pool:
        return dict(zip(MODELS, pool.map(_trained, MODELS.values()), strict=True))


def _trained(dropout: float) -> Path:
    out = f"{OUT}_{dropout:g}"
    base.made("-m", "uwm.cli", "train", f"data={DATA}", f"out={out}", f"camera_dropout={dropout:g}", *TRAINING)
    return Path(out) / "model"


def measured(world: str, checkpoint: Path | None, view: View, seeds: list[int], _: int) -> dict:
    """Episodes of one arm: which succeeded, of all and of those in which a camera had died before the end."""
    model = load_model(checkpoint)[0] if checkpoint else base.random_model(CAMERAS[:2], 32, horizon=18, video_frames=())
    cameras, dying = view

    def make() -> gymnasium.Env:
        env = uwm_envs.make(world, cameras=cameras, image_size=model.config.autoencoder.image_size)
        return Dying(env, dying) if dying else env

    results = base.rolled_out(make, Policy(model, POLICY), seeds)
    died = {"died in": sum(each.ticks > dies_at(each.seed) for each in results)} if dying else {}
    return {**evaluation.summary(results), **died, "succeeded": [each.success for each in results]}


def outcomes_of(found: Mapping[str, dict]) -> dict[str, np.ndarray]:
    """{arm: outcomes, 0 or 1, seed by seed}."""
    return {arm: np.array(figures["succeeded"], float) for arm, figures in found.items()}


def by_count(outcomes: Mapping[str, np.ndarray], cameras: tuple[str, ...]) -> dict[int, dict[str, float]]:
    """{number of cameras: {which: success}}, the most first."""
    whole = {arm: view[0] for arm, view in arms(cameras).items() if not view[1]}
    counts = range(len(cameras), 0, -1)
    return {count: {arm: float(outcomes[arm].mean()) for arm, some in whole.items() if len(some) == count} for count in counts}


def judged(found: Mapping[str, Mapping[str, dict]], cameras: tuple[str, ...], enough: bool) -> list[Gate]:
    """Success with all cameras, beside it that with fewer; and what each dying camera costs, seed by seed."""
    ours, other = (outcomes_of(found[name]) for name in (OURS, OTHER))
    everything, *fewer = by_count(ours, cameras).values()
    ((whole, rate),) = everything.items()
    told = "; ".join(", ".join(f"{arm} {each:.2f}" for arm, each in some.items()) for some in fewer)
    gates = [Gate(f"success with all {len(cameras)} cameras", rate, ">=", ABLE, enough, told, tuple(found[OURS][whole]["interval"]))]
    for camera in cameras:
        arm = f"{camera} dies"
        lost, interval = experiment.paired(ours[whole] - ours[arm])
        baseline = f"{OTHER}: {(other[whole] - other[arm]).mean():.2f} of {other[whole].mean():.2f}"
        gates.append(Gate(f"success lost when {arm}", lost, "<=", LOST, enough, baseline, interval))
    return gates
