"""The demo's page and its figures: one HTML file with everything inside, and the same numbers as JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from uwm.bench import provenance
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
) -> None:
    """Writes report.html and report.json into `out_dir`.

    `figures`: under `streaming` and `chunked` what `evaluate.summary` gives and `latency_ms` {p50, p95, p99}; the modes'
    figures of `bench.modes.measure`; `rollouts`, `seconds`, `gates` (see `bench.gates`), the checkpoint's `card` and the
    run's `settings`. `examples` as `measure` gives them, `videos` uint8 frames by name, `curves` lines of the log.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    figures = {**figures, "gates": [_plain_gate(gate) for gate in figures["gates"]]}
    (out_dir / "report.json").write_text(json.dumps(finite(summary(figures)), indent=1, allow_nan=False) + "\n")
    (out_dir / "report.html").write_text(page(figures, examples, videos, plan_pictures, curves), encoding="utf-8")


def summary(figures: dict) -> dict:
    """What goes into report.json."""
    wanted = (*POLICIES, *MODES, "rollouts", "seconds", "gates", "settings")
    kept = {name: figures[name] for name in wanted if name in figures}
    return {**kept, "versions": versions(figures), "machine": provenance.machine(), "checkpoint": checkpoint(figures)}


def _plain_gate(gate: object) -> dict:
    return gate.to_json() if isinstance(gate, Gate) else dict(gate)
