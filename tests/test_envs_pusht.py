"""Push-T: the world is repeatable, its reward exact and its pictures upright; the planner finishes the task."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from uwm_envs import tee
from uwm_envs.pusht import HALF_WIDTH_M, PUSHER_RADIUS_M, WALL_M, PushT

FAR = (0.2, 0.2)  # a place for the pusher that is nobody's way


@pytest.fixture
def env():
    world = PushT(observation="state")
    yield world
    world.close()


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def random_episode(world, seed, ticks=40):
    """Random targets near the block; returns the states (ticks+1, 6)."""
    rng, states = np.random.default_rng(0), [world.reset(seed=seed)[0]["state"]]
    for _ in range(ticks):
        target = states[-1][2:4] + rng.uniform(-0.05, 0.05, 2)
        states.append(world.step(np.clip(target / HALF_WIDTH_M, -1, 1))[0]["state"])
    return np.array(states)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("observation", ["state", "image"])
def test_gymnasium_accepts_the_world(observation):
    gymnasium.register("uwm-test/PushT-v0", "uwm_envs.pusht:PushT")
    try:
        check_env(gymnasium.make("uwm-test/PushT-v0", observation=observation).unwrapped)
    finally:
        del gymnasium.registry["uwm-test/PushT-v0"]


def test_the_model_and_the_geometry_agree(env):
    for name, (centre, half) in (("tee_bar", tee.BAR), ("tee_stem", tee.STEM)):
        assert np.allclose(env._model.geom(name).pos[:2], centre) and np.allclose(env._model.geom(name).size[:2], half)
    turn = env._model.body("goal").quat
    assert np.allclose((*env._model.body("goal").pos[:2], 2 * np.arctan2(turn[3], turn[0])), tee.GOAL_POSE)
    assert env._model.geom("pusher").size[0] == PUSHER_RADIUS_M


def test_coverage_is_one_on_the_goal_and_nothing_far_away():
    assert tee.coverage(tee.GOAL_POSE) == pytest.approx(1.0, abs=1e-12)
    assert tee.coverage((0.2, 0.2, 0.0)) == 0.0


@pytest.mark.parametrize(
    ("pose", "shared_mm2"),
    [
        ((0.01, 0.0, 0.0), 110 * 30 + 20 * 90),  # 10 mm aside: both parts lose 10 mm of width
        ((0.0, -0.015, 0.0), 120 * 15 + 30 * 15 + 30 * 75),  # half a bar down: half of each bar, stem in bar, stem in stem
        ((0.06, 0.0, 0.0), 60 * 30),  # half a bar aside: half of the bar, no stem
        ((0.0, 2 * 0.18 / 7, np.pi), 120 * 30),  # upside down with the bars together
    ],
)
@pytest.mark.parametrize("goal", [(0.0, 0.0, 0.0), tee.GOAL_POSE])
def test_coverage_equals_the_area_counted_by_hand(pose, shared_mm2, goal):
    cos, sin = np.cos(goal[2]), np.sin(goal[2])
    moved = (goal[0] + cos * pose[0] - sin * pose[1], goal[1] + sin * pose[0] + cos * pose[1], goal[2] + pose[2])
    assert tee.coverage(moved, goal) == pytest.approx(shared_mm2 / 6300, abs=1e-9)


def test_coverage_agrees_with_counted_points_and_both_ways_round():
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.1, 0.1, (200_000, 2))
    for _ in range(5):
        a, b = rng.uniform((-0.03, -0.03, -3), (0.03, 0.03, 3), (2, 3))
        inside = (tee.distance(points, a) == 0) & (tee.distance(points, b) == 0)
        assert tee.coverage(a, b) == pytest.approx(inside.mean() * 0.04 / tee.AREA_M2, abs=0.01)
        assert tee.coverage(a, b) == pytest.approx(tee.coverage(b, a), abs=1e-12)


def test_distance_to_the_block_is_measured_from_its_outline():
    assert tee.distance((0.0, 0.3 / 7), (0, 0, 0)) == pytest.approx(0.3 / 7 - 0.285 / 7)
    assert tee.distance((0.03, -0.01), (0, 0, 0)) == pytest.approx(0.015)
    assert np.allclose(tee.distance(tee.outline(tee.GOAL_POSE), np.array(tee.GOAL_POSE)), 0, atol=1e-12)


def test_the_same_seed_gives_the_same_episode_whatever_came_before(env):
    used = PushT(observation="state")
    random_episode(used, seed=1)
    first = random_episode(env, seed=7)
    assert np.array_equal(first, random_episode(used, seed=7))
    assert np.abs(first[-1] - first[0])[2:].max() > 1e-3, "the block must have been moved for this to mean anything"


def test_a_restored_state_continues_bit_for_bit_and_draws_the_same_next_episode():
    env, other = (PushT(observation="state", cameras=("agentview",), image_size=32) for _ in range(2))
    random_episode(env, seed=3, ticks=15)
    other.reset(seed=4)
    other.set_state(env.get_state())
    assert same(env.observe(), other.observe())
    for _ in range(15):
        (a, *rest_a), (b, *rest_b) = env.step([0.1, -0.2]), other.step([0.1, -0.2])
        assert same(a, b) and rest_a == rest_b
    assert np.array_equal(env.get_state()["physics"], other.get_state()["physics"])
    assert same(env.reset()[0], other.reset()[0])


def test_a_state_of_another_world_is_refused(env):
    env.reset(seed=0)
    with pytest.raises(ValueError, match="shape \\(3,\\)"):
        env.set_state({**env.get_state(), "physics": np.zeros(3)})


def test_the_block_does_not_move_untouched(env):
    env.reset(seed=0)
    env.place(FAR, (-0.1, -0.1, 0.5))
    before = env.privileged()["block"]
    for target in [(0.9, 0.2), (0.2, 0.9)] * 10:
        env.step(target)
    assert np.array_equal(env.privileged()["block"], before)


def test_a_central_push_moves_the_block_straight_and_an_eccentric_one_turns_it(env):
    turned = {}
    for x in (0.0, 0.05):
        env.place((x, 0.1), (0.0, 0.0, 0.0))
        for _ in range(10):
            env.step((x / HALF_WIDTH_M, 0.0))
        turned[x] = env.privileged()["block"]
    assert turned[0.0][1] < -0.03 and abs(turned[0.0][2]) < 0.01
    assert turned[0.05][2] < -0.3, "a push down on the right end turns clockwise"


def test_the_block_stops_with_the_pusher(env):
    env.place((0.0, 0.1), (0.0, 0.0, 0.0))
    for _ in range(20):
        env.step((0.0, 0.1))
    rest = env.privileged()
    assert rest["pusher"][1] - rest["block"][1] == pytest.approx(0.285 / 7 + PUSHER_RADIUS_M, abs=5e-4)


def test_walls_hold_the_pusher_and_the_block(env):
    env.place((-0.2, 0.0), (0.15, 0.0, 0.0))
    for _ in range(40):
        env.step((1.0, 0.0))
    assert np.abs(tee.outline(env.privileged()["block"])).max() < WALL_M + 0.002
    for corner in [(-1.0, 1.0), (-1.0, -1.0)]:
        for _ in range(30):
            env.step(corner)
        assert np.allclose(np.abs(env.privileged()["pusher"]), WALL_M - PUSHER_RADIUS_M, atol=0.002)


def test_every_start_is_free_of_contact_and_inside_the_walls(env):
    for seed in range(200):
        env.reset(seed=seed)
        scene = env.privileged()
        assert tee.distance(scene["pusher"], scene["block"]) > PUSHER_RADIUS_M
        assert np.abs(tee.outline(scene["block"])).max() < WALL_M


def test_reward_is_coverage_and_success_ends_the_episode(env):
    env.reset(seed=0)
    env.place(FAR, (tee.GOAL_POSE[0] + 0.002, *tee.GOAL_POSE[1:]))
    _, reward, terminated, truncated, info = env.step(np.array(FAR) / HALF_WIDTH_M)
    assert 0.9 <= reward < 1.0 and terminated and info["success"] and not truncated
    env.place(FAR, (0.0, 0.0, 1.0))
    _, reward, terminated, _, info = env.step(np.array(FAR) / HALF_WIDTH_M)
    assert 0.0 < reward < 0.9 and not terminated and info["success"] is False


@pytest.mark.parametrize("render", ["fast", "quality"])
def test_pictures_are_upright_and_to_scale(render):
    env = PushT(image_size=64, render=render)
    env.reset(seed=0)
    env.place((-0.128, 0.128), (0.128, -0.128, 0.0))
    image = env.observe()["agentview"].astype(int)
    rows, columns = np.nonzero((image[..., 2] > image[..., 0] + 80) & (image[..., 2] > 120))
    assert (rows.mean(), columns.mean()) == pytest.approx((15.5, 15.5), abs=1.0), "+y is up, -x is left"
    assert len(rows) == pytest.approx(np.pi * (0.015 / 0.008) ** 2, rel=0.5)
    env.close()


def test_the_policy_sees_the_block_only_when_asked():
    assert set(PushT().observation_space.keys()) == {"agentview", "proprio"}
    assert set(PushT(cameras=()).observation_space.keys()) == {"proprio"}
    assert set(PushT(observation="state").observation_space.keys()) == {"proprio", "state"}


@pytest.mark.parametrize(
    ("action", "message"),
    [([1.01, 0.0], r"action\[0\] = 1.01 is outside"), ([0.0, np.nan], r"action\[1\] = nan"), ([0.0], r"shape \(2,\)")],
)
def test_a_bad_action_is_named_and_changes_nothing(env, action, message):
    env.reset(seed=0)
    before = env.get_state()["physics"]
    with pytest.raises(ValueError, match=message):
        env.step(action)
    assert np.array_equal(env.get_state()["physics"], before)


def test_a_wrong_option_is_named():
    with pytest.raises(ValueError, match=r"camera must be one of .*agentview.*got 'wrist'"):
        PushT(cameras=("wrist",))
    with pytest.raises(ValueError, match="observation must be one of"):
        PushT(observation="pixels")


def test_the_block_can_be_moved_between_two_ticks():
    env = PushT(cameras=())
    env.reset(seed=3)
    before = env.unwrapped.privileged()
    env.unwrapped.shift_object(np.array([0.03, -0.02]))
    after = env.unwrapped.privileged()
    assert np.allclose(after["block"] - before["block"], [0.03, -0.02, 0.0]) and np.allclose(after["pusher"], before["pusher"])
    env.close()
