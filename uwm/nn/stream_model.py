"""The backbone over any streams: what `UnifiedModel` is for a robot's actions and cameras, without anything of a robot.

```
stream "front" (video, continuous) --read--+                              +--write--> prediction per token
stream "action" (action)           --read--+--> tokens --> backbone --> --+--write--> prediction per token
stream "text" (word, one-hot)      --read--+                              +--write--> logits per word
```

A word stream is discrete: a clean token is one-hot over the vocabulary, a masked one is all zeros. Its level is 0 or 1, which
is its own mask bit, so the network never learns how far a run has come (RADD, Ou et al. 2025, sec. 3.1).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from uwm.core import roles
from uwm.core.levels import per_token
from uwm.core.shapes import Float, Int
from uwm.core.streams import Layout, Stream
from uwm.nn.backbone import Backbone, BackboneConfig, Prefix


@dataclass(frozen=True)
class StreamModelConfig:
    """Which streams, what is predicted of the continuous ones along which path, and the sizes of the transformer."""

    streams: tuple[Stream, ...]
    prediction: str = "velocity"
    path: str = "cosine"
    noise_shift: float = 1.0
    backbone: BackboneConfig = field(default_factory=BackboneConfig)

    @property
    def layout(self) -> Layout:
        """All streams in one row of tokens."""
        return Layout(self.streams)


class StreamModel(nn.Module):
    """forward(tokens, level, role, layout, prefix) -> prediction; keep(...) -> what later calls need of these tokens.

    `layout` is the model's own, a choice of its streams, or one with other frames of them: a token is known by its tags.
    """

    def __init__(self, config: StreamModelConfig):
        super().__init__()
        self.config = config
        self.layout = config.layout
        width = config.backbone.width
        self.backbone = Backbone(config.backbone)
        self.tag = nn.Parameter(0.02 * torch.randn(len(config.streams), width))
        self.read = nn.ModuleDict({stream.name: _reader(stream, width) for stream in config.streams})
        self.write = nn.ModuleDict({stream.name: nn.Linear(width, stream.size) for stream in config.streams})
        for linear in self.write.values():
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        x: Float[Tensor, "B N S"],
        level: Tensor | float,
        role: Int[Tensor, "B N"],
        layout: Layout | None = None,
        prefix: Prefix | None = None,
    ) -> Float[Tensor, "B N S"]:
        """Predicts every token: a continuous one as `config.prediction` says, a word by logits over its vocabulary.

        `level` as `core.levels.per_token` takes it; that of words does not matter. Absent tokens have no influence.
        """
        layout = layout or self.layout
        hidden, _ = self._run(x, level, role, layout, prefix)
        return layout.pack({name: self.write[name](hidden[:, layout.span(name)]).to(x.dtype) for name in layout.names})

    def keep(
        self,
        x: Float[Tensor, "B N S"],
        level: Tensor | float,
        role: Int[Tensor, "B N"],
        layout: Layout,
        prefix: Prefix | None = None,
    ) -> Prefix:
        """Keys and values of these tokens, for later calls that see all of them, behind those of `prefix`.

        Exact where nothing in the layout would see the later tokens, and while neither x nor level changes.
        """
        kept = self._run(x, level, role, layout, prefix, with_registers=False)[1]
        return kept if prefix is None else joined(prefix, kept)

    def _run(self, x, level, role, layout: Layout, prefix, with_registers: bool = True) -> tuple[Tensor, Prefix]:
        if x.shape[1:] != (layout.tokens, layout.size):
            raise ValueError(f"tokens must be (B, {layout.tokens}, {layout.size}), got {tuple(x.shape)}")
        if role.shape != x.shape[:2]:
            raise ValueError(f"roles must be {tuple(x.shape[:2])}, got {tuple(role.shape)}")
        seen = roles.seen(role)
        # An absent token's content must not matter, not even if it is NaN.
        x = torch.where(seen[..., None], x, 0.0)
        level = bits(x, per_token(level, *x.shape[:2]).to(x.dtype), layout)
        tokens = torch.cat([self._read(name, part) for name, part in layout.unpack(x).items()], dim=1)
        tags = layout.tags.to(x.device)
        return self.backbone(tokens, level, tags[:, 1:4].float(), tags[:, 4], seen, prefix, with_registers=with_registers)

    def _read(self, name: str, values: Tensor) -> Tensor:
        return self.read[name](values) + self.tag[self.layout.names.index(name)]

    def fresh(self, frames: Mapping[str, tuple[int, ...]]) -> Layout:
        """This model's layout with other frames in some streams: longer, shorter or elsewhere."""
        return Layout(tuple(replace(s, frames=tuple(frames.get(s.name, s.frames))) for s in self.layout.streams))


def initialised(config: StreamModelConfig, seed: int) -> StreamModel:
    """A model whose first weights follow from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return StreamModel(config)


def bits(x: Float[Tensor, "B N S"], level: Float[Tensor, "B N"], layout: Layout) -> Float[Tensor, "B N"]:
    """Levels as the network sees them: those of words are their own mask bits, 1 where a token is all zeros."""
    words = layout.of_kind("word")
    if not words:
        return level
    masked = (x == 0).all(dim=-1).to(level.dtype)
    return torch.where(layout.mask(*words).to(x.device), masked, level)


def joined(first: Prefix, second: Prefix) -> Prefix:
    """Both prefixes, one behind the other."""
    keys = tuple(torch.cat(pair, dim=2) for pair in zip(first.keys, second.keys, strict=True))
    values = tuple(torch.cat(pair, dim=2) for pair in zip(first.values, second.values, strict=True))
    return Prefix(keys, values, torch.cat([first.seen, second.seen], dim=1))


def _reader(stream: Stream, width: int) -> nn.Module:
    if stream.kind == "word":
        return nn.Linear(stream.size, width)  # of a one-hot: an embedding, and the bias stands for the mask
    return nn.Sequential(nn.Linear(stream.size, width), nn.SiLU(), nn.Linear(width, width))
