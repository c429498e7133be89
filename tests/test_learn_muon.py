"""Muon takes torch's steps, whatever the shapes, and goes on from torch's state; and which precision a processor gets."""

import pytest
import torch
from torch import nn

from uwm.learn import precision
from uwm.learn.muon import Muon, orthogonal

SHAPES = ((8, 8), (24, 8), (8, 24), (8, 8), (1, 6))


def matrices():
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def with_gradients(moved, step):
    generator = torch.Generator().manual_seed(10 + step)
    for matrix in moved:
        matrix.grad = torch.randn(matrix.shape, generator=generator)
    return moved


def test_every_step_is_torchs_but_for_the_rounding_of_bfloat16():
    ours, theirs = matrices(), matrices()
    optimisers = Muon(ours, 0.02, 0.1), torch.optim.Muon(theirs, 0.02, 0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        for optimiser, moved in zip(optimisers, (ours, theirs), strict=True):
            with_gradients(moved, step)
            optimiser.step()
    for mine, other, start in zip(ours, theirs, matrices(), strict=True):
        assert (mine - other).norm() < 0.02 * (mine - start).norm() + 1e-6
        assert (mine - start).norm() > 0.01


def test_a_matrix_without_a_gradient_is_left_alone():
    moved = with_gradients(matrices(), 0)
    moved[0].grad = None
    Muon(moved, 0.02).step()
    assert torch.equal(moved[0], matrices()[0]) and not torch.equal(moved[3], matrices()[3])


def test_the_state_of_torchs_optimiser_goes_on_here():
    theirs = with_gradients(matrices(), 0)
    first = torch.optim.Muon(theirs, 0.02, 0.1)
    first.step()
    ours = [nn.Parameter(matrix.detach().clone()) for matrix in theirs]
    second = Muon(ours, 0.02, 0.1)
    second.load_state_dict({"state": first.state_dict()["state"], "param_groups": second.state_dict()["param_groups"]})
    for matrix, moments in zip(ours, first.state.values(), strict=True):
        assert torch.equal(second.state[matrix]["momentum_buffer"], moments["momentum_buffer"])


def test_singular_values_come_near_one_and_directions_stay():
    drawn = torch.randn(3, 16, 40, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    found = orthogonal(drawn)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6 and values.max() < 1.3
    left, _, right = torch.linalg.svd(drawn, full_matrices=False)
    within = left.mT @ found @ right.mT
    assert (within - torch.diag_embed(within.diagonal(dim1=1, dim2=2))).abs().max() < 1e-3
    assert torch.equal(orthogonal(torch.zeros(1, 3, 5)), torch.zeros(1, 3, 5))


def test_vectors_are_refused():
    with pytest.raises(ValueError, match=r"Muon moves matrices, got a parameter of shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], 0.1)


@pytest.mark.parametrize(("name", "expected"), [("avx512_bf16", "bfloat16"), ("bf16", "bfloat16"), ("avx2", "float32")])
def test_auto_is_bfloat16_only_where_the_processor_multiplies_it(monkeypatch, name, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "of a test", name: True})
    assert precision.resolved("auto") == expected and precision.resolved("float32") == "float32"
    with precision.autocast("auto"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, expected)
