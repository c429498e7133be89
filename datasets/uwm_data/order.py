"""Which episodes are for validation, and in which order windows are seen: pure functions of a seed."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import numpy as np

from uwm_data.errors import StoreError
from uwm_data.store import EpisodeStore


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
    drawn = sorted(episodes, key=lambda index: blake2b(f"{seed}/{index}".encode(), digest_size=8).digest())
    return sorted(drawn[count:]), sorted(drawn[:count])


def shuffled(count: int, batch_size: int, seed: int, start_step: int = 0) -> Iterator[np.ndarray]:
    """Endless batches (batch_size,) of numbers below `count`; every number once per epoch, a new order each epoch.

    The batch of a step depends on (seed, step) only, so starting at `start_step` continues a run exactly. Batches run
    over the border of two epochs, so none is short:

        epoch 0: 3 1 4 0 2 | epoch 1: 0 4 2 1 3 |        count 5, batch size 3
        step      0 0 0 1 1           1 2 2 2 3
    """
    if count < 1 or batch_size < 1 or start_step < 0:
        raise StoreError(f"need count >= 1, batch_size >= 1, start_step >= 0; got {count}, {batch_size}, {start_step}")
    # Checked at the call, not at the first batch: a generator would raise far away from the mistake.
    return _batches(count, batch_size, seed, start_step)


def _batches(count: int, batch_size: int, seed: int, step: int) -> Iterator[np.ndarray]:
    epoch, order = -1, np.empty(0, np.int64)
    while True:
        place, batch = step * batch_size, []
        while len(batch) < batch_size:
            if place // count != epoch:
                epoch = place // count
                order = np.random.default_rng([seed, epoch]).permutation(count)
            taken = order[place % count :][: batch_size - len(batch)]
            batch.extend(taken.tolist())
            place += len(taken)
        yield np.array(batch, np.int64)
        step += 1
