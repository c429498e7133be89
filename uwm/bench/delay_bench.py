"""Claim: with committed actions in its buffer a policy acts on time whatever inference takes, and loses nothing by it.

| world | policy | ticks of injected delay |
|---|---|---|
| Push-T, states | trained here once on 2000 episodes of the planner, pushed aside now and then, and on play | 0 to 8, and 4 with jitter |
| Lift, two cameras | trained here once on 400 episodes of the expert, actions only | the same |

Every kind of chunking runs the same seeds on a virtual clock: the machine's speed has no influence. At no delay, 4 ticks, and 4
with jitter, committed and naive chunking run 50 episodes, the other kinds the first 20, and everything else the first 5: about 1,500
episodes, an hour on two cores. A quick run drives the toy world with random weights: it tells of time (gaps, reaction, first
action), and success is not judged.
"""

import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import torch
from tqdm import tqdm

import uwm_envs
from uwm.bench import base, experiment
from uwm.bench.gates import ROLLOUTS, Gate
from uwm.bench.runner import Result
from uwm.bench.seams import seams, smoothness
from uwm.core.patterns import Pattern
from uwm.learn.loop import TrainConfig
from uwm.learn.objective import ObjectiveConfig
from uwm.learn.optim import OptimConfig
from uwm.nn.backbone import BackboneConfig
from uwm.nn.robot_model import RobotModel
from uwm.robot import evaluate as evaluation
from uwm.robot.chunking import KINDS, ChunkingConfig, Planner
from uwm.robot.clock import VirtualClock
from uwm.robot.controller import Controller, Tick
from uwm.robot.inference import VirtualWorker
from uwm.robot.policy import Policy, PolicyConfig
from uwm.robot.robots.simulated import SimulatedRobot
from uwm.runs import SizeConfig, StreamsConfig, TrainRun
from uwm.training import load_model, train
from uwm_data import copy_store
from uwm_data.journal import JOURNAL
from uwm_envs.pusht import SUCCESS_COVERAGE

CLAIM = "Committed actions in the rolling buffer: no gap, no jump, and at most 5 points lost at 4 ticks of delay."
LOST, JUMP, JUDGED = 0.05, 1.2, 4  # points, ratio, ticks of delay at which both are judged
DELAYS, JITTER = tuple(range(9)), 1.0  # ticks; jitter is uniform on top
LIFT, LIFT_DATA = Path("runs/bench/delay_lift"), base.LIFT_DATA
LIFT_TRAINING = ("patterns@train.objective.patterns=actions", "train.steps=4000")
PUSHT, PUSHT_DATA = Path("runs/bench/delay_pusht"), Path("runs/bench/pusht_pushed.zarr")
PLAYED, PLAYED_DATA = Path("runs/bench/delay_pusht_played"), Path("runs/bench/pusht_played.zarr")
PUSHT_MADE = ("--episodes", "2000", "--pushed-m", "0.02", "--workers", "2")
PUSHT_STREAMS = StreamsConfig(cameras=(), proprio=("state",), action="action")
GATED = ("committed", "naive")
KEPT = Path("runs/bench/delay")
COMPARED, OUTLINE = 20, 5  # episodes of a kind that no gate looks at, and of a delay that none does
FIRST_SEED = 50_000  # below the seeds of Push-T's data and above those of Lift's


@dataclass(frozen=True)
class Case:
    """One world with a model: `checkpoint` "" for random weights; the chunk, and chunks of the buffer and of the whole horizon.

    `foresee`: committed plans are made from what the model foresees. `full`: the best reward of an episode that is a score of 1,
    less is less (Push-T's score, Chi et al. 2023); 0: there is no score.
    """

    world: str
    checkpoint: str
    chunk: int
    buffer: int
    whole: int
    rows: int = 12
    max_steps: int | None = None
    loose: float = 0.0
    foresee: bool = False
    full: float = 0.0

    def score(self, best: float) -> float:
        """The score of an episode with this best reward."""
        return min(best / self.full, 1.0)

    def policy(self, kind: str) -> PolicyConfig:
        """Streaming for the committed kind, the whole horizon from noise for the others."""
        if kind == "committed":
            return PolicyConfig("streaming", self.rows, self.chunk, self.buffer, loose=self.loose, foresee=self.foresee)
        return PolicyConfig("chunked", self.rows, self.chunk, self.whole)


@dataclass(frozen=True)
class Cell:
    """One kind of chunking at one delay."""

    kind: str
    delay: int
    jitter: float = 0.0

    @property
    def rollouts(self) -> int:
        """Episodes: all where a gate looks, fewer elsewhere."""
        if self.delay not in (0, JUDGED):
            return OUTLINE
        return ROLLOUTS if self.kind in GATED else COMPARED

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.delay}{' with jitter' if self.jitter else ''}"


