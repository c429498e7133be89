"""Robots: worlds that live on a clock, recordings, LeRobot's; and a conformance check that finds what is broken."""

import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import uwm_envs
from uwm.learn.checkpoint import refuse_mismatch
from uwm.robot.clock import MonotonicClock, VirtualClock
from uwm.robot.conformance import RULES, check, quiet
from uwm.robot.interface import Reading, RobotError
from uwm.robot.robots.faults import KINDS, Fault, FaultyRobot
from uwm.robot.robots.lerobot import LeRobotRobot
from uwm.robot.robots.replay import ReplayRobot, recorded
from uwm.robot.robots.simulated import SimulatedRobot, rest, spec_of
from uwm_data import EpisodeStore, StreamSpec

PAGE = Path(__file__).resolve().parent.parent / "docs" / "robots.md"
PERIOD_S = 0.1  # of the toy world


def toy(clock, **options):
    return SimulatedRobot(uwm_envs.make("Toy"), clock, **options)


def episode(steps=6, seed=0):
    """Arrays of a toy episode: T + 1 observations, T actions."""
    env, generator = uwm_envs.make("Toy"), np.random.default_rng(seed)
    seen, actions = [env.reset(seed=seed)[0]], generator.uniform(-1, 1, (steps, 2)).astype(np.float32)
    for action in actions:
        seen.append(env.step(action)[0])
    return {name: np.stack([each[name] for each in seen]) for name in seen[0]} | {"action": actions}


# ------------------------------------------------------------------------------------------------------------- simulated


@pytest.mark.parametrize(("world", "options"), [("Toy", {}), ("PushT", {"image_size": 32}), ("Lift", {"cameras": ()})])
def test_an_episode_through_the_robot_is_the_episode_of_the_world_bit_for_bit(world, options):
    """Read, send, wait a period: the same as env.step, whatever else happens between the ticks."""
    clock, env = VirtualClock(7.0), uwm_envs.make(world, **options)
    robot, generator = SimulatedRobot(env, clock, seed=3), np.random.default_rng(0)
    robot.connect()
    actions = generator.uniform(-1, 1, (8, robot.spec.action.size)).astype(np.float32)
    through = []
    for action in actions:
        through.append(robot.read())
        clock.sleep_until(clock.now_s() + 0.013)  # thinking
        robot.send(action)
        clock.sleep_until(clock.now_s() + robot.spec.period_s - 0.013)
        robot.read()
    clock.sleep_until(clock.now_s() + robot.spec.period_s)
    observation, _ = env.reset(seed=3)
    for readings, action in zip(through, actions, strict=True):
        for name, value in observation.items():
            np.testing.assert_array_equal(readings[name].value, value)
        observation = env.step(action)[0]
    assert (robot.steps, robot.gaps) == (8, 0)
    env.close()


def test_stamps_are_the_ends_of_the_steps_and_nothing_is_seen_before_its_time():
    clock = VirtualClock()
    robot = toy(clock)
    robot.connect()
    start = robot.read()["proprio"]
    robot.send(np.array([0.0, 1.0]))
    stamps, places = [], []
    for tenth in range(1, 24):
        clock.sleep_until(tenth * PERIOD_S / 10)
        reading = robot.read()["proprio"]
        stamps.append(reading.stamp_s)
        places.append(reading.value[1] - start.value[1])
    np.testing.assert_allclose(stamps, np.floor(np.arange(1, 24) / 10 + 1e-9) * PERIOD_S)
    np.testing.assert_allclose(places, [0.0] * 9 + [0.1] * 14, atol=1e-6)


def test_a_world_that_nobody_has_driven_waits_while_its_sensors_measure():
    clock = VirtualClock()
    robot = toy(clock)
    robot.connect()
    first = robot.read()
    clock.sleep_until(5.03)
    later = robot.read()
    assert later["proprio"].stamp_s == pytest.approx(5.0) and (robot.steps, robot.gaps) == (0, 0)
    np.testing.assert_array_equal(first["agentview"].value, later["agentview"].value)


