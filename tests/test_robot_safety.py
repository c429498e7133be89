"""The safety layer: whatever is proposed and read, what is sent stays inside the limits, and faults are answered in time.

The invariant, for actions a_k sent at clock times t_k (see `uwm.robot.limits` for the words):

    low <= a_k <= high                                           always
    |motion_k| <= velocity                                       always
    |motion_k - braked motion_(k-1)| <= acceleration share_k     always, if the robot executed what it was sent
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from uwm.robot.interface import ActionSpec, Reading, RobotSpec, SensorSpec
from uwm.robot.limits import Limits
from uwm.robot.safety import Safety, SafetyConfig
from uwm.robot.watchdog import WatchdogConfig

PERIOD_S = 0.05
INFINITE = float("inf")


def spec(mode="absolute", velocity=(1.0, 2.0, INFINITE), acceleration=(4.0, INFINITE, INFINITE), low=-1.0, high=1.0, **options):
    """Two dimensions of an arm and a gripper, proprioception of three numbers, one small camera."""
    options = {"workspace": {}, "cameras": ("front",), **options}
    action = ActionSpec(
        ("x", "y", "gripper"), ("m",) * 3, np.full(3, low), np.full(3, high), np.array(velocity), np.array(acceleration), mode, (2,)
    )
    sensors = {"proprio": SensorSpec((3,), "float32", 20.0, stale_after_s=0.3)}
    sensors |= {name: SensorSpec((4, 5, 3), "uint8", 20.0, stale_after_s=0.3) for name in options["cameras"]}
    return RobotSpec("toy arm", 1 / PERIOD_S, action, sensors, options["workspace"])


class World:
    """Ticks of a safety layer on a clock of its own, with good sensors unless told otherwise; the robot obeys."""

    def __init__(self, robot=None, watch=None, **config):
        self.spec = robot or spec()
        self.safety = Safety(self.spec, SafetyConfig(watchdog=WatchdogConfig(**(watch or {})), **config))
        self.now_s, self.ticks, self.sent, self.verdicts = 10.0, 0, [], []
        self.proprio = np.zeros(3, np.float32)

    def readings(self, **other):
        picture = np.random.default_rng(self.ticks).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        usual = {name: Reading(picture, self.now_s) for name in self.spec.sensors if name != "proprio"}
        usual |= {"proprio": Reading(self.proprio.copy(), self.now_s), **other}
        return {name: reading for name, reading in usual.items() if reading is not None}

    def tick(self, proposed, step_s=PERIOD_S, **other):
        self.now_s += step_s
        self.ticks += 1
        verdict = self.safety.check(proposed, self.readings(**other), self.now_s)
        if verdict.action is not None:
            self.safety.sent(verdict.action, self.now_s)
            self.sent.append(verdict.action)
        self.verdicts.append(verdict)
        return verdict

    def behaviours(self, count, proposed, **other):
        return [self.tick(proposed, **other).behaviour for _ in range(count)]


# ---- limits, whatever is proposed ------------------------------------------------------------------------------

numbers = some.one_of(
    some.floats(-2, 2),
    some.sampled_from([0.0, 1.0, -1.0, 1e30, -1e30, 1e308, np.nan, np.inf, -np.inf, 1e-30]),
)
proposals = some.one_of(
    some.none(),
    some.lists(numbers, min_size=3, max_size=3).map(np.array),
    some.sampled_from([np.zeros(2), np.zeros((1, 3)), np.float32(1), "up", [None] * 3, np.array(["a"] * 3), object()]),
)
steps = some.one_of(some.just(PERIOD_S), some.floats(0.0, 0.12), some.sampled_from([-1.0, -0.01, 0.0, 1e-9, 0.049, 0.051, 0.7, 2.0, 1e6]))
rates = some.sampled_from([0.1, 1.0, 7.0, 1e3, INFINITE])
three = some.tuples(rates, rates, rates)
modes = some.sampled_from(["absolute", "delta", "velocity"])


def check_invariant(robot, sent):
    """Measures the actions [(moment, action)] against the specification, by the rule as it is written, not as it is coded."""
    action = robot.action
    kept = np.array([action.mode == "absolute", action.mode == "absolute", True])
    place, motion, at_s, saved_s = None, np.zeros(3), None, PERIOD_S
    for moment_s, value in sent:
        value = value.astype(np.float64)
        assert (value >= action.low).all() and (value <= action.high).all()
        gap_s = 0.0 if at_s is None else max(0.0, moment_s - at_s)
        saved_s = min(1.5 * PERIOD_S, saved_s + gap_s)
        share_s = min(PERIOD_S, saved_s)
        share_s = share_s if share_s > 0.01 * PERIOD_S else 0.0
        late_s = max(0.0, gap_s - PERIOD_S)
        at_s, saved_s = moment_s, saved_s - share_s
        before, place = place, np.where(kept, value, 0.0)
        moved = place - before if before is not None else np.zeros(3)
        if not share_s:
            assert not moved.any() and (action.mode == "velocity" or not value[~kept].any())
            continue
        unit_s = np.where(kept | (action.mode == "delta"), share_s, 1.0)
        with np.errstate(invalid="ignore"):
            braked = np.sign(motion) * np.maximum(0, np.abs(motion) - np.where(late_s > 0, action.acceleration * late_s, 0))
        motion = np.where(kept, moved, value) / unit_s
        rounding = 3e-6 / unit_s
        assert (np.abs(motion) <= action.velocity + rounding).all(), (motion, action.velocity)
        assert (np.abs(motion - braked) <= action.acceleration * share_s + 2 * rounding).all(), (motion, braked, share_s)


@given(modes, three, three, some.lists(some.tuples(proposals, steps), max_size=20), some.sampled_from(["hold", "retract"]))
def test_whatever_is_proposed_and_however_the_clock_runs_only_actions_inside_all_limits_are_sent(
    mode, velocity, acceleration, ticks, answer
):
    faults = ("silent", "clock", "stale")
    world = World(spec(mode, velocity, acceleration), recover_after=2, answers=dict.fromkeys(faults, answer), stop_after_s=1e9)
    sent = []
    for proposed, step_s in ticks:
        verdict = world.tick(proposed, step_s)
        if verdict.action is not None:
            assert verdict.action.dtype == np.float32 and verdict.behaviour != "stop"
            sent.append((world.now_s, verdict.action))
    check_invariant(world.spec, sent)


@settings(max_examples=20)
@given(three, three, some.lists(some.sampled_from([-1.0, 1.0, 0.0, 5.0]), min_size=30, max_size=30))
def test_an_adversary_at_full_swing_is_braked_before_the_end_of_the_range(velocity, acceleration, swings):
    world = World(spec("absolute", velocity, acceleration))
    sent = [(world.now_s, world.tick(np.full(3, swing)).action) for swing in np.cumsum(swings) % 3 - 1]
    check_invariant(world.spec, [(10.0 + PERIOD_S * index, action) for index, (_, action) in enumerate(sent)])


@settings(max_examples=20)
@given(some.lists(some.floats(0.0, 0.2), min_size=2, max_size=25), some.lists(some.floats(-1, 1), min_size=25, max_size=25))
def test_over_any_stretch_of_time_the_arm_goes_no_further_than_its_velocity_allows_and_a_burst_of_ticks_gains_nothing(gaps, wishes):
    world = World(spec(acceleration=(INFINITE,) * 3, velocity=(1.0, 1.0, 1.0)), recover_after=1)
    track = []
    for step_s, wish in zip(gaps, wishes, strict=False):
        track.append((world.now_s + step_s, world.tick(np.full(3, wish), step_s).action[0]))
    for start in range(len(track)):
        for stop in range(start + 1, len(track)):
            passed_s = track[stop][0] - track[start][0]
            assert abs(track[stop][1] - track[start][1]) <= passed_s + 0.5 * PERIOD_S + 1e-5


@settings(max_examples=20)
@given(some.lists(some.floats(-1, 1), min_size=25, max_size=25), some.sampled_from(["delta", "velocity"]), some.sampled_from([1.0, -2.0]))
def test_an_obedient_arm_never_leaves_its_workspace(wishes, mode, gain):
    robot = spec(mode, velocity=(3.0,) * 3, acceleration=(8.0, INFINITE, INFINITE), workspace={0: (-0.1, 0.15), 1: (-0.2, 0.2)})
    world = World(robot, drives=((0, 0, gain), (1, 1, gain)))
    for wish in wishes:
        action = world.tick(np.array([np.sign(wish), wish, 1.0])).action.astype(float)
        world.proprio[:2] += gain * action[:2] * (1.0 if mode == "delta" else PERIOD_S)
        assert -0.1 - 1e-5 <= world.proprio[0] <= 0.15 + 1e-5 and abs(world.proprio[1]) <= 0.2 + 1e-5
    assert not world.safety.stopped


def test_a_workspace_in_the_units_of_an_absolute_action_is_a_limit_of_the_action():
    world = World(spec(velocity=(INFINITE,) * 3, acceleration=(INFINITE,) * 3, workspace={0: (-0.25, 0.5)}), drives=((0, 0, 1.0),))
    world.tick(np.zeros(3))
    assert world.tick(np.array([0.9, 0.9, 0.0])).action.tolist() == pytest.approx([0.5, 0.9, 0.0])


def test_a_robot_outside_its_workspace_holds_where_no_action_is_known_to_move_it_back():
    world = World(spec(workspace={1: (-0.5, 0.5)}))
    assert world.tick(np.zeros(3)).behaviour == "send"
    world.proprio[1] = 0.6
    verdict = world.tick(np.zeros(3))
    assert verdict.behaviour == "hold" and "dimension 1 is 0.6, outside -0.5..0.5" in verdict.reason


def test_a_proposal_inside_all_limits_passes_bit_for_bit():
    world = World()
    world.tick(np.zeros(3))
    random = np.random.default_rng(0)
    action = np.zeros(3)
    for _ in range(50):
        action = np.clip(action + random.uniform(-0.004, 0.004, 3), -0.9, 0.9)
        verdict = world.tick(action)
        assert verdict.action.tobytes() == action.astype(np.float32).tobytes()
        assert verdict == type(verdict)(verdict.action, "send")


def test_a_verdict_names_the_limits_that_changed_the_proposal():
    world = World(spec(velocity=(1.0, 2.0, INFINITE), acceleration=(INFINITE, 4.0, INFINITE)))
    world.tick(np.zeros(3))
    verdict = world.tick(np.array([0.5, 0.0, 7.0]))
    assert verdict.changed == ("position", "velocity") and verdict.reason == "limited by position, velocity"
    assert verdict.action.tolist() == pytest.approx([0.05, 0.0, 1.0])
    assert world.tick(np.array([0.05, 0.1, 1.0])).changed == ("acceleration",)


@pytest.mark.parametrize("limit", ["position", "velocity", "acceleration"])
def test_a_limit_can_be_a_reason_to_stop_for_good(limit):
    world = World(spec(acceleration=(4.0,) * 3), on_limit={limit: "stop"})
    world.tick(np.zeros(3))
    proposed = {"position": [1.5, 0, 0], "velocity": [0.5, 0, 0], "acceleration": [0.04, 0, 0]}[limit]
    verdict = world.tick(np.array(proposed))
    assert verdict.action is None and verdict.behaviour == "stop" and limit in verdict.reason
    assert world.tick(np.zeros(3)).behaviour == "stop"
    world.safety.reset()
    assert world.tick(np.zeros(3)).behaviour == "send"


def test_the_first_absolute_action_starts_from_where_the_robot_is_as_far_as_that_is_known():
    world = World(spec(workspace={0: (-1, 1), 1: (-1, 1)}, acceleration=(INFINITE,) * 3), drives=((0, 0, 1.0), (1, 1, 1.0)))
    world.proprio[:2] = 0.5, -0.5
    # The gripper's place is not among the readings: it alone may go anywhere at first.
    assert world.tick(np.array([1.0, 1.0, 1.0])).action.tolist() == pytest.approx([0.55, -0.4, 1.0])


def test_after_a_robot_that_executed_something_else_rates_count_from_what_it_executed():
    world = World(spec(acceleration=(INFINITE,) * 3))
    world.tick(np.zeros(3))
    world.safety.sent(np.array([0.3, 0.0, 0.0]), world.now_s)
    assert world.tick(np.array([1.0, 0.0, 0.0])).action[0] == pytest.approx(0.35)
    world.safety.sent(np.full(3, np.nan), world.now_s)
    assert world.tick(np.array([-1.0, 0.0, 0.0])).action[0] == -1.0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"low": 1.0, "high": -1.0}, "low above high"),
        ({"velocity": (0.0, 1.0, 1.0)}, "not above 0"),
        ({"mode": "delta", "low": 0.1}, "standing still"),
        ({"mode": "sideways"}, "delta, absolute or velocity"),
        ({"velocity": (1.0, 2.0)}, "expected a number or one for each of 3"),
    ],
)
def test_a_specification_that_no_action_can_satisfy_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        Limits(spec(**change))


# ---- faults and their answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [None, np.full(3, np.nan), np.array([0, np.inf, 0]), np.zeros(2), np.full(3, 1e39), "forward"])
def test_a_tick_without_a_usable_proposal_holds_at_once_and_the_next_good_one_is_sent(bad):
    world = World()
    world.tick(np.array([0.01, 0.0, 1.0]))
    for _ in range(3):
        verdict = world.tick(bad)
        assert verdict.behaviour == "hold" and verdict.action[2] == 1.0 and verdict.reason
    assert world.tick(np.array([0.01, 0.0, 1.0])).behaviour == "send"


NOTHING = "the policy proposed nothing for this tick"
FAULTS = {
    "silent": (lambda world: {"proposed": None}, 0.5),
    "stale": (lambda world: {"front": Reading(np.arange(60, dtype=np.uint8).reshape(4, 5, 3), 10.05)}, 0.3),
    "stale, left out": (lambda world: {"front": None}, 0.3),
    "malformed, NaN": (lambda world: {"proprio": Reading(np.array([0, np.nan, 0], np.float32), world.now_s + PERIOD_S)}, 0.0),
    "malformed, shape": (lambda world: {"front": Reading(np.zeros((5, 4, 3), np.uint8), world.now_s + PERIOD_S)}, 0.0),
    "malformed, type": (lambda world: {"front": Reading(np.zeros((4, 5, 3)), world.now_s + PERIOD_S)}, 0.0),
    "malformed, stamp": (lambda world: {"front": Reading(np.zeros((4, 5, 3), np.uint8), np.nan)}, 0.0),
    "blank": (lambda world: {"front": Reading(np.full((4, 5, 3), 2, np.uint8), world.now_s + PERIOD_S)}, 0.0),
    "spike": (lambda world: {"proprio": Reading(np.array([0, 9, 0], np.float32), world.now_s + PERIOD_S)}, 0.0),
    "clock, back": (lambda world: {"step_s": -0.01}, 0.0),
    "clock, ahead": (lambda world: {"step_s": 2.0}, 0.0),
    "clock, future": (lambda world: {"front": Reading(np.arange(60, dtype=np.uint8).reshape(4, 5, 3), world.now_s + 9)}, 0.0),
}


@pytest.mark.parametrize("answer", ["hold", "retract", "stop"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_answered_as_configured_within_one_period_of_its_limit(name, answer):
    make, limit_s = FAULTS[name]
    world = World(watch={"spike_per_s": {"proprio": 10.0}}, answers={name.partition(",")[0]: answer})
    for step in range(4):
        assert world.tick(np.array([0.01 * step, 0, 1])).behaviour == "send"
    began_s = 10.05 if name == "stale" else world.now_s  # the last moment at which all was well
    for _ in range(20):
        verdict = world.tick(**{"proposed": np.array([0.04, 0, 1]), **make(world)})
        if verdict.behaviour == answer and verdict.reason != NOTHING:
            break
    if "clock" not in name:
        assert limit_s - 1e-9 <= world.now_s - began_s <= limit_s + PERIOD_S + 1e-9
    else:
        assert world.ticks == 5
    assert verdict.behaviour == answer and verdict.reason and (verdict.action is None) == (answer == "stop")


def test_a_picture_that_stays_the_same_is_frozen_only_while_the_arm_moves():
    picture = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    world = World(watch={"frozen_after_s": 0.4})
    still = [world.tick(np.zeros(3), front=Reading(picture, world.now_s + PERIOD_S)).behaviour for _ in range(30)]
    assert set(still) == {"send"}
    moving = [
        world.tick(np.array([0.01 * step, 0, 0]), front=Reading(picture, world.now_s + PERIOD_S)).behaviour for step in range(1, 14)
    ]
    assert moving == ["send"] * 8 + ["hold"] * 5
    assert world.behaviours(5, np.zeros(3)) == ["hold"] * 4 + ["send"]


def test_after_a_fault_proposals_are_sent_again_after_enough_good_ticks_in_a_row():
    world = World(recover_after=3)
    good = np.zeros(3)
    assert world.behaviours(2, good) == ["send"] * 2
    bad = Reading(np.zeros(4, np.float32), 0.0)
    assert world.tick(good, proprio=bad).behaviour == "hold"
    assert world.behaviours(2, good) == ["hold"] * 2
    assert world.tick(None).behaviour == "hold"  # no good tick: counting starts again
    assert world.behaviours(4, good) == ["hold", "hold", "send", "send"]


def test_a_fault_that_lasts_becomes_a_stop_that_only_a_reset_ends():
    world = World(stop_after_s=1.0)
    world.tick(np.zeros(3))
    behaviours = world.behaviours(40, None)
    # Silent for 0.5 s, then a fault for 1 s.
    assert behaviours.index("stop") == 29 and set(behaviours[29:]) == {"stop"}
    assert set(world.behaviours(10, np.zeros(3))) == {"stop"} and "lasted 1 s" in world.safety.stopped
    world.safety.reset()
    assert world.tick(np.zeros(3)).behaviour == "send"


def test_a_fault_that_comes_and_goes_faster_than_it_is_recovered_from_becomes_a_stop_too():
    world = World(stop_after_s=1.0, recover_after=4)
    world.tick(np.zeros(3))
    for index in range(40):
        world.tick(np.zeros(3), front=None if index % 3 else Reading(np.zeros((4, 5, 3), np.uint8), world.now_s + PERIOD_S))
    assert world.safety.stopped


@pytest.mark.parametrize("mode", ["absolute", "delta", "velocity"])
def test_holding_brakes_within_the_acceleration_and_then_stands_while_the_gripper_keeps(mode):
    robot = spec(mode, velocity=(1.0, 1.0, INFINITE), acceleration=(4.0, INFINITE, INFINITE))
    world = World(robot)
    per_tick = {"absolute": 0.03, "delta": 0.03, "velocity": 0.6}[mode]
    for step in range(20):
        scale = per_tick * (step if mode == "absolute" else 1)
        world.tick(np.array([scale, scale, 0.7]))
    before = world.sent[-1].astype(float)
    held = np.array([world.tick(None).action for _ in range(6)], float)
    assert np.allclose(held[:, 2], 0.7)
    start = before if mode == "absolute" else np.zeros(3)
    assert np.allclose(held[:, 1], start[1])  # no limit of acceleration: still at once
    # 0.6 per second is braked by 0.2 in each period
    left = np.array([0.4, 0.2, 0.0, 0.0, 0.0, 0.0])
    expected = {"absolute": before[0] + np.cumsum(left) * PERIOD_S, "delta": left * PERIOD_S, "velocity": left}[mode]
    assert np.allclose(held[:, 0], expected, atol=1e-5)


@pytest.mark.parametrize("acceleration", [INFINITE, 4.0])
@pytest.mark.parametrize("mode", ["absolute", "delta", "velocity"])
def test_a_retract_goes_back_along_the_path_inside_the_limits_and_keeps_the_gripper(mode, acceleration):
    robot = spec(mode, velocity=(1.0, 1.0, INFINITE), acceleration=(acceleration, acceleration, INFINITE))
    world = World(robot, answers={"silent": "retract"}, watch={"silent_after_s": PERIOD_S}, stop_after_s=100.0, retract_s=10.0)
    place, places, sent = np.zeros(2), [np.zeros(2)], []

    def go(proposed):
        nonlocal place
        verdict = world.tick(proposed)
        sent.append((world.now_s, verdict.action))
        moved = verdict.action[:2].astype(float)
        place = moved if mode == "absolute" else place + moved * (1.0 if mode == "delta" else PERIOD_S)
        return verdict

    go(np.zeros(3))
    for step in range(30):  # a corner: along x, then along y
        target = np.array([min(step + 1, 15), max(step - 14, 0)]) * 0.02
        wish = target if mode == "absolute" else (target - place) / (1.0 if mode == "delta" else PERIOD_S)
        assert go(np.array([*wish, 0.5])).behaviour == "send"
        places.append(place)
    for _ in range(150):
        assert go(None).behaviour == "retract"
        near = min(np.abs(place - other).max() for other in places)
        assert near < 0.05, "off the path"
    assert np.allclose(place, 0, atol=1e-4) and sent[-1][1][2] == pytest.approx(0.5)
    check_invariant(robot, sent)


def test_before_anything_was_sent_a_hold_of_an_absolute_action_sends_nothing():
    world = World()
    verdict = world.tick(None)
    assert verdict.action is None and verdict.behaviour == "hold"
    assert World(spec("velocity")).tick(None).action is None  # the gripper's place is not known either


def test_an_hour_that_the_clock_skips_is_one_fault_and_not_an_hour_of_silence():
    world = World(recover_after=2, stop_after_s=1.0)
    world.behaviours(3, np.zeros(3))
    assert world.tick(np.zeros(3), step_s=3600.0).behaviour == "hold"
    assert world.behaviours(3, np.zeros(3)) == ["hold", "send", "send"]
    assert world.tick(np.zeros(3), step_s=-7200.0).behaviour == "hold"
    assert world.behaviours(3, np.zeros(3)) == ["hold", "send", "send"]


def test_a_sensor_that_nobody_watches_may_do_what_it_likes():
    world = World(watch={"unwatched": ("front",)})
    assert world.behaviours(20, np.zeros(3), front=None) == ["send"] * 20


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: SafetyConfig(answers={"sillent": "hold"}),
        lambda: SafetyConfig(answers={"silent": "send"}),
        lambda: SafetyConfig(on_limit={"position": "ignore"}),
        lambda: SafetyConfig(recover_after=0),
        lambda: WatchdogConfig(silent_after_s=0),
        lambda: World(watch={"spike_per_s": {"nose": 1.0}}),
        lambda: World(spec(workspace={0: (0, 1)}), watch={"unwatched": ("proprio",)}),
        lambda: World(drives=((0, 0, 1.0),)),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(wrong):
    with pytest.raises(ValueError, match=r"expected|must be|has"):
        wrong()
