"""What a crash or a lost file left behind: bytes that no journal line speaks for, and bytes that one misses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from uwm_data import durable
from uwm_data.errors import StoreError

if TYPE_CHECKING:
    from uwm_data.store import EpisodeStore


def unfinished_files(store: EpisodeStore) -> list[tuple[Path, int]]:
    """(file, committed size) of every file that is longer than what is committed; size 0 means none of it is."""
    journal = store.journal
    found = [(path, 0) for path in sorted(store.path.rglob("*" + durable.PARTIAL_SUFFIX)) if path.is_file()]
    for name, shards in store.shards.items():
        committed = {shards.path(shard): size for shard, size in journal.sizes[name].items()}
        for path in sorted(shards.folder.glob("c.*")):
            if not path.name.endswith(durable.PARTIAL_SUFFIX) and path.stat().st_size > committed.get(path, 0):
                found.append((path, committed.get(path, 0)))
    return found


def missing_shards(store: EpisodeStore) -> dict[int, str]:
    """Usable episodes that need a shard which is gone or shorter than committed, with the reason."""
    bad = {}
    if not getattr(store.path, "is_listed", True):
        return bad  # a web server lists nothing: what is missing shows when it is read
    for name, shards in store.shards.items():
        short = {
            shard: f"{shards.path(shard).relative_to(store.path)} {reason}"
            for shard, size in store.journal.sizes[name].items()
            if (reason := _shortfall(shards.path(shard), size))
        }
        for index in store.episodes if short else []:
            span = store.journal.span(index, name)
            for shard in range(shards.shard_of(span.start), shards.shard_of(span.stop - 1) + 1 if len(span) else 0):
                if shard in short:
                    bad.setdefault(index, short[shard])
    return bad


def _shortfall(path: Path, size: int) -> str:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        return "is missing"
    return f"has {found} of {size} committed bytes" if found < size else ""


def refuse_missing_shards(store: EpisodeStore) -> None:
    bad = missing_shards(store)
    if bad:
        numbers = ", ".join(map(str, list(bad)[:8])) + (" ..." if len(bad) > 8 else "")
        raise StoreError(
            f"{store.path} is damaged: {next(iter(bad.values()))}; {len(bad)} of {len(store)} episodes need it ({numbers}). "
            f"Copy the file back, or run `uwm data check {store.path} --repair` to go on without these episodes"
        )
