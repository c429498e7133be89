"""robomimic files written: nothing is lost on the way through a store, nor when the writer is killed or the disk is full."""

import errno
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from demo_files import MASKS, content, write_robomimic
from foreign import CARD, STREAMS, episode
from uwm_data import EpisodeStore, FormatError, StoreError, StreamSpec
from uwm_data.conversion import convert
from uwm_data.formats import RawEpisode, robomimic

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lift.hdf5"


def rewrite(source, target):
    """Everything of a source written as a robomimic file."""
    sink = robomimic.write(target, source.streams, source.card)
    encode = pickle.loads(pickle.dumps(sink.encoder()))
    for index in range(len(source)):
        sink.append(encode(source.read(index)))
    sink.close()


def assert_same_file(path, other):
    """Datasets and attributes are the same, type included; the other one may tell more in attributes called uwm."""
    (datasets, attributes), (others, other_attributes) = content(path), content(other)
    assert set(others) == set(datasets)
    for name, values in others.items():
        assert np.asarray(values).dtype == np.asarray(datasets[name]).dtype, name
        assert np.array_equal(values, datasets[name]), name
    assert {place for place in other_attributes if place[1] != "uwm"} == set(attributes)
    for place, value in attributes.items():
        told = other_attributes[place]
        assert np.asarray(told).dtype == np.asarray(value).dtype and np.array_equal(told, value), place


@pytest.mark.parametrize(
    ("era", "options"),
    [
        ("v0.2", {}),
        ("v0.3", {"next_obs": False, "compress": True}),
        ("v0.3", {"images": False, "absolute": True}),
        ("v0.5", {"absolute": True, "compress": True}),
    ],
)
def test_a_file_that_goes_through_a_store_and_back_is_the_same(path, tmp_path, era, options):
    write_robomimic(path, era, masks=MASKS, **options)
    with h5py.File(path, "r+") as file:
        file["mask/texts"] = ["demo_11", "demo_0"]  # variable-length ones, as newer tools write
        file["data/demo_0/src_demo_inds"] = np.array([4, 2, 9], np.int32)
        file["data/demo_0/words"] = ["lift", "the cube"]
        file["data/demo_2"].attrs["robot_id"] = np.int32(3)
        file["data/demo_2"].attrs["pose"] = np.arange(6, dtype=np.float32).reshape(2, 3)
        file["data/demo_2"].attrs["label"] = np.bytes_(b"fixed length")
        file["data"].attrs["date"] = "11-16-2022"
        file.attrs["made_by"] = "somebody"
    source = robomimic.read(path)
    assert not source.left_out
    with EpisodeStore.create(tmp_path / "s.zarr", source.streams, source.card) as store:
        for index in range(len(source)):
            raw = source.read(index)
            store.append(raw.arrays, raw.meta)
    convert(tmp_path / "s.zarr", tmp_path / "back.hdf5", "robomimic", workers=0)
    assert_same_file(path, tmp_path / "back.hdf5")
    again = robomimic.read(tmp_path / "back.hdf5")
    assert again.streams == source.streams and not again.left_out
    assert [again.read(i).meta for i in range(len(again))] == [source.read(i).meta for i in range(len(source))]


def test_absolute_actions_that_were_chosen_go_back_to_their_place(path, tmp_path):
    write_robomimic(path, images=False, absolute=True)
    source = robomimic.read(path, actions="actions_abs")
    rewrite(source, tmp_path / "back.hdf5")
    assert_same_file(path, tmp_path / "back.hdf5")
    again = robomimic.read(tmp_path / "back.hdf5")
    assert again.streams == source.streams and again.card["action"]["mode"] == "absolute"
    delta = robomimic.read(tmp_path / "back.hdf5", actions="actions")
    assert (
        np.array_equal(delta.read(0).arrays["action"], source.read(0).arrays["action_recorded"]) and delta.card["action"]["mode"] == "delta"
    )


def test_a_file_that_was_written_in_portions_is_the_same_as_well(path, tmp_path):
    write_robomimic(path, masks=MASKS)
    source = robomimic.read(path)
    for until in (1, 2, 2, 4):
        sink = robomimic.write(tmp_path / "back.hdf5", source.streams, source.card)
        for index in range(len(sink), until):
            sink.append(sink.encoder()(source.read(index)))
        sink.close()
    assert_same_file(path, tmp_path / "back.hdf5")


