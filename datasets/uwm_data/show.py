"""`uwm data show`: what is in a dataset of any known format, in words, numbers and one picture."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uwm_data import cards, sheet
from uwm_data.conversion import open_source
from uwm_data.errors import StoreError
from uwm_data.formats import FORMATS
from uwm_data.look import Look, look

_WIDTH = 120
_TABLE_ROWS, _DIMENSIONS = 24, 24  # of a table that is not asked for whole
_NUMBERS = ("mean", "std", "min", "q01", "q50", "q99", "max")
_MARKS = {"constant": "constant", "tiny": "tiny: mostly rounding", "heavy_tailed": "heavy-tailed"}
# Said in other places of the report.
_SAID = {"cameras", "image_orientation", "rate_hz", "rates_hz", "units", "action", "policy", "checksum", "proprio", "state"}


def main_show(
    path: str | Path,
    from_: str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    sheet_file: Path | None = None,
    everything: bool = False,
    as_json: bool = False,
    formats: Mapping[str, str] = FORMATS,
) -> int:
    """Print what is known of a dataset and draw its contact sheet; 1 when an episode could not be read.

    `sheet_file`: where the PNG goes (default: the dataset's name in the current folder). `everything` reads every frame and
    prints every line. `as_json` prints one JSON object instead of words.
    """
    name, source = open_source(path, from_, options, formats)
    try:
        found = look(source, everything)
    finally:
        source.close()
    drawn = _draw(found, str(path), name, sheet_file)
    if as_json:
        print(json.dumps(as_data(found, str(path), name, drawn), indent=1))
    else:
        print("\n".join(report(found, str(path), name, drawn, everything)))
    for index, reason in found.unreadable.items():
        print(f"problem: episode {index}: {reason}", file=sys.stderr)
    return 1 if found.unreadable else 0


def as_data(found: Look, path: str, name: str, drawn: Path | None) -> dict:
    """All of it, JSON-able."""
    return {
        "path": path,
        "format": name,
        "episodes": found.episodes,
        "card": found.card,
        "not_told": cards.missing(found.card),
        "left_out": found.left_out,
        "streams": {stream: spec.to_json() for stream, spec in found.streams.items()},
        "statistics": found.statistics,
        "statistics_episodes": {"numbers": len(found.rows), "video": found.video_episodes},
        "table": found.rows,
        "unreadable": {str(index): reason for index, reason in found.unreadable.items()},
        "sheet": None if drawn is None else str(drawn),
    }


def report(found: Look, path: str, name: str, drawn: Path | None, everything: bool) -> Iterator[str]:
    """The report, line by line."""
    yield from (_headline(found, path, name), "")
    yield from ("card", *_card(found), "")
    yield from ("streams", *_streams(found), "")
    yield from (_statistics_title(found), *_statistics(found, everything), "")
    yield from ("episodes", *_episodes(found, everything), "")
    yield f"contact sheet: {drawn}" if drawn else "no contact sheet: there is no camera"


def _headline(found: Look, path: str, name: str) -> str:
    ticks, seconds = (sum(row[key] for row in found.rows) for key in ("ticks", "seconds"))
    some = "" if len(found.rows) == found.episodes else f" in the {len(found.rows)} that were looked at (--all for all)"
    judged = [row["success"] for row in found.rows if row["success"] is not None]
    success = f", success {sum(map(bool, judged))} of {len(judged)}" if judged else ""
    return f"{path} ({name}): {found.episodes} episodes, {ticks} ticks, {_duration(seconds)}{some}{success}"


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


# ----------------------------------------------------------------------------------------------------------------------- card


def _card(found: Look) -> Iterator[str]:
    card = found.card
    eyes = [f"{name} {spec.shape[1]} x {spec.shape[0]}" for name, spec in found.streams.items() if spec.kind == "video"]
    yield from _entry("cameras", f"{', '.join(eyes)}; images {card.get('image_orientation', cards.UNKNOWN)}" if eyes else "none")
    yield from _entry("rate", f"{found.rate_hz:g} ticks per second")
    yield from _action(card.get("action"))
    policy = card.get("policy")
    if isinstance(policy, Mapping):
        seen = [*policy.get("cameras", []), *policy.get("proprio", [])]
        yield from _entry("policy", f"sees {', '.join(seen) or 'nothing'}; sends {policy.get('action') or 'nothing'}")
    for key, value in card.items():
        if key not in _SAID:
            yield from _entry(key, _plain(value))
    if "checksum" in card:
        yield from _entry("checksum", card["checksum"])
    unknown = cards.missing(card)
    if unknown:
        yield from _entry("not told", ", ".join(unknown))
    for line in found.left_out:
        yield from _entry("not shown", line)


def _action(action: Any) -> Iterator[str]:
    if not isinstance(action, Mapping):
        return
    frame, gripper = action.get("frame", cards.UNKNOWN), action.get("gripper", cards.UNKNOWN)
    yield from _entry("action", f"mode: {action.get('mode', cards.UNKNOWN)}, frame: {frame}, gripper: {gripper}")
    yield from _entry("", action.get("convention") or cards.UNKNOWN)
    for key, value in action.items():
        if key not in cards.ACTION_KEYS:
            yield from _entry("", f"{key}: {_plain(value)}")


def _entry(key: str, text: str) -> list[str]:
    lines = textwrap.wrap(str(text), _WIDTH - 22, break_on_hyphens=False) or [""]
    return [f"  {key if not place else '':<20}{line}" for place, line in enumerate(lines)]


def _plain(value: Any) -> str:
    """A value of the card without the brackets of JSON; a very long one is cut."""
    if isinstance(value, Mapping):
        text = ", ".join(f"{key}: {_plain(inner)}" for key, inner in value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        text = " ".join(_plain(inner) for inner in value)
    else:
        text = str(value)
    return text if len(text) <= 400 else f"{text[:400]} ... ({len(text)} characters; --json for all)"


# ------------------------------------------------------------------------------------------------------ streams and statistics


def _streams(found: Look) -> list[str]:
    rows = [["name", "kind", "frame", "type", "rate", ""]]
    for name, spec in found.streams.items():
        notes = ("" if spec.closing or spec.kind == "action" else "ends before the last action", "some episodes lack it" * spec.optional)
        rows.append([name, spec.kind, _size(spec.shape), spec.dtype, f"{spec.rate_hz:g} Hz", ", ".join(filter(None, notes))])
    return _table(rows)


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "1"


def _statistics_title(found: Look) -> str:
    some = found.video_episodes < len(found.rows) and any(spec.kind == "video" for spec in found.streams.values())
    video = f", of video over {found.video_episodes}" if some else ""
    return f"statistics over {len(found.rows)} of {found.episodes} episodes{video}{' (--all for all)' if some else ''}"


def _statistics(found: Look, everything: bool) -> list[str]:
    rows = [["", *_NUMBERS, ""]]
    for name, numbers in found.statistics.items():
        rows.append([f"{name} ({numbers['count']} frames)"])
        columns = {key: np.reshape(numbers[key], -1) for key in (*_NUMBERS, *_MARKS)}
        names = _dimension_names(found, name, len(columns["mean"]))
        shown = len(names) if everything else min(len(names), _DIMENSIONS)
        for place in range(shown):
            marks = ", ".join(text for key, text in _MARKS.items() if columns[key][place])
            rows.append([f"  {names[place]}", *(_number(columns[key][place]) for key in _NUMBERS), marks])
        if shown < len(names):
            rows.append([f"  ... {len(names) - shown} more dimensions (--all)"])
    return _table(rows, right=range(1, len(_NUMBERS) + 1))


def _dimension_names(found: Look, stream: str, count: int) -> list[str]:
    spec = found.streams[stream]
    if spec.kind == "video":
        return ["red", "green", "blue"] if count == 3 else [f"channel {place}" for place in range(count)]
    names = list(spec.names) if len(spec.names) == count else [f"[{place}]" for place in range(count)]
    units = list(spec.units) if len(spec.units) == count else [""] * count
    return [f"{_cut(name, 28)}{f' ({_cut(unit, 20)})' if unit else ''}" for name, unit in zip(names, units, strict=True)]


def _number(value: float) -> str:
    return f"{value:.4g}"


# ------------------------------------------------------------------------------------------------------------------- episodes


def _episodes(found: Look, everything: bool) -> list[str]:
    keys = [key for key in ("task", "instruction", "success", "source") if any(row[key] is not None for row in found.rows)]
    rows = [["index", "ticks", "seconds", *keys]]
    many = len(found.rows) > _TABLE_ROWS and not everything
    head, tail = (found.rows[: _TABLE_ROWS - 4], found.rows[-4:]) if many else (found.rows, [])
    rows += [_episode(row, keys) for row in head]
    if many:
        rows.append([f"... {len(found.rows) - _TABLE_ROWS} more (--all)"])
    rows += [_episode(row, keys) for row in tail]
    return _table(rows, right=range(3))


def _episode(row: dict, keys: Iterable[str]) -> list[str]:
    told = [_cut("" if row[key] is None else {True: "yes", False: "no"}.get(row[key], row[key]), 40) for key in keys]
    return [str(row["index"]), str(row["ticks"]), f"{row['seconds']:.1f}", *told]


def _cut(text: Any, length: int) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= length else text[: length - 1] + "…"


def _table(rows: list[list[str]], right: Iterable[int] = ()) -> list[str]:
    """Columns as wide as their longest cell; a row of one cell is a heading and stretches none."""
    whole = [row for row in rows if len(row) > 1]
    widths = [max(len(row[column]) for row in whole) for column in range(len(rows[0]))]
    align = [">" if column in set(right) else "<" for column in range(len(widths))]
    aligned = [
        row if len(row) == 1 else [f"{cell:{way}{width}}" for cell, way, width in zip(row, align, widths, strict=True)] for row in rows
    ]
    return [("  " + "  ".join(row)).rstrip() for row in aligned]


# ---------------------------------------------------------------------------------------------------------------------- sheet


def _draw(found: Look, path: str, name: str, file: Path | None) -> Path | None:
    if not found.scenes or not any(spec.kind == "video" for spec in found.streams.values()):
        if file is not None:
            raise StoreError(f"{path} has no camera, so there is nothing to draw on {file}; leave --sheet out")
        return None
    file = Path(f"{Path(path.rstrip('/')).stem or 'dataset'}_sheet.png") if file is None else Path(file)
    about = [name, found.card.get("env"), found.card.get("robot"), f"images {found.card.get('image_orientation', cards.UNKNOWN)}"]
    told = ", ".join(str(part) for part in about if part and part != cards.UNKNOWN)
    episodes = f"{len(found.scenes)} of {found.episodes} episodes"
    sheet.draw(found.scenes, found.streams, path, f"{episodes}; {told}", file)
    return file.resolve()
