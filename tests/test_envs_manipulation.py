"""The robosuite worlds keep gymnasium's contract and their own: seeds, states, upright images, errors that teach."""

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

pytest.importorskip("robosuite")

TASKS = ("Lift", "Stack", "PickPlaceCan", "NutAssemblySquare", "Door")

# Prints a digest of a short seeded episode; run in another process, it must print the same.
_EPISODE = """
import hashlib, json, sys
import numpy as np
import uwm_envs
digests = {}
for name in sys.argv[1:]:
    env = uwm_envs.make(name, cameras=())
    digest = hashlib.sha256(env.reset(seed=7)[0]["proprio"].tobytes())
    generator = np.random.default_rng(0)
    for _ in range(5):
        env.step(generator.uniform(-1, 1, 7).astype(np.float32))
        digest.update(env.unwrapped.data.qpos.tobytes())
    digests[name] = digest.hexdigest()
    env.close()
print(json.dumps(digests))
"""


@pytest.fixture(scope="module")
def worlds():
    """Every task once, without cameras: building one takes a second."""
    made = {name: uwm_envs.make(name, cameras=()) for name in TASKS}
    yield made
    for env in made.values():
        env.close()


@pytest.fixture(scope="module")
def lift():
    env = uwm_envs.make("Lift", image_size=96)
    env.reset(seed=0)
    yield env
    env.close()


def _random_actions(count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, 7)).astype(np.float32)