def test_demonstrations_keep_the_order_in_which_they_were_added(path, tmp_path):
    write_robomimic(path, images=False)
    source = robomimic.read(path)
    sink = robomimic.write(tmp_path / "back.hdf5", source.streams, source.card)
    for index in (2, 0, 3, 0):  # demo_10, demo_0, demo_11 and demo_0 once more
        sink.append(sink.encoder()(source.read(index)))
    sink.close()
    back = robomimic.read(tmp_path / "back.hdf5")
    assert [back.read(i).meta for i in range(4)] == [source.read(i).meta for i in (2, 0, 3, 0)]
    with h5py.File(tmp_path / "back.hdf5") as file:
        assert sorted(file["data"]) == ["demo_10", "demo_11", "demo_12", "demo_13"]


def test_a_file_without_rewards_and_dones_gets_none(path, tmp_path):
    write_robomimic(path, images=False)
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            del demo["rewards"], demo["dones"]
    rewrite(robomimic.read(path), tmp_path / "back.hdf5")
    assert_same_file(path, tmp_path / "back.hdf5")


def some_store(path, count=3, streams=STREAMS, card=CARD, **more):
    with EpisodeStore.create(path, streams, card) as store:
        for number in range(count):
            arrays, meta = episode(4 + 3 * number, number, streams)
            store.append(arrays, {**meta, **more})
    return EpisodeStore.open(path)


def test_any_store_goes_through_robomimic_without_a_loss(tmp_path):
    store = some_store(tmp_path / "a.zarr")
    report = convert(tmp_path / "a.zarr", tmp_path / "a.hdf5", "robomimic", workers=0, verify=True)
    assert all(like.exact for like in report.likeness.values()) and not any(report.left_out.values())
    convert(tmp_path / "a.hdf5", tmp_path / "b.zarr", workers=0)
    back = EpisodeStore.open(tmp_path / "b.zarr")
    assert back.checksum == store.checksum and list(back.streams.items()) == list(store.streams.items())
    changed = {"source", "robomimic", "created"}
    assert {key: value for key, value in back.card.items() if key not in changed} == {
        key: value for key, value in store.card.items() if key not in changed
    }


def test_a_part_of_what_was_written_has_a_card_of_its_own(tmp_path):
    some_store(tmp_path / "a.zarr")
    convert(tmp_path / "a.zarr", tmp_path / "a.hdf5", "robomimic", workers=0)
    convert(tmp_path / "a.hdf5", tmp_path / "b.zarr", workers=0, source_options={"images": False, "leave_out": ["rewards"]})
    card = EpisodeStore.open(tmp_path / "b.zarr").card
    assert card["cameras"] == [] and card["policy"] == {"cameras": [], "proprio": ["arm"], "action": "action"}
    assert set(card["rates_hz"]) == {"arm", "action"} and card["action"] == CARD["action"]


def test_the_layout_is_what_robomimics_loader_looks_for(tmp_path):
    some_store(tmp_path / "a.zarr", split="train")
    convert(tmp_path / "a.zarr", tmp_path / "a.hdf5", "robomimic", workers=0)
    with h5py.File(tmp_path / "a.hdf5", swmr=True, libver="latest") as file:  # as robomimic opens it
        assert list(file["data"]) == ["demo_0", "demo_1", "demo_2"] and file["data"].attrs["total"] == 4 + 7 + 10
        told = json.loads(file["data"].attrs["env_args"])
        assert {"env_name", "env_version", "type", "env_kwargs"} <= set(told) and told["env_name"] == "Toy"
        assert file["mask/train"][()].tolist() == [b"demo_0", b"demo_1", b"demo_2"]
        demo, arrays = file["data/demo_1"], episode(7, 1)[0]
        assert demo.attrs["num_samples"] == 7 and json.loads(demo.attrs["ep_meta"])["lang"] == "open the drawer"
        assert set(demo["obs"]) == set(demo["next_obs"]) == {"front_image", "wrist_image", "arm"}
        assert np.array_equal(demo["obs/front_image"], arrays["front"][:-1]) and np.array_equal(demo["next_obs/arm"], arrays["arm"][1:])
        assert demo["obs/front_image"].chunks == (1, 32, 48, 3) and demo["obs/front_image"].compression == "gzip"
        assert np.array_equal(demo["actions"], arrays["action"]) and np.array_equal(demo["rewards"], arrays["reward"])
        assert demo["dones"][()].tolist() == [0] * 6 + [1]


