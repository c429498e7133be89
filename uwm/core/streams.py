"""Streams (what one modality looks like) and layouts (a row of tokens with a tag on each).

```
layout      action (26 tokens)          agentview (2 frames x 4 x 4)      wrist (2 frames x 4 x 4)
frame       -2 -1 | 0 1 2 ... 23        8 8 8 8 ... 16 16 16 16           8 8 8 8 ... 16 16 16 16
tokens      [] [] | [] [] [] ... []     [][][][]    [] [] [] []           [][][][]    [] [] [] []
```

A token is known by its tags alone (stream, frame, row, column, block), never by its position in the row, so any
subset of streams is a valid layout for the same weights.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from uwm.core.shapes import Bool, Int

KINDS = ("action", "video", "state", "image", "label", "word")  # a word is discrete: one-hot, all zeros when masked


@dataclass(frozen=True)
class Stream:
    """One modality: its kind, the frames it has in a window, tokens per frame, numbers per token, attention block.

    `frames` are ticks relative to the present observation (tick 0); negative frames are the past. `grid` is (rows,
    columns) of tokens in a frame. A token sees tokens whose block is not larger than its own; in a `causal` stream the block
    rises with the frame, so that a frame sees its past and not its future. `size` of a word stream is its vocabulary.
    """

    name: str
    kind: str
    frames: tuple[int, ...]
    size: int
    grid: tuple[int, int] = (1, 1)
    block: int = 1
    causal: bool = False

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"stream {self.name!r}: kind is one of {KINDS}, got {self.kind!r}")
        if not self.frames or list(self.frames) != sorted(set(self.frames)):
            raise ValueError(f"stream {self.name!r}: frames must rise strictly and not be empty, got {self.frames}")
        if self.size < 1 or min(self.grid) < 1:
            raise ValueError(f"stream {self.name!r}: size and grid must be positive, got {self.size}, {self.grid}")
        if self.causal and self.frames[0] < 0:
            raise ValueError(f"stream {self.name!r} is causal: its frames count from 0, got {self.frames}")

    @property
    def frame_tokens(self) -> int:
        """Tokens of one frame."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """Tokens that this stream puts into a row."""
        return len(self.frames) * self.frame_tokens


@dataclass(frozen=True)
class Layout:
    """An ordered choice of streams, packed into one row of `tokens` tokens of `size` numbers each."""

    streams: tuple[Stream, ...]

    def __post_init__(self):
        names = [stream.name for stream in self.streams]
        if len(set(names)) != len(names):
            raise ValueError(f"stream names must differ, got {names}")

    @cached_property
    def tokens(self) -> int:
        return sum(stream.tokens for stream in self.streams)

    @cached_property
    def size(self) -> int:
        return max(stream.size for stream in self.streams)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(stream.name for stream in self.streams)

    def __getitem__(self, name: str) -> Stream:
        if name not in self.names:
            raise KeyError(f"no stream {name!r} in this layout; it has {list(self.names)}")
        return self.streams[self.names.index(name)]

    def span(self, name: str) -> slice:
        """Where the tokens of one stream lie in the row."""
        index = self.names.index(self[name].name)
        start = sum(stream.tokens for stream in self.streams[:index])
        return slice(start, start + self.streams[index].tokens)

    def select(self, names: Iterable[str]) -> "Layout":
        """The layout of only these streams, in this layout's order: what remains when the others are absent."""
        wanted = {self[name].name for name in names}
        return Layout(tuple(stream for stream in self.streams if stream.name in wanted))

    def index_in(self, whole: "Layout") -> Int[Tensor, " N"]:
        """For each token of this layout its index in `whole`, which must hold the same streams and perhaps more."""
        return torch.cat([torch.arange(whole.tokens)[whole.span(name)] for name in self.names])

    def of_kind(self, kind: str) -> tuple[str, ...]:
        """Names of the streams of one kind (a modality)."""
        return tuple(stream.name for stream in self.streams if stream.kind == kind)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds present, in order of first appearance."""
        return tuple(dict.fromkeys(stream.kind for stream in self.streams))

    def mask(self, *names: str) -> Bool[Tensor, " N"]:
        """True at the tokens of the named streams."""
        mask = torch.zeros(self.tokens, dtype=torch.bool)
        for name in names:
            mask[self.span(name)] = True
        return mask

    @cached_property
    def tags(self) -> Int[Tensor, "N 5"]:
        """Stream index, frame, row, column and block of every token."""
        rows = [
            (index, frame, row, column, stream.block + (frame if stream.causal else 0))
            for index, stream in enumerate(self.streams)
            for frame in stream.frames
            for row in range(stream.grid[0])
            for column in range(stream.grid[1])
        ]
        return torch.tensor(rows, dtype=torch.int64)

    @property
    def frame(self) -> Int[Tensor, " N"]:
        return self.tags[:, 1]

    @property
    def block(self) -> Int[Tensor, " N"]:
        return self.tags[:, 4]

    @cached_property
    def filled(self) -> Bool[Tensor, "N S"]:
        """True where a token's numbers mean something: streams have different sizes, the rest of a row is zero."""
        sizes = torch.tensor([self.streams[i].size for i in self.tags[:, 0].tolist()])
        return torch.arange(self.size)[None, :] < sizes[:, None]

    def pack(self, values: dict[str, Tensor]) -> Tensor:
        """Per-stream tensors (B, tokens of the stream, its size) into one (B, N, S), padded with zeros."""
        missing = [name for name in self.names if name not in values]
        if missing:
            raise KeyError(f"values for streams {missing} are missing; got {sorted(values)}")
        for stream in self.streams:
            got = tuple(values[stream.name].shape[1:])
            if got != (stream.tokens, stream.size):
                raise ValueError(f"stream {stream.name!r} wants (B, {stream.tokens}, {stream.size}), got (B, {got})")
        pad = torch.nn.functional.pad
        return torch.cat([pad(values[s.name], (0, self.size - s.size)) for s in self.streams], dim=1)

    def unpack(self, packed: Tensor) -> dict[str, Tensor]:
        """The inverse of `pack`."""
        return {s.name: packed[:, self.span(s.name), : s.size] for s in self.streams}