def run(quick: bool, out: Path | None) -> Result:
    """All kinds of chunking at all delays, paired seeds."""
    cases = [Case("Toy", "", 2, 2, 8, rows=4)] if quick else [pusht(), lift()]
    delays, seeds = ((0, 4), range(2)) if quick else (DELAYS, range(FIRST_SEED, FIRST_SEED + ROLLOUTS))
    gates, figures = [], {}
    for case in cases:
        found = study(case, cells(delays), list(seeds), workers=1 if quick else 2)
        figures[case.world] = found
        gates += judged(case, found, enough=not quick)
    return Result(CLAIM, gates, list(seeds), figures)


def cells(delays) -> list[Cell]:
    """Every kind at every delay, and at the judged one with jitter."""
    return [Cell(kind, delay) for kind in KINDS for delay in delays] + [Cell(kind, JUDGED, JITTER) for kind in KINDS]


def pusht() -> Case:
    """Push-T from states: 2000 episodes of the planner and a policy, made the first time, in four hours on a core.

    A buffer of 3 x 4, and the state that the model itself foresees up to 8 ticks ahead: what is under way leads there, and the plan
    is made from there. In every episode the planner is pushed aside now and then, so that not all that is under way is wished for;
    and at the end play is there too, since what planners never do is foreseen three times worse by a model of planners.
    """
    # Goes on where it stopped, and does nothing when it is done.
    base.made("datasets/make_pusht_state.py", *PUSHT_MADE, "--out", str(PUSHT_DATA))
    if not (PLAYED_DATA / JOURNAL).exists():
        copy_store(PUSHT_DATA, PLAYED_DATA)
    base.made("datasets/make_pusht_state.py", *PUSHT_MADE, "--played", "1000", "--out", str(PLAYED_DATA))
    run = TrainRun(str(PUSHT_DATA), str(PUSHT), streams=PUSHT_STREAMS, logger="off", model=pusht_size(tuple(range(1, 9))))
    begun = train(replace(run, train=_learned(22000, (0.50, 0.12, 0.38), restarts=(11000,))))
    played = replace(run, data=str(PLAYED_DATA), out=str(PLAYED), failures_teach=True, init=str(begun))
    trained = train(replace(played, train=_learned(5000, (0.60, 0.15, 0.25))))
    return Case("PushT", str(trained), chunk=4, buffer=3, whole=4, foresee=True, full=SUCCESS_COVERAGE)


def pusht_size(state_frames: tuple[int, ...]) -> SizeConfig:
    """A model of Push-T's states that foresees them so many ticks ahead."""
    backbone = BackboneConfig(width=128, depth=3, heads=4, registers=4, waist=64)
    return SizeConfig(horizon=16, video_frames=(), state_frames=state_frames, backbone=backbone)


def _learned(steps: int, shares: tuple[float, float, float], restarts: tuple[int, ...] = ()) -> TrainConfig:
    """A buffer of actions, whole plans, and what follows from actions, in these shares."""
    buffered, whole, followed = shares
    patterns = (
        Pattern(buffered, "ladder", "absent", chunk=4, rungs=3, state="absent"),
        Pattern(whole, "constant", "absent", state="absent"),
        Pattern(followed, "film", "absent", state="outcome"),
    )
    objective, optim = ObjectiveConfig(1, patterns=patterns), OptimConfig(restarts=restarts)
    return TrainConfig(steps=steps, batch=96, precision="float32", objective=objective, optim=optim)


def lift() -> Case:
    """Lift from two cameras: 400 demonstrations and a policy alone, made the first time, in half an hour on a core.

    18 frames: 9 committed and a buffer of 3 x 3, as `configs/patterns/actions.yaml` trains them.
    """
    base.made("-m", "uwm.cli", "collect", f"out={LIFT_DATA}", "episodes=400")
    base.made("-m", "uwm.cli", "train", f"data={LIFT_DATA}", f"out={LIFT}", *LIFT_TRAINING, "threads=1", "logger=off")
    return Case("Lift", str(LIFT / "model"), chunk=3, buffer=3, whole=6, loose=0.2)


def study(case: Case, chosen: list[Cell], seeds: list[int], workers: int) -> dict:
    """{cell: its figures}; those of several workers are kept in `KEPT`."""
    own = measure if workers == 1 else kept
    jobs = {cell.name: partial(own, case, cell, seeds[: cell.rollouts]) for cell in chosen}
    done = dict(tqdm(experiment.side_by_side(jobs, workers), case.world, len(jobs), unit="cell"))
    return {cell.name: done[cell.name] for cell in chosen}


def kept(case: Case, cell: Cell, seeds: list[int]) -> dict:
    """`measure`, or what it found before for the same weights and settings: a bench of an hour may be stopped."""
    told = experiment.key([base.weights_of(case.checkpoint), asdict(case), asdict(cell), asdict(ChunkingConfig()), seeds])
    return experiment.kept(KEPT / f"{case.world}-{told}.json", lambda: measure(case, cell, seeds))


