"""Claim: our loader reads windows several times faster than the usual ways, and at least half as fast as memory allows.

DROID-like windows: two cameras of 128 x 128 pixels at 20 Hz, frames 0, 1, 17 and 18 of a window of 19, and 16 actions, out of
rendered Lift demonstrations. All read the same windows in batches of 16, in shuffled orders, by spawned workers: ours, one-frame
chunks and the memory map through our Loader, LeRobot through a torch DataLoader in an environment of its own.

| word | means |
|---|---|
| cold | the files are out of the page cache and the workers are new; one pass |
| warm | the files are in the page cache; ours has also decoded every frame once and kept it (`cache_bytes`, 256 MB a worker) |
| a quarter, nothing kept | warm, but memory for a quarter of the frames, or none: what a set that is larger than memory costs |
"""

import json
import math
import os
import pickle
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from uwm.bench import loader_contenders as contenders
from uwm.bench.gates import Gate
from uwm.bench.runner import Result

CLAIM = (
    "Our loader reads the paper's windows at least 5 times as fast as the paper's code does, faster than LeRobot's does, "
    "and warm at least half as fast as an uncompressed memory map."
)
FOLDER = Path("runs/bench/loader")
JUDGE, JUDGES = "lerobot-0.4.4", Path(".judges")
BATCH = 16
ENOUGH = 6  # rounds: from six on, lowest to highest covers the true median with >= 96.9 %
FULL, QUICK = (40, ENOUGH, 2.0), (3, 1, 0.3)  # episodes, rounds, seconds per measurement
WORKERS = (1, 2)
EPOCHS_TO_WARM = 3  # behind which each of two workers has met every frame
OURS, CHUNKS, MAP, LEROBOT = "ours", "one-frame chunks", "memory map", "LeRobot"
QUARTER, NOTHING = "ours, a quarter kept", "ours, nothing kept"


def run(quick: bool, out: Path | None) -> Result:
    """Collects demonstrations once into runs/bench, then measures in rounds, so that a slow moment meets everyone."""
    from uwm import build
    from uwm.cli import compose

    episodes, rounds, seconds = QUICK if quick else FULL
    folder = FOLDER / ("quick" if quick else "full")
    path = folder / "lift.zarr"
    build.collect(compose("collect", ["world=lift", "world.image_size=128", f"episodes={episodes}", f"out={path}"]))
    found = measure(path, folder, rounds, seconds)
    return Result(CLAIM, gates(found, enough=rounds >= ENOUGH), (0,), found)


def measure(path: Path, folder: Path, rounds: int, seconds: float) -> dict:
    """Windows per second of everyone, `rounds` times each, and bytes read per window; copies of the store go to `folder`."""
    made = contenders.prepare(path, folder)
    sources, count = made.sources, len(made.numbers)
    lerobot = LeRobot(path, folder, made, seconds)
    rates: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds):
        for name, source in sources.items():
            for is_cold in (True, False) if name in (OURS, CHUNKS, MAP) else (False,):
                for workers in WORKERS:
                    epochs = EPOCHS_TO_WARM if name in (OURS, QUARTER) else 0
                    rate = speed(source, count, made.files[name], is_cold, workers, number, epochs, seconds)
                    _note(rates, name, run_name(is_cold, workers), rate)
        for name, rate in lerobot.rates().items():
            _note(rates, LEROBOT, name, rate)
        print(f"loader: round {number + 1} of {rounds}", flush=True)
    return {
        "windows_per_second": {name: {run: _spread(values) for run, values in some.items()} for name, some in rates.items()},
        "rounds": rates,
        "bytes_per_window": {name: bytes_read(source, count) for name, source in sources.items()} | lerobot.bytes_read,
        "disk_bytes": {name: sum(file.stat().st_size for file in files) for name, files in made.files.items()},
        "windows": count,
        "batch": BATCH,
        "seconds_per_measurement": seconds,
        "data": made.about,
        "lerobot": lerobot.about,
    }


