"""The control loop on a virtual clock: due times, delays, faults, and the committed prefix against the ordinary rollout."""

from dataclasses import replace

import numpy as np
import pytest

import tiny
import uwm_envs
from oracle import unchecked_shapes
from uwm.core import roles
from uwm.robot import evaluate as evaluation
from uwm.robot.chunking import KINDS, ChunkingConfig, Planner
from uwm.robot.clock import MonotonicClock, VirtualClock
from uwm.robot.controller import Controller, Tick
from uwm.robot.inference import Answer, ThreadWorker, VirtualWorker
from uwm.robot.interface import ActionSpec, Reading, RobotError, RobotSpec, SensorSpec
from uwm.robot.policy import Policy, PolicyCard, PolicyConfig
from uwm.robot.robots.simulated import SimulatedRobot
from uwm.robot.safety import Verdict

PERIOD_S = 0.125  # a sum of such is exact
STREAMING = PolicyConfig(rows=4, chunk=2, chunks=2, past=2)
CHUNKED = PolicyConfig(kind="chunked", rows=2, chunk=2, chunks=4, past=2)


class Watching:
    """A listener that keeps every tick."""

    def __init__(self):
        self.ticks: list[Tick] = []
        self.closed = False

    def tick(self, tick):
        self.ticks.append(tick)

    def close(self):
        self.closed = True


class Numbered:
    """A robot whose proprioception is the number of actions that it executed; faults are put into `readings` by tests."""

    def __init__(self, clock, mode="absolute", low=-1e6, high=1e6):
        limits = [np.full(1, value, np.float32) for value in (low, high, np.inf, np.inf)]
        action = ActionSpec(("x",), ("m",), *limits, mode)
        sensors = {"proprio": SensorSpec((1,), "float32", 1 / PERIOD_S, ("1",), 3 * PERIOD_S)}
        self.spec, self.clock = RobotSpec("numbered", 1 / PERIOD_S, action, sensors), clock
        self.sent, self.stopped, self.change, self.breaks = [], 0, lambda readings, index: readings, lambda index: False

    def connect(self): ...

    def read(self):
        now = self.clock.now_s()
        value = np.array([len(self.sent)], np.float32)
        return self.change({"proprio": Reading(value, now)}, round(now / PERIOD_S))

    def send(self, action):
        if self.breaks(round(self.clock.now_s() / PERIOD_S)):
            raise RobotError("the wire is cut")
        self.sent.append(float(action[0]))
        return action

    def stop(self):
        self.stopped += 1

    def close(self): ...


