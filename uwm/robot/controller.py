"""The control loop: reads, asks for plans, sends one action in every period, whatever the policy is doing meanwhile.

```
one period   wait until due -- read -- poll worker -- ask for a plan? -- next action or None -- safety -- send -- listeners
due times    start + 0, 1, 2 ... periods: they do not drift. A period that was missed is counted and never made up for.
```

The policy computes in a worker (`uwm.robot.inference`); how its plans overlap in time is `uwm.robot.chunking`. What was really
sent returns to the policy's memory with the next plan. The same loop runs on the machine's clock and on a virtual one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from uwm.robot.chunking import ChunkingConfig, Delay, Schedule, check, eased
from uwm.robot.clock import Clock
from uwm.robot.history import History
from uwm.robot.inference import Answer, Job, Result, Worker
from uwm.robot.interface import Reading, Robot, RobotError, RobotSpec
from uwm.robot.policy import Policy, PolicyCard
from uwm.robot.safety import Verdict
from uwm.robot.senses import Senses
from uwm.robot.ticks import Listener, Statistics, Tick

LOST_AFTER_S = 1.0  # a robot that takes no action for so long is lost, and the run ends
TOLERANCE = 1e-9  # of a period: due times are sums of floats


class Guard(Protocol):
    """The last word before the robot: `uwm.robot.safety.Safety`, or something simpler."""

    def check(self, proposed: np.ndarray | None, readings: dict[str, Reading], now_s: float) -> Verdict:
        """What to do in this period."""

    def sent(self, action: np.ndarray, now_s: float) -> None:
        """What the robot really executed."""


class Clip:
    """The least that stands between a policy and a robot: limits of the value; a hold where there is no action."""

    def __init__(self, spec: RobotSpec):
        self.spec, self.last = spec.action, None

    def check(self, proposed: np.ndarray | None, readings: dict[str, Reading], now_s: float) -> Verdict:
        """The proposal within `low` and `high`, or what keeps the robot still."""
        if proposed is None or not np.isfinite(proposed).all():
            return Verdict(resting(self.spec, self.last), "hold", "no usable action for this tick")
        action = np.clip(proposed, self.spec.low, self.spec.high).astype(np.float32)
        return Verdict(action, "send", "" if np.array_equal(action, proposed) else "limited by position")

    def sent(self, action: np.ndarray, now_s: float) -> None:
        """What the robot really executed."""
        self.last = action


def resting(action, last: np.ndarray | None) -> np.ndarray | None:
    """The action (A,) that keeps a robot still after `last`; None when an absolute one was never told where to be."""
    if action.mode == "absolute" or not action.size:
        return last
    still = np.zeros(action.size, np.float32)
    if last is not None and action.gripper:
        still[list(action.gripper)] = last[list(action.gripper)]
    return still


class Controller:
    """One robot, one policy, one loop. The robot is connected and the worker made by the caller, who also closes them.

    `policy` a `Policy`, or the `PolicyCard` of one that lives in the worker's process; `safety` None clips to the limits of
    the specification. `instruction`: what a policy with language is told at every plan. `run` may be called once.
    """

    def __init__(
        self,
        robot: Robot,
        policy: Policy | PolicyCard,
        clock: Clock,
        worker: Worker,
        config: ChunkingConfig | None = None,
        listeners: Sequence[Listener] = (),
        safety: Guard | None = None,
        seed: int = 0,
        instruction: str = "",
    ):
        self.robot, self.policy, self.clock, self.worker = robot, policy, clock, worker
        self.config, self.listeners, self.seed = config or ChunkingConfig(), listeners, seed
        self.told = {"prompt": instruction} if instruction else {}
        check(policy, self.config)
        self.spec = robot.spec
        self.safety = safety or Clip(self.spec)
        self.delay = Delay(self.config, self.spec.period_s)
        self.schedule = Schedule(self.config.decay if self.config.kind == "ensemble" else None)
        self.senses = Senses(self.spec, policy.cameras)
        self.history = History.reaching(policy.history)  # of what `senses` let the policy see
        self.statistics = Statistics()
        self._executed: deque[np.ndarray] = deque(maxlen=max(policy.config.past, 1))
        self._job: Job | None = None
        self._memory: dict[str, np.ndarray] | None = None
        self._jobs, self._asked_at, self._submitted_s = 0, -math.inf, 0.0
        self._last: np.ndarray | None = None
        self._lost_s: float | None = None
        self._ends_in_a_chunk = False  # the newest plan: then the buffer, which moves by whole chunks, is ahead of it

    @property
    def memory(self) -> dict[str, np.ndarray] | None:
        """The policy's memory after its newest plan, as it travels; None before the first."""
        return self._memory

    def run(self, ticks: int | None = None, until: Callable[[Tick], str] | None = None) -> Statistics:
        """Runs `ticks` periods, or until `until(tick)` says why to end; the robot stands still after it, whatever happened."""
        begin_s, index = self.clock.now_s(), 0
        try:
            while not self.statistics.ended and (ticks is None or index < ticks):
                index = self._period(begin_s, index, until) + 1
            self.statistics.ended = self.statistics.ended or "all ticks done"
        finally:
            self.robot.stop()
            for listener in self.listeners:
                listener.close()
        return self.statistics

    def _period(self, begin_s: float, index: int, until: Callable[[Tick], str] | None) -> int:
        """One period; returns its index, which is later than asked for if whole periods were missed."""
        period_s = self.spec.period_s
        self.clock.sleep_until(begin_s + index * period_s)
        began_s = self.clock.now_s()
        missed = max(0, math.floor((began_s - begin_s) / period_s + TOLERANCE) - index)
        self._skip(missed)
        tick = self.step(index + missed, begin_s + (index + missed) * period_s, began_s, missed)
        self._count(tick, began_s - begin_s)
        for listener in self.listeners:
            try:
                listener.tick(tick)
            except Exception:  # noqa: BLE001 - whatever a listener does, the robot must be served
                self.statistics.listener_errors += 1
        if until is not None and not self.statistics.ended:
            self.statistics.ended = until(tick) or ""
        return tick.index

    def step(self, index: int, due_s: float, began_s: float, missed: int = 0) -> Tick:
        """The work of one period: read, plan, act."""
        readings = self._read()
        missing = self.senses.look(readings, began_s)
        self.history = self.history.missed(missed).add(self.senses.observation(began_s) or {})
        asked, arrived, late = None, self._receive(index), 0
        if arrived is None or arrived[0].error is None:
            asked = self._ask(index, began_s)
        if arrived is None and asked is not None:
            arrived = self._receive(index)  # a worker without delay answers at once
        result, late = arrived if arrived else (None, 0)
        proposed, plan = self.schedule.at(index)
        verdict = self.safety.check(proposed, readings, began_s)
        sent = self._send(verdict)
        answer = result.answer if result else None
        return Tick(
            index, due_s, began_s, missed, readings, missing, self._delay_ticks, asked,
            result.index if result else None,
            result.finished_s - self._submitted_s if result else None,
            answer.calls if answer else 0, late, str(result.error) if result and result.error else "",
            proposed, plan, self.schedule.ahead(index + 1, self.spec.action.size), verdict, sent, self.told.get("prompt", ""),
        )  # fmt: skip

    # ---- the robot ---------------------------------------------------------------------------------------------

    def _read(self) -> dict[str, Reading]:
        try:
            return self.robot.read()
        except RobotError:
            self.statistics.robot_errors += 1
            return {}  # the safety layer sees that nothing came

    def _send(self, verdict: Verdict) -> np.ndarray | None:
        """Sends what the verdict allows; what is sent becomes the past of the next plan."""
        if verdict.behaviour == "stop":
            self.robot.stop()
            self.statistics.ended = f"stopped: {verdict.reason}"
            return None
        if verdict.action is None:
            return self._remember(None)
        try:
            sent = self._remember(self.robot.send(verdict.action))
            self._lost_s = None
        except RobotError as error:
            self.statistics.robot_errors += 1
            self.robot.stop()
            now_s = self.clock.now_s()
            self._lost_s = now_s if self._lost_s is None else self._lost_s
            if now_s - self._lost_s >= LOST_AFTER_S:
                self.statistics.ended = f"robot lost: {error}"
            return self._remember(None)
        return sent

    def _remember(self, sent: np.ndarray | None) -> np.ndarray | None:
        """Notes one executed action; without one, the robot was still."""
        if sent is not None:
            sent = np.asarray(sent, np.float32)
            self.safety.sent(sent, self.clock.now_s())
            self._last = sent
        executed = sent if sent is not None else resting(self.spec.action, self._last)
        if executed is not None:
            self._executed.append(executed)
        return sent

    def _skip(self, missed: int) -> None:
        """Periods in which nothing was sent: the robot was still."""
        for _ in range(min(missed, self._executed.maxlen)):
            self._remember(None)

    # ---- the policy --------------------------------------------------------------------------------------------

    @property
    def _delay_ticks(self) -> int:
        """Ticks until a plan can be used; no more than can be committed, which is also assumed while nothing is known."""
        room, ticks = self.policy.room, self.delay.ticks
        if self.config.kind != "committed":
            return ticks or 0
        return room if ticks is None else min(ticks, room)

    def _receive(self, index: int) -> tuple[Result, int] | None:
        """The worker's result, if there is one, and how many of its actions are late."""
        result, job = self.worker.poll(), self._job
        if result is None or job is None:
            return None
        self._job, self._submitted_s = None, job.submitted_s
        if result.error is not None:
            self.statistics.failures += 1
            # The memory is still that of before the job, so what the job was told will be told again.
            self._executed = deque([*job.executed, *self._executed], maxlen=self._executed.maxlen)
            return result, 0
        answer: Answer = result.answer
        self._memory = answer.memory
        self._ends_in_a_chunk = len(answer.actions) % self.policy.config.chunk > 0
        latency_s = result.finished_s - job.submitted_s
        self.delay.add(latency_s)
        self.statistics.latencies_s.append(latency_s)
        committed = len(job.queue) if self.config.kind == "committed" else 0
        first = job.tick + committed if len(job.queue) else index
        return result, self.schedule.join(result.index, first, self._eased(answer.actions, job), index)

    def _eased(self, actions: np.ndarray, job: Job) -> np.ndarray:
        """A committed plan as it joins what is sent before it; other kinds overlap, and join in their own ways."""
        before = job.queue if len(job.queue) else job.executed
        if self.config.kind != "committed" or not self.config.eased or not len(before):
            return actions
        return eased(actions, before[-1], self.spec.action.gripper)

    def _ask(self, index: int, now_s: float) -> int | None:
        """Asks for a plan if it is time for one and there is something to act on; returns its index."""
        if self._job is not None or not self.worker.idle:
            return None
        queue = self.schedule.ahead(index, self.spec.action.size)
        observation = self.senses.observation(now_s)
        if observation is None or not self._due(index, len(queue)):
            return None
        executed = np.stack(self._executed) if self._executed else np.zeros((0, self.spec.action.size), np.float32)
        lost = self.schedule.end != index + len(queue) or self._ends_in_a_chunk
        restart = self._memory is not None and self.config.kind == "committed" and lost
        delay = self._delay_ticks
        count = self._needed(len(queue)) if self.config.kind == "committed" else 1
        action = self.spec.action
        queue = np.clip(queue, action.low, action.high).astype(np.float32)  # what will be executed, not what was wished
        self._job = Job(
            self._jobs, index, {**observation, **self.told}, queue, executed, min(delay, len(queue)), count, self._memory, restart,
            self.seed, now_s, self.history.earlier(self.policy.history),
        )  # fmt: skip
        self.worker.submit(self._job)
        self._executed.clear()
        self._jobs, self._asked_at = self._jobs + 1, index
        return self._job.index

    def _due(self, index: int, queue: int) -> bool:
        """Whether now is the time to ask for a plan; `uwm.robot.chunking` has the table."""
        match self.config.kind:
            case "synchronous":
                return queue == 0
            case "committed":
                # Behind a queue that fell short, even a whole buffer may be too little to catch up: then rather begin again from rest.
                catches_up = queue + self.policy.config.ladder.horizon >= 2 * self._delay_ticks
                return queue == 0 or (queue <= self._delay_ticks and catches_up)
            case "ensemble":
                return True
            case _:
                return queue == 0 or index - self._asked_at >= self.policy.config.chunk

    def _needed(self, queue: int) -> int:
        """Actions to plan so that `delay` of them are left when the plan arrives: the next one will take as long."""
        return max(2 * self._delay_ticks - queue if queue else self._delay_ticks, 1)  # behind an empty queue it begins when it arrives

    # ---- figures -----------------------------------------------------------------------------------------------

    def _count(self, tick: Tick, since_start_s: float) -> None:
        found = self.statistics
        found.ticks += 1
        found.missed += tick.missed
        found.late += tick.late
        found.calls += tick.calls
        found.plans += tick.finished is not None and not tick.failure
        found.missing.update(tick.missing)
        found.behaviours[tick.verdict.behaviour] += 1
        found.delays_s.append(tick.began_s - tick.due_s)
        if tick.proposed is not None and math.isnan(found.first_action_s):
            found.first_action_s = since_start_s
        found.gaps += tick.proposed is None and not math.isnan(found.first_action_s)
