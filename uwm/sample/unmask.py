"""The step rules of words: masked ones are revealed as their level falls, and stay.

```
row   level   words                                                          from level t to s a masked word is
0     1       _  _  _  _                                                     revealed with chance (t - s) / t,
1     2/3     _  b  _  _      by drawing from what the network says of it    so that at s a share s is masked,
2     1/3     _  b  _  d                                                     and at 0 none
3     0       a  b  c  d
```

A revealed word is a token at level 0 and a masked one a token at level 1, whatever the plan's level: to the other streams of a
run a word is like any other condition, and the same plan moves frames and words (RADD, Ou et al. 2025, sec. 3.2).
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from uwm.core.shapes import Float, Int
from uwm.sample.denoise import Denoiser
from uwm.sample.steps import Moved, StepRule


def unmask(top_k: int = 0, top_p: float = 1.0) -> StepRule:
    """Reveals words independently; of each only its `top_k` most likely (0: all), or the fewest that have `top_p` of the mass."""
    _check(top_k, top_p)

    def move(denoise, path, x, level_from, level_to, carry, randomness):
        chance, word, randomness = _numbers(x, randomness)
        share = (level_from - level_to) / level_from.clamp(min=1e-12)
        revealed = _masked(x) & (chance < share)
        return Moved(_revealed(x, denoise(x, level_from), revealed, word, top_k, top_p), None, randomness)

    return StepRule("unmask", 1, move)


def unmask_one(top_k: int = 0, top_p: float = 1.0) -> StepRule:
    """Reveals exactly one word a row and sample, at random among those whose level falls: any-order autoregression.

    For plans with as many rows as there are words; on the last row whatever is left is revealed.
    """
    _check(top_k, top_p)

    def move(denoise, path, x, level_from, level_to, carry, randomness):
        chance, word, randomness = _numbers(x, randomness)
        free = _masked(x) & (level_to < level_from)
        first = torch.where(free, chance, 2.0)
        revealed = free & ((first == first.amin(dim=1, keepdim=True)) | (level_to == 0))
        return Moved(_revealed(x, denoise(x, level_from), revealed, word, top_k, top_p), None, randomness)

    return StepRule("unmask one", 1, move)


def draw(chances: Float[Tensor, "... V"], u: Float[Tensor, "..."], top_k: int = 0, top_p: float = 1.0) -> Int[Tensor, "..."]:
    """Words drawn by inverting the distribution function at u in [0, 1), in float64: in float32 rare words would come out wrong."""
    chances = chances.double()
    if top_k or top_p < 1:
        order = chances.argsort(dim=-1, descending=True)
        falling = chances.gather(-1, order)
        kept = falling.cumsum(-1) - falling < top_p * falling.sum(-1, keepdim=True)
        if top_k:
            kept[..., top_k:] = False
        chances = torch.zeros_like(chances).scatter(-1, order, torch.where(kept, falling, 0.0))
    ends = chances.cumsum(dim=-1)
    words = (ends <= (u.double() * ends[..., -1])[..., None]).sum(dim=-1)
    # Rounding may leave u beyond the last word that has any chance.
    last = chances.shape[-1] - 1 - (chances > 0).flip(-1).int().argmax(dim=-1)
    return words.minimum(last)


def _check(top_k: int, top_p: float) -> None:
    if top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(f"top_k must be >= 0 and top_p in (0, 1], got {top_k} and {top_p}")


def _masked(x: Tensor) -> Tensor:
    return (x == 0).all(dim=-1)


def _numbers(x: Tensor, randomness):
    """Two uniform numbers per token, (B, N) each."""
    if randomness is None:
        raise ValueError("words are drawn: pass randomness")
    numbers, randomness = randomness.uniform(2, x.shape[1])
    return numbers[:, 0], numbers[:, 1], randomness


def _revealed(x: Tensor, chances: Tensor, revealed: Tensor, u: Tensor, top_k: int, top_p: float) -> Tensor:
    words = torch.nn.functional.one_hot(draw(chances, u, top_k, top_p), x.shape[-1]).to(x)
    return torch.where(revealed[..., None], words, x)


@dataclass
class Cached:
    """`denoise` that asks the network about a sample only when something of it changed since the last time.

    Exact: words do not feel the level, so what was said of an unchanged sample is still true; a continuous token that moves is a
    change, and so is its level. `calls` (B,) counts network calls per sample.
    """

    denoise: Denoiser
    calls: Int[Tensor, " B"] | None = None
    last: tuple[Tensor, Tensor, Tensor] | None = field(default=None, repr=False)

    @property
    def layout(self):
        """The streams of the row."""
        return self.denoise.layout

    def __call__(self, x: Float[Tensor, "B N S"], level: Float[Tensor, "B N"]) -> Float[Tensor, "B N S"]:
        words = self.layout.mask(*self.layout.of_kind("word"))
        felt = torch.where(words, 0.0, level)
        if self.last is None:
            self.calls = torch.zeros(len(x), dtype=torch.int64)
            changed, answer = torch.arange(len(x)), torch.empty_like(x)
        else:
            same = (x == self.last[0]).flatten(1).all(dim=1) & (felt == self.last[1]).all(dim=1)
            changed, answer = (~same).nonzero().flatten(), self.last[2].clone()
        if len(changed):
            answer[changed] = self._part(changed)(x[changed], level[changed])
            self.calls[changed] += 1
        self.last = x.clone(), felt, answer
        return answer.clone()

    def _part(self, chosen: Tensor) -> Denoiser:
        context = self.denoise.context
        return replace(self.denoise, role=self.denoise.role[chosen], context=None if context is None else context.at(chosen))
