"""Replay buffers of diffusion_policy (zarr format 2: `data/*` and `meta/episode_ends`), read and written."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

from uwm_data.errors import FormatError
from uwm_data.formats.diffusion_policy_reading import ENDS, ReplayBufferSource
from uwm_data.formats.diffusion_policy_writing import ReplayBufferSink, planned
from uwm_data.formats.ticks import checked_rate
from uwm_data.formats.turning import checked_stored
from uwm_data.streams import StreamSpec

__all__ = ["ReplayBufferSink", "ReplayBufferSource", "read", "recognise", "write"]
CHUNK_BYTES = 2 << 20
_INSIDE = "replay_buffer.zarr"  # where the folder of a real robot keeps its buffer, beside its videos


def recognise(path: str | Path) -> bool:
    """Is there a group of zarr format 2 with meta/episode_ends: a folder, a zip, or replay_buffer.zarr in a folder?"""
    path = Path(path)
    try:
        if path.is_dir():
            return any((folder / ENDS / ".zarray").is_file() for folder in (path, path / _INSIDE))
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as file:
            return any(name.endswith(f"{ENDS}/.zarray") for name in file.namelist())
    except Exception:  # noqa: BLE001 - zipfile raises many kinds on broken files, and none of them is a replay buffer
        return False


def read(
    path: str | Path,
    rate_hz: float | None = None,
    images_stored: str = "",
    float_images: str = "auto",
    video_size: tuple[int, int] | None = None,
) -> ReplayBufferSource:
    """The replay buffer at `path`, a folder or a zip, or a real robot's folder of replay_buffer.zarr and videos/.

    `rate_hz`: rows a second, needed where neither timestamps nor the keys of Push-T tell it; `images_stored`: which
    way, where that is not known: upright, "upside down" (rows reversed) or rotated (by half a turn); they come out upright;
    `float_images`: auto (uint8 video, if they hold whole numbers from 0 to 255) or keep (as a state);
    `video_size` (height, width): all videos are scaled and cropped to it. What this package wrote tells all of it itself.
    """
    path = Path(path)
    if not path.exists():
        raise FormatError(f"{path} does not exist")
    videos = None
    if path.is_dir() and not (path / ENDS).is_dir() and (path / _INSIDE).is_dir():
        videos = path / "videos" if (path / "videos").is_dir() else None
        path = path / _INSIDE
    if video_size is not None and not (len(video_size) == 2 and all(type(side) is int and 0 < side <= 1 << 14 for side in video_size)):
        raise FormatError(f"video_size={video_size!r} is no height and width")
    if float_images not in ("auto", "keep"):
        raise FormatError(f"float_images={float_images!r} is unknown; it is auto or keep")
    return ReplayBufferSource(path, checked_rate(rate_hz), checked_stored(images_stored), float_images, videos, video_size)


def write(path: str | Path, streams: Mapping[str, StreamSpec], card: Mapping, chunk_bytes: int = CHUNK_BYTES) -> ReplayBufferSink:
    """A replay buffer in the folder `path`, new or continued; `chunk_bytes` of a chunk of images before compression."""
    path = Path(path)
    if path.suffix == ".zip" or path.is_file():
        raise FormatError(f"{path}: a replay buffer is written as a folder (it can grow, a zip cannot); zip it afterwards, uncompressed")
    if int(chunk_bytes) < 1:
        raise FormatError(f"chunk_bytes={chunk_bytes} must be at least 1")
    plan, own, left_out = planned(streams, card)
    return ReplayBufferSink(path, plan, own, left_out, int(chunk_bytes))
