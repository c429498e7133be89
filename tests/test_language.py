"""Instructions from the data to the robot: windows, training, closed loop, control and the server."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import policies
import sentences
import tiny
import uwm_data
import uwm_envs
from oracle import unchecked_shapes
from test_control import SLOW, run_of
from test_control_monitor import Imagining
from test_training import prepared, store_of
from test_training import run_of as training_of
from uwm import acting, brains, build, cli, control, serve, training
from uwm.core.config import ConfigError, from_mapping
from uwm.data import TrainingData
from uwm.nn.language import LanguageConfig
from uwm.robot import evaluate
from uwm.robot.clock import VirtualClock
from uwm.robot.policy import Policy, PolicyConfig
from uwm.robot.session import RequestError, Session
from uwm.runs import EvalRun

POLICY = PolicyConfig(rows=4, chunk=2, chunks=2)


@pytest.fixture(autouse=True, scope="module")
def _unchecked():
    with unchecked_shapes():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sentences.minilm(tmp_path_factory.mktemp("minilm"))


@pytest.fixture(scope="module")
def checkpoint(folder, tmp_path_factory):
    """Two steps on demonstrations in the world of four colours: it understands nothing, and is the real thing in all else."""
    place = tmp_path_factory.mktemp("language")
    assert cli.main(["collect", "world=toy-colours", f"out={place / 'toy.zarr'}", "episodes=4", "workers=1"]) == 0
    told = ["model.video_frames=[]", "patterns@train.objective.patterns=actions", "model.language.kind=minilm"]
    steps = ["model=tiny", "train.steps=2", "train.batch=4", "logger=off", "train.precision=float32", "only_success=false"]
    assert cli.main(["train", f"data={place / 'toy.zarr'}", f"out={place}", *steps, *told, f"model.language.path={folder}"]) == 0
    return place / "model"


# ---- data ------------------------------------------------------------------------------------------------------------


def spoken(folder, place, **changes):
    return training_of(place / "run", model={"language": {"kind": "minilm", "path": str(folder)}, "video_frames": []}, **changes)


def test_every_window_has_the_instruction_of_its_episode(folder, tmp_path):
    store_of(tmp_path / "arm.zarr")
    patterns = {"objective": {"draws": 1, "patterns": [{"weight": 1.0, "video": "absent"}]}}
    run = spoken(folder, tmp_path, data=str(tmp_path / "arm.zarr"), validation=0.0, train=patterns)
    data, model, windows = prepared(run)
    numbers = np.arange(len(windows))
    seen = windows.batch(numbers).observation
    wanted, _ = model.words([data.first.instruction(index) for index in windows.windows.batch(numbers).episode.tolist()])
    assert torch.equal(seen.instruction, wanted) and bool(seen.present["instruction"].all())
    assert len(seen.instruction.unique(dim=0)) == 2, "push and pull"
    windows.config = replace(windows.config, instruction_dropout=0.4)
    kept = windows.batch(np.zeros(400, int), torch.Generator().manual_seed(0)).observation.present["instruction"]
    assert 0.5 < kept.float().mean() < 0.7


def test_members_of_a_mixture_keep_their_instructions_and_those_without_have_none(folder, tmp_path):
    store_of(tmp_path / "arm.zarr")
    with uwm_data.EpisodeStore.open(store_of(tmp_path / "mute.zarr", episodes=0), write=True) as store:
        rows = {"front": np.zeros((9, 32, 32, 3), np.uint8), "proprio": np.zeros((9, 2), "f4"), "action": np.zeros((8, 2), "f4")}
        for _ in range(3):
            store.append(rows, {"seed": 0})
    members = [{"name": name, "data": str(tmp_path / f"{name}.zarr")} for name in ("arm", "mute")]
    patterns = {"objective": {"draws": 1, "patterns": [{"weight": 1.0, "video": "absent"}]}}
    run = spoken(folder, tmp_path, mixture={"members": members}, train=patterns, instruction_dropout=0.0)
    _, _, windows = prepared(run)
    seen = windows.batch(next(windows.batches(12, 0, 0)), torch.Generator().manual_seed(0)).observation
    there = seen.present["instruction"]
    assert 0 < there.sum() < 12 and bool((seen.instruction.norm(dim=1) > 0.9).eq(there).all())
    with pytest.raises(ConfigError, match="no episode has an instruction"):
        TrainingData(spoken(folder, tmp_path, data=str(tmp_path / "mute.zarr")))


def test_collected_episodes_tell_what_each_of_them_asked_for(checkpoint):
    with uwm_data.EpisodeStore.open(checkpoint.parent / "toy.zarr") as store:
        told = [store.meta(index)["instruction"] for index in store.episodes]
    env = uwm_envs.make("ToyColours", image_size=32)
    assert told == [env.reset(seed=seed)[1]["instruction"] for seed in range(4)]


def test_a_resumed_training_minds_how_often_it_goes_without(checkpoint):
    about = training.load_model(checkpoint)[1]["config"]
    with pytest.raises(ConfigError, match="instruction_dropout"):
        training.train(from_mapping(training.TrainRun, {**about, "instruction_dropout": 0.5, "train": {**about["train"], "steps": 3}}))


# ---- acting ----------------------------------------------------------------------------------------------------------


heard = []  # what any of them was told for a plan


class Noting(Policy):
    """A policy that keeps what it was told."""

    def act(self, memory, observation):
        self.told = observation.instruction
        return super().act(memory, observation)

    def plan(self, memory, observation, *rest):
        heard.append(observation.instruction)
        return super().plan(memory, observation, *rest)


def test_a_rollout_does_what_the_world_asks_or_what_it_is_told(checkpoint):
    model, _ = training.load_model(checkpoint)
    policy, env = Noting(model, POLICY), uwm_envs.make("ToyColours", image_size=32, max_steps=4)
    own = env.reset(seed=3)[1]["instruction"]
    for given, wanted in ((None, own), ("go to the black disc", "go to the black disc")):
        evaluate.rollout(env, policy, 3, instruction=given)
        assert torch.equal(policy.told, model.words([wanted])[0])
    evaluate.rollout(env, policy, 3, instruction="")
    assert policy.told is None
    deaf = Noting(tiny.model(cameras=("agentview",), video_frames=()), POLICY)
    evaluate.rollout(env, deaf, 3)
    assert deaf.told is None, "what a world asks for is no error to a model without language"
    with pytest.raises(ValueError, match="trained without language"):
        evaluate.rollout(env, deaf, 3, instruction="go")


def test_an_evaluation_and_a_control_run_say_what_to_do(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_worker", {})
    told = {"checkpoint": str(checkpoint), "world": {"name": "ToyColours", "cameras": ["agentview"], "image_size": 32, "max_steps": 4}}
    run = from_mapping(EvalRun, {**told, "policy": {"rows": 4, "chunk": 2, "chunks": 2}, "rollouts": 1, "instruction": "go"})
    build._enter_worker(run)
    assert build._roll_one(0, False).ticks <= 4
    recorded, model = tmp_path / "acted.zarr", training.load_model(checkpoint)[0]
    monkeypatch.setattr(brains, "Policy", Noting)
    monkeypatch.setattr(acting, "Monitor", Imagining)
    env = uwm_envs.make("ToyColours", cameras=("agentview",), image_size=32, max_steps=4)
    for given in ("reach the black target", None):
        heard.clear()
        run = run_of(
            checkpoint, world=told["world"], instruction=given, record=str(recorded), duration_s=1.0, force=True,
            monitor=str(tmp_path / "acted.rrd"),
        )  # fmt: skip
        found = control.drive(run, VirtualClock(), SLOW)
        asked = {given} if given else {env.reset(seed=each["seed"])[1]["instruction"] for each in found["episodes"]}
        assert len(found["episodes"]) > 1 and {tuple(each[0].tolist()) for each in heard if each is not None} == {
            tuple(vector.tolist()) for vector in model.words(sorted(asked))[0]
        }, "each episode does what its world asks for"
        assert {prompt for prompt, _ in Imagining.asked} == asked, "and imagines it"
    with uwm_data.EpisodeStore.open(recorded) as store:
        assert {store.meta(index)["instruction"] for index in store.episodes} == {"reach the black target", *asked}


def test_a_run_that_cannot_be_understood_does_not_begin(tmp_path):
    env = uwm_envs.make("Toy", cameras=(), image_size=32)
    deaf = tiny.trained(tmp_path, env.unwrapped.card, 2)
    world = {"cameras": [], "image_size": 32}
    with pytest.raises(ConfigError, match=r"control.instruction='go': the policy was trained without language"):
        control.drive(run_of(deaf, world=world, instruction="go"), VirtualClock(), SLOW)
    run = from_mapping(EvalRun, {"checkpoint": str(deaf), "world": {"name": "Toy", **world}, "instruction": "go"})
    with pytest.raises(ValueError, match="trained without language"):
        build.roll_out(run)


def test_a_server_takes_openpis_prompt(checkpoint):
    served = serve.load(serve.ServeRun(str(checkpoint), POLICY))
    serve.warm_up(served)
    request = {"observation/image": np.zeros((32, 32, 3), np.uint8), "observation/state": np.zeros(2, np.float32)}

    def answer(**prompt):
        return Session(served).answer({**request, **prompt})["actions"]

    assert served.about["language"] == "minilm"
    assert not np.array_equal(answer(prompt="go to the black disc"), answer(prompt="push"))
    assert np.array_equal(answer(prompt="push"), answer(prompt=" push"))
    assert np.array_equal(answer(prompt=""), answer())
    for wrong in (7, "x" * 1001):
        with pytest.raises(RequestError, match="'prompt' must be a text of at most 1000 letters"):
            answer(prompt=wrong)
    deaf = Session(policies.streaming())
    assert deaf.answer({**policies.observation(), "prompt": "go"})["actions"].shape == (2, 2)


def test_a_language_model_that_lost_its_encoder_still_acts_without_words(checkpoint):
    model, _ = training.load_model(checkpoint)
    model.words.config = replace(model.words.config, path="/nowhere")
    env = uwm_envs.make("ToyColours", image_size=32, max_steps=2)
    evaluate.rollout(env, Policy(model, POLICY), 0, instruction="")
    with pytest.raises(ValueError, match="no sentence encoder in /nowhere"):
        evaluate.rollout(env, Policy(model, POLICY), 0)
    assert model.config.language == LanguageConfig("minilm", model.config.language.path, 16, model.config.language.fingerprint)