def test_a_period_without_an_action_is_a_gap_in_which_a_velocity_is_zero():
    clock = VirtualClock()
    robot = toy(clock)
    robot.connect()
    before = robot.read()["proprio"].value
    robot.send(np.array([0.0, 1.0]))
    clock.sleep_until(1.0)
    after = robot.read()["proprio"].value
    np.testing.assert_allclose(after - before, [0.0, 0.1], atol=1e-6)
    assert (robot.steps, robot.gaps) == (10, 9)


def test_a_gap_keeps_an_absolute_target_and_a_gripper():
    clock, env = VirtualClock(), uwm_envs.make("PushT", image_size=32)
    robot = SimulatedRobot(env, clock)
    robot.connect()
    robot.send(np.array([0.9, -0.9]))
    clock.sleep_until(3.0)
    np.testing.assert_allclose(robot.read()["proprio"].value, np.array([0.9, -0.9]) * 0.256, atol=0.05)
    env.close()
    delta = replace(robot.spec.action, mode="delta", gripper=(1,))
    np.testing.assert_array_equal(rest(delta, np.array([0.5, -1.0], np.float32)), [0.0, -1.0])
    np.testing.assert_array_equal(rest(robot.spec.action, np.array([0.5, -1.0], np.float32)), [0.5, -1.0])


@pytest.mark.parametrize("jitter", [-0.04, 0.04])
def test_an_action_that_is_almost_half_a_period_early_or_late_meets_its_period(jitter):
    clock, generator = VirtualClock(1.0), np.random.default_rng(0)
    robot = toy(clock)
    robot.connect()
    executed, step = [], robot.env.step
    robot.env.step = lambda action: executed.append(action) or step(action)
    sent = generator.uniform(-1, 1, (9, 2)).astype(np.float32)
    for tick, action in enumerate(sent):
        clock.sleep_until(1.0 + PERIOD_S * tick + (jitter if tick % 2 else 0.0))
        robot.send(action)
    clock.sleep_until(1.0 + PERIOD_S * 8.6)
    robot.read()
    np.testing.assert_array_equal(executed, sent)
    assert robot.gaps == 0


def test_actions_beyond_the_limits_are_clipped_and_told_and_nonsense_is_refused():
    robot = toy(VirtualClock())
    robot.connect()
    np.testing.assert_array_equal(robot.send(np.array([3.0, -0.5])), [1.0, -0.5])
    with pytest.raises(RobotError, match="velocity_y is nan"):
        robot.send(np.array([0.0, np.nan]))
    with pytest.raises(RobotError, match="2 numbers"):
        robot.send(np.zeros(3))


def test_a_stop_from_another_thread_ends_the_motion_and_later_actions_are_refused():
    clock = VirtualClock()
    robot = toy(clock)
    robot.connect()
    before = robot.read()["proprio"].value
    robot.send(np.array([1.0, 0.0]))
    thread = threading.Thread(target=lambda: (robot.stop(), robot.stop()))
    thread.start()
    thread.join()
    with pytest.raises(RobotError, match="stopped"):
        robot.send(np.array([1.0, 0.0]))
    clock.sleep_until(1.0)
    np.testing.assert_array_equal(robot.read()["proprio"].value, before)
    assert robot.gaps == 0, "a stopped robot does not miss actions"
    robot.close()
    robot.connect()
    assert robot.seed == 1 and robot.steps == 0


def test_a_jump_of_the_clock_by_an_hour_moves_the_grid_and_not_the_world():
    clock = VirtualClock()
    robot = toy(clock)
    robot.connect()
    robot.send(np.zeros(2))
    clock.sleep_until(3600.0)
    readings = robot.read()
    assert robot.steps <= 2 and 3599.5 < readings["proprio"].stamp_s <= 3600.0


def test_the_world_failing_is_a_robot_error_and_stop_and_close_still_work():
    clock = VirtualClock()
    robot = toy(clock)
    robot.connect()
    robot.env.step = lambda _: 1 / 0
    robot.send(np.zeros(2))
    clock.sleep_until(1.0)
    with pytest.raises(RobotError, match=r"world failed.*division"):
        robot.read()
    robot.stop()
    robot.close()


