"""Pictures for a page without external resources: PNG and MP4 as data URIs, charts as inline SVG."""

import base64
import html
import io
import math
import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

SIDE = 256  # video pixels a side at least: at 64 the encoder's half-size colour planes would smear


def png(frame: np.ndarray) -> str:
    """A uint8 frame (H, W, 3) as a PNG data URI."""
    return uri("image/png", png_bytes(frame))


def png_bytes(frame: np.ndarray) -> bytes:
    """A uint8 frame (H, W, 3) as the content of a PNG file (RFC 2083: signature, IHDR, IDAT, IEND)."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
        raise ValueError(f"a picture is uint8 (H, W, 3), got {frame.dtype} {frame.shape}")
    height, width, _ = frame.shape
    # Filter type 0 in front of every line.
    lines = np.concatenate([np.zeros((height, 1), np.uint8), frame.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)


def sheet(rows: Sequence[Sequence[np.ndarray]], scale: int = 2, gap: int = 4) -> np.ndarray:
    """Rows of equally many uint8 frames of one size (H, W, 3) as one picture on white, enlarged without smoothing."""
    padded = [[np.pad(frame, ((0, gap), (0, gap), (0, 0)), constant_values=255) for frame in row] for row in rows]
    whole = np.concatenate([np.concatenate(row, axis=1) for row in padded])[:-gap, :-gap]
    return whole.repeat(scale, axis=0).repeat(scale, axis=1)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def uri(kind: str, content: bytes) -> str:
    """Content as a data URI of a media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def mp4(frames: Sequence[np.ndarray], rate_hz: float) -> str:
    """uint8 frames (H, W, 3) as an H.264 data URI."""
    return uri("video/mp4", mp4_bytes(frames, rate_hz))


