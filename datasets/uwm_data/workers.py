"""One function over many items in processes: results in order, bounded memory, and a crash is the error of its item.

    items      0   1   2   3   4   5   6 ...
    workers        |   +---+                     two at work, on 2 and 3
    waiting        1                             done, but 0 is not: held back
    handed on                                    never more than `workers` + 2 items ahead of the next one

A process pool of the standard library loses everything when one process dies, and does not tell which item it died of.
"""

from __future__ import annotations

import errno
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from uwm_data.errors import FormatError, StoreError
from uwm_data.processes import deaf_to_interrupts

_SPAWN = get_context("spawn")
_PATIENCE_S = 5.0
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Outcome:
    """What became of one item: its `value`, or the `error` of its data or its process.

    `fatal` is what ends everything and is raised where it is this item's turn; nobody else sees it.
    """

    item: int
    value: Any = None
    error: StoreError | None = None
    fatal: Exception | None = None


def in_order(task: Callable[[int], Any], items: Sequence[int], workers: int, what: str) -> Generator[Outcome]:
    """Yields what became of `task(item)` for each item, in the order given, from `workers` processes (0: this one).

    `task` is picklable. `StoreError`, running out of memory and a process that dies become the outcome of their item;
    `what` ("runs/x.hdf5: episode") begins those messages. A full disk, a missing package and a bug are raised here.
    """
    if not workers:
        return (_attempt(task, item, what) for item in items)
    return _from_processes(task, items, min(workers, max(1, len(items))), what)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C that arrives inside takes effect at the end: what is being written is written whole."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may change handlers, and only it is interrupted
        return
    arrived: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if arrived:
            signal.raise_signal(signal.SIGINT)


def _attempt(task: Callable[[int], Any], item: int, what: str) -> Outcome:
    try:
        return Outcome(item, task(item))
    except StoreError as error:
        if _disk_is_full(error):
            raise
        return Outcome(item, error=error)
    except MemoryError:
        return Outcome(item, error=FormatError(f"{what} {item} does not fit into memory; free some, or use fewer workers"))
    except OSError as error:
        if _disk_is_full(error) or isinstance(error, ChildProcessError):
            raise
        return Outcome(item, error=FormatError(f"{what} {item} cannot be read: {error.strerror or error}"))


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


# ------------------------------------------------------------------------------------------------------------- processes


class _Worker:
    """One process and the pipe to it; `item` is what it works on. It says first that it is ready, then one outcome an item."""

    def __init__(self, task: Callable[[int], Any], what: str):
        self.pipe, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_work, args=(theirs, task, what), daemon=True)
        with deaf_to_interrupts():
            self.process.start()
        theirs.close()  # so that a dead process is the end of the pipe
        self.item: int | None = None
        self.is_ready = False

    def begin(self, item: int) -> None:
        self.item = item
        with suppress(OSError):  # it died while idle; the end of its pipe tells
            self.pipe.send(item)

    def receive(self) -> Outcome | None:
        """What it has to say; None when that is only that it is ready. EOFError when it is dead."""
        try:
            said = self.pipe.recv()
        except OSError as error:
            raise EOFError from error
        self.is_ready, self.item = True, None
        return said

    def end(self) -> int:
        """Its exit code, once it is gone: an idle one goes by itself, one at work is asked, one that does not hear is ended."""
        self.pipe.close()
        if self.item is not None or not self.is_ready:
            self.process.terminate()
        self.process.join(_PATIENCE_S)
        self.process.kill()
        self.process.join()
        return self.process.exitcode


def _from_processes(task: Callable[[int], Any], items: Sequence[int], workers: int, what: str) -> Generator[Outcome]:
    crew: list[_Worker] = []
    waiting: dict[int, Outcome] = {}
    begun = 0
    try:
        for place, item in enumerate(items):
            last = min(len(items), place + workers + 2)
            while item not in waiting:
                while len(crew) < workers and begun < last:
                    crew.append(_Worker(task, what))
                for worker in crew:
                    if worker.is_ready and worker.item is None and begun < last:
                        worker.begin(items[begun])
                        begun += 1
                waiting |= {outcome.item: outcome for outcome in _arrivals(crew, what)}
            outcome = waiting.pop(item)
            if outcome.fatal:
                raise outcome.fatal
            yield outcome
    finally:
        for worker in crew:
            worker.end()


def _arrivals(crew: list[_Worker], what: str) -> Iterator[Outcome]:
    """Waits until some worker says something, and yields the outcomes among that; dead workers leave the crew."""
    by_pipe = {worker.pipe: worker for worker in crew}
    for pipe in wait(list(by_pipe)):
        worker = by_pipe[pipe]
        try:
            outcome = worker.receive()
        except EOFError:
            crew.remove(worker)
            outcome = _autopsy(worker, what)
        if outcome is not None:
            yield outcome


def _autopsy(worker: _Worker, what: str) -> Outcome | None:
    worker.process.join()
    code = worker.end()
    cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    if not worker.is_ready:
        raise FormatError(
            f"a worker process could not start ({cause}; its own message stands above): try with fewer workers; a script that "
            "converts needs `if __name__ == '__main__':` around its start"
        )
    if worker.item is None:
        return None  # nobody's loss: another one takes its place
    hint = "probably memory ran out: use fewer workers" if cause == "SIGKILL" else "the file is probably damaged"
    return Outcome(worker.item, error=FormatError(f"{what} {worker.item}: the process that read it died ({cause}); {hint}"))


def _work(pipe: Connection, task: Callable[[int], Any], what: str) -> None:
    """The life of a worker process: items in, outcomes out, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Leave by the door: libraries hold semaphores that the system would otherwise keep, with a warning at the end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        pipe.send(None)
        while True:
            item = pipe.recv()
            try:
                outcome = _attempt(task, item, what)
            except Exception as error:  # noqa: BLE001 - carried to the parent, which raises it
                outcome = Outcome(item, fatal=_portable(error))
            pipe.send(outcome)
    except (EOFError, OSError):
        return  # the parent closed the pipe or died


def _portable(error: Exception) -> Exception:
    """The error itself if it is an expected one; a bug of any other class as its traceback."""
    is_expected = isinstance(error, StoreError | OSError | ImportError)
    return error if is_expected else RuntimeError(f"a worker process failed:\n{traceback.format_exc()}")
