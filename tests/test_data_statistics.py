"""Statistics equal numpy's on the frames of the given episodes, and constant dimensions are marked."""

import json

import numpy as np
import pytest

from data_episodes import make_store
from uwm_data import EpisodeStore, StoreError, StreamSpec, statistics

STREAMS = {
    "camera": StreamSpec((3, 4, 2), "uint8", 20, "video"),
    "state": StreamSpec((4,), "float32", 20, "state"),
    "action": StreamSpec((2,), "float32", 20, "action"),
}


def numpy_statistics(frames, axes):
    low, high = np.quantile(frames, [0.01, 0.99], axis=axes)
    return {"mean": frames.mean(axes), "std": frames.std(axes), "min": frames.min(axes), "max": frames.max(axes), "q01": low, "q99": high}


@pytest.fixture
def store(tmp_path):
    random = np.random.default_rng(0)
    with EpisodeStore.create(tmp_path / "s.zarr", STREAMS) as store:
        for ticks in (30, 50, 20):
            state = random.normal(size=(ticks + 1, 4)).astype("f4")
            state[:, 1] = 0  # constant at zero
            state[:, 2] = 1000 + 1e-4 * state[:, 3]  # constant to float32
            camera = random.integers(0, 200, (ticks + 1, 3, 4, 2), dtype=np.uint8)
            camera[..., 1] = 17
            store.append({"camera": camera, "state": state, "action": random.normal(size=(ticks, 2)).astype("f4")})
    return EpisodeStore.open(tmp_path / "s.zarr")


def test_small_streams_equal_numpy_in_float64(store):
    found = statistics(store, ["state", "action"], [0, 2])
    for name in ("state", "action"):
        frames = np.concatenate([store.read(index, name) for index in (0, 2)]).astype("f8")
        for key, value in numpy_statistics(frames, 0).items():
            np.testing.assert_allclose(found[name][key], value, rtol=1e-12, atol=1e-14)
        assert found[name]["count"] == len(frames)


def test_video_equals_numpy_per_channel_in_unit_range(store):
    found = statistics(store, ["camera"], [0, 1, 2])["camera"]
    frames = np.concatenate([store.read(index, "camera") for index in range(3)]) / 255.0
    for key, value in numpy_statistics(frames, (0, 1, 2)).items():
        np.testing.assert_allclose(found[key], value, rtol=1e-12, atol=1e-14)
    assert found["constant"] == [False, True]


def test_quantiles_of_few_pixels_lie_between_them_as_in_numpy(tmp_path):
    streams = {"camera": StreamSpec((1, 1, 1), "uint8", 20, "video")}
    pixels = np.array([0, 40, 90, 255], "u1").reshape(-1, 1, 1, 1)
    with EpisodeStore.create(tmp_path / "few.zarr", streams) as store:
        store.append({"camera": pixels})
        found = statistics(store, None, [0])["camera"]
    np.testing.assert_allclose([found["q01"][0], found["q99"][0]], np.quantile(pixels / 255.0, [0.01, 0.99]))


def test_constant_dimensions_are_marked(store):
    assert statistics(store, ["state"], [0, 1, 2])["state"]["constant"] == [False, True, True, False]


def test_other_episodes_have_no_influence(store):
    assert statistics(store, None, [0]) != statistics(store, None, [1])
    before = store.frames_decoded["camera"]
    statistics(store, ["camera"], [2])
    assert store.frames_decoded["camera"] - before == 21


def test_they_survive_json(store):
    found = statistics(store, None, [0, 1])
    assert json.loads(json.dumps(found)) == found
    assert list(found) == list(STREAMS)


def test_numbers_without_dimensions_work(tmp_path):
    episodes = make_store(tmp_path / "s.zarr")
    found = statistics(EpisodeStore.open(tmp_path / "s.zarr"), ["reward"], range(4))["reward"]
    np.testing.assert_allclose(found["mean"], np.concatenate([episode["reward"] for episode in episodes]).mean())
    assert found["constant"] is False


def test_no_episodes_is_an_error(store):
    with pytest.raises(StoreError, match="at least one"):
        statistics(store, None, [])
