"""The exact denoiser of a Gaussian, for any mixture of levels: what a perfectly trained network would answer.

Clean tokens c ~ N(mean, C) with S = 1 number each, seen as x = A c + Sg n, where A and Sg are diagonal (every token has its
own level) and n ~ N(0, 1). Then, in closed form and with no training,

    E[c | x] = mean + C A (A C A + Sg^2)^-1 (x - A mean).

Everything a deterministic step rule does with this denoiser is affine in x. So a rule, a plan and a buffer can be pushed
through column by column (`basis`), which gives the exact mean and covariance of what they sample: no Monte Carlo noise.
"""

from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import config

from uwm.core import roles
from uwm.noise import gaussian
from uwm.sample.loop import sample
from uwm.sample.randomness import Randomness

DTYPE = torch.float64
PATHS = {name: gaussian.path(name) for name in gaussian.PATHS}
SHIFTED = {f"{name} x {shift}": gaussian.path(name, shift) for name in gaussian.PATHS for shift in (0.7, 3.0)}


@dataclass(frozen=True)
class Gaussian:
    """Clean tokens ~ N(mean (N,), covariance (N, N)), both float64; the covariance has no direction of variance 0."""

    mean: torch.Tensor
    covariance: torch.Tensor

    def conditional(self, wanted, known):
        """Of the tokens in the mask `wanted` given those in `known`, the rest marginalised: mean = constant + gain @ values.

        Returns (gain, constant, covariance).
        """
        across, inner = self.covariance[wanted][:, known], self.covariance[known][:, known]
        gain = torch.linalg.solve(inner, across.T).T
        constant = self.mean[wanted] - gain @ self.mean[known]
        return gain, constant, self.covariance[wanted][:, wanted] - gain @ across.T

    def denoiser(self, path, role=None):
        """`denoise(x (B, N, S), level (B, N)) -> clean (B, N, S)`; the S numbers of a token are independent copies.

        `role` (N,) or (B, N): absent tokens are marginalised, whatever they hold; theirs comes back as E[c | the others].
        """

        def denoise(x, level):
            seen = torch.ones_like(level, dtype=torch.bool) if role is None else roles.seen(role).expand(level.shape)
            # alpha 0 and sigma 1 cut a token out of the solve: the same as deleting its row and its column.
            alpha = torch.where(seen, path.alpha(level.to(DTYPE)), 0.0)
            sigma = torch.where(seen, path.sigma(level.to(DTYPE)), 1.0)
            x = torch.where(seen[..., None], x, 0.0)
            scaled = self.covariance * alpha[:, None, :]  # C A
            noisy = alpha[:, :, None] * scaled + torch.diag_embed(sigma**2)  # A C A + Sg^2
            mean = self.mean[None, :, None]
            clean = mean + scaled @ torch.linalg.solve(noisy, x - alpha[..., None] * mean)
            # At sigma 0 the value is known; the solve would return it with a rounding error.
            return torch.where((sigma == 0)[..., None], x, clean)

        return denoise


def autoregressive(tokens, correlation=0.9):
    """Covariance (N, N) of an AR(1) of variance 1: correlation to the power of the distance."""
    index = torch.arange(tokens, dtype=DTYPE)
    return torch.tensor(correlation, dtype=DTYPE) ** (index[:, None] - index).abs()


def correlated(tokens, seed=0):
    """A Gaussian with random means and correlations, of variances about 1, safely away from singular."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(tokens, tokens, generator=generator, dtype=DTYPE) / tokens**0.5
    mean = torch.randn(tokens, generator=generator, dtype=DTYPE)
    return Gaussian(mean, mixing @ mixing.T + 0.2 * torch.eye(tokens, dtype=DTYPE))


def basis(tokens):
    """(1, N, N + 1): one column per token that is 1 there, and a last column of zeros for the constant part."""
    return torch.nn.functional.pad(torch.eye(tokens, dtype=DTYPE), (0, 1))[None]


def affine(denoise, path, level, rule):
    """The whole run as a map: x at the first row -> M (N, N) @ x + b (N,) at the last, exactly."""
    out, _ = sample(denoise, path, basis(level.shape[-1]), level, rule)
    return out[0, :, :-1] - out[0, :, -1:], out[0, :, -1]


class Columns(Randomness):
    """Randomness where S holds the columns of a basis: each number drawn is a column of its own.

    Rules that draw noise stay affine in what they draw, so the covariance of what they sample is exact too. The last column
    stays zero throughout: it carries the constant part.
    """

    @classmethod
    def fresh(cls):
        """Before the first draw."""
        return cls.seeded([0])

    def normal(self, *shape, dtype=DTYPE):
        """(1, tokens, size): the next `tokens` columns, and what is left after them."""
        tokens, size = shape
        used = int(self.count)
        if used + tokens >= size:
            raise ValueError(f"{size} columns hold {size - 1} random numbers, and {used + tokens} were drawn")
        drawn = torch.zeros(1, tokens, size, dtype=dtype)
        drawn[0, :, used : used + tokens] = torch.eye(tokens, dtype=dtype)
        return drawn, replace(self, count=self.count + tokens)

    def where(self, mask, other):
        """One stream only: all of this or all of the other."""
        return self if bool(mask.all()) else other


def relative(got, wanted):
    """Relative error in the Frobenius norm, as a number."""
    return float((got - wanted).norm() / wanted.norm())


@contextmanager
def unchecked_shapes():
    """Annotations are not checked inside: for runs of thousands of calls (5 times as fast) and for the code's own errors."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", before)