def test_the_specification_is_the_worlds_card_and_fits_a_checkpoint_of_it():
    env = uwm_envs.make("Lift", cameras=())
    spec = spec_of(env, velocity=20.0, workspace={2: (0.8, 1.3)})
    assert spec.action.names[0] == "dx" and spec.action.units[3] == "0.5 rad" and spec.action.gripper == (6,)
    assert (spec.action.mode, spec.rate_hz, spec.sensors["proprio"].units[9]) == ("delta", 20, "m")
    assert (spec.action.velocity == 20).all() and np.isinf(spec.action.acceleration).all() and spec.workspace == {2: (0.8, 1.3)}
    refuse_mismatch(env.unwrapped.card, spec.card)
    env.close()


def test_on_the_wall_clock_the_world_lives_in_a_thread_of_its_own():
    """No speed is asked for: that steps happen without anybody asking, that readings follow, and that all ends."""
    clock, threads = MonotonicClock(), set()
    with toy(clock, threaded=True) as robot:
        step = robot.env.step
        robot.env.step = lambda action: threads.add(threading.current_thread()) or step(action)
        for again in range(2):
            robot.connect()
            assert robot.seed == again
            begun_s = robot.read()["proprio"].stamp_s
            robot.send(np.zeros(2))
            give_up_s = clock.now_s() + 20
            while robot.steps < 4 and clock.now_s() < give_up_s:
                clock.sleep_until(clock.now_s() + 0.05)
            assert robot.steps >= 4 and robot.gaps >= 2
            assert robot.read()["proprio"].stamp_s > begun_s
            robot.close()
    assert len(threads) == 1 and threading.current_thread() not in threads
    with pytest.raises(ValueError, match="virtual clock"):
        toy(VirtualClock(), threaded=True)


def test_a_world_that_is_too_slow_for_its_rate_runs_in_slow_motion_and_says_so():
    class Clock(VirtualClock):  # the world's thread is played by the test: threaded, but not VirtualClock's own type check
        pass

    clock = Clock()
    robot = toy(clock)
    robot.connect()
    robot._world = object()  # as if in a thread; nothing is submitted to it below
    step = robot.env.step
    robot.env.step = lambda action: clock.sleep_until(clock.now_s() + 3.2 * PERIOD_S) or step(action)
    robot.send(np.zeros(2))
    clock.sleep_until(0.5 * PERIOD_S)
    robot._advance()
    assert robot.slipped >= 2 and robot.gaps == 0
    assert 0 <= clock.now_s() - robot.read()["proprio"].stamp_s <= PERIOD_S


# ------------------------------------------------------------------------------------------------------------------ hold


def test_a_second_controller_is_refused_also_in_another_process_until_the_first_dies(tmp_path):
    code = ("import sys, time; from uwm.robot.robots.hold import Hold; "
            "hold = Hold('arm', sys.argv[1]); hold.take(); print('held', flush=True); time.sleep(60)")  # fmt: skip
    from uwm.robot.robots.hold import Hold

    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        hold = Hold("arm", tmp_path)
        with pytest.raises(RobotError, match="another process holds the robot 'arm'"):
            hold.take()
        assert not hold.taken
        Hold("leg", tmp_path).take()
    finally:
        other.kill()  # no clean-up runs
        other.wait()
    hold.take()
    with pytest.raises(RobotError, match="already connected"):
        hold.take()
    hold.release()


def test_two_robots_of_one_name_are_one_robot():
    first, second = (toy(VirtualClock(), name="of test_robot_robots") for _ in range(2))
    first.connect()
    with pytest.raises(RobotError, match="another process holds"):
        second.connect()
    first.close()
    second.connect()
    second.close()


# ---------------------------------------------------------------------------------------------------------------- faults


def faulty(*faults):
    clock = VirtualClock()
    robot = FaultyRobot(toy(clock), clock, faults)
    robot.connect()
    seen = []
    for _ in range(8):
        seen.append(robot.read())
        robot.send(np.array([0.3, 0.7]))
        clock.sleep_until(clock.now_s() + PERIOD_S)
    return seen


