"""What the loader is measured against: the same windows out of one-frame zarr chunks and out of a memory map.

Each has `batch(indices, allocate)` like `uwm_data.Windows`, so that the same Loader reads them ahead and hands them over.

    frame      t   t+1  t+2 ... t+16  t+17  t+18         a window of the paper: 19 frames of each camera
    used       o   o+1                f     f+1          what a model is given: two seen and two future frames
    ours       x   x                  x     x            read
    one-frame  x   x    x   ...  x    x     x            read by the paper's code, which then drops 15 of 19
"""

import pickle
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

FRAMES, SPAN, ACTIONS = (0, 1, 17, 18), 19, 16
COMPRESSIONS = ("zstd", "lz4", "none")


class Source(Protocol):
    """What everyone is measured as."""

    def batch(self, indices: np.ndarray, allocate: Callable[..., np.ndarray] = np.empty) -> Any:
        """A WindowBatch of windows by their number among those that are measured."""


@dataclass(frozen=True)
class Places:
    """Rows of the first frame and of the first action of each window, (windows,) each, in arrays of all episodes."""

    frames: np.ndarray
    actions: np.ndarray


@dataclass
class Ours:
    """Our windows."""

    windows: Any
    numbers: np.ndarray

    def batch(self, indices: np.ndarray, allocate: Callable[..., np.ndarray] = np.empty) -> Any:
        """A WindowBatch of windows by their number among those that are measured."""
        return self.windows.batch(self.numbers[indices], allocate)


@dataclass
class OneFrameChunks:
    """Reads whole windows with zarr, one chunk per frame, then takes the frames that are used."""

    folder: Path
    cameras: Sequence[str]
    places: Places
    arrays: dict = field(default_factory=dict)

    def batch(self, indices: np.ndarray, allocate: Callable[..., np.ndarray] = np.empty) -> Any:
        """A WindowBatch of windows by their number among those that are measured."""
        if not self.arrays:
            import zarr

            self.arrays = dict(zarr.open_group(self.folder, mode="r").arrays())
        values = {}
        for name in self.cameras:
            whole = [self.arrays[name][start : start + SPAN] for start in self.places.frames[indices].tolist()]
            values[name] = _filled(allocate, [window[list(FRAMES)] for window in whole])
        actions = [self.arrays["action"][start : start + ACTIONS] for start in self.places.actions[indices].tolist()]
        return _window_batch({**values, "action": _filled(allocate, actions)}, indices)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "arrays": {}}


@dataclass
class MemoryMap:
    """Takes frames out of uncompressed files that are mapped into memory."""

    folder: Path
    cameras: Sequence[str]
    places: Places
    arrays: dict = field(default_factory=dict)

    def batch(self, indices: np.ndarray, allocate: Callable[..., np.ndarray] = np.empty) -> Any:
        """A WindowBatch of windows by their number among those that are measured."""
        if not self.arrays:
            self.arrays = {name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in (*self.cameras, "action")}
        values = {}
        for name, array in self.arrays.items():
            first, offsets = (self.places.actions, np.arange(ACTIONS)) if name == "action" else (self.places.frames, np.array(FRAMES))
            rows = first[indices][:, None] + offsets
            values[name] = allocate((*rows.shape, *array.shape[1:]), array.dtype)
            np.take(array, rows, axis=0, out=values[name], mode="clip")
        return _window_batch(values, indices)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "arrays": {}}


def _filled(allocate: Callable[..., np.ndarray], windows: Sequence[np.ndarray]) -> np.ndarray:
    out = allocate((len(windows), *windows[0].shape), windows[0].dtype)
    return np.stack(windows, out=out)


def _window_batch(values: Mapping[str, np.ndarray], indices: np.ndarray) -> Any:
    from uwm_data import WindowBatch

    return WindowBatch(dict(values), {}, indices, indices)


# ---------------------------------------------------------------------------------------------------------------- the data


@dataclass(frozen=True)
class Prepared:
    """Everyone by name, the files that each reads, and which windows are measured."""

    sources: Mapping[str, Source]
    files: Mapping[str, Sequence[Path]]
    numbers: np.ndarray
    places: Places
    cameras: Sequence[str]
    about: dict


