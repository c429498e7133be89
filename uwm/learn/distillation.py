"""Distillation: a student says in few calls where its teacher's path leads.

```
data and noise --> x at its levels --teacher, DDIM rows--> x at lower levels
                       |                                          |
                    student, one call                             |
   consistency:   clean tokens here <--------> its own clean tokens there, held fixed; at level 0 the tokens themselves
   progressive:   x at those lower levels <--> x there
```

| kind | the student's call leads | sample with |
|---|---|---|
| consistency | to the end (Song et al. 2023, alg. 2; for actions: Consistency Policy, Prasad et al. 2024) | `step=consistency` |
| progressive | down a row of a path of `calls` (Salimans & Ho 2022, alg. 2, in one round) | any rule of one call a row |

Either way the teacher leads `rows / calls` of its rows further down. What a consistency student says high up is right only when what it
says below is, `calls` times in a row: few calls, of many rows each, are learned sooner.

Levels are drawn by the run's patterns, a level per token as everywhere: with `constant` this gives a chunked policy, with `ladder` a
rolling buffer. One call of a progressive student in a buffer of `calls` chunks takes every chunk down a whole rung.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from uwm.core import roles
from uwm.core.patterns import Draw
from uwm.core.streams import Layout
from uwm.learn import objective
from uwm.learn.objective import Errors, ObjectiveConfig
from uwm.nn.robot_model import REGRESSION, Observation, RobotModel
from uwm.noise import gaussian
from uwm.sample import steps
from uwm.sample.denoise import Denoiser

WIDTH = 0.01  # of the pseudo-Huber distance, in spreads (Song & Dhariwal 2024, sec. 3.3): squares below, absolute values above


@dataclass(frozen=True)
class DistilConfig:
    """`teacher`: a checkpoint to distil into one of few calls, "" for none; `rows`: of its path from noise to clean.

    `kind`: a call of a "progressive" student leads down one of the `calls` equal parts of that path, so that it samples in `calls` rows as
    any model does; a call of a "consistency" student leads to the end, and is held to what it says a part further down.
    """

    teacher: str = ""
    kind: str = "consistency"
    rows: int = 16
    calls: int = 4

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"a student is of one of the kinds {[*KINDS]}, got {self.kind!r}")
        if self.calls < 1 or self.rows < 1 or self.rows % self.calls:
            raise ValueError(f"a part of the path is a whole number of its rows: {self.rows} rows are no multiple of {self.calls} calls")


def loss(teacher: RobotModel, distil: DistilConfig, config: ObjectiveConfig) -> Callable:
    """A loss for `uwm.learn.loop.train`: how far the student is from its teacher.

    ValueError for a teacher that predicts noise (at level 1 that says nothing, and all one-call plans begin there) or is a regression.
    """
    if teacher.config.prediction == "regression":
        raise ValueError(f"{REGRESSION} already: there is nothing to distil")
    if teacher.config.prediction == "noise":
        raise ValueError("a model that predicts noise says nothing at level 1: distil one that predicts velocity or clean tokens")
    asked = partial(KINDS[distil.kind], teacher.eval().requires_grad_(False), distil.rows, distil.calls)
    return lambda model, batch, generator: objective.loss(model, batch, config, generator, asked)


def agreeing(teacher: RobotModel, rows: int, calls: int, model: RobotModel, observation: Observation) -> Errors:
    """The distance between the student's clean tokens here and a part further down the teacher's path."""
    both = _both(teacher, model, observation)

    def errors(layout: Layout, drawn: Draw, clean: Tensor, noise: Tensor, window: Tensor, dims: Tensor | None) -> Tensor:
        guide, student = both(layout, drawn, window, dims)
        x = gaussian.corrupt(student.path, clean, noise, drawn.level)
        here = student(x, drawn.level)
        with torch.no_grad():
            below, low = _led(guide, x, drawn, rows, calls)
            there = torch.where((low > 0)[..., None], student(below, low), below)
        return ((here - there).square() + WIDTH**2).sqrt() - WIDTH

    return errors


def landing(teacher: RobotModel, rows: int, calls: int, model: RobotModel, observation: Observation) -> Errors:
    """The square of how far the student's call lands from where its teacher is after `rows / calls` of them, over the way between.

    On the cosine path that way is the sine of the turn, and the error that of a velocity (Salimans & Ho 2022, sec. 4: SNR + 1).
    """
    both = _both(teacher, model, observation)

    def errors(layout: Layout, drawn: Draw, clean: Tensor, noise: Tensor, window: Tensor, dims: Tensor | None) -> Tensor:
        guide, student = both(layout, drawn, window, dims)
        high, path = drawn.level, student.path
        x = gaussian.corrupt(path, clean, noise, high)
        with torch.no_grad():
            there, low = _led(guide, x, drawn, rows, calls)
        here = steps.ddim()(student, path, x, high, low).x
        way = path.alpha(low) * path.sigma(high) - path.sigma(low) * path.alpha(high)
        return ((here - there) / torch.where(high > low, way, 1.0)[..., None]).square()

    return errors


def _both(teacher: RobotModel, model: RobotModel, observation: Observation) -> Callable[..., tuple[Denoiser, Denoiser]]:
    """(layout, levels and roles, windows, dims) -> teacher and student, who look at the same; only the student learns to look."""
    path, context = gaussian.path(model.config.path, model.config.noise_shift), model.encode(observation)
    with torch.no_grad():
        taught = teacher.encode(observation)

    def denoisers(layout: Layout, drawn: Draw, window: Tensor, dims: Tensor | None) -> tuple[Denoiser, Denoiser]:
        pairs = ((teacher, taught), (model, context))
        guide, student = (
            Denoiser(partial(net, dims=dims), path, net.config.prediction, layout, drawn.role, seen.at(window)) for net, seen in pairs
        )
        return guide, student

    return denoisers


KINDS = {"consistency": agreeing, "progressive": landing}


def _led(guide: Denoiser, x: Tensor, drawn: Draw, rows: int, calls: int) -> tuple[Tensor, Tensor]:
    """Tokens after the next `rows / calls` rows of the teacher's path, and their levels; what is not denoised stays."""
    low = torch.where(drawn.role == roles.ACTIVE, (drawn.level - 1 / calls).clamp(min=0), drawn.level)
    for row in range(rows // calls):
        above, below = (torch.maximum(drawn.level - each / rows, low) for each in (row, row + 1))
        x = steps.ddim()(guide, guide.path, x, above, below).x
    return x, low
