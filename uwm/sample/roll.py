"""The rolling buffer of streaming diffusion (Streaming Diffusion Policy, sec. IV), as a value.

```
tick t      past   chunk 1   chunk 2   chunk 3          level of chunk i: calls it still has before it / rows
before      ....   ::::::    ======    @@@@@@
calls       (a few rows of the loop: all chunks fall together)
after       ....   ......    ::::::    ======           chunk 1 is clean and is sent
roll        ....   ::::::    ======    @@@@@@           executed actions become the past, fresh noise joins
```

Inference takes time, and the robot acts meanwhile. Actions that are sent but not executed yet are **committed**: they stand
clean between the past and the ladder, and may be as many as the trained frames leave room for, another number at every call.

```
at tick t   past   committed   chunk 1   chunk 2   chunk 3
frames      -2 -1   0 1 2 3    4 5 6     7 8 9     10 11 12      4 ticks until the result is there
level        . .    . . . .    : : :     = = =     @  @  @
```

What is seen at the end of a chunk may stand behind its actions, at their level: actions and frames on one wavefront. Then the frame
that comes out clean can be compared with the one that the camera brings, and what does not agree is **revised**: all that is finer than
some level is noised back to it, and a few more rows of the loop bring it down to the ladder again.

```
levels      . : = @    noised again to two quarters    = = = @    two calls    . : = @    the usual ones
```

A `Buffer` holds everything: values, how far each environment is, executed actions, random state. It can be saved,
restored, batched and reset by mask; nothing about an episode lives anywhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from uwm.core import plans, roles
from uwm.core.shapes import Bool, Float, Int
from uwm.core.streams import Stream
from uwm.noise.gaussian import GaussianPath, corrupt, noised
from uwm.sample.loop import sample
from uwm.sample.randomness import Randomness
from uwm.sample.steps import Denoise, StepRule

PRIMERS = ("denoise", "zero", "constant")


@dataclass(frozen=True)
class Ladder:
    """How the buffer is run: `rows` calls from noise to clean, `chunk` actions sent per tick, `chunks` chunks held.

    `past` executed actions are kept as given tokens (0 or more). `primer` fills a fresh buffer: "denoise" samples the whole horizon
    once (`primer_rows` calls; 0: `rows`) and noises it back to the ladder; "zero" noises the mean action, "constant" the last executed
    one or the one that holds the robot still (SDP sec. IV-D; no calls). `loose` is the level at which committed actions are shown: 0 as
    they are; above, what follows leans less on them and more on what is seen. `shape`: level = (calls left / rows)^shape; above 1 the
    first actions are nearly finished earlier, 1 is SDP's ladder. Train with the rule `ladder(shape)`. `seen`: tokens of what will be
    seen at the end of a chunk, which stand behind its actions; train with the rule `along`.
    """

    rows: int
    chunk: int
    chunks: int
    past: int = 2
    primer: str = "denoise"
    loose: float = 0.0
    shape: float = 1.0
    seen: int = 0
    primer_rows: int = 0

    def __post_init__(self):
        if self.seen < 0 or (self.seen and self.primer == "constant"):
            raise ValueError(f"frames need a primer that knows them, denoise or zero, and seen must be >= 0, got {self}")
        if not self.shape > 0:
            raise ValueError(f"the shape of a ladder must be an exponent above 0, got {self.shape}")
        if self.primer == "constant" and not self.past:
            raise ValueError("the primer 'constant' repeats the last executed action: past must be at least 1")
        if not 0 <= self.loose <= 1:
            raise ValueError(f"loose is a level, in [0, 1], got {self.loose}")
        if min(self.rows, self.chunk, self.chunks) < 1 or self.past < 0:
            raise ValueError(f"rows, chunk and chunks must be >= 1 and past >= 0, got {self}")
        if self.primer not in PRIMERS:
            raise ValueError(f"primer must be one of {PRIMERS}, got {self.primer!r}")
        if self.primer_rows < 0 or (self.primer_rows and self.primer != "denoise"):
            raise ValueError(f"primer_rows is >= 0 and belongs to the primer 'denoise', got {self}")

    @property
    def horizon(self) -> int:
        return self.chunk * self.chunks

    @property
    def primer_calls(self) -> int:
        """Calls that fill a fresh buffer."""
        return (self.primer_rows or self.rows) if self.primer == "denoise" else 0

    @property
    def unit(self) -> int:
        """Tokens of a chunk: its actions, and what is seen at its end."""
        return self.chunk + self.seen

    @property
    def plan(self) -> tuple[int, int, int, int, int]:
        """What a buffer's tokens and levels follow from."""
        return self.rows, self.chunk, self.chunks, self.past, self.seen

    def check(self, buffer: "Buffer") -> None:
        """ValueError for a buffer that was begun for another ladder: its levels would be taken for others."""
        if bool((buffer.plan != torch.tensor(self.plan)).any()):
            say = "{} rows, chunks of {}, {} of them, {} past actions and {} tokens of frames".format
            begun = "; ".join(say(*plan) for plan in buffer.plan.unique(dim=0).tolist())
            raise ValueError(f"this buffer was begun for {begun}, the policy runs {say(*self.plan)}; a new plan is a new start")

    def level(self, remaining: Int[Tensor, "*K h"]) -> Float[Tensor, "*K H"]:
        """The level of every token in the buffer, from the calls that its chunk still has before it."""
        return plans.streaming_level(remaining, self.rows, self.shape).repeat_interleave(self.unit, dim=-1)

    def actions(self, future: Float[Tensor, "B H *A"]) -> Float[Tensor, "B h *A"]:
        """Of tokens of whole chunks, those of actions."""
        return future.unflatten(1, (-1, self.unit))[:, :, : self.chunk].flatten(1, 2)

    def stream(self, trained: Stream, committed: int = 0) -> Stream:
        """The action stream of a buffer behind so many committed actions: a choice of the frames that the model was trained on."""
        frames = tuple(range(-self.past, committed + self.horizon))
        if not set(frames) <= set(trained.frames):
            prefix = f" behind {committed} committed actions" if committed else ""
            raise ValueError(
                f"horizon {self.chunks} x {self.chunk}{prefix} with {self.past} past actions needs frames {frames[0]} to "
                f"{frames[-1]}, but the model was trained on {trained.frames[0]} to {trained.frames[-1]}: "
                f"use fewer or shorter chunks, or fewer past{' or committed' if committed else ''} actions"
            )
        return replace(trained, frames=frames)


