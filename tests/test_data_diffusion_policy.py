"""Replay buffers: Push-T comes in as it is, what goes out is plain zarr 2, and no archive, codec or size is trusted."""

import errno
import io
import json
import os
import pickle
import time
import zipfile

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from PIL import Image

from dying import killed_at_write
from foreign import CARD, STREAMS, episode, mutations, smooth_video, survives
from replay_buffers import ENDS, change, copied, pusht_arrays, raw_array, raw_buffer, write_buffer, zipped
from uwm_data import FormatError, StoreError, StreamSpec, durable
from uwm_data.formats import RawEpisode, chunk_codecs
from uwm_data.formats import diffusion_policy as policy
from uwm_data.formats import video as videos

TICKS = (3, 11, 7, 1)


def rows(arrays, index, ends=ENDS):
    start = ends[index - 1] if index else 0
    return {name: values[start : ends[index]] for name, values in arrays.items()}


# ---- reading what others wrote --------------------------------------------------------------------------------------


def test_pusht_comes_in_with_integer_video_its_rate_and_a_policy_that_does_not_see_the_block(tmp_path):
    arrays = pusht_arrays()
    path = write_buffer(tmp_path / "pusht.zarr", arrays)
    assert policy.recognise(path)
    source = policy.read(path)
    assert len(source) == 3
    assert source.card["rate_hz"] == 10 and source.card["image_orientation"] == "upright"
    assert source.card["action"]["mode"] == "absolute" and source.card["action"]["names"] == ["x", "y"]
    assert source.card["policy"] == {"cameras": ["img"], "proprio": ["agent_pos"], "action": "action"}
    assert source.streams["img"] == StreamSpec((96, 96, 3), "uint8", 10, "video", closing=False)
    assert source.streams["state"].names[4] == "block_angle" and source.streams["n_contacts"].kind == "label"
    for index in range(3):
        found = source.read(index)
        for name, values in rows(arrays, index).items():
            assert np.array_equal(found.arrays[name], values), name
        assert found.arrays["img"].dtype == np.uint8
        assert np.array_equal(found.arrays["agent_pos"], rows(arrays, index)["state"][:, :2])
        assert found.meta["source"] == {"format": "diffusion-policy", "index": index}
        assert (found.arrays["img"][:, 0, 0] == (230, 20, 20)).all(), "the red corner is at the top left"


@pytest.mark.parametrize("root", ["", "pusht/pusht_replay.zarr/"])
def test_a_zip_reads_like_its_folder_and_survives_pickling(tmp_path, root):
    arrays = pusht_arrays()
    path = zipped(write_buffer(tmp_path / "a.zarr", arrays), tmp_path / "a.zarr.zip", root)
    assert policy.recognise(path)
    source = pickle.loads(pickle.dumps(policy.read(path)))
    assert np.array_equal(source.read(2).arrays["img"], rows(arrays, 2)["img"])
    source.close()
    assert np.array_equal(source.read(0).arrays["state"], rows(arrays, 0)["state"])


def test_of_two_entries_with_one_name_the_last_counts_as_for_zarr_itself(tmp_path):
    target = zipped(raw_buffer(tmp_path / "a", "state", np.zeros((4, 2), "<f4")), tmp_path / "twice.zip")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(target, "a") as file:
        file.writestr("data/state/0.0", np.ones((2, 2), "<f4").tobytes())
    assert policy.read(target, rate_hz=10).read(0).arrays["state"].all()
    with zarr.storage.ZipStore(target, mode="r") as store:
        assert zarr.open_group(store, mode="r", zarr_format=2)["data/state"][:2].all()


def test_float_images_that_are_no_whole_numbers_stay_numbers_and_are_told(tmp_path):
    arrays = pusht_arrays()
    half = write_buffer(tmp_path / "half.zarr", {**arrays, "img": arrays["img"] / 255})
    source = policy.read(half)
    assert source.streams["img"].kind == "state" and source.streams["img"].dtype == "float32"
    assert "data/img" in source.left_out[0]
    assert np.array_equal(source.read(1).arrays["img"], rows(arrays, 1)["img"] / 255)
    late = arrays["img"].copy()
    late[-1, 5, 5, 0] = 7.5
    path = write_buffer(tmp_path / "late.zarr", {**arrays, "img": late})
    with pytest.raises(FormatError, match=r"late\.zarr, episode 2 .*data/img.*float_images=keep"):
        policy.read(path).read(2)
    assert np.array_equal(policy.read(path, float_images="keep").read(2).arrays["img"], late[5:])


