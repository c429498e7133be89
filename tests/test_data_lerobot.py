"""LeRobot v3.0 and v2.1: what is written reads back, what others write reads, statistics are exact, nothing bad gets through."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foreign import CARD, RATE, STREAMS, episode, mutations, smooth_video, survives
from uwm_data import EpisodeStore, FormatError, StreamSpec, durable
from uwm_data.formats import FORMATS, RawEpisode, lerobot, lerobot_v21, pictures, recognised, video
from uwm_data.formats.lerobot_info import filled

VERSIONS = {"v3.0": lerobot, "v2.1": lerobot_v21}
TICKS = (9, 17, 1, 30, 12, 6, 20)
SMALL_FILES = {"data_files_size_in_mb": 0.02, "video_files_size_in_mb": 0.012, "chunks_size": 2}
EXACT = ("png", "h264-lossless")
both = pytest.mark.parametrize("version", VERSIONS)


def episodes(ticks=TICKS, streams=STREAMS):
    return [RawEpisode(*episode(count, seed, streams)) for seed, count in enumerate(ticks)]


def write(path, version="v3.0", some=None, streams=STREAMS, card=CARD, **options):
    """A finished dataset of these episodes."""
    sink = VERSIONS[version].write(path, streams, card, **options)
    encode = sink.encoder()
    for one in episodes() if some is None else some:
        sink.append(encode(one))
    sink.close()
    return sink


def assert_holds(source, some, exact_video, streams=STREAMS):
    """Every episode reads back with its T rows, in any order of asking."""
    assert len(source) == len(some)
    for index in np.random.default_rng(0).permutation(len(some)):
        found, wanted = source.read(int(index)), some[index]
        assert found.meta == wanted.meta
        assert list(found.arrays) == list(source.streams)
        for name, values in found.arrays.items():
            due = wanted.arrays[name][: len(values)]
            assert len(values) == len(wanted.arrays["action"]) and values.dtype == due.dtype
            if streams[name].kind != "video" or exact_video:
                assert np.array_equal(values, due), name
            else:
                assert np.abs(values.astype(int) - due).mean() < 5, name


# ---- round trips ---------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("codec", [None, "av1", *EXACT])
def test_what_is_written_reads_back(tmp_path, version, codec):
    sink = write(tmp_path / "d", version, codec=codec)
    module = VERSIONS[version]
    source = module.read(tmp_path / "d")
    ours = {name: FORMATS[name] for name in ("lerobot", "lerobot-v2.1")}
    assert recognised(tmp_path / "d", ours) == {"v3.0": "lerobot", "v2.1": "lerobot-v2.1"}[version]
    assert {name: (spec.units, spec.names, spec.kind) for name, spec in source.streams.items()} == {
        name: (spec.units, spec.names, spec.kind) for name, spec in STREAMS.items()
    }
    assert not any(spec.closing for spec in source.streams.values()) and not source.left_out
    assert {key: value for key, value in source.card.items() if key != "source"} == CARD
    assert source.card["source"]["names"] == {
        "front": "observation.images.front", "wrist": "observation.images.wrist", "arm": "observation.state", "action": "action",
        "reward": "next.reward",
    }  # fmt: skip
    assert_holds(source, episodes(), codec in EXACT)
    assert any("after the last action" in line for line in sink.left_out)
    assert any("pixels" in line for line in sink.left_out) == (codec not in EXACT)


@both
def test_the_same_input_gives_the_same_files(tmp_path, version):
    for name in ("a", "b"):
        write(tmp_path / name, version, episodes((5, 8)))
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) > 7
    for file in files:
        if file.name != "writer.lock":
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_files_and_folders_roll_over_when_they_are_full(tmp_path):
    some = episodes(range(4, 24))
    write(tmp_path / "d", some=some, **SMALL_FILES)
    tables = sorted(path.relative_to(tmp_path / "d").as_posix() for path in (tmp_path / "d" / "data").rglob("*.parquet"))
    videos = sorted((tmp_path / "d" / "videos" / "observation.images.front").rglob("*.mp4"))
    assert tables[:3] == ["data/chunk-000/file-000.parquet", "data/chunk-000/file-001.parquet", "data/chunk-001/file-000.parquet"]
    assert len(videos) > 3 and len(videos) != len(tables)
    for file in videos[:-1]:
        assert file.stat().st_size < 0.012 * (1 << 20)
    groups = [pq.read_metadata(tmp_path / "d" / table) for table in tables]
    assert sum(group.num_row_groups for group in groups) == len(some), "one row group an episode"
    assert not (tmp_path / "d" / "meta" / "uwm" / "pieces").exists()
    assert_holds(lerobot.read(tmp_path / "d"), some, False)


def test_an_episode_of_v21_lies_in_the_folder_of_its_chunk(tmp_path):
    write(tmp_path / "d", "v2.1", chunks_size=3)
    assert (tmp_path / "d" / "data" / "chunk-002" / "episode_000006.parquet").exists()
    assert (tmp_path / "d" / "videos" / "chunk-001" / "observation.images.wrist" / "episode_000005.mp4").exists()
    info = json.loads((tmp_path / "d" / "meta" / "info.json").read_text())
    assert (info["total_chunks"], info["total_videos"], info["total_tasks"], info["total_frames"]) == (3, 14, 2, sum(TICKS))
    assert_holds(lerobot_v21.read(tmp_path / "d"), episodes(), False)


def test_the_tables_of_v3_say_what_lerobot_expects(tmp_path):
    write(tmp_path / "d", **SMALL_FILES)
    info = json.loads((tmp_path / "d" / "meta" / "info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_episodes"], info["splits"]) == ("v3.0", 20, 7, {"train": "0:7"})
    assert list(info["features"])[-5:] == ["timestamp", "frame_index", "episode_index", "index", "task_index"]
    tasks = pq.read_table(tmp_path / "d" / "meta" / "tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0, 1], "__index_level_0__": ["push the block", "open the drawer"]}
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["__index_level_0__"]
    table = pq.read_table(tmp_path / "d" / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pydict()
    ends = np.cumsum(TICKS).tolist()
    assert (table["dataset_to_index"], table["dataset_from_index"]) == (ends, [0, *ends[:-1]])
    key = "videos/observation.images.front"
    for row, ticks in enumerate(TICKS):
        times = [table[f"{key}/{part}_timestamp"][row] for part in ("from", "to")]
        assert times[1] - times[0] == pytest.approx(ticks / RATE)
        assert times[0] == 0 or table[f"{key}/file_index"][row] == table[f"{key}/file_index"][row - 1]
    rows = pq.read_table(tmp_path / "d" / "data" / "chunk-000" / "file-000.parquet")
    assert rows.schema.field("action").type == pa.list_(pa.float32(), 2) and rows.schema.field("next.reward").type == pa.float32()
    assert rows["timestamp"].to_pylist()[:2] == [0.0, np.float32(0.05)]


@both
def test_states_that_a_policy_uses_become_one_feature_and_part_again(tmp_path, version):
    streams = {
        "position": StreamSpec((3,), "float32", RATE, "state", names=("x", "y", "z")),
        "gripper": StreamSpec((1,), "float32", RATE, "state"),
        "secret": StreamSpec((4,), "float32", RATE, "state"),
        "action": STREAMS["action"],
    }
    card = {**CARD, "policy": {"cameras": [], "proprio": ["position", "gripper"], "action": "action"}}
    some = episodes((5, 3), streams)
    write(tmp_path / "a", version, some, streams, card)
    first = VERSIONS[version].read(tmp_path / "a")
    write(tmp_path / "b", version, [first.read(index) for index in range(2)], first.streams, first.card)
    for place in ("a", "b"):
        features = json.loads((tmp_path / place / "meta" / "info.json").read_text())["features"]
        assert features["observation.state"] == {
            "dtype": "float32", "shape": [4], "names": ["position.x", "position.y", "position.z", "gripper.0"],
        }  # fmt: skip
        assert features["observation.secret"]["shape"] == [4]
        assert_holds(VERSIONS[version].read(tmp_path / place), some, True, streams)


@both
def test_every_dtype_and_shape_of_a_stream_survives(tmp_path, version):
    dtypes = ["bool", "int8", "uint16", "int64", "float16", "float32", "float64"]
    shapes = [(), (1,), (3,), (2, 3), (2, 3, 2)]
    streams = {f"s_{dtype}_{len(shape)}_{shape[-1] if shape else 0}": (dtype, shape) for dtype in dtypes for shape in shapes}
    streams = {name: StreamSpec(shape, dtype, RATE, "label", closing=False) for name, (dtype, shape) in streams.items()}
    streams = {"timestamp": StreamSpec((2,), "float32", RATE, "label", closing=False), **streams, "action": STREAMS["action"]}
    some = episodes((4, 1, 3), streams)
    write(tmp_path / "d", version, some, streams)
    source = VERSIONS[version].read(tmp_path / "d")
    assert_holds(source, some, True, streams)
    assert [spec.shape for spec in source.streams.values()] == [spec.shape for spec in streams.values()]
    assert "stream.timestamp" in json.loads((tmp_path / "d" / "meta" / "info.json").read_text())["features"]


@both
def test_cameras_that_a_codec_cannot_hold_become_pictures(tmp_path, version):
    streams = {
        "odd": StreamSpec((31, 21, 3), "uint8", RATE, "video"),
        "grey": StreamSpec((8, 8, 1), "uint8", RATE, "video"),
        "two": StreamSpec((4, 6, 2), "uint8", RATE, "video"),
        "action": STREAMS["action"],
    }
    random = np.random.default_rng(0)
    arrays = {name: random.integers(0, 255, (spec.frames(4, RATE), *spec.shape)).astype(spec.dtype) for name, spec in streams.items()}
    write(tmp_path / "d", version, [RawEpisode(arrays, {})], streams)
    features = json.loads((tmp_path / "d" / "meta" / "info.json").read_text())["features"]
    told = {"observation.images.odd": "image", "observation.cameras.grey": "image", "observation.cameras.two": "uint8"}
    assert {key: features[key]["dtype"] for key in told} == told
    assert_holds(VERSIONS[version].read(tmp_path / "d"), [RawEpisode(arrays, {})], True, streams)


@both
def test_a_stream_that_an_episode_lacks_is_filled_for_them_and_missing_for_us(tmp_path, version):
    streams = {name: StreamSpec(**{**spec.to_json(), "optional": name in ("wrist", "reward")}) for name, spec in STREAMS.items()}
    some = episodes((5, 4, 6), streams)
    for name in ("wrist", "reward"):
        some[1].arrays[name] = some[1].arrays[name][:0]
    sink = write(tmp_path / "d", version, some, streams)
    assert sum("zeros" in line for line in sink.left_out) == 2
    source = VERSIONS[version].read(tmp_path / "d")
    assert source.streams["wrist"].optional and not source.streams["front"].optional
    assert [len(source.read(index).arrays["wrist"]) for index in range(3)] == [5, 0, 6]
    assert source.read(1).arrays["reward"].shape == (0,)
    shutil.rmtree(tmp_path / "d" / "meta" / "uwm")
    filled_in = VERSIONS[version].read(tmp_path / "d").read(1).arrays
    assert len(filled_in["wrist"]) == 4 and filled_in["wrist"].max() < 20 and not filled_in["reward"].any()
    if version == "v3.0":
        told = json.loads((tmp_path / "d" / "meta" / "stats.json").read_text())
        assert told["observation.images.wrist"]["count"] == told["next.reward"]["count"] == [11]
        assert told["observation.images.front"]["count"] == [15]


@both
def test_other_rates_are_held_or_thinned_and_left_out_says_so(tmp_path, version):
    streams = {
        "slow": StreamSpec((2,), "float32", RATE / 2, "state"),
        "fast": StreamSpec((2,), "float32", RATE * 2, "state"),
        "action": STREAMS["action"],
    }
    ticks = np.arange(20, dtype=np.float32)[:, None].repeat(2, 1)
    raw = RawEpisode({"slow": ticks[:4], "fast": ticks[:13], "action": ticks[:6]}, {})
    sink = write(tmp_path / "d", version, [raw], streams, {**CARD, "policy": {}})
    assert sum("its own" in line for line in sink.left_out) == 2
    found = VERSIONS[version].read(tmp_path / "d").read(0).arrays
    assert found["slow"][:, 0].tolist() == [0, 0, 1, 1, 2, 2] and found["fast"][:, 0].tolist() == [0, 2, 4, 6, 8, 10]


@both
def test_frames_without_actions_lose_nothing_not_even_the_last_one(tmp_path, version):
    streams = {"front": STREAMS["front"]}
    some = [RawEpisode(*episode(count, count, streams)) for count in (0, 4)]
    sink = write(tmp_path / "d", version, some, streams, {**CARD, "policy": {}}, codec="png")
    assert not sink.left_out
    source = VERSIONS[version].read(tmp_path / "d")
    assert source.streams == streams
    assert all(np.array_equal(source.read(index).arrays["front"], one.arrays["front"]) for index, one in enumerate(some))


@both
def test_converted_from_a_store_and_back_into_one(tmp_path, version):
    write(tmp_path / "d", version, codec="h264-lossless")
    source = VERSIONS[version].read(tmp_path / "d")
    with EpisodeStore.create(tmp_path / "s", source.streams, source.card) as store:
        for index in range(len(source)):
            raw = source.read(index)
            store.append(raw.arrays, raw.meta)
    write(tmp_path / "e", version, [source.read(index) for index in range(len(source))], source.streams, source.card, codec="h264-lossless")
    assert_holds(VERSIONS[version].read(tmp_path / "e"), episodes(), True)
    told = [json.loads((tmp_path / place / "meta" / "info.json").read_text())["features"] for place in "de"]
    assert told[0] == told[1]


# ---- statistics ----------------------------------------------------------------------------------------------------


def numpy_statistics(values, axis):
    values = values.astype(np.float64)
    levels = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
    found = {"min": values.min(axis), "max": values.max(axis), "mean": values.mean(axis), "std": values.std(axis)}
    return {**found, **{name: np.quantile(values, level, axis=axis) for name, level in levels.items()}}


def assert_statistics(told, values, is_picture):
    wanted = numpy_statistics(values / 255 if is_picture else values, (0, 1, 2) if is_picture else 0)
    assert told["count"] == [len(values)]
    for name, due in wanted.items():
        due = due.reshape(3, 1, 1) if is_picture else due.reshape(values.shape[1:] or (1,))
        np.testing.assert_allclose(np.array(told[name]), due, rtol=1e-9, atol=1e-12, err_msg=name)


@both
def test_statistics_are_those_of_numpy_over_all_frames(tmp_path, version):
    some = episodes()
    some[3].arrays["arm"][:, 1] = 0.1  # a constant dimension of one episode must not end in a negative variance
    write(tmp_path / "d", version, some, **(SMALL_FILES if version == "v3.0" else {}))
    keys = {"observation.images.front": "front", "observation.images.wrist": "wrist", "observation.state": "arm", "action": "action"}
    keys["next.reward"] = "reward"
    rows = [{name: values[: len(one.arrays["action"])] for name, values in one.arrays.items()} for one in some]
    if version == "v3.0":
        whole = json.loads((tmp_path / "d" / "meta" / "stats.json").read_text())
        table = pq.read_table(tmp_path / "d" / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pylist()
        each = [{key: {name: row[f"stats/{key}/{name}"] for name in whole[key]} for key in whole} for row in table]
        for key, name in keys.items():
            assert_statistics(whole[key], np.concatenate([one[name] for one in rows]), key.startswith("observation.images"))
        index = np.concatenate([np.arange(len(one["action"])) for one in rows])
        assert_statistics(whole["frame_index"], index, False)
        assert_statistics(whole["index"], np.arange(len(index)), False)
        assert set(whole) == {*keys, "timestamp", "frame_index", "episode_index", "index", "task_index"}
    else:
        lines = (tmp_path / "d" / "meta" / "episodes_stats.jsonl").read_text().splitlines()
        each = [json.loads(line)["stats"] for line in lines]
    for told, one in zip(each, rows, strict=True):
        for key, name in keys.items():
            assert_statistics(told[key], one[name], key.startswith("observation.images"))


def test_statistics_of_wide_columns_are_made_in_parts(tmp_path, monkeypatch):
    from uwm_data.formats import lerobot_files

    streams = {"wide": StreamSpec((3, 5), "float32", RATE, "state"), "action": STREAMS["action"]}
    some = episodes((9, 8, 7), streams)
    monkeypatch.setattr(lerobot_files, "_STATISTICS_BYTES", 500)
    write(tmp_path / "d", some=some, streams=streams, card={**CARD, "policy": {}}, data_files_size_in_mb=0.001)
    told = json.loads((tmp_path / "d" / "meta" / "stats.json").read_text())["observation.wide"]
    assert_statistics(told, np.concatenate([one.arrays["wide"][:-1] for one in some]), False)


# ---- interrupted writing -------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from test_data_lerobot import VERSIONS, SMALL_FILES, STREAMS, CARD, episodes
from uwm_data import durable
path, version, after = sys.argv[1], sys.argv[2], int(sys.argv[3])
write, left = durable.write_at, [after]
def counted(*arguments):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    write(*arguments)
durable.write_at = counted
sink = VERSIONS[version].write(path, STREAMS, CARD, **(SMALL_FILES if version == "v3.0" else {}))
for one in episodes()[len(sink):]:
    sink.append(sink.encoder()(one))
sink.close()
"""


