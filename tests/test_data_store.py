"""Episodes come back bit for bit; bad data and bad folders are refused with words that help."""

import json
import multiprocessing
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_episodes import STREAMS, assert_holds, make_episode, make_store
from uwm_data import EpisodeStore, StoreError, StreamSpec


def test_episodes_come_back_bit_for_bit(tmp_path):
    episodes = make_store(tmp_path / "s.zarr")
    store = EpisodeStore.open(tmp_path / "s.zarr")
    assert_holds(store, episodes)
    assert store.meta(1) == {"task": "lift", "seed": 1, "success": False}
    assert store.streams == STREAMS
    assert store.length(3, "camera") == 16
    np.testing.assert_array_equal(store.read(3, "state", [5, 2, 5]), episodes[3]["state"][[5, 2, 5]])
    np.testing.assert_array_equal(store.read(3, "state", slice(2, 9, 3)), episodes[3]["state"][2:9:3])


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ticks=st.lists(st.integers(1, 60), min_size=1, max_size=4), shard_bytes=st.sampled_from([60, 700, 8192, 1 << 20]))
def test_any_lengths_and_shard_sizes_give_the_same_episodes(tmp_path, ticks, shard_bytes):
    episodes = make_store(tmp_path / "s.zarr", ticks, shard_bytes=shard_bytes, overwrite=True)
    assert_holds(EpisodeStore.open(tmp_path / "s.zarr"), episodes)


def test_a_store_that_is_closed_and_continued_equals_one_written_at_once(tmp_path):
    episodes = make_store(tmp_path / "once.zarr", (7, 12, 5))
    make_store(tmp_path / "twice.zarr", (7,))
    with EpisodeStore.open(tmp_path / "twice.zarr", write=True) as store:
        for seed in (1, 2):
            assert store.append(episodes[seed], {"task": "lift", "seed": seed, "success": seed % 2 == 0}) == seed
    once, twice = EpisodeStore.open(tmp_path / "once.zarr"), EpisodeStore.open(tmp_path / "twice.zarr")
    assert_holds(twice, episodes)
    assert once.checksum == twice.checksum


def test_zarr_itself_reads_the_same_frames(tmp_path):
    import zarr

    episodes = make_store(tmp_path / "s.zarr")
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    for name in STREAMS:
        np.testing.assert_array_equal(group[name][:], np.concatenate([episode[name] for episode in episodes]))
        assert group[name].attrs["rate_hz"] == STREAMS[name].rate_hz
    assert group.attrs["uwm_data"]["summary"]["episodes"] == 4


def test_committed_bytes_are_never_written_again(tmp_path):
    make_store(tmp_path / "s.zarr", (9, 9))
    files = {path: path.read_bytes() for path in (tmp_path / "s.zarr").glob("*/c.*")}
    journal = (tmp_path / "s.zarr" / "episodes.jsonl").read_bytes()
    with EpisodeStore.open(tmp_path / "s.zarr", write=True) as store:
        store.append(make_episode(9, 5))
    assert files and all(path.read_bytes().startswith(before) for path, before in files.items())
    assert (tmp_path / "s.zarr" / "episodes.jsonl").read_bytes().startswith(journal)


def test_few_files_hold_many_episodes(tmp_path):
    make_store(tmp_path / "s.zarr", [20] * 30, shard_bytes=8 << 20)
    assert sum(path.is_file() for path in (tmp_path / "s.zarr").rglob("*")) == 3 + 2 * len(STREAMS)


def test_the_card_names_cameras_rates_and_content(tmp_path):
    make_store(tmp_path / "s.zarr")
    card = EpisodeStore.open(tmp_path / "s.zarr").card
    assert card["cameras"] == ["camera"]
    assert card["rates_hz"] == {"camera": 10, "state": 20, "action": 20, "reward": 20}
    assert card["image_orientation"] == "upright"
    assert {"code_version", "created", "checksum"} <= set(card)