def test_other_buffers_tell_their_rate_by_timestamps_or_by_word(tmp_path):
    arrays = {"action": np.ones((12, 3), np.float32), "robot_eef_pose": np.ones((12, 6)), "stage": np.zeros(12, np.int64)}
    path = write_buffer(tmp_path / "a.zarr", arrays)
    with pytest.raises(FormatError, match="rate_hz"):
        policy.read(path)
    source = policy.read(path, rate_hz="12.5")
    assert source.card["rate_hz"] == 12.5 and source.card["action"]["mode"] == "unknown"
    assert source.card["image_orientation"] == "unknown"
    assert [source.streams[name].kind for name in ("action", "robot_eef_pose", "stage")] == ["action", "state", "label"]
    timed = write_buffer(tmp_path / "b.zarr", {**arrays, "timestamp": 1e9 + np.arange(12) / 20})
    assert policy.read(timed).card["rate_hz"] == 20


def test_images_that_are_stored_otherwise_come_out_upright(tmp_path):
    frames = smooth_video(np.random.default_rng(0), 12, 16, 24)
    path = write_buffer(tmp_path / "a.zarr", {"action": np.ones((12, 2), np.float32), "front": frames[:, ::-1]})
    source = policy.read(path, rate_hz=20, images_stored="upside down")
    assert np.array_equal(source.read(2).arrays["front"], frames[5:])
    assert source.card["image_orientation"] == "upright" and source.card["source"]["images_stored"] == "upside down"


@pytest.mark.parametrize(
    "codec",
    [
        numcodecs.Blosc("lz4", 5, numcodecs.Blosc.NOSHUFFLE), numcodecs.Blosc("zstd", 5, numcodecs.Blosc.BITSHUFFLE),
        numcodecs.Zstd(3), numcodecs.LZ4(), numcodecs.Zlib(1), numcodecs.GZip(1), numcodecs.BZ2(1), numcodecs.LZMA(),
    ],
    ids=lambda codec: codec.codec_id,
)  # fmt: skip
def test_every_allowed_codec_gives_the_same_numbers_as_zarr_itself(tmp_path, codec):
    frames = np.random.default_rng(0).integers(0, 9, (12, 8, 9, 3), dtype=np.uint8)
    path = write_buffer(tmp_path / "a.zarr", {"action": np.ones((12, 2), np.float32), "front": frames}, compressors=codec)
    assert json.loads((path / "data/front/.zarray").read_text())["compressor"]["id"] == codec.codec_id
    assert np.array_equal(policy.read(path, rate_hz=10).read(2).arrays["front"], frames[5:])


@pytest.mark.parametrize(
    "filters",
    [
        [numcodecs.Delta("<i4")], [numcodecs.Delta("<i4", "<i2")], [numcodecs.Shuffle(4)],
        [numcodecs.FixedScaleOffset(0, 1, "<i4", "<i2")], [numcodecs.Delta("<i4"), numcodecs.Shuffle(4)],
    ],
    ids=str,
)  # fmt: skip
def test_filters_are_undone(tmp_path, filters):
    values = np.random.default_rng(0).integers(0, 300, (12, 7)).astype("<i4")
    path = write_buffer(tmp_path / "a.zarr", {"action": np.ones((12, 2), np.float32)})
    write_buffer(tmp_path / "b.zarr", {"count": values}, filters=filters, compressors=numcodecs.Zstd())
    (tmp_path / "b.zarr/data/count").rename(path / "data/count")
    assert np.array_equal(policy.read(path, rate_hz=10).read(1).arrays["count"], values[4:5])


