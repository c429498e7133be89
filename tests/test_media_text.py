"""Recipes for texts: filling in keeps what is given, likelihoods are right for a network that is known."""

import math

import pytest
import torch

import tiny
from uwm.core.streams import Stream
from uwm.media import text
from uwm.nn.stream_model import StreamModel

LENGTH, SIZE = 6, 4
WORDS = torch.tensor([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 2]])
FREE = torch.tensor([False, True, True, False, True, True])


@pytest.fixture(scope="module")
def model():
    streams = (Stream("text", "word", tuple(range(LENGTH)), SIZE), Stream("action", "action", (0, 1), 2))
    return tiny.stream_model(*streams, spread=0.2)


def test_given_words_stay_free_ones_are_words_and_a_condition_counts(model):
    filled, calls = text.fill_in(model, "text", WORDS, FREE[None], 5, (1, 2))
    assert torch.equal(filled[:, ~FREE], WORDS[:, ~FREE]) and 0 <= int(filled.min()) <= int(filled.max()) < SIZE
    assert calls.tolist() <= [5, 5] and int(calls.min()) >= 1
    other = WORDS.clone()
    other[:, FREE] = 0  # what stands under free places does not matter
    assert torch.equal(text.fill_in(model, "text", other, FREE[None], 5, (1, 2))[0], filled)
    conditioned = [text.fill_in(model, "text", WORDS.repeat(20, 1), FREE[None], 5, range(40), {"action": torch.full((1, 2, 2), value)})[0]
                   for value in (-3.0, 3.0)]  # fmt: skip
    assert not torch.equal(*conditioned)


def test_cached_and_uncached_texts_are_the_same(model):
    plain, every = text.fill_in(model, "text", WORDS, FREE[None], 9, (3, 4), cache=False)
    cached, calls = text.fill_in(model, "text", WORDS, FREE[None], 9, (3, 4))
    assert torch.equal(plain, cached) and every.tolist() == [9, 9] and int(calls.max()) <= 5


def test_with_nothing_learned_every_word_costs_the_same(model):
    blank = StreamModel(model.config).eval()  # its heads are zero: all words are equally likely
    order = [1, 2, 4, 5]
    assert text.order_nats(blank, "text", WORDS, order).tolist() == pytest.approx([4 * math.log(SIZE)] * 2)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([text.bound(blank, "text", WORDS.repeat(50, 1), FREE, generator) for _ in range(40)])
    assert float(draws.mean()) == pytest.approx(4 * math.log(SIZE), rel=0.03)
    exact = torch.stack([text.bound(blank, "text", WORDS, FREE, generator, "order") for _ in range(3)])
    assert torch.allclose(exact, torch.full_like(exact, 4 * math.log(SIZE)))  # k masks, L / k times k words: the same for every draw


def test_an_order_s_likelihoods_add_up_to_one(model):
    everything = torch.cartesian_prod(torch.arange(SIZE), torch.arange(SIZE))
    words = WORDS[:1].repeat(len(everything), 1)
    words[:, [1, 4]] = everything
    for order in ([1, 4], [4, 1]):
        assert float(text.order_nats(model, "text", words, order).neg().exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_what_cannot_be_filled_in_is_refused(model):
    with pytest.raises(ValueError, match="a row and a free word"):
        text.fill_in(model, "text", WORDS, FREE[None], 0, (1, 2))
    with pytest.raises(ValueError, match="a row and a free word"):
        text.fill_in(model, "text", WORDS, torch.zeros(1, LENGTH, dtype=torch.bool), 3, (1, 2))
    with pytest.raises(ValueError, match="has 6 words, got 5"):
        text.fill_in(model, "text", WORDS[:, :5], FREE[None, :5], 3, (1, 2))
    with pytest.raises(ValueError, match="from 0 to 3"):
        text.fill_in(model, "text", WORDS + 1, FREE[None], 3, (1, 2))
