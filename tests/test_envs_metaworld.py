"""Meta-World's tasks keep the contract of our other worlds: seeds, states, upright images, errors that teach."""

import builtins
import hashlib
import json
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import uwm_envs
from uwm_envs import metaworld

pytest.importorskip("metaworld")

FEW = ("reach", "drawer-open", "push", "box-close")  # a free hand, a joint, a loose object, and a reset that draws until it fits

# Prints a digest of a short seeded episode; run in another process, it must print the same.
_EPISODE = """
import hashlib, json, sys
import numpy as np
import uwm_envs
digests = {}
for task in sys.argv[1:]:
    env = uwm_envs.make(f"metaworld-{task}", cameras=())
    digest = hashlib.sha256(env.reset(seed=7)[0]["proprio"].tobytes())
    generator = np.random.default_rng(0)
    for _ in range(5):
        env.step(generator.uniform(-1, 1, 4).astype(np.float32))
        digest.update(env.unwrapped.data.qpos.tobytes() + env.unwrapped.privileged()["observation"].tobytes())
    digests[task] = digest.hexdigest()
    env.close()
print(json.dumps(digests))
"""


@pytest.fixture(scope="module")
def worlds():
    made = {task: uwm_envs.make(f"metaworld-{task}", cameras=()) for task in FEW}
    yield made
    for env in made.values():
        env.close()


@pytest.fixture(scope="module")
def drawer():
    env = uwm_envs.make("metaworld-drawer-open", cameras=("corner2", "gripperPOV"), image_size=96)
    env.reset(seed=0)
    yield env
    env.close()


def _digest_of_episode(env):
    digest = hashlib.sha256(env.reset(seed=7)[0]["proprio"].tobytes())
    for action in _actions(5):
        env.step(action)
        digest.update(env.unwrapped.data.qpos.tobytes() + env.unwrapped.privileged()["observation"].tobytes())
    return digest.hexdigest()


def _actions(count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, 4)).astype(np.float32)


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


def test_all_fifty_tasks_of_the_package_are_worlds_with_an_expert():
    from metaworld.env_dict import ENV_CLS_MAP
    from metaworld.policies import ENV_POLICY_MAP

    assert {f"{task}-v3" for task in metaworld.TASKS} == set(ENV_CLS_MAP) == set(ENV_POLICY_MAP)
    assert len(metaworld.TASKS) == 50
    for task in metaworld.TASKS:
        assert f"metaworld-{task}" in uwm_envs.NAMES
        assert gymnasium.spec(f"uwm/metaworld-{task}-v0").kwargs == {"task": task}
        assert uwm_envs.make_expert(f"metaworld-{task}", noise=0.1).strategies == ("scripted",)


def test_naming_the_tasks_does_not_import_the_package():
    code = "import uwm_envs, sys; assert len(uwm_envs.NAMES) > 50; print('metaworld' in sys.modules, 'mujoco' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_missing_package_names_the_extra(monkeypatch):
    real = builtins.__import__

    def blocked(name, *args, **options):
        if name == "metaworld":
            raise ImportError("No module named 'metaworld'")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(ImportError, match=r"uwm\[metaworld\]"):
        uwm_envs.make("metaworld-reach")


def test_an_unknown_task_gets_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'metaworld-drawer-open'"):
        uwm_envs.make("metaworld-drawer-opn")
    with pytest.raises(ValueError, match=r"no Meta-World task 'juggle'.*reach"):
        metaworld.MetaWorld("juggle")


@pytest.mark.parametrize("task", FEW[:2])
def test_gymnasium_accepts_the_world(task):
    env = gymnasium.make(f"uwm/metaworld-{task}-v0", image_size=16, disable_env_checker=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=True)
    env.close()


def test_an_episode_is_the_same_in_another_process_and_after_another_history(worlds):
    there = subprocess.run([sys.executable, "-c", _EPISODE, *FEW], capture_output=True, text=True, check=True)
    for env in worlds.values():
        env.reset(seed=99)
        for action in _actions(15):
            env.step(action)
        env.reset()
    here = {task: _digest_of_episode(env) for task, env in worlds.items()}
    assert json.loads(there.stdout) == here
    assert there.stderr == "", "starting a world must not print anything"


@pytest.mark.parametrize("task", FEW)
def test_different_seeds_give_different_scenes(worlds, task):
    scenes = []
    for seed in (1, 2):
        worlds[task].reset(seed=seed)
        scenes.append(worlds[task].unwrapped.privileged()["observation"])
    assert np.abs(scenes[0] - scenes[1]).max() > 1e-3


@pytest.mark.parametrize("task", FEW)
def test_a_restored_world_continues_bit_for_bit_and_draws_the_same_next_episode(worlds, task):
    env = worlds[task]
    env.reset(seed=3)
    actions = _actions(20)
    for action in actions[:8]:
        env.step(action)
    state = env.unwrapped.get_state()

    def future():
        seen = []
        for action in actions[8:]:
            env.step(action)
            seen.append(np.concatenate([env.unwrapped.data.qpos, env.unwrapped.privileged()["observation"]]))
        env.reset()
        return np.array(seen), env.unwrapped.privileged()["observation"]

    first = future()
    env.reset(seed=4)
    env.step(actions[0])
    env.unwrapped.set_state(state)
    second = future()
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


def test_a_state_of_another_task_is_refused(worlds):
    with pytest.raises(ValueError, match=r"'reach'.*'push'"):
        worlds["push"].unwrapped.set_state(worlds["reach"].unwrapped.get_state())


