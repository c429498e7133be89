"""Which windows of which datasets make up each batch: shares that are kept in every batch, and every window once an epoch.

    pools       lift 0.5                     can 0.2    human 0.3            shares of the samples
    a batch     |--|--|--|--|--|--|--|--|    ...        one comb with a step of 1 / batch size, moved from batch to batch
    lift        w7 w2 w9 w1 | w3 ...                    each pool is walked in its own shuffled order, epoch after epoch

A pool is a dataset, or one task of it. Every batch holds each pool's share of it, rounded up or down, and over many batches
the rounding cancels out (the comb moves by the golden ratio, which leaves no gaps; random draws would need thousands of
samples for the same). The batch of a step depends on (seed, step) alone, so a run resumes exactly, and the ranks of a
distributed run take turns within it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import isfinite

import numpy as np

from uwm_data.errors import StoreError

WAYS = ("dataset", "task", "balanced", "proportional")
_GOLDEN = (5**0.5 - 1) / 2
_AT_ONCE = 1 << 16  # steps that are counted at a time


@dataclass(frozen=True)
class Pool:
    """Windows that are drawn alike: `numbers` of the windows of one dataset, `share` of all samples."""

    dataset: str
    task: str
    numbers: np.ndarray
    share: float


@dataclass(frozen=True)
class Draw:
    """One batch: {dataset: window numbers (n,)} and how many samples each pool gave, by (dataset, task)."""

    windows: dict[str, np.ndarray]
    counts: dict[tuple[str, str], int]

    @property
    def shares(self) -> dict[str, float]:
        """The share of each dataset in the batch."""
        total = sum(len(numbers) for numbers in self.windows.values())
        return {name: len(numbers) / total for name, numbers in self.windows.items()}


class Mixture:
    """Batches from several datasets.

    `tasks` {dataset: task of each of its windows (n,)}. `by`:

    dataset        shares as in `weights` {dataset: weight}; one that is not named weighs 1
    balanced       every dataset the same
    proportional   by number of windows, times `weights`
    task           every task the same, or as in `weights` {task: weight}; datasets with one task share it by their windows

    A weight of 0 leaves a pool out. StoreError on unknown names and on a mixture of nothing.
    """

    def __init__(self, tasks: Mapping[str, Sequence[str]], by: str = "dataset", weights: Mapping[str, float] | None = None, seed: int = 0):
        weights = dict(weights or {})
        if by not in WAYS:
            raise StoreError(f"a mixture is drawn by {', '.join(WAYS)}, not by {by!r}")
        empty = [name for name, each in tasks.items() if not len(each)]
        if empty or not tasks:
            raise StoreError(f"a mixture needs windows in every dataset; {', '.join(empty) or 'there is no dataset'} has none")
        self.seed, self.datasets = seed, tuple(tasks)
        self.pools = _weighed(_split(tasks, by == "task"), by, weights)
        # The last edge is exactly 1: what rounding leaves over must not be a sample without a pool.
        self._edges = np.append(np.cumsum([pool.share for pool in self.pools])[:-1], 1.0)
        self._counted = (0, 0, np.zeros(len(self.pools), np.int64))
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def draw(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> Draw:
        """The samples of one step for one of `world_size` processes, whose batches have `batch_size` samples each."""
        if step < 0 or batch_size < 1 or not 0 <= rank < world_size:
            raise StoreError(f"need step >= 0, batch_size >= 1, 0 <= rank < world_size; got {step}, {batch_size}, {rank}, {world_size}")
        whole = batch_size * world_size
        before, edges = self.counts(step, whole), self._batch_edges(np.array([step]), whole)[0]
        windows: dict[str, list[np.ndarray]] = {name: [] for name in self.datasets}
        counts = {}
        for index, (pool, start, stop) in enumerate(zip(self.pools, edges[:-1], edges[1:], strict=True)):
            samples = np.arange(start, stop)
            mine = samples[samples % world_size == rank]
            windows[pool.dataset].append(self._walk(index, before[index] + mine - start))
            counts[pool.dataset, pool.task] = len(mine)
        return Draw({name: np.concatenate(parts) for name, parts in windows.items() if parts}, counts)

    def counts(self, steps: int, samples: int) -> np.ndarray:
        """How many samples each pool gave in the first `steps` batches of `samples`, (pools,)."""
        done, of, total = self._counted
        if of != samples or done > steps:
            done, total = 0, np.zeros(len(self.pools), np.int64)
        while done < steps:
            some = np.arange(done, min(steps, done + _AT_ONCE))
            total, done = total + np.diff(self._batch_edges(some, samples), axis=1).sum(0), int(some[-1]) + 1
        self._counted = (steps, samples, total)  # a short cut for the next call; the answer does not depend on it
        return total

    def record(self, steps: int, samples: int) -> list[dict]:
        """What was drawn so far, for a checkpoint: per pool its windows, its share, its samples and its epochs."""
        return [
            {
                "dataset": pool.dataset, "task": pool.task, "share": pool.share, "windows": len(pool.numbers),
                "samples": int(count), "epochs": round(int(count) / len(pool.numbers), 4),
            }
            for pool, count in zip(self.pools, self.counts(steps, samples), strict=True)
        ]  # fmt: skip

    def _batch_edges(self, steps: np.ndarray, samples: int) -> np.ndarray:
        """Sample numbers between which each pool lies in the batches of some steps, (steps, pools + 1).

        Tooth i of the comb stands at (i + offset) / samples.
        """
        offset = np.mod(_start(self.seed) + steps * _GOLDEN, 1.0)[:, None]
        inner = np.ceil(samples * self._edges - offset).astype(np.int64).clip(0, samples)
        inner[:, -1] = samples
        return np.concatenate([np.zeros((len(steps), 1), np.int64), inner], axis=1)

    def _walk(self, index: int, places: np.ndarray) -> np.ndarray:
        """Window numbers at some places of a pool's endless walk."""
        numbers = self.pools[index].numbers
        epoch, within = np.divmod(places, len(numbers))
        found = np.empty(len(places), np.int64)
        for each in np.unique(epoch):
            found[epoch == each] = numbers[self._order(index, int(each))[within[epoch == each]]]
        return found

    def _order(self, index: int, epoch: int) -> np.ndarray:
        if self._orders.get(index, (-1,))[0] != epoch:
            pool = self.pools[index]
            own = int.from_bytes(blake2b(f"{pool.dataset}/{pool.task}".encode(), digest_size=4).digest(), "little")
            self._orders[index] = (epoch, np.random.default_rng([self.seed, own, epoch]).permutation(len(pool.numbers)))
        return self._orders[index][1]