@both
def test_a_killed_writer_goes_on_where_it_stopped(tmp_path, version):
    """Killed again and again, each time a few disk writes later, until one run comes through."""
    runs = 0
    for runs in range(1, 30):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "d"), version, str(5 + 3 * runs)]
        done = subprocess.run(command, cwd=Path(__file__).parent, env={**os.environ, "PYTHONPATH": "."}, capture_output=True, check=False)
        if done.returncode != -signal.SIGKILL:
            break
    assert done.returncode == 0, done.stderr.decode()
    assert runs > 3
    assert_holds(VERSIONS[version].read(tmp_path / "d"), episodes(), False)
    options = SMALL_FILES if version == "v3.0" else {}
    write(tmp_path / "straight", version, **options)
    for file in ("stats.json", "info.json", "episodes/chunk-000/file-000.parquet", "episodes_stats.jsonl"):
        if (tmp_path / "straight" / "meta" / file).exists():
            assert (tmp_path / "d" / "meta" / file).read_bytes() == (tmp_path / "straight" / "meta" / file).read_bytes(), file


@both
@pytest.mark.parametrize("failing", range(1, 9))
def test_a_full_disk_leaves_whole_episodes_and_the_next_call_goes_on(tmp_path, monkeypatch, version, failing):
    options = SMALL_FILES if version == "v3.0" else {}
    sink = VERSIONS[version].write(tmp_path / "d", STREAMS, CARD, **options)
    encode = sink.encoder()
    some = episodes()
    for one in some[:3]:
        sink.append(encode(one))
    calls, write_at = [0], durable.write_at

    def full(path, offset, payload):
        calls[0] += 1
        if calls[0] >= failing:
            write_at(path, offset, payload[: len(payload) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        write_at(path, offset, payload)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_at", full)
        with pytest.raises(FormatError, match=r"disk is full at episode \d.*episodes before it are safe"):
            for one in some[3:]:
                sink.append(encode(one))
        safe = len(sink)
        with pytest.raises(FormatError, match="disk is full"):
            sink.close()
    again = VERSIONS[version].write(tmp_path / "d", STREAMS, CARD, **options)
    assert len(again) == safe >= 3
    for one in some[safe:]:
        again.append(encode(one))
    again.close()
    assert_holds(VERSIONS[version].read(tmp_path / "d"), some, False)


@both
@pytest.mark.parametrize("late", [0, 1, 2, 3, 4, 5])
def test_an_interrupt_leaves_the_whole_episode_or_nothing_of_it(tmp_path, monkeypatch, version, late):
    """Ctrl-C behind each disk write of an append, the commit included."""
    sink = VERSIONS[version].write(tmp_path / "d", STREAMS, CARD)
    encode, some = sink.encoder(), episodes((5, 4, 6))
    sink.append(encode(some[0]))
    write_at, calls = durable.write_at, [0]

    def interrupted(*arguments):
        write_at(*arguments)
        calls[0] += 1
        if calls[0] == late + 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_at", interrupted)
        try:
            sink.append(encode(some[1]))
        except KeyboardInterrupt:
            pass
    assert len(sink) == (2 if late > 3 else 1)
    for one in some[len(sink) :]:
        sink.append(encode(one))
    sink.close()
    assert_holds(VERSIONS[version].read(tmp_path / "d"), some, False)


@both
def test_a_finished_dataset_says_how_many_episodes_it_has_and_takes_more(tmp_path, version):
    some = episodes()
    write(tmp_path / "d", version, some[:4])
    module = VERSIONS[version]
    info = (tmp_path / "d" / "meta" / "info.json").read_bytes()
    sink = module.write(tmp_path / "d", STREAMS, CARD)
    assert len(sink) == 4
    sink.close()
    assert (tmp_path / "d" / "meta" / "info.json").read_bytes() == info
    sink = module.write(tmp_path / "d", STREAMS, CARD)
    for one in some[4:]:
        sink.append(sink.encoder()(one))
    assert module.version_told(tmp_path / "d") is None, "half a dataset must not pass for a whole one"
    sink.close()
    assert_holds(module.read(tmp_path / "d"), some, False)


@both
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda call: call["streams"].pop("arm"), r"streams\.arm .* now null"),
        (lambda call: call["streams"].update(arm=StreamSpec((4,), "float32", RATE, "state")), r"streams\.arm"),
        (lambda call: call["card"].update(robot="hexapod"), r"card\.robot \(\"planar arm\", now \"hexapod\"\)"),
        (lambda call: call["options"].update(codec="png"), r"codec"),
        (lambda call: call["options"].update(chunks_size=9), r"options\.chunks_size"),
    ],
)
def test_going_on_with_something_else_is_refused_by_name(tmp_path, version, change, words):
    write(tmp_path / "d", version, episodes((3,)))
    call = {"streams": dict(STREAMS), "card": dict(CARD), "options": {}}
    change(call)
    with pytest.raises(FormatError, match=f"begun with another.*{words}"):
        VERSIONS[version].write(tmp_path / "d", call["streams"], call["card"], **call["options"])


