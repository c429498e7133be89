"""The Push-T planner: its quick model agrees with the simulator, its ways keep clear, and it finishes the task."""

import numpy as np
import pytest

from uwm_envs import tee
from uwm_envs.experts.detour import CLEARANCE_M, REACH_M, Detours
from uwm_envs.experts.pusht import PushTExpert
from uwm_envs.experts.quasi_static import push
from uwm_envs.pusht import HALF_WIDTH_M, PUSHER_RADIUS_M, PushT


@pytest.fixture(scope="module")
def env():
    return PushT(observation="state")


def run(env, seed, draws=None, **how):
    """One episode; returns executed and intended actions (T, 2) and the last info. `draws`: the planner's own seed."""
    expert = PushTExpert(samples=96, **how)
    env.reset(seed=seed)
    expert.start(env, np.random.default_rng(seed if draws is None else draws))
    pairs, done = [], False
    while not done:
        pairs.append(expert.act(env))
        _, _, terminated, truncated, info = env.step(pairs[-1][0])
        done = terminated or truncated
    return *(np.array(side) for side in zip(*pairs, strict=True)), info


@pytest.mark.parametrize("strategy", PushTExpert.strategies)
def test_the_planner_covers_the_goal(env, strategy):
    for seed in (0, 1):
        actions, _, info = run(env, seed, strategy=strategy)
        assert info["success"] and info["coverage"] >= 0.9, f"seed {seed}: {info} after {len(actions)} ticks"


def test_the_planner_copes_with_noise_that_only_the_executed_action_carries(env):
    executed, intended, info = run(env, 2, draws=0, noise=0.2, strategy="turn_first")
    assert info["success"] and 0.01 < (executed - intended).std() < 0.03
    assert np.abs(intended).max() <= REACH_M / HALF_WIDTH_M + 1e-6


def test_pushes_move_the_executed_action_alone_and_the_planner_recovers(env):
    executed, intended, info = run(env, 2, draws=0, pushed_m=0.02, strategy="turn_first")
    apart_m = np.hypot(*(executed - intended).T) * HALF_WIDTH_M
    pushed = apart_m > 1e-6
    assert info["success"] and 0 < pushed.mean() < 0.4
    assert np.median(apart_m[pushed]) == pytest.approx(0.02, abs=1e-5)


def test_the_same_seeds_give_the_same_plan_in_a_fresh_world(env):
    assert np.array_equal(run(env, 5, noise=0.2)[0], run(PushT(observation="state"), 5, noise=0.2)[0])


def test_the_first_push_follows_the_strategy(env):
    """Halfway through, the one has less angle to go, the other less distance, on average over a few starts."""
    left = {strategy: [] for strategy in PushTExpert.strategies}
    for strategy, seed in [(strategy, seed) for strategy in left for seed in range(4)]:
        expert = PushTExpert(strategy=strategy, samples=96)
        env.reset(seed=0)
        env.place((0.2, -0.2), (0.1, 0.1, tee.GOAL_POSE[2] + 2.0))
        expert.start(env, np.random.default_rng(seed))
        while not expert._pushing or expert._ticks < 2:
            env.step(expert.act(env)[0])
        while expert._pushing:
            env.step(expert.act(env)[0])
        gap = env.privileged()["block"] - tee.GOAL_POSE
        left[strategy].append((np.hypot(*gap[:2]), abs(np.angle(np.exp(1j * gap[2])))))
    turn, move = np.mean(left["turn_first"], 0), np.mean(left["move_first"], 0)
    assert turn[1] < move[1] and turn[0] > move[0]


def test_the_quick_model_agrees_with_the_simulator(env):
    rng, gaps = np.random.default_rng(0), []
    for _ in range(40):
        pose, start = np.array([0, 0, rng.uniform(-3, 3)]), np.zeros(2)
        while not PUSHER_RADIUS_M + 0.0005 < tee.distance(start, pose) < PUSHER_RADIUS_M + 0.005:
            start = rng.uniform(-0.12, 0.12, 2)
        direction = -start / np.hypot(*start)
        env.place(start, pose)
        for tick in range(12):
            env.step((start + direction * min(0.05, 0.01 * (tick + 1))) / HALF_WIDTH_M)
        quick = push(pose[None], start[None], direction[None], np.array([0.002]), 25)[-1, 0]
        real = env.privileged()["block"]
        gaps.append((np.hypot(*(real - quick)[:2]), abs(real - quick)[2]))
    middle, moved = np.median(gaps, axis=0), np.quantile(gaps, 0.9, axis=0)
    assert middle[0] < 0.001 and middle[1] < np.deg2rad(1), middle
    assert moved[0] < 0.004 and moved[1] < np.deg2rad(4), moved


def test_a_push_through_the_centre_moves_the_block_as_far_as_the_disc():
    start = np.array([[0.0, 0.285 / 7 + PUSHER_RADIUS_M]])
    trace = push(np.zeros((1, 3)), start, np.array([[0.0, -1.0]]), np.array([0.001]), 30)
    assert np.allclose(trace[:, 0], np.outer(np.arange(1, 31), (0, -0.001, 0)), atol=1e-9)
    away = push(np.zeros((1, 3)), start, np.array([[0.0, 1.0]]), np.array([0.001]), 30)
    assert np.array_equal(away, np.zeros((30, 1, 3)))


def test_ways_around_the_block_keep_clear_of_it():
    rng, found = np.random.default_rng(0), 0
    for _ in range(60):
        pose = rng.uniform((-0.05, -0.05, -3), (0.05, 0.05, 3))
        start, end = rng.uniform(-0.2, 0.2, (2, 2))
        if min(tee.distance(start, pose), tee.distance(end, pose)) < CLEARANCE_M:
            continue
        detours = Detours(start, pose)
        way = detours.way(end)
        points = np.concatenate([np.linspace(a, b, 50) for a, b in zip((start, *way[:-1]), way, strict=True)])
        found += 1
        assert np.array_equal(way[-1], end) and tee.distance(points, pose).min() > PUSHER_RADIUS_M
        length = np.hypot(*np.diff(np.vstack((start, way)), axis=0).T).sum()
        assert length == pytest.approx(detours.length(end[None])[0]) and length >= np.hypot(*(end - start)) - 1e-9
    assert found > 20


def test_a_place_inside_the_block_has_no_way():
    detours = Detours(np.array([0.2, 0.2]), np.zeros(3))
    assert detours.way((0.0, 0.02)).shape == (0, 2) and np.isinf(detours.length(np.array([[0.0, 0.02]]))[0])


def test_an_unknown_strategy_is_named():
    with pytest.raises(ValueError, match=r"push_hard.*turn_first"):
        PushTExpert(strategy="push_hard")
