"""Streams that end with the last action, and streams that an episode may lack."""

import numpy as np
import pytest

from uwm_data import EpisodeStore, StoreError, StreamSpec, Windows, check, statistics

STREAMS = {
    "state": StreamSpec((3,), "float32", 20, "state"),  # first: it counts the ticks where there are no actions
    "camera": StreamSpec((4, 5, 3), "uint8", 10, "video", closing=False),
    "wrist": StreamSpec((4, 5, 3), "uint8", 20, "video", optional=True),
    "action": StreamSpec((2,), "float32", 20, "action", optional=True),
    "reward": StreamSpec((), "float32", 20, "label", closing=False),
}


def episode(ticks, seed=0, without=()):
    random = np.random.default_rng(seed)
    lengths = {"camera": -(-ticks // 2), "state": ticks + 1, "wrist": ticks + 1, "action": ticks, "reward": ticks}
    arrays = {}
    for name, spec in STREAMS.items():
        count = 0 if name in without else lengths[name]
        arrays[name] = random.integers(0, 255, (count, *spec.shape)).astype(spec.dtype)
    return arrays


@pytest.fixture
def store(tmp_path):
    with EpisodeStore.create(tmp_path / "s.zarr", STREAMS, shard_bytes=2000) as made:
        for seed, (ticks, without) in enumerate([(7, ()), (4, ("action",)), (8, ("wrist",)), (5, ("wrist", "action")), (3, ())]):
            made.append(episode(ticks, seed, without))
    return EpisodeStore.open(tmp_path / "s.zarr")


def test_a_store_reads_back_with_its_flags_and_passes_its_check(store):
    assert store.streams == STREAMS
    assert [store.length(index, "wrist") for index in store.episodes] == [8, 5, 0, 0, 4]
    assert [store.length(index, "camera") for index in store.episodes] == [4, 2, 4, 3, 2]
    assert np.array_equal(store.read(4, "action"), episode(3, 4)["action"])
    assert not check(store.path).problems


def test_flags_are_written_only_where_they_differ(store):
    plain = StreamSpec((2,), "float32", 20, "action")
    assert set(plain.to_json()) == {"shape", "dtype", "rate_hz", "kind", "units", "names"}
    assert StreamSpec(**STREAMS["wrist"].to_json()) == STREAMS["wrist"]


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_a_missing_stream_reads_as_zeros_that_are_not_valid(store, cache_bytes):
    windows = Windows(store, {"wrist": [0, 1], "action": range(-1, 2), "state": [0]}, cache_bytes=cache_bytes)
    assert len(windows) == 7 + 4 + 8 + 5 + 3
    every = windows.batch(range(len(windows)))
    lacking = np.isin(every.episode, [2, 3])
    assert not every.valid["wrist"][lacking].any() and not every.values["wrist"][lacking].any()
    assert every.valid["wrist"][~lacking].all()
    assert not every.valid["action"][np.isin(every.episode, [1, 3])].any()
    assert np.array_equal(every.values["state"][every.episode == 3][:, 0], episode(5, 3)["state"][:5])


def test_statistics_count_only_what_is_there(store):
    assert statistics(store, ["action"], store.episodes)["action"]["count"] == 7 + 8 + 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: e.update(camera=e["camera"][:-1]), "'camera' has 3 frames, expected 4"),
        (lambda e: e.update(state=e["state"][:-1]), "T actions and T \\+ 1"),
        (lambda e: e.update(reward=e["reward"][:-1]), "T actions and T observations"),
        (lambda e: e.update(state=e["state"][:0]), "'state' has 0 frames, expected 8"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(tmp_path, change, words):
    broken = episode(7)
    change(broken)
    with EpisodeStore.create(tmp_path / "s.zarr", STREAMS) as store, pytest.raises(StoreError, match=words):
        store.append(broken)


def test_an_episode_of_nothing_is_refused(tmp_path):
    streams = {"camera": StreamSpec((4, 5, 3), "uint8", 10, "video", optional=True)}
    with EpisodeStore.create(tmp_path / "s.zarr", streams) as store, pytest.raises(StoreError, match="every stream is optional"):
        store.append({"camera": np.zeros((0, 4, 5, 3), np.uint8)})