def test_bits_chunks_in_every_direction_orders_and_missing_chunks_follow_the_format(tmp_path):
    flags = np.random.default_rng(0).integers(0, 2, (4, 5)).astype(bool)
    packed = numcodecs.PackBits()
    path = raw_buffer(tmp_path / "a", "flags", flags, (2, 5), lambda part: packed.encode(part).tobytes(), filters=[packed.get_config()])
    assert np.array_equal(policy.read(path, rate_hz=10).read(1).arrays["flags"], flags[2:])
    values = np.random.default_rng(1).normal(size=(12, 5, 7)).astype(np.float32)
    path = write_buffer(tmp_path / "b", {"action": values[:, 0]})
    made = zarr.open_group(path / "data", mode="a", zarr_format=2)
    made.create_array(
        "grid", shape=values.shape, dtype="f4", chunks=(5, 2, 3), order="F", chunk_key_encoding={"name": "v2", "separator": "/"}
    )
    made["grid"][...] = values
    made.create_array("rare", shape=(12,), dtype="f4", chunks=(4,), fill_value=2.5)[:4] = 1
    source = policy.read(path, rate_hz=10)
    assert np.array_equal(source.read(2).arrays["grid"], values[5:])
    assert source.read(2).arrays["rare"].tolist() == [2.5] * 7 and source.read(0).arrays["rare"].tolist() == [1] * 4


def jpeg2k(part, **options):
    held = io.BytesIO()
    Image.fromarray(part[0]).save(held, "JPEG2000", irreversible=False, no_jp2=True, **options)
    return held.getvalue()


def test_images_of_jpeg_2000_are_decoded_without_imagecodecs(tmp_path):
    frames = smooth_video(np.random.default_rng(0), 4, 24, 32)
    told = {"id": "imagecodecs_jpeg2k", "level": 50}
    path = raw_buffer(tmp_path / "a", "front", frames, (1, 24, 32, 3), jpeg2k, compressor=told)
    assert np.array_equal(policy.read(path, rate_hz=10).read(1).arrays["front"], frames[2:])
    small = raw_buffer(tmp_path / "b", "front", frames, (1, 24, 32, 3), lambda part: jpeg2k(part[:, :9]), compressor=told)
    with pytest.raises(FormatError, match="9 x 32 pixels, expected 24 x 32"):
        policy.read(small, rate_hz=10).read(0)
    change(path, "data/front", chunks=[2, 24, 32, 3])
    with pytest.raises(FormatError, match="one uint8 image a chunk"):
        policy.read(path, rate_hz=10).read(0)


