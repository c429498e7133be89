"""The objective: draw levels and roles, corrupt, predict, weigh. One mean per stream, then one weight per stream.

Several noise draws share one observation, whose keys and values are computed once. Samples whose video (or state) is absent
are run without its tokens: that is exact (absent tokens have no influence) and saves most of the work.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from uwm.core import roles
from uwm.core.patterns import Draw, Pattern, draw_mixture
from uwm.core.shapes import Bool, Float
from uwm.core.streams import Layout
from uwm.nn.robot_model import Observation, RobotModel
from uwm.noise import gaussian


@dataclass(frozen=True)
class ObjectiveConfig:
    """`draws` noise draws per observation; weight of each modality's mean; the mixture of patterns.

    What the state will be is told as its change, in spreads of the state: a small number, so its squares weigh more. `style_weight`: of
    the divergence of a style, of a model of trunk "act".
    """

    draws: int = 4
    action_weight: float = 1.0
    video_weight: float = 0.5
    state_weight: float = 20.0
    style_weight: float = 10.0
    patterns: tuple[Pattern, ...] = field(default_factory=lambda: (Pattern(),))


@dataclass(frozen=True)
class Batch:
    """Windows ready for the objective: what is observed, clean tokens (B, N, S) and which of them exist (B, N).

    `clean` holds the actions that were executed, which is what dynamics are about. `intended` (B, n, A), if there is one,
    holds the action tokens to imitate: a noisy demonstrator's own wish, without the noise that it had to correct, also where frames are
    denoised beside. Committed actions are executed ones too: of wishes alone the rest could be guessed without looking.

    Samples of a mixture may differ: `dims` (B, A) says which numbers of an action token a sample has (None: all), `has`
    {kind: (B,)} which samples have a kind of stream at all (and, under DEMONSTRATED, which actions are to be imitated), `drawn` the
    shares of this batch, for the log.
    """

    observation: Observation
    clean: Float[Tensor, "B N S"]
    valid: Bool[Tensor, "B N"]
    intended: Float[Tensor, "B n A"] | None = None
    dims: Bool[Tensor, "B A"] | None = None
    has: dict[str, Tensor] = field(default_factory=dict)
    drawn: dict[str, float] = field(default_factory=dict)


# What is asked of a model on one batch: (layout, levels and roles, clean, noise, windows (R,), dims) -> an error per number (R, N, S).
Errors = Callable[[Layout, Draw, Tensor, Tensor, Tensor, Tensor | None], Tensor]


def loss(
    model: RobotModel,
    batch: Batch,
    config: ObjectiveConfig,
    generator: Generator,
    asked: Callable[[RobotModel, Observation], Errors] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The scalar to minimise and the mean error per stream: squared, of `denoising`, unless something else is `asked`."""
    count = len(batch.clean)
    window = torch.arange(count).repeat_interleave(config.draws)
    has = {kind: there[window] for kind, there in batch.has.items()}
    drawn = draw_mixture(config.patterns, model.layout, count * config.draws, generator, has)
    role = torch.where(batch.valid[window], drawn.role, roles.ABSENT)
    noise = torch.randn(len(window), *batch.clean.shape[1:], generator=generator)
    errors, wished = (asked or denoising)(model, batch.observation), imitated(model.layout, batch)
    sums: dict[str, list[Tensor]] = {}
    for layout, chosen in _groups(model.layout, role):
        columns = layout.index_in(model.layout)
        part = Draw(drawn.level[chosen][:, columns], role[chosen][:, columns])
        executed, intended = (each[:, columns, : layout.size][window[chosen]] for each in (batch.clean, wished))
        clean = torch.where(_imitates(layout, part)[..., None], intended, executed)
        dims = None if batch.dims is None else batch.dims[window[chosen]]
        # Before any arithmetic: an absent token may hold anything, and NaN times a zero gradient is NaN.
        clean = torch.where(roles.seen(part.role)[..., None], clean, 0.0)
        clean = clean if dims is None else _without_foreign(layout, clean, dims)
        found = errors(layout, part, clean, noise[chosen][:, columns, : layout.size], window[chosen], dims)
        for name, pair in _by_stream(layout, part.role == roles.ACTIVE, found, dims).items():
            sums.setdefault(name, []).append(pair)
    means = {
        name: torch.stack([total for total, _ in pairs]).sum() / max(sum(count for _, count in pairs), 1)
        for name, pairs in sums.items()
    }
    weights = {"action": config.action_weight, "video": config.video_weight, "state": config.state_weight}
    total = sum(weights[model.layout[name].kind] * mean for name, mean in means.items())
    return total, {name: float(mean.detach()) for name, mean in means.items()}


