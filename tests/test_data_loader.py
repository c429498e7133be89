"""Batches from worker processes equal those read here, in order, and every end of a process is clean."""

import gc
import os
import signal
import subprocess
import sys
import time
from itertools import islice

import numpy as np
import pytest

from data_episodes import make_store
from uwm_data import EpisodeStore, Loader, StoreError, WindowBatch, Windows, shuffled

OFFSETS = {"camera": [0, 1, 4], "state": [0], "action": range(-2, 6)}


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    path = tmp_path_factory.mktemp("loader") / "s.zarr"
    make_store(path)
    return Windows(EpisodeStore.open(path), OFFSETS)


def assert_same(one, other):
    for name in OFFSETS:
        np.testing.assert_array_equal(one.values[name], other.values[name])
        np.testing.assert_array_equal(one.valid[name], other.valid[name])
    np.testing.assert_array_equal(one.episode, other.episode)
    np.testing.assert_array_equal(one.tick, other.tick)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_come_in_order_and_resume_at_any_step(windows, workers):
    expected = [windows.batch(numbers) for numbers in islice(shuffled(len(windows), 8, 5), 12)]
    with Loader(windows, shuffled(len(windows), 8, 5, start_step=4), workers) as batches:
        for step, batch in zip(range(4, 12), batches, strict=False):
            assert_same(batch, expected[step])


def test_a_finite_order_ends_and_batches_stay_valid_as_long_as_they_are_held(windows):
    orders = list(islice(shuffled(len(windows), 7, 1), 15))
    with Loader(windows, orders, workers=2, ahead=3) as batches:
        held = list(batches)
        assert next(batches, None) is None
    assert len(held) == 15
    for numbers, batch in zip(orders, held, strict=True):
        assert_same(batch, windows.batch(numbers))
        batch.values["camera"][...] = 0  # ours to change


def test_memory_of_batches_that_are_gone_is_used_again(windows):
    with Loader(windows, islice(shuffled(len(windows), 8, 0), 40), workers=1, ahead=2) as batches:
        part = next(batches).values["state"][:2, 0]  # a view keeps its batch
        copy = part.copy()
        for _ in batches:
            pass
        gc.collect()
        assert 3 <= len(batches._workers[0]._slots) <= 5
        np.testing.assert_array_equal(part, copy)


class Growing:
    """Batches of any size, made with `allocate` or without, and errors on demand."""

    def batch(self, indices, allocate=np.empty):
        count = int(indices[0])
        if count == 13:
            raise ZeroDivisionError("an unlucky number")
        if count == 14:
            os.kill(os.getpid(), signal.SIGKILL)
        if count == 15:
            raise StoreError("the shard is gone")
        made = allocate((count, 1000), np.dtype("u1")) if count % 2 else np.empty((count, 1000), "u1")
        made[:] = count
        other = np.arange(2 * count, dtype="f8")[::2]
        return WindowBatch({"made": made, "other": other}, {}, np.arange(count), np.zeros(count, np.int64))


def test_any_source_and_any_change_of_size_will_do():
    counts = [0, 3, 4, 0, 50, 7, 51, 2, 200, 1, 40, 41]
    with Loader(Growing(), [np.array([count]) for count in counts], workers=1, ahead=1) as batches:
        for count, batch in zip(counts, batches, strict=True):
            assert batch.values["made"].shape == (count, 1000) and (batch.values["made"] == count).all()
            np.testing.assert_array_equal(batch.values["other"], np.arange(0, 2 * count, 2))
            assert batch.episode.tolist() == list(range(count))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (13, "could not read batch 2 .*ZeroDivisionError: an unlucky number"),
        (14, r"died \(exit code -9.*batch 2"),
        (15, "batch 2 .*the shard is gone"),
    ],
)
def test_a_worker_that_fails_or_dies_is_told_at_the_batch_that_it_owed(number, words):
    began = time.monotonic()
    with Loader(Growing(), [np.array([count]) for count in (1, 2, number, 4, 5)], workers=2) as batches:
        assert [len(next(batches).episode) for _ in range(2)] == [1, 2]
        with pytest.raises(StoreError, match=f"(?s){words}"):
            next(batches)
        with pytest.raises(StoreError, match="is closed"):
            next(batches)
    assert time.monotonic() - began < 60


def test_impossible_numbers_of_workers_are_refused(windows):
    for options in ({"workers": -1}, {"ahead": 0}):
        with pytest.raises(StoreError, match="need workers >= 0 and ahead >= 1"):
            Loader(windows, [], **options)


SCRIPT = """
import sys
from uwm_data import EpisodeStore, Loader, Windows, shuffled

if __name__ == "__main__":
    windows = Windows(EpisodeStore.open(sys.argv[1]), {"camera": [0], "action": range(4)})
    with Loader(windows, shuffled(len(windows), 8, 0), workers=2) as batches:
        for step, batch in enumerate(batches):
            if step == 5:
                print(*[worker._process.pid for worker in batches._workers], flush=True)
"""


def is_running(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them(windows, tmp_path, how):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(windows.store.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    workers = [int(number) for number in process.stdout.readline().split()]
    assert len(workers) == 2 and all(is_running(worker) for worker in workers)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as the terminal does
    else:
        process.kill()
    _, errors = process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < deadline, "workers that nobody needs go on"
        time.sleep(0.05)
    if how == signal.SIGINT:
        assert errors.count("Traceback") == 1 and errors.rstrip().endswith("KeyboardInterrupt")
    else:
        assert "Traceback" not in errors
