"""Distillation: a student says in few calls where its teacher's path leads.

```
data and noise --> x at its levels --teacher, DDIM rows--> x at lower levels
                       |                                          |
                    student, one call                             |
   consistency:   clean tokens here <--------> its own clean tokens there, held fixed; at level 0 the tokens themselves
   progressive:   x at those lower levels <--> x there
```

| kind | teacher's rows a step | the student's call leads | sample with |
|---|---|---|---|
| consistency | 1 | to the end (Song et al. 2023, alg. 2; for actions: Consistency Policy, Prasad et al. 2024) | `step=consistency` |
| progressive | rows / calls | down a row of a path of `calls` (Salimans & Ho 2022, alg. 2, in one round) | any rule of one call a row |

Levels are drawn by the run's patterns, a level per token as everywhere: with `constant` this gives a chunked policy, with `ladder` a
rolling buffer. One call of a progressive student in a buffer of `calls` chunks takes every chunk down a whole rung.
"""

from collections.abc import Callable
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

KINDS = ("consistency", "progressive")
WIDTH = 0.01  # of the pseudo-Huber distance, in spreads (Song & Dhariwal 2024, sec. 3.3): squares below, absolute values above


def loss(teacher: RobotModel, rows: int, config: ObjectiveConfig, calls: int = 0) -> Callable:
    """A loss for `uwm.learn.loop.train`: how far the student is from its teacher, whose path has `rows` rows.

    `calls`: of a progressive student's path, each of them a whole number of its teacher's rows; 0 for a consistency student. ValueError
    for other numbers, and for a teacher that predicts noise (at level 1 that says nothing, and all one-call plans begin there) or is a
    regression.
    """
    if teacher.config.prediction == "regression":
        raise ValueError(f"{REGRESSION} already: there is nothing to distil")
    if teacher.config.prediction == "noise":
        raise ValueError("a model that predicts noise says nothing at level 1: distil one that predicts velocity or clean tokens")
    if rows < 1:
        raise ValueError(f"the teacher's path has 1 row or more, got {rows}")
    if calls and rows % calls:
        raise ValueError(f"a call of the student is a whole number of its teacher's rows: {rows} rows are not {calls} times as many")
    teacher = teacher.eval().requires_grad_(False)
    asked = partial(landing, teacher, rows, calls) if calls else partial(agreeing, teacher, rows)
    return lambda model, batch, generator: objective.loss(model, batch, config, generator, asked)


def agreeing(teacher: RobotModel, rows: int, model: RobotModel, observation: Observation) -> Errors:
    """The distance between the student's clean tokens here and one row further down the teacher's path."""
    both = _both(teacher, model, observation)

    def errors(layout: Layout, drawn: Draw, clean: Tensor, noise: Tensor, window: Tensor, dims: Tensor | None) -> Tensor:
        guide, student = both(layout, drawn, window, dims)
        high, low = drawn.level, _lower(drawn, 1 / rows)
        x = gaussian.corrupt(student.path, clean, noise, high)
        here = student(x, high)
        with torch.no_grad():
            below = steps.ddim()(guide, student.path, x, high, low).x
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
        high, low, path = drawn.level, _lower(drawn, 1 / calls), student.path
        x = gaussian.corrupt(path, clean, noise, high)
        here = steps.ddim()(student, path, x, high, low).x
        with torch.no_grad():
            there = x
            for row in range(rows // calls):
                above, below = (torch.maximum(high - each / rows, low) for each in (row, row + 1))
                there = steps.ddim()(guide, path, there, above, below).x
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


def _lower(drawn: Draw, by: float) -> Tensor:
    """Levels a step further down, of tokens that are denoised."""
    return torch.where(drawn.role == roles.ACTIVE, (drawn.level - by).clamp(min=0), drawn.level)
