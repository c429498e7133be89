"""The unified model: encoders for what is observed, token projections for what is denoised, one backbone between.

```
cameras, proprioception --encoders--> context tokens (block 0, level 0) --+-- kept once per observation as a Prefix
                                                                          |
actions, future video --in--> tokens (block 1, their levels) ------> backbone --out--> prediction per token
```
"""

from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from uwm.core import roles
from uwm.core.shapes import Bool, Float, Int
from uwm.core.streams import Layout, Stream
from uwm.nn.autoencoder import Autoencoder, AutoencoderConfig
from uwm.nn.backbone import Backbone, BackboneConfig, Prefix
from uwm.nn.codecs import Embodiment, NormaliseConfig, VideoCodec
from uwm.nn.encoders import ImageEncoder, StateEncoder


@dataclass(frozen=True)
class Member:
    """One dataset of a mixture: its name and the sizes of its own action and proprioception (0: it has none)."""

    name: str
    action_size: int
    proprio_size: int


@dataclass(frozen=True)
class ModelConfig:
    """What the model sees and denoises.

    `past`: executed actions that may be shown; `horizon`: future actions; `video_frames`: future frames, in ticks;
    `cameras`: names; `grid`: tokens per side of an observed image (one more holds its keypoints); `patch` and `merge`: a
    video token stands for patch x patch latents of merge frames (named by the first of them); `path` and
    `noise_shift`: see `uwm.noise.gaussian.path`; sizes in numbers; `normalise`: how each stream is normalised; `members`:
    the datasets of a mixture, whose actions and proprioception fill the first of `action_size` and `proprio_size` places.
    """

    cameras: tuple[str, ...]
    proprio_size: int
    action_size: int
    past: int = 2
    horizon: int = 24
    video_frames: tuple[int, ...] = (8, 16)
    grid: int = 4
    patch: int = 2
    merge: int = 1
    prediction: str = "velocity"
    path: str = "cosine"
    noise_shift: float = 1.0
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    normalise: NormaliseConfig = field(default_factory=NormaliseConfig)
    members: tuple[Member, ...] = ()

    def __post_init__(self):
        if self.horizon < 1 or self.past < 0:
            raise ValueError(f"horizon must be >= 1 and past >= 0, got {self.horizon} and {self.past}")
        if self.autoencoder.image_size % (8 * self.patch) or len(self.video_frames) % self.merge:
            raise ValueError(
                f"image_size must be a multiple of 8 x patch and video_frames of merge, got {self.autoencoder.image_size} "
                f"pixels, patch {self.patch}, {len(self.video_frames)} frames, merge {self.merge}"
            )

    @property
    def acting(self) -> str:
        """The member whose robot the model acts for unless told otherwise: the first that has actions. "" without members."""
        names = [member.name for member in self.members if member.action_size] + [member.name for member in self.members]
        return names[0] if names else ""

    def sizes(self, member: str) -> tuple[int, int]:
        """Numbers in an action and in the proprioception of a member."""
        found = next((each for each in self.members if each.name == member), None)
        if found is None and (member or self.members):
            raise ValueError(f"the model has no member {member!r}; it has {[each.name for each in self.members] or 'one dataset only'}")
        return (found.action_size, found.proprio_size) if found else (self.action_size, self.proprio_size)

    @property
    def layout(self) -> Layout:
        """Every token that is denoised: actions, then one video stream per camera."""
        action = Stream("action", "action", tuple(range(-self.past, self.horizon)), self.action_size)
        if not self.video_frames:
            return Layout((action,))
        side, size = self.autoencoder.image_size // (8 * self.patch), self.autoencoder.latent * self.patch**2 * self.merge
        video = [Stream(name, "video", self.video_frames[:: self.merge], size, (side, side)) for name in self.cameras]
        return Layout((action, *video))