@both
def test_folders_of_others_and_second_writers_are_refused(tmp_path, version):
    module = VERSIONS[version]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("...")
    (tmp_path / "file").write_text("")
    for name, words in (("other", "was not begun here"), ("file", "is a file")):
        with pytest.raises(FormatError, match=words):
            module.write(tmp_path / name, STREAMS, CARD)
    for damaged in ("{", "[]", '{"streams": 3}'):
        (tmp_path / "ours" / "meta" / "uwm").mkdir(parents=True, exist_ok=True)
        (tmp_path / "ours" / "meta" / "uwm" / "card.json").write_text(damaged)
        with pytest.raises(FormatError, match=r"not JSON|is not ours|another"):
            module.write(tmp_path / "ours", STREAMS, CARD)
    sink = module.write(tmp_path / "d", STREAMS, CARD)
    with pytest.raises(ValueError, match="being written by"):
        module.write(tmp_path / "d", STREAMS, CARD)
    sink.close()
    assert not module.recognise(tmp_path / "d"), "no episode, no dataset"
    for options, words in (({"codec": "divx"}, "unknown codec"), ({"crf": 99}, "crf"), ({"chunks_size": 0}, "positive")):
        with pytest.raises(FormatError, match=words):
            module.write(tmp_path / "new", STREAMS, CARD, **options)


