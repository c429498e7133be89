"""The Franka arm without a robot: the arm's loop against a module that plays pylibfranka; the real client is judged by franka-sim.

The played robot does what the real one does with set-points: it follows them at once, refuses jumps, and goes on by itself, with the
acceleration that it had, through cycles for which none came.
"""

import mmap
import subprocess
import sys
import types

import numpy as np
import pytest

from uwm.robot.clock import VirtualClock
from uwm.robot.interface import RobotError
from uwm.robot.robots import franka as franka_robot
from uwm.robot.robots.franka import FrankaRobot, _quaternion
from uwm.robot.robots.franka_arm import FR3_HIGH, FR3_LOW, Arm, ArmSettings, move_gripper
from uwm.robot.robots.franka_board import Block, Board, Mode, told

HOME = np.array([0.0, 0.0, 0.0, -1.57, 0.0, 1.57, 0.785])
CYCLE_S = 0.001


def played():
    """A module with the names of pylibfranka that the arm's loop uses."""
    module = types.SimpleNamespace(ControllerMode=types.SimpleNamespace(JointImpedance="impedance"))
    for kind in ("Network", "Franka", "Control", "Command", "InvalidOperation", "Realtime"):
        setattr(module, f"{kind}Exception", type(f"{kind}Exception", (RuntimeError,), {}))
    module.JointPositions = lambda q: types.SimpleNamespace(q=np.array(q), motion_finished=False)
    return module


class PlayedRobot:
    """One cycle a read; `lose` cycles pass unanswered before the next; `fail` is raised once by the next read."""

    def __init__(self, module, clock):
        self.module, self.clock, self.lose, self.fail, self.recovered, self.motions, self.finished = module, clock, 0, None, 0, 0, 0
        self.q, self.dq, self.ddq = HOME.copy(), np.zeros(7), np.zeros(7)
        self.path, self._first = [HOME.copy()], True

    def state(self):
        return types.SimpleNamespace(q=self.q, dq=self.dq, q_d=self.q, dq_d=self.dq, ddq_d=self.ddq, O_T_EE=np.eye(4).ravel(order="F"))

    def _pass(self):
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        self.clock.moment_s += CYCLE_S

    def read_once(self):
        self._pass()
        return self.state()

    def start_joint_position_control(self, mode):
        assert mode == "impedance"
        self.motions, self._first = self.motions + 1, True
        return self

    def readOnce(self):
        self._pass()
        elapsed_s = 0.0 if self._first else CYCLE_S * (1 + self.lose)
        for _ in range(0 if self._first else self.lose):
            self.clock.moment_s += CYCLE_S
            self._move(self.q + CYCLE_S * (self.dq + CYCLE_S * self.ddq))
        self._first, self.lose = False, 0
        return self.state(), types.SimpleNamespace(to_sec=lambda: elapsed_s)

    def writeOnce(self, command):
        self._move(command.q)
        if command.motion_finished:
            assert not self.dq.any(), "a motion may end only at rest"
            self.finished += 1

    def _move(self, q):
        dq = (q - self.q) / CYCLE_S
        ddq = (dq - self.dq) / CYCLE_S
        jerk = (ddq - self.ddq) / CYCLE_S
        assert np.abs(dq).max() < 2.6 and np.abs(ddq).max() < 10 and np.abs(jerk).max() < 5000, "the real robot would end in a reflex"
        self.q, self.dq, self.ddq = np.array(q), dq, ddq
        self.path.append(self.q)

    def automatic_error_recovery(self):
        self.recovered += 1


class Bench:
    """An arm's loop, its played robot, and the policy's end of the board."""

    def __init__(self, **settings):
        self.clock, self.module, self.board, self.alive = VirtualClock(100.0), played(), Board(), True
        self.robot = PlayedRobot(self.module, self.clock)
        self.settings = ArmSettings("played", **settings)
        self.arm = Arm(self.module, self.robot, self.board, self.settings, self.clock, lambda: self.alive)

    def send(self, goal):
        orders = self.board.orders.read()
        self.board.orders.write(goal=goal, stamp_s=self.clock.now_s(), goals=orders["goals"] + 1)

    def cycles(self, count):
        return [self.arm.cycle() for _ in range(count)]

    def drive(self, ticks, target):
        for tick in range(ticks):
            self.send(target(tick))
            self.cycles(50)

    def until_still(self):
        for _ in range(int(1000 * self.settings.limits.longest_stop_s) + 2):
            if self.arm.mode is not Mode.MOVING:
                return
            self.arm.cycle()
        raise AssertionError("the arm is not still within the time that is promised")

    @property
    def mode(self):
        return Mode(self.board.arm.read()["mode"])


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    bench.board.close()


def test_nothing_moves_before_the_first_target(bench):
    bench.cycles(500)
    assert bench.robot.motions == 0 and bench.mode is Mode.IDLE
    assert bench.board.arm.read()["stamp_s"] == bench.clock.now_s(), "but the state is told"


