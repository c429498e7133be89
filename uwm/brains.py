"""The policy of a control run, wherever it computes: in a worker of this machine, or behind a policy server.

```
here        checkpoint -> fits the robot? -> process | thread | virtual worker, warm           + what it imagines, how its parts are timed
elsewhere   server's card -> fits the robot? -> a thread that waits for the server's answers
```
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from uwm.core.config import ConfigError
from uwm.learn import checkpoint as checkpoints
from uwm.learn import precision
from uwm.robot import budget as budgets
from uwm.robot.chunking import Planner
from uwm.robot.clock import Clock
from uwm.robot.imagine import dreams, imagine
from uwm.robot.inference import Answer, Job, ProcessWorker, ThreadWorker, VirtualWorker, Worker
from uwm.robot.interface import RobotSpec
from uwm.robot.interrupts import signals_blocked
from uwm.robot.policy import Policy, PolicyCard
from uwm.runs import ControlError, ControlRun
from uwm.training import load_model

HUNG_S = 5.0  # a plan that takes so long is given up; the safety layer holds the robot long before
ANSWER_S = 2.0  # for a server


@dataclass
class Brain:
    """A policy wherever it runs: what a controller must know of it, its worker, what it was trained on, whether it has language; and,
    where it runs here, how its parts are timed and what it imagines."""

    policy: PolicyCard
    worker: Worker
    about: str
    hears: bool = False
    parts: Callable | None = None
    make_imagine: Callable | None = None


def here(run: ControlRun, clock: Clock, spec: RobotSpec, delay_s: Callable | None) -> Brain:
    """The checkpoint in a worker of this machine. CheckpointError when it was not trained for this robot."""
    if told := precision.note(run.precision, "precision=float32"):
        print(told)
    torch.set_num_threads(run.threads)
    model, card = load_model(run.checkpoint, run.member)
    checkpoints.refuse_mismatch(card, dict(spec.card), run.policy.cameras)
    _refuse_deaf(run, model.hears)
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
    make_imagine = partial(_imagination, run) if dreams(model, card) else None
    return Brain(policy.card, worker, about, model.hears, budgets.parts_of(policy, clock), make_imagine)


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
    told = "do it" if run.instruction is None else run.instruction  # so that an encoder of words is open, too
    seen = {**blank, "proprio": np.zeros(proprio, np.float32), **({"prompt": told} if model.hears else {})}
    plan(Job(0, 0, seen, none, none, earlier=(seen,) * len(model.config.history)))
    return plan


def _refuse_deaf(run: ControlRun, hears: bool) -> None:
    """ConfigError when the policy would not understand what it is told."""
    if run.instruction and not hears:
        raise ConfigError(f"control.instruction={run.instruction!r}: the policy was trained without language, leave it out")


def wanted(run: ControlRun, spec: RobotSpec, asked: str = "") -> str:
    """What is to be done: what the run says, else what this episode asks for, else what the robot's card does."""
    return asked or spec.card.get("instruction", "") if run.instruction is None else run.instruction


def _in_bfloat16(plan: Callable[[Job], Answer], job: Job) -> Answer:
    with torch.autocast("cpu", torch.bfloat16):
        return plan(job)


def _imagination(run: ControlRun) -> Callable:
    """What the monitor imagines with; called in its process."""
    from uwm.robot.history import observe

    model = load_model(run.checkpoint, run.member)[0]
    cameras = Policy(model, run.policy).cameras

    def ask(observation, executed, planned):
        if "proprio" not in observation:
            return {}
        seen = observe([observation], cameras, words=model.words)
        pictures = imagine(model, seen, executed, planned)
        ticks = model.config.video_frames
        return {f"{name}/in_{tick}": frames[index] for name, frames in pictures.items() for index, tick in enumerate(ticks)}

    return ask


def elsewhere(run: ControlRun, clock: Clock, spec: RobotSpec) -> Brain:
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
    hears = told.get("language", "none") != "none"
    _refuse_deaf(run, hears)
    return Brain(policy, ThreadWorker(client.plan, clock, HUNG_S), f"{run.server}: {told['checkpoint']}", hears)


def _refuse_other_sizes(spec: RobotSpec, cameras: tuple[str, ...], side: int | None, action: int, proprio: int) -> None:
    """CheckpointError when shapes differ, for robots whose card does not tell enough."""
    wanted = {"proprio": (proprio,), **{name: (side, side, 3) for name in cameras if side}}
    got = {name: tuple(sensor.shape) for name, sensor in spec.sensors.items()}
    wrong = [f"{name} must be {shape}, got {got[name]}" for name, shape in wanted.items() if got.get(name, shape) != shape]
    wrong += [f"the robot has no {name}" for name in ("proprio", *cameras) if name not in got]
    wrong += [f"actions must have {action} numbers, got {spec.action.size}"] if action != spec.action.size else []
    if wrong:
        raise checkpoints.CheckpointError(f"the checkpoint does not fit {spec.name}: {'; '.join(wrong)}")