def test_the_checksum_names_content_and_nothing_else(tmp_path):
    def checksum(name, change=lambda episode: None, meta=None):
        with EpisodeStore.create(tmp_path / name, STREAMS, shard_bytes=300 if name == "c" else 1 << 20) as store:
            episode = make_episode(5, 0)
            change(episode)
            store.append(episode, meta or {"b": 1, "a": (1, 2)})
            return store.checksum

    def flip(episode):
        episode["state"][2, 1] += 1e-3

    plain = checksum("a")
    assert checksum("b", meta={"a": [1, 2], "b": 1}) == plain
    assert checksum("c") == plain
    assert checksum("d", flip) != plain
    assert checksum("e", meta={"b": 2, "a": (1, 2)}) != plain


def test_metadata_may_hold_numpy_numbers_and_odd_keys(tmp_path):
    with EpisodeStore.create(tmp_path / "s.zarr", STREAMS) as store:
        store.append(make_episode(3, 0), {"seed": np.int64(3), "goal": np.array([1.5, 2.0]), "by": {10: "x", 9: "y"}, "word": "größer"})
    store = EpisodeStore.open(tmp_path / "s.zarr")
    assert store.meta(0) == {"seed": 3, "goal": [1.5, 2.0], "by": {"10": "x", "9": "y"}, "word": "größer"}


def changed(**changes):
    episode = make_episode(6, 0)
    for name, change in changes.items():
        episode[name] = change(episode[name])
    return episode


def with_value(value, *place):
    def change(values):
        values[place] = value
        return values

    return change


@pytest.mark.parametrize(
    ("episode", "words"),
    [
        (changed(state=with_value(np.nan, 4, 1)), ["'state'", "nan", "frame 4", "dimension (1,)"]),
        (changed(reward=with_value(-np.inf, 2)), ["'reward'", "-inf", "frame 2"]),
        (changed(action=lambda a: a.astype("f8")), ["'action'", "float64", "float32", "astype"]),
        (changed(camera=lambda a: a[:, :3]), ["'camera'", "(4, 3, 5, 3)", "4, 5, 3"]),
        (changed(state=lambda a: a[:-1]), ["'state' has 6", "expected 7", "T + 1"]),
        (changed(camera=lambda a: a[:-1]), ["'camera' has 3", "expected 4"]),
        (changed(action=lambda a: a[:0]), ["empty", "'action' has 0 frames"]),
        ({k: v for k, v in make_episode(6, 0).items() if k != "action"}, ["lacks ['action']"]),
        ({**make_episode(6, 0), "depth": np.zeros(7)}, ["unknown ['depth']"]),
    ],
)
def test_bad_episodes_are_refused_and_leave_nothing(tmp_path, episode, words):
    with EpisodeStore.create(tmp_path / "s.zarr", STREAMS) as store:
        with pytest.raises(StoreError) as caught:
            store.append(episode)
        assert all(word in str(caught.value) for word in words), str(caught.value)
        good = make_episode(6, 1)
        store.append(good)
        assert_holds(store, [good])


def test_metadata_that_json_cannot_hold_is_refused(tmp_path):
    with EpisodeStore.create(tmp_path / "s.zarr", STREAMS) as store:
        for meta in ({"score": float("nan")}, {"env": object()}):
            with pytest.raises(StoreError, match="JSON-able"):
                store.append(make_episode(3, 0), meta)
        assert len(store) == 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (((3,), "float32", 20, "sound"), "kind"),
        (((3,), "float32", 0, "state"), "rate_hz"),
        (((3, 0), "float32", 20, "state"), "at least 1"),
        (((3,), "U5", 20, "label"), "dtype 'U5'"),
        (((3,), "float23", 20, "label"), "dtype 'float23'"),
        (((64, 64), "uint8", 20, "video"), "H, W, C"),
        (((3,), "float32", 20, "state", (), ("x", "y")), "2 names"),
    ],
)
def test_nonsense_streams_are_refused(arguments, word):
    with pytest.raises(StoreError, match=word):
        StreamSpec(*arguments)


