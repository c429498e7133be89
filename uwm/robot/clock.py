"""Time as an argument: the same control code on the machine's clock and on one that a test moves.

Time is monotonic seconds. Nothing in `uwm.robot` reads the machine's clock or sleeps by itself, so a run on a virtual
clock is a pure function of its seeds and of the delays that were asked for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds."""

    def now_s(self) -> float:
        """Seconds since some fixed moment; never goes back."""

    def sleep_until(self, moment_s: float) -> None:
        """Return at `moment_s`, or at once if that is past."""


class MonotonicClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        return time.monotonic()

    def sleep_until(self, moment_s: float) -> None:
        left = moment_s - self.now_s()
        if left > 0:
            time.sleep(left)


@dataclass
class VirtualClock:
    """Time that passes only when somebody sleeps: a test of ten minutes takes milliseconds."""

    moment_s: float = 0.0

    def now_s(self) -> float:
        return self.moment_s

    def sleep_until(self, moment_s: float) -> None:
        self.moment_s = max(self.moment_s, moment_s)
