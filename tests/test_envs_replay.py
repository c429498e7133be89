"""Recorded states show what was seen, and the recomputed actions are what our controller would have needed."""

from pathlib import Path

import h5py
import numpy as np
import pytest

pytest.importorskip("robosuite")

from recordings import record
from uwm_envs.experts.motion import rotation_vector
from uwm_envs.manipulation import Manipulation
from uwm_envs.replay import REPLAYED, STIFFNESS, Replay, replayed_task

HUMAN = Path(__file__).resolve().parents[2] / "shared" / "data" / "robosuite_human"
# file: states' numbers, demonstrations, whether the last state succeeds; what can be asked of recorded and recomputed motion
PEOPLE = {
    "rsx1.0.1_door": (23, 1, True),
    "rsx1.0.1_lift": (32, 1, True),
    "rsx1.0.1_nut-assembly": (45, 1, True),
    "rsx1.0.1_pick-place": (71, 1, True),
    "rsx1.0.1_stack": (45, 1, True),
    "rsx1.0.1_wipe": (15, 1, None),
    "rsx1.4.1_lift": (32, 3, True),
}


@pytest.fixture(scope="module")
def recorded():
    return record("Lift", seed=3)


@pytest.fixture(scope="module")
def stage():
    replay = Replay("Lift", image_size=24)
    yield replay
    replay.close()


@pytest.fixture(scope="module")
def shown(stage, recorded):
    return stage.show(*recorded[:2])


def test_the_recorded_states_show_the_very_same_frames_and_proprioception(shown, recorded):
    observations = recorded[2]
    assert set(shown.observations) == {"agentview", "wrist", "proprio"}
    for name, seen in observations.items():
        assert np.array_equal(shown.observations[name], seen), name
    assert shown.success is True


def test_the_recomputed_actions_are_close_to_those_that_were_executed(shown, recorded):
    executed = recorded[1][:-1].astype(np.float32)
    assert shown.action.shape == executed.shape and shown.action.dtype == np.float32
    assert np.array_equal(shown.action[:, 6], executed[:, 6]), "the gripper keeps its sign"
    assert np.array_equal(shown.recorded, executed)
    # A plain displacement would be about a quarter; the friction of the wrist's joints is not in the model of the controller.
    for axes, least in ((slice(0, 3), 0.9), (slice(3, 6), 0.65)):
        ours, theirs = shown.action[:, axes].ravel(), executed[:, axes].ravel()
        assert np.corrcoef(ours, theirs)[0, 1] > 0.95
        assert least < ours @ theirs / (theirs @ theirs) < 1.05


def _reached(world, state, action):
    """Gripper pose one tick after `state` under `action`, by our own controller and physics."""
    world.set_flat_state(state)
    arm, _ = world._controllers()
    arm.update(force=True)
    world._advance(action)
    world._refresh()
    seen = world.privileged()
    return seen["eef_pos"], seen["eef_rot"]


def test_our_controller_gets_from_each_pose_to_the_next_with_the_recomputed_action(stage, shown, recorded):
    states, world = recorded[0], stage.world
    errors, moved, turned = [], [], []
    for tick in range(0, len(shown.action), 3):
        world.set_flat_state(states[tick + 1])
        wanted = world.privileged()
        world.set_flat_state(states[tick])
        moved.append(np.linalg.norm(wanted["eef_pos"] - world.privileged()["eef_pos"]))
        position, rotation = _reached(world, states[tick], shown.action[tick])
        errors.append(np.linalg.norm(position - wanted["eef_pos"]))
        turned.append(np.linalg.norm(rotation_vector(rotation @ wanted["eef_rot"].T)))
    assert np.mean(errors) < 0.15 * np.mean(moved)
    assert np.mean(errors) < 1e-3 and np.mean(turned) < 5e-3


def test_the_stiffness_is_that_of_the_arms_controller(stage):
    arm, _ = stage.world._controllers()
    assert np.allclose(arm.kp, STIFFNESS)
    assert np.allclose(arm.kd, 2.0 * np.sqrt(STIFFNESS)), "critically damped"


def test_what_the_limits_cut_off_is_told(stage, shown, recorded):
    states = recorded[0][::3].copy()  # three times as fast as it was
    states[:, 0] = np.arange(len(states)) * 0.05
    fast = stage.show(states, recorded[1][::3])
    assert np.abs(fast.action).max() == 1.0
    assert fast.clipped["values"] > 0 and fast.clipped["largest"] > 1.0
    assert fast.clipped["share"] == pytest.approx(fast.clipped["values"] / fast.action[:, :6].size)
    assert shown.clipped["values"] == 0 and shown.clipped["share"] == 0.0


