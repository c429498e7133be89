"""A fake arm, policies of its own kind, and whole runs of the control loop with something going wrong; a program, too.

As a program (`python robot_in_trouble.py FOLDER`) it acts on the machine's clock, logs and records, until it is interrupted.
"""

import signal
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np

from uwm.robot.audit import Audit
from uwm.robot.chunking import ChunkingConfig
from uwm.robot.clock import MonotonicClock, VirtualClock
from uwm.robot.controller import Controller
from uwm.robot.inference import Answer, VirtualWorker
from uwm.robot.interface import ActionSpec, Reading, RobotError, RobotSpec, SensorSpec
from uwm.robot.policy import PolicyCard, PolicyConfig
from uwm.robot.recording import Recorder, streams_for
from uwm.robot.safety import Safety, SafetyConfig
from uwm.robot.watchdog import WatchdogConfig
from uwm_data import StreamSpec
from uwm_data.streams import check_episode

PERIOD_S, STALE_S, FROZEN_S, SILENT_S, PLANNED = 0.05, 0.3, 0.4, 0.25, 8
VELOCITY, ACCELERATION = np.array([1.0, 1.0, np.inf]), np.array([5.0, 8.0, np.inf])
SPEC = RobotSpec(
    "fake arm",
    1 / PERIOD_S,
    ActionSpec(("x", "y", "gripper"), ("m", "m", ""), -np.ones(3), np.ones(3), VELOCITY, ACCELERATION, "absolute", (2,)),
    {
        "front": SensorSpec((6, 5, 3), "uint8", 20.0, stale_after_s=STALE_S),
        "proprio": SensorSpec((3,), "float32", 20.0, stale_after_s=STALE_S),
    },
)
CARD = PolicyCard(PolicyConfig("chunked", rows=2, chunk=2, chunks=PLANNED // 2), 0, ("front",))
NAIVE = ChunkingConfig("naive")


def picture(number):
    return np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)


class FakeRobot:
    """Goes where it is told within a period. `port`: robots with the same one are the same arm; `sensors` spoils readings."""

    held: set = set()  # noqa: RUF012 - one for all: which arms are taken

    def __init__(self, clock, sensors=lambda readings, now_s: readings, port=None):
        self.spec, self.clock, self.sensors, self.port = SPEC, clock, sensors, port
        self.place, self.received, self.stops, self.frames = np.array([0, 0.2, 1], np.float32), [], 0, 0

    def connect(self):
        if self.port in self.held:
            raise RobotError(f"{self.port} is held by another controller; end that one first")
        self.held.add(self.port)

    def read(self):
        now_s = self.clock.now_s()
        self.frames += 1
        readings = {"front": Reading(picture(self.frames), now_s), "proprio": Reading(self.place.copy(), now_s)}
        return self.sensors(readings, now_s)

    def send(self, action):
        self.received.append((self.clock.now_s(), action.copy()))
        self.place = action.astype(np.float32)
        return action

    def stop(self):
        self.stops += 1

    def close(self):
        self.stop()
        self.held.discard(self.port)


def assert_inside_limits(received, period_s=PERIOD_S):
    """What a robot received obeys position, velocity and acceleration; a pause or a step of the clock ends a motion.

    A tick that came early has between its own gap and a whole period to move in, so its motion lies between two values; motions are too
    far apart when all of the one are too far from all of the other.
    """
    slowest, fastest = np.zeros(3), np.zeros(3)
    for (before_s, before), (now_s, action) in pairwise(received):
        assert np.isfinite(action).all() and (np.abs(action) <= 1).all()
        gap_s = now_s - before_s
        step = action.astype(float) - before.astype(float)
        assert (np.abs(step) <= VELOCITY * period_s + 1e-5).all()
        motions = step / period_s, np.clip(step / np.clip(gap_s, 1e-9, period_s), -VELOCITY, VELOCITY)
        low, high = np.minimum(*motions), np.maximum(*motions)
        if abs(gap_s - period_s) <= 0.2 * period_s:
            apart = np.maximum(low - fastest, slowest - high)
            assert (apart <= ACCELERATION * 1.5 * period_s + 1e-3).all(), (gap_s, low, high, slowest, fastest)
        slowest, fastest = low, high


def steady(job):
    """A smooth way that only depends on the tick."""
    ticks = job.tick + np.arange(PLANNED)[:, None]
    return Answer(np.concatenate([0.3 * np.sin(0.1 * ticks), 0.2 * np.cos(0.1 * ticks), np.ones_like(ticks)], axis=1).astype(np.float32))


def make_steady():
    """For a process of its own."""
    return steady


def wild(job):
    """Anything at all."""
    random = np.random.default_rng(job.index)
    actions = random.normal(size=(PLANNED, 3)) * 10.0 ** random.integers(-2, 6)
    actions[random.uniform(size=actions.shape) < 0.05] = random.choice([np.nan, np.inf, -np.inf])
    return Answer(actions.astype(np.float32))


def crashes_between(first, last):
    """A policy that fails at jobs asked for from tick `first` to `last`."""

    def compute(job):
        if first <= job.tick < last:
            raise RuntimeError("out of memory")
        return steady(job)

    return compute


def safety(spec=SPEC, **config):
    watch = WatchdogConfig(silent_after_s=SILENT_S, frozen_after_s=FROZEN_S, spike_per_s={"proprio": 8.0})
    return Safety(spec, SafetyConfig(watch, **config))


class Shelf:
    """Takes episodes as a store does, and refuses what a store would refuse."""

    def __init__(self):
        self.streams = {name: StreamSpec(**told) for name, told in streams_for(SPEC).items()}
        self.episodes = []

    def append(self, data, meta):
        self.episodes.append(check_episode(self.streams, data))
        return len(self.episodes) - 1


class Run:
    """The whole loop on a virtual clock; `ticks` is what listeners got."""

    def __init__(self, sensors=lambda r, now_s: r, compute=steady, delay_s=lambda job: 0.05, robot=None, listeners=None, **config):
        self.robot = robot or FakeRobot(VirtualClock(), sensors)
        self.clock, self.ticks, self.shelf = self.robot.clock, [], Shelf()
        self.folder = tempfile.TemporaryDirectory()
        listeners = [Recorder(SPEC, self.shelf, self.folder.name, waits=True)] if listeners is None else listeners
        worker = VirtualWorker(compute, self.clock, lambda job, generator: delay_s(job))
        self.controller = Controller(self.robot, CARD, self.clock, worker, NAIVE, [self, *listeners], safety(**config))

    def go(self, **options):
        self.statistics = self.controller.run(**options)
        return self

    def tick(self, tick):
        self.ticks.append(tick)

    def close(self):
        pass

    def assert_sound(self):
        """Nothing outside the limits was sent, no listener failed, and the recording is one legal episode."""
        assert_inside_limits(self.robot.received)
        assert self.statistics.listener_errors == 0 and self.robot.stops
        assert len(self.shelf.episodes) <= 1
        self.folder.cleanup()


def run(ticks, **options):
    return Run(**options).go(ticks=ticks)


def act_until_interrupted(folder):
    """What a control node does: an interrupt or the order to end leaves the loop, whose end stops the robot."""
    from uwm_data import EpisodeStore

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    streams = {name: StreamSpec(**told) for name, told in streams_for(SPEC).items()}
    robot = FakeRobot(MonotonicClock())
    with EpisodeStore.create(folder / "s.zarr", streams) as store:
        listeners = [Audit(folder / "audit"), Recorder(SPEC, store, folder / "spool")]
        worker = VirtualWorker(steady, robot.clock, lambda job, generator: 0.02)
        try:
            Controller(robot, CARD, robot.clock, worker, NAIVE, listeners, safety()).run(
                until=lambda tick: print("acting", flush=True) if tick.index > 10 else ""
            )
        except KeyboardInterrupt:
            print("stopped" if robot.stops else "not stopped", flush=True)
        print("one episode" if len(store) == 1 else f"{len(store)} episodes", flush=True)


if __name__ == "__main__":
    act_until_interrupted(Path(sys.argv[1]))
