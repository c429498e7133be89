"""A run as an mcap bag, for Foxglove and every other reader of the format: JSON messages with their schemas inside.

| topic | schema | time | what |
|---|---|---|---|
| /camera/NAME | foxglove.CompressedImage | the frame's stamp | PNG, so that nothing is lost |
| /sensor/NAME | uwm.Sensor | the reading's stamp | its numbers |
| /tick | uwm.Tick | the tick's begin | proposed, sent, behaviour, reason, changed limits, latency, network calls |

A message's log time is its stamp in nanoseconds, plus `epoch_s` (what to add to the controller's monotonic seconds to get
the time of day); its field `stamp_s` is the exact stamp. A frame that was not new in a tick is written once.
"""

from __future__ import annotations

import base64
import json
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from uwm.robot.audit import plain
from uwm.robot.interface import Reading, RobotSpec
from uwm.robot.safety import BEHAVIOURS, Verdict
from uwm.robot.watchdog import is_camera

_NUMBERS = {"type": "array", "items": {"type": "number"}}
_NUMBER, _TEXT = {"type": "number"}, {"type": "string"}
_TIME = {"type": "object", "title": "time", "properties": {"sec": {"type": "integer"}, "nsec": {"type": "integer"}}}
_ANYTHING: dict = {}  # a proposal may be missing or malformed
SCHEMAS = {
    "foxglove.CompressedImage": {
        "timestamp": _TIME, "frame_id": _TEXT, "data": {"type": "string", "contentEncoding": "base64"}, "format": _TEXT, "stamp_s": _NUMBER,
    },
    "uwm.Sensor": {"timestamp": _TIME, "stamp_s": _NUMBER, "values": _NUMBERS},
    "uwm.Tick": {
        "timestamp": _TIME, "stamp_s": _NUMBER, "index": {"type": "integer"}, "due_s": _NUMBER, "proposed": _ANYTHING, "sent": _ANYTHING,
        "behaviour": _TEXT, "reason": _TEXT, "changed": {"type": "array", "items": _TEXT}, "latency_s": _ANYTHING,
        "calls": {"type": "integer"}, "queue": {"type": "integer"},
    },
}  # fmt: skip


class BagError(RuntimeError):
    """A bag that cannot be written: what is missing, and what to try."""


