"""Earlier observations beside the present one: in the network, in training windows, in every loop that acts, and never across episodes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import policies
import tiny
import uwm_envs
from oracle import unchecked_shapes
from test_robot_controller import PERIOD_S, STREAMING, Counting, Numbered, Watching, drive
from test_training import SMALL, members, prepared, run_of, store_of
from uwm import training
from uwm.core import roles
from uwm.core.config import from_mapping, to_mapping
from uwm.data import TrainingData
from uwm.learn.augment import AugmentConfig
from uwm.nn import trunks
from uwm.nn.robot_model import ModelConfig, Observation
from uwm.nn.unet import UNetSizes
from uwm.robot import evaluate as evaluation
from uwm.robot.chunking import ChunkingConfig
from uwm.robot.clock import VirtualClock
from uwm.robot.controller import Controller
from uwm.robot.history import History, observe
from uwm.robot.inference import VirtualWorker
from uwm.robot.policy import Policy, PolicyCard, PolicyConfig
from uwm.robot.session import Schema, Served, Session
from uwm_data import EpisodeStore, StreamSpec, clamp_frames

CONFIG = PolicyConfig(rows=8, chunk=2, chunks=4, past=2)


def made(trunk, history=(1, 3)):
    """A transformer or a U-Net that looks back."""
    net = tiny.model(history=history, video_frames=())
    if trunk == "unet":
        torch.manual_seed(0)
        net = trunks.make(replace(net.config, trunk="unet", unet=UNetSizes((16, 32), 16, 8), prediction="clean")).eval()
    return net


def asked(net, observation):
    layout, count = net.layout, len(observation.proprio)
    x = torch.randn(1, layout.tokens, layout.size, generator=torch.Generator().manual_seed(1)).expand(count, -1, -1)
    with torch.no_grad():
        return net(x, torch.full(x.shape[:2], 0.5), roles.full(count, layout.tokens), layout, net.encode(observation))


def one_of(observation, index):
    """One sample of a batch."""
    part = slice(index, index + 1)
    return replace(
        observation, images={n: v[part] for n, v in observation.images.items()}, proprio=observation.proprio[part],
        present={n: v[part] for n, v in observation.present.items()}, earlier=tuple(one_of(each, index) for each in observation.earlier),
    )  # fmt: skip


def seen_at(tick, side=32):
    """What an environment would show, as a dict of arrays."""
    random = np.random.default_rng(tick)
    frames = {name: random.integers(0, 256, (side, side, 3), dtype=np.uint8) for name in tiny.CAMERAS}
    return {**frames, "proprio": random.normal(size=2).astype(np.float32)}


# ---- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trunk", ["transformer", "unet"])
def test_what_was_seen_counts_with_its_tick_and_what_is_absent_does_not(trunk):
    net = made(trunk)
    observation = tiny.observation(2, 0, net.config)
    out, (first, second) = asked(net, observation), observation.earlier
    assert not torch.allclose(out, asked(net, replace(observation, earlier=(first, first))), atol=1e-4)
    assert not torch.allclose(out, asked(net, replace(observation, earlier=(second, first))), atol=1e-4), "which was when matters"
    nothing = dict.fromkeys((*tiny.CAMERAS, "proprio"), torch.zeros(2, dtype=torch.bool))
    spoilt = {name: torch.full_like(image, torch.nan) for name, image in first.images.items()}
    gone = replace(first, images=spoilt, proprio=torch.full((2, 2), 99.0), present=nothing)
    torch.testing.assert_close(asked(net, replace(observation, earlier=(gone, gone))), asked(net, replace(observation, earlier=())))
    half = {name: torch.tensor([True, False]) for name in nothing}
    mixed = asked(net, replace(observation, earlier=(replace(first, present=half), replace(second, present=half))))
    torch.testing.assert_close(mixed[0], out[0])
    torch.testing.assert_close(mixed[1], asked(net, replace(observation, earlier=()))[1])


def test_a_model_without_a_history_has_the_same_weights_and_an_old_card_makes_it():
    plain, looking = tiny.model(), tiny.model(history=(1,))
    assert plain.state_dict().keys() == looking.state_dict().keys()
    present = replace(tiny.observation(2, 0, looking.config), earlier=())
    assert torch.equal(asked(plain, present), asked(looking, present))
    old = {name: value for name, value in to_mapping(plain.config).items() if name != "history"}
    assert from_mapping(ModelConfig, old, "card") == plain.config


@pytest.mark.parametrize("history", [(0,), (-1,), (1, 1), (2, 1)])
def test_ticks_that_are_none_of_the_past_or_stand_twice_are_refused(history):
    with pytest.raises(ValueError, match=r"how many ticks ago, 1 or more, each once"):
        tiny.model(history=history)


def test_a_history_of_another_shape_is_refused():
    net = made("transformer")
    observation = tiny.observation(2, 0, net.config)
    first, second = observation.earlier
    for wrong in ((first,), (first, one_of(second, 0)), (first, replace(second, earlier=(first, second)))):
        with pytest.raises(ValueError, match=r"looks back \[1, 3\] ticks: `earlier` holds an observation of 2 samples for each"):
            net.encode(replace(observation, earlier=wrong))
    with unchecked_shapes(), pytest.raises(ValueError, match=r"proprio must be \(B, 2\), got \(2, 3\)"):
        net.encode(replace(observation, earlier=(first, Observation(second.images, torch.zeros(2, 3)))))


def test_a_history_that_reaches_further_than_the_buffer_is_refused():
    assert Policy(made("transformer", (8,)), CONFIG).card.history == (8,)
    with pytest.raises(ValueError, match="looks back 9 ticks, further than the 8 actions of the buffer"):
        Policy(made("transformer", (9,)), CONFIG)


# ---- keeping what was seen -------------------------------------------------------------------------------------------


def test_a_history_knows_what_was_seen_when_as_training_windows_do():
    history, ticks = History.reaching((1, 3)), (0, 1, 2, 3)
    for tick in range(6):
        history = history.add({"proprio": np.array([float(tick)])})
        wanted, real = clamp_frames(tick - np.array(ticks), tick + 1)
        found = history.earlier(ticks)
        assert [bool(each) for each in found] == real.tolist()
        assert [each["proprio"][0] for each in found if each] == wanted[real].tolist()
    later = history.missed(2).add({"proprio": np.array([8.0])})
    assert [float(each["proprio"][0]) if each else None for each in later.earlier(ticks)] == [8, None, None, 5]
    assert not any(history.missed(99).add({}).earlier(ticks))
    for wrong in ((4,), (-1,)):
        with pytest.raises(ValueError, match="reaches back 0 to 3 ticks"):
            history.earlier(wrong)


@pytest.mark.parametrize("trunk", ["transformer", "unet"])
def test_a_batch_in_which_episodes_begin_at_their_own_times_is_what_each_is_alone(trunk):
    """The second environment begins anew at tick 2: nothing of its first episode may be known then, and nothing else may change."""
    policy = Policy(made(trunk), replace(CONFIG, rows=4))
    look = lambda histories: observe(  # noqa: E731
        [each.seen[-1] for each in histories], policy.cameras, [each.earlier(policy.history) for each in histories]
    )
    begin = History.reaching(policy.history)
    memory, histories, sent = policy.start([1, 2]), [begin, begin], []
    for tick in range(4):
        if tick == 2:
            memory, histories = memory.reset(torch.tensor([False, True]), torch.tensor([0, 7])), [histories[0], begin]
        histories = [history.add(seen_at(10 * index + tick)) for index, history in enumerate(histories)]
        memory, actions = policy.act(memory, look(histories))
        memory = policy.done(memory, actions)
        histories = [history.missed(1) for history in histories]  # a chunk is two ticks
        sent.append(actions)
    for index, seed, first in ((0, 1, 0), (1, 7, 2)):
        memory, history = policy.start([seed]), begin
        for tick in range(first, 4):
            history = history.add(seen_at(10 * index + tick))
            memory, actions = policy.act(memory, look([history]))
            torch.testing.assert_close(actions[0], sent[tick][index], rtol=1e-4, atol=1e-4)
            memory, history = policy.done(memory, actions), history.missed(1)


# ---- training windows ------------------------------------------------------------------------------------------------


def looking_back(history, **changes):
    return {"model": SMALL["model"] | {"history": history}, **changes}


def test_windows_hold_what_the_episode_was_like_at_those_ticks_and_nothing_before_its_start(tmp_path):
    store_of(tmp_path / "arm.zarr", episodes=3)
    data, _, windows = prepared(run_of(tmp_path, data=str(tmp_path / "arm.zarr"), validation=0.0, **looking_back([1, 3])))
    batch, store = windows.batch(np.arange(len(windows))), data.first.store
    place, ticks = windows.windows.locate(np.arange(len(windows)))
    for index, tick in enumerate(ticks.tolist()):
        episode = int(windows.windows.episodes[place[index]])
        states, frames = store.read(episode, "proprio"), store.read(episode, "front")
        for ago, earlier in zip((1, 3), batch.observation.earlier, strict=True):
            assert [bool(earlier.present[name][index]) for name in ("front", "proprio")] == [tick >= ago] * 2
            if tick >= ago:
                assert torch.equal(earlier.proprio[index], torch.from_numpy(states[tick - ago]))
                image = (earlier.images["front"][index] * 255).round().byte().movedim(0, -1)
                assert torch.equal(image, torch.from_numpy(frames[tick - ago]))
    assert all(there.all() for there in batch.observation.present.values())


def test_all_times_of_a_sample_are_augmented_alike_and_an_earlier_one_is_sometimes_forgotten(tmp_path):
    streams = {"front": StreamSpec((32, 32, 3), "uint8", 10, "video"), "action": StreamSpec((2,), "float32", 10, "action")}
    random = np.random.default_rng(0)
    with EpisodeStore.create(tmp_path / "s.zarr", streams, {"image_orientation": "upright", "image_size": 32}) as store:
        still = random.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8).repeat(41, axis=0)
        store.append({"front": still, "action": random.normal(size=(40, 2)).astype("f4")})
    changes = looking_back([2], augment={"shift": 3, "brightness": 0.3}, camera_dropout=0.3, validation=0.0)
    _, _, windows = prepared(run_of(tmp_path, data=str(tmp_path / "s.zarr"), **changes))
    observation = windows.batch(np.arange(40), torch.Generator().manual_seed(0)).observation
    (earlier,), there = observation.earlier, observation.present["front"]
    assert torch.equal(observation.images["front"], earlier.images["front"]) and windows.config.augment != AugmentConfig()
    assert len({float(image.mean()) for image in earlier.images["front"]}) == 40, "every sample has a draw of its own"
    assert not (earlier.present["front"] & ~there).any(), "a camera is dropped at all times of a sample"
    forgotten = there[2:] & ~earlier.present["front"][2:]
    assert 0 < int(forgotten.sum()) < 20 and not earlier.present["front"][:2].any()


def test_members_of_a_mixture_look_back_as_many_ticks_of_the_model(tmp_path):
    """20 Hz to 10 Hz: one tick ago is two frames ago; and a model that looks back learns, is saved and acts."""
    store_of(tmp_path / "arm.zarr", cameras=("agentview", "wrist"))
    store_of(tmp_path / "hand.zarr", rate=20.0, side=48, action=2, state=4, cameras=("front",), ticks=15, seed=1)
    store_of(tmp_path / "film.zarr", rate=5.0, side=24, action=0, state=0, cameras=("phone",), ticks=8, seed=2, card={"robot": "unknown"})
    run = run_of(tmp_path / "run", mixture=members(tmp_path), **looking_back([1]))
    data, model, windows = prepared(run)
    hand, own = windows.members["hand"], model.members[1].proprio
    place, ticks = hand.windows.locate(np.arange(12))
    (earlier,) = hand.batch(np.arange(12)).observation.earlier
    states = data.datasets[1].store.read(int(hand.windows.episodes[place[0]]), "proprio")
    assert earlier.present["proprio"].tolist() == [tick >= 2 for tick in ticks.tolist()]
    torch.testing.assert_close(own.restore(earlier.proprio[2:]), torch.from_numpy(states[ticks[2:] - 2]), rtol=1e-4, atol=1e-5)
    batch = windows.batch(windows.mixture.draw(0, 12))
    (earlier,) = batch.observation.earlier
    assert earlier.images["wrist"].shape == (12, 3, 64, 64) and not earlier.present["wrist"][6:].any()
    training.train(run)
    net, _ = training.load_model(run.out + "/model")
    assert net.config.history == (1,)
    policy = Policy(net, PolicyConfig(rows=2, chunk=2, chunks=2, past=1))
    assert torch.isfinite(policy.act(policy.start([0]), tiny.observation(1, 0, replace(net.config, proprio_size=2)))[1]).all()
    assert TrainingData(run).model_config().history == (1,)


# ---- loops that act --------------------------------------------------------------------------------------------------


class Noting(Policy):
    """A policy that keeps the observations it was given."""

    def act(self, memory, observation):
        self.given = [*getattr(self, "given", []), observation]
        return super().act(memory, observation)


def test_a_rollout_shows_what_its_own_episode_saw_at_those_ticks():
    env, told = uwm_envs.make("Toy", cameras=tiny.CAMERAS, image_size=32, max_steps=8), []
    reset, step = env.reset, env.step
    env.reset = lambda **seed: (told.clear(), reset(**seed), told.append(None))[1]
    env.step = lambda action: (found := step(action), told.append(found[0]["proprio"].copy()))[0]
    policy = Noting(tiny.model(history=(1, 3)), CONFIG)
    first = evaluation.rollout(env, policy, seed=5)
    seen, policy.given = policy.given, []
    for call, observation in enumerate(seen):
        for ago, earlier in zip((1, 3), observation.earlier, strict=True):
            tick = 2 * call - ago
            assert earlier.present.get("proprio", torch.ones(1))[0] == (tick >= 0)
            assert tick < 1 or earlier.proprio[0].tolist() == told[tick].tolist()
    again = evaluation.rollout(env, policy, seed=5)
    assert again.ticks == first.ticks > 4 and not policy.given[0].earlier[0].images
    assert all(torch.equal(one.proprio, two.proprio) for one, two in zip(seen, policy.given, strict=True)), "no trace of the episode before"


def test_without_delay_the_controller_looks_back_as_the_ordinary_rollout_does():
    env, executed = uwm_envs.make("Toy", cameras=tiny.CAMERAS, image_size=32, max_steps=12), []
    step, net = env.step, tiny.model(history=(1, 3))
    env.step = lambda action: (executed.append(np.array(action)), step(action))[1]
    evaluation.rollout(env, Policy(net, STREAMING), seed=5)
    _, ticks, _ = drive("committed", len(executed), config=STREAMING, model=net, delay_ticks=0)
    assert np.array_equal(np.stack([tick.sent for tick in ticks]), np.stack(executed))


def test_a_controllers_jobs_hold_what_was_seen_then_the_last_value_where_one_was_missing_and_nothing_of_missed_periods():
    clock, card = VirtualClock(), PolicyCard(replace(STREAMING, rows=6), 10, (), (1, 3))
    robot, planner, watching = Numbered(clock), Counting(card, "committed"), Watching()
    worker = VirtualWorker(planner, clock, lambda index, generator: 0.0)
    controller = Controller(robot, card, clock, worker, ChunkingConfig(eased=False, delay_ticks=0), [watching])

    def change(readings, index):
        if index == 8:
            clock.moment_s += 3 * PERIOD_S  # periods 9 and 10 are missed
        return {} if index == 3 else readings

    robot.change = change
    statistics = controller.run(16)
    now = {tick.index: float(tick.readings["proprio"].value[0]) for tick in watching.ticks if tick.index != 3} | {3: 2.0}
    jobs = {job.tick: [float(each["proprio"][0]) if each else None for each in job.earlier] for job in planner.seen}
    assert jobs == {tick: [now.get(tick - 1), now.get(tick - 3)] for tick in jobs}
    assert jobs[0] == [None, None] and jobs[4] == [2.0, 1.0] and jobs[11] == [None, 8.0]
    assert statistics.missing["proprio"] == 1 and statistics.missed == 2, "what was missing is counted as before"


# ---- serving ---------------------------------------------------------------------------------------------------------


def served(history):
    return Served(Noting(tiny.model(history=history), CONFIG), Schema(tiny.CAMERAS, 32, 2, 2, 2, history=history))


def shown(served):
    """Of the last request, the first number of the proprioception at every tick of the history, None where it was absent."""
    earlier = served.policy.given[-1].earlier
    return [float(each.proprio[0, 0]) if each.present.get("proprio", torch.ones(1))[0] else None for each in earlier]


def test_a_session_remembers_its_own_requests_a_chunk_of_ticks_apart_and_forgets_them_with_its_episode():
    behind = served((2, 3))
    one, other = Session(behind), Session(behind)
    first = [one.answer(policies.observation(step, 32)) for step in (1, 2)]
    assert shown(behind) == [1.0, None], "two ticks ago was the request before; three ticks ago was none"
    other.answer(policies.observation(7, 32))
    assert shown(behind) == [None, None], "another client's episode"
    with pytest.raises(ValueError):
        one.answer({"observation/state": np.zeros(5)})
    one.answer(policies.observation(3, 32))
    assert shown(behind) == [2.0, None], "a request that was refused is none"
    again = [one.answer({**policies.observation(step, 32), **({"reset": True} if step == 1 else {})}) for step in (1, 2)]
    assert all(np.array_equal(a["actions"], b["actions"]) for a, b in zip(first, again, strict=True))
    one.answer({"reset": True})
    one.answer(policies.observation(4, 32))
    assert shown(behind) == [None, None], "no trace of the episode before"
