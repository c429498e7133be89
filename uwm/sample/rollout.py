"""Video frame by frame: a wavefront of frames in flight behind finished ones, which are read once and kept.

```
call          finished, kept       in flight (one call for all)      not begun: not fed
1             g0 g1                f0@1
...           g0 g1                f0@.4   f1@.7   f2@1              level of a frame falls by 1 / rows a call,
              g0 g1 f0             f1@.3   f2@.6   f3@.9             the next one begins `gap` calls later
                    ^ yielded, and its keys and values kept
window        [ at most so many frames: kept ones of long ago are let go ]
```

gap 0 is all frames together, gap = rows one after the other, between them asynchronous autoregression (AR-Diffusion, Sun et al. 2025,
sec. 3.3). Frames see no later ones, so a finished frame never changes and its keys are exact. Places are relative (rotary): frames are
counted on beyond those of training, while no two of a window are farther apart than frames were there.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from uwm.core import roles
from uwm.core.plans import staircase
from uwm.core.shapes import Float
from uwm.nn.backbone import Prefix
from uwm.nn.stream_model import StreamModel
from uwm.sample.denoise import denoiser
from uwm.sample.randomness import Randomness
from uwm.sample.steps import StepRule, ddim


@dataclass(frozen=True)
class Frame:
    """One finished frame: its number, its tokens {stream: (B, n, S)}, and the network calls spent until then."""

    number: int
    values: dict[str, Tensor]
    calls: int


def rollout(
    model: StreamModel,
    given: Mapping[str, Float[Tensor, "B n S"]],
    horizon: int,
    conditions: Mapping[str, Float[Tensor, "B m S"]] | None = None,
    gap: int = 5,
    rows: int = 20,
    window: int = 8,
    seeds: Sequence[int] = (0,),
    step: StepRule | None = None,
    limit: float | None = None,
) -> Iterator[Frame]:
    """Yields `horizon` frames behind the given ones, each as soon as it is clean.

    `given` {video stream: tokens of its first frames}, the same number for all; `conditions` {action stream: tokens of all frames,
    given and to come}: those of a frame are seen by it and by later ones. `window`: frames that a call looks at, in flight and kept.
    ValueError for a model whose streams are not causal, a gap that is no number of calls from 0 to `rows`, a window that is shorter than
    what is in flight or longer than what was trained, conditions that end too early.
    """
    conditions = dict(conditions or {})
    run = _Run(model, tuple(given), tuple(conditions), seeds, limit)
    first = run.frames_of(given, "given")
    plan = staircase(horizon, rows, gap) if 0 <= gap <= rows and horizon >= 1 else None
    if plan is None:
        raise ValueError(f"gap lies between 0 and rows and there must be a frame, got gap {gap}, rows {rows}, horizon {horizon}")
    _check_window(model, plan, window, first)
    if conditions and run.frames_of(conditions, "conditions") < first + horizon:
        raise ValueError(f"conditions must reach over {first + horizon} frames, got {run.frames_of(conditions, 'conditions')}")
    return _walk(run, given, conditions, plan, first, window, step or ddim())


def _walk(run: "_Run", given, conditions, plan: Tensor, first: int, window: int, step: StepRule) -> Iterator[Frame]:
    """The generator itself: errors of the arguments are told before the first frame is asked for."""
    flight: dict[int, dict[str, Tensor]] = {}
    for number in range(first):
        run.keep({number: {**run.part(given, number), **run.part(conditions, number)}}, window)
    for level_from, level_to in itertools.pairwise(plan):
        moving = [first + unit for unit in (level_from != level_to).nonzero().flatten().tolist()]
        for number in moving:
            if number not in flight:
                flight[number] = {**run.noise(), **run.part(conditions, number)}
        run.trim(window - len(moving))
        flight |= run.move(flight, moving, level_from[[n - first for n in moving]], level_to[[n - first for n in moving]], step)
        for number in [n for n in moving if level_to[n - first] == 0]:
            done = flight.pop(number)
            run.estimates.pop(number, None)
            if number + 1 < first + plan.shape[1]:
                run.keep({number: done}, window)
            yield Frame(number, {name: done[name] for name in run.videos}, run.calls)


class _Run:
    """What a rollout holds: the model, noise, kept frames and the count of calls."""

    def __init__(self, model: StreamModel, videos: tuple[str, ...], others: tuple[str, ...], seeds: Sequence[int], limit: float | None):
        self.model, self.videos, self.limit = model, videos, limit
        self.layout = model.layout.select([*videos, *others])
        loose = [stream.name for stream in self.layout.streams if not stream.causal]
        if loose or model.config.backbone.registers or not videos:
            raise ValueError(
                "a rollout needs a video stream, causal streams and no registers (they see all frames): "
                f"not causal are {loose}, registers {model.config.backbone.registers}"
            )
        self.randomness, self.prefix, self.calls = Randomness.seeded(seeds), None, 0
        self.estimates: dict[int, tuple[Tensor, ...]] = {}
        self.batch = len(self.randomness.key)

    def frames_of(self, values: Mapping[str, Tensor], what: str) -> int:
        """How many frames these streams hold, all the same; ValueError for other shapes and values that are not finite."""
        counts = set()
        for name, value in values.items():
            count, rest = divmod(value.shape[1], self.layout[name].frame_tokens) if value.ndim == 3 else (0, 1)
            if rest or value.shape[2] != self.layout[name].size or value.shape[0] not in (1, self.batch):
                wanted = f"({self.batch}, frames x {self.layout[name].frame_tokens}, {self.layout[name].size})"
                raise ValueError(f"{what} of {name!r} must be {wanted}, got {tuple(value.shape)}")
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{what} of {name!r} has numbers that are not finite")
            counts.add(count)
        if len(counts) > 1:
            raise ValueError(f"{what} must have as many frames in every stream, got {sorted(counts)}")
        return counts.pop() if counts else 0

    def part(self, values: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """The tokens of one frame."""
        place = {name: slice(number * self.layout[name].frame_tokens, (number + 1) * self.layout[name].frame_tokens) for name in values}
        return {name: value[:, place[name]].expand(self.batch, -1, -1) for name, value in values.items()}

    def noise(self) -> dict[str, Tensor]:
        """Fresh noise for a frame: drawn in the order of frames, whatever the gap."""
        found = {}
        for name in self.videos:
            found[name], self.randomness = self.randomness.normal(self.layout[name].frame_tokens, self.layout[name].size)
        return found

    def _row(self, frames: dict[int, dict[str, Tensor]]) -> tuple:
        numbers = sorted(frames)
        layout = self.model.fresh(dict.fromkeys(self.layout.names, tuple(numbers))).select(self.layout.names)
        values = {name: torch.cat([frames[number][name] for number in numbers], dim=1) for name in self.layout.names}
        return layout, layout.pack(values)

    @torch.no_grad()
    def keep(self, frames: dict[int, dict[str, Tensor]], window: int) -> None:
        """Reads clean frames once, for all later calls."""
        layout, x = self._row(frames)
        self.trim(window - len(frames))
        self.prefix = self.model.keep(x, 0.0, roles.full(self.batch, layout.tokens, roles.GIVEN), layout, self.prefix)
        self.calls += 1

    def trim(self, frames: int) -> None:
        """Lets go of kept frames but the last `frames`."""
        if self.prefix is None:
            return
        count = max(frames, 0) * sum(self.layout[name].frame_tokens for name in self.layout.names)
        last = slice(max(self.prefix.seen.shape[1] - count, 0), None)
        cut = [tuple(each[:, :, last] for each in kept) for kept in (self.prefix.keys, self.prefix.values)]
        self.prefix = Prefix(*cut, self.prefix.seen[:, last])

    @torch.no_grad()
    def move(self, flight: dict, moving: list[int], level_from: Tensor, level_to: Tensor, step: StepRule) -> dict:
        """One call for all frames that move; the same frames, one row further."""
        layout, x = self._row({number: flight[number] for number in moving})
        frame = torch.bucketize(layout.frame.contiguous(), torch.tensor(moving))
        video = layout.mask(*self.videos)
        level = [torch.where(video, row[frame], 0.0).to(x).expand(self.batch, -1) for row in (level_from, level_to)]
        role = torch.where(video, roles.ACTIVE, roles.GIVEN).to(torch.int8).expand(self.batch, -1)
        denoise = denoiser(self.model, role, layout, self.prefix, self.limit)
        own = {number: frame == place for place, number in enumerate(moving)}
        x, carry, self.randomness = step(denoise, denoise.path, x, *level, self._carried(own, x), self.randomness)
        if step.looks_back:
            self.estimates |= {number: tuple(each[:, there] for each in carry) for number, there in own.items()}
        self.calls += denoise.calls
        values = layout.unpack(x)
        return {number: {name: values[name].unflatten(1, (len(moving), -1))[:, place] for name in layout.names}
                for place, number in enumerate(moving)}  # fmt: skip

    def _carried(self, own: dict[int, Tensor], x: Tensor) -> tuple[Tensor, Tensor] | None:
        """What a rule that looks back carried out of the last calls for these frames, `own` {number: where it stands in x}; else None."""
        if not self.estimates:
            return None
        clean, level = torch.zeros_like(x), x.new_zeros(x.shape[:2])
        for number in own.keys() & self.estimates.keys():
            clean[:, own[number]], level[:, own[number]] = self.estimates[number]
        return clean, level


def _check_window(model: StreamModel, plan: Tensor, window: int, first: int) -> None:
    trained = max(len(stream.frames) for stream in model.layout.streams)
    most = int((plan[:-1] != plan[1:]).sum(dim=1).max())
    if not most + bool(first) <= window <= trained:
        raise ValueError(
            f"the window must hold the {most} frames in flight{' and one before them' if first else ''} and at most the {trained} frames "
            f"that the model was trained on, got {window}: choose a larger gap or fewer rows"
        )
