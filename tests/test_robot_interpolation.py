"""The motion below the policy's rate: limits that no sequence of targets breaks, and a stop that always ends."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from uwm.robot.interpolation import STEP_S, Motion, MotionLimits, Ramp, brake, follow

LIMITS = MotionLimits(
    np.full(3, -1.0), np.full(3, 2.0), np.array([0.5, 1.0, 2.0]), np.array([2.0, 4.0, 8.0]), np.array([500.0, 1000.0, 3000.0])
)
PERIOD_S = 0.05
ROUNDING = 1e-9
# Dimensions do not know of each other, so one run of many is many runs: targets far and near, in limits and out of them.
MANY = 96
WIDE = MotionLimits(
    np.full(MANY, -1.0), np.full(MANY, 2.0), np.tile([1.0, 2.0, 3.0], MANY // 3), np.repeat([4.0, 9.0], MANY // 2),
    np.tile([200.0, 400.0], MANY // 2), step_s=0.005,
)  # fmt: skip  # fewer steps for the same time: nothing but `step_s` knows how long one is
seeds = st.integers(0, 2**32 - 1)
# How long each target is the newest one, in steps: a policy is never exactly on time.
lasting = st.lists(st.integers(1, 60), min_size=1, max_size=8)


def random_targets(seed, steps):
    rng = np.random.default_rng(seed)
    size = 10.0 ** rng.uniform(-3, 0.5, MANY)
    return [(0.5 + size * rng.normal(size=MANY), each) for each in steps]


def path(sequence, motion=None, limits=LIMITS):
    """Every set-point that these targets lead to, from rest in the middle."""
    motion = motion or Motion.at(np.full(3, 0.5))
    ramp, motions, now_s = Ramp(motion.position, motion.position, 0.0, PERIOD_S), [motion], 0.0
    for goal, steps in sequence:
        ramp = ramp.to(goal, now_s)
        for _ in range(steps):
            motions.append(follow(motions[-1], ramp, now_s, limits))
            now_s += limits.step_s
    return motions


def stopped(motion, limits=LIMITS):
    motions = [motion]
    while not motions[-1].resting:
        motions.append(brake(motions[-1], limits))
        assert len(motions) < 10_000, "a stop without an end"
    return motions


def assert_inside(motions, limits=LIMITS):
    """By the states, and by what a robot sees: differences of positions."""
    position = np.array([motion.position for motion in motions])
    assert (position >= limits.low).all() and (position <= limits.high).all()
    assert (np.abs([motion.velocity for motion in motions]) <= limits.velocity + ROUNDING).all()
    assert (np.abs([motion.acceleration for motion in motions]) <= limits.acceleration + ROUNDING).all()
    rates, noise = position, 4e-16
    for name in ("velocity", "acceleration", "jerk"):
        rates, noise = np.diff(rates, axis=0) / limits.step_s, 2 * noise / limits.step_s
        assert (np.abs(rates) <= getattr(limits, name) * (1 + 1e-6) + 10 * noise).all(), name


@settings(max_examples=10, deadline=None, phases=[Phase.generate])
@given(seeds, lasting)
def test_no_sequence_of_targets_breaks_a_limit_and_a_stop_from_anywhere_ends_in_time(seed, steps):
    motions = path(random_targets(seed, steps), Motion.at(np.full(MANY, 0.5)), WIDE)
    stop = stopped(motions[-1], WIDE)
    assert_inside(motions + stop[1:], WIDE)
    assert (len(stop) - 1) * WIDE.step_s <= WIDE.longest_stop_s
    assert brake(stop[-1], WIDE).resting


@settings(max_examples=2, deadline=None, phases=[Phase.generate])
@given(seeds, lasting)
def test_a_target_that_stays_is_reached_whatever_was_before(seed, steps):
    (goal, _), *before = random_targets(seed, [1, *steps])
    last = path([*before, (goal, 900)], Motion.at(np.full(MANY, 0.5)), WIDE)[-1]
    np.testing.assert_allclose(last.position, np.clip(goal, WIDE.inner_low, WIDE.inner_high), atol=1e-5)
    np.testing.assert_allclose(last.velocity, 0, atol=1e-8)


def test_the_arm_never_passes_the_last_target_so_that_silence_needs_no_plan():
    rng, here = np.random.default_rng(0), np.full(3, -0.9)
    motions = [Motion.at(here)]
    ramp = Ramp(here, here, 0.0, PERIOD_S)
    goals = np.cumsum(rng.uniform(0, 0.2, (10, 3)), axis=0) - 0.9
    for index, goal in enumerate(goals):
        ramp = ramp.to(goal, index * PERIOD_S)
        for step in range(50):
            motions.append(follow(motions[-1], ramp, index * PERIOD_S + step * STEP_S, LIMITS))
        assert (motions[-1].position <= np.minimum(goal, LIMITS.inner_high) + 1e-6).all()
        assert (stopped(motions[-1])[-1].position <= np.minimum(goal, LIMITS.inner_high) + 1e-4).all()
    assert (motions[-1].position > -0.8).all(), "it went somewhere"


def test_a_smooth_stream_is_followed_smoothly_about_two_periods_behind():
    wave = [(0.3 * np.sin(np.arange(3) + 0.05 * index), 50) for index in range(40)]
    motions = path(wave, Motion.at(wave[0][0]))[1000:]
    position = np.array([motion.position for motion in motions])
    late = [np.abs(0.3 * np.sin(np.arange(3) + (1.0 + STEP_S * np.arange(len(motions)) - delay)[:, None]) - position).max()
            for delay in (0.0, 0.1)]  # fmt: skip
    assert late[1] < 0.02 < late[0]
    turned = np.diff(np.sign(np.diff([motion.acceleration for motion in motions], axis=0)), axis=0) != 0
    assert turned.mean() < 0.1, "the jerk does not flutter from step to step"


def test_a_ramp_is_straight_and_then_rests():
    ramp = Ramp(np.zeros(1), np.ones(1), 2.0, 0.5)
    assert [float(ramp.at(now_s)[0][0]) for now_s in (1.0, 2.0, 2.25, 2.5, 9.0)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert [float(ramp.at(now_s)[1][0]) for now_s in (2.25, 9.0)] == [2.0, 0.0]
    assert float(ramp.to(np.array([3.0]), 2.25).start[0]) == 0.5, "a new goal begins where the reference is"


def test_dimensions_do_not_know_of_each_other():
    together = path([(np.array([2.0, -1.0, 0.7]), 200), (np.array([0.0, 1.5, 0.7]), 150)])[-1]
    alone = MotionLimits(*(getattr(LIMITS, name)[1:2] for name in ("low", "high", "velocity", "acceleration", "jerk")))
    motion = path([(np.array([-1.0]), 200), (np.array([1.5]), 150)], Motion.at(np.array([0.5])), alone)[-1]
    np.testing.assert_allclose(motion.position, together.position[1:2], atol=1e-12)


@pytest.mark.parametrize(
    ("change", "told"),
    [({"velocity": np.inf}, "velocity must be finite"), ({"jerk": 0.0}, "jerk must be finite"), ({"high": np.full(3, -1.0)}, "no room"),
     ({"jerk": 1e6}, "too long")],
)  # fmt: skip
def test_limits_that_make_no_sense_are_refused(change, told):
    names = ("low", "high", "velocity", "acceleration", "jerk")
    with pytest.raises(ValueError, match=told):
        MotionLimits(**({name: getattr(LIMITS, name) for name in names} | change))


def test_a_step_fits_many_times_into_a_millisecond(record_property):
    """In a process of its own, because types are checked in tests at every call. The cost is told, not judged: the machine may be busy."""
    told = subprocess.run([sys.executable, "-c", COST], capture_output=True, text=True, check=True, timeout=60)
    record_property("step_us", float(told.stdout))
    print(f"one step of 7 joints: {float(told.stdout):.0f} us")


COST = """
import time
import numpy as np
from uwm.robot.interpolation import Motion, MotionLimits, Ramp, follow
motion, limits = Motion.at(np.zeros(7)), MotionLimits(np.full(7, -2.0), np.full(7, 2.0), 1.0, 3.0, 1000.0)
ramp, begin_s = Ramp(motion.position, np.ones(7), 0.0, 0.05), time.perf_counter()
for step in range(2000):
    motion = follow(motion, ramp, step * 1e-3, limits)
assert motion.position.min() > 0.9
print((time.perf_counter() - begin_s) / 2000 * 1e6)
"""
