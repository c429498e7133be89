"""How smooth the motion is where one plan follows another, against how smooth it is inside plans.

```
plan     0 0 0 0 1 1 1 1 2 2 ...
jump      i i i B i i i B i              |a_t - a_t-1|, B where the plan changes, i inside
jerk          B B B i B B B ...          |third difference|, B where one of its four actions is on the other side of a border
```

What comes before the first plan (a robot that holds still) is no seam. A tick without a plan later on is: a gap has two borders.
"""

import math
from collections.abc import Sequence

import numpy as np

from uwm.core.shapes import Float

DRAWS = 1000  # of the bootstrap over episodes


def seams(actions: Float[np.ndarray, "T A"], plans: Sequence[int], switches: Sequence[int] = ()) -> dict[str, np.ndarray]:
    """Norms of jumps and jerks of one episode at borders and inside plans, each (n,).

    `plans` (T,): the plan of every action, -1 for none. `switches`: dimensions that are on or off (a gripper), which are no motion.
    """
    plans, actions = np.asarray(plans), np.delete(np.asarray(actions, np.float64), list(switches), axis=1)
    first = int(np.argmax(plans >= 0)) if (plans >= 0).any() else len(plans)
    actions, border = actions[first:], np.diff(plans[first:]) != 0
    near = np.array([border[i : i + 3].any() for i in range(max(len(actions) - 3, 0))], bool)
    jump, jerk = (np.linalg.norm(np.diff(actions, n, axis=0), axis=1) for n in (1, 3))
    return {"jump_border": jump[border], "jump_inside": jump[~border], "jerk_border": jerk[near], "jerk_inside": jerk[~near]}


def smoothness(episodes: Sequence[dict[str, np.ndarray]], generator: np.random.Generator) -> dict:
    """Means over all ticks of all episodes, ratios of border to inside, and the ratios' 95 % intervals over episodes.

    NaN where there is no border, or no motion inside.
    """
    sums = {name: np.array([[each[name].sum(), len(each[name])] for each in episodes]) for name in episodes[0]}
    draws = generator.integers(0, len(episodes), (DRAWS, len(episodes)))
    found: dict = {name: _mean(*value.sum(axis=0)) for name, value in sums.items()}
    for kind in ("jump", "jerk"):
        found[f"{kind}_ratio"] = _ratio(found[f"{kind}_border"], found[f"{kind}_inside"])
        drawn = [_ratio(*(_mean(*sums[f"{kind}_{where}"][chosen].sum(axis=0)) for where in ("border", "inside"))) for chosen in draws]
        finite = [value for value in drawn if math.isfinite(value)]
        found[f"{kind}_interval"] = tuple(float(end) for end in np.quantile(finite, (0.025, 0.975))) if finite else None
    return found


def _mean(total: float, count: float) -> float:
    return float(total / count) if count else math.nan


def _ratio(border: float, inside: float) -> float:
    return border / inside if inside > 0 else math.nan
