"""Closed-loop rollouts: a policy and an env in, success, calls and latency per action out."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from uwm.core.shapes import Float
from uwm.robot.history import History, observe
from uwm.robot.policy import Policy
from uwm.sample import roll

USUAL = 0.75  # the quantile of distances that is usual: a quarter of what goes well is a small surprise


@dataclass(frozen=True)
class Moment:
    """The buffer at tick `first`, about to be sent: `future` (H, A) in physical units, its `level` (H,); then `executed` (n, A)."""

    first: int
    future: Float[np.ndarray, "H A"]
    level: Float[np.ndarray, " H"]
    executed: Float[np.ndarray, "n A"]


@dataclass
class Rollout:
    """One episode: seed, success, ticks, network calls, seconds per policy call; perhaps frames, and the buffer at every call.

    `best`: its largest reward. `distances`: of what was seen from what a buffer with frames had foreseen, by token, from the second
    call on.
    """

    seed: int
    success: bool
    ticks: int
    calls: int
    best: float = -np.inf
    act_s: list[float] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    distances: list[list[float]] = field(default_factory=list)


def rollout(
    env: Any, policy: Policy, seed: int, camera: str | None = None, watched: bool = False, instruction: str | None = None
) -> Rollout:
    """Runs one episode from `env.reset(seed=seed)`. With `camera` its frames are kept; `watched` keeps the buffer at every call.

    `instruction`: what to do; None: what the world asks for, if the model has language.
    """
    return together([env], policy, [seed], camera, watched, [instruction])[0]


def together(
    envs: Sequence[Any],
    policy: Policy,
    seeds: Sequence[int],
    camera: str | None = None,
    watched: bool = False,
    instructions: Sequence[str | None] | None = None,
) -> list[Rollout]:
    """One episode in each env, side by side: one call of the policy acts in all that still run, so that a step costs far less.

    A rollout's `calls` are those that it would have made alone (but for a buffer that is revised, where the longest way of all is gone by
    all), its `act_s` what the call of them all took. See `rollout`. ValueError unless there is a seed, and an instruction if there are
    any, for each env.
    """
    told = instructions or [None] * len(envs)
    episodes = [_Episode.begun(env, policy, *each) for env, *each in zip(envs, seeds, told, strict=True)]
    running, memory, calls = episodes, policy.start(seeds), 0
    while running:
        before, began = policy.calls, time.perf_counter()
        earlier = [each.history.earlier(policy.history) for each in running]
        seen = observe([each.now for each in running], policy.cameras, earlier, policy.model.words)
        planned, actions = policy.act(memory, seen)
        took = time.perf_counter() - began
        calls += policy.calls - before
        if policy.config.frames and running[0].result.ticks:
            for each, distances in zip(running, policy.distances(memory, seen).tolist(), strict=True):
                each.result.distances.append(distances)
        held, executed = _held(policy, planned) if watched else [], []
        for place, each in enumerate(running):
            each.result.act_s.append(took)
            each.result.calls = calls
            first, sent = each.result.ticks, each.act(actions[place].numpy(), camera)
            executed.append(sent)
            if watched:
                each.result.moments.append(Moment(first, *held[place], sent[: each.result.ticks - first]))
        memory = policy.done(planned, torch.from_numpy(np.stack(executed)))
        going = [place for place, each in enumerate(running) if not each.ended]
        if 0 < len(going) < len(running):
            memory = memory.at(going)
        running = [running[place] for place in going]
    return [each.result for each in episodes]


@dataclass
class _Episode:
    """An episode that runs: its env, what it saw, and what is told of it."""

    env: Any
    history: History
    instruction: str
    result: Rollout
    ended: bool = False

    @classmethod
    def begun(cls, env: Any, policy: Policy, seed: int, instruction: str | None) -> "_Episode":
        observation, info = env.reset(seed=seed)
        if instruction is None:
            instruction = asked(env, info) if policy.model.hears else ""
        return cls(env, History.reaching(policy.history).add(observation), instruction, Rollout(seed, False, 0, 0))

    @property
    def now(self) -> dict[str, Any]:
        return {**self.history.seen[-1], "prompt": self.instruction}

    def act(self, actions: Float[np.ndarray, "n A"], camera: str | None) -> Float[np.ndarray, "n A"]:
        """Sends a chunk, clipped, as far as the episode goes; the clipped chunk."""
        executed = np.clip(actions, self.env.action_space.low, self.env.action_space.high)
        for action in executed:
            observation, reward, terminated, truncated, info = self.env.step(action)
            self.history = self.history.add(observation)
            self.result.ticks += 1
            if camera:
                self.result.frames.append(observation[camera])
            self.result.best = max(self.result.best, float(reward))
            self.result.success |= bool(info["success"])
            self.ended = terminated or truncated
            if self.ended:
                break
        return executed


def asked(env: Any, info: dict) -> str:
    """What a world wants: of this episode, as its `reset` told, or of all, as its card tells; "" where it does not say."""
    return info.get("instruction") or env.unwrapped.card.get("instruction", "")


def _held(policy: Policy, memory: roll.Buffer) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each environment what its buffer holds, in physical units, and at which levels; that of a chunked policy is clean."""
    ladder = policy.ladder
    future = policy.model.to_actions(ladder.actions(memory.future)).numpy()
    streaming = policy.config.kind == "streaming"
    level = ladder.actions(roll.levels(memory, ladder)).numpy() if streaming else np.zeros(future.shape[:2], np.float32)
    return list(zip(future, level, strict=True))


