"""Patterns: what levels and roles training draws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uwm.core import patterns, roles
from uwm.core.patterns import DEMONSTRATED, RULES, Pattern, draw, draw_mixture
from uwm.core.streams import Layout, Stream

LAYOUT = Layout(
    (
        Stream("action", "action", (-2, -1, *range(8)), 2),
        Stream("top", "video", (4, 8), 3, grid=(2, 2)),
        Stream("wrist", "video", (4, 8), 3),
    )
)
FUTURE = LAYOUT.mask("action") & (LAYOUT.frame >= 0)
PAST = LAYOUT.frame < 0
VIDEO = LAYOUT.mask("top", "wrist")
DRAWN = ("constant", "independent", "ladder", "linear", "fopp")
EVEN = sorted(set(RULES) - {"first_clean", "goal", "goal_only", "film", "steady", "along", "outcome"})  # the same role for all frames


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("video", EVEN)
@pytest.mark.parametrize("action", EVEN)
def test_every_pair_of_rules_draws_levels_in_range_and_the_role_of_the_rule(action, video):
    drawn = draw(Pattern(action=action, video=video, chunk=2), LAYOUT, 64, seeded())
    for rule, where in ((action, FUTURE), (video, VIDEO)):
        level, role = drawn.level[:, where], set(drawn.role[:, where].flatten().tolist())
        if rule in DRAWN:
            assert float(level.min()) > 0 and float(level.max()) <= 1 and float(level.std()) > 0.1
            assert role == {roles.ACTIVE}, "what is drawn is learned"
        else:
            assert set(level.flatten().tolist()) == {0.0 if rule == "given" else 1.0}
            assert role == {{"absent": roles.ABSENT, "once": roles.ACTIVE}.get(rule, roles.GIVEN)}


def test_a_ladder_may_be_bent_and_a_steady_one_has_no_phase():
    straight, bent = (draw(Pattern(action=rule, chunk=2), LAYOUT, 64, seeded()).level[:, FUTURE] for rule in ("ladder", "ladder(2)"))
    assert torch.allclose(bent, straight**2) and float(bent.max()) <= 1
    steady = draw(Pattern(action="steady", chunk=2), LAYOUT, 3, seeded()).level[:, FUTURE]
    assert torch.equal(steady, torch.tensor([0.25, 0.5, 0.75, 1.0]).repeat_interleave(2).expand(3, -1))
    behind = Pattern(action="ladder(2)", chunk=2, committed=2, rungs=2)
    level = draw(behind, LAYOUT, 200, seeded()).level[:, FUTURE]
    same = draw(Pattern(action="ladder", chunk=2, committed=2, rungs=2), LAYOUT, 200, seeded()).level[:, FUTURE]
    assert torch.allclose(level, torch.where(same == 1.0, same, same**2))
    with pytest.raises(ValueError, match="exponent above 0"):
        Pattern(action="ladder(0)")


def test_frames_go_along_with_the_actions_that_lead_to_them():
    drawn = draw(Pattern(action="ladder", video="along", chunk=4), LAYOUT, 64, seeded())
    for frame in (4, 8):
        leads, seen = LAYOUT.mask("action") & (LAYOUT.frame == frame - 1), VIDEO & (LAYOUT.frame == frame)
        assert torch.equal(drawn.level[:, seen], drawn.level[:, leads].expand(-1, int(seen.sum())))
    assert bool((drawn.role[:, VIDEO] == roles.ACTIVE).all()), "what is seen then is learned"
    short = draw(Pattern(action="ladder", video="along", chunk=2, rungs=2), LAYOUT, 4, seeded())
    assert bool((short.role[:, VIDEO & (LAYOUT.frame == 8)] == roles.ABSENT).all()), "no action leads so far"
    shared = draw(Pattern(video="along", shared=True), LAYOUT, 8, seeded()).level[:, FUTURE | VIDEO]
    assert torch.equal(shared, shared[:, :1].expand_as(shared))
    for wrong in ({"action": "along"}, {"action": "absent", "video": "along"}, {"action": "ladder", "video": "along", "committed": 2}):
        with pytest.raises(ValueError, match="along"):
            Pattern(**wrong)
    late = Layout((LAYOUT["action"], Stream("top", "video", (16,), 3)))
    with pytest.raises(ValueError, match="no action leads"):
        draw(Pattern(action="ladder", video="along"), late, 2, seeded())


def test_an_outcome_is_of_given_actions_from_noise_and_absent_where_none_leads():
    layout = Layout((LAYOUT["action"], Stream("state", "state", (1, 2, 3, 4), 3)))
    future, state = layout.mask("action") & (layout.frame >= 0), layout.mask("state")
    drawn = draw(Pattern(action="film", state="outcome"), layout, 400, seeded())
    given = (drawn.role[:, future] == roles.GIVEN).sum(dim=1)
    assert set(given.tolist()) == set(range(1, 9)), "any number of actions leads there"
    assert torch.equal((drawn.role[:, state] == roles.ACTIVE).sum(dim=1), given.clamp(max=4))
    assert bool((drawn.level[:, state] == 1).all()) and bool((drawn.level[:, future][drawn.role[:, future] == roles.GIVEN] == 0).all())
    alone = draw(Pattern(action="absent", state="outcome"), layout, 4, seeded())
    assert bool((alone.role[:, state] == roles.ABSENT).all())
    with pytest.raises(ValueError, match="not for actions"):
        Pattern(action="outcome")


def test_a_clean_first_frame_is_given_and_the_others_have_one_level():
    drawn = draw(Pattern(video="first_clean"), LAYOUT, 64, seeded())
    frame = LAYOUT.frame[VIDEO]
    first = frame == frame.min()
    level, role = drawn.level[:, VIDEO], drawn.role[:, VIDEO]
    assert not level[:, first].any() and set(role[:, first].flatten().tolist()) == {roles.GIVEN}
    assert (level[:, ~first] == level[:, ~first][:, :1]).all() and set(role[:, ~first].flatten().tolist()) == {roles.ACTIVE}
    assert float(level[:, ~first].min()) > 0 and len(set(level[:, ~first][:, 0].tolist())) == 64


@pytest.mark.parametrize(("rule", "before_is"), [("goal", roles.ACTIVE), ("goal_only", roles.ABSENT), ("film", roles.GIVEN)])
def test_a_goal_is_given_and_nothing_behind_it_is_there(rule, before_is):
    drawn, frame = draw(Pattern(video=rule), LAYOUT, 300, seeded()), LAYOUT.frame[VIDEO]
    level, role = drawn.level[:, VIDEO], drawn.role[:, VIDEO]
    chosen = torch.where(role == roles.GIVEN, frame, -1).amax(dim=1)  # the last one that is given
    assert chosen.unique().tolist() == frame.unique().tolist(), "every frame may be the goal"
    before, behind = frame[None] < chosen[:, None], frame[None] > chosen[:, None]
    assert not level[frame[None] == chosen[:, None]].any() and (role[behind] == roles.ABSENT).all() and (level[behind] == 1).all()
    assert (role[before] == before_is).all()
    assert patterns.teaches(Pattern(video=rule), ["video"]) == (rule == "goal")


@given(seed=st.integers(0, 10**6), rule=st.sampled_from(DRAWN))
def test_no_drawn_level_is_clean_or_above_noise(seed, rule):
    level = draw(Pattern(action=rule, video=rule), LAYOUT, 256, seeded(seed)).level[:, ~PAST]
    assert float(level.min()) > 0 and float(level.max()) <= 1


@pytest.mark.parametrize("rule", DRAWN)
def test_not_even_the_rarest_draw_gives_a_clean_level(rule, monkeypatch):
    """`torch.rand` returns exactly 0 once in 16 million draws: a level of 0 there would be a token with nothing to learn."""
    for draws in (torch.zeros, lambda *shape, **like: torch.full(shape, 1 - 2**-24, **like)):
        monkeypatch.setattr(patterns.torch, "rand", lambda *shape, generator, draws=draws, **like: draws(*shape, **like))
        level = draw(Pattern(action=rule, video=rule), LAYOUT, 2, seeded()).level[:, ~PAST]
        assert float(level.min()) > 0 and float(level.max()) <= 1


def test_constant_is_one_uniform_level_per_sample_and_modality():
    """UWM's square: the two modalities' levels are independent."""
    level = draw(Pattern(action="constant", video="constant"), LAYOUT, 4000, seeded()).level
    action, video = level[:, FUTURE], level[:, VIDEO]
    assert torch.equal(action, action[:, :1].expand_as(action)) and torch.equal(video, video[:, :1].expand_as(video))
    for one in (action[:, 0], video[:, 0]):
        assert torch.allclose(one.quantile(torch.tensor([0.1, 0.5, 0.9])), torch.tensor([0.1, 0.5, 0.9]), atol=0.03)
    assert abs(float(torch.corrcoef(torch.stack([action[:, 0], video[:, 0]]))[0, 1])) < 0.05


def test_independent_is_one_level_per_frame_shared_by_its_tokens_and_cameras():
    level = draw(Pattern(action="independent", video="independent"), LAYOUT, 2000, seeded()).level
    frames = LAYOUT.frame[VIDEO]
    for frame in (4, 8):
        of_frame = level[:, VIDEO][:, frames == frame]
        assert torch.equal(of_frame, of_frame[:, :1].expand_as(of_frame))
    correlation = torch.corrcoef(level[:, FUTURE].T) - torch.eye(8)
    assert float(correlation.abs().max()) < 0.1


@pytest.mark.parametrize("chunk, chunks", [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_a_ladder_has_chunk_i_at_i_plus_u_over_h_with_one_phase_per_sample(chunk, chunks):
    level = draw(Pattern(action="ladder", video="absent", chunk=chunk), LAYOUT, 2000, seeded()).level[:, FUTURE]
    phase = chunks * level - torch.arange(8) // chunk
    assert float(phase.min()) > -1e-5 and float(phase.max()) <= 1 + 1e-5
    assert torch.allclose(phase, phase[:, :1].expand_as(phase), atol=1e-5)
    assert torch.allclose(phase[:, 0].quantile(torch.tensor([0.1, 0.5, 0.9])), torch.tensor([0.1, 0.5, 0.9]), atol=0.04)


def test_a_rest_shorter_than_a_chunk_joins_the_last_one():
    level = draw(Pattern(action="ladder", video="absent", chunk=3), LAYOUT, 5, seeded()).level[:, FUTURE]
    assert torch.allclose(level.diff(dim=1), torch.tensor([0, 0, 0.5, 0, 0, 0, 0]).expand(5, 7), atol=1e-6)


def test_linear_is_a_ramp_with_a_random_phase_which_the_released_code_has_not():
    level = draw(Pattern(action="linear", video="absent"), LAYOUT, 500, seeded()).level[:, FUTURE]
    assert torch.allclose(level.diff(dim=1), torch.full((500, 7), 1 / 8), atol=1e-6)
    assert float(level[:, 0].std()) > 0.02


@pytest.mark.parametrize("longest", [0, 1, 5, 8])
def test_a_committed_prefix_is_clean_without_loss_and_of_every_length(longest):
    drawn = draw(Pattern(action="constant", video="constant", committed=longest), LAYOUT, 1000, seeded())
    committed = drawn.role[:, FUTURE] == roles.COMMITTED
    length = committed.sum(dim=1)
    assert torch.equal(committed, torch.arange(8)[None] < length[:, None])
    assert set(length.tolist()) == set(range(longest + 1))
    assert not bool(drawn.level[:, FUTURE][committed].any()) and bool((drawn.level[:, FUTURE][~committed] > 0).all())
    assert set(drawn.role[:, VIDEO].flatten().tolist()) == {roles.ACTIVE}


@given(
    seed=st.integers(0, 10**6), committed=st.integers(0, 5), rungs=st.integers(1, 5), chunk=st.integers(1, 3)
)
def test_rungs_stand_directly_behind_the_prefix_and_what_lies_beyond_is_absent(seed, committed, rungs, chunk):
    drawn = draw(Pattern(action="ladder", video="absent", chunk=chunk, committed=committed, rungs=rungs), LAYOUT, 32, seeded(seed))
    level, role = drawn.level[:, FUTURE], drawn.role[:, FUTURE]
    count = (role == roles.COMMITTED).sum(dim=1, keepdim=True)
    ahead = torch.arange(8)[None] - count
    assert int(count.max()) <= committed and not bool(level[ahead < 0].any())
    active = (ahead >= 0) & (ahead < rungs * chunk)
    assert torch.equal(role == roles.ACTIVE, active) and torch.equal(role == roles.ABSENT, ahead >= rungs * chunk)
    phase = rungs * level - ahead.div(chunk, rounding_mode="floor")
    first = phase.gather(1, count.clamp(max=7))
    assert float(level[active].min()) > 0 and float(level[active].max()) <= 1 if bool(active.any()) else True
    assert torch.allclose(torch.where(active, phase, first), first.expand(-1, 8), atol=1e-5)
    assert bool((level[role == roles.ABSENT] == 1).all())


def test_steady_rungs_are_where_the_buffer_stands_between_two_ticks():
    drawn = draw(Pattern(action="steady", video="absent", chunk=2, committed=1, rungs=2), LAYOUT, 32, seeded())
    level, role = drawn.level[:, FUTURE], drawn.role[:, FUTURE]
    for sample, held in zip(level, (role == roles.COMMITTED).sum(dim=1).tolist(), strict=True):
        assert sample[held : held + 4].tolist() == [0.5, 0.5, 1.0, 1.0] and not sample[:held].any()


def test_rungs_change_no_number_of_patterns_without_them():
    """The draws of a seed, as they were before there were rungs."""
    level = draw(Pattern(action="ladder", video="absent", chunk=2, committed=3), LAYOUT, 2, seeded()).level[:, FUTURE]
    generator = seeded()
    phase, count = 1 - torch.rand(2, 1, generator=generator), None
    patterns.RULES["absent"](LAYOUT.frame[VIDEO], 2, 2, generator)
    count = torch.randint(0, 4, (2, 1), generator=generator)
    wanted = torch.where(torch.arange(8)[None] < count, 0.0, (torch.arange(8) // 2 + phase) / 4)
    assert torch.equal(level, wanted)


def test_a_loose_prefix_has_one_level_per_sample_up_to_its_bound_and_its_length_stays_as_it_was():
    firm, loose = (draw(Pattern(committed=4, video="absent", loose=bound), LAYOUT, 2000, seeded()) for bound in (0.0, 0.4))
    assert torch.equal(firm.role[:, FUTURE], loose.role[:, FUTURE])
    prefix = loose.role[:, FUTURE] == roles.COMMITTED
    held = loose.level[:, FUTURE]
    some = prefix.any(dim=1)
    highest = torch.where(prefix, held, 0.0).amax(dim=1)
    assert bool((torch.where(prefix, held, highest[:, None]) == highest[:, None]).all()) and float(highest.max()) <= 0.4
    assert float(highest[some].mean()) == pytest.approx(0.2, abs=0.01) and bool((highest[some] > 0).all())
    with pytest.raises(ValueError, match="loose is a level"):
        Pattern(loose=1.5)


def test_absent_actions_are_never_committed():
    drawn = draw(Pattern(action="absent", committed=5), LAYOUT, 200, seeded())
    assert set(drawn.role[:, FUTURE].flatten().tolist()) == {roles.ABSENT}


@pytest.mark.parametrize("action", EVEN)
def test_past_actions_are_clean_and_the_most_recent_ones_are_shown_in_every_number(action):
    drawn = draw(Pattern(action=action), LAYOUT, 900, seeded())
    role = drawn.role[:, PAST]
    assert not bool(drawn.level[:, PAST].any()) and set(role.flatten().tolist()) == {roles.GIVEN, roles.ABSENT}
    shown = role == roles.GIVEN
    counts = torch.bincount(shown.sum(dim=1), minlength=3)
    assert bool(((counts - 300).abs() < 60).all())
    assert bool((shown[:, 1] >= shown[:, 0]).all()), "frame -1 is never hidden while -2 is shown"


def test_a_mixture_has_its_shares_and_every_sample_follows_its_pattern():
    mixture = (Pattern(3.0, "ladder", "absent"), Pattern(1.0, "given", "constant"), Pattern(0.0, "noise", "noise"))
    drawn = draw_mixture(mixture, LAYOUT, 4000, seeded())
    share = torch.bincount(drawn.pattern, minlength=3) / 4000
    assert torch.allclose(share, torch.tensor([0.75, 0.25, 0.0]), atol=0.03)
    first, second = drawn.pattern == 0, drawn.pattern == 1
    assert set(drawn.role[first][:, VIDEO].flatten().tolist()) == {roles.ABSENT}
    assert set(drawn.role[first][:, FUTURE].flatten().tolist()) == {roles.ACTIVE}
    assert not bool(drawn.level[second][:, FUTURE].any())
    assert set(drawn.role[second][:, VIDEO].flatten().tolist()) == {roles.ACTIVE}
    assert patterns.shares(mixture) == {
        "action ladder, video absent": 0.75, "action given, video constant": 0.25, "action noise, video noise": 0.0,
    }  # fmt: skip


def test_the_generator_decides_and_nothing_else():
    mixture = (Pattern(1.0, "ladder", "independent", committed=2), Pattern(1.0, "constant", "absent"))
    first, again, other = (draw_mixture(mixture, LAYOUT, 32, seeded(seed)) for seed in (1, 1, 2))
    torch.manual_seed(123)
    assert torch.equal(first.level, again.level) and torch.equal(first.role, again.role)
    assert torch.equal(first.pattern, again.pattern)
    assert not torch.equal(first.level, other.level)


def test_a_layout_without_actions_or_without_video_is_drawn_too():
    for names in (["action"], ["top", "wrist"]):
        part = LAYOUT.select(names)
        assert draw(Pattern(committed=2), part, 3, seeded()).level.shape == (3, part.tokens)


def test_patterns_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"pattern of video: a rule must be one of .*'ladder'.*got 'stairs'"):
        Pattern(video="stairs")
    for wrong in ({"weight": -1.0}, {"chunk": 0}, {"committed": -1}, {"rungs": -1}):
        with pytest.raises(ValueError, match="must be >= 0 and chunk >= 1"):
            Pattern(**wrong)
    with pytest.raises(ValueError, match="rungs belong to a ladder"):
        Pattern(action="constant", rungs=2)
    for none in ((), (Pattern(0.0),)):
        with pytest.raises(ValueError, match="at least one pattern with a positive weight"):
            draw_mixture(none, LAYOUT, 4, seeded())


def test_samples_that_lack_a_kind_of_stream_draw_only_patterns_that_teach_them_something():
    mixture = (Pattern(0.6, "ladder", "absent"), Pattern(0.1, "constant", "given"), Pattern(0.2, "given", "constant"), Pattern(0.1))
    there = torch.arange(4000) % 2 == 0
    for has, usable in (({"action": there}, [2, 3]), ({"video": there}, [0, 1, 3])):
        choice = draw_mixture(mixture, LAYOUT, 4000, seeded(), has).pattern
        weights = torch.tensor([pattern.weight for pattern in mixture])
        assert set(choice[~there].tolist()) == set(usable)
        for part, allowed in ((there, [0, 1, 2, 3]), (~there, usable)):
            share = torch.bincount(choice[part], minlength=4) / int(part.sum())
            kept = torch.zeros(4)
            kept[allowed] = weights[allowed] / weights[allowed].sum()
            torch.testing.assert_close(share, kept, atol=0.04, rtol=0)


def test_what_is_not_to_be_imitated_draws_only_what_follows_from_actions_or_explains_them():
    forward, inverse = Pattern(0.2, "given", "constant"), Pattern(0.1, "constant", "given")
    mixture = (Pattern(0.4, "ladder", "absent"), Pattern(0.3), inverse, forward)
    shown = torch.arange(4000) % 2 == 0
    choice = draw_mixture(mixture, LAYOUT, 4000, seeded(), {DEMONSTRATED: shown}).pattern
    assert set(choice[~shown].tolist()) == {2, 3} and set(choice[shown].tolist()) == {0, 1, 2, 3}
    assert float((choice[~shown] == 3).float().mean()) == pytest.approx(2 / 3, abs=0.04)
    filmless = draw_mixture(mixture, LAYOUT, 4000, seeded(), {DEMONSTRATED: shown, "video": shown}).pattern
    assert set(filmless[~shown].tolist()) == {2}, "without video there is nothing to foresee"
    with pytest.raises(ValueError, match="what is not to be imitated needs a pattern"):
        draw_mixture(mixture[:2], LAYOUT, 4, seeded(), {DEMONSTRATED: shown[:4]})


def test_a_kind_that_all_samples_have_changes_no_draw():
    mixture = (Pattern(0.5, "ladder", "absent"), Pattern(0.5))
    one = draw_mixture(mixture, LAYOUT, 64, seeded())
    other = draw_mixture(mixture, LAYOUT, 64, seeded(), {"action": torch.ones(64, dtype=torch.bool)})
    assert torch.equal(one.pattern, other.pattern) and torch.equal(one.level, other.level)