@dataclass(frozen=True)
class Buffer:
    """The state of B streams of normalised actions.

    `future` (B, H, A) at the ladder's levels, chunk after chunk; `past` (B, P, A) the executed actions, oldest first, of which the last
    `known` (B,) are real and the rest is what would hold the robot still, as far as that was told; `tick` (B,) ticks since the start;
    `fresh` (B,) true before the first tick; `expected` (B, V, A) what should be seen now, as the chunk that was sent last foresaw it;
    `plan` (B, 5): rows, chunk, chunks, `past` and `seen` of the ladder that it was begun for; `randomness`.
    """

    future: Float[Tensor, "B H A"]
    past: Float[Tensor, "B P A"]
    known: Int[Tensor, " B"]
    tick: Int[Tensor, " B"]
    fresh: Bool[Tensor, " B"]
    expected: Float[Tensor, "B V A"]
    plan: Int[Tensor, "B 5"]
    randomness: Randomness

    def tensors(self) -> dict[str, Tensor]:
        """Everything, as named tensors: what to save."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "randomness"}
        return {**plain, "key": self.randomness.key, "count": self.randomness.count}

    @classmethod
    def from_tensors(cls, saved: dict[str, Tensor]) -> "Buffer":
        """The inverse of `tensors`."""
        plain = {f.name: saved[f.name] for f in fields(cls) if f.name != "randomness"}
        return cls(**plain, randomness=Randomness(saved["key"], saved["count"]))

    def reset(self, mask: Bool[Tensor, " B"], seeds: Int[Tensor, " B"]) -> "Buffer":
        """A new episode where `mask` is true, with new seeds; the others are untouched, bit for bit."""
        new, old = empty_like(self, seeds).tensors(), self.tensors()
        shaped = {name: mask.reshape(-1, *[1] * (value.ndim - 1)) for name, value in old.items()}
        return Buffer.from_tensors({name: torch.where(shaped[name], new[name], old[name]) for name in old})

    def at(self, streams: Sequence[int]) -> "Buffer":
        """The buffers of some of the streams, in this order."""
        return Buffer.from_tensors({name: value[list(streams)] for name, value in self.tensors().items()})


def empty(ladder: Ladder, seeds, size: int, dtype=torch.float32, still: Float[Tensor, "B A"] | None = None) -> Buffer:
    """Buffers of as many streams as there are seeds, before their first tick; `size` numbers per action.

    `still`: normalised actions that hold the robots where they are, for the primer "constant"; by default the mean action.
    """
    randomness = Randomness.seeded(seeds)
    batch = len(randomness.key)
    zeros = torch.zeros(batch, dtype=torch.int64)
    return Buffer(
        torch.zeros(batch, ladder.unit * ladder.chunks, size, dtype=dtype),
        torch.zeros(batch, ladder.past, size, dtype=dtype) if still is None else still.to(dtype)[:, None].repeat(1, ladder.past, 1),
        zeros,
        zeros.clone(),
        torch.ones(batch, dtype=torch.bool),
        torch.zeros(batch, ladder.seen, size, dtype=dtype),
        torch.tensor(ladder.plan).repeat(batch, 1),
        randomness,
    )


def empty_like(buffer: Buffer, seeds) -> Buffer:
    """Fresh buffers of the same shape."""
    cleared = {name: torch.zeros_like(value) for name, value in buffer.tensors().items()}
    cleared |= {"fresh": torch.ones_like(buffer.fresh), "plan": buffer.plan, "key": Randomness.seeded(seeds).key}
    return Buffer.from_tensors(cleared)


def role(buffer: Buffer, committed: int = 0) -> Int[Tensor, "B N"]:
    """Roles of [past, committed, future]: real past actions are given, missing ones absent, the future is active."""
    batch, count = buffer.past.shape[:2]
    real = torch.arange(count)[None] >= count - buffer.known[:, None]
    past = torch.where(real, roles.GIVEN, roles.ABSENT).to(torch.int8)
    future = roles.full(batch, buffer.future.shape[1])
    return torch.cat([past, roles.full(batch, committed, roles.COMMITTED), future], dim=1)


def tick(
    buffer: Buffer,
    ladder: Ladder,
    denoise: Denoise,
    path: GaussianPath,
    step: StepRule,
    committed: Float[Tensor, "B D A"] | None = None,
    count: int = 1,
    revised: Float[Tensor, " B"] | None = None,
) -> tuple[Buffer, Float[Tensor, "B C A"]]:
    """Runs one tick: a few rows, until the first `count` chunks are clean. Returns the buffer (not yet rolled) and their actions.

    `revised` (B,) in [0, 1]: the share of the rows, counted from the clean end, that is gone through again first: everything that is
    further than that is noised back to where they begin; 0 leaves the buffer as it is, 1 begins anew from noise.
    `committed` (B, D, A) normalised actions will be executed before the first chunk; D may differ from tick to tick.
    A rule that looks back (dpmpp_2m) does so within a tick: what a new observation changes in an estimate is no slope (docs/log.md).
    `denoise(x, level)` sees [past, committed, future] as (B, P + D + H, A). In a batch, environments that need fewer calls
    than others wait with equal levels, which leaves their tokens bit for bit as they are.
    """
    if not 1 <= count <= ladder.chunks:
        raise ValueError(f"a tick finishes 1 to {ladder.chunks} chunks, got {count}")
    committed = buffer.future[:, :0] if committed is None else committed.to(buffer.future)
    committed, buffer = _loosened(buffer, ladder, path, committed)
    if bool(buffer.fresh.any()):
        buffer = _prime(buffer, ladder, denoise, path, step, committed)
    remaining = plans.streaming_remaining(ladder.rows, ladder.chunks, buffer.tick)
    lifted = remaining
    if revised is not None and bool((revised > 0).any()):
        buffer, lifted = _revise(buffer, ladder, path, remaining, revised)
    calls, more = remaining[:, count - 1 : count], (lifted - remaining)[:, :1]
    call = torch.arange(int((calls + more).max()) + 1)[:, None, None]
    on_ladder = remaining.maximum(lifted[:, :1] - call.minimum(more))  # what was noised again comes down to the ladder first
    level = ladder.level(on_ladder - (call - more).clamp(min=0).minimum(calls))
    row, given = _row(buffer, committed)
    x, randomness = sample(denoise, path, row, _held(level, ladder, buffer, committed), step, buffer.randomness)
    buffer = replace(buffer, future=x[:, given:], randomness=randomness)
    return buffer, ladder.actions(buffer.future[:, : count * ladder.unit])


def _revise(buffer: Buffer, ladder: Ladder, path: GaussianPath, remaining: Tensor, share: Tensor) -> tuple[Buffer, Tensor]:
    """Noises what is further than the last `share` (B,) of the rows back to their beginning; the calls that every chunk then has left."""
    if share.shape != buffer.tick.shape or not bool(((share >= 0) & (share <= 1)).all()):
        raise ValueError(f"revised is one share of the rows for each of {len(buffer.tick)} streams, in [0, 1], got {share.tolist()}")
    lifted = remaining.maximum((share[:, None] * ladder.rows).ceil().long())
    noise, randomness = buffer.randomness.normal(*buffer.future.shape[1:], dtype=buffer.future.dtype)
    low, high = (ladder.level(calls).to(noise) for calls in (remaining, lifted))
    rises = (lifted > remaining).any(dim=1)
    return replace(
        buffer,
        future=noised(path, buffer.future, noise, low, high),
        randomness=randomness.where(rises, buffer.randomness),  # a stream that is not revised is as if it were alone
    ), lifted


def roll(buffer: Buffer, ladder: Ladder, executed: Float[Tensor, "B C A"]) -> Buffer:
    """Drops the chunk that was sent, appends fresh noise, and keeps what was really executed as the given past."""
    batch, _, size = buffer.future.shape
    if executed.shape != (batch, ladder.chunk, size):
        raise ValueError(f"executed actions must be {(batch, ladder.chunk, size)}, got {tuple(executed.shape)}")
    return recall(advance(buffer, ladder), executed)


def advance(buffer: Buffer, ladder: Ladder, count: int = 1) -> Buffer:
    """Drops the first `count` chunks, which are sent, and appends fresh noise: what stands behind them comes closer."""
    gone, size = count * ladder.unit, buffer.future.shape[2]
    noise, randomness = buffer.randomness.normal(gone, size, dtype=buffer.future.dtype)
    expected, future = buffer.future[:, gone - ladder.seen : gone], torch.cat([buffer.future[:, gone:], noise], dim=1)
    return replace(buffer, future=future, expected=expected, tick=buffer.tick + count, randomness=randomness)


def recall(buffer: Buffer, executed: Float[Tensor, "B n A"]) -> Buffer:
    """Keeps what was really executed since the last call, any number of actions, as the given past."""
    batch, length, size = buffer.past.shape
    if (executed.shape[0], executed.shape[2]) != (batch, size):
        raise ValueError(f"executed actions must be ({batch}, any number, {size}), got {tuple(executed.shape)}")
    past = torch.cat([buffer.past, executed.to(buffer.past)], dim=1)[:, executed.shape[1] :]
    return replace(buffer, past=past, known=(buffer.known + executed.shape[1]).clamp(max=length))


def again(
    buffer: Buffer, ladder: Ladder, denoise: Denoise, path: GaussianPath, step: StepRule, kept: int, begin: int
) -> tuple[Buffer, Float[Tensor, "B H A"]]:
    """Plans the whole horizon anew from the plan before, instead of from noise (a warm start). Returns it clean; not yet rolled.

    The first `kept` actions of the future are what is left of that plan, whose last is repeated behind them; they are noised to where
    the last `begin` of the ladder's rows begin. A stream that has no plan yet takes all rows, from noise.
    """
    if not 1 <= begin <= ladder.rows or not 1 <= kept <= ladder.horizon:
        raise ValueError(f"begin lies in 1..{ladder.rows} and kept in 1..{ladder.horizon}, got {begin} and {kept}")
    left = buffer.future[:, :kept]
    clean = torch.cat([left, left[:, -1:].expand(-1, ladder.horizon - kept, -1)], dim=1)
    calls = torch.where(buffer.tick > 0, begin, ladder.rows)[:, None]
    noise, randomness = buffer.randomness.normal(*clean.shape[1:], dtype=clean.dtype)
    done = torch.arange(int(calls.max()) + 1)[:, None, None].minimum(calls[None])
    level = ((calls[None] - done) / ladder.rows).expand(-1, -1, ladder.horizon)
    row, given = _row(replace(buffer, future=corrupt(path, clean, noise, level[0].to(clean))), clean[:, :0])
    x, randomness = sample(denoise, path, row, _held(level, ladder, buffer, clean[:, :0]), step, randomness)
    buffer = replace(buffer, future=x[:, given:], fresh=torch.zeros_like(buffer.fresh), randomness=randomness)
    return buffer, buffer.future


def levels(buffer: Buffer, ladder: Ladder) -> Float[Tensor, "B H"]:
    """The levels of all tokens in the buffer right behind its tick, before it rolls: the first chunk is clean."""
    remaining = plans.streaming_remaining(ladder.rows, ladder.chunks, buffer.tick)
    return ladder.level(remaining - remaining[:, :1])


def restarted(buffer: Buffer) -> Buffer:
    """The same stream before its first tick: what stands in the future is forgotten; past and randomness stay."""
    return replace(buffer, tick=torch.zeros_like(buffer.tick), fresh=torch.ones_like(buffer.fresh))


def _row(buffer: Buffer, committed: Tensor) -> tuple[Tensor, int]:
    """[past, committed, future] and how many tokens stand before the future."""
    return torch.cat([buffer.past, committed, buffer.future], dim=1), buffer.past.shape[1] + committed.shape[1]


def _held(level: Float[Tensor, "K1 B H"], ladder: Ladder, buffer: Buffer, committed: Tensor) -> Float[Tensor, "K1 B N"]:
    """Levels of [past, committed, future]: the past is clean, what is committed stays at the ladder's `loose`."""
    behind = pad(level, (committed.shape[1], 0), value=ladder.loose)
    return pad(behind, (buffer.past.shape[1], 0))


