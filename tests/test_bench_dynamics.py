"""The benches that use the modes: forward dynamics against other actions, a tracker against a policy, absent video against noise."""

import numpy as np
import pytest
import torch

import tiny
from oracle import unchecked_shapes
from uwm.bench import dynamics_bench, marginal_bench, tracker_bench
from uwm.bench.gates import FAILS, HOLDS, NOT_JUDGED, NOT_REPRODUCED
from uwm.robot.collect import Episode


def clips(**changes):
    errors = {"true": 0.3, "shuffled": 0.9, "copy": 1.0}
    figures = {f"latents, {arm}, {distance}": value for arm, value in errors.items() for distance in dynamics_bench.JUDGED}
    return {"clips": [{**figures, **changes}] * 3}


def test_true_actions_are_judged_against_other_ones_and_against_no_change_at_every_distance():
    judged = lambda found, enough=True: dynamics_bench.judged(found, dynamics_bench.FULL, enough)  # noqa: E731
    assert [gate.verdict for gate in judged(clips())] == [HOLDS] * 6
    worse = judged(clips(**{"latents, true, 100": 0.95}))
    assert [gate.verdict for gate in worse] == [HOLDS] * 4 + [FAILS, HOLDS]
    assert worse[4].value == pytest.approx(0.95 / 0.9) and "100 ahead" in worse[4].name
    assert {gate.verdict for gate in judged(clips(), enough=False)} == {NOT_JUDGED}
    lift = {"latents of true actions over those of": {"shuffled": [1.1, 1.0, 1.2], "copy": [0.4, 0.3, 0.5]}}
    assert [(gate.verdict, gate.interval) for gate in dynamics_bench.judged_lift(lift)] == [(FAILS, (1.0, 1.2)), (HOLDS, (0.3, 0.5))]


def test_errors_are_none_where_nothing_differs_and_see_a_difference_in_pixels_and_features():
    tokens, pixels = torch.randn(3, 4, 2), torch.randint(0, 200, (3, 16, 16, 3), dtype=torch.uint8)
    same = dynamics_bench._errors(tokens, tokens, pixels, pixels, [tokens], [tokens])
    assert same == {"latents": 0.0, "PSNR": np.inf, "SSIM": pytest.approx(1.0), "seen": 0.0}
    other = dynamics_bench._errors(tokens + 2, tokens, pixels + 50, pixels, [-tokens], [tokens])
    assert other["latents"] == pytest.approx(4.0, rel=1e-4) and other["seen"] == pytest.approx(4.0, rel=1e-4)
    assert other["PSNR"] == pytest.approx(14.15, abs=0.01) and other["SSIM"] < 0.99


def test_a_film_shows_what_was_seen_a_chunk_ahead_and_stands_still_behind_its_end():
    net = tiny.model()
    frames = np.arange(11, dtype=np.uint8)[:, None, None, None] * np.full((1, 32, 32, 3), 10, np.uint8)
    shown = Episode(0, dict.fromkeys(tiny.CAMERAS, frames), np.zeros((10, 2)), np.zeros((10, 2)), True)
    ahead = tracker_bench.film(net, shown)
    for tick, wanted in ((0, (4, 8)), (3, (7, 10)), (9, (10, 10))):
        given = ahead(tick)
        assert set(given) == set(tiny.CAMERAS) and given["wrist"].shape == (1, 2, 3, 32, 32)
        assert (given["wrist"][0, :, 0, 0, 0] * 25.5).round().tolist() == list(wanted)


def test_a_tracker_is_judged_by_what_is_done_in_time():
    def found(policy, tracker, other):
        told = lambda count: {"in time": [True] * count + [False] * (50 - count)}  # noqa: E731
        return dict(zip(tracker_bench.ARMS, map(told, (policy, tracker, other)), strict=True))

    verdicts = lambda *counts: [gate.verdict for gate in tracker_bench.judged(found(*counts), True)]  # noqa: E731
    assert verdicts(30, 40, 2) == [HOLDS, HOLDS] and verdicts(40, 40, 40) == [NOT_REPRODUCED, FAILS]
    assert {gate.verdict for gate in tracker_bench.judged(found(30, 40, 2), False)} == {NOT_JUDGED}


def test_absent_video_is_judged_against_noise_where_a_policy_can_do_the_task():
    def verdicts(absent, noise, along, slower=2.0):
        succeeded = {"absent": absent, "noise": noise, "denoised along": along}
        told = {arm: {"succeeded": [True] * n + [False] * (50 - n), "plan_ms": {"p50": 1.0}} for arm, n in succeeded.items()}
        told["noise"]["plan_ms"] = {"p50": slower}
        return [gate.verdict for gate in marginal_bench.judged("Lift", told, True)]

    assert verdicts(40, 42, 0) == [HOLDS, HOLDS] and verdicts(40, 43, 0) == [FAILS, HOLDS] and verdicts(40, 40, 0, 1.0) == [HOLDS, FAILS]
    assert verdicts(10, 20, 24) == [NOT_JUDGED, HOLDS]


@pytest.mark.parametrize("bench", [tracker_bench, marginal_bench])
def test_a_quick_run_drives_every_arm_and_judges_nothing(bench):
    with unchecked_shapes():
        result = bench.run(True, None)
    figures = result.figures.get("Toy", result.figures)
    assert set(figures) == set(bench.ARMS) and result.verdict == NOT_JUDGED
    whenever = [arm.get("whenever", arm) for arm in figures.values()]
    assert all(each["rollouts"] == 2 and each["calls_per_action"] == 12 / 8 for each in whenever)
