"""How a new store comes into being: beside its place, and then whole, by one rename."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from uwm_data import cards, durable, layout
from uwm_data.errors import StoreError
from uwm_data.journal import JOURNAL, canonical
from uwm_data.lock import WriterLock
from uwm_data.streams import StreamSpec


def build_store(path: Path, streams: Mapping[str, StreamSpec], card: Mapping, shard_bytes: int, compression: str) -> WriterLock:
    """Make an empty store at `path` and return its lock; whatever goes wrong, no half store stays behind."""
    partial = path.with_name(f".{path.name}.{os.getpid()}{durable.PARTIAL_SUFFIX}")
    lock = None
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        layout.write_layout(partial, dict(streams), full_card(streams, card), shard_bytes, compression)
        durable.replace_file(partial / JOURNAL, b"")
        lock = WriterLock(partial)  # the lock belongs to the file, so it moves along
        move_into_place(partial, path)
    except BaseException as error:
        if lock:
            lock.release()
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise StoreError(f"cannot create a store at {path}: {error.strerror or error}") from error
        raise
    return lock


def clear_target(path: Path, overwrite: bool) -> WriterLock | None:
    """Prove that a store may be made at `path`; returns the lock of the old store when it may be overwritten."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    try:
        layout.read_layout(path)
    except StoreError as error:
        raise StoreError(f"{path} is not empty and not an episode store, so it is left alone; choose another path ({error})") from error
    if not overwrite:
        raise StoreError(
            f"{path} already holds an episode store: resume it with EpisodeStore.open(path, write=True), "
            "or replace it with create(..., overwrite=True)"
        )
    return WriterLock(path)


def move_into_place(partial: Path, path: Path) -> None:
    """Let a finished store appear at `path` by a rename; an old store there is removed."""
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        os.replace(path, old)
    os.replace(partial, path)
    durable.sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def full_card(streams: Mapping[str, StreamSpec], card: Mapping) -> dict:
    """The given card, completed with everything that a store must tell, code version and time."""
    try:
        version = metadata.version("uwm")
    except metadata.PackageNotFoundError:
        version = "not installed"
    made = {"code_version": version, "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    return json.loads(canonical(cards.complete({**made, **card}, streams)))
