"""Claim: a film dreamt between now and a goal image, and the actions that lead along it, reach the goal as a policy of equal size does.

| arm | training | acting |
|---|---|---|
| film | half of the samples dream the way to a goal, half follow a film (inverse dynamics) | dream, then follow |
| policy | all samples see the goal alone | act |
| still | - | do nothing: how near the goal was anyway |

| world | goal, 24 ticks ahead in an episode of the expert | reached |
|---|---|---|
| Lift | what both cameras see | cube and gripper within 2 cm |
| Push-T | what the camera above sees, of a block that moves 2 cm or 15 degrees meanwhile | block within 2 cm and 15 degrees |

Goals are of seeds that were never trained on; both arms see the same ones, and plan anew every 8 ticks. Data and policies are made the
first time, in two hours on a core.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import torch
from tqdm import tqdm

import uwm_envs
from uwm.bench import base, delay_bench, experiment
from uwm.bench.gates import ROLLOUTS, Gate
from uwm.bench.runner import Result
from uwm.core.patterns import Pattern
from uwm.learn.loop import TrainConfig
from uwm.learn.objective import ObjectiveConfig
from uwm.nn.backbone import BackboneConfig
from uwm.nn.codecs import frames_to_unit
from uwm.nn.model import UnifiedModel
from uwm.robot.evaluate import wilson
from uwm.robot.goals import GoalPolicy
from uwm.robot.history import observe
from uwm.runs import SizeConfig, StreamsConfig, TrainRun
from uwm.training import load_model, train

CLAIM = "A film dreamt up to a goal image, and the actions along it, reach the goal about as often as a policy made for goals."
AHEAD, CHUNK = 24, 8  # ticks
BEHIND = 0.1  # of successes that the film may lose to the policy
FRAMES = (8, 16, 24)
FIRST_SEED = 60_000  # of goals; training has others
FOLDER = Path("runs/bench/goal_image")
ARMS: dict[str, tuple[Pattern, ...]] = {
    "film": (Pattern(0.5, "absent", "goal"), Pattern(0.5, "constant", "film")),
    "policy": (Pattern(1.0, "constant", "goal_only"),),
}


@dataclass(frozen=True)
class World:
    """A world, its cameras and where its episodes are; `collected` the command that makes them."""

    name: str
    cameras: tuple[str, ...]
    data: Path
    collected: tuple[str, ...]

    def make(self, size: int = 64) -> gymnasium.Env:
        return uwm_envs.make(self.name, cameras=self.cameras, image_size=size)

    def train(self, out: Path, size: SizeConfig, learned: TrainConfig) -> Path:
        """A checkpoint trained on the world's episodes, both made the first time."""
        base.made("-m", "uwm.cli", "collect", f"out={self.data}", *self.collected)
        streams = StreamsConfig(cameras={name: name for name in self.cameras})
        return train(TrainRun(str(self.data), str(out), streams=streams, logger="off", model=size, train=learned))


WORLDS = (
    World("Lift", ("agentview", "wrist"), delay_bench.LIFT_DATA, ("episodes=400",)),
    World("PushT", ("agentview",), Path("runs/bench/pusht_images.zarr"), ("world=pusht", "episodes=300")),
)


@dataclass(frozen=True)
class Goal:
    """From `start` (a whole state of the world) to what is seen and how things lie `AHEAD` ticks later in the expert's hands."""

    start: dict
    seen: dict[str, np.ndarray]
    places: dict[str, np.ndarray]
    began: dict[str, np.ndarray]


def run(quick: bool, out: Path | None) -> Result:
    """All worlds and arms, the same goals. A quick run takes random weights: it shows that everything fits together."""
    seeds, gates, figures = range(FIRST_SEED, FIRST_SEED + (2 if quick else ROLLOUTS)), [], {}
    for world in WORLDS[1:] if quick else WORLDS:
        with_model = {arm: None if quick else trained(world, arm) for arm in ARMS}
        found = figures[world.name] = measured(world, with_model, seeds)
        gates += judged(world.name, found, enough=not quick)
    return Result(CLAIM, gates, list(seeds), figures)


def judged(name: str, found: dict, enough: bool) -> list[Gate]:
    """The film against the policy, pair by pair, and against doing nothing."""
    film, policy, still = (np.array(found[arm]["reached"], float) for arm in ("film", "policy", "still"))
    lost, gained = experiment.paired(policy - film), experiment.paired(film - still)
    rates = f"policy {policy.mean():.2f}, film {film.mean():.2f}"
    return [
        Gate(f"{name}: goals lost to a policy of equal size", lost[0], "<=", BEHIND, enough, rates, lost[1]),
        Gate(f"{name}: goals gained over standing still", gained[0], ">=", 0.2, enough, f"still {still.mean():.2f}", gained[1]),
    ]


def trained(world: World, arm: str) -> Path:
    """A checkpoint of an arm, made the first time."""
    size = SizeConfig(horizon=AHEAD, video_frames=FRAMES, patch=4, backbone=BackboneConfig(depth=4))  # four tokens a camera's frame
    learned = TrainConfig(steps=1500, batch=32, objective=ObjectiveConfig(2, patterns=ARMS[arm]))
    return world.train(FOLDER / f"{world.name}-{arm}", size, learned)


