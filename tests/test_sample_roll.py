"""The rolling buffer: calls and levels per tick, a state that is a value, and the seam at chunk borders that the past removes."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle import DTYPE, PATHS, Columns, Gaussian, autoregressive, correlated, unchecked_shapes
from uwm.core import plans, roles
from uwm.core.streams import Stream
from uwm.noise.gaussian import corrupt
from uwm.sample import roll, steps
from uwm.sample.loop import sample
from uwm.sample.roll import Buffer, Ladder

COSINE = PATHS["cosine"]
RULES = [steps.ddim(), steps.ancestral, steps.dpmpp_2m, steps.heun]
EVERY_RULE = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


class Watched:
    """The oracle as the denoiser of a buffer; keeps the levels of every call."""

    def __init__(self, world, buffer):
        self.exact, self.role, self.levels = world.denoiser(COSINE, roll.role(buffer)), roll.role(buffer), []

    def __call__(self, x, level):
        self.levels.append(level)
        return self.exact(x, level)


def world_of(ladder):
    return correlated(ladder.past + ladder.horizon, seed=1)


def act(buffer, ladder, rule=RULES[0], world=None):
    """One tick and one roll with what was sent executed as it is: (buffer, sent, levels of the calls)."""
    denoise = Watched(world or world_of(ladder), buffer)
    buffer, sent = roll.tick(buffer, ladder, denoise, COSINE, rule)
    return roll.roll(buffer, ladder, sent), sent, denoise.levels


def same(first, second):
    """Bit for bit, tensor by tensor."""
    first, second = first.tensors(), second.tensors()
    return all(first[k].dtype == second[k].dtype and torch.equal(first[k], second[k]) for k in first | second)


@pytest.mark.parametrize("rows, chunks, chunk", [(8, 4, 2), (10, 3, 2), (7, 7, 1), (3, 5, 1), (5, 1, 4)])
def test_calls_and_levels_of_every_tick_are_the_plan_s(rows, chunks, chunk):
    ladder = Ladder(rows, chunk, chunks, past=1, primer="zero")
    buffer = roll.empty(ladder, [0], 1, DTYPE)
    for tick in range(2 * chunks):
        buffer, _, levels = act(buffer, ladder)
        wanted = plans.streaming_tick(rows, chunks, tick)[:-1].repeat_interleave(chunk, dim=1)
        assert len(levels) == plans.streaming_calls(rows, chunks, tick)
        if levels:
            got = torch.cat(levels)
            assert torch.equal(got[:, ladder.past :].float(), wanted) and not bool(got[:, : ladder.past].any())
        assert int(buffer.tick) == tick + 1


def test_the_denoise_primer_costs_the_rows_once_or_what_it_is_told_and_the_zero_primer_nothing():
    for primer, told, extra in (("denoise", 0, 12), ("denoise", 5, 5), ("denoise", 24, 24), ("zero", 0, 0)):
        ladder = Ladder(12, 2, 3, primer=primer, primer_rows=told)
        assert ladder.primer_calls == extra
        buffer, _, first = act(roll.empty(ladder, [0], 1, DTYPE), ladder)
        assert len(first) == extra + 4 and not bool(buffer.fresh.any())
        assert len(act(buffer, ladder)[2]) == 4
    with pytest.raises(ValueError, match="belongs to the primer 'denoise'"):
        Ladder(12, 2, 3, primer="zero", primer_rows=4)


def test_a_fresh_buffer_is_primed_to_the_ladder_around_its_mean():
    """The zero primer: chunk i has sigma(level) of noise, over 2,000 streams."""
    ladder = Ladder(8, 1, 4, past=0, primer="zero")
    buffer = roll.empty(ladder, range(2000), 1)
    primed, _ = roll.tick(buffer, ladder, lambda x, level: x, COSINE, _frozen())
    wanted = COSINE.sigma(torch.tensor([0.25, 0.5, 0.75, 1.0]))
    assert torch.allclose(primed.future[..., 0].std(dim=0), wanted, atol=0.06)
    assert bool((primed.future[..., 0].mean(dim=0).abs() < 0.08).all())


def test_the_constant_primer_begins_with_the_last_executed_action_or_what_holds_still():
    ladder = Ladder(8, 1, 4, past=2, primer="constant")
    buffer = roll.empty(ladder, range(2000), 1, still=torch.full((2000, 1), 3.0))
    primed, _ = roll.tick(buffer, ladder, lambda x, level: x, COSINE, _frozen())
    wanted = 3.0 * COSINE.alpha(torch.tensor([0.25, 0.5, 0.75, 1.0]))
    assert torch.allclose(primed.future[..., 0].mean(dim=0), wanted, atol=0.08)
    assert not bool(buffer.known.any()), "what holds the robot still was not executed, and is not given"
    moved = roll.recall(buffer, torch.full((2000, 1, 1), -3.0))
    primed, _ = roll.tick(moved, ladder, lambda x, level: x, COSINE, _frozen())
    assert torch.allclose(primed.future[..., 0].mean(dim=0), -wanted, atol=0.08)
    with pytest.raises(ValueError, match="past must be at least 1"):
        Ladder(8, 1, 4, past=0, primer="constant")


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0])
def test_a_shape_bends_the_ladder_and_its_ends_stay(shape):
    ladder = Ladder(8, 2, 4, past=1, primer="zero", shape=shape)
    buffer = roll.empty(ladder, [0], 1, DTYPE)
    denoise = Watched(world_of(ladder), buffer)
    ticked, _ = roll.tick(buffer, ladder, denoise, COSINE, RULES[0])
    straight = plans.streaming_tick(8, 4)
    for level, row in zip(denoise.levels, straight, strict=False):
        assert torch.allclose(level[0, 1:], (row**shape).repeat_interleave(2).to(level))
    assert torch.allclose(roll.levels(ticked, ladder)[0], (straight[-1] ** shape).repeat_interleave(2))
    assert torch.equal(plans.streaming_tick(8, 4, shape=shape)[-1], straight[-1] ** shape)


def test_a_warm_start_takes_the_last_rows_from_the_plan_before_and_a_first_plan_takes_all():
    ladder = Ladder(10, 6, 1, past=1, primer="zero")
    world = world_of(ladder)
    first, plan = roll.tick(roll.empty(ladder, [0, 1], 1, DTYPE), ladder, Watched(world, roll.empty(ladder, [0, 1], 1)), COSINE, RULES[0])
    begun = roll.advance(first, Ladder(10, 2, 3, past=1, primer="zero"))
    new = begun.reset(torch.tensor([False, True]), torch.tensor([5, 6]))
    denoise = Watched(world, new)
    after, again = roll.again(new, ladder, denoise, COSINE, RULES[0], kept=4, begin=3)
    assert len(denoise.levels) == 10 and not bool(after.fresh.any())
    assert torch.equal(denoise.levels[0][:, 1:].amax(dim=1), torch.tensor([0.3, 1.0])), "the new stream has no plan yet"
    _, anew = roll.again(new, ladder, Watched(world, new), COSINE, RULES[0], kept=4, begin=10)
    near, far = (float((each[0, :4] - plan[0, 2:]).square().mean()) for each in (again, anew))
    assert near < 0.3 * far, "a plan that was noised a little is still the same plan"
    for wrong in ({"kept": 4, "begin": 0}, {"kept": 0, "begin": 3}, {"kept": 7, "begin": 3}, {"kept": 4, "begin": 11}):
        with pytest.raises(ValueError, match="begin lies in"):
            roll.again(new, ladder, denoise, COSINE, RULES[0], **wrong)


@pytest.mark.parametrize("share, extra", [(0.0, 0), (0.1, 0), (0.5, 2), (1.0, 6)])
def test_a_revised_buffer_goes_back_a_share_of_its_rows_and_down_to_its_ladder(share, extra):
    """Eight rows, four chunks: the first chunk has two calls before it, so going back four rows costs two calls."""
    ladder = Ladder(8, 2, 4, past=1, primer="zero")
    buffer, _, _ = act(roll.empty(ladder, [0], 1, DTYPE), ladder)
    denoise = Watched(world_of(ladder), buffer)
    after, sent = roll.tick(buffer, ladder, denoise, COSINE, RULES[0], revised=torch.tensor([share]))
    levels = torch.cat(denoise.levels)[:, ladder.past :: ladder.chunk].float()
    ladder_now = torch.tensor([0.25, 0.5, 0.75, 1.0])
    assert len(levels) == extra + 2 and sent.shape == (1, 2, 1)
    assert torch.equal(levels[0], ladder_now.clamp(min=share))
    assert torch.equal(levels[extra], ladder_now) and bool((levels.diff(dim=0) <= 0).all())
    if not extra:
        plain, same_sent = roll.tick(buffer, ladder, Watched(world_of(ladder), buffer), COSINE, RULES[0])
        assert torch.equal(sent, same_sent) and same(after, plain), "what is no surprise changes nothing, bit for bit"


def test_a_revised_batch_gives_what_single_streams_give():
    ladder, shares = Ladder(8, 2, 4, past=1, primer="zero"), [0.0, 0.5, 1.0]
    world = world_of(ladder)
    begun = [act(roll.empty(ladder, [seed], 1, DTYPE), ladder)[0] for seed in range(3)]
    together = Buffer.from_tensors({name: torch.cat([each.tensors()[name] for each in begun]) for name in begun[0].tensors()})
    _, sent = roll.tick(together, ladder, Watched(world, together), COSINE, RULES[0], revised=torch.tensor(shares))
    for index, share in enumerate(shares):
        _, alone = roll.tick(begun[index], ladder, Watched(world, begun[index]), COSINE, RULES[0], revised=torch.tensor([share]))
        torch.testing.assert_close(sent[index : index + 1], alone)
    for wrong in (torch.tensor([0.5]), torch.tensor([0.0, 0.5, 1.5])):
        with pytest.raises(ValueError, match="one share of the rows"):
            roll.tick(together, ladder, Watched(world, together), COSINE, RULES[0], revised=wrong)


def test_noising_a_buffer_again_leaves_it_on_the_path():
    """With an exact denoiser a revised buffer has the moments that its ladder wants, though its first chunks were nearly clean."""
    ladder = Ladder(24, 1, 3, past=0, primer="zero")
    world = Gaussian(torch.tensor([1.0, 0.5, -1.0], dtype=DTYPE), autoregressive(3, 0.6))
    level = ladder.level(plans.streaming_remaining(24, 3, torch.zeros(1, dtype=torch.int64))).double()
    clean = world.mean + torch.randn(20_000, 3, dtype=DTYPE, generator=torch.Generator().manual_seed(0)) @ torch.linalg.cholesky(
        world.covariance
    ).T
    noise = torch.randn(20_000, 3, 1, dtype=DTYPE, generator=torch.Generator().manual_seed(1))
    start = roll.empty(ladder, range(20_000), 1, DTYPE)
    on_ladder = corrupt(COSINE, clean[..., None], noise, level.expand(20_000, -1))
    buffer = Buffer.from_tensors({**start.tensors(), "future": on_ladder, "fresh": torch.zeros(20_000, dtype=torch.bool)})
    raised, _ = roll.tick(buffer, ladder, lambda x, at: x, COSINE, _frozen(), revised=torch.full((20_000,), 0.75))
    high = level.clamp(min=0.75)[0]
    alpha, sigma = COSINE.alpha(high), COSINE.sigma(high)
    wanted = alpha[:, None] * world.covariance * alpha + torch.diag(sigma**2)
    assert torch.allclose(raised.future[..., 0].mean(dim=0), alpha * world.mean, atol=0.03)
    assert torch.allclose(torch.cov(raised.future[..., 0].T), wanted, atol=0.03)


def test_what_a_chunk_foresaw_is_kept_until_it_can_be_seen():
    ladder = Ladder(4, 2, 3, past=1, primer="zero", seen=3)
    buffer = roll.empty(ladder, [0], 4, DTYPE)
    assert buffer.future.shape == (1, 15, 4) and buffer.expected.shape == (1, 3, 4)
    ticked, sent = roll.tick(buffer, ladder, lambda x, level: x, COSINE, _frozen())
    assert torch.equal(sent, ticked.future[:, :2]), "of the first chunk's five tokens two are actions"
    rolled = roll.roll(ticked, ladder, sent)
    assert torch.equal(rolled.expected, ticked.future[:, 2:5]) and torch.equal(rolled.future[:, :10], ticked.future[:, 5:])
    assert torch.equal(roll.levels(ticked, ladder)[:, :5], torch.zeros(1, 5))
    with pytest.raises(ValueError, match="frames need a primer"):
        Ladder(4, 2, 3, primer="constant", seen=3)


def _frozen():
    """A rule that moves nothing: shows what a tick starts from."""
    return steps.StepRule("frozen", 0, lambda denoise, path, x, a, b, carry, randomness: steps.Moved(x, carry, randomness))


def test_roles_show_as_many_past_actions_as_were_executed():
    ladder = Ladder(4, 1, 3, past=3, primer="zero")
    buffer = roll.empty(ladder, [0], 1, DTYPE)
    for known in (0, 1, 2, 3, 3):
        expected = [roles.ABSENT] * (3 - known) + [roles.GIVEN] * known + [roles.ACTIVE] * 3
        assert roll.role(buffer).tolist() == [expected]
        buffer, _, _ = act(buffer, ladder)


def test_what_was_executed_becomes_the_past_and_not_what_was_sent():
    ladder = Ladder(4, 2, 2, past=3, primer="zero")
    buffer, sent, _ = act(roll.empty(ladder, [0], 1, DTYPE), ladder)
    denoise = Watched(world_of(ladder), buffer)
    ticked, sent_next = roll.tick(buffer, ladder, denoise, COSINE, steps.ddim())
    assert torch.equal(ticked.future[:, :2], sent_next)
    rolled = roll.roll(ticked, ladder, torch.tensor([[[7.0], [8.0]]], dtype=DTYPE))
    assert torch.equal(rolled.past, torch.tensor([[[sent[0, 1, 0]], [7.0], [8.0]]], dtype=DTYPE))
    assert torch.equal(rolled.future[:, :2], ticked.future[:, 2:])


@EVERY_RULE
def test_saved_and_restored_in_the_middle_is_bitwise_as_if_never_stopped(rule, tmp_path):
    ladder = Ladder(10, 2, 3)
    buffer = roll.empty(ladder, [4, 5], 1, DTYPE)
    for _ in range(2):
        buffer, _, _ = act(buffer, ladder, rule)
    torch.save(buffer.tensors(), tmp_path / "buffer.pt")
    restored = Buffer.from_tensors(torch.load(tmp_path / "buffer.pt", weights_only=True))
    assert same(buffer, restored)
    for _ in range(4):
        (buffer, sent, _), (restored, sent_again, _) = act(buffer, ladder, rule), act(restored, ladder, rule)
        assert torch.equal(sent, sent_again) and same(buffer, restored)


@EVERY_RULE
@pytest.mark.parametrize("primer", roll.PRIMERS)
def test_resetting_one_environment_leaves_the_others_untouched(rule, primer):
    """Rows that chunks do not divide: after the reset the environments need different numbers of calls in a tick."""
    ladder = Ladder(7, 2, 3, primer=primer)
    buffer = roll.empty(ladder, [4, 5, 6], 1, DTYPE)
    for _ in range(2):
        buffer, _, _ = act(buffer, ladder, rule)
    mask, others = torch.tensor([False, True, False]), [0, 2]
    changed = buffer.reset(mask, torch.tensor([0, 9, 0]))
    alone = roll.empty(ladder, [9], 1, DTYPE)
    for name, value in changed.tensors().items():
        assert torch.equal(value[others], buffer.tensors()[name][others]), name
        assert torch.equal(value[1:2], alone.tensors()[name]), name
    for _ in range(5):
        buffer, sent, _ = act(buffer, ladder, rule)
        changed, sent_changed, _ = act(changed, ladder, rule)
        alone, sent_alone, _ = act(alone, ladder, rule)
        assert torch.equal(sent_changed[others], sent[others])
        assert torch.allclose(sent_changed[1:2], sent_alone, rtol=0, atol=1e-10)
        for name, value in changed.tensors().items():
            assert torch.equal(value[others], buffer.tensors()[name][others]), name
    assert not torch.equal(sent_changed[1], sent[1])


@EVERY_RULE
def test_batched_equals_single(rule):
    ladder, seeds = Ladder(7, 2, 3), [4, 5, 6]
    together = roll.empty(ladder, seeds, 1, DTYPE)
    single = [roll.empty(ladder, [seed], 1, DTYPE) for seed in seeds]
    for _ in range(4):
        together, sent, _ = act(together, ladder, rule)
        for index in range(3):
            single[index], own, _ = act(single[index], ladder, rule)
            assert torch.allclose(sent[[index]], own, rtol=0, atol=1e-10)
    assert torch.equal(together.randomness.count, torch.cat([buffer.randomness.count for buffer in single]))


@pytest.mark.parametrize("rule", [steps.ddim(), steps.heun, steps.euler], ids=lambda rule: rule.name)
@pytest.mark.parametrize("rows", [4, 8, 12])
def test_a_chunk_comes_down_the_ladder_as_it_would_in_one_go(rule, rows):
    """Where no token looks at another."""
    for sent, begun in comes_down(rows, rule):
        level = torch.linspace(1, 0, rows + 1, dtype=DTYPE)[:, None].expand(-1, 2)
        assert torch.allclose(sent, sample(apart, COSINE, begun, level, rule)[0], rtol=0, atol=1e-6)


def test_a_rule_looks_back_within_a_tick_and_not_to_the_one_before():
    """With one call a tick there is nothing to look back to; two calls are a first and a second one, every time."""
    sent = {rows: [[part for part, _ in comes_down(rows, rule)] for rule in (steps.dpmpp_2m, steps.ddim())] for rows in (4, 8)}
    assert all(torch.equal(*both) for both in zip(*sent[4], strict=True))
    assert not any(torch.equal(*both) for both in zip(*sent[8], strict=True))


def apart(x, level):
    """A denoiser to which every token is alone."""
    return 0.8 * torch.tanh(x) * (1.2 - level[..., None] ** 2)


def comes_down(rows, rule):
    """(what a buffer of four chunks sends, the noise that it was when it joined)."""
    ladder = Ladder(rows, chunk=2, chunks=4, past=1, primer="zero")
    buffer, begun = roll.empty(ladder, [4, 5], 1, DTYPE), []
    for tick in range(10):
        buffer, sent = roll.tick(buffer, ladder, apart, COSINE, rule)
        if tick >= ladder.chunks:
            yield sent, begun[tick - ladder.chunks]
        buffer = roll.roll(buffer, ladder, sent)
        begun.append(buffer.future[:, -ladder.chunk :])


@cache
def streamed(past, ticks=16, mean=0.7, shape=1.0):
    """Everything that a buffer over an AR(1) of correlation 0.9 sends, exactly: (mean (T,), covariance (T, T)).

    Four chunks of two and 100 calls a tick. Every random number has a column of its own, so nothing is estimated.
    """
    ladder = Ladder(rows=400, chunk=2, chunks=4, past=past, primer="denoise", shape=shape)
    tokens = past + ladder.horizon
    world = Gaussian(torch.full((tokens,), mean, dtype=DTYPE), autoregressive(tokens, 0.9))
    size = 2 * ladder.horizon + ladder.chunk * ticks + 1
    buffer, sent = roll.empty(ladder, [0], size, DTYPE), []
    buffer = Buffer(**{**vars(buffer), "randomness": Columns.fresh()})
    with unchecked_shapes():
        for _ in range(ticks):
            buffer, chunk, _ = act(buffer, ladder, steps.ddim(), world)
            sent.append(chunk[0])
    sent = torch.cat(sent)
    matrix = sent - sent[:, -1:]
    return sent[:, -1], matrix @ matrix.T


def jumps(covariance, first):
    """Expected squared difference of neighbours, from token `first` on, every second one."""
    index = torch.arange(first, len(covariance) - 1, 2)
    variance = covariance.diagonal()
    return float((variance[index] + variance[index + 1] - 2 * covariance[index, index + 1]).mean())


def test_executed_actions_kept_as_given_tokens_remove_the_seam():
    """Without a past, each chunk meets the one before it only while both are noisy, and then that one is gone."""
    settled = slice(8, None)  # the first tokens were sent while the first filling still was in the buffer
    _, without = streamed(past=0)
    _, with_one = streamed(past=1)
    at_border, inside = jumps(without[settled, settled], 1), jumps(without[settled, settled], 0)
    assert at_border == pytest.approx(0.305, abs=0.002)
    assert inside == pytest.approx(0.2, rel=0.02)
    assert jumps(with_one[settled, settled], 1) == pytest.approx(0.2, rel=0.02)
    assert jumps(with_one[settled, settled], 0) == pytest.approx(0.2, rel=0.02)


def test_more_past_than_one_action_adds_nothing_to_a_process_without_memory():
    """An AR(1) given its last value forgets the rest; so must the exact denoiser, and the buffer with it."""
    assert torch.allclose(streamed(past=1, ticks=8)[1], streamed(past=3, ticks=8)[1], atol=1e-9)


@pytest.mark.parametrize(("past", "shape"), [(0, 1.0), (2, 1.0), (1, 2.0), (1, 0.6)])
def test_the_streamed_marginal_is_the_exact_one_on_ladders_of_any_shape(past, shape):
    """Mean and variance of every action sent, from the first tick on."""
    mean, covariance = streamed(past, shape=shape)
    assert torch.allclose(mean, torch.full_like(mean, 0.7), rtol=0.02)
    assert torch.allclose(covariance.diagonal(), torch.ones_like(mean), rtol=0.02)


def test_streams_with_a_past_have_the_correlations_of_the_process():
    """Not only neighbours: everything sent, eleven chunks of it, is one AR(1)."""
    _, covariance = streamed(past=1, ticks=11)
    assert torch.allclose(covariance, autoregressive(22, 0.9), atol=0.02)


@settings(max_examples=20)
@given(
    ladder=st.builds(
        Ladder, st.integers(1, 9), st.integers(1, 3), st.integers(1, 5), st.integers(0, 4), st.sampled_from(roll.PRIMERS)
    ),
    seed=st.integers(0, 9),
)
def test_any_ladder_sends_finite_chunks_and_keeps_its_shape(ladder, seed):
    buffer = roll.empty(ladder, [seed], 1, DTYPE)
    for tick in range(1, 4):
        buffer, sent, _ = act(buffer, ladder)
        assert sent.shape == (1, ladder.chunk, 1) and bool(torch.isfinite(sent).all())
        assert buffer.past.shape[1] == ladder.past and int(buffer.known) == min(ladder.past, tick * ladder.chunk)
        assert buffer.future.shape == (1, ladder.horizon, 1)


def test_a_ladder_takes_its_frames_from_what_was_trained_or_says_what_is_too_long():
    trained = Stream("action", "action", tuple(range(-2, 8)), 7)
    stream = Ladder(rows=4, chunk=2, chunks=3, past=1).stream(trained)
    assert stream.frames == tuple(range(-1, 6)) and (stream.name, stream.size) == ("action", 7)
    with pytest.raises(ValueError, match=r"-2 to 9, but the model was trained on -2 to 7: use fewer"):
        Ladder(rows=4, chunk=2, chunks=5, past=2).stream(trained)
    with pytest.raises(ValueError, match="fewer past actions"):
        Ladder(rows=4, chunk=2, chunks=2, past=3).stream(trained)


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"chunk": 0}, {"chunks": 0}, {"past": -1}, {"primer": "hope"}, {"shape": 0.0}])
def test_a_ladder_refuses_what_cannot_be_run(wrong):
    with pytest.raises(ValueError, match="must be"):
        Ladder(**{"rows": 4, "chunk": 2, "chunks": 2, **wrong})


def test_executed_actions_of_another_shape_are_refused():
    ladder = Ladder(4, 2, 2, past=1)
    buffer, sent, _ = act(roll.empty(ladder, [0, 1], 1, DTYPE), ladder)
    with unchecked_shapes(), pytest.raises(ValueError, match=r"must be \(2, 2, 1\), got \(2, 1, 1\)"):
        roll.roll(buffer, ladder, sent[:, :1])


@pytest.mark.parametrize("primer", ["denoise", "zero"])
def test_committed_actions_are_held_at_the_ladders_looseness_and_lean_less_on_what_follows(primer):
    sent = {}
    world = correlated(1 + 2 + 4, seed=3)
    for loose in (0.0, 0.25):
        ladder = Ladder(4, 2, 2, past=1, primer=primer, loose=loose)
        for committed in (-2.0, 2.0):
            buffer = roll.recall(roll.empty(ladder, [7], 1, DTYPE), torch.zeros(1, 1, 1, dtype=DTYPE))
            prefix, levels, seen = torch.full((1, 2, 1), committed, dtype=DTYPE), [], []
            role = roll.role(buffer, 2)

            def denoise(x, level, role=role, levels=levels, seen=seen):
                levels.append(level[:, 1:3])
                seen.append(x[:, 1:3])
                return world.denoiser(COSINE, role)(x, level)

            buffer, sent[loose, committed] = roll.tick(buffer, ladder, denoise, COSINE, RULES[0], prefix)
            assert bool((torch.cat(levels) == loose).all())
            assert all(torch.equal(each, seen[0]) for each in seen) and torch.equal(seen[0], prefix) == (loose == 0)
    firm, loose = ((sent[level, 2.0] - sent[level, -2.0]).abs()[0, 0] for level in (0.0, 0.25))
    assert float(loose) < float(firm)


def test_looseness_is_a_level():
    with pytest.raises(ValueError, match="loose is a level"):
        Ladder(4, 2, 2, loose=1.1)