@dataclass(frozen=True)
class Observation:
    """What is seen now: `images` {camera: (B, 3, H, W) in [0, 1]}, `proprio` (B, P) in physical units.

    `present` {camera: (B,) bool} marks cameras that are missing in some samples; a camera left out is missing in all. Under
    "proprio" it marks missing proprioception. `normalised`: proprio is so already, and as wide as the model's: samples of
    several robots, each by its own normaliser.
    """

    images: dict[str, Tensor]
    proprio: Tensor
    present: dict[str, Tensor] = field(default_factory=dict)
    normalised: bool = False


class UnifiedModel(nn.Module):
    """encode(observation) -> Prefix; forward(tokens, level, role, layout, prefix) -> prediction."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.layout = config.layout
        width = config.backbone.width
        self.backbone = Backbone(config.backbone)
        self.autoencoder = Autoencoder(config.autoencoder).requires_grad_(False)
        self.members = nn.ModuleList(Embodiment(m.action_size, m.proprio_size, config.normalise) for m in config.members)
        own = Embodiment(*config.sizes(config.acting), config.normalise)
        self.normalise_action, self.normalise_proprio = own.action, own.proprio
        image_size = config.autoencoder.image_size
        self.see = nn.ModuleDict({name: ImageEncoder(image_size, config.grid, width) for name in config.cameras})
        self.feel = StateEncoder(config.proprio_size, width)
        self.context_tag = nn.Parameter(0.02 * torch.randn(1 + len(config.cameras), width))
        self.stream_tag = nn.Parameter(0.02 * torch.randn(len(self.layout.streams), width))
        sizes = {stream.kind: stream.size for stream in self.layout.streams}
        self.read = nn.ModuleDict({kind: _mlp(size, width, width) for kind, size in sizes.items()})
        self.write = nn.ModuleDict({kind: nn.Linear(width, size) for kind, size in sizes.items()})
        for linear in self.write.values():
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    @property
    def video(self) -> VideoCodec:
        """The codec of the video streams."""
        return VideoCodec(self.autoencoder, self.config.patch, self.config.merge)

    def act_as(self, member: str = "") -> "UnifiedModel":
        """Takes over the normalisers of a member of the mixture, by default of the first that has actions; returns itself."""
        name = member or self.config.acting
        self.config.sizes(name)
        for each, own in zip(self.config.members, self.members, strict=True):
            if each.name == name:
                self.normalise_action, self.normalise_proprio = deepcopy(own.action), deepcopy(own.proprio)
        return self

    def to_actions(self, tokens: Float[Tensor, "B T A"]) -> Float[Tensor, "B T a"]:
        """Actions of the robot at hand, in physical units, from normalised tokens."""
        return self.normalise_action.restore(tokens[..., : self.normalise_action.size])

    def from_actions(self, actions: Float[Tensor, "B T a"]) -> Float[Tensor, "B T A"]:
        """The inverse of `to_actions`: normalised, and padded with zeros to the model's size."""
        return self._wide(self.normalise_action.normalise(actions), self.config.action_size)

    @staticmethod
    def _wide(value: Tensor, size: int) -> Tensor:
        return value if value.shape[-1] == size else pad(value, (0, size - value.shape[-1]))

    def encode(self, observation: Observation) -> Prefix:
        """Runs the observation through the backbone once; the result serves every call on this observation."""
        tokens, place, seen = self.context(observation)
        level = torch.zeros(tokens.shape[:2], device=tokens.device)
        block = torch.zeros(tokens.shape[1], dtype=torch.int64, device=tokens.device)
        return self.backbone(tokens, level, place, block, seen, with_registers=False)[1]

    def context(self, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """Context tokens (B, M, D), their places (M, 3) and which are there (B, M)."""
        proprio = self._proprio(observation)
        tokens = [self.feel(proprio) + self.context_tag[0]]
        felt = observation.present.get("proprio", torch.ones(len(proprio), dtype=torch.bool, device=proprio.device))
        seen = [felt[:, None]]
        place = [torch.zeros(1, 3)]
        for index, name in enumerate(self.config.cameras, start=1):
            image, present = self._camera(observation, name)
            see = self.see[name]
            tokens.append(see(image) + self.context_tag[index])
            seen.append(present[:, None].expand(-1, see.tokens))
            place.append(see.places)
        return torch.cat(tokens, dim=1), torch.cat(place).to(proprio.device), torch.cat(seen, dim=1)

    def _proprio(self, observation: Observation) -> Tensor:
        """Normalised proprioception (B, proprio_size)."""
        proprio, normaliser = observation.proprio, self.normalise_proprio
        size = self.config.proprio_size if observation.normalised else normaliser.size
        if proprio.ndim != 2 or proprio.shape[1] != size:
            raise ValueError(f"proprio must be (B, {size}), got {tuple(proprio.shape)}")
        return proprio if observation.normalised else self._wide(normaliser.normalise(proprio), self.config.proprio_size)

    def _camera(self, observation: Observation, name: str) -> tuple[Tensor, Tensor]:
        """The image of one camera and where it is there; a missing camera is black and absent."""
        proprio, side = observation.proprio, self.config.autoencoder.image_size
        if name not in observation.images:
            black = proprio.new_zeros(len(proprio), 3, side, side)
            return black, torch.zeros(len(proprio), dtype=torch.bool, device=proprio.device)
        image = observation.images[name]
        if name not in observation.present:
            return image, torch.ones(len(proprio), dtype=torch.bool, device=proprio.device)
        present = observation.present[name]
        # NaN pixels of a dead camera would be masked later on, but not in the gradient of the encoder.
        return torch.where(present[:, None, None, None], image, 0.0), present

    def forward(
        self,
        x: Float[Tensor, "B N S"],
        level: Float[Tensor, "B N"],
        role: Int[Tensor, "B N"],
        layout: Layout,
        prefix: Prefix,
        dims: Bool[Tensor, "B A"] | None = None,
    ) -> Float[Tensor, "B N S"]:
        """Predicts every token of `layout`, which is this model's layout or a choice of its streams.

        Absent tokens have no influence: leaving their streams out of the layout gives the same numbers for the rest. Nor have
        numbers of an action that the robot does not have: `dims` says which it has; by default those of the robot at hand.
        """
        if x.shape[1:] != (layout.tokens, layout.size):
            raise ValueError(f"tokens must be (B, {layout.tokens}, {layout.size}), got {tuple(x.shape)}")
        # An absent token's content must not matter, not even if it is NaN.
        parts = layout.unpack(torch.where(roles.seen(role)[..., None], x, 0.0))
        tokens = torch.cat([self._read(layout[name], part, dims) for name, part in parts.items()], dim=1)
        tags = layout.tags.to(x.device)
        hidden, _ = self.backbone(tokens, level, tags[:, 1:4].float(), tags[:, 4], roles.seen(role), prefix)
        return layout.pack(
            {s.name: self.write[s.kind](hidden[:, layout.span(s.name)]).to(x.dtype) for s in layout.streams}
        )

    def _read(self, stream: Stream, values: Tensor, dims: Tensor | None) -> Tensor:
        own = self.normalise_action.size
        if stream.kind == "action" and (dims is not None or own < stream.size):
            there = torch.arange(stream.size, device=values.device) < own if dims is None else dims[:, None]
            values = torch.where(there, values, 0.0)
        return self.read[stream.kind](values) + self.stream_tag[self.layout.names.index(stream.name)]


def _mlp(size: int, hidden: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(size, hidden), nn.SiLU(), nn.Linear(hidden, out))


def parameter_share(model: UnifiedModel) -> dict[str, float]:
    """Parameters by part, as numbers, and the share of modulation in the backbone."""
    backbone = model.backbone
    modulation = sum(
        p.numel() for part in (backbone.level, backbone.modulation, backbone.final) for p in part.parameters()
    ) + sum(block.offset.numel() for block in backbone.blocks)
    count = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    return {**count, "total": sum(count.values()), "modulation_share": modulation / max(count["backbone"], 1)}