def _loosened(buffer: Buffer, ladder: Ladder, path: GaussianPath, committed: Tensor) -> tuple[Tensor, Buffer]:
    """Committed actions at the ladder's `loose`, with noise from the buffer."""
    if not ladder.loose or not committed.shape[1]:
        return committed, buffer
    noise, randomness = buffer.randomness.normal(*committed.shape[1:], dtype=committed.dtype)
    held = committed.new_full(committed.shape[:2], ladder.loose)
    return corrupt(path, committed.expand(len(noise), -1, -1), noise, held), replace(buffer, randomness=randomness)


def _prime(buffer: Buffer, ladder: Ladder, denoise: Denoise, path: GaussianPath, step: StepRule, committed: Tensor) -> Buffer:
    """Fills the fresh buffers so that every chunk stands at its level of the ladder."""
    shape = buffer.future.shape[1:]
    noise, randomness = buffer.randomness.normal(*shape, dtype=buffer.future.dtype)
    clean = torch.zeros_like(buffer.future)
    if ladder.primer == "constant":
        clean = buffer.past[:, -1:].expand_as(clean)
    if calls := ladder.primer_calls:
        row, given = _row(replace(buffer, future=noise), committed)
        falling = torch.arange(calls, -1, -1) / calls
        level = falling[:, None, None].expand(-1, len(noise), shape[0])
        # A buffer that is not fresh stands still meanwhile: equal levels in every row.
        level = torch.where(buffer.fresh[None, :, None], level, 0.0)
        out, randomness = sample(denoise, path, row, _held(level, ladder, buffer, committed), step, randomness)
        clean = out[:, given:]
        noise, randomness = randomness.normal(*shape, dtype=buffer.future.dtype)
    remaining = plans.streaming_remaining(ladder.rows, ladder.chunks, buffer.tick)
    primed = corrupt(path, clean, noise, ladder.level(remaining).to(noise))
    return replace(
        buffer,
        future=torch.where(buffer.fresh[:, None, None], primed, buffer.future),
        fresh=torch.zeros_like(buffer.fresh),
        randomness=randomness.where(buffer.fresh, buffer.randomness),
    )
