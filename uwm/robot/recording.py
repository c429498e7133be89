"""Recording a run straight into an episode store: what was seen, proposed and executed in every tick, with its stamps.

```
tick            0      1      2    ...   T-1    T
observation     o0     o1     o2         ..     oT      T + 1 frames: the readings at the start of each tick
action          a0     a1     a2         ..             T frames: executed; `action_intended`: proposed
                 \\      \\      \\
spool file      [o0 a0][o1 a1][o2 a2] ...      [oT]     written as they come; a killed process loses what was under way
store                                                   at the end, whole or not at all
```

An episode begins with the first tick in which every sensor has been seen and an action was sent. A sensor that fails later
is recorded as its last good frame with that frame's own stamp: the stream `stamps` tells what was new. The store is an
argument, anything with `append(arrays, meta)`; `streams_for` says which streams it must have.
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import threading
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from uwm.robot.interface import Reading, RobotSpec
from uwm.robot.safety import BEHAVIOURS
from uwm.robot.watchdog import is_camera, malformed

_SUFFIX = ".spool"
_MAGIC = b"uwm-spool-1 "
_PATIENCE_S = 10.0


class RecordingError(RuntimeError):
    """A spool or a specification that cannot be recorded: what was expected and what arrived."""


class Sink(Protocol):
    """Where whole episodes go. With `__len__` and `meta(index)` too, as a store has, no episode is recovered twice."""

    def append(self, data: Mapping[str, np.ndarray], meta: Mapping) -> int:
        """Add one whole episode or raise."""


def streams_for(spec: RobotSpec) -> dict[str, dict[str, Any]]:
    """{stream: keyword arguments of its StreamSpec} of a store for this robot's runs; all at the rate of the actions.

    Beside sensors and actions: `stamps` when each sensor's frame was measured (its names: the sensors), and per action
    `moment_s` when its tick began, `latency_s` of the tick, `calls` of the network, `behaviour` as its index in BEHAVIOURS.
    """
    rate, action = {"rate_hz": spec.rate_hz}, spec.action
    streams = {}
    for name, sensor in spec.sensors.items():
        kind = "video" if is_camera(sensor) else "state"
        streams[name] = {"shape": tuple(sensor.shape), "dtype": sensor.dtype, **rate, "kind": kind, "units": tuple(sensor.units)}
    executed = {"shape": (action.size,), "dtype": "float32", **rate, "kind": "action", "units": action.units, "names": action.names}
    streams |= {"action": executed, "action_intended": dict(executed)}
    streams["stamps"] = {"shape": (len(spec.sensors),), "dtype": "float64", **rate, "kind": "label", "names": tuple(spec.sensors)}
    per_action = {"shape": (), **rate, "kind": "label", "closing": False}
    streams |= {"moment_s": {"dtype": "float64", **per_action, "units": ("s",)}, "latency_s": {"dtype": "float64", **per_action}}
    streams |= {"calls": {"dtype": "int32", **per_action}, "behaviour": {"dtype": "uint8", **per_action}}
    if len(streams) != len(spec.sensors) + 7 or not all(name.isidentifier() for name in streams):
        raise RecordingError(
            f"{spec.name}: sensors {list(spec.sensors)} cannot all be streams; names are letters, digits and underscores, and "
            "action, action_intended, stamps, moment_s, latency_s, calls and behaviour are taken"
        )
    return streams


# ---- the spool of one episode ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recovered:
    """What a spool holds: arrays as the store wants them, what is known of the run, and how many frames were damaged."""

    arrays: dict[str, np.ndarray]
    meta: dict
    damaged: int = 0

    @property
    def ticks(self) -> int:
        """Executed actions."""
        return len(self.arrays["action"])


class Spool:
    """A file that one process appends frames to; the lock on it tells others that it lives. Raises OSError."""

    def __init__(self, path: Path, streams: Mapping[str, Mapping], meta: Mapping):
        self.path, self._record = path, _record(streams)
        header = json.dumps({"streams": streams, "meta": meta}).encode()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _write_all(self._file, _MAGIC + b"%08x %08x\n" % (len(header), zlib.crc32(header)) + header)

    def add(self, frame: Mapping[str, Any], is_closing: bool = False) -> None:
        """One tick's values by stream; the closing one has observations only."""
        record = np.zeros((), self._record)
        record["is_closing"] = is_closing
        for name, value in frame.items():
            record[name] = value
        payload = record.tobytes()
        _write_all(self._file, zlib.crc32(payload[4:]).to_bytes(4, "little") + payload[4:])

    def close(self) -> None:
        """Let go of the file; it stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def recover(path: Path) -> Recovered:
    """The episode in a spool, up to the last frame that is whole. Raises RecordingError if not even its head is readable."""
    with path.open("rb") as file:
        head, header = file.read(len(_MAGIC) + 18), b""
        if head.startswith(_MAGIC) and head.endswith(b"\n"):
            size, checksum = (int(word, 16) for word in head[len(_MAGIC) :].split())
            header = file.read(size)
        if not header or zlib.crc32(header) != checksum:
            raise RecordingError(f"{path} is not the spool of an episode, or was cut before its first frame; remove it")
        told = json.loads(header)
        records = np.fromfile(file, _record(told["streams"]))  # leaves a torn last one out
    whole = _whole(records)
    return Recovered(_arrays(told["streams"], records[:whole]), told["meta"], len(records) - whole)


def _record(streams: Mapping[str, Mapping]) -> np.dtype:
    fields = [(name, np.dtype(told["dtype"]).newbyteorder("<"), tuple(told["shape"])) for name, told in streams.items()]
    return np.dtype([("checksum", "<u4"), ("is_closing", "u1"), *fields])


def _whole(records: np.ndarray) -> int:
    """How many records, from the first on, are as they were written."""
    for index, record in enumerate(records):
        if zlib.crc32(record.tobytes()[4:]) != int(record["checksum"]):
            return index
    return len(records)


def _arrays(streams: Mapping[str, Mapping], records: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays by stream: T + 1 observations and T of what belongs to actions; without a closing frame the last one closes."""
    ticks = max(0, len(records) - 1)
    long = {name for name, told in streams.items() if told["kind"] != "action" and told.get("closing", True)}
    return {name: np.ascontiguousarray(records[name][: ticks + (name in long)]).astype(streams[name]["dtype"]) for name in streams}


