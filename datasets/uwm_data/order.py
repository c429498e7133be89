"""Which episodes are for validation, and in which order windows are seen: pure functions of a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b

import numpy as np

from uwm_data.errors import StoreError
from uwm_data.store import EpisodeStore

_IN_MEMORY = 1 << 22  # numbers whose order is drawn as an array: 32 MB
_ROUNDS = 6

def split_episodes(store: EpisodeStore, validation_fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """(training, validation) episodes, each sorted: whole episodes, the same for the same seed in any process.

    Each episode draws a number from (seed, index) alone and the smallest go to validation, so appending episodes moves
    hardly any old one to the other side. A positive fraction gives at least one episode to each side.
    """
    if not 0 <= validation_fraction < 1:
        raise StoreError(f"validation_fraction must lie in [0, 1), got {validation_fraction}")
    episodes = store.episodes
    count = round(validation_fraction * len(episodes))
    if validation_fraction > 0:
        if len(episodes) < 2:
            raise StoreError(f"{store.path} has {len(episodes)} usable episodes: too few to set one aside for validation")
        count = min(max(count, 1), len(episodes) - 1)
    drawn = _drawn(episodes, seed)
    return sorted(drawn[count:]), sorted(drawn[:count])


def share_of_episodes(episodes: Sequence[int], share: float, seed: int) -> list[int]:
    """A share of some episodes, in (0, 1], sorted, one at least: the same for the same seed, a smaller share is part of a larger one."""
    if not 0 < share <= 1:
        raise StoreError(f"a share of episodes must lie in (0, 1], got {share}")
    return sorted(_drawn(episodes, seed)[: max(1, round(share * len(episodes)))])


def _drawn(episodes: Sequence[int], seed: int) -> list[int]:
    return sorted(episodes, key=lambda index: blake2b(f"{seed}/{index}".encode(), digest_size=8).digest())


def shuffled(count: int, batch_size: int, seed: int, start_step: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[np.ndarray]:
    """Endless batches (batch_size,) of numbers below `count`; every number once per epoch, a new order each epoch.

    The batch of a step depends on (seed, step) only, so starting at `start_step` continues a run exactly. Batches run
    over the border of two epochs, so none is short. Ranks of a distributed run share one order, each taking `batch_size`
    of the `world_size * batch_size` numbers of a step, so that over all ranks an epoch is exact as well:

        epoch 0: 3 1 4 0 2 | epoch 1: 0 4 2 1 3 |        count 5, batch size 3
        step      0 0 0 1 1           1 2 2 2 3          one rank
        rank      0 0 0 1 1           1 0 0 0 1          two ranks, steps 0 0 0 0 0 0 1 1 1 1

    A run may go on with another number of ranks: with world_size * batch_size unchanged, a step means the same numbers.
    Memory: 8 bytes a number up to 4 million numbers, nothing from there on (a keyed permutation is computed instead).
    """
    if count < 1 or batch_size < 1 or start_step < 0:
        raise StoreError(f"need count >= 1, batch_size >= 1, start_step >= 0; got {count}, {batch_size}, {start_step}")
    if not 0 <= rank < world_size:
        raise StoreError(f"need 0 <= rank < world_size; got rank {rank} of {world_size}")
    # Checked at the call, not at the first batch: a generator would raise far away from the mistake.
    return _batches(count, batch_size, seed, start_step * world_size + rank, world_size)


def _batches(count: int, batch_size: int, seed: int, number: int, stride: int) -> Iterator[np.ndarray]:
    epoch, order = -1, None
    while True:
        place, parts = number * batch_size, []
        while place < (number + 1) * batch_size:
            if place // count != epoch:
                epoch = place // count
                order = _epoch_order(count, seed, epoch)
            start = place % count
            stop = min(count, start + (number + 1) * batch_size - place)
            parts.append(order(start, stop))
            place += stop - start
        yield np.concatenate(parts)
        number += stride


def _epoch_order(count: int, seed: int, epoch: int, in_memory: int = _IN_MEMORY) -> Callable[[int, int], np.ndarray]:
    """A function (start, stop) -> that part of the epoch's permutation of 0..count-1."""
    random = np.random.default_rng([seed, epoch])
    if count <= in_memory:
        order = random.permutation(count)
        return lambda start, stop: order[start:stop]
    keys = random.integers(0, 2**64, _ROUNDS, np.uint64)
    return lambda start, stop: _scramble(np.arange(start, stop, dtype=np.uint64), count, keys)


def _scramble(numbers: np.ndarray, count: int, keys: np.ndarray) -> np.ndarray:
    """A permutation of 0..count-1 by Feistel rounds on the two halves of a number's bits.

    The rounds permute 0..4^half-1, at most four times as many numbers; what lands outside goes through them again until it
    is inside (cycle walking), which keeps it a permutation. Luby and Rackoff 1988; mixing constants of SplitMix64.
    """
    half = np.uint64(-(-(count - 1).bit_length() // 2))
    mask = np.uint64((1 << int(half)) - 1)
    outside = np.arange(len(numbers))
    while len(outside):
        high, low = numbers[outside] >> half, numbers[outside] & mask
        for key in keys:
            mixed = (low ^ key) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            high, low = low, high ^ ((mixed ^ (mixed >> np.uint64(31))) & mask)
        numbers[outside] = high << half | low
        outside = outside[numbers[outside] >= count]
    return numbers.astype(np.int64)
