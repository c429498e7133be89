"""zarr 2.18 judges diffusion_policy's replay buffers: arrays, ends of episodes, codecs, windows with padding, and growing."""

import json

import numpy as np
import pytest

import foreign
from judges import judging
from uwm_data import FormatError, StreamSpec

JUDGE = "zarr-2.18"
HORIZON, BEFORE, AFTER = 6, 2, 4
STREAMS = {
    **foreign.STREAMS,
    "keypoint": StreamSpec((9, 2), "float64", foreign.RATE, "state"),
    "contacts": StreamSpec((1,), "int16", foreign.RATE, "label", closing=False),
}


def sample(ticks, seed):
    random = np.random.default_rng(seed + 7)
    arrays, meta = foreign.episode(ticks, seed)
    more = {"keypoint": random.normal(size=(ticks + 1, 9, 2)), "contacts": random.integers(-9, 9, (ticks, 1), dtype=np.int16)}
    return {**arrays, **more}, meta


EPISODES = [sample(ticks, seed) for ticks, seed in ((11, 0), (2, 1), (9, 2), (7, 3))]
ENDS = np.cumsum([len(arrays["action"]) for arrays, _ in EPISODES])


def rows_of(name, episodes=EPISODES):
    """The rows of every episode: as many observations as actions."""
    return [arrays[name][: len(arrays["action"])] for arrays, _ in episodes]


def expected_windows(rows):
    """(windows, HORIZON, ...): indices clamped into the episode."""
    found = []
    for part in rows:
        begins = np.arange(-BEFORE, len(part) + AFTER - HORIZON + 1)
        found.append(part[np.clip(begins[:, None] + np.arange(HORIZON), 0, len(part) - 1)])
    return np.concatenate(found)


def ask_about(path, out):
    request = {"path": str(path), "out": str(out), "horizon": HORIZON, "before": BEFORE, "after": AFTER}
    return judging.ask(JUDGE, "zarr_reads", request, out.parent / "home"), judging.load(out)


@pytest.fixture(scope="module", params=[None, 7_000], ids=["usual_chunks", "many_chunks"])
def seen(request, tmp_path_factory):
    """What zarr 2.18 told about a buffer of ours, and its arrays."""
    folder = tmp_path_factory.mktemp("buffer")
    options = {"chunk_bytes": request.param} if request.param else {}
    judging.write("diffusion-policy", folder / "ours.zarr", EPISODES, STREAMS, **options)
    return *ask_about(folder / "ours.zarr", folder / "out"), request.param


def test_arrays_and_ends_are_ours(seen):
    told, arrays, _ = seen
    assert told["version"].startswith("2.18.") and told["groups"] == ["data", "meta"]
    assert {name for name in arrays if name.startswith("data.")} == {f"data.{name}" for name in STREAMS}
    for name, spec in STREAMS.items():
        assert arrays[f"data.{name}"].dtype == spec.dtype
        np.testing.assert_array_equal(arrays[f"data.{name}"], np.concatenate(rows_of(name)), err_msg=name)
    assert arrays["meta.episode_ends"].dtype == np.int64
    np.testing.assert_array_equal(arrays["meta.episode_ends"], ENDS)


def test_windows_with_padding_are_ours(seen):
    _, arrays, _ = seen
    for name in STREAMS:
        np.testing.assert_array_equal(arrays[f"windows.{name}"], expected_windows(rows_of(name)), err_msg=name)


def test_chunks_lie_along_time_and_the_codec_is_the_original_disk_codec(seen):
    told, _, chunk_bytes = seen
    for name, spec in STREAMS.items():
        about = told["arrays"][f"data.{name}"]
        assert about["codec"] == {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 2, "blocksize": 0}, name
        assert about["order"] == "C" and about["filters"] is None and about["chunks"][1:] == list(spec.shape), name
    assert told["arrays"]["meta.episode_ends"]["codec"] is None
    if chunk_bytes:
        assert told["arrays"]["data.front"]["chunks"][0] < ENDS[-1], "so the case is one"


CODECS = {
    "front": {"cname": "zstd", "clevel": 5, "shuffle": 2}, "wrist": {"cname": "lz4", "clevel": 5, "shuffle": 0},
    "arm": {"cname": "blosclz", "clevel": 1, "shuffle": 1}, "action": {"cname": "zlib", "clevel": 3, "shuffle": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", ["theirs.zarr", "theirs.zarr.zip"])
def test_we_read_what_they_write(tmp_path, name):
    frames = {key: rows_of(key) for key in STREAMS}
    request = {"path": str(tmp_path / name), "episodes": saved(tmp_path, frames, range(len(EPISODES))), "codecs": CODECS}
    assert judging.ask(JUDGE, "zarr_writes", request, tmp_path / "home") == {"steps": int(ENDS[-1])}
    source, read = judging.read("diffusion-policy", tmp_path / name, rate_hz=foreign.RATE)
    assert len(source) == len(EPISODES)
    names = source.card["source"]["names"]
    assert set(names.values()) == set(STREAMS)
    for number, episode in enumerate(read):
        for ours, theirs in names.items():
            assert episode.arrays[ours].dtype == STREAMS[theirs].dtype
            np.testing.assert_array_equal(episode.arrays[ours], frames[theirs][number], err_msg=theirs)


def test_they_go_on_with_a_buffer_of_ours_and_we_read_all_of_it(tmp_path):
    path = tmp_path / "ours.zarr"
    judging.write("diffusion-policy", path, EPISODES[:2], STREAMS)
    frames = {key: rows_of(key) for key in STREAMS}
    judging.ask(JUDGE, "zarr_appends", {"path": str(path), "episodes": saved(tmp_path, frames, (2, 3))}, tmp_path / "home")
    np.testing.assert_array_equal(ask_about(path, tmp_path / "out")[1]["meta.episode_ends"], ENDS)
    # What we kept beside the buffer speaks of two episodes: that is said, with what to do, and doing it is enough.
    with pytest.raises(FormatError, match="delete it and the attribute 'uwm'"):
        judging.read("diffusion-policy", path)
    (path / "uwm_episodes.jsonl").unlink()
    attributes = json.loads((path / ".zattrs").read_text())
    (path / ".zattrs").write_text(json.dumps({key: value for key, value in attributes.items() if key != "uwm"}))
    _, read = judging.read("diffusion-policy", path, rate_hz=foreign.RATE)
    for number, episode in enumerate(read):
        for name, rows in frames.items():
            np.testing.assert_array_equal(episode.arrays[name], rows[number], err_msg=name)
    assert len(read) == len(EPISODES)


def saved(folder, frames, numbers):
    """Folders with the rows of some episodes, for the judge to load."""
    return [judging.save(folder / f"e{number}", {key: rows[number] for key, rows in frames.items()}) for number in numbers]
