"""FVDM (Liu et al. 2024): a film model whose frames have levels of their own fills in between a first frame and a last.

    levels   0  @  @  @  @  @  @  0      held frames stand at level 0 and come back bit for bit
"""

import torch

from uwm.core.patterns import Pattern
from uwm.core.streams import Stream
from uwm.examples import FRAMES, SMALL, apart, circles
from uwm.learn.fit import fit
from uwm.learn.stream_objective import StreamObjective
from uwm.media import video
from uwm.nn.stream_model import StreamModelConfig, initialised


def main(steps: int = 600) -> dict[str, float]:
    """Distances between what is filled in and the real way, and how far the held frames moved."""
    model = initialised(StreamModelConfig((Stream("film", "video", tuple(range(FRAMES)), 2),), "clean", backbone=SMALL), seed=0)
    # In half of the samples every frame draws a level of its own (PTSS), in the others all frames have one.
    fit(model, circles(2000), StreamObjective((Pattern(video="ptss(0.5)"),)), steps, batch=64)

    real = circles(64, seed=1)
    first, last = {"film": real[:, :1]}, {"film": real[:, -1:]}
    begun = video.from_frame(model, first, seeds=range(64))["film"]
    between = video.between(model, first, last, seeds=range(64))["film"]
    held = torch.cat([begun[:, :1] - real[:, :1], between[:, [0, -1]] - real[:, [0, -1]]], dim=1)
    found = {
        "from a frame": apart(begun, real),  # which way it goes is free
        "between two": apart(between, real),
        "held frames moved": float(held.abs().max()),
    }
    for name, distance in found.items():
        print(f"{name}: {distance:.3f}")
    return found


if __name__ == "__main__":
    main()
