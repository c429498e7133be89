"""The one thread of a server that enters the model, asked from an event loop that goes on meanwhile."""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any

from uwm.robot.inference import ENDING_S


class ModelThread:
    """One thread that does one job after the other, so that the model is never entered twice and the event loop lives."""

    def __init__(self):
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        # A daemon: a model that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="policy", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return self._jobs.qsize()

    def submit(self, job: Callable[[], Any]) -> asyncio.Future:
        """The result of `job`, to be awaited in the loop that asks."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._jobs.put((job, loop, future))
        return future

    def close(self) -> None:
        """No more jobs; waits for what was submitted before, `ENDING_S` at most: an end of the process inside torch is an abort."""
        self._jobs.put(None)
        self._thread.join(ENDING_S)

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, loop, future = item
            try:
                result, error = job(), None
            except Exception as caught:  # noqa: BLE001 (it belongs to whoever awaits the job)
                result, error = None, caught
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:
                return  # the loop has ended: nobody waits any more


def _settle(future: asyncio.Future, result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
