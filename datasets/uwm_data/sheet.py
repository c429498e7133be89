"""A contact sheet: some episodes of a dataset as one picture, to see at a glance what is in it and which way up it is.

              | front                     | wrist                     |
    episode 0 | 0.0 s   2.1 s ...  8.4 s  | 0.0 s   2.1 s ...  8.4 s  |
    push the  | [    ]  [    ]     [    ] | [    ]  [    ]     [    ] |
    block     |                           |                           |
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from uwm_data.look import SCENE_TIMES, Scene
from uwm_data.streams import StreamSpec

_PAPER, _INK, _FAINT, _LINE, _EMPTY = (252, 252, 250), (25, 28, 32), (120, 124, 130), (214, 216, 220), (228, 229, 232)
_GOOD, _BAD = (22, 128, 61), (190, 40, 40)
_MARGIN, _LABEL_WIDTH, _GAP, _CAMERA_GAP, _CAPTION, _HEADER = 20, 190, 4, 18, 16, 74
_WIDEST, _TILE_HEIGHTS = 2200, (48, 144)


def draw(scenes: Sequence[Scene], streams: dict[str, StreamSpec], title: str, subtitle: str, path: Path) -> None:
    """Write the contact sheet of `scenes` to a PNG file, replacing it in one move. ImportError names the extra to install."""
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise ImportError("a contact sheet needs Pillow: pip install 'uwm[data]'") from error

    cameras = {name: spec for name, spec in streams.items() if spec.kind == "video"}
    height = _tile_height(cameras)
    widths = {name: max(1, round(height * spec.shape[1] / spec.shape[0])) for name, spec in cameras.items()}
    row_height = max(height + _CAPTION, 92) + 10
    total = 2 * _MARGIN + _LABEL_WIDTH + sum(SCENE_TIMES * (width + _GAP) + _CAMERA_GAP for width in widths.values())
    picture = Image.new("RGB", (total, 2 * _MARGIN + _HEADER + row_height * len(scenes)), _PAPER)
    pen = ImageDraw.Draw(picture)
    pen.text((_MARGIN, _MARGIN - 4), _fitted(pen, title, 20, total - 2 * _MARGIN), _INK, _font(20))
    pen.text((_MARGIN, _MARGIN + 22), _fitted(pen, subtitle, 13, total - 2 * _MARGIN), _FAINT, _font(13))
    left = _MARGIN + _LABEL_WIDTH
    for name, spec in cameras.items():
        width = SCENE_TIMES * (widths[name] + _GAP) - _GAP
        about = f"{name}   {spec.shape[1]} x {spec.shape[0]} at {spec.rate_hz:g} Hz"
        pen.text((left, _MARGIN + 48), _fitted(pen, about, 14, width), _INK, _font(14))
        for place, scene in enumerate(scenes):
            top = _MARGIN + _HEADER + place * row_height
            _film(picture, pen, (left, top), scene.pictures.get(name, []), (widths[name], height))
        left += width + _GAP + _CAMERA_GAP
    for place, scene in enumerate(scenes):
        top = _MARGIN + _HEADER + place * row_height
        pen.line((_MARGIN, top - 6, total - _MARGIN, top - 6), _LINE)
        _label(pen, (_MARGIN, top), scene.row)
    _save(picture, path)


def _tile_height(cameras: dict[str, StreamSpec]) -> int:
    """As large as the widest sheet allows, within limits."""
    aspects = sum(spec.shape[1] / spec.shape[0] for spec in cameras.values()) * SCENE_TIMES
    room = _WIDEST - 2 * _MARGIN - _LABEL_WIDTH - len(cameras) * (SCENE_TIMES * _GAP + _CAMERA_GAP)
    return int(min(max(room / max(aspects, 1e-6), _TILE_HEIGHTS[0]), _TILE_HEIGHTS[1]))


def _film(picture, pen, corner: tuple[int, int], frames: list[tuple[float, np.ndarray]], size: tuple[int, int]) -> None:
    from PIL import Image

    left, top = corner
    width, height = size
    if not frames:
        pen.rectangle((left, top, left + width, top + height), _EMPTY)
        pen.text((left + 6, top + 6), _fitted(pen, "not recorded", 12, width - 8), _FAINT, _font(12))
    for place, (seconds, frame) in enumerate(frames):
        x = left + place * (width + _GAP)
        # Small images are enlarged by whole pixels, so that one sees what the network sees.
        way = Image.Resampling.NEAREST if frame.shape[0] <= height else Image.Resampling.LANCZOS
        picture.paste(Image.fromarray(_as_rgb(frame)).resize(size, way), (x, top))
        pen.text((x, top + height + 1), f"{seconds:.1f} s", _FAINT, _font(11))


def _as_rgb(frame: np.ndarray) -> np.ndarray:
    """(H, W, C) with any number of channels -> (H, W, 3)."""
    if frame.shape[2] < 3:
        return np.repeat(frame[..., :1], 3, axis=2)
    return np.ascontiguousarray(frame[..., :3])


def _label(pen, corner: tuple[int, int], row: dict) -> None:
    x, y = corner
    pen.text((x, y - 2), f"episode {row['index']}", _INK, _font(15))
    about = f"{row['ticks']} ticks, {row['seconds']:.1f} s"
    pen.text((x, y + 18), about, _FAINT, _font(12))
    if row["success"] is not None:
        told, colour = ("success", _GOOD) if row["success"] else ("failure", _BAD)
        pen.text((x + pen.textlength(about, _font(12)) + 8, y + 18), told, colour, _font(12))
    text = row["instruction"] or row["task"] or ""
    for line, words in enumerate(_wrapped(pen, str(text), 13, _LABEL_WIDTH - 14)[:4]):
        pen.text((x, y + 36 + 15 * line), words, _INK, _font(13))


def _wrapped(pen, text: str, size: int, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer, _font(size)) <= width:
            lines[-1] = longer
        else:
            lines.append(_fitted(pen, word, size, width))
    return [line for line in lines if line]


def _fitted(pen, text: str, size: int, width: int) -> str:
    """The text, or its beginning and an ellipsis if it is wider than `width` pixels."""
    if pen.textlength(text, _font(size)) <= width:
        return text
    while text and pen.textlength(text + "…", _font(size)) > width:
        text = text[:-1]
    return text + "…"


def _font(size: int):
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _save(picture, path: Path) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(partial, "PNG", optimize=True)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
