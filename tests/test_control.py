"""`uwm control` on the toy world: whole runs on a virtual clock, and on the machine's with signals and a server."""

import json
import os
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch

import test_robot_dds
import test_robot_robots
import tiny
import uwm_data
from oracle import unchecked_shapes
from uwm import brains, build, cli, control, serve
from uwm.core.config import ConfigError, from_mapping
from uwm.learn.checkpoint import CheckpointError
from uwm.robot import audit, recording
from uwm.robot.budget import Budget
from uwm.robot.clock import MonotonicClock, VirtualClock
from uwm.robot.inference import Job
from uwm.robot.interface import RobotError
from uwm.robot.interrupts import Interrupts
from uwm.robot.policy import PolicyConfig
from uwm.robot_maker import make_robot

domain = test_robot_dds.domain

POLICY = {"rows": 4, "chunk": 2, "chunks": 2}
SLOW = lambda index, generator: 0.15  # noqa: E731 - two ticks of the toy world
WORDS = ["world=toy", "policy.rows=4", "policy.chunk=2", "policy.chunks=2", "audit=null", "force=true"]


@pytest.fixture(autouse=True, scope="module")
def _unchecked():
    """Thousands of calls of the network."""
    with unchecked_shapes():
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model of two steps on four demonstrations: it cannot do the task, and is the real thing in all else."""
    folder = tmp_path_factory.mktemp("control")
    assert cli.main(["collect", "world=toy", f"out={folder / 'toy.zarr'}", "episodes=4", "workers=1"]) == 0
    training = ["model=tiny", "autoencoder.steps=2", "train.steps=2", "train.batch=4", "logger=off", "train.precision=float32"]
    assert cli.main(["train", f"data={folder / 'toy.zarr'}", f"out={folder}", *training]) == 0
    return folder / "model"


def run_of(checkpoint, **changes):
    world = {"name": "Toy", "image_size": 32, **changes.pop("world", {})}
    safety = {"watchdog": {"frozen_after_s": float("inf"), "jump_after_s": 5.0}}
    plain = {"checkpoint": str(checkpoint), "world": world, "policy": POLICY, "safety": safety, "duration_s": 10.0, "seed": 5}
    return from_mapping(control.ControlRun, {**plain, **changes})


def drive(checkpoint, delay_s=SLOW, **changes):
    return control.drive(run_of(checkpoint, **changes), VirtualClock(), delay_s)


# ---- whole runs ------------------------------------------------------------------------------------------------------


def test_a_run_acts_without_a_gap_and_tells_what_it_did(checkpoint, capsys):
    told = drive(checkpoint)
    assert told["ended"] == "time is over" and told["missed"] == 0
    assert told["ticks"] == 100 + 2, "an episode's last tick and the next one's first are at the same moment of a virtual clock"
    assert told["gaps"] <= 3 and told["late"] == 0 and told["failures"] == 0
    assert [each["seed"] for each in told["episodes"]] == [5, 6, 7], "40 ticks are an episode of the toy world"
    assert [each["whole"] for each in told["episodes"]] == [True, True, False] and told["judged"] == 2
    assert told["jitter_ms"]["max"] == 0 and told["latency_ms"]["p50"] == pytest.approx(150)
    assert told["calls"] >= told["plans"] >= 35 and told["budget"]["delay_ticks"] == 2
    assert json.loads(json.dumps(told)) == told
    shown = capsys.readouterr().err
    assert "latency budget" in shown and "delay    2 ticks of at most 4 committed" in shown
    assert "102 ticks, 0 missed" in control.page(told)


def test_the_same_seeds_give_the_same_recording(checkpoint, tmp_path):
    stores = [tmp_path / name for name in ("a.zarr", "b.zarr", "c.zarr")]
    for store, seed in zip(stores, (5, 5, 6), strict=True):
        drive(checkpoint, record=str(store), duration_s=3.0, seed=seed)
    first, again, other = ([episode(store, 0, name) for name in ("action", "agentview", "stamps")] for store in stores)
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_on_a_virtual_clock_a_tick_waits_for_the_disk(checkpoint, tmp_path, monkeypatch):
    add = recording.Spool.add
    monkeypatch.setattr(recording.Spool, "add", lambda self, *frame, **told: time.sleep(0.05) or add(self, *frame, **told))
    told = drive(checkpoint, record=str(tmp_path / "slow.zarr"), duration_s=3.0)
    assert not told["troubles"] and len(episode(tmp_path / "slow.zarr", 0, "action")) == told["ticks"] - 1 > 20


def episode(path, index, name):
    with uwm_data.EpisodeStore.open(path) as store:
        return store.read(index, name)


def test_what_was_acted_is_recorded_audited_and_bagged_tick_by_tick(checkpoint, tmp_path):
    record, bag, log = tmp_path / "acted.zarr", tmp_path / "run.mcap", tmp_path / "audit"
    told = drive(checkpoint, record=str(record), bag=str(bag), audit=str(log), duration_s=6.0)
    assert told["recorded"] == [0, 1] and not told["troubles"] and told["listener_errors"] == 0
    ticks = [each for each in audit.read(log) if each["kind"] == "tick"]
    assert len(ticks) == told["ticks"] == 61
    acted = np.concatenate([episode(record, index, "action") for index in (0, 1)])
    sent = np.array([each["sent"] for each in ticks if each["sent"] is not None], np.float32)
    # The action of an episode's last tick has no observation after it, so it is not recorded.
    assert len(sent) - len(acted) == 2
    assert np.array_equal(episode(record, 0, "action"), sent[: len(episode(record, 0, "action"))])
    with uwm_data.EpisodeStore.open(record) as store:
        assert store.meta(0)["success"] is False and "success" not in store.meta(1) and store.meta(1)["ended"] == "time is over"
        assert [store.meta(index)["seed"] for index in (0, 1)] == [5, 6] and store.card["env"] == "Toy"
    from mcap.reader import make_reader

    with bag.open("rb") as file:
        topics = [channel.topic for _, channel, _ in make_reader(file).iter_messages()]
    assert topics.count("/tick") == 61 and topics.count("/camera/agentview") >= 55


def test_a_recorded_store_is_checked_continued_and_trained_on(checkpoint, tmp_path):
    record = tmp_path / "acted.zarr"
    for seed in (5, 50):
        drive(checkpoint, record=str(record), duration_s=4.5, seed=seed)
    assert cli.main(["data", "check", str(record)]) == 0
    with uwm_data.EpisodeStore.open(record) as store:
        assert [store.meta(index)["seed"] for index in range(len(store))] == [5, 6, 50, 51]
    training = ["model=tiny", "autoencoder.steps=1", "train.steps=1", "train.batch=2", "logger=off", "train.precision=float32"]
    assert cli.main(["train", f"data={record}", f"out={tmp_path / 'again'}", "only_success=false", *training]) == 0


def test_a_store_of_another_world_is_not_continued(checkpoint, tmp_path):
    assert cli.main(["collect", "world=toy", f"out={tmp_path / 'toy.zarr'}", "episodes=1", "workers=1"]) == 0
    with pytest.raises(ConfigError, match=r"toy.zarr holds episodes of something else, it differs in behaviour, calls"):
        drive(checkpoint, record=str(tmp_path / "toy.zarr"))


def test_episodes_may_be_counted_and_a_replay_is_a_robot_too(checkpoint):
    assert drive(checkpoint, episodes=1)["ended"] == "all 1 episodes done"
    told = drive(checkpoint, robot="replay", options={"data": str(checkpoint.parent / "toy.zarr"), "episode": 2}, episodes=1)
    assert told["robot"] == "recorded episode 2" and told["ticks"] == len(episode(checkpoint.parent / "toy.zarr", 2, "action")) + 1
    assert told["compared"]["compared"] >= 15 and "actions with the recorded ones" in control.page(told)
    assert told["judged"] == 0 and "no episode was judged" in control.page(told)


# ---- what does not fit -----------------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_robot_is_refused_by_name(checkpoint):
    with pytest.raises(CheckpointError, match="image_size: trained with 32, got 16"):
        drive(checkpoint, world={"image_size": 16})
    with pytest.raises(CheckpointError, match=r"cameras \['wrist'\] are missing"):
        drive(checkpoint, world={"cameras": ["agentview"]})
    with pytest.raises(CheckpointError, match="; robot: trained with 'point', got "):
        drive(checkpoint, world={"name": "PushT", "cameras": ["agentview"]})


def test_a_plan_that_does_not_fit_is_refused_unless_forced(checkpoint, capsys):
    slow = lambda index, generator: 0.75  # noqa: E731
    with pytest.raises(control.ControlError, match=r"does not fit: .*fewer chunks: 8 actions must be committed and 4 can be.*force=true"):
        drive(checkpoint, slow)
    assert "does not fit by 550.0 ms" in capsys.readouterr().err
    told = drive(checkpoint, slow, force=True, duration_s=4.0)
    assert told["ticks"] == 40 and told["gaps"] > 5 and not told["budget"]["fits"]


def test_a_buffer_that_leaves_nothing_to_commit_is_told_so(checkpoint):
    with pytest.raises(control.ControlError, match=r"policy\.chunks or policy\.chunk smaller"):
        drive(checkpoint, policy={**POLICY, "chunks": 4})


def budget(**changes):
    figures = dict.fromkeys(("p50", "p95", "p99"), 0.001)
    plain = {"kind": "committed", "policy": PolicyConfig(rows=12, chunk=3, chunks=4), "period_s": 0.05, "read_s": figures,
             "plan_s": figures, "late_s": 0.2, "first_s": 0.4, "calls": 3.0, "room": 6, "encode_s": 0.02, "call_s": 0.06}  # fmt: skip
    return Budget(**{**plain, **changes})


def test_advice_is_enough_to_fit_at_the_speed_that_was_measured():
    tight = budget()
    assert not tight.fits and tight.over_s == pytest.approx(0.05) and tight.delay_ticks == 4
    rows, chunk, preset, precision = tight.advice()
    assert rows == "policy.rows=8 (now 12)", "2 calls of 60 ms and 20 ms are 140 ms of 150"
    assert chunk.startswith("policy.chunk=4 (now 3)") and "1.3 times faster" in preset and "bfloat16" in precision
    assert budget(late_s=0.15).fits and not budget(late_s=0.15).advice()
    assert budget(room=None, kind="naive", late_s=0.15).fits and not budget(kind="synchronous", room=None, late_s=0.06).fits
    assert not budget(late_s=0.01, room=0).fits, "nothing can be committed, so a plan has no time at all"


def test_a_robot_that_is_slow_to_read_is_told_apart():
    slow = budget(late_s=0.01, read_s={"p50": 0.02, "p95": 0.03, "p99": 0.08})
    assert not slow.fits and "reading the robot alone takes 80.0 ms" in slow.advice()[0]


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["robot=simulatd"], 2, "unknown robot 'simulatd', did you mean 'simulated'?"),
        (["duration_s=0"], 2, "duration_s must be above 0"),
        (["options={velocty: 1.0}"], 2, "control.options of simulated"),
        (["rate_hz=25"], 2, "simulated Toy acts at 10 Hz, not 25"),
        (["robot=replay"], 2, "a replay needs options={data: STORE, episode: N}"),
        (["robot=replay", "options={data: SEEN, episode: 9}"], 2, "no episode 9 in the store, which has 0 to 3"),
        (["robot=lerobot"], 2, "needs rate_hz and options={type: so101_follower"),
        (["robot=lerobot", "rate_hz=30", "options={type: so101_follower, limits: {}}"], 1, "pip install lerobot"),
        (["robot=dds", "rate_hz=20"], 2, "needs rate_hz and options={limits:"),
        (["robot=dds", "rate_hz=20", "options={limits: {a: [0, 1]}, dmain: 3}"], 2, "unexpected keyword argument 'dmain'"),
        (["robot=franka"], 2, "missing 1 required positional argument: 'address'"),
        (["robot=franka", "options={address: arm, velocty: 1.0}"], 2, "unexpected keyword argument 'velocty'"),
        (["controller.kind=guided"], 1, "guided chunking needs a policy of kind chunked"),
        (["monitor=film.mp4", "worker=thread"], 1, "a file that ends with .rrd"),
        (["server=ws://127.0.0.1:9"], 1, "is `uwm serve` running?"),
        (["checkpoint=nowhere"], 1, "nowhere"),
    ],
)
def test_what_is_wrong_is_one_line(checkpoint, capfd, words, code, expected):
    words = [word.replace("SEEN", str(checkpoint.parent / "toy.zarr")) for word in words]
    assert cli.main(["control", f"checkpoint={checkpoint}", *WORDS, *words]) == code
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("uwm: error:")]
    assert len(told) == 1 and expected in told[0]


# ---- on the machine's clock ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_stops_the_robot_and_everything_is_written(checkpoint, tmp_path, number, code):
    """In a terminal every process of the group gets the signal; only the parent may speak."""
    record, out = tmp_path / "acted.zarr", tmp_path / "out.json"
    command = [sys.executable, "-m", "uwm.cli", "control", f"checkpoint={checkpoint}", *WORDS, f"record={record}", f"out={out}"]
    command += ["duration_s=300", "safety.watchdog.jump_after_s=10", "safety.watchdog.silent_after_s=10", f"bag={tmp_path / 'run.mcap'}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    deadline_s = time.monotonic() + 120
    spool = tmp_path / "acted.zarr.spool"
    while time.monotonic() < deadline_s and not (spool.exists() and any(each.stat().st_size > 50_000 for each in spool.iterdir())):
        time.sleep(0.1)
        assert process.poll() is None, process.communicate()[1]
    os.killpg(process.pid, number)
    shown, told = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in told, told
    figures = json.loads(out.read_text())
    assert figures["ended"] == Interrupts.WORDS[number] and figures["ended"] in shown and not figures["troubles"]
    assert len(figures["recorded"]) >= 1 and not list(spool.iterdir()) and (tmp_path / "run.mcap").stat().st_size > 1000
    assert cli.main(["data", "check", str(record)]) == 0


def test_a_policy_behind_a_server_drives_the_robot(checkpoint):
    from policies import serving

    served = serve.load(from_mapping(serve.ServeRun, {"checkpoint": str(checkpoint), "policy": POLICY}))
    with serving(served) as server:
        told = control.drive(run_of("nowhere", server=server.url, duration_s=2.0, force=True))
        other = run_of("nowhere", server=server.url, controller={"kind": "synchronous"})
        with pytest.raises(ConfigError, match="plans for controllers of kind 'committed'"):
            control.drive(other)
    assert told["ended"] == "time is over" and told["plans"] >= 3 and told["failures"] == 0
    assert told["policy"].startswith("ws://127.0.0.1")


def test_a_second_signal_is_raised_at_once_and_handlers_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        with interrupts.noted():
            os.kill(os.getpid(), signal.SIGTERM)
            assert interrupts.reason == "stopped by SIGTERM"
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_configs_of_control_and_serve_are_what_their_runs_expect():
    run, served = from_mapping(control.ControlRun, cli.compose("control", [])), from_mapping(serve.ServeRun, cli.compose("serve", []))
    assert run.world == build.WorldConfig() and run.policy == control.ControlRun().policy
    assert served.policy == run.policy, "a controller may ask either"


# ---- a robot on ROS 2 ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arm_checkpoint(tmp_path_factory):
    """A policy without cameras for the arm of `test_robot_dds`, from random episodes: its motion means nothing, its shapes fit."""
    card = {"robot": "ros2", "rate_hz": 20.0, "cameras": [], "action": {"names": list(test_robot_dds.JOINTS)}}
    return tiny.trained(tmp_path_factory.mktemp("arm"), card, proprio_size=6)


def test_a_robot_on_ros_2_is_driven_by_the_command(arm_checkpoint, domain):
    arm = test_robot_dds.Arm(test_robot_dds.dds._messages(), domain, cameras=())
    try:
        options = {"domain": domain, "limits": {name: list(ends) for name, ends in test_robot_dds.LIMITS.items()}}
        run = run_of(arm_checkpoint, robot="dds", rate_hz=20.0, options=options, duration_s=2.0, worker="thread", force=True)
        told = control.drive(run)
        assert told["ended"] == "time is over" and told["robot"] == "ROS 2 over DDS"
        first = make_robot(run, MonotonicClock())
        first.connect()
        with pytest.raises(RobotError, match="another process holds the robot 'dds-"):
            control.drive(run)
        first.close()
        assert told["ticks"] > 20 and told["behaviours"]["send"] > 10
        low, high = np.array(list(test_robot_dds.LIMITS.values())).T
        assert len(arm.commands) > 10 and (np.array(arm.commands) >= low - 1e-6).all() and (np.array(arm.commands) <= high + 1e-6).all()
    finally:
        arm.close()


# ---- a robot of LeRobot ----------------------------------------------------------------------------------------------


def test_a_robot_of_lerobot_is_made_by_its_type_and_config_and_driven(tmp_path, monkeypatch):
    made = []

    class Follower(test_robot_robots.Arm):
        observation_features = {"elbow.pos": float, "gripper.pos": float}  # noqa: RUF012

        def get_observation(self):
            return dict(self.at)

    class RobotConfig:
        get_known_choices = staticmethod(lambda: {"fake_follower": None})

    for name in ("draccus", "lerobot", "lerobot.robots", "lerobot.cameras"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules[name].__path__ = []
    theirs = sys.modules["lerobot.robots"]
    theirs.RobotConfig, theirs.make_robot_from_config = RobotConfig, lambda config: made.append(config) or Follower()
    sys.modules["draccus"].decode = lambda kind, plain: plain
    card = {"robot": "fake_follower", "rate_hz": 30.0, "cameras": [], "action": {"names": ["gripper.pos", "elbow.pos"]}}
    checkpoint = tiny.trained(tmp_path, card, proprio_size=2)
    limits = {name: list(ends) for name, ends in test_robot_robots.LIMITS.items()}
    options = {"type": "fake_follower", "config": {"port": "here"}, "limits": limits}
    told = drive(checkpoint, robot="lerobot", rate_hz=30.0, options=options, duration_s=2.0, force=True)
    assert made == [{"type": "fake_follower", "port": "here"}] and told["robot"] == "LeRobot fake_follower"
    assert told["ended"] == "time is over" and told["behaviours"]["send"] > 20
    with pytest.raises(ConfigError, match="needs rate_hz and options"):
        drive(checkpoint, robot="lerobot", options={"limits": {}})
    with pytest.raises(ConfigError, match="unknown type 'fake_folower', did you mean 'fake_follower'"):
        drive(checkpoint, robot="lerobot", rate_hz=30.0, options={**options, "type": "fake_folower"})


def test_bfloat16_plans_stay_near_those_in_float32_and_a_processor_without_it_is_told(checkpoint, monkeypatch, capsys):
    jobs, answers = [], {}
    for precision in ("float32", "bfloat16"):
        run = run_of(checkpoint, precision=precision)
        plan = brains.planner(run)
        if not jobs:
            frames = {name: np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8) for name in ("agentview", "wrist")}
            none = np.zeros((0, 2), np.float32)
            jobs.append(Job(0, 0, {**frames, "proprio": np.full(2, 0.3, np.float32)}, none, none))
        answers[precision] = plan(jobs[0]).actions
    assert answers["bfloat16"].dtype == np.float32 and not np.array_equal(*answers.values())
    spread = np.abs(answers["float32"]).max()
    capsys.readouterr()
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    drive(checkpoint, precision="bfloat16", duration_s=0.3)
    assert "no instructions for bfloat16; precision=float32 is" in capsys.readouterr().out
    np.testing.assert_allclose(answers["bfloat16"], answers["float32"], atol=0.05 * spread)
