"""The network of the UWM paper (Zhu et al. 2025, sec. III and app. A), number for number, for published weights.

```
actions (16 tokens)  video patches (view, time, row, column)  registers      one row of tokens, learned positions
        \\______________________________|_______________________/
              12 blocks, each modulated by one vector per sample: [observation features, level embedding]
                                        |
                       noise of the actions, noise of the patches
```

Parameters carry the published key names. It speaks the same language as our own model, `network(x, level, role, layout,
context)`, so the same loop samples it; levels must be equal within a modality, because it has one label for each. Kept
apart from `uwm.nn.backbone` because it differs in every detail that costs: 74 % of its weights are modulation, and
absent tokens do not exist.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from uwm.core.levels import to_index
from uwm.core.shapes import Float, Int
from uwm.core.streams import Layout, Stream
from uwm.nn.resnet import ResNet18

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LATENT_SCALE = 0.13025 / 3  # SDXL's scale, then a third, so that clipping to [-1, 1] is tolerable


@dataclass(frozen=True)
class PaperConfig:
    """Sizes of a published model. `views` are camera names (sorted, as the weights expect); sizes in numbers.

    Video tokens of a view: `video_frames` / `patch_time` x `grid` x `grid`, each of latent x patch_time x patch x patch numbers.
    """

    views: tuple[str, ...]
    action_size: int
    registers: int
    horizon: int = 16
    observation_frames: int = 2
    video_frames: int = 2
    grid: int = 7
    latent: int = 4
    patch_time: int = 2
    patch: int = 4
    width: int = 768
    depth: int = 12
    heads: int = 12
    feature: int = 768
    encoder_width: int = 64
    level_size: int = 512
    entries: int = 100

    def __post_init__(self):
        if tuple(sorted(self.views)) != tuple(self.views) or not self.views:
            raise ValueError(f"views must be at least one name, in sorted order, got {self.views}")
        if self.width % self.heads or self.video_frames % self.patch_time:
            raise ValueError("width must be a multiple of heads, and video_frames of patch_time")

    @property
    def layout(self) -> Layout:
        """Actions, then one video stream per view; a token stands for `patch_time` frames."""
        size = self.latent * self.patch_time * self.patch**2
        frames = tuple(range(self.horizon, self.horizon + self.video_frames, self.patch_time))
        video = [Stream(view, "video", frames, size, (self.grid, self.grid)) for view in self.views]
        return Layout((Stream("action", "action", tuple(range(self.horizon)), self.action_size), *video))

    @property
    def tokens(self) -> int:
        """Tokens of a call, registers included: 171 for DROID, 138 for LIBERO."""
        return self.layout.tokens + self.registers

    @property
    def condition(self) -> int:
        """Size of the vector that modulates every block."""
        return len(self.views) * self.observation_frames * self.feature + self.level_size


PRESETS = {
    "uwm-droid": PaperConfig(("exterior_1", "exterior_2", "wrist"), action_size=10, registers=8),
    "uwm-libero": PaperConfig(("agentview", "wrist"), action_size=7, registers=24),
}
PRESETS["uwm-tiny"] = replace(
    PRESETS["uwm-libero"], registers=2, horizon=4, grid=2, width=32, depth=2, heads=2, feature=16, encoder_width=16, level_size=8
)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = rearrange(self.qkv(x), "b n (three h w) -> three b h n w", three=3, h=self.heads)
        return self.proj(rearrange(F.scaled_dot_product_attention(query, key, value), "b h n w -> b n (h w)"))


class _MLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class _Block(nn.Module):
    def __init__(self, config: PaperConfig):
        super().__init__()
        self.attn, self.mlp = _Attention(config.width, config.heads), _MLP(config.width)
        self.adaLN_modulation = _zeroed(config.condition, 6 * config.width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(condition).chunk(6, dim=-1)
        x = x + gate[:, None] * self.attn(_modulated(x, shift, scale))
        return x + gate_mlp[:, None] * self.mlp(_modulated(x, shift_mlp, scale_mlp))


class _Head(nn.Module):
    def __init__(self, config: PaperConfig):
        super().__init__()
        self.adaLN_modulation = _zeroed(config.condition, 2 * config.width)
        self.linear = nn.Linear(config.width, config.width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.linear(_modulated(x, *self.adaLN_modulation(condition).chunk(2, dim=-1)))


class _Patches(nn.Module):
    """Tokens hold (channel, time, row, column) of a patch, so the convolution whose stride is its kernel is a product."""

    def __init__(self, config: PaperConfig):
        super().__init__()
        kernel = (config.patch_time, config.patch, config.patch)
        self.patch_encoder = nn.Conv3d(config.latent, config.width, kernel, kernel)
        self.patch_decoder = nn.Linear(config.width, config.latent * math.prod(kernel))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(tokens, self.patch_encoder.weight.flatten(1), self.patch_encoder.bias)


class _Labels(nn.Module):
    """Two integer labels to one embedding: sines then cosines of each, then an MLP."""

    def __init__(self, size: int):
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(2 * size, 4 * size), nn.Mish(), nn.Linear(4 * size, size))
        # Made by hand and not a buffer: the published files know no such key.
        self.half = size // 2

    def forward(self, labels: Int[Tensor, "B 2"]) -> Float[Tensor, "B S"]:
        place = torch.arange(self.half, device=labels.device, dtype=torch.float64)
        angle = labels[..., None] * torch.exp(-math.log(10_000) * place / (self.half - 1))
        waves = torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(1)
        return self.proj(waves.to(self.proj[0].weight.dtype))


class PaperDenoiser(nn.Module):
    """`noise_pred_net` of the published code: tokens at two levels and observation features in, predicted noise out."""

    def __init__(self, config: PaperConfig):
        super().__init__()
        self.config, width = config, config.width
        self.layout = config.layout
        hidden = 4 * max(config.action_size, width)
        self.registers = nn.Parameter(0.02 * torch.randn(1, config.registers, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, config.tokens, width))
        self.obs_patchifier = _Patches(config)
        self.action_encoder = nn.Sequential(nn.Linear(config.action_size, hidden), nn.Mish(), nn.Linear(hidden, width))
        self.action_decoder = nn.Sequential(nn.Linear(width, hidden), nn.Mish(), nn.Linear(hidden, config.action_size))
        self.timestep_embedding = _Labels(config.level_size)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.head = _Head(config)

    def forward(
        self, x: Float[Tensor, "B N S"], level: Float[Tensor, "B N"], role: object, layout: Layout, features: Float[Tensor, "B C"]
    ) -> Float[Tensor, "B N S"]:
        """The predicted noise of every token. `role` is not used: this network has no absent tokens, only noise."""
        if layout != self.layout:
            raise ValueError("this network always reads all of its streams: marginalise with noise instead of leaving video out")
        labels = torch.stack([self._label(level, kind) for kind in ("action", "video")], dim=1)
        condition = torch.cat([features, self.timestep_embedding(labels)], dim=1)
        parts = layout.unpack(x)
        video = torch.cat([self.obs_patchifier(parts[view]) for view in self.config.views], dim=1)
        tokens = torch.cat([self.action_encoder(parts["action"]), video, self.registers.expand(len(x), -1, -1)], dim=1)
        tokens = tokens + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, condition)
        tokens = self.head(tokens, condition)
        noise = {"action": self.action_decoder(tokens[:, layout.span("action")])}
        noise |= {view: self.obs_patchifier.patch_decoder(tokens[:, layout.span(view)]) for view in self.config.views}
        return layout.pack(noise)

    def _label(self, level: Tensor, kind: str) -> Int[Tensor, " B"]:
        """The label of a modality; a clean one is labelled 0, as released."""
        own = level[:, self.layout.mask(*self.layout.of_kind(kind))]
        if not bool((own == own[:, :1]).all()):
            raise ValueError(f"the paper's network has one level per modality, but {kind} tokens of a sample differ")
        return to_index(own[:, 0], self.config.entries).clamp(min=0)


class PaperEncoder(nn.Module):
    """Observation frames of all views to one feature vector, by one ResNet-18 shared over views."""

    def __init__(self, config: PaperConfig):
        super().__init__()
        self.config = config
        self.model = ResNet18(config.feature, config.encoder_width)

    def forward(self, images: dict[str, Tensor]) -> Float[Tensor, "B C"]:
        """Frames (B, T, 3, H, W) in [0, 1] per view; features stand in the order view, time."""
        missing = set(self.config.views) ^ set(images)
        if missing:
            raise ValueError(f"this network needs exactly the views {self.config.views}; {sorted(missing)} do not match")
        frames = torch.stack([images[view] for view in self.config.views], dim=1)
        if frames.shape[2] != self.config.observation_frames:
            raise ValueError(f"each view needs {self.config.observation_frames} frames, got {frames.shape[2]}")
        mean, std = (frames.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        features = self.model(rearrange((frames - mean) / std, "b v t c h w -> (b v t) c h w"))
        return rearrange(features, "(b n) d -> b (n d)", b=len(frames))


class PaperModel(nn.Module):
    """Encoder and denoiser of one published model."""

    def __init__(self, config: PaperConfig):
        super().__init__()
        self.config = config
        self.see, self.denoiser = PaperEncoder(config), PaperDenoiser(config)

    def encode(self, images: dict[str, Tensor]) -> Float[Tensor, "B C"]:
        return self.see(images)

    def forward(self, x, level, role, layout, features):
        return self.denoiser(x, level, role, layout, features)


def to_patches(latents: Float[Tensor, "B T C H W"], config: PaperConfig) -> Float[Tensor, "B N S"]:
    """Scaled latents of one view's frames to tokens; see `from_patches`."""
    p, t = config.patch, config.patch_time
    return rearrange(latents, "b (t pt) c (h ph) (w pw) -> b (t h w) (c pt ph pw)", pt=t, ph=p, pw=p)


def from_patches(tokens: Float[Tensor, "B N S"], config: PaperConfig) -> Float[Tensor, "B T C H W"]:
    """The inverse of `to_patches`."""
    p, t, g = config.patch, config.patch_time, config.grid
    return rearrange(tokens, "b (t h w) (c pt ph pw) -> b (t pt) c (h ph) (w pw)", pt=t, ph=p, pw=p, h=g, w=g)


def _zeroed(inputs: int, outputs: int) -> nn.Sequential:
    """SiLU and a linear layer that starts at zero (AdaLN-zero)."""
    linear = nn.Linear(inputs, outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.SiLU(), linear)
