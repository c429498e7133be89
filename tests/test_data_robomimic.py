"""robomimic files of every era read as episodes, and refused where they are broken."""

import json
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo_files import ERAS, FLAT, MASKS, env_args, write_robomimic
from foreign import mutations, survives
from uwm_data import FormatError, StreamSpec, cards
from uwm_data.formats import recognised, robomimic
from uwm_data.formats.controllers import action_card

ROOT = Path(__file__).resolve().parent.parent
ORDER = ["demo_0", "demo_2", "demo_10", "demo_11"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lift.hdf5"


@pytest.mark.parametrize("era", ERAS)
def test_every_dataset_of_every_era_is_read_as_it_stands(path, era):
    written = write_robomimic(path, era, absolute=era != "v0.2", masks=MASKS)
    source = robomimic.read(path)
    assert recognised(path) == "robomimic" and not source.left_out
    names = source.card["source"]["names"]
    assert {f"obs/{key}" if key.endswith("image") else key for key in names.values()} >= {"actions", "states", "rewards", "dones"}
    for index, demo in enumerate(ORDER):  # by number, not as text and not as written
        raw = source.read(index)
        arrays = written[demo]
        assert raw.meta["source"]["name"] == demo and raw.meta["task"] == "Lift" and raw.meta["success"] is True
        for name, key in names.items():
            expected = arrays[key]
            if key.startswith("obs/"):
                expected = np.concatenate([expected, arrays[f"next_{key}"][-1:]])
            assert raw.arrays[name].dtype == expected.dtype and np.array_equal(raw.arrays[name], expected), name
        assert set(names.values()) == {key for key in arrays if not key.startswith("next_obs")}
    assert (source.read(0).meta.get("instruction") == "lift the cube") == (era == "v0.5")


def test_images_are_upright_cameras_are_named_and_proprioception_is_suggested(path):
    write_robomimic(path, "v0.5")
    source = robomimic.read(path)
    frames = source.read(0).arrays["agentview"]
    assert (frames[:, 0, 0] == (230, 20, 20)).all() and source.streams["agentview"].kind == "video"
    assert source.streams["agentview_depth"] == StreamSpec((16, 24, 1), "float32", 20, "state")
    assert source.card["policy"] == {
        "cameras": ["agentview", "robot0_eye_in_hand"], "proprio": ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"],
        "action": "action",
    }  # fmt: skip
    assert source.card["image_orientation"] == "upright" and source.card["env"] == "Lift" and source.card["robot"] == "Panda"
    turned = robomimic.read(path, images_stored="upside down")
    assert np.array_equal(turned.read(0).arrays["agentview"], frames[:, ::-1])
    assert np.array_equal(turned.read(0).arrays["agentview_depth"], source.read(0).arrays["agentview_depth"][:, ::-1])
    plain = robomimic.read(path, images=False)
    assert not {"agentview", "agentview_depth", "robot0_eye_in_hand"} & set(plain.streams) and plain.card["policy"]["cameras"] == []


def test_without_next_obs_streams_end_with_the_last_action(path):
    written = write_robomimic(path, next_obs=False)
    source = robomimic.read(path)
    raw = source.read(1).arrays
    assert not source.streams["object"].closing and len(raw["object"]) == len(raw["action"]) == 5
    assert np.array_equal(raw["agentview"], written["demo_2"]["obs/agentview_image"])


def test_next_obs_that_tell_another_story_are_not_used_and_that_is_said(path):
    write_robomimic(path)
    with h5py.File(path, "r+") as file:
        file["data/demo_10/next_obs/object"][3, 0] += 1
    source = robomimic.read(path)
    assert not source.streams["object"].closing and source.streams["robot0_eef_pos"].closing
    assert source.left_out == ["next_obs/object: in demo_10 it is not obs/object one tick later, so it is not used"]
    assert len(source.read(2).arrays["object"]) == 9
    ignored = robomimic.read(path, next_obs="ignore")
    assert not any(spec.closing for spec in ignored.streams.values() if spec.kind != "action") and "next_obs/object" in ignored.left_out[0]
    trusted = robomimic.read(path, next_obs="trust")
    assert trusted.streams["object"].closing and len(trusted.read(2).arrays["object"]) == 10


def test_next_obs_that_were_not_sampled_are_checked_when_they_are_read(path):
    write_robomimic(path, images=False, ticks={f"demo_{i}": 3 for i in range(30)})
    with h5py.File(path, "r+") as file:
        file["data/demo_1/next_obs/object"][0, 0] += 1
    source = robomimic.read(path)
    source.read(0)
    with pytest.raises(FormatError, match=r"demo_1: next_obs/object is not obs/object one tick later.*next_obs=\"ignore\""):
        source.read(1)


def test_filter_keys_take_their_demonstrations_in_the_order_of_their_numbers(path):
    write_robomimic(path, masks=MASKS)
    source = robomimic.read(path, filter_key="train")
    assert [source.read(i).meta["source"]["name"] for i in range(len(source))] == ["demo_0", "demo_10", "demo_11"]
    assert source.read(0).meta["robomimic"]["masks"] == {"train": 1, "20_percent": 0}
    assert source.card["source"]["filter_key"] == "train"
    with pytest.raises(FormatError, match="no filter key 'test'; it has 20_percent, better, train"):
        robomimic.read(path, filter_key="test")
    with pytest.raises(FormatError, match="no demonstration with an action in mask/better"):
        robomimic.read(path, filter_key="better")


def test_absolute_and_delta_actions_are_both_there_and_either_can_be_the_action(path):
    written = write_robomimic(path, absolute=True)["demo_0"]
    source = robomimic.read(path)
    raw = source.read(0).arrays
    assert np.array_equal(raw["action"], written["actions"]) and np.array_equal(raw["action_abs"], written["actions_abs"])
    assert np.array_equal(raw["action_rel_rot_6d"], written["action_dict/rel_rot_6d"])
    assert source.card["action"]["mode"] == "delta" and source.card["other_actions"]["action_abs"]["mode"] == "absolute"
    assert source.streams["action"].units == ("0.05 m",) * 3 + ("0.5 rad",) * 3 + ("1",)
    swapped = robomimic.read(path, actions="actions_abs")
    raw = swapped.read(0).arrays
    assert np.array_equal(raw["action"], written["actions_abs"]) and np.array_equal(raw["action_recorded"], written["actions"])
    assert swapped.card["action"]["mode"] == "absolute" and swapped.streams["action"].units[:4] == ("m", "m", "m", "rad")
    assert next(name for name, spec in swapped.streams.items() if spec.kind == "action") == "action"
    write_robomimic(path.with_name("delta.hdf5"), images=False)
    with pytest.raises(FormatError, match=r"not every demonstration has actions_abs; it has \['actions'\]"):
        robomimic.read(path.with_name("delta.hdf5"), actions="actions_abs")


@pytest.mark.parametrize(
    ("kwargs", "size", "mode", "frame", "first"),
    [
        ({"controller_configs": FLAT}, 7, "delta", "world", ("dx", "0.05 m")),
        ({"controller_configs": [FLAT, FLAT], "robots": ["Panda", "Panda"]}, 14, "delta", "world", ("dx_0", "0.05 m")),
        ({"controller_configs": FLAT, "robots": ["Panda", "Panda"]}, 14, "delta", "world", ("dx_0", "0.05 m")),
        ({"controller_configs": {**FLAT, "control_delta": False}}, 7, "absolute", "world", ("x", "m")),
        ({"controller_configs": {"type": "OSC_POSITION", "output_max": 0.1}}, 4, "delta", "world", ("dx", "0.1 m")),
        ({"controller_configs": {"type": "JOINT_VELOCITY"}}, 8, "velocity", "joints", None),
        ({"controller_configs": env_args("v0.5")["env_kwargs"]["controller_configs"]}, 7, "delta", "world", ("dx", "0.05 m")),
        ({"controller_configs": {"body_parts": {"arms": {"right": {"type": "OSC_POSE", "input_type": "absolute"}}}}}, 7, "absolute",
         "robot base", ("x", "m")),
        ({"controller_configs": {"body_parts": {"right": {"type": "OSC_POSE"}}}}, 7, "unknown", "robot base", ("dx", "? m")),
        ({"controller_configs": "whatever"}, 7, "unknown", "unknown", None),
        ({}, 2, "unknown", "unknown", None),
    ],
)  # fmt: skip
def test_the_card_says_what_the_controller_makes_of_an_action(kwargs, size, mode, frame, first):
    card = action_card(kwargs, size)
    assert (card["mode"], card["frame"]) == (mode, frame)
    assert (card["names"][0], card["units"][0]) == first if first and mode != "unknown" else len(card["names"]) in (0, size)


WORDS = [
    "type",
    "OSC_POSE",
    "delta",
    "body_parts",
    "arms",
    "right",
    "left",
    "input_type",
    "input_ref_frame",
    "base",
    "output_max",
    "robots",
]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(config=ANYTHING, robots=ANYTHING, size=st.sampled_from([0, 1, 4, 7, 14]))
def test_no_controller_config_brings_the_card_down(config, robots, size):
    card = action_card({"controller_configs": config, "robots": robots}, size)
    assert card["mode"] in cards.MODES and card["frame"] in cards.FRAMES and card["gripper"] in cards.GRIPPERS


def test_machine_generated_sets_with_gaps_and_other_keys_are_read(path):
    ticks = {f"demo_{i}": 1 + i % 4 for i in range(0, 60, 3)}
    write_robomimic(path, images=False, ticks=ticks, masks={"20_percent": ["demo_30"]})
    with h5py.File(path, "r+") as file:
        for number, (name, demo) in enumerate(file["data"].items()):
            demo["src_demo_inds"] = np.array([4, 2, 9, 1, 7])
            demo["src_demo_labels"] = np.full((ticks[name], 1), 3)
            demo["datagen_info/object_poses/cube"] = np.full((ticks[name], 4, 4), float(number))
            demo["note"] = "made by a machine"
            demo["rewards"][:] = 0.3  # shaped: they tell no success
    source = robomimic.read(path)
    raw = source.read(2)
    assert len(source) == 20 and raw.meta["source"]["name"] == "demo_6" and "success" not in raw.meta
    assert source.streams["datagen_info_object_poses_cube"].kind == "label" and raw.arrays["src_demo_labels"].tolist() == [[3]] * 3
    assert set(raw.meta["robomimic"]["arrays"]) == {"src_demo_inds", "note"}


def test_keys_that_only_some_demonstrations_have_are_optional(path):
    write_robomimic(path)
    with h5py.File(path, "r+") as file:
        del file["data/demo_2/obs/agentview_image"], file["data/demo_2/next_obs/agentview_image"]
    source = robomimic.read(path)
    assert source.streams["agentview"].optional and source.streams["agentview"].closing
    assert [len(source.read(i).arrays["agentview"]) for i in range(3)] == [8, 0, 10]


def test_paths_that_are_left_out_are_not_even_looked_at(path):
    write_robomimic(path, images=False)
    with h5py.File(path, "r+") as file:
        del file["data/demo_2/obs/object"]
        file["data/demo_2/obs/object"] = h5py.ExternalLink("other.hdf5", "/x")
    for leave_out in (("obs/object", "next_obs/object", "states"), "obs/object,next_obs/object,states"):
        source = robomimic.read(path, leave_out=leave_out)
        assert not {"object", "states"} & set(source.streams) and "robot0_eef_pos" in source.streams
        assert len(source.read(1).arrays["action"]) == 5


def test_what_is_not_demonstration_is_named(path):
    write_robomimic(path, images=False)
    with h5py.File(path, "r+") as file:
        file["extra/table"] = np.zeros(3)
        file["data/notes"] = np.zeros(3)
        file["data/demo_0/obs/object"].attrs["unit"] = "m"
        file["data/demo_0"].attrs["reference"] = file["data"].ref
    assert robomimic.read(path).left_out == [
        "extra: not part of robomimic's layout",
        "data/notes: not a demonstration",
        "attributes of obs/object in a demonstration",
        "attribute data/demo_<i>@reference: neither text nor plain numbers",
    ]


def test_rates_come_from_the_file_or_from_whoever_reads_it(path):
    write_robomimic(path, images=False, kwargs={"control_freq": 10})
    assert robomimic.read(path).card["rate_hz"] == 10 and robomimic.read(path, rate_hz=15).streams["action"].rate_hz == 15
    with h5py.File(path, "r+") as file:
        del file["data"].attrs["env_args"]
    source = robomimic.read(path)
    assert source.card["rate_hz"] == 20 and source.card["source"]["rate_hz"] == "assumed" and source.card["action"]["mode"] == "unknown"


def test_a_source_pickles_and_reads_in_a_forked_process(path):
    write_robomimic(path)
    source = robomimic.read(path)
    first = source.read(0)
    copy = pickle.loads(pickle.dumps(source))
    assert np.array_equal(copy.read(0).arrays["agentview"], first.arrays["agentview"]) and copy.streams == source.streams
    assert survives(lambda: source.read(3)) == "fine"
    source.close()
    assert source.read(0).meta == first.meta  # opens again


def test_robosuites_own_demonstrations_are_not_robomimics(path):
    with h5py.File(path, "w") as file:
        file["data/demo_1/actions"] = np.zeros((4, 7))
        file["data/demo_1/states"] = np.zeros((4, 32))
        file["data/demo_1"].attrs["model_file"] = "<mujoco/>"
        file["data"].attrs["env"], file["data"].attrs["env_info"] = "Lift", json.dumps(env_args("v0.3")["env_kwargs"])
    assert not robomimic.recognise(path)
    for human in sorted((ROOT.parent / "shared" / "data" / "robosuite_human").glob("*.hdf5")):
        assert not robomimic.recognise(human)
    with h5py.File(path, "r+") as file:
        file["data"].attrs["env_args"] = json.dumps(env_args("v0.3"))  # what robomimic's converter adds
    assert not robomimic.recognise(path)
    with h5py.File(path, "r+") as file:
        del file["data"].attrs["env"]  # as in the files that robomimic gives out
    assert robomimic.recognise(path) and robomimic.read(path).read(0).arrays["states"].shape == (4, 32)
    for other in (path.parent, path.with_name("none"), Path(__file__)):
        assert not robomimic.recognise(other)


# ---- bad files ---------------------------------------------------------------------------------------------------------


def replaced(path, values):
    def change(file):
        del file[path]
        file[path] = values

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (replaced("data/demo_2/obs/object", np.zeros((4, 10))), "demo_2: obs/object has 4 rows, expected one for each of its 5 actions"),
        (replaced("data/demo_2/next_obs/object", np.zeros((6, 10))), "demo_2: next_obs/object has 6 rows"),
        (replaced("data/demo_2/rewards", np.zeros(3)), "demo_2: rewards has 3 rows"),
        (replaced("data/demo_2/obs/object", np.zeros((5, 11))), r"obs/object is \(\(.*cannot be one stream.*leave_out=\('obs/object',\)"),
        (replaced("data/demo_2/obs/object", np.zeros((5, 10), "f4")), "cannot be one stream"),
        (replaced("data/demo_2/actions", np.full((5, 7), np.nan)), "demo_2: stream 'action': nan at frame 0"),
        (replaced("data/demo_2/states", np.full((5, 32), np.inf)), "demo_2: stream 'states': inf at frame 0"),
        (replaced("data/demo_2/obs/object", np.zeros(5, np.dtype([("a", "f4")]))), "demo_2/obs/object is not read here.*leave_out"),
        (replaced("data/demo_2/obs/object", h5py.ExternalLink("/etc/passwd", "/x")), "a link that leaves the file"),
        (replaced("data/demo_2", np.zeros(3)), "data/demo_2 is a dataset, expected a demonstration's group"),
        (
            replaced("mask/train", np.array([b"demo_0", b"demo_99"])),
            "mask/train names demo_99 and 0 more that are not there.*complete=False",
        ),
        (replaced("mask/train", np.array([b"demo_0", b"demo_0"])), "mask/train names demo_0 twice"),
        (lambda file: file["data"].__delitem__("demo_2"), "total says 22 ticks, its 3 demos have 17"),
        (lambda file: file["data/demo_2"].__delitem__("actions"), "demo_2 has no dataset `actions`"),
        (lambda file: file["data/demo_2"].attrs.modify("num_samples", 7), "demo_2 has 5 actions, and num_samples says 7"),
        (lambda file: file["data"].attrs.create("total", "many"), "total says many ticks"),
        (lambda file: file.attrs.create("uwm", json.dumps({"version": 2})), "attribute uwm has version 2; 1 is known here"),
        (lambda file: file.attrs.create("uwm", json.dumps({"version": 1, "streams": 3})), "attribute uwm is damaged"),
        (lambda file: file.move("data", "elsewhere"), "no group `data`"),
        (lambda file: [file["data"].move(name, name[2:]) for name in list(file["data"])], "holds no demonstration"),
    ],
)
def test_bad_files_are_refused_by_name_and_left_as_they_are(path, change, words):
    write_robomimic(path, images=False, masks={"train": ["demo_0"]})
    with h5py.File(path, "r+") as file:
        change(file)
    before = path.read_bytes()
    with pytest.raises(FormatError, match=words) as told:
        source = robomimic.read(path)
        for index in range(len(source)):
            source.read(index)
    assert str(path) in str(told.value) and path.read_bytes() == before


