"""The monitor of `uwm control`: what it shows and imagines, and that the robot does not need it."""

import numpy as np
import pytest

import test_control
from test_control import POLICY, drive, run_of
from uwm import acting, brains
from uwm.robot import monitor
from uwm.robot.policy import PolicyConfig
from uwm.sample import roll

checkpoint, _unchecked = test_control.checkpoint, test_control._unchecked


def test_a_monitor_writes_cameras_buffer_actions_and_the_imagined_future(checkpoint, tmp_path):
    import rerun

    path = tmp_path / "run.rrd"
    told = drive(checkpoint, monitor=str(path), duration_s=3.0)
    assert not told["troubles"] and told["listener_errors"] == 0
    recording = rerun.dataframe.load_recording(path)
    entities = {column.entity_path for column in recording.schema().component_columns()}
    assert {"/camera/agentview", "/camera/wrist", "/action/proposed", "/action/sent", "/buffer/level", "/timing/latency_ms"} <= entities
    assert {"/imagined/agentview/in_4", "/imagined/wrist/in_8"} <= entities, "the model's own future frames"
    rows = recording.view(index="log_tick", contents="/**").select().read_all()
    counts = {name: len(rows[name].drop_null()) for name in rows.column_names}
    of = lambda entity: max(count for name, count in counts.items() if name.startswith(f"{entity}:"))  # noqa: E731
    assert min(of(f"/camera/{name}") for name in ("agentview", "wrist")) >= 20 and of("/imagined/wrist/in_8") >= 2, counts
    assert min(of("/buffer/level"), of("/buffer/action"), of("/action/sent"), of("/action/proposed")) >= 20, counts
    name = next(name for name in rows.column_names if name.startswith("/timing/latency_ms:Scalar"))
    latencies = np.concatenate([np.array(value) for value in rows[name].drop_null().to_pylist()])
    assert len(latencies) >= 10 and np.allclose(latencies, 150), "two ticks a plan, as told"


@pytest.mark.parametrize("cameras", [(), ("wrist",)])
def test_what_is_imagined_is_seen_through_the_policys_cameras_only(checkpoint, cameras):
    ask = brains._imagination(run_of(checkpoint, policy={**POLICY, "cameras": cameras}))
    generator = np.random.default_rng(0)
    seen = {name: generator.integers(0, 256, (32, 32, 3), np.uint8) for name in ("agentview", "wrist")}
    told, blind = ({**seen, "proprio": np.zeros(2, np.float32)} | other for other in ({}, {"agentview": np.zeros((32, 32, 3), np.uint8)}))
    pictures, others = (ask(each, np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)) for each in (told, blind))
    same = all(np.array_equal(pictures[name], others[name]) for name in pictures)
    assert "agentview/in_4" in pictures and same == bool(cameras)


class Imagining:
    """A monitor in this process, which keeps what it would imagine from at every tick: the instruction, and how many executed actions."""

    trouble, asked = "", []

    def __init__(self, spec, target, policy, memory, make_imagine):
        self.screen = monitor._Screen(target, spec, self.imagine, every=1)
        self.asked.clear()

    def imagine(self, observation, executed, planned):
        self.asked.append((observation["prompt"], len(executed)))
        return {}

    def tick(self, tick):
        self.screen.show(tick, None, False)

    def close(self):
        self.screen.close()


def test_what_is_imagined_goes_on_from_what_was_executed_in_this_episode(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(acting, "Monitor", Imagining)
    told = drive(checkpoint, monitor=str(tmp_path / "run.rrd"))
    counts = [count for _, count in Imagining.asked]
    begun = [index for index in range(1, len(counts)) if counts[index] < counts[index - 1]]
    assert len(counts) == told["ticks"] and len(begun) == len(told["episodes"]) - 1 == 2
    assert max(counts) >= 30 and {counts[index] for index in begun} == {0}, "nothing of the episode before"


def test_a_monitor_shows_the_levels_of_a_bent_ladder():
    policy = PolicyConfig(rows=4, chunk=2, chunks=2, past=0, shape=2.0)
    memory = {name: value.numpy() for name, value in roll.empty(policy.ladder, [0], 3).tensors().items()}
    assert monitor.levels(policy, memory) is None, "nothing is held before the first tick"
    level, values = monitor.levels(policy, memory | {"fresh": np.array([False])})
    assert level.tolist() == pytest.approx([0.25, 0.25, 1.0, 1.0]) and values.shape == (4, 3)


def test_a_monitor_that_dies_does_not_stop_the_robot(checkpoint, tmp_path, monkeypatch):
    made = monitor.Monitor.__init__

    def killed(self, *values, **named):
        made(self, *values, **named)
        self._process.kill()
        self._process.join()

    monkeypatch.setattr(monitor.Monitor, "__init__", killed)
    told = drive(checkpoint, monitor=str(tmp_path / "run.rrd"), duration_s=3.0)
    assert told["ticks"] == 30 and "its process died" in told["troubles"]["monitor"]


def test_a_missing_viewer_or_screen_is_named(checkpoint, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(monitor.MonitorError, match="there is no screen here"):
        drive(checkpoint, monitor="rerun")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'uwm\[view\]'"):
        drive(checkpoint, monitor="run.rrd")
