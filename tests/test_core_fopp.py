"""FoPP: non-decreasing levels with the exact law, checked by counting all of them."""

from itertools import combinations_with_replacement
from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uwm.core import fopp
from uwm.core.patterns import Pattern, draw
from uwm.core.streams import Layout, Stream


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@given(frames=st.integers(1, 5), entries=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_the_closed_form_counts_all_ways(frames, entries):
    every = list(combinations_with_replacement(range(entries), frames))
    assert len(every) == comb(entries + frames - 1, frames)
    for frame in range(frames):
        for entry in range(entries):
            after = {each[frame:] for each in every if each[frame] == entry}
            before = {each[: frame + 1] for each in every if each[frame] == entry}
            assert float(fopp.ways_after(frame, frames, entries)[entry].exp()) == pytest.approx(len(after))
            assert float(fopp.ways_before(frame, entries)[entry].exp()) == pytest.approx(len(before))


def test_the_ways_obey_the_papers_recurrence_where_its_table_would_overflow():
    now, after = fopp.ways_after(100, 600, 1000), fopp.ways_after(101, 600, 1000)
    # S(i, j) = S(i, j + 1) + S(i + 1, j)
    assert torch.allclose(torch.logaddexp(now[1:], after[:-1]), now[:-1], rtol=1e-9)
    assert float(now.max()) > 709, "exp of it is beyond a float64"


def test_given_the_first_frame_and_its_entry_all_completions_are_equally_likely():
    frames, entries, count = 4, 5, 120_000
    drawn = fopp.draw(count, frames, seeded(), entries)
    every = list(combinations_with_replacement(range(entries), frames))
    # Exact law: p(x) = mean over f of 1/T / (number of sequences with x_f at f).
    law = torch.zeros(len(every), dtype=torch.float64)
    for index, each in enumerate(every):
        for frame in range(frames):
            same = sum(other[frame] == each[frame] for other in every)
            law[index] += 1 / frames / entries / same
    assert float(law.sum()) == pytest.approx(1.0)
    place = {each: index for index, each in enumerate(every)}
    seen = torch.tensor([place[tuple(each)] for each in drawn.tolist()]).bincount(minlength=len(every))
    chi = float(((seen - count * law) ** 2 / (count * law)).sum())
    assert chi < len(every) + 4 * (2 * len(every)) ** 0.5


def test_its_marginals_are_not_those_of_sorted_independent_levels():
    drawn = fopp.draw(20_000, 16, seeded()).double()
    ordered = torch.randint(0, 1000, (20_000, 16), generator=seeded(1)).double().sort(dim=1).values
    assert float(drawn[:, 0].std()) > 150 and float(ordered[:, 0].std()) < 70
    assert bool((drawn.diff(dim=1) >= 0).all())


def test_as_a_pattern_frames_of_all_cameras_share_levels_that_do_not_fall():
    cameras = [Stream(name, "video", (0, 1, 2, 3), 2, (2, 1)) for name in ("front", "wrist")]
    layout = Layout(tuple(cameras))
    level = draw(Pattern(video="fopp"), layout, 50, seeded()).level
    front, wrist = level[:, layout.span("front")], level[:, layout.span("wrist")]
    assert torch.equal(front, wrist) and torch.equal(front[:, 0::2], front[:, 1::2])
    assert bool((front.diff(dim=1) >= 0).all()) and bool((level > 0).all()) and bool((level <= 1).all())


def test_ptss_is_independent_in_a_share_of_the_samples_each_on_its_own():
    layout = Layout((Stream("front", "video", (0, 1, 2), 2),))
    level = draw(Pattern(video="ptss(0.2)"), layout, 4000, seeded()).level
    apart = (level != level[:, :1]).any(dim=1)
    assert float(apart.float().mean()) == pytest.approx(0.2, abs=0.02)
    for share, wanted in ((0, False), (1, True)):
        level = draw(Pattern(video=f"ptss({share})"), layout, 50, seeded()).level
        assert bool(((level != level[:, :1]).any(dim=1) == wanted).all())
    with pytest.raises(ValueError, match=r"a share in \[0, 1\], got 1.5"):
        Pattern(video="ptss(1.5)")
    with pytest.raises(ValueError, match="a rule must be one of"):
        Pattern(video="ptss")


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="a sample, a frame and an entry"):
        fopp.draw(2, 0, seeded())
