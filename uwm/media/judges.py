"""Judges of what was generated: small machines of another kind than the generator, trained on real data only.

```
real, training part --> judge --> what a sample shows (its class, where something is)
real, held out      --------> how good the judge itself is, told beside every figure that it gives
```
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uwm.core.shapes import Float, Int


@dataclass(frozen=True)
class Judge:
    """`machine` as scikit-learn's; `score` on real data that it has not seen: accuracy of classes, R2 of positions."""

    machine: Any
    score: float

    def __call__(self, samples: Tensor) -> np.ndarray:
        """What every sample shows: its class (B,) or its positions (B, D)."""
        return self.machine.predict(samples.flatten(1).numpy())

    def layers(self, samples: Tensor) -> list[Float[Tensor, "B _"]]:
        """What the hidden layers of a judge of places make of samples, for `metrics.perceptual`; TypeError for another judge."""
        if not hasattr(self.machine, "coefs_"):
            raise TypeError(f"only a judge of places has hidden layers, this one is a {type(self.machine).__name__}")
        found = [samples.flatten(1).numpy()]
        for weight, bias in zip(self.machine.coefs_[:-1], self.machine.intercepts_[:-1], strict=True):
            found.append(np.maximum(found[-1] @ weight + bias, 0))
        return [torch.from_numpy(layer) for layer in found[1:]]


def of_classes(real: Tensor, classes: Int[np.ndarray, " B"], held_out: float = 0.3, seed: int = 0) -> Judge:
    """A support vector machine that tells classes, e.g. of digits (B, ...)."""
    from sklearn.svm import SVC

    return _judge(SVC(C=10.0), real, classes, held_out, seed)


def of_places(real: Tensor, places: Float[np.ndarray, "B D"], held_out: float = 0.3, seed: int = 0) -> Judge:
    """A small network of its own that tells where something is in a frame (B, ...)."""
    from sklearn.neural_network import MLPRegressor

    machine = MLPRegressor(hidden_layer_sizes=(128, 64), max_iter=300, early_stopping=True, random_state=seed)
    return _judge(machine, real, places, held_out, seed)


def _judge(machine: Any, real: Tensor, wanted: np.ndarray, held_out: float, seed: int) -> Judge:
    """ValueError when there are not as many answers as samples, or nothing would be held out."""
    if len(real) != len(wanted) or not 0 < held_out < 1 or not 0 < int(len(real) * held_out) < len(real):
        raise ValueError(f"a judge needs an answer per sample and a part held out, got {len(real)} samples, {len(wanted)}, {held_out}")
    flat, order = real.flatten(1).numpy(), np.random.default_rng(seed).permutation(len(real))
    out, rest = order[: int(len(real) * held_out)], order[int(len(real) * held_out) :]
    machine.fit(flat[rest], wanted[rest])
    return Judge(machine, float(machine.score(flat[out], wanted[out])))
