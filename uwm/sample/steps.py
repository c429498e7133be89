"""Step rules: how a row of tokens moves from its levels to the next ones.

Every rule has the same face: `(denoise, path, x, level_from, level_to, carry, randomness) -> x, carry, randomness`, with
levels per token. A token whose levels are equal comes back bit for bit: a finished or a given token cannot be harmed.

| rule | order | calls a row | source |
|---|---|---|---|
| ddim(eta) | 1 | 1 | Song et al. 2021, eq. 12, for any Gaussian path |
| ancestral | 1 | 1 | DDPM's posterior (Ho et al. 2020, eq. 7) = ddim with eta 1 |
| euler | 1 | 1 | the probability-flow ODE in level |
| heun | 2 | 2 | Karras et al. 2022, algorithm 1 without churn |
| dpmpp_2m | 2 | 1 | Lu et al. 2022 (DPM-Solver++), algorithm 2; looks back |
| consistency | 1 | 1 | the clean estimate, noised afresh (Song et al. 2023, algorithm 1): for models distilled so |

A rule that looks back carries (clean (B, N, S), level (B, N)): every token's last estimate and the level at which it was made, 0: none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from uwm.core.streams import Layout
from uwm.noise.gaussian import GaussianPath, corrupt, log_ratio, to_noise
from uwm.sample.randomness import Randomness

Denoise = Callable[[Tensor, Tensor], Tensor]


class Moved(NamedTuple):
    """Tokens after a step, what the rule wants back at the next step, and the generator state."""

    x: Tensor
    carry: Any
    randomness: Randomness | None


@dataclass(frozen=True)
class StepRule:
    """A rule with a name, the network calls that it spends per row, and whether it looks back at the row before."""

    name: str
    calls: int
    move: Callable[..., Moved]
    looks_back: bool = False

    def __call__(self, denoise, path, x, level_from, level_to, carry=None, randomness=None) -> Moved:
        if level_from.shape != x.shape[:2] or level_to.shape != x.shape[:2]:
            raise ValueError(
                f"levels must be (B, N) = {tuple(x.shape[:2])}, got {tuple(level_from.shape)}, {tuple(level_to.shape)}"
            )
        moved = self.move(denoise, path, x, level_from, level_to, carry, randomness)
        still = level_from == level_to
        x = torch.where(still[..., None], x, moved.x)
        if randomness is None:
            return moved._replace(x=x)
        # A sample that waits for others must draw nothing meanwhile, or its next noise would depend on the batch.
        return moved._replace(x=x, randomness=moved.randomness.where(~still.all(dim=1), randomness))


def _toward(path: GaussianPath, x: Tensor, clean: Tensor, level_from: Tensor, level_to: Tensor) -> Tensor:
    """x moved along the path with `clean` and the noise that it implies held fixed."""
    noise = to_noise(path, x, clean, level_from)
    return path.alpha(level_to[..., None]) * clean + path.sigma(level_to[..., None]) * noise


def ddim(eta: float = 0.0) -> StepRule:
    """DDIM; eta 0 is deterministic, eta 1 adds the whole noise of DDPM's posterior.

    Written for any Gaussian path: fresh noise has variance eta^2 (s_t/s_f)^2 (s_f^2 - (a_f/a_t)^2 s_t^2).
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta lies in [0, 1], got {eta}")

    def move(denoise, path, x, level_from, level_to, carry, randomness):
        clean = denoise(x, level_from)
        if eta == 0:
            return Moved(_toward(path, x, clean, level_from, level_to), None, randomness)
        if randomness is None:
            raise ValueError("ddim with eta > 0 draws noise: pass randomness")
        fresh, randomness = randomness.normal(*x.shape[1:], dtype=x.dtype)
        return Moved(_noisy(path, x, clean, level_from, level_to, eta, fresh), None, randomness)

    return StepRule("ancestral" if eta == 1 else f"ddim(eta={eta:g})" if eta else "ddim", 1, move)


def _noisy(path, x, clean, level_from, level_to, eta, fresh):
    a_f, s_f = path.alpha(level_from)[..., None], path.sigma(level_from)[..., None]
    a_t, s_t = path.alpha(level_to)[..., None], path.sigma(level_to)[..., None]
    safe_s, safe_a = s_f.clamp(min=1e-12), a_t.clamp(min=1e-12)
    variance = (eta * s_t / safe_s) ** 2 * (s_f**2 - (a_f / safe_a * s_t) ** 2).clamp(min=0)
    kept = (s_t**2 - variance).clamp(min=0).sqrt()
    return a_t * clean + kept * to_noise(path, x, clean, level_from) + variance.sqrt() * fresh


