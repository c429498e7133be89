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
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from uwm.acting import Session
from uwm.brains import elsewhere, here
from uwm.core.config import from_mapping
from uwm.robot import budget as budgets
from uwm.robot.bag import BagError
from uwm.robot.budget import BudgetError
from uwm.robot.clock import Clock, MonotonicClock
from uwm.robot.interface import RobotError
from uwm.robot.interrupts import Interrupts, undisturbed
from uwm.robot.monitor import MonitorError
from uwm.robot.recording import RecordingError
from uwm.robot_maker import make_robot
from uwm.runs import ControlError, ControlRun


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
        brain = elsewhere(run, clock, robot.spec) if run.server else here(run, clock, robot.spec, delay_s)
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
