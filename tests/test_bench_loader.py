"""The bench of the loader: everyone reads the same windows, the verdicts follow the rates, a missing judge is not a verdict."""

import ctypes
import mmap
import os
import time

import numpy as np
import pytest

from foreign import episode
from uwm.bench import loader_bench as bench
from uwm.bench import loader_contenders as contenders
from uwm.bench.gates import FAILS, HOLDS, NOT_JUDGED
from uwm_data import EpisodeStore, StreamSpec

STREAMS = {
    "front": StreamSpec((32, 48, 3), "uint8", 20, "video"),
    "wrist": StreamSpec((24, 24, 3), "uint8", 20, "video"),
    "action": StreamSpec((2,), "float32", 20, "action"),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "s.zarr"
    with EpisodeStore.create(path, STREAMS) as made:
        for seed, ticks in enumerate((30, 10, 25)):
            made.append(*episode(ticks, seed, STREAMS))
    return path


@pytest.fixture(scope="module")
def made(store, tmp_path_factory):
    return contenders.prepare(store, tmp_path_factory.mktemp("copies"))


def test_the_windows_are_those_that_lie_inside_an_episode_for_everyone(made, store):
    windows = made.sources["ours"].windows
    place, tick = windows.locate(made.numbers)
    assert list(zip(place.tolist(), tick.tolist(), strict=True)) == [(0, k) for k in range(12)] + [(2, k) for k in range(7)]
    whole = windows.batch(made.numbers)
    assert all(valid.all() for valid in whole.valid.values())
    actions = EpisodeStore.open(store).read_rows("action", np.arange(65))
    np.testing.assert_array_equal(actions[made.places.actions], whole.values["action"][:, 0])


def test_everyone_reads_the_same_values_and_a_different_one_is_found(made):
    numbers = np.array([3, 0, 18])
    expected = made.sources["ours"].batch(numbers).values
    for source in made.sources.values():
        for name, values in source.batch(numbers).values.items():
            np.testing.assert_array_equal(values, expected[name])
    mapped = made.sources["memory map"]
    wrong = contenders.MemoryMap(mapped.folder, mapped.cameras, contenders.Places(mapped.places.frames + 1, mapped.places.actions))
    with pytest.raises(RuntimeError, match="memory map gives other values of 'front'"):
        contenders._refuse_differences({"ours": made.sources["ours"], "memory map": wrong}, 10)


def test_bytes_are_counted_and_grow_with_what_is_read(made):
    read = {name: bench.bytes_read(source, len(made.numbers), 2) for name, source in made.sources.items()}
    assert read["ours, nothing kept"] < read["one-frame chunks"] and read["ours"] < read["ours, nothing kept"]
    assert read["memory map"] == 4 * (32 * 48 + 24 * 24) * 3 + 16 * 2 * 4


def in_page_cache(file):
    """Is any page there, as the system sees it? Asked by mincore, since a read may bring the page in, be it told not to wait."""
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None, use_errno=True).mincore(ctypes.byref(start), ctypes.c_size_t(len(mapped)), pages)
        del start  # else the map cannot be closed
        assert not failed, os.strerror(ctypes.get_errno())
        return any(page & 1 for page in pages)


def leaves_the_page_cache(file):
    """To drop is advice, and a page that the system holds for a moment stays: so it is given again."""
    for _ in range(20):
        bench.drop(file)
        if not in_page_cache(file):
            return True
        time.sleep(0.1)
    return False


def test_the_files_of_everyone_leave_the_page_cache_and_come_back(store, tmp_path):
    made = contenders.prepare(store, tmp_path)
    for file in [some[0] for some in made.files.values()]:
        assert leaves_the_page_cache(file)
        bench.touch(file)
        assert in_page_cache(file)


def test_a_small_run_measures_everyone_and_says_how_to_get_the_missing_judge(store, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "JUDGES", tmp_path / "nowhere")
    monkeypatch.setattr(bench, "WORKERS", (1,))
    monkeypatch.setattr(bench, "BATCH", 4)
    found = bench.measure(store, tmp_path, rounds=1, seconds=0.05)
    names = {"ours", "ours, a quarter kept", "ours, nothing kept", "one-frame chunks", "memory map"}
    assert names < set(found["rounds"]) and all(rate[0] > 0 for some in found["rounds"].values() for rate in some.values())
    gates = bench.gates(found, enough=False)
    assert gates[-1].verdict == NOT_JUDGED and "python3 run.py judges lerobot-0.4.4" in gates[-1].baseline


def test_the_judge_is_asked_for_the_same_windows_and_its_failure_is_told(store, made, tmp_path, monkeypatch):
    launcher = tmp_path / "judges" / bench.JUDGE / "bin" / "judge"
    launcher.parent.mkdir(parents=True)
    answer = '{"rates": [1, 2, 3, 4], "bytes": 5, "backend": "b", "versions": {}}'
    launcher.write_text(f"#!/bin/sh\ncat > {tmp_path}/asked.json\necho '{answer}'\n")
    launcher.chmod(0o755)
    monkeypatch.setattr(bench, "JUDGES", tmp_path / "judges")
    lerobot = bench.LeRobot(store, tmp_path, made, 0.1)
    assert sorted(lerobot.request["items"]) == sorted(made.places.actions.tolist())
    asked = {key.rpartition(".")[2]: seconds for key, seconds in lerobot.request["windows"].items()}
    assert asked["front"] == asked["wrist"] == [0, 1 / 20, 17 / 20, 18 / 20] and len(asked["action"]) == 16
    assert lerobot.rates() == {"cold, 1 worker": 1, "cold, 2 workers": 2, "warm, 1 worker": 3, "warm, 2 workers": 4}
    assert lerobot.bytes_read == {"LeRobot": 5}
    launcher.write_text("#!/bin/sh\ncat > /dev/null\necho no such module >&2\nexit 3\n")
    with pytest.raises(RuntimeError, match=r"failed to read .*no such module"):
        lerobot.rates()


def figures(**rates):
    runs = [bench.run_name(is_cold, workers) for is_cold in (True, False) for workers in (1, 2)]
    ours = {"ours": 100.0, "ours, a quarter kept": 70.0, "ours, nothing kept": 60.0}
    usual = {**ours, "one-frame chunks": 10.0, "memory map": 150.0, "LeRobot": 5.0}
    rounds = {name: {run: [rate] * 6 for run in runs} for name, rate in {**usual, **rates}.items()}
    return {"rounds": rounds, "bytes_per_window": {"one-frame chunks": 5.0, "ours, nothing kept": 1.0}}


@pytest.mark.parametrize(
    ("rates", "failing"),
    [({}, 0), ({"one-frame chunks": 25.0}, 8), ({"memory map": 250.0}, 2), ({"LeRobot": 101.0}, 4), ({"one-frame chunks": 13.0}, 2)],
)
def test_the_verdicts_follow_the_rates(rates, failing):
    gates = bench.gates(figures(**rates), enough=True)
    assert len(gates) == 15
    assert [gate.verdict for gate in gates].count(FAILS) == failing and [gate.verdict for gate in gates].count(HOLDS) == 15 - failing
    assert {gate.verdict for gate in bench.gates(figures(**rates), enough=False)} <= {NOT_JUDGED, HOLDS}


def test_the_script_for_the_judge_is_where_the_bench_looks():
    script = bench.Path(bench.__file__).resolve().parents[2] / "tests" / "judges" / "inside" / "loader_speed.py"
    compile(script.read_text(), str(script), "exec")
