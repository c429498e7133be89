"""Images that a dataset stores otherwise than upright."""

from __future__ import annotations

import numpy as np

from uwm_data.errors import FormatError

STORED = ("upright", "upside down", "rotated")  # as they are; rows reversed; turned by half a turn


def checked_stored(images_stored: str) -> str:
    """The option as readers take it, "" for not told; FormatError lists the known words."""
    if images_stored and images_stored not in STORED:
        raise FormatError(f"images_stored={images_stored!r} is unknown; it is {', '.join(STORED)}")
    return images_stored


def upright(frames: np.ndarray, images_stored: str) -> np.ndarray:
    """Frames (n, H, W, C) the right way up."""
    if images_stored == "upside down":
        return frames[:, ::-1]
    return frames[:, ::-1, ::-1] if images_stored == "rotated" else frames