def test_every_fault_shows_while_it_lasts_and_on_its_sensor_only():
    healthy = faulty()
    stamps = [each["proprio"].stamp_s for each in healthy]
    for kind in KINDS:
        shown = faulty(Fault("proprio", kind, 0.25, 0.55, delay_s=0.15))
        for tick, (good, bad) in enumerate(zip(healthy, shown, strict=True)):
            np.testing.assert_array_equal(good["agentview"].value, bad["agentview"].value)
            if not 0.25 <= stamps[tick] < 0.55:
                np.testing.assert_array_equal(good["proprio"].value, bad["proprio"].value)
        within = [each.get("proprio") for each in shown[3:6]]
        values = None if kind == "dropped" else [each.value for each in within]
        if kind == "dropped":
            assert within == [None] * 3
        elif kind == "frozen":
            assert all((value == healthy[2]["proprio"].value).all() for value in values)
            assert [each.stamp_s for each in within] == stamps[3:6]
        elif kind == "delayed":
            assert [each.stamp_s for each in within] == pytest.approx(stamps[1:4])
        elif kind == "slow":
            assert [each.stamp_s for each in within] == pytest.approx([stamps[3], stamps[3], stamps[5]])
        elif kind == "black":
            assert not np.any(values)
        elif kind == "nan":
            assert np.isnan(values).all()
        elif kind == "shape":
            assert {value.shape for value in values} == {(1,)}
        else:
            assert kind == "spike" and min(value[0] for value in values) > 900


def test_an_unknown_fault_is_named():
    with pytest.raises(ValueError, match="no fault 'fire': expected one of frozen"):
        Fault("wrist", "fire")


# ---------------------------------------------------------------------------------------------------------------- replay


def test_a_recording_plays_by_time_and_compares_what_is_sent():
    clock, arrays = VirtualClock(100.0), episode()
    robot = ReplayRobot(arrays, spec_of(uwm_envs.make("Toy")), clock)
    robot.connect()
    for tick in range(6):
        readings = robot.read()
        np.testing.assert_array_equal(readings["wrist"].value, arrays["wrist"][tick])
        assert readings["wrist"].stamp_s == pytest.approx(100.0 + tick * PERIOD_S)
        if tick != 2:
            robot.send(arrays["action"][tick] + (0.5 if tick == 4 else 0.0) * np.sign(-arrays["action"][tick]))
        clock.sleep_until(clock.now_s() + PERIOD_S)
    assert robot.ended
    told = robot.comparison()
    assert (told["compared"], told["missed"]) == (5, 1)
    np.testing.assert_allclose(told["largest_difference"], 0.5, atol=1e-6)
    np.testing.assert_allclose(told["mean_difference"], 0.1, atol=1e-6)
    clock.sleep_until(110.0)
    assert robot.read()["proprio"].stamp_s == pytest.approx(100.6), "a recording that has ended grows stale"
    robot.send(np.zeros(2))
    assert robot.log[-1].recorded is None


def test_an_episode_of_a_store_becomes_a_robot_with_the_stores_card(tmp_path):
    card, arrays = uwm_envs.make("Toy").unwrapped.card, episode()
    told = card["action"]
    streams = {name: StreamSpec((32, 32, 3), "uint8", 10, "video") for name in ("agentview", "wrist")}
    streams |= {"proprio": StreamSpec((2,), "float32", 10, "state", ["m", "m"], ["x", "y"]),
                "action": StreamSpec((2,), "float32", 10, "action", told["units"], told["names"])}  # fmt: skip
    with EpisodeStore.create(tmp_path / "store.zarr", streams, card=card) as store:
        store.append(arrays, {})
    kept, spec = recorded(EpisodeStore.open(tmp_path / "store.zarr"), 0)
    assert (spec.action.mode, spec.action.names, spec.rate_hz) == ("velocity", ("velocity_x", "velocity_y"), 10)
    assert spec.sensors["proprio"].units == ("m", "m") and set(spec.sensors) == {"agentview", "wrist", "proprio"}
    np.testing.assert_array_equal(kept["action"], arrays["action"])
    clock = VirtualClock()
    assert check(lambda: ReplayRobot({key: np.repeat(value, 20, 0) for key, value in kept.items()}, spec, clock), clock) == []


