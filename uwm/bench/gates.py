"""Gates: a measured value against a limit, with four possible verdicts.

`holds` and `does not hold` are judgements; `not judged` says that the evidence is too thin for one. A gate that was not
judged never counts as passed. What a paper found with other networks and data is no promise of ours: where it does not show
here, it is `not reproduced at this scale`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

HOLDS, FAILS, NOT_JUDGED, NOT_REPRODUCED = "holds", "does not hold", "not judged", "not reproduced at this scale"
SENSES = {"<": float.__lt__, "<=": float.__le__, ">": float.__gt__, ">=": float.__ge__}


@dataclass(frozen=True)
class Gate:
    """`value` of a metric must be `sense` ("<", "<=", ">", ">=") `limit`; `enough` says that the evidence suffices.

    `baseline` says in words what the value is compared with; `interval` is its 95 % interval where one is known. `paper`: the
    claim is a paper's, about its own scale.
    """

    name: str
    value: float
    sense: str
    limit: float
    enough: bool = True
    baseline: str = ""
    interval: tuple[float, float] | None = None
    paper: bool = False

    def __post_init__(self):
        if self.sense not in SENSES:
            raise ValueError(f"gate {self.name!r}: sense must be one of {list(SENSES)}, got {self.sense!r}")

    @property
    def verdict(self) -> str:
        """A value that is not finite is a failure, not a lack of evidence."""
        if not math.isfinite(self.value):
            return FAILS
        if not self.enough:
            return NOT_JUDGED
        if SENSES[self.sense](float(self.value), float(self.limit)):
            return HOLDS
        return NOT_REPRODUCED if self.paper else FAILS

    @property
    def text(self) -> str:
        """The condition in words."""
        return f"{self.sense} {self.limit:g}"

    def to_json(self) -> dict:
        """Plain values; a number that is not finite becomes None, because JSON has no word for it."""
        value = float(self.value)
        return {
            "name": self.name,
            "value": value if math.isfinite(value) else None,
            "baseline": self.baseline,
            "interval": None if self.interval is None else [float(end) for end in self.interval],
            "gate": self.text,
            "verdict": self.verdict,
        }


def overall(verdicts: Iterable[str]) -> str:
    """One verdict for all: any failure fails, then what was not reproduced; anything not judged, or nothing, is not judged."""
    found = set(verdicts)
    for worst in (FAILS, NOT_REPRODUCED):
        if worst in found:
            return worst
    return HOLDS if found == {HOLDS} else NOT_JUDGED


ROLLOUTS = 50  # fewer closed-loop episodes than this are no evidence for a success rate


def of_demo(figures: dict) -> list[Gate]:
    """What the demo must reach. `figures` as `uwm.bench.report.write` takes them."""
    streaming, chunked = figures["streaming"], figures["chunked"]
    enough = min(streaming["rollouts"], chunked["rollouts"]) >= ROLLOUTS
    fewer = chunked["calls_per_action"] / streaming["calls_per_action"]
    # In whole rollouts: 0.85 - 0.9 is not quite -0.05 in floating point.
    behind = round(streaming["success"] - chunked["success"], 9)
    return [
        Gate("streaming success", streaming["success"], ">=", 0.9, enough, "", tuple(streaming["interval"])),
        Gate("network calls per action, chunked / streaming", fewer, ">=", 4, True, "the chunked policy, same rows"),
        Gate("streaming success - chunked success", behind, ">=", -0.05, enough, "the chunked policy, same seeds"),
        relative("inverse dynamics, relative error", figures["inverse"], "<=", 0.5, "predict the mean action"),
        relative("forward dynamics, relative error", figures["forward"], "<", 1.0, "copy the last frame"),
    ]


def relative(name: str, figures: dict, sense: str, limit: float, baseline: str, enough: bool = True) -> Gate:
    """The gate of a mode's relative error; one without a baseline error (None) cannot hold."""
    value = figures["relative_error"]
    interval = figures.get("interval")
    return Gate(name, math.nan if value is None else value, sense, limit, enough, baseline, tuple(interval) if interval else None)
