"""The 1-D convolutional U-Net over action sequences of Diffusion Policy and of Streaming Diffusion Policy.

```
actions (T, A) -- [res res down] [res res down] [res res] -- [res res] -- [up res res] [up res res] -- (T, A)
                     |                |                                     |               |
                     +----------------+------- skip connections ------------+---------------+
every res block: scale and shift (FiLM) from the observation and from the levels of the actions
```

| `film` | levels enter as | source |
|---|---|---|
| "sample" | one level per sample | Diffusion Policy (Chi et al. 2023, sec. III-A) |
| "flat" | one level per action, all flattened into one vector: the horizon is fixed for ever | Streaming Diffusion Policy's code |
| "token" | one level per action, which modulates that action alone: any horizon, truly per token | ours |
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uwm.core.shapes import Float

FILMS = ("sample", "flat", "token")
KERNEL, GROUPS = 5, 8


@dataclass(frozen=True)
class UNetSizes:
    """Channels per depth, numbers of a level's embedding and of a feature (of a camera, of proprioception), kind of FiLM."""

    widths: tuple[int, ...] = (64, 128, 256)
    level_size: int = 64
    feature: int = 64
    film: str = "token"

    def __post_init__(self):
        if self.film not in FILMS:
            raise ValueError(f"film must be one of {FILMS}, got {self.film!r}")
        if not self.widths or any(width % GROUPS for width in self.widths):
            raise ValueError(f"widths must be multiples of {GROUPS} and not empty, got {self.widths}")
        if self.level_size % 2 or self.level_size < 4 or self.feature < 1:
            raise ValueError(f"level_size must be even and at least 4, feature must be positive, got {self}")

    @property
    def multiple(self) -> int:
        """Actions are padded to a multiple of this, because every depth but the last halves their number."""
        return 2 ** (len(self.widths) - 1)


class Waves(nn.Module):
    """Sines and cosines of a level, as of an index of 0 to 999 (Vaswani et al. 2017, sec. 3.5)."""

    def __init__(self, size: int, entries: float):
        super().__init__()
        exponent = torch.arange(size // 2) / (size // 2 - 1)
        self.register_buffer("waves", entries * torch.exp(-math.log(10_000) * exponent), persistent=False)

    def forward(self, level: Float[Tensor, "B N"]) -> Float[Tensor, "B N C"]:
        angle = level[..., None] * self.waves
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class ConvBlock(nn.Sequential):
    """Convolution, group norm, Mish."""

    def __init__(self, inside: int, outside: int):
        super().__init__(nn.Conv1d(inside, outside, KERNEL, padding=KERNEL // 2), nn.GroupNorm(GROUPS, outside), nn.Mish())


class ResBlock(nn.Module):
    """Two convolutions with a scale and a shift between, and a way around."""

    def __init__(self, inside: int, outside: int, condition: int):
        super().__init__()
        self.first, self.second = ConvBlock(inside, outside), ConvBlock(outside, outside)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(condition, 2 * outside))
        self.around = nn.Conv1d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: Float[Tensor, "B C T"], condition: Float[Tensor, "B Tc G"]) -> Float[Tensor, "B D T"]:
        scale, shift = self.film(condition).transpose(1, 2).chunk(2, dim=1)
        return self.second(scale * self.first(x) + shift) + self.around(x)


class UNet(nn.Module):
    """forward(actions, level, condition) -> one prediction per action.

    `condition` numbers tell of the observation; `length` actions are a whole sequence, which only the flat FiLM must know.
    """

    def __init__(self, sizes: UNetSizes, action_size: int, condition: int, length: int):
        super().__init__()
        if min(action_size, condition, length) < 1:
            raise ValueError(f"action_size, condition and length must be positive, got {action_size}, {condition}, {length}")
        self.sizes, self.length = sizes, length
        size, widths = sizes.level_size, sizes.widths
        read = size * length if sizes.film == "flat" else size
        self.level = nn.Sequential(nn.Linear(read, 4 * size), nn.Mish(), nn.Linear(4 * size, size))
        self.waves = Waves(size, entries=100.0)
        condition, first = size + condition, widths[0]
        pairs = list(zip((action_size, *widths[:-1]), widths, strict=True))
        self.down = nn.ModuleList(_pair(inside, outside, condition) for inside, outside in pairs)
        self.shrink = nn.ModuleList(nn.Conv1d(width, width, 3, stride=2, padding=1) for width in widths[:-1])
        self.middle = _pair(widths[-1], widths[-1], condition)
        self.up = nn.ModuleList(_pair(2 * outside, inside, condition) for inside, outside in reversed(pairs[1:]))
        self.stretch = nn.ModuleList(nn.ConvTranspose1d(width, width, 4, stride=2, padding=1) for width in reversed(widths[:-1]))
        self.out = nn.Sequential(ConvBlock(first, first), nn.Conv1d(first, action_size, 1))

    def forward(
        self, x: Float[Tensor, "B T A"], level: Float[Tensor, "B T"], condition: Float[Tensor, "B G"]
    ) -> Float[Tensor, "B T A"]:
        """One prediction per action. ValueError when the levels do not go with the kind of FiLM."""
        count, rest = x.shape[1], -x.shape[1] % self.sizes.multiple
        embedded = self._embed(level, rest)
        condition = torch.cat([embedded, condition[:, None].expand(-1, embedded.shape[1], -1)], dim=-1)
        hidden = F.pad(x.transpose(1, 2), (0, rest))
        kept, conditions = [], [condition]
        for index, pair in enumerate(self.down):
            hidden = _through(pair, hidden, conditions[-1])
            kept.append(hidden)
            if index < len(self.shrink):
                hidden = self.shrink[index](hidden)
                conditions.append(_halved(conditions[-1]))
        hidden = _through(self.middle, hidden, conditions[-1])
        for pair, stretch, skip, depth in zip(self.up, self.stretch, reversed(kept), reversed(conditions), strict=False):
            hidden = stretch(_through(pair, torch.cat([hidden, skip], dim=1), depth))
        return self.out(hidden)[..., :count].transpose(1, 2)

    def _embed(self, level: Float[Tensor, "B T"], rest: int) -> Float[Tensor, "B Tc C"]:
        """Embedded levels: one per action, or one for all."""
        match self.sizes.film:
            case "sample":
                if not bool((level == level[:, :1]).all()):
                    raise ValueError("this U-Net knows one level per sample: all actions of a sample must have the same")
                return self.level(self.waves(level[:, :1]))
            case "flat":
                if level.shape[1] != self.length:
                    raise ValueError(f"this U-Net was built for {self.length} actions, got {level.shape[1]}")
                return self.level(self.waves(level).flatten(1))[:, None]
        return self.level(self.waves(F.pad(level, (0, rest), value=1.0)))


def _pair(inside: int, outside: int, condition: int) -> nn.ModuleList:
    return nn.ModuleList([ResBlock(inside, outside, condition), ResBlock(outside, outside, condition)])


def _through(pair: nn.ModuleList, hidden: Tensor, condition: Tensor) -> Tensor:
    for block in pair:
        hidden = block(hidden, condition)
    return hidden


def _halved(condition: Float[Tensor, "B Tc G"]) -> Tensor:
    """What modulates every second action: the mean of two; one vector for all stays as it is."""
    if condition.shape[1] == 1:
        return condition
    return F.avg_pool1d(condition.transpose(1, 2), 2).transpose(1, 2)
