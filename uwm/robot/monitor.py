"""A run in Rerun while it goes on: cameras, imagined future, the action buffer with its levels, actions, latency.

```
control loop --tick--> queue --thread--> pipe --> process (low priority) --> viewer or FILE.rrd
                  full: left out                  every n ticks: imagine, as soon as nothing waits; after 2 n anyway
```

    camera/NAME             newest pictures                     action/proposed, action/sent     curves
    imagined/NAME/in_8      what the model expects in 8 ticks   buffer/level, buffer/action      now, one bar a tick ahead
    timing/latency_ms, timing/late_ms, timing/queue             behaviour                        words, when it changes

A process of its own, because a viewer that hangs and a model that imagines must not take the loop's time. Whatever happens to
it, the robot is served: `trouble` says why there is nothing to see any more.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uwm.core import plans
from uwm.robot.aside import Aside
from uwm.robot.interface import RobotSpec
from uwm.robot.policy import PolicyConfig
from uwm.robot.processes import deaf_to_interrupts
from uwm.robot.watchdog import is_camera

NICE = 15
START_S, END_S = 60.0, 20.0
Imagine = Callable[[Mapping[str, np.ndarray], np.ndarray, np.ndarray], Mapping[str, np.ndarray]]


class MonitorError(RuntimeError):
    """A monitor that cannot begin: what is missing, and what to try."""


class Monitor:
    """Shows a run of `spec` in the viewer ("rerun") or writes it to a file (`target` ends with .rrd); a listener of ticks.

    `policy`: for the levels of its buffer. `memory()` gives the policy's memory, if anyone knows it. `make_imagine()` is
    called in the monitor's process (picklable) and returns a function (observation, executed (n, A), planned (m, A)) ->
    {"CAMERA/in_TICKS": picture}, asked every `every` ticks; "prompt" of an observation is what the policy is told. MonitorError or
    ImportError when it cannot begin.
    """

    def __init__(
        self,
        spec: RobotSpec,
        target: str,
        policy: PolicyConfig,
        memory: Callable[[], Mapping[str, np.ndarray] | None] = lambda: None,
        make_imagine: Callable[[], Imagine] | None = None,
        every: int = 10,
    ):
        _refuse(target)
        context = get_context("spawn")
        pipe, theirs = context.Pipe()
        self._process = context.Process(target=_show, args=(theirs, target, spec, make_imagine, every), daemon=True)
        with deaf_to_interrupts():
            self._process.start()
        theirs.close()
        words = _heard(pipe, START_S)
        if words:
            self._process.kill()
            raise MonitorError(f"the monitor cannot begin: {words}")
        self._aside = Aside(_Wire(pipe, lambda: levels(policy, memory())), name="monitor")

    @property
    def trouble(self) -> str:
        """Why nothing is shown any more, or ""."""
        return self._aside.trouble

    @property
    def dropped(self) -> int:
        """Ticks that were left out because the monitor was behind."""
        return self._aside.dropped

    def tick(self, tick: Any) -> None:
        """One period is over."""
        self._aside.tick(tick)

    def close(self) -> None:
        """Let the process write what it has; twice is the same as once."""
        self._aside.close()
        self._process.join(END_S)
        if self._process.is_alive():
            self._process.kill()


class _Wire:
    """Ticks into the pipe, in the monitor's thread, each with the buffer's levels of that moment."""

    def __init__(self, pipe: Any, buffer: Callable[[], Any]):
        self.pipe, self.buffer = pipe, buffer

    def tick(self, tick: Any) -> None:
        try:
            self.pipe.send((tick, self.buffer()))
        except OSError as error:
            raise MonitorError(f"the monitor ended: {_heard(self.pipe, 0.1) or error}") from error

    def close(self) -> None:
        self.pipe.send(None)


def _heard(pipe: Any, wait_s: float) -> str:
    """What the process says within `wait_s`: "" that all is well."""
    try:
        return pipe.recv() if pipe.poll(wait_s) else f"nothing came from its process within {wait_s:g} s"
    except (EOFError, OSError):
        return "its process died"


def levels(policy: PolicyConfig, memory: Mapping[str, np.ndarray] | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Levels (H,) and normalised values (H, A) of the buffer in a policy's memory, that of the first of its samples."""
    if memory is None or policy.kind != "streaming" or policy.frames or bool(memory["fresh"][0]):
        return None
    remaining = plans.streaming_remaining(policy.rows, policy.chunks, torch.from_numpy(memory["tick"][:1]))[0]
    return policy.ladder.level(remaining).numpy(), memory["future"][0]


def _refuse(target: str) -> None:
    if importlib.util.find_spec("rerun") is None:
        raise ImportError("monitoring needs rerun-sdk: pip install 'uwm[view]'")
    if target != "rerun" and not target.endswith(".rrd"):
        raise MonitorError(f"monitor is none, rerun or a file that ends with .rrd, got {target!r}")
    no_screen = sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    if target == "rerun" and no_screen:
        raise MonitorError("there is no screen here to open the viewer on; monitor=FILE.rrd writes a file, to be opened where there is one")


# ------------------------------------------------------------------------------------------------------- in the process