def test_what_our_writer_kept_is_not_trusted(path, tmp_path):
    write_robomimic(path, images=False)
    source = robomimic.read(path)
    sink = robomimic.write(tmp_path / "a.hdf5", source.streams, source.card)
    sink.append(sink.encoder()(source.read(0)))
    sink.close()
    with h5py.File(tmp_path / "a.hdf5", "r+") as file:
        sound = json.loads(file.attrs["uwm"])
        file["data/demo_0"].attrs["uwm"] = '{"meta": 3}'
    with pytest.raises(FormatError, match="demo_0: its attribute uwm is damaged"):
        robomimic.read(tmp_path / "a.hdf5").read(0)
    for key, value in (
        ("streams", {"no name": {**sound["streams"]["object"]}}),
        ("card", 3),
        ("derived", 3),
        ("streams", {"a": {"path": "x"}}),
    ):
        with h5py.File(tmp_path / "a.hdf5", "r+") as file:
            file.attrs["uwm"] = json.dumps({**sound, key: value})
        with pytest.raises(FormatError, match="attribute uwm is damaged"):
            robomimic.read(tmp_path / "a.hdf5")
    del sound["streams"]["object"]
    sound["streams"]["reward"] = {**sound["streams"]["states"], "shape": [3], "path": "obs/object"}  # the data says otherwise
    sound["card"]["policy"] = "none"
    with h5py.File(tmp_path / "a.hdf5", "r+") as file:
        file.attrs["uwm"] = json.dumps(sound)
        file["data/demo_0"].attrs["uwm"] = json.dumps({"meta": {}, "sections": [], "derived": []})
    found = robomimic.read(tmp_path / "a.hdf5")
    assert len(found.read(0).arrays) == len(source.streams) and {"reward", "reward_2"} <= set(found.streams)
    assert found.streams["reward" if found.streams["reward"].shape else "reward_2"] == source.streams["object"]


