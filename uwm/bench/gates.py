"""Gates: a measured value against a limit, with three possible verdicts.

`holds` and `does not hold` are judgements; `not judged` says that the evidence is too thin for one. A gate that was not
judged never counts as passed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

HOLDS, FAILS, NOT_JUDGED = "holds", "does not hold", "not judged"
SENSES = {"<": float.__lt__, "<=": float.__le__, ">": float.__gt__, ">=": float.__ge__}


@dataclass(frozen=True)
class Gate:
    """`value` of a metric must be `sense` ("<", "<=", ">", ">=") `limit`; `enough` says that the evidence suffices.

    `baseline` says in words what the value is compared with; `interval` is its 95 % interval where one is known.
    """

    name: str
    value: float
    sense: str
    limit: float
    enough: bool = True
    baseline: str = ""
    interval: tuple[float, float] | None = None

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
        return HOLDS if SENSES[self.sense](float(self.value), float(self.limit)) else FAILS

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


def overall(gates: Sequence[Gate]) -> str:
    """One verdict for all: any failure fails, anything not judged leaves the whole not judged, and so do no gates."""
    verdicts = {gate.verdict for gate in gates}
    if FAILS in verdicts:
        return FAILS
    return HOLDS if verdicts == {HOLDS} else NOT_JUDGED
