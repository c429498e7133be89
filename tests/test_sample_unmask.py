"""Words are revealed with the right chances, cached answers are exact and counted, and words and frames share a plan."""

import itertools

import pytest
import torch

import tiny
from oracle import unchecked_shapes
from uwm.core import roles
from uwm.core.patterns import Pattern
from uwm.core.streams import Layout, Stream
from uwm.noise import absorbing
from uwm.noise.gaussian import path
from uwm.sample import steps
from uwm.sample.denoise import Denoiser, denoiser
from uwm.sample.loop import sample
from uwm.sample.modes import generate
from uwm.sample.randomness import Randomness
from uwm.sample.unmask import Cached, draw, unmask, unmask_one
from words import LENGTH, SEQUENCES, SIZE, probabilities, true_logits

LAYOUT = Layout((Stream("text", "word", tuple(range(LENGTH)), SIZE),))


def perfect(x, level, role, layout, context):
    return true_logits(x.argmax(dim=-1), (x == 0).all(dim=-1))


def exact(count):
    return Denoiser(perfect, path("cosine"), "clean", LAYOUT, roles.full(count, LENGTH))


def run(rule, rows, count, seed=0, denoise=None):
    level = torch.linspace(1, 0, rows + 1, dtype=torch.float64)[:, None].expand(-1, LENGTH)
    denoise = denoise or exact(count)
    x = torch.zeros(count, LENGTH, SIZE, dtype=torch.float64)
    return sample(denoise, path("cosine"), x, level, rule, Randomness.seeded(range(seed, seed + count)))[0]


def frequencies(x):
    index = (x.argmax(dim=-1) * SIZE ** torch.arange(LENGTH - 1, -1, -1)).sum(dim=1)
    return index.bincount(minlength=len(SEQUENCES)).double() / len(x)


@pytest.mark.parametrize(("rule", "rows"), [(unmask(), 64), (unmask_one(), LENGTH)])
def test_with_true_conditionals_the_samples_have_the_true_distribution(rule, rows):
    """One by one the sampler is exact; independently it becomes so as rows grow."""
    with unchecked_shapes():
        found = frequencies(run(rule, rows, 6000))
    distance = float((found - probabilities()).abs().sum()) / 2
    floor = float((probabilities() * (1 - probabilities()) / 6000).sqrt().sum()) / 2  # of a perfect sampler
    assert distance < 1.5 * floor + (0.02 if rows == 64 else 0.0)


def test_every_word_is_revealed_in_the_end_and_none_changes_afterwards():
    seen = []
    level = torch.linspace(1, 0, 6)[:, None].expand(-1, LENGTH)
    x = torch.zeros(50, LENGTH, SIZE)
    out, _ = sample(exact(50), path("cosine"), x, level, unmask(), Randomness.seeded(range(50)), lambda index, x: seen.append(x.clone()))
    assert bool((out.sum(dim=-1) == 1).all())
    for before, after in itertools.pairwise(seen):
        there = before.sum(dim=-1) == 1
        assert torch.equal(before[there], after[there])


def test_a_share_of_the_words_as_large_as_the_level_is_masked_on_the_way():
    level = torch.tensor([1.0, 0.7, 0.2])[:, None].expand(-1, LENGTH)
    shares = []
    sample(exact(4000), path("cosine"), torch.zeros(4000, LENGTH, SIZE), level, unmask(), Randomness.seeded(range(4000)),
           lambda index, x: shares.append(float((x == 0).all(dim=-1).float().mean())))  # fmt: skip
    assert shares == [1.0, pytest.approx(0.7, abs=0.02), pytest.approx(0.2, abs=0.02)]


def test_one_word_a_row_is_one_word_a_row():
    counts = []
    level = torch.linspace(1, 0, LENGTH + 1)[:, None].expand(-1, LENGTH)
    sample(exact(20), path("cosine"), torch.zeros(20, LENGTH, SIZE), level, unmask_one(), Randomness.seeded(range(20)),
           lambda index, x: counts.append((x != 0).any(dim=-1).sum(dim=1)))  # fmt: skip
    assert all(bool((count == index).all()) for index, count in enumerate(counts))


def test_words_are_drawn_in_proportion_and_top_k_and_top_p_cut_the_tail():
    chances = torch.tensor([0.5, 0.3, 0.2, 0.0])
    u = (torch.arange(10_000) + 0.5) / 10_000
    count = lambda **cut: draw(chances.expand(10_000, -1), u, **cut).bincount(minlength=4).double() / 10_000  # noqa: E731
    assert torch.allclose(count(), chances.double(), atol=1e-3)
    assert torch.allclose(count(top_k=2), torch.tensor([0.625, 0.375, 0, 0], dtype=torch.float64), atol=1e-3)
    assert torch.allclose(count(top_p=0.75), torch.tensor([0.625, 0.375, 0, 0], dtype=torch.float64), atol=1e-3)
    assert torch.allclose(count(top_p=0.4), torch.tensor([1.0, 0, 0, 0], dtype=torch.float64), atol=1e-3)
    assert int(draw(torch.tensor([[1.0, 0.0]]), torch.tensor([1 - 1e-17]))) == 0


