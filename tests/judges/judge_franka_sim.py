"""franka-sim judges the Franka arm: an independent server of its protocol that aborts on lost cycles and on every broken limit.

The server runs with `--enforce-comm-constraints --enforce-motion-limits`: 20 lost cycles in a row, or a set-point beyond the robot's
position, velocity, acceleration or jerk, end a motion with a reflex, as on the real arm. Its log says so, and every test reads it.
"""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import tiny
from judges import judging
from uwm.robot.clock import MonotonicClock
from uwm.robot.conformance import check
from uwm.robot.interface import RobotError
from uwm.robot.interpolation import MotionLimits
from uwm.robot.robots.franka import FrankaRobot
from uwm.robot.robots.franka_arm import FR3_HIGH, FR3_LOW
from uwm.robot.robots.franka_board import Mode

ADDRESS, PORT = "127.0.0.1", 1337  # libfranka knows no other port
PERIOD_S = 0.05
PATIENCE_S = 20.0
REFLEX = ("reflex", "violat", "discontinuity", "abort")
CLOCK = MonotonicClock()

POLICY = """
import sys, time
import numpy as np
from uwm.robot.interface import RobotError
from uwm.robot.robots.franka import FrankaRobot
robot = FrankaRobot("127.0.0.1", gripper=False)
robot.connect()
begin = robot.read()["proprio"].value[:7]
try:
    for tick in range(1000):
        robot.send(begin + np.float32(0.4 * (1 - np.cos(tick * 0.1))) * np.array([1, 0.5, 1, 0.5, 1, 0.5, 1], np.float32))
        print(tick, flush=True)
        time.sleep(0.05)
except RobotError as error:
    print("refused:", error, flush=True)
robot.close()
"""


class Server:
    """The running server and what it has said."""

    def __init__(self, folder, *options):
        self.log = folder / "server.log"
        launcher = judging.ROOT / ".judges" / "franka-sim" / "bin" / "judge"
        assert launcher.exists(), "no environment of franka-sim: run  python3 run.py judges franka-sim"
        assert not listens(), f"something else listens on port {PORT}, the only one that libfranka knows: end it first"
        command = [launcher, judging.HERE / "inside" / "franka_sim_serves.py", folder, *options]
        with self.log.open("w") as said:
            self.process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        until(listens, "the server does not listen", 120)

    def since(self, place):
        """Lines after `place`, a length of the log, that tell of a reflex."""
        text = self.log.read_bytes()[place:].decode(errors="replace")
        return [line for line in text.splitlines() if any(word in line.lower() for word in REFLEX)]

    def end(self):
        self.process.terminate()
        try:
            self.process.wait(25)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def listens():
    """True when a server is there: in the system's table, because a connection would count as a client."""
    lines = [line.split() for name in ("/proc/net/tcp", "/proc/net/tcp6") if os.path.exists(name) for line in open(name)]
    return any(words[1].endswith(f":{PORT:04X}") and words[3] == "0A" for words in lines[1:])


def until(holds, what, patience_s=PATIENCE_S):
    give_up_s = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < give_up_s, what
        time.sleep(0.01)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("franka"))
    yield server
    server.end()


@pytest.fixture
def robot(server):
    """Connected; at the end the server must have seen no reflex, unless a test takes that upon itself."""
    place, robot = server.log.stat().st_size, FrankaRobot(ADDRESS, gripper=False, silent_after_s=0.5)
    robot.expects_reflex = False
    robot.connect()
    yield robot
    robot.close()
    assert robot.expects_reflex or not server.since(place), server.since(place)


def drive(robot, seconds, target):
    """Send `target(t)` at 20 Hz; returns what was sent and what the joints were one period later, (ticks, 7) each."""
    sent, seen, begin_s = [], [], time.monotonic()
    for tick in range(int(seconds / PERIOD_S)):
        sent.append(robot.send(target(tick * PERIOD_S))[:7])
        CLOCK.sleep_until(begin_s + (tick + 1) * PERIOD_S)
        seen.append(robot.read()["proprio"].value[:7])
    return np.array(sent), np.array(seen)


