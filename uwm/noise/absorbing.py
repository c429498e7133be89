"""Absorbing discrete diffusion: a word is as it was or masked, and its level is the chance of being masked.

```
level   0       0.25        0.5         0.75        1
words   a b c d a b _ d     _ b _ d     _ _ _ d     _ _ _ _
```

The network says what every masked word may be, given those that are not (no answer "mask"; no level as an input, because what
is behind a mask does not depend on how likely masks are; Ou et al. 2025, RADD, theorem 1). Four losses have the same
expectation, an upper bound on -log p(words), exact for a network that knows all conditionals (sec. 3.3):

| kind | draw | weight of the nats, summed over masked words | source |
|---|---|---|---|
| "t" | t in (0, 1], level (1 - e) t | 1 / t | t-DCE, eq. 3.5 with the log-linear schedule |
| "level" | a level in (0, 1] | 1 / level | lambda-DCE, eq. 3.7 |
| "order" | k in 1..L, exactly k masks | L / k | any-order autoregression, eq. 3.10 |
| "score" | as "t" | score entropy of all words | SEDD (Lou et al. 2024, eq. 5) |

Shapes: words (B, L) are numbers from 0 to V - 1; logits are (B, L, V).
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from uwm.core.shapes import Bool, Float, Int

KINDS = ("t", "level", "order", "score")
REST = 1e-3  # the paper's e: what is left unmasked at t = 1


@dataclass(frozen=True)
class Masks:
    """A draw: which words are masked (B, L), the weight of each sample's nats (B,), and its level (B,)."""

    masked: Bool[Tensor, "B L"]
    weight: Float[Tensor, " B"]
    level: Float[Tensor, " B"]


def stratified(count: int, generator: Generator) -> Float[Tensor, " B"]:
    """`count` numbers in (0, 1], one in every stratum, in a random order: a batch has a bit of everything."""
    places = torch.randperm(count, generator=generator)
    return (places + 1 - torch.rand(count, generator=generator, dtype=torch.float64)) / count


def draw(kind: str, count: int, length: int, generator: Generator) -> Masks:
    """Masks for `count` samples of `length` words as the loss of that kind wants them."""
    if kind not in KINDS:
        raise ValueError(f"the loss must be one of {KINDS}, got {kind!r}")
    if min(count, length) < 1:
        raise ValueError(f"there must be a sample and a word, got {count} samples of {length} words")
    u = stratified(count, generator)
    if kind == "order":
        masks = (u * length).ceil().clamp(1, length)
        rank = torch.rand(count, length, generator=generator).argsort(dim=1).argsort(dim=1)
        return Masks(rank < masks[:, None], length / masks, masks / length)
    level = u if kind == "level" else (1 - REST) * u
    return Masks(masked(level[:, None].expand(-1, length), generator), 1 / u, level)


def masked(level: Float[Tensor, "B L"], generator: Generator) -> Bool[Tensor, "B L"]:
    """Which words are masked: none at level 0, all at level 1."""
    return torch.rand(level.shape, generator=generator, dtype=torch.float64) < level


def corrupt(words: Float[Tensor, "B L V"], masks: Bool[Tensor, "B L"]) -> Float[Tensor, "B L V"]:
    """One-hot words with zeros where they are masked."""
    return words.masked_fill(masks[..., None], 0.0)


def nats(logits: Float[Tensor, "B L V"], words: Int[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """-log q(word) of every word. ValueError for words outside the vocabulary."""
    check(words, logits.shape[-1])
    return -logits.log_softmax(dim=-1).gather(-1, words.long()[..., None])[..., 0]


def bound(kind: str, logits: Float[Tensor, "B L V"], words: Int[Tensor, "B L"], masks: Masks) -> Float[Tensor, " B"]:
    """An unbiased estimate of each sample's bound on -log p(words), in nats, from one draw of masks."""
    if kind == "score":
        return _score_entropy(logits, words, masks)
    return masks.weight * torch.where(masks.masked, nats(logits, words), 0.0).sum(dim=1)


def _score_entropy(logits: Tensor, words: Tensor, masks: Masks) -> Tensor:
    """sigma(t) sum over masked words and all v of s(v) - r(v) log s(v) + K(r(v)): s the model's score, r the true one."""
    kept = 1 - masks.level  # exp(-sigma_bar)
    factor = (kept / masks.level)[:, None, None]
    score = factor * logits.softmax(dim=-1).double()
    true = factor * torch.nn.functional.one_hot(words.long(), logits.shape[-1])
    constant = torch.where(true > 0, true * (true.clamp(min=1e-300).log() - 1), 0.0)  # K(0) = 0
    terms = score - true * (factor.log() + logits.log_softmax(dim=-1)) + constant
    rate = (1 - REST) / kept
    return rate * torch.where(masks.masked, terms.sum(dim=-1), 0.0).sum(dim=1)


def check(words: Tensor, size: int) -> None:
    """ValueError when a word is not a number from 0 to `size` - 1: a mask is no word."""
    if words.numel() and not 0 <= int(words.min()) <= int(words.max()) < size:
        raise ValueError(f"words are numbers from 0 to {size - 1} (a mask is none), got {int(words.min())} to {int(words.max())}")


def expected_calls(rows: int, length: int) -> float:
    """Mean network calls of a cached run: the first, and those of the other rows - 1 transitions before which a word was revealed.

    1 + (n - 1) (1 - (1 - 1/n)^L). The paper counts n (1 - (1 - 1/n)^L), without the first call that is always needed.
    """
    return 1 + (rows - 1) * (1 - (1 - 1 / rows) ** length)
