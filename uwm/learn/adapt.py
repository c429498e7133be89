"""A model that knew one level per sample learns a level per frame, without harm (Pusa, Liu et al. 2025: vectorized timestep adaptation).

Nothing is built in: the backbone modulates every token by its own level, and a model that only ever saw equal levels is the same model
where they are equal. What has to be learned is what unequal levels mean; an adapter learns it and can be taken away again.
"""

from collections.abc import Callable

import torch

from uwm.core.patterns import Pattern
from uwm.core.shapes import Float
from uwm.learn import loop
from uwm.learn.fit import batches
from uwm.learn.loop import TrainConfig, TrainState
from uwm.learn.optim import OptimConfig
from uwm.learn.stream_objective import StreamObjective, stream_loss
from uwm.nn.adapters import Adapter
from uwm.nn.stream_model import StreamModel

OPTIM = OptimConfig(rate=5e-3, weight_decay=0.0, warmup=10, final=0.1, clip=1.0, average=0.95, matrices="adamw")


def adapt_levels(
    model: StreamModel,
    clean: Float[torch.Tensor, "E N S"],
    pattern: Pattern = Pattern(video="independent"),  # noqa: B008
    rank: int = 16,
    steps: int = 200,
    batch: int = 32,
    seed: int = 0,
    optim: OptimConfig = OPTIM,
    on_step: Callable[[int, dict], None] = lambda step, figures: None,
) -> Adapter:
    """An adapter for levels drawn by `pattern`: independent ones along the frames of a video are what Pusa found best.

    `clean`: examples of the model's layout; Pusa takes samples of the model itself. Every token's error counts by itself before the
    mean is taken, so that a frame's weight meets its own frame. Everything random follows from `seed`.
    """
    objective = StreamObjective((pattern,))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = Adapter(model, rank)
    config = TrainConfig(steps, batch, seed, "float32", save_every=steps, optim=optim)
    state = TrainState.fresh(adapter, config)
    loss = lambda _, part, generator: stream_loss(model, part, objective, generator)  # noqa: E731
    loop.train(adapter, state, batches(clean, batch, seed), config, on_step, lambda state: None, loss)
    adapter.load_state_dict(state.average.weights)
    model.eval()
    return adapter.eval()
