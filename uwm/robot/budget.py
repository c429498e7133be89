"""The latency budget: what one plan costs on this machine, through the real worker, and whether it fits the period.

```
tick              0      1      2      3      4
                  |------|------|------|------|
plan asked for    ^ read | encode, calls   |  ^ joins       delay = 3 ticks here
committed         [== actions that are under way ==]        must cover the delay, and a chunk must last as long as a plan
```

A plan that waits (synchronous) has one period; all others have a chunk of periods, and committed ones no more than the
actions that the model can be given as committed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from uwm.robot.chunking import ChunkingConfig
from uwm.robot.clock import Clock
from uwm.robot.evaluate import percentiles
from uwm.robot.inference import Answer, Job, Worker
from uwm.robot.interface import Robot, RobotError
from uwm.robot.policy import Policy, PolicyCard

START_S = 180.0  # for a worker to load its model
POLL_S = 0.0005
TRIES_S = 2.0  # for a robot's first whole set of readings


class BudgetError(RuntimeError):
    """The policy could not be measured: what happened."""


@dataclass(frozen=True)
class Budget:
    """Seconds of one plan's parts (p50, p95, p99 where measured often), and what it has.

    `first_s` the first plan of an episode, which also fills the buffer; `encode_s` and `call_s` None where the policy runs
    elsewhere; `calls` network calls of a plan on the mean; `room` actions that can be committed (None: does not matter).
    """

    kind: str
    policy: Any
    period_s: float
    read_s: dict[str, float]
    plan_s: dict[str, float]
    late_s: float
    first_s: float
    calls: float
    room: int | None
    encode_s: float | None = None
    call_s: float | None = None

    @property
    def available_s(self) -> float:
        """What a plan has: one period when the robot waits for it, else a chunk; committed ones no more than can be committed."""
        if self.kind == "synchronous":
            return self.period_s
        chunk = self.policy.chunk if self.room is None else min(self.policy.chunk, self.room)
        return chunk * self.period_s

    @property
    def delay_ticks(self) -> int:
        """Ticks from asking for a plan to joining it, at the quantile that the controller plans with."""
        return math.ceil(self.late_s / self.period_s - 1e-6)

    @property
    def over_s(self) -> float:
        """By how much it does not fit; 0 or less when it does."""
        return self.late_s - self.available_s

    @property
    def fits(self) -> bool:
        """Whether a plan and a reading are there in time."""
        return self.over_s <= 0 and self.read_s["p99"] <= self.period_s

    def page(self) -> str:
        """The budget as lines of text, with what to change when it does not fit."""
        policy, ms = self.policy, lambda value: f"{1e3 * value:.1f} ms"
        shown = lambda figures: ", ".join(f"{name} {ms(value)}" for name, value in figures.items())  # noqa: E731
        rows = [("period", f"{ms(self.period_s)} ({1 / self.period_s:g} Hz)"), ("read", shown(self.read_s))]
        if self.encode_s is not None:
            rows += [("encode", ms(self.encode_s)), ("calls", f"{self.calls:.1f} of {policy.rows} rows x {ms(self.call_s)}")]
        rows += [("plan", f"{shown(self.plan_s)}; the first of an episode {ms(self.first_s)}")]
        what = "one period" if self.kind == "synchronous" else f"{self.available_s / self.period_s:.0f} periods"
        rows += [("has", f"{ms(self.available_s)} ({what}, {self.kind}, chunks of {policy.chunk})")]
        rows += [("delay", f"{self.delay_ticks} ticks" + ("" if self.room is None else f" of at most {self.room} committed"))]
        rows += [("verdict", "fits" if self.fits else f"does not fit{f' by {ms(self.over_s)}' if self.over_s > 0 else ''}")]
        if self.fits and self.plan_s["p99"] > self.available_s:
            rows += [("note", "the slowest plans are later than that: a gap now and then")]
        lines = [f"  {name:<8} {text}" for name, text in rows]
        return "\n".join(["latency budget", *lines, *(f"  try      {text}" for text in self.advice())])

    def advice(self) -> list[str]:
        """What to change so that it fits, the gentlest first; nothing when it does."""
        if self.fits:
            return []
        if self.read_s["p99"] > self.period_s:
            return [f"reading the robot alone takes {1e3 * self.read_s['p99']:.1f} ms: fewer or smaller cameras, or a lower rate"]
        if self.available_s == 0:
            return ["policy.chunks or policy.chunk smaller: the buffer leaves no trained frame for committed actions"]
        return [*self._fewer_rows(), *self._longer_chunk(), f"a model preset that is {self.late_s / self.available_s:.1f} times faster",
                "precision=bfloat16, where the processor has it; or threads=2 on an idle machine"]  # fmt: skip

    def _fewer_rows(self) -> list[str]:
        """The rows whose calls take no longer than there is, at the measured speed, everything else as it was."""
        policy, calls = self.policy, max(self.calls, 1.0)
        each_s = self.call_s or self.late_s / (calls + 1)
        affordable = math.floor((self.available_s - (self.late_s - calls * each_s)) / each_s)
        rows = policy.rows if affordable < 1 else math.floor(policy.rows * affordable / calls)
        return [f"policy.rows={rows} (now {policy.rows})"] if 1 <= rows < policy.rows else []

    def _longer_chunk(self) -> list[str]:
        if self.kind == "synchronous":
            return ["controller.kind=committed, where the robot acts meanwhile (the model must be trained with committed actions)"]
        chunk = self.delay_ticks
        if self.room is not None and chunk > self.room:
            return [f"fewer chunks: {chunk} actions must be committed and {self.room} can be"]
        return [f"policy.chunk={chunk} (now {self.policy.chunk}); the model must be trained with it"] if chunk > self.policy.chunk else []


def measure(
    robot: Robot,
    policy: PolicyCard,
    config: ChunkingConfig,
    worker: Worker,
    clock: Clock,
    parts: Callable[[dict[str, np.ndarray]], tuple[float, float]] | None = None,
    plans: int = 40,
) -> Budget:
    """Plans `plans` times through `worker`, from the robot's own readings; nothing is sent. The robot is connected.

    `parts(observation)` gives seconds of an encoding and of a network call in this process. BudgetError if no plan comes.
    """
    observation, reads = _readings(robot, clock)
    spec, chunk = robot.spec, policy.config.chunk
    room = policy.room if config.kind == "committed" else None
    under_way = chunk if room is None else min(chunk, room)
    memory, executed, queue = None, np.zeros((0, spec.action.size), np.float32), np.zeros((0, spec.action.size), np.float32)
    taken_s, calls = [], []
    for index in range(plans + 2):
        earlier = (observation,) * len(policy.history)
        job = Job(index, index * chunk, observation, queue, executed, len(queue), 1, memory, False, 0, clock.now_s(), earlier)
        answer, seconds = _plan(worker, job, clock)
        actions = np.clip(answer.actions, spec.action.low, spec.action.high).astype(np.float32)
        memory, queue, executed = answer.memory, actions[:under_way], actions[:chunk]
        taken_s.append(seconds)
        calls.append(answer.calls)
    warm = taken_s[2:]
    encode_s, call_s = parts(observation) if parts else (None, None)
    return Budget(
        config.kind, policy.config, spec.period_s, percentiles(reads), percentiles(warm), float(np.quantile(warm, config.quantile)),
        taken_s[0], float(np.mean(calls[2:])), room, encode_s, call_s,
    )  # fmt: skip


def _readings(robot: Robot, clock: Clock, repeats: int = 40) -> tuple[dict[str, np.ndarray], list[float]]:
    """One value of every sensor, and seconds of `repeats` reads. BudgetError when a sensor has none."""
    until_s, times = clock.now_s() + TRIES_S, []
    found: dict[str, np.ndarray] = {}
    while len(times) < repeats or (missing := set(robot.spec.sensors) - set(found)):
        if len(times) >= repeats and clock.now_s() > until_s:
            raise BudgetError(f"{robot.spec.name} has no reading of {sorted(missing)} after {TRIES_S:g} s: is the sensor on?")
        began_s = clock.now_s()
        try:
            found |= {name: reading.value for name, reading in robot.read().items()}
        except RobotError as error:
            raise BudgetError(f"{robot.spec.name} cannot be read: {error}") from error
        times.append(clock.now_s() - began_s)
        clock.sleep_until(clock.now_s() + 0.002)
    return found, times


def _plan(worker: Worker, job: Job, clock: Clock) -> tuple[Answer, float]:
    """One plan through the worker and its seconds."""
    until_s = clock.now_s() + START_S
    while not worker.idle:
        failure = getattr(worker, "failure", "")
        if failure or clock.now_s() > until_s:
            raise BudgetError(f"the policy's worker did not start: {failure or f'not ready within {START_S:g} s'}")
        clock.sleep_until(clock.now_s() + 0.01)
    began_s = clock.now_s()
    worker.submit(job)
    while (result := worker.poll()) is None:
        clock.sleep_until(clock.now_s() + POLL_S)
    if result.error is not None:
        raise BudgetError(f"the policy could not plan from the robot's own readings: {result.error}")
    return result.answer, result.finished_s - began_s


def parts_of(policy: Policy, clock: Clock, repeats: int = 12) -> Callable[[dict[str, np.ndarray]], tuple[float, float]]:
    """Seconds (median) of an encoding and of a network call of `policy` in this process, for `measure`."""
    import torch

    from uwm.robot.history import observe

    @torch.inference_mode()
    def parts(observation: dict[str, np.ndarray]) -> tuple[float, float]:
        seen, encodes, calls = observe([observation], policy.cameras, [[observation] * len(policy.history)]), [], []
        memory = policy.start([0])
        for _ in range(repeats):
            began_s, before = clock.now_s(), policy.calls
            policy.model.encode(seen)
            encoded_s = clock.now_s()
            memory, actions = policy.act(memory, seen)
            memory = policy.done(memory, actions)
            encodes.append(encoded_s - began_s)
            calls.append(max(0.0, clock.now_s() - encoded_s - encodes[-1]) / max(policy.calls - before, 1))
        return float(np.median(encodes)), float(np.median(calls[1:]))

    return parts
