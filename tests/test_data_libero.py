"""LIBERO files read as episodes: upright images, instructions, initial states without unpickling, and broken files refused."""

import io
import json
import os
import pickle
import zipfile

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demo_files import write_libero, write_robomimic
from foreign import mutations, survives
from uwm_data import EpisodeStore, FormatError
from uwm_data.formats import libero, recognised
from uwm_data.formats.libero_states import read_initial_states

RED, BLUE = (230, 20, 20), (20, 20, 230)


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "KITCHEN_SCENE1_open_the_drawer_demo.hdf5"
    return path, write_libero(path)


def test_images_that_are_stored_upside_down_come_out_upright(task):
    path, written = task
    source = libero.read(path)
    for name, key in (("agentview", "agentview_rgb"), ("eye_in_hand", "eye_in_hand_rgb")):
        frames = source.read(0).arrays[name]
        assert (frames[:, 0, 0] == RED).all() and (frames[:, -1, -1] == BLUE).all()
        stored = written["demo_0"][f"obs/{key}"]
        assert (stored[:, -1, 0] == RED).all() and np.array_equal(frames, stored[:, ::-1])
    assert source.card["image_orientation"] == "upright" and source.card["source"]["images_stored"] == "upside down"


def test_images_of_a_file_that_says_opencv_are_left_as_they_are(tmp_path):
    written = write_libero(tmp_path / "a_demo.hdf5", convention="opencv")
    source = libero.read(tmp_path / "a_demo.hdf5")
    assert np.array_equal(source.read(0).arrays["agentview"], written["demo_0"]["obs/agentview_rgb"])
    assert source.card["source"]["images_stored"] == "upright"


def test_every_dataset_becomes_a_stream_and_every_attribute_is_kept(task):
    path, written = task
    source = libero.read(path)
    assert len(source) == 2 and not source.left_out
    episode = source.read(1)
    for name, key in source.card["source"]["names"].items():
        if source.streams[name].kind != "video":
            stored = written["demo_1"][key]
            assert episode.arrays[name].dtype == stored.dtype and np.array_equal(episode.arrays[name], stored), name
    assert set(source.card["source"]["names"].values()) == set(written["demo_1"])
    assert episode.meta["task"] == "KITCHEN_SCENE1_open_the_drawer" and episode.meta["instruction"] == "pick up the black bowl"
    assert episode.meta["success"] is True and episode.meta["source"]["name"] == "demo_1"
    assert episode.meta["libero"]["init_state"] == written["demo_1"]["states"][0].tolist()
    assert source.card["action"]["mode"] == "delta" and source.card["action"]["frame"] == "world"
    assert source.card["policy"] == {
        "cameras": ["agentview", "eye_in_hand"], "proprio": ["ee_states", "gripper_states"], "action": "action"
    }  # fmt: skip
    described = source.card["libero"]["tasks"]["KITCHEN_SCENE1_open_the_drawer"]
    assert "(:language pick up the black bowl)" in described["bddl_file_content"]


def test_what_was_seen_before_an_action_comes_before_it_where_that_is_asked_for(task):
    path, _ = task
    stored, causal = libero.read(path).read(0).arrays, libero.read(path, timing="causal")
    shifted = causal.read(0).arrays
    assert np.array_equal(shifted["action"], stored["action"][1:]) and np.array_equal(shifted["reward"], stored["reward"][1:])
    assert np.array_equal(shifted["agentview"], stored["agentview"]) and np.array_equal(shifted["ee_pos"], stored["ee_pos"])
    assert np.array_equal(shifted["states"], stored["states"][1:])
    assert causal.streams["agentview"].closing and "first action" in causal.left_out[0]
    assert "after action k" in libero.read(path).card["source"]["timing"]


