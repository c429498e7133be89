"""Mixtures keep their shares in every batch, lose and repeat nothing, resume exactly; actions at other rates mean the same motion."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwm_data import StoreError
from uwm_data.mixture import Mixture
from uwm_data.rates import ActionRates

TASKS = {"lift": ["lift"] * 40, "kitchen": ["lift"] * 10 + ["pour"] * 20 + ["stir"] * 5, "film": ["cook"] * 7}


def drawn(mixture, steps, batch, **ranks):
    """{dataset: window numbers over some steps, in order}."""
    draws = [mixture.draw(step, batch, **ranks) for step in range(steps)]
    return {name: np.concatenate([draw.windows.get(name, []) for draw in draws]).astype(int) for name in mixture.datasets}


def shares(mixture):
    return {name: sum(pool.share for pool in mixture.pools if pool.dataset == name) for name in mixture.datasets}


# ----------------------------------------------------------------------------------------------------------------- shares


@pytest.mark.parametrize(
    ("by", "weights", "wanted"),
    [
        ("balanced", {}, {"lift": 1 / 3, "kitchen": 1 / 3, "film": 1 / 3}),
        ("dataset", {"lift": 2.0}, {"lift": 1 / 2, "kitchen": 1 / 4, "film": 1 / 4}),
        ("dataset", {"film": 0.0}, {"lift": 1 / 2, "kitchen": 1 / 2, "film": 0.0}),
        ("proportional", {}, {"lift": 40 / 82, "kitchen": 35 / 82, "film": 7 / 82}),
        ("proportional", {"film": 5.0}, {"lift": 40 / 110, "kitchen": 35 / 110, "film": 35 / 110}),
        ("task", {}, {"lift": 0.25 * 0.8, "kitchen": 0.25 * 0.2 + 0.5, "film": 0.25}),
        ("task", {"lift": 7.0}, {"lift": 0.7 * 0.8, "kitchen": 0.7 * 0.2 + 0.2, "film": 0.1}),
    ],
)
def test_shares_are_those_of_the_config(by, weights, wanted):
    mixture = Mixture(TASKS, by, weights)
    assert shares(mixture) == pytest.approx(wanted)
    found = {name: len(numbers) / (500 * 8) for name, numbers in drawn(mixture, 500, 8).items()}
    assert found == pytest.approx(wanted, abs=2e-3), "over 4000 samples the rounding has cancelled out"


@given(
    weights=st.lists(st.floats(0.01, 10), min_size=3, max_size=3), batch=st.integers(1, 40), step=st.integers(0, 10**6),
    seed=st.integers(0, 99), by=st.sampled_from(["dataset", "proportional"]),
)  # fmt: skip
def test_every_batch_has_each_share_rounded_up_or_down(weights, batch, step, seed, by):
    mixture = Mixture(TASKS, by, dict(zip(TASKS, weights, strict=True)), seed)
    edges = mixture._batch_edges(np.array([step]), batch)[0]
    counts = np.diff(edges)
    assert counts.sum() == batch and (counts >= 0).all()
    for pool, count in zip(mixture.pools, counts, strict=True):
        assert abs(count - pool.share * batch) < 1 + 1e-6


def test_a_share_smaller_than_one_sample_a_batch_still_comes_in_time():
    tasks = {f"task{index}": [""] * 3 for index in range(90)}
    counts = Mixture(tasks, "balanced").counts(90, 32)
    assert counts.sum() == 90 * 32 and counts.min() >= 30 and counts.max() <= 34


# ------------------------------------------------------------------------------------------------------------------ order


def test_every_window_of_a_pool_comes_once_an_epoch_in_another_order_each_time():
    mixture = Mixture(TASKS, "task", seed=1)
    pour = drawn(mixture, 400, 8)["kitchen"]
    pour = pour[(pour >= 10) & (pour < 30)]
    epochs = [pour[20 * index : 20 * index + 20].tolist() for index in range(3)]
    assert all(sorted(epoch) == list(range(10, 30)) for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]


@given(step=st.integers(0, 3000), batch=st.integers(1, 9), seed=st.integers(0, 9))
def test_a_draw_depends_on_seed_and_step_alone(step, batch, seed):
    straight, fresh = Mixture(TASKS, "task", seed=seed), Mixture(TASKS, "task", seed=seed)
    for before in range(max(0, step - 3), step):
        straight.draw(before, batch)
    one, other = straight.draw(step, batch), fresh.draw(step, batch)
    assert one.counts == other.counts
    for name in TASKS:
        np.testing.assert_array_equal(one.windows[name], other.windows[name])


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_samples_of_a_step_and_none_is_lost_or_repeated(world):
    whole = Mixture(TASKS, "dataset", {"lift": 3.0})
    ranks = [Mixture(TASKS, "dataset", {"lift": 3.0}) for _ in range(world)]
    for step in range(60):
        together = whole.draw(step, 4 * world)
        parts = [mixture.draw(step, 4, rank, world) for rank, mixture in enumerate(ranks)]
        assert all(sum(map(len, part.windows.values())) == 4 for part in parts)
        for name in TASKS:
            found = np.concatenate([part.windows[name] for part in parts])
            assert sorted(found.tolist()) == sorted(together.windows[name].tolist())


def test_what_was_drawn_is_recorded_per_pool():
    mixture = Mixture(TASKS, "task")
    record = {(pool["dataset"], pool["task"]): pool for pool in mixture.record(100, 8)}
    assert sum(pool["samples"] for pool in record.values()) == 800
    found = drawn(mixture, 100, 8)
    assert record["film", "cook"]["samples"] == len(found["film"]) and record["film", "cook"]["windows"] == 7
    assert record["film", "cook"]["epochs"] == pytest.approx(len(found["film"]) / 7, abs=1e-4)
    draw = mixture.draw(5, 8)
    assert sum(draw.counts.values()) == 8 and sum(draw.shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("tasks", "by", "weights", "words"),
    [
        (TASKS, "luck", {}, "drawn by dataset, task, balanced, proportional, not by 'luck'"),
        (TASKS, "dataset", {"lifts": 1.0}, r"unknown datasets \['lifts'\]; the mixture has \['film', 'kitchen', 'lift'\]"),
        (TASKS, "dataset", {"lift": -1.0}, "not negative"),
        (TASKS, "dataset", {"lift": float("nan")}, "finite"),
        (TASKS, "dataset", dict.fromkeys(TASKS, 0.0), "every weight of the mixture is 0"),
        ({"lift": ["a"], "none": []}, "dataset", {}, "none has none"),
        ({}, "dataset", {}, "there is no dataset"),
    ],
)
def test_mixtures_of_nothing_are_refused(tasks, by, weights, words):
    with pytest.raises(StoreError, match=words):
        Mixture(tasks, by, weights)


@pytest.mark.parametrize("arguments", [(-1, 4), (0, 0), (0, 4, 2, 2)])
def test_draws_that_cannot_be_are_refused(arguments):
    with pytest.raises(StoreError, match="need step >= 0"):
        Mixture(TASKS).draw(*arguments)


# ------------------------------------------------------------------------------------------------------------------ rates


def resampled(actions, rates, tick):
    frames = tick + rates.offsets
    clamped = np.clip(frames, 0, len(actions) - 1)
    values, valid = rates(actions[clamped][None], (clamped == frames)[None])
    return values[0], valid[0]


@given(ratio=st.sampled_from([0.5, 2 / 3, 1.0, 1.5, 2.0, 3.0, 20 / 7]), tick=st.integers(4, 12), seed=st.integers(0, 50))
def test_deltas_and_velocities_cover_the_same_way_at_any_rate(ratio, tick, seed):
    own = np.random.default_rng(seed).normal(size=(60, 2))
    path = np.concatenate([np.zeros((1, 2)), own.cumsum(0)])  # the place after so many own ticks
    place = lambda time: np.stack([np.interp(time, np.arange(61), path[:, axis]) for axis in range(2)], axis=-1)  # noqa: E731
    ticks = np.arange(-1, 6)
    wanted = place(tick + (ticks + 1) * ratio) - place(tick + ticks * ratio)
    for mode, scale in (("delta", 1.0), ("velocity", 1 / ratio)):
        values, valid = resampled(own, ActionRates(ticks, ratio, mode, [False, False]), tick)
        np.testing.assert_allclose(values, wanted * scale, atol=1e-9)
        assert valid.all()


@given(ratio=st.sampled_from([0.5, 2 / 3, 1.0, 1.5, 2.0, 3.0]), tick=st.integers(4, 12))
def test_absolute_targets_lie_on_the_same_line_at_any_rate(ratio, tick):
    """Targets that move evenly, each reached at the end of its tick."""
    own = np.arange(1.0, 61.0)[:, None]
    ticks = np.arange(-1, 6)
    values, valid = resampled(own, ActionRates(ticks, ratio, "absolute", [False]), tick)
    np.testing.assert_allclose(values[:, 0], tick + (ticks + 1) * ratio, atol=1e-9)
    assert valid.all()


@pytest.mark.parametrize("mode", ["delta", "absolute", "velocity"])
def test_a_grippers_command_is_held_in_every_mode_and_never_added_or_mixed(mode):
    own = np.where(np.arange(40) % 7 < 3, 1.0, -1.0)[:, None]
    for ratio in (0.5, 1.5, 2.0, 3.0):
        values, _ = resampled(own, ActionRates(range(-1, 6), ratio, mode, [True]), 8)
        middle = np.floor(8 + (np.arange(-1, 6) + 0.5) * ratio + 1e-6).astype(int)
        np.testing.assert_array_equal(values, own[middle])


def test_at_the_same_rate_nothing_changes():
    own = np.random.default_rng(0).normal(size=(9, 3)).astype("f4")
    for mode in ("delta", "absolute", "velocity"):
        values, valid = resampled(own, ActionRates(range(4), 1.0, mode, [False, False, True]), 2)
        np.testing.assert_array_equal(values, own[2:6])
        assert values.dtype == np.float32 and valid.all()


def test_ticks_that_reach_over_an_end_of_the_episode_are_invalid_and_the_others_are_not():
    own = np.ones((10, 1))
    _, valid = resampled(own, ActionRates(range(-2, 7), 2.0, "delta", [False]), 1)
    assert valid.tolist() == [False, False] + [True] * 4 + [False] * 3  # ticks 1-2, 3-4, 5-6, 7-8; then 9-10
    _, valid = resampled(own, ActionRates(range(-1, 3), 0.5, "absolute", [False]), 0)
    assert valid.tolist() == [False, True, True, True]


def test_statistics_see_what_the_model_sees():
    own = np.random.default_rng(0).normal(size=(30, 2))
    rates = ActionRates([0], 2.0, "delta", [False, True])
    found = rates.episode(own)
    assert found.shape == (29, 2)
    np.testing.assert_allclose(found[:, 0], own[:-1, 0] + own[1:, 0])
    np.testing.assert_array_equal(found[:, 1], own[1:, 1])


def test_actions_of_an_unknown_mode_have_no_other_rate():
    for mode in ("unknown", "mixed"):
        with pytest.raises(StoreError, match=rf"mode '{mode}' cannot be brought to another rate.*declare it as action.mode"):
            ActionRates(range(4), 2.0, mode, [False])
