"""The audit log: what was proposed in every tick, what was sent, and why it differs; it survives kill -9.

```
audit-000001.log    1f0c93ab {"n": 0, "kind": "opened", ...}\\n
                    77d21e04 {"n": 1, "kind": "tick", "index": 0, "proposed": [...], "sent": [...], ...}\\n
                    5a0b     <- torn: the process was killed inside this write. Readers leave it out
audit-000002.log    the next process, or the next `max_bytes`, begins its own file
```

Each line is its checksum (CRC-32 of the JSON) and one JSON object, written by one `write` behind the end of the file: what
was written is in the kernel's hands and outlives the process. A power cut may take what was not yet synchronised;
a thread does that every `sync_every_s`, and at once when the behaviour changes, so that a slow disk never holds a tick up.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_NAME = re.compile(r"audit-(\d{6,})\.log")
_MOST_NUMBERS = 256  # of a proposal that is no action: the log tells what it was, not all of it


class AuditError(RuntimeError):
    """An audit log that was changed or damaged after it was written: which file and line."""


class Audit:
    """Writes the log of one process; a listener of ticks. Only opening it raises (OSError): a disk in trouble never stops a tick.

    `lost` counts the records that could not be written and `trouble` says why the last one could not; the next record that
    can be written tells both. At most `keep` files of `max_bytes` are kept, the newest; 0 keeps all.
    """

    def __init__(self, folder: Path | str, max_bytes: int = 64 << 20, keep: int = 16, sync_every_s: float = 1.0):
        self.folder, self.max_bytes, self.keep, self.sync_every_s = Path(folder), max_bytes, keep, sync_every_s
        self.lost, self.trouble = 0, ""
        self._told, self._count, self._size, self._file = 0, 0, 0, -1
        self._behaviour, self._synced_s = "", -math.inf
        self._writing = threading.Lock()  # for `note` from other threads; a tick holds it for one write
        self._wanted, self._closed = threading.Event(), False
        self.folder.mkdir(parents=True, exist_ok=True)
        self._open()
        self._syncing = threading.Thread(target=self._sync, name="audit", daemon=True)
        self._syncing.start()
        self.note("opened", process=os.getpid())

    def tick(self, tick: Any) -> None:
        """One tick of the controller."""
        verdict = tick.verdict
        self.note(
            "tick",
            index=tick.index,
            due_s=tick.due_s,
            began_s=tick.began_s,
            proposed=tick.proposed,
            sent=tick.sent,
            behaviour=verdict.behaviour,
            reason=verdict.reason,
            changed=verdict.changed,
            stamps={name: reading.stamp_s for name, reading in tick.readings.items()},
        )
        is_news = verdict.behaviour != self._behaviour
        if is_news or tick.began_s - self._synced_s >= self.sync_every_s or tick.began_s < self._synced_s:
            self._behaviour, self._synced_s = verdict.behaviour, tick.began_s
            self._wanted.set()

    def note(self, kind: str, **told: Any) -> None:
        """Any other record: a start, a fault, somebody's decision."""
        with self._writing:
            if not self._closed:
                self._write(kind, told)

    def close(self) -> None:
        """Write the last record, wait until the disk has everything, and let go."""
        self.note("closed")
        with self._writing:
            self._closed = True
        self._wanted.set()
        self._syncing.join()
        if self._file >= 0:
            self._sync_one(self._file)
            self._file = -1

    # ---- files -----------------------------------------------------------------------------------------------

    def _write(self, kind: str, told: dict[str, Any]) -> None:
        record = {"n": self._count, "kind": kind, **{name: plain(value) for name, value in told.items()}}
        self._count += 1  # also for records that are lost: a reader sees the hole
        if self.lost != self._told:
            record |= {"lost": self.lost, "trouble": self.trouble}
        line = to_line(record)
        try:
            if self._file < 0 or (self._size and self._size + len(line) > self.max_bytes):
                self._open()
            written = os.write(self._file, line)
            if written < len(line):  # a full disk takes a part
                self._cut_back()
                raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes were taken")
            self._size += len(line)
            self._told = self.lost
        except OSError as error:
            self.lost, self.trouble = self.lost + 1, f"{self.folder}: {error.strerror or error}"

    def _cut_back(self) -> None:
        """Without the torn line; where even that fails, the torn line stays the last one of its file."""
        try:
            os.ftruncate(self._file, self._size)
        except OSError:
            old, self._file = self._file, -1
            os.close(old)

    def _open(self) -> None:
        numbers = [int(_NAME.fullmatch(path.name)[1]) for path in files_of(self.folder)]
        path = self.folder / f"audit-{max(numbers, default=0) + 1:06d}.log"
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        old, self._file, self._size = self._file, opened, 0
        if old >= 0:
            os.close(old)
        for forgotten in files_of(self.folder)[: -self.keep] if self.keep else []:
            forgotten.unlink(missing_ok=True)

    def _sync(self) -> None:
        while not self._closed:
            self._wanted.wait()
            self._wanted.clear()
            with self._writing:  # its own handle: the file may be rotated away meanwhile
                handle = os.dup(self._file) if self._file >= 0 else -1
            if handle >= 0:
                self._sync_one(handle)

    def _sync_one(self, handle: int) -> None:
        try:
            os.fsync(handle)
        except OSError as error:
            self.trouble = f"{self.folder}: not synchronised: {error.strerror or error}"
        finally:
            os.close(handle)


def files_of(folder: Path | str) -> list[Path]:
    """The files of a log, oldest first."""
    found = [path for path in Path(folder).iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(_NAME.fullmatch(path.name)[1]))


def read(folder: Path | str) -> Iterator[dict]:
    """All records, oldest first, without a torn last line of a file. Raises AuditError on any other line that is not whole."""
    for path in files_of(folder):
        lines = path.read_bytes().split(b"\n")
        torn = lines.pop()  # what stands behind the last line's end: nothing, unless a write was cut
        for number, line in enumerate(lines, 1):
            record = _from_line(line)
            if record is None:
                raise AuditError(
                    f"{path}, line {number} of {len(lines)} is not what was written; the records before it are good. "
                    f"A kill can only tear what follows the last line ({len(torn)} bytes here)"
                )
            yield record


def to_line(record: dict) -> bytes:
    """A record as it is written: checksum, blank, JSON, end of line."""
    text = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _from_line(line: bytes) -> dict | None:
    checksum, _, text = line.partition(b" ")
    return json.loads(text) if checksum == b"%08x" % zlib.crc32(text) else None


def plain(value: Any) -> Any:
    """`value` as JSON has it; numbers that are not finite, and what is no number, as words."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray) and (value.dtype.kind not in "biuf" or value.size > _MOST_NUMBERS):
        return f"array of {value.dtype} {value.shape}"
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(each) for each in value[:_MOST_NUMBERS]]
    return repr(value)[:200]
