"""Splits and shuffles depend on the seed alone, miss nothing and repeat nothing."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_episodes import make_episode, make_store
from uwm_data import EpisodeStore, StoreError, Windows, shuffled, split_episodes


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 80), st.integers(0, 2**31), st.integers(1, 4))
def test_every_number_comes_exactly_once_per_epoch(count, batch_size, seed, epochs):
    batches = list(islice(shuffled(count, batch_size, seed), -(-epochs * count // batch_size)))
    assert all(batch.shape == (batch_size,) for batch in batches)
    stream = np.concatenate(batches)[: epochs * count].reshape(epochs, count)
    for epoch in stream:
        assert sorted(epoch) == list(range(count))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 80), st.integers(0, 2**31), st.integers(0, 30))
def test_a_resumed_shuffle_equals_one_straight_through(count, batch_size, seed, step):
    straight = list(islice(shuffled(count, batch_size, seed), step, step + 5))
    resumed = list(islice(shuffled(count, batch_size, seed, start_step=step), 5))
    np.testing.assert_array_equal(straight, resumed)


def test_epochs_and_seeds_give_different_orders():
    first, second = islice(shuffled(100, 100, 0), 2)
    assert first.tolist() != second.tolist()
    assert first.tolist() != next(shuffled(100, 100, 1)).tolist()


def test_an_epoch_shows_every_tick_of_every_episode_once(tmp_path):
    make_store(tmp_path / "s.zarr", (7, 12, 1, 5))
    windows = Windows(EpisodeStore.open(tmp_path / "s.zarr"), {"action": range(-2, 6)})
    batches = [windows.batch(indices) for indices in islice(shuffled(len(windows), 5, 3), 5)]
    seen = [pair for batch in batches for pair in zip(batch.episode.tolist(), batch.tick.tolist(), strict=True)]
    assert sorted(seen) == [(episode, tick) for episode, count in enumerate((7, 12, 1, 5)) for tick in range(count)]


@pytest.mark.parametrize("arguments", [(0, 1, 0), (1, 0, 0), (1, 1, 0, -1)])
def test_impossible_shuffles_are_refused_at_the_call(arguments):
    with pytest.raises(StoreError, match="need count >= 1"):
        shuffled(*arguments)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("order") / "s.zarr"
    make_store(path, [2] * 20)
    return EpisodeStore.open(path)


@given(st.floats(0.01, 0.99), st.integers(0, 2**31))
def test_a_split_parts_the_episodes_in_two(store, fraction, seed):
    train, validation = split_episodes(store, fraction, seed)
    assert sorted(train + validation) == list(range(20))
    assert train and validation and abs(len(validation) - 20 * fraction) <= 1
    assert (train, validation) == split_episodes(store, fraction, seed)


def test_seeds_give_different_splits_and_nothing_may_be_set_aside(store):
    assert len({tuple(split_episodes(store, 0.2, seed)[1]) for seed in range(10)}) > 5
    assert split_episodes(store, 0, 0) == (list(range(20)), [])


def test_a_growing_store_moves_hardly_any_episode(tmp_path):
    make_store(tmp_path / "s.zarr", [1] * 40)
    with EpisodeStore.open(tmp_path / "s.zarr", write=True) as store:
        before = set(split_episodes(store, 0.25, 0)[1])
        for seed in range(4):
            store.append(make_episode(1, seed))
        after = set(split_episodes(store, 0.25, 0)[1])
    assert len(after) == 11 and len({index for index in after if index < 40} ^ before) <= 3


def test_one_episode_cannot_be_split(tmp_path):
    make_store(tmp_path / "s.zarr", [3])
    with pytest.raises(StoreError, match="too few"):
        split_episodes(EpisodeStore.open(tmp_path / "s.zarr"), 0.1, 0)
