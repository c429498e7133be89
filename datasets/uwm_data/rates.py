"""Actions at another rate: which of a robot's own actions make up those of a model that ticks slower or faster.

    own actions at 20 Hz        | a0 | a1 | a2 | a3 | a4 | a5 |
    the model's at 10 Hz        |    0    |    1    |    2    |      ratio 2: own ticks per tick of the model

    delta      what is moved in the model's tick: the sum, in parts where a tick is cut          a0 + a1
    velocity   the mean over the tick                                                          (a0 + a1) / 2
    absolute   the target at the end of the tick, between two own ones in proportion           a1
    held       the command in force in the middle of the tick: a gripper's, in every mode      a1

Small rotations may be added like this; large ones may not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from uwm_data.errors import StoreError

MODES = ("delta", "absolute", "velocity")
_SLACK = 1e-6  # of a tick, so that 3 ticks of 1/30 s are a tenth of a second and not a hair more


class ActionRates:
    """Actions at the model's ticks from those at the robot's own, around one own tick.

    `ticks` of the model from now on, `ratio` own ticks per tick of the model, `mode` as in the table, `held` (A,) marks
    dimensions that are commands in every mode. `offsets` are the own ticks to read, in a row.
    """

    def __init__(self, ticks: Sequence[int], ratio: float, mode: str, held: Sequence[bool]):
        if mode not in MODES:
            raise StoreError(
                f"actions of mode {mode!r} cannot be brought to another rate: whether they are {', '.join(MODES)} has to be known; "
                "declare it as action.mode, or leave the rate as it is"
            )
        ticks, self.held = np.asarray(ticks, np.float64), np.asarray(held, bool)
        first = int(np.floor(min(ticks[0] * ratio, (ticks[0] + 1) * ratio - 1) + _SLACK))
        last = int(np.ceil((ticks[-1] + 1) * ratio - _SLACK)) - 1
        self.offsets = np.arange(first, max(last, first) + 1)
        inside = _overlap(ticks, ratio, self.offsets)
        self.needed = inside > 0
        self.moved = {"delta": inside, "velocity": inside / ratio, "absolute": _between(ticks, ratio, self.offsets)}[mode]
        self.command = (self.offsets == np.floor((ticks + 0.5) * ratio + _SLACK)[:, None]).astype(np.float64)

    def __call__(self, values: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Actions (B, m, A) at `offsets` and which are there (B, m) -> (B, n, A) in their dtype and (B, n)."""
        exact = values.astype(np.float64)
        moved, command = self.moved @ exact, self.command @ exact
        there = ~((~valid).astype(np.int64) @ self.needed.T.astype(np.int64) > 0)
        return np.where(self.held, command, moved).astype(values.dtype), there

    def episode(self, actions: np.ndarray) -> np.ndarray:
        """The first of `ticks` around every own tick of an episode (T, A): what statistics have to see."""
        frames = np.arange(len(actions))[:, None] + self.offsets
        clamped = np.clip(frames, 0, len(actions) - 1)
        values, there = self(actions[clamped], clamped == frames)
        return values[there[:, 0], 0]


def _overlap(ticks: np.ndarray, ratio: float, offsets: np.ndarray) -> np.ndarray:
    """The part of each own tick that lies in each tick of the model, (n, m)."""
    start, stop = (ticks * ratio)[:, None], ((ticks + 1) * ratio)[:, None]
    part = np.minimum(stop, offsets + 1) - np.maximum(start, offsets)
    return np.where(part > _SLACK, part, 0.0)


def _between(ticks: np.ndarray, ratio: float, offsets: np.ndarray) -> np.ndarray:
    """Weights of own targets, each of which holds at the end of its tick, for the targets at the ends of the model's ticks."""
    place = ((ticks + 1) * ratio - 1)[:, None]
    return np.maximum(1 - np.abs(np.where(np.abs(place - np.rint(place)) < _SLACK, np.rint(place), place) - offsets), 0.0)
