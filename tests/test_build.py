"""The runs as a user starts them, on the toy world with a tiny model: collect, train, eval, demo, and what they refuse."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import uwm_data
from uwm import build, cli
from uwm.learn import checkpoint as checkpoints
from uwm.learn.logs import Log

TRAINING = ["model=tiny", "autoencoder.steps=2", "train.steps=4", "train.batch=4", "train.save_every=2"]
TRAINING += ["logger=off", "train.precision=float32"]
PUSHT = Path(__file__).parents[1] / "datasets" / "pusht_state"
POLICY = ["policy.rows=4", "policy.chunk=2", "policy.chunks=4"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Six demonstrations of the toy world, made by the command."""
    path = tmp_path_factory.mktemp("data") / "toy.zarr"
    assert cli.main(["collect", "world=toy", f"out={path}", "episodes=6", "workers=2"]) == 0
    return path


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    """A folder with a model of four steps on them."""
    out = tmp_path_factory.mktemp("trained")
    assert cli.main(["train", f"data={store}", f"out={out}", *TRAINING]) == 0
    return out


def refusal(capfd, *arguments):
    """The one line that a refused command prints."""
    assert cli.main(list(map(str, arguments))) in (1, 2)
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("uwm: error:")]
    assert len(told) == 1
    return told[0]


# ---------------------------------------------------------------------------------------------------------------- collect


def test_a_collected_store_is_whole_and_knows_what_it_holds(store):
    with uwm_data.EpisodeStore.open(store) as opened:
        assert [opened.meta(index)["seed"] for index in opened.episodes] == list(range(6))
        assert opened.card["env"] == "Toy" and opened.card["expert"] == {"noise": 0.08, "strategy": "random"}
        assert set(opened.streams) == {"agentview", "wrist", "proprio", "action", "action_intended"}
    assert cli.main(["data", "check", str(store)]) == 0


def test_a_second_collection_adds_only_what_is_missing(store, tmp_path, capfd):
    out = tmp_path / "toy.zarr"
    for episodes in (2, 3, 3):
        assert cli.main(["collect", "world=toy", f"out={out}", f"episodes={episodes}", "workers=1"]) == 0
    assert "already holds 3 episodes" in capfd.readouterr().out
    with uwm_data.EpisodeStore.open(out) as continued, uwm_data.EpisodeStore.open(store) as straight:
        for index in range(3):
            for name in straight.streams:
                np.testing.assert_array_equal(continued.read(index, name), straight.read(index, name))


def test_a_store_of_another_world_is_not_continued(store, capfd):
    told = refusal(capfd, "collect", "world=toy", "world.image_size=16", f"out={store}", "episodes=7")
    assert "store of another world" in told and "image_size is 32 there and 16 here" in told


def test_a_full_disk_ends_collecting_and_keeps_whole_episodes(tmp_path, monkeypatch, capfd):
    append, done = uwm_data.EpisodeStore.append, []

    def full(self, *values):
        if len(done) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append(append(self, *values))

    monkeypatch.setattr(uwm_data.EpisodeStore, "append", full)
    told = refusal(capfd, "collect", "world=toy", f"out={tmp_path / 'toy.zarr'}", "episodes=4", "workers=1")
    assert "the disk is full" in told
    with uwm_data.EpisodeStore.open(tmp_path / "toy.zarr") as kept:
        assert len(kept) == 2