def mp4_bytes(frames: Sequence[np.ndarray], rate_hz: float) -> bytes:
    """uint8 frames (H, W, 3) of even height and width as the content of an H.264 file; small ones are enlarged without smoothing."""
    try:
        import av
    except ImportError as error:
        raise ImportError("rollout videos need PyAV, which is not installed: pip install 'uwm[viz]'") from error
    if not len(frames):
        raise ValueError("a video needs at least one frame")
    scale = max(1, SIDE // max(frames[0].shape[:2]))
    height, width = (scale * size for size in frames[0].shape[:2])
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=round(rate_hz), options={"crf": "23", "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            large = np.ascontiguousarray(frame.repeat(scale, axis=0).repeat(scale, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(large, format="rgb24")))
        container.mux(stream.encode())
    return target.getvalue()


# ------------------------------------------------------------------------------------------------------------------ charts

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # name -> (x, y)


def curve(series: Series, x_label: str) -> str:
    """Lines over a logarithmic y axis as SVG; values that are not positive are left out."""
    points = {name: [(x, y) for x, y in zip(*line, strict=True) if y > 0 and math.isfinite(y)] for name, line in series.items()}
    points = {name: line for name, line in points.items() if line}
    if not points:
        return "<p>nothing was logged</p>"
    xs, ys = ([p[axis] for line in points.values() for p in line] for axis in (0, 1))
    x0, x1, y0, y1 = min(xs), max(xs), math.log10(min(ys)), math.log10(max(ys))
    y0, y1 = y0 - 0.05 * (y1 - y0) - 1e-3, y1 + 0.05 * (y1 - y0) + 1e-3
    to_x = lambda x: 52 + 560 * (x - x0) / max(x1 - x0, 1e-9)  # noqa: E731
    to_y = lambda y: 12 + 196 * (y1 - math.log10(y)) / (y1 - y0)  # noqa: E731
    parts = [f'<line class="grid" x1="52" x2="612" y1="{to_y(y):.1f}" y2="{to_y(y):.1f}"/><text x="46" y="{to_y(y) + 4:.1f}" '
             f'class="end">{y:g}</text>' for y in _log_ticks(y0, y1)]  # fmt: skip
    parts += [f'<text x="{to_x(x):.1f}" y="226" class="mid">{x:g}</text>' for x in _ticks(x0, x1)]
    parts.append(f'<text x="612" y="242" class="end">{html.escape(x_label)}</text>')
    for index, (name, line) in enumerate(points.items()):
        path = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in line)
        label = html.escape(f"{name} {line[-1][1]:.3g}")
        parts.append(f'<polyline class="line s{index % 6}" points="{path}"/>')
        parts.append(f'<line class="line s{index % 6}" x1="628" x2="648" y1="{20 + 22 * index}" y2="{20 + 22 * index}"/>'
                     f'<text x="654" y="{24 + 22 * index}">{label}</text>')  # fmt: skip
    return f'<svg viewBox="0 0 800 248" role="img">{"".join(parts)}</svg>'


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 of every decade between two exponents; only the decades when those would crowd."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    steps = (1, 2, 5) if high - low < 3 else (1,)
    return [step * 10.0**decade for decade in decades for step in steps if low <= math.log10(step * 10.0**decade) <= high]


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two."""
    rough = max((high - low) / 5, 1e-9)
    size = 10 ** math.floor(math.log10(rough))
    step = min((size * factor for factor in (1, 2, 5, 10)), key=lambda step: abs(step - rough))
    return [round(step * index, 10) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def rates(rows: Sequence[tuple[str, float, tuple[float, float]]], gate: float) -> str:
    """Success rates as bars from 0 to 1 with their intervals and a line at the gate, as SVG."""
    to_x = lambda rate: 110 + 560 * rate  # noqa: E731
    parts = []
    for index, (name, rate, (low, high)) in enumerate(rows):
        y = 44 * index + 10
        ends = "".join(f"M{to_x(end):.1f} {y + 7}v12" for end in (low, high))
        parts.append(f'<text x="100" y="{y + 18}" class="end strong">{html.escape(name)}</text>'
                     f'<rect class="track" x="110" y="{y}" width="560" height="26" rx="4"/>'
                     f'<rect class="bar b{index % 2}" x="110" y="{y}" width="{560 * rate:.1f}" height="26" rx="4"/>'
                     f'<path class="whisker" d="M{to_x(low):.1f} {y + 13}H{to_x(high):.1f}{ends}"/>'
                     f'<text x="682" y="{y + 18}" class="strong">{100 * rate:.0f} %</text>')  # fmt: skip
    foot, at = 44 * len(rows) + 4, f"{to_x(gate):.1f}"
    parts.append(f'<path class="gate" d="M{at} 4V{foot}"/><text x="{at}" y="{foot + 16}" class="mid">gate {100 * gate:.0f} %</text>')
    parts += [f'<text x="{to_x(x):.1f}" y="{foot + 16}" class="mid">{100 * x:.0f}</text>' for x in (0, 0.25, 0.5, 0.75)]
    return f'<svg viewBox="0 0 800 {foot + 30}" role="img">{"".join(parts)}</svg>'


def ways(lines: Mapping[str, np.ndarray]) -> str:
    """Ways (n, 2) in a plane as SVG, x to the right and y up in one scale; a dot where each begins."""
    points = np.concatenate(list(lines.values()))
    low, span = points.min(axis=0), max(float(np.ptp(points, axis=0).max()), 1e-9)
    parts = []
    for index, (name, line) in enumerate(lines.items()):
        placed = [f"{10 + 130 * x:.1f},{140 - 130 * y:.1f}" for x, y in (line - low) / span]
        begin_x, begin_y = placed[0].split(",")
        parts.append(f'<polyline class="line s{index % 6}" points="{" ".join(placed)}"/>'
                     f'<circle class="line s{index % 6}" cx="{begin_x}" cy="{begin_y}" r="2"/>'
                     f'<text x="154" y="{20 + 18 * index}">{html.escape(name)}</text>'
                     f'<line class="line s{index % 6}" x1="154" x2="174" y1="{26 + 18 * index}" y2="{26 + 18 * index}"/>')  # fmt: skip
    return f'<svg viewBox="0 0 230 150" role="img">{"".join(parts)}</svg>'