def test_targets_are_followed_and_reached_inside_the_limits(bench):
    bench.drive(24, lambda _: HOME + 0.5)
    assert bench.mode is Mode.MOVING and bench.robot.motions == 1
    np.testing.assert_allclose(bench.robot.q, HOME + 0.5, atol=1e-3)


def test_targets_outside_the_limits_never_leave(bench):
    rng = np.random.default_rng(0)
    bench.drive(25, lambda _: rng.choice([-9.0, 9.0], 7))
    path, limits = np.array(bench.robot.path), bench.settings.limits
    assert (path >= limits.low).all() and (path <= limits.high).all()
    assert (limits.low > FR3_LOW).all() and (limits.high < FR3_HIGH).all()
    assert np.abs(np.diff(path, axis=0)).max() <= limits.velocity.max() * CYCLE_S * (1 + 1e-6)


def test_a_silent_policy_leads_to_a_controlled_stop_and_the_end_of_the_motion(bench):
    bench.drive(10, lambda tick: HOME + 0.05 * tick)
    assert np.abs(bench.robot.dq).max() > 0.3
    bench.cycles(int(1000 * (bench.settings.silent_after_s - 0.055)))
    assert bench.arm._ending is None, "not yet silent for long enough"
    bench.cycles(10)
    bench.until_still()
    assert bench.mode is Mode.SILENT and bench.robot.finished == 1 and not bench.robot.dq.any()
    bench.send(HOME)
    bench.cycles(200)
    assert bench.robot.motions == 1 and bench.mode is Mode.SILENT, "a policy that comes back does not move the arm by surprise"


def test_the_end_of_the_policys_process_stops_the_arm_and_then_ends_this_one(bench):
    bench.drive(10, lambda tick: HOME + 0.05 * tick)
    bench.alive = False
    going = bench.cycles(1000)
    assert going[0], "a moving arm is not left"
    assert not going[-1] and bench.robot.finished == 1 and not bench.robot.dq.any()
    assert going.index(False) * CYCLE_S < bench.settings.limits.longest_stop_s, "at once, not after the silence"


def test_a_stop_holds_until_it_is_forgiven_and_a_later_stop_is_not_forgiven(bench):
    bench.drive(10, lambda tick: HOME + 0.05 * tick)
    bench.board.orders.write(stops=1)
    bench.arm.cycle()
    bench.until_still()
    assert bench.mode is Mode.STOPPED and bench.robot.finished == 1
    bench.board.orders.write(recoveries=1, forgiven=1, stops=2)  # the second stop came while recover() was on its way
    bench.cycles(2)
    assert bench.mode is Mode.STOPPED and bench.board.arm.read()["recovered"] == 1
    bench.board.orders.write(recoveries=2, forgiven=2)
    bench.cycles(50)
    assert bench.mode is Mode.IDLE and bench.robot.motions == 1, "old targets do not count"
    bench.drive(5, lambda _: HOME)
    assert bench.mode is Mode.MOVING and bench.robot.motions == 2


@pytest.mark.parametrize("lost", [1, 5, 15])
def test_lost_cycles_do_not_tear_the_motion(bench, lost):
    """The robot extrapolates, we go on from there: `PlayedRobot._move` refuses what a real robot would."""
    bench.cycles(50)  # at rest
    for tick in range(12):
        bench.send(HOME + 0.3 * np.sin(0.2 * tick))
        bench.cycles(25)
        bench.robot.lose = lost
        bench.cycles(24)
    assert bench.board.arm.read()["lost"] == 12 * lost and bench.mode is Mode.MOVING


def test_a_reflex_is_told_and_recovered_from(bench):
    bench.drive(3, lambda _: HOME + 0.1)
    bench.robot.fail = bench.module.ControlException("joint_reflex")
    bench.cycles(5)
    assert bench.mode is Mode.ERROR and "joint_reflex" in told(bench.board.arm.read())
    bench.robot.dq, bench.robot.ddq = np.zeros(7), np.zeros(7)  # the robot's own brakes
    bench.send(HOME)
    bench.cycles(5)
    assert bench.mode is Mode.ERROR and bench.robot.motions == 1
    bench.board.orders.write(recoveries=1)
    bench.cycles(5)
    assert bench.mode is Mode.IDLE and bench.robot.recovered == 1 and not told(bench.board.arm.read())


def test_an_arm_that_swings_after_a_reflex_is_not_moved_at_a_turning_point(bench):
    """There all its velocities are zero for a moment; a motion that began there would begin with a jump."""
    calm = bench.robot.state
    swings = lambda: 0.3 * np.cos(2 * np.pi * 3 * bench.clock.now_s()) * np.exp(-8 * (bench.clock.now_s() - 100.0))  # noqa: E731 - rad/s
    bench.robot.state = lambda: types.SimpleNamespace(**{**vars(calm()), "dq": np.full(7, swings())})
    speeds = []
    for _ in range(1500):
        bench.send(HOME + 0.1)
        speeds.append(abs(swings()))
        bench.cycles(1)
        if bench.robot.motions:
            break
    assert min(speeds[:100]) < 0.01, "a turning point was met"
    assert bench.robot.motions == 1 and max(speeds[-49:]) < 0.02 < max(speeds[-200:])


