"""Gaussian paths: x(level) = alpha(level) * clean + sigma(level) * noise, with exact ends.

At level 0 alpha = 1 and sigma = 0; at level 1 alpha = 0 and sigma = 1, to the last bit, in training and in sampling
alike (zero terminal signal, Lin et al. 2024, sec. 3). Levels are per token: (B, N); values are (B, N, S).
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from uwm.core.shapes import Float

PREDICTIONS = ("noise", "clean", "velocity", "regression")
SMALLEST = 1e-4  # floor of a divisor where a prediction carries no information about the other quantity


class GaussianPath(Protocol):
    """The two coefficients of a path and their derivatives by level."""

    name: str

    def alpha(self, level: Tensor) -> Tensor: ...
    def sigma(self, level: Tensor) -> Tensor: ...
    def alpha_slope(self, level: Tensor) -> Tensor: ...
    def sigma_slope(self, level: Tensor) -> Tensor: ...


class Cosine:
    """Variance-preserving: alpha = cos(turn), sigma = sin(turn) with tan(turn) = shift * tan(pi/2 level).

    With shift 1 this is the cosine path (Salimans & Ho 2022, sec. 4). Both are written with sines, because sin(0) is
    exactly 0 while cos(pi/2) is not. `shift` multiplies sigma / alpha at every level (Hoogeboom et al. 2023, sec. 3.1).
    """

    name = "cosine"

    def __init__(self, shift: float = 1.0):
        self.shift = shift

    def _sides(self, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The legs of the right triangle whose angle is the turn, and its longest side."""
        signal, noise = torch.sin(math.pi / 2 * (1 - level)), self.shift * torch.sin(math.pi / 2 * level)
        return signal, noise, torch.hypot(signal, noise) if self.shift != 1 else torch.ones_like(signal)

    def alpha(self, level: Tensor) -> Tensor:
        signal, _, length = self._sides(level)
        return signal / length

    def sigma(self, level: Tensor) -> Tensor:
        _, noise, length = self._sides(level)
        return noise / length

    def alpha_slope(self, level: Tensor) -> Tensor:
        _, noise, length = self._sides(level)
        return -math.pi / 2 * self.shift * noise / length**3

    def sigma_slope(self, level: Tensor) -> Tensor:
        signal, _, length = self._sides(level)
        return math.pi / 2 * self.shift * signal / length**3


class RectifiedFlow:
    """The straight path alpha = 1 - t, sigma = t (Liu et al. 2023, eq. 1; Lipman et al. 2023).

    t = shift * level / (1 - level + shift * level), which multiplies sigma / alpha by `shift` (Esser et al. 2024, eq. 23).
    """

    name = "rectified"

    def __init__(self, shift: float = 1.0):
        self.shift = shift

    def _stretch(self, level: Tensor) -> Tensor:
        # So written that both ends are exact: 1 + (shift - 1) need not be shift in floating point.
        return (1 - level) + self.shift * level

    def alpha(self, level: Tensor) -> Tensor:
        return (1 - level) / self._stretch(level)

    def sigma(self, level: Tensor) -> Tensor:
        return self.shift * level / self._stretch(level)

    def alpha_slope(self, level: Tensor) -> Tensor:
        return -self.sigma_slope(level)

    def sigma_slope(self, level: Tensor) -> Tensor:
        return self.shift / self._stretch(level) ** 2


PATHS: dict[str, type[Cosine] | type[RectifiedFlow]] = {path.name: path for path in (Cosine, RectifiedFlow)}


def path(name: str, shift: float = 1.0) -> GaussianPath:
    """The path of that name; ValueError lists the names.

    shift: larger than 1 puts more noise at every level but 0 and 1. Tokens that say much about each other (a smooth
    action sequence, neighbouring patches) need it: at small levels they could be read off one another.
    """
    if name not in PATHS:
        raise ValueError(f"path must be one of {sorted(PATHS)}, got {name!r}")
    if not shift > 0:
        raise ValueError(f"the noise shift must be > 0, got {shift}")
    return PATHS[name](shift)


