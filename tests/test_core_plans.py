"""Plans: the matrix of levels of every mode, staircases, and the streaming ladder against the papers' tables."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uwm.core import plans, roles
from uwm.core.levels import to_index
from uwm.core.streams import Layout, Stream

LAYOUT = Layout(
    (
        Stream("action", "action", (-2, -1, 0, 1, 2, 3), 2),
        Stream("top", "video", (2, 4), 3, grid=(2, 2)),
        Stream("wrist", "video", (2, 4), 3, grid=(1, 2)),
    )
)

# Evaluations per tick of the released streaming loop: rows, prediction horizon, observation steps, actions sent, per tick.
RELEASED = [
    (100, 20, 2, 8, [50]),
    (100, 16, 2, 8, [100]),
    (100, 16, 2, 5, [33, 33, 34]),
    (100, 20, 2, 4, [25]),
    (100, 36, 2, 8, [25]),
    (100, 68, 2, 8, [12, 13]),
    (100, 16, 2, 1, [6, 7, 7]),
    (16, 20, 2, 8, [8]),
    (16, 16, 2, 5, [5, 5, 6]),
    (10, 16, 2, 4, [3, 3, 4]),
]
# Its training ladders as table entries, at the largest and the smallest noise of a tick.
LADDERS = {
    (100, 2): ((49, 99), (0, 50)),
    (100, 3): ((32, 65, 99), (0, 33, 67)),
    (100, 4): ((24, 49, 74, 99), (0, 25, 50, 75)),
    (100, 8): ((11, 24, 36, 49, 61, 74, 86, 99), (0, 13, 25, 38, 50, 63, 75, 88)),
    (16, 2): ((7, 15), (0, 8)),
    (10, 3): ((2, 5, 9), (0, 3, 7)),
    (10, 4): ((1, 4, 6, 9), (0, 3, 5, 8)),
}


@pytest.mark.parametrize("rows, horizon, observed, sent, calls", RELEASED)
def test_calls_per_tick_are_the_released_loop_s(rows, horizon, observed, sent, calls):
    chunks = (horizon - (observed - 1)) // sent
    assert [plans.streaming_calls(rows, chunks, tick) for tick in range(3 * len(calls))] == 3 * calls


@pytest.mark.parametrize("rows, chunks", LADDERS)
def test_levels_of_a_tick_start_and_end_at_the_papers_ladder(rows, chunks):
    largest, smallest = LADDERS[rows, chunks]
    level = plans.streaming_tick(rows, chunks)
    assert tuple(to_index(level[0], rows).tolist()) == largest
    assert tuple(to_index(level[-2], rows).tolist()) == smallest
    assert float(level[-1, 0]) == 0.0


@pytest.mark.parametrize("chunks", range(1, 17))
def test_for_all_rows_calls_are_even_and_every_chunk_is_clean_after_exactly_its_rows(chunks):
    """All rows in 4..100, each over two full turns: exhaustive, not drawn."""
    for rows in range(4, 101):
        calls = [plans.streaming_calls(rows, chunks, tick) for tick in range(2 * chunks)]
        assert set(calls) <= {rows // chunks, -(-rows // chunks)}
        for start in range(chunks):
            assert sum(calls[start : start + chunks]) == rows, "a chunk that enters at any tick gets exactly its rows"
        remaining = plans.streaming_remaining(rows, chunks, torch.arange(2 * chunks))
        after = remaining - torch.tensor(calls)[:, None]
        assert not bool(after[:, 0].any()), "the first chunk is clean after its tick"
        assert int(after.min()) == 0 and bool((remaining.diff(dim=1) >= 0).all())
        assert torch.equal(after[:-1, 1:], remaining[1:, :-1]), "a chunk moves up with the level it has"
        assert bool((remaining[:, -1] == rows).all()), "the last chunk enters as pure noise"


@given(rows=st.integers(4, 100), chunks=st.integers(1, 16), tick=st.integers(0, 10**6))
def test_a_tick_falls_by_one_row_a_call_and_stays_in_zero_to_one_however_late(rows, chunks, tick):
    level = plans.streaming_tick(rows, chunks, tick)
    assert level.shape == (plans.streaming_calls(rows, chunks, tick) + 1, chunks)
    assert float(level.min()) == 0.0 and float(level[0, -1]) == 1.0 and float(level.max()) == 1.0
    assert torch.allclose(level.diff(dim=0), torch.full((len(level) - 1, chunks), -1 / rows), atol=1e-6)
    assert bool((level[-1, 0] == 0).all())


@given(units=st.integers(1, 8), rows=st.integers(1, 20), lag=st.integers(0, 25))
def test_a_staircase_takes_every_unit_from_noise_to_clean_in_its_rows(units, rows, lag):
    level = plans.staircase(units, rows, lag)
    assert level.shape == (rows + lag * (units - 1) + 1, units)
    assert bool((level[0] == 1).all()) and bool((level[-1] == 0).all())
    fall = -level.diff(dim=0)
    assert bool(((fall > 0).sum(dim=0) == rows).all())
    assert torch.allclose(fall[fall > 0], torch.tensor(1 / rows), atol=1e-6)
    for unit in range(units):
        assert int((fall[:, unit] > 0).nonzero()[0]) == unit * lag


def test_a_staircase_is_everything_from_together_to_one_by_one():
    together, one_by_one = plans.staircase(3, 4, 0), plans.staircase(3, 4, 4)
    assert torch.equal(together, torch.linspace(1, 0, 5)[:, None].expand(5, 3))
    assert bool((((one_by_one > 0) & (one_by_one < 1)).sum(dim=1) <= 1).all())
    # 12 tokens and 100 rows: together 100 calls, lag one 111, a quarter 375, one by one 1,200.
    assert [len(plans.staircase(12, 100, lag)) - 1 for lag in (0, 1, 25, 100)] == [100, 111, 375, 1200]


def test_tokens_take_the_level_of_their_unit():
    level = plans.spread(plans.staircase(2, 1, 1), torch.tensor([0, 1, 1, 0]))
    assert level.tolist() == [[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("name", plans.MODES)
def test_a_mode_treats_each_modality_as_its_table_says(name):
    layout = Layout((*LAYOUT.streams, Stream("state", "state", (1, 2), 3)))
    plan = plans.mode(layout, name, 4)
    assert plan.calls == 4
    falling = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    wanted = {
        "fall": (roles.ACTIVE, falling),
        "given": (roles.GIVEN, torch.zeros(5)),
        "noise": (roles.GIVEN, torch.ones(5)),
        "absent": (roles.ABSENT, torch.ones(5)),
    }
    for kind, treatment in plans.MODES[name].items():
        where = layout.mask(*layout.of_kind(kind)) & (layout.frame >= 0)
        role, level = wanted[treatment]
        assert set(plan.role[where].tolist()) == {role}
        assert torch.equal(plan.level[:, where], level[:, None].expand(-1, int(where.sum())))
    past = layout.frame < 0
    absent = plans.MODES[name]["action"] == "absent"
    assert set(plan.role[past].tolist()) == {roles.ABSENT if absent else roles.GIVEN}
    assert absent or not bool(plan.level[:, past].any())


def test_inversion_is_the_plan_read_upwards():
    plan = plans.mode(LAYOUT, "joint", 5)
    assert torch.equal(plan.reversed().level, plan.level.flip(0)) and torch.equal(plan.reversed().role, plan.role)
    assert torch.equal(plan.reversed().reversed().level, plan.level)


PICTURES = {
    "policy": """
        action  top  wrist
