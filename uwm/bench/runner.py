"""`uwm bench NAME`: the one door to every measured claim.

A bench is a module in this folder with `run(quick, out) -> Result`. Here its table is printed, its JSON written, and the
exit code chosen: 0 only when every gate holds.

A bench of several parts (worlds, most often) names them in `PARTS` and takes `run(quick, out, only)`: some of them are measured, and judged
together with what the record at `out` holds of the others (`beside`). So a day of measuring may be several, on several machines.
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
from uwm_data.durable import replace_file

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


def main(name: str, quick: bool = False, out: Path | None = None, only: Sequence[str] = ()) -> int:
    """Runs one bench; prints its table and a one-line verdict, writes `out`; ConfigError lists what exists."""
    if name not in BENCHES:
        raise ConfigError(unknown(name, BENCHES, "benchmark"))
    module, out = importlib.import_module(BENCHES[name]), None if out is None else Path(out)
    parts = () if quick else tuple(getattr(module, "PARTS", ()))
    _refuse(name, only, parts, quick)
    recorded(out if only else None, name)  # refused now, not after hours
    began = time.perf_counter()
    result = module.run(quick, out, tuple(only)) if only else module.run(quick, out)
    told = told_of(name, quick, only, time.perf_counter() - began)
    content = as_json(name, result, quick, told)
    if parts:
        content["parts"] = _by_part(recorded(out if only else None, name), told, only or parts)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())  # it may hold what took a day to measure
    print(table(content))
    held = sum(gate.verdict == HOLDS for gate in result.gates)
    print(f"{name}: {result.verdict} ({held} of {len(result.gates)} gates hold)")
    return 0 if result.verdict == HOLDS else 1


def _refuse(name: str, only: Sequence[str], parts: Sequence[str], quick: bool) -> None:
    """ConfigError for parts that a bench, or a quick run of it, does not have."""
    if only and not parts:
        why = "a quick run is one toy world" if quick else "it is measured as a whole"
        raise ConfigError(f"--only {','.join(only)} for benchmark {name}: {why}")
    for part in only:
        if part not in parts:
            raise ConfigError(f"benchmark {name}: {unknown(part, parts, 'part')}")


def recorded(out: Path | None, name: str) -> dict:
    """The record at `out`, {} when there is none; ConfigError for that of another bench, or of a quick run."""
    if out is None or not out.is_file():
        return {}
    record = json.loads(out.read_text())
    if record.get("bench") != name or record.get("quick"):
        raise ConfigError(f"{out} is no full record of benchmark {name}: its figures cannot stand beside those of a part")
    return record


def beside(measured: dict, only: Sequence[str], out: Path | None, parts: Sequence[str]) -> dict:
    """What was measured now; of `only` some parts, {part: figures} in their order with what the record at `out` holds of the others."""
    if not only:
        return measured
    found = (json.loads(out.read_text())["figures"] if out is not None and out.is_file() else {}) | measured
    return {part: found[part] for part in parts if part in found}


def told_of(name: str, quick: bool, only: Sequence[str], seconds: float) -> dict:
    """How figures came about: the command, how long it took, versions and machine."""
    command = f"uwm bench {name}" + (" --quick" if quick else "") + (f" --only {','.join(only)}" if only else "")
    return {"seconds": round(seconds, 1), "versions": provenance.versions(), "machine": provenance.machine(), "command": command}


def _by_part(earlier: dict, told: dict, parts: Sequence[str]) -> dict:
    """How the figures of each part came about; where a record of several does not tell, it was one run."""
    whole = {key: earlier[key] for key in told} if earlier else {}
    return earlier.get("parts", dict.fromkeys(earlier.get("figures", ()), whole)) | dict.fromkeys(parts, told)


def as_json(name: str, result: Result, quick: bool, told: dict) -> dict:
    """The record of a run, with how it came about; a gate carries its metric, value, baseline, interval and verdict."""
    content = {
        "bench": name,
        "claim": result.claim,
        "quick": quick,
        "verdict": result.verdict,
        "gates": [gate.to_json() for gate in result.gates],
        "seeds": list(result.seeds),
        "figures": result.figures,
    }
    return finite(content | told)


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
