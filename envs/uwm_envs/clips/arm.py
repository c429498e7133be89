"""A two-link arm on a table that pushes round blocks, in numpy: exact, fast, and the same wherever it runs.

```
        blocks (discs)       y
   o        o                ^        the fingertip moves by `action` (2, in metres) a frame, as far as the arm reaches;
      \\  elbow              |         what it meets it pushes before it, and that pushes others; the table has an edge
       \\____  base           +--> x
```

Lengths are metres; the table is the square [-1, 1] x [-1, 1], the base stands at its lower edge. An action is carried out in small
steps, so that nothing is jumped over.
"""

from dataclasses import dataclass, field

import numpy as np

from uwm_envs.clips.grammar import COLOURS, Goal

LINKS = (1.0, 0.9)
BASE = np.array([0.0, -1.25])
TIP, BLOCK = 0.06, 0.13  # radii
STEPS = 8  # of a frame
FASTEST = 0.22  # metres a frame
WAY = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "top": (0.0, 1.0), "bottom": (0.0, -1.0)}


@dataclass
class Table:
    """The state: the fingertip (2,), the blocks (4, 2) in the order of `COLOURS`, and which were touched in the last frame."""

    tip: np.ndarray
    blocks: np.ndarray
    touched: np.ndarray = field(default_factory=lambda: np.zeros(len(COLOURS), bool))

    def move(self, action: np.ndarray) -> None:
        """One frame. ValueError for an action that is not two finite numbers."""
        action = np.asarray(action, np.float64)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise ValueError(f"an action is two finite numbers, metres a frame, got {action}")
        length = np.linalg.norm(action)
        step = action * min(1.0, FASTEST / max(length, 1e-9)) / STEPS
        self.touched = np.zeros(len(self.blocks), bool)
        for _ in range(STEPS):
            self.tip = within_reach(self.tip + step)
            self._push()

    def _push(self) -> None:
        """Moves what overlaps apart: blocks give way to the fingertip, and to each other by halves."""
        for index, block in enumerate(self.blocks):
            away = block - self.tip
            overlap = TIP + BLOCK - np.linalg.norm(away)
            if overlap > 0:
                self.blocks[index] = block + overlap * away / max(np.linalg.norm(away), 1e-9)
                self.touched[index] = True
        for first in range(len(self.blocks)):
            for second in range(first):
                away = self.blocks[first] - self.blocks[second]
                overlap = 2 * BLOCK - np.linalg.norm(away)
                if overlap > 0:
                    shift = 0.5 * overlap * away / max(np.linalg.norm(away), 1e-9)
                    self.blocks[first] += shift
                    self.blocks[second] -= shift
        np.clip(self.blocks, BLOCK - 1, 1 - BLOCK, out=self.blocks)

    @property
    def proprio(self) -> np.ndarray:
        """Joint angles as sines and cosines and the fingertip: (6,)."""
        return np.concatenate([np.sin(angles := joints(self.tip)), np.cos(angles), self.tip])


def within_reach(tip: np.ndarray) -> np.ndarray:
    """The nearest place that the arm reaches and that lies on the table."""
    tip = np.clip(tip, -0.97, 0.97)
    away = tip - BASE
    distance = np.linalg.norm(away)
    return BASE + away / distance * np.clip(distance, abs(LINKS[0] - LINKS[1]) + 0.05, sum(LINKS) - 0.02)


def joints(tip: np.ndarray) -> np.ndarray:
    """Angles of both links, each against the x axis (2,), the elbow to the right: inverse kinematics."""
    away = tip - BASE
    first, second = LINKS
    distance = np.linalg.norm(away)
    bend = np.arccos(np.clip((first**2 + distance**2 - second**2) / (2 * first * distance), -1, 1))
    lower = np.arctan2(away[1], away[0]) - bend
    upper = np.arctan2(*(away - first * np.array([np.cos(lower), np.sin(lower)]))[::-1])
    return np.array([lower, upper])


def elbow(tip: np.ndarray) -> np.ndarray:
    """Where the two links meet (2,)."""
    angle = joints(tip)[0]
    return BASE + LINKS[0] * np.array([np.cos(angle), np.sin(angle)])


def draw_table(generator: np.random.Generator, goal: Goal, spread: float = 0.62) -> Table:
    """Blocks apart from each other; the goal's block has room to be pushed, and the fingertip is near the side to push from."""
    blocks = np.zeros((0, 2))
    while len(blocks) < len(COLOURS):
        place = generator.uniform(-spread, spread, 2)
        if len(blocks) == COLOURS.index(goal.colour):
            place -= 0.25 * np.array(WAY[goal.direction])
        if all(np.linalg.norm(place - other) > 3 * BLOCK for other in blocks):
            blocks = np.vstack([blocks, place])
    start = blocks[COLOURS.index(goal.colour)] - 0.34 * np.array(WAY[goal.direction]) + generator.normal(0, 0.04, 2)
    table = Table(within_reach(start), blocks)
    table._push()
    return table


def expert(table: Table, goal: Goal) -> np.ndarray:
    """The action that pushes the goal's block its way: get behind it, then straight on."""
    block, way = table.blocks[COLOURS.index(goal.colour)], np.array(WAY[goal.direction])
    behind = block - (TIP + BLOCK) * way
    away = table.tip - block
    beside = away - (away @ way) * way
    if away @ way < -0.6 * (TIP + BLOCK) and np.linalg.norm(beside) < 0.6 * BLOCK:
        wanted = 0.16 * way - 0.5 * beside
    else:  # round the block, not through it
        detour = beside / max(np.linalg.norm(beside), 1e-9) * 0.3 if away @ way > -0.5 * BLOCK else 0.0
        wanted = behind - 0.06 * way + detour - table.tip
    return wanted * min(1.0, 0.16 / max(np.linalg.norm(wanted), 1e-9))