def test_a_folder_of_tasks_is_one_dataset(tmp_path):
    write_libero(tmp_path / "b_demo.hdf5", (3,), states=20, instruction="put the bowl away")
    write_libero(tmp_path / "a_demo.hdf5", (4, 2), states=31, instruction="open the drawer")
    (tmp_path / "notes.txt").write_text("not a task")
    assert recognised(tmp_path) == "libero"
    source = libero.read(tmp_path)
    assert [source.read(i).meta["instruction"] for i in range(3)] == ["open the drawer", "open the drawer", "put the bowl away"]
    assert [len(source.read(i).arrays["action"]) for i in range(3)] == [4, 2, 3]
    assert "states" not in source.streams and "states: frames of (31,)" in source.left_out[0]
    assert len(source.read(2).meta["libero"]["init_state"]) == 20


def test_a_file_converts_into_a_store_and_a_source_pickles_and_forks(task, tmp_path):
    source = libero.read(task[0])
    first = source.read(0)
    copy = pickle.loads(pickle.dumps(source))
    assert np.array_equal(copy.read(0).arrays["agentview"], first.arrays["agentview"])
    assert survives(lambda: source.read(1)) == "fine"  # in a forked process, which opens the file anew
    with EpisodeStore.create(tmp_path / "s.zarr", source.streams, source.card) as store:
        for index in range(len(source)):
            episode = source.read(index)
            store.append(episode.arrays, episode.meta)
    assert EpisodeStore.open(tmp_path / "s.zarr").meta(0) == first.meta


@pytest.mark.parametrize(
    ("told", "words"),
    [('"turn on the stove"', "turn on the stove"), (["turn", "on"], "turn on"), ("", "pick it up")],
)
def test_the_instruction_is_found_wherever_it_is(tmp_path, told, words):
    path = tmp_path / "LIVING_ROOM_SCENE2_pick_it_up_demo.hdf5"
    write_libero(path)
    with h5py.File(path, "r+") as file:
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": told})
        del file["data"].attrs["bddl_file_content"]
    assert libero.read(path).read(0).meta["instruction"] == words


def test_libero_robomimic_and_other_files_are_told_apart(task, tmp_path):
    write_robomimic(tmp_path / "r.hdf5")
    assert recognised(task[0]) == "libero" and recognised(tmp_path / "r.hdf5") == "robomimic"
    assert not libero.recognise(tmp_path / "r.hdf5") and not libero.recognise(tmp_path / "none")
    assert not libero.recognise(tmp_path / "..")
    with pytest.raises(FormatError, match="not LIBERO's"):
        libero.read(tmp_path / "r.hdf5")


def broken(change):
    def apply(file):
        change(file["data/demo_1"])

    return apply


def longer(demo):
    del demo["obs/ee_pos"]
    demo["obs/ee_pos"] = np.zeros((9, 3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (broken(longer), "demo_1: obs/ee_pos has 9 rows, expected one for each of its 4 actions"),
        (broken(lambda demo: demo["obs/ee_pos"].write_direct(np.full((4, 3), np.nan))), "demo_1: stream 'ee_pos': nan at frame 0"),
        (broken(lambda demo: demo.attrs.modify("num_samples", 5)), "4 actions, and num_samples says 5"),
        (lambda file: file["data"].attrs.modify("total", 99), "total says 99 ticks, its 2 demos have 10"),
        (lambda file: file["data"].__delitem__("demo_1"), "total says 10 ticks, its 1 demos have 6"),
        (broken(lambda demo: demo.__setitem__("obs/x", h5py.ExternalLink("other.hdf5", "/x"))), "link that leaves the file"),
    ],
)
def test_bad_files_are_refused_by_name(task, change, words):
    with h5py.File(task[0], "r+") as file:
        change(file)
    with pytest.raises(FormatError, match=words):
        source = libero.read(task[0])
        for index in range(len(source)):
            source.read(index)


# ---- initial states ----------------------------------------------------------------------------------------------------


