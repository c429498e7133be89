"""How a judge is asked and answers: a JSON object on standard input, a folder of plain .npy arrays, a JSON object as last line.

Nothing here needs more than numpy, and no array holds Python objects, so that neither side ever unpickles anything.
"""

import json
import sys
from pathlib import Path

import numpy as np


def asked() -> dict:
    """What the driver wants."""
    return json.load(sys.stdin)


def load(folder: str) -> dict:
    """The arrays in a folder, by name; a dot in a file's name before the ending is part of the name."""
    return {path.name[: -len(".npy")]: np.load(path) for path in sorted(Path(folder).glob("*.npy"))}


def save(folder: str, arrays: dict) -> None:
    """Write arrays into a folder; ValueError for one that holds objects."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, values in arrays.items():
        np.save(Path(folder) / f"{name}.npy", np.asarray(values), allow_pickle=False)


def answer(**said) -> None:
    """The last line of standard output."""
    print("\n" + json.dumps(said))
