"""`uwm control`: a checkpoint (or a policy server) drives a robot, on the wall clock.

```
checkpoint -> card fits the robot? -> worker -> latency budget fits? -> episodes -> summary
                                                                        |
   robot <-- safety <-- controller <-- worker (process)                 +-- audit, recorder, bag, monitor: listeners of every tick
```

Ctrl-C and SIGTERM end the loop after its tick: the robot stands still, every file is written, and the summary comes.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from uwm.core.config import ConfigError, from_mapping, unknown
from uwm.learn import checkpoint as checkpoints
from uwm.robot import budget as budgets
from uwm.robot.aside import Aside
from uwm.robot.audit import Audit
from uwm.robot.bag import Bag, BagError
from uwm.robot.budget import BudgetError
from uwm.robot.chunking import ChunkingConfig, Planner
from uwm.robot.clock import Clock, MonotonicClock
from uwm.robot.controller import Controller, Listener, Statistics, Tick
from uwm.robot.imagine import dreams, imagine
from uwm.robot.inference import Answer, Job, ProcessWorker, ThreadWorker, VirtualWorker, Worker
from uwm.robot.interface import Robot, RobotError, RobotSpec
from uwm.robot.interrupts import Interrupts, signals_blocked, undisturbed
from uwm.robot.monitor import Monitor, MonitorError
from uwm.robot.policy import Policy, PolicyCard, PolicyConfig
from uwm.robot.recording import Recorder, RecordingError, streams_for
from uwm.robot.safety import Safety, SafetyConfig
from uwm.robot.watch import Watch
from uwm.runs import WorldConfig
from uwm.training import load_model

ROBOTS = ("simulated", "replay", "franka", "dds", "lerobot")
HUNG_S = 5.0  # a plan that takes so long is given up; the safety layer holds the robot long before
ANSWER_S = 2.0  # for a server


class ControlError(ValueError):
    """A run that cannot begin, or that ended in trouble: what happened, and what to try."""


@dataclass(frozen=True)
class ControlRun:
    """`checkpoint` (or the policy behind the URL `server`) drives `robot` (one of ROBOTS, made with `options`) for `duration_s`
    or `episodes`, whichever is over first.

    `world` and `seed` are those of a simulated robot, whose episodes end with success or its own limit. `record`: a store
    that episodes are added to; `bag`, `audit`, `monitor`: see configs/control.yaml. `force`: begin although the budget does
    not fit. `out`: the summary as JSON.
    """

    checkpoint: str = "runs/lift/model"
    member: str = ""
    robot: str = "simulated"
    options: dict[str, Any] | None = None
    rate_hz: float | None = None
    world: WorldConfig = field(default_factory=WorldConfig)
    policy: PolicyConfig = field(default_factory=lambda: PolicyConfig(chunks=3, loose=0.2))
    controller: ChunkingConfig = field(default_factory=ChunkingConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    server: str | None = None
    certificate: str | None = None
    duration_s: float = 60.0
    episodes: int | None = None
    seed: int = 200_000
    worker: Literal["process", "thread"] = "process"
    threads: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    record: str | None = None
    bag: str | None = None
    audit: str | None = None
    monitor: str = "none"
    force: bool = False
    out: str | None = None

    def __post_init__(self):
        if self.robot not in ROBOTS:
            raise ValueError(unknown(self.robot, ROBOTS, "robot"))
        if not self.duration_s > 0 or (self.episodes is not None and self.episodes < 1) or self.threads < 1:
            got = f"{self.duration_s}, {self.episodes}, {self.threads}"
            raise ValueError(f"duration_s must be above 0, episodes and threads at least 1, got {got}")


def control(config: dict) -> int:
    """Drives the robot as `config` says and prints the summary. 0 when the time was over or SIGTERM came, 130 after Ctrl-C."""
    run = from_mapping(ControlRun, config, "control")
    try:
        told = drive(run)
    except (RobotError, BudgetError, BagError, MonitorError, RecordingError) as error:
        raise ControlError(str(error)) from error
    print(page(told), flush=True)
    if run.out:
        Path(run.out).parent.mkdir(parents=True, exist_ok=True)
        Path(run.out).write_text(json.dumps(told, indent=1))
    if told["ended"].startswith(("stopped:", "robot lost:")):
        raise ControlError(f"the run ended early: {told['ended']}")
    return 130 if told["ended"] == Interrupts.WORDS[signal.SIGINT] else 0


def drive(run: ControlRun, clock: Clock | None = None, delay_s: Callable | None = None) -> dict:
    """The whole run; returns its summary, plain figures. With a virtual clock, plans take `delay_s(index, generator)`."""
    clock = clock or MonotonicClock()
    with contextlib.ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())
        robot = make_robot(run, clock, threaded=delay_s is None)
        stack.callback(getattr(robot, "shut", robot.close))
        brain = _elsewhere(run, clock, robot.spec) if run.server else _here(run, clock, robot.spec, delay_s)
        stack.callback(brain.worker.close)
        robot.connect()
        budget = budgets.measure(robot, brain.policy, run.controller, brain.worker, clock, brain.parts)
        print(budget.page(), file=sys.stderr, flush=True)
        if not (budget.fits or run.force):
            raise ControlError(f"a plan does not fit: {'; '.join(budget.advice())}; force=true begins all the same")
        if run.robot == "replay":  # the recording has run on meanwhile
            robot.close()
            robot.connect()
        stack.enter_context(undisturbed())
        session = stack.enter_context(Session(run, robot, brain, clock))
        ended = session.run(interrupts)
    return session.summary(ended, budget)


# ------------------------------------------------------------------------------------------------------------ the policy


@dataclass
class Brain:
    """A policy wherever it runs: what a controller must know of it, its worker, what it was trained on; and, where it runs here,
    how its parts are timed and what it imagines."""

    policy: PolicyCard
    worker: Worker
    about: str
    parts: Callable | None = None
    make_imagine: Callable | None = None


def _here(run: ControlRun, clock: Clock, spec: RobotSpec, delay_s: Callable | None) -> Brain:
    """The checkpoint in a worker of this machine. CheckpointError when it was not trained for this robot."""
    torch.set_num_threads(run.threads)
    model, card = load_model(run.checkpoint, run.member)
    checkpoints.refuse_mismatch(card, dict(spec.card))
    policy = Policy(model, run.policy)
    _refuse_other_sizes(spec, policy.cameras, model.config.autoencoder.image_size, *model.config.sizes(run.member or model.config.acting))
    Planner(policy, run.controller)  # a kind that does not go with this policy is refused before a process starts
    make = partial(planner, run)
    if delay_s is not None:
        worker: Worker = VirtualWorker(Planner(policy, run.controller), clock, delay_s, run.seed)
    elif run.worker == "thread":
        worker = ThreadWorker(make(), clock, HUNG_S)
    else:
        with signals_blocked():
            worker = ProcessWorker(make, clock, HUNG_S)
    about = f"{run.checkpoint}, step {card['step']}"
    return Brain(policy.card, worker, about, budgets.parts_of(policy, clock), partial(_imagination, run) if dreams(model, card) else None)


def planner(run: ControlRun) -> Callable[[Job], Answer]:
    """What a worker computes with, warm; called in its process."""
    torch.set_num_threads(run.threads)
    model = load_model(run.checkpoint, run.member)[0]
    plan = Planner(Policy(model, run.policy), run.controller)
    plan = plan if run.precision == "float32" else partial(_in_bfloat16, plan)
    action, proprio = model.config.sizes(run.member or model.config.acting)
    side, none = model.config.autoencoder.image_size, np.zeros((0, action), np.float32)
    blank = {name: np.zeros((side, side, 3), np.uint8) for name in model.config.cameras}
    # The first plan of a process is several times slower: a robot must not be the one to wait for it.
    plan(Job(0, 0, {**blank, "proprio": np.zeros(proprio, np.float32)}, none, none))
    return plan


def _in_bfloat16(plan: Planner, job: Job) -> Answer:
    with torch.autocast("cpu", torch.bfloat16):
        return plan(job)


def _imagination(run: ControlRun) -> Callable:
    """What the monitor imagines with; called in its process."""
    from uwm.robot.history import observe

    model = load_model(run.checkpoint, run.member)[0]

    def ask(observation, executed, planned):
        if "proprio" not in observation:
            return {}
        pictures = imagine(model, observe([observation], model.config.cameras), executed, planned)
        ticks = model.config.video_frames
        return {f"{name}/in_{tick}": frames[index] for name, frames in pictures.items() for index, tick in enumerate(ticks)}

    return ask


def _elsewhere(run: ControlRun, clock: Clock, spec: RobotSpec) -> Brain:
    """The policy behind a server; its own settings (rows, chunks, kind of chunking) count."""
    from uwm.robot.client import PolicyClient, PolicyError

    try:
        client = PolicyClient(run.server, clock, os.environ.get("UWM_TOKEN", ""), ANSWER_S, run.certificate)
        policy, told = client.card, client.metadata
    except PolicyError as error:
        raise ControlError(str(error)) from error
    kind, ours = told["chunking"]["kind"], run.controller.kind
    if kind != ours:
        raise ConfigError(f"{run.server} plans for controllers of kind {kind!r}, this one is {ours!r}: add controller.kind={kind}")
    checkpoints.refuse_mismatch(told, dict(spec.card))
    _refuse_other_sizes(spec, policy.cameras, None, told["action_size"], told["proprio_size"])
    return Brain(policy, ThreadWorker(client.plan, clock, HUNG_S), f"{run.server}: {told['checkpoint']}")


def _refuse_other_sizes(spec: RobotSpec, cameras: tuple[str, ...], side: int | None, action: int, proprio: int) -> None:
    """CheckpointError when shapes differ, for robots whose card does not tell enough."""
    wanted = {"proprio": (proprio,), **{name: (side, side, 3) for name in cameras if side}}
    got = {name: tuple(sensor.shape) for name, sensor in spec.sensors.items()}
    wrong = [f"{name} must be {shape}, got {got[name]}" for name, shape in wanted.items() if got.get(name, shape) != shape]
    wrong += [f"the robot has no {name}" for name in ("proprio", *cameras) if name not in got]
    wrong += [f"actions must have {action} numbers, got {spec.action.size}"] if action != spec.action.size else []
    if wrong:
        raise checkpoints.CheckpointError(f"the checkpoint does not fit {spec.name}: {'; '.join(wrong)}")


# ------------------------------------------------------------------------------------------------------------- the robot


def make_robot(run: ControlRun, clock: Clock, threaded: bool = True) -> Robot:
    """The robot of a run, not connected; a simulated world lives in its own thread on the wall clock."""
    options = dict(run.options or {})
    try:
        match run.robot:
            case "simulated":
                robot = _simulated(run, clock, threaded, options)
            case "replay":
                robot = _replay(clock, options)
            case "lerobot":
                robot = _lerobot(run, clock, options)
            case "franka":
                from uwm.robot.robots.franka import FrankaRobot

                robot = FrankaRobot(clock=clock, **_rate(run), **options)
            case _:
                from uwm.robot.robots.dds import DdsRobot

                robot = DdsRobot(clock=clock, **_rate(run), **options)
    except TypeError as error:  # an option that the robot does not have, or one that it lacks
        raise ConfigError(f"control.options of {run.robot}: {error}") from error
    if run.rate_hz is not None and abs(run.rate_hz - robot.spec.rate_hz) > 1e-6:
        raise ConfigError(f"control.rate_hz: {robot.spec.name} acts at {robot.spec.rate_hz:g} Hz, not {run.rate_hz:g}; leave it out")
    return robot


def _rate(run: ControlRun) -> dict:
    return {} if run.rate_hz is None else {"rate_hz": run.rate_hz}


def _simulated(run: ControlRun, clock: Clock, threaded: bool, options: dict) -> Robot:
    from uwm.build import make_world
    from uwm.robot.robots.simulated import SimulatedRobot

    return SimulatedRobot(make_world(run.world), clock, run.seed, threaded, **options)


def _replay(clock: Clock, options: dict) -> Robot:
    import uwm_data
    from uwm.robot.robots.replay import ReplayRobot, recorded

    if "data" not in options:
        raise ConfigError("a replay needs options={data: STORE, episode: N}")
    with uwm_data.EpisodeStore.open(options.pop("data")) as store:
        arrays, spec = recorded(store, options.pop("episode", store.episodes[0]))
    return ReplayRobot(arrays, spec, clock, **options)


def _lerobot(run: ControlRun, clock: Clock, options: dict) -> Robot:
    """LeRobot's robot of `type` with its own `config`; the other options are `LeRobotRobot`'s."""
    from uwm.robot.robots.lerobot import LeRobotRobot

    if "type" not in options or run.rate_hz is None:
        raise ConfigError("a LeRobot robot needs rate_hz and options={type: so101_follower, config: {port: ...}, limits: {...}}")
    try:
        import importlib

        from lerobot.robots import RobotConfig, make_robot_from_config

        kind = options.pop("type")
        with contextlib.suppress(ModuleNotFoundError):  # a plug-in registers itself elsewhere
            importlib.import_module(f"lerobot.robots.{kind}")
    except ModuleNotFoundError as error:
        raise ControlError(f"robot=lerobot needs LeRobot beside us: pip install lerobot ({error})") from error
    theirs = make_robot_from_config(RobotConfig.get_choice_class(kind)(**options.pop("config", {})))
    return LeRobotRobot(theirs, clock, run.rate_hz, **options)


# -------------------------------------------------------------------------------------------------------------- the run


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
            self.recorder = opened(Recorder(spec, store, Path(f"{run.record}.spool")))
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

        if self.recorder:
            instruction = robot.spec.card.get("instruction", "")
            self.recorder.meta = {"instruction": instruction, "seed": seed, "source": f"uwm control, {self.brain.about}"}
        safety = Safety(robot.spec, run.safety)
        listeners = [_Open(each) for each in self.listeners]
        self.controller = Controller(
            robot, self.brain.policy, self.clock, self.brain.worker, run.controller, listeners, safety, seed
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
        self.watch.episodes += is_whole
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


def page(told: dict) -> str:
    """The summary as text."""
    shown = lambda figures: ", ".join(f"{name} {value:.1f}" for name, value in figures.items()) or "none"  # noqa: E731
    told_of = lambda counts: ", ".join(f"{name} {count}" for name, count in counts.items()) or "nothing"  # noqa: E731
    success = f"{told['successes']} of {told['judged']} whole episodes succeeded" if told["judged"] else "no episode was judged"
    memory = told["memory_mb"]
    lines = [
        f"control: {told['ended']} after {told['duration_s']:.1f} s: {told['ticks']} ticks, {told['missed']} missed; {success}",
        f"  late     {shown(told['jitter_ms'])} ms of a period of {told['period_ms']:.0f} ms",
        f"  plans    {told['plans']} in {told['calls']} calls, {told['failures']} failed; latency {shown(told['latency_ms'])} ms",
        f"  actions  {told['gaps']} ticks without one, {told['late']} came too late",
        f"  safety   {told_of(told['behaviours'])}; limited: {told_of(told['limited'])}",
        f"  memory   {memory['start']:.0f} MB at the start, {memory['end']:.0f} at the end, growth once warm {memory['growth']:+.0f}",
    ]
    if told["compared"].get("compared"):
        differences = ", ".join(f"{value:.2f}" for value in told["compared"]["mean_difference"])
        lines += [f"  compared {told['compared']['compared']} actions with the recorded ones: mean difference {differences}"]
    lines += [f"  world    {told['slipped']} periods too slow: it ran in slow motion"] if told["slipped"] else []
    lines += [f"  recorded episodes {told['recorded']}"] if told["recorded"] else []
    return "\n".join([*lines, *(f"  trouble  {name}: {words}" for name, words in told["troubles"].items())])