def test_a_file_that_was_cut_off_is_refused(path):
    write_robomimic(path)
    data = path.read_bytes()
    for part in (0.1, 0.5, 0.9, 0.999):
        path.write_bytes(data[: int(part * len(data))])
        with pytest.raises(FormatError, match=r"if it was cut off, copy or download it again"):
            robomimic.read(path)


def test_a_file_with_fewer_demonstrations_than_its_masks_name_reads_when_that_is_said(path):
    write_robomimic(path, masks=MASKS)
    with h5py.File(path, "r+") as file:
        del file["data/demo_2"]
    source = robomimic.read(path, complete=False)
    assert len(source) == 3 and "total says" in source.left_out[0] and "mask/valid names demo_2" in " ".join(source.left_out)


def test_a_demonstration_without_an_action_is_left_out_and_named(path):
    write_robomimic(path, images=False, ticks={"demo_0": 3, "demo_1": 0})
    source = robomimic.read(path)
    assert len(source) == 1 and source.left_out == ["demo_1: no actions in them (1 demonstrations)"]


def test_options_that_do_not_exist_are_refused(path):
    write_robomimic(path, images=False)
    for options in ({"actions": "states"}, {"next_obs": "maybe"}, {"images_stored": "sideways"}):
        with pytest.raises(FormatError, match="is unknown; use one of"):
            robomimic.read(path, **options)
    with pytest.raises(FormatError, match="episodes 0 to 3, asked for 4"):
        robomimic.read(path).read(4)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("robomimic") / "small.hdf5"
    write_robomimic(path, "v0.5", ticks={"demo_0": 3, "demo_1": 2}, masks={"train": ["demo_0"]}, compress=True)
    return path.with_name("damaged.hdf5"), path.read_bytes()


def read_all(path):
    source = robomimic.read(path)
    for index in range(len(source)):
        source.read(index)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_damaged_files_never_do_more_than_be_refused(small, data):
    path, sound = small
    path.write_bytes(data.draw(mutations(sound)))
    assert survives(lambda: read_all(path), seconds=90) in ("fine", "refused")
