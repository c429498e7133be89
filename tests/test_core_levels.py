"""Levels: one shape in the end, no silent broadcast, and other people's conventions there and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oracle import unchecked_shapes
from uwm.core.levels import checked, from_flow_time, from_index, per_token, to_flow_time, to_index


@pytest.mark.parametrize(
    "level, wanted",
    [
        (0.25, [[0.25] * 3] * 2),
        (1, [[1.0] * 3] * 2),
        (torch.tensor([0.0, 1.0]), [[0.0] * 3, [1.0] * 3]),
        (torch.tensor([[0.0], [1.0]]), [[0.0] * 3, [1.0] * 3]),
        (torch.tensor([[0.0, 0.5, 1.0]]), [[0.0, 0.5, 1.0]] * 2),
        (torch.arange(6).reshape(2, 3) / 10, [[0.0, 0.1, 0.2], [0.3, 0.4, 0.5]]),
    ],
)
def test_a_level_per_run_sample_or_token_becomes_one_per_token(level, wanted):
    assert torch.equal(per_token(level, 2, 3), torch.tensor(wanted))


@pytest.mark.parametrize("shape", [(3,), (1,), (3, 2), (2, 4), (2, 3, 1), (0,)])
def test_any_other_shape_is_refused_with_the_shapes_that_there_are(shape):
    with pytest.raises(ValueError, match=r"\(\), \(2,\), \(2, 1\), \(1, 3\) or \(2, 3\)"):
        per_token(torch.zeros(shape), 2, 3)


def test_one_number_per_sample_wins_where_samples_and_tokens_are_as_many():
    """With B = N a bare vector could mean either: it always means samples; per token is written (1, N)."""
    level = torch.tensor([0.1, 0.9])
    assert torch.equal(per_token(level, 2, 2), torch.tensor([[0.1, 0.1], [0.9, 0.9]]))
    assert torch.equal(per_token(level[None], 2, 2), torch.tensor([[0.1, 0.9], [0.1, 0.9]]))


@pytest.mark.parametrize("wrong", [-1e-6, 1.0001, float("nan"), float("inf")])
def test_levels_outside_zero_to_one_are_refused(wrong):
    with pytest.raises(ValueError, match=r"0 clean, 1 noise"):
        checked(torch.tensor([0.5, wrong]))
    with pytest.raises(ValueError, match=r"0 clean, 1 noise"):
        per_token(wrong, 2, 3)


def test_double_precision_is_kept():
    assert per_token(torch.tensor(0.1, dtype=torch.float64), 1, 1).dtype == torch.float64


@given(count=st.integers(1, 1000))
def test_every_entry_of_a_noise_table_and_clean_come_back(count):
    """UWM and SDP (100 entries) and any other: -1 is clean and exactly 0, the last entry is noise and exactly 1."""
    index = torch.arange(-1, count)
    level = from_index(index, count)
    assert float(level[0]) == 0.0 and float(level[-1]) == 1.0 and bool((level.diff() > 0).all())
    assert torch.equal(to_index(level, count), index)


def test_the_papers_constants():
    """100 entries: SDP's ladder of two chunks (49, 99) is levels 1/2 and 1; UWM samples from 99 down to -1."""
    assert from_index(torch.tensor([49, 99]), 100).tolist() == [0.5, 1.0]
    assert from_index(torch.tensor([-1, 0]), 100).tolist() == pytest.approx([0.0, 0.01])
    assert to_index(torch.tensor([0.25, 0.5, 0.75, 1.0]), 16).tolist() == [3, 7, 11, 15]


@given(level=st.floats(0, 1))
def test_flow_time_runs_the_other_way(level):
    level = torch.tensor(level, dtype=torch.float64)
    assert float(to_flow_time(torch.tensor(0.0))) == 1.0 and float(from_flow_time(torch.tensor(0.0))) == 1.0
    with unchecked_shapes():
        assert torch.allclose(from_flow_time(to_flow_time(level)), level, atol=1e-15)
