"""Experiments: a few arms, each trained with the same steps, data and seeds, and compared seed by seed.

```
arms x seeds --> figures of each, kept in runs/bench/NAME (a stopped experiment goes on) --> means, standard errors, gates
```
"""

import hashlib
import inspect
import json
import math
import multiprocessing
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from uwm.bench.gates import Gate
from uwm.robot.processes import end_with_parent
from uwm_data.durable import replace_file

SEEDS = (0, 1, 2)
WORKERS = 2  # processes of a full run, one thread each: small models gain nothing from a second thread
FOLDER = Path("runs/bench")
MEANS = "means and standard errors"
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # two-sided 95 % of Student's t, by the number of seeds

Found = dict[str, list[dict]]


def run_arms(
    name: str,
    arms: Mapping[str, Callable[[int], dict]],
    seeds: Sequence[int],
    settings: object,
    folder: Path | None = FOLDER,
    workers: int = 1,
) -> Found:
    """{arm: its figures for every seed}; `arm(seed)` trains and measures, and gives plain numbers.

    What was measured under the same `settings` is read back from `folder` (None: nothing is kept). With several `workers` the
    runs go to processes of one thread each; arms must then be functions, or partials of functions, of a module: a change of that
    module measures anew, what lies below it does not.
    """
    told = {arm: key([arm, settings, _source(run)]) for arm, run in arms.items()}
    todo = {(arm, seed): partial(_run, arms[arm], seed, _file(folder, name, arm, told[arm], seed)) for seed in seeds for arm in arms}
    done = dict(tqdm(side_by_side(todo, workers), name, len(todo), unit="run"))
    return {arm: [done[arm, seed] for seed in seeds] for arm in arms}


def side_by_side(jobs: Mapping[Hashable, Callable[[], dict]], workers: int) -> Iterator[tuple[Hashable, dict]]:
    """(which, its figures) of each job as it is done, in processes of one thread each; with one worker in this process.

    After an error, or Ctrl-C, which the processes hear too, what still waits is not begun.
    """
    if workers == 1:
        yield from ((which, job()) for which, job in jobs.items())
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _enter_worker)
    try:
        tasks = {pool.submit(job): which for which, job in jobs.items()}
        yield from ((tasks[task], task.result()) for task in as_completed(tasks))
    finally:
        pool.shutdown(cancel_futures=True)


def _enter_worker() -> None:
    end_with_parent()
    torch.set_num_threads(1)


def where(quick: bool) -> tuple[Path | None, int]:
    """Folder and workers of a run: a quick one keeps nothing and is one process."""
    return (None, 1) if quick else (FOLDER, WORKERS)


def _run(arm: Callable[[int], dict], seed: int, file: Path | None) -> dict:
    return arm(seed) if file is None else kept(file, partial(arm, seed))


def _file(folder: Path | None, name: str, arm: str, told: str, seed: int) -> Path | None:
    plain = "".join(letter if letter.isalnum() else "_" for letter in arm)
    return None if folder is None else folder / name / f"{plain}-{told}-{seed}.json"


def _source(run: Callable) -> str:
    """The text of the module in which an arm's function stands."""
    function = run.func if isinstance(run, partial) else run
    return inspect.getsource(inspect.getmodule(function))


def key(settings: object) -> str:
    """Twelve letters that stand for these settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]


def kept(file: Path, measure: Callable[[], dict]) -> dict:
    """What `measure` gives, plain figures; read back from `file` the next time, which is whole or not there."""
    if not file.is_file():
        figures = measure()
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps(figures).encode())
    return json.loads(file.read_text())


def values(found: Found, arm: str, figure: str) -> np.ndarray:
    """One figure of an arm, by seed."""
    return np.array([each[figure] for each in found[arm]], float)


def mean_and_error(numbers: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The mean and its standard error; NaN for the error of a single number."""
    numbers = np.asarray(numbers, float)
    return float(numbers.mean()), float(numbers.std(ddof=1) / len(numbers) ** 0.5) if len(numbers) > 1 else math.nan


def gate(
    name: str, numbers: Sequence[float] | np.ndarray, sense: str, limit: float, enough: bool, baseline: str = "", paper: bool = False
) -> Gate:
    """The mean over seeds of a figure (or of a ratio or difference, taken seed by seed) with its 95 % interval."""
    mean, error = mean_and_error(numbers)
    half = STUDENT.get(len(numbers), 1.96) * error
    interval = (mean - half, mean + half) if math.isfinite(half) else None
    return Gate(name, mean, sense, limit, enough and len(numbers) >= len(SEEDS), baseline, interval, paper)


def paired(differences: np.ndarray) -> tuple[float, tuple[float, float]]:
    """The mean of differences of outcomes (0 or 1), pair by pair, and its 95 % interval."""
    half = 1.96 * float(differences.std(ddof=1)) / len(differences) ** 0.5
    mean = round(float(differences.mean()), 9)  # in whole pairs: 0.85 - 0.8 is not quite 0.05 in floating point
    return mean, (mean - half, mean + half)


def summary(found: Found) -> dict:
    """Mean and standard error of every figure of every arm, and the figures themselves."""
    plain = {arm: [name for name, value in runs[0].items() if isinstance(value, int | float)] for arm, runs in found.items()}
    means = {arm: {name: mean_and_error(values(found, arm, name)) for name in names} for arm, names in plain.items()}
    return {MEANS: means, "by seed": found}
