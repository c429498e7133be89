"""What a model with a style learns: absolute errors of actions, and as little style as they need (Zhao et al. 2023, alg. 1)."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from uwm.core import roles
from uwm.core.patterns import Draw
from uwm.core.streams import Layout
from uwm.learn import objective
from uwm.learn.objective import Errors, ObjectiveConfig
from uwm.nn.act_model import ActModel
from uwm.nn.robot_model import Observation


def loss(config: ObjectiveConfig) -> Callable:
    """A loss for `uwm.learn.loop.train`: absolute errors, and `style_weight` times the divergence of the style from N(0, 1)."""
    return lambda model, batch, generator: objective.loss(model, batch, config, generator, partial(imitating, config.style_weight))


def imitating(weight: float, model: ActModel, observation: Observation) -> Errors:
    """Absolute errors of plans whose style was guessed from them, and the weighted divergence on top of every number."""
    context = model.observed(observation)

    def errors(layout: Layout, drawn: Draw, clean: Tensor, noise: Tensor, window: Tensor, dims: Tensor | None) -> Tensor:
        mean, log_variance = model.guess(observation, window, clean, drawn.role == roles.ACTIVE)
        # The style takes the noise, which the actions do not need: a regression does not see them.
        style = mean + (log_variance / 2).exp() * noise.flatten(1)[:, : model.style_size]
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).float().sum(dim=1) / 2
        predicted = model(clean, drawn.level, drawn.role, layout, model.styled(context.at(window), style), dims)
        return (predicted - clean).float().abs() + weight * divergence[:, None, None]

    return errors
