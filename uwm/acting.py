"""Episodes of a control run: one controller after the other on one robot, and who listens meanwhile.

```
episode 0          episode 1          episode 2          ends with success, the world's limit, time, or a signal
[controller 0][reconnect][controller 1][reconnect][controller 2]
watch, audit, recorder, bag, monitor: listeners of all ticks, opened once, closed once
```
"""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from uwm.brains import Brain, wanted
from uwm.core.config import ConfigError
from uwm.robot import budget as budgets
from uwm.robot.aside import Aside
from uwm.robot.audit import Audit
from uwm.robot.bag import Bag
from uwm.robot.clock import Clock, MonotonicClock
from uwm.robot.controller import Controller
from uwm.robot.interface import Robot, RobotSpec
from uwm.robot.interrupts import Interrupts
from uwm.robot.monitor import Monitor
from uwm.robot.recording import Recorder, streams_for
from uwm.robot.safety import Safety
from uwm.robot.ticks import Listener, Statistics, Tick
from uwm.robot.watch import Watch
from uwm.runs import ControlRun


class Session:
    """Episode after episode with one robot and one policy, and who listens meanwhile."""

    def __init__(self, run: ControlRun, robot: Robot, brain: Brain, clock: Clock):
        self.run_, self.robot, self.brain, self.clock = run, robot, brain, clock
        self.total, self.outcomes, self.recorded, self.controller = Statistics(), [], [], None
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> "Session":
        with contextlib.ExitStack() as stack:
            self._listen(stack)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stack.close()

    def _listen(self, stack: contextlib.ExitStack) -> None:
        """Opens what the run asked for; what was opened is closed, also when the next one cannot be."""
        run, spec = self.run_, self.robot.spec
        self.listeners: list[Listener] = []

        def opened(listener: Any) -> Any:
            self.listeners.append(listener)
            stack.callback(listener.close)
            return listener

        self.watch = opened(Watch(self._processes, isinstance(self.clock, MonotonicClock)))
        self.audit = opened(Audit(run.audit)) if run.audit else None
        self.recorder = self.bag = self.monitor = None
        if run.record:
            store = stack.enter_context(open_store(Path(run.record), spec))
            waits = not isinstance(self.clock, MonotonicClock)
            self.recorder = opened(Recorder(spec, store, Path(f"{run.record}.spool"), waits=waits))
            self.recorded += self.recorder.recovered
        if run.bag:
            self.bag = opened(Aside(Bag(spec, run.bag, time.time() - self.clock.now_s()), name="bag"))
        if run.monitor != "none":
            memory = lambda: self.controller and self.controller.memory  # noqa: E731
            self.monitor = opened(Monitor(spec, run.monitor, self.brain.policy.config, memory, self.brain.make_imagine))

    def _processes(self) -> list[int]:
        return [process for process in (os.getpid(), getattr(self.brain.worker, "process_id", None)) if process]

    def run(self, interrupts: "Interrupts") -> str:
        """Episodes until time, their number or a signal ends them; returns why. The robot is connected."""
        run, index = self.run_, 0
        self.began_s = self.clock.now_s()
        with interrupts.noted():
            while True:
                ended = self._episode(index, interrupts)
                index += 1
                if ended != "episode":
                    return ended
                if index == run.episodes:
                    return f"all {index} episodes done"
                self.robot.close()
                self.robot.connect()
                if interrupts.reason or self._left_s() <= 0:
                    return interrupts.reason or "time is over"

    def _left_s(self) -> float:
        return self.began_s + self.run_.duration_s - self.clock.now_s()

    def _episode(self, index: int, interrupts: "Interrupts") -> str:
        """One episode; "episode" when it ended by itself, else why the run is over."""
        robot, run = self.robot, self.run_
        deadline_s = self.began_s + run.duration_s - 0.5 * robot.spec.period_s
        seed = getattr(robot, "seed", run.seed + index)

        def over(tick: Tick) -> str:
            if interrupts.reason:
                return interrupts.reason
            if getattr(robot, "success", False) or getattr(robot, "ended", False):
                return "episode"
            return "time is over" if tick.due_s + robot.spec.period_s > deadline_s else ""

        instruction = wanted(run, robot.spec, getattr(robot, "instruction", ""))
        if self.recorder:
            self.recorder.meta = {"instruction": instruction, "seed": seed, "source": f"uwm control, {self.brain.about}"}
        safety = Safety(robot.spec, run.safety)
        listeners = [_Open(each) for each in self.listeners]
        self.controller = Controller(
            robot, self.brain.policy, self.clock, self.brain.worker, run.controller, listeners, safety, seed,
            instruction if self.brain.hears else "",
        )  # fmt: skip
        statistics = self.controller.run(until=over)
        self._add(statistics, seed)
        return statistics.ended

    def _add(self, statistics: Statistics, seed: int) -> None:
        """One episode's figures and recording."""
        success = getattr(self.robot, "success", None)
        is_whole = statistics.ended == "episode"
        slipped = getattr(self.robot, "slipped", 0)
        self.outcomes.append({"seed": seed, "success": success, "ticks": statistics.ticks, "whole": is_whole, "slipped": slipped})
        self.watch.successes += bool(success)
        self.watch.episodes += is_whole and success is not None
        _sum_up(self.total, statistics)
        if self.recorder:
            told = {} if is_whole else {"ended": statistics.ended}
            number = self.recorder.end(success=success if is_whole or success else None, **told)
            self.recorded += [] if number is None else [number]

    def summary(self, ended: str, budget: budgets.Budget) -> dict:
        """Plain figures of the whole run, after everything was closed."""
        whole = [each for each in self.outcomes if each["whole"] and each["success"] is not None]
        figures, run = self.total.summary(), self.run_
        listeners = {"audit": self.audit, "recorder": self.recorder, "bag": self.bag, "monitor": self.monitor}
        troubles = {name: each.trouble for name, each in listeners.items() if each and each.trouble}
        compared = getattr(self.robot, "comparison", dict)()
        return {
            "robot": self.robot.spec.name, "policy": self.brain.about, "controller": run.controller.kind, "seed": run.seed,
            "period_ms": 1e3 * self.robot.spec.period_s, "duration_s": self.watch.seconds, "ended": ended,
            "episodes": self.outcomes, "successes": sum(each["success"] for each in whole), "judged": len(whole),
            **{name: value for name, value in figures.items() if name != "ended"},
            "limited": dict(self.watch.limited), "reasons": dict(self.watch.reasons), "memory_mb": self.watch.memory(),
            "recorded": self.recorded, "troubles": troubles, "slipped": sum(each["slipped"] for each in self.outcomes),
            "compared": {name: np.asarray(value).tolist() for name, value in compared.items()},
            "budget": {"delay_ticks": budget.delay_ticks, "fits": budget.fits, "plan_ms": {k: 1e3 * v for k, v in budget.plan_s.items()}},
        }  # fmt: skip


