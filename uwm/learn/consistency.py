"""Consistency distillation: a student says in one call where its teacher's path ends (Song et al. 2023, alg. 2; Consistency Policy,
Prasad et al. 2024, for actions).

```
data and noise --> x at its levels --teacher, one DDIM row--> x a row lower
                       |                                          |
                    student -------> same clean tokens <------ student, held fixed; at level 0 the tokens themselves
```

Levels are drawn by the run's patterns, a level per token as everywhere: with `constant` this gives a chunked policy of one to three
calls, with `ladder` a rolling buffer whose chunks may fall a whole rung at once. Sample with the step rule `consistency`.
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

WIDTH = 0.01  # of the pseudo-Huber distance, in spreads (Song & Dhariwal 2024, sec. 3.3): squares below, absolute values above


def loss(teacher: RobotModel, rows: int, config: ObjectiveConfig) -> Callable:
    """A loss for `uwm.learn.loop.train`: how far the student is from saying the same along the teacher's path of `rows` rows.

    ValueError for a teacher that predicts noise (at level 1 that says nothing, and all one-call plans begin there) or is a regression.
    """
    if teacher.config.prediction == "regression":
        raise ValueError(f"{REGRESSION} already: there is nothing to distil")
    if teacher.config.prediction == "noise":
        raise ValueError("a model that predicts noise says nothing at level 1: distil one that predicts velocity or clean tokens")
    if rows < 1:
        raise ValueError(f"the teacher's path has 1 row or more, got {rows}")
    asked = partial(agreeing, teacher.eval().requires_grad_(False), rows)
    return lambda model, batch, generator: objective.loss(model, batch, config, generator, asked)


def agreeing(teacher: RobotModel, rows: int, model: RobotModel, observation: Observation) -> Errors:
    """The distance between the student's clean tokens here and one row further down the teacher's path."""
    config = model.config
    path, context = gaussian.path(config.path, config.noise_shift), model.encode(observation)
    with torch.no_grad():
        taught = teacher.encode(observation)

    def errors(layout: Layout, drawn: Draw, clean: Tensor, noise: Tensor, window: Tensor, dims: Tensor | None) -> Tensor:
        def estimate(network: RobotModel, seen, x: Tensor, level: Tensor) -> Tensor:
            predicted = network(x, level, drawn.role, layout, seen, dims).float()
            return gaussian.to_clean(path, config.prediction, predicted, x, level)

        high, own = drawn.level, context.at(window)
        low = torch.where(drawn.role == roles.ACTIVE, (high - 1 / rows).clamp(min=0), high)
        x = gaussian.corrupt(path, clean, noise, high)
        here = estimate(model, own, x, high)
        with torch.no_grad():
            below = steps.ddim()(partial(estimate, teacher, taught.at(window)), path, x, high, low).x
            there = torch.where((low > 0)[..., None], estimate(model, own, below, low), below)
        return ((here - there).square() + WIDTH**2).sqrt() - WIDTH

    return errors
