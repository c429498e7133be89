"""The rolling buffer of streaming diffusion (Streaming Diffusion Policy, sec. IV), as a value.

```
tick t      past   chunk 1   chunk 2   chunk 3          level of chunk i: calls it still has before it / rows
before      ....   ::::::    ======    @@@@@@
calls       (a few rows of the loop: all chunks fall together)
after       ....   ......    ::::::    ======           chunk 1 is clean and is sent
roll        ....   ::::::    ======    @@@@@@           executed actions become the past, fresh noise joins
```

A `Buffer` holds everything: values, how far each environment is, executed actions, random state. It can be saved,
restored, batched and reset by mask; nothing about an episode lives anywhere else.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from uwm.core import plans, roles
from uwm.core.shapes import Bool, Float, Int
from uwm.core.streams import Stream
from uwm.noise.gaussian import GaussianPath, corrupt
from uwm.sample.loop import sample
from uwm.sample.randomness import Randomness
from uwm.sample.steps import Denoise, StepRule

PRIMERS = ("denoise", "zero")


@dataclass(frozen=True)
class Ladder:
    """How the buffer is run: `rows` calls from noise to clean, `chunk` actions sent per tick, `chunks` chunks held.

    `past` executed actions are kept as given tokens (0 or more). `primer` fills a fresh buffer: "denoise" samples the
    whole horizon once (`rows` calls) and noises it back to the ladder; "zero" noises the mean action (no calls).
    """

    rows: int
    chunk: int
    chunks: int
    past: int = 2
    primer: str = "denoise"

    def __post_init__(self):
        if min(self.rows, self.chunk, self.chunks) < 1 or self.past < 0:
            raise ValueError(f"rows, chunk and chunks must be >= 1 and past >= 0, got {self}")
        if self.primer not in PRIMERS:
            raise ValueError(f"primer must be one of {PRIMERS}, got {self.primer!r}")

    @property
    def horizon(self) -> int:
        return self.chunk * self.chunks

    def stream(self, trained: Stream) -> Stream:
        """The action stream that this buffer uses: a choice of the frames that the model was trained on."""
        frames = tuple(range(-self.past, self.horizon))
        if not set(frames) <= set(trained.frames):
            raise ValueError(
                f"horizon {self.chunks} x {self.chunk} with {self.past} past actions needs frames {frames[0]} to "
                f"{frames[-1]}, but the model was trained on {trained.frames[0]} to {trained.frames[-1]}: "
                "use fewer or shorter chunks, or fewer past actions"
            )
        return replace(trained, frames=frames)


@dataclass(frozen=True)
class Buffer:
    """The state of B streams of normalised actions.

    `future` (B, H, A) at the ladder's levels; `past` (B, P, A) the executed actions, oldest first, of which the last
    `known` (B,) are real; `tick` (B,) ticks since the start; `fresh` (B,) true before the first tick; `randomness`.
    """

    future: Float[Tensor, "B H A"]
    past: Float[Tensor, "B P A"]
    known: Int[Tensor, " B"]
    tick: Int[Tensor, " B"]
    fresh: Bool[Tensor, " B"]
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


def empty(ladder: Ladder, seeds, size: int, dtype=torch.float32) -> Buffer:
    """Buffers of as many streams as there are seeds, before their first tick; `size` numbers per action."""
    randomness = Randomness.seeded(seeds)
    batch = len(randomness.key)
    zeros = torch.zeros(batch, dtype=torch.int64)
    return Buffer(
        torch.zeros(batch, ladder.horizon, size, dtype=dtype),
        torch.zeros(batch, ladder.past, size, dtype=dtype),
        zeros,
        zeros.clone(),
        torch.ones(batch, dtype=torch.bool),
        randomness,
    )


def empty_like(buffer: Buffer, seeds) -> Buffer:
    """Fresh buffers of the same shape."""
    cleared = {name: torch.zeros_like(value) for name, value in buffer.tensors().items()}
    cleared |= {"fresh": torch.ones_like(buffer.fresh), "key": Randomness.seeded(seeds).key}
    return Buffer.from_tensors(cleared)


def role(buffer: Buffer) -> Int[Tensor, "B N"]:
    """Roles of [past, future]: real past actions are given, missing ones absent, the future is active."""
    count = buffer.past.shape[1]
    real = torch.arange(count)[None] >= count - buffer.known[:, None]
    past = torch.where(real, roles.GIVEN, roles.ABSENT).to(torch.int8)
    return torch.cat([past, roles.full(*buffer.future.shape[:2])], dim=1)


def tick(
    buffer: Buffer, ladder: Ladder, denoise: Denoise, path: GaussianPath, step: StepRule
) -> tuple[Buffer, Float[Tensor, "B C A"]]:
    """Runs one tick: a few rows, until the first chunk is clean. Returns the buffer (not yet rolled) and that chunk.

    `denoise(x, level)` sees [past, future] as (B, P + H, A). In a batch, environments that need fewer calls than
    others wait with equal levels, which leaves their tokens bit for bit as they are.
    """
    if bool(buffer.fresh.any()):
        buffer = _prime(buffer, ladder, denoise, path, step)
    remaining = plans.streaming_remaining(ladder.rows, ladder.chunks, buffer.tick)
    calls = remaining[:, :1]
    done = torch.arange(int(calls.max()) + 1)[:, None, None].minimum(calls[None])
    level = _with_past(((remaining[None] - done) / ladder.rows).repeat_interleave(ladder.chunk, dim=2), ladder)
    x, randomness = sample(denoise, path, _row(buffer), level, step, buffer.randomness)
    buffer = replace(buffer, future=x[:, ladder.past :], randomness=randomness)
    return buffer, buffer.future[:, : ladder.chunk]


def roll(buffer: Buffer, ladder: Ladder, executed: Float[Tensor, "B C A"]) -> Buffer:
    """Drops the chunk that was sent, appends fresh noise, and keeps what was really executed as the given past."""
    batch, _, size = buffer.future.shape
    if executed.shape != (batch, ladder.chunk, size):
        raise ValueError(f"executed actions must be {(batch, ladder.chunk, size)}, got {tuple(executed.shape)}")
    noise, randomness = buffer.randomness.normal(ladder.chunk, size, dtype=buffer.future.dtype)
    past = torch.cat([buffer.past, executed.to(buffer.past)], dim=1)[:, -ladder.past :] if ladder.past else buffer.past
    return replace(
        buffer,
        future=torch.cat([buffer.future[:, ladder.chunk :], noise], dim=1),
        past=past,
        known=(buffer.known + ladder.chunk).clamp(max=ladder.past),
        tick=buffer.tick + 1,
        randomness=randomness,
    )


def _row(buffer: Buffer) -> Tensor:
    return torch.cat([buffer.past, buffer.future], dim=1)


def _with_past(level: Tensor, ladder: Ladder) -> Tensor:
    """Levels of the future (..., H) with zeros in front for the past."""
    return torch.nn.functional.pad(level, (ladder.past, 0))


def _prime(buffer: Buffer, ladder: Ladder, denoise: Denoise, path: GaussianPath, step: StepRule) -> Buffer:
    """Fills the fresh buffers so that every chunk stands at its level of the ladder."""
    shape = buffer.future.shape[1:]
    noise, randomness = buffer.randomness.normal(*shape, dtype=buffer.future.dtype)
    clean = torch.zeros_like(buffer.future)
    if ladder.primer == "denoise":
        filled = replace(buffer, future=noise)
        falling = torch.arange(ladder.rows, -1, -1) / ladder.rows
        level = falling[:, None, None].expand(-1, len(noise), shape[0])
        # A buffer that is not fresh stands still meanwhile: equal levels in every row.
        level = torch.where(buffer.fresh[None, :, None], level, 0.0)
        out, randomness = sample(denoise, path, _row(filled), _with_past(level, ladder), step, randomness)
        clean = out[:, ladder.past :]
        noise, randomness = randomness.normal(*shape, dtype=buffer.future.dtype)
    remaining = plans.streaming_remaining(ladder.rows, ladder.chunks, buffer.tick)
    level = (remaining / ladder.rows).repeat_interleave(ladder.chunk, dim=1).to(noise)
    primed = corrupt(path, clean, noise, level)
    return replace(
        buffer,
        future=torch.where(buffer.fresh[:, None, None], primed, buffer.future),
        fresh=torch.zeros_like(buffer.fresh),
        randomness=randomness.where(buffer.fresh, buffer.randomness),
    )