def _start(seed: int) -> float:
    return float(np.random.default_rng([seed, 1]).random())


def _split(tasks: Mapping[str, Sequence[str]], is_by_task: bool) -> list[Pool]:
    """A pool per dataset or per task of a dataset, without shares."""
    pools = []
    for dataset, each in tasks.items():
        names, which = np.unique(np.asarray(each, dtype=str), return_inverse=True) if is_by_task else ([""], np.zeros(len(each), np.int64))
        order = np.argsort(which, kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(which, minlength=len(names)))[:-1])
        pools += [Pool(dataset, str(name), part, 0.0) for name, part in zip(names, parts, strict=True)]
    return pools


def _weighed(pools: list[Pool], by: str, weights: dict[str, float]) -> list[Pool]:
    """The pools with their shares, without those that weigh nothing."""
    key = "task" if by == "task" else "dataset"
    known = {getattr(pool, key) for pool in pools}
    wrong = [name for name in weights if name not in known]
    if wrong:
        raise StoreError(f"weights for unknown {key}s {wrong}; the mixture has {sorted(known)}")
    if any(not (isfinite(weight) and weight >= 0) for weight in weights.values()):
        raise StoreError(f"weights must be finite and not negative, got {weights}")
    windows = {name: sum(len(pool.numbers) for pool in pools if getattr(pool, key) == name) for name in known}
    raw = []
    for pool in pools:
        name = getattr(pool, key)
        own = 1.0 if by == "balanced" else weights.get(name, 1.0)
        raw.append(own * (len(pool.numbers) if by == "proportional" else len(pool.numbers) / windows[name]))
    total = sum(raw)
    if not total > 0:
        raise StoreError("every weight of the mixture is 0, so there is nothing to draw")
    return [Pool(pool.dataset, pool.task, pool.numbers, part / total) for pool, part in zip(pools, raw, strict=True) if part > 0]
