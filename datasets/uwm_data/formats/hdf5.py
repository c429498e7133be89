"""HDF5 files that nobody trusts: what is in them is looked at by a process that may die of it, and only plain data is read.

    Hdf5File(path)  -> a child process walks the whole file (hdf5_probe.py): groups, links, types, sizes, chunk tables, attributes
                       it loops or crashes: FormatError here. Else its list is all that is ever touched here:
    .datasets          plain numbers and text, as large as what is stored for them, nothing outside the file
    .refused           the rest, with reasons: object, reference and compound types, virtual and external data, links that lead
                       out of the file, unknown filters, sizes that are only claimed

One handle a process, opened when first needed: an object of this class forks and pickles.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import posixpath
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from uwm_data.errors import FormatError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
NEWEST_SUPERBLOCK = 3
CALL_SECONDS = 2  # of processor time for one call of the library, in the child
PROBE_BYTES = 1 << 30  # of memory for the child
MOST_SECONDS = 1800
MOST_KEPT = 200  # structures of files
MOST_DATASET_BYTES = 8 << 30
UNCHECKED_BYTES = 64 << 20  # a chunk that cannot inflate to more than this is left to the library
DEFLATE_RATIO, LZF_RATIO = 1032, 100
LONG_TEXT = 1000


class Stored(NamedTuple):
    """A dataset: shape, numpy type ("text" for text of any length), bytes of its largest packed chunk, path of the data."""

    shape: tuple[int, ...]
    dtype: str
    largest: int
    path: str


class Structure(NamedTuple):
    """What a file holds, by path ("data/demo_0/actions"): members of groups, datasets, attribute names, and what is refused."""

    groups: dict[str, tuple[str, ...]]
    datasets: dict[str, Stored]
    attributes: dict[str, tuple[str, ...]]
    refused: dict[str, str]


def h5py_module() -> ModuleType:
    """h5py, or a FormatError that tells how to get it."""
    try:
        import h5py
    except ImportError as error:
        raise FormatError("HDF5 files need h5py: pip install 'uwm[data]'") from error
    return h5py


def json_object(text: Any) -> dict:
    """The JSON object in an attribute; nothing where there is none."""
    try:
        told = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def looks_like_hdf5(path: str | Path) -> bool:
    """Whether `path` is a file that begins as HDF5 files do. Never raises."""
    try:
        with open(path, "rb") as file:
            return file.read(len(SIGNATURE)) == SIGNATURE
    except OSError:
        return False


def structures(paths: Sequence[str | Path], members: int | None = None) -> list[Structure]:
    """What files hold (of each group the first `members`), found by one child process.

    A file is walked once while it stays as it is. FormatError names the one that the library cannot read, hangs or dies of.
    """
    keys = [(*_fingerprint(Path(path)), members) for path in paths]
    new = list(dict.fromkeys(key for key in keys if key not in _WALKED))
    if len(_WALKED) + len(new) > MOST_KEPT:
        _WALKED.clear()
        new = list(dict.fromkeys(keys))
    if new:
        told = _told_by_child([key[0] for key in new], members)
        _WALKED.update({key: _gathered(key[0], key[1], told[key[0]]) for key in new})
    return [_WALKED[key] for key in keys]


_WALKED: dict[tuple, Structure] = {}


def _fingerprint(path: Path) -> tuple[str, int, int]:
    """(path, size, time of the last change) of a file that begins as HDF5 does; FormatError otherwise."""
    try:
        with open(path, "rb") as file:
            head = file.read(len(SIGNATURE) + 1)
        status = path.stat()
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}") from error
    if head[:-1] != SIGNATURE:
        raise FormatError(f"{path} is not an HDF5 file: it begins with {head[:8]!r}")
    if head[-1] > NEWEST_SUPERBLOCK:
        raise FormatError(f"{path} has version {head[-1]} of the HDF5 superblock; up to {NEWEST_SUPERBLOCK} are known here: a newer h5py?")
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def _told_by_child(paths: Sequence[str], members: int | None) -> dict[str, list[dict]]:
    """{path: what the child told about it}."""
    h5py_module()
    order = {"paths": paths, "members": members, "call_seconds": CALL_SECONDS, "extra_bytes": PROBE_BYTES, "sys_path": sys.path}
    command = [sys.executable, "-I", str(Path(__file__).with_name("hdf5_probe.py"))]
    try:
        done = subprocess.run(command, input=json.dumps(order).encode(), capture_output=True, timeout=MOST_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise FormatError(f"{paths[0]}: its structure could not be read within {MOST_SECONDS} s; is the disk there?") from error
    told: dict[str, list[dict]] = {}
    for line in done.stdout.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break  # the child died while it wrote
        entry = json.loads(line)
        if "file" in entry:
            last = told.setdefault(entry["file"], [])
        else:
            last.append(entry)
    if done.returncode:
        raise FormatError(f"{list(told)[-1] if told else paths[0]}: {_death(done.returncode, done.stderr)}")
    return told


def _death(code: int, errors: bytes) -> str:
    if code == -signal.SIGPROF:
        return "the HDF5 library does not come to an end with it, so it is damaged; copy or download it again"
    if code < 0:
        return f"the HDF5 library dies of it ({signal.Signals(-code).name}), so it is damaged; copy or download it again"
    return f"looking into it failed: {errors.decode(errors='replace')[-300:]}"


def _gathered(path: str, size: int, told: Sequence[dict]) -> Structure:
    found, soft = Structure({}, {}, {}, {}), {}
    for line in told:
        name = line.get("path")
        if "error" in line:
            raise FormatError(
                f"{path} cannot be read as HDF5 ({size} bytes on disk): {line['error'][:300]}; if it was cut off, copy or download it again"
            )
        if "group" in line:
            found.groups[name] = tuple(line["group"])
        elif "attributes" in line:
            found.attributes[name] = tuple(key for key, why in line["attributes"].items() if not why)
            found.refused.update({f"{name}@{key}": why for key, why in line["attributes"].items() if why})
        elif "soft" in line:
            soft[name] = line["soft"].lstrip("/")
        elif "refused" in line:
            found.refused[name] = line["refused"]
        else:
            found.datasets[name] = Stored(tuple(line["shape"]), line["dtype"], line["largest"], name)
    for name, target in soft.items():
        if target in found.datasets:
            found.datasets[name] = found.datasets[target]
        else:
            found.refused[name] = f"a soft link to {target!r}, which is not a dataset of this file"
    return found


class Hdf5File:
    """An HDF5 file open for reading. Raises FormatError, naming file and dataset, on anything that is not plain and sound."""

    def __init__(self, path: str | Path, members: int | None = None):
        self.path = Path(path)
        self.structure = structures([self.path], members)[0]
        self._stamp = self._looks()
        self._open: tuple[int, Any] | None = None

    def _looks(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_size, status.st_mtime_ns

    @property
    def handle(self) -> Any:
        """The h5py file of this process."""
        if self._open is None or self._open[0] != os.getpid():
            try:
                if self._looks() != self._stamp:
                    raise FormatError(f"{self.path} has changed since it was opened; open it again")
                self._open = os.getpid(), h5py_module().File(self.path, "r", locking="best-effort")
            except OSError as error:
                raise FormatError(f"{self.path} cannot be opened: {error}") from error
        return self._open[1]

    def close(self) -> None:
        """Let go of the file; it opens again when needed."""
        if self._open and self._open[0] == os.getpid():
            self._open[1].close()
        self._open = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": None}

    def below(self, group: str, without: Collection[str] = (), prefix: str = "") -> dict[str, Stored]:
        """The datasets below a group, by their path from there; those in `without` are not even looked at."""
        found = {}
        for name in self.structure.groups.get(group, ()):
            path, deeper = posixpath.join(group, name), prefix + name
            if deeper in without:
                continue
            if path in self.structure.datasets:
                found[deeper] = self.structure.datasets[path]
            elif path in self.structure.refused:
                raise FormatError(f"{self.path}: {path} is not read here: {self.structure.refused[path]}; leave_out=({deeper!r},) skips it")
            else:
                found |= self.below(path, without, deeper + "/")
        return found

    def attribute(self, path: str, name: str, default: Any = None) -> Any:
        """One attribute; `default` where there is none that is text or plain numbers. Scalars are Python's own."""
        if name not in self.structure.attributes.get(path, ()):
            return default
        value = self._attempt(path, lambda: self.handle["/" + path].attrs[name])
        return value.item() if isinstance(value, np.generic) else value

    def attributes(self, path: str) -> dict[str, Any]:
        """The attributes of a group or dataset that are text or plain numbers, as h5py gives them."""
        names = self.structure.attributes.get(path, ())
        return self._attempt(path, lambda: {name: self.handle["/" + path].attrs[name] for name in names})

    def array(self, path: str, rows: slice = slice(None)) -> np.ndarray:
        """The rows of a dataset of numbers or byte strings, in the machine's byte order."""
        stored = self._stored(path)
        size = np.dtype(stored.dtype).itemsize * int(np.prod(stored.shape, dtype=object))
        if size > MOST_DATASET_BYTES:
            raise FormatError(f"{self.path}: {path} has {size / 1e9:.0f} GB; up to {MOST_DATASET_BYTES / 1e9:.0f} GB an episode are read")
        dataset = self._attempt(path, lambda: self.handle["/" + stored.path])
        if stored.largest * DEFLATE_RATIO > UNCHECKED_BYTES:
            self._attempt(path, lambda: self._refuse_bombs(dataset))
        values = self._attempt(path, lambda: np.asarray(dataset[rows if stored.shape else ()]))
        return values.astype(values.dtype.newbyteorder("="), copy=False)

    def texts(self, path: str) -> list[str]:
        """A dataset of texts or byte strings, flat."""
        stored = self._stored(path, "text")
        values = self._attempt(path, lambda: np.ravel(self.handle["/" + stored.path][()]).tolist())
        return [value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in values]

    def values(self, stored: Stored) -> np.ndarray:
        """A whole dataset, texts too (as objects)."""
        if stored.dtype == "text":
            return np.array([*self.texts(stored.path), None], object)[:-1].reshape(stored.shape)
        return self.array(stored.path)

    def _stored(self, path: str, *also: str) -> Stored:
        if path in self.structure.refused:
            raise FormatError(f"{self.path}: {path} is not read here: {self.structure.refused[path]}")
        stored = self.structure.datasets.get(path)
        if stored is None:
            raise FormatError(f"{self.path} has no dataset {path}")
        if stored.dtype == "text" and "text" not in also:
            raise FormatError(f"{self.path}: {path} holds text, expected numbers")
        return stored

    def _refuse_bombs(self, dataset: Any) -> None:
        """The library inflates a chunk to whatever comes out: large packed chunks are first inflated here, up to their due size."""
        chunk_bytes = int(np.prod(dataset.chunks)) * dataset.dtype.itemsize
        infos: list = []
        dataset.id.chunk_iter(infos.append)
        if dataset.compression != "gzip":
            # lzf: 88 bytes from one at most.
            if max(info.size for info in infos) * LZF_RATIO > MOST_DATASET_BYTES:
                raise FormatError(f"{self.path}: {dataset.name} has packed chunks that are too large to be sound")
            return
        for info in infos:
            if info.size * DEFLATE_RATIO > UNCHECKED_BYTES and not info.filter_mask:
                packed = dataset.id.read_direct_chunk(info.chunk_offset)[1]
                if len(zlib.decompressobj().decompress(packed, chunk_bytes + 1024)) > chunk_bytes + 512:
                    raise FormatError(f"{self.path}: a chunk of {dataset.name} inflates to more than the {chunk_bytes} bytes it declares")

    def _attempt(self, path: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except FormatError:
            raise
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, MemoryError, zlib.error) as error:
            what = "claims more memory than there is" if isinstance(error, MemoryError) else str(error)[:300]
            raise FormatError(f"{self.path}: {path or 'the root'} cannot be read, the file is damaged: {what}") from error