def _show(pipe: Any, target: str, spec: RobotSpec, make_imagine: Callable[[], Imagine] | None, every: int) -> None:
    """Life of the process: begin, say so, show tick after tick until the end is told, or its parent is gone."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the parent decides when to end, and its end ends this pipe
    try:
        os.nice(NICE)
        torch.set_num_threads(1)
        screen = _Screen(target, spec, make_imagine() if make_imagine else None, every)
        pipe.send("")
        while (told := pipe.recv()) is not None:
            screen.show(*told, is_behind=pipe.poll())
        screen.close()
    except (EOFError, OSError):
        return
    except Exception as error:  # noqa: BLE001 - it is handed on
        pipe.send(f"{type(error).__name__}: {error}".splitlines()[0])


class _Screen:
    """The recording, what was shown last, and the executed actions that the imagination continues."""

    def __init__(self, target: str, spec: RobotSpec, imagine: Imagine | None, every: int):
        import rerun

        self.rerun, self.spec, self.imagine, self.every = rerun, spec, imagine, every
        self.recording = rerun.RecordingStream(f"uwm control: {spec.name}")
        if target == "rerun":
            # The viewer's program lies beside Python, and is not found by itself where no environment is activated.
            os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
            self.recording.spawn()
        else:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            self.recording.save(target)
        for name in ("action/proposed", "action/sent"):
            self.recording.log(name, rerun.SeriesLines(names=list(spec.action.names)), static=True)
        self.executed: deque[np.ndarray] = deque(maxlen=32)  # in this episode
        self.began_s, self.behaviour = None, ""
        self.shown, self.imagined, self.index = 0, -every, -1  # ticks; `index` begins anew with every episode

    def show(self, tick: Any, buffer: tuple[np.ndarray, np.ndarray] | None, is_behind: bool) -> None:
        """One tick; `is_behind`: the next one waits already, so that imagining can wait."""
        self.began_s = tick.began_s if self.began_s is None else self.began_s
        self.recording.set_time("seconds", duration=tick.began_s - self.began_s)
        if tick.index <= self.index:
            self.executed.clear()
        self.index = tick.index
        self._readings(tick)
        self._actions(tick, buffer)
        self._timing(tick)
        if tick.sent is not None:
            self.executed.append(tick.sent)
        self.shown += 1
        if self.imagine is not None and self.shown - self.imagined >= self.every * (2 if is_behind else 1):
            self.imagined = self.shown
            self._imagined(tick)

    def close(self) -> None:
        """Everything into the file or to the viewer."""
        self.recording.flush()
        self.recording.disconnect()

    def _readings(self, tick: Any) -> None:
        for name, reading in tick.readings.items():
            if name not in self.spec.sensors or np.shape(reading.value) != tuple(self.spec.sensors[name].shape):
                continue
            if is_camera(self.spec.sensors[name]):
                self.recording.log(f"camera/{name}", self.rerun.Image(reading.value))
            else:
                self.recording.log(f"state/{name}", self.rerun.Scalars(np.ravel(reading.value).astype(float)))

    def _actions(self, tick: Any, buffer: tuple[np.ndarray, np.ndarray] | None) -> None:
        for name, action in (("proposed", tick.proposed), ("sent", tick.sent)):
            if action is not None:
                self.recording.log(f"action/{name}", self.rerun.Scalars(np.asarray(action, float)))
        ahead = np.zeros(len(tick.ahead))
        if buffer is not None:
            self.recording.log("buffer/level", self.rerun.BarChart(np.concatenate([ahead, buffer[0]])))
            self.recording.log("buffer/action", self.rerun.Tensor(np.asarray(buffer[1], np.float32), dim_names=("ahead", "number")))
        if len(ahead):
            self.recording.log("buffer/planned", self.rerun.Tensor(np.asarray(tick.ahead, np.float32), dim_names=("ahead", "number")))

    def _timing(self, tick: Any) -> None:
        figures = {"late_ms": 1e3 * (tick.began_s - tick.due_s), "queue": len(tick.ahead)}
        if tick.latency_s is not None:
            figures["latency_ms"] = 1e3 * tick.latency_s
        for name, value in figures.items():
            self.recording.log(f"timing/{name}", self.rerun.Scalars(value))
        verdict = tick.verdict
        if verdict.behaviour != self.behaviour:
            self.behaviour = verdict.behaviour
            self.recording.log("behaviour", self.rerun.TextLog(f"{verdict.behaviour} {verdict.reason}".strip()))

    def _imagined(self, tick: Any) -> None:
        observation = {**{name: reading.value for name, reading in tick.readings.items()}, "prompt": tick.instruction}
        size = self.spec.action.size
        executed = np.array(self.executed, np.float32).reshape(-1, size)
        # The action of this tick is under way: it is the first of the future, and belongs no longer to what was executed.
        sent = 0 if tick.sent is None else 1
        executed, now = np.split(executed, [len(executed) - sent])
        for name, picture in self.imagine(observation, executed, np.concatenate([now, tick.ahead])).items():
            self.recording.log(f"imagined/{name}", self.rerun.Image(picture))