def measure(case: Case, cell: Cell, seeds: list[int]) -> dict:
    """Figures of one cell over all seeds; single-threaded, so that numbers do not depend on the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = load_model(case.checkpoint)[0] if case.checkpoint else random_model()
        policy = Policy(model, case.policy(cell.kind))
        env = world(case, model)
        runs = [episode(env, policy, cell, seed) for seed in seeds]
        env.close()
    finally:
        torch.set_num_threads(before)
    successes = sum(run["success"] for run in runs)
    smooth = smoothness([run.pop("seams") for run in runs], np.random.default_rng(0))
    means = {name: _mean([run[name] for run in runs]) for name in runs[0] if name not in ("success", "reaction")}
    scores = {"scores": [case.score(run["best"]) for run in runs]} if case.full else {}
    return {
        **asdict(cell), "success": successes / len(runs), "interval": evaluation.wilson(successes, len(runs)), "rollouts": len(runs),
        **means, **smooth, **scores, "reaction": max(run["reaction"] for run in runs), "succeeded": [bool(run["success"]) for run in runs],
    }  # fmt: skip


def _mean(values: list[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan


class Best(gymnasium.Wrapper):
    """A world that keeps the best reward of an episode."""

    best = 0.0

    def reset(self, **options):
        self.best = 0.0
        return self.env.reset(**options)

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.best = max(self.best, float(reward))
        return observation, reward, terminated, truncated, info


def world(case: Case, model: RobotModel) -> Best:
    """The world of a case as its model sees it: through cameras, or, without them, as what it feels."""
    own = {"image_size": model.config.autoencoder.image_size} if model.config.cameras else {"proprio": "state"}
    return Best(uwm_envs.make(case.world, cameras=model.config.cameras, max_steps=case.max_steps, **own))


def episode(env: Best, policy: Policy, cell: Cell, seed: int) -> dict:
    """One episode: success, best reward (coverage in Push-T), gaps, ticks, how smooth it was and how fast it reacts."""
    # A control node measures its latency before it starts, so the delay is known from the first plan on.
    clock, config = VirtualClock(), ChunkingConfig(cell.kind, expected_ticks=cell.delay + math.ceil(cell.jitter))
    robot = SimulatedRobot(env, clock, seed)
    robot.connect()
    ticks: list[Tick] = []
    period_s = robot.spec.period_s
    worker = VirtualWorker(
        Planner(policy, config), clock, lambda index, generator: (cell.delay + cell.jitter * generator.uniform()) * period_s, seed
    )  # fmt: skip
    listener = _Keep(ticks)
    found = Controller(robot, policy, clock, worker, config, [listener], seed=seed).run(100_000, lambda _: "over" if robot.ended else "")
    robot.close()
    moving = [tick for tick in ticks if tick.sent is not None]
    return {
        "success": float(robot.success), "best": env.best, "ticks": robot.steps, "gaps": found.gaps, "late": found.late,
        "calls_per_tick": found.calls / found.ticks, "first_action": found.first_action_s / period_s, "reaction": reaction(ticks),
        "seams": seams(np.stack([tick.sent for tick in moving]), [tick.plan for tick in moving], robot.spec.action.gripper),
    }  # fmt: skip


@dataclass
class _Keep:
    """A listener that keeps the ticks."""

    ticks: list[Tick]

    def tick(self, tick: Tick) -> None:
        self.ticks.append(replace(tick, readings={}))

    def close(self) -> None:
        pass


def reaction(ticks: list[Tick]) -> int:
    """Worst case: ticks from what the sensors show first after one plan was asked for to the first action that depends on it.

    A change right behind the asking for plan i is seen by plan i + 1, and acted on with that plan's first executed action.
    """
    asked = {tick.asked: tick.index for tick in ticks if tick.asked is not None}
    began: dict[int, int] = {}
    for tick in ticks:
        began.setdefault(tick.plan, tick.index)
    return max((began[i + 1] - (asked[i] + 1) for i in asked if i + 1 in began), default=0)


def judged(case: Case, found: dict, enough: bool) -> list[Gate]:
    """Ours against itself without delay; beside it what naive switching does."""
    name = case.world
    still, late, naive = (found[Cell(kind, delay).name] for kind, delay in (("committed", 0), ("committed", JUDGED), ("naive", JUDGED)))
    lost = []
    for what, outcomes in (("success", "succeeded"), *([("score", "scores")] if case.full else [])):
        without, behind, other = (np.array(cell[outcomes], float) for cell in (still, late, naive))
        mean, interval = experiment.paired(without - behind)
        baseline = f"no delay, {without.mean():.2f}; naive {other.mean():.2f}"
        lost.append(Gate(f"{name}: {what} lost at {JUDGED} ticks", mean, "<=", LOST, enough, baseline, interval))
    gaps = max(cell["gaps"] for cell in found.values() if cell["kind"] == "committed" and not cell["jitter"])
    ratio, other = late["jump_ratio"], naive["jump_ratio"]
    return [
        *lost,
        Gate(f"{name}: ticks without an action, any delay", gaps, "<=", 0.0, True, "every tick has one"),
        Gate(f"{name}: jump at borders / inside, {JUDGED} ticks", ratio, "<=", JUMP, enough, f"naive {other:.3g}", late["jump_interval"]),
    ]


def random_model() -> RobotModel:
    """A small model for the toy world."""
    return base.random_model(("agentview",), 32, horizon=16, video_frames=())
