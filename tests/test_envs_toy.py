"""The toy world keeps the contract that every other world keeps."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import uwm_envs
from uwm_envs.toy import OBSTACLE_RADIUS_M, ROBOT_RADIUS_M, Toy, ToyExpert
from uwm_envs.toy_colours import COLOURS, WORDINGS, ToyColours


def run_expert(env, seed, **how):
    """One episode; returns the states (T+1, 2), the last info and the executed actions."""
    expert = ToyExpert(**how)
    first, info = env.reset(seed=seed)
    expert.start(env, np.random.default_rng(seed))
    states, actions, done = [first["proprio"]], [], False
    while not done:
        action, _ = expert.act(env)
        observation, _, terminated, truncated, info = env.step(action)
        states.append(observation["proprio"])
        actions.append(action)
        done = terminated or truncated
    return np.array(states), info, np.array(actions)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("cameras", [(), ("agentview", "wrist")])
def test_gymnasium_accepts_the_world(cameras):
    gymnasium.register("uwm-test/Toy-v0", "uwm_envs.toy:Toy")
    try:
        check_env(gymnasium.make("uwm-test/Toy-v0", cameras=cameras).unwrapped)
    finally:
        del gymnasium.registry["uwm-test/Toy-v0"]


def test_the_same_seed_gives_the_same_episode_whatever_came_before():
    fresh, used = Toy(cameras=()), Toy(cameras=())
    run_expert(used, seed=1)
    assert np.array_equal(run_expert(fresh, 7)[0], run_expert(used, 7)[0])
    assert not np.array_equal(run_expert(fresh, 8)[0], run_expert(fresh, 7)[0])


def test_a_restored_state_continues_bit_for_bit_and_draws_the_same_next_episode():
    env, other = Toy(), Toy()
    env.reset(seed=3)
    for _ in range(5):
        env.step([0.3, 0.9])
    other.reset(seed=4)
    other.set_state(env.get_state())
    for _ in range(12):
        (a, *rest_a), (b, *rest_b) = env.step([0.2, 0.7]), other.step([0.2, 0.7])
        assert rest_a == rest_b and all(np.array_equal(a[key], b[key]) for key in a)
    assert np.array_equal(env.reset()[0]["agentview"], other.reset()[0]["agentview"])


@pytest.mark.parametrize("strategy", ToyExpert.strategies)
def test_the_expert_succeeds_on_the_side_it_was_told(strategy):
    env = Toy(cameras=())
    for seed in range(20):
        states, info, _ = run_expert(env, seed, noise=0.2, strategy=strategy)
        assert info["success"]
        beside = states[np.argmin(np.abs(states[:, 1] - env.privileged()["obstacle"][1])), 0]
        assert (beside < env.privileged()["obstacle"][0]) == (strategy == "left")


def test_noise_is_in_the_executed_action_only():
    env, expert = Toy(cameras=()), ToyExpert(noise=0.3, strategy="left")
    env.reset(seed=0)
    expert.start(env, np.random.default_rng(0))
    pairs = [expert.act(env) for _ in range(200)]
    executed, intended = (np.array(side) for side in zip(*pairs, strict=True))
    assert np.ptp(intended, axis=0).max() == 0.0
    assert np.abs(executed).max() <= 1.0
    assert 0.2 < (executed - intended)[:, 1].std() < 0.35


def test_walls_and_disc_stop_the_robot():
    env = Toy(cameras=())
    env.reset(seed=0)
    for _ in range(30):
        position = env.step([0.0, 1.0])[0]["proprio"]
        gap = np.hypot(*(position - env.privileged()["obstacle"]))
        assert gap >= OBSTACLE_RADIUS_M + ROBOT_RADIUS_M - 1e-6
    for _ in range(30):
        position = env.step([1.0, -1.0])[0]["proprio"]
    assert np.allclose(position, (1 - ROBOT_RADIUS_M, -1 + ROBOT_RADIUS_M))


def test_images_are_upright_and_the_wrist_camera_follows_the_robot():
    env = Toy()
    env.reset(seed=0)
    env.set_state({**env.get_state(), "position": np.array([-0.7, 0.6])})
    observation = env.observe()
    blue = (observation["agentview"][..., 2] > 150) & (observation["agentview"][..., 0] < 120)
    rows, columns = np.nonzero(blue)
    assert len(rows) and rows.max() < 16 and columns.max() < 16, "+y belongs in the upper half, -x in the left"
    assert observation["wrist"][16, 16, 2] > 200 and observation["wrist"][16, 16, 0] < 60


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([0.0, 1.5], r"action\[1\] = 1.5 is outside \[-1.0, 1.0\]"),
        ([np.nan, 0.0], r"action\[0\] = nan"),
        ([0.0, 0.0, 0.0], r"shape \(2,\), got \(3,\)"),
    ],
)
def test_a_bad_action_is_named(action, message):
    env = Toy(cameras=())
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(action)


def test_the_episode_is_cut_at_max_steps():
    env = Toy(cameras=(), max_steps=3)
    env.reset(seed=0)
    assert [env.step([0, 0])[3] for _ in range(3)] == [False, False, True]


def test_an_unknown_camera_or_strategy_is_named():
    with pytest.raises(ValueError, match=r"front.*agentview"):
        Toy(cameras=("front",))
    with pytest.raises(ValueError, match=r"up.*left"):
        ToyExpert(strategy="up")


# ---- four colours ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error::UserWarning")
def test_gymnasium_accepts_the_world_of_colours():
    check_env(uwm_envs.make("ToyColours").unwrapped)


def test_what_is_wanted_cannot_be_seen_and_every_colour_and_wording_is_asked_for():
    env, told = ToyColours(), set()
    for seed in range(60):
        observation, info = env.reset(seed=seed)
        told.add(info["instruction"])
        assert env.wanted in info["instruction"]
        state = env.get_state()
        other = (state["wanted"] + 1) % 4
        env.set_state({**state, "wanted": other, "target": state["targets"][other]})
        assert np.array_equal(env.observe()["agentview"], observation["agentview"])
    assert {text.split()[-2] for text in told} == set(COLOURS) and len({text.split()[0] for text in told}) == len(WORDINGS)


def test_the_expert_reaches_the_wanted_colour_and_another_one_ends_the_episode_without_success():
    env, reached = ToyColours(cameras=()), 0
    for seed in range(40):
        _, info, _ = run_expert(env, seed, noise=0.1)
        reached += info["success"] and env.reached == env.wanted
        assert info["success"] == (env.reached == env.wanted)
    assert reached >= 36
    env.reset(seed=1)
    state = env.get_state()
    other = (state["wanted"] + 1) % 4
    env.set_state({**state, "position": state["targets"][other] - (0.0, 0.15)})
    _, reward, terminated, _, info = env.step([0.0, 1.0])
    assert terminated and not info["success"] and reward == 0.0 and env.reached == tuple(COLOURS)[other]


def test_a_restored_world_of_colours_wants_the_same():
    env, other = ToyColours(), ToyColours()
    env.reset(seed=3)
    other.reset(seed=4)
    other.set_state(env.get_state())
    assert other.wanted == env.wanted and np.array_equal(other.observe()["agentview"], env.observe()["agentview"])
    assert np.array_equal(env.reset()[0]["agentview"], other.reset()[0]["agentview"])
