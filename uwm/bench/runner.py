"""`uwm bench NAME`: the one door to every measured claim.

A bench is a module in this folder with `run(quick, out) -> Result`. Here its table is printed, its JSON written, and the
exit code chosen: 0 only when every gate holds.
"""

import importlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from uwm.bench import provenance
from uwm.bench.gates import HOLDS, Gate, overall
from uwm.bench.page import finite
from uwm.core.config import ConfigError, unknown

BENCHES = {
    "ar-diffusion": "uwm.bench.ar_diffusion_bench",
    "best-of": "uwm.bench.best_of_bench",
    "cameras": "uwm.bench.cameras_bench",
    "control": "uwm.bench.control_bench",
    "cotrain": "uwm.bench.cotrain_bench",
    "delay": "uwm.bench.delay_bench",
    "dynamics": "uwm.bench.dynamics_bench",
    "finetune": "uwm.bench.finetune_bench",
    "fvdm": "uwm.bench.fvdm_bench",
    "goal-image": "uwm.bench.goal_image_bench",
    "language": "uwm.bench.language_bench",
    "loader": "uwm.bench.loader_bench",
    "marginal": "uwm.bench.marginal_bench",
    "modes": "uwm.bench.modes_bench",
    "pusa": "uwm.bench.pusa_bench",
    "radd": "uwm.bench.radd_bench",
    "render": "uwm.bench.render_bench",
    "revision": "uwm.bench.revision_bench",
    "streaming": "uwm.bench.streaming_bench",
    "streaming-video": "uwm.bench.streaming_video_bench",
    "token-drop": "uwm.bench.token_drop_bench",
    "tracker": "uwm.bench.tracker_bench",
    "unidiffuser": "uwm.bench.unidiffuser_bench",
    "unidiffuser-robot": "uwm.bench.unidiffuser_robot_bench",
    "unified": "uwm.bench.unified_bench",
}


@dataclass(frozen=True)
class Result:
    """What a bench found: the claim in a sentence, its gates, the seeds, and all figures behind them."""

    claim: str
    gates: Sequence[Gate]
    seeds: Sequence[int] = ()
    figures: dict = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        return overall(gate.verdict for gate in self.gates)


def main(name: str, quick: bool = False, out: Path | None = None) -> int:
    """Runs one bench; prints its table and a one-line verdict, writes `out`; ConfigError lists what exists."""
    if name not in BENCHES:
        raise ConfigError(unknown(name, BENCHES, "benchmark"))
    module = importlib.import_module(BENCHES[name])
    began = time.perf_counter()
    result = module.run(quick, None if out is None else Path(out))
    content = as_json(name, result, quick, time.perf_counter() - began)
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    print(table(content))
    held = sum(gate.verdict == HOLDS for gate in result.gates)
    print(f"{name}: {result.verdict} ({held} of {len(result.gates)} gates hold)")
    return 0 if result.verdict == HOLDS else 1


def as_json(name: str, result: Result, quick: bool, seconds: float) -> dict:
    """The record of a run; a gate carries its metric, value, baseline, interval and verdict."""
    content = {
        "bench": name,
        "claim": result.claim,
        "quick": quick,
        "verdict": result.verdict,
        "gates": [gate.to_json() for gate in result.gates],
        "seeds": list(result.seeds),
        "figures": result.figures,
        "seconds": round(seconds, 1),
        "versions": provenance.versions(),
        "machine": provenance.machine(),
        "command": f"uwm bench {name}" + (" --quick" if quick else ""),
    }
    return finite(content)


def table(content: dict) -> str:
    """Gates as text, one line each, columns aligned."""
    header = ("metric", "baseline", "value", "95 % interval", "gate", "verdict")
    rows = [header, *[cells(gate) for gate in content["gates"]]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([content["claim"], *lines])


def cells(gate: dict) -> tuple[str, ...]:
    """One gate of a record in words: metric, baseline, value, interval, gate, verdict."""
    value = "-" if gate["value"] is None else f"{gate['value']:.3g}"
    ends = gate["interval"]
    interval = "-" if not ends or None in ends else f"{ends[0]:.3g} to {ends[1]:.3g}"
    return gate["name"], gate["baseline"] or "-", value, interval, gate["gate"], gate["verdict"]
