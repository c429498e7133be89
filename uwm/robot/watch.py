"""What is told of a run while it goes on: a line now and then, what the safety layer did, and the memory that it holds."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from uwm.robot.controller import Tick

MOST_REASONS = 100  # different ones that are kept


class Watch:
    """Counts what the safety layer did, prints a line a second, and looks at the memory; a listener of ticks.

    `processes()` whose memory counts; without `prints` nothing happens by itself.
    """

    def __init__(self, processes: Callable[[], list[int]], prints: bool):
        self.limited, self.reasons = Counter(), Counter()
        self.ticks = self.missed = self.episodes = self.successes = 0
        self.last_s = self.first_s = None
        self.behaviour, self.queue = "", 0
        self._processes, self._memory = processes, []
        self._over, self._every_s = threading.Event(), 1.0 if sys.stderr.isatty() else 10.0
        self._thread = threading.Thread(target=self._live, name="progress", daemon=True) if prints else None
        self._look()
        if self._thread:
            self._thread.start()

    @property
    def seconds(self) -> float:
        """From the first tick to the last, of all episodes."""
        return 0.0 if self.first_s is None else self.last_s - self.first_s

    def tick(self, tick: Tick) -> None:
        """One period is over."""
        self.first_s = tick.began_s if self.first_s is None else self.first_s
        self.last_s = tick.began_s
        self.ticks, self.missed = self.ticks + 1, self.missed + tick.missed
        self.behaviour, self.queue = tick.verdict.behaviour, len(tick.ahead)
        for name in tick.verdict.changed:
            self.limited[name] += 1
        if self.behaviour != "send" and len(self.reasons) < MOST_REASONS:
            self.reasons[tick.verdict.reason] += 1

    def close(self) -> None:
        """The run is over: the last look."""
        self._over.set()
        if self._thread:
            self._thread.join()
        self._look()

    def memory(self) -> dict[str, float]:
        """MB that the processes hold: at the start, at the end, the most; `growth` after the first tenth of the run."""
        settled = self._memory[len(self._memory) // 10]
        return {"start": self._memory[0], "end": self._memory[-1], "most": max(self._memory), "growth": self._memory[-1] - settled}

    def _live(self) -> None:
        while not self._over.wait(self._every_s):
            self._look()
            print(self._line(), end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)
        if sys.stderr.isatty():
            print(file=sys.stderr)

    def _line(self) -> str:
        done = f", {self.successes} of {self.episodes} episodes succeeded" if self.episodes else ""
        counts = f"{self.seconds:5.0f} s, {self.ticks} ticks, {self.missed} missed"
        return f"control: {counts}{done}, {self.behaviour}, {self.queue} actions ahead  "

    def _look(self) -> None:
        size = 0
        for process in self._processes():
            with contextlib.suppress(OSError):  # it ended a moment ago
                size += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        self._memory.append(round(size / 2**20, 1))
