"""Listeners that are slow: in a thread of their own, with a queue between that never makes the control loop wait.

```
control loop   tick ---> queue of `most` ---> thread ---> listener        full: the tick is left out, `dropped` counts
```
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from typing import Any

import numpy as np

from uwm.robot.interface import Reading

PATIENCE_S = 10.0  # for what waits in the queue when the run is over


class Aside:
    """`listener` told of every tick, a little later. An error in it ends it, not the run: `trouble` says why.

    `most`: ticks that may wait. The listener may be slow now and then; if it is slower than the loop for long, ticks are
    left out. `close` waits for the queue, but not for ever.
    """

    def __init__(self, listener: Any, most: int = 64, name: str = "listener"):
        self.listener, self.dropped, self.trouble = listener, 0, ""
        self._waiting: queue.Queue = queue.Queue(most)
        self._thread = threading.Thread(target=self._tell, name=name, daemon=True)
        self._thread.start()

    def tick(self, tick: Any) -> None:
        """One period is over. Readings are copied: a robot may use its buffers again."""
        if self.trouble:
            return
        readings = {name: Reading(np.array(reading.value), reading.stamp_s) for name, reading in tick.readings.items()}
        try:
            self._waiting.put_nowait(dataclasses.replace(tick, readings=readings))
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """The run is over: let the listener finish; twice is the same as once."""
        if not self._thread.is_alive():
            return
        try:
            self._waiting.put(None, timeout=PATIENCE_S)
        except queue.Full:
            self.trouble = self.trouble or f"the {self._thread.name} took nothing for {PATIENCE_S:g} s"
            return
        self._thread.join(PATIENCE_S)
        if self._thread.is_alive():
            self.trouble = self.trouble or f"the {self._thread.name} did not finish within {PATIENCE_S:g} s"

    def _tell(self) -> None:
        while (tick := self._waiting.get()) is not None:
            if not self.trouble:
                self._guarded(self.listener.tick, tick)
        self._guarded(self.listener.close)

    def _guarded(self, act: Any, *arguments: Any) -> None:
        try:
            act(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever a listener does, the robot must be served
            self.trouble = self.trouble or f"{type(error).__name__}: {error}"