@pytest.mark.parametrize("task", FEW)
def test_the_expert_solves_the_task_and_its_noise_spares_the_gripper(worlds, task):
    results = [_episode(worlds[task], uwm_envs.make_expert(f"metaworld-{task}"), seed) for seed in (1, 2)]
    assert all(success for *_, success in results)
    assert all(np.array_equal(executed, intended) for executed, intended, _ in results)
    executed, intended, _ = _episode(worlds[task], uwm_envs.make_expert(f"metaworld-{task}", noise=0.2), 1)
    assert np.abs(executed).max() <= 1.0 and executed.dtype == np.float32
    assert np.array_equal(executed[:, 3], intended[:, 3])
    assert np.abs(executed[:, :3] - intended[:, :3]).max() > 0.1


def test_an_episode_of_the_expert_repeats_from_its_generator(worlds):
    first, second = (_episode(worlds["reach"], uwm_envs.make_expert("metaworld-reach", noise=0.2), 4) for _ in range(2))
    assert np.array_equal(first[0], second[0])


def test_an_expert_with_nonsense_is_refused():
    with pytest.raises(ValueError, match="scripted"):
        uwm_envs.make_expert("metaworld-reach", strategy="left")
    with pytest.raises(ValueError, match="at least 0"):
        uwm_envs.make_expert("metaworld-reach", noise=-1.0)


@pytest.mark.parametrize("camera, turned", [("corner", 1), ("corner2", 1), ("corner3", 1), ("topview", 0), ("behindGripper", 0)])
def test_things_are_where_an_upright_image_must_show_them(drawer, camera, turned):
    world = drawer.unwrapped
    drawer.reset(seed=2)
    place = world.data.cam(camera)
    half = 96 / 2 / np.tan(np.deg2rad(world.model.cam(camera).fovy[0]) / 2)

    def shown_at(point):
        """Row and column; Meta-World hangs some cameras upside down, and their pictures are turned by half a turn here."""
        seen = place.xmat.reshape(3, 3).T @ (np.asarray(point) - place.xpos)
        at = np.array([half * seen[1] / seen[2], -half * seen[0] / seen[2]])
        return 48 + (-at if turned else at)

    chest = world.data.body("drawer").xpos  # the only large green thing
    colour = world.frame(camera).astype(int)
    green = np.argwhere(colour[..., 1] - np.maximum(colour[..., 0], colour[..., 2]) > 25)
    assert len(green) > 20
    assert np.abs(green.mean(axis=0) - shown_at(chest)).max() < 12
    if camera != "topview":
        higher = chest + np.array([0.0, 0.0, 0.2])
        assert shown_at(higher)[0] < shown_at(chest)[0], "what is higher in the world is higher in the picture"


def test_views_like_robosuite_s_have_its_names_too():
    env = uwm_envs.make("metaworld-reach", cameras=("agentview", "wrist"))
    seen, world = env.reset(seed=0)[0], env.unwrapped
    assert np.array_equal(seen["agentview"], world.frame("corner2")) and np.array_equal(seen["wrist"], world.frame("gripperPOV"))
    assert world.card["cameras"] == ["agentview", "wrist"] and not np.array_equal(seen["agentview"], seen["wrist"])
    env.close()


def test_the_profiles_differ_and_the_fast_one_draws_no_shadows(drawer):
    quality = uwm_envs.make("metaworld-drawer-open", cameras=("corner2",), image_size=96, render="quality")
    drawn_well = quality.reset(seed=0)[0]["corner2"].astype(int)
    drawn_fast = drawer.reset(seed=0)[0]["corner2"].astype(int)
    assert quality.unwrapped.model.vis.quality.offsamples == 4 and drawer.unwrapped.model.vis.quality.offsamples == 0
    quality.close()
    assert (np.abs(drawn_well - drawn_fast) > 8).mean() > 0.01
    assert np.abs(drawn_well - drawn_fast).mean() < 60


def test_proprioception_is_the_hand_and_the_opening_of_the_gripper(drawer):
    drawer.reset(seed=0)
    opened = drawer.step(np.array([0, 0, 0, -1], np.float32))[0]["proprio"]
    for _ in range(30):
        closed = drawer.step(np.array([1, 0, 0, 1], np.float32))[0]["proprio"]
    assert np.allclose(closed[:3], drawer.unwrapped.data.body("hand").xpos, atol=1e-6)
    assert closed[0] > opened[0] + 0.05, "+x is to the right"
    assert closed[3] < opened[3] - 0.3, "+1 closes"


def test_the_limit_is_ours_and_the_card_is_whole():
    env = uwm_envs.make("metaworld-reach", cameras=(), max_steps=3)
    env.reset(seed=0)
    ended = [env.step(np.zeros(4, np.float32))[2:4] for _ in range(3)]
    assert ended == [(False, False), (False, False), (False, True)]
    card = json.loads(json.dumps(env.unwrapped.card))
    assert (card["env"], card["robot"], card["rate_hz"], card["max_steps"]) == ("metaworld-reach", "Sawyer", 80, 3)
    assert card["rate_hz"] == round(1 / env.unwrapped.inner.dt), "the package's own ticks"
    assert (card["action"]["mode"], card["action"]["frame"], card["action"]["gripper"]) == ("delta", "world", "-1 opens, +1 closes")
    assert card["instruction"] == "reach" and card["versions"]["metaworld"]
    with pytest.raises(ValueError, match=r"action\[1\] = nan"):
        env.step(np.array([0, np.nan, 0, 0]))
    env.close()
    with pytest.raises(ValueError, match=r"no camera 'ceiling'.*corner2"):
        uwm_envs.make("metaworld-reach", cameras=("ceiling",))