def test_a_recording_that_stops_early_is_not_a_success(stage, recorded):
    assert stage.show(recorded[0][:12], recorded[1][:12]).success is False


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda s, a: (s[:, :-1], a), "32 numbers"),
        (lambda s, a: (s[:1], a[:1]), "at least two states"),
        (lambda s, a: (s[::2], a[::2]), r"0\.1000 s apart, expected 0\.05"),
        (lambda s, a: (np.where(np.arange(32) == 5, np.nan, s), a), "state 0 is not finite: nan at number 5"),
        (lambda s, a: (s, np.where(np.arange(7) == 2, np.inf, a)), "action 0 is not finite: inf at number 2"),
        (lambda s, a: (s, a[:-1]), "one per state"),
        (lambda s, a: (s, a[:, :4]), "actions of 7 numbers"),
        (lambda s, a: (s.astype(np.int64), a), "floats"),
    ],
)
def test_what_is_not_a_recording_of_this_world_is_named(stage, recorded, damage, message):
    with pytest.raises(ValueError, match=message):
        stage.show(*damage(*recorded[:2]))


@pytest.mark.parametrize("name, why", [("TwoArmHandover", "two arms"), ("SawyerLift", "robosuite 1"), ("", "robosuite 1")])
def test_tasks_that_cannot_be_replayed_are_refused_by_name(name, why):
    with pytest.raises(ValueError, match=rf"{name!r}.*{why}.*Lift, Stack"):
        replayed_task(name)


def test_every_replayed_task_has_a_world_and_an_instruction():
    for name, task in REPLAYED.items():
        assert task.name == name and len(task.instruction.split()) >= 3
    world = Manipulation(replayed_task("NutAssemblyRound"), cameras=())
    assert world.card["env"] == "NutAssemblyRound"
    world.close()


def test_the_cereal_box_of_robosuite_1_0_is_drawn_as_small_as_it_was():
    sizes = {}
    for version in ("1.0.0", "1.4.0"):
        replay = Replay("PickPlace", cameras=(), version=version)
        mesh = replay.world.model.mesh("Cereal_cereal_mesh")
        rows = slice(int(mesh.vertadr[0]), int(mesh.vertadr[0] + mesh.vertnum[0]))
        sizes[version] = np.ptp(replay.world.model.mesh_vert[rows], axis=0)
        replay.close()
    assert np.allclose(np.sort(sizes["1.0.0"] / sizes["1.4.0"]), [0.4, 0.4, 1.0], atol=1e-3)


def test_the_door_stands_in_the_middle_every_time():
    places = []
    for _ in range(2):
        replay = Replay("Door", cameras=())
        body = replay.world.model.body("Door_main")
        places.append(np.concatenate([body.pos, body.quat]))
        replay.close()
    assert np.array_equal(*places)
    assert np.allclose(places[0][:2], (-0.2 + 0.08, -0.35))  # from the middle of the table


@pytest.mark.parametrize("file", PEOPLE)
def test_what_people_did_replays_and_ends_as_they_left_it(file):
    path = HUMAN / f"{file}.hdf5"
    if not path.exists():
        pytest.skip(f"{path} is not here; `uwm data fetch human` gets such files")
    numbers, count, success = PEOPLE[file]
    with h5py.File(path) as opened:
        data = opened["data"]
        demonstrations = [(data[name]["states"][:], data[name]["actions"][:]) for name in data]
        replay = Replay(data.attrs["env"], cameras=(), version=data.attrs["repository_version"])
    assert len(demonstrations) == count
    for states, actions in demonstrations:
        seen = replay.show(states, actions)
        assert states.shape[1] == numbers and len(seen.action) == len(states) - 1 == len(seen.observations["proprio"]) - 1
        assert seen.success is success
        assert seen.clipped["share"] < 0.01
        if numbers == 15:
            assert not seen.observations["proprio"][:, 9:].any() and not seen.action[:, 6].any(), "a wiping tool has no fingers"
        else:
            closing = np.diff(seen.observations["proprio"][:, 9] - seen.observations["proprio"][:, 10])[seen.action[:, 6] > 0]
            assert not closing.size or (closing.min() < -0.003 and closing.max() < 0.003), "+1 closes the fingers"
    replay.close()
