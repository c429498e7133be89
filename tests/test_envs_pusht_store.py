"""The committed Push-T episodes are whole, belong to this world and happen again when their actions are replayed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import uwm_envs
from uwm_data import EpisodeStore, cards, check

PLACE = Path(__file__).parents[1] / "datasets" / "pusht_state"


@pytest.fixture(scope="module")
def store():
    return EpisodeStore.open(PLACE)


def test_the_store_is_whole_small_and_described(store):
    assert len(store.episodes) >= 100 and not check(PLACE).findings
    assert sum(file.stat().st_size for file in PLACE.rglob("*") if file.is_file()) < 3e6
    assert store.card["env"] == "PushT" and "make_pusht_state.py" in store.card["command"]


def test_the_planner_solved_most_of_the_episodes(store):
    coverage = np.array([store.meta(index)["final_coverage"] for index in store.episodes])
    success = np.array([store.meta(index)["success"] for index in store.episodes])
    assert coverage.mean() >= 0.85 and np.array_equal(success, coverage >= 0.9)
    assert {store.meta(index)["strategy"] for index in store.episodes} == {"turn_first", "move_first"}


def test_the_store_was_recorded_in_the_world_of_today(store):
    now = json.loads(json.dumps(uwm_envs.make("PushT", observation="state").unwrapped.card))
    for key in ("env", "robot", "rate_hz", "proprio", "state", "max_steps", "success_coverage"):
        assert store.card[key] == now[key], key
    # what the card of today says besides (mode, frame, gripper) was not written down when the store was made
    assert set(store.card["action"]) < set(now["action"]) and not cards.differences(store.card, now)


def test_play_goes_on_where_it_stopped_pushes_the_block_about_and_counts_as_failed(tmp_path):
    command = [sys.executable, str(PLACE.parent / "make_pusht_state.py"), "--episodes", "0", "--out", str(tmp_path / "play")]
    command += ["--image-size", "32"]
    for count in ("1", "3"):
        subprocess.run([*command, "--played", count], check=True, capture_output=True, timeout=120)
    played = EpisodeStore.open(tmp_path / "play")
    assert len(played) == 3 and not any(played.meta(index)["success"] for index in played.episodes)
    states = [played.read(index, "state") for index in played.episodes]
    assert max(np.linalg.norm(each[-1, 2:4] - each[0, 2:4]) for each in states) > 0.03
    assert all(len(np.unique(played.read(index, "action"), axis=0)) > 8 for index in played.episodes), "a new target now and then"
    frames = played.read(0, "agentview")
    assert frames.shape == (len(states[0]), 32, 32, 3) and (frames[0] != frames[-1]).any(), "the camera sees it, too"


@pytest.mark.parametrize("index", [0, 1, 99])
def test_replaying_the_actions_from_the_recorded_start_gives_the_recorded_states(store, index):
    env, meta = uwm_envs.make("PushT", observation="state"), store.meta(index)
    states = [env.reset(seed=meta["seed"])[0]["state"]]
    for action in store.read(index, "action"):
        observation, reward, terminated, _, _ = env.step(action)
        states.append(observation["state"])
    # 0.1 mm: another processor may round differently, which contacts then magnify
    assert np.allclose(states, store.read(index, "state"), atol=1e-4)
    assert terminated == meta["success"] and reward == pytest.approx(meta["final_coverage"], abs=0.005)
