"""The training loop, readable from top to bottom. It gets an iterable of batches and opens no file.

Everything random is a function of (seed, step): a run that was stopped and resumed equals one that was not.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Generator, nn

from uwm.learn import objective
from uwm.learn.checkpoint import Checkpoint
from uwm.learn.objective import ObjectiveConfig
from uwm.learn.optim import Average, OptimConfig, Optimiser, clip_gradients, rate_at
from uwm.learn.precision import PRECISIONS, autocast


@dataclass(frozen=True)
class TrainConfig:
    """How long, how large a batch, in which precision (`uwm.learn.precision`); objective and optimiser beside."""

    steps: int = 1000
    batch: int = 64
    seed: int = 0
    precision: str = "auto"
    save_every: int = 100
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {self.precision!r}")


@dataclass
class TrainState:
    """What a run is besides its model: optimiser, averaged weights and the number of finished steps."""

    optimiser: Optimiser
    average: Average
    step: int = 0

    @classmethod
    def fresh(cls, model: nn.Module, config: TrainConfig) -> "TrainState":
        return cls(Optimiser(model, config.optim), Average(model, config.optim.average))


def restore(model: nn.Module, state: TrainState, saved: Checkpoint) -> None:
    """Puts both where a checkpoint, read for training, left them."""
    model.load_state_dict(saved.weights)
    state.optimiser.restore(saved.optimiser)
    state.average.weights = {name: saved.average[name] for name in state.average.weights}
    state.step = saved.step


def generator_at(seed: int, step: int) -> Generator:
    """The generator of one step."""
    return Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def train(
    model: nn.Module,
    state: TrainState,
    batches: Iterator[Any],
    config: TrainConfig,
    on_step: Callable[[int, dict[str, float]], None],
    on_save: Callable[[TrainState], None],
    loss: Callable | None = None,
) -> TrainState:
    """Runs from `state.step` to `config.steps`; `batches` must start at that step.

    `loss(model, batch, generator)` gives the scalar to minimise and figures for the log; None is that of a unified model under
    `config.objective`.

    `on_save` is called every `save_every` steps, at the end, and when the run is interrupted between two steps.
    """
    loss = loss or (lambda model, batch, generator: objective.loss(model, batch, config.objective, generator))
    model.train()
    try:
        while state.step < config.steps:
            figures = _step(model, state, next(batches), config, loss)
            state.step += 1
            on_step(state.step, figures)
            if state.step % config.save_every == 0 and state.step < config.steps:
                on_save(state)
    except KeyboardInterrupt:
        on_save(state)
        raise
    on_save(state)
    return state


def _step(model: nn.Module, state: TrainState, batch: Any, config: TrainConfig, loss: Callable) -> dict[str, float]:
    rate = rate_at(state.step, config.steps, config.optim)
    with autocast(config.precision):
        total, figures = loss(model, batch, generator_at(config.seed, state.step))
    state.optimiser.zero_grad()
    total.backward()
    norm = clip_gradients(model, config.optim.clip)
    state.optimiser.step(rate)
    state.average.update(model, state.step)
    return {"loss": float(total.detach()), **figures, **batch.drawn, "rate": rate, "gradient_norm": float(norm)}
