"""Faults of sensors, workers, clocks, disks and people, each injected into the whole loop: controller, safety, audit, recorder.

In every one: no action outside the limits reaches the robot, the arm is in its safe behaviour within one period of the
limit that the fault has, no episode file is damaged, and the run comes to its end.
"""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import robot_in_trouble as trouble
from robot_in_trouble import PERIOD_S, FakeRobot, assert_inside_limits, run
from uwm.robot import audit
from uwm.robot.audit import Audit
from uwm.robot.clock import MonotonicClock, VirtualClock
from uwm.robot.controller import Controller
from uwm.robot.inference import ProcessWorker, ThreadWorker
from uwm.robot.interface import Reading, RobotError
from uwm.robot.limits import Limits
from uwm.robot.recording import Recorder, recover_all, streams_for
from uwm_data import EpisodeStore, StreamSpec, check

BEGINS_S, ENDS_S = 2.0, 3.5


def test_the_judge_of_motion_takes_ticks_that_jitter_and_no_jump():
    """Limits at full speed on a clock that jitters and stalls; then one action off by half of what a tick at full speed moves."""
    random, limits, now_s = np.random.default_rng(0), Limits(trouble.SPEC), 0.0
    received = [(now_s, np.array([0.0, 0.2, 1.0]))]
    limits.sent(received[0][1], now_s)
    for index in range(1500):
        now_s += PERIOD_S * random.choice([1.0, random.uniform(0.8, 1.2), random.uniform(0.05, 2.5)], p=[0.5, 0.4, 0.1])
        action, _ = limits.limit(np.where(np.arange(3) == 2, 1.0, np.sign(np.sin(index / 15))), now_s)
        limits.sent(action, now_s)
        received.append((now_s, action.copy()))
    assert_inside_limits(received)
    steady = [(PERIOD_S * index, np.array([0.2, 0.2, 1.0])) for index in range(20)]
    steady[10] = (steady[10][0], np.array([0.2 + 0.025, 0.2, 1.0]))
    with pytest.raises(AssertionError):
        assert_inside_limits(steady)


def behaviours(ticks, begin_s, end_s):
    return [tick.verdict.behaviour for tick in ticks if begin_s - 1e-9 <= tick.began_s < end_s - 1e-9]


def frozen(readings, now_s):
    return readings | {"front": Reading(trouble.picture(0), now_s)}


def black(readings, now_s):
    return readings | {"front": Reading(np.zeros((6, 5, 3), np.uint8), now_s)}


def wrong_shape(readings, now_s):
    return readings | {"front": Reading(np.zeros((5, 6, 3), np.uint8), now_s)}


def floats(readings, now_s):
    return readings | {"front": Reading(np.full((6, 5, 3), np.nan), now_s)}


def slow(readings, now_s):
    """One picture a second from a camera of 20 Hz."""
    then_s = float(np.floor(now_s))
    return readings | {"front": Reading(trouble.picture(int(then_s)), then_s)}


def unplugged(readings, now_s):
    return {name: reading for name, reading in readings.items() if name != "front"}


def not_a_number(readings, now_s):
    return readings | {"proprio": Reading(np.array([0, np.nan, 0], np.float32), now_s)}


def spike(readings, now_s):
    side = 1.0 if round(now_s / PERIOD_S) % 2 else -1.0
    return readings | {"proprio": Reading(readings["proprio"].value + np.float32(side), now_s)}


# What happens, and after how long it is a fault: an old reading after the sensor's own limit, a picture that stands still
# after the watchdog's, anything that is wrong at sight at once.
SENSORS = {
    frozen: trouble.FROZEN_S, black: 0.0, wrong_shape: 0.0, floats: 0.0, slow: trouble.STALE_S, unplugged: trouble.STALE_S,
    not_a_number: 0.0, spike: 0.0,
}  # fmt: skip


