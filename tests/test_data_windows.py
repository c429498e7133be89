"""Windows equal a plain numpy reference, at both ends of episodes too, and read only what is in them."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_episodes import STREAMS, make_episode, make_store
from uwm_data import EpisodeStore, StoreError, StreamSpec, Windows, clamp_frames

TICKS = (7, 12, 1, 30)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An open store and its episodes, shared: windows never change a store."""
    path = tmp_path_factory.mktemp("windows") / "s.zarr"
    episodes = make_store(path, TICKS)
    return EpisodeStore.open(path), episodes


def reference(episode, tick, stream, offsets):
    """The documented rule, one frame at a time."""
    values, valid = [], []
    newest = math.floor(tick * STREAMS[stream].rate_hz / STREAMS["action"].rate_hz)
    for offset in offsets:
        frame = newest + offset
        inside = min(max(frame, 0), len(episode[stream]) - 1)
        values.append(episode[stream][inside])
        valid.append(inside == frame)
    return np.stack(values), np.array(valid)


offset_lists = st.lists(st.integers(-12, 12), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(offsets=st.fixed_dictionaries(dict.fromkeys(STREAMS, offset_lists)), cache=st.sampled_from([0, 3000, 1 << 20]))
def test_windows_equal_the_reference_at_every_tick(data, offsets, cache):
    store, episodes = data
    windows = Windows(store, offsets, cache_bytes=cache)
    batch = windows.batch(range(len(windows)))
    ticks = [(episode, tick) for episode, count in enumerate(TICKS) for tick in range(count)]
    assert list(zip(batch.episode, batch.tick, strict=True)) == ticks
    for row, (episode, tick) in enumerate(ticks):
        for name, some in offsets.items():
            values, valid = reference(episodes[episode], tick, name, some)
            np.testing.assert_array_equal(batch.values[name][row], values)
            np.testing.assert_array_equal(batch.valid[name][row], valid)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, sum(TICKS) - 1), max_size=20), st.booleans())
def test_a_batch_equals_its_windows_one_by_one_in_any_order(data, indices, cached):
    store, _ = data
    windows = Windows(store, {"camera": [-1, 0], "action": range(-2, 4)}, cache_bytes=1 << 20 if cached else 0)
    batch = windows.batch(indices)
    assert batch.values["camera"].shape == (len(indices), 2, 4, 5, 3)
    for row, index in enumerate(indices):
        single = windows.batch([index])
        for name in windows.offsets:
            np.testing.assert_array_equal(batch.values[name][row], single.values[name][0])
            np.testing.assert_array_equal(batch.valid[name][row], single.valid[name][0])


def test_the_drawing_in_the_module_is_true():
    frames, valid = clamp_frames(np.arange(-1, 5), 4)
    assert frames.tolist() == [0, 0, 1, 2, 3, 3]
    assert valid.tolist() == [False, True, True, True, True, False]


def test_only_the_frames_in_the_windows_are_read(tmp_path):
    make_store(tmp_path / "s.zarr", (40, 40))
    windows = Windows(EpisodeStore.open(tmp_path / "s.zarr"), {"camera": [0, 4, 8]}, cache_bytes=0)
    windows.batch([0])
    assert windows.store.frames_decoded["camera"] == 3
    windows.batch([2, 10, 10, 50])  # frames 1 5 9, 5 9 13 (twice) of episode 0 and 5 9 13 of episode 1
    assert windows.store.frames_decoded["camera"] == 3 + 4 + 3
    assert windows.store.frames_decoded["state"] == 0
    windows.batch([79])  # the last tick: frames 19, 20, 20 after padding
    assert windows.store.frames_decoded["camera"] == 10 + 2


def test_a_cached_selection_is_read_once_and_nothing_else(tmp_path):
    make_store(tmp_path / "s.zarr", (10, 20, 30))
    store = EpisodeStore.open(tmp_path / "s.zarr")
    windows = Windows(store, {"camera": [0, 1]}, episodes=[0, 2])
    assert windows.cached == {"camera"} and store.frames_decoded["camera"] == 0
    for _ in range(3):
        windows.batch(range(len(windows)))
    assert store.frames_decoded["camera"] == 6 + 16


def test_small_streams_are_cached_first(data):
    store, _ = data
    offsets = {"camera": [0], "action": [0], "state": [0]}
    assert Windows(store, offsets, cache_bytes=2000).cached == {"action", "state"}
    assert Windows(store, offsets, cache_bytes=0).cached == set()


def test_rates_that_do_not_divide_never_show_a_frame_from_the_future(tmp_path):
    streams = {"camera": StreamSpec((1, 1, 1), "uint8", 30, "video"), "action": StreamSpec((1,), "float32", 50, "action")}
    with EpisodeStore.create(tmp_path / "s.zarr", streams) as store:
        store.append({"camera": np.arange(31, dtype="u1").reshape(-1, 1, 1, 1), "action": np.zeros((50, 1), "f4")})
        newest = Windows(store, {"camera": [0]}).batch(range(50)).values["camera"].reshape(-1)
    assert newest.tolist() == [tick * 30 // 50 for tick in range(50)]


def test_another_anchor_gives_one_window_per_frame_of_it(data):
    store, episodes = data
    windows = Windows(store, {"state": [0]}, anchor="camera")
    assert len(windows) == sum(len(episode["camera"]) for episode in episodes)
    np.testing.assert_array_equal(windows.batch([3]).values["state"][0, 0], episodes[0]["state"][6])


def test_selected_episodes_keep_their_numbers_and_order(data):
    store, episodes = data
    windows = Windows(store, {"action": [0]}, episodes=[3, 0])
    batch = windows.batch([0, 30])
    assert batch.episode.tolist() == [3, 0] and batch.tick.tolist() == [0, 0]
    np.testing.assert_array_equal(batch.values["action"][1, 0], episodes[0]["action"][0])


def test_windows_travel_to_another_process_without_their_cache(data):
    store, _ = data
    windows = Windows(store, {"camera": [0, 3], "action": [0]})
    expected = windows.batch([4, 40])
    sent = pickle.dumps(windows)
    assert len(sent) < 20_000
    np.testing.assert_array_equal(pickle.loads(sent).batch([4, 40]).values["camera"], expected.values["camera"])


def test_episodes_appended_later_do_not_change_windows(tmp_path):
    make_store(tmp_path / "s.zarr", (5, 6))
    with EpisodeStore.open(tmp_path / "s.zarr", write=True) as store:
        windows = Windows(store, {"state": [0]}, cache_bytes=0)
        before = windows.batch(range(11)).values["state"]
        store.append(make_episode(9, 3))
        assert len(windows) == 11
        np.testing.assert_array_equal(windows.batch(range(11)).values["state"], before)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"offsets": {"depth": [0]}}, "no stream 'depth'"),
        ({"offsets": {"state": [0]}, "anchor": "act"}, "no stream 'act'"),
        ({"offsets": {"state": []}}, "at least one"),
        ({"offsets": {"state": [0.5]}}, "whole frames"),
        ({"offsets": {"state": [0]}, "episodes": [9]}, "episodes 0 to 3"),
    ],
)
def test_wrong_requests_are_explained(data, arguments, word):
    with pytest.raises(StoreError, match=word):
        Windows(data[0], **arguments)


def test_window_numbers_outside_are_an_error(data):
    windows = Windows(data[0], {"state": [0]})
    for index in (-1, len(windows)):
        with pytest.raises(StoreError, match="0 to 49"):
            windows.batch([index])
