"""Memory grows with the batch and not with the dataset; a hundred thousand episodes open in seconds.

The large stores are synthetic and cost no disk: every shard is a hard link to one real shard.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from uwm_data import EpisodeStore, StreamSpec, Windows, durable
from uwm_data.journal import Episode, Span

SIDE = 128
STREAMS = {
    "front": StreamSpec((SIDE, SIDE, 3), "uint8", 20, "video"),
    "wrist": StreamSpec((SIDE, SIDE, 3), "uint8", 20, "video"),
    "action": StreamSpec((7,), "float32", 20, "action"),
}


def linked_store(path, episodes):
    """A store of many episodes, each with one shard per camera that is a link to that of the first; noise, so hardly compressed."""
    with EpisodeStore.create(path, STREAMS) as store:
        ticks = store.shards["front"].frames_per_shard - 1
        frames = np.random.default_rng(0).integers(0, 256, (ticks + 1, SIDE, SIDE, 3), np.uint8)
        store.append({"front": frames, "wrist": frames, "action": np.zeros((ticks, 7), "f4")})
        actions = store.shards["action"].encode(0, np.ones((episodes * ticks, 7), "f4"), {})
        committed = {piece.shard: piece.size for piece in actions}
        for piece in actions:
            piece.path.unlink(missing_ok=True)
            durable.write_at(piece.path, 0, piece.payload)
        lines = []
        for index in range(episodes):
            spans, sizes = {}, {"action": committed if index == 0 else {}}
            for name in ("front", "wrist"):
                spans[name] = Span(index * (ticks + 1), (index + 1) * (ticks + 1), "")
                sizes[name] = {index: store.journal.sizes[name][0]}
                if index:
                    os.link(store.shards[name].path(0), store.shards[name].path(index))
            spans["action"] = Span(index * ticks, (index + 1) * ticks, "")
            lines.append(Episode(index, {"task": "none", "success": True}, spans, sizes).to_line())
        durable.replace_file(path / "episodes.jsonl", b"".join(lines))
        store.refresh()
    return path


READ = """
import sys
from itertools import islice
import numpy as np
from uwm_data import EpisodeStore, Loader, WindowBatch, Windows, shuffled

def peak():
    # Not ru_maxrss, which a process inherits from the one that started it.
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))

class Measured:
    def __init__(self, windows):
        self.windows = windows
    def batch(self, indices, allocate=np.empty):
        batch = self.windows.batch(indices, allocate)
        return WindowBatch({**batch.values, "peak_kb": np.array([peak()])}, batch.valid, batch.episode, batch.tick)

if __name__ == "__main__":
    path, size, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    offsets = {"front": [0, 1, 17, 18], "wrist": [0, 1, 17, 18], "action": range(16)}
    windows = Windows(EpisodeStore.open(path), offsets)
    order = islice(shuffled(len(windows), size, 0), 6400 // size)
    with Loader(Measured(windows), order, workers) as batches:
        print(max(int(batch.values["peak_kb"][0]) for batch in batches))
"""


def peak_mb(tmp_path, path, batch, workers=0):
    """Peak memory of a process that reads 6400 windows of 4 + 4 frames."""
    (tmp_path / "read.py").write_text(READ)
    command = [sys.executable, str(tmp_path / "read.py"), str(path), str(batch), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout) / 1e3


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """20 GB that take 12 MB of disk."""
    path = linked_store(tmp_path_factory.mktemp("large") / "s.zarr", 1600)
    assert sum(file.stat().st_size for file in path.rglob("c.*")) > 20e9
    return path


def test_a_worker_on_a_20_gb_store_stays_below_500_mb(large, tmp_path):
    assert peak_mb(tmp_path, large, batch=64, workers=1) < 500


def test_memory_grows_with_the_batch_and_not_with_the_dataset(large, tmp_path):
    small = linked_store(tmp_path / "small.zarr", 60)  # 750 MB, three times the frame memory
    one, other, short = peak_mb(tmp_path, small, 64), peak_mb(tmp_path, large, 64), peak_mb(tmp_path, large, 8)
    assert other - one < 30  # the small one takes some 30 MB more: more of its frames are met again and kept
    assert 10 < other - short < 60  # 56 windows of 0.4 MB
    assert other < 480


def synthetic_journal(path, episodes):
    """A store whose journal has this many lines, with no shards (nothing is read from them)."""
    EpisodeStore.create(path, STREAMS).close()
    lines = []
    for index in range(episodes):
        spans = {name: Span(100 * index, 100 * (index + 1), f"{index:032x}") for name in STREAMS}
        meta = {"task": "lift", "instruction": "lift the cube", "seed": index, "success": index % 2 == 0}
        lines.append(Episode(index, meta, spans, {name: {} for name in STREAMS}).to_line())
    durable.replace_file(path / "episodes.jsonl", b"".join(lines))
    return path


OPEN = """
import json, sys, time
from uwm_data import EpisodeStore, Windows

def kilobytes():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))

before, began = kilobytes(), time.process_time()
store = EpisodeStore.open(sys.argv[1])
windows = Windows(store, {"front": [0], "action": range(16)})
opened = time.process_time() - began
assert len(windows) == 100 * len(store) and len(store.checksum) == 32
print(json.dumps({"open": opened, "all": time.process_time() - began, "mb": (kilobytes() - before) / 1e3}))
"""


def test_many_episodes_open_in_time_and_memory_that_grow_with_their_number_only(tmp_path):
    found = {}
    for episodes in (5_000, 50_000):
        path = synthetic_journal(tmp_path / f"{episodes}.zarr", episodes)
        done = subprocess.run([sys.executable, "-c", OPEN, str(path)], capture_output=True, text=True, timeout=120, check=True)
        found[episodes] = json.loads(done.stdout)
    assert found[50_000]["open"] < 30 and found[50_000]["mb"] < 100
    assert found[50_000]["all"] < 25 * found[5_000]["all"]  # ten times is linear; a hundred times would be quadratic


def test_windows_allocate_nothing_for_frames_that_are_not_read(large):
    windows = Windows(EpisodeStore.open(large), {"front": [0], "action": [0]}, cache_bytes=1 << 30)
    windows.batch([0, 5, 20_000])
    assert windows.store.frames_decoded["front"] == 3
