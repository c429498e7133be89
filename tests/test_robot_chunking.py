"""Plans that overlap: which action belongs to which tick, guidance and choice among samples, and how smooth a border is."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny
from oracle import DTYPE, PATHS, correlated
from uwm.core import roles
from uwm.robot import chunking
from uwm.robot.chunking import ChunkingConfig, Delay, Planner, Schedule
from uwm.robot.inference import Job
from uwm.robot.policy import Policy, PolicyConfig
from uwm.sample import guidance, loop, roll, steps

COSINE = PATHS["cosine"]
CHUNKED = PolicyConfig(kind="chunked", rows=4, chunk=2, chunks=4, past=2)


def numbers(first, count):
    return np.arange(first, first + count, dtype=np.float32)[:, None]


def test_the_newest_plan_of_a_tick_wins_and_late_actions_are_counted():
    schedule = Schedule()
    assert schedule.at(0) == (None, -1) and schedule.ahead(0, 1).shape == (0, 1)
    assert schedule.join(0, 0, numbers(0, 4), now=0) == 0
    assert schedule.join(1, 2, numbers(20, 4), now=3) == 1
    assert schedule.at(3)[0] == 21.0 and schedule.at(3)[1] == 1
    assert schedule.ahead(3, 1)[:, 0].tolist() == [21.0, 22.0, 23.0] and schedule.end == 6
    assert schedule.join(2, 4, numbers(40, 2), now=9) == 2 and schedule.at(9) == (None, -1)


def test_an_ensemble_weighs_all_plans_of_a_tick_as_act_does():
    schedule = Schedule(decay=0.5)
    for index, value in enumerate((1.0, 2.0, 4.0)):
        schedule.join(index, index, np.full((4, 1), value, np.float32), now=index)
    weight = np.exp(-0.5 * np.arange(3))
    assert float(schedule.at(2)[0][0]) == pytest.approx(float(weight @ [1, 2, 4] / weight.sum()))
    assert float(schedule.at(5)[0][0]) == 4.0


def test_a_delay_is_the_quantile_of_what_was_measured_rounded_up():
    delay = Delay(ChunkingConfig(quantile=0.8, margin_ticks=1, window=10), 0.1)
    assert delay.ticks is None
    for latency in [9.0, *[0.2] * 9, 0.31]:  # the first is forgotten
        delay.add(latency)
    assert delay.ticks == 3 and Delay(ChunkingConfig(delay_ticks=4), 0.1).ticks == 4
    assert Delay(ChunkingConfig(expected_ticks=3), 0.1).ticks == 3
    with pytest.raises(ValueError, match="must be >= 0 or null"):
        ChunkingConfig(expected_ticks=-1)
    exact = Delay(ChunkingConfig(), 0.1)
    exact.add(0.1 * 3)
    assert exact.ticks == 3, "three periods are three ticks, whatever floats make of them"


def test_the_soft_mask_is_one_on_what_is_certain_and_falls_to_the_end():
    mask = chunking.soft_mask(2, 6)
    share = torch.tensor([4 / 5, 3 / 5, 2 / 5, 1 / 5])
    wanted = torch.cat([torch.ones(2), share * torch.expm1(share) / (math.e - 1)])
    assert torch.allclose(mask, wanted) and torch.equal(chunking.soft_mask(3, 3), torch.ones(3))


@pytest.mark.parametrize("path", ["cosine", "rectified"])
def test_guidance_moves_the_clean_estimate_by_the_closed_form_of_a_gaussian(path):
    """With the exact denoiser, d clean / d x is a known matrix: clean + scale J^T W (wanted - clean)."""
    path, world = PATHS[path], correlated(5, seed=3)
    denoise = world.denoiser(path)
    x, wanted = torch.randn(1, 5, 2, dtype=DTYPE), torch.randn(1, 5, 2, dtype=DTYPE)
    weight = torch.tensor([[1.0, 1.0, 0.5, 0.0, 0.0]], dtype=DTYPE)
    for level in (0.9, 0.5, 0.2):
        levels = torch.full((1, 5), level, dtype=DTYPE)
        alpha, sigma = path.alpha(levels)[0], path.sigma(levels)[0]
        noisy = torch.outer(alpha, alpha) * world.covariance + torch.diag(sigma**2)
        jacobian = world.covariance * alpha[None] @ torch.linalg.inv(noisy)
        clean = denoise(x, levels)
        scale = torch.minimum((alpha**2 + sigma**2) / alpha, 5.0 * sigma)[:, None]
        expected = clean[0] + scale * (jacobian.T @ (weight[0][:, None] * (wanted - clean)[0]))
        got = guidance.toward(denoise, path, wanted, weight, clip=5.0)(x, levels)
        assert torch.allclose(got[0], expected, atol=1e-9)
    none = guidance.toward(denoise, path, wanted, torch.zeros_like(weight))(x, levels)
    assert torch.equal(none, denoise(x, levels)), "without weight it is the denoiser, bit for bit"


def test_guided_samples_meet_the_old_plan_where_the_weight_is_one():
    world, level = correlated(6, seed=2), torch.linspace(1, 0, 41, dtype=DTYPE)[:, None].expand(41, 6)
    wanted, weight = torch.randn(1, 6, 1, dtype=DTYPE), torch.tensor([[1.0, 1, 1, 0, 0, 0]], dtype=DTYPE)
    x = torch.randn(1, 6, 1, dtype=DTYPE)
    free, _ = loop.sample(world.denoiser(COSINE), COSINE, x, level, steps.ddim())
    guided, _ = loop.sample(guidance.toward(world.denoiser(COSINE), COSINE, wanted, weight), COSINE, x, level, steps.ddim())
    distance = [float((each - wanted)[:, :3].norm()) for each in (free, guided)]
    assert distance[1] < 0.35 * distance[0]


def test_backward_coherence_picks_the_sample_nearest_to_the_old_plan():
    old = torch.zeros(1, 3, 1)
    drawn = torch.stack([torch.full((4, 1), value) for value in (2.0, 0.1, -1.0)])
    loss = chunking.backward_coherence(drawn, old, rho=0.5)
    assert torch.allclose(loss, 1.75 * torch.tensor([4.0, 0.01, 1.0]))
    weak = torch.full((2, 4, 1), -1.0)
    judged = chunking.contrast(drawn, weak, loss)
    assert judged.argmax() == 2, "the one that the weak policy would make is judged worst"


def asked(kind, queue, **more):
    observation = {"proprio": np.zeros(2, np.float32)} | {name: np.full((32, 32, 3), 90, np.uint8) for name in tiny.CAMERAS}
    return Job(0, 3, observation, queue, np.zeros((2, 2), np.float32), delay=min(2, len(queue)), seed=1, **more)


def test_planners_of_each_kind_answer_with_plans_of_their_length_and_calls():
    net, none, old = tiny.model(), np.zeros((0, 2), np.float32), np.full((4, 2), 0.3, np.float32)
    config = ChunkingConfig("guided", samples=3, weak_rows=1)
    answer = {kind: Planner(Policy(net, CHUNKED), replace(config, kind=kind))(asked(kind, old)) for kind in chunking.KINDS[:5]}
    assert {kind: each.actions.shape for kind, each in answer.items()} == {
        "synchronous": (2, 2), "naive": (8, 2), "ensemble": (8, 2), "guided": (8, 2), "bidirectional": (8, 2),
    }  # fmt: skip
    assert {kind: each.calls for kind, each in answer.items()} == {
        "synchronous": 4, "naive": 4, "ensemble": 4, "guided": 4, "bidirectional": 5,
    }  # fmt: skip
    free = Planner(Policy(net, CHUNKED), config)(asked("guided", none))
    assert np.array_equal(free.actions, answer["naive"].actions), "with nothing under way there is nothing to be guided to"
    near = [float(np.square(answer[kind].actions[:2] - 0.3).sum()) for kind in ("guided", "naive")]
    assert near[0] < near[1]
    streaming = Policy(net, replace(CHUNKED, kind="streaming", chunks=2))
    lengths = {
        (fresh, count): len(Planner(streaming, ChunkingConfig(fresh=fresh))(asked("committed", queue, count=count)).actions)
        for fresh, count, queue in ((True, 1, old), (True, 3, old), (False, 3, old), (True, 4, none), (True, 9, old))
    }
    assert lengths == {(True, 1): 2, (True, 3): 3, (False, 3): 4, (True, 4): 4, (True, 9): 4}, "no more than needed, in chunks elsewhere"


def test_the_restart_of_a_buffer_forgets_its_future_and_keeps_its_past():
    policy = Policy(tiny.model(), replace(CHUNKED, kind="streaming", chunks=2))
    planner, none = Planner(policy, ChunkingConfig()), np.zeros((0, 2), np.float32)
    first = planner(asked("committed", none))
    again = planner(asked("committed", none, memory=first.memory, restart=True))
    assert again.calls == first.calls == 4 + 2 and planner(asked("committed", none, memory=first.memory)).calls == 2
    assert again.memory["known"].tolist() == [2]


def test_what_is_committed_is_conditioned_on_exactly():
    """The oracle's ladder behind a prefix: its mean given past and committed actions is the closed form of the Gaussian."""
    for committed, count in ((0, 1), (2, 1), (3, 2)):
        ladder = roll.Ladder(rows=120, chunk=2, chunks=3, past=2, primer="denoise")
        tokens = ladder.past + committed + ladder.horizon
        world = correlated(tokens, seed=7)
        buffer = roll.recall(roll.empty(ladder, range(600), 1, DTYPE), torch.ones(600, 2, 1, dtype=DTYPE))
        under_way = torch.full((600, committed, 1), -0.5, dtype=DTYPE)
        role = roll.role(buffer, committed)
        assert role[0].tolist() == [roles.GIVEN] * 2 + [roles.COMMITTED] * committed + [roles.ACTIVE] * ladder.horizon
        seen = []
        exact = world.denoiser(COSINE, role)
        watched = lambda x, level, exact=exact, seen=seen: (seen.append(x[:, : 2 + committed].clone()), exact(x, level))[1]  # noqa: B023, E731
        ticked, sent = roll.tick(buffer, ladder, watched, COSINE, steps.ddim(), under_way, count)
        given = torch.cat([buffer.past, under_way], dim=1)
        assert all(torch.equal(each, given) for each in seen), "given tokens are bit for bit what they were, in every call"
        assert sent.shape == (600, 2 * count, 1) and torch.equal(sent, ticked.future[:, : 2 * count])
        wanted, known = torch.zeros(tokens, dtype=torch.bool), torch.arange(tokens) < 2 + committed
        wanted[2 + committed : 2 + committed + 2 * count] = True
        gain, constant, covariance = world.conditional(wanted, known)
        mean = constant + gain @ given[0, :, 0]
        error = (sent[..., 0].mean(dim=0) - mean) / (covariance.diagonal() / 600).sqrt()
        assert float(error.abs().max()) < 4.5
        assert torch.allclose(sent[..., 0].std(dim=0), covariance.diagonal().sqrt(), rtol=0.15)


def test_a_committed_plan_leads_on_from_the_action_before_it_and_ends_where_it_wanted():
    line = np.arange(4.0)[:, None] * [1.0, 0.0] + [0.0, 1.0]
    same = chunking.eased(line.astype(np.float32), np.array([-1.0, 1.0]))
    assert np.allclose(same, line)  # it goes on as the plan itself would have begun
    moved = chunking.eased(line.astype(np.float32), np.array([4.0, -1.0]), switches=(1,), over=4)
    assert np.allclose(moved[:, 0] - line[:, 0], 5.0 * np.array([0.8, 0.6, 0.4, 0.2])) and np.allclose(moved[:, 1], 1.0)
    short = chunking.eased(line.astype(np.float32), np.array([4.0, -1.0]))
    assert np.allclose(short[:, 0] - line[:, 0], 5.0 * np.array([2 / 3, 1 / 3, 0, 0]))
    assert abs(moved[0, 0] - 4.0) < abs(line[0, 0] - 4.0)
    assert np.array_equal(chunking.eased(line[:1], np.zeros(2)), line[:1])


