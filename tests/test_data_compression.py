"""Every way to store video gives the same frames, to us and to zarr, and finds the same damage."""

import json

import numpy as np
import pytest
import zarr

from data_episodes import STREAMS, assert_holds, make_episode, make_store
from foreign import smooth_video
from uwm_data import EpisodeStore, StoreError, StreamSpec, check

KINDS = ("zstd", "lz4", "none")


@pytest.mark.parametrize("compression", KINDS)
def test_frames_come_back_bit_for_bit_to_us_and_to_zarr(tmp_path, compression):
    path = tmp_path / "s.zarr"
    episodes = make_store(path, (7, 12), compression=compression)
    with EpisodeStore.open(path, write=True) as store:
        episodes.append(make_episode(9, 4))
        store.append(episodes[-1])
    assert_holds(EpisodeStore.open(path), episodes)
    assert check(path).findings == []
    group = zarr.open_group(path, mode="r")
    for name in STREAMS:
        np.testing.assert_array_equal(group[name][:], np.concatenate([episode[name] for episode in episodes]))


def test_the_checksum_names_the_frames_and_not_how_they_are_stored(tmp_path):
    for kind in KINDS:
        make_store(tmp_path / kind, (7, 12), compression=kind)
    assert len({EpisodeStore.open(tmp_path / kind).checksum for kind in KINDS}) == 1


def test_smooth_frames_are_smaller_the_harder_they_are_compressed(tmp_path):
    sizes, streams = {}, {"camera": StreamSpec((32, 48, 3), "uint8", 10, "video")}
    for kind in KINDS:
        with EpisodeStore.create(tmp_path / kind, streams, compression=kind) as store:
            store.append({"camera": smooth_video(np.random.default_rng(0), 5, 32, 48)})
            sizes[kind] = sum(store.journal.sizes["camera"].values())
    assert sizes["zstd"] < sizes["lz4"] < sizes["none"]


@pytest.mark.parametrize("compression", KINDS)
def test_a_flipped_bit_anywhere_in_a_frame_is_found(tmp_path, compression):
    path = tmp_path / "s.zarr"
    make_store(path, (7,), compression=compression)
    file = path / "camera" / "c.0.0.0.0"
    whole = file.read_bytes()
    for place in range(0, 60, 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(StoreError, match=r"'camera' of episode 0 is damaged: c\.0\.0\.0\.0: the check sum of its chunk"):
            EpisodeStore.open(path).read(0, "camera")


def test_an_unknown_compression_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(StoreError, match=r"compression 'jpeg' is unknown.*zstd, lz4, none"):
        EpisodeStore.create(tmp_path / "s.zarr", STREAMS, compression="jpeg")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "edit",
    [
        lambda codecs, inner: codecs.insert(1, {"name": "gzip", "configuration": {"level": 1}}),
        lambda codecs, inner: codecs[1]["configuration"].update(cname="pickle", shuffle="sideways"),
        lambda codecs, inner: codecs.pop(),
        lambda codecs, inner: codecs.pop(0),
        lambda codecs, inner: inner.__setitem__(0, 0),
        lambda codecs, inner: inner.__setitem__(0, 10**15),
        lambda codecs, inner: inner.__setitem__(0, "many"),
    ],
)
def test_codecs_and_grids_that_we_never_write_are_refused(tmp_path, edit):
    make_store(tmp_path / "s.zarr", (7,))
    file = tmp_path / "s.zarr" / "camera" / "zarr.json"
    metadata = json.loads(file.read_text())
    sharding = metadata["codecs"][0]["configuration"]
    edit(sharding["codecs"], sharding["chunk_shape"])
    file.write_text(json.dumps(metadata))
    with pytest.raises(StoreError, match=r"camera.zarr\.json is damaged"):
        EpisodeStore.open(tmp_path / "s.zarr")


def test_a_table_that_points_outside_the_committed_bytes_is_damage(tmp_path):
    from uwm_data.shards import _with_crc

    path = tmp_path / "s.zarr"
    make_store(path, (7,))
    store = EpisodeStore.open(path)
    file, entries = path / "camera" / "c.0.0.0.0", store.shards["camera"].chunks_per_shard
    data = file.read_bytes()[: store.journal.sizes["camera"][0]]
    for offset, length in ((10**6, 50), (0, 2**63), (2**64 - 100, 99)):
        table = np.frombuffer(data[-16 * entries - 4 : -4], "<u8").copy()
        table[:2] = offset, length
        file.write_bytes(data[: -16 * entries - 4] + _with_crc(table.tobytes()))
        with pytest.raises(StoreError, match="outside the committed bytes"):
            EpisodeStore.open(path).read(0, "camera")
