"""Claim: a buffer of actions and frames that is revised by surprise finds a moved object again as a full restart does, in fewer calls.

| arm | in the buffer | after a tick in which the world was not as foreseen |
|---|---|---|
| SDP | actions | goes on (Streaming Diffusion Policy, Høeg et al. 2024) |
| no revision | actions and the frames that they lead to | goes on |
| revision | the same | goes back by as many rows as it was surprised |
| restart | the same | begins anew from noise, at every tick |

In the middle of every episode the object is put elsewhere: Lift's cube to another place of its range, Push-T's block by 5 to 8 cm. One
checkpoint a world serves every arm. What is a usual distance between a frame and what was foreseen (of each of its tokens, the upper
quartile) is measured beforehand, in episodes in which nothing is moved, on other seeds; a world in which the policy fails half of those is
not judged: what cannot do the task cannot find its way back to it. Data and policies are made the first time, in an hour on a core.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import torch
from tqdm import tqdm

from uwm.bench import base, experiment, goal_image_bench
from uwm.bench.gates import ROLLOUTS, Gate
from uwm.bench.goal_image_bench import World
from uwm.bench.runner import Result, beside
from uwm.core.patterns import Pattern
from uwm.learn.loop import TrainConfig
from uwm.learn.objective import ObjectiveConfig
from uwm.nn.backbone import BackboneConfig
from uwm.robot import evaluate as evaluation
from uwm.robot.evaluate import wilson
from uwm.robot.history import observe
from uwm.robot.policy import Policy, PolicyConfig
from uwm.runs import SizeConfig
from uwm.training import load_model
from uwm_envs import tee
from uwm_envs.pusht import PUSHER_RADIUS_M, SUCCESS_COVERAGE

CLAIM = "Revised by surprise, a buffer of actions and frames finds a moved object again as a restart at every tick does, in fewer calls."
FIRST_SEED, CALM_SEED = 70_000, 71_000  # of episodes with a move, and of those in which nothing is moved
CALM = 10  # such episodes
LOST, FEWER, NOTICED, IDLE = 0.05, 2.0, 0.9, 1.25
FOLDER = Path("runs/bench/revision")


@dataclass(frozen=True)
class Case:
    """A world, its ladder, in which ticks the object may be moved, and the longest episode."""

    world: World
    chunk: int
    chunks: int
    moves: tuple[int, int]
    max_steps: int
    checkpoint: str = ""  # "": random weights

    def policy(self, **more) -> PolicyConfig:
        return PolicyConfig("streaming", 12, self.chunk, self.chunks, **more)

    @property
    def frames(self) -> tuple[int, ...]:
        """The ends of the chunks, in ticks."""
        return tuple(self.chunk * (index + 1) for index in range(self.chunks))


LIFT, PUSHT = (Case(goal_image_bench.WORLDS[0], 3, 6, (6, 15), 150), Case(goal_image_bench.WORLDS[1], 4, 4, (20, 60), 300))
PARTS = {case.world.name: case for case in (LIFT, PUSHT)}


def run(quick: bool, out: Path | None, only: Sequence[str] = ()) -> Result:
    """All arms in both worlds on the same seeds and moves. A quick run takes random weights: it shows that everything fits together."""
    seeds, figures = range(FIRST_SEED, FIRST_SEED + (2 if quick else ROLLOUTS)), {}
    for world in ("toy",) if quick else only or PARTS:
        case = replace(PUSHT, max_steps=64) if quick else trained(PARTS[world])
        quiet = calm(case, 1 if quick else CALM)
        chosen, name = arms(case, quiet["usual"]), case.world.name
        weights = base.weights_of(case.checkpoint) if case.checkpoint else ""
        told = [weights, asdict(case), {arm: asdict(policy) for arm, policy in chosen.items()}, list(seeds)]
        measuring = {arm: partial(measured, case, policy, seeds) for arm, policy in chosen.items()}
        found = experiment.run_arms(f"revision-{name}", measuring, (0,), told, *experiment.where(quick))
        figures[name] = {"nothing moved": quiet, **{arm: runs[0] for arm, runs in found.items()}}
    figures = beside(figures, only, out, PARTS)
    gates = [each for name, found in figures.items() for each in judged(name, found, not quick)]
    return Result(CLAIM, gates, list(seeds), figures)


def arms(case: Case, usual: Sequence[float]) -> dict[str, PolicyConfig]:
    """{arm: its policy}. The restart is a revision for which everything is a surprise."""
    return {
        "SDP": case.policy(),
        "no revision": case.policy(frames=True),
        "revision": case.policy(frames=True, revise=1.0, usual=tuple(usual)),
        "restart": case.policy(frames=True, revise=1.0, usual=(1e-6,)),
    }


def trained(case: Case) -> Case:
    """The case with its checkpoint, made the first time: actions alone, and with the frames that they lead to."""
    patterns = (
        Pattern(0.25, "ladder", "absent", chunk=case.chunk), Pattern(0.15, "constant", "absent"),
        Pattern(0.4, "ladder", "along", chunk=case.chunk), Pattern(0.2, "constant", "constant", shared=True),
    )  # fmt: skip
    size = SizeConfig(horizon=case.chunk * case.chunks, video_frames=case.frames, patch=4, backbone=BackboneConfig(depth=4))
    learned = TrainConfig(steps=1200, batch=32, objective=ObjectiveConfig(3, patterns=patterns))
    return replace(case, checkpoint=str(case.world.train(FOLDER / case.world.name, size, learned)))


def calm(case: Case, count: int) -> dict:
    """Where nothing is moved: the `usual` distances of a frame from what was foreseen, and the share of `success`."""
    told = experiment.key([base.weights_of(case.checkpoint) if case.checkpoint else "", asdict(case), count, evaluation.USUAL])
    measure = partial(_calm, case, count)
    return experiment.kept(FOLDER / f"calm-{case.world.name}-{told}.json", measure) if case.checkpoint else measure()


def _calm(case: Case, count: int) -> dict:
    policy, env = _policy(case, case.policy(frames=True)), case.world.make()
    seeds = tqdm(range(CALM_SEED, CALM_SEED + count), f"{case.world.name}, calm", unit="episode")
    found = evaluation.summary([evaluation.rollout(env, policy, seed) for seed in seeds])
    env.close()
    return {"usual": found["usual"], "success": found["success"]}


def measured(case: Case, config: PolicyConfig, seeds: range, _: int) -> dict:
    """Episodes of one arm, every one with its move: outcomes, ticks to recover, calls per tick before and behind the move."""
    policy, env = _policy(case, config), case.world.make()
    runs = [episode(case, env, policy, seed) for seed in seeds]
    env.close()
    outcomes, successes = [run["outcome"] for run in runs], sum(run["success"] for run in runs)
    told = {"outcomes": outcomes, "outcome": float(np.mean(outcomes)), "success": successes / len(runs)}
    told |= {"interval": wilson(successes, len(runs)), "recovered": [run["recovered"] for run in runs]}
    told["ticks to recover"] = float(np.mean([run["ticks to recover"] for run in runs]))
    for when in ("before", "behind"):
        told[f"calls a tick, {when} the move"] = sum(run[f"calls {when}"] for run in runs) / sum(run[f"ticks {when}"] for run in runs)
    surprises = [run["surprise"] for run in runs if run["surprise"] is not None]
    return {**told, "surprise at the move": surprises, "noticed": [surprise > 0 for surprise in surprises]}


def episode(case: Case, env: gymnasium.Env, policy: Policy, seed: int) -> dict:
    """One episode, in which the object is moved once."""
    seen, _ = env.reset(seed=seed)
    memory, generator, before = policy.start([seed]), np.random.default_rng([seed, 3]), policy.calls
    due, at, tick, best, recovered, surprise = int(generator.integers(*case.moves)), None, 0, 0.0, None, None
    calls, ended, success = {"before": 0, "behind": 0}, False, False
    while not ended and tick < case.max_steps:
        moves = at is None and tick >= due
        if moves:
            env.unwrapped.shift_object(elsewhere(case.world.name, env.unwrapped.privileged(), generator))
            seen, at = env.unwrapped.observe(), tick
        observation = observe([seen], policy.cameras)
        if moves and policy.config.frames:
            surprise = float(policy.surprise(memory, observation)[0])
        memory, actions = policy.act(memory, observation)
        calls["before" if at is None else "behind"] += policy.calls - before
        before = policy.calls
        executed = np.clip(actions[0].numpy(), env.action_space.low, env.action_space.high)
        for action in executed:
            seen, reward, terminated, truncated, info = env.step(action)
            tick += 1
            success |= bool(info["success"])
            if at is not None:
                best = max(best, _outcome(reward, info))
                recovered = tick - at if recovered is None and best >= 0.8 else recovered
            ended = terminated or truncated
            if ended:
                break
        memory = policy.done(memory, torch.from_numpy(executed)[None])
    behind = 0 if at is None else tick - at
    return {
        "outcome": best, "success": success, "recovered": recovered is not None, "surprise": surprise,
        "ticks to recover": recovered if recovered is not None else case.max_steps - (at or 0),
        "calls before": calls["before"], "calls behind": calls["behind"], "ticks before": tick - behind, "ticks behind": behind,
    }  # fmt: skip


def _outcome(reward: float, info: dict) -> float:
    """1 for success; in Push-T less is less (its score, Chi et al. 2023)."""
    return min(info["coverage"] / SUCCESS_COVERAGE, 1.0) if "coverage" in info else float(info["success"])


def elsewhere(world: str, told: dict[str, np.ndarray], generator: np.random.Generator) -> np.ndarray:
    """An offset (x, y) in metres that takes the object to a place where it could have begun, and not onto the pusher."""
    if world == "Lift":
        return _drawn(lambda: generator.uniform(-0.03, 0.03, 2) - told["cube_pos"][:2], lambda by: np.linalg.norm(by) >= 0.03)

    def fits(by: np.ndarray) -> bool:
        block = told["block"] + np.array([*by, 0.0])
        return bool(np.abs(block[:2]).max() < 0.15 and tee.distance(told["pusher"], block) > PUSHER_RADIUS_M + 0.01)

    def anywhere() -> np.ndarray:
        length, way = generator.uniform(0.05, 0.08), generator.uniform(0, 2 * np.pi)
        return length * np.array([np.cos(way), np.sin(way)])

    return _drawn(anywhere, fits)


def _drawn(anywhere: Callable[[], np.ndarray], fits: Callable[[np.ndarray], bool]) -> np.ndarray:
    """The first offset that fits of a thousand; else the last."""
    for _ in range(1000):
        offset = anywhere()
        if fits(offset):
            break
    return offset


def _policy(case: Case, config: PolicyConfig) -> Policy:
    if case.checkpoint:
        return Policy(load_model(case.checkpoint)[0], config)
    model = base.random_model(case.world.cameras, 64, horizon=case.chunk * case.chunks, video_frames=case.frames, patch=4)
    return Policy(model, config)


def judged(name: str, found: dict, enough: bool) -> list[Gate]:
    """Revision against the other arms, episode by episode; not where the policy fails when nothing is moved."""
    enough = enough and found["nothing moved"]["success"] > 0.5
    outcomes = lambda arm: np.array(found[arm]["outcomes"], float)  # noqa: E731
    ours, told = found["revision"], f"{outcomes('restart').mean():.3f}"
    lost, interval = experiment.paired(outcomes("restart") - outcomes("revision"))
    gates = [Gate(f"{name}: outcome lost to a restart at every tick", lost, "<=", LOST, enough, told, interval)]
    for arm in ("no revision", "SDP"):
        gained, interval = experiment.paired(outcomes("revision") - outcomes(arm))
        gates.append(Gate(f"{name}: outcome gained over {arm}", gained, ">", 0.0, enough, f"{outcomes(arm).mean():.3f}", interval))
    behind, before = "calls a tick, behind the move", "calls a tick, before the move"
    fewer, idle = found["restart"][behind] / ours[behind], ours[before] / found["no revision"][before]
    noticed, count = sum(ours["noticed"]), len(ours["noticed"])
    return [
        *gates,
        Gate(f"{name}: calls, restart / revision", fewer, ">=", FEWER, enough, "behind the move"),
        Gate(f"{name}: calls, revision / no revision", idle, "<=", IDLE, enough, "before the move"),
        Gate(f"{name}: moves that were a surprise", noticed / count, ">=", NOTICED, enough, "the next frame", wilson(noticed, count)),
    ]
