"""`uwm data view`: one episode in Rerun: cameras beside curves of states, actions and labels, over seconds.

    camera/<name>      PNG frames, exact
    <kind>/<name>      curves, one a dimension, with their names
    about              instruction, success, and what the card says of the action
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from uwm_data import cards
from uwm_data.conversion import open_source
from uwm_data.errors import FormatError
from uwm_data.formats import FORMATS, RawEpisode, Source
from uwm_data.formats.own import StoreSource
from uwm_data.streams import StreamSpec

TIMELINE = "seconds"
_MOST_CURVES = 64


def main_view(
    path: str | Path,
    from_: str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    episode: int = 0,
    save: Path | None = None,
    formats: Mapping[str, str] = FORMATS,
) -> int:
    """Show episode number `episode` in the viewer, or write it to the .rrd file `save` without opening one."""
    rerun = _rerun()
    if save is None and sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise FormatError("there is no screen here to open the viewer on; --save FILE.rrd writes a file, to be opened where there is one")
    name, source = open_source(path, from_, options, formats)
    try:
        raw = source.read(_place(source, episode, path))
    finally:
        source.close()
    recording = rerun.RecordingStream(f"uwm: {Path(path).name} episode {episode}")
    _direct(recording, save, _blueprint(source.streams, raw))
    _log(recording, source, raw, f"{path} ({name}), episode {episode}")
    recording.flush()
    recording.disconnect()
    print(f"episode {episode} of {path}: " + (f"written to {save}; `rerun {save}` opens it" if save else "in the viewer"))
    return 0


def _rerun() -> Any:
    try:
        import rerun
        import rerun.blueprint
    except ImportError as error:
        raise ImportError("viewing needs rerun-sdk: pip install 'uwm[view]'") from error
    return rerun


def _place(source: Source, episode: int, path: str | Path) -> int:
    """Where the source has the episode that is called `episode` in the table of `uwm data show`."""
    known = source.episodes if isinstance(source, StoreSource) else range(len(source))
    if episode not in known:
        raise FormatError(f"{path} has {len(known)} episodes, {known[0]} to {known[-1]}; there is no episode {episode} to look at")
    return known.index(episode)


def _direct(recording: Any, save: Path | None, blueprint: Any) -> None:
    """Where the recording goes: into a file or to a viewer."""
    try:
        if save is None:
            # The viewer's program lies beside Python, and is not found by itself where no environment is activated.
            os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
            recording.spawn(default_blueprint=blueprint)
        else:
            save.parent.mkdir(parents=True, exist_ok=True)
            recording.save(save, default_blueprint=blueprint)
    except RuntimeError as error:
        what = f"{save} cannot be written" if save else "the viewer does not open; --save FILE.rrd writes a file instead"
        raise FormatError(f"{what} ({str(error).splitlines()[0]})") from error


def entity_of(name: str, spec: StreamSpec) -> str:
    """The path of a stream in the recording."""
    return f"{'camera' if spec.kind == 'video' else spec.kind}/{name}"


def _present(streams: Mapping[str, StreamSpec], raw: RawEpisode) -> Iterator[tuple[str, StreamSpec, np.ndarray]]:
    return ((name, spec, raw.arrays[name]) for name, spec in streams.items() if len(raw.arrays[name]))


def _log(recording: Any, source: Source, raw: RawEpisode, title: str) -> None:
    rerun = _rerun()
    about = rerun.TextDocument(_about(source, raw, title), media_type="text/markdown")
    recording.log("about", about, static=True)
    for name, spec, values in _present(source.streams, raw):
        entity = entity_of(name, spec)
        times = [rerun.TimeColumn(TIMELINE, duration=np.arange(len(values)) / spec.rate_hz)]
        if spec.kind == "video":
            pictures = [_png(frame) for frame in values]
            columns = rerun.EncodedImage.columns(blob=pictures, media_type=["image/png"] * len(pictures))
        else:
            flat = values.reshape(len(values), -1)[:, :_MOST_CURVES].astype(np.float64)
            recording.log(entity, rerun.SeriesLines(names=_names(spec, flat.shape[1])), static=True)
            columns = rerun.Scalars.columns(scalars=flat.reshape(-1)).partition([flat.shape[1]] * len(flat))
        recording.send_columns(entity, indexes=times, columns=columns)


def _names(spec: StreamSpec, count: int) -> list[str]:
    return list(spec.names) if len(spec.names) == count else [f"[{place}]" for place in range(count)]


def _png(frame: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame.squeeze(2) if frame.shape[2] == 1 else np.ascontiguousarray(frame[..., :3])).save(buffer, "PNG")
    return buffer.getvalue()


def _about(source: Source, raw: RawEpisode, title: str) -> str:
    card = cards.complete(source.card, source.streams)
    action = card.get("action", {})
    rows = {key: raw.meta.get(key) for key in ("instruction", "task", "success", "seed", "source")}
    rows |= {key: card.get(key) for key in ("env", "robot", "image_orientation")}
    rows |= {f"action {key}": action.get(key) for key in ("mode", "frame", "gripper", "convention")}
    return "\n".join([f"# {title}", "", *(f"- **{key}**: {value}" for key, value in rows.items() if value is not None)])


def _blueprint(streams: Mapping[str, StreamSpec], raw: RawEpisode) -> Any:
    """Cameras above, curves below, words at the side."""
    import rerun.blueprint as layout

    eyes, curves = [], []
    for name, spec, _ in _present(streams, raw):
        kind = layout.Spatial2DView if spec.kind == "video" else layout.TimeSeriesView
        (eyes if spec.kind == "video" else curves).append(kind(origin=entity_of(name, spec), name=name))
    rows = [layout.Horizontal(*eyes)] if eyes else []
    rows += [layout.Grid(*curves, grid_columns=2)] if curves else []
    words = layout.TextDocumentView(origin="about", name="about")
    return layout.Blueprint(layout.Horizontal(layout.Vertical(*rows), words, column_shares=[4, 1]), collapse_panels=True)
