"""Noise as a value: one key and one count per sample, so that a sample never depends on the batch it travels in.

numpy's Philox is counter-based: (key, count) fully names a block of numbers, on any machine and for any batch.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from uwm.core.shapes import Int


@dataclass(frozen=True)
class Randomness:
    """Generator state of B samples: `key` names the stream (a seed >= 0), `count` how many draws were made."""

    key: Int[Tensor, " B"]
    count: Int[Tensor, " B"]

    @classmethod
    def seeded(cls, seeds) -> "Randomness":
        """A fresh state from one seed per sample."""
        key = torch.as_tensor(seeds, dtype=torch.int64).reshape(-1)
        if bool((key < 0).any()):
            raise ValueError(f"seeds must be >= 0, got {key.tolist()}")
        return cls(key, torch.zeros_like(key))

    def normal(self, *shape: int, dtype=torch.float32) -> tuple[Tensor, "Randomness"]:
        """Standard normal numbers (B, *shape) and the state after them."""
        rows = [self._generator(i).standard_normal(shape) for i in range(len(self.key))]
        return torch.from_numpy(np.stack(rows)).to(dtype), replace(self, count=self.count + 1)

    def uniform(self, *shape: int) -> tuple[Tensor, "Randomness"]:
        """Uniform numbers in [0, 1), float64, (B, *shape) and the state after them."""
        rows = [self._generator(i).random(shape) for i in range(len(self.key))]
        return torch.from_numpy(np.stack(rows)), replace(self, count=self.count + 1)

    def _generator(self, index: int) -> np.random.Generator:
        # The draw number sits in the counter's high word: draws of less than 2^64 numbers cannot overlap.
        counter = [0, int(self.count[index]), 0, 0]
        return np.random.Generator(np.random.Philox(key=int(self.key[index]), counter=counter))

    def where(self, mask: Tensor, other: "Randomness") -> "Randomness":
        """This state where `mask` (B,) is true, `other` elsewhere."""
        return Randomness(torch.where(mask, self.key, other.key), torch.where(mask, self.count, other.count))
