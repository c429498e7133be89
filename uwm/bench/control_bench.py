"""Claim: the control node acts on time. `uwm control` drives robosuite's Lift at 20 Hz on the wall clock, ten minutes long.

Everything runs as it would on a robot: the world lives in its own thread whether or not it is controlled, the policy plans in
another process, and every tick passes the safety layer and the audit log. Other work on the machine is part of the result:
let it rest meanwhile.
"""

import tempfile
from pathlib import Path

from uwm.bench import base
from uwm.bench.gates import Gate
from uwm.bench.runner import Result
from uwm.control import ControlRun, drive

CLAIM = "A trained policy drives robosuite at 20 Hz for ten minutes on the wall clock: no tick missed, memory flat."
FULL_S, QUICK_S = 600.0, 30.0
JITTER = 0.1  # of a period, at p99.9
GROWTH_MB = 50.0  # once warm; one copied camera frame per tick would be 300


def run(quick: bool, out: Path | None) -> Result:
    """Drives the checkpoint of the demo (or of the base run) and judges the summary of the run."""
    with tempfile.TemporaryDirectory() as folder:
        asked = ControlRun(str(base.lift()), duration_s=QUICK_S if quick else FULL_S, audit=str(Path(folder) / "audit"))
        told = drive(asked)
    return Result(CLAIM, judged(told, enough=not quick), (asked.seed,), told)


def judged(told: dict, enough: bool) -> list[Gate]:
    """What a robot would notice: ticks that came late or not at all, ticks without an action, memory that grows."""
    jitter, period, memory = told["jitter_ms"], told["period_ms"], told["memory_mb"]
    ticks = f"{told['ticks']} ticks of {period:.0f} ms"
    return [
        Gate("ticks missed", told["missed"], "<=", 0, enough, ticks),
        Gate("lateness of a tick at p99.9, share of the period", jitter["p99.9"] / period, "<=", JITTER, enough, ticks),
        Gate("ticks without an action behind the first plan", told["gaps"], "<=", 0, enough, ticks),
        Gate("growth of memory once warm, MB", memory["growth"], "<=", GROWTH_MB, enough, f"{memory['start']:.0f} MB"),
    ]
