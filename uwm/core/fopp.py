"""Non-decreasing levels along frames, drawn as AR-Diffusion does it (Sun et al. 2025): a later frame is never cleaner.

```
frame      0    1    2    3    4             one frame f and its level are uniform; the others follow, each with as many chances
level     .1   .1   .4   .7   .7             as there are ways to go on (FoPP, frame-oriented probability propagation)
                    f
```

Levels stand in a table of `entries` steps, as in the paper; entry k is level (k + 1) / entries. The number of ways to go on is a
binomial, taken by log-gamma: the recurrence's table overflows for long clips.
"""

from functools import cache

import torch
from torch import Generator, Tensor

from uwm.core.shapes import Float, Int

ENTRIES = 1000


@cache
def ways_after(frame: int, frames: int, entries: int) -> Float[Tensor, " T"]:
    """log of the number of non-decreasing completions of the frames after `frame`, by its entry (T,): C(T-1-k + n, n), n frames left."""
    left = frames - 1 - frame
    entry = torch.arange(entries, dtype=torch.float64)
    return _log_binomial(entries - 1 - entry + left, left)


@cache
def ways_before(frame: int, entries: int) -> Float[Tensor, " T"]:
    """log of the number of non-decreasing beginnings of the frames before `frame`, by its entry (T,): C(k + i, i)."""
    return _log_binomial(torch.arange(entries, dtype=torch.float64) + frame, frame)


def draw(batch: int, frames: int, generator: Generator, entries: int = ENTRIES) -> Int[Tensor, "B F"]:
    """Entries 0 to T - 1 of every frame, non-decreasing along frames. ValueError for no frames or entries.

    Given the frame that was chosen first and its entry, all completions are equally likely.
    """
    if min(batch, frames, entries) < 1:
        raise ValueError(f"there must be a sample, a frame and an entry, got {batch}, {frames}, {entries}")
    found = torch.zeros(batch, frames, dtype=torch.int64)
    first = torch.randint(0, frames, (batch,), generator=generator)
    begin = torch.randint(0, entries, (batch,), generator=generator)
    found[torch.arange(batch), first] = begin
    lowest, highest = torch.zeros_like(first), torch.full_like(first, entries - 1)
    for frame in range(1, frames):
        later = _between(ways_after(frame, frames, entries), found[:, frame - 1], highest, generator)
        found[:, frame] = torch.where(frame > first, later, found[:, frame])
    for frame in range(frames - 2, -1, -1):
        earlier = _between(ways_before(frame, entries), lowest, found[:, frame + 1], generator)
        found[:, frame] = torch.where(frame < first, earlier, found[:, frame])
    return found


def levels(frames: Int[Tensor, " n"], batch: int, chunk: int, generator: Generator) -> Float[Tensor, "B n"]:
    """The rule `fopp` of `uwm.core.patterns`: tokens of a frame share its level."""
    order, inverse = torch.unique(frames, return_inverse=True)
    return ((draw(batch, len(order), generator) + 1) / ENTRIES).to(torch.get_default_dtype())[:, inverse]


def _log_binomial(n: Tensor, k: int) -> Tensor:
    return torch.lgamma(n + 1) - torch.lgamma(torch.tensor(k + 1.0, dtype=n.dtype)) - torch.lgamma(n - k + 1)


def _between(log_ways: Tensor, low: Int[Tensor, " B"], high: Int[Tensor, " B"], generator: Generator) -> Int[Tensor, " B"]:
    """An entry per sample with these chances, from `low` to `high`."""
    ends = (log_ways - log_ways.max()).exp().cumsum(dim=0)
    bottom = torch.where(low > 0, ends[(low - 1).clamp(min=0)], 0.0)
    u = torch.rand(len(low), generator=generator, dtype=ends.dtype)
    entry = torch.searchsorted(ends, bottom + u * (ends[high] - bottom), right=True)
    return entry.maximum(low).minimum(high)