def _slope(path: GaussianPath, x: Tensor, clean: Tensor, level: Tensor) -> Tensor:
    """dx/dlevel of the probability-flow ODE."""
    noise = to_noise(path, x, clean, level)
    return path.alpha_slope(level[..., None]) * clean + path.sigma_slope(level[..., None]) * noise


def _euler(denoise, path, x, level_from, level_to, carry, randomness):
    slope = _slope(path, x, denoise(x, level_from), level_from)
    return Moved(x + (level_to - level_from)[..., None] * slope, None, randomness)


def _heun(denoise, path, x, level_from, level_to, carry, randomness):
    first = _slope(path, x, denoise(x, level_from), level_from)
    step = (level_to - level_from)[..., None]
    guess = torch.where(step == 0, x, x + step * first)
    clean = denoise(guess, level_to)
    # At level 0 the noise cannot be read off x any more; there the second slope is the first (an Euler step).
    second = torch.where(level_to[..., None] > 0, _slope(path, guess, clean, level_to), first)
    return Moved(x + step * (first + second) / 2, None, randomness)


def _dpmpp_2m(denoise, path, x, level_from, level_to, carry, randomness):
    clean, moves = denoise(x, level_from), level_from != level_to
    before, level_before = carry or (clean, torch.zeros_like(level_from))
    used = clean + _extrapolation(path, level_from, level_to, level_before) * (clean - before)
    # A token that waits for others keeps what it knew: waiting is no step.
    carry = torch.where(moves[..., None], clean, before), torch.where(moves, level_from, level_before)
    return Moved(_toward(path, x, used, level_from, level_to), carry, randomness)


def _consistency(denoise, path, x, level_from, level_to, carry, randomness):
    if randomness is None:
        raise ValueError("consistency sampling draws noise: pass randomness")
    noise, randomness = randomness.normal(*x.shape[1:], dtype=x.dtype)
    return Moved(corrupt(path, denoise(x, level_from), noise, level_to), None, randomness)


def _extrapolation(path, level_from, level_to, level_before):
    """h / (2 h_before) in log-SNR; 0 (first order) where either step touches an end, none went before or the token does not move."""
    step = log_ratio(path, level_to) - log_ratio(path, level_from)
    before = log_ratio(path, level_from) - log_ratio(path, level_before)
    usable = torch.isfinite(step) & torch.isfinite(before) & (before != 0) & (step != 0)
    ratio = torch.where(usable, step, torch.zeros_like(step)) / torch.where(usable, before, torch.ones_like(before))
    return (ratio / 2)[..., None]


def by_stream(layout: Layout, rules: Mapping[str, StepRule], default: StepRule | None = None) -> StepRule:
    """Each stream moved by its own rule, named by stream or kind, with one network call per row for all of them.

    For rules of one call a row: all look at the same clean estimate. ValueError when a stream has no rule.
    """
    chosen = {stream.name: rules.get(stream.name, rules.get(stream.kind, default)) for stream in layout.streams}
    without = [name for name, chosen_rule in chosen.items() if chosen_rule is None]
    if without or any(each.calls != 1 for each in chosen.values() if each):
        raise ValueError(f"every stream needs a rule of one call a row; without a rule: {without}, rules: {sorted(rules)}")

    def move(denoise, path, x, level_from, level_to, carry, randomness):
        clean, carries, moved = denoise(x, level_from), carry or {}, x.clone()
        for name, each in chosen.items():
            span = layout.span(name)
            part = partial(_already, clean[:, span])
            levels = (level_from[:, span], level_to[:, span])
            out = each(part, path, x[:, span], *levels, carries.get(name), randomness)
            moved[:, span], randomness = out.x, out.randomness
            carries = {**carries, name: out.carry}
        return Moved(moved, carries, randomness)

    return StepRule("by stream", 1, move)


def _already(clean: Tensor, x: Tensor, level: Tensor) -> Tensor:
    """A clean estimate that is there, in the place of a network."""
    return clean


euler = StepRule("euler", 1, _euler)
heun = StepRule("heun", 2, _heun)
dpmpp_2m = StepRule("dpmpp_2m", 1, _dpmpp_2m, looks_back=True)
ancestral = ddim(1.0)
consistency = StepRule("consistency", 1, _consistency)
RULES: dict[str, StepRule] = {
    rule.name: rule for rule in (ddim(), ancestral, euler, heun, dpmpp_2m, consistency)
}


def rule(name: str) -> StepRule:
    """The step rule of that name; ValueError lists the names."""
    if name not in RULES:
        raise ValueError(f"step rule must be one of {sorted(RULES)}, got {name!r}")
    return RULES[name]
