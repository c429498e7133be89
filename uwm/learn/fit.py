"""A stream model trained on clean tokens that fit into memory: what experiments and examples need, with the usual loop."""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from uwm.core.shapes import Float
from uwm.learn import loop
from uwm.learn.loop import TrainConfig, TrainState, generator_at
from uwm.learn.optim import OptimConfig
from uwm.learn.stream_objective import StreamBatch, StreamObjective, stream_loss
from uwm.nn.stream_model import StreamModel

OPTIM = OptimConfig(rate=2e-3, weight_decay=0.01, warmup=50, final=0.02, clip=1.0, average=0.99)


def fit(
    model: StreamModel,
    clean: Float[Tensor, "E N S"],
    objective: StreamObjective | Callable,
    steps: int,
    batch: int = 32,
    seed: int = 0,
    optim: OptimConfig = OPTIM,
    on_step: Callable[[int, dict], None] = lambda step, figures: None,
) -> StreamModel:
    """Trains on random batches of the E examples and returns the model with its averaged weights, in evaluation mode.

    `objective` may be a loss of its own, `loss(model, batch, generator) -> (scalar, figures)`. Everything random follows from
    `seed`; two models that are trained with the same one see the same batches.
    """
    if not len(clean) or steps < 1 or batch < 1:
        raise ValueError(f"there must be examples, steps and a batch, got {len(clean)}, {steps} and {batch}")
    config = TrainConfig(steps, batch, seed, "float32", save_every=steps, optim=optim)
    state = TrainState.fresh(model, config)
    told = lambda net, part, generator: stream_loss(net, part, objective, generator)  # noqa: E731
    loss = told if isinstance(objective, StreamObjective) else objective
    loop.train(model, state, batches(clean, batch, seed), config, on_step, lambda state: None, loss)
    model.load_state_dict(state.average.weights)
    return model.eval()


def batches(clean: Tensor, batch: int, seed: int, first: int = 0) -> Iterator[StreamBatch]:
    """Random batches without end, from step `first` on; those of a seed and a step are always the same."""
    for step in itertools.count(first):
        chosen = torch.randint(0, len(clean), (batch,), generator=generator_at(seed + 1_000_000, step))
        yield StreamBatch(clean[chosen])