def rollouts(envs: Sequence[Any], policy: Policy, seeds: Sequence[int], watched: bool = False) -> Iterator[Rollout]:
    """Rollouts in the order of their seeds, as many side by side as there are envs: the k-th of each round is in the k-th env."""
    for first in range(0, len(seeds), len(envs)):
        some = seeds[first : first + len(envs)]
        yield from together(envs[: len(some)], policy, some, watched=watched)


def wilson(successes: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson 95 % interval of a success rate (Wilson 1927)."""
    if count < 1:
        raise ValueError("a success rate needs at least one rollout")
    rate, shrink = successes / count, 1 + z**2 / count
    centre = (rate + z**2 / (2 * count)) / shrink
    half = z / shrink * (rate * (1 - rate) / count + z**2 / (4 * count**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def summary(results: Sequence[Rollout]) -> dict:
    """Figures of a set of rollouts; calls per executed action. `usual` is that of `PolicyConfig`, where frames stand in the buffer."""
    successes, ticks = sum(r.success for r in results), sum(r.ticks for r in results)
    # Of episodes that went well: what is lost sees all the time what it did not foresee.
    distances = np.array([tokens for r in results if r.success or not successes for tokens in r.distances])
    distances = distances[np.isfinite(distances).all(axis=1)] if distances.size else distances
    return {
        **({"usual": np.quantile(distances, USUAL, axis=0).tolist()} if distances.size else {}),
        "success": successes / len(results),
        "successes": successes,
        "interval": wilson(successes, len(results)),
        "rollouts": len(results),
        "seeds": [r.seed for r in results],
        "failed_seeds": [r.seed for r in results if not r.success],
        "mean_ticks": ticks / len(results),
        "calls_per_action": sum(r.calls for r in results) / ticks,
    }


def latency(act: Callable[[], int], repeats: int, warm: int = 3) -> dict[str, float]:
    """Milliseconds per executed action of `act`, which returns how many actions it gave: p50, p95, p99, warm."""
    for _ in range(warm):
        act()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        count = act()
        times.append(1e3 * (time.perf_counter() - began) / count)
    return percentiles(times)


def percentiles(times: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 of some times, in their unit."""
    return {f"p{q}": float(np.percentile(times, q)) for q in (50, 95, 99)}
