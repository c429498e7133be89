"""Pusa (Liu et al. 2025): a model that knew one level per sample learns a level per frame in a small adapter, and stays what it was.

    model, one level      ====  ====  ====       adapter on:   0   @   @   @        adapter off: bit for bit the model
"""

import torch

from uwm.core import roles
from uwm.core.patterns import Pattern
from uwm.core.streams import Stream
from uwm.examples import FRAMES, SMALL, apart, circles
from uwm.learn.adapt import adapt_levels
from uwm.learn.fit import fit
from uwm.learn.stream_objective import StreamObjective
from uwm.media import video
from uwm.nn.stream_model import StreamModel, StreamModelConfig, initialised


@torch.no_grad()
def said(model: StreamModel, films: torch.Tensor) -> torch.Tensor:
    """What the model says of films, all at one level."""
    return model(films, 0.5, roles.full(len(films), FRAMES))


def main(steps: int = 600) -> dict[str, float]:
    """Distances of films between two frames before and after half as many steps, and what the adapter changes when it is off."""
    model = initialised(StreamModelConfig((Stream("film", "video", tuple(range(FRAMES)), 2),), "clean", backbone=SMALL), seed=0)
    films, real = circles(2000), circles(64, seed=1)
    fit(model, films, StreamObjective((Pattern(video="constant"),)), steps, batch=64)
    between = lambda: video.between(model, {"film": real[:, :1]}, {"film": real[:, -1:]}, seeds=range(64))["film"]  # noqa: E731
    before, as_it_was = apart(between(), real), said(model, real)
    adapter = adapt_levels(model, films, rank=16, steps=steps // 2, batch=64)
    after = apart(between(), real)
    adapter.strength = 0.0
    changed = float((said(model, real) - as_it_was).abs().max())
    found = {"between two, before": before, "between two, adapted": after, "changed with the adapter off": changed}
    for name, distance in found.items():
        print(f"{name}: {distance:.3f}")
    return found


if __name__ == "__main__":
    main()