def corrupt(
    path: GaussianPath, clean: Float[Tensor, "B N S"], noise: Float[Tensor, "B N S"], level: Float[Tensor, "B N"]
) -> Float[Tensor, "B N S"]:
    """Tokens at their levels. At level 0 the clean value comes back bit for bit, at level 1 the noise."""
    level = level[..., None]
    return path.alpha(level) * clean + path.sigma(level) * noise


def noised(
    path: GaussianPath,
    x: Float[Tensor, "B N S"],
    noise: Float[Tensor, "B N S"],
    level_from: Float[Tensor, "B N"],
    level_to: Float[Tensor, "B N"],
) -> Float[Tensor, "B N S"]:
    """Tokens raised from one level to another with fresh noise, distributed as if they had come from clean ones in one go.

    Where the second level is not above the first they come back bit for bit.
    """
    low, high = level_from[..., None], level_to[..., None]
    rises = high > low
    kept = path.alpha(high) / torch.where(rises, path.alpha(low), 1.0)
    spread = (path.sigma(high) ** 2 - (kept * path.sigma(low)) ** 2).clamp(min=0).sqrt()
    return torch.where(rises, kept * x + spread * noise, x)


def target(path: GaussianPath, prediction: str, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """What the network is asked for: the noise, the clean value, or the velocity dx/dlevel. A regression says the clean value too, but sees
    nothing of x (`uwm.nn.robot_model.RobotModel`).

    The velocity is scaled so that it is the usual v = alpha noise - sigma clean with unit variance for the cosine path, and
    noise - clean for the straight one, whatever their shift.
    """
    match prediction:
        case "noise":
            return noise
        case "clean" | "regression":
            return clean
        case "velocity":
            slope_alpha, slope_sigma = _unit_slopes(path, level[..., None])
            return slope_alpha * clean + slope_sigma * noise
    raise ValueError(f"prediction must be one of {PREDICTIONS}, got {prediction!r}")


def to_clean(path: GaussianPath, prediction: str, predicted: Tensor, x: Tensor, level: Tensor) -> Tensor:
    """The clean value that a prediction implies at x and level (B, N).

    A noise prediction says nothing at level 1 (alpha = 0): the divisor is floored there, as the papers' clip does.
    Prefer velocity when level 1 is used.
    """
    level = level[..., None]
    alpha, sigma = path.alpha(level), path.sigma(level)
    match prediction:
        case "noise":
            return (x - sigma * predicted) / alpha.clamp(min=SMALLEST)
        case "clean" | "regression":
            return predicted
        case "velocity":
            slope_sigma = _unit_slopes(path, level)[1]
            # Solve x = alpha c + sigma n and v = a' c + s' n for c; the determinant is 1 for both paths.
            return slope_sigma * x - sigma * predicted
    raise ValueError(f"prediction must be one of {PREDICTIONS}, got {prediction!r}")


def to_noise(path: GaussianPath, x: Tensor, clean: Tensor, level: Tensor) -> Tensor:
    """The noise in x if its clean value is `clean`; where sigma is 0 the noise is unknown and 0 is returned."""
    level = level[..., None]
    sigma = path.sigma(level)
    noise = (x - path.alpha(level) * clean) / torch.where(sigma > 0, sigma, torch.ones_like(sigma))
    return torch.where(sigma > 0, noise, torch.zeros_like(noise))


def log_ratio(path: GaussianPath, level: Tensor) -> Tensor:
    """log(alpha / sigma): half the log signal-to-noise ratio, from +inf (clean) to -inf (noise)."""
    return torch.log(path.alpha(level)) - torch.log(path.sigma(level))


def _unit_slopes(path: GaussianPath, level: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes of alpha and sigma, scaled so that alpha * sigma' - sigma * alpha' = 1."""
    slope_alpha, slope_sigma = path.alpha_slope(level), path.sigma_slope(level)
    scale = path.alpha(level) * slope_sigma - path.sigma(level) * slope_alpha
    return slope_alpha / scale, slope_sigma / scale
