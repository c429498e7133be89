"""The zarr side of a store: the group, one array per stream, and what their metadata must say.

lift.zarr/
  zarr.json                  group; attributes: format, version, streams, card; summary of the last clean close
  episodes.jsonl             the journal: one line per committed episode (the only truth about what is committed)
  writer.lock                held by the one writer
  agentview/zarr.json        array (frames, 64, 64, 3) uint8, codec sharding_indexed
  agentview/c.0.0.0.0 ...    shards, a few MB each
  proprio/... action/...     each with its own rate and its own number of frames
"""

from __future__ import annotations

import json
from pathlib import Path

from uwm_data import durable
from uwm_data.errors import StoreError
from uwm_data.shards import Shards, compression_for, grid_for
from uwm_data.streams import StreamSpec

FORMAT = "uwm-episodes"
VERSION = 1
# We write nothing larger, and a size that is only claimed must not cost memory.
_LARGEST_SHARD, _LARGEST_CHUNK_BYTES = 1 << 20, 1 << 28  # frames; bytes, unless a chunk is a single frame
_INNER = (["bytes", "blosc", "crc32c"], ["bytes", "crc32c"])


def write_layout(folder: Path, streams: dict[str, StreamSpec], card: dict, shard_bytes: int, compression: str) -> None:
    """Create the group and its empty arrays with zarr itself in an empty folder; `compression` is that of video."""
    import zarr

    attributes = {"format": FORMAT, "version": VERSION, "card": card, "streams": {n: s.to_json() for n, s in streams.items()}}
    group = zarr.open_group(folder, mode="w", zarr_format=3, attributes={"uwm_data": attributes})
    for name, spec in streams.items():
        chunk, shard = grid_for(spec, shard_bytes)
        settings = compression_for(spec, compression)
        group.create_array(
            name,
            shape=(0, *spec.shape),
            dtype=spec.dtype,
            chunks=(chunk, *spec.shape),
            shards=(shard, *spec.shape),
            compressors=[*([zarr.codecs.BloscCodec(**settings)] if settings else []), zarr.codecs.Crc32cCodec()],
            fill_value=0,
            chunk_key_encoding={"name": "default", "separator": "."},
            attributes={"rate_hz": spec.rate_hz, "kind": spec.kind, "units": list(spec.units), "names": list(spec.names)},
        )


def read_layout(folder: Path) -> tuple[dict[str, StreamSpec], dict, dict[str, Shards]]:
    """(streams, card, shards by stream) of a store; StoreError says whether it is foreign, too new or damaged."""
    attributes = _read_attributes(folder)
    try:
        streams = {name: StreamSpec(**spec) for name, spec in attributes["streams"].items()}
        card = dict(attributes["card"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{folder / 'zarr.json'} is damaged: bad stream table or card ({error})") from error
    return streams, card, {name: _open_shards(folder / name, spec) for name, spec in streams.items()}


def publish(folder: Path, frames: dict[str, int], summary: dict) -> None:
    """Tell plain zarr readers how long the arrays are, and put the summary beside the card (both for others to read)."""
    for name, count in frames.items():
        _edit_metadata(folder / name / "zarr.json", lambda data, count=count: data["shape"].__setitem__(0, count))
    _edit_metadata(folder / "zarr.json", lambda data: data["attributes"]["uwm_data"].__setitem__("summary", summary))


def read_published(folder: Path, streams: dict[str, StreamSpec]) -> dict[str, int]:
    """Frames per stream as plain zarr readers see them."""
    return {name: _load(folder / name / "zarr.json")["shape"][0] for name in streams}


def _read_attributes(folder: Path) -> dict:
    if not folder.is_dir():
        what = "is a file, not a store folder" if folder.exists() else "does not exist"
        raise StoreError(f"{folder} {what}; make a store with EpisodeStore.create or `uwm collect`")
    path = folder / "zarr.json"
    if not path.exists():
        hint = " It looks like zarr format 2: convert it first." if (folder / ".zgroup").exists() else ""
        raise StoreError(f"{folder} is not an episode store (it has no zarr.json).{hint}")
    attributes = _load(path).get("attributes", {}).get("uwm_data")
    if not isinstance(attributes, dict) or attributes.get("format") != FORMAT:
        raise StoreError(f"{folder} is a zarr store of another program (no {FORMAT!r} in its attributes); convert it first")
    if attributes.get("version") != VERSION:
        raise StoreError(
            f"{folder} has store version {attributes.get('version')}, this program reads version {VERSION}; "
            "use the program version named in its card"
        )
    return attributes


def _open_shards(folder: Path, spec: StreamSpec) -> Shards:
    metadata = _load(folder / "zarr.json")
    try:
        outer = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        (sharding,) = metadata["codecs"]
        inner = sharding["configuration"]["chunk_shape"]
        codecs = sharding["configuration"]["codecs"]
        names = [codec["name"] for codec in codecs]
        codec = codecs[1]["configuration"] if names == _INNER[0] else None
        found = (metadata["data_type"], metadata["shape"][1:], outer[1:], inner[1:])
        frames_per_chunk, frames_per_shard = int(inner[0]), int(outer[0])
        shape = list(spec.shape)
        if found != (spec.dtype, shape, shape, shape) or names not in _INNER:
            raise StoreError(f"{folder / 'zarr.json'} is damaged: it says {found}, {names}; the store's card says {spec.dtype} {shape}")
        is_legal = 0 < frames_per_chunk <= frames_per_shard <= _LARGEST_SHARD and not frames_per_shard % frames_per_chunk
        if not is_legal or frames_per_chunk * spec.frame_bytes > max(_LARGEST_CHUNK_BYTES, spec.frame_bytes):
            raise StoreError(f"{folder / 'zarr.json'} is damaged: shards of {frames_per_shard} frames in chunks of {frames_per_chunk}")
        return Shards(folder, spec, frames_per_chunk, frames_per_shard, codec)
    except StoreError:
        raise
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise StoreError(f"{folder / 'zarr.json'} is damaged: it does not describe sharded frames ({error!r})") from error


def _load(path: Path) -> dict:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise StoreError(f"{path} is missing: the store is damaged; copy the file back from a backup") from error
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: {error}; copy the file back from a backup") from error
    if not isinstance(data, dict):
        raise StoreError(f"{path} is damaged: expected a JSON object")
    return data


def _edit_metadata(path: Path, edit) -> None:
    data = _load(path)
    before = json.dumps(data)
    edit(data)
    if json.dumps(data) != before:
        durable.replace_file(path, json.dumps(data, indent=2).encode())
