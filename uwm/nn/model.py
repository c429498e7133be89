"""The unified model: encoders for what is observed, token projections for what is denoised, one backbone between.

```
cameras, state, words   --encoders--> context tokens (block 0, level 0) --+-- kept once per observation as a Prefix
                                                                          |
actions, future video --in--> tokens (block 1, their levels) ------> backbone --out--> prediction per token
```

With `backbone.condition` above 0 nobody attends to what is observed: it is summed up in one vector of so many numbers, which modulates all
tokens as their levels do (the UWM paper's fusion).
"""

import torch
from torch import Tensor, nn

from uwm.core import roles
from uwm.core.shapes import Bool, Float, Int
from uwm.core.streams import Layout, Stream
from uwm.nn import eyes, pretrained
from uwm.nn.backbone import Backbone, Prefix
from uwm.nn.codecs import VideoCodec
from uwm.nn.encoders import StateEncoder, Summary
from uwm.nn.robot_model import ModelConfig, Observation, RobotModel
from uwm.nn.vector_model import Features


class UnifiedModel(RobotModel):
    """encode(observation) -> Prefix, or Features to modulate with; forward(tokens, level, role, layout, context) -> prediction."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        width = config.backbone.width
        self.backbone = Backbone(config.backbone)
        self.autoencoder = pretrained.make(config.autoencoder).requires_grad_(False)
        image_size = config.autoencoder.image_size
        hears = config.language.hears
        words = width if hears else 0
        self.see = nn.ModuleDict({name: eyes.make(config.eyes, image_size, config.grid, width, words) for name in config.cameras})
        self.feel = StateEncoder(config.proprio_size, width)
        self.fuse = Summary(width, config.backbone.heads, config.backbone.condition) if config.backbone.condition else None
        self.context_tag = nn.Parameter(0.02 * torch.randn(1 + len(config.cameras) + hears, width))
        self.stream_tag = nn.Parameter(0.02 * torch.randn(len(self.layout.streams), width))
        sizes = {stream.kind: stream.size for stream in self.layout.streams}
        self.read = nn.ModuleDict({kind: _mlp(size, width, width) for kind, size in sizes.items()})
        self.write = nn.ModuleDict({kind: nn.Linear(width, size) for kind, size in sizes.items()})
        for linear in self.write.values():
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.hear = StateEncoder(config.language.width, width) if hears else None

    @property
    def width(self) -> int:
        """Numbers of a token of what is observed."""
        return self.config.backbone.width

    @property
    def modulation_share(self) -> float:
        """Share of the backbone's parameters that turn levels into scales and shifts."""
        backbone = self.backbone
        modulation = [p for part in (backbone.level, backbone.modulation, backbone.final) for p in part.parameters()]
        modulation += [block.offset for block in backbone.blocks]
        return sum(p.numel() for p in modulation) / sum(p.numel() for p in backbone.parameters())

    @property
    def video(self) -> VideoCodec:
        """The codec of the video streams."""
        return VideoCodec(self.autoencoder, self.config.patch, self.config.merge)

    def encode(self, observation: Observation) -> Prefix | Features:
        """Runs the observation through the backbone once; the result serves every call on this observation."""
        tokens, place, seen = self.context(observation)
        if self.fuse is not None:
            return Features(self.fuse(tokens, seen))
        level = torch.zeros(tokens.shape[:2], device=tokens.device)
        block = torch.zeros(tokens.shape[1], dtype=torch.int64, device=tokens.device)
        return self.backbone(tokens, level, place, block, seen, with_registers=False)[1]

    def context(self, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """Context tokens (B, M, D), their places (M, 3) and which are there (B, M); those of an earlier observation stand at its tick."""
        said, told = self._heard(observation)
        parts = [self._context(seen, tick, said) for tick, seen in self._moments(observation) if seen is not None]
        if said is not None:
            parts.append((said[:, None] + self.context_tag[-1], torch.zeros(1, 3), told[:, None]))
        tokens, place, seen = zip(*parts, strict=True)
        return torch.cat(tokens, dim=1), torch.cat(place).to(tokens[0].device), torch.cat(seen, dim=1)

    def _context(self, observation: Observation, tick: int, said: Float[Tensor, "B S"] | None) -> tuple[Tensor, Tensor, Tensor]:
        tokens = [self.feel(self._proprio(observation)) + self.context_tag[0]]
        seen = [self._felt(observation)[:, None]]
        place = [torch.zeros(1, 3)]
        for index, name in enumerate(self.config.cameras, start=1):
            image, present = self._camera(observation, name)
            see = self.see[name]
            tokens.append(see(image, said) + self.context_tag[index])
            seen.append(present[:, None].expand(-1, see.tokens))
            place.append(see.places)
        return torch.cat(tokens, dim=1), torch.cat(place) + torch.tensor([tick, 0.0, 0.0]), torch.cat(seen, dim=1)

    def forward(
        self,
        x: Float[Tensor, "B N S"],
        level: Float[Tensor, "B N"],
        role: Int[Tensor, "B N"],
        layout: Layout,
        context: Prefix | Features,
        dims: Bool[Tensor, "B A"] | None = None,
    ) -> Float[Tensor, "B N S"]:
        """Predicts every token of `layout`, which is this model's layout or a choice of its streams.

        Absent tokens have no influence: leaving their streams out of the layout gives the same numbers for the rest. Nor have
        numbers of an action that the robot does not have: `dims` says which it has; by default those of the robot at hand.
        """
        if x.shape[1:] != (layout.tokens, layout.size):
            raise ValueError(f"tokens must be (B, {layout.tokens}, {layout.size}), got {tuple(x.shape)}")
        parts = layout.unpack(self._read_of(x, level, role))
        tokens = torch.cat([self._read(layout[name], part, dims) for name, part in parts.items()], dim=1)
        tags = layout.tags.to(x.device)
        prefix, condition = (None, context.vector) if isinstance(context, Features) else (context, None)
        hidden, _ = self.backbone(tokens, level, tags[:, 1:4].float(), tags[:, 4], roles.seen(role), prefix, condition)
        return layout.pack(
            {s.name: self.write[s.kind](hidden[:, layout.span(s.name)]).to(x.dtype) for s in layout.streams}
        )

    def _read(self, stream: Stream, values: Tensor, dims: Tensor | None) -> Tensor:
        values = self._own(values, dims) if stream.kind == "action" else values
        return self.read[stream.kind](values) + self.stream_tag[self.layout.names.index(stream.name)]


def _mlp(size: int, hidden: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(size, hidden), nn.SiLU(), nn.Linear(hidden, out))
