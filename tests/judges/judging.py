"""Asking another project's loader: the process, the samples that both sides see, and the rules they are compared by."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

import foreign
from uwm_data import EpisodeStore
from uwm_data.conversion import convert
from uwm_data.formats import module_of

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SECONDS = 600  # a cold import of torch or tensorflow on a busy machine takes minutes

# Ticks and seeds: an odd length, the shortest that is still a window, and a failed attempt.
EPISODES = [foreign.episode(ticks, seed) for ticks, seed in ((11, 0), (2, 1), (9, 2), (7, 3))]


def ask(judge, script, request, home):
    """Run `inside/<script>.py` in the environment of `judge` and return its answer; `home` is its cache folder.

    Fails with the end of what it said when it fails, and with the command to run when the environment is not there: a judge that
    was asked for and did not judge is a failure, never a skip.
    """
    launcher = ROOT / ".judges" / judge / "bin" / "judge"
    assert launcher.exists(), f"no environment of {judge}: run  python3 run.py judges {judge}"
    done = subprocess.run(
        [launcher, HERE / "inside" / f"{script}.py"], input=json.dumps(request), capture_output=True, text=True, timeout=SECONDS,
        env={**os.environ, "HF_HOME": str(home)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{judge} failed:\n{done.stdout[-1500:]}\n{done.stderr[-4000:]}"
    return json.loads(done.stdout.splitlines()[-1])


def save(folder, arrays):
    """Write arrays where a judge can load them; returns the folder's path as text."""
    folder.mkdir(parents=True)
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values, allow_pickle=False)
    return str(folder)


def load(folder):
    """The arrays that a judge wrote, by name."""
    return {path.name.removesuffix(".npy"): np.load(path, allow_pickle=False) for path in sorted(Path(folder).glob("*.npy"))}


def write(name, path, episodes=None, streams=foreign.STREAMS, card=foreign.CARD, **options):
    """Put episodes into an episode store and convert that, as `uwm convert` does; returns what was said to be left out."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        with EpisodeStore.create(Path(folder) / "store.zarr", streams, card=card) as store:
            for arrays, meta in EPISODES if episodes is None else episodes:
                store.append(arrays, meta)
        return convert(Path(folder) / "store.zarr", path, to=name, workers=0, target_options=options).left_out


def read(name, path, **options):
    """(source, episodes) of a dataset that another project wrote."""
    module = module_of(name)
    assert module.recognise(Path(path)), f"{name} does not recognise {path}"
    source = module.read(path, **options)
    return source, [source.read(index) for index in range(len(source))]


def image_error(seen, expected):
    """(mean, largest) absolute difference of two uint8 films in grey levels."""
    assert seen.shape == expected.shape, f"films of shapes {seen.shape} and {expected.shape}"
    difference = np.abs(seen.astype(np.int16) - expected.astype(np.int16))
    return float(difference.mean()), int(difference.max())