def measured(world: World, checkpoints: dict[str, Path | None], seeds: range) -> dict:
    """{arm: which goals it reached, with the interval, and how far off it ended}; `still` does nothing."""
    env = world.make()
    policies = {arm: partial(_led, GoalPolicy(_model(world, path), film=arm == "film")) for arm, path in checkpoints.items()}
    policies["still"] = _unmoved
    found: dict = {arm: {"reached": [], "off": []} for arm in policies}
    for seed, goal in tqdm(goals(world, env, seeds), world.name, len(seeds), unit="goal"):
        for arm, act in policies.items():
            off = attempt(env, goal, partial(act, seed=seed))
            found[arm]["reached"].append(_near(off))
            found[arm]["off"].append(off)
    env.close()
    for each in found.values():
        count, reached = len(each["reached"]), sum(each["reached"])
        each |= {"success": reached / count, "interval": wilson(reached, count)}
        each["off"] = {name: float(np.mean([off[name] for off in each["off"]])) for name in each["off"][0]}
    return found


def goals(world: World, env: gymnasium.Env, seeds: range) -> Iterator[tuple[int, Goal]]:
    """A goal per seed, anywhere in the expert's episode; one that asks for nothing is left out for the next moment that does."""
    expert = uwm_envs.make_expert(world.name)
    for seed in seeds:
        seen, _ = env.reset(seed=seed)
        expert.start(env, np.random.default_rng([seed, 1]))
        inner, states, frames, places, ended = env.unwrapped, [env.unwrapped.get_state()], [seen], [_places(env)], False
        while not ended:
            seen, _, terminated, truncated, _ = env.step(expert.act(env)[0])
            states.append(inner.get_state()), frames.append(seen), places.append(_places(env))
            ended = terminated or truncated
        last = max(len(states) - 1 - AHEAD, 0)
        order = np.random.default_rng([seed, 2]).permutation(last + 1)
        begin = next((t for t in order if not _near(_off(places[t], places[min(t + AHEAD, len(places) - 1)]))), order[0])
        end = min(begin + AHEAD, len(places) - 1)
        yield seed, Goal(states[begin], {name: frames[end][name] for name in world.cameras}, places[end], places[begin])


def attempt(env: gymnasium.Env, goal: Goal, act) -> dict[str, float]:
    """How far things are from where they should be, after all ticks."""
    env.reset(seed=0)
    env.unwrapped.set_state(goal.start)
    seen, executed = env.unwrapped.observe(), []
    for ahead in range(AHEAD, 0, -CHUNK):
        for action in act(seen, executed, goal.seen, ahead)[:CHUNK]:
            executed.append(np.clip(action, env.action_space.low, env.action_space.high))
            seen = env.step(executed[-1])[0]
    return _off(_places(env), goal.places)


def _led(policy: GoalPolicy, seen: dict, executed: list, goal: dict, ahead: int, seed: int) -> np.ndarray:
    cameras, size = policy.model.config.cameras, policy.model.config.action_size
    told = torch.from_numpy(np.array(executed, np.float32).reshape(1, -1, size))
    image = {name: frames_to_unit(torch.from_numpy(np.ascontiguousarray(goal[name])))[None] for name in cameras}
    return policy.act(observe([seen], cameras), told, image, ahead, [seed])[0].numpy()


def _unmoved(seen: dict, executed: list, goal: dict, ahead: int, seed: int) -> np.ndarray:
    """Nothing is done: in Push-T the pusher stays where it is, elsewhere displacements are zero."""
    still = seen["proprio"][:2] / PUSHER_SCALE if seen["proprio"].shape == (2,) else np.zeros(7)
    return np.tile(still.astype(np.float32), (CHUNK, 1))


PUSHER_SCALE = 0.256  # metres: Push-T's action 1.0


def _places(env: gymnasium.Env) -> dict[str, np.ndarray]:
    """What a goal is about: a block's place and angle, or a cube and the gripper."""
    told = env.unwrapped.privileged()
    if "block" in told:
        return {"block": told["block"][:2].copy(), "angle": told["block"][2:3].copy()}
    return {"gripper": told["eef_pos"].copy(), "cube": told["cube_pos"].copy()}


def _off(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> dict[str, float]:
    """Distances in metres, angles in radians."""
    turned = lambda a: float(abs((a + np.pi) % (2 * np.pi) - np.pi))  # noqa: E731
    return {
        name: turned((found[name] - wanted[name])[0]) if name == "angle" else float(np.linalg.norm(found[name] - wanted[name]))
        for name in wanted
    }


def _near(off: dict[str, float]) -> bool:
    return all(distance <= (np.deg2rad(15) if name == "angle" else 0.02) for name, distance in off.items())


def _model(world: World, path: Path | None) -> UnifiedModel:
    if path is not None:
        return load_model(path)[0]
    return base.random_model(world.cameras, 64, horizon=AHEAD, video_frames=FRAMES)