def _digest_of_episode(env):
    digest = hashlib.sha256(env.reset(seed=7)[0]["proprio"].tobytes())
    generator = np.random.default_rng(0)
    for _ in range(5):
        env.step(generator.uniform(-1, 1, 7).astype(np.float32))
        digest.update(env.unwrapped.data.qpos.tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("name", TASKS)
def test_gymnasium_accepts_the_world(name):
    env = gymnasium.make(f"uwm/{name}-v0", image_size=16, disable_env_checker=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=True)
    env.close()


@pytest.mark.parametrize("name", uwm_envs.FELT)
def test_the_whole_state_is_felt_behind_what_the_arm_feels_and_the_card_names_every_number(name):
    env, blind = (uwm_envs.make(name, cameras=(), **more) for more in ({"proprio": "state"}, {}))
    felt, arm = env.reset(seed=3)[0]["proprio"], blind.reset(seed=3)[0]["proprio"]
    told = env.unwrapped.card["proprio"]
    assert len(told["names"]) == len(told["units"]) == len(set(told["names"])) == len(felt) > len(arm)
    assert env.observation_space["proprio"].contains(felt) and np.array_equal(felt[: len(arm)], arm)
    action = env.action_space.sample()
    moved = env.step(action)[0]["proprio"]
    assert not np.array_equal(moved, felt) and np.array_equal(env.unwrapped.observe()["proprio"], moved)
    env.close()
    blind.close()


def test_the_numbers_of_a_state_are_those_of_the_scene():
    env = uwm_envs.make("NutAssemblySquare", cameras=(), proprio="state")
    felt = dict(zip(env.unwrapped.card["proprio"]["names"], env.reset(seed=5)[0]["proprio"].tolist(), strict=True))
    scene = env.unwrapped.privileged()
    read = lambda *names: np.array([felt[name] for name in names])  # noqa: E731
    assert np.allclose(read("handle_pos_x", "handle_pos_y", "handle_pos_z"), scene["handle_pos"], atol=1e-6)
    away = read("gripper_to_nut_x", "gripper_to_nut_y", "gripper_to_nut_z")
    assert np.allclose(away, scene["nut_pos"] - scene["eef_pos"], atol=1e-6)
    turned = np.stack([read("nut_r00", "nut_r10", "nut_r20"), read("nut_r01", "nut_r11", "nut_r21")], axis=1)
    assert np.allclose(turned, scene["nut_rot"][:, :2], atol=1e-6)
    env.close()
    with pytest.raises(ValueError, match="proprio must be one of"):
        uwm_envs.make("Lift", cameras=(), proprio="everything")


def test_an_episode_is_the_same_in_another_process_and_after_another_history(worlds):
    there = subprocess.run([sys.executable, "-c", _EPISODE, *TASKS], capture_output=True, text=True, check=True)
    for env in worlds.values():
        env.reset(seed=99)
        env.step(np.ones(7, np.float32))
        env.reset()
    here = {name: _digest_of_episode(env) for name, env in worlds.items()}
    assert json.loads(there.stdout) == here
    assert there.stderr == "", "starting a world must not print anything"


@pytest.mark.parametrize("name", TASKS)
def test_different_seeds_give_different_scenes(worlds, name):
    scenes = [worlds[name].reset(seed=seed)[0]["proprio"] for seed in (1, 2)]
    assert np.abs(scenes[0] - scenes[1]).max() > 1e-4


@pytest.mark.parametrize("name", TASKS)
def test_a_restored_world_continues_bit_for_bit_and_draws_the_same_next_episode(worlds, name):
    env = worlds[name]
    env.reset(seed=3)
    actions = _random_actions(20)
    for action in actions[:8]:
        env.step(action)
    state = env.unwrapped.get_state()

    def future():
        positions = []
        for action in actions[8:]:
            env.step(action)
            positions.append(env.unwrapped.data.qpos.copy())
        return np.array(positions), env.reset()[0]["proprio"]

    first = future()
    env.reset(seed=4)  # another scene, another posture, another controller goal
    env.step(actions[0])
    env.unwrapped.set_state(state)
    second = future()
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


def test_a_state_of_another_task_is_refused(worlds):
    worlds["Lift"].reset(seed=0)
    worlds["Door"].reset(seed=0)
    with pytest.raises(ValueError, match=r"'Lift'.*'Door'"):
        worlds["Door"].unwrapped.set_state(worlds["Lift"].unwrapped.get_state())


@pytest.mark.parametrize("camera", ["agentview", "wrist"])
def test_the_red_cube_is_where_an_upright_image_must_show_it(lift, camera):
    observation, _ = lift.reset(seed=2)
    world = lift.unwrapped
    name = {"wrist": "robot0_eye_in_hand"}.get(camera, camera)
    seen = world.data.cam(name).xmat.reshape(3, 3).T @ (world.privileged()["cube_pos"] - world.data.cam(name).xpos)
    half = 96 / 2 / np.tan(np.deg2rad(world.model.cam(name).fovy[0]) / 2)
    # The camera looks along -z with y up; rows of an upright image grow downwards.
    row, column = 48 + half * seen[1] / seen[2], 48 - half * seen[0] / seen[2]
    red = observation[camera].astype(int)
    redness = red[..., 0] - red[..., 1:].max(axis=-1)
    rows, columns = np.nonzero(redness > 60)
    assert rows.size > 3
    assert abs(rows.mean() - row) < 4
    assert abs(columns.mean() - column) < 4


def test_observations_describe_the_end_of_the_tick(lift):
    lift.reset(seed=0)
    before = lift.unwrapped.privileged()["eef_pos"]
    for _ in range(5):
        observation = lift.step(np.array([0, 0, -1, 0, 0, 0, 0], np.float32))[0]
    after = lift.unwrapped.privileged()["eef_pos"]
    assert after[2] < before[2] - 0.02
    assert np.allclose(observation["proprio"][:3], after, atol=1e-6)


@pytest.mark.parametrize("index, value", [(2, np.nan), (0, 1.5), (6, -np.inf)])
def test_a_bad_action_is_named_by_index_value_and_limits(lift, index, value):
    action = np.zeros(7)
    action[index] = value
    with pytest.raises(ValueError, match=rf"action\[{index}\] = {value} .*-1.0, 1.0"):
        lift.step(action)


def test_an_action_of_another_shape_is_refused(lift):
    with pytest.raises(ValueError, match=r"\(7,\).*\(2,\)"):
        lift.step(np.zeros(2))


def test_the_card_can_be_written_as_json_and_names_what_a_checkpoint_must_match(lift):
    card = json.loads(json.dumps(lift.unwrapped.card))
    assert card["cameras"] == ["agentview", "wrist"]
    assert card["image_orientation"] == "upright"
    assert card["render_profile"] == "fast"
    assert len(card["action"]["names"]) == len(card["action"]["units"]) == 7
    assert [card["action"][key] for key in ("mode", "frame", "gripper")] == ["delta", "robot base", "-1 opens, +1 closes"]
    assert len(card["proprio"]["names"]) == len(card["proprio"]["units"]) == 11
    assert card["versions"]["robosuite"] == "1.5.2"


def test_an_episode_is_cut_at_the_limit(worlds):
    env = uwm_envs.make("Lift", cameras=(), max_steps=3)
    env.reset(seed=0)
    ends = [env.step(np.zeros(7, np.float32))[2:4] for _ in range(3)]
    env.close()
    assert ends == [(False, False), (False, False), (False, True)]


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="did you mean 'Lift'"):
        uwm_envs.make("Lfit")
    with pytest.raises(ValueError, match=r"expected wrist or one of .*agentview"):
        uwm_envs.make("Lift", cameras=("agentwiev",))
    with pytest.raises(ValueError, match="expected one of fast, quality"):
        uwm_envs.make("Lift", render="pretty")


def test_without_robosuite_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "robosuite", None)
    with pytest.raises(ImportError, match=r"uwm\[sim\]"):
        uwm_envs.make("Lift")


def test_importing_the_package_imports_no_simulator():
    code = "import sys, uwm_envs; print([m for m in ('mujoco', 'robosuite', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_object_can_be_moved_between_two_ticks_and_what_cannot_be_is_said(worlds):
    for name, object_name in (("Lift", "cube"), ("Stack", "cubeA"), ("PickPlaceCan", "can"), ("NutAssemblySquare", "nut")):
        env = worlds[name]
        env.reset(seed=2)
        before = env.unwrapped.privileged()[f"{object_name}_pos"]
        env.unwrapped.shift_object(np.array([0.02, -0.01]))
        moved = env.unwrapped.privileged()[f"{object_name}_pos"]
        assert np.allclose(moved - before, [0.02, -0.01, 0.0], atol=1e-9)
        env.step(np.zeros(7, np.float32))
        assert np.abs(env.unwrapped.privileged()[f"{object_name}_pos"] - moved)[:2].max() < 0.005, "it stays where it was put"
    worlds["Door"].reset(seed=0)
    with pytest.raises(ValueError, match="nothing lies about freely"):
        worlds["Door"].unwrapped.shift_object(np.zeros(2))
