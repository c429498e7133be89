"""Statistics equal numpy's on the frames of the given episodes, in one pass and bounded memory; odd dimensions are marked."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_episodes import make_store
from uwm_data import EpisodeStore, StoreError, StreamSpec, statistics
from uwm_data.statistics import QUANTILES, Summary, summarise

STREAMS = {
    "camera": StreamSpec((3, 4, 2), "uint8", 20, "video"),
    "state": StreamSpec((4,), "float32", 20, "state"),
    "action": StreamSpec((2,), "float32", 20, "action"),
}


def numpy_statistics(frames, axes):
    quantiles = {key: np.quantile(frames, share, axis=axes) for key, share in QUANTILES.items()}
    return {"mean": frames.mean(axes), "std": frames.std(axes), "min": frames.min(axes), "max": frames.max(axes), **quantiles}


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


# ----------------------------------------------------------------------------------------------- one pass, bounded memory


def frames_of(seed, count=20_000):
    """Dimensions that are easy, far from zero, heavy-tailed, and of a few values."""
    random = np.random.default_rng(seed)
    columns = [random.normal(size=count), 1e4 + random.normal(size=count), random.standard_cauchy(count), random.integers(0, 3, count)]
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("portions", [1, 7, 400])
def test_moments_and_ends_of_a_stream_beyond_the_budget_stay_exact(portions):
    frames = frames_of(0)
    found = summarise(np.array_split(frames, portions), budget_bytes=100_000)
    np.testing.assert_allclose(found["mean"], frames.mean(0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found["std"], frames.std(0), rtol=1e-9)
    assert found["min"] == frames.min(0).tolist() and found["max"] == frames.max(0).tolist() and found["count"] == len(frames)


def test_sampled_quantiles_keep_the_stated_error_and_do_not_depend_on_the_portions():
    frames, kept = frames_of(1, 60_000), 200_000 // (2 * 40)
    found = summarise(np.array_split(frames, 60), budget_bytes=200_000)
    assert {key: found[key] for key in QUANTILES} == {key: summarise([frames], budget_bytes=200_000)[key] for key in QUANTILES}
    for key, share in QUANTILES.items():
        below = (frames[:, :3] <= np.array(found[key])[:3]).mean(0)
        assert np.abs(below - share).max() < 4 * np.sqrt(share * (1 - share) / kept), key
    assert found["q10"] != np.quantile(frames, 0.1, axis=0).tolist(), "this one does not fit into the budget"


def test_memory_stays_within_the_budget_whatever_the_length():
    summary, frames = Summary(budget_bytes=400_000), np.zeros((5000, 8))
    for _ in range(40):
        summary.update(frames)
        assert sum(part.nbytes for part in (*summary.kept, *summary.keys)) <= 400_000
    assert summary.result()["count"] == 200_000


@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=5),
)
def test_any_division_into_portions_gives_the_same(values, cuts):
    frames = np.array(values, "f4")[:, None]
    found = summarise(np.split(frames, sorted(cut for cut in cuts if cut <= len(frames))))
    assert found == summarise([frames])
    np.testing.assert_allclose(found["q50"], np.quantile(frames.astype("f8"), 0.5, axis=0))


def test_constant_tiny_and_heavy_tailed_dimensions_are_marked():
    random = np.random.default_rng(0)
    frames = np.zeros((2000, 6))
    frames[:, 0] = random.normal(size=2000)
    frames[:, 1] = 0.3  # constant
    frames[:, 2] = 1000 + 0.03 * random.uniform(size=2000)  # a few hundred steps of float32
    frames[:, 3] = random.standard_cauchy(2000) ** 3
    frames[:5, 4] = 1.0  # a gripper that moved once: q01 = q99
    frames[:, 5] = 1e-9 * random.normal(size=2000)  # small, and as well resolved as any
    found = summarise([frames])
    assert found["constant"] == [False, True, False, False, False, False]
    assert found["tiny"] == [False, False, True, False, False, False]
    assert found["heavy_tailed"] == [False, False, False, True, True, False]


def test_episodes_without_an_optional_stream_count_nothing(tmp_path):
    streams = {"state": STREAMS["state"], "action": StreamSpec((2,), "float32", 20, "action", optional=True)}
    with EpisodeStore.create(tmp_path / "s.zarr", streams) as store:
        for count in (0, 6):
            store.append({"state": np.ones((7, 4), "f4"), "action": np.full((count, 2), 3, "f4")})
        assert statistics(store, None, [0, 1])["action"]["count"] == 6
        assert list(statistics(store, None, [0])) == ["state"]
