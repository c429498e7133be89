"""Counts and latencies of a server, as Prometheus text and as numbers for a page.

    uwm_request_seconds_bucket{le="0.05"} 93     how many answers took at most 50 ms
    uwm_errors_total{kind="request"} 2

Source of the format: Prometheus text exposition format 0.0.4.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping

import numpy as np

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
KEPT = 2000  # newest latencies, for percentiles


class Metrics:
    """Everything that is counted, and the newest latencies. Used from one thread."""

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self._buckets = [0] * (len(BOUNDS_S) + 1)
        self._sum_s = 0.0
        self._newest: deque[float] = deque(maxlen=KEPT)

    def add(self, name: str, count: int = 1) -> None:
        """Counts `name` (a word, such as "requests") up."""
        self.counts[name] += count

    def error(self, kind: str) -> None:
        """Counts an error of a kind up."""
        self.errors[kind] += 1

    def latency(self, seconds: float) -> None:
        """Counts one answer that took `seconds` from its arrival on."""
        self._buckets[sum(seconds > bound for bound in BOUNDS_S)] += 1
        self._sum_s += seconds
        self._newest.append(seconds)

    def percentiles_ms(self) -> dict[str, float | None]:
        """p50, p95 and p99 of the newest latencies in milliseconds; None before the first."""
        ranks = (50, 95, 99)
        values = 1e3 * np.percentile(self._newest, ranks) if self._newest else [None] * len(ranks)
        return {f"p{rank}": None if value is None else round(float(value), 3) for rank, value in zip(ranks, values, strict=True)}

    def calls_per_action(self) -> float | None:
        """Network calls per action that was given; None before the first action."""
        return round(self.counts["calls"] / self.counts["actions"], 4) if self.counts["actions"] else None

    def text(self, gauges: Mapping[str, float]) -> str:
        """All of it in Prometheus' text format, with `gauges` as they are now."""
        lines = [line for name in COUNTED for line in _family(f"uwm_{name}_total", "counter", COUNTED[name], [("", self.counts[name])])]
        kinds = [(f'{{kind="{kind}"}}', count) for kind, count in sorted(self.errors.items())]
        lines += _family("uwm_errors_total", "counter", "Requests and connections that were refused or failed, by kind.", kinds)
        for name, value in gauges.items():
            lines += _family(f"uwm_{name}", "gauge", GAUGES[name], [("", value)])
        return "\n".join([*lines, *self._histogram()]) + "\n"

    def _histogram(self) -> Iterable[str]:
        name = "uwm_request_seconds"
        edges = [*(f"{bound:g}" for bound in BOUNDS_S), "+Inf"]
        samples = [(f'_bucket{{le="{edge}"}}', int(count)) for edge, count in zip(edges, np.cumsum(self._buckets), strict=True)]
        samples += [("_sum", self._sum_s), ("_count", sum(self._buckets))]
        return _family(name, "histogram", "Seconds from a request's arrival to its answer.", samples)


COUNTED = {
    "requests": "Requests that were answered.",
    "repeats": "Answers given again because they were asked for again.",
    "stale": "Answers that came after their deadline.",
    "throttled": "Requests that had to wait because of the rate limit.",
    "calls": "Network calls.",
    "actions": "Actions given.",
    "sessions_opened": "Sessions opened since the start.",
    "sessions_resumed": "Connections that went on with an earlier session.",
    "sessions_expired": "Sessions dropped because nobody asked for them.",
}
GAUGES = {
    "sessions": "Sessions in memory.",
    "connections": "Open connections.",
    "queue": "Requests that wait for the model.",
    "uptime_seconds": "Seconds since the start.",
    "draining": "1 while the server finishes and takes nobody new.",
}


def _family(name: str, kind: str, does: str, samples: Iterable[tuple[str, float]]) -> list[str]:
    return [f"# HELP {name} {does}", f"# TYPE {name} {kind}", *(f"{name}{suffix} {value}" for suffix, value in samples)]
