"""A small format for tests of conversion: a text file that says what each episode does, and a folder of arrays to write to.

It stands in for readers that crash, hang on memory or refuse, and for writers that lose something.
"""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np

import foreign
from uwm_data import FormatError, StreamSpec
from uwm_data.formats import RawEpisode

FORMATS = {"store": "uwm_data.formats.own", "fake": "fake_formats"}
AND_ROBOMIMIC = {**FORMATS, "robomimic": "uwm_data.formats.robomimic"}
SMALL = {
    "front": StreamSpec((8, 12, 3), "uint8", foreign.RATE, "video"),
    "arm": StreamSpec((3,), "float32", foreign.RATE, "state"),
    "action": StreamSpec((2,), "float32", foreign.RATE, "action"),
    "reward": StreamSpec((), "float64", foreign.RATE, "label", closing=False),
}


def script(path, *behaviours):
    """A source at `path`: one episode for each word: "fine", or what goes wrong with it (see `Scripted.read`)."""
    path.write_text(json.dumps({"fake": list(behaviours)}))
    return path


def fine(index):
    """Arrays and metadata of a sound episode of the scripted source."""
    return foreign.episode(5 + index % 7, index, SMALL)


def recognise(path):
    return (Path(path).is_file() and Path(path).read_bytes().startswith(b'{"fake"')) or (Path(path) / "fake.json").exists()


def read(path, pause_s=0.0):
    return Written(Path(path)) if Path(path).is_dir() else Scripted(Path(path), pause_s)


def write(path, streams, card, lose=None, silent=False, spoil=None):
    return Folder(Path(path), dict(streams), dict(card), lose, silent, spoil)


class Scripted:
    def __init__(self, path, pause_s):
        self.path, self.pause_s = path, pause_s
        self.behaviours = json.loads(path.read_text())["fake"]
        self.streams, self.card, self.left_out = SMALL, foreign.CARD, ["the smell"]

    def __len__(self):
        return len(self.behaviours)

    def read(self, index):
        time.sleep(self.pause_s)
        self._log(index)
        arrays, meta = fine(index)
        match self.behaviours[index]:
            case "refused":
                raise FormatError(f"{self.path}: episode {index}: 'arm' is cut off")
            case "abort":
                os.abort()
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "killed once":
                if not self.path.with_suffix(".once").exists():
                    self.path.with_suffix(".once").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            case "memory":
                raise MemoryError
            case "gone":
                raise FileNotFoundError(2, "No such file or directory")
            case "bug":
                raise ZeroDivisionError("by me")
            case "slow":
                time.sleep(1.0)
            case "nan":
                arrays["arm"][2, 1] = np.nan
        return RawEpisode(arrays, meta)

    def _log(self, index):
        """Which episodes were read, for the test of how far ahead workers go."""
        with self.path.with_suffix(".log").open("a") as file:
            file.write(f"{index}\n")

    def close(self):
        pass


class Written:
    """A folder that `Folder` wrote."""

    def __init__(self, path):
        self.path = path
        told = json.loads((path / "fake.json").read_text())
        self.streams = {name: StreamSpec(**spec) for name, spec in told["streams"].items()}
        self.card, self.left_out = told["card"], []

    def __len__(self):
        return len(list(self.path.glob("*.npz")))

    def read(self, index):
        with np.load(self.path / f"{index}.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in self.streams}
            return RawEpisode(arrays, json.loads(bytes(file["_meta"])))

    def close(self):
        pass


class Folder:
    def __init__(self, path, streams, card, lose, silent, spoil):
        self.path, self.lose, self.spoil = path, lose, spoil
        self.left_out = [f"the stream {lose}"] if lose and not silent else []
        path.mkdir(exist_ok=True)
        told = {name: spec.to_json() for name, spec in streams.items() if name != lose}
        (path / "fake.json").write_text(json.dumps({"streams": told, "card": card}))

    def __len__(self):
        return len(list(self.path.glob("*.npz")))

    def encoder(self):
        return unchanged

    def append(self, encoded):
        arrays = {name: values for name, values in encoded.arrays.items() if name != self.lose}
        meta = dict(encoded.meta)
        match self.spoil:
            case "video":
                arrays["front"] = arrays["front"][:, ::-1]
            case "noise":
                arrays["front"] = np.bitwise_xor(arrays["front"], 3)
            case "number":
                arrays["action"] = arrays["action"] + np.float32(1e-3)
            case "rounding":
                arrays["reward"] = arrays["reward"].astype(np.float32)
            case "length":
                arrays["arm"] = arrays["arm"][:-1]
            case "meta":
                meta["success"] = not meta["success"]
        place = self.path / f"{len(self)}.npz"
        np.savez(place, **arrays, _meta=np.frombuffer(json.dumps(meta).encode(), np.uint8))

    def close(self):
        pass


def unchanged(episode):
    return episode
