"""Writing robomimic's HDF5 so that nothing is lost when the writer is killed.

    can.hdf5.partial/             while it is being written
      header.json                 streams, card, options: the same call goes on, another one is refused
      00000000.hdf5               one finished demonstration a file, there by one rename
      00000001.hdf5
    close(): whole.hdf5 is put together of them, and of can.hdf5 if there was one   --rename-->   can.hdf5

An HDF5 file that loses its writer may lose everything, so demonstrations are never added to one in place. A worker makes the
small file as bytes in memory; putting together copies packed bytes and packs nothing again.

In the file, besides what robomimic knows, an attribute `uwm` on the root keeps streams and card, and one on each demonstration
its metadata; robomimic does not look at them, and `read` restores from them what its layout has no place for.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from uwm_data import durable
from uwm_data.errors import FormatError
from uwm_data.formats import RawEpisode
from uwm_data.formats.demonstrations import DEMO
from uwm_data.formats.hdf5 import Hdf5File, h5py_module, json_object, looks_like_hdf5
from uwm_data.formats.robomimic_encoding import KEPT, SPLITS, VERSION, Plan, encoded, not_kept, paths_of, plain
from uwm_data.journal import canonical
from uwm_data.lock import LOCK_FILE, WriterLock
from uwm_data.streams import StreamSpec, check_names, reference_stream

HEADER, WHOLE = "header.json", "whole.hdf5"
DONE_MODES = ("both", "end", "success")
GYM = 2  # robomimic's number for worlds that are not robosuite's
CHANGING = ("checksum", "created", "code_version")  # of a card: what may differ when a writer goes on


def write(
    path: str | Path,
    streams: Mapping[str, StreamSpec],
    card: Mapping,
    next_obs: bool = True,
    compress: bool = True,
    done_mode: str = "both",
) -> RobomimicSink:
    """Begin a robomimic file, or go on with one that this began; FormatError for a file of somebody else, or other streams or card.

    next_obs: also write what follows each action (the frame after the last action is kept nowhere else, and the file doubles).
    compress: gzip the images, one frame a chunk. done_mode: `dones` where no stream tells them, as robomimic does it: 1 at the
    "end" of a demonstration, where the task has succeeded ("success"), or "both".
    """
    check_names(streams)
    if done_mode not in DONE_MODES:
        raise FormatError(f"done_mode {done_mode!r}: use one of {', '.join(DONE_MODES)}")
    named = card.get("policy", {}).get("action")
    action = named if named in streams else reference_stream(streams)
    if streams[action].kind != "action":
        raise FormatError("robomimic keeps demonstrations with actions, and none of these streams is one; try the format videos")
    paths, left_out = paths_of(streams, card, action)
    plan = Plan(dict(streams), paths, action, next_obs, compress, done_mode, card.get("source", {}).get("format") != "robomimic")
    return RobomimicSink(Path(path), plan, json.loads(canonical(dict(card))), left_out + not_kept(plan))


class RobomimicSink:
    """A robomimic file being written (the `Sink` of formats). Demonstrations that were appended survive any crash."""

    def __init__(self, path: Path, plan: Plan, card: dict, left_out: list[str]):
        self.path = path
        self.left_out = left_out
        self._plan = plan
        self._card = card
        self._partial = path.with_name(path.name + durable.PARTIAL_SUFFIX)
        self._already_finished()
        self._lock = self._begin()
        self._finished = self._already_finished()
        self._staged = self._left_by_an_earlier_call()

    @property
    def _header(self) -> dict:
        plan = self._plan
        streams = {name: {**spec.to_json(), "path": plan.paths.get(name, "")} for name, spec in plan.streams.items()}
        options = {"next_obs": plan.next_obs, "compress": plan.compress, "done_mode": plan.done_mode}
        return {"version": VERSION, "streams": streams, "card": self._card, "options": options}

    def _already_finished(self) -> int:
        """Demonstrations in the file that is there; FormatError unless it was written by the same call."""
        if not self.path.exists():
            return 0
        told = json_object(Hdf5File(self.path, members=1).attribute("", KEPT)) if looks_like_hdf5(self.path) else {}
        if "demos" not in told:
            raise FormatError(f"{self.path} exists and was not written here, so it is left alone; choose another path")
        _refuse_other(self.path, told, self._header)
        return int(told["demos"])

    def _begin(self) -> WriterLock:
        """Take the folder with the parts, or make it."""
        header = self._partial / HEADER
        try:
            self._partial.mkdir(parents=True, exist_ok=True)
            if header.exists():
                _refuse_other(self._partial, json.loads(header.read_bytes()), self._header)
            elif any(file.name != LOCK_FILE and not file.name.startswith(HEADER) for file in self._partial.iterdir()):
                raise FormatError(f"{self._partial} is not empty and not begun by this writer; move it away")
            lock = WriterLock(self._partial)
            if not header.exists():
                durable.replace_file(header, canonical(self._header))
            return lock
        except OSError as error:
            raise FormatError(f"{self.path} cannot be written: {error.strerror or error}") from error
        except json.JSONDecodeError as error:
            raise FormatError(f"{header} is damaged; remove {self._partial} and begin again") from error

    def _left_by_an_earlier_call(self) -> list[Path]:
        """The finished parts that go on behind the finished file, in order; leftovers are removed."""
        staged = []
        for file in sorted(self._partial.glob("*.hdf5*")):
            if file.name == self._part(self._finished + len(staged)).name:
                staged.append(file)
            else:
                file.unlink()
        return staged

    def _part(self, index: int) -> Path:
        return self._partial / f"{index:08d}.hdf5"

    def __len__(self) -> int:
        return self._finished + len(self._staged)

    def encoder(self) -> Callable[[RawEpisode], bytes]:
        """Makes the small file with one demonstration."""
        return partial(encoded, self._plan)

    def append(self, encoded: bytes) -> None:
        """Put a demonstration on the disk, by one rename."""
        part = self._part(len(self))
        try:
            durable.replace_file(part, encoded)
        except OSError as error:
            raise FormatError(self._disk_trouble(error, len(encoded))) from error
        self._staged.append(part)

    def close(self) -> None:
        """Put the file together and let go of it; when that fails, the parts stay for the next call."""
        if not self._lock.release.alive:
            return
        try:
            if self._staged:
                self._put_together()
            shutil.rmtree(self._partial)
        except (OSError, RuntimeError) as error:
            needed = sum(part.stat().st_size for part in self._staged)
            raise FormatError(self._disk_trouble(error, needed)) from error
        finally:
            self._lock.release()

    def _disk_trouble(self, error: Exception, needed: int) -> str:
        free = shutil.disk_usage(self._partial).free
        # The HDF5 library tells the number in its text only.
        is_full = getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT) or f"errno = {errno.ENOSPC}" in str(error)
        what = "the disk is full" if is_full else f"writing failed ({getattr(error, 'strerror', None) or error})"
        return (
            f"{self.path}: {what}: {needed / 1e6:.2f} MB needed, {free / 1e6:.2f} MB free. "
            f"The {len(self)} demonstrations so far are safe in {self._partial}; free some space and go on with the same call"
        )

    def _put_together(self) -> None:
        h5py = h5py_module()
        whole = self._partial / WHOLE
        _refuse_full_disk(whole, [*self._staged, *([self.path] if self._finished else [])])
        with h5py.File(whole, "w") as file:
            book = _Book(file, self._card)
            if self._finished:
                with h5py.File(self.path, "r") as before:
                    book.take_over(before)
            for index, part in enumerate(self._staged, self._finished):
                with h5py.File(part, "r") as one:
                    book.add(one, index)
            book.finish({**self._header, "derived": self._plan.derived, "demos": len(self)})
        _synced(whole)
        os.replace(whole, self.path)
        durable.sync_folder(self.path.parent)


class _Book:
    """What a robomimic file keeps about all its demonstrations, while they are put into it."""

    def __init__(self, file: Any, card: Mapping):
        self.file = file
        self.card = card
        self.data = file.create_group("data")
        kept = card.get("robomimic", {})
        self.mask_types: dict[str, str] = dict(kept.get("masks", {}))
        self.masks: dict[str, list[tuple[int | None, str]]] = {name: [] for name in self.mask_types}
        self.total = 0
        self.highest = -1

    def take_over(self, before: Any) -> None:
        """Everything of a finished file."""
        for name, demo in before["data"].items():
            self._copy(demo, name)
        kept = json_object(before.attrs[KEPT])
        self.masks = {name: [(place, demo) for place, demo in entries] for name, entries in kept["masks"].items()}

    def add(self, one: Any, index: int) -> None:
        """One part, behind those before it: with its own name if that has a higher number than theirs."""
        told = DEMO.fullmatch(one.attrs["name"])
        name = told[0] if told and int(told[1]) > self.highest else f"demo_{self.highest + 1}"
        self._copy(one["demo"], name)
        masks = json.loads(one.attrs["masks"]) or _split_of(self.card, index)
        for mask, place in masks.items():
            self.masks.setdefault(mask, []).append((place, name))

    def _copy(self, demo: Any, name: str) -> None:
        self.file.copy(demo, self.data, name)
        self.total += int(demo.attrs["num_samples"])
        self.highest = max(self.highest, int(name.removeprefix("demo_")))

    def finish(self, header: dict) -> None:
        """Masks, attributes, and what `read` restores streams and card from."""
        h5py = h5py_module()
        for name, entries in self.masks.items():
            # The places of the source's mask, so that its order comes back; those without a place behind them.
            demos = [demo for _, demo in sorted(entries, key=lambda entry: (entry[0] is None, entry[0] or 0))]
            kind = h5py.string_dtype() if self.mask_types.get(name) == "text" else np.array(demos, "S").dtype
            self.file.create_dataset(f"mask/{name}", data=demos, dtype=kind)
        kept = self.card.get("robomimic", {})
        for thing, key in ((self.data, "attributes"), (self.file, "root")):
            for name, value in kept.get(key, {}).items():
                thing.attrs[name] = plain(value)
        if "env_args" not in self.data.attrs:
            self.data.attrs["env_args"] = json.dumps(_env_args(self.card), indent=4)
        self.data.attrs["total"] = self.total
        self.file.attrs[KEPT] = json.dumps({**header, "masks": self.masks})


def _split_of(card: Mapping, index: int) -> dict[str, None]:
    """The splits that name an episode by its number, where the card tells them as {name: numbers}."""
    told = card.get("split")
    splits = {key: some for key, some in told.items() if isinstance(some, list)} if isinstance(told, Mapping) else {}
    return {SPLITS.get(key, key): None for key, some in splits.items() if index in some}


def _env_args(card: Mapping) -> dict:
    """What robomimic wants to know about the world, where the source was not robomimic's."""
    versions = card.get("versions", {})
    told = {"env_name": str(card.get("env", "unknown")), "type": GYM, "env_kwargs": {}}
    return {**told, "env_version": str(versions.get("robosuite", "unknown")) if isinstance(versions, Mapping) else "unknown"}


def _refuse_other(place: Path, found: Mapping, mine: Mapping) -> None:
    """FormatError, naming the difference, unless a header is the one that this call would write."""
    mine = json.loads(canonical(dict(mine)))
    if found.get("version") != VERSION:
        raise FormatError(f"{place} was written as version {found.get('version')}; this is version {VERSION}")
    for part in ("streams", "options", "card"):
        ours, theirs = mine[part], found.get(part, {})
        differing = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key) and (part != "card" or key not in CHANGING)]
        if differing:
            key = differing[0]
            raise FormatError(
                f"{place} was begun with other {part}: {key} is {str(theirs.get(key))[:200]} there and {str(ours.get(key))[:200]} now; "
                "go on with the same ones, or choose another path"
            )


def _refuse_full_disk(whole: Path, parts: list[Path]) -> None:
    """OSError before anything is written, when there is no room for the file."""
    needed = sum(part.stat().st_size for part in parts)
    if shutil.disk_usage(whole.parent).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _synced(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
