"""What a conversion was begun with, kept beside its target, so that it goes on with the same source and no other.

    runs/can.hdf5                     the target
    runs/can.hdf5.partial             its parts, where the format is put together at the end
    runs/can.hdf5.conversion.json     source, options, fingerprint; episodes skipped so far; at the end the report

The note is on disk before the target is, and an episode is noted as skipped before the next one is added. So at any moment
episode k of the target is the k-th episode of the source that is not skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path

from uwm_data import durable
from uwm_data.errors import FormatError
from uwm_data.formats import Source
from uwm_data.journal import canonical, digest_of
from uwm_data.lock import LOCK_FILE
from uwm_data.remote import is_url, local_path

SUFFIX = ".conversion.json"
_SAMPLED_FILES = 64
_END_BYTES, _BLOCK_BYTES, _BLOCKS = 1 << 16, 1 << 12, 6


@dataclass
class Note:
    """The JSON of one note. `skipped` maps source episodes to reasons; `report` is there once all episodes are."""

    source: str
    format: str
    source_options: dict
    fingerprint: str
    to: str
    target_options: dict
    skipped: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    report: dict | None = None

    def save(self, target: Path) -> None:
        """Write it beside the target, by one rename; FormatError when the disk does not take it."""
        place = place_of(target)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            durable.replace_file(place, json.dumps(asdict(self), indent=1).encode() + b"\n")
        except OSError as error:
            raise FormatError(f"{place} cannot be written ({error.strerror or error}); see to that and run the same again") from error


def place_of(target: Path) -> Path:
    """Where the note of a target lies."""
    return target.with_name(target.name + SUFFIX)


def begun(target: Path, fresh: Note) -> Note:
    """The note to go on with: the one that is there, or `fresh`, which is then written.

    FormatError when the target was not begun by a conversion, or by one from another source or with other options.
    """
    if not is_begun(target):
        fresh.save(target)
        return fresh
    place = place_of(target)
    if not place.exists():
        raise FormatError(f"{target} exists and was not begun by a conversion (there is no {place.name} beside it); choose another path")
    try:
        before = Note(**json.loads(place.read_bytes()))
    except (ValueError, TypeError) as error:
        raise FormatError(f"{place} is damaged ({error}); remove it and {target.name}, and convert again") from error
    _refuse_other(target, before, fresh)
    return before


def is_begun(target: Path) -> bool:
    """Is there anything of a target? Formats that are put together at the end keep their parts beside it until then."""
    is_empty = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    return not is_empty or target.with_name(target.name + durable.PARTIAL_SUFFIX).exists()


def _refuse_other(target: Path, before: Note, now: Note) -> None:
    if before.fingerprint != now.fingerprint or before.format != now.format:
        moved = before.source != now.source
        told = f"from {before.source} ({before.format}), not from {now.source}" if moved else f"before {now.source} was changed"
        raise FormatError(f"{target} was begun {told} ({now.format}); choose another path, or remove it and {place_of(target).name}")
    for name in ("source_options", "to", "target_options"):
        there, here = getattr(before, name), getattr(now, name)
        if there != here:
            raise FormatError(f"{target} was begun with {name} {there!r}, now they are {here!r}; use the same, or choose another path")


def fingerprint(path: str, source: Source) -> str:
    """Names the content of a source well enough to tell it from another: streams, card, names and sizes of all files, and
    samples of the bytes of some. Independent of where it lies and when it was copied.
    """
    streams = {name: spec.to_json() for name, spec in source.streams.items()}
    files = [] if is_url(path) else list(_files(local_path(path)))
    return digest_of(canonical([len(source), streams, _plain(source.card), files]))


def _plain(card: Mapping) -> dict:
    return {key: value for key, value in card.items() if key not in ("created", "code_version")}


def _files(path: Path) -> Iterator[list]:
    found = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file() and file.name != LOCK_FILE)
    for place, file in enumerate(found):
        is_sampled = min(place, len(found) - 1 - place) < _SAMPLED_FILES // 2
        name = "" if file == path else file.relative_to(path).as_posix()
        yield [name, file.stat().st_size, _sample(file) if is_sampled else ""]


def _sample(file: Path) -> str:
    digest, size = blake2b(digest_size=16), file.stat().st_size
    with file.open("rb") as opened:
        digest.update(opened.read(_END_BYTES))
        for block in range(1, _BLOCKS + 1):
            opened.seek(size * block // (_BLOCKS + 1))
            digest.update(opened.read(_BLOCK_BYTES))
        opened.seek(max(0, size - _END_BYTES))
        digest.update(opened.read(_END_BYTES))
    return digest.hexdigest()
