"""Instructions and plans in a closed language: drawn with known chances, and read back by a parser that judges any text.

```
instruction (13 words)  push the red block to the left and the blue block to top
plan        (22 words)  begin go slowly to blue from bottom push top twice then go quickly to red from behind push left once then done
                              '------------ one goal ------------------------'
```

An instruction has many valid plans: either goal comes first, and of every goal the pace, the side and the number of pushes are free,
with chances that depend on the direction. What a plan means does not depend on the order of its goals.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

COLOURS = ("red", "green", "blue", "yellow")
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
DIRECTIONS = tuple(OPPOSITE)
PACES = {"slowly": 0.5, "quickly": 0.3, "steadily": 0.2}
# Left and right are short ways and top and bottom long ones.
PUSHES = {
    "left": {"once": 0.6, "twice": 0.3, "thrice": 0.1},
    "right": {"once": 0.5, "twice": 0.4, "thrice": 0.1},
    "top": {"once": 0.1, "twice": 0.5, "thrice": 0.4},
    "bottom": {"once": 0.2, "twice": 0.2, "thrice": 0.6},
}
BEHIND = 0.3  # chance that the side is said as "behind"
WORDS = (
    "begin", "go", "to", "from", "push", "then", "done", "the", "block", "and", "behind",
    *COLOURS, *DIRECTIONS, *PACES, "once", "twice", "thrice",
)  # fmt: skip
NUMBER = {word: number for number, word in enumerate(WORDS)}
INSTRUCTION, PLAN, PART = 13, 22, 10  # words


class GrammarError(ValueError):
    """A text that is not of the language: where, and what was expected."""


@dataclass(frozen=True)
class Goal:
    """One block to push in one direction."""

    colour: str
    direction: str


@dataclass(frozen=True)
class Part:
    """How a plan reaches a goal."""

    goal: Goal
    pace: str
    side: str
    pushes: str

    @property
    def chance(self) -> float:
        """How often this way is chosen for its goal."""
        sides = {OPPOSITE[self.goal.direction]: 1 - BEHIND, "behind": BEHIND}
        return PACES[self.pace] * sides[self.side] * PUSHES[self.goal.direction][self.pushes]


def draw_instruction(generator: np.random.Generator) -> tuple[Goal, Goal]:
    """Two goals with blocks of different colours."""
    first, second = generator.choice(COLOURS, 2, replace=False)
    return Goal(str(first), str(generator.choice(DIRECTIONS))), Goal(str(second), str(generator.choice(DIRECTIONS)))


def draw_plan(goals: tuple[Goal, Goal], generator: np.random.Generator) -> tuple[Part, Part]:
    """One of the plans that reach both goals."""
    chosen = [_draw_part(goal, generator) for goal in goals]
    return tuple(chosen if generator.random() < 0.5 else reversed(chosen))


def chance(goals: tuple[Goal, Goal], plan: tuple[Part, Part]) -> float:
    """p(plan | instruction), exactly; 0 when the plan does not reach the goals."""
    return 0.5 * plan[0].chance * plan[1].chance if reaches(goals, plan) else 0.0


def reaches(goals: tuple[Goal, Goal], plan: tuple[Part, Part]) -> bool:
    """Whether a plan does what was asked, in either order."""
    return {part.goal for part in plan} == set(goals) and len(plan) == len(goals)


def say_instruction(goals: tuple[Goal, Goal]) -> str:
    """13 words."""
    first, second = goals
    return f"push the {first.colour} block to the {first.direction} and the {second.colour} block to {second.direction}"


def say_plan(plan: tuple[Part, Part]) -> str:
    """22 words."""
    parts = [f"go {p.pace} to {p.goal.colour} from {p.side} push {p.goal.direction} {p.pushes} then" for p in plan]
    return " ".join(["begin", *parts, "done"])


def parse_instruction(text: str) -> tuple[Goal, Goal]:
    """The goals of an instruction; GrammarError says at which word it ends to be one."""
    words = text.split()
    frame = ["push", "the", COLOURS, "block", "to", "the", DIRECTIONS, "and", "the", COLOURS, "block", "to", DIRECTIONS]
    _match(words, frame)
    if words[2] == words[9]:
        raise GrammarError(f"an instruction names two blocks, got {words[2]} twice")
    return Goal(words[2], words[6]), Goal(words[9], words[12])


def parse_plan(text: str) -> tuple[Part, Part]:
    """The parts of a plan; GrammarError says at which word it ends to be one."""
    words = text.split()
    part = ["go", tuple(PACES), "to", COLOURS, "from", (*DIRECTIONS, "behind"), "push", DIRECTIONS, tuple(PUSHES["left"]), "then"]
    _match(words, ["begin", *part, *part, "done"])
    return tuple(_part(words[start:end]) for start, end in pairwise((1, 1 + PART, 1 + 2 * PART)))


def numbers(text: str) -> list[int]:
    """Word numbers; GrammarError names a word that the language does not have."""
    unknown = [word for word in text.split() if word not in NUMBER]
    if unknown:
        raise GrammarError(f"the language has no word {unknown[0]!r}; it has {', '.join(WORDS)}")
    return [NUMBER[word] for word in text.split()]


def text_of(word_numbers) -> str:
    """The inverse of `numbers`."""
    return " ".join(WORDS[int(number)] for number in word_numbers)


def _draw_part(goal: Goal, generator: np.random.Generator) -> Part:
    pushes = PUSHES[goal.direction]
    side = "behind" if generator.random() < BEHIND else OPPOSITE[goal.direction]
    return Part(goal, _choice(PACES, generator), side, _choice(pushes, generator))


def _choice(chances: dict[str, float], generator: np.random.Generator) -> str:
    return str(generator.choice(list(chances), p=list(chances.values())))


def _match(words: list[str], frame: list) -> None:
    if len(words) != len(frame):
        raise GrammarError(f"expected {len(frame)} words, got {len(words)}")
    for place, (word, wanted) in enumerate(zip(words, frame, strict=True)):
        allowed = (wanted,) if isinstance(wanted, str) else wanted
        if word not in allowed:
            raise GrammarError(f"word {place + 1} is {word!r}, expected {' or '.join(allowed)}")


def _part(words: list[str]) -> Part:
    pace, colour, side, direction, pushes = words[1], words[3], words[5], words[7], words[8]
    if side not in (OPPOSITE[direction], "behind"):
        raise GrammarError(f"a block is pushed {direction} from {OPPOSITE[direction]} or behind, not from {side}")
    return Part(Goal(colour, direction), pace, side, pushes)