class Counting:
    """An analytic planner: the action of every tick is the tick's own number. `seen` keeps the jobs."""

    def __init__(self, card, kind):
        self.card, self.kind, self.seen, self.fails = card, kind, [], set()

    def __call__(self, job):
        self.seen.append(job)
        if job.index in self.fails:
            raise ValueError("no plan today")
        size = self.card.config
        length = max(job.count, size.chunk) if len(job.queue) else -(-job.count // size.chunk) * size.chunk
        length = min(length, size.ladder.horizon) if self.kind == "committed" else size.ladder.horizon
        length = self.card.config.chunk if self.kind == "synchronous" else length
        first = job.tick + (len(job.queue) if self.kind == "committed" else 0)
        return Answer(np.arange(first, first + length, dtype=np.float32)[:, None], {"key": np.array([job.index])}, 1)


def counting(kind="committed", delay=0, chunk=2, chunks=3, horizon=16, delay_s=None, mode="absolute", safety=None, **config):
    """A controller of analytic parts and everything to look at: (controller, robot, planner, listener)."""
    clock = VirtualClock()
    policy_kind = "streaming" if kind == "committed" else "chunked"
    card = PolicyCard(PolicyConfig(kind=policy_kind, chunk=chunk, chunks=chunks, rows=6), horizon - chunk * chunks, ())
    robot, planner, watching = Numbered(clock, mode), Counting(card, kind), Watching()
    worker = VirtualWorker(planner, clock, delay_s or (lambda index, generator: delay * PERIOD_S))
    controller = Controller(robot, card, clock, worker, ChunkingConfig(kind, **{"eased": False, **config}), [watching], safety)
    return controller, robot, planner, watching


# ---- time ------------------------------------------------------------------------------------------------------------


def test_ticks_stand_on_absolute_times_and_do_not_drift():
    controller, _, _, watching = counting()
    statistics = controller.run(200)
    assert [tick.due_s for tick in watching.ticks] == [index * PERIOD_S for index in range(200)]
    assert statistics.ticks == 200 and statistics.missed == 0 and statistics.summary()["jitter_ms"]["max"] == 0
    assert watching.closed and statistics.ended == "all ticks done"


def test_missed_periods_are_counted_and_never_made_up_for_by_a_burst():
    controller, robot, _, watching = counting(delay_ticks=0)

    def stall(readings, index):
        if index == 10:
            robot.clock.moment_s += 4.4 * PERIOD_S
        return readings

    robot.change = stall
    statistics = controller.run(30)
    assert [tick.index for tick in watching.ticks] == [*range(11), *range(14, 30)]
    assert statistics.missed == 3 and watching.ticks[11].missed == 3
    assert statistics.summary()["jitter_ms"]["max"] == pytest.approx(1e3 * 0.4 * PERIOD_S)
    after = [float(tick.sent[0]) for tick in watching.ticks[11:]]
    assert after == [float(tick.index) for tick in watching.ticks[11:]], "actions of missed periods are not sent later"


# ---- delays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", range(9))
def test_committed_plans_leave_no_gap_and_nothing_late_at_any_delay(delay):
    controller, _, planner, watching = counting(delay=delay, chunk=2, chunks=4, horizon=16)
    with unchecked_shapes():
        statistics = controller.run(40)
    assert statistics.gaps == 0 and statistics.late == 0
    assert statistics.first_action_s == delay * PERIOD_S
    first = 8  # actions of the first plan, which begins when it arrives; from then on every action belongs to its own tick
    for tick in watching.ticks[delay + first :]:
        assert float(tick.sent[0]) == tick.index and tick.delay == delay
    for job in planner.seen[2:]:
        assert len(job.queue) == job.delay == delay
        assert job.restart == (max(delay, 2) % 2 > 0), "the buffer moves by whole chunks: a plan of an odd number leaves its place"
        assert job.queue[:, 0].tolist()[-1:] == ([job.tick + delay - 1.0] if delay and job.tick > first else job.queue[:, 0].tolist()[-1:])


def test_the_plan_is_made_behind_what_is_under_way_from_what_was_executed():
    controller, _, planner, _ = counting(delay=3, safety=Doubting())
    controller.run(40)
    job = planner.seen[5]
    assert job.executed[:, 0].tolist() == [job.tick - 2 + 0.5, job.tick - 1 + 0.5], "what was executed, not what was proposed"
    assert job.queue[:, 0].tolist() == [job.tick, job.tick + 1, job.tick + 2]
    assert job.memory["key"].tolist() == [4]


class Doubting:
    """A safety layer that changes every action by a half."""

    def check(self, proposed, readings, now_s):
        return Verdict(None, "hold", "nothing") if proposed is None else Verdict(proposed + np.float32(0.5), "send", "moved")

    def sent(self, action, now_s): ...


def test_late_actions_are_dropped_and_the_rest_joins_at_its_own_tick():
    late = lambda index, generator: (5 if index == 3 else 2) * PERIOD_S  # noqa: E731
    controller, _, _, watching = counting(chunk=4, chunks=2, delay_s=late, delay_ticks=2)
    statistics = controller.run(40)
    assert statistics.late == statistics.gaps == 3 + 1, "three of the late plan, and one while the queue recovers"
    gap = [tick.index for tick in watching.ticks if tick.proposed is None]
    assert gap[:2] == [0, 1] and len(gap) == 6
    assert all(float(tick.sent[0]) == tick.index for tick in watching.ticks[6:] if tick.proposed is not None)
    assert [float(watching.ticks[index].sent[0]) for index in gap[2:5]] == [gap[2] - 1.0] * 3, "an absolute target is held"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("delay", [0, 3, 8])
def test_every_kind_runs_at_every_delay_with_jitter_and_sends_no_action_late(kind, delay):
    jitter = lambda index, generator: (delay + generator.uniform(0, 1.5)) * PERIOD_S  # noqa: E731
    chunks = 6 if kind == "committed" else 12  # a plan that replaces another must be twice as long as it takes
    controller, robot, _, watching = counting(kind, delay_s=jitter, chunk=2, chunks=chunks, horizon=24)
    with unchecked_shapes():
        statistics = controller.run(100)
    assert statistics.plans > 3 and statistics.failures == 0 and len(robot.sent) > 30
    assert np.all(np.diff(robot.sent) >= 0), "no action of an earlier tick is sent after one of a later tick"
    # A plan begins when it arrives if the robot waited for it; from then on every action belongs to its own tick.
    if kind != "synchronous":
        steady = [tick for tick in watching.ticks if tick.index > 40]
        assert all(float(tick.sent[0]) == tick.index for tick in steady if tick.proposed is not None)
    if kind != "synchronous":
        assert statistics.gaps <= 12


def test_the_delay_is_measured_and_a_margin_comes_on_top():
    controller, *_ = counting(delay=3, margin_ticks=1)
    controller.run(60)
    assert controller.delay.ticks == 4
    fixed, *_ = counting(delay=3, delay_ticks=2)
    fixed.run(20)
    assert fixed.delay.ticks == 2


def test_more_delay_than_the_model_has_frames_for_is_refused():
    with pytest.raises(ValueError, match="at most 10 can be committed"):
        counting(delay_ticks=11)
    with pytest.raises(ValueError, match="guided chunking needs a policy of kind chunked, got 'streaming'"):
        Planner(Policy(tiny.model(), STREAMING), ChunkingConfig("guided"))


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_a_failed_plan_loses_nothing_that_was_executed():
    controller, _, planner, watching = counting(delay=1)
    planner.fails = {5}
    statistics = controller.run(40)
    assert statistics.failures == 1 and statistics.gaps <= 4
    failed, again = planner.seen[5:7]
    assert again.memory["key"].tolist() == failed.memory["key"].tolist() == [4]
    assert [t.failure for t in watching.ticks if t.failure] == ["no plan today"]


@pytest.mark.parametrize("broken", [np.array([np.nan], np.float32), np.zeros(2, np.float32), np.array(["far"]), None])
def test_an_unusable_observation_is_not_used_the_last_one_is_and_it_is_counted(broken):
    controller, robot, planner, _ = counting(delay_ticks=0)
    spoil = lambda readings, index: {"proprio": Reading(broken, readings["proprio"].stamp_s)} if broken is not None else {}  # noqa: E731
    robot.change = lambda readings, index: spoil(readings, index) if index in (6, 7, 8) else readings
    statistics = controller.run(20)
    assert statistics.missing["proprio"] >= 2 and statistics.gaps == 0
    seen = {job.tick: float(job.observation["proprio"][0]) for job in planner.seen}
    assert seen[6] == seen[8] == 5.0 and seen[10] == 10.0


def test_no_plan_is_made_from_proprioception_older_than_its_limit():
    controller, robot, planner, watching = counting(delay_ticks=0)
    robot.change = lambda readings, index: {} if index >= 5 else readings
    statistics = controller.run(20)
    assert max(job.tick for job in planner.seen) <= 4 + 3 and statistics.gaps > 5
    assert watching.ticks[-1].verdict.behaviour == "hold"


def test_a_robot_that_takes_no_action_is_stopped_and_then_given_up():
    controller, robot, _, watching = counting(delay_ticks=0)
    robot.breaks = lambda index: index == 4 or index >= 10
    statistics = controller.run(200)
    assert statistics.ended == "robot lost: the wire is cut" and statistics.ticks == 10 + 9
    assert watching.ticks[4].sent is None and watching.ticks[5].sent is not None and robot.stopped >= 2


def test_a_stop_of_the_safety_layer_stops_the_robot_and_ends_the_run():
    class Stopping(Doubting):
        def check(self, proposed, readings, now_s):
            return Verdict(None, "stop", "too far") if now_s >= 5 * PERIOD_S else super().check(proposed, readings, now_s)

    controller, robot, _, watching = counting(safety=Stopping())
    assert controller.run(50).ended == "stopped: too far"
    assert len(watching.ticks) == 6 and len(robot.sent) == 5 and robot.stopped == 2


def test_the_robot_is_stopped_whatever_ends_the_run_and_a_listener_cannot_end_it():
    class Broken(Watching):
        def tick(self, tick):
            raise OSError("disk full")

    controller, robot, *_ = counting()
    controller.listeners = [Broken()]
    assert controller.run(5).listener_errors == 5 and robot.stopped == 1
    controller, robot, *_ = counting()
    robot.change = lambda readings, index: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        controller.run(5)
    assert robot.stopped == 1


def test_actions_are_clipped_and_a_resting_velocity_is_zero():
    controller, robot, _, watching = counting("synchronous", delay=2, mode="velocity")
    robot.spec.action.high[:] = 6.0
    controller.run(30)
    assert max(robot.sent) == 6.0
    resting = [float(tick.sent[0]) for tick in watching.ticks if tick.proposed is None]
    assert len(resting) >= 10 and set(resting) == {0.0}
    assert any(tick.verdict.reason == "limited by position" for tick in watching.ticks)


def test_the_same_loop_runs_on_the_wall_clock_with_a_real_thread():
    """Generous: a busy machine may miss periods, but what is sent belongs to its tick and nothing is lost at the end."""
    controller, robot, planner, watching = counting(delay_ticks=2)
    controller.clock = robot.clock = MonotonicClock()
    controller.worker = ThreadWorker(planner, controller.clock)
    statistics = controller.run(10)
    controller.worker.close()
    assert statistics.plans >= 1 and statistics.failures == 0 and robot.stopped == 1
    assert statistics.ticks + statistics.missed >= 10 and len(robot.sent) >= 1
    assert all(tick.began_s >= tick.due_s for tick in watching.ticks)


# ---- with a network --------------------------------------------------------------------------------------------------


def drive(kind, ticks, delay=lambda index, generator: 0.0, config=None, seed=5, model=None, **chunking):
    """The toy world under one kind of chunking: (robot, ticks seen, statistics)."""
    clock = VirtualClock()
    policy = Policy(model or tiny.model(), config or (STREAMING if kind == "committed" else CHUNKED))
    chunked = ChunkingConfig(kind, **{"samples": 3, "weak_rows": 1, "eased": False, **chunking})
    env = uwm_envs.make("Toy", cameras=tiny.CAMERAS, image_size=32, max_steps=1000)
    robot, watching = SimulatedRobot(env, clock, seed), Watching()
    robot.connect()
    worker = VirtualWorker(Planner(policy, chunked), clock, delay, seed=1)
    statistics = Controller(robot, policy, clock, worker, chunked, [watching], seed=seed).run(ticks)
    return robot, watching.ticks, statistics


@pytest.mark.parametrize("kind, config", [("committed", STREAMING), ("synchronous", STREAMING), ("synchronous", CHUNKED)])
def test_without_delay_the_controller_does_exactly_what_the_ordinary_rollout_does(kind, config):
    env = uwm_envs.make("Toy", cameras=tiny.CAMERAS, image_size=32, max_steps=20)
    executed = []
    step = env.step
    env.step = lambda action: (executed.append(np.array(action)), step(action))[1]
    policy = Policy(tiny.model(), config)
    evaluation.rollout(env, policy, seed=5)
    _, ticks, statistics = drive(kind, len(executed), config=config, delay_ticks=0)
    assert np.array_equal(np.stack([tick.sent for tick in ticks]), np.stack(executed))
    assert statistics.calls == policy.calls and statistics.gaps == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seeds_give_the_same_run_to_the_last_bit(kind):
    jitter = lambda index, generator: generator.uniform(0.05, 0.35)  # noqa: E731
    with unchecked_shapes():
        (_, first, _), (_, again, _), (_, other, _) = (drive(kind, 10, jitter, seed=seed) for seed in (5, 5, 6))
    for one, two in zip(first, again, strict=True):
        assert (one.index, one.asked, one.finished, one.latency_s, one.late, one.plan) == (
            two.index, two.asked, two.finished, two.latency_s, two.late, two.plan,
        )  # fmt: skip
        assert np.array_equal(one.sent, two.sent) if one.sent is not None else two.sent is None
        assert np.array_equal(one.ahead, two.ahead)
    assert not np.array_equal(first[-1].sent, other[-1].sent)


def test_every_number_of_committed_actions_is_given_to_the_network_clean():
    """With the trained frames of the tiny model (8) and a buffer of 4, up to four actions can be under way."""
    model, seen = tiny.model(), []
    forward = model.forward
    model.forward = lambda x, level, role, layout, prefix, dims=None: (
        seen.append((level.clone(), role.clone(), layout)), forward(x, level, role, layout, prefix, dims),
    )[1]  # fmt: skip
    slow = lambda index, generator: 0.1 * min(index, 4)  # noqa: E731
    with unchecked_shapes():
        _, _, statistics = drive("committed", 40, slow, model=model, quantile=0.5, window=3)
    lengths = {int((role == roles.COMMITTED).sum()) for _, role, _ in seen}
    assert len(lengths) >= 3 and max(lengths) == 4
    for level, role, layout in seen:
        committed = role[0] == roles.COMMITTED
        assert not bool(level[0][committed].any())
        assert layout.frame[committed].tolist() == list(range(int(committed.sum())))
    assert statistics.failures == 0


def test_a_dead_camera_is_left_out_when_its_picture_is_old():
    clock = VirtualClock()
    policy = Policy(tiny.model(), replace(STREAMING, primer="zero"))
    robot = SimulatedRobot(uwm_envs.make("Toy", cameras=tiny.CAMERAS, image_size=32, max_steps=1000), clock, 5)
    robot.connect()
    read, cameras = robot.read, []
    robot.read = lambda: {name: value for name, value in read().items() if name != "wrist" or clock.now_s() < 0.25}
    planner = Planner(policy, ChunkingConfig())
    worker = VirtualWorker(lambda job: (cameras.append("wrist" in job.observation), planner(job))[1], clock, lambda *_: 0.0)
    statistics = Controller(robot, policy, clock, worker, ChunkingConfig(delay_ticks=0)).run(14)
    assert cameras == [True] * 4 + [False] * 3, "half a second after its last picture, which was at 0.2 s"
    assert statistics.missing["wrist"] >= 10 and statistics.missing["agentview"] == 0
