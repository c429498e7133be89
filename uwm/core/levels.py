"""The one convention for noise, and the only place where other people's are translated.

Level 0 is clean and level 1 is pure noise, both exactly. A row of levels has one number per token.

| source | clean | noise | adapter |
|---|---|---|---|
| ours | 0 | 1 | |
| DDPM tables, UWM, SDP (N entries) | index -1 (before the table) | N - 1 | `from_index`, `to_index` |
| flow matching, RTC, SiT | 1 | 0 | `from_flow_time`, `to_flow_time` |
"""

import torch
from torch import Tensor

from uwm.core.shapes import Float, Int


def per_token(level: Tensor | float, batch: int, tokens: int) -> Float[Tensor, "B N"]:
    """Broadcasts a level given per run (), per sample (B,), per sample and token (B, N) or per token (1, N).

    Raises ValueError on any other shape (a bare (N,) is refused: with B = N it could mean either) and on levels outside
    [0, 1] or NaN.
    """
    level = torch.as_tensor(level)
    level = level if level.is_floating_point() else level.float()
    if level.ndim == 0:
        level = level.expand(batch, tokens)
    elif level.shape == (batch,):
        level = level[:, None].expand(batch, tokens)
    elif level.shape in {(batch, tokens), (1, tokens), (batch, 1)}:
        level = level.expand(batch, tokens)
    else:
        raise ValueError(
            f"levels must have shape (), ({batch},), ({batch}, 1), (1, {tokens}) or ({batch}, {tokens}) "
            f"for a batch of {batch} rows of {tokens} tokens, got {tuple(level.shape)}"
        )
    return checked(level)


def checked(level: Tensor) -> Tensor:
    """Returns `level`, or raises ValueError when a value is NaN or outside [0, 1]."""
    if level.numel() and not bool(((level >= 0) & (level <= 1)).all()):
        raise ValueError(f"levels lie in [0, 1] (0 clean, 1 noise), got a range of {level.min()} to {level.max()}")
    return level


def from_index(index: Int[Tensor, "..."], count: int) -> Float[Tensor, "..."]:
    """Level of an entry of a noise table with `count` entries, where -1 means clean: (index + 1) / count."""
    return (index + 1).to(torch.get_default_dtype()) / count


def to_index(level: Float[Tensor, "..."], count: int) -> Int[Tensor, "..."]:
    """Nearest entry of a noise table with `count` entries; clean becomes -1."""
    return torch.round(level * count).long() - 1


def from_flow_time(time: Tensor) -> Tensor:
    """Level of a flow-matching time, where 0 is noise and 1 is data."""
    return 1 - time


def to_flow_time(level: Tensor) -> Tensor:
    """The inverse of `from_flow_time`."""
    return 1 - level
