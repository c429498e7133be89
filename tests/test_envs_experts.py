"""The arm experts solve their tasks, in both of their ways, smoothly, and their noise is what it says it is."""

import numpy as np
import pytest

import uwm_envs
from uwm_envs.experts.motion import Disturbance, about, rotation_vector, wrapped

TASKS = {"Lift": 3, "Stack": 2, "PickPlaceCan": 2, "NutAssemblySquare": 2, "Door": 2}  # episodes for each strategy


@pytest.fixture(scope="module")
def lift():
    pytest.importorskip("robosuite")
    env = uwm_envs.make("Lift", cameras=())
    yield env
    env.close()


def _episode(env, expert, seed):
    env.reset(seed=seed)
    expert.start(env, np.random.default_rng(seed))
    executed, intended = [], []
    while True:
        action, wanted = expert.act(env)
        executed.append(action)
        intended.append(wanted)
        _, _, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            return np.array(executed), np.array(intended), info["success"]


@pytest.mark.parametrize("name", TASKS)
def test_every_strategy_solves_the_task_without_noise(name):
    pytest.importorskip("robosuite")
    env = uwm_envs.make(name, cameras=())
    strategies = uwm_envs.make_expert(name).strategies
    for strategy in strategies:
        expert = uwm_envs.make_expert(name, strategy=strategy)
        for seed in range(TASKS[name]):
            executed, intended, success = _episode(env, expert, seed)
            assert success, f"{name} {strategy} seed {seed} failed"
            assert expert.strategy == strategy
            assert np.array_equal(executed, intended)
            assert np.abs(executed[:, :6]).max() < 0.95, "an intended motion at the limit leaves no room to correct"
    env.close()


def test_lift_still_succeeds_when_it_is_pushed(lift):
    results = [_episode(lift, uwm_envs.make_expert("Lift", noise=0.3), seed) for seed in range(5)]
    assert sum(success for *_, success in results) >= 4
    for executed, intended, _ in results:
        assert np.abs(executed).max() <= 1.0
        assert np.array_equal(executed[:, 6], intended[:, 6]), "the gripper is never noised"
        assert np.abs(executed - intended).max() > 0.3


def test_an_episode_of_the_expert_repeats_from_its_generator(lift):
    first, second = (_episode(lift, uwm_envs.make_expert("Lift", noise=0.2), 4) for _ in range(2))
    assert np.array_equal(first[0], second[0])


def test_random_draws_both_strategies(lift):
    expert = uwm_envs.make_expert("Lift")
    lift.reset(seed=0)
    drawn = set()
    for seed in range(8):
        expert.start(lift, np.random.default_rng(seed))
        drawn.add(expert.strategy)
    assert drawn == {"left", "right"}


def test_the_two_ways_of_lifting_pass_on_different_sides(lift):
    paths = {}
    for side in ("left", "right"):
        expert = uwm_envs.make_expert("Lift", strategy=side)
        lift.reset(seed=1)
        expert.start(lift, np.random.default_rng(0))
        for _ in range(12):
            lift.step(expert.act(lift)[0])
        paths[side] = lift.unwrapped.privileged()["eef_pos"][1]
    assert paths["left"] > paths["right"] + 0.02


def test_the_noise_has_the_spread_and_the_memory_it_promises():
    disturb = Disturbance(0.3, np.random.default_rng(0))
    disturb.pushes.chance = 0.0
    values = np.array([disturb() for _ in range(60000)])
    assert np.allclose(values.std(axis=0), 0.3 * np.array([1, 1, 1, 1 / 6, 1 / 6, 1 / 6]), rtol=0.1)
    lag_one = np.mean(values[1:, 0] * values[:-1, 0]) / values[:, 0].var()
    assert lag_one == pytest.approx(np.exp(-1 / 10), abs=0.03)


def test_pushes_come_and_go():
    disturb = Disturbance(0.3, np.random.default_rng(0))
    disturb.MEMORY = 1.0  # freezes the noise, so that what changes is the push
    steady = disturb()
    moved = np.array([np.linalg.norm(disturb() - steady) > 0.5 for _ in range(6000)])
    assert 0.03 < moved.mean() < 0.12  # about 4.5 ticks every 60


def test_unknown_strategy_and_negative_noise_are_refused():
    with pytest.raises(ValueError, match="left, right"):
        uwm_envs.make_expert("Lift", strategy="up")
    with pytest.raises(ValueError, match="at least 0"):
        uwm_envs.make_expert("Lift", noise=-1.0)


def test_rotation_vector_inverts_about():
    generator = np.random.default_rng(0)
    for _ in range(50):
        axis = generator.standard_normal(3)
        axis /= np.linalg.norm(axis)
        angle = generator.uniform(0.0, 3.0)
        assert np.allclose(rotation_vector(about(axis, angle)), axis * angle, atol=1e-9)
    assert np.allclose(rotation_vector(np.eye(3)), 0.0)
    assert wrapped(np.pi * 0.9, np.pi) == pytest.approx(-0.1 * np.pi)