def joints(robot):
    return robot.read()["proprio"].value[:7].copy()


def speed(robot):
    return float(np.abs(robot.read()["proprio"].value[7:14]).max())


def test_a_stream_of_targets_is_executed_without_a_reflex(robot, record_property):
    begin = joints(robot)
    sent, seen = drive(robot, 5.0, lambda t: begin + np.float32(0.25 * np.sin(2 * t)))
    assert robot.mode is Mode.MOVING
    record_property("lost_cycles", robot.lost_cycles)
    print(f"5 s at 20 Hz: {robot.lost_cycles} lost cycles of 5000; largest distance to the target {np.abs(sent - seen).max():.4f} rad")
    assert np.ptp(seen, axis=0).min() > 0.4, "every joint moved as it was told"
    assert np.abs(sent - seen).max() < 0.2, "a period of the ramp and what the limits need behind it"
    robot.stop()
    until(lambda: robot.mode is Mode.STOPPED, "no stop")
    time.sleep(0.2)
    assert speed(robot) < 1e-2


def test_targets_far_outside_never_reach_the_arm(robot):
    rng, limits = np.random.default_rng(0), robot.settings.limits
    sent, seen = drive(robot, 5.0, lambda t: rng.choice([-9.0, 0.0, 9.0], 7).astype(np.float32))
    assert robot.mode is Mode.MOVING
    assert (sent >= limits.low).all() and (sent <= limits.high).all()
    # Set-points inside our limits, as the server itself held them to the robot's; its servos may lie beside them, not outside the robot's.
    assert (seen > FR3_LOW).all() and (seen < FR3_HIGH).all()


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_policy_that_dies_or_hangs_leads_to_a_controlled_stop_and_the_arm_can_be_taken_again(server, fault):
    place = server.log.stat().st_size
    policy = subprocess.Popen([sys.executable, "-c", POLICY], stdout=subprocess.PIPE, text=True)
    try:
        for line in policy.stdout:
            if line.strip() == "17":  # in full motion
                break
        policy.send_signal(fault)
        time.sleep(1.0)  # silence of 0.25 s and a stop of 0.3 s are over
        assert not server.since(place), server.since(place)
        if fault is signal.SIGSTOP:
            policy.send_signal(signal.SIGCONT)
            assert "refused: no action came" in policy.stdout.read(), "an arm that was stopped does not move on by itself"
    finally:
        policy.kill()
        policy.wait()
    again = FrankaRobot(ADDRESS, gripper=False)
    again.connect()
    try:
        assert speed(again) < 1e-2, "the arm stands still"
        before = joints(again)
        time.sleep(0.2)
        np.testing.assert_allclose(joints(again), before, atol=1e-3)
        drive(again, 0.5, lambda t: before + np.float32(0.1 * t))
        assert again.mode is Mode.MOVING
    finally:
        again.close()
    assert not server.since(place), server.since(place)


