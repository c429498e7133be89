"""Plans that overlap in time: what is planned while the robot acts, and which action belongs to which tick.

A plan asked for at tick t arrives d ticks later. Six ways to live with that:

```
kind            asked for when             planned                          joins
synchronous     the queue is empty         from here                        on arrival: the robot held still meanwhile
naive           a chunk was executed       from here, whole horizon         replaces the old plan; its first d are late
ensemble        the worker is free         from here, whole horizon         mean of all plans that cover a tick (ACT)
guided          a chunk was executed       guided to the old plan (RTC)     replaces; the first d agree with what was sent
bidirectional   a chunk was executed       best of a batch (BID)            replaces; the nearest to the old plan
committed       d are left in the queue    behind the queue (ours)          continues: no overlap, nothing late

tick          0  1  2  3  4  5  6  7  8  9
committed     [----- queue d = 4 ]
              ^asked for         [chunk ]           <- planned given the queue as clean tokens
```

A plan that was asked for while the queue was empty begins when it arrives, since the robot held still meanwhile.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from uwm.core.shapes import Float
from uwm.robot.history import observe
from uwm.robot.inference import Answer, Job
from uwm.robot.policy import Policy, PolicyCard
from uwm.sample import guidance, roll

KINDS = ("synchronous", "naive", "ensemble", "guided", "bidirectional", "committed")


@dataclass(frozen=True)
class ChunkingConfig:
    """How plans overlap. `kind` one of KINDS.

    `delay_ticks`: ticks from asking to joining, None to measure: the `quantile` of the last `window` latencies and
    `margin_ticks` on top. `expected_ticks`: what is assumed before the first measurement, e.g. from a latency budget; None: as
    many as the model's frames leave room for, so that the first plan is long and lasts until the second. `decay`: ACT's weight
    exp(-decay i) of the i-th oldest plan. `clip`: largest guidance weight (RTC's beta). `samples`, `coherence`, `weak_rows`:
    BID's batch, its weight rho^i on the i-th overlapping action, and the rows of the weak policy that it contrasts with (0:
    backward coherence only). Of committed plans, `eased`: they lead on from the action before them (`eased`); `fresh`: behind
    actions that are under way they begin from noise, since what the buffer holds half-made is of an observation too old for that,
    and have no more actions than are needed until the next plan (a chunk at least).
    """

    kind: str = "committed"
    delay_ticks: int | None = None
    expected_ticks: int | None = None
    quantile: float = 0.95
    window: int = 50
    margin_ticks: int = 0
    decay: float = 0.01
    clip: float = 5.0
    samples: int = 8
    coherence: float = 0.9
    weak_rows: int = 2
    eased: bool = True
    fresh: bool = True

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind of chunking must be one of {KINDS}, got {self.kind!r}")
        if not 0 < self.quantile <= 1 or min(self.window, self.samples) < 1 or self.margin_ticks < 0:
            raise ValueError(f"quantile lies in (0, 1], window and samples are >= 1, margin_ticks >= 0, got {self}")
        if min(self.delay_ticks or 0, self.expected_ticks or 0) < 0:
            raise ValueError(f"delay_ticks and expected_ticks must be >= 0 or null, got {self.delay_ticks} and {self.expected_ticks}")


def check(policy: Policy | PolicyCard, config: ChunkingConfig) -> None:
    """ValueError when this kind cannot run on this policy, with what to change."""
    wanted = {"committed": ("streaming",), "synchronous": ("streaming", "chunked")}.get(config.kind, ("chunked",))
    if policy.config.kind not in wanted:
        raise ValueError(f"{config.kind} chunking needs a policy of kind {' or '.join(wanted)}, got {policy.config.kind!r}")
    if config.kind == "guided" and isinstance(policy, Policy) and policy.model.config.prediction == "regression":
        raise ValueError("a regression says its plan in one call, which nothing can guide: use naive, ensemble or synchronous chunking")
    if config.kind == "committed" and policy.config.frames:
        raise ValueError("a buffer with frames plans at the ends of its chunks: use synchronous chunking, or policy.frames=false")
    if config.kind == "committed" and (config.delay_ticks or 0) > policy.room:
        raise ValueError(
            f"{config.delay_ticks} committed actions beside a buffer of {policy.config.ladder.horizon} are more than the model was trained "
            f"for: at most {policy.room} can be committed; use fewer or shorter chunks"
        )


class Delay:
    """Ticks from asking for a plan until it can be used, from measured latencies."""

    def __init__(self, config: ChunkingConfig, period_s: float):
        self.config, self.period_s = config, period_s
        self.latencies_s: deque[float] = deque(maxlen=config.window)

    def add(self, latency_s: float) -> None:
        self.latencies_s.append(latency_s)

    @property
    def ticks(self) -> int | None:
        """As configured, or measured; before the first measurement as expected, None where nothing is."""
        if self.config.delay_ticks is not None:
            return self.config.delay_ticks
        if not self.latencies_s:
            return self.config.expected_ticks
        late_s = np.quantile(np.array(self.latencies_s), self.config.quantile, method="higher")
        return math.ceil(late_s / self.period_s - 1e-6) + self.config.margin_ticks


class Schedule:
    """Actions by tick, of plans that may overlap: the newest wins, or (`decay`) all are averaged, the oldest most.

    `end`: the tick after the last planned one.
    """

    def __init__(self, decay: float | None = None):
        self.decay, self.end = decay, 0
        self._plans: list[tuple[int, int, np.ndarray]] = []  # index, first tick, actions (n, A)

    def join(self, index: int, first: int, actions: np.ndarray, now: int) -> int:
        """Adds a plan whose actions belong to ticks from `first` on; returns how many came too late to be executed."""
        self.end = first + len(actions)
        self._plans = [plan for plan in self._plans if plan[1] + len(plan[2]) > now]
        late = min(max(now - first, 0), len(actions))
        if late < len(actions):
            self._plans.append((index, first, actions))
        return late

    def at(self, tick: int) -> tuple[np.ndarray | None, int]:
        """The action of a tick, or None, and the index of the newest plan that it comes from (-1: none)."""
        over = [(index, actions[tick - first]) for index, first, actions in self._plans if first <= tick < first + len(actions)]
        if not over:
            return None, -1
        if self.decay is None:
            return over[-1][1], over[-1][0]
        weight = np.exp(-self.decay * np.arange(len(over)))
        mean = np.average(np.stack([action for _, action in over]), axis=0, weights=weight)
        return mean.astype(np.float32), over[-1][0]

    def ahead(self, tick: int, size: int) -> Float[np.ndarray, "k A"]:
        """The actions from `tick` on, without a gap."""
        found = []
        while (action := self.at(tick + len(found))[0]) is not None:
            found.append(action)
        return np.stack(found) if found else np.zeros((0, size), np.float32)


class Planner:
    """`planner(job) -> answer`: what runs in a worker. Holds the policy and nothing of an episode."""

    def __init__(self, policy: Policy, config: ChunkingConfig):
        check(policy, config)
        self.policy, self.config = policy, config

    def __call__(self, job: Job) -> Answer:
        policy, before = self.policy, self.policy.calls
        copies = self.config.samples if self.config.kind == "bidirectional" else 1
        observation = observe([job.observation], policy.cameras, [job.earlier], policy.model.words)
        memory = _loaded(job.memory) if job.memory else policy.start([job.seed * copies + index for index in range(copies)])
        if len(job.executed):
            memory = policy.recall(memory, torch.from_numpy(job.executed).expand(copies, -1, -1))
        memory, actions = self._plan(memory, observation, job)
        return Answer(np.ascontiguousarray(actions.numpy(), np.float32), _saved(memory), policy.calls - before)

    def _plan(self, memory, observation, job: Job):
        policy, config = self.policy, self.config
        if policy.config.kind == "streaming":
            size = policy.config
            fresh = config.fresh and len(job.queue) > 0 and not size.foresee
            memory = roll.restarted(memory) if job.restart or fresh else memory
            count = min(math.ceil(job.count / size.chunk), size.chunks)
            memory, actions = policy.plan(memory, observation, torch.from_numpy(job.queue)[None], count)
            if fresh:  # the buffer begins again anyway: what is not needed yet is planned anew from a newer observation
                actions = actions[:, : max(job.count, size.chunk)]
        elif config.kind == "bidirectional":
            return self._best(memory, observation, job)
        else:
            guide = self._guide(job) if config.kind == "guided" and len(job.queue) else None
            memory, actions = policy.whole(memory, observation, guide)
        if config.kind == "synchronous":
            actions = actions[:, : policy.config.chunk]
        return memory, actions[0]

    def _guide(self, job: Job):
        """Leans toward the old plan: the part that will be executed fully, the rest less and less."""
        past, horizon = self.policy.config.past, self.policy.config.ladder.horizon
        old = self.policy.model.from_actions(torch.from_numpy(job.queue[:horizon])[None])
        after = horizon - old.shape[1]
        wanted = torch.nn.functional.pad(old, (0, 0, past, after))
        weight = torch.nn.functional.pad(soft_mask(job.delay, old.shape[1]), (past, after))[None]
        return lambda denoise, path: guidance.toward(denoise, path, wanted, weight, self.config.clip)

    def _best(self, memory, observation, job: Job):
        """Bidirectional decoding (Liu et al. 2024, eqs. 5 to 8): near the old plan, near good samples, far from weak ones."""
        weak = self.policy.whole(memory, observation, None, self.config.weak_rows)[1] if self.config.weak_rows else None
        memory, drawn = self.policy.whole(memory, observation)
        normal = self.policy.model.normalise_action.normalise
        loss = backward_coherence(normal(drawn), normal(torch.from_numpy(job.queue)[None]), self.config.coherence)
        if weak is not None:
            loss = loss + contrast(normal(drawn), normal(weak), loss)
        return memory, drawn[int(loss.argmin())]


def eased(
    actions: Float[np.ndarray, "n A"], before: Float[np.ndarray, " A"], switches: Sequence[int] = (), over: int = 2
) -> Float[np.ndarray, "n A"]:
    """A plan that leads on from the action `before` it: what lies between them falls to nothing over the first actions.

    ```
    before   . . o
                  |  offset, to the plan's own line drawn back by one tick
    plan          x - x - x - x          a_k + offset (1 - (k + 1) / (over + 1)), k < over
    ```

    A new observation corrects the plan; the correction comes over a few ticks instead of at once. Not over many: in commands that
    are displacements the offsets add up to a detour. `switches` (a gripper) are left alone.
    """
    count = min(over, len(actions))
    if len(actions) < 2 or count < 1:
        return actions
    offset = before - (2 * actions[0] - actions[1])
    offset[list(switches)] = 0
    share = np.maximum(1 - np.arange(1, len(actions) + 1) / (count + 1), 0)
    return (actions + share[:, None] * offset).astype(np.float32)


def soft_mask(certain: int, overlap: int) -> torch.Tensor:
    """Weights (overlap,): 1 for the certain ones, then falling (Black et al. 2025, eq. 5)."""
    index = torch.arange(overlap, dtype=torch.float32)
    share = ((overlap - index) / max(overlap - certain + 1, 1)).clamp(0, 1)
    return torch.where(index < certain, 1.0, share * torch.expm1(share) / math.expm1(1.0))


def backward_coherence(drawn: torch.Tensor, old: torch.Tensor, rho: float) -> torch.Tensor:
    """Per sample (B,) the squared distance of plans (B, H, A) to the old one (1, k, A) on their overlap, weighted by rho^i."""
    overlap = min(drawn.shape[1], old.shape[1])
    weight = rho ** torch.arange(overlap, dtype=drawn.dtype)
    return ((drawn[:, :overlap] - old[:, :overlap]).square().sum(dim=2) * weight).sum(dim=1)


def contrast(drawn: torch.Tensor, weak: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
    """Per sample (B,): mean distance to the half of `drawn` with the least `loss`, minus that to the weak samples."""
    strong = drawn[loss.argsort()[: max(len(drawn) // 2, 1)]]
    near, far = ((drawn[:, None] - other[None]).square().sum(dim=(2, 3)).mean(dim=1) for other in (strong, weak))
    return near - far


def _saved(memory: roll.Buffer) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in memory.tensors().items()}


def _loaded(saved: dict[str, np.ndarray]) -> roll.Buffer:
    return roll.Buffer.from_tensors({name: torch.from_numpy(value) for name, value in saved.items()})