def denoising(model: RobotModel, observation: Observation) -> Errors:
    """The squared error of what the model predicts."""
    path, context = gaussian.path(model.config.path, model.config.noise_shift), model.encode(observation)

    def errors(layout: Layout, drawn: Draw, clean: Tensor, noise: Tensor, window: Tensor, dims: Tensor | None) -> Tensor:
        x = gaussian.corrupt(path, clean, noise, drawn.level)
        predicted = model(x, drawn.level, drawn.role, layout, context.at(window), dims)
        return (predicted - gaussian.target(path, model.config.prediction, clean, noise, drawn.level)).float().square()

    return errors


def imitated(layout: Layout, batch: Batch) -> Float[Tensor, "B N S"]:
    """Clean tokens with the actions to imitate, where the data know them, in place of the executed ones."""
    if batch.intended is None:
        return batch.clean
    wanted = batch.clean.clone()
    wanted[:, layout.mask(*layout.of_kind("action")), : batch.intended.shape[2]] = batch.intended
    return wanted


def _imitates(layout: Layout, drawn: Draw) -> Bool[Tensor, "R N"]:
    """Tokens that imitate: actions that are denoised, unless a part of the future is given, which tells what was executed.

    What is given or committed was (or will be) executed, with all its noise. A part that is given as pure noise tells nothing.
    """
    acts = layout.mask(*layout.of_kind("action"))
    told = (drawn.role == roles.GIVEN) & (drawn.level < 1) & ~acts
    return acts & (drawn.role == roles.ACTIVE) & ~told.any(dim=1, keepdim=True)


def _groups(layout: Layout, role: Tensor) -> list[tuple[Layout, Tensor]]:
    """Splits samples by which kinds beside actions are there at all; each group loses the streams of the others."""
    kinds = [kind for kind in layout.kinds if kind != "action"]
    there = [(role[:, layout.mask(*layout.of_kind(kind))] != roles.ABSENT).any(dim=1) for kind in kinds]
    groups = []
    for choice in itertools.product((True, False), repeat=len(kinds)):
        names = [name for kind, wanted in zip(("action", *kinds), (True, *choice), strict=True) if wanted for name in layout.of_kind(kind)]
        chosen = torch.ones(len(role), dtype=torch.bool)
        for has, wanted in zip(there, choice, strict=True):
            chosen &= has == wanted
        groups.append((layout.select(names), chosen.nonzero().flatten()))
    return [(streams, chosen) for streams, chosen in groups if len(chosen)]


def _by_stream(layout: Layout, active: Tensor, found: Tensor, dims: Tensor | None) -> dict[str, tuple[Tensor, int]]:
    """Per stream: the sum over active tokens of the mean error of their numbers, and how many there were."""
    errors = {}
    for stream in layout.streams:
        span = layout.span(stream.name)
        error = _mean(found[:, span, : stream.size], dims if stream.kind == "action" else None)
        there = active[:, span]
        errors[stream.name] = (torch.where(there, error, 0.0).sum(), int(there.sum()))
    return errors


def _without_foreign(layout: Layout, clean: Tensor, dims: Tensor) -> Tensor:
    """Action tokens with zeros in the dimensions that a sample's robot does not have, whatever stood there."""
    clean = clean.clone()
    for name in layout.of_kind("action"):
        own = clean[:, layout.span(name), : dims.shape[1]]
        clean[:, layout.span(name), : dims.shape[1]] = torch.where(dims[:, None], own, 0.0)
    return clean


def _mean(errors: Float[Tensor, "B n S"], dims: Bool[Tensor, "B S"] | None) -> Float[Tensor, "B n"]:
    """The mean of a token's errors over the dimensions that its sample has."""
    if dims is None:
        return errors.mean(dim=-1)
    return torch.where(dims[:, None], errors, 0.0).sum(dim=-1) / dims.sum(dim=-1, keepdim=True).clamp(min=1)
