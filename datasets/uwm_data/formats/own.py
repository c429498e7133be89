"""Our own episode store as a format among the others: streams, card and metadata go through it unchanged, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from uwm_data import cards, layout
from uwm_data.errors import FormatError
from uwm_data.formats import RawEpisode
from uwm_data.store import SHARD_BYTES, EpisodeStore
from uwm_data.streams import StreamSpec, check_episode

_LARGEST_METADATA = 16 << 20


def recognise(path: str | Path) -> bool:
    """Is an episode store at `path` (of this version or another)?"""
    try:
        with (Path(path) / "zarr.json").open("rb") as file:
            attributes = json.loads(file.read(_LARGEST_METADATA))["attributes"]["uwm_data"]
        return attributes["format"] == layout.FORMAT
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def read(path: str | Path, storage_options: Mapping | None = None) -> StoreSource:
    """The episodes of a store, without those that a repair set aside.

    `path` may be any fsspec URL; `storage_options` go to its file system.
    """
    return StoreSource(EpisodeStore.open(path, storage_options=storage_options))


def write(
    path: str | Path, streams: Mapping[str, StreamSpec], card: Mapping, shard_bytes: int = SHARD_BYTES, compression: str = "zstd"
) -> StoreSink:
    """A new store at `path`, or the one that is there, continued; FormatError if that one holds other streams or another card.

    `compression` of video frames, all lossless: zstd, lz4 or none; `shard_bytes`: of raw frames in a file.
    """
    if not (Path(path) / "zarr.json").exists():
        return StoreSink(EpisodeStore.create(path, streams, card, shard_bytes=shard_bytes, compression=compression))
    store = EpisodeStore.open(path, write=True)
    try:
        _refuse_other(store, streams, card)
    except FormatError:
        store.close()
        raise
    return StoreSink(store)


class StoreSource:
    """A store's usable episodes, in its order. Its card has the checksum of what is read."""

    def __init__(self, store: EpisodeStore):
        self.store = store
        self.episodes = store.episodes
        self.streams = dict(store.streams)
        self.card = store.card
        aside = store.damaged
        self.left_out = [f"episodes {', '.join(map(str, aside))}, which a repair set aside as damaged"] if aside else []

    def __len__(self) -> int:
        return len(self.episodes)

    def read(self, index: int, streams: Iterable[str] | None = None) -> RawEpisode:
        """Episode number `index` among the usable ones, whole or some of its streams."""
        if not 0 <= index < len(self):
            raise FormatError(f"{self.store.path} has usable episodes 0 to {len(self) - 1}, asked for {index}")
        place, names = self.episodes[index], self.streams if streams is None else streams
        return RawEpisode({name: self.store.read(place, name) for name in names}, self.store.meta(place))

    def close(self) -> None:
        """Let go of files."""
        self.store.close()


class StoreSink:
    """A store that is open for writing. It can hold whatever an episode can be, so nothing is left out."""

    left_out: tuple[str, ...] = ()

    def __init__(self, store: EpisodeStore):
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def encoder(self):
        """Proves an episode legal where it was read, so that an error names it; compressing is done while appending."""
        return partial(_proved_legal, dict(self.store.streams))

    def append(self, encoded: RawEpisode) -> None:
        """Add one episode; when this returns, it survives a power cut."""
        self.store.append(encoded.arrays, encoded.meta)

    def close(self) -> None:
        """Renew the summary and let go of the lock."""
        self.store.close()


def _proved_legal(streams: dict[str, StreamSpec], episode: RawEpisode) -> RawEpisode:
    return RawEpisode(check_episode(streams, episode.arrays), episode.meta)


def _refuse_other(store: EpisodeStore, streams: Mapping[str, StreamSpec], card: Mapping) -> None:
    if store.streams != dict(streams):
        odd = [name for name in {**store.streams, **streams} if store.streams.get(name) != streams.get(name)]
        name = odd[0]
        raise FormatError(
            f"{store.path} cannot be continued: its stream {name!r} is {store.streams.get(name)}, the episodes to add have "
            f"{streams.get(name)}; choose another path"
        )
    found = cards.differences(store.card, card)
    if found:
        raise FormatError(f"{store.path} cannot be continued: {cards.sentence(found, 'it', 'the episodes to add')}; choose another path")