def _write_all(file: int, payload: bytes) -> None:
    view = memoryview(payload)
    while view:
        view = view[os.write(file, view) :]


# ---- the listener ------------------------------------------------------------------------------------------------


class Recorder:
    """Records every tick it is told of; `end` puts the episode into the store. A listener that never raises or waits in `tick`.

    A thread of its own writes the spool. If the disk is full, or so slow that a second of frames waits, recording of this
    episode stops: `trouble` says why, what was spooled stays, and a later start recovers it. Opening a recorder recovers
    what dead processes left in `folder`; `recovered` are their episodes' numbers in the store.
    `waits`: a tick waits for the disk instead, for runs on a virtual clock, where that takes no time.
    """

    def __init__(self, spec: RobotSpec, sink: Sink, folder: Path | str, meta: Mapping | None = None, waits: bool = False):
        self.spec, self.sink, self.folder, self.meta, self.waits = spec, sink, Path(folder), dict(meta or {}), waits
        self.streams, self.trouble = streams_for(spec), ""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.recovered, self.troubles = recover_all(self.folder, sink)
        self._forget()

    def _forget(self) -> None:
        self._good: dict[str, Reading] = {}
        self._rest: np.ndarray | None = None
        self._spool: Spool | None = None
        self._waiting: queue.Queue = queue.Queue(max(1, round(self.spec.rate_hz)))
        self._writer: threading.Thread | None = None
        self._stopped = False

    def tick(self, tick: Any) -> None:
        """One tick of the controller."""
        self._notice(tick.readings)
        executed = self._executed(tick.sent)
        if self._stopped or executed is None or len(self._good) < len(self.spec.sensors):
            return
        frame = self._observation() | {
            "action": executed,
            "action_intended": self._intended(tick.proposed, executed),
            "moment_s": tick.began_s,
            "latency_s": getattr(tick, "latency_s", None) or 0.0,
            "calls": getattr(tick, "calls", None) or 0,
            "behaviour": BEHAVIOURS.index(tick.verdict.behaviour),
        }
        self._put((frame, False))

    def end(self, success: bool | None = None, readings: Mapping[str, Reading] | None = None, **told: Any) -> int | None:
        """Close the episode and append it: its number in the store, or None if there was none, or `trouble`.

        `readings` are those after the last action; without them the last tick's close the episode and its action is left out.
        """
        if self._writer is None:
            self._forget()
            return None
        if readings is not None:
            self._notice(readings)
            self._put((self._observation(), True))
        self._finish()
        spool, is_whole = self._spool, not self._stopped
        self._forget()
        if spool is None or not is_whole:
            return None
        known = {"success": success} if success is not None else {}
        try:
            return _append(spool.path, self.sink, {**known, **told})
        except Exception as error:  # noqa: BLE001 - a store's errors are its own; the spool stays for the next start
            self._tell(f"the episode could not be appended and stays in {spool.path}: {error}")
            return None

    def close(self) -> None:
        """End an episode that is under way."""
        self.end(ended="closed")

    def _finish(self) -> None:
        """Wait until the spool is written, but not for ever for a disk that hangs."""
        try:
            self._waiting.put(None, timeout=_PATIENCE_S)
            self._writer.join(_PATIENCE_S)
        except queue.Full:
            pass
        if self._writer.is_alive():
            self._tell(f"{self.folder}: the disk took nothing for {_PATIENCE_S:g} s; the episode stays in its spool")

    def _put(self, item: tuple[dict, bool]) -> None:
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name="recorder", daemon=True)
            self._writer.start()
        try:
            self._waiting.put(item, block=self.waits, timeout=_PATIENCE_S)
        except queue.Full:
            self._tell(f"{self.folder}: a second of frames waits for the disk; recording of this episode has stopped")

    def _write(self) -> None:
        try:
            while (item := self._waiting.get()) is not None:
                if not self._stopped:
                    self._write_one(*item)
        finally:
            if self._spool:
                self._spool.close()

    def _write_one(self, frame: dict, is_closing: bool) -> None:
        try:
            if self._spool is None:
                episode = uuid.uuid4().hex
                self._spool = Spool(self.folder / f"{episode}{_SUFFIX}", self.streams, {**self.meta, "episode": episode})
            self._spool.add(frame, is_closing)
        except OSError as error:
            self._tell(f"{self.folder}: {error.strerror or error}; recording of this episode has stopped")

    def _tell(self, trouble: str) -> None:
        self._stopped, self.trouble = True, trouble

    # ---- one frame -------------------------------------------------------------------------------------------

    def _notice(self, readings: Mapping[str, Reading]) -> None:
        for name, sensor in self.spec.sensors.items():
            reading = readings.get(name)
            if reading is not None and np.isfinite(reading.stamp_s) and malformed(name, sensor, reading.value) is None:
                self._good[name] = Reading(reading.value.copy(), reading.stamp_s)  # a robot may use its buffer again

    def _observation(self) -> dict[str, Any]:
        values = {name: self._good[name].value for name in self.spec.sensors}
        return values | {"stamps": [self._good[name].stamp_s for name in self.spec.sensors]}

    def _executed(self, sent: np.ndarray | None) -> np.ndarray | None:
        """What was executed; in a tick without an action the robot rests: values that are kept keep, the others are 0."""
        if sent is not None:
            executed = np.asarray(sent, np.float32)
            kept = np.full(executed.shape, self.spec.action.mode == "absolute")
            kept[list(self.spec.action.gripper)] = True
            self._rest = np.where(kept, executed, np.float32(0))
            return executed
        return self._rest

    def _intended(self, proposed: Any, executed: np.ndarray) -> np.ndarray:
        """The proposal, or what was executed where there was none that can be stored."""
        if not isinstance(proposed, np.ndarray) or proposed.shape != executed.shape or proposed.dtype.kind not in "iuf":
            return executed
        is_storable = (np.abs(proposed) <= np.finfo(np.float32).max).all()  # false for NaN too
        return proposed.astype(np.float32) if is_storable else executed


