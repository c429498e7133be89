"""Splits and shuffles depend on the seed alone, miss nothing and repeat nothing."""

import subprocess
import sys
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_episodes import make_episode, make_store
from uwm_data import EpisodeStore, StoreError, Windows, share_of_episodes, shuffled, split_episodes
from uwm_data.order import _epoch_order


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


def test_the_order_of_an_epoch_is_that_of_every_earlier_version():
    """Checkpoints of earlier versions resume in the middle of it."""
    for epoch, batch in enumerate(islice(shuffled(7, 7, 3), 3)):
        np.testing.assert_array_equal(batch, np.random.default_rng([3, epoch]).permutation(7))


def of_all_ranks(count, batch_size, seed, world_size, steps, start_step=0):
    """(steps, world_size * batch_size) numbers: what all ranks together see in each step, rank after rank."""
    orders = [shuffled(count, batch_size, seed, start_step, rank, world_size) for rank in range(world_size)]
    return np.array([np.concatenate([next(order) for order in orders]) for _ in range(steps)])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 3))
def test_over_all_ranks_every_number_comes_exactly_once_per_epoch(count, batch_size, seed, world_size, epochs):
    steps = -(-epochs * count // (batch_size * world_size))
    stream = of_all_ranks(count, batch_size, seed, world_size, steps).reshape(-1)[: epochs * count]
    for epoch in stream.reshape(epochs, count):
        assert sorted(epoch) == list(range(count))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 6), st.integers(0, 2**31), st.integers(0, 9), st.sampled_from([(1, 6), (2, 3), (4, 6)]))
def test_a_run_goes_on_exactly_with_another_number_of_ranks(count, batch_size, seed, step, worlds):
    before, after = worlds
    together = batch_size * before * after
    first = of_all_ranks(count, together // before, seed, before, 3, step)
    second = of_all_ranks(count, together // after, seed, after, 3, step)
    np.testing.assert_array_equal(first, second)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**31), st.integers(0, 5), st.data())
def test_an_order_that_is_computed_instead_of_kept_is_a_permutation_too(count, seed, epoch, data):
    order = _epoch_order(count, seed, epoch, in_memory=0)
    whole = order(0, count)
    assert whole.dtype == np.int64 and sorted(whole.tolist()) == list(range(count))
    start = data.draw(st.integers(0, count))
    np.testing.assert_array_equal(order(start, count), whole[start:])


def test_a_computed_order_looks_shuffled_and_needs_no_memory():
    order = _epoch_order(20_000, 3, 0, in_memory=0)(0, 20_000)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05 and abs(np.corrcoef(np.arange(20_000), order)[0, 1]) < 0.05
    assert 0.3 < np.abs(np.diff(order)).mean() / 20_000 < 0.37  # a third, if neighbours are independent
    assert order.tolist() != _epoch_order(20_000, 3, 1, in_memory=0)(0, 20_000).tolist()
    huge = next(shuffled(10**15, 64, 0, start_step=10**12))
    assert len(set(huge.tolist())) == 64 and 0 <= huge.min() and huge.max() < 10**15


RANKS = """
import sys
from itertools import islice, pairwise
import torch
import torch.distributed as dist
from uwm_data import EpisodeStore, Windows, shuffled

def main(rank, store, meeting):
    dist.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=2)
    windows = Windows(EpisodeStore.open(store), {"action": [0]})
    seen = torch.zeros(len(windows), dtype=torch.int64)
    order = shuffled(len(windows), 5, 7, rank=dist.get_rank(), world_size=dist.get_world_size())
    steps = 3 * len(windows) // 10  # three epochs of 50 windows
    for numbers in islice(order, steps):
        batch = windows.batch(numbers)
        starts = torch.from_numpy(windows.store.extents("action", windows.episodes)[0])
        seen += torch.bincount(starts[torch.from_numpy(batch.episode)] + torch.from_numpy(batch.tick), minlength=len(windows))
    mine = seen.clone()
    dist.all_reduce(seen)
    if rank == 0:
        print("SEEN", sorted(set(seen.tolist())), int(mine.sum()), int(seen.sum()))
    dist.destroy_process_group()

if __name__ == "__main__":
    torch.multiprocessing.spawn(main, (sys.argv[1], sys.argv[2]), nprocs=2)
"""


def test_two_processes_of_torch_distributed_see_every_window_equally_often(tmp_path):
    make_store(tmp_path / "s.zarr")
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, str(tmp_path / "ranks.py"), str(tmp_path / "s.zarr"), str(tmp_path / "meeting")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "SEEN [3] 75 150" in done.stdout


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


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (0, 0)])
def test_impossible_ranks_are_refused_at_the_call(rank, world_size):
    with pytest.raises(StoreError, match="need 0 <= rank < world_size"):
        shuffled(10, 2, 0, rank=rank, world_size=world_size)


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


def test_a_smaller_share_of_episodes_is_part_of_a_larger_one_and_never_nothing():
    episodes = list(range(3, 43))
    shares = [share_of_episodes(episodes, share, 5) for share in (0.01, 0.05, 0.25, 0.5, 1.0)]
    assert [len(each) for each in shares] == [1, 2, 10, 20, 40] and shares[-1] == episodes
    assert all(set(small) < set(large) and small == sorted(small) for small, large in pairwise(shares))
    assert share_of_episodes(episodes, 0.5, 6) != shares[3]
    for share in (0.0, 1.1):
        with pytest.raises(StoreError, match=r"must lie in \(0, 1\]"):
            share_of_episodes(episodes, share, 0)
