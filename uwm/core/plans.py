"""Plans: the matrix of levels of a sampling run. One row to the next is one network call.

```
          policy              forward dynamics       streaming, h = 4, one tick
          past action  video  past action  video     past  1111 2222 3333 4444
row 0      ..  @@@@@@@         ..  .......  @@@@       ..  ---- ==== #### @@@@
row 1      ..  =======         ..  .......  ====       ..  .... ---- ==== ####   <- first chunk is executed
row 2      ..  .......         ..  .......  ....           and the buffer rolls: ---- ==== #### @@@@
```
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from uwm.core import roles
from uwm.core.shapes import Float, Int
from uwm.core.streams import Layout

FALL, GIVEN, ABSENT, NOISE = "fall", "given", "absent", "noise"

# What each mode does with each modality: video and state are what will be seen and felt. The observation is context and always given.
MODES: dict[str, dict[str, str]] = {
    "policy": {"action": FALL, "video": ABSENT, "state": ABSENT},
    "policy_marginal": {"action": FALL, "video": NOISE, "state": NOISE},
    "video": {"action": ABSENT, "video": FALL, "state": FALL},
    "video_marginal": {"action": NOISE, "video": FALL, "state": FALL},
    "forward": {"action": GIVEN, "video": FALL, "state": FALL},
    "inverse": {"action": FALL, "video": GIVEN, "state": GIVEN},
    "joint": {"action": FALL, "video": FALL, "state": FALL},
}
SHADES = " .:-=+*#%@"


@dataclass(frozen=True)
class Plan:
    """Levels (K + 1, N) for K calls and the role (N,) of every token. Absent tokens may be deleted by the caller."""

    level: Float[Tensor, "K1 N"]
    role: Int[Tensor, " N"]

    def __post_init__(self):
        if self.level.ndim != 2 or self.level.shape[1:] != self.role.shape:
            raise ValueError(f"a plan needs levels (K + 1, N) and roles (N,), got {self.level.shape}, {self.role.shape}")

    @property
    def calls(self) -> int:
        """Network calls of a first-order step rule."""
        return len(self.level) - 1

    def reversed(self) -> "Plan":
        """The plan read upwards: inversion."""
        return Plan(self.level.flip(0), self.role)


def together(layout: Layout, treatment: dict[str, str], rows: int) -> Plan:
    """All falling streams go from 1 to 0 in `rows` equal steps; `treatment` says fall, given, noise or absent, by stream or kind.

    Past actions are given in every mode but the ones without actions.
    """
    if rows < 1:
        raise ValueError(f"a plan needs at least one row, got {rows}")
    found = {stream.name: treatment.get(stream.name, treatment.get(stream.kind)) for stream in layout.streams}
    unknown = sorted({layout[name].kind for name, told in found.items() if told is None})
    if unknown:
        raise ValueError(f"no treatment for modalities {unknown}; have {sorted(treatment)}")
    level = torch.zeros(rows + 1, layout.tokens)
    role = roles.full(1, layout.tokens)[0]
    for name, told in found.items():
        where = layout.mask(name)
        _treat(told, level, role, where & (layout.frame >= 0))
        _treat(ABSENT if told == ABSENT else GIVEN, level, role, where & (layout.frame < 0))
    return Plan(level, role)


def _treat(treatment: str, level: Tensor, role: Tensor, where: Tensor) -> None:
    rows = len(level) - 1
    falling = torch.arange(rows, -1, -1)[:, None] / rows
    match treatment:
        case "fall":
            level[:, where], role[where] = falling.expand(-1, int(where.sum())), roles.ACTIVE
        case "given":
            level[:, where], role[where] = 0.0, roles.GIVEN
        case "noise":
            level[:, where], role[where] = 1.0, roles.GIVEN
        case "absent":
            level[:, where], role[where] = 1.0, roles.ABSENT
        case _:
            raise ValueError(f"treatment must be fall, given, noise or absent, got {treatment!r}")


def mode(layout: Layout, name: str, rows: int) -> Plan:
    """The plan of a named mode (UWM sec. III-C and table of modes)."""
    if name not in MODES:
        raise ValueError(f"mode must be one of {sorted(MODES)}, got {name!r}")
    return together(layout, MODES[name], rows)


def hold(plan: Plan, layout: Layout, frames: Mapping[tuple[str, int], float], scale: bool = False) -> Plan:
    """The plan with some frames {(stream, frame): level} held at a level, 0 as they are (FVDM's tau, Liu et al. 2024, sec. 3.3).

    `scale`: the number is a multiplier instead: the frame is noised once to m times the first level and then follows m times the
    plan, so that a seam can still be mended (Pusa's released sampler). ValueError for a frame that is not there, a level outside
    [0, 1], and when nothing is left to generate.
    """
    level, role = plan.level.clone(), plan.role.clone()
    for (name, frame), held in frames.items():
        where = layout.mask(name) & (layout.frame == frame)
        if not bool(where.any()):
            raise ValueError(f"{name!r} has no frame {frame}; it has {list(layout[name].frames)}")
        if not 0 <= held <= 1:
            raise ValueError(f"frame {frame} of {name!r}: a held level or multiplier lies in [0, 1], got {held}")
        level[:, where] = held * plan.level[:, where] if scale else held
        role[where] = roles.ACTIVE if scale and held else roles.GIVEN
    if not bool((role == roles.ACTIVE).any()):
        raise ValueError("every frame is held: nothing is left to generate")
    return Plan(level, role)


def staircase(units: int, rows: int, lag: int) -> Float[Tensor, "K1 U"]:
    """Levels of `units` units (frames, chunks) that fall in `rows` steps each, unit i starting i * lag calls later.

    lag 0: together; lag = rows: one after another; between: pyramid (Diffusion Forcing), asynchronous autoregression.
    """
    if units < 1 or rows < 1 or lag < 0:
        raise ValueError(f"units and rows must be >= 1 and lag >= 0, got {units}, {rows}, {lag}")
    call = torch.arange(rows + lag * (units - 1) + 1)[:, None]
    done = (call - lag * torch.arange(units)[None]).clamp(0, rows)
    return 1 - done / rows


def spread(unit_level: Float[Tensor, "K1 U"], unit: Int[Tensor, " N"]) -> Float[Tensor, "K1 N"]:
    """Gives every token the level of its unit (a frame, a chunk)."""
    return unit_level[:, unit]


def streaming_calls(rows: int, chunks: int, tick: int) -> int:
    """Calls of tick `tick` (0, 1, ...) of a streaming buffer: between floor(N/h) and ceil(N/h), N/h on the mean."""
    return (tick + 1) * rows // chunks - tick * rows // chunks


def streaming_remaining(rows: int, chunks: int, tick: Int[Tensor, " B"]) -> Int[Tensor, "B h"]:
    """Calls that each chunk still has before it at the start of a tick; its level is this divided by `rows`.

    Chunk i is sent i ticks from now, so what remains is the sum of `streaming_calls` until then. A chunk that enters
    after tick t has exactly `rows` calls before it, for any rows and chunks: nothing drifts (SDP's tables do).
    """
    ahead = torch.arange(1, chunks + 1)[None]
    return (tick[:, None] + ahead) * rows // chunks - tick[:, None] * rows // chunks


def streaming_level(remaining: Int[Tensor, "*K h"], rows: int, shape: float = 1.0) -> Float[Tensor, "*K h"]:
    """Levels of chunks from the calls that they still have before them: their share of all rows, to the power of `shape`."""
    return (remaining.clamp(min=0) / rows) ** shape


def streaming_tick(rows: int, chunks: int, tick: int = 0, shape: float = 1.0) -> Float[Tensor, "K1 h"]:
    """Levels per chunk before every call of one tick, and after the last: the first chunk ends at 0."""
    remaining = streaming_remaining(rows, chunks, torch.tensor([tick]))
    call = torch.arange(streaming_calls(rows, chunks, tick) + 1)[:, None]
    return streaming_level(remaining - call, rows, shape)


def picture(plan: Plan, layout: Layout) -> str:
    """The plan as text, one line per row: dark is noise, a dot is given, blank is absent.

    Tokens of one frame share a column, frames of different streams are set apart.
    """
    columns = [_columns(layout, stream.name) for stream in layout.streams]
    width = [max(len(stream.name), len(column)) for stream, column in zip(layout.streams, columns, strict=False)]
    lines = ["        " + "  ".join(s.name.ljust(w) for s, w in zip(layout.streams, width, strict=False))]
    for index, level in enumerate(plan.level):
        cells = ["".join(_shade(level[i], plan.role[i]) for i in column) for column in columns]
        lines.append(f"row {index:<3} " + "  ".join(cell.ljust(w) for cell, w in zip(cells, width, strict=False)))
    return "\n".join(line.rstrip() for line in lines)


def _columns(layout: Layout, name: str) -> list[int]:
    """The first token of every frame of a stream."""
    span, stream = layout.span(name), layout[name]
    return list(range(span.start, span.stop, stream.frame_tokens))


def _shade(level: Tensor, role: Tensor) -> str:
    if int(role) == roles.ABSENT:
        return " "
    return SHADES[max(1, round(float(level) * (len(SHADES) - 1)))]
