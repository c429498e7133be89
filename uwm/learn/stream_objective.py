"""The objective of a stream model: draw levels and roles, corrupt, predict, one mean per stream, one weight per kind.

A continuous token is corrupted along the model's path; a word is masked with its level as the chance. Every mean is over the
active tokens of its own stream, so that the stream with the most tokens does not drown the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from uwm.core import roles
from uwm.core.patterns import Draw, Pattern, draw_mixture
from uwm.core.shapes import Bool, Float
from uwm.core.streams import Layout
from uwm.nn.stream_model import StreamModel
from uwm.noise import absorbing, gaussian


@dataclass(frozen=True)
class StreamObjective:
    """The mixture of patterns, and the weight of each kind of stream (1 where none is told)."""

    patterns: tuple[Pattern, ...] = field(default_factory=lambda: (Pattern(),))
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StreamBatch:
    """Clean tokens (B, N, S) of a model's layout and which exist (B, N); None: all. `drawn`: figures for the log."""

    clean: Float[Tensor, "B N S"]
    valid: Bool[Tensor, "B N"] | None = None
    drawn: dict[str, float] = field(default_factory=dict)


def stream_loss(
    model: StreamModel, batch: StreamBatch, config: StreamObjective, generator: Generator
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The scalar to minimise and the mean error per stream: squared for continuous tokens, nats per token for words."""
    layout, clean = model.layout, batch.clean
    drawn = draw_mixture(config.patterns, layout, len(clean), generator)
    role = drawn.role if batch.valid is None else torch.where(batch.valid, drawn.role, roles.ABSENT)
    errors = stream_errors(model, clean, Draw(drawn.level, role, drawn.pattern), generator)
    active = role == roles.ACTIVE
    means = {name: _mean(errors[:, layout.span(name)], active[:, layout.span(name)]) for name in layout.names}
    total = sum(config.weights.get(layout[name].kind, 1.0) * mean for name, mean in means.items())
    return total, {name: float(mean.detach()) for name, mean in means.items()}


def stream_errors(model: StreamModel, clean: Float[Tensor, "B N S"], drawn: Draw, generator: Generator) -> Float[Tensor, "B N"]:
    """The error of every token under drawn levels and roles: what the loss averages, and what a likelihood adds up.

    Streams that are absent in every sample are left out of the row: exact, and cheaper. Their errors are 0.
    """
    whole, config = model.layout, model.config
    there = [name for name in whole.names if bool(roles.seen(drawn.role[:, whole.span(name)]).any())]
    layout = whole.select(there or whole.names)
    columns = layout.index_in(whole)
    clean, drawn = clean[:, columns, : layout.size], Draw(drawn.level[:, columns], drawn.role[:, columns], drawn.pattern)
    path = gaussian.path(config.path, config.noise_shift)
    # Before any arithmetic: an absent token may hold anything, and NaN times a zero gradient is NaN.
    clean = torch.where(roles.seen(drawn.role)[..., None], clean, 0.0)
    noise = torch.randn(clean.shape, generator=generator)
    x = gaussian.corrupt(path, clean, noise, drawn.level)
    wanted = gaussian.target(path, config.prediction, clean, noise, drawn.level)
    masked = torch.rand(clean.shape[:2], generator=generator) < drawn.level
    words = layout.mask(*layout.of_kind("word"))
    x = torch.where(words[:, None], absorbing.corrupt(clean, masked), x)
    predicted = model(x, drawn.level, drawn.role, layout)
    parts = []
    for stream in layout.streams:
        span = layout.span(stream.name)
        out, want = predicted[:, span, : stream.size].float(), wanted[:, span, : stream.size]
        if stream.kind == "word":
            nats = absorbing.nats(out, clean[:, span, : stream.size].argmax(dim=-1))
            parts.append(torch.where(masked[:, span], nats / drawn.level[:, span].clamp(min=1e-6), 0.0))
        else:
            parts.append((out - want).square().mean(dim=-1))
    errors = torch.cat(parts, dim=1)
    return errors.new_zeros(len(errors), whole.tokens).index_copy(1, columns, errors)


def _mean(errors: Tensor, active: Tensor) -> Tensor:
    """The mean over active tokens; 0 where there are none."""
    return torch.where(active, errors, 0.0).sum() / active.sum().clamp(min=1)


def one_hot(words: Tensor, layout: Layout, name: str) -> Float[Tensor, "B n V"]:
    """Clean tokens of a word stream from word numbers (B, n). ValueError for a number outside the vocabulary."""
    size = layout[name].size
    if words.numel() and not 0 <= int(words.min()) <= int(words.max()) < size:
        raise ValueError(f"words of {name!r} are numbers from 0 to {size - 1}, got {int(words.min())} to {int(words.max())}")
    return torch.nn.functional.one_hot(words.long(), size).float()