def test_the_control_command_drives_the_arm_and_killed_leaves_it_standing_still(server, tmp_path):
    place = server.log.stat().st_size
    about = FrankaRobot(ADDRESS, gripper=False).spec
    checkpoint = tiny.trained(tmp_path, dict(about.card), proprio_size=about.sensors["proprio"].shape[0])
    words = ["robot=franka", f"options={{address: {ADDRESS}, gripper: false}}", "policy.rows=4", "policy.chunk=2", "policy.chunks=2"]
    begin = [sys.executable, "-c", "from uwm.cli import main; main()", "control", f"checkpoint={checkpoint}"]
    command = [*begin, *words, "audit=null", "force=true"]
    done = subprocess.run([*command, "duration_s=3"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "time is over" in done.stdout, done.stdout + done.stderr
    assert not server.since(place), server.since(place)
    with subprocess.Popen([*command, "duration_s=60"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as run:
        next(line for line in run.stderr if "verdict" in line)
        time.sleep(3.0)
        run.kill()
    time.sleep(1.0)
    assert not server.since(place), server.since(place)
    again = FrankaRobot(ADDRESS, gripper=False)
    again.connect()
    try:
        assert speed(again) < 1e-2, "the arm stands still"
    finally:
        again.close()


def test_a_stop_from_another_thread_in_full_motion(robot):
    begin = joints(robot)
    drive(robot, 1.0, lambda t: begin + np.float32(0.6 * t))
    thread = threading.Thread(target=robot.stop)
    thread.start()
    until(lambda: robot.mode is Mode.STOPPED, "no stop")
    with pytest.raises(RobotError, match="was stopped"):
        robot.send(begin)
    time.sleep(0.2)
    assert speed(robot) < 1e-2
    robot.recover()
    drive(robot, 0.5, lambda t: begin)
    assert robot.mode is Mode.MOVING


def test_a_reflex_of_the_robot_is_an_error_that_recover_ends(robot):
    robot.expects_reflex = True
    begin = joints(robot)
    drive(robot, 0.5, lambda t: begin + np.float32(0.2 * t))
    arm = robot._processes["arm"]
    arm.send_signal(signal.SIGSTOP)  # no set-points for a while: what the server is there to notice
    time.sleep(0.2)
    arm.send_signal(signal.SIGCONT)
    until(lambda: robot.mode is Mode.ERROR, "no reflex after 200 lost cycles")
    with pytest.raises(RobotError, match="communication_constraints_violation"):
        robot.send(begin)
    robot.recover()
    drive(robot, 0.5, lambda t: begin)
    assert robot.mode is Mode.MOVING


def test_it_conforms(server):
    place = server.log.stat().st_size
    stay = []

    def action(spec, readings):  # where the arm stood first
        stay.append(np.append(readings["proprio"].value[:7], 0.08).astype(np.float32))
        return np.clip(stay[0], spec.action.low, spec.action.high)

    assert check(lambda: FrankaRobot(ADDRESS, silent_after_s=1.0), CLOCK, action) == []
    assert not server.since(place), server.since(place)


def test_the_gripper_goes_where_it_is_told(server):
    robot = FrankaRobot(ADDRESS)
    robot.connect()
    try:
        begin = joints(robot)
        for width in (0.08, 0.03, 0.06):
            drive(robot, 1.5, lambda t, width=width: np.append(begin, width).astype(np.float32))
            assert abs(robot.read()["proprio"].value[-1] - width) < 0.003
    finally:
        robot.close()


def test_two_controllers_are_one_too_many(robot):
    second = FrankaRobot(ADDRESS, gripper=False)
    with pytest.raises(RobotError, match="another process holds the robot"):
        second.connect()
    begin = joints(robot)
    drive(robot, 0.3, lambda t: begin)
    assert robot.mode is Mode.MOVING


def test_our_limits_lie_inside_the_robots_everywhere():
    """Franka lets a joint be slower near its end; a joint of ours that will stop before its own end is slower than that."""
    franka = [(0.30, 6.0), (0.20, 2.585), (0.20, 3.5), (0.30, 4.0), (0.35, 17.0), (0.35, 5.5), (0.35, 17.0)]
    limits: MotionLimits = FrankaRobot(ADDRESS).settings.limits
    left = np.linspace(0, 0.3, 100)[:, None]  # to our end
    ours = np.minimum(limits.velocity, np.sqrt(2 * limits.acceleration * left))
    theirs = np.array([np.minimum(2.62, np.sqrt(2 * slowing * (left[:, 0] + 0.2)) - offset) for offset, slowing in franka]).T
    assert (ours < theirs - 0.05).all()
    assert limits.acceleration.max() < 10 / 2 and limits.jerk.max() < 5000 / 2


def test_a_server_that_goes_is_a_lost_connection(tmp_path, server):
    server.end()
    own = Server(tmp_path)
    robot = FrankaRobot(ADDRESS, gripper=False)
    robot.connect()
    try:
        begin = joints(robot)
        drive(robot, 0.3, lambda t: begin)
        own.end()
        until(lambda: robot._processes["arm"].poll() is not None, "the arm's process did not notice")
        with pytest.raises(RobotError, match="has ended"):
            robot.send(begin)
        robot.stop()
    finally:
        robot.close()
        own.end()