def speed(
    source: contenders.Source, count: int, files: Sequence[Path], is_cold: bool, workers: int, seed: int, epochs: int, seconds: float
) -> float:
    """Windows per second through a Loader, behind the first batch (cold) or `epochs` passes (warm), for about `seconds`."""
    from uwm_data import Loader, shuffled

    for file in files:
        (drop if is_cold else touch)(file)
    # Whole rounds of the workers are counted, and enough that batches which waited at the beginning do not matter.
    first = workers if is_cold else workers * max(3, epochs * count // (BATCH * workers))
    left = workers * max(1, (count // BATCH - first) // workers) if is_cold else math.inf
    with Loader(source, shuffled(count, BATCH, seed), workers) as batches:
        for _ in range(first):
            next(batches)
        began, done = time.perf_counter(), 0
        while done < left and (done < 3 * workers or time.perf_counter() - began < seconds):
            for _ in range(workers):
                next(batches)
            done += workers
        return done * BATCH / (time.perf_counter() - began)


def bytes_read(source: contenders.Source, count: int, batches: int = 8) -> float:
    """Bytes that a new process would get from files per window; for a memory map, bytes that it touches."""
    from uwm_data import shuffled

    source, order = pickle.loads(pickle.dumps(source)), shuffled(count, BATCH, 0)
    before, mapped = _bytes_so_far(), 0
    for _ in range(batches):
        batch = source.batch(next(order))
        mapped += sum(values.nbytes for values in batch.values.values()) if isinstance(source, contenders.MemoryMap) else 0
    return (mapped or _bytes_so_far() - before) / (batches * BATCH)


def _bytes_so_far() -> int:
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])


def drop(file: Path) -> None:
    """Take a file out of the page cache, which needs no rights."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fdatasync(descriptor)  # pages that are not written yet cannot be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def touch(file: Path) -> None:
    """Bring a file into the page cache."""
    with file.open("rb") as opened:
        while opened.read(1 << 20):
            pass


class LeRobot:
    """LeRobot's loader on the same windows: what it is asked, and what it answered last."""

    def __init__(self, path: Path, folder: Path, made: contenders.Prepared, seconds: float):
        self.launcher = JUDGES / JUDGE / "bin" / "judge"
        self.bytes_read: dict[str, float] = {}
        if not self.launcher.exists():
            self.about = {"missing": f"there is no {JUDGE}: `python3 run.py judges {JUDGE}` makes it"}
            return
        from uwm_data.conversion import convert

        root = folder / "lerobot"
        convert(path, root, to="lerobot", workers=1)
        info = json.loads((root / "meta" / "info.json").read_text())
        keys = [next(key for key in info["features"] if key.rpartition(".")[2] == name) for name in made.cameras]
        windows = {**dict.fromkeys(keys, contenders.FRAMES), "action": range(contenders.ACTIONS)}
        order = np.random.default_rng(0).permutation(len(made.numbers))
        self.names = [run_name(is_cold, workers) for is_cold in (True, False) for workers in WORKERS]
        self.request = {
            "root": str(root.resolve()), "batch": BATCH, "seconds": seconds,
            "windows": {key: [frame / info["fps"] for frame in frames] for key, frames in windows.items()},
            "items": made.places.actions[order].tolist(),  # it keeps one row per action
            "files": [str(file.resolve()) for file in contenders.files_in(root)],
            "runs": [[is_cold, workers] for is_cold in (True, False) for workers in WORKERS],
        }  # fmt: skip
        videos = [info["features"][key].get("info", {}).get("video.codec") for key in keys]
        self.about = {"codecs": videos, "disk_bytes": sum(file.stat().st_size for file in contenders.files_in(root))}

    def rates(self) -> dict[str, float]:
        """Windows per second by run, measured now; {} where there is no environment. RuntimeError with what it said if it fails."""
        if "missing" in self.about:
            return {}
        script = Path(__file__).resolve().parents[2] / "tests" / "judges" / "inside" / "loader_speed.py"
        done = subprocess.run(
            [self.launcher.resolve(), script], input=json.dumps(self.request), capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{JUDGE} failed to read {self.request['root']}: {done.stderr[-2000:]}")
        said = json.loads(done.stdout.splitlines()[-1])
        self.bytes_read = {LEROBOT: said["bytes"]}
        self.about |= {"backend": said["backend"], "versions": said["versions"]}
        return dict(zip(self.names, said["rates"], strict=True))


# ------------------------------------------------------------------------------------------------------------------ gates


def gates(found: dict, enough: bool) -> list[Gate]:
    """The promises: ratios of rates in the same round, the median judged; LeRobot's only where it could be asked."""
    ratio = _ratios(found["rounds"], enough)
    frames = "whole windows, one-frame chunks"
    both = [(run_name(is_cold, workers)) for is_cold in (False, True) for workers in WORKERS]
    warm = both[: len(WORKERS)]
    read = found["bytes_per_window"]
    made = [ratio(OURS, CHUNKS, name, ">=", 5.0, frames) for name in both]
    made += [ratio(kept, CHUNKS, name, ">=", 5.0, frames) for kept in (QUARTER, NOTHING) for name in warm]
    made += [Gate("bytes read per window, one-frame chunks / ours", read[CHUNKS] / read[NOTHING], ">=", 4.0, True, frames)]
    made += [ratio(OURS, MAP, name, ">=", 0.5, "uncompressed memory map") for name in warm]
    if LEROBOT in found["rounds"]:
        return made + [ratio(OURS, LEROBOT, name, ">", 1.0, JUDGE) for name in both]
    return [*made, Gate(f"ours / {LEROBOT}", 0.0, ">", 1.0, False, found["lerobot"]["missing"])]


def _ratios(rounds: Mapping[str, Mapping[str, Sequence[float]]], enough: bool) -> Callable[..., Gate]:
    def gate(ours: str, theirs: str, name: str, sense: str, limit: float, baseline: str) -> Gate:
        each = [one / other for one, other in zip(rounds[ours][name], rounds[theirs][name], strict=True)]
        interval = (min(each), max(each)) if enough else None
        return Gate(f"{name}: windows/s, {ours} / {theirs}", statistics.median(each), sense, limit, enough, baseline, interval)

    return gate


def run_name(is_cold: bool, workers: int) -> str:
    """The words for a kind of run."""
    return f"{'cold' if is_cold else 'warm'}, {workers} worker{'s' if workers > 1 else ''}"


def _note(rates: dict, name: str, run_name: str, rate: float) -> None:
    rates.setdefault(name, {}).setdefault(run_name, []).append(rate)


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