def to_json(value: Any) -> Any:
    """A JSON-able form of an attribute or small array, from which `from_json` makes the same again, type included.

    int64, float64, text and truth values stand as they are, long text packed, everything else as base64 with dtype and shape.
    """
    if isinstance(value, str):
        return value if len(value) <= LONG_TEXT else {"zlib": _base64(zlib.compress(value.encode("utf-8", "surrogateescape"), 9))}
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.int64):
        return int(value)
    if isinstance(value, float | np.float64) and np.isfinite(value):
        return float(value)
    if isinstance(value, h5py_module().Empty):
        return {"empty": value.dtype.str}
    array = np.asarray(value)
    if array.dtype.kind == "O":
        return {"texts": [to_json(text) for text in array.reshape(-1).tolist()], "shape": list(array.shape)}
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": _base64(zlib.compress(np.ascontiguousarray(array).tobytes()))}


def from_json(value: Any, most_bytes: int = 64 << 20) -> Any:
    """What `to_json` was given; FormatError when it is something else."""
    if not isinstance(value, Mapping):
        return value
    try:
        if "zlib" in value:
            return _inflated(value["zlib"], most_bytes).decode("utf-8", "surrogateescape")
        if "empty" in value:
            return h5py_module().Empty(np.dtype(value["empty"]))
        if "texts" in value:
            texts = np.empty(len(value["texts"]), object)
            texts[:] = [from_json(text, most_bytes) for text in value["texts"]]
            return texts.reshape(value["shape"])
        array = np.frombuffer(_inflated(value["data"], most_bytes), np.dtype(value["dtype"])).reshape(value["shape"])
        return array.copy() if array.ndim else array[()]
    except (KeyError, TypeError, ValueError, binascii.Error, zlib.error) as error:
        raise FormatError(f"a kept attribute cannot be unpacked: {error}") from error


def _base64(payload: bytes) -> str:
    return base64.b64encode(payload).decode()


def _inflated(text: str, most_bytes: int) -> bytes:
    payload = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), most_bytes)
    if len(payload) == most_bytes:
        raise FormatError(f"a kept attribute inflates to more than {most_bytes} bytes")
    return payload
