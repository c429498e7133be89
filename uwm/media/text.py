"""Texts of a stream model: complete, fill in, and how likely they are. Words are numbers of the model's own vocabulary.

```
fill in    push the _ block to the _      given words stay wherever they are; masked ones are revealed row by row
likelihood                                a bound on -log p from random masks, or exactly for one order of the words
```

The word stream is absorbing diffusion (RADD, Ou et al. 2025); see `uwm.noise.absorbing` and `uwm.sample.unmask`.
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from uwm.core import roles
from uwm.core.shapes import Bool, Float, Int
from uwm.core.streams import Layout
from uwm.learn.stream_objective import one_hot
from uwm.nn.stream_model import StreamModel
from uwm.noise import absorbing
from uwm.sample.denoise import denoiser
from uwm.sample.loop import sample
from uwm.sample.randomness import Randomness
from uwm.sample.steps import StepRule, by_stream, ddim
from uwm.sample.unmask import Cached, unmask


def fill_in(
    model: StreamModel,
    name: str,
    words: Int[Tensor, "B L"],
    free: Bool[Tensor, "B L"] | Bool[Tensor, "1 L"],
    rows: int,
    seeds: Sequence[int],
    given: dict[str, Tensor] | None = None,
    rule: StepRule | None = None,
    cache: bool = True,
) -> tuple[Int[Tensor, "B L"], Int[Tensor, " B"]]:
    """Texts with the `free` words replaced, and the network calls that each sample needed.

    `words` under free places do not matter. `given` {other stream: clean tokens (B, n, S)} are conditions; streams that are not
    named are absent. `rule`: how words are revealed. ValueError when nothing is free, or for no rows.
    """
    given = dict(given or {})
    layout = model.layout.select([name, *given])
    free = free.expand(len(words), -1)
    if rows < 1 or not bool(free.any()):
        raise ValueError(f"there must be a row and a free word, got {rows} rows and {int(free.sum())} free words")
    if words.shape[1] != layout[name].tokens:
        raise ValueError(f"{name!r} has {layout[name].tokens} words, got {words.shape[1]}")
    x, span = _packed(layout, name, words, given), layout.span(name)
    x[:, span] = x[:, span].masked_fill(free[..., None], 0.0)
    level = torch.zeros(rows + 1, len(words), layout.tokens)
    level[:, :, span] = torch.where(free[None], torch.linspace(1, 0, rows + 1)[:, None, None], 0.0)
    role = roles.full(len(words), layout.tokens, roles.GIVEN)
    role[:, span] = torch.where(free, roles.ACTIVE, roles.GIVEN).to(role.dtype)
    denoise = denoiser(model, role, layout)
    kept = Cached(denoise) if cache else denoise
    with torch.inference_mode():
        out, _ = sample(kept, denoise.path, x, level, by_stream(layout, {"word": rule or unmask()}, ddim()), Randomness.seeded(seeds))
    calls = kept.calls if cache else torch.full((len(words),), denoise.calls)
    return out[:, span, : layout[name].size].argmax(dim=-1), calls


@torch.inference_mode()
def bound(
    model: StreamModel,
    name: str,
    words: Int[Tensor, "B L"],
    free: Bool[Tensor, " L"],
    generator: Generator,
    kind: str = "level",
    given: dict[str, Tensor] | None = None,
) -> Float[Tensor, " B"]:
    """One unbiased estimate per sample of a bound on -log p(free words | the others, `given`), in nats."""
    masks = absorbing.draw(kind, len(words), int(free.sum()), generator)
    hidden = torch.zeros(words.shape, dtype=torch.bool)
    hidden[:, free] = masks.masked
    logits = _logits(model, name, words, hidden, dict(given or {}))
    return absorbing.bound(kind, logits[:, free].double(), words[:, free], masks)


@torch.inference_mode()
def order_nats(
    model: StreamModel, name: str, words: Int[Tensor, "B L"], order: Sequence[int], given: dict[str, Tensor] | None = None
) -> Float[Tensor, " B"]:
    """-log p(words at `order` | the others, `given`) exactly, for this order of revealing them: one call per word."""
    hidden = torch.zeros(words.shape, dtype=torch.bool)
    hidden[:, list(order)] = True
    total = torch.zeros(len(words), dtype=torch.float64)
    for place in order:
        logits = _logits(model, name, words, hidden, dict(given or {}))
        total += absorbing.nats(logits[:, place : place + 1].double(), words[:, place : place + 1])[:, 0]
        hidden[:, place] = False
    return total


def _logits(model: StreamModel, name: str, words: Tensor, hidden: Tensor, given: dict[str, Tensor]) -> Float[Tensor, "B L V"]:
    layout = model.layout.select([name, *given])
    x, span = _packed(layout, name, words, given), layout.span(name)
    x[:, span] = absorbing.corrupt(x[:, span], hidden)
    return model(x, 0.0, roles.full(len(words), layout.tokens), layout)[:, span, : layout[name].size]


def _packed(layout: Layout, name: str, words: Tensor, given: dict[str, Tensor]) -> Tensor:
    values = {other: value.expand(len(words), -1, -1).float() for other, value in given.items()}
    return layout.pack({name: one_hot(words, layout, name), **values})