def recover_all(folder: Path | str, sink: Sink) -> tuple[list[int], list[str]]:
    """Append what dead processes spooled: numbers in the store, and what is in the way of the rest (those files stay)."""
    added, troubles = [], []
    for path in sorted(Path(folder).glob(f"*{_SUFFIX}")):
        if _is_alive(path):
            continue
        try:
            index = _append(path, sink, {"recovered": True})
            added += [] if index is None else [index]
        except Exception as error:  # noqa: BLE001 - a store's errors are its own; the file stays for the next start
            troubles.append(f"{path}: {error}")
    return added, troubles


def _append(path: Path, sink: Sink, told: Mapping) -> int | None:
    """Append a spool's episode, unless it has no action or is there already, and remove the file."""
    episode = recover(path)
    index = None
    if episode.ticks and not _holds(sink, episode.meta["episode"]):
        damage = {"damaged_frames": episode.damaged} if episode.damaged else {}
        index = sink.append(episode.arrays, {**episode.meta, **damage, **told})
    path.unlink()
    return index


def _holds(sink: Any, episode: str) -> bool:
    """Whether a store holds the episode already: the process was killed between appending it and removing its spool."""
    if not (hasattr(sink, "meta") and hasattr(sink, "__len__")):
        return False
    return any(sink.meta(index).get("episode") == episode for index in reversed(range(len(sink))))


def _is_alive(path: Path) -> bool:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
