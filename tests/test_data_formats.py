"""What every format that we write has to keep: values, names, words and card; and what it cannot keep it has to say."""

import pickle

import numpy as np
import pytest

import foreign
from uwm_data import EpisodeStore, FormatError, StoreError, StreamSpec, cards
from uwm_data.conversion import convert
from uwm_data.formats import FORMATS, RawEpisode, module_of, recognised
from uwm_data.verification import worst_psnr_db

WRITTEN = ["store", "robomimic", "diffusion-policy", "lerobot", "lerobot-v2.1", "rlds"]
TICKS = (7, 12, 9)
ENDINGS = {"store": ".zarr", "robomimic": ".hdf5", "diffusion-policy": ".zarr"}
EPISODES = [foreign.episode(ticks, seed) for seed, ticks in enumerate(TICKS)]


def place(folder, name, what="data"):
    return folder / f"{what}_{name.replace('.', '_')}{ENDINGS.get(name, '')}"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of three episodes of everything that usual datasets have."""
    path = tmp_path_factory.mktemp("formats") / "origin.zarr"
    with EpisodeStore.create(path, foreign.STREAMS, foreign.CARD) as made:
        for arrays, meta in EPISODES:
            made.append(arrays, meta)
    return path


@pytest.fixture(scope="module")
def written(store):
    """{format: (path of the dataset in it, path of the store that came back, report, report of the way back)}, made once."""
    found = {}
    for name in WRITTEN:
        there, back = place(store.parent, name), store.parent / f"back_{name.replace('.', '_')}.zarr"
        out = convert(store, there, name, workers=0, verify=True)
        found[name] = there, back, out, convert(there, back, workers=0, verify=True)
    return found


def test_every_format_that_can_be_written_is_tested_here():
    writers = [name for name in FORMATS if hasattr(module_of(name), "write") and name != "videos"]
    assert sorted(writers) == sorted(WRITTEN)


# --------------------------------------------------------------------------------------------------------------- nothing lost


@pytest.mark.parametrize("name", WRITTEN)
def test_there_and_back_keeps_what_the_format_says_that_it_keeps(written, name):
    _, back, out, _ = written[name]
    after = EpisodeStore.open(back)
    assert len(after) == len(TICKS) and list(after.streams) == list(foreign.STREAMS)
    losses = []
    for index, (arrays, meta) in enumerate(EPISODES):
        for stream, values in arrays.items():
            found = after.read(index, stream)
            assert found.dtype == values.dtype and len(values) - len(found) in (0, 1)
            losses += [f"{stream}: the last frame"] if len(found) < len(values) else []
            if np.array_equal(found, values[: len(found)]):
                continue
            assert foreign.STREAMS[stream].kind == "video", f"{stream} of episode {index} came back changed"
            assert worst_psnr_db(values[: len(found)], found) > 28
            losses.append(f"{stream}: pixels")
        losses += [f"{key} of episode {index}" for key, value in meta.items() if after.meta(index).get(key) != value]
    # What is lost is said, and nothing is said to be lost that is not.
    assert bool(losses) == bool(out.left_out["target"]), (losses, out.left_out)
    for loss in losses:
        assert any(loss.split(":")[0].split(" of ")[0] in told for told in out.left_out["target"]), (loss, out.left_out)


@pytest.mark.parametrize("name", WRITTEN)
def test_words_and_outcome_of_an_episode_come_back(written, name):
    after = EpisodeStore.open(written[name][1])
    for index, (_, meta) in enumerate(EPISODES):
        told = after.meta(index)
        assert told.get("instruction") == meta["instruction"]
        assert told.get("success", meta["success"]) == meta["success"] and told.get("task", meta["task"]) == meta["task"]


@pytest.mark.parametrize("name", WRITTEN)
def test_streams_come_back_with_their_kind_rate_names_and_units(written, name):
    after = EpisodeStore.open(written[name][1]).streams
    for stream, spec in foreign.STREAMS.items():
        for key in ("shape", "dtype", "rate_hz", "kind", "units", "names"):
            assert getattr(after[stream], key) == getattr(spec, key), (stream, key)


@pytest.mark.parametrize("name", WRITTEN)
def test_the_card_of_a_read_dataset_tells_all_that_the_contract_asks_for(written, name):
    source = module_of(name).read(written[name][0])
    card = source.card
    assert card["image_orientation"] == "upright" and card["rate_hz"] == foreign.RATE
    assert {key: card["action"].get(key) for key in foreign.CARD["action"]} == foreign.CARD["action"]
    assert card["policy"] == foreign.CARD["policy"] and (card["env"], card["robot"]) == ("Toy", "planar arm")
    assert not cards.missing(cards.complete(card, source.streams))
    if name != "store":
        assert card["source"]["format"] == name.removesuffix("-v2.1") or card["source"]["format"] == name
        assert set(card["source"]["names"]) <= set(source.streams)
    source.close()


@pytest.mark.parametrize("name", WRITTEN[1:])
def test_what_was_read_of_one_foreign_format_can_be_written_into_another(written, name, tmp_path):
    """From each format into the two that follow it in a ring (and into the store and out of it, above)."""
    there, ring = written[name][0], WRITTEN[1:]
    start = ring.index(name) + 1
    for other in (ring * 2)[start : start + 2]:
        report = convert(there, place(tmp_path, other), other, workers=0, verify=True)
        assert report.episodes == len(TICKS) and report.ticks == sum(TICKS)
        assert {"front", "arm", "action"} <= set(report.likeness)


# ------------------------------------------------------------------------------------------------------- the contract's small print


@pytest.mark.parametrize("name", WRITTEN)
def test_a_dataset_is_recognised_by_its_own_format_alone(written, name):
    there = written[name][0]
    # `videos` takes any folder with films in it, and is asked last.
    assert [other for other in FORMATS if module_of(other).recognise(there)][:1] == [name]
    assert not any(module_of(other).recognise(there) for other in FORMATS if other not in (name, "videos"))
    assert recognised(str(there)) == name


@pytest.mark.parametrize("name", list(FORMATS))
def test_what_is_no_dataset_of_a_format_is_not_recognised_and_refused_by_name(name, tmp_path, written):
    module = module_of(name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "data.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))
    films = ("lerobot", "lerobot-v2.1") if name == "videos" else ()
    others = [there for other, (there, *_) in written.items() if other != name and other not in films]
    for path in (tmp_path / "nowhere", tmp_path / "empty", tmp_path / "text.txt", tmp_path / "data.hdf5", *others):
        with pytest.raises(StoreError) as refused:
            module.read(path)
        assert path.name in str(refused.value), refused.value
        if path.name != "data.hdf5":  # it begins like one; that it is none, reading finds
            assert module.recognise(path) is False


@pytest.mark.parametrize("name", WRITTEN)
def test_a_source_goes_to_another_process_before_and_after_it_was_used(written, name):
    source = module_of(name).read(written[name][0])
    first = source.read(0)
    for copy in (pickle.loads(pickle.dumps(source)), pickle.loads(pickle.dumps(module_of(name).read(written[name][0])))):
        again = copy.read(0)
        assert again.meta == first.meta and all(np.array_equal(again.arrays[key], first.arrays[key]) for key in first.arrays)
        copy.close()
    source.close()
    assert source.read(1).meta  # a closed one opens again by itself


@pytest.mark.parametrize("name", WRITTEN)
def test_episodes_that_are_not_there_are_refused(written, name):
    source = module_of(name).read(written[name][0])
    for number in (-1, len(TICKS), 10**9):
        with pytest.raises(FormatError):
            source.read(number)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_writer_that_was_stopped_goes_on_behind_its_last_episode(written, name, tmp_path):
    module, there = module_of(name), place(tmp_path, name)
    for start, stop in ((0, 1), (1, 1), (1, 3)):
        sink = module.write(there, foreign.STREAMS, foreign.CARD)
        assert len(sink) == start
        encode = pickle.loads(pickle.dumps(sink.encoder()))
        for arrays, meta in EPISODES[start:stop]:
            sink.append(encode(RawEpisode(arrays, meta)))
        assert len(sink) == stop
        sink.close()
    straight, resumed = module.read(written[name][0]), module.read(there)
    assert len(resumed) == len(straight) == len(TICKS)
    for index in range(len(TICKS)):
        one, other = straight.read(index), resumed.read(index)
        assert one.meta == other.meta
        for key, values in one.arrays.items():
            if foreign.STREAMS[key].kind == "video" and name.startswith("lerobot"):
                assert worst_psnr_db(values, other.arrays[key]) > 35  # x264 with AVX-512 does not repeat itself to the bit
            else:
                assert np.array_equal(values, other.arrays[key]), (index, key)


@pytest.mark.parametrize("name", WRITTEN)
def test_other_streams_are_not_added_to_a_dataset(written, name, tmp_path):
    module, there = module_of(name), place(tmp_path, name)
    sink = module.write(there, foreign.STREAMS, foreign.CARD)
    arrays, meta = EPISODES[0]
    sink.append(sink.encoder()(RawEpisode(arrays, meta)))
    sink.close()
    fewer = {key: spec for key, spec in foreign.STREAMS.items() if key != "arm"}
    with pytest.raises(StoreError):
        module.write(there, fewer, foreign.CARD)
    assert len(module.read(there)) == 1


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_there_and_is_not_ours_is_not_touched(store, name, tmp_path):
    there = place(tmp_path, name)
    there.mkdir()
    (there / "thesis.txt").write_text("years of work")
    with pytest.raises(FormatError, match="was not begun by a conversion"):
        convert(store, there, name, workers=0)
    assert [file.name for file in there.iterdir()] == ["thesis.txt"] and list(tmp_path.iterdir()) == [there]


# --------------------------------------------------------------------------------------------------- data that is not usual

ODD = {
    "depth": StreamSpec((8, 6, 1), "uint8", 20, "video"),
    "slow": StreamSpec((16, 16, 3), "uint8", 5, "video"),
    "sometimes": StreamSpec((16, 16, 3), "uint8", 20, "video", optional=True),
    "grid": StreamSpec((2, 3), "float64", 20, "state"),
    "contact": StreamSpec((), "bool", 20, "label"),
    "count": StreamSpec((1,), "int64", 20, "label", closing=False),
    "action": StreamSpec((3,), "float64", 20, "action"),
    "wish": StreamSpec((3,), "float64", 20, "action"),
}


def odd_episode(ticks, seed, without=()):
    random = np.random.default_rng(seed)
    arrays = {}
    for name, spec in ODD.items():
        shape = (0 if name in without else spec.frames(ticks, 20), *spec.shape)
        if spec.kind == "video":
            arrays[name] = np.broadcast_to(random.integers(40, 200, (shape[0], 1, 1, 1)), shape).astype(np.uint8)
        else:
            arrays[name] = (random.integers(-(2**40), 2**40, shape) % (2 if spec.dtype == "bool" else 2**41)).astype(spec.dtype)
    return arrays


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("dropped", [(), ("slow", "sometimes"), ("slow", "sometimes", "depth")])
def test_odd_streams_are_kept_or_named_and_never_lost_in_silence(name, dropped, tmp_path):
    """Two rates, grey video, a camera that was off, matrices, flags, big integers, two actions."""
    streams = {stream: spec for stream, spec in ODD.items() if stream not in dropped}
    with EpisodeStore.create(tmp_path / "odd.zarr", streams) as made:
        for seed, without in enumerate([(), ("sometimes",), ()]):
            arrays = odd_episode(8 + seed, seed, without)
            made.append({key: arrays[key] for key in streams}, {"only we know this": {"deep": [seed]}})
    there = place(tmp_path, name)
    try:
        report = convert(tmp_path / "odd.zarr", there, name, workers=0, verify=True)
    except FormatError as refused:
        assert any(stream in str(refused) for stream in streams), refused
        return
    told = " ".join(report.left_out["target"])
    for stream in streams:
        assert stream in report.likeness or stream in told, (stream, told)
    convert(there, tmp_path / "back.zarr", workers=0, verify=True)
    back = EpisodeStore.open(tmp_path / "back.zarr")
    kept = [back.meta(index).get("only we know this") == {"deep": [index]} for index in range(3)]
    assert all(kept) or "only we know this" in told, told


@pytest.mark.parametrize("name", WRITTEN)
def test_episodes_of_one_tick_and_without_words(name, tmp_path):
    streams = {"state": StreamSpec((2,), "float32", 10, "state"), "action": StreamSpec((1,), "float32", 10, "action")}
    with EpisodeStore.create(tmp_path / "s.zarr", streams) as made:
        for ticks in (1, 2, 1):
            made.append({"state": np.ones((ticks + 1, 2), np.float32), "action": np.ones((ticks, 1), np.float32)})
    there = place(tmp_path, name)
    assert convert(tmp_path / "s.zarr", there, name, workers=0, verify=True).episodes == 3
    convert(there, tmp_path / "back.zarr", workers=0, verify=True)
    back = EpisodeStore.open(tmp_path / "back.zarr")
    assert [back.length(index, "action") for index in back.episodes] == [1, 2, 1]
