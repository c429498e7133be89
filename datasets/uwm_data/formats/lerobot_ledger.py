"""The books of a LeRobot dataset that is being written: which episodes are safe, and what the whole needs to know of each.

    meta/uwm/card.json       streams, card and options, told once; a later call must tell the same
    meta/uwm/stats.jsonl     statistics of an episode, and counts of its pictures' values
    meta/uwm/episodes.jsonl  length, tasks, metadata and file sizes of an episode; the line is the commit
    meta/uwm/writer.lock     held by the one writer

LeRobot does not look into that folder. It stays when the dataset is finished: it restores names, units and metadata when we
read the dataset again, and lets a later call add episodes.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from uwm_data import durable
from uwm_data.errors import FormatError
from uwm_data.formats.lerobot_info import OURS, load_json
from uwm_data.journal import canonical
from uwm_data.lock import WriterLock

_COMPARED = ("format", "version", "streams", "options", "card", "features")


class Ledger:
    """Open for writing, from creation to `release()`. `description` is JSON-able; `lines` are the committed episodes.

    Metadata stays on disk: a demonstration's may hold a whole simulator model.
    """

    def __init__(self, root: Path, description: Mapping[str, Any]):
        self.root, self.folder = root, root / OURS
        described = json.loads(canonical(description))
        _refuse_foreign(root)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = WriterLock(self.folder)
        except OSError as error:
            raise FormatError(f"cannot write to {root}: {error.strerror or error}") from error
        try:
            self._open(described)
        except OSError as error:
            self._lock.release()
            raise FormatError(f"cannot write to {root}: {error.strerror or error}") from error
        except BaseException:
            self._lock.release()
            raise

    def _open(self, described: dict) -> None:
        card = self.folder / "card.json"
        if card.exists():
            told = load_json(card)
            if not isinstance(told, dict):
                raise FormatError(f"{card} is not ours; write to another folder")
            # Streams by their names, so that the one in question is named.
            parts = [({name: told.get(name)}, {name: described[name]}) for name in _COMPARED]
            other = next(filter(None, (first_difference(_by_name(old), _by_name(new)) for old, new in parts)), "")
            if other:
                raise FormatError(f"{self.root} was begun with another {other}; write to another folder, or tell the same")
        else:
            durable.replace_file(card, json.dumps(described, indent=1, sort_keys=True).encode())
        for path in (self._statistics, self._episodes):
            durable.write_at(path, 0, b"")
        self.reload()

    def reload(self) -> None:
        """Look again what is committed, and cut off what is not. Raises OSError."""
        self.lines: list[dict] = []
        self.tasks: dict[str, int] = {}  # the number of each, in the order in which episodes brought them
        self.frames = 0  # rows of all episodes together
        self._take_committed()
        with open(self._statistics, "rb") as file:
            sizes = [len(line) for _, line in zip(self.lines, file, strict=False)]
        if len(sizes) < len(self.lines):
            raise FormatError(f"{self._statistics} lacks the statistics of episode {len(sizes)}; write to another folder")
        self._statistics_end = sum(sizes)
        durable.truncate(self._statistics, self._statistics_end)

    def _take_committed(self) -> None:
        self._episodes_end = 0
        with open(self._episodes, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break  # it was never committed
                try:
                    self._count(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    raise FormatError(f"{self._episodes} is damaged ({error}); write to another folder") from error
                self._episodes_end += len(line)
        durable.truncate(self._episodes, self._episodes_end)

    @property
    def _episodes(self) -> Path:
        return self.folder / "episodes.jsonl"

    @property
    def _statistics(self) -> Path:
        return self.folder / "stats.jsonl"

    def commit(self, line: Mapping[str, Any], statistics: Mapping[str, Any], counts: Mapping[str, np.ndarray]) -> None:
        """Add an episode whose files are on disk; when this returns it is part of the dataset. Raises OSError."""
        packed = {key: base64.b64encode(zlib.compress(values.astype("<i8").tobytes())).decode() for key, values in counts.items()}
        told = canonical({"episode": len(self.lines), "stats": statistics, "counts": packed}) + b"\n"
        written = canonical({"episode": len(self.lines), **line}) + b"\n"
        durable.write_at(self._statistics, self._statistics_end, told)
        durable.write_at(self._episodes, self._episodes_end, written)
        self._statistics_end += len(told)
        self._episodes_end += len(written)
        self._count(json.loads(written))

    def _count(self, line: dict) -> None:
        line.pop("meta", None)
        self.lines.append(line)
        self.frames += line["length"]
        for text in [*line["tasks"], *line["other_tasks"]]:
            self.tasks.setdefault(text, len(self.tasks))

    def roll_back(self) -> None:
        """Cut off what a failed commit left behind. Raises OSError."""
        durable.truncate(self._episodes, self._episodes_end)
        durable.truncate(self._statistics, self._statistics_end)

    def statistics(self) -> Iterator[tuple[dict, dict[str, np.ndarray]]]:
        """(statistics, counts of pictures' values) of each episode."""
        with open(self._statistics, "rb") as file:
            for line in file:
                told = json.loads(line)
                counts = {key: np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i8") for key, text in told["counts"].items()}
                yield told["stats"], {key: values.reshape(-1, 256) for key, values in counts.items()}

    def release(self) -> None:
        """Let another writer in."""
        self._lock.release()


def _refuse_foreign(root: Path) -> None:
    if not root.exists():
        return
    if not root.is_dir():
        raise FormatError(f"{root} is a file; a LeRobot dataset is a folder")
    if not (root / OURS / "card.json").exists() and any(path.is_file() and (root / OURS) not in path.parents for path in root.rglob("*")):
        raise FormatError(f"{root} holds other files and was not begun here; write to another folder")


def _by_name(part: dict) -> dict:
    listed = part.get("streams")
    fit = isinstance(listed, list) and all(isinstance(spec, dict) and "name" in spec for spec in listed)
    return {"streams": {spec["name"]: spec for spec in listed}} if fit else part


def first_difference(old: Any, new: Any, name: str = "") -> str:
    """Where two JSON values differ first, in words; "" if they do not."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = (first_difference(old.get(key), new.get(key), f"{name}.{key}".lstrip(".")) for key in [*old, *(set(new) - set(old))])
        return next(filter(None, found), "")
    return "" if old == new else f"{name} ({json.dumps(old)[:200]}, now {json.dumps(new)[:200]})"