def test_a_recording_that_does_not_fit_its_specification_is_refused():
    arrays, spec = episode(), spec_of(uwm_envs.make("Toy"))
    with pytest.raises(ValueError, match=r"lacks \['wrist'\]"):
        ReplayRobot({key: value for key, value in arrays.items() if key != "wrist"}, spec, VirtualClock())
    with pytest.raises(ValueError, match=r"proprio must be \(T, 2\)"):
        ReplayRobot({**arrays, "proprio": np.zeros((6, 3))}, spec, VirtualClock())


# --------------------------------------------------------------------------------------------------------------- LeRobot


class Arm:
    """LeRobot's interface, as its robots have it."""

    name = "fake_follower"
    observation_features = {"elbow.pos": float, "gripper.pos": float, "front": (24, 32, 3)}  # noqa: RUF012
    action_features = {"gripper.pos": float, "elbow.pos": float}  # noqa: RUF012 - another order than observed

    def __init__(self):
        self.at, self.sent, self.is_connected, self.calibrated = {"elbow.pos": 1.0, "gripper.pos": 40.0}, [], False, None

    def connect(self, calibrate=True):
        self.is_connected, self.calibrated = True, calibrate

    def get_observation(self):
        return {**self.at, "front": np.zeros((24, 32, 3), np.uint8)}

    def send_action(self, action):
        assert all(type(value) is float for value in action.values())
        self.sent.append(action)
        return {**action, "elbow.pos": min(action["elbow.pos"], 10.0)}

    def disconnect(self):
        self.is_connected = False


LIMITS = {"elbow.pos": (-90.0, 90.0), "gripper.pos": (0.0, 100.0)}


def wrapped(clock, arm=None, **options):
    return LeRobotRobot(arm or Arm(), clock, rate_hz=30, limits=LIMITS, **options)


def test_a_lerobot_robot_is_driven_by_names():
    clock, arm = VirtualClock(5.0), Arm()
    robot = wrapped(clock, arm, velocity={"elbow.pos": 60.0}, card={"image_orientation": "upright"})
    assert robot.spec.action.names == ("gripper.pos", "elbow.pos") and robot.spec.action.gripper == (0,)
    np.testing.assert_array_equal(robot.spec.action.velocity, [np.inf, 60])
    assert robot.spec.card["cameras"] == ["front"] and robot.spec.card["image_orientation"] == "upright"
    robot.connect()
    assert arm.is_connected and arm.calibrated is False
    readings = robot.read()
    np.testing.assert_array_equal(readings["proprio"].value, [1, 40])
    assert readings["front"].value.shape == (24, 32, 3) and readings["front"].stamp_s == 5.0
    np.testing.assert_array_equal(robot.send(np.array([120.0, 30.0])), [100, 10])  # ours clips, then theirs
    assert arm.sent == [{"gripper.pos": 100.0, "elbow.pos": 30.0}]
    robot.stop()
    assert arm.sent[-1] == {"gripper.pos": 40.0, "elbow.pos": 1.0}, "it holds where it is"
    robot.close()
    assert not arm.is_connected


def test_limits_must_name_every_action_because_lerobot_does_not_tell_them():
    with pytest.raises(ValueError, match=r"unknown are \['wrist.pos'\], missing are \['gripper.pos', 'elbow.pos'\]"):
        LeRobotRobot(Arm(), VirtualClock(), 30, {"wrist.pos": (0, 1)})


def test_what_lerobot_raises_becomes_a_robot_error_but_never_out_of_stop():
    arm, clock = Arm(), VirtualClock()
    robot = wrapped(clock, arm)
    robot.connect()
    arm.get_observation = arm.send_action = lambda *_: 1 / 0
    with pytest.raises(RobotError, match="LeRobot fake_follower: get_observation failed: division by zero"):
        robot.read()
    robot.stop()
    robot.close()
    assert not arm.is_connected


