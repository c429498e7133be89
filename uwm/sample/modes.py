"""Any mode of a stream model: which streams are wanted, which are given, which are marginalised or not there.

```
                       front     action    text          UniDiffuser (Bao et al. 2023, sec. 3.2) for any number of streams
targets=front          falls     absent    absent        what is not named is absent: exact, and cheaper than noise
given=text             falls     absent    level 0       conditional
marginal=action        falls     level 1   absent        marginalised with fresh noise, as the paper does
targets=front, action  falls     falls     absent        joint
```

Guidance needs no null token: the null branch is the same call with its condition at level 1. With weight w

    one target:   (1 + w) clean(target | given) - w clean(target | noise for given)                      (sec. 3.3, conditional)
    joint:        (1 + w) clean(all) - w clean(each target | noise for all the others and the given)     (joint)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from uwm.core import plans
from uwm.core.plans import Plan
from uwm.core.shapes import Float
from uwm.core.streams import Layout
from uwm.nn.stream_model import StreamModel
from uwm.sample.denoise import Denoiser, denoiser
from uwm.sample.loop import sample, start
from uwm.sample.randomness import Randomness
from uwm.sample.steps import StepRule, by_stream, rule
from uwm.sample.unmask import unmask


@dataclass(frozen=True)
class Assignment:
    """The role of every stream of a model in a run: names, disjoint; what is in none of them is absent."""

    targets: tuple[str, ...]
    given: tuple[str, ...] = ()
    marginal: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.targets:
            raise ValueError("nothing to generate: name at least one stream in `targets`")
        twice = [name for name in self.names if self.names.count(name) > 1]
        if twice:
            raise ValueError(f"a stream has one role, got several for {sorted(set(twice))}: it is a target, given, marginal or absent")

    @property
    def names(self) -> tuple[str, ...]:
        """Streams that are there at all."""
        return (*self.targets, *self.given, *self.marginal)

    def plan(self, layout: Layout, rows: int) -> Plan:
        """All targets fall together in `rows` rows."""
        told = dict.fromkeys(layout.names, plans.ABSENT)
        told |= dict.fromkeys(self.targets, plans.FALL) | dict.fromkeys(self.given, plans.GIVEN) | dict.fromkeys(self.marginal, plans.NOISE)
        return plans.together(layout, told, rows)


def generate(
    model: StreamModel,
    targets: Iterable[str],
    given: Mapping[str, Tensor] | None = None,
    marginal: Iterable[str] = (),
    rows: int = 20,
    guidance: float = 0.0,
    seeds: Iterable[int] = (0,),
    rules: Mapping[str, StepRule] | None = None,
    limit: float | None = None,
    plan: Plan | None = None,
    known: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Samples the targets, as many as there are seeds. Returns them by stream, (B, tokens of the stream, its size).

    `given` {stream: clean tokens (B, n, S), or (1, n, S) for all}; `rules` by stream or kind (unless told unmask for words and ddim
    for the rest); `limit` clips clean estimates; `plan` replaces the plan in which all targets fall together. ValueError for a stream
    that is unknown or has two roles, for no target, for given tokens of a wrong shape or not finite, for guidance without a condition.

    `known` {target: clean tokens (B or 1, n, S)}: values of the frames that a plan of one's own holds (`core.plans.hold`); what stands
    elsewhere does not matter where the plan begins at level 1.
    """
    given, seeds = dict(given or {}), list(seeds)
    assignment = Assignment(tuple(targets), tuple(given), tuple(marginal))
    layout = model.layout.select(assignment.names)
    foreign = sorted(set(known or ()) - set(assignment.targets))
    if foreign:
        raise ValueError(f"known values are of targets, got {foreign}; whole streams are given")
    start_from = _known(layout, {**given, **(known or {})}, len(seeds))
    plan = plan or assignment.plan(layout, rows)
    if plan.level.shape[1] != layout.tokens:
        raise ValueError(f"the plan is for {plan.level.shape[1]} tokens, but {list(layout.names)} have {layout.tokens}")
    role = plan.role[None].expand(len(seeds), -1)
    plain = denoiser(model, role, layout, limit=limit)
    randomness = Randomness.seeded(seeds)
    denoise = plain if guidance == 0 else Guided(plain, assignment, guidance, Randomness.seeded([seed + NULL for seed in seeds]))
    x, randomness = start(plain.path, start_from, plan.level[0], randomness)
    x = torch.where(layout.mask(*layout.of_kind("word"))[:, None] & (plan.level[0] > 0)[:, None], 0.0, x)
    step = by_stream(layout, {"word": unmask(), **(rules or {})}, rule("ddim"))
    with torch.inference_mode():
        out, _ = sample(denoise, plain.path, x, plan.level, step, randomness)
    return {name: value for name, value in layout.unpack(out).items() if name in assignment.targets}


NULL = 2**40  # added to a seed: the noise of the null branch is another than that of the sample


@dataclass
class Guided:
    """`denoise` led away from what it would say without its condition, by `weight`; fresh noise in every call.

    With given streams the null branch has these at level 1; without, each target in turn has all others at level 1.
    """

    denoise: Denoiser
    assignment: Assignment
    weight: float
    randomness: Randomness

    def __post_init__(self):
        if len(self.assignment.names) - len(self.assignment.marginal) < 2:
            raise ValueError(f"guidance needs a condition or a second target, got only {self.assignment.targets}")

    def __call__(self, x: Float[Tensor, "B N S"], level: Float[Tensor, "B N"]) -> Float[Tensor, "B N S"]:
        clean, layout = self.denoise(x, level), self.denoise.layout
        null = torch.zeros_like(clean)
        for wanted, hidden in self._branches():
            hide = layout.mask(*hidden)
            noise, self.randomness = self.randomness.normal(*x.shape[1:], dtype=x.dtype)
            noise = torch.where(layout.mask(*layout.of_kind("word"))[:, None], 0.0, noise)
            blind = self.denoise(torch.where(hide[:, None], noise, x), torch.where(hide, 1.0, level))
            null = torch.where(layout.mask(*wanted)[:, None], blind, null)
        guided = (1 + self.weight) * clean - self.weight * null
        guided = self._as_probabilities(guided)
        return torch.where(layout.mask(*self.assignment.targets)[:, None], guided, clean)

    def _branches(self) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """(streams that a null call is for, streams that it does not see)."""
        targets, given = self.assignment.targets, self.assignment.given
        if given:
            return [(targets, given)]
        return [((name,), tuple(other for other in targets if other != name)) for name in targets]

    def _as_probabilities(self, clean: Tensor) -> Tensor:
        """Words again: guided probabilities may leave [0, 1]."""
        for name in self.denoise.layout.of_kind("word"):
            span = self.denoise.layout.span(name)
            part = clean[:, span].clamp(min=0)
            clean[:, span] = part / part.sum(dim=-1, keepdim=True).clamp(min=1e-12)
        return clean


def _known(layout: Layout, given: Mapping[str, Tensor], batch: int) -> Float[Tensor, "B N S"]:
    """Given tokens in their places, zeros elsewhere."""
    values = {s.name: torch.zeros(batch, s.tokens, s.size) for s in layout.streams}
    for name, value in given.items():
        stream = layout[name]
        if value.ndim != 3 or value.shape[1:] != (stream.tokens, stream.size) or value.shape[0] not in (1, batch):
            raise ValueError(f"given {name!r} must be ({batch} or 1, {stream.tokens}, {stream.size}), got {tuple(value.shape)}")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"given {name!r} has numbers that are not finite")
        values[name] = value.expand(batch, -1, -1).float()
    return layout.pack(values)
