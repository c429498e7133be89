"""TensorFlow Datasets opens the RLDS sets that we write, and we open those that its own builder writes: every step, every field."""

import numpy as np
import pytest

import foreign
from judges import judging
from uwm_data import StreamSpec

JUDGE = "tfds"
RATE = foreign.RATE
# Every way in which a step keeps numbers: lists of floats, of integers, of bools, and raw bytes.
STREAMS = {
    **foreign.STREAMS,
    "force": StreamSpec((4,), "float64", RATE, "state"),
    "touch": StreamSpec((2,), "bool", RATE, "state"),
    "grid": StreamSpec((9, 9), "int32", RATE, "state"),
    "phase": StreamSpec((), "int64", RATE, "label", closing=False),
    "slow": StreamSpec((16, 16, 3), "uint8", RATE / 2, "video"),
}


def sample(ticks, seed):
    random = np.random.default_rng(seed + 100)
    arrays, meta = foreign.episode(ticks, seed)
    more = {"force": random.normal(size=(ticks + 1, 4)), "touch": random.random((ticks + 1, 2)) < 0.5}
    more["grid"] = random.integers(-(2**31), 2**31, (ticks + 1, 9, 9), dtype=np.int32)
    more["phase"] = random.integers(-(2**62), 2**62, ticks)
    more["slow"] = foreign.smooth_video(random, ticks // 2 + 1, 16, 16)
    return {**arrays, **more}, {**meta, "instruction": meta["instruction"] + " – größer"}


EPISODES = [sample(ticks, seed) for ticks, seed in ((11, 0), (2, 1), (9, 2), (7, 3))]


def row_of_each_tick(name, values, ticks):
    """What a step shows (ticks + 1 steps): the newest frame, and zeros for what has no value behind the last action."""
    shown = np.arange(ticks + 1) // round(RATE / STREAMS[name].rate_hz)
    padded = np.concatenate([values, np.zeros_like(values[:1])])
    return padded[np.minimum(shown, len(values))] if len(values) <= ticks and STREAMS[name].rate_hz == RATE else values[shown]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What TensorFlow Datasets told about a set of ours, and its arrays."""
    folder = tmp_path_factory.mktemp("rlds")
    left_out = judging.write("rlds", folder / "ours", EPISODES, STREAMS, image="png", shard_bytes=20_000)
    (version,) = [path.parent for path in folder.rglob("features.json")]
    told = judging.ask(JUDGE, "tfds_reads", {"path": str(version), "out": str(folder / "out")}, folder / "home")
    return told, judging.load(folder / "out"), left_out


def test_it_counts_our_episodes_and_shards(seen):
    told, _, _ = seen
    assert told["version"] == "1.0.0" and list(told["splits"]) == ["train"]
    assert told["splits"]["train"]["episodes"] == len(EPISODES) and told["splits"]["train"]["shards"] > 1


@pytest.mark.parametrize("number", range(len(EPISODES)))
def test_every_step_of_every_field_is_ours(seen, number):
    _, arrays, _ = seen
    start = f"train.{number}.steps."
    found = {name.removeprefix(start): values for name, values in arrays.items() if name.startswith(start)}
    frames, meta = EPISODES[number]
    ticks = len(frames["action"])
    places = {name: f"observation.{name}" if STREAMS[name].kind in ("video", "state") else name for name in STREAMS}
    for name, place in places.items():
        assert found[place].dtype == STREAMS[name].dtype, name
        np.testing.assert_array_equal(found[place], row_of_each_tick(name, frames[name], ticks), err_msg=name)
    last = np.arange(ticks + 1) == ticks
    np.testing.assert_array_equal(found["is_first"], np.arange(ticks + 1) == 0)
    np.testing.assert_array_equal(found["is_last"], last)
    np.testing.assert_array_equal(found["is_terminal"], last & meta["success"])
    assert set(found["language_instruction"]) == {meta["instruction"]}
    np.testing.assert_array_equal(found["discount"], np.ones(ticks + 1, np.float32))


def test_jpeg_frames_are_close(tmp_path):
    judging.write("rlds", tmp_path / "ours", image="jpeg")
    (version,) = [path.parent for path in tmp_path.rglob("features.json")]
    judging.ask(JUDGE, "tfds_reads", {"path": str(version), "out": str(tmp_path / "out")}, tmp_path / "home")
    arrays = judging.load(tmp_path / "out")
    for number, (frames, _) in enumerate(judging.EPISODES):
        for camera in ("front", "wrist"):
            mean, largest = judging.image_error(arrays[f"train.{number}.steps.observation.{camera}"], frames[camera])
            print(f"jpeg, {camera}: mean {mean:.2f}, largest {largest} grey levels from the original")
            assert mean < 4


def made_by_tfds(folder, encoding):
    """(path, {split: [arrays]}) of a set that TensorFlow Datasets' builder wrote; the last action is real."""
    splits, episodes = {}, {}
    for split, seeds in {"train": (0, 1, 2), "val": (5,)}.items():
        made = [sample(6 + seed, seed) for seed in seeds]
        rows = [
            {name: frames[name][: 6 + seed] for name in ("front", "arm", "force", "touch", "grid", "action", "reward")}
            for seed, (frames, _) in zip(seeds, made, strict=True)
        ]
        episodes[split] = rows
        splits[split] = [
            {"arrays": judging.save(folder / f"{split}-{place}", arrays), "instruction": meta["instruction"],
             "file_path": f"/raw/{'success' if meta['success'] else 'failure'}/{split}-{place}.h5"}
            for place, (arrays, (_, meta)) in enumerate(zip(rows, made, strict=True))
        ]  # fmt: skip
    request = {
        "folder": str(folder / "theirs"), "version": "2.3.4", "splits": splits,
        "images": {"front": {"shape": [32, 48, 3], "encoding": encoding}},
        "vectors": {name: [list(STREAMS[name].shape), STREAMS[name].dtype] for name in ("arm", "force", "touch", "grid", "action")},
    }  # fmt: skip
    return judging.ask(JUDGE, "tfds_writes", request, folder / "home")["path"], episodes, splits


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_we_read_what_its_builder_writes(tmp_path, encoding):
    path, episodes, splits = made_by_tfds(tmp_path, encoding)
    judging.ask(JUDGE, "tfds_reads", {"path": path, "out": str(tmp_path / "out")}, tmp_path / "home")
    theirs = judging.load(tmp_path / "out")
    source, read = judging.read("rlds", path, rate_hz=RATE)
    assert len(read) == sum(map(len, episodes.values())) and source.card["source"]["version"] == "2.3.4"
    by_file = {episode.meta["rlds"]["episode"]["file_path"]: episode for episode in read}
    places = {str(file): name.removesuffix(".episode_metadata.file_path") for name, file in theirs.items() if name.endswith("file_path")}
    for split, rows in episodes.items():
        for arrays, told in zip(rows, splits[split], strict=True):
            episode = by_file[told["file_path"]]
            assert episode.meta["instruction"] == told["instruction"]
            for name, values in arrays.items():
                place = name if name in ("action", "reward") else f"observation.{name}"
                same_values(name, encoding, episode.arrays[name], theirs[f"{places[told['file_path']]}.steps.{place}"], values)


def same_values(name, encoding, ours, theirs, original):
    """What we read is what TensorFlow Datasets reads and, where that is exact, what was written."""
    if name == "front" and encoding == "jpeg":
        # Both decode the same bytes, TensorFlow with the fast and rough transform: ours must be the closer one to the original.
        between, ours_off, theirs_off = (judging.image_error(*pair)[0] for pair in ((ours, theirs), (ours, original), (theirs, original)))
        print(f"jpeg: mean {between:.2f} grey levels between the decoders; from the original ours {ours_off:.2f}, theirs {theirs_off:.2f}")
        assert between < 2 and ours_off <= theirs_off
        return
    np.testing.assert_array_equal(ours, theirs, err_msg=name)
    # A list in a record holds single precision: that loss is the format's.
    np.testing.assert_array_equal(ours, original.astype(np.float32) if original.dtype == np.float64 else original, err_msg=name)
