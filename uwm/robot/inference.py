"""Where inference runs while the robot acts: a worker takes one job at a time and never makes the control loop wait.

```
control loop   submit(job)  poll -> None  poll -> None  poll -> Result          close()
                    |                                     ^
worker              +--------- compute(job) --------------+        virtual | thread | process
```

| worker | for | a crash of the computation | a computation that hangs |
|---|---|---|---|
| VirtualWorker | tests and benches on a virtual clock: delivers after a delay that is asked for | Result with the error | - |
| ThreadWorker | a model in this process | Result with the error | given up, a new thread serves the next job |
| ProcessWorker | a model that may take its process down | Result with WorkerDied, a new process | killed, a new process |
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing import reduction
from typing import Any, Protocol

import numpy as np

from uwm.robot.clock import Clock
from uwm.robot.shelf import Shelf

TOLERANCE_S = 1e-6  # due times are sums of floats: a result due exactly at a tick must not miss it
ENDING_S = 5.0  # for a thread or a process to end


class WorkerDied(RuntimeError):
    """The worker's process or thread is gone or was given up; the job is lost, the next one finds a new worker."""


@dataclass(frozen=True)
class Job:
    """One plan to make, in plain numpy, so that it can travel.

    `observation` as `uwm.robot.history.observe` takes it; `queue` (k, A) actions that will be executed from `tick` on, of which
    the first `delay` are certain; `executed` (n, A) actions executed since `memory` was handed out; `memory` what the last
    answer handed back (None: start with `seed`); `restart`: the buffer's place in time was lost; `count` actions that are needed;
    `earlier` what was seen at the ticks of the policy's history (() of nothing).
    """

    index: int
    tick: int
    observation: dict[str, np.ndarray]
    queue: np.ndarray
    executed: np.ndarray
    delay: int = 0
    count: int = 1
    memory: dict[str, np.ndarray] | None = None
    restart: bool = False
    seed: int = 0
    submitted_s: float = 0.0
    earlier: tuple[dict[str, np.ndarray], ...] = ()


@dataclass(frozen=True)
class Answer:
    """What `compute` makes of a job: actions (n, A) in physical units, memory for the next job, network calls spent."""

    actions: np.ndarray
    memory: dict[str, np.ndarray] = field(default_factory=dict)
    calls: int = 0


@dataclass(frozen=True)
class Result:
    """The end of a job: an answer or an error, and when it was there."""

    index: int
    finished_s: float
    answer: Answer | None = None
    error: Exception | None = None


Compute = Callable[[Job], Answer]


class Worker(Protocol):
    """One job at a time. Nothing here blocks: a control loop calls it in every period."""

    @property
    def idle(self) -> bool:
        """Whether a job would be taken now."""

    def submit(self, job: Job) -> None:
        """Hand over a job; RuntimeError when not idle."""

    def poll(self) -> Result | None:
        """The result of the job, once, as soon as it is there."""

    def close(self) -> None:
        """Let go of threads and processes; a job under way is lost."""


def _refuse(idle: bool) -> None:
    if not idle:
        raise RuntimeError("this worker is busy or not ready; look at `idle` before submitting")


def _outcome(compute: Compute, job: Job) -> tuple[Answer | None, Exception | None]:
    """The answer, or the error of the computation: a worker must outlive what it computes."""
    try:
        return compute(job), None
    except Exception as error:  # noqa: BLE001 - it is handed on
        return None, error


class VirtualWorker:
    """Computes at once and delivers `delay_s(index, generator)` seconds later by the clock."""

    def __init__(self, compute: Compute, clock: Clock, delay_s: Callable[[int, np.random.Generator], float], seed: int = 0):
        self.compute, self.clock, self.delay_s = compute, clock, delay_s
        self.generator = np.random.default_rng(seed)
        self._waiting: Result | None = None

    @property
    def idle(self) -> bool:
        return self._waiting is None

    def submit(self, job: Job) -> None:
        _refuse(self.idle)
        finished_s = self.clock.now_s() + self.delay_s(job.index, self.generator)
        self._waiting = Result(job.index, finished_s, *_outcome(self.compute, job))

    def poll(self) -> Result | None:
        if self._waiting is None or self.clock.now_s() < self._waiting.finished_s - TOLERANCE_S:
            return None
        result, self._waiting = self._waiting, None
        return result

    def close(self) -> None:
        self._waiting = None


