"""The narrow waist: `denoise(x, level) -> clean`. All sampling talks to this and to nothing else of the network."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from uwm.core.shapes import Float, Int
from uwm.core.streams import Layout
from uwm.noise.gaussian import GaussianPath, to_clean


@dataclass
class Denoiser:
    """A network, what it predicts along which path, and what one call needs beside x and level.

    `network(x, level, role, layout, context)` returns a prediction (B, N, S). `calls` counts network calls. `limit` clips
    the clean estimate of normalised tokens to [-limit, limit]; None leaves it alone.
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
        return clean if self.limit is None else clean.clamp(-self.limit, self.limit)