@pytest.mark.parametrize("rows", [2, 8, 40])
def test_cached_and_uncached_runs_are_identical_and_the_calls_are_those_of_the_formula(rows):
    with unchecked_shapes():
        cached = Cached(exact(3000))
        assert torch.equal(run(unmask(), rows, 3000, denoise=cached), run(unmask(), rows, 3000))
    calls = cached.calls.double()
    error = float(calls.std()) / len(calls) ** 0.5
    assert abs(float(calls.mean()) - absorbing.expected_calls(rows, LENGTH)) < 3.5 * error + 1e-9
    assert int(calls.max()) <= min(rows, 1 + LENGTH)


TEXT, FRONT = Stream("text", "word", tuple(range(6)), 5), Stream("front", "video", (0, 1), 3, (1, 2))


@pytest.fixture(scope="module")
def model():
    return tiny.stream_model(FRONT, TEXT)


def mixed(model, rows, cached, hold_front):
    layout = model.layout
    level = torch.linspace(1, 0, rows + 1)[:, None].repeat(1, layout.tokens)
    if hold_front:
        level[:, layout.mask("front")] = 0.5
    denoise = denoiser(model, roles.full(4, layout.tokens))
    denoise = Cached(denoise) if cached else denoise
    x = torch.zeros(4, layout.tokens, layout.size)
    x[:, layout.span("front"), :3] = torch.randn(4, 4, 3, generator=torch.Generator().manual_seed(0))
    rule = steps.by_stream(layout, {"text": unmask(), "front": steps.ddim()})
    with torch.inference_mode():
        out, _ = sample(denoise, path("cosine"), x, level, rule, Randomness.seeded(range(4)))
    return out, denoise.calls, x


def test_frames_and_words_fall_together_in_one_plan_and_the_cache_knows_what_moves(model):
    plain, calls, _ = mixed(model, 12, False, hold_front=False)
    cached, each, _ = mixed(model, 12, True, hold_front=False)
    assert torch.allclose(plain, cached, atol=1e-5) and calls == 12 and bool((each == 12).all())  # frames move in every row
    plain, calls, before = mixed(model, 12, False, hold_front=True)
    cached, each, _ = mixed(model, 12, True, hold_front=True)
    assert torch.allclose(plain, cached, atol=1e-5) and calls == 12 and int(each.max()) <= 7
    front = model.layout.mask("front")
    assert torch.equal(cached[:, front], before[:, front])
    words = cached[:, model.layout.mask("text")]
    assert bool((words.sum(dim=-1) == 1).all()) and bool((words[..., 5:] == 0).all())


def test_given_words_stay_and_the_rest_is_filled_in_wherever_it_is(model):
    given = torch.nn.functional.one_hot(torch.tensor([[1, 2, 3, 4, 0, 1]]), 5).float()
    layout = model.layout.select(["text"])
    plan = absorbing_plan(layout, free=[1, 4])
    x = given.clone()
    x[:, [1, 4]] = 0.0
    out, _ = sample(denoiser(model, plan.role[None], layout), path("cosine"), x, plan.level, unmask(), Randomness.seeded([0]))
    kept = [0, 2, 3, 5]
    assert torch.equal(out[:, kept], given[:, kept]) and bool((out.sum(dim=-1) == 1).all())


def absorbing_plan(layout, free):
    from uwm.core.plans import Plan

    level = torch.zeros(5, layout.tokens)
    level[:, free] = torch.linspace(1, 0, 5)[:, None]
    role = roles.full(1, layout.tokens, roles.GIVEN)[0]
    role[free] = roles.ACTIVE
    return Plan(level, role)


def test_generate_knows_words(model):
    out = generate(model, ["text"], rows=6, seeds=(1, 2))["text"]
    assert out.shape == (2, 6, 5) and bool((out.sum(dim=-1) == 1).all())
    both = generate(model, ["text", "front"], rows=6, seeds=(1, 2), guidance=0.5)
    assert bool((both["text"].sum(dim=-1) == 1).all()) and bool(torch.isfinite(both["front"]).all())


def test_a_word_s_level_in_training_is_its_chance_of_being_masked(model):
    from uwm.learn.stream_objective import StreamBatch, StreamObjective, one_hot, stream_loss

    clean = model.layout.pack({"front": torch.zeros(4, 4, 3), "text": one_hot(torch.randint(0, 5, (4, 6)), model.layout, "text")})
    for rule, wanted in (("given", 0.0), ("noise", 0.0)):  # neither is active: nothing to learn
        figures = stream_loss(model, StreamBatch(clean), StreamObjective((Pattern(word=rule),)), torch.Generator().manual_seed(0))[1]
        assert figures["text"] == wanted
    figures = stream_loss(model, StreamBatch(clean), StreamObjective((Pattern(),)), torch.Generator().manual_seed(0))[1]
    assert 0.5 < figures["text"] < 10


@pytest.mark.parametrize("make", [unmask, unmask_one])
def test_what_cannot_be_drawn_is_refused(make):
    for wrong in ({"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ValueError, match="top_k must be >= 0 and top_p in"):
            make(**wrong)
    with pytest.raises(ValueError, match="words are drawn: pass randomness"):
        make()(exact(1), path("cosine"), torch.zeros(1, LENGTH, SIZE), torch.ones(1, LENGTH), torch.zeros(1, LENGTH))
