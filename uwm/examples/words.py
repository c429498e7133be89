"""RADD (Ou et al. 2025): sentences with holes are filled in. The network sees what is masked and no time; a call that would see
nothing new is not made.

    push the ____ block to the ____        any words may be given, the others are revealed row by row
"""

import numpy as np
import torch

from uwm.core.patterns import Pattern
from uwm.core.streams import Stream
from uwm.examples import SMALL
from uwm.learn.fit import fit
from uwm.learn.stream_objective import StreamObjective, one_hot
from uwm.media import text
from uwm.nn.stream_model import StreamModelConfig, initialised
from uwm.sample.unmask import unmask_one

COLOURS, WAYS = ("red", "green", "blue"), {"red": ("left", "right"), "green": ("top", "bottom"), "blue": ("left", "top")}
WORDS = ("push", "the", "block", "to", *COLOURS, "left", "right", "top", "bottom")


def sentences(count: int, seed: int) -> torch.Tensor:
    """Word numbers (count, 6) of "push the COLOUR block to WAY", where the colour tells which ways there are."""
    generator = np.random.default_rng(seed)
    said = []
    for colour in generator.choice(COLOURS, count):
        said.append(["push", "the", colour, "block", "to", generator.choice(WAYS[colour])])
    return torch.tensor([[WORDS.index(word) for word in each] for each in said])


def main(steps: int = 300) -> dict[str, float]:
    """Shares of sentences that are right when nothing is given and when the way is, and calls per sentence in 100 rows."""
    words = sentences(1000, seed=0)
    model = initialised(StreamModelConfig((Stream("text", "word", tuple(range(6)), len(WORDS)),), backbone=SMALL), seed=0)
    fit(model, one_hot(words, model.layout, "text"), StreamObjective((Pattern(),)), steps, batch=64)

    seeds = range(200)
    whole, calls = text.fill_in(model, "text", words[:200], torch.ones(1, 6, dtype=torch.bool), 100, seeds)
    free = torch.tensor([[False, False, True, False, False, False]])
    coloured, _ = text.fill_in(model, "text", words[:200], free, 1, seeds, rule=unmask_one())
    found = {"right, nothing given": right(whole), "right, colour missing": right(coloured)}
    found["calls in 100 rows"] = float(calls.float().mean())
    for name, value in found.items():
        print(f"{name}: {value:.2f}")
    print(" ".join(WORDS[number] for number in whole[0]))
    return found


def right(words: torch.Tensor) -> float:
    """Share of sentences that could have been said."""
    said = [[WORDS[number] for number in each] for each in words.tolist()]
    frame = lambda each: [*each[:2], *each[3:5]] == ["push", "the", "block", "to"]  # noqa: E731
    return float(np.mean([frame(each) and each[5] in WAYS.get(each[2], ()) for each in said]))


if __name__ == "__main__":
    main()