@pytest.mark.parametrize("answer", ["hold", "retract", "stop"])
@pytest.mark.parametrize("fault", SENSORS, ids=lambda fault: fault.__name__)
def test_a_sensor_that_fails_puts_the_arm_into_its_safe_behaviour_within_one_period_of_the_limit(fault, answer):
    names = ("frozen", "blank", "malformed", "stale", "spike")
    found = run(
        ticks=100,
        sensors=lambda readings, now_s: fault(readings, now_s) if BEGINS_S <= now_s < ENDS_S else readings,
        answers=dict.fromkeys(names, answer),
    )
    assert set(behaviours(found.ticks, 0.0, BEGINS_S)) <= {"send", "hold"} and behaviours(found.ticks, 1.0, BEGINS_S) == ["send"] * 20
    # A frozen camera repeats an older picture, so that its last change may lie one period back.
    latest_s = BEGINS_S + SENSORS[fault] + PERIOD_S
    # The slow camera has a new picture at 3 s, which is good while it is young.
    safe = behaviours(found.ticks, latest_s, 3.0 if fault is slow else ENDS_S)
    if answer == "stop":
        assert found.statistics.ended.startswith("stopped") and found.robot.stops and found.ticks[-1].began_s <= latest_s
        assert found.robot.received[-1][0] <= latest_s
    else:
        # A jump that stays becomes the place, so that between two of them the arm is recovering, and holds.
        assert safe and set(safe) <= {answer, "hold" if fault is spike else answer}
        assert behaviours(found.ticks, ENDS_S + 0.5, 5.0) == ["send"] * 20  # and it goes on when all is well again
    found.assert_sound()


@pytest.mark.parametrize("fault", SENSORS, ids=lambda fault: fault.__name__)
def test_a_wild_policy_beside_a_failing_sensor_still_sends_nothing_outside_the_limits(fault):
    found = run(ticks=80, compute=trouble.wild, sensors=lambda r, now_s: fault(r, now_s) if int(now_s * 2) % 2 else r, recover_after=2)
    assert {"send", "hold"} <= {tick.verdict.behaviour for tick in found.ticks}
    found.assert_sound()


def test_a_camera_that_is_faster_than_promised_disturbs_nothing():
    found = run(ticks=60, sensors=lambda r, now_s: r | {"front": Reading(trouble.picture(int(now_s * 200)), now_s)})
    assert behaviours(found.ticks, 0.5, 3.0) == ["send"] * 50
    found.assert_sound()


# ---- workers ---------------------------------------------------------------------------------------------------


def test_a_worker_that_crashes_for_a_while_leaves_the_arm_holding_until_plans_come_again():
    found = run(ticks=120, compute=trouble.crashes_between(10, 40))
    assert found.statistics.failures >= 10
    ran_dry = next(tick.index for tick in found.ticks if tick.index > 10 and tick.proposed is None)
    held = [tick.verdict.behaviour for tick in found.ticks if tick.proposed is None]
    assert set(held) == {"hold"} and ran_dry <= 10 + 2 * trouble.PLANNED
    assert [tick.verdict.behaviour for tick in found.ticks[-20:]] == ["send"] * 20
    found.assert_sound()


@pytest.mark.parametrize("answer", ["hold", "retract", "stop"])
def test_a_worker_that_hangs_is_silence_and_answered_within_one_period_of_its_limit_and_then_stopped(answer):
    found = run(ticks=400, delay_s=lambda job: 0.05 if job < 6 else math.inf, answers={"silent": answer}, stop_after_s=2.0)
    last = next(tick for tick in reversed(found.ticks) if tick.proposed is not None).began_s
    assert set(behaviours(found.ticks, last + PERIOD_S, last + trouble.SILENT_S)) == {"hold"}
    assert behaviours(found.ticks, last + trouble.SILENT_S, last + trouble.SILENT_S + PERIOD_S) == [answer]
    stopped_s = last + trouble.SILENT_S + (0.0 if answer == "stop" else 2.0)
    assert found.statistics.ended.startswith("stopped") and found.ticks[-1].began_s == pytest.approx(stopped_s, abs=PERIOD_S)
    assert found.robot.stops
    found.assert_sound()


