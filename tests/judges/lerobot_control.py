"""LeRobot's side of control: our policy as its plug-in, and a robot of its base class as one of ours."""

import json
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

import sentences
import tiny
from judges import judging
from uwm.core.config import to_mapping
from uwm.learn import checkpoint as checkpoints
from uwm.nn.language import LanguageConfig
from uwm.robot.history import History, observe
from uwm.robot.policy import Policy, PolicyConfig
from uwm.training import load_model

JUDGE = "lerobot-0.4.4"
TICKS = 7  # two chunks of three, and the first action of a third
TASK, OTHER = "push the disc", "go to the target"
LOW, HIGH = [-0.5, -1.0], [0.5, 0.25]
SET = {"rows": 4, "primer_rows": 2, "step": "ancestral", "shape": 1.5}  # of the buffer, none as by itself


def installed(project, site):
    """Build a project's wheel and unpack it into `site`, metadata and all: what installing without dependencies does."""
    code = f"import hatchling.build; print(hatchling.build.build_wheel({str(site)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    wheel = site / done.stdout.split()[-1]
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return wheel


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with uwm and the plug-in installed."""
    folder = tmp_path_factory.mktemp("site")
    for project in (judging.ROOT, judging.ROOT / "plugins" / "lerobot_policy_uwm"):
        installed(project, folder)
    return folder


@pytest.fixture(scope="module")
def plugin(site):
    """The arm of `beside` installed as LeRobot looks for robots of others: by the name of a distribution."""
    shutil.copytree(judging.HERE / "beside" / "lerobot_robot_arm", site / "lerobot_robot_arm")
    about = site / "lerobot_robot_arm-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lerobot_robot_arm\nVersion: 0.1\n")
    return site


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny checkpoint with limits that its actions meet, which looks back and hears."""
    language = LanguageConfig("minilm", str(sentences.minilm(tmp_path_factory.mktemp("minilm")))).resolved()
    net = tiny.model(action_size=2, proprio_size=3, history=(2,), language=language)
    weights = net.state_dict()
    card = {"model": to_mapping(net.config), "cameras": list(tiny.CAMERAS), "action": {"low": LOW, "high": HIGH}}
    path = tmp_path_factory.mktemp("run") / "model"
    checkpoints.save(path, checkpoints.Checkpoint(1, {}, card, weights, weights, {}))
    return path


def seen():
    """T observations of one robot: frames as a camera gives them."""
    generator = np.random.default_rng(0)
    frames = {name: generator.integers(0, 256, (TICKS, 32, 32, 3), dtype=np.uint8) for name in tiny.CAMERAS}
    return {**frames, "proprio": generator.normal(size=(TICKS, 3)).astype(np.float32)}


def ours(checkpoint, arrays, seed, task=TASK):
    """Actions (T, A) of our own loop on the same observations, one chunk per three ticks."""
    policy = Policy(load_model(checkpoint)[0], PolicyConfig(chunk=3, chunks=2, past=2, **SET))
    memory, history, actions = policy.start([seed]), History.reaching(policy.history), []
    for tick in range(TICKS):
        now = {key: values[tick] for key, values in arrays.items()}
        history = history.add(now)
        if tick % 3:
            continue
        seen = observe([{**now, "prompt": task}], tiny.CAMERAS, [history.earlier(policy.history)], policy.model.words)
        memory, chunk = policy.act(memory, seen)
        chunk = chunk.clamp(torch.tensor(LOW), torch.tensor(HIGH))
        memory = policy.done(memory, chunk)
        actions.append(chunk[0].numpy())
    return np.concatenate(actions)[:TICKS]


