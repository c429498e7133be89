"""The demo's page and its figures: one HTML file with everything inside, and the same numbers as JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from uwm.bench import pictures, provenance
from uwm.bench.gates import Gate
from uwm.bench.page import POLICIES, checkpoint, finite, page, versions

MODES = ("inverse", "forward", "video", "joint", "policy")


def write(
    out_dir: Path,
    figures: dict,
    examples: Mapping[str, np.ndarray],
    videos: Mapping[str, Sequence[np.ndarray]],
    plan_pictures: Mapping[str, str],
    curves: list[dict],
    films: Mapping[str, bytes],
) -> None:
    """Writes report.html, report.json and one picture, report.png, into `out_dir`.

    `figures`: under `streaming` and `chunked` what `evaluate.summary` gives and `latency_ms` {p50, p95, p99}; the modes'
    figures of `bench.modes.measure`; `rollouts`, `seconds`, `gates` (see `bench.gates`), the checkpoint's `card` and the
    run's `settings`. `examples` as `measure` gives them, `videos` uint8 frames by name, `curves` lines of the log,
    `films` of the buffer, as the content of MP4 files.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    figures = {**figures, "gates": [_plain_gate(gate) for gate in figures["gates"]]}
    (out_dir / "report.json").write_text(json.dumps(finite(summary(figures)), indent=1, allow_nan=False) + "\n")
    (out_dir / "report.html").write_text(page(figures, examples, videos, plan_pictures, curves, films), encoding="utf-8")
    if len(examples.get("window", ())):
        (out_dir / "report.png").write_bytes(pictures.png_bytes(pictures.sheet(_rows(examples, videos))))


def _rows(examples: Mapping[str, np.ndarray], videos: Mapping[str, Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
    """A rollout in equal steps, then per window and camera: the present, and the future as it was and as modes saw it."""
    cameras = [name.partition("/")[2] for name in examples if name.startswith("present/")]
    kinds = ("true", "forward", "video", "joint")
    rows = [
        [examples[f"present/{camera}"][window], *(frame for kind in kinds for frame in examples[f"{kind}/{camera}"][window])]
        for window in range(min(2, len(examples["window"])))
        for camera in cameras
    ]
    film = next((frames for frames in videos.values() if len(frames) and frames[0].shape == rows[0][0].shape), None)
    if film is None:
        return rows
    return [[film[index] for index in np.linspace(0, len(film) - 1, len(rows[0])).astype(int)], *rows]


def summary(figures: dict) -> dict:
    """What goes into report.json."""
    wanted = (*POLICIES, *MODES, "rollouts", "seconds", "gates", "settings")
    kept = {name: figures[name] for name in wanted if name in figures}
    return {**kept, "versions": versions(figures), "machine": provenance.machine(), "checkpoint": checkpoint(figures)}


def _plain_gate(gate: object) -> dict:
    return gate.to_json() if isinstance(gate, Gate) else dict(gate)