def test_an_inference_that_takes_two_seconds_is_held_through_and_recovered_from():
    found = run(ticks=140, delay_s=lambda job: 2.0 if job == 8 else 0.05)
    waited = [tick for tick in found.ticks if tick.proposed is None and tick.index > 10]
    assert 20 <= len(waited) <= 40 and {tick.verdict.behaviour for tick in waited} == {"hold"}
    assert [tick.verdict.behaviour for tick in found.ticks[-20:]] == ["send"] * 20
    found.assert_sound()


def test_a_thread_that_hangs_for_good_does_not_hang_the_process():
    free = threading.Event()
    robot = FakeRobot(MonotonicClock())
    worker = ThreadWorker(lambda job: free.wait(60) and trouble.steady(job), robot.clock, hung_after_s=0.2)
    statistics = Controller(
        robot, trouble.CARD, robot.clock, worker, trouble.NAIVE, safety=trouble.safety(robot.spec, stop_after_s=0.5)
    ).run(ticks=200)
    free.set()
    worker.close()
    assert statistics.ended.startswith("stopped: the policy proposed nothing") and robot.received == [] and robot.stops


def test_a_process_of_the_policy_that_is_killed_in_motion_leaves_the_arm_holding_until_the_next_one_plans():
    robot, ticks = FakeRobot(MonotonicClock()), []
    worker = ProcessWorker(trouble.make_steady, robot.clock)

    def until(tick):
        ticks.append(tick)
        planned = [each.proposed is not None for each in ticks]
        if killed and worker.process_id != killed[0] and all(planned[-20:]):
            return "goes on"
        if not killed and len(ticks) > 30 and all(planned[-20:]):
            killed.append(worker.process_id)
            os.kill(killed[0], signal.SIGKILL)
        return ""

    killed = []
    statistics = Controller(robot, trouble.CARD, robot.clock, worker, trouble.NAIVE, [], trouble.safety(stop_after_s=60.0)).run(2000, until)
    worker.close()
    assert statistics.ended == "goes on" and statistics.failures == 1 and robot.stops
    assert {tick.verdict.behaviour for tick in ticks if tick.proposed is None} == {"hold"} and any(t.failure for t in ticks)
    assert_inside_limits(robot.received)