# ----------------------------------------------------------------------------------------------------------- conformance


@pytest.mark.parametrize("kind", ["toy", "faulty", "lerobot", "replay"])
def test_our_robots_conform(kind):
    clock = VirtualClock(3.0)
    make = {
        "toy": lambda: toy(clock),
        "faulty": lambda: FaultyRobot(toy(clock), clock),
        "lerobot": lambda: wrapped(clock, velocity={"elbow.pos": 60.0}),
        "replay": lambda: ReplayRobot(episode(60), spec_of(uwm_envs.make("Toy")), clock),
    }[kind]
    assert [str(each) for each in check(make, clock)] == []


@pytest.mark.parametrize("world", ["PushT", "Lift"])
def test_our_simulated_robots_conform(world):
    clock, env = VirtualClock(), uwm_envs.make(world, image_size=32)
    assert [str(each) for each in check(lambda: SimulatedRobot(env, clock), clock)] == []
    env.close()


def spoilt(robot, **changes):
    """The robot with some of its methods replaced by functions of itself and the original method."""
    for name, change in changes.items():
        original = getattr(robot, name)
        setattr(robot, name, lambda *given, change=change, original=original: change(original, *given))
    return robot


def readings_with(change):
    return lambda read: {name: change(name, reading) for name, reading in read().items()}


def with_action(robot, **changes):
    robot.spec = replace(robot.spec, action=replace(robot.spec.action, **changes))
    return robot


def scaled(send, action):
    return send(np.asarray(action) * 0.5 + 0.1)


def in_place(send, action):
    sent = send(action)
    action += 1
    return sent


def lenient(send, action):
    """Makes an action of anything."""
    return send(np.resize(np.nan_to_num(np.asarray(action, np.float32), posinf=1, neginf=-1), 2))


def anxious(stop):
    stop()
    if threading.current_thread() is not threading.main_thread():
        raise RobotError("not from here")


# rule -> robots that break it, made from a clock
BROKEN = {
    "spec": [
        lambda clock: with_action(toy(clock), low=np.ones(2, np.float32)),
        lambda clock: with_action(toy(clock), units=("m",)),
        lambda clock: with_action(toy(clock), mode="torque"),
        lambda clock: with_action(toy(clock), high=np.full(2, np.inf)),
        lambda clock: with_action(toy(clock), gripper=(2,)),
    ],
    "unconnected": [lambda clock: spoilt(toy(clock), read=lambda read: {}), lambda clock: spoilt(toy(clock), send=lambda send, a: a)],
    "connect": [
        lambda clock: spoilt(toy(clock), connect=lambda connect: 1 / 0),
        lambda clock: spoilt(toy(clock), close=lambda close: None),
    ],
    "hold": [lambda clock: spoilt(robot := toy(clock), connect=lambda connect: robot._hold.taken or connect())],
    "readings": [
        lambda clock: FaultyRobot(toy(clock), clock, [Fault("wrist", "dropped")]),
        lambda clock: FaultyRobot(toy(clock), clock, [Fault("wrist", "shape")]),
        lambda clock: FaultyRobot(toy(clock), clock, [Fault("proprio", "nan")]),
        lambda clock: spoilt(toy(clock), read=readings_with(lambda n, r: Reading(r.value.astype(np.float64), r.stamp_s))),
    ],
    "stamps": [
        lambda clock: spoilt(toy(clock), read=readings_with(lambda n, r: Reading(r.value, r.stamp_s + 1))),
        lambda clock: spoilt(toy(clock), read=readings_with(lambda n, r: Reading(r.value, r.stamp_s - 1))),
        lambda clock: spoilt(toy(clock), read=readings_with(lambda n, r: Reading(r.value, 6 - r.stamp_s))),
    ],
    "rate": [lambda clock: FaultyRobot(toy(clock), clock, [Fault("wrist", "slow", every=4)])],
    "quick": [lambda clock: spoilt(toy(clock), read=lambda read: clock.sleep_until(clock.now_s() + 0.2) or read())],
    "sent": [
        lambda clock: spoilt(toy(clock), send=lambda send, action: send(action) and None if np.size(action) == 1 else None),
        lambda clock: spoilt(toy(clock), send=scaled),
        lambda clock: spoilt(toy(clock), send=lambda send, action: send(action) * 1.5 + 1.5),
    ],
    "limits": [lambda clock: spoilt(toy(clock), send=lambda send, action: (send(action), np.array(action))[1])],
    "malformed": [lambda clock: spoilt(toy(clock), send=lenient)],
    "argument": [lambda clock: spoilt(toy(clock), send=in_place)],
    "stop": [
        lambda clock: spoilt(toy(clock), stop=anxious),
        lambda clock: spoilt(robot := toy(clock), stop=lambda stop: None if robot._hold.taken else stop()),
    ],
}  # fmt: skip