def test_ctrl_c_while_collecting_is_one_line_and_the_same_command_goes_on(tmp_path):
    """In a terminal every process of the group gets the signal; only the parent may speak."""
    out = tmp_path / "toy.zarr"
    command = [sys.executable, "-m", "uwm.cli", "collect", "world=toy", f"out={out}", "episodes=100000", "workers=2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not _episodes(out):
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "nothing lost" in told and "Traceback" not in told
    kept = _episodes(out)
    assert kept > 0 and cli.main(["collect", "world=toy", f"out={out}", f"episodes={kept + 2}", "workers=1"]) == 0
    assert _episodes(out) == kept + 2


def _episodes(path):
    if not (path / "zarr.json").exists():
        return 0
    with uwm_data.EpisodeStore.open(path) as store:
        return len(store)


# ------------------------------------------------------------------------------------------------------------------ train


def test_a_trained_folder_says_what_it_was_trained_on_and_a_second_run_reuses_it(store, trained, capfd):
    about = checkpoints.describe(trained / "model")
    assert about["step"] == 4 and about["card"]["env"] == "Toy" and about["card"]["data"] == str(store)
    assert cli.main(["train", f"data={store}", f"out={trained}", *TRAINING]) == 0
    assert "is trained (4 steps)" in capfd.readouterr().out


def test_ctrl_c_in_training_keeps_the_step_and_resuming_equals_straight_through(store, trained, tmp_path, monkeypatch, capfd):
    step, train = Log.step, ["train", f"data={store}", f"out={tmp_path}", *TRAINING]

    def interrupted(self, number, figures):
        if self.stage == "train" and number == 3:
            raise KeyboardInterrupt
        step(self, number, figures)

    with monkeypatch.context() as patched:
        patched.setattr(Log, "step", interrupted)
        assert cli.main(train) == 130
    assert "nothing lost" in capfd.readouterr().err and checkpoints.describe(tmp_path / "model")["step"] == 3
    assert cli.main(train) == 0
    assert "resuming" in capfd.readouterr().out
    resumed, straight = (checkpoints.load(folder / "model", for_training=True) for folder in (tmp_path, trained))
    for part in ("weights", "average", "optimiser"):
        torch.testing.assert_close(getattr(resumed, part), getattr(straight, part), rtol=0, atol=0)


def test_a_finished_run_goes_on_behind_a_restart_as_if_it_had_never_ended(store, trained, tmp_path, capfd):
    shutil.copytree(trained, tmp_path / "on")
    longer = ["train", f"data={store}", *TRAINING, "train.steps=7", "train.optim.restarts=[4]"]
    for out in ("on", "straight"):
        assert cli.main([*longer, f"out={tmp_path / out}"]) == 0
    assert "resuming" in capfd.readouterr().out
    on, straight = (checkpoints.load(tmp_path / out / "model", for_training=True) for out in ("on", "straight"))
    for part in ("weights", "average", "optimiser"):
        torch.testing.assert_close(getattr(on, part), getattr(straight, part), rtol=0, atol=0)
    assert "a finished run goes on with" in refusal(capfd, "train", f"data={store}", f"out={trained}", *TRAINING, "train.steps=7")


def test_finetuning_begins_with_a_checkpoint_and_its_normalisers(store, trained, tmp_path, capfd):
    begin, tune = str(trained / "model"), ["train", f"data={store}", f"out={tmp_path}", *TRAINING]
    assert cli.main([*tune, f"init={begin}", "train.optim.rate=0.0"]) == 0, "with a rate of 0 nothing changes"
    before, after = (checkpoints.load(folder / "model").average for folder in (trained, tmp_path))
    torch.testing.assert_close(after, before)
    assert checkpoints.describe(tmp_path / "model")["config"]["init"] == begin
    assert "trained with other settings (init, train)" in refusal(capfd, *tune)
    assert "init=" in (told := refusal(capfd, *tune, f"out={tmp_path / 'other'}", f"init={begin}", "model.horizon=6")) and "horizon" in told
    assert "not with others" in refusal(capfd, *tune, f"init={begin}", f"distil.teacher={begin}")


def test_other_settings_or_other_data_are_not_mixed_into_a_run(store, trained, tmp_path, capfd):
    told = refusal(capfd, "train", f"data={store}", f"out={trained}", *TRAINING, "train.optim.rate=0.5")
    assert "trained with other settings (train)" in told
    assert cli.main(["collect", "world=toy", f"out={tmp_path / 'other.zarr'}", "episodes=4", "seed=50", "workers=1"]) == 0
    told = refusal(capfd, "train", f"data={tmp_path / 'other.zarr'}", f"out={trained}", *TRAINING)
    assert "was trained on other data" in told


def test_a_store_without_cameras_trains_a_policy_and_refuses_video(tmp_path, capfd):
    data = tmp_path / "blind.zarr"
    assert cli.main(["collect", "world=toy", "world.cameras=[]", f"out={data}", "episodes=3", "workers=1"]) == 0
    train = ["train", f"data={data}", f"out={tmp_path}", *TRAINING]
    assert "has no cameras, so there is no video to learn" in refusal(capfd, *train)
    assert cli.main([*train, "model.video_frames=[]", "patterns@train.objective.patterns=actions"]) == 0


def test_a_policy_of_push_t_s_states_is_trained_on_the_committed_episodes_and_acts(tmp_path, capfd):
    states = ["streams.proprio=[state]", "model.video_frames=[]", "patterns@train.objective.patterns=actions"]
    assert cli.main(["train", f"data={PUSHT}", f"out={tmp_path}", *states, *TRAINING]) == 0
    evaluated = ["eval", f"checkpoint={tmp_path / 'model'}", *POLICY, "rollouts=1", "workers=1", "world.max_steps=6"]
    assert cli.main([*evaluated, "world=pusht-state"]) == 0
    assert "proprio.names: trained with ['pusher_x', 'pusher_y', 'block_x'" in refusal(capfd, *evaluated, "world=pusht")
    assert "Door can be felt as a whole (proprio: state), not Toy" in refusal(capfd, *evaluated, "world=toy", "+world.proprio=state")


def test_actions_and_frames_in_one_buffer_are_trained_by_a_config_and_tell_what_is_usual(store, tmp_path, capfd):
    along = ["patterns@train.objective.patterns=frames", "model.horizon=6", "model.video_frames=[3,6]"]
    assert cli.main(["train", f"data={store}", f"out={tmp_path}", *TRAINING, *along]) == 0
    size = ["policy.rows=4", "policy.chunk=3", "policy.chunks=2"]
    evaluated, calls = ["eval", "world=toy", f"checkpoint={tmp_path / 'model'}", *size, "rollouts=1"], []
    for revise in (0.0, 1.0):
        out = tmp_path / f"{revise}.json"
        told = ["policy.frames=true", f"policy.revise={revise}", "policy.usual=[1e-6]", f"out={out}", "workers=1"]
        assert cli.main([*evaluated, *told]) == 0
        figures = json.loads(out.read_text())
        calls.append(figures["calls_per_action"])
        assert len(figures["usual"]) > 1 and min(figures["usual"]) > 0
    assert calls[1] > 1.5 * calls[0], "everything is a surprise, so everything is planned anew"


@pytest.mark.parametrize("name", ["sdp", "chunked", "linear", "independent", "steady"])
def test_the_paper_s_mixtures_of_noise_train(name, store, tmp_path):
    mixture = [f"patterns@train.objective.patterns={name}", "model.video_frames=[]", "train.steps=1"]
    assert cli.main(["train", f"data={store}", f"out={tmp_path}", *TRAINING, *mixture]) == 0


def test_a_mixture_is_a_config_that_trains_explains_itself_and_acts(store, tmp_path, capfd):
    """The shipped one, pointed at the toy world's demonstrations and at its frames alone."""
    members = f"mixture.members=[{{name: toy, data: {store}}}, {{name: film, data: {store}, use_actions: false, weight: 0.5}}]"
    assert cli.main(["explain", "train", "mixture=cotrain", members, "model=tiny"]) == 0
    told = " ".join(capfd.readouterr().out.split())
    assert "toy 66.7 %" in told and "film 33.3 %" in told and "the model ticks at 10 Hz" in told
    assert cli.main(["train", "mixture=cotrain", members, f"out={tmp_path}", *TRAINING, "train.steps=2"]) == 0
    card = checkpoints.describe(tmp_path / "model")["card"]
    assert [pool["dataset"] for pool in card["drawn"]["pools"]] == ["toy", "film"]
    evaluated = ["eval", "world=toy", f"checkpoint={tmp_path / 'model'}", *POLICY, "rollouts=1", "workers=1"]
    assert cli.main(evaluated) == 0
    assert "was trained without actions" in refusal(capfd, *evaluated, "member=film")
    assert "no member 'leg'" in refusal(capfd, *evaluated, "member=leg")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.stepz=4", "did you mean 'steps'"),
        ("train.optim.matrices=sgd", "matrices must be moved by 'muon' or 'adamw'"),
        ("train.precision=float8", "precision must be one of"),
        ("model.path=linear", "path must be one of"),
        ("model.normalise.action=sigmoid", "normaliser of action must be one of"),
        ("streams.cameras=[top]", "unknown stream 'top'"),
        ("declare={action: {mode: absolute}}", "`declare` contradicts the data: action.mode is 'velocity'"),
        ("model.grid=3", "image size must be grid x 2, 4, 8"),
        ("data=nowhere.zarr", "nowhere.zarr"),
    ],
)
def test_settings_that_cannot_be_are_one_line(store, tmp_path, capfd, override, words):
    assert words in refusal(capfd, "train", f"data={store}", f"out={tmp_path}", *TRAINING, override)