def test_frames_outside_an_episode_are_an_error_and_not_wrapped(tmp_path):
    make_store(tmp_path / "s.zarr")
    store = EpisodeStore.open(tmp_path / "s.zarr")
    for frames in ([-1], [8], [0, 99]):
        with pytest.raises(StoreError, match="frames 0 to 7"):
            store.read(0, "state", frames)
    with pytest.raises(StoreError, match="episodes 0 to 3"):
        store.read(4, "state")
    with pytest.raises(StoreError, match="no stream 'depth'"):
        store.read(0, "depth")


def test_create_refuses_a_full_folder_and_says_how_to_go_on(tmp_path):
    episodes = make_store(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match=r"write=True.*overwrite=True"):
        EpisodeStore.create(tmp_path / "s.zarr", STREAMS)
    assert_holds(EpisodeStore.open(tmp_path / "s.zarr"), episodes)
    EpisodeStore.create(tmp_path / "s.zarr", STREAMS, overwrite=True).close()
    assert len(EpisodeStore.open(tmp_path / "s.zarr")) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def test_create_never_overwrites_a_folder_of_somebody_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match="left alone"):
        EpisodeStore.create(tmp_path, STREAMS, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_foreign_folders_are_named(tmp_path):
    import zarr

    with pytest.raises(StoreError, match="does not exist"):
        EpisodeStore.open(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is a file"):
        EpisodeStore.open(tmp_path / "file")
    zarr.open_group(tmp_path / "theirs.zarr", mode="w")
    with pytest.raises(StoreError, match="another program"):
        EpisodeStore.open(tmp_path / "theirs.zarr")
    zarr.open_group(tmp_path / "old.zarr", mode="w", zarr_format=2)
    with pytest.raises(StoreError, match="format 2"):
        EpisodeStore.open(tmp_path / "old.zarr", write=True)
    assert not (tmp_path / "old.zarr" / "writer.lock").exists()


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_damaged_metadata_is_named(tmp_path):
    path = tmp_path / "s.zarr"
    make_store(path)
    intact = (path / "zarr.json").read_text()
    edit(path / "zarr.json", lambda data: data["attributes"]["uwm_data"].update(version=7))
    with pytest.raises(StoreError, match=r"version 7.*reads version 1"):
        EpisodeStore.open(path)
    (path / "zarr.json").write_text(intact[:40])
    with pytest.raises(StoreError, match=r"zarr\.json is damaged"):
        EpisodeStore.open(path)
    (path / "zarr.json").write_text(intact)
    edit(path / "state" / "zarr.json", lambda data: data.update(data_type="float64"))
    with pytest.raises(StoreError, match=r"state.zarr\.json is damaged.*float64"):
        EpisodeStore.open(path)
    (path / "state" / "zarr.json").unlink()
    with pytest.raises(StoreError, match=r"state.zarr\.json is missing"):
        EpisodeStore.open(path)


def test_a_missing_shard_is_named_with_the_episodes_that_need_it(tmp_path):
    make_store(tmp_path / "s.zarr")
    (tmp_path / "s.zarr" / "camera" / "c.0.0.0.0").unlink()
    with pytest.raises(StoreError, match=r"camera.c\.0\.0\.0\.0 is missing; .* of 4 episodes.*--repair"):
        EpisodeStore.open(tmp_path / "s.zarr")


def test_a_flipped_bit_is_an_error_and_never_a_wrong_frame(tmp_path):
    make_store(tmp_path / "s.zarr")
    shard = tmp_path / "s.zarr" / "camera" / "c.0.0.0.0"
    data = bytearray(shard.read_bytes())
    data[10] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=r"'camera' of episode 0 is damaged: .*check sum"):
        EpisodeStore.open(tmp_path / "s.zarr").read(0, "camera")


def test_a_second_writer_is_refused_in_the_same_process(tmp_path):
    with EpisodeStore.create(tmp_path / "s.zarr", STREAMS) as first:
        for attempt in (
            lambda: EpisodeStore.open(tmp_path / "s.zarr", write=True),
            lambda: EpisodeStore.create(tmp_path / "s.zarr", STREAMS, overwrite=True),
        ):
            with pytest.raises(StoreError, match="is being written by process"):
                attempt()
        first.append(make_episode(3, 0))
    EpisodeStore.open(tmp_path / "s.zarr", write=True).close()


OPEN_AND_DIE = """
import os, signal, sys
from uwm_data import EpisodeStore
store = EpisodeStore.open(sys.argv[1], write=True)
print("open", flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_second_process_is_refused_until_the_first_one_is_dead(tmp_path):
    make_store(tmp_path / "s.zarr")
    child = subprocess.Popen(
        [sys.executable, "-c", OPEN_AND_DIE, tmp_path / "s.zarr"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout.readline() == "open\n"
        with pytest.raises(StoreError, match=f"process {child.pid} on .* since"):
            EpisodeStore.open(tmp_path / "s.zarr", write=True)
        child.stdin.write("die\n")
        child.stdin.close()
        child.wait()
    with EpisodeStore.open(tmp_path / "s.zarr", write=True) as store:
        assert store.append(make_episode(3, 9)) == 4


def test_a_reader_sees_whole_episodes_only_and_keeps_its_view(tmp_path):
    episodes = make_store(tmp_path / "s.zarr", (7, 12))
    reader = EpisodeStore.open(tmp_path / "s.zarr")
    reader.read(1, "state")
    with EpisodeStore.open(tmp_path / "s.zarr", write=True) as writer:
        for seed in range(2, 6):
            episodes.append(make_episode(9, seed))
            writer.append(episodes[-1])
            assert_holds(reader, episodes[:2])
        assert reader.refresh() == 6
        assert_holds(reader, episodes)


def test_only_a_writer_appends_and_only_until_it_is_closed(tmp_path):
    make_store(tmp_path / "s.zarr")
    store = EpisodeStore.open(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="open for reading"):
        store.append(make_episode(3, 0))
    writer = EpisodeStore.open(tmp_path / "s.zarr", write=True)
    with pytest.raises(StoreError, match="cannot be sent"):
        pickle.dumps(writer)
    writer.close()
    with pytest.raises(StoreError, match="open for reading"):
        writer.append(make_episode(3, 0))


def _read_in_child(store, queue):
    queue.put(store.read(1, "camera").tobytes())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_reader_works_in_another_process(tmp_path, method):
    episodes = make_store(tmp_path / "s.zarr")
    store = EpisodeStore.open(tmp_path / "s.zarr")
    store.read(0, "camera")
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads, which numpy and torch start
        child = context.Process(target=_read_in_child, args=(store, queue))
        child.start()
    assert queue.get(timeout=60) == episodes[1]["camera"].tobytes()
    child.join()
    assert_holds(store, episodes)


def test_a_store_without_actions_counts_ticks_by_its_first_stream(tmp_path):
    streams = {"video": StreamSpec((2, 2, 3), "uint8", 10, "video"), "sound": StreamSpec((), "int16", 1000, "state")}
    with EpisodeStore.create(tmp_path / "s.zarr", streams) as store:
        store.append({"video": np.zeros((6, 2, 2, 3), "u1"), "sound": np.arange(501, dtype="i2")})
        np.testing.assert_array_equal(store.read(0, "sound", [500]), [500])
        with pytest.raises(StoreError, match="expected 501"):
            store.append({"video": np.zeros((6, 2, 2, 3), "u1"), "sound": np.arange(600, dtype="i2")})
