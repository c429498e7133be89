"""What else a control loop's process is asked to do: end on a signal, after its tick, and not pause for Python's own sake."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

SWITCH_S = 0.0005  # how long another thread may keep the loop waiting for Python


class Interrupts:
    """Ctrl-C and SIGTERM as a reason that the loop ends for, while `noted`; a second one, or one before, is raised at once."""

    WORDS = {signal.SIGINT: "stopped by Ctrl-C", signal.SIGTERM: "stopped by SIGTERM"}  # noqa: RUF012 - it is not changed

    def __init__(self):
        self.reason, self._is_noted, self._before = "", False, {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._came) for number in self.WORDS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Signals that come inside are a reason."""
        self._is_noted = True
        try:
            yield
        finally:
            self._is_noted = False

    def _came(self, number: int, frame: Any) -> None:
        if not self._is_noted or self.reason:
            raise KeyboardInterrupt
        self.reason = self.WORDS[signal.Signals(number)]


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Threads and processes that begin inside never get Ctrl-C or SIGTERM: the loop's end ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, Interrupts.WORDS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Python's own pauses, kept short: what is loaded is never searched for garbage, and threads take turns quickly."""
    before = sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
        gc.unfreeze()
