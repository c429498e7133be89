"""A distribution of three words that can be enumerated, and a network that knows all its conditionals."""

import itertools
from functools import cache

import torch

SIZE, LENGTH = 3, 3
SEQUENCES = list(itertools.product(range(SIZE), repeat=LENGTH))


@cache
def probabilities():
    """Chance of every sequence, (27,): correlated, with a few that never occur."""
    logits = 1.5 * torch.randn(len(SEQUENCES), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chances = logits.softmax(dim=0)
    chances[[3, 17]] = 0.0
    return chances / chances.sum()


def entropy():
    """Of the sequences, in nats."""
    chances = probabilities()[probabilities() > 0]
    return float(-(chances * chances.log()).sum())


def true_logits(words, masked):
    """log p(word | unmasked words) of every place, (B, 3, 3): what a perfect network says; `words` (B, 3) matter where not masked."""
    all_words = torch.tensor(SEQUENCES)
    fits = ((all_words[None] == words[:, None]) | masked[:, None]).all(dim=-1)  # (B, 27)
    chances = fits.double() * probabilities()
    one_hot = torch.nn.functional.one_hot(all_words, SIZE).double()  # (27, 3, 3)
    found = torch.einsum("bs,slv->blv", chances, one_hot)
    return (found / found.sum(dim=-1, keepdim=True)).clamp(min=1e-30).log()
