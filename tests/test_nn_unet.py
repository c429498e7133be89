"""The U-Net of the streaming papers: sizes as theirs, levels per action where they are, any horizon where it is ours."""

import pytest
import torch

from oracle import unchecked_shapes
from uwm.nn.unet import FILMS, UNet, UNetSizes

SMALL = {"widths": (16, 32, 64), "level_size": 16}


def million(sizes, condition):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in UNet(sizes, 2, condition, 20).parameters()) / 1e6


@pytest.mark.parametrize(
    ("film", "condition", "widths", "level_size", "paper"),
    [
        ("flat", 40, (256, 512, 1024), 256, 70.8),  # two observations of 20 numbers
        ("sample", 40, (256, 512, 1024), 256, 65.8),
        ("flat", 132, (512, 1024, 2048), 128, 252.8),  # two of 64 features and a position
        ("sample", 132, (512, 1024, 2048), 128, 251.5),
    ],
)
def test_it_has_the_parameters_of_the_papers_code(film, condition, widths, level_size, paper):
    assert million(UNetSizes(widths, level_size, film=film), condition) == pytest.approx(paper, rel=0.001)


def asked(film, level, count=12, condition=0.0):
    torch.manual_seed(0)
    net = UNet(UNetSizes(**SMALL, film=film), 2, 5, 12).eval()
    x = torch.randn(2, count, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return net(x, torch.as_tensor(level).expand(2, count), torch.full((2, 5), condition))


@pytest.mark.parametrize("film", FILMS)
def test_every_action_has_a_prediction_that_depends_on_level_and_observation(film):
    out = asked(film, 0.3)
    assert out.shape == (2, 12, 2)
    assert not torch.allclose(out, asked(film, 0.8), atol=1e-4) and not torch.allclose(out, asked(film, 0.3, condition=1.0), atol=1e-4)


def test_a_level_per_action_counts_where_it_stands_and_any_horizon_is_one():
    level = torch.linspace(0.1, 0.9, 12)
    for film in ("flat", "token"):
        assert not torch.allclose(asked(film, level), asked(film, level.flip(0)), atol=1e-4)
    for count in (1, 7, 13):
        assert asked("token", 0.5, count).shape == (2, count, 2) == asked("sample", 0.5, count).shape


def test_what_it_does_not_know_is_refused():
    with pytest.raises(ValueError, match="one level per sample"):
        asked("sample", torch.linspace(0.1, 0.9, 12))
    with pytest.raises(ValueError, match="built for 12 actions, got 8"):
        asked("flat", 0.5, 8)
    with unchecked_shapes():
        for wrong in ({"film": "all"}, {"widths": (12,)}, {"widths": ()}, {"level_size": 3}, {"feature": 0}):
            with pytest.raises(ValueError, match="must be"):
                UNetSizes(**{**SMALL, **wrong})
        with pytest.raises(ValueError, match="must be positive"):
            UNet(UNetSizes(**SMALL), 2, 5, 0)