def test_initial_states_are_read_as_torch_saved_them(task, tmp_path):
    states = np.random.default_rng(0).normal(size=(50, 20))
    torch.save(states, tmp_path / "KITCHEN_SCENE1_open_the_drawer.pruned_init")
    assert np.array_equal(read_initial_states(tmp_path / "KITCHEN_SCENE1_open_the_drawer.pruned_init"), states)
    source = libero.read(task[0], initial_states=tmp_path)
    assert np.array_equal(libero.initial_states_of(source.card, "KITCHEN_SCENE1_open_the_drawer"), states)
    torch.save(np.asfortranarray(states.astype("f4")), tmp_path / "f")
    assert np.array_equal(read_initial_states(tmp_path / "f"), states.astype("f4"))


def test_initial_states_are_read_only_when_asked_for(task, tmp_path):
    torch.save(np.zeros((2, 3)), tmp_path / "KITCHEN_SCENE1_open_the_drawer.pruned_init")
    card = libero.read(task[0]).card
    assert "initial_states" not in card["libero"]
    with pytest.raises(FormatError, match="read with initial_states=FOLDER"):
        libero.initial_states_of(card, "KITCHEN_SCENE1_open_the_drawer")
    with pytest.raises(FormatError, match=r"expected KITCHEN_SCENE1_open_the_drawer\.pruned_init"):
        libero.read(task[0], initial_states=tmp_path / "elsewhere")


class Hostile:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_hostile_pickle_is_refused_and_never_run(tmp_path):
    mark = tmp_path / "it_ran"
    torch.save(Hostile(mark), tmp_path / "a.pruned_init")
    with pytest.raises(FormatError, match=r"mkdir', which is refused"):
        read_initial_states(tmp_path / "a.pruned_init")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Hostile(mark)))  # the mark would have shown it
    assert mark.exists()


@pytest.mark.parametrize(
    "value", [np.array([None, "x"], object), [1, 2], np.zeros(3), np.full((2, 2), np.inf), torch.zeros(2, 2), {"a": 1}]
)
def test_pickles_of_anything_but_finite_states_are_refused(tmp_path, value):
    torch.save(value, tmp_path / "a.pruned_init")
    with pytest.raises(FormatError):
        read_initial_states(tmp_path / "a.pruned_init")


def test_files_that_torch_did_not_save_are_refused(tmp_path):
    (tmp_path / "a").write_bytes(pickle.dumps(np.zeros((2, 2))))
    with zipfile.ZipFile(tmp_path / "b", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b/data.pkl", bytes(50 << 20))
    for name, words in (("a", "not a file that torch saved"), ("b", "is packed"), ("missing", "not a file that torch saved")):
        with pytest.raises(FormatError, match=words):
            read_initial_states(tmp_path / name)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("libero") / "a_demo.hdf5"
    write_libero(path, ticks=(3, 2))
    return path.with_name("damaged_demo.hdf5"), path.read_bytes()


def read_all(path):
    source = libero.read(path)
    for index in range(len(source)):
        source.read(index)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_damaged_files_never_do_more_than_be_refused(small, data):
    path, sound = small
    path.write_bytes(data.draw(mutations(sound)))
    assert survives(lambda: read_all(path), seconds=90) in ("fine", "refused")


def states_file():
    buffer = io.BytesIO()
    torch.save(np.random.default_rng(0).normal(size=(3, 4)), buffer)
    return buffer.getvalue()


def pickle_inside(data):
    """The archive with another data.pkl and a right checksum."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", data)
    return buffer.getvalue()


PROGRAM = zipfile.ZipFile(io.BytesIO(states_file())).read("archive/data.pkl")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=mutations(PROGRAM))
def test_damaged_pickles_never_do_more_than_be_refused(tmp_path, data):
    (tmp_path / "a").write_bytes(pickle_inside(data))
    assert survives(lambda: read_initial_states(tmp_path / "a"), seconds=60) in ("fine", "refused")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=mutations(states_file()))
def test_damaged_archives_never_do_more_than_be_refused(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    assert survives(lambda: read_initial_states(tmp_path / "a"), seconds=60) in ("fine", "refused")