row 0   ..@@@@
row 1   ..====
row 2   ......""",
    "policy_marginal": """
        action  top  wrist
row 0   ..@@@@  @@   @@
row 1   ..====  @@   @@
row 2   ......  @@   @@""",
    "video": """
        action  top  wrist
row 0           @@   @@
row 1           ==   ==
row 2           ..   ..""",
    "video_marginal": """
        action  top  wrist
row 0   ..@@@@  @@   @@
row 1   ..@@@@  ==   ==
row 2   ..@@@@  ..   ..""",
    "forward": """
        action  top  wrist
row 0   ......  @@   @@
row 1   ......  ==   ==
row 2   ......  ..   ..""",
    "inverse": """
        action  top  wrist
row 0   ..@@@@  ..   ..
row 1   ..====  ..   ..
row 2   ......  ..   ..""",
    "joint": """
        action  top  wrist
row 0   ..@@@@  @@   @@
row 1   ..====  ==   ==
row 2   ......  ..   ..""",
}


@pytest.mark.parametrize("name", plans.MODES)
def test_the_picture_of_a_mode(name):
    assert "\n" + plans.picture(plans.mode(LAYOUT, name, 2), LAYOUT) == PICTURES[name]


def test_plans_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"mode must be one of .*'joint'.*got 'polcy'"):
        plans.mode(LAYOUT, "polcy", 4)
    with pytest.raises(ValueError, match="at least one row, got 0"):
        plans.mode(LAYOUT, "joint", 0)
    with pytest.raises(ValueError, match=r"no treatment for modalities \['video'\]"):
        plans.together(LAYOUT, {"action": "fall"}, 4)
    with pytest.raises(ValueError, match="fall, given, noise or absent, got 'rise'"):
        plans.together(LAYOUT, {"action": "fall", "video": "rise"}, 4)
    with pytest.raises(ValueError, match="lag >= 0"):
        plans.staircase(3, 4, -1)