def test_a_recovery_that_fails_is_tried_once(bench):
    bench.robot.fail = bench.module.CommandException("reflex")
    bench.cycles(1)
    tries = []

    def refused():
        tries.append(1)
        raise bench.module.CommandException("still pressed")

    bench.robot.automatic_error_recovery = refused
    bench.board.orders.write(recoveries=1)
    bench.cycles(20)
    assert len(tries) == 1 and bench.mode is Mode.ERROR and "still pressed" in told(bench.board.arm.read())


def test_a_lost_connection_ends_the_process_and_says_why(bench):
    bench.robot.fail = bench.module.NetworkException("no route")
    assert bench.cycles(1) == [False]
    assert bench.mode is Mode.LOST and "no route" in told(bench.board.arm.read())


def test_a_reader_never_sees_half_a_record_and_a_dead_writer_leaves_the_last_whole_one():
    block = Block(mmap.mmap(-1, 4096), 0, [("a", "i8"), ("b", "i8")])
    block.write(a=1, b=1)
    assert tuple(block.read()) == (1, 1)
    block._count[0] += 1  # a writer that was killed here
    block._record["a"] = 2
    assert tuple(block.read()) == (1, 1)
    block.write(a=3, b=3)  # the next writer
    assert tuple(block.read()) == (3, 3)


def test_two_processes_share_a_board():
    board = Board()
    code = f"from uwm.robot.robots.franka_board import Board\nb = Board({board.fd})\nb.arm.write(q=range(7), text=b'hello')"
    subprocess.run([sys.executable, "-c", code], pass_fds=(board.fd,), check=True, timeout=60)
    assert board.arm.read()["q"].tolist() == list(range(7)) and told(board.arm.read()) == "hello"
    board.close()


class PlayedHand:
    """A gripper whose every command the test sees; a width of 0.05 is refused, something is in the way."""

    def __init__(self):
        self.said = []

    def read_once(self):
        return types.SimpleNamespace(width=0.08, max_width=0.08)

    def move(self, width, speed):
        self.said.append(("move", width))
        if width == 0.05:
            raise RuntimeError("in the way")

    def grasp(self, width, speed, force, inner, outer):
        self.said.append(("grasp", width))


def test_the_gripper_moves_to_widths_and_grasps_at_the_end_and_survives_a_refusal():
    board, hand, clock = Board(), PlayedHand(), VirtualClock()
    widths = iter([(0.05, 1), (0.05, 2), (0.03, 3), (0.0305, 4), (0.0, 5)])

    def sleep(moment_s):
        clock.moment_s = moment_s
        width, goals = next(widths, (None, 0))
        if width is None:
            alive.clear()
        else:
            board.orders.write(width=width, goals=goals)

    alive = [True]
    slow = types.SimpleNamespace(now_s=clock.now_s, sleep_until=sleep)
    move_gripper(hand, board, ArmSettings("played"), slow, lambda: bool(alive), RuntimeError)
    assert hand.said == [("move", 0.05), ("move", 0.03), ("grasp", 0.0)]


def test_a_robot_that_is_not_there_is_an_error_with_advice(monkeypatch):
    robot = FrankaRobot("127.0.0.9", gripper=False)  # nobody listens
    with pytest.raises(RobotError, match=r"the process of the arm at 127\.0\.0\.9 has ended.*FCI active"):
        robot.connect()
    with pytest.raises(RobotError, match="not connected"):
        robot.read()
    robot.stop()
    robot.close()
    monkeypatch.setattr(franka_robot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RobotError, match=r"uwm\[franka\]"):
        FrankaRobot("127.0.0.9")


def test_the_specification_says_what_the_numbers_are():
    spec = FrankaRobot("127.0.0.9").spec
    assert spec.action.size == 8 and spec.action.units == ("rad",) * 7 + ("m",) and spec.action.gripper == (7,)
    assert len(spec.sensors["proprio"].units) == spec.sensors["proprio"].shape[0] == 22
    assert FrankaRobot("127.0.0.9", gripper=False).spec.sensors["proprio"].shape == (21,)


@pytest.mark.parametrize("seed", range(4))
def test_quaternions_turn_as_their_matrices_do(seed):
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    x, y, z, w = _quaternion(turn)
    vector = rng.normal(size=3)
    axis = np.array([x, y, z])
    turned = vector + 2 * np.cross(axis, np.cross(axis, vector) + w * vector)
    np.testing.assert_allclose(turned, turn @ vector, atol=1e-12)
    assert w >= 0
