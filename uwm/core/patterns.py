"""Patterns: how levels and roles are drawn in training. A pattern is one rule per modality.

```
                 past  action (4 chunks of 4)     video (2 frames)
ladder / absent   ..   ---- ==== #### @@@@        (not there)          streaming policy (SDP 3.2)
constant / absent ..   ==== ==== ==== ====        (not there)          chunked policy
constant/constant ..   ==== ==== ==== ====        @@@@@@@@ @@@@@@@@    UWM's square: two independent levels
given / constant  ..   .... .... .... ....        ######## ########    forward dynamics
ladder, rungs 3   ..   ..-- --== ==## ##                               the same behind a committed prefix of 2
constant / given  ..   #### #### #### ####        ........ ........    inverse dynamics
absent / constant      (not there)                ######## ########    video prediction, data without actions
ladder / along    ..   ---- ==== #### @@@@        -------- ########    actions and the frames that they lead to, in one buffer
absent / goal          (not there)                ######## ........    the way to a goal image: what is behind it is not there
film / outcome    ..   .... ....                  @@@@@@@@             forward dynamics in one call, behind any number of actions
once / once       ..   @@@@ @@@@ @@@@ @@@@        @@@@@@@@ @@@@@@@@    everything in one call: what a regression learns
```

Levels are continuous; the papers' tables of N entries are the special case of N equal steps.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from uwm.core import fopp, roles
from uwm.core.shapes import Bool, Float, Int
from uwm.core.streams import KINDS, Layout

# A rule fills the levels of one modality: (frames (n,), batch, chunk, generator) -> (B, n).
Rule = Callable[[Tensor, int, int, Generator], Tensor]


def _uniform(batch: int, generator: Generator) -> Tensor:
    """One level in (0, 1] per sample: level 0 would be a token with nothing to learn."""
    return 1 - torch.rand(batch, 1, generator=generator)


def constant(frames: Tensor, batch: int, chunk: int, generator: Generator) -> Tensor:
    """One level per sample for the whole modality (UWM sec. III-B; SDP's temporally constant scheme)."""
    return _uniform(batch, generator).expand(batch, len(frames))


def independent(frames: Tensor, batch: int, chunk: int, generator: Generator) -> Tensor:
    """One level per frame, all independent (Diffusion Forcing; SDP's random scheme). Tokens of a frame share it."""
    _, inverse = torch.unique(frames, return_inverse=True)
    return (1 - torch.rand(batch, int(inverse.max()) + 1, generator=generator))[:, inverse]


def ladder(frames: Tensor, batch: int, chunk: int, generator: Generator) -> Tensor:
    """Chunk i of h at (i + u) / h with one phase u in (0, 1] per sample (SDP's chunk-wise scheme, continuous).

    Chunks are counted from the first frame that is not in the past; a rest shorter than a chunk joins the last one.
    """
    rung, count = _rungs(frames, chunk)
    return ((rung + _uniform(batch, generator)) / count).to(torch.get_default_dtype())


def _rungs(frames: Tensor, chunk: int) -> tuple[Tensor, int]:
    """The chunk of every frame, and how many there are."""
    ahead = (frames - frames.min()).clamp(min=0)
    count = max(int(ahead.max() + 1) // chunk, 1)
    return (ahead // chunk).clamp(max=count - 1), count


def bent(shape: float) -> Rule:
    """The ladder to the power of `shape`: above 1 the first chunks are nearly clean for longer, as in `uwm.sample.roll.Ladder`."""
    if not shape > 0:
        raise ValueError(f"the shape of a ladder is an exponent above 0, got {shape}")
    return lambda frames, batch, chunk, generator: ladder(frames, batch, chunk, generator) ** shape


def steady(frames: Tensor, batch: int, chunk: int, generator: Generator) -> Tensor:
    """Chunk i of h at (i + 1) / h in every sample: the ladder without a phase, as SDP's code has its linear scheme.

    The levels between two ticks are then never met in training; it is here to be compared.
    """
    rung, count = _rungs(frames, chunk)
    return ((rung + 1.0) / count).expand(batch, -1)


def linear(frames: Tensor, batch: int, chunk: int, generator: Generator) -> Tensor:
    """A ramp along time with a random phase: the ladder with chunks of one."""
    return ladder(frames, batch, 1, generator)


def ptss(share: float) -> Rule:
    """Independent levels per frame in a `share` of the samples, one level for all frames in the others (FVDM, Liu et al. 2024).

    The probabilistic timestep sampling strategy, drawn per sample; its authors' code draws it per batch. 0.2 is their value for
    training from nothing; a model that is adapted does best with 1 (Pusa, Liu et al. 2025, table 4).
    """
    if not 0 <= share <= 1:
        raise ValueError(f"ptss takes a share in [0, 1], got {share}")

    def levels(frames: Tensor, batch: int, chunk: int, generator: Generator) -> Tensor:
        apart = torch.rand(batch, 1, generator=generator) < share
        return torch.where(apart, independent(frames, batch, chunk, generator), constant(frames, batch, chunk, generator))

    return levels


def first_clean(frames: Tensor, batch: int, chunk: int, generator: Generator) -> Tensor:
    """The first frame clean, one level for all others: the one task of going on from a frame, and no other."""
    return torch.where(frames == frames.min(), 0.0, constant(frames, batch, chunk, generator))


ALONG = "along"  # video only: a frame has the level of the action that leads to it, and is absent where that is
OUTCOME = "outcome"  # of given actions: from noise in one call, absent where no given action leads to it
NOT_THERE = -1.0  # the level by which a rule says that a frame is absent


def goal(frames: Tensor, batch: int, chunk: int, generator: Generator) -> Tensor:
    """A goal among the frames, drawn evenly, is given; what lies before it has one level, what lies behind it is not there."""
    return _up_to_goal(frames, batch, generator, constant(frames, batch, chunk, generator))


def goal_only(frames: Tensor, batch: int, chunk: int, generator: Generator) -> Tensor:
    """A goal among the frames, drawn evenly, is given, and no other frame is there: what a goal-conditioned policy sees."""
    return _up_to_goal(frames, batch, generator, torch.full((batch, len(frames)), NOT_THERE))


def film(frames: Tensor, batch: int, chunk: int, generator: Generator) -> Tensor:
    """All frames up to a goal among them are given, what lies behind it is not there: inverse dynamics along a film of any length."""
    return _up_to_goal(frames, batch, generator, torch.zeros(batch, len(frames)))


def _up_to_goal(frames: Tensor, batch: int, generator: Generator, before: Tensor) -> Tensor:
    there = frames.unique()
    chosen = there[torch.randint(0, len(there), (batch, 1), generator=generator)]
    return torch.where(frames[None] == chosen, 0.0, torch.where(frames[None] < chosen, before, NOT_THERE))


def _filled(value: float) -> Rule:
    return lambda frames, batch, chunk, generator: torch.full((batch, len(frames)), value)


# Rules by name; MAKERS take a number in brackets, as `ptss(0.2)` does.
RULES: dict[str, Rule] = {
    "constant": constant,
    "independent": independent,
    "ladder": ladder,
    "linear": linear,
    "steady": steady,
    "fopp": fopp.levels,
    "first_clean": first_clean,
    "goal": goal,
    "goal_only": goal_only,
    "film": film,
    "given": _filled(0.0),
    "noise": _filled(1.0),
    "absent": _filled(1.0),
    "once": _filled(1.0),
    ALONG: _filled(1.0),
    OUTCOME: _filled(1.0),
}
MAKERS: dict[str, Callable[[float], Rule]] = {"ptss": ptss, "ladder": bent}
ROLE_OF_RULE = {"given": roles.GIVEN, "noise": roles.GIVEN, "absent": roles.ABSENT}
TEACH_NOTHING = {*ROLE_OF_RULE, "goal_only", "film"}
DEMONSTRATED = "demonstrated"  # stands among the kinds of streams that a sample has: its actions are to be imitated


def rule(name: str) -> Rule:
    """The rule of that name, as `ladder` or, with an argument, `ptss(0.2)`; ValueError lists the names."""
    made, argument = parsed(name)
    if argument is not None and made in MAKERS:
        return MAKERS[made](argument)
    if name not in RULES:
        raise ValueError(f"a rule must be one of {sorted([*RULES, *(f'{maker}(x)' for maker in MAKERS)])}, got {name!r}")
    return RULES[name]


def parsed(name: str) -> tuple[str, float | None]:
    """A rule's name and its argument: ("ptss", 0.2) for `ptss(0.2)`; None for a name without one."""
    found = re.fullmatch(r"([a-z_]+)\(([0-9.eE+-]+)\)", str(name))
    return (found[1], float(found[2])) if found else (str(name), None)


@dataclass(frozen=True)
class Pattern:
    """One rule per modality and its share of the samples.

    `action`, `video` and so on: names of rules (`rule`), one per kind of stream. A word's level is its chance of being
    masked. `committed`: longest clean prefix of future actions, drawn uniformly from
    0..committed per sample (training-time real-time chunking). `chunk`: actions per rung of a ladder. `rungs`: where the
    ladder (or `steady`) stands; 0: it spans all frames and the prefix covers its lowest rungs; n: n rungs directly behind the prefix, as
    the rolling buffer has them while actions are under way, and what lies beyond them is absent. `shared`: everything active
    has one level per sample, whatever the rules say (one level for all modalities, as in PAD, Guo et al. 2024). `loose`: the
    prefix is noisy, at one level per sample of up to this: what follows can then not be read off it, and must be seen.
    """

    weight: float = 1.0
    action: str = "constant"
    video: str = "constant"
    chunk: int = 4
    committed: int = 0
    rungs: int = 0
    state: str = "constant"
    image: str = "constant"
    label: str = "constant"
    word: str = "constant"
    shared: bool = False
    loose: float = 0.0

    def __post_init__(self):
        for kind in KINDS:
            try:
                rule(getattr(self, kind))
            except ValueError as error:
                raise ValueError(f"pattern of {kind}: {error}") from error
        if self.weight < 0 or self.chunk < 1 or min(self.committed, self.rungs) < 0:
            raise ValueError(f"weight, committed and rungs must be >= 0 and chunk >= 1, got {self}")
        if not 0 <= self.loose <= 1:
            raise ValueError(f"loose is a level, in [0, 1], got {self.loose}")
        if self.rungs and parsed(self.action)[0] not in ("ladder", "steady"):
            raise ValueError(f"rungs belong to a ladder of actions, got rungs {self.rungs} for the rule {self.action!r}")
        if ALONG in [getattr(self, kind) for kind in KINDS if kind != "video"]:
            raise ValueError(f"the rule {ALONG!r} is for video: a frame follows the action that leads to it")
        if self.action == OUTCOME:
            raise ValueError(f"the rule {OUTCOME!r} is for what follows from actions, not for actions")
        if self.video == ALONG and (self.action in ROLE_OF_RULE or self.committed):
            raise ValueError(f"video goes {ALONG} actions that are denoised, none of them committed, got {self}")


@dataclass(frozen=True)
class Draw:
    """Levels (B, N) and roles (B, N) of one training batch, and which pattern each sample drew (B,)."""

    level: Float[Tensor, "B N"]
    role: Int[Tensor, "B N"]
    pattern: Int[Tensor, " B"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))


def draw(pattern: Pattern, layout: Layout, batch: int, generator: Generator) -> Draw:
    """Draws levels and roles of a batch under one pattern.

    Actions of the past are the executed ones: given, of which a random number (0 to all, the most recent first) is
    shown and the rest is absent, so that the number of past actions is a choice at run time.
    """
    level = torch.zeros(batch, layout.tokens)
    role = roles.full(batch, layout.tokens)
    for kind in layout.kinds:
        name = getattr(pattern, kind)
        where = layout.mask(*layout.of_kind(kind)) & (layout.frame >= 0)
        level[:, where] = rule(name)(layout.frame[where], batch, pattern.chunk, generator).to(level.dtype)
        # A frame that a rule holds clean has nothing to learn: it is given, whatever the others are.
        told = torch.where(level[:, where] == 0, roles.GIVEN, ROLE_OF_RULE.get(name, roles.ACTIVE))
        role[:, where] = torch.where(level[:, where] == NOT_THERE, roles.ABSENT, told).to(role.dtype)
        level[:, where] = torch.where(level[:, where] == NOT_THERE, 1.0, level[:, where])
    if pattern.shared:
        level = torch.where(role == roles.ACTIVE, _uniform(batch, generator), level)
    if pattern.action != "absent":
        count = _commit(pattern, layout, level, role, generator)
        if pattern.rungs:
            _lay_behind(count, pattern, layout, level, role, generator)
    if pattern.video == ALONG:
        _go_along(layout, level, role)
    for kind in layout.kinds:
        if getattr(pattern, kind) == OUTCOME:
            following, leading = _leads(layout, kind, OUTCOME)
            role[:, following] = torch.where(role[:, leading] == roles.GIVEN, roles.ACTIVE, roles.ABSENT).to(role.dtype)
    _show_past(layout, level, role, generator)
    return Draw(level, role)


def _commit(pattern: Pattern, layout: Layout, level: Tensor, role: Tensor, generator: Generator) -> Int[Tensor, "B 1"]:
    """Holds the first k future actions of each sample at a level of 0 to `loose`, k uniform on 0..committed; returns k."""
    count = torch.randint(0, pattern.committed + 1, (len(level), 1), generator=generator)
    prefix = layout.mask(*layout.of_kind("action")) & (layout.frame >= 0) & (layout.frame[None] < count)
    held = pattern.loose * torch.rand(len(level), 1, generator=generator) if pattern.loose else torch.zeros(len(level), 1)
    level[prefix] = held.expand_as(level)[prefix]
    role[prefix] = roles.COMMITTED
    return count


def _lay_behind(count: Tensor, pattern: Pattern, layout: Layout, level: Tensor, role: Tensor, generator: Generator) -> None:
    """Lays the ladder's rungs directly behind each sample's prefix of `count` (B, 1) frames; later frames are absent."""
    ahead = layout.frame[None] - count
    rung = ahead.div(pattern.chunk, rounding_mode="floor")
    behind = layout.mask(*layout.of_kind("action")) & (ahead >= 0)
    beyond = behind & (rung >= pattern.rungs)
    phase = 1.0 if pattern.action == "steady" else _uniform(len(level), generator)
    risen = ((rung + phase) / pattern.rungs).to(level.dtype).clamp(min=0)
    level[behind] = torch.where(beyond, 1.0, risen ** (parsed(pattern.action)[1] or 1.0))[behind]
    role[beyond] = roles.ABSENT


def _go_along(layout: Layout, level: Tensor, role: Tensor) -> None:
    """Gives every frame the level and the role of the last action before it."""
    following, leading = _leads(layout, "video", ALONG)
    level[:, following], role[:, following] = level[:, leading], role[:, leading]


def _leads(layout: Layout, kind: str, name: str) -> tuple[Tensor, Tensor]:
    """The tokens of a kind, and for each of them the token of the last action before it."""
    action = layout.mask(*layout.of_kind("action")).nonzero().flatten()
    following = layout.mask(*layout.of_kind(kind)).nonzero().flatten()
    leads = layout.frame[action][None] == layout.frame[following][:, None] - 1
    if not bool(leads.any(dim=1).all()):
        frame = int(layout.frame[following][~leads.any(dim=1)][0])
        raise ValueError(f"no action leads to the frame at tick {frame}: the horizon is too short for {name!r}")
    return following, action[leads.int().argmax(dim=1)]


def _show_past(layout: Layout, level: Tensor, role: Tensor, generator: Generator) -> None:
    """Gives the k most recent executed actions of each sample, k uniform on 0..all; older ones are absent."""
    past = layout.mask(*layout.of_kind("action")) & (layout.frame < 0)
    if not bool(past.any()):
        return
    shown = torch.randint(0, int(-layout.frame.min()) + 1, (len(level), 1), generator=generator)
    level[:, past] = 0.0
    role[:, past] = torch.where(-layout.frame[past][None] <= shown, roles.GIVEN, roles.ABSENT).to(role.dtype)


def teaches(pattern: Pattern, kinds: Iterable[str]) -> bool:
    """Whether anything is denoised under a pattern where only these kinds of streams are there."""
    return any(getattr(pattern, kind) not in TEACH_NOTHING for kind in kinds)


def imitates(pattern: Pattern, kinds: Iterable[str]) -> bool:
    """Whether actions are denoised of which the future does not tell: a policy, alone or with what it will see."""
    told = any(getattr(pattern, kind) in ("given", "film") for kind in kinds if kind != "action")
    return pattern.action not in TEACH_NOTHING and not told


def draw_mixture(
    patterns: tuple[Pattern, ...],
    layout: Layout,
    batch: int,
    generator: Generator,
    has: Mapping[str, Bool[Tensor, " B"]] | None = None,
) -> Draw:
    """Draws one pattern per sample by weight, then levels and roles under it.

    `has` says which samples have a kind of stream at all (a kind that is left out is everywhere): a sample without
    actions draws only among the patterns that have something to teach without them, in proportion to their weights. Under
    DEMONSTRATED it says whose actions are to be imitated: others draw among the patterns that imitate nothing (ValueError for none).
    """
    if not patterns or sum(pattern.weight for pattern in patterns) <= 0:
        raise ValueError("a mixture needs at least one pattern with a positive weight")
    weights = torch.tensor([pattern.weight for pattern in patterns])
    if has and not all(bool(there.all()) for there in has.values()):
        choice = torch.multinomial(_usable(patterns, weights, layout, batch, has), 1, generator=generator)[:, 0]
    else:
        choice = torch.multinomial(weights, batch, replacement=True, generator=generator)
    level, role = torch.empty(batch, layout.tokens), roles.full(batch, layout.tokens)
    for index, pattern in enumerate(patterns):
        chosen = (choice == index).nonzero().flatten()
        if len(chosen):
            drawn = draw(pattern, layout, len(chosen), generator)
            level[chosen], role[chosen] = drawn.level, drawn.role
    return Draw(level, role, choice)


def _usable(patterns: tuple[Pattern, ...], weights: Tensor, layout: Layout, batch: int, has: Mapping[str, Tensor]) -> Float[Tensor, "B P"]:
    """Weights of the patterns per sample; a sample that no pattern can teach keeps them all, and teaches nothing."""
    useful = torch.zeros(batch, len(patterns), dtype=torch.bool)
    for index, pattern in enumerate(patterns):
        for kind in layout.kinds:
            if teaches(pattern, (kind,)):
                useful[:, index] |= has.get(kind, torch.ones(batch, dtype=torch.bool))
    if DEMONSTRATED in has:
        useful &= has[DEMONSTRATED][:, None] | torch.tensor([not imitates(pattern, layout.kinds) for pattern in patterns])
        if not bool((useful.any(dim=1) | has[DEMONSTRATED]).all()):
            raise ValueError("what is not to be imitated needs a pattern in which actions, or all that follows from them, are given")
    own = torch.where(useful, weights, 0.0)
    return torch.where(own.sum(dim=1, keepdim=True) > 0, own, weights)


def shares(patterns: tuple[Pattern, ...]) -> Mapping[str, float]:
    """Share of the samples per pattern, for people to read."""
    total = sum(pattern.weight for pattern in patterns)
    return {f"action {p.action}, video {p.video}": p.weight / total for p in patterns}
