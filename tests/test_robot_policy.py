"""Policies in a loop: memory is a value, batches do not matter, calls are counted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

import tiny
import uwm_envs
from uwm.core import roles
from uwm.robot import chunking
from uwm.robot import evaluate as evaluation
from uwm.robot.history import History, observe
from uwm.robot.inference import Job
from uwm.robot.policy import Policy, PolicyConfig
from uwm.sample.denoise import reordered
from uwm.sample.roll import Buffer

CONFIG = PolicyConfig(rows=8, chunk=2, chunks=4, past=2)


@pytest.mark.parametrize("kind", ["streaming", "chunked"])
def test_saving_and_restoring_mid_episode_changes_nothing_bit_for_bit(kind):
    policy = Policy(tiny.model(), replace(CONFIG, kind=kind))
    net = policy.model
    drive = lambda memory, ticks, start: _drive_float(policy, net, memory, ticks, start)  # noqa: E731
    _, straight = drive(policy.start([3]), 5, 0)
    half, _ = drive(policy.start([3]), 2, 0)
    kept = {name: value.clone() for name, value in half.tensors().items()}
    _, rest = drive(Buffer.from_tensors(kept), 3, 2)
    assert torch.equal(rest, straight[2:])


def _drive_float(policy, net, memory, ticks, start):
    sent = []
    for tick in range(start, start + ticks):
        memory, actions = policy.act(memory, tiny.observation(1, tick, net.config))
        sent.append(actions)
        memory = policy.done(memory, actions)
    return memory, torch.stack(sent)


def test_a_warm_chunked_policy_saves_calls_from_the_second_plan_on():
    policy = Policy(tiny.model(), replace(CONFIG, kind="chunked", warm=0.5))
    memory, counts = policy.start([0]), []
    for tick in range(3):
        before = policy.calls
        memory, actions = policy.act(memory, tiny.observation(1, tick, policy.model.config))
        memory = policy.done(memory, actions)
        counts.append(policy.calls - before)
    assert counts == [8, 4, 4] and actions.shape == (1, 2, 2)
    for wrong in ({"warm": 0.5}, {"kind": "chunked", "warm": 0.0}, {"kind": "chunked", "warm": 0.5, "chunks": 1}):
        with pytest.raises(ValueError, match="warm lies in"):
            replace(CONFIG, **wrong)


def test_what_holds_a_robot_still_is_told_in_physical_units():
    policy = Policy(tiny.model(), replace(CONFIG, primer="constant"))
    policy.model.normalise_action.mean.fill_(1.0)
    assert torch.allclose(policy.start([0, 1], torch.ones(2, 2)).past, torch.zeros(2, 2, 2))
    assert torch.allclose(policy.start([0], torch.zeros(1, 2)).past, policy.model.from_actions(torch.zeros(1, 2, 2)))


def test_a_batch_gives_what_single_environments_give():
    policy = Policy(tiny.model(), CONFIG)
    together = [policy.start([1, 2, 3])]
    outputs = []
    for tick in range(3):
        memory, actions = policy.act(together[0], tiny.observation(3, tick, policy.model.config))
        outputs.append(actions)
        together[0] = policy.done(memory, actions)
    for index, seed in enumerate([1, 2, 3]):
        memory = policy.start([seed])
        for tick in range(3):
            given = tiny.observation(3, tick, policy.model.config)
            alone = replace(
                given, images={n: v[index : index + 1] for n, v in given.images.items()}, proprio=given.proprio[index : index + 1]
            )
            memory, actions = policy.act(memory, alone)
            torch.testing.assert_close(actions[0], outputs[tick][index], rtol=1e-4, atol=1e-4)
            memory = policy.done(memory, actions)


def test_streaming_needs_chunks_times_fewer_calls_after_its_start():
    net, calls = tiny.model(), {}
    for kind in ("streaming", "chunked"):
        policy = Policy(net, replace(CONFIG, kind=kind, primer="zero"))
        _drive_float(policy, net, policy.start([0]), 4, 0)
        calls[kind] = policy.calls
    assert calls == {"streaming": 4 * 8 // 4, "chunked": 4 * 8}


def test_a_horizon_that_was_not_trained_is_refused():
    with pytest.raises(ValueError, match="trained on"):
        Policy(tiny.model(), replace(CONFIG, chunks=5))


def test_nan_in_an_observation_is_refused_with_its_place():
    with pytest.raises(ValueError, match=r"proprio.*nan.*\[1\]"):
        History(1).add({"proprio": np.array([0.0, np.nan])})


def test_a_camera_that_some_environments_lack_is_marked():
    frame = np.zeros((32, 32, 3), np.uint8)
    seen = observe([{"proprio": np.zeros(2), "agentview": frame}, {"proprio": np.zeros(2)}], tiny.CAMERAS)
    assert seen.present["agentview"].tolist() == [True, False] and "wrist" not in seen.images


def test_a_policy_of_some_cameras_is_blind_to_the_others():
    policy = Policy(tiny.model(), replace(CONFIG, cameras=("wrist",)))
    env = uwm_envs.make("Toy", cameras=tiny.CAMERAS, image_size=32)
    seen, _ = env.reset(seed=5)
    memory = policy.start([0])
    act = lambda observation: policy.act(memory, observe([observation], policy.cameras))[1]  # noqa: E731
    ours = act(seen)
    assert policy.card.cameras == ("wrist",)
    assert torch.equal(ours, act({**seen, "agentview": 255 - seen["agentview"]})), "it does not look there"
    assert not torch.equal(ours, act({**seen, "wrist": 255 - seen["wrist"]}))
    with pytest.raises(ValueError, match=r"\['phone'\].*'agentview', 'wrist'"):
        Policy(tiny.model(), replace(CONFIG, cameras=("phone",)))


def test_a_rollout_in_the_toy_world_repeats_with_its_seed_and_counts_calls():
    env = uwm_envs.make("Toy", cameras=tiny.CAMERAS, image_size=32)
    policy = Policy(tiny.model(), CONFIG)
    first, second = (evaluation.rollout(env, policy, seed=5, camera="agentview") for _ in range(2))
    assert first.ticks == second.ticks and first.calls == second.calls > 0
    assert all(np.array_equal(a, b) for a, b in zip(first.frames, second.frames, strict=True))


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, kind="chunked")], ids=["streaming", "chunked"])
def test_rollouts_side_by_side_are_those_of_each_alone(config):
    # Ends at different ticks: those that go on must keep their own memory, and calls are those that each would make alone.
    envs = [uwm_envs.make("Toy", cameras=tiny.CAMERAS, image_size=32, max_steps=limit) for limit in (9, 4, 12)]
    policy, seeds = Policy(tiny.model(), config), (5, 6, 7)
    beside = evaluation.together(envs, policy, seeds, watched=True)
    alone = [evaluation.rollout(env, policy, seed, watched=True) for env, seed in zip(envs, seeds, strict=True)]
    assert len({each.ticks for each in alone}) > 1
    for found, expected in zip(beside, alone, strict=True):
        assert (found.seed, found.ticks, found.calls) == (expected.seed, expected.ticks, expected.calls)
        for mine, its in zip(found.moments, expected.moments, strict=True):
            np.testing.assert_allclose(mine.executed, its.executed, atol=1e-4)
            np.testing.assert_allclose(mine.future, its.future, atol=1e-4)
    with pytest.raises(ValueError):
        evaluation.together(envs, policy, seeds[:2])


def test_the_wilson_interval_has_its_known_values():
    low, high = evaluation.wilson(40, 50)
    assert (round(low, 2), round(high, 2)) == (0.67, 0.89)
    assert evaluation.wilson(50, 50)[1] == pytest.approx(1.0)


FRAMES = replace(CONFIG, chunk=4, chunks=2, frames=True)


def test_tokens_in_another_order_are_the_same_tokens():
    net, order = tiny.model(), torch.randperm(tiny.model().layout.tokens, generator=torch.Generator().manual_seed(0))
    x, level = torch.randn(2, len(order), net.layout.size), torch.rand(2, len(order))
    role, prefix = roles.full(2, len(order)), net.encode(tiny.observation(2))
    whole = net(x, level, role, net.layout, prefix)
    turned = reordered(net, order)(x[:, order], level[:, order], role, net.layout, prefix)
    torch.testing.assert_close(turned, whole[:, order])


def test_actions_and_frames_stand_chunk_after_chunk():
    policy = Policy(tiny.model(), FRAMES)
    layout, order = policy._layout(0)
    assert policy.ladder.unit == 4 + 2 * 4 and sorted(order.tolist()) == list(range(layout.tokens))
    frame = layout.frame[order]
    assert frame.tolist() == [-2, -1, 0, 1, 2, 3] + 8 * [4] + [4, 5, 6, 7] + 8 * [8]


def test_a_surprise_costs_calls_and_what_was_foreseen_costs_none():
    counts = {}
    for name, more in {"none": {}, "calm": {"revise": 1.0, "usual": (1e6,)}, "alarmed": {"revise": 1.0, "usual": (1e-9,)}}.items():
        policy = Policy(tiny.model(), replace(FRAMES, primer="zero", **more))
        _, sent = _drive_float(policy, policy.model, policy.start([0]), 4, 0)
        counts[name] = (policy.calls, sent)
    assert counts["none"][0] == 4 * 8 // 2 and torch.equal(counts["none"][1], counts["calm"][1])
    assert counts["alarmed"][0] == 4 + 3 * 8, "all rows again at every tick but the first, which had foreseen nothing"


def test_what_is_seen_is_compared_with_what_was_foreseen():
    policy = Policy(tiny.model(), FRAMES)
    start, seen = policy.start([0, 1]), tiny.observation(2, 5)
    nothing = lambda found: bool(found.isnan().all())  # noqa: E731
    assert nothing(policy.distances(start, seen)) and policy.surprise(start, seen).tolist() == [0.0, 0.0], "nothing was foreseen yet"
    memory, actions = policy.act(start, seen)
    memory = policy.done(memory, actions)
    tokens = torch.cat([policy.model.video.encode(image[:, None]) for image in seen.images.values()], dim=1)
    foreseen = replace(memory, expected=pad(tokens, (0, memory.expected.shape[2] - tokens.shape[2])))
    assert not policy.distances(foreseen, seen).any() and policy.distances(foreseen, seen).shape == (2, 8)
    one = torch.zeros(8)
    one[5] = 1.0  # of the second environment, a token of the second camera is another one
    moved = replace(foreseen, expected=foreseen.expected + torch.stack([0 * one, one])[..., None])
    torch.testing.assert_close(policy.distances(moved, seen), torch.stack([0 * one, one]))
    usual = [0.5] * 8
    usual[5] = 0.05
    found = Policy(policy.model, replace(FRAMES, usual=tuple(usual))).surprise(moved, seen)
    torch.testing.assert_close(found, torch.tensor([0.0, 1 / 0.05 / 8 - 1]))  # each token in its own usual distance
    assert policy.surprise(moved, seen).tolist() == [0.0, 0.0], "the mean over the frame is not above 1"
    half = replace(seen, images={name: image for name, image in seen.images.items() if name == policy.cameras[1]})
    same = Policy(policy.model, replace(FRAMES, usual=(0.05,)))
    torch.testing.assert_close(same.surprise(moved, half)[1], torch.tensor(1 / 0.05 / 4 - 1))
    blind = replace(seen, images={}, present={})
    assert nothing(policy.distances(moved, blind)) and policy.surprise(moved, blind).tolist() == [0.0, 0.0], "a camera that is missing"
    wrist = Policy(policy.model, replace(FRAMES, cameras=policy.cameras[1:], usual=tuple(usual[4:])))
    torch.testing.assert_close(wrist.surprise(moved, seen)[1], torch.tensor(1 / 0.05 / 4 - 1))
    with pytest.raises(ValueError, match=r"policy.usual has 3 numbers: give one, or one for each of the 8 tokens"):
        Policy(policy.model, replace(FRAMES, usual=(1.0, 2.0, 3.0)))


def test_a_batch_with_frames_and_surprises_gives_what_single_environments_give_and_can_be_saved():
    policy = Policy(tiny.model(), replace(FRAMES, revise=0.5, usual=(1.0,)))
    memory, outputs = policy.start([1, 2, 3]), []
    for tick in range(3):
        memory = Buffer.from_tensors({name: value.clone() for name, value in memory.tensors().items()})
        memory, actions = policy.act(memory, tiny.observation(3, tick, policy.model.config))
        outputs.append(actions)
        memory = policy.done(memory, actions)
    for index, seed in enumerate([1, 2, 3]):
        alone = policy.start([seed])
        for tick in range(3):
            given = tiny.observation(3, tick, policy.model.config)
            own = {n: v[index : index + 1] for n, v in given.images.items()}
            alone, actions = policy.act(alone, replace(given, images=own, proprio=given.proprio[index : index + 1]))
            torch.testing.assert_close(actions[0], outputs[tick][index], rtol=1e-4, atol=1e-4)
            alone = policy.done(alone, actions)


def test_frames_that_cannot_stand_in_the_buffer_are_refused():
    with pytest.raises(ValueError, match=r"looks \[2, 4, 6, 8\] ticks ahead.*model.video_frames=\[2, 4, 6, 8\]"):
        Policy(tiny.model(), replace(CONFIG, frames=True))
    with pytest.raises(ValueError, match="streaming policy"):
        replace(FRAMES, kind="chunked", revise=1.0)
    with pytest.raises(ValueError, match="revise is >= 0 and needs frames"):
        replace(CONFIG, revise=1.0)
    with pytest.raises(ValueError, match="plans at the ends of its chunks"):
        chunking.check(Policy(tiny.model(), FRAMES), chunking.ChunkingConfig("committed"))


def test_a_memory_of_another_plan_or_another_batch_is_refused():
    policy = Policy(tiny.model(), CONFIG)
    memory, actions = policy.act(policy.start([0]), tiny.observation(1))
    memory = policy.done(memory, actions)
    for other in ({"chunk": 4, "chunks": 2}, {"chunks": 3}, {"rows": 4}, {"past": 1}, {"chunk": 4, "chunks": 2, "frames": True}):
        with pytest.raises(ValueError, match="begun for 8 rows, chunks of 2, 4 of them, 2 past"):
            Policy(policy.model, replace(CONFIG, **other)).act(memory, tiny.observation(1))
    with pytest.raises(ValueError, match="begun for 8 rows"):
        Policy(policy.model, replace(CONFIG, chunk=4, chunks=2)).done(memory, torch.zeros(1, 4, 2))
    for streams, seen in ((1, 2), (3, 2)):
        with pytest.raises(ValueError, match=f"memory of {streams} streams needs as many observations, or one for all, got {seen}"):
            policy.act(policy.start(range(streams)), tiny.observation(seen))
    for wrong in (torch.zeros(1, 1, 2), torch.zeros(2, 2, 2)):
        with pytest.raises(ValueError, match="executed actions must be"):
            policy.done(memory, wrong)
    with pytest.raises(ValueError, match="have 2 numbers"):
        policy.recall(memory, torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="executed actions must be"):
        policy.recall(memory, torch.zeros(2, 1, 2))


class Summing(tiny.UnifiedModel):
    """Dynamics that are known: the state changes by the sum of the actions so far, in the first two of its three numbers."""

    def forward(self, x, level, role, layout, prefix, dims=None):
        if "state" not in layout.names:
            return super().forward(x, level, role, layout, prefix, dims)
        action, there = layout.mask("action"), layout.frame >= 0
        moved = torch.where((action & there)[None, :, None] & roles.seen(role)[..., None], x, 0.0)
        before = layout.frame[None, :] < layout.frame[:, None]
        change = torch.einsum("nm,bms->bns", before.to(x), moved)
        return torch.where(layout.mask("state")[None, :, None], change, x)


def foreseeing(**sizes):
    """A policy of known dynamics that predicts clean tokens, and its config."""
    net = tiny.feeling(prediction="clean", **sizes)
    net.__class__ = Summing
    net.normalise_proprio.scale.copy_(torch.tensor([2.0, 3.0, 1.0]))
    net.normalise_action.scale.fill_(0.5)
    return Policy(net, replace(CONFIG, chunks=2, foresee=True))


def test_what_is_foreseen_is_where_the_committed_actions_lead():
    policy = foreseeing()
    memory = policy.recall(policy.start([0, 1]), torch.ones(2, 2, 2))
    now, under_way = tiny.observation(2, 0, policy.model.config), torch.tensor([[0.1, 0.2], [0.3, -0.4], [0.5, 0.0]]).expand(2, -1, -1)
    after, felt = policy.foreseen(memory, now, under_way)
    wanted = now.proprio + torch.tensor([0.9 / 0.5 * 2.0, -0.2 / 0.5 * 3.0, 0.0])
    torch.testing.assert_close(felt.proprio, wanted)
    assert policy.calls == 1 and torch.equal(after.past, memory.past), "the past is the robot's until the actions are executed"
    single = policy.recall(policy.start([1]), torch.ones(1, 2, 2))
    single, _ = policy.foreseen(single, tiny.observation(1, 0, policy.model.config), under_way[:1])
    assert torch.equal(single.randomness.count, after.randomness.count[1:])
    with pytest.raises(ValueError, match=r"\[1, 2, 3, 4\] ticks ahead, not behind 5 actions"):
        policy.foreseen(memory, now, torch.zeros(2, 5, 2))


def test_a_plan_behind_committed_actions_is_the_plan_from_what_is_foreseen():
    policy = Policy(tiny.feeling(), replace(CONFIG, chunks=2, foresee=True))
    now, under_way = tiny.observation(1, 0, policy.model.config), torch.full((1, 3, 2), 0.3)
    memory = policy.recall(policy.start([4]), torch.ones(1, 2, 2))
    _, planned = policy.plan(memory, now, under_way)
    memory, felt = policy.foreseen(memory, now, under_way)
    assert not torch.equal(felt.proprio, now.proprio)
    _, same = policy.plan(policy.recall(memory, under_way), felt, under_way[:, :0])
    assert torch.equal(planned, same)


def test_a_planner_that_foresees_goes_on_with_its_buffer():
    policy = Policy(tiny.feeling(), replace(CONFIG, chunks=2, foresee=True))
    planner, calls, memory = chunking.Planner(policy, chunking.ChunkingConfig()), [], None
    for index in range(3):
        queue = np.full((2 if index else 0, 2), 0.1, np.float32)
        answer = planner(Job(index, 2 * index, {"proprio": np.zeros(3, np.float32)}, queue, np.zeros((2, 2), np.float32), memory=memory))
        calls, memory = [*calls, answer.calls], answer.memory
    assert calls == [8 + 4, 4 + 1, 4 + 1], "a call to foresee, and no buffer filled anew"
    assert policy.room == 4 and Policy(policy.model, replace(policy.config, foresee=False)).room == 8 - 4


def test_a_policy_that_cannot_foresee_says_so():
    with pytest.raises(ValueError, match="foresee belongs to a streaming policy"):
        replace(CONFIG, kind="chunked", foresee=True)
    with pytest.raises(ValueError, match="a moment that nobody saw"):
        Policy(tiny.feeling(history=(1,)), replace(CONFIG, chunks=2, foresee=True))
    for blind in (tiny.model(), tiny.model(cameras=(), video_frames=()), tiny.model(state_frames=(1, 2))):
        with pytest.raises(ValueError, match=r"without cameras that was trained with model\.state_frames"):
            Policy(blind, replace(CONFIG, foresee=True))