def test_every_rule_has_a_robot_that_breaks_it():
    assert set(BROKEN) == set(RULES)


@pytest.mark.parametrize(("rule", "make"), [(rule, make) for rule, makes in BROKEN.items() for make in makes])
def test_a_broken_robot_is_found(rule, make):
    clock = VirtualClock(3.0)
    robot = make(clock)
    found = check(lambda: robot, clock)
    assert rule in {each.rule for each in found}, [str(each) for each in found]


def test_a_check_without_limits_sends_nothing_beyond_them_and_uses_the_callers_action():
    clock, sent = VirtualClock(), []
    robot = spoilt(toy(clock), send=lambda send, action: (sent.append(np.array(action)), send(action))[1])
    assert check(lambda: robot, clock, action=lambda spec, readings: np.full(2, 0.25, np.float32), limits=False) == []
    finite = [each for each in sent if each.shape == (2,) and np.isfinite(each).all()]
    assert len(finite) > 10 and all((each == 0.25).all() or not each.any() for each in finite)
    absolute = replace(robot.spec, action=replace(robot.spec.action, mode="absolute", low=np.float32([0, 0])))
    np.testing.assert_array_equal(quiet(absolute, {}), [0.5, 0.5])


# ------------------------------------------------------------------------------------------------------------------ page


class Link:
    """What the page's cart talks to: a cart on a rail whose position is the integral of its velocity."""

    def __init__(self, clock):
        self.clock, self.velocity, self.position, self.at_s = clock, 0.0, 0.0, clock.now_s()

    def drive(self, velocity):
        now = self.clock.now_s()
        self.position += self.velocity * (now - self.at_s)
        self.velocity, self.at_s = velocity, now

    def newest(self):
        self.drive(self.velocity)
        frame_s = np.floor(self.at_s * 10 + 1e-9) / 10
        return self.position, self.at_s, np.zeros((32, 32, 3), np.uint8), frame_s


def test_the_robot_on_the_page_has_fewer_than_fifty_lines_and_conforms():
    source = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    assert 20 < len(source.splitlines()) < 50
    room = {}
    exec(compile(source, str(PAGE), "exec"), room)
    clock = VirtualClock()
    link = Link(clock)
    assert [str(each) for each in check(lambda: room["CartRobot"](link, clock, name=""), clock)] == []
    assert link.position == 0 or abs(link.position) < 0.2


def test_the_pages_list_names_every_robot_that_there_is():
    text = PAGE.read_text()
    for name in ("SimulatedRobot", "ReplayRobot", "LeRobotRobot", "FaultyRobot", "FrankaRobot", "DdsRobot"):
        assert f"`{name}(" in text
    for file in re.findall(r"`(uwm/[\w/]+\.py)`", text):
        assert (PAGE.parent.parent / file).is_file()


def test_every_test_that_the_page_names_is_there():
    tests = Path(__file__).parent
    written = {name for file in tests.rglob("*.py") for name in re.findall(r"def (test_\w+)\(", file.read_text())}
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text()))
    assert len(named) > 25 and not named - written
