"""Absorbing diffusion on distributions that can be enumerated: four losses, one bound, exact for true conditionals."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uwm.noise import absorbing
from words import LENGTH, SEQUENCES, SIZE, entropy, probabilities, true_logits


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@given(count=st.integers(1, 40), seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_levels_of_a_batch_lie_one_in_every_stratum_and_never_at_zero(count, seed):
    levels = absorbing.stratified(count, seeded(seed)).sort().values
    assert bool((levels > torch.arange(count) / count).all()) and bool((levels <= (torch.arange(count) + 1) / count).all())


def test_level_zero_masks_nothing_and_level_one_everything():
    level = torch.tensor([[0.0, 1.0, 0.5]]).expand(4000, -1)
    masked = absorbing.masked(level, seeded())
    assert not masked[:, 0].any() and masked[:, 1].all() and float(masked[:, 2].float().mean()) == pytest.approx(0.5, abs=0.03)
    words = torch.nn.functional.one_hot(torch.tensor([[0, 1, 2]]), 3).float()
    assert torch.equal(absorbing.corrupt(words, torch.tensor([[False, True, False]])), words * torch.tensor([1, 0, 1.0])[None, :, None])


def test_any_order_masks_every_number_of_words_exactly_and_every_place_alike():
    masks = absorbing.draw("order", 6000, 4, seeded())
    count = masks.masked.sum(dim=1)
    assert torch.equal(count.bincount(minlength=5), torch.tensor([0, 1500, 1500, 1500, 1500]))
    assert torch.allclose(masks.weight, 4 / count.double())
    assert masks.masked.float().mean(dim=0).sub(0.625).abs().max() < 0.02


def expectation(kind, logits_of):
    """The exact mean of a loss over words and over masks given its draws of the level: a sum over all masks."""
    total = 0.0
    for words, chance in zip(SEQUENCES, probabilities().tolist(), strict=True):
        tokens = torch.tensor([words])
        for masked in itertools.product((False, True), repeat=LENGTH):
            k, masks = sum(masked), torch.tensor([masked])
            nats = float(torch.where(masks, absorbing.nats(logits_of(tokens, masks), tokens), 0.0).sum())
            if k == 0:
                continue
            if kind == "order":  # k with chance 1/L, then one of the choices of k; weight L/k
                total += chance * nats / math.comb(LENGTH, k) / LENGTH * LENGTH / k
            else:  # the integral of level^(k-1) (1 - level)^(L - k) over (0, 1]
                total += chance * nats * math.factorial(k - 1) * math.factorial(LENGTH - k) / math.factorial(LENGTH)
    return total


def test_with_true_conditionals_the_bound_is_the_entropy_in_expectation():
    for kind in ("level", "order"):
        assert expectation(kind, true_logits) == pytest.approx(entropy(), rel=1e-9)


@pytest.mark.parametrize("kind", absorbing.KINDS)
def test_drawn_losses_agree_with_the_exact_expectation(kind):
    wrong = lambda words, masks: true_logits(words, masks) * 0.5 + 0.3  # noqa: E731 - a network that is not perfect
    exact = expectation("level", wrong)
    assert exact > entropy() + 0.01
    generator, draws = seeded(1), 40_000
    index = torch.multinomial(probabilities(), draws, replacement=True, generator=generator)
    words = torch.tensor(SEQUENCES)[index]
    masks = absorbing.draw(kind, draws, LENGTH, generator)
    found = absorbing.bound(kind, wrong(words, masks.masked), words, masks)
    error = float(found.std()) / draws**0.5
    # t ends at a chance of 1 - 1e-3 of being masked, which is worth as much of the bound
    assert abs(float(found.mean()) - exact) < 4 * error + (2e-3 * exact if kind in ("t", "score") else 0)


def test_score_entropy_is_the_loss_of_its_level_sample_by_sample():
    words = torch.tensor(SEQUENCES)
    masks = absorbing.draw("t", len(words), LENGTH, seeded(3))
    logits = torch.randn(len(words), LENGTH, SIZE, generator=seeded(4), dtype=torch.float64)
    assert torch.allclose(absorbing.bound("score", logits, words, masks), absorbing.bound("t", logits, words, masks), atol=1e-9)


def test_weights_are_one_over_the_level_and_the_drawn_numbers():
    level, t = absorbing.draw("level", 8, 3, seeded()), absorbing.draw("t", 8, 3, seeded())
    assert torch.allclose(level.weight, 1 / level.level) and torch.allclose(t.weight, (1 - absorbing.REST) / t.level)


def test_what_is_no_loss_and_no_word_is_refused():
    with pytest.raises(ValueError, match="the loss must be one of"):
        absorbing.draw("elbo", 2, 3, seeded())
    with pytest.raises(ValueError, match="there must be a sample and a word"):
        absorbing.draw("level", 0, 3, seeded())
    with pytest.raises(ValueError, match=r"from 0 to 2 \(a mask is none\), got 0 to 3"):
        absorbing.nats(torch.zeros(1, 2, 3), torch.tensor([[0, 3]]))