# --------------------------------------------------------------------------------------------------------------- evaluate


def test_rollouts_repeat_and_their_figures_are_written(trained, tmp_path, capfd):
    arguments = ["eval", "world=toy", f"checkpoint={trained / 'model'}", *POLICY, "rollouts=3", f"out={tmp_path / 'eval.json'}"]
    figures = []
    for workers in (1, 2):
        assert cli.main([*arguments, f"workers={workers}"]) == 0
        figures.append(json.loads((tmp_path / "eval.json").read_text()))
    latency = [each.pop("latency_ms") for each in figures]
    assert figures[0] == figures[1], "the same seeds give the same rollouts, whatever the number of processes"
    assert figures[0]["seeds"] == [100_000, 100_001, 100_002] and set(latency[0]) == {"p50", "p95", "p99"}
    assert '"success"' in capfd.readouterr().out


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("world.cameras=[agentview]", "cameras ['wrist'] are missing"),
        ("world.image_size=16", "image_size: trained with 32, got 16"),
        ("policy.chunks=9", "the model was trained on"),
        ("policy.kind=lazy", "policy kind must be 'streaming' or 'chunked'"),
        ("checkpoint=nowhere", "nowhere is no checkpoint folder"),
        ("world.name=Tay", "did you mean 'Toy'"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_line(trained, capfd, override, words):
    assert words in refusal(capfd, "eval", "world=toy", f"checkpoint={trained / 'model'}", *POLICY, "rollouts=1", override)


def test_a_policy_of_one_camera_acts_in_a_world_that_has_no_other(trained, capfd):
    told = ["eval", "world=toy", "world.cameras=[wrist]", f"checkpoint={trained / 'model'}", *POLICY, "rollouts=1", "workers=1"]
    assert "policy.cameras=[wrist] acts without them" in refusal(capfd, *told)
    assert cli.main([*told, "policy.cameras=[wrist]"]) == 0


def test_a_damaged_checkpoint_is_one_line(trained, tmp_path, capfd):
    for file in (trained / "model").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 200 if file.name == "average.safetensors" else None])
    assert "weights are missing or damaged" in refusal(capfd, "eval", "world=toy", f"checkpoint={tmp_path}", *POLICY)


