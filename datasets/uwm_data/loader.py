"""Batches ahead of time: worker processes read, the consumer gets whole batches in order, in memory that both share.

    order    0 1 2 3 4 5 ...                 worker 0 reads steps 0 2 4 ..., worker 1 reads 1 3 5 ...
    worker 0 [0]   [2]   [4]                 into slots of shared memory
    worker 1    [1]   [3]   [5]
    consumer  0  1  2  3                     a slot is used again when no array of its batch is left

Which batch comes when depends on the order alone, so a run resumes exactly: `Loader(windows, shuffled(..., start_step=k))`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing import connection, reduction
from typing import Protocol

import numpy as np

from uwm_data.errors import StoreError
from uwm_data.processes import deaf_to_interrupts
from uwm_data.slots import Lease, Slot, aligned, mapped, size_of
from uwm_data.windows import WindowBatch

_PATIENCE_S = 5.0


class BatchSource(Protocol):
    """What a Loader reads: `Windows`, or anything picklable that makes the arrays of `values` with `allocate`."""

    def batch(self, indices: np.ndarray, allocate=np.empty) -> WindowBatch:
        """The windows with these numbers."""


class Loader:
    """Iterates over the batches of `source` in the given order, read ahead by `workers` processes; a context manager.

    `order` yields arrays of window numbers, such as `shuffled`. `ahead` batches wait per worker. With 0 workers this
    process reads. Arrays are writable, and stay valid for as long as somebody holds them. Workers are spawned, so a script
    needs `if __name__ == "__main__"`; they ignore Ctrl-C, which ends this process, and end with it, however it ends. A worker
    that fails or dies is a StoreError at the batch that it owed; then the Loader is closed.
    """

    def __init__(self, source: BatchSource, order: Iterable[np.ndarray], workers: int = 1, ahead: int = 2):
        if workers < 0 or ahead < 1:
            raise StoreError(f"need workers >= 0 and ahead >= 1, got {workers} and {ahead}")
        self.source, self._order, self._given = source, iter(order), 0
        self._workers: list[_Worker] = []
        self._asked: deque[_Worker] = deque()
        self._closed = False
        try:
            with deaf_to_interrupts():
                self._workers = [_Worker(source) for _ in range(workers)]
            for _ in range(ahead):
                for worker in self._workers:
                    self._ask(worker)
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[WindowBatch]:
        return self

    def __next__(self) -> WindowBatch:
        if self._closed:
            raise StoreError("this Loader is closed; make a new one that starts at the step you need")
        if not self._workers:
            return self.source.batch(next(self._order))
        if not self._asked:
            raise StopIteration
        worker = self._asked.popleft()
        try:
            batch = worker.receive(self._given)
        except BaseException:
            self.close()
            raise
        self._given += 1
        self._ask(worker)
        return batch

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; batches that were handed out stay valid."""
        self._closed = True
        for worker in self._workers:
            worker.end()
        for worker in self._workers:
            worker.wait()
        self._workers = []
        self._asked.clear()

    def _ask(self, worker: _Worker) -> None:
        numbers = next(self._order, None)
        if numbers is not None:
            worker.ask(numbers)
            self._asked.append(worker)


class _Worker:
    """This side of a worker process: asks for batches, and turns its slots of shared memory into arrays."""

    def __init__(self, source: BatchSource):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, source), daemon=True)
        self._process.start()
        theirs.close()
        self._slots: dict[int, np.ndarray] = {}
        self._free: deque[int] = deque()

    def ask(self, numbers: np.ndarray) -> None:
        """Let it read a batch, into a slot that nobody uses."""
        with suppress(BrokenPipeError, ConnectionResetError):  # its death shows when the batch is due
            self._pipe.send((np.asarray(numbers), self._free.popleft() if self._free else None))

    def receive(self, place: int) -> WindowBatch:
        """The batch that is due; StoreError when the worker cannot read it or is no more."""
        connection.wait([self._pipe, self._process.sentinel])
        try:
            batch, slot, size, places = self._pipe.recv()
            if size:
                self._slots[slot] = mapped(reduction.recv_handle(self._pipe), size)
        except (EOFError, ConnectionResetError) as error:
            self._process.join(_PATIENCE_S)
            raise StoreError(
                f"a loader worker died (exit code {self._process.exitcode}; -9 often means that memory ran out) while it read "
                f"batch {place} of this run; use fewer workers or smaller batches and start again at that step"
            ) from error
        if isinstance(batch, str):
            raise StoreError(f"a loader worker could not read batch {place} of this run: {batch}")
        return replace(batch, values=self._leased(slot, places))

    def _leased(self, slot: int, places: dict) -> dict[str, np.ndarray]:
        lease = Lease(self._slots.setdefault(slot, np.empty(0, np.uint8)))
        # When the last array over the lease is gone, the slot is free again.
        weakref.finalize(lease, self._free.append, slot).atexit = False
        memory = np.asarray(lease)
        return {name: memory[at : at + size_of(shape, dtype)].view(dtype).reshape(shape) for name, (at, shape, dtype) in places.items()}

    def end(self) -> None:
        """Tell it to end."""
        self._pipe.close()

    def wait(self) -> None:
        """Until it has ended; one that does not is made to."""
        for stop in (lambda: None, self._process.terminate, self._process.kill):
            stop()
            self._process.join(_PATIENCE_S)
            if self._process.exitcode is not None:
                break


# ---- the worker's side ---------------------------------------------------------------------------------------------


def _serve(pipe: connection.Connection, source: BatchSource) -> None:
    """Read what is asked for until the other side closes its end, be it by its death."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    slots: list[Slot] = []
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            numbers, number = pipe.recv()
            if number is None:
                number = len(slots)
                slots.append(Slot())
            try:
                batch, places = _read(source, numbers, slots[number])
            except StoreError as error:
                pipe.send((str(error), 0, 0, {}))
                continue
            except Exception:  # noqa: BLE001 - whatever it is, the other side tells it
                pipe.send((traceback.format_exc(), 0, 0, {}))
                continue
            new = slots[number].take_new()
            pipe.send((replace(batch, values={}), number, new and slots[number].size, places))
            if new:
                reduction.send_handle(pipe, new, os.getppid())
                os.close(new)


def _read(source: BatchSource, numbers: np.ndarray, slot: Slot) -> tuple[WindowBatch, dict]:
    slot.clear()
    batch = source.batch(numbers, slot.allocate)
    arrays = batch.values.values()
    if not slot.has_room(sum(aligned(values.nbytes) for values in arrays if slot.place_of(values) is None)):
        slot.grow(sum(aligned(values.nbytes) for values in arrays))
    return batch, {name: (slot.keep(values), values.shape, values.dtype.str) for name, values in batch.values.items()}