@pytest.fixture(scope="module")
def driven(site, checkpoint, tmp_path_factory):
    """(answer, arrays) of a run that LeRobot made."""
    folder = tmp_path_factory.mktemp("policy")
    launcher = judging.ROOT / ".judges" / JUDGE / "bin" / "judge"
    code = (f"import sys; sys.path.append({str(site)!r}); sys.argv[1:] = [{str(checkpoint)!r}, {str(folder / 'made')!r}]; "
            "import torchvision_operators, runpy; runpy.run_module('lerobot_policy_uwm', run_name='__main__')")  # fmt: skip
    done = subprocess.run([launcher, "-c", code], capture_output=True, text=True, timeout=judging.SECONDS, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((folder / "made" / "config.json").read_text())
    assert told["type"] == "uwm" and told["checkpoint"] == "", "the folder may be moved"
    assert (told["chunk"], told["chunks"]) == (3, 2), "the tiny model was trained on eight ticks"
    told |= SET
    (folder / "made" / "config.json").write_text(json.dumps(told))
    keys = {"proprio": "observation.state", **{name: f"observation.images.{name}" for name in tiny.CAMERAS}}
    given = judging.save(folder / "seen", {keys[name]: values for name, values in seen().items()})
    request = {"site": str(site), "type": "uwm", "folder": str(folder / "made"), "observations": given, "out": str(folder / "out")}
    request |= {"task": TASK, "other": OTHER}
    return judging.ask(JUDGE, "lerobot_policy", request, folder / "home"), judging.load(folder / "out")


class ControlComparisons:
    """What LeRobot makes of our policy, and our conformance of its robots."""

    def test_lerobot_finds_the_policy_by_the_name_of_its_distribution(self, driven):
        answer, _ = driven
        assert not answer["known_before"] and answer["kind"] == "lerobot_policy_uwm.modeling_uwm.UwmPolicy"
        assert answer["numpy"].startswith("2."), "LeRobot's numpy, not ours"

    def test_it_knows_what_the_policy_sees_and_gives(self, driven):
        images = {f"observation.images.{name}": [3, 32, 32] for name in tiny.CAMERAS}
        assert driven[0]["inputs"] == {**images, "observation.state": [3]} and driven[0]["outputs"] == {"action": [2]}

    def test_its_actions_are_those_of_our_own_loop(self, driven, checkpoint):
        expected = ours(checkpoint, seen(), seed=0)
        assert np.ptp(expected, axis=0).min() > 0 and (expected == HIGH).any() | (expected == LOW).any(), "limits are met"
        np.testing.assert_allclose(driven[1]["actions"], expected, rtol=1e-4, atol=1e-5)

    def test_a_reset_begins_another_episode_with_another_seed(self, driven, checkpoint):
        np.testing.assert_allclose(driven[1]["again"], ours(checkpoint, seen(), seed=1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(driven[1]["chunk"][0], ours(checkpoint, seen(), seed=2)[:3], rtol=1e-4, atol=1e-5)
        assert not np.allclose(driven[1]["again"], driven[1]["actions"], atol=1e-3)

    def test_the_task_that_is_recorded_under_is_the_instruction(self, driven, checkpoint):
        np.testing.assert_allclose(driven[1]["other"], ours(checkpoint, seen(), seed=0, task=OTHER), rtol=1e-4, atol=1e-5)
        assert not np.allclose(driven[1]["other"], driven[1]["actions"], atol=1e-3)

    def test_training_there_is_refused_with_the_way_to_do_it(self, driven):
        assert "uwm train" in driven[0]["refusal"] and driven[0]["trainable"] > 10

    def test_a_robot_of_lerobots_base_class_conforms_behind_our_wrapper(self, plugin, tmp_path):
        answer = judging.ask(JUDGE, "../beside/lerobot_robot", {"site": str(plugin), "home": str(tmp_path)}, tmp_path / "home")
        assert answer["findings"] == []
        assert answer["proprio"] == [1, 2, 3] and answer["front"] == [24, 32, 3]
        assert answer["spec"] == ["LeRobot arm_of_this_test", ["shoulder.pos", "elbow.pos", "gripper.pos"]] and answer["gripper"] == [2]
        assert answer["sent"] == [6, 0, -2], "what LeRobot clipped to, not what was asked for"
        assert answer["held"] == [6, 0, -2] and not answer["connected"], "a stop holds where the joints are"

    def test_uwm_control_drives_a_robot_of_lerobots_registry_by_type_and_config(self, plugin, tmp_path):
        joints = ["shoulder.pos", "elbow.pos", "gripper.pos"]
        card = {"robot": "arm_of_this_test", "rate_hz": 20.0, "cameras": [], "action": {"names": joints}}
        made = {"id": "test", "calibration_dir": str(tmp_path / "calibration"), "step": 0.05, "blind": True}
        options = {"type": "arm_of_this_test", "config": made, "limits": {joint: [-90.0, 90.0] for joint in joints}}
        config = {
            "checkpoint": str(tiny.trained(tmp_path, card, proprio_size=3)), "robot": "lerobot", "rate_hz": 20.0, "options": options,
            "policy": {"rows": 4, "chunk": 2, "chunks": 2}, "worker": "thread", "duration_s": 3.0, "force": True,
            "out": str(tmp_path / "out"), "safety": {"watchdog": {"silent_after_s": 5.0, "jump_after_s": 5.0}},
        }  # fmt: skip
        wrong = {
            "type": {"type": "so101_folower"}, "key": {"config": {**made, "stp": 1.0}}, "camera": {"config": {**made, "cameras": {}}},
            "port": {"type": "so101_follower", "config": {}},
        }  # fmt: skip
        answer = judging.ask(JUDGE, "../beside/lerobot_driven", {"site": str(plugin), "config": config, "wrong": wrong}, tmp_path / "home")
        told, sent = answer["told"], np.array(answer["sent"])
        assert answer["code"] == 0 and told["ended"] == "time is over" and told["robot"] == "LeRobot arm_of_this_test"
        assert not answer["known_before"] and answer["made"] == 1, "found as a plug-in; a wrong config makes no arm"
        assert len(sent) > 20 and np.isfinite(sent).all() and not answer["connected"]
        assert answer["step"] == 0.05 and (np.abs(np.diff(sent, axis=0)) <= 0.05 + 1e-6).all(), "its own config reached it"
        assert "did you mean 'so101_follower'" in answer["refused"]["type"] and "port" in answer["refused"]["port"]
        assert "stp" in answer["refused"]["key"] and "cameras" in answer["refused"]["camera"]