@both
def test_a_bad_episode_is_refused_before_anything_is_written(tmp_path, version):
    sink = VERSIONS[version].write(tmp_path / "d", STREAMS, CARD)
    bad = episodes((5,))[0]
    bad.arrays["arm"][2, 1] = np.nan
    with pytest.raises(ValueError, match="'arm': nan at frame 2"):
        sink.encoder()(bad)
    short = episodes((5,))[0]
    short.arrays["reward"] = short.arrays["reward"][:-1]
    with pytest.raises(ValueError, match="'reward' has 4 frames, expected 5"):
        sink.encoder()(short)
    sink.close()


# ---- datasets of others --------------------------------------------------------------------------------------------

FEATURES = {
    "observation.images.front": {"dtype": "video", "shape": [32, 48, 3], "names": ["height", "width", "channels"], "info": {}},
    "observation.images.wrist": {"dtype": "video", "shape": [3, 24, 24], "names": ["channels", "height", "width"]},
    "observation.image": {"dtype": "image", "shape": [10, 12, 3], "names": ["height", "width", "channel"]},
    "observation.depth": {"dtype": "video", "shape": [24, 24, 1], "names": None, "info": {"video.is_depth_map": True}},
    "observation.state": {"dtype": "float32", "shape": [3], "names": {"motors": ["x", "y", "angle"]}},
    "observation.tactile": {"dtype": "float64", "shape": [2, 2], "names": None},
    "action": {"dtype": "float32", "shape": [2], "names": ["dx", "dy"]},
    "next.done": {"dtype": "bool", "shape": [1], "names": None},
    "next.reward": {"dtype": "float32", "shape": [1], "names": None},
    "count-2": {"dtype": "int64", "shape": [1], "names": None},
    "language": {"dtype": "string", "shape": [1], "names": None},
    "annotation.human.coarse_action": {"dtype": "int64", "shape": [1], "names": None},
    "odd": {"dtype": "list", "shape": [1], "names": None},
}
INDEX = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64"}
TASKS = ["fold the cloth", "lift it", "valid"]


