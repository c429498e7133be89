"""Replacement: known tokens are themselves at every level, with noise that is fresh."""

import pytest
import torch

from oracle import unchecked_shapes
from uwm.noise.gaussian import path
from uwm.sample.loop import sample
from uwm.sample.randomness import Randomness
from uwm.sample.replacement import replaced
from uwm.sample.steps import ddim

KNOWN = torch.tensor([True, False, False])


def test_known_tokens_end_as_they_are_and_are_noised_anew_on_the_way():
    clean, seen = torch.arange(6.0).reshape(1, 3, 2), []
    level = torch.linspace(1, 0, 5)[:, None].expand(-1, 3)
    denoise = lambda x, level: torch.zeros_like(x)  # noqa: E731
    rule = replaced(ddim(), clean, KNOWN)
    keep = lambda index, x: seen.append(x.clone())  # noqa: E731
    out, _ = sample(denoise, path("cosine"), torch.randn(1, 3, 2), level, rule, Randomness.seeded([3]), keep)
    assert torch.equal(out[:, KNOWN], clean[:, KNOWN]) and torch.allclose(out[:, ~KNOWN], torch.zeros(1, 2, 2), atol=1e-6)
    curve = path("cosine")
    noises = [(x[:, 0] - curve.alpha(row[0]) * clean[:, 0]) / curve.sigma(row[0]) for x, row in zip(seen[1:-1], level[1:-1], strict=True)]
    assert all(not torch.allclose(a, b) for index, a in enumerate(noises) for b in noises[:index])


def test_what_does_not_fit_is_refused():
    with unchecked_shapes(), pytest.raises(ValueError, match=r"known \(N,\)"):
        replaced(ddim(), torch.zeros(1, 4, 2), KNOWN)
    with pytest.raises(ValueError, match="pass randomness"):
        replaced(ddim(), torch.zeros(1, 3, 2), KNOWN)(lambda x, level: x, path("cosine"), *[torch.zeros(1, 3, 2), *[torch.ones(1, 3)] * 2])