@pytest.mark.parametrize(("mode", "success", "failure"), [("both", 1, 1), ("end", 1, 1), ("success", 1, 0)])
def test_rewards_and_dones_are_made_up_by_robomimics_conventions_and_not_read_back(tmp_path, mode, success, failure):
    streams = {name: spec for name, spec in STREAMS.items() if name != "reward"}
    store = some_store(tmp_path / "a.zarr", 3, streams)  # the third one failed
    convert(tmp_path / "a.zarr", tmp_path / "a.hdf5", "robomimic", workers=0, target_options={"done_mode": mode})
    with h5py.File(tmp_path / "a.hdf5") as file:
        for demo, ends, rewarded in (("demo_0", success, 1.0), ("demo_2", failure, 0.0)):
            dones, rewards = file[f"data/{demo}/dones"][()], file[f"data/{demo}/rewards"][()]
            assert dones.tolist() == [0] * (len(dones) - 1) + [ends] and rewards.tolist() == [0.0] * (len(dones) - 1) + [rewarded]
    assert robomimic.read(tmp_path / "a.hdf5").streams == store.streams


def test_what_the_layout_cannot_hold_is_said(tmp_path):
    streams = {
        **STREAMS,
        "slow": StreamSpec((2,), "float32", 10, "state"),
        "open": StreamSpec((2,), "float32", 20, "state", closing=False),
        "maybe": StreamSpec((2,), "float32", 20, "state", optional=True),
    }
    sink = robomimic.write(tmp_path / "a.hdf5", streams, CARD)
    told = " | ".join(sink.left_out)
    assert "slow: 10 Hz" in told and "next_obs of open" in told and "maybe may be missing" in told
    sink.close()
    assert not (tmp_path / "a.hdf5").exists() and not list(tmp_path.iterdir())
    without = robomimic.write(tmp_path / "a.hdf5", STREAMS, CARD, next_obs=False)
    assert without.left_out == ["the frame after the last action of front, wrist, arm (next_obs is off)"]
    without.close()


def test_streams_without_actions_and_episodes_without_them_are_refused(tmp_path):
    with pytest.raises(FormatError, match="demonstrations with actions"):
        robomimic.write(tmp_path / "a.hdf5", {"front": STREAMS["front"]}, {})
    streams = {**STREAMS, "action": StreamSpec((2,), "float32", 20, "action", optional=True)}
    arrays, meta = episode(4, 0, streams)
    del arrays["reward"]
    streams.pop("reward")
    sink = robomimic.write(tmp_path / "b.hdf5", streams, CARD)
    sink.append(sink.encoder()(RawEpisode(dict(arrays), meta)))
    with pytest.raises(FormatError, match="no actions"):
        sink.encoder()(RawEpisode({**arrays, "action": arrays["action"][:0]}, meta))
    with pytest.raises(StoreError, match="'arm' has 4 frames"):
        sink.encoder()(RawEpisode({**arrays, "arm": arrays["arm"][:-1]}, meta))
    with pytest.raises(FormatError, match="done_mode 'never'"):
        robomimic.write(tmp_path / "c.hdf5", STREAMS, CARD, done_mode="never")
    sink.close()
    assert len(robomimic.read(tmp_path / "b.hdf5")) == 1


# ---- whatever happens while writing ------------------------------------------------------------------------------------

APPEND_AND_DIE = """
import os, signal, sys
sys.path[:0] = [sys.argv[3], sys.argv[4]]
from foreign import CARD, STREAMS, episode
from uwm_data.formats import RawEpisode, robomimic
operation, number, calls = sys.argv[2].split(":")[0], int(sys.argv[2].split(":")[1]), 0
sink = robomimic.write(sys.argv[1], STREAMS, CARD)
real = getattr(os, operation)

def fatal(*arguments, **more):
    global calls
    calls += 1
    if calls == number:
        if operation == "pwrite":
            real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2], arguments[2])
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **more)

setattr(os, operation, fatal)
for seed in range(len(sink), 3):
    sink.append(sink.encoder()(RawEpisode(*episode(4 + 3 * seed, seed))))
sink.close()
"""


@pytest.mark.parametrize(
    ("fatal", "safe"),
    [("pwrite:2", 1), ("replace:1", 0), ("replace:3", 2), ("fsync:4", 2), ("replace:4", 3), ("fsync:7", 3), ("fsync:8", 3), ("rmdir:1", 3)],
)
def test_a_writer_that_is_killed_anywhere_is_continued_by_the_same_call(tmp_path, fatal, safe):
    path = tmp_path / "a.hdf5"
    folders = [str(ROOT / "tests"), str(ROOT / "datasets")]
    done = subprocess.run([sys.executable, "-c", APPEND_AND_DIE, str(path), fatal, *folders], check=False)
    assert done.returncode == -signal.SIGKILL
    sink = robomimic.write(path, STREAMS, CARD)
    assert len(sink) == safe
    for seed in range(safe, 3):
        sink.append(sink.encoder()(RawEpisode(*episode(4 + 3 * seed, seed))))
    sink.close()
    source = robomimic.read(path)
    for seed in range(3):
        arrays, meta = episode(4 + 3 * seed, seed)
        raw = source.read(seed)
        assert raw.meta == meta and all(np.array_equal(raw.arrays[name], arrays[name]) for name in arrays)
    assert len(source) == 3 and list(tmp_path.iterdir()) == [path]