def made_columns(length, number, first, seed=0):
    """Rows as somebody else would write them: an episode of two tasks, texts that change, pictures, nested lists."""
    random = np.random.default_rng(number + seed)
    png = [{"bytes": pictures.encode_png(random.integers(0, 255, (10, 12, 3), np.uint8)), "path": None} for _ in range(length)]
    return {
        "observation.image": pa.array(png, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "observation.state": pa.array(random.normal(size=(length, 3)).astype(np.float32).tolist(), pa.list_(pa.float32())),
        "observation.tactile": pa.array(random.normal(size=(length, 2, 2)).tolist(), pa.list_(pa.list_(pa.float64()))),
        "action": pa.array(random.normal(size=(length, 2)).astype(np.float32).tolist(), pa.list_(pa.float32(), 2)),
        "next.done": pa.array([row == length - 1 for row in range(length)]),
        "next.reward": pa.array(random.normal(size=length).astype(np.float32)),
        "count-2": pa.array([[row] for row in range(length)], pa.list_(pa.int64())),
        "language": pa.array(["calm" if number else ("calm" if row < 3 else "hasty") for row in range(length)]),
        "annotation.human.coarse_action": pa.array([2] * length),
        "odd": pa.array([b"x"] * length),
        "timestamp": pa.array((np.arange(length) / RATE).astype(np.float32)),
        "frame_index": pa.array(np.arange(length)),
        "episode_index": pa.array([number] * length),
        "index": pa.array(first + np.arange(length)),
        "task_index": pa.array([0 if number or row < 2 else 1 for row in range(length)]),
    }


def made(root, version, lengths=(5, 4, 7), without_wrist=(1,)):
    """A dataset written by hand with pyarrow and our encoder; GR00T's extra file beside it. Returns the frames of `front`."""
    random, frames, tables = np.random.default_rng(5), [], []
    (root / "meta").mkdir(parents=True)
    starts = [0, *np.cumsum(lengths).tolist()]
    for number, length in enumerate(lengths):
        frames.append({"front": smooth_video(random, length, 32, 48), "wrist": smooth_video(random, length, 24, 24)})
        tables.append(pa.table(made_columns(length, number, starts[number])))
    info = {
        "codebase_version": version, "robot_type": "aloha", "total_episodes": len(lengths), "total_frames": starts[-1], "fps": 20,
        "splits": {"train": "0:2", "test": "2:3"}, "chunks_size": 2,
        "features": {**FEATURES, **{key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in INDEX.items()}},
    }  # fmt: skip
    there = {"front": range(len(lengths)), "wrist": [number for number in range(len(lengths)) if number not in without_wrist]}
    tasks_of = [TASKS[:2] if not number else TASKS[:1] for number in range(len(lengths))]
    if version == "v2.1":
        info |= {"data_path": lerobot_v21.DATA, "video_path": lerobot_v21.VIDEO}
        for number, table in enumerate(tables):
            names = {"episode_chunk": number // 2, "episode_index": number}
            put(root / lerobot_v21.DATA.format(**names), table)
            for camera in (camera for camera in there if number in there[camera]):
                file = root / lerobot_v21.VIDEO.format(**names, video_key=f"observation.images.{camera}")
                put(file, video.encode(frames[number][camera], RATE))
        lines(root / "meta" / "tasks.jsonl", [{"task_index": number, "task": task} for number, task in enumerate(TASKS)])
        told = [{"episode_index": number, "tasks": tasks_of[number], "length": length} for number, length in enumerate(lengths)]
        lines(root / "meta" / "episodes.jsonl", told)
    else:
        info |= {"data_path": lerobot.DATA, "video_path": lerobot.VIDEO}
        put(root / "meta" / "tasks.parquet", pa.table({"task_index": range(3), "__index_level_0__": TASKS}))
        put(root / lerobot.DATA.format(chunk_index=0, file_index=0), pa.concat_tables(tables[:2]))  # one row group for two episodes
        put(root / lerobot.DATA.format(chunk_index=0, file_index=1), tables[2])
        table = {
            "episode_index": range(len(lengths)), "tasks": tasks_of, "length": lengths, "dataset_from_index": starts[:-1],
            "dataset_to_index": starts[1:], "data/chunk_index": [0, 0, 0], "data/file_index": [0, 0, 1],
        }  # fmt: skip
        for camera, numbers in there.items():
            joined = np.concatenate([frames[number][camera] for number in numbers])
            key = f"videos/observation.images.{camera}"
            put(root / lerobot.VIDEO.format(chunk_index=0, file_index=0, video_key=key.removeprefix("videos/")), video.encode(joined, RATE))
            ends = np.cumsum([lengths[number] for number in numbers]) / RATE
            spans = dict(zip(numbers, zip([0, *ends[:-1]], ends, strict=True), strict=True))
            table |= {f"{key}/{part}_index": [0 if number in spans else None for number in range(3)] for part in ("chunk", "file")}
            for place, part in enumerate(("from", "to")):
                table[f"{key}/{part}_timestamp"] = [spans[number][place] if number in spans else None for number in range(3)]
        put(root / "meta" / "episodes" / "chunk-000" / "file-000.parquet", pa.table(table))
    modality = {"state": {"arm": {"start": 0, "end": 2}, "wrist": {"start": 2, "end": 3}}, "action": {"base": {"start": 0, "end": 2}}}
    (root / "meta" / "modality.json").write_text(json.dumps(modality))
    (root / "meta" / "info.json").write_text(json.dumps(info))
    return frames


def put(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        pq.write_table(content, file)


def lines(file, told):
    file.write_text("".join(json.dumps(line) + "\n" for line in told))


@both
def test_a_dataset_of_somebody_else_reads_with_all_that_it_has(tmp_path, version):
    frames = made(tmp_path / "d", version)
    source = VERSIONS[version].read(tmp_path / "d")
    kinds = {name: (spec.kind, spec.shape, spec.dtype) for name, spec in source.streams.items()}
    assert kinds == {
        "front": ("video", (32, 48, 3), "uint8"), "wrist": ("video", (24, 24, 3), "uint8"), "image": ("video", (10, 12, 3), "uint8"),
        "state": ("state", (3,), "float32"), "tactile": ("state", (2, 2), "float64"), "action": ("action", (2,), "float32"),
        "done": ("label", (1,), "bool"), "reward": ("label", (1,), "float32"), "count_2": ("label", (1,), "int64"),
        "task_index": ("label", (), "int64"),
    }  # fmt: skip
    assert source.streams["wrist"].optional and not source.streams["front"].optional
    assert source.streams["state"].names == ("arm.0", "arm.1", "wrist") and source.streams["action"].names == ("base.0", "base.1")
    assert source.card["policy"] == {"cameras": ["front", "wrist", "image"], "proprio": ["state"], "action": "action"}
    assert source.card["source"]["names"]["count_2"] == "count-2" and source.card["robot"] == "aloha"
    assert sorted(line.partition(":")[0] for line in source.left_out) == ["feature 'observation.depth'", "feature 'odd'"]
    for number, length in ((2, 7), (0, 5), (1, 4)):
        found, made_of = source.read(number), made_columns(length, number, 0)
        for camera in ("front", "wrist"):
            due = frames[number][camera][: 0 if (number, camera) == (1, "wrist") else None]
            assert found.arrays[camera].shape == due.shape
            assert not len(due) or np.abs(found.arrays[camera].astype(int) - due).mean() < 4
        for name, key in (("state", "observation.state"), ("tactile", "observation.tactile"), ("action", "action"), ("done", "next.done")):
            assert np.array_equal(found.arrays[name].reshape(length, -1), np.array(made_of[key].to_pylist()).reshape(length, -1)), name
        image = pictures.decode(made_of["observation.image"][1].as_py()["bytes"], (10, 12, 3), "")
        assert np.array_equal(found.arrays["image"][1], image)
        assert found.arrays["task_index"].tolist() == ([0, 0, 1, 1, 1] if number == 0 else [0] * length)
        assert found.meta["instruction"] == "fold the cloth"
        text = {"language": [[0, "calm"], [3, "hasty"]] if number == 0 else "calm", "annotation.human.coarse_action": "valid"}
        extra = ({"tasks": TASKS[:2]} if number == 0 else {}) | ({"split": "test"} if number == 2 else {})
        assert found.meta["lerobot"] == {"text": text, **extra}


@both
def test_a_dataset_of_somebody_else_goes_out_as_it_came_in(tmp_path, version):
    made(tmp_path / "d", version)
    first = VERSIONS[version].read(tmp_path / "d")
    raw = [first.read(index) for index in range(3)]
    write(tmp_path / "e", version, raw, first.streams, first.card, codec="h264-lossless")
    info = json.loads((tmp_path / "e" / "meta" / "info.json").read_text())
    assert info["splits"] == {"train": "0:2", "test": "2:3"} and info["robot_type"] == "aloha"
    kept = {key for key in FEATURES if key not in ("odd", "observation.depth")}
    assert set(info["features"]) == kept | set(INDEX)
    assert {key: info["features"][key]["dtype"] for key in kept} == {
        key: "video" if key == "observation.image" else FEATURES[key]["dtype"] for key in kept
    }
    assert json.loads((tmp_path / "e" / "meta" / "modality.json").read_text())["state"]["arm"] == {"start": 0, "end": 2}
    shutil.rmtree(tmp_path / "e" / "meta" / "uwm")  # what follows must not come from our own notes
    second = VERSIONS[version].read(tmp_path / "e")
    for index in range(3):
        again = second.read(index)
        assert again.meta["lerobot"] == raw[index].meta["lerobot"]
        for name, values in raw[index].arrays.items():
            assert np.array_equal(again.arrays[name], values) or (name, index) == ("wrist", 1), name


def test_pictures_stay_pictures_where_no_codec_is_asked_for(tmp_path):
    made(tmp_path / "d", "v3.0")
    source = lerobot.read(tmp_path / "d")
    write(tmp_path / "e", "v3.0", [source.read(0)], source.streams, source.card)
    features = json.loads((tmp_path / "e" / "meta" / "info.json").read_text())["features"]
    assert features["observation.image"]["dtype"] == "image" and features["observation.images.front"]["dtype"] == "video"
    assert features["observation.state"]["names"] == ["arm.0", "arm.1", "wrist"]


@both
def test_notes_of_ours_that_do_not_fit_any_more_are_not_used(tmp_path, version):
    write(tmp_path / "d", version)
    notes = tmp_path / "d" / "meta" / "uwm" / "episodes.jsonl"
    notes.write_text("".join(notes.read_text().splitlines(keepends=True)[:-1]))
    source = VERSIONS[version].read(tmp_path / "d")
    assert "does not fit" in source.left_out[0] and "state" in source.streams
    assert source.read(3).meta == {
        "task": "open the drawer", "instruction": "open the drawer", "source": {"format": "lerobot", "name": "d", "episode": 3},
    }  # fmt: skip


def test_memory_grows_with_the_episode_and_not_with_the_file(tmp_path):
    """One row group of 400 episodes: only batches of it may be unpacked at a time."""
    made(tmp_path / "d", "v3.0", (5, 4, 7), without_wrist=())
    rows, length = 400, 250
    table = {key: column for key, column in made_columns(1, 0, 0).items() if key in ("action", *INDEX)}
    wide = np.random.default_rng(0).normal(size=(rows * length, 100)).astype(np.float32)
    table = {
        "wide": pa.FixedSizeListArray.from_arrays(pa.array(wide.reshape(-1)), 100),
        "timestamp": np.tile(np.arange(length) / RATE, rows).astype(np.float32), "frame_index": np.tile(np.arange(length), rows),
        "episode_index": np.arange(rows).repeat(length), "index": np.arange(rows * length), "task_index": np.zeros(rows * length, int),
    }  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "d" / "data" / "chunk-000" / "file-000.parquet", row_group_size=rows * length)
    starts = np.arange(rows) * length
    episodes_table = {
        "episode_index": range(rows), "tasks": [["a"]] * rows, "length": [length] * rows, "dataset_from_index": starts,
        "dataset_to_index": starts + length, "data/chunk_index": [0] * rows, "data/file_index": [0] * rows,
    }  # fmt: skip
    put(tmp_path / "d" / "meta" / "episodes" / "chunk-000" / "file-000.parquet", pa.table(episodes_table))
    info = json.loads((tmp_path / "d" / "meta" / "info.json").read_text())
    features = {"wide": {"dtype": "float32", "shape": [100], "names": None}}
    info |= {"features": features, "total_episodes": rows, "total_frames": rows * length}
    (tmp_path / "d" / "meta" / "info.json").write_text(json.dumps(info))
    source = lerobot.read(tmp_path / "d")
    del wide, table
    before = pa.total_allocated_bytes()
    peak = 0
    for index in (0, 1, 2, 200, 201, 399, 7):
        found = source.read(index).arrays["wide"]
        assert found.shape == (length, 100)
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 30 << 20, "the file holds 40 MB of values in one row group"


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A small sound dataset of each version, without our own notes; copied by `broken`."""
    root = tmp_path_factory.mktemp("sound")
    for version in VERSIONS:
        write(root / version, version, episodes((6, 8, 5)))
        shutil.rmtree(root / version / "meta" / "uwm")
    return root


def broken(sound, tmp_path, version):
    return Path(shutil.copytree(sound / version, tmp_path / "d"))


def edit_json(file, change):
    told = json.loads(file.read_text())
    change(told)
    file.write_text(json.dumps(told))


def edit_table(file, change):
    """Change columns (as lists) of a parquet file."""
    table = pq.read_table(file)
    columns = table.to_pydict()
    change(columns)
    types = {name: table.schema.field(name).type if name in table.schema.names else None for name in columns}
    pq.write_table(pa.table({name: pa.array(values, types[name]) for name, values in columns.items()}), file)


def read_all(version, path):
    source = VERSIONS[version].read(path)
    try:
        return [source.read(index) for index in range(len(source))]
    finally:
        source.close()


def data_file(path, version):
    return path / ("data/chunk-000/file-000.parquet" if version == "v3.0" else "data/chunk-000/episode_000001.parquet")


def video_file(path, version):
    key = "observation.images.front"
    return path / (f"videos/{key}/chunk-000/file-000.mp4" if version == "v3.0" else f"videos/chunk-000/{key}/episode_000001.mp4")


def swap(columns, name):
    columns[name][1], columns[name][2] = columns[name][2], columns[name][1]


ROWS = {
    "nan": (lambda c: c["action"][9 % len(c["action"])].__setitem__(1, float("nan")), "'action' is nan in row"),
    "infinite": (lambda c: c["next.reward"].__setitem__(0, float("inf")), "'next.reward' is inf"),
    "a missing value": (lambda c: c["next.reward"].__setitem__(1, None), "'next.reward' has 1 missing values"),
    "rows out of order": (lambda c: swap(c, "frame_index"), "row 1 has frame_index 2, expected 1"),
    "another episode's rows": (lambda c: c.update(episode_index=[7] * len(c["episode_index"])), "episode_index 7"),
    "a wrong index": (lambda c: c.update(index=[number + 1 for number in c["index"]]), "has index"),
    "a gap in time": (lambda c: c["timestamp"].__setitem__(3, 0.4), "timestamp 0.4 s, expected 0.15"),
    "no time": (lambda c: c["timestamp"].__setitem__(3, float("nan")), "timestamp nan"),
    "an unknown task": (lambda c: c.update(task_index=[9] * len(c["task_index"])), "task_index 9 is not in the table"),
    "rows missing": (lambda c: [values.pop() for values in c.values()], "are promised"),
    "a column missing": (lambda c: c.pop("action"), r"lacks the columns \['action'\]"),
    "another width": (lambda c: c.update(action=pa.array([[1.0]] * len(c["action"]), pa.list_(pa.float32()))), "expected lists of shape"),
    "texts for numbers": (lambda c: c.update({"next.reward": pa.array(["x"] * len(c["action"]))}), "nothing but numbers"),
    "bytes for numbers": (lambda c: c.update({"next.reward": pa.array([b"cos"] * len(c["action"]))}), "nothing but numbers"),
}


@both
@pytest.mark.parametrize("what", ROWS)
def test_bad_rows_are_refused_by_name(sound, tmp_path, version, what):
    path = broken(sound, tmp_path, version)
    change, words = ROWS[what]
    file = data_file(path, version)
    table = pq.read_table(file)
    columns = table.to_pydict()
    change(columns)
    as_before = lambda name, values: values if isinstance(values, pa.Array) else pa.array(values, table.schema.field(name).type)  # noqa: E731
    pq.write_table(pa.table({name: as_before(name, values) for name, values in columns.items()}), file)
    with pytest.raises(FormatError, match=words) as caught:
        read_all(version, path)
    assert str(file.name) in str(caught.value)


@both
def test_wrong_lengths_of_a_list_are_found_in_the_middle_too(sound, tmp_path, version):
    path = broken(sound, tmp_path, version)
    file = data_file(path, version)
    table = pq.read_table(file)
    ragged = [[1.0, 2.0]] * (len(table) - 2) + [[1.0], [1.0, 2.0, 3.0]]
    place = table.schema.get_field_index("action")
    pq.write_table(table.set_column(place, "action", pa.array(ragged, pa.list_(pa.float32()))), file)
    with pytest.raises(FormatError, match="'action' holds list"):
        read_all(version, path)


@both
@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_cut_off_files_are_refused(sound, tmp_path, version, share):
    for number, find in enumerate((data_file, video_file)):
        path = Path(shutil.copytree(sound / version, tmp_path / str(number)))
        file = find(path, version)
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
        with pytest.raises(FormatError, match=str(file.name)):
            read_all(version, path)


@both
def test_a_video_with_fewer_frames_than_rows_is_refused(sound, tmp_path, version):
    path = broken(sound, tmp_path, version)
    file = video_file(path, version)
    with video.VideoFile(file) as whole:
        frames = whole.read(0, whole.promised)
    file.write_bytes(video.encode(frames[:-1], RATE))
    with pytest.raises(FormatError, match=r"front'.*has \d+ frames, frames .* are asked for"):
        read_all(version, path)
    file.write_bytes(video.encode(frames, RATE * 2))
    with pytest.raises(FormatError, match="does not fit 20 frames a second"):
        read_all(version, path)
    file.write_bytes(video.encode(frames[:, :16], RATE))
    with pytest.raises(FormatError, match=r"has frames of 16 x 48, feature .* promises 32 x 48"):
        read_all(version, path)
    file.unlink()
    if version == "v2.1":
        assert [len(raw.arrays["front"]) for raw in read_all(version, path)] == [6, 0, 5]
    else:
        source = lerobot.read(path)
        assert "front" not in source.streams and "no episode has its video" in source.left_out[0]


def test_a_table_that_promises_less_video_than_rows_is_refused(sound, tmp_path):
    path = broken(sound, tmp_path, "v3.0")
    table = path / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    key = "videos/observation.images.front"
    whole = table.read_bytes()
    edit_table(table, lambda columns: columns[f"{key}/to_timestamp"].__setitem__(1, columns[f"{key}/from_timestamp"][1] + 0.1))
    with pytest.raises(FormatError, match="fewer frames than the episode's 8 rows"):
        lerobot.read(path)
    table.write_bytes(whole)
    edit_table(table, lambda columns: columns[f"{key}/from_timestamp"].__setitem__(1, 0.333))
    with pytest.raises(FormatError, match="where no frame stands"):
        lerobot.read(path)


EPISODES = {
    "missing": (lambda e: e.pop(1), "episode 2 stands where episode 1 is due"),
    "not in order": (lambda e: e.insert(0, e.pop(1)), "stands where episode 0 is due"),
    "twice": (lambda e: e.append(e[2]), "stands where episode 3 is due"),
    "the last missing": (lambda e: e.pop(), "total_episodes 3"),
    "none": (lambda e: e.clear(), "no episode|total_episodes"),
    "a wrong length": (lambda e: e[1].update(length=9), "length 9|total_frames"),
    "no length": (lambda e: e[1].update(length=None), "whole number"),
    "a negative length": (lambda e: e[1].update(length=-8), "whole number"),
}


@both
@pytest.mark.parametrize("what", EPISODES)
def test_unordered_or_missing_episodes_are_refused(sound, tmp_path, version, what):
    path = broken(sound, tmp_path, version)
    change, words = EPISODES[what]
    if version == "v2.1":
        file = path / "meta" / "episodes.jsonl"
        told = [json.loads(line) for line in file.read_text().splitlines()]
        change(told)
        lines(file, told)
    else:
        file = path / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
        table = pq.read_table(file)
        told = table.to_pylist()
        change(told)
        pq.write_table(pa.Table.from_pylist(told, table.schema), file)
    with pytest.raises(FormatError, match=f"{words}|expected from"):
        VERSIONS[version].read(path)


@both
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda info: info.update(codebase_version="v3.1"), r"is LeRobot v3.1; v\d"),
        (lambda info: info.update(codebase_version="v1.6"), "is LeRobot v1.6"),
        (lambda info: info.update(codebase_version="v9"), "is LeRobot v9"),
        (lambda info: info.update(codebase_version=None), "tells no codebase_version"),
        (lambda info: info.pop("features"), "`features` must hold"),
        (lambda info: info.update(features={}), "`features` must hold"),
        (lambda info: info.update(fps=0), "fps must be a positive number"),
        (lambda info: info.update(fps="fast"), "fps must be a positive number"),
        (lambda info: info.update(data_path="../../etc/passwd"), "leads out of the dataset"),
        (lambda info: info.update(data_path="/etc/passwd"), "leads out of the dataset"),
        (lambda info: info.update(video_path="{video_key}/../../../{video_key}.mp4"), "leads out of the dataset"),
        (lambda info: info.update(data_path="{episode_index.__class__}"), "may name"),
        (lambda info: info.update(data_path="{episode_index:0999999999d}"), "may name"),
        (lambda info: info.update(data_path="{home}/x"), "may name"),
        (lambda info: info.update(data_path="{"), "not a path template"),
        (lambda info: info.update(data_path=7), "must be text"),
        (lambda info: info["features"]["action"].update(dtype="object"), "no column|lacks|cannot|'action'"),
        (lambda info: info["features"]["action"].update(shape=[1 << 40]), "claims an episode"),
        (lambda info: info["features"]["action"].update(shape=[3]), "expected lists of shape"),
        (lambda info: info["features"]["observation.images.front"].update(shape=[1 << 20, 1 << 20, 3]), "claims an episode"),
        (lambda info: info["features"]["action"].update(dtype="int32"), "does not fit into the promised int32"),
    ],
)
def test_a_bad_info_is_refused(sound, tmp_path, version, change, words):
    path = broken(sound, tmp_path, version)
    edit_json(path / "meta" / "info.json", change)
    if "object" in words or "no column" in words:
        source = VERSIONS[version].read(path)
        assert "action" not in source.streams and "cannot be a stream" in source.left_out[0]
        return
    with pytest.raises(FormatError, match=words):
        read_all(version, path)


def test_hostile_feature_names_do_not_lead_out_of_the_dataset(sound, tmp_path):
    path = broken(sound, tmp_path, "v2.1")
    edit_json(path / "meta" / "info.json", lambda info: info["features"].update({"../../../x": {"dtype": "video", "shape": [4, 4, 3]}}))
    with pytest.raises(FormatError, match="leads out of the dataset"):
        lerobot_v21.read(path)


def test_a_path_template_keeps_to_its_names():
    assert filled("a/{chunk:03d}-{file}", chunk=7, file=1) == "a/007-1"
    for template in ("{chunk!r}", "{chunk:>10}", "{}", "{0}", "{chunk:{file}}", "a/../b/{chunk}", "~\0{chunk}"):
        with pytest.raises(FormatError):
            filled(template, chunk=7, file=1)


@both
def test_what_is_not_a_dataset_is_not_recognised_and_says_so(tmp_path, version):
    module = VERSIONS[version]
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("hello")
    (tmp_path / "odd" / "meta").mkdir(parents=True)
    for content in ("", "[]", "{", "null", '{"codebase_version": [1]}', "[" * 100_000, '{"codebase_version": "' + "9" * 5000 + '"}'):
        (tmp_path / "odd" / "meta" / "info.json").write_text(content)
        for name in ("empty", "text", "odd", "nowhere"):
            assert not module.recognise(tmp_path / name)
            with pytest.raises(FormatError):
                module.read(tmp_path / name)


def test_columns_that_could_run_code_are_refused(sound, tmp_path):
    path = broken(sound, tmp_path, "v3.0")
    file = path / "meta" / "tasks.parquet"
    table = pq.read_table(file)
    field = pa.field("__index_level_0__", pa.binary(), metadata={b"ARROW:extension:name": b"arrow.py_extension_type"})
    pickled = pa.array([b"\x80\x04cposix\nsystem\n."] * len(table), pa.binary())
    pq.write_table(pa.table([table["task_index"], pickled], schema=pa.schema([table.schema.field("task_index"), field])), file)
    with pytest.raises(FormatError, match="holds binary; numbers, texts and lists of them"):
        lerobot.read(path)


@both
def test_a_source_pickles_and_reading_leaves_the_files_alone(sound, tmp_path, version):
    import pickle

    path = broken(sound, tmp_path, version)
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in path.rglob("*") if file.is_file()}
    source = VERSIONS[version].read(path)
    first = source.read(1)
    copy = pickle.loads(pickle.dumps(source))
    assert np.array_equal(copy.read(1).arrays["front"], first.arrays["front"])
    encoder = VERSIONS[version].write(tmp_path / "out", source.streams, source.card).encoder()
    assert pickle.loads(pickle.dumps(encoder))(first).length == 8
    assert before == {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in path.rglob("*") if file.is_file()}
    for index in (-1, 3):
        with pytest.raises(FormatError, match="has episodes 0 to 2"):
            source.read(index)


# ---- fuzz ----------------------------------------------------------------------------------------------------------

fuzz = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), database=None)
FUZZED = {
    "v3.0": ["meta/info.json", "meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet",
             "videos/observation.images.front/chunk-000/file-000.mp4"],
    "v2.1": ["meta/info.json", "meta/tasks.jsonl", "meta/episodes.jsonl", "data/chunk-000/episode_000001.parquet",
             "videos/chunk-000/observation.images.front/episode_000001.mp4"],
}  # fmt: skip


@pytest.mark.parametrize(("version", "name"), [(version, name) for version, names in FUZZED.items() for name in names])
def test_damaged_files_end_in_our_own_error_or_in_an_episode(sound, tmp_path, version, name):
    path = broken(sound, tmp_path, version)
    file = path / name
    whole = file.read_bytes()

    @fuzz
    @given(mutations(whole))
    def run(damaged):
        file.write_bytes(damaged)
        survives(lambda: read_all(version, path))

    run()


@fuzz
@given(st.recursive(st.none() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)))
def test_whatever_stands_in_info_ends_in_our_own_error_or_in_an_episode(sound, value):
    for version in VERSIONS:
        info = json.loads((sound / version / "meta" / "info.json").read_text())
        for key in info:
            if key == "codebase_version":
                continue
            changed = json.dumps({**info, key: value})
            path = sound.parent / "edited" / version
            if not path.exists():
                shutil.copytree(sound / version, path)
            (path / "meta" / "info.json").write_text(changed)
            try:
                VERSIONS[version].read(path).close()
            except FormatError:
                pass