def test_a_real_robots_folder_brings_its_videos(tmp_path):
    arrays = {"action": np.arange(24, dtype=np.float32).reshape(12, 2), "timestamp": 1e9 + np.arange(12) / 10}
    write_buffer(tmp_path / "demo" / "replay_buffer.zarr", arrays)
    films = {}
    for index, (start, stop) in enumerate(zip((0, *ENDS), ENDS, strict=False)):
        films[index] = smooth_video(np.random.default_rng(index), 3 * (stop - start), 32, 48)
        for camera in ("0", "1") if index != 1 else ("0",):
            file = tmp_path / "demo" / "videos" / str(index) / f"{camera}.mp4"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(videos.encode(films[index], 30.0))
    assert policy.recognise(tmp_path / "demo")
    source = pickle.loads(pickle.dumps(policy.read(tmp_path / "demo")))
    assert source.card["policy"]["cameras"] == ["camera_0", "camera_1"]
    assert source.streams["camera_1"].optional and not source.streams["camera_0"].optional
    for index, film in films.items():
        found = source.read(index).arrays
        assert found["camera_0"].shape == film[::3].shape
        assert np.abs(found["camera_0"].astype(int) - film[::3]).mean() < 6
        assert len(found["camera_1"]) == (0 if index == 1 else len(film) // 3)
    small = policy.read(tmp_path / "demo", video_size=(16, 24)).read(2).arrays["camera_0"]
    assert small.shape == (7, 16, 24, 3)
    (tmp_path / "demo/videos/2/0.mp4").write_bytes(videos.encode(films[2][:12], 30.0))
    with pytest.raises(FormatError, match="has 12 frames"):
        source.read(2)
    (tmp_path / "demo/videos/3").mkdir()
    with pytest.raises(FormatError, match="videos of episode 3, and the replay buffer has 3"):
        policy.read(tmp_path / "demo")


# ---- writing ----------------------------------------------------------------------------------------------------------

PLAIN = {name: StreamSpec(**{**spec.to_json(), "closing": False}) for name, spec in STREAMS.items()}
MIXED = {
    **PLAIN,
    "slow": StreamSpec((5,), "float64", 5.0, "state", closing=False),
    "depth": StreamSpec((8, 9, 1), "uint16", 20.0, "state", closing=False, optional=True),
    "stamp": StreamSpec((), "uint64", 20.0, "label", closing=False),
    "touch": StreamSpec((), "bool", 20.0, "label", closing=False),
    "grip": StreamSpec((), "int8", 10.0, "action"),
}


def mixed_episode(ticks, seed):
    random, arrays = np.random.default_rng(seed), {}
    smooth, meta = episode(ticks, seed, PLAIN)
    for name, spec in MIXED.items():
        count = spec.frames(ticks, 20.0)
        if name in smooth:
            arrays[name] = smooth[name]
        elif np.dtype(spec.dtype).kind in "iu":
            limits = np.iinfo(spec.dtype)
            arrays[name] = random.integers(limits.min, limits.max, (count, *spec.shape), dtype=spec.dtype, endpoint=True)
        else:
            arrays[name] = random.normal(size=(count, *spec.shape)).astype(spec.dtype)
    if seed % 2:
        arrays["depth"] = arrays["depth"][:0]
    return RawEpisode(arrays, meta)


def write_mixed(path, ticks=TICKS, streams=MIXED, make=mixed_episode, card=CARD, **options):
    sink = policy.write(path, streams, card, **options)
    encode = pickle.loads(pickle.dumps(sink.encoder()))
    for seed in range(len(sink), len(ticks)):
        sink.append(encode(make(ticks[seed], seed)))
    sink.close()
    return sink


def assert_same(found, expected):
    assert found.meta == expected.meta
    assert set(found.arrays) == set(expected.arrays)
    for name, values in expected.arrays.items():
        assert found.arrays[name].dtype == values.dtype
        assert np.array_equal(found.arrays[name], values), name


def test_what_is_written_comes_back_bit_for_bit_at_every_rate_and_dtype(tmp_path):
    sink = write_mixed(tmp_path / "a.zarr", chunk_bytes=20_000)
    assert sink.left_out == ("depth: where an episode lacks it, others read zeros",)
    source = pickle.loads(pickle.dumps(policy.read(tmp_path / "a.zarr")))
    assert source.streams == MIXED and len(source) == len(TICKS)
    assert {key: value for key, value in source.card.items() if key != "source"} == CARD
    for seed, ticks in enumerate(TICKS):
        assert_same(source.read(seed), mixed_episode(ticks, seed))


def test_zarr_itself_reads_what_is_written(tmp_path):
    write_mixed(tmp_path / "a.zarr", chunk_bytes=20_000)
    root = zarr.open_group(tmp_path / "a.zarr", mode="r", zarr_format=2)
    assert root["meta/episode_ends"][:].tolist() == np.cumsum(TICKS).tolist()
    assert {array.shape[0] for _, array in root["data"].arrays()} == {sum(TICKS)}
    assert sorted(name for name, _ in root["data"].arrays()) == sorted(MIXED)
    episodes = [mixed_episode(ticks, seed).arrays for seed, ticks in enumerate(TICKS)]
    for name in ("front", "action", "touch", "stamp"):
        assert np.array_equal(root["data"][name][:], np.concatenate([one[name] for one in episodes])), name
    assert np.array_equal(
        root["data/slow"][:], np.concatenate([np.repeat(one["slow"], 4, axis=0)[: len(one["action"])] for one in episodes])
    )
    about = json.loads((tmp_path / "a.zarr/data/front/.zarray").read_text())
    assert about["compressor"] == {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 2, "blocksize": 0}
    assert about["chunks"] == [20_000 // (32 * 48 * 3), 32, 48, 3]


def test_the_observation_behind_the_last_action_cannot_be_held_and_is_told(tmp_path):
    sink = write_mixed(tmp_path / "a.zarr", streams=STREAMS, make=lambda ticks, seed: RawEpisode(*episode(ticks, seed)))
    assert sink.left_out == tuple(f"{name}: the frame behind the last action" for name in ("front", "wrist", "arm"))
    found, expected = policy.read(tmp_path / "a.zarr").read(1), episode(TICKS[1], 1)[0]
    assert np.array_equal(found.arrays["front"], expected["front"][:-1]) and np.array_equal(found.arrays["action"], expected["action"])


def test_episodes_without_actions_are_held_whole(tmp_path):
    streams = {"front": StreamSpec((8, 8, 3), "uint8", 10.0, "video")}
    frames = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    write_mixed(tmp_path / "a", (1,), streams, lambda *_: RawEpisode({"front": frames}, {}), {})
    assert np.array_equal(policy.read(tmp_path / "a").read(0).arrays["front"], frames)


def test_pusht_goes_out_again_under_its_own_names_and_dtypes(tmp_path):
    arrays = pusht_arrays()
    source = policy.read(write_buffer(tmp_path / "a.zarr", arrays))
    write_mixed(tmp_path / "b.zarr", (0, 0, 0), source.streams, lambda _, index: source.read(index), source.card)
    root = zarr.open_group(tmp_path / "b.zarr", mode="r", zarr_format=2)
    for name, values in arrays.items():
        assert root["data"][name].dtype == values.dtype and np.array_equal(root["data"][name][:], values), name
    again = policy.read(tmp_path / "b.zarr")
    for index in range(3):
        assert_same(again.read(index), source.read(index))


def test_a_growing_buffer_rewrites_only_its_last_chunks(tmp_path):
    sink = policy.write(tmp_path / "a.zarr", MIXED, CARD, chunk_bytes=20_000)
    encode = sink.encoder()
    sink.append(encode(mixed_episode(11, 0)))
    first = (tmp_path / "a.zarr/data/front/0.0.0.0").stat()
    time.sleep(0.01)
    sink.append(encode(mixed_episode(11, 1)))
    assert (tmp_path / "a.zarr/data/front/0.0.0.0").stat().st_mtime_ns == first.st_mtime_ns
    sink.close()
    assert_same(policy.read(tmp_path / "a.zarr").read(1), mixed_episode(11, 1))


# ---- crashes and full disks -----------------------------------------------------------------------------------------


def test_a_kill_at_any_write_costs_only_the_episode_being_added(tmp_path):
    streams, ticks = {name: PLAIN[name] for name in ("wrist", "action")}, (3, 9, 2)

    def write(path):
        write_mixed(path, ticks, streams, lambda count, seed: RawEpisode(*episode(count, seed, streams)), chunk_bytes=8_000)

    number = 1
    while killed_at_write(number, write, tmp_path / f"{number}.zarr"):
        write(tmp_path / f"{number}.zarr")
        source = policy.read(tmp_path / f"{number}.zarr")
        for seed, count in enumerate(ticks):
            assert_same(source.read(seed), RawEpisode(*episode(count, seed, streams)))
        number += 1
    assert number > 20


def test_a_full_disk_leaves_whole_episodes_and_the_same_call_goes_on(tmp_path, monkeypatch):
    path = tmp_path / "a.zarr"
    sink = policy.write(path, MIXED, CARD, chunk_bytes=20_000)
    encode, real = sink.encoder(), os.pwrite
    sink.append(encode(mixed_episode(3, 0)))
    for after in (0, 2, 9):
        left = [after]

        def full(descriptor, data, offset, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(descriptor, data, offset)

        with monkeypatch.context() as patch:
            patch.setattr(durable.os, "pwrite", full)
            with pytest.raises(FormatError, match=r"No space left.*the 1 episodes before stay"):
                sink.append(encode(mixed_episode(11, 1)))
        assert len(sink) == 1
    sink.append(encode(mixed_episode(11, 1)))
    sink.close()
    assert_same(policy.read(path).read(1), mixed_episode(11, 1))
    write_mixed(path, chunk_bytes=20_000)
    for seed, ticks in enumerate(TICKS):
        assert_same(policy.read(path).read(seed), mixed_episode(ticks, seed))


def test_while_it_is_continued_a_buffer_shows_what_it_had_when_it_was_closed(tmp_path):
    path = tmp_path / "a.zarr"
    with pytest.raises(FormatError, match="run that again"):
        sink = policy.write(path, MIXED, CARD, chunk_bytes=20_000)
        sink.append(sink.encoder()(mixed_episode(3, 0)))
        policy.read(path)
    sink.close()
    sink = policy.write(path, MIXED, CARD, chunk_bytes=20_000)
    sink.append(sink.encoder()(mixed_episode(11, 1)))
    root = zarr.open_group(path, mode="r", zarr_format=2)
    assert root["meta/episode_ends"][:].tolist() == [3]
    assert np.array_equal(root["data/front"][:], mixed_episode(3, 0).arrays["front"])
    sink.close()
    assert len(policy.read(path)) == 2


def test_another_buffer_is_not_continued(tmp_path):
    write_mixed(tmp_path / "a")
    with pytest.raises(FormatError, match="cannot be continued: its streams is"):
        policy.write(tmp_path / "a", STREAMS, CARD)
    with pytest.raises(FormatError, match=r"cannot be continued: .*rate_hz|cannot be continued: .*robot"):
        policy.write(tmp_path / "a", MIXED, {**CARD, "robot": "another arm"})
    sink = policy.write(tmp_path / "a", MIXED, CARD)
    with pytest.raises(StoreError, match="is being written by"):
        policy.write(tmp_path / "a", MIXED, CARD)
    sink.close()
    with pytest.raises(FormatError, match="holds something else"):
        policy.write(write_buffer(tmp_path / "b", pusht_arrays()), MIXED, CARD)
    with pytest.raises(FormatError, match="written as a folder"):
        policy.write(tmp_path / "c.zarr.zip", MIXED, CARD)


# ---- bad and hostile input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        ((4, 4, 12), "must grow, and episode 1 ends at 4"),
        ((5, 4, 12), "must grow"),
        ((0, 4, 12), "must grow, and episode 0"),
        ((-1, 4, 12), "must grow"),
        ((4, 5, 11), "ends at 11, and the arrays have 12 rows"),
        ((4, 5, 13), "ends at 13"),
        ((), "no episodes"),
        (tuple(range(1, 14)), "13 episodes, and the arrays have 12"),
    ],
)
def test_ends_that_do_not_fit_are_refused(tmp_path, ends, told):
    path = write_buffer(tmp_path / "a", pusht_arrays(), ENDS)
    raw_array(path / "meta/episode_ends", np.array(ends, "<i8"), (16,))
    with pytest.raises(FormatError, match=told):
        policy.read(path)


def test_what_is_not_there_or_no_buffer_is_told(tmp_path):
    assert not policy.recognise(tmp_path) and not policy.recognise(tmp_path / "nothing")
    with pytest.raises(FormatError, match="does not exist"):
        policy.read(tmp_path / "nothing")
    with pytest.raises(FormatError, match="no meta/episode_ends"):
        policy.read(tmp_path)
    arrays = pusht_arrays()
    path = write_buffer(tmp_path / "a", {**arrays, "state": arrays["state"][:11]})
    with pytest.raises(FormatError, match="different lengths"):
        policy.read(path)
    for values, told in ((np.full((12, 2), np.nan, np.float32), "nan at frame 0"), (np.full((12, 2), np.inf, np.float32), "inf")):
        with pytest.raises(FormatError, match=rf"episode 0 \(rows 0 to 3\): stream 'action': {told}"):
            policy.read(write_buffer(tmp_path / told[:3], {**arrays, "action": values})).read(0)
    for option in ({"float_images": "maybe"}, {"images_stored": "left"}, {"rate_hz": 0}, {"video_size": (1, 0)}):
        with pytest.raises(FormatError, match=next(iter(option))):
            policy.read(path, **option)
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 no zip")
    assert not policy.recognise(tmp_path / "bad.zip")
    with pytest.raises(FormatError, match="no zip that can be read"):
        policy.read(tmp_path / "bad.zip")


class Bomb:
    """Runs when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("where", ["compressor", "filters", "dtype"])
def test_pickles_are_refused_before_anything_is_decoded(tmp_path, where):
    sprung = tmp_path / "sprung"
    pickled = pickle.dumps(Bomb(str(sprung)))
    about = {"compressor": {"compressor": {"id": "pickle"}}, "filters": {"filters": [{"id": "pickle"}]},
             "dtype": {"dtype": "|O", "filters": [{"id": "pickle"}]}}[where]  # fmt: skip
    path = raw_buffer(tmp_path / "a", "state", np.zeros((4, 2), "<f4"), encode=lambda part: pickled, **about)
    with pytest.raises(FormatError, match=r"codec 'pickle'|dtype '\|O'"):
        policy.read(path, rate_hz=10)
    assert not sprung.exists()
    pickle.loads(pickled)
    assert sprung.exists(), "the bomb is a real one"


@pytest.mark.parametrize(
    "name", ["json2", "msgpack2", "vlen-bytes", "vlen-utf8", "vlen-array", "categorize", "base64", "unheard-of", None, 7]
)
def test_codecs_that_are_not_on_the_list_are_refused(tmp_path, name):
    path = raw_buffer(tmp_path / "a", "state", np.zeros((4, 2), "<f4"), filters=[{"id": name}])
    with pytest.raises(FormatError, match="only these are read"):
        policy.read(path, rate_hz=10)


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"dtype": "<U5"}, "only plain numbers"),
        ({"dtype": [["a", "<f4"]]}, "only plain numbers"),
        ({"dtype": "<M8[s]"}, "only plain numbers"),
        ({"dtype": "(2,3)<f4"}, "only plain numbers"),
        ({"dtype": "<c8"}, "only plain numbers"),
        ({"shape": [4, -2]}, "expected a list of sizes"),
        ({"shape": [4, 2.5]}, "expected a list of sizes"),
        ({"shape": "42"}, "expected a list of sizes"),
        ({"shape": [4]}, "does not fit together"),
        ({"chunks": [0, 2]}, "does not fit together"),
        ({"chunks": [1 << 40, 2]}, "at most 512 MB"),
        ({"zarr_format": 3}, "zarr format 3"),
        ({"filters": 7}, "expected a short list"),
        ({"filters": [{"id": "delta", "dtype": "|O"}]}, "only plain numbers"),
        ({"filters": [{"id": "shuffle", "elementsize": 1 << 40}]}, "shuffles elements"),
        ({"fill_value": "x"}, "fill value"),
        ({"fill_value": [1, 2]}, "fill value"),
    ],
)
def test_descriptions_that_lie_are_refused(tmp_path, about, told):
    path = raw_buffer(tmp_path / "a", "state", np.zeros((4, 2), "<f4"))
    change(path, "data/state", **about)
    with pytest.raises(FormatError, match=told):
        policy.read(path, rate_hz=10).read(0)


def test_sizes_that_are_only_claimed_get_no_memory(tmp_path):
    def refused(path):
        return survives(lambda: policy.read(path, rate_hz=10).read(0), extra_bytes=400 << 20) == "refused"

    whole = raw_buffer(tmp_path / "a", "state", np.zeros((4, 2), "<f4"))
    long = copied(whole, tmp_path / "long")
    for array, shape in (("data/state", [1 << 40, 2]), ("data/action", [1 << 40, 2])):
        change(long, array, shape=shape)
    raw_array(long / "meta/episode_ends", np.array([1 << 40], "<i8"), (2,))
    assert refused(long)
    wide = copied(whole, tmp_path / "wide")
    change(wide, "data/state", shape=[4, 1 << 33])
    assert refused(wide)
    many = copied(whole, tmp_path / "many")
    change(many, "data/state", shape=[4, 1 << 26], chunks=[1, 1])
    assert refused(many)
    change(many, "meta/episode_ends", shape=[1 << 40])
    assert refused(many)


@pytest.mark.parametrize("name", ["zlib", "gzip", "bz2", "lzma", "zstd", "lz4", "blosc"])
def test_a_chunk_that_unpacks_to_more_than_its_shape_is_refused_without_unpacking_it(tmp_path, name):
    bomb = numcodecs.get_codec({"id": name}).encode(bytes(200 << 20))
    path = raw_buffer(tmp_path / "a", "state", np.zeros((4, 2), "<f4"), encode=lambda part: bytes(bomb)[: 1 << 22], compressor={"id": name})
    (path / "data/state/0.0").write_bytes(bytes(bomb)[:65_000])
    assert survives(lambda: policy.read(path, rate_hz=10).read(0), extra_bytes=100 << 20) == "refused"
    with pytest.raises(FormatError, match=r"expected 16|longer than"):
        policy.read(path, rate_hz=10).read(0)


@pytest.mark.parametrize("name", ["zlib", "gzip", "bz2", "lzma", "zstd", "lz4", "blosc"])
def test_a_chunk_that_is_cut_off_anywhere_is_refused(name):
    whole = bytes(numcodecs.get_codec({"id": name}).encode(bytes(range(250)) * 4))
    assert bytes(chunk_codecs.decompressed({"id": name}, whole, 1000)) == bytes(range(250)) * 4
    for end in range(len(whole)):
        with pytest.raises(FormatError):
            chunk_codecs.decompressed({"id": name}, whole[:end], 1000)


def test_hostile_zips_are_refused(tmp_path):
    whole = raw_buffer(tmp_path / "a", "state", np.zeros((4, 2), "<f4"))
    for name in ("../evil", "/etc/evil", "data\\..\\evil"):
        target = zipped(whole, tmp_path / "evil.zip")
        with zipfile.ZipFile(target, "a") as file:
            file.writestr(zipfile.ZipInfo(name), b"x")
        with pytest.raises(FormatError, match="lies outside the archive"):
            policy.read(target, rate_hz=10)
    (whole / "data/state/0.0").unlink()
    target = zipped(whole, tmp_path / "bomb.zip")
    with zipfile.ZipFile(target, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("data/state/0.0", bytes(400 << 20))
    assert survives(lambda: policy.read(target, rate_hz=10).read(0), extra_bytes=300 << 20) == "refused"


def test_a_pipe_in_the_place_of_a_chunk_does_not_hang(tmp_path):
    path = raw_buffer(tmp_path / "a", "state", np.ones((4, 2), "<f4"))
    (path / "data/state/0.0").unlink()
    os.mkfifo(path / "data/state/0.0")
    assert survives(lambda: policy.read(path, rate_hz=10).read(0), seconds=10) == "fine"
    assert not policy.read(path, rate_hz=10).read(0).arrays["state"].any()  # it counts as missing


def test_own_attributes_that_lie_are_refused(tmp_path):
    write_mixed(tmp_path / "a")
    file, lines = tmp_path / "a/.zattrs", tmp_path / "a/uwm_episodes.jsonl"
    own, whole = json.loads(file.read_text())["uwm"], lines.read_bytes()
    for wrong, told in [
        ({"version": 9}, "another version"), ({"streams": {}}, "at least one stream"), ({"keys": {}}, "does not fit the arrays"),
        ({"rate_hz": 1}, "more frames than there are rows"), ({"keys": dict.fromkeys(MIXED, "../x")}, "has no array"),
        ({"card": 3}, "does not fit"),
    ]:  # fmt: skip
        file.write_text(json.dumps({"uwm": {**own, **wrong}}))
        with pytest.raises(StoreError, match=told):
            policy.read(tmp_path / "a")
    file.write_text(json.dumps({"uwm": own}))
    for content, told in (
        (whole[:-9], "tells of other episodes"),
        (b"{}\n" + whole, "line 0 of .* is damaged"),
        (b"[" * 99_999 + b"\n", "is damaged"),
    ):
        lines.write_bytes(content)
        with pytest.raises(FormatError, match=told):
            policy.read(tmp_path / "a")
    file.unlink()
    assert policy.read(tmp_path / "a", rate_hz=20).streams["grip"].kind == "state", "without its own file it is a plain buffer"


# ---- fuzzing --------------------------------------------------------------------------------------------------------


def read_all(path):
    source = policy.read(path, rate_hz=10)
    for index in range(len(source)):
        source.read(index)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "a"
    frames = smooth_video(np.random.default_rng(0), 4, 16, 24)
    raw_buffer(path, "zstd", frames, encode=numcodecs.Blosc("zstd", 5, 2).encode, compressor=numcodecs.Blosc("zstd", 5, 2).get_config())
    raw_array(path / "data/lz4", frames, (2, 16, 24, 3), numcodecs.LZ4().encode, compressor=numcodecs.LZ4().get_config())
    raw_array(path / "data/plain", frames, (2, 16, 24, 3), numcodecs.Zstd().encode, compressor=numcodecs.Zstd().get_config())
    raw_array(path / "data/jpeg", frames, (1, 16, 24, 3), jpeg2k, compressor={"id": "imagecodecs_jpeg2k"})
    read_all(path)
    return path


@pytest.mark.parametrize(
    "name",
    ["data/zstd/.zarray", "data/zstd/0.0.0.0", "data/lz4/0.0.0.0", "data/plain/0.0.0.0", "data/jpeg/1.0.0.0", "meta/episode_ends/0"],
)
def test_a_damaged_folder_is_read_or_refused_and_never_more(small, name):
    file = small / name
    data = file.read_bytes()

    @settings(max_examples=30)
    @given(mutations(data))
    def damage(changed):
        file.write_bytes(changed)
        survives(lambda: read_all(small))

    try:
        damage()
    finally:
        file.write_bytes(data)


def test_a_damaged_zip_is_read_or_refused_and_never_more(small, tmp_path):
    path = zipped(small, tmp_path / "a.zip")
    data = path.read_bytes()

    @settings(max_examples=40)
    @given(mutations(data))
    def damage(changed):
        path.write_bytes(changed)
        survives(lambda: policy.recognise(path))
        survives(lambda: read_all(path))

    damage()
