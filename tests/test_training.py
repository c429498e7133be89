"""Training from any data: mixtures of different robots and rates, action-free video, other formats; what a checkpoint tells of it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import foreign
import uwm_data
from uwm import training
from uwm.core.config import ConfigError, from_mapping
from uwm.core.patterns import DEMONSTRATED, Pattern
from uwm.data import TrainingData
from uwm.dataset import resized
from uwm.learn import checkpoint as checkpoints
from uwm.learn.checkpoint import CheckpointError, refuse_mismatch
from uwm.learn.logs import Log, read
from uwm.learn.loop import generator_at
from uwm.learn.objective import ObjectiveConfig, loss
from uwm.nn.model import UnifiedModel
from uwm.nn.robot_model import Observation
from uwm.robot.policy import Policy, PolicyConfig
from uwm.runs import TrainRun
from uwm_data import EpisodeStore, StreamSpec, conversion

ACTION = {"convention": "displacement per tick", "mode": "delta", "frame": "world", "gripper": "none"}
SMALL = {
    "logger": "off", "validation": 0.3,
    "model": {
        "past": 1, "horizon": 4, "video_frames": [2, 4], "grid": 2, "latent": 2, "latent_channels": 8,
        "backbone": {"width": 16, "depth": 1, "heads": 2, "ratio": 2, "registers": 2, "waist": 8},
    },
    "autoencoder": {"steps": 1, "batch": 4},
    "train": {
        "steps": 4, "batch": 6, "save_every": 2, "precision": "float32",
        "objective": {"draws": 2, "patterns": [
            {"weight": 0.4, "action": "ladder", "video": "absent", "chunk": 2}, {"weight": 0.4}, {"weight": 0.2, "video": "given"}]},
    },
}  # fmt: skip
POLICY = PolicyConfig(rows=2, chunk=2, chunks=2, past=1)


def run_of(out, **changes):
    """The run of a config of this shape, on top of the small settings."""
    whole = json.loads(json.dumps(SMALL))
    for key, value in changes.items():
        whole[key] = {**whole.get(key, {}), **value} if isinstance(value, dict) else value
    return from_mapping(TrainRun, {"out": str(out), **whole})


def store_of(path, rate=10.0, side=32, action=2, state=2, cameras=("front",), episodes=4, ticks=9, card=None, seed=0, optional=False):
    """A store of smooth video, random states, and actions that are multiples of 0.1 (with a gripper's sign as third number)."""
    names, units = ("x", "y", "gripper", "z", "w")[:action], ("m",) * action
    streams = {camera: StreamSpec((side, side, 3), "uint8", rate, "video") for camera in cameras}
    streams |= {"proprio": StreamSpec((state,), "float32", rate, "state", names=tuple("abcdefg"[:state]))} if state else {}
    streams |= {"action": StreamSpec((action,), "float32", rate, "action", units, names, optional=optional)} if action else {}
    told = {"env": "Toy", "robot": "arm", "image_orientation": "upright", "rate_hz": rate, "image_size": side}
    told |= {"action": {**ACTION, "names": list(names), "units": list(units)}} if action else {}
    random = np.random.default_rng(seed)
    with EpisodeStore.create(path, streams, {**told, **(card or {})}) as store:
        for index in range(episodes):
            length = ticks + index
            arrays = {camera: foreign.smooth_video(random, length + 1, side, side) for camera in cameras}
            if state:
                arrays["proprio"] = random.normal(size=(length + 1, state)).astype("f4")
            if action:
                arrays["action"] = random.integers(-9, 9, (0 if optional and index == 0 else length, action)).astype("f4") / 10
            store.append(arrays, {"task": ("push", "pull")[index % 2], "seed": index})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three datasets: a small arm at 10 Hz, another at 20 Hz with a gripper and other cameras, and a film of people."""
    folder = tmp_path_factory.mktemp("mixture")
    store_of(folder / "arm.zarr", cameras=("agentview", "wrist"))
    store_of(folder / "hand.zarr", rate=20.0, side=48, action=3, state=4, cameras=("front",), ticks=15, seed=1,
             card={"action": {**ACTION, "names": ["x", "y", "gripper"], "units": ["m"] * 3, "gripper": "-1 opens, +1 closes"}})  # fmt: skip
    store_of(folder / "film.zarr", rate=5.0, side=24, action=0, state=0, cameras=("phone",), ticks=8, seed=2, card={"robot": "unknown"})
    return folder


def members(folder, **changes):
    """The mixture of the three, as a config has it."""
    given = [
        {"name": "arm", "data": str(folder / "arm.zarr"), "weight": 2.0},
        {"name": "hand", "data": str(folder / "hand.zarr"), "streams": {"cameras": {"agentview": "front"}}},
        {"name": "film", "data": str(folder / "film.zarr"), "streams": {"cameras": {"agentview": "phone"}}, "use_actions": False},
    ]
    return {"members": [{**each, **changes.get(each["name"], {})} for each in given], **changes.get("mixture", {})}


@pytest.fixture(scope="module")
def cotrained(folder):
    """A folder with a model of four steps on the mixture, and its run."""
    run = run_of(folder / "run", mixture=members(folder))
    training.train(run)
    return run


def prepared(run):
    """Data, a model with fitted normalisers and random weights, and the windows of a run."""
    data = TrainingData(run)
    torch.manual_seed(0)
    model = UnifiedModel(data.model_config())
    training._fit(model, data)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return data, model.eval(), data.windows(model)


# ---------------------------------------------------------------------------------------------------------------- mixture


def test_a_mixture_trains_and_its_checkpoint_tells_members_split_statistics_and_what_was_drawn(cotrained, folder):
    about = checkpoints.describe(folder / "run" / "model")
    card = about["card"]
    assert about["step"] == 4 and set(card["members"]) == {"arm", "hand", "film"}
    drawn = {pool["dataset"]: pool["samples"] for pool in card["drawn"]["pools"]}
    assert card["drawn"]["steps"] == 4 and sum(drawn.values()) == 4 * 6
    assert all(abs(drawn[name] - wanted) <= 1 for name, wanted in (("arm", 12), ("hand", 6), ("film", 6)))
    for name, member in card["members"].items():
        store = EpisodeStore.open(folder / f"{name}.zarr")
        assert sorted(member["split"]["training"] + member["split"]["held_out"]) == store.episodes
        assert member["data_checksum"] == store.checksum_of(member["split"]["training"])
        assert member["image_orientation"] == "upright" and member["rate_hz"] == 10
    assert card["members"]["hand"]["streams"]["cameras"] == {"agentview": "front"}
    assert card["members"]["film"]["acts"] is False and "action" not in card["members"]["film"]["statistics"]
    assert card["data_checksum"] == card["members"]["arm"]["data_checksum"] and card["model"]["action_size"] == 3
    assert card["drawn"]["share_with_actions"] == (drawn["arm"] + drawn["hand"]) / 24
    figures = read(folder / "run")[-1]
    assert figures["share arm"] == pytest.approx(0.5) and figures["share with actions"] == pytest.approx(0.75, abs=0.1)


def train_until(step, run, monkeypatch):
    """Trains until somebody presses Ctrl-C at this step."""
    goes_on = Log.step

    def interrupted(self, number, figures):
        if self.stage == "train" and number == step:
            raise KeyboardInterrupt
        goes_on(self, number, figures)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Log, "step", interrupted)
        training.train(run)


def test_a_stopped_mixture_goes_on_exactly(cotrained, folder, tmp_path, monkeypatch):
    run = replace(cotrained, out=str(tmp_path))
    train_until(3, run, monkeypatch)
    assert checkpoints.describe(tmp_path / "model")["step"] == 3
    training.train(run)
    resumed, straight = (checkpoints.load(path / "model", for_training=True) for path in (tmp_path, folder / "run"))
    for part in ("weights", "average", "optimiser"):
        torch.testing.assert_close(getattr(resumed, part), getattr(straight, part), rtol=0, atol=0)
    assert resumed.card["drawn"] == straight.card["drawn"]


def test_members_keep_their_own_normalisers_and_each_can_act(cotrained, folder):
    path = folder / "run" / "model"
    for name, size, state in (("arm", 2, 2), ("hand", 3, 4)):
        model, card = training.load_model(path, name)
        found = card["statistics"]["action"]
        torch.testing.assert_close(model.normalise_action.mean, torch.tensor(found["mean"]))
        assert model.normalise_action.size == size and model.normalise_proprio.size == state
        observation = training.held_out(path, member=name)[1].batch(np.arange(2)).observation
        own = replace(observation, proprio=torch.randn(2, state), normalised=False)
        policy = Policy(model, POLICY)
        memory, actions = policy.act(policy.start([0, 1]), own)
        assert actions.shape == (2, 2, size)
        policy.act(policy.done(memory, actions), own)
    assert training.load_model(path)[0].normalise_action.size == 2, "by default the first member with actions"
    with pytest.raises(ValueError, match="no member 'leg'; it has \\['arm', 'hand', 'film'\\]"):
        training.load_model(path, "leg")


def test_numbers_that_a_robot_does_not_have_never_reach_the_model(folder):
    """Neither what stands in padded dimensions of actions nor the noise drawn for them moves a prediction."""
    _, model, _ = prepared(run_of(folder / "x", mixture=members(folder)))
    model.act_as("arm")
    observation = replace(training_observation(model), proprio=torch.zeros(2, 2))
    prefix, layout = model.encode(observation), model.layout.select(["action"])
    x, level = torch.randn(2, layout.tokens, layout.size), torch.full((2, layout.tokens), 0.5)
    other = x.clone()
    other[..., 2:] = torch.nan
    role = torch.ones(2, layout.tokens, dtype=torch.int8)
    assert torch.equal(*(model(each, level, role, layout, prefix)[..., :2] for each in (x, other)))


def training_observation(model, count=2):
    side = model.config.autoencoder.image_size
    images = {camera: torch.rand(count, 3, side, side) for camera in model.config.cameras}
    return Observation(images, torch.randn(count, model.config.proprio_size))


def test_content_of_absent_slots_changes_no_loss_and_no_gradient(folder):
    _, model, windows = prepared(run_of(folder / "x", mixture=members(folder)))
    batch = windows.batch(windows.mixture.draw(0, 12))
    assert batch.dims.any(dim=1).sum() == 9 and batch.dims[:6].tolist() == [[True, True, False]] * 6
    assert batch.has["action"].tolist() == [True] * 9 + [False] * 3
    spoilt = batch.clean.clone()
    action = model.layout.span("action")
    spoilt[:, action, :3] = torch.where(batch.dims[:, None], spoilt[:, action, :3], torch.nan)
    spoilt = torch.where(batch.valid[..., None], spoilt, torch.nan)
    intended = torch.where(batch.dims[:, None] & batch.valid[:, action, None], batch.intended, torch.nan)
    unseen = {name: image.clone() for name, image in batch.observation.images.items()}
    for name, image in unseen.items():
        image[~batch.observation.present[name]] = torch.nan
    other = replace(batch, clean=spoilt, intended=intended, observation=replace(batch.observation, images=unseen))
    config, found = ObjectiveConfig(draws=3, patterns=(Pattern(0.5), Pattern(0.5, "ladder", "absent", 2))), []
    for given in (batch, other):
        model.zero_grad()
        total, _ = loss(model, given, config, generator_at(0, 0))
        total.backward()
        found.append((total.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    assert torch.isfinite(found[0][0])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_a_batch_without_any_robot_trains_without_nan(folder):
    _, model, windows = prepared(run_of(folder / "x", mixture=members(folder)))
    batch = windows.members["film"].batch(np.arange(4))
    config = ObjectiveConfig(draws=4, patterns=(Pattern(0.9, "ladder", "absent"), Pattern(0.1)))
    total, figures = loss(model, batch, config, generator_at(0, 0))
    total.backward()
    assert torch.isfinite(total) and figures["action"] == 0 and figures["agentview"] > 0, "every sample drew the one pattern with video"
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_actions_and_frames_of_a_member_at_another_rate_are_those_of_the_models_ticks(folder):
    """20 Hz to 10 Hz: two deltas are added, the gripper is the second of the two, frames are every second one."""
    data, model, windows = prepared(run_of(folder / "x", mixture=members(folder)))
    hand, member = windows.members["hand"], data.datasets[1]
    own, store = model.members[1].action, member.store
    place, tick = (int(part[0]) for part in hand.windows.locate(np.array([5])))
    episode = int(hand.windows.episodes[place])
    actions = store.read(episode, "action")
    wanted = np.stack([np.append(actions[t : t + 2, :2].sum(0), actions[t + 1, 2]) for t in range(tick - 2, tick + 8, 2)])
    batch = hand.batch(np.array([5]))
    torch.testing.assert_close(own.restore(batch.clean[0, :5, :3]), torch.from_numpy(wanted), rtol=1e-5, atol=1e-6)
    frames = hand.future_frames(np.array([5]))["agentview"][0]
    still = store.read(episode, "front", [tick + 4, tick + 8])
    again = torch.nn.functional.interpolate(torch.from_numpy(still).permute(0, 3, 1, 2).float(), (64, 64), mode="bilinear") / 255
    torch.testing.assert_close(frames, again, atol=0.51 / 255, rtol=0)
    spread = np.concatenate([store.read(i, "action")[:-1, :2] + store.read(i, "action")[1:, :2] for i in member.training])
    np.testing.assert_allclose(data.statistics["hand"]["action"]["std"][:2], spread.std(0), rtol=1e-5)


def test_every_window_of_a_member_is_drawn_once_an_epoch(folder):
    _, _, windows = prepared(run_of(folder / "x", mixture=members(folder)))
    count = len(windows.members["film"])
    drawn = np.concatenate([windows.mixture.draw(step, 8).windows["film"] for step in range(count)])[:count]
    assert sorted(drawn.tolist()) == list(range(count))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mixture": {"rate_hz": 10.0}, "hand": {"streams": {"cameras": {"agentview": "top"}}}}, "unknown stream 'top'"),
        ({"hand": {"declare": {"image_orientation": "upside down"}}}, "`declare` contradicts the data: image_orientation is 'upright'"),
        ({"mixture": {"normaliser": "shared"}}, "action.gripper is 'none' in"),
        ({"mixture": {"by": "task", "tasks": {"pour": 1.0}}}, "weights for unknown tasks ['pour']"),
        ({"mixture": {"by": "luck"}}, "a mixture is drawn by dataset, task, balanced, proportional"),
    ],
)
def test_members_that_do_not_fit_are_refused_by_name(folder, changes, words):
    with pytest.raises(ValueError) as refused:
        prepared(run_of(folder / "x", mixture=members(folder, **changes)))
    assert words in str(refused.value)


def test_what_a_member_does_not_tell_has_to_be_declared_where_it_matters(folder, tmp_path):
    told = {"action": {"names": ["x", "y"], "units": ["m", "m"], "mode": "unknown"}, "image_orientation": "unknown"}
    store_of(tmp_path / "odd.zarr", rate=20.0, cameras=("agentview",), card=told)
    odd = {"data": str(tmp_path / "odd.zarr"), "streams": {}}
    with pytest.raises(ConfigError, match=r"odd.zarr does not tell its image_orientation, .*: declare it"):
        prepared(run_of(tmp_path, mixture=members(folder, hand=odd)))
    odd["declare"] = {"image_orientation": "upright"}
    with pytest.raises(ValueError, match=r"odd.zarr \(20 Hz, the model 10 Hz\): actions of mode 'unknown' cannot"):
        prepared(run_of(tmp_path, mixture=members(folder, hand=odd)))
    odd["declare"] |= {"action.mode": "absolute"}
    data, _, _ = prepared(run_of(tmp_path, mixture=members(folder, hand=odd)))
    assert data.datasets[1].card["action"]["mode"] == "absolute" and data.datasets[1].card["action"]["names"] == ["x", "y"]


def test_members_may_share_a_normaliser(folder, tmp_path):
    store_of(tmp_path / "twin.zarr", cameras=("agentview", "wrist"), seed=9)
    twin = {"data": str(tmp_path / "twin.zarr"), "streams": {}}
    data, model, _ = prepared(run_of(tmp_path, mixture=members(folder, hand=twin, mixture={"normaliser": "shared"})))
    both = np.concatenate([each.store.read(i, "action") for each in data.datasets[:2] for i in each.training])
    for own in model.members[:2]:
        np.testing.assert_allclose(own.action.mean.numpy(), both.mean(0), rtol=1e-4)


# ------------------------------------------------------------------------------------------------------------ single data


def test_a_store_may_be_two_members_few_episodes_with_actions_and_all_as_video(folder, tmp_path):
    store_of(tmp_path / "arm.zarr", episodes=10)
    twice = [{"name": name, "data": str(tmp_path / "arm.zarr")} for name in ("robot", "film")]
    twice = [{**twice[0], "episodes": 0.3}, {**twice[1], "use_actions": False}]
    robot, film = TrainingData(run_of(tmp_path / "run", mixture={"members": twice, "normaliser": "shared"})).datasets
    assert len(robot.training) == 2 and set(robot.training) < set(film.training) and len(film.training) == 7
    assert robot.held_out == film.held_out and film.action is None, "nothing that is held out is seen as video"
    with pytest.raises(ConfigError, match=r"episodes of robot is a share of its training episodes, in \(0, 1\], got 0"):
        run_of(tmp_path, mixture={"members": [{**twice[0], "episodes": 0.0}]})


def test_training_drops_cameras_but_never_the_last_one_of_a_sample(tmp_path):
    cameras = ("front", "side", "wrist")
    streams = {name: StreamSpec((32, 32, 3), "uint8", 10, "video", optional=name == "wrist") for name in cameras}
    streams |= {"action": StreamSpec((2,), "float32", 10, "action")}
    with EpisodeStore.create(tmp_path / "s.zarr", streams, {"image_orientation": "upright", "image_size": 32}) as store:
        for episode in range(2):  # the first has no wrist
            lengths = {name: 0 if name == "wrist" and episode == 0 else 301 for name in cameras}
            frames = {name: np.zeros((length, 32, 32, 3), np.uint8) for name, length in lengths.items()}
            store.append({**frames, "action": np.zeros((300, 2), "f4")})
    changes = {"validation": 0.0, "streams": {"cameras": list(cameras), "proprio": [], "action": "action"}}

    def seen(dropout):
        _, _, windows = prepared(run_of(tmp_path, data=str(tmp_path / "s.zarr"), camera_dropout=dropout, **changes))
        present = windows.batch(np.arange(600), torch.Generator().manual_seed(0)).observation.present
        return torch.stack([present[name] for name in cameras]).float()

    kept = seen(1.0)
    assert bool((kept.sum(0) == 1).all()) and not kept[2, :300].any(), "a camera that is not there is not the one that stays"
    assert 80 < kept[0, 300:].sum() < 120 and 125 < kept[0, :300].sum() < 175, "the one that stays is any of them"
    half = seen(0.5)
    assert half.sum(0).min() == 1 and (half[:, 300:].sum(0) == 3).float().mean() == pytest.approx(1 / 8, abs=0.06)
    assert bool((seen(0.0)[:, 300:] == 1).all())
    with pytest.raises(ConfigError, match=r"are shares of the samples, in \[0, 1\], got 1.5 and 0.1"):
        run_of(tmp_path, camera_dropout=1.5)


def test_latents_that_do_not_fit_into_memory_are_encoded_afresh_and_are_the_same(folder):
    kept, fresh = (prepared(run_of(folder / "x", data=str(folder / "arm.zarr"), cache_gb=size))[2] for size in (1.0, 0.0))
    fresh.model = kept.model
    fresh.codec.autoencoder = kept.model.autoencoder
    numbers = np.arange(len(kept))
    one, other = kept.batch(numbers), fresh.batch(numbers)
    torch.testing.assert_close(one.clean, other.clean, rtol=1e-4, atol=1e-5)
    assert torch.equal(one.valid, other.valid)


def test_a_film_without_actions_trains_video_and_refuses_a_policys_patterns(folder, tmp_path):
    film = {"data": str(folder / "film.zarr"), "image_size": 32}
    acting = {"objective": {"draws": 1, "patterns": [{"action": "ladder", "video": "absent"}, {"video": "given"}]}}
    with pytest.raises(ConfigError, match=r"has no actions for the model, .*patterns@train.objective.patterns=video"):
        training.train(run_of(tmp_path, **film, train=acting))
    watching = {"steps": 2, "objective": {"draws": 1, "patterns": [{"action": "absent", "video": "constant"}]}}
    path = training.train(run_of(tmp_path, **film, train={**SMALL["train"], **watching}))
    model, card = training.load_model(path)
    assert model.config.autoencoder.image_size == 32 and card["acts"] is False
    with pytest.raises(CheckpointError, match="was trained without actions"):
        refuse_mismatch(card, {"cameras": ["phone"]})


def test_episodes_that_lack_their_actions_teach_video_only(tmp_path):
    store_of(tmp_path / "some.zarr", optional=True, episodes=5)
    data, model, windows = prepared(run_of(tmp_path, data=str(tmp_path / "some.zarr"), validation=0.0))
    (own,) = data.datasets
    batch = windows.batch(np.arange(len(windows)))
    lacking = windows.windows.locate(np.arange(len(windows)))[0] == 0
    assert torch.equal(batch.has["action"], torch.from_numpy(~lacking)) and not batch.valid[lacking][:, model.layout.span("action")].any()
    assert data.statistics["data"]["action"]["count"] == sum(own.store.length(i, "action") for i in own.training)


@pytest.mark.parametrize("history", [[], [1]])
def test_what_will_be_felt_is_its_change_since_now_and_ends_with_the_episode(tmp_path, history):
    store_of(tmp_path / "arm.zarr", state=3, episodes=3, cameras=())
    shape = {"video_frames": [], "state_frames": [1, 4], "history": history}
    data, model, windows = prepared(run_of(tmp_path, data=str(tmp_path / "arm.zarr"), validation=0.0, model=SMALL["model"] | shape))
    batch, span = windows.batch(np.arange(len(windows))), model.layout.span("state")
    place, tick = windows.windows.locate(np.arange(len(windows)))
    for index in range(len(windows)):
        states = data.datasets[0].store.read(int(windows.windows.episodes[place[index]]), "proprio")
        for token, ahead in enumerate((1, 4)):
            there = tick[index] + ahead < len(states)
            assert bool(batch.valid[index, span][token]) == there
            felt = model.to_proprio(batch.observation.proprio[index, None], batch.clean[index, span][None, :, :3])[0, token]
            wanted = states[min(tick[index] + ahead, len(states) - 1)]
            torch.testing.assert_close(felt, torch.from_numpy(wanted), rtol=1e-5, atol=1e-5)
    foresee = (Pattern(action="film", state="outcome"),)
    total, figures = loss(model, batch, ObjectiveConfig(2, patterns=foresee), generator_at(0, 0))
    assert torch.isfinite(total) and figures["state"] > 0


def test_members_that_feel_nothing_teach_no_state(tmp_path):
    for name, state in (("arm", 2), ("film", 0)):
        store_of(tmp_path / f"{name}.zarr", state=state)
    both = [{"name": name, "data": str(tmp_path / f"{name}.zarr")} for name in ("arm", "film")]
    run = run_of(tmp_path, mixture={"members": both}, model=SMALL["model"] | {"state_frames": [1, 2]})
    _, model, windows = prepared(run)
    batch = windows.batch(windows.mixture.draw(0, 12))
    feels = batch.valid[:, model.layout.span("state")].any(dim=1)
    assert set(feels.tolist()) == {True, False} and torch.equal(batch.has["state"], feels | batch.has["state"])
    assert not batch.has["state"][~feels].any()
    total, _ = loss(model, batch, ObjectiveConfig(1, patterns=(Pattern(), Pattern(action="film", state="outcome"))), generator_at(0, 0))
    assert torch.isfinite(total)


def test_a_student_begins_with_its_teachers_weights_and_must_be_of_its_kind(folder, tmp_path):
    data = str(folder / "arm.zarr")
    taught = training.train(run_of(tmp_path / "teacher", data=data))
    run = run_of(tmp_path / "student", data=data, distil={"teacher": str(taught), "rows": 4}, train={"steps": 1, "optim": {"rate": 1e-9}})
    learned = training.train(run)
    teacher, student = (training.load_model(each)[0].state_dict() for each in (taught, learned))
    torch.testing.assert_close(student, teacher, rtol=1e-4, atol=1e-5)
    policy = Policy(training.load_model(learned)[0], replace(POLICY, kind="chunked", rows=1, step="consistency"))
    _, actions = policy.act(policy.start([0]), Observation({"front": torch.zeros(1, 3, 32, 32)}, torch.zeros(1, 2)))
    assert bool(torch.isfinite(actions).all()) and policy.calls == 1
    other = run_of(tmp_path / "other", data=data, distil={"teacher": str(taught)}, model=SMALL["model"] | {"past": 0})
    with pytest.raises(ConfigError, match="is another model: past is 1 there and 0 here"):
        training.train(other)


def test_the_split_is_seeded_by_episode_and_statistics_see_training_episodes_only(folder, tmp_path):
    run = run_of(tmp_path, data=str(folder / "arm.zarr"))
    data = TrainingData(run)
    (own,) = data.datasets
    assert (own.training, own.held_out) == uwm_data.split_episodes(own.store, 0.3, 0) and own.held_out
    told = uwm_data.statistics(own.store, ["action", "proprio"], own.training)
    assert data.statistics == {"data": told}
    training.train(run)
    card = checkpoints.describe(tmp_path / "model")["card"]
    assert card["split"] == {"training": own.training, "held_out": own.held_out} and card["statistics"] == json.loads(json.dumps(told))


@pytest.mark.parametrize(("has", "precision", "told"), [(False, "bfloat16", 1), (False, "float32", 0), (True, "bfloat16", 0)])
def test_bfloat16_on_a_processor_without_it_is_told(folder, tmp_path, monkeypatch, capsys, has, precision, told):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has})
    training.train(run_of(tmp_path, data=str(folder / "arm.zarr"), train={"precision": precision, "steps": 1}))
    assert capsys.readouterr().out.count("no instructions for bfloat16; train.precision=auto") == told


@pytest.mark.parametrize("kind", ["min-max", "quantile"])
def test_the_normaliser_is_a_setting_and_travels_with_the_checkpoint(folder, tmp_path, kind):
    normalise = {**SMALL["model"], "normalise": {"action": kind}}
    run = run_of(tmp_path, data=str(folder / "arm.zarr"), model=normalise, train={**SMALL["train"], "steps": 1})
    model, card = training.load_model(training.train(run))
    assert card["normalise"] == {"action": kind, "proprio": "mean-std"}
    found = card["statistics"]["action"]
    ends = ("min", "max") if kind == "min-max" else ("q01", "q99")
    for end, value in zip(ends, (-1.0, 1.0), strict=True):
        np.testing.assert_allclose(model.normalise_action.normalise(torch.tensor(found[end])).numpy(), value, atol=1e-5)


def test_held_out_windows_of_other_data_are_refused_by_field_or_taken_whole(folder, cotrained, tmp_path):
    path = training.train(run_of(tmp_path, data=str(folder / "arm.zarr"), train={**SMALL["train"], "steps": 1}))
    store_of(tmp_path / "same.zarr", cameras=("agentview", "wrist"), seed=5)
    windows = training.held_out(path, tmp_path / "same.zarr")[1]
    assert windows.windows.episodes.tolist() == [0, 1, 2, 3], "none of them was trained on"
    assert training.held_out(path, folder / "arm.zarr")[1].windows.episodes.tolist() == training.held_out(path)[1].windows.episodes.tolist()
    path_gone = tmp_path / "gone.zarr"
    store_of(path_gone, cameras=("agentview", "wrist"), seed=6)
    moved = training.train(run_of(tmp_path / "moved", data=str(path_gone), train={**SMALL["train"], "steps": 1}))
    shutil.rmtree(path_gone)
    store_of(path_gone, cameras=("agentview", "wrist"), seed=7)
    with pytest.raises(ConfigError, match=r"gone.zarr no longer holds the episodes that .* was trained on"):
        training.held_out(moved)
    store_of(tmp_path / "flipped.zarr", cameras=("agentview", "wrist"), card={"image_orientation": "upside down", "robot": "leg"})
    with pytest.raises(ConfigError) as refused:
        training.held_out(path, tmp_path / "flipped.zarr")
    assert "image_orientation is 'upright'" in str(refused.value) and "robot is 'arm'" in str(refused.value)
    # Frames and actions are the same; what they mean is not.
    with pytest.raises(ConfigError, match=r"trained on other data .*robot is 'arm' in"):
        training.train(run_of(tmp_path, data=str(tmp_path / "flipped.zarr"), train={**SMALL["train"], "steps": 1}))


def test_a_checkpoint_and_a_world_are_compared_field_by_field(folder, cotrained):
    card = training.load_model(folder / "run" / "model")[1]
    world = {"cameras": ["agentview", "wrist"], "robot": "arm", "rate_hz": 10, "image_size": 64, "image_orientation": "upright"}
    refuse_mismatch(card, {**world, "action": {**ACTION, "convention": "the same in other words"}})
    with pytest.raises(CheckpointError) as refused:
        refuse_mismatch(card, {**world, "rate_hz": 20, "action": {**ACTION, "mode": "absolute", "gripper": "1 opens, 0 closes"}})
    for words in ("rate_hz: trained with 10", "action.mode: trained with 'delta', got 'absolute'", "action.gripper: trained with 'none'"):
        assert words in str(refused.value)


# -------------------------------------------------------------------------------------------------------- other formats


@pytest.fixture(scope="module")
def hdf5(tmp_path_factory):
    """Three episodes as robomimic keeps them, cameras of two sizes."""
    folder = tmp_path_factory.mktemp("foreign")
    with EpisodeStore.create(folder / "s.zarr", foreign.STREAMS, foreign.CARD) as store:
        for seed in range(3):
            store.append(*foreign.episode(9 + seed, seed))
    conversion.convert(folder / "s.zarr", folder / "can.hdf5", to="robomimic", workers=0)
    return folder / "can.hdf5"


def test_a_file_of_another_format_trains_straight_away_and_is_converted_once(hdf5, tmp_path, capfd):
    run = run_of(tmp_path, data=str(hdf5), only_success=False, train={**SMALL["train"], "steps": 1})
    model, card = training.load_model(training.train(run))
    assert model.config.cameras == ("front", "wrist") and model.config.autoencoder.image_size == 64
    assert (model.config.action_size, model.config.proprio_size) == (2, 3)
    assert card["image_orientation"] == "upright" and card["action"]["mode"] == "delta" and card["data"] == str(hdf5)
    (store,) = (tmp_path / "data").glob("can-*.zarr")
    before = (store / "episodes.jsonl").stat().st_mtime_ns
    capfd.readouterr()
    training.train(run)
    told = capfd.readouterr().out
    assert "already complete" in told and "is trained (1 steps)" in told
    assert (store / "episodes.jsonl").stat().st_mtime_ns == before and len(list((tmp_path / "data").glob("*.zarr"))) == 1


def test_failed_episodes_teach_what_follows_from_actions_and_are_not_imitated(tmp_path):
    with EpisodeStore.create(tmp_path / "s.zarr", foreign.STREAMS, foreign.CARD) as store:
        for seed in range(9):
            store.append(*foreign.episode(9, seed))
    data = {"data": str(tmp_path / "s.zarr"), "validation": 0.2}
    alone, both = (TrainingData(run_of(tmp_path, **data, failures_teach=choice)) for choice in (False, True))
    lost = both.first.failed
    assert set(both.first.training) - set(alone.first.training) == lost and lost and lost <= {2, 5, 8}
    assert not alone.first.failed and both.first.held_out == alone.first.held_out
    _, model, windows = prepared(both.run)
    batch = windows.batch(np.arange(len(windows)))
    place, _ = windows.windows.locate(np.arange(len(windows)))
    failed = torch.from_numpy(np.isin(windows.windows.episodes[place], list(lost)))
    assert torch.equal(batch.has[DEMONSTRATED], ~failed) and 0 < int(failed.sum()) < len(failed)
    assert DEMONSTRATED not in prepared(alone.run)[2].batch(np.arange(4)).has
    # their actions, whatever they are, do not reach the loss of a policy: under forward dynamics they are given
    policy, forward = Pattern(1.0, "ladder", "absent", chunk=2), Pattern(1.0, "given")
    found = loss(model, batch, ObjectiveConfig(1, patterns=(policy, forward)), generator_at(0, 0))[1]
    batch.intended[failed] = 1e3
    assert loss(model, batch, ObjectiveConfig(1, patterns=(policy, forward)), generator_at(0, 0))[1] == found
    with pytest.raises(ValueError, match="what is not to be imitated needs a pattern"):
        loss(model, batch, ObjectiveConfig(1, patterns=(policy,)), generator_at(0, 0))


def test_streams_of_the_data_are_chosen_and_renamed_by_config(hdf5, tmp_path):
    chosen = {"streams": {"cameras": {"agentview": "wrist"}, "proprio": []}, "image_size": 32}
    data = TrainingData(run_of(tmp_path, data=str(hdf5), only_success=False, **chosen))
    config = data.model_config()
    assert config.cameras == ("agentview",) and config.autoencoder.image_size == 32
    _, _, windows = prepared(data.run)
    batch = windows.batch(np.arange(3))
    assert batch.observation.images["agentview"].shape == (3, 3, 32, 32) and not batch.observation.present["proprio"].any()


def test_what_is_no_dataset_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(uwm_data.StoreError, match=r"notes.txt is not a dataset that is known here"):
        training.train(run_of(tmp_path, data=str(tmp_path / "notes.txt")))


def test_cameras_slower_than_the_actions_give_the_newest_frame_at_each_tick_and_wide_numbers_become_float32(tmp_path):
    streams = {
        "front": StreamSpec((32, 32, 3), "uint8", 10, "video"),
        "arm": StreamSpec((2,), "float64", 20, "state"),
        "hand": StreamSpec((1,), "float64", 5, "state", closing=False),
        "action": StreamSpec((2,), "float64", 20, "action"),
    }
    random, frames = np.random.default_rng(0), np.zeros((11, 32, 32, 3), np.uint8)
    frames += np.arange(11, dtype=np.uint8)[:, None, None, None] * 10  # frame k is 10 k everywhere
    with EpisodeStore.create(tmp_path / "s.zarr", streams, {"image_orientation": "upright", "image_size": 32}) as store:
        for _ in range(2):
            arm, hand, action = (random.normal(size=(count, size)) for count, size in ((21, 2), (5, 1), (20, 2)))
            store.append({"front": frames, "arm": arm, "hand": hand, "action": action})
    data, model, windows = prepared(run_of(tmp_path, data=str(tmp_path / "s.zarr"), validation=0.0))
    numbers = np.arange(20)
    batch, shown = windows.batch(numbers), windows.future_frames(numbers)["front"][:, :, 0, 0, 0] * 25.5
    now = batch.observation.images["front"][:, 0, 0, 0] * 25.5
    assert now.round().tolist() == [tick // 2 for tick in range(20)]
    assert shown.round().tolist() == [[min((tick + ahead) // 2, 10) for ahead in (2, 4)] for tick in range(20)]
    first, own = model.layout.span("front"), data.datasets[0]
    assert batch.valid[:, first].reshape(20, 2, -1)[..., 0].tolist() == [[tick + ahead <= 21 for ahead in (2, 4)] for tick in range(20)]
    assert batch.observation.proprio.dtype == batch.clean.dtype == torch.float32
    hands = own.store.read(0, "hand")[:, 0].astype("f4")
    assert batch.observation.proprio[:, 2].tolist() == [hands[tick // 4] for tick in range(20)]
    assert model.normalise_proprio.mean[2] == pytest.approx(np.concatenate([own.store.read(i, "hand") for i in (0, 1)]).mean())


def test_resizing_averages_where_it_shrinks_and_leaves_alone_what_fits():
    frames = torch.randint(0, 256, (2, 3, 48, 64, 3), dtype=torch.uint8)
    assert torch.equal(resized(frames[..., :48, :], 48), frames[..., :48, :])
    small = resized(frames, 16)
    assert small.shape == (2, 3, 16, 16, 3) and small.dtype == torch.uint8
    assert float(small.float().std()) < 0.5 * float(frames.float().std()), "no pixel is simply picked"
    even = torch.full((1, 40, 30, 3), 77, dtype=torch.uint8)
    assert torch.equal(resized(even, 32), torch.full((1, 32, 32, 3), 77, dtype=torch.uint8))


def test_odd_dimensions_are_told_when_a_normaliser_is_fitted(tmp_path, capfd):
    streams = {"proprio": StreamSpec((3,), "float32", 10, "state"), "action": StreamSpec((2,), "float32", 10, "action")}
    random = np.random.default_rng(0)
    with EpisodeStore.create(tmp_path / "s.zarr", streams, {"image_orientation": "none"}) as store:
        for _ in range(2):
            state = np.stack([random.normal(size=401), np.full(401, 0.3), 1000 + 0.03 * random.uniform(size=401)], axis=1)
            action = np.stack([random.normal(size=400), np.where(np.arange(400) < 2, 1.0, -1.0)], axis=1)
            store.append({"proprio": state.astype("f4"), "action": action.astype("f4")})
    patterns = {"draws": 1, "patterns": [{"action": "constant", "video": "absent"}]}
    blind = {"model": {**SMALL["model"], "video_frames": []}, "train": {**SMALL["train"], "steps": 1, "objective": patterns}}
    model, _ = training.load_model(training.train(run_of(tmp_path, data=str(tmp_path / "s.zarr"), **blind)))
    told = capfd.readouterr().out
    for words in ("proprio of data, dimension 1 never changes", "proprio of data, dimension 2 changes by little more than float32",
                  "action of data, dimension 1 has ends far beyond"):  # fmt: skip
        assert f"note: {words}" in told
    assert model.normalise_proprio.scale[1] == 1 and model.config.cameras == ()