# ------------------------------------------------------------------------------------------------------------------- demo


def test_the_demo_leaves_its_report_and_a_second_run_reuses_every_stage(tmp_path, capfd):
    arguments = ["demo", f"out={tmp_path}", "rollouts=2", "windows=6", "rows=4", *POLICY, "world@collect.world=toy", "collect.episodes=8"]
    arguments += ["collect.workers=1", "model@train.model=tiny", "train.validation=0.3", *[f"train.{each}" for each in TRAINING[1:]]]
    assert cli.main(arguments) == 1, "a model of four steps cannot reach the gates"
    first = json.loads((tmp_path / "report.json").read_text())
    for kind in ("streaming", "chunked"):
        assert 0 <= first[kind]["success"] <= 1 and first[kind]["calls_per_action"] > 0 and first[kind]["latency_ms"]["p50"] > 0
    assert first["inverse"]["relative_error"] > 0 and first["forward"]["relative_error"] > 0
    assert first["rollouts"] == 2 and first["seconds"] > 0
    page = (tmp_path / "report.html").read_text()
    assert "data:image" in page and "http" not in page.replace("http://www.w3.org", "")
    capfd.readouterr()
    assert cli.main(arguments) == 1
    told = capfd.readouterr().out
    for words in ("already holds 8 episodes", "is trained (4 steps)", "streaming: finished before", "modes: finished before"):
        assert words in told
    again = json.loads((tmp_path / "report.json").read_text())
    assert again["streaming"] == first["streaming"] and again["seconds"] > first["seconds"]


def test_a_checkpoint_acts_without_its_training_run(trained):
    """`load_model` needs the folder alone: what a control node has."""
    model, card = build.load_model(trained / "model")
    assert card["step"] == 4 and model.config.cameras == ("agentview", "wrist") and not model.training


def test_a_checkpoint_explains_itself_and_films_its_buffer(trained, tmp_path, capfd):
    films = ["explain", "eval", "world=toy", f"checkpoint={trained / 'model'}", *POLICY, "--rollout"]
    assert cli.main([*films, str(tmp_path / "film.mp4")]) == 0
    told = capfd.readouterr().out
    assert "Streaming, 4 chunks of 2 actions" in told and "film.mp4: seed 100000" in told
    assert (tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"
    assert "an .mp4 file" in refusal(capfd, *films, tmp_path / "film.gif")
    assert "films a trained policy" in refusal(capfd, "explain", "train", "--rollout", tmp_path / "film.mp4")


@pytest.mark.parametrize("size", ["tiny", "small", "uwm-libero", "sdp-state"])
def test_every_model_config_explains_itself_without_a_store(size, tmp_path, capfd):
    assert cli.main(["explain", "train", f"model={size}", f"data={tmp_path / 'none.zarr'}"]) == 0
    assert "tokens; observed tokens are block 0" in capfd.readouterr().out