def prepare(path: Path, folder: Path) -> Prepared:
    """Copy the store at `path` into everyone's form below `folder` (kept if it is there), and check that all give the same."""
    from uwm_data import EpisodeStore, Windows

    store = EpisodeStore.open(path)
    cameras = [name for name, spec in store.streams.items() if spec.kind == "video"]
    _write_copies(store, cameras, folder / "copies" / store.checksum)
    folder = folder / "copies" / store.checksum
    offsets = {**dict.fromkeys(cameras, FRAMES), "action": range(ACTIONS)}
    stores = {kind: EpisodeStore.open(folder / f"{kind}.zarr") for kind in COMPRESSIONS}
    kept, nothing = Windows(stores["zstd"], offsets), {kind: Windows(each, offsets, cache_bytes=0) for kind, each in stores.items()}
    decoded = sum(store.journal.frames(name) * store.streams[name].frame_bytes for name in offsets)
    numbers = measured_windows(kept)
    places = _places(kept, numbers, cameras[0])
    chunks, mapped = folder / "chunks.zarr", folder / "mapped"
    sources: dict[str, Source] = {
        "ours": Ours(kept, numbers),
        "ours, a quarter kept": Ours(Windows(stores["zstd"], offsets, cache_bytes=decoded // 4), numbers),
        "ours, nothing kept": Ours(nothing["zstd"], numbers),
        "ours, lz4, nothing kept": Ours(nothing["lz4"], numbers),
        "ours, uncompressed, nothing kept": Ours(nothing["none"], numbers),
        "one-frame chunks": OneFrameChunks(chunks, cameras, places),
        "memory map": MemoryMap(mapped, cameras, places),
    }
    _refuse_differences(sources, len(numbers))
    read = {name: files_in(each.windows.store.path if isinstance(each, Ours) else each.folder) for name, each in sources.items()}
    about = {
        "episodes": len(store), "frames": {name: store.journal.frames(name) for name in cameras}, "decoded_bytes": decoded,
        "shapes": {name: list(store.streams[name].shape) for name in cameras}, "checksum": store.checksum, "kept": sorted(kept.cached),
    }  # fmt: skip
    return Prepared(sources, read, numbers, places, cameras, about)


def measured_windows(windows: Any) -> np.ndarray:
    """Numbers of the windows that lie inside their episode for everyone; LeRobot keeps T of T + 1 frames."""
    place, tick = windows.locate(np.arange(len(windows)))
    ticks = windows.store.extents("action", windows.episodes)[1]
    numbers = np.flatnonzero(tick + SPAN <= ticks[place])
    if not len(numbers):
        raise ValueError(f"{windows.store.path}: no episode has the {SPAN} ticks of a window")
    return numbers


def files_in(folder: Path) -> list[Path]:
    """All files below a folder."""
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _places(windows: Any, numbers: np.ndarray, camera: str) -> Places:
    place, tick = windows.locate(numbers)
    frames, actions = (windows.store.extents(name, windows.episodes)[0][place] + tick for name in (camera, "action"))
    return Places(frames, actions)


def _write_copies(store: Any, cameras: Sequence[str], folder: Path) -> None:
    forms: dict[str, Callable[[Path], None]] = {
        "chunks.zarr": lambda path: _write_chunks(path, store, cameras),
        "mapped": lambda path: _write_mapped(path, store, cameras),
        **{f"{kind}.zarr": lambda path, kind=kind: _write_store(path, store, cameras, kind) for kind in COMPRESSIONS},
    }
    for name, write in forms.items():
        partial = folder / f"{name}.partial"
        if not (folder / name).exists():
            shutil.rmtree(partial, ignore_errors=True)
            write(partial)
            partial.rename(folder / name)


def _write_chunks(path: Path, store: Any, cameras: Sequence[str]) -> None:
    import zarr

    from uwm_data.shards import compression_for

    group = zarr.open_group(path, mode="w", zarr_format=3)
    for name in (*cameras, "action"):
        spec = store.streams[name]
        codec = zarr.codecs.BloscCodec(**compression_for(spec))
        shape, chunks = (store.journal.frames(name), *spec.shape), (1 if name in cameras else 1024, *spec.shape)
        group.create_array(name, shape=shape, dtype=spec.dtype, chunks=chunks, compressors=codec)[:] = _all(store, name)


def _write_mapped(path: Path, store: Any, cameras: Sequence[str]) -> None:
    path.mkdir(parents=True)
    for name in (*cameras, "action"):
        np.save(path / f"{name}.npy", _all(store, name), allow_pickle=False)


def _write_store(path: Path, store: Any, cameras: Sequence[str], compression: str) -> None:
    from uwm_data import EpisodeStore

    streams = {name: store.streams[name] for name in (*cameras, "action")}
    with EpisodeStore.create(path, streams, compression=compression) as copy:
        for index in store.episodes:
            copy.append({name: store.read(index, name) for name in streams}, store.meta(index))


def _all(store: Any, name: str) -> np.ndarray:
    return store.read_rows(name, np.arange(store.journal.frames(name)))


def _refuse_differences(sources: Mapping[str, Source], count: int) -> None:
    """A rate means something only if everyone reads the same.

    Copies are asked, and forgotten: as long as this process maps a file, the file stays in the page cache.
    """
    numbers = np.random.default_rng(0).integers(0, count, 8)
    expected = next(iter(sources.values())).batch(numbers).values
    for name, source in sources.items():
        for stream, values in pickle.loads(pickle.dumps(source)).batch(numbers).values.items():
            if not np.array_equal(values, expected[stream]):
                raise RuntimeError(f"{name} gives other values of {stream!r} than ours")