def test_a_finished_file_is_continued_and_its_masks_grow(tmp_path):
    path = tmp_path / "a.hdf5"
    for total in (2, 2, 5):
        sink = robomimic.write(path, STREAMS, CARD)
        for seed in range(len(sink), total):
            arrays, meta = episode(3, seed)
            sink.append(sink.encoder()(RawEpisode(arrays, {**meta, "split": "validation" if seed % 2 else "train"})))
        sink.close()
    source = robomimic.read(path)
    assert len(source) == 5 and [source.read(i).meta["seed"] for i in range(5)] == [0, 1, 2, 3, 4]
    assert len(robomimic.read(path, filter_key="train")) == 3 and len(robomimic.read(path, filter_key="valid")) == 2


def test_a_split_in_the_card_becomes_masks(tmp_path):
    sink = robomimic.write(tmp_path / "a.hdf5", STREAMS, {**CARD, "split": {"train": [0, 2], "validation": [1]}})
    for seed in range(3):
        sink.append(sink.encoder()(RawEpisode(*episode(3, seed))))
    sink.close()
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert file["mask/train"][()].tolist() == [b"demo_0", b"demo_2"] and file["mask/valid"][()].tolist() == [b"demo_1"]


def test_another_call_does_not_go_on_with_a_file_that_was_begun(tmp_path):
    path = tmp_path / "a.hdf5"
    sink = robomimic.write(path, STREAMS, CARD)
    sink.append(sink.encoder()(RawEpisode(*episode(3, 0))))
    with pytest.raises(StoreError, match="being written by"):
        robomimic.write(path, STREAMS, CARD)
    for finished in (False, True):
        for streams, card, options, words in (
            ({**STREAMS, "arm": StreamSpec((3,), "float64", 20, "state")}, CARD, {}, "other streams: arm is"),
            (STREAMS, {**CARD, "robot": "another arm"}, {}, "other card: robot is planar arm there and another arm now"),
            (STREAMS, CARD, {"compress": False}, "other options: compress is True there"),
        ):
            with pytest.raises(FormatError, match=words):
                robomimic.write(path, streams, card, **options)
        if not finished:
            sink.close()
    assert len(robomimic.read(path)) == 1


def test_files_of_others_are_left_alone(path, tmp_path):
    write_robomimic(path)
    before = path.read_bytes()
    with pytest.raises(FormatError, match="was not written here, so it is left alone"):
        robomimic.write(path, STREAMS, CARD)
    assert path.read_bytes() == before
    (tmp_path / "b.hdf5.partial").mkdir()
    (tmp_path / "b.hdf5.partial" / "precious.txt").write_text("mine")
    with pytest.raises(FormatError, match="not begun by this writer"):
        robomimic.write(tmp_path / "b.hdf5", STREAMS, CARD)
    assert (tmp_path / "b.hdf5.partial" / "precious.txt").read_text() == "mine"


def test_a_full_disk_costs_nothing_that_was_appended(tmp_path, monkeypatch):
    path = tmp_path / "a.hdf5"
    sink = robomimic.write(path, STREAMS, CARD)
    parts = [sink.encoder()(RawEpisode(*episode(3, seed))) for seed in range(3)]
    sink.append(parts[0])

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(FormatError, match=r"the disk is full.*The 1 demonstrations so far are safe"):
            sink.append(parts[1])
    sink.append(parts[1])
    free = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: free._replace(free=1000))
        with pytest.raises(FormatError, match=r"the disk is full.*The 2 demonstrations so far are safe"):
            sink.close()
    assert not path.exists()
    again = robomimic.write(path, STREAMS, CARD)
    assert len(again) == 2
    again.append(parts[2])
    again.close()
    assert len(robomimic.read(path)) == 3


def test_a_disk_that_fills_up_while_the_file_is_put_together_costs_nothing(tmp_path):
    path = tmp_path / "a.hdf5"
    sink = robomimic.write(path, STREAMS, CARD)
    for seed in range(4):
        sink.append(sink.encoder()(RawEpisode(*episode(20, seed))))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # the parts are smaller, the whole is not
        with pytest.raises(FormatError, match=r"writing failed .*The 4 demonstrations so far are safe"):
            sink.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not path.exists()
    again = robomimic.write(path, STREAMS, CARD)
    assert len(again) == 4
    again.close()
    assert len(robomimic.read(path)) == 4 and list(tmp_path.iterdir()) == [path]