class _Lane:
    """A thread with a job box and a result box; `serve(job)` runs in it until it returns None or a job None arrives."""

    def __init__(self, serve: Callable[[Job], tuple[Answer | None, Exception | None]], clock: Clock, begin: Callable | None = None):
        self.jobs: queue.SimpleQueue = queue.SimpleQueue()
        self.results: queue.SimpleQueue = queue.SimpleQueue()
        self.ready, self.failure = threading.Event(), None
        self.thread = threading.Thread(target=self._run, args=(serve, clock, begin), daemon=True, name="inference")
        self.thread.start()

    def _run(self, serve, clock, begin) -> None:
        try:
            if begin is not None:
                begin()
        except Exception as error:  # noqa: BLE001 - it is handed on
            self.failure = error
        self.ready.set()
        while self.failure is None and (job := self.jobs.get()) is not None:
            answer, error = serve(job)
            self.results.put(Result(job.index, clock.now_s(), answer, error))

    def take(self) -> Result | None:
        with contextlib.suppress(queue.Empty):
            return self.results.get_nowait()
        return None


class ThreadWorker:
    """Computes in a thread of this process. After `hung_after_s` a job is given up; its thread ends when it can.

    `close` waits for a job under way, `ENDING_S` at most: an interpreter that ends while a thread is inside torch is aborted.
    """

    def __init__(self, compute: Compute, clock: Clock, hung_after_s: float = 10.0):
        self.compute, self.clock, self.hung_after_s = compute, clock, hung_after_s
        self._job: tuple[Job, float] | None = None
        self._lane = _Lane(lambda job: _outcome(compute, job), clock)

    @property
    def idle(self) -> bool:
        return self._job is None

    def submit(self, job: Job) -> None:
        _refuse(self.idle)
        self._job = job, self.clock.now_s()
        self._lane.jobs.put(job)

    def poll(self) -> Result | None:
        if self._job is None:
            return None
        result = self._lane.take()
        job, since_s = self._job
        if result is None and self.clock.now_s() - since_s > self.hung_after_s:
            result = Result(job.index, self.clock.now_s(), None, WorkerDied(f"no answer within {self.hung_after_s:g} s; given up"))
            self._lane.jobs.put(None)
            self._lane = _Lane(lambda job: _outcome(self.compute, job), self.clock)
        if result is not None:
            self._job = None
        return result

    def close(self) -> None:
        self._lane.jobs.put(None)
        self._lane.thread.join(ENDING_S)


