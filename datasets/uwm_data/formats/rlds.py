"""RLDS: episodes as TensorFlow Datasets keeps them (DROID, Bridge, Open X-Embodiment), read and written without tensorflow.

Source of the layout: TensorFlow Datasets and RLDS; the files of this room say which part of it each of them does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from uwm_data.errors import FormatError
from uwm_data.formats.rlds_features import FEATURES_FILE
from uwm_data.formats.rlds_folder import INFO_FILE, version_folder
from uwm_data.formats.rlds_reading import RldsSource
from uwm_data.formats.rlds_writing import RldsSink, planned
from uwm_data.formats.ticks import checked_rate
from uwm_data.formats.turning import checked_stored
from uwm_data.streams import StreamSpec

SHARD_BYTES = 256 << 20


def recognise(path: str | Path) -> bool:
    """Is there a folder with features.json, at `path` or up to two levels below, with shards or dataset_info.json beside it?"""
    try:
        folder = version_folder(Path(path))
        return folder is not None and ((folder / INFO_FILE).is_file() or any(folder.glob("*.tfrecord*")))
    except FormatError:
        return True  # several versions: `read` asks for one
    except OSError:
        return False


def read(
    path: str | Path,
    split: str = "all",
    rate_hz: float | None = None,
    last_action: str = "auto",
    action: str | Sequence[str] = (),
    images_stored: str = "",
) -> RldsSource:
    """The dataset in `<name>/<version>/`, in a folder above it, or in any folder with features.json and shards.

    `split`: "all", or names joined by "+" (the metadata keeps the name); `rate_hz`: steps a second, needed where the name of
    the dataset is not known here; `last_action`: real, padding or auto (see rlds_reading); `action`: features that make up
    the action, in order, where the dataset keeps a dictionary; `images_stored`: which way, where that is not known: upright,
    "upside down" (rows reversed) or rotated (by half a turn); they come out upright. What this package wrote tells all of
    it itself.
    """
    folder = version_folder(Path(path)) if Path(path).is_dir() else None
    if folder is None:
        raise FormatError(f"{path} is no RLDS dataset: there is no {FEATURES_FILE} in it, nor up to two levels below")
    if last_action not in ("auto", "real", "padding"):
        raise FormatError(f"last_action={last_action!r} is unknown; it is auto, real or padding")
    parts = tuple(action.split(",")) if isinstance(action, str) and action else tuple(action)
    return RldsSource(folder, split, checked_rate(rate_hz), last_action, parts, checked_stored(images_stored))


def write(
    path: str | Path,
    streams: Mapping[str, StreamSpec],
    card: Mapping,
    image: str = "png",
    quality: int = 95,
    shard_bytes: int = SHARD_BYTES,
    name: str = "",
) -> RldsSink:
    """The folder `path`/1.0.0 for TensorFlow Datasets, new or continued: one split, train.

    `image`: png (exact) or jpeg, with `quality`; `shard_bytes`: a new file is begun behind this size; `name` of the dataset:
    the folder's, made a legal one. `tfds.builder_from_directory(path/1.0.0)` opens it and, if `path` ends with that name,
    `tfds.load(name, data_dir=path.parent)`.
    """
    path = Path(path)
    if image not in ("png", "jpeg"):
        raise FormatError(f"image={image!r} is unknown; it is png or jpeg")
    if not 1 <= int(quality) <= 100 or int(shard_bytes) < 1:
        raise FormatError(f"quality={quality} is from 1 to 100, shard_bytes={shard_bytes} at least 1")
    if path.exists() and not path.is_dir():
        raise FormatError(f"{path} is a file; an RLDS dataset is a folder")
    name = re.sub(r"[^a-z0-9_]+", "_", (name or path.stem).lower()).strip("_") or "episodes"
    name = name if name[0].isalpha() else f"d_{name}"
    plan, own, left_out = planned(streams, card, name, image, int(quality))
    return RldsSink(path, plan, own, left_out, int(shard_bytes))
