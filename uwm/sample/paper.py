"""Sampling exactly as the UWM authors released it: DDIM on labels 90, 80, ..., 0 of a table of 100 ("leading" spacing).

```
mode      actions                    video                      what differs from our own plans
policy    90 80 ... 0, then clean    noise labelled 90          falling tokens start as unit noise, though the signal's share
video     noise labelled 90          90 80 ... 0, then clean    at label 90 is 0.14; a clean modality is labelled 0
forward   clean, labelled 0          90 80 ... 0, then clean
inverse   90 80 ... 0, then clean    clean, labelled 0
joint     90 80 ... 0, then clean    90 80 ... 0, then clean
```

The one loop runs it; this file only lays out the rows and keeps two habits of the released sampler: the clean estimate is
clipped to [-1, 1], and the noise of a step is the predicted one, not the one that the clipped estimate would imply.
"""

import torch
from torch import Tensor

from uwm.core import plans, roles
from uwm.core.levels import from_index
from uwm.core.shapes import Float
from uwm.core.streams import Layout
from uwm.nn.paper import PaperModel
from uwm.noise.gaussian import to_noise
from uwm.noise.table import SquaredCosineTable
from uwm.sample.denoise import Denoiser
from uwm.sample.loop import sample
from uwm.sample.randomness import Randomness
from uwm.sample.steps import Moved, StepRule

MODES = ("policy", "video", "forward", "inverse", "joint")
MARGINAL = {"policy": "policy_marginal", "video": "video_marginal"}  # the names of our plans with noise in the slot
LIMIT = 1.0


def plan(layout: Layout, mode: str, rows: int = 10, entries: int = 100, marginal: int | None = None) -> plans.Plan:
    """The released rows of a mode. `marginal` labels a modality that is not asked for; None is the first falling label.

    Training labelled absent actions with the last entry (99), sampling with the first label of its spacing (90).
    """
    if mode not in MODES:
        raise ValueError(f"the published model has the modes {MODES}, got {mode!r}")
    if entries % rows:
        raise ValueError(f"leading spacing needs rows that divide {entries}, got {rows}")
    spacing = entries // rows
    labels = torch.arange((rows - 1) * spacing, -1, -spacing)
    falling = torch.cat([from_index(labels, entries), torch.zeros(1)])[:, None]
    still = falling[0] if marginal is None else from_index(torch.tensor([marginal]), entries)
    own = plans.MODES[MARGINAL.get(mode, mode)]
    level, role = torch.zeros(rows + 1, layout.tokens), roles.full(1, layout.tokens)[0]
    for kind in layout.kinds:
        where = layout.mask(*layout.of_kind(kind))
        values = {plans.FALL: falling, plans.NOISE: still, plans.GIVEN: torch.full((1, 1), 1 / entries)}[own[kind]]
        level[:, where] = values.expand(rows + 1, int(where.sum()))
        role[where] = roles.ACTIVE if own[kind] == plans.FALL else roles.GIVEN
    return plans.Plan(level, role)


def _released(denoise, path, x, level_from, level_to, carry, randomness) -> Moved:
    clean = denoise(x, level_from)
    noise = to_noise(path, x, clean, level_from)
    clean = clean.clamp(-LIMIT, LIMIT)
    return Moved(path.alpha(level_to[..., None]) * clean + path.sigma(level_to[..., None]) * noise, None, randomness)


released_ddim = StepRule("released_ddim", 1, _released)


@torch.no_grad()
def sample_published(
    model: PaperModel,
    features: Float[Tensor, "B C"],
    mode: str,
    seeds,
    known: dict[str, Tensor] | None = None,
    rows: int = 10,
    marginal: int | None = None,
) -> dict[str, Tensor]:
    """One sample (B, N, S) of every stream in a mode, in the weights' own units (normalised actions, scaled latents).

    `features` as `model.encode` gives them, `known` clean tokens of the streams that the mode is given, `seeds` one number
    per sample.
    """
    layout, entries = model.denoiser.layout, model.config.entries
    laid = plan(layout, mode, rows, entries, marginal)
    noise, _ = Randomness.seeded(seeds).normal(layout.tokens, layout.size)
    clean = torch.zeros_like(noise)
    for name, value in (known or {}).items():
        clean[:, layout.span(name), : layout[name].size] = value
    is_clean = (laid.role == roles.GIVEN) & (laid.level[0] == 1 / entries)
    wanted = {name for name in layout.names if bool(is_clean[layout.span(name)].any())}
    if wanted != set(known or {}):
        raise ValueError(f"mode {mode!r} is given {sorted(wanted) or 'nothing'}, got {sorted(known or {}) or 'nothing'}")
    x = torch.where(is_clean[:, None], clean, noise)
    denoise = Denoiser(model, SquaredCosineTable(entries), "noise", layout, laid.role.expand(len(x), -1), features)
    return layout.unpack(sample(denoise, denoise.path, x, laid.level, released_ddim)[0])