# ---- networks --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stories():
    """The control loop against a server on the far end of a bad wire, told by processes of their own; {kind: what happened}."""
    own = ["unshare", "--user", "--map-root-user", "--net"]
    has_wire = os.access("/dev/net/tun", os.W_OK) and shutil.which("unshare") and not subprocess.call([*own, "true"])
    kinds = {"cuts": [], **({"wire": own} if has_wire else {})}
    script = os.path.join(os.path.dirname(__file__), "lossy_wire.py")
    running = {
        kind: subprocess.Popen([*alone, sys.executable, script, kind], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for kind, alone in kinds.items()
    }
    told = {kind: process.communicate(timeout=250) for kind, process in running.items()}
    for kind, (_, errors) in told.items():
        assert running[kind].returncode == 0, errors[-3000:]
    return {kind: json.loads(said.splitlines()[-1]) for kind, (said, _) in told.items()}


def test_packets_lost_doubled_and_out_of_order_a_dark_line_and_a_server_begun_anew_are_held_through_and_recovered_from(stories):
    for kind, story in stories.items():
        assert story["ended"] == "told" and story["stops"] and story["errors"] == 0 and story["episodes"] == 1, kind
        assert min(story["counts"].values()) >= 1 and story["counts"]["lost"] + story["counts"]["late"] >= 5, story["counts"]
        assert story["reconnects"] >= 2 and story["failures"] >= 2
        for phase, ticks in story["ticks"].items():
            behaviours = [behaviour for behaviour, _, _ in ticks]
            assert set(behaviours) <= {"send", "hold"} and (phase not in ("dark", "killed") or "hold" in behaviours)
            assert all(behaviour == "hold" for behaviour, plan, _ in ticks if plan is None), "an arm without a plan stands still"
        plans = [plan for ticks in story["ticks"].values() for _, plan, _ in ticks if plan is not None]
        assert plans == sorted(plans), "no older plan follows a newer one"


# ---- clocks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_s", [2.0, 100.0])
def test_a_clock_that_steps_is_held_for_at_once_and_costs_no_jump(step_s):
    def stepping(readings, now_s):
        if found.robot.frames == 40:
            found.clock.moment_s += step_s
        return readings

    found = trouble.Run(sensors=stepping)
    found.go(ticks=3000, until=lambda tick: "enough" if len(found.ticks) > 100 else "")
    jump = next(i for i in range(1, len(found.ticks)) if not 0 < found.ticks[i].began_s - found.ticks[i - 1].began_s < 0.1)
    assert found.ticks[jump].verdict.behaviour == "hold" and "the clock stepped" in found.ticks[jump].verdict.reason
    assert found.ticks[-1].verdict.behaviour == "send"
    found.assert_sound()


def test_a_stall_of_the_whole_process_of_two_seconds_is_held_for_and_nothing_is_made_up_for():
    def stalled(readings, now_s):
        if 2.0 <= now_s < 2.05:
            found.clock.moment_s += 2.0
        return readings

    found = trouble.Run(sensors=stalled)
    found.go(ticks=140)
    assert found.statistics.missed >= 39
    after = [tick for tick in found.ticks if tick.began_s >= 4.0]
    assert after[0].verdict.behaviour == "hold" and [t.verdict.behaviour for t in after[-20:]] == ["send"] * 20
    found.assert_sound()


# ---- disks -----------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_ends_log_and_recording_with_a_reason_while_the_arm_goes_on(tmp_path, monkeypatch):
    streams = {name: StreamSpec(**told) for name, told in streams_for(trouble.SPEC).items()}
    with EpisodeStore.create(tmp_path / "s.zarr", streams) as store:
        log, recorder = Audit(tmp_path / "audit"), Recorder(trouble.SPEC, store, tmp_path / "spool", waits=True)
        for index in range(2):
            run(ticks=20, listeners=[recorder])
            assert len(store) == index + 1
        found, real = trouble.Run(listeners=[log, recorder]), os.write

        def write(handle, data):
            if found.clock.now_s() >= 2.0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(handle, data)

        monkeypatch.setattr(os, "write", write)
        found.go(ticks=80)
        assert behaviours(found.ticks, 1.0, 4.0) == ["send"] * 60 and not found.statistics.listener_errors
        assert log.lost >= 40 and "No space left" in log.trouble and "No space left" in recorder.trouble
        assert len(store) == 2
        monkeypatch.undo()
        assert recover_all(tmp_path / "spool", store) == ([2], [])
        assert 15 <= store.length(2, "action") <= 40  # up to a second of frames was still on its way to the disk
    assert check(tmp_path / "s.zarr").findings == []
    assert max(record["index"] for record in audit.read(tmp_path / "audit") if record["kind"] == "tick") == 39
    found.assert_sound()


# ---- people ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_process_stops_the_robot_appends_the_episode_and_ends(tmp_path, number):
    here = os.path.dirname(__file__)
    command = [sys.executable, os.path.join(here, "robot_in_trouble.py"), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = iter(process.stdout)
        assert next(line for line in lines if line.startswith("acting"))
        process.send_signal(number)
        assert process.wait(60) == 0
        told = list(lines)
    assert told[-2:] == ["stopped\n", "one episode\n"]
    assert check(tmp_path / "s.zarr").findings == []
    with EpisodeStore.open(tmp_path / "s.zarr") as store:
        assert store.length(0, "action") >= 5 and store.meta(0)["ended"] == "closed"
    records = list(audit.read(tmp_path / "audit"))
    assert records[-1]["kind"] == "closed"
    sent = [(record["began_s"], np.float32(record["sent"])) for record in records if record["kind"] == "tick" and record["sent"]]
    assert_inside_limits(sent)


def test_a_second_controller_cannot_take_a_robot_that_another_one_holds_and_sends_nothing():
    clock = VirtualClock()
    first, second = FakeRobot(clock, port="arm-1"), FakeRobot(clock, port="arm-1")
    first.connect()
    with pytest.raises(RobotError, match="another controller"):
        second.connect()
    found = trouble.Run(robot=first)
    found.go(ticks=40)
    assert second.received == [] and behaviours(found.ticks, 1.0, 2.0) == ["send"] * 20
    first.close()
    second.connect()
    second.close()
    found.assert_sound()