class ProcessWorker:
    """Computes in a process of its own, which may crash or hang: it is killed and replaced, and the loop never waits.

    `make()` runs in the new process and returns the computation; it must be picklable (a function of a module, or a
    `functools.partial` of one). After `hung_after_s` a job is given up, after `patience` failures in a row the worker stays dead
    (`failure` says why). All talk with the process is in a thread, since a pipe to a process that hangs may block.
    """

    def __init__(self, make: Callable[[], Compute], clock: Clock, hung_after_s: float = 10.0, patience: int = 5):
        self.make, self.clock, self.hung_after_s, self.patience = make, clock, hung_after_s, patience
        self.failures, self.failure = 0, ""
        self._job: tuple[Job, float] | None = None
        self._start()

    @property
    def idle(self) -> bool:
        """Ready: loaded, and without a job. Replaces a process that died, which takes effect later."""
        if self.failure or self._job is not None or not self._lane.ready.is_set():
            return False
        if self._lane.failure is not None:
            self._replace(f"could not be started: {self._lane.failure}")
            return False
        return True

    @property
    def process_id(self) -> int | None:
        """The process that computes now."""
        return self._child.process.pid if self._child.process else None

    def submit(self, job: Job) -> None:
        _refuse(self.idle)
        self._job = job, self.clock.now_s()
        self._lane.jobs.put(job)

    def poll(self) -> Result | None:
        if self._job is None:
            return None
        (job, since_s), result = self._job, self._lane.take()
        if result is None and self.clock.now_s() - since_s > self.hung_after_s:
            error = WorkerDied(f"no answer within {self.hung_after_s:g} s; its process was killed")
            result = Result(job.index, self.clock.now_s(), None, error)
        if result is None:
            return None
        self._job = None
        if isinstance(result.error, WorkerDied):
            self._replace(str(result.error))
        else:
            self.failures = 0
        return result

    def close(self) -> None:
        self.failure = self.failure or "closed"
        self._lane.jobs.put(None)
        self._child.kill()
        self._lane.thread.join(ENDING_S)
        if self._child.process is not None:
            self._child.process.join(ENDING_S)

    def _start(self) -> None:
        self._child = _Child(self.make)
        self._lane = _Lane(self._child.serve, self.clock, self._child.begin)

    def _replace(self, why: str) -> None:
        self.failures += 1
        self._lane.jobs.put(None)
        self._child.kill()
        if self.failures >= self.patience:
            self.failure = f"the inference process failed {self.failures} times in a row; the last time: {why}"
        else:
            self._start()


class _Child:
    """One process, the pipe to it and the shelf for camera frames, as its thread sees it."""

    def __init__(self, make: Callable[[], Compute]):
        self.make, self.process, self._lock, self._killed = make, None, threading.Lock(), False
        self.shelf: Shelf | None = None

    def begin(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        with self._lock:
            if self._killed:
                raise WorkerDied("closed before it started")
            self.shelf = Shelf()
            process = context.Process(target=_compute_for, args=(theirs, _Inherited(self.shelf.fd), self.make), daemon=True)
            process.start()
            self.process = process
            self.shelf.close()  # both have mapped it, or will have
        theirs.close()  # so that the end of the process is the end of the pipe
        failure = self._receive()
        if failure is not None:
            raise failure

    def serve(self, job: Job) -> tuple[Answer | None, Exception | None]:
        try:
            seen = {(place, name): value for place, each in enumerate((job.observation, *job.earlier)) for name, value in each.items()}
            self.pipe.send((replace(job, observation={}, earlier=tuple({} for _ in job.earlier)), self.shelf.put(seen)))
            return self._receive()
        except (OSError, EOFError, WorkerDied) as error:
            return None, error if isinstance(error, WorkerDied) else WorkerDied(f"the process ended: {error}")

    def _receive(self) -> Any:
        try:
            return self.pipe.recv()
        except (OSError, EOFError):
            self.process.join(ENDING_S)
            raise WorkerDied(f"the inference process ended with exit code {self.process.exitcode}") from None

    def kill(self) -> None:
        with self._lock:
            self._killed = True
            if self.process is not None:
                self.process.kill()


class _Inherited:
    """A file descriptor on its way to a process that is being started."""

    def __init__(self, fd: int):
        self.fd = fd

    def __getstate__(self) -> Any:
        return reduction.DupFd(self.fd)

    def __setstate__(self, duplicate: Any) -> None:
        self.fd = duplicate.detach()


def _compute_for(pipe: Any, memory: _Inherited, make: Callable[[], Compute]) -> None:
    """Life of the process: load, say so, answer job after job until the pipe ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to end, and its end ends this pipe
    shelf = Shelf(memory.fd)
    try:
        compute = make()
    except Exception as error:  # noqa: BLE001 - it is handed on
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
        return
    pipe.send(None)
    with contextlib.suppress(EOFError, OSError):
        while True:
            job, seen = pipe.recv()
            for (place, name), value in shelf.taken(seen).items():
                (job.observation, *job.earlier)[place][name] = value
            answer, error = _outcome(compute, job)
            # Not every exception survives the journey; its words do.
            pipe.send((answer, None if error is None else RuntimeError(f"{type(error).__name__}: {error}")))