class _Open:
    """A listener that outlives the controllers of single episodes."""

    def __init__(self, listener: Listener):
        self.tick = listener.tick

    def close(self) -> None:
        """The episode is over; the run goes on."""


def _sum_up(total: Statistics, part: Statistics) -> None:
    for name in ("ticks", "missed", "gaps", "late", "plans", "calls", "failures", "robot_errors", "listener_errors"):
        setattr(total, name, getattr(total, name) + getattr(part, name))
    for name in ("missing", "behaviours"):
        getattr(total, name).update(getattr(part, name))
    total.latencies_s.extend(part.latencies_s)
    total.delays_s.extend(part.delays_s)
    if total.first_action_s != total.first_action_s:  # NaN: the first episode's counts
        total.first_action_s = part.first_action_s


def open_store(path: Path, spec: RobotSpec) -> Any:
    """The episode store at `path` for runs of this robot, made or continued. ConfigError when it holds something else."""
    import uwm_data

    streams = {name: uwm_data.StreamSpec(**told) for name, told in streams_for(spec).items()}
    card = {"rate_hz": spec.rate_hz, **spec.card, "cameras": [name for name, stream in streams.items() if stream.kind == "video"]}
    card = {name: value for name, value in card.items() if name != "checksum"}
    if "proprio" in spec.sensors:
        card["proprio_size"] = spec.sensors["proprio"].shape[0]
    if not (path / "zarr.json").exists():
        return uwm_data.EpisodeStore.create(path, streams, card)
    store = uwm_data.EpisodeStore.open(path, write=True)
    wrong = [name for name in {*streams, *store.streams} if streams.get(name) != store.streams.get(name)]
    wrong += [name for name in ("env", "robot", "render_profile") if store.card.get(name) != card.get(name)]
    if wrong:
        store.close()
        raise ConfigError(f"{path} holds episodes of something else, it differs in {', '.join(sorted(wrong))}: choose another `record`")
    return store
