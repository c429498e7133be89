"""UniDiffuser (Bao et al. 2023): points in four heaps and the number of the heap. One model is asked in every direction.

    point  *--------* heap         given, wanted or not there: a stream's role is chosen at every call
"""

import torch

from uwm.core.patterns import Pattern
from uwm.core.streams import Stream
from uwm.examples import SMALL
from uwm.learn.fit import fit
from uwm.learn.stream_objective import StreamObjective, one_hot
from uwm.nn.stream_model import StreamModelConfig, initialised
from uwm.sample.modes import generate

CENTRES = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])


def main(steps: int = 300) -> dict[str, float]:
    """Shares of answers that fit: a heap's points, a point's heap, and pairs that are drawn together."""
    generator = torch.Generator().manual_seed(0)
    heap = torch.randint(0, 4, (2000, 1), generator=generator)
    point = CENTRES[heap] + 0.25 * torch.randn(2000, 1, 2, generator=generator)

    model = initialised(StreamModelConfig((Stream("point", "state", (0,), 2), Stream("heap", "word", (0,), 4)), backbone=SMALL), seed=0)
    clean = model.layout.pack({"point": point, "heap": one_hot(heap, model.layout, "heap")})
    # A third of the samples each: both fall by themselves, the heap is known, the point is known.
    fit(model, clean, StreamObjective((Pattern(), Pattern(word="given"), Pattern(state="given"))), steps, batch=64)

    seeds = range(200)
    points = generate(model, ["point"], {"heap": clean[:200, 1:2, :4]}, seeds=seeds)["point"]
    heaps = generate(model, ["heap"], {"point": point[:200]}, seeds=seeds)["heap"]
    both = generate(model, ["point", "heap"], seeds=seeds)
    nearest = lambda points: torch.cdist(points[:, 0], CENTRES).argmin(dim=1)  # noqa: E731
    found = {
        "point of a heap": float((nearest(points) == heap[:200, 0]).float().mean()),
        "heap of a point": float((heaps[:, 0].argmax(dim=1) == heap[:200, 0]).float().mean()),
        "drawn together": float((nearest(both["point"]) == both["heap"][:, 0].argmax(dim=1)).float().mean()),
    }
    for name, share in found.items():
        print(f"{name}: {100 * share:.0f} % fit")
    return found


if __name__ == "__main__":
    main()
