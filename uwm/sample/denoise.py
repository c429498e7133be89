"""The narrow waist: `denoise(x, level) -> clean`. All sampling talks to this and to nothing else of the network."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from uwm.core import roles
from uwm.core.shapes import Float, Int
from uwm.core.streams import Layout
from uwm.nn.robot_model import RobotModel
from uwm.nn.stream_model import StreamModel
from uwm.noise import gaussian
from uwm.noise.gaussian import GaussianPath, to_clean


@dataclass
class Denoiser:
    """A network, what it predicts along which path, and what one call needs beside x and level.

    `network(x, level, role, layout, context)` returns a prediction (B, N, S). `calls` counts network calls. `limit` clips
    the clean estimate of normalised tokens to [-limit, limit]; None leaves it alone. The clean estimate of a word is the
    probability of each word of the vocabulary.
    """

    network: Callable[..., Tensor]
    path: GaussianPath
    prediction: str
    layout: Layout
    role: Int[Tensor, "B N"]
    context: object = None
    limit: float | None = None
    calls: int = 0

    def __call__(self, x: Float[Tensor, "B N S"], level: Float[Tensor, "B N"]) -> Float[Tensor, "B N S"]:
        self.calls += 1
        predicted = self.network(x, level, self.role, self.layout, self.context)
        clean = to_clean(self.path, self.prediction, predicted, x, level)
        clean = clean if self.limit is None else clean.clamp(-self.limit, self.limit)
        for name in self.layout.of_kind("word"):
            span, size = self.layout.span(name), self.layout[name].size
            clean[:, span] = torch.nn.functional.pad(predicted[:, span, :size].softmax(dim=-1), (0, clean.shape[-1] - size))
        return clean


def reordered(network: Callable[..., Tensor], order: Int[Tensor, " N"]) -> Callable[..., Tensor]:
    """The network for tokens that stand in another order than their layout: the i-th is the layout's token `order[i]`."""
    back = order.argsort()

    def call(x: Tensor, level: Tensor, role: Tensor, layout: Layout, context: object) -> Tensor:
        return network(x[:, back], level[:, back], role[:, back], layout, context)[:, order]

    return call


def beside_noise(network: Callable[..., Tensor], layout: Layout, noise: Float[Tensor, "B V S"]) -> Callable[..., Tensor]:
    """The network for the first tokens of `layout`; all others stand beside them as given noise of level 1 (UWM sec. III-C)."""

    def call(x: Tensor, level: Tensor, role: Tensor, own: Layout, context: object) -> Tensor:
        batch, others = noise.shape[:2]
        pad = torch.nn.functional.pad
        x_and_noise = torch.cat([pad(x, (0, layout.size - x.shape[2])), noise.to(x)], dim=1)
        given = torch.cat([role, roles.full(batch, others, roles.GIVEN).to(role.device)], dim=1)
        return network(x_and_noise, pad(level, (0, others), value=1.0), given, layout, context)[:, : x.shape[1], : x.shape[2]]

    return call


def denoiser(
    model: StreamModel | RobotModel,
    role: Int[Tensor, "B N"],
    layout: Layout | None = None,
    context: object = None,
    limit: float | None = None,
) -> Denoiser:
    """The denoiser of a model for these roles; `layout` as in its forward, `context` as `keep` or `encode` gave it."""
    config = model.config
    path = gaussian.path(config.path, config.noise_shift)
    return Denoiser(model, path, config.prediction, layout or model.layout, role, context, limit)
