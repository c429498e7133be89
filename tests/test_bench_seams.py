"""Seams: jumps and jerks where the plan changes are told from those inside plans."""

import math

import numpy as np
import pytest

from uwm.bench.seams import seams, smoothness


def measured(actions, plans, switches=()):
    return smoothness([seams(np.asarray(actions, float), plans, switches)], np.random.default_rng(0))


def test_a_steady_motion_has_no_seam_and_a_step_at_a_border_is_one():
    steady = measured(np.arange(12.0)[:, None], [index // 3 for index in range(12)])
    assert steady["jump_ratio"] == pytest.approx(1.0) and steady["jerk_border"] == pytest.approx(0.0)
    jumpy = measured((np.arange(12.0) + 5.0 * (np.arange(12) // 6))[:, None], [0] * 6 + [1] * 6)
    assert (jumpy["jump_border"], jumpy["jump_inside"], jumpy["jump_ratio"]) == (6.0, 1.0, 6.0)
    assert jumpy["jerk_border"] > 3 and jumpy["jerk_inside"] == pytest.approx(0.0)


def test_without_a_border_or_without_motion_there_is_no_ratio():
    assert math.isnan(measured(np.zeros((5, 1)), [0] * 5)["jump_ratio"])
    assert measured(np.zeros((5, 1)), [0] * 5)["jump_interval"] is None


def test_holding_still_before_the_first_plan_is_no_seam_and_a_gap_later_on_is():
    moving = np.r_[np.zeros(3), np.arange(10.0, 16.0)][:, None]
    assert measured(moving, [-1] * 3 + [0] * 6)["jump_inside"] == 1.0
    assert len(seams(moving, [0] * 3 + [-1] * 2 + [1] * 4)["jump_border"]) == 2


def test_a_gripper_that_switches_is_no_motion():
    actions = np.stack([np.arange(8.0), np.repeat([-1.0, 1.0], 4)], axis=1)
    assert measured(actions, [0] * 4 + [1] * 4, switches=(1,))["jump_ratio"] == pytest.approx(1.0)


def test_ratios_are_of_all_ticks_and_their_interval_is_over_episodes():
    actions = [(np.arange(12.0) + step * (np.arange(12) // 6))[:, None] for step in (0.0, 2.0, 4.0, 6.0)]
    found = smoothness([seams(each, [0] * 6 + [1] * 6) for each in actions], np.random.default_rng(0))
    assert found["jump_ratio"] == pytest.approx(4.0)
    assert 1.0 <= found["jump_interval"][0] < 4.0 < found["jump_interval"][1] <= 7.0
