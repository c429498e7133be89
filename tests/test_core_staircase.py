"""One function lays out every staircase of the papers: AR-Diffusion's, Diffusion Forcing's, and in its middle SDP's ladder."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uwm.core.plans import staircase, streaming_calls, streaming_tick

STAIRS = {"units": st.integers(1, 7), "rows": st.integers(1, 9), "lag": st.integers(0, 9)}


def adaptive_difference(units, rows, gap):
    """AR-Diffusion's rule as it is told: steps received by every frame before each iteration (Sun et al. 2025, sec. 3.3)."""
    steps, table = [0] * units, [[0] * units]
    while steps[-1] < rows:
        after = [min(steps[0] + 1, rows)]
        for unit in range(1, units):
            is_finished = steps[unit - 1] == rows
            after.append(min(steps[unit] + 1, rows) if is_finished else min(max(after[unit - 1] - gap, 0), rows))
        steps = after
        table.append(steps)
    return 1 - torch.tensor(table) / rows


@given(**STAIRS)
@settings(max_examples=150, deadline=None)
def test_the_staircase_is_adaptive_difference_for_every_gap(units, rows, lag):
    gap = min(lag, rows)
    assert torch.equal(staircase(units, rows, gap), adaptive_difference(units, rows, gap))


@given(**STAIRS)
@settings(max_examples=150, deadline=None)
def test_levels_never_rise_along_rows_nor_fall_along_units_and_all_are_finished(units, rows, lag):
    level = staircase(units, rows, lag)
    assert len(level) == rows + (units - 1) * lag + 1
    assert bool((level[0] == 1).all()) and bool((level[-1] == 0).all())
    assert bool((level.diff(dim=0) <= 0).all()) and bool((level.diff(dim=1) >= 0).all())
    in_flight = ((level[:-1] != level[1:]).sum(dim=1)).max()
    assert int(in_flight) <= (units if lag == 0 else min(units, math.ceil(rows / lag)))


@pytest.mark.parametrize(("gap", "iterations"), [(0, 50), (1, 65), (2, 80), (5, 125), (50, 800)])
def test_iterations_are_those_of_the_paper(gap, iterations):
    level = staircase(16, 50, gap)
    assert len(level) - 1 == iterations
    finished = (level == 0).int().argmax(dim=0)  # the call after which each frame is clean
    assert int(finished[0]) == 50 and bool((finished.diff() == gap).all())


@pytest.mark.parametrize(("rows", "chunks"), [(8, 4), (12, 3), (6, 6), (10, 5)])
def test_the_rolling_buffer_is_the_middle_of_a_staircase_whose_lag_is_rows_over_chunks(rows, chunks):
    """SDP's ladder: while one chunk after another is finished, the `chunks` in flight stand as in the buffer, tick by tick."""
    lag = rows // chunks
    level = staircase(4 * chunks, rows, lag)
    for tick in range(2 * chunks):
        first = chunks - 1 + tick  # chunks that are finished when the wavefront is `chunks` wide
        call = rows + (first - 1) * lag if first else 0
        window = level[call : call + lag + 1, first : first + chunks]
        assert torch.allclose(window, streaming_tick(rows, chunks, tick)) and streaming_calls(rows, chunks, tick) == lag
        assert float(window[-1, 0]) == 0 and (level[call, :first] == 0).all() and (level[call, first + chunks :] == 1).all()


def test_diffusion_forcing_s_pyramid_and_autoregression_are_staircases():
    """Chen et al. 2024, sec. 3.4: K steps, a frame one step behind the other; and one frame after the other."""
    pyramid = torch.tensor([[3, 3, 3], [2, 3, 3], [1, 2, 3], [0, 1, 2], [0, 0, 1], [0, 0, 0]]) / 3
    assert torch.allclose(staircase(3, 3, 1), pyramid)
    one_by_one = torch.tensor([[2, 2], [1, 2], [0, 2], [0, 1], [0, 0]]) / 2
    assert torch.equal(staircase(2, 2, 2), one_by_one)
    assert torch.equal(staircase(3, 4, 0), torch.linspace(1, 0, 5)[:, None].expand(-1, 3))