class Bag:
    """Writes a bag while the run goes on; a listener of ticks. The file appears at `path` when it is closed.

    A failing disk ends the bag, not the run: `trouble` says why, and the part that was written stays beside `path`.
    """

    def __init__(self, spec: RobotSpec, path: Path | str, epoch_s: float = 0.0, metadata: Mapping[str, str] | None = None):
        try:
            from mcap.writer import Writer
        except ImportError as error:
            raise BagError("writing a bag needs the package mcap: pip install 'uwm[record]'") from error
        self.spec, self.path, self.epoch_s, self.trouble = spec, Path(path), epoch_s, ""
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._file = self._partial.open("wb")
        self._writer = Writer(self._file)
        self._writer.start(profile="", library="uwm")
        self._schemas = {name: self._schema(name, fields) for name, fields in SCHEMAS.items()}
        self._channels: dict[str, int] = {}
        self._newest: dict[str, float] = {}
        about = {"robot": spec.name, "rate_hz": f"{spec.rate_hz:g}", "epoch_s": repr(epoch_s)}
        self._writer.add_metadata("run", {**about, **(metadata or {})})

    def tick(self, tick: Any) -> None:
        """One tick of the controller: its new readings, and itself."""
        self._guarded(self._tick, tick)

    def close(self) -> None:
        """Finish the file and let it appear; twice is the same as once."""
        if self._file.closed:
            return
        self._guarded(self._finish)
        if not self._file.closed:
            self._file.close()

    def _guarded(self, act: Any, *arguments: Any) -> None:
        if self.trouble:
            return
        try:
            act(*arguments)
        except OSError as error:
            self.trouble = f"{self._partial}: {error.strerror or error}; the bag ends here"

    def _finish(self) -> None:
        self._writer.finish()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._partial, self.path)

    # ---- messages --------------------------------------------------------------------------------------------

    def _tick(self, tick: Any) -> None:
        for name, reading in tick.readings.items():
            is_new = np.isfinite(reading.stamp_s) and self._newest.get(name) != reading.stamp_s
            if is_new and isinstance(reading.value, np.ndarray) and name in self.spec.sensors:
                self._newest[name] = reading.stamp_s
                self._reading(name, reading)
        verdict = tick.verdict
        told = {
            "index": tick.index,
            "due_s": tick.due_s,
            "proposed": plain(tick.proposed),
            "sent": plain(tick.sent),
            "behaviour": verdict.behaviour,
            "reason": verdict.reason,
            "changed": list(verdict.changed),
            "latency_s": getattr(tick, "latency_s", None),
            "calls": int(getattr(tick, "calls", 0) or 0),
            "queue": int(getattr(tick, "queue", 0) or 0),
        }
        self._message("/tick", "uwm.Tick", tick.began_s, told)

    def _reading(self, name: str, reading: Reading) -> None:
        value = reading.value
        if is_camera(self.spec.sensors[name]) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] in (1, 3):
            data = base64.b64encode(png(value)).decode()
            self._message(f"/camera/{name}", "foxglove.CompressedImage", reading.stamp_s, {"frame_id": name, "data": data, "format": "png"})
        else:
            self._message(f"/sensor/{name}", "uwm.Sensor", reading.stamp_s, {"values": plain(value.ravel()[:4096])})

    def _message(self, topic: str, schema: str, stamp_s: float, told: dict) -> None:
        if topic not in self._channels:
            self._channels[topic] = self._writer.register_channel(topic, "json", self._schemas[schema])
        time_ns = max(0, round((stamp_s + self.epoch_s) * 1e9))
        stamp = {"timestamp": {"sec": time_ns // 10**9, "nsec": time_ns % 10**9}, "stamp_s": stamp_s}
        payload = json.dumps({**stamp, **told}, allow_nan=False).encode()
        self._writer.add_message(self._channels[topic], log_time=time_ns, publish_time=time_ns, data=payload)

    def _schema(self, name: str, fields: dict) -> int:
        schema = {"title": name, "type": "object", "properties": fields}
        return self._writer.register_schema(name, "jsonschema", json.dumps(schema).encode())


def export(ticks: Iterable[Any], spec: RobotSpec, path: Path | str, **options: Any) -> None:
    """A bag at `path` of all `ticks`. Raises BagError if the disk does not take it."""
    bag = Bag(spec, path, **options)
    for tick in ticks:
        bag.tick(tick)
    bag.close()
    if bag.trouble:
        raise BagError(bag.trouble)


class RecordedTick:
    """Tick `index` of a recorded episode, as far as the recording tells it: what a listener may ask for."""

    def __init__(self, spec: RobotSpec, arrays: Mapping[str, np.ndarray], index: int):
        stamps = dict(zip(spec.sensors, arrays["stamps"][index].tolist(), strict=True))
        self.index, self.readings = index, {name: Reading(arrays[name][index], stamps[name]) for name in spec.sensors}
        self.began_s = self.due_s = float(arrays["moment_s"][index])
        self.proposed, self.sent = arrays["action_intended"][index], arrays["action"][index]
        self.verdict = Verdict(self.sent, BEHAVIOURS[int(arrays["behaviour"][index])])
        self.latency_s, self.calls = float(arrays["latency_s"][index]), int(arrays["calls"][index])


def recorded(arrays: Mapping[str, np.ndarray], spec: RobotSpec) -> Iterable[RecordedTick]:
    """The ticks of an episode with the streams of `uwm.robot.recording.streams_for`, for `export`; without its last readings."""
    return (RecordedTick(spec, arrays, index) for index in range(len(arrays["action"])))


def png(image: np.ndarray) -> bytes:
    """A picture (H, W, 1 or 3) uint8 as PNG (ISO 15948), rows unfiltered."""
    height, width, channels = image.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), image.reshape(height, -1)], axis=1)
    head = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 1)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
