"""The one transformer: tokens with a level each in, one vector per token out.

Every token is modulated by its own level. The modulation is computed once and shared by all blocks, each of which adds
a small learned offset (PixArt-alpha, Chen et al. 2023, sec. 2.3), through a narrow waist: under 30 % of the weights,
where the UWM reference spends 74 %. Attention follows from one integer per token: a token sees tokens whose block is not
larger than its own and that are not absent.

Tokens of an earlier block do not see the later ones, so what they give to attention (keys and values) can be computed
once per observation and kept as a `Prefix`; both ways give the same numbers, and a test says so.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from uwm.core.shapes import Bool, Float, Int
from uwm.nn.position import angles, rotate


@dataclass(frozen=True)
class BackboneConfig:
    """Sizes of the transformer.

    `waist` is the width of the shared modulation; `condition` adds the size of an optional global vector to it (the UWM
    paper's conditioning); `registers` are learned tokens that everybody sees.
    """

    width: int = 192
    depth: int = 6
    heads: int = 4
    ratio: int = 4
    registers: int = 4
    waist: int = 96
    condition: int = 0

    def __post_init__(self):
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width must be heads times an even number, got width {self.width}, heads {self.heads}")


@dataclass(frozen=True)
class Prefix:
    """Keys and values of given tokens, one pair per block (each (B, H, M, W)), and which of them are there (B, M)."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    seen: Bool[Tensor, "B M"]

    def at(self, index: Int[Tensor, " R"]) -> "Prefix":
        """The prefixes of chosen samples, in that order, perhaps repeated."""
        chosen = [tuple(t.index_select(0, index) for t in kept) for kept in (self.keys, self.values)]
        return Prefix(*chosen, self.seen.index_select(0, index))


class LevelEmbedding(nn.Module):
    """Level in [0, 1] to the waist: sines and cosines of a quarter turn to eight turns, then a small MLP.

    Levels are continuous here: faster waves would be noise to a model that never sees the same level twice.
    """

    def __init__(self, waist: int, waves: int = 32):
        super().__init__()
        self.register_buffer("waves", math.pi / 2 * torch.logspace(0, 1.5, waves), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * waves, waist), nn.SiLU(), nn.Linear(waist, waist))

    def forward(self, level: Float[Tensor, "B N"]) -> Float[Tensor, "B N C"]:
        angle = level[..., None] * self.waves
        return self.mlp(torch.cat([angle.sin(), angle.cos()], dim=-1))


class Block(nn.Module):
    """Attention and MLP, both with per-token shift, scale and gate."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=False)
        self.norm_mlp = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.ratio * width), nn.GELU(approximate="tanh"), nn.Linear(config.ratio * width, width)
        )
        # Shift, scale, gate twice. Gates start at one: short training runs cannot wait for them to open.
        self.offset = nn.Parameter(torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 1.0])[:, None].repeat(1, width))
        for linear in (self.out, self.mlp[-1]):
            nn.init.normal_(linear.weight, std=1 / math.sqrt(2 * config.depth * linear.in_features))
            nn.init.zeros_(linear.bias)

    def forward(self, x, modulation, turn, mask, prefix=None):
        """x (B, N, D), modulation (B, N, 6, D) -> x, and this block's keys and values (B, H, N, W)."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (modulation + self.offset).unbind(dim=-2)
        hidden = self.norm_attention(x) * (1 + scale) + shift
        attended, keys, values = self._attend(hidden, turn, mask, prefix)
        x = x + gate * attended
        x = x + gate_mlp * self.mlp(self.norm_mlp(x) * (1 + scale_mlp) + shift_mlp)
        return x, keys, values

    def _attend(self, hidden, turn, mask, prefix):
        heads = rearrange(self.qkv(hidden), "b n (three h w) -> three b h n w", three=3, h=self.heads)
        # On CPUs bfloat16 attention costs twice float32's, while the linear layers gain: leave autocast for this part.
        with torch.autocast(hidden.device.type, enabled=False):
            query, key, value = heads.to(turn[0].dtype) if hidden.device.type == "cpu" else heads
            query, key = rotate(query, *turn).to(value.dtype), rotate(key, *turn).to(value.dtype)
            keys, values = key, value
            if prefix is not None:
                keys, values = torch.cat([prefix[0], key], dim=2), torch.cat([prefix[1], value], dim=2)
            out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        return self.out(rearrange(out, "b h n w -> b n (h w)")), key, value


class Backbone(nn.Module):
    """A stack of blocks over embedded tokens. It knows tags, levels and who is absent, and nothing of modalities."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.registers = nn.Parameter(0.02 * torch.randn(config.registers, width))
        self.level = LevelEmbedding(config.waist)
        self.condition = nn.Linear(config.condition, config.waist) if config.condition else None
        self.modulation = nn.Linear(config.waist, 6 * width)
        self.final = nn.Linear(config.waist, 2 * width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        for linear in (self.modulation, self.final):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        tokens: Float[Tensor, "B N D"],
        level: Float[Tensor, "B N"],
        place: Float[Tensor, "N 3"],
        block: Int[Tensor, " N"],
        seen: Bool[Tensor, "B N"],
        prefix: Prefix | None = None,
        condition: Float[Tensor, "B G"] | None = None,
        with_registers: bool = True,
    ) -> tuple[Float[Tensor, "B N D"], Prefix]:
        """Token vectors out, and what these tokens (registers not included) can leave to later calls as a prefix.

        `place` is (frame, row, column) of every token, `block` its attention block, `seen` false for absent tokens. All
        tokens see the whole prefix.
        """
        count = tokens.shape[1]
        tokens = torch.where(seen[..., None], tokens, 0.0)
        level = torch.where(seen, level, 1.0)
        if with_registers and len(self.registers):
            tokens, level, place, block, seen = self._with_registers(tokens, level, place, block, seen)
        embedded = F.silu(self._embed_level(level, condition))
        modulation = rearrange(self.modulation(embedded), "b n (six d) -> b n six d", six=6)
        angle = angles(place, self.config.width // self.config.heads).to(self.weight_dtype)
        turn, mask = (angle.cos(), angle.sin()), _mask(block, seen, prefix)
        keys, values = [], []
        for index, layer in enumerate(self.blocks):
            left = (prefix.keys[index], prefix.values[index]) if prefix else None
            tokens, key, value = layer(tokens, modulation, turn, mask, left)
            keys.append(key[:, :, :count])
            values.append(value[:, :, :count])
        shift, scale = self.final(embedded[:, :count]).chunk(2, dim=-1)
        out = self.norm(tokens[:, :count]) * (1 + scale) + shift
        return out, Prefix(tuple(keys), tuple(values), seen[:, :count])

    @property
    def weight_dtype(self) -> torch.dtype:
        """The dtype of the weights, which autocast does not change."""
        return self.registers.dtype

    def _embed_level(self, level, condition):
        embedded = self.level(level)
        if (self.condition is None) != (condition is None):
            raise ValueError("a global condition vector is given if and only if the config has condition > 0")
        return embedded if condition is None else embedded + self.condition(condition)[:, None]

    def _with_registers(self, tokens, level, place, block, seen):
        batch, extra = len(tokens), len(self.registers)
        tokens = torch.cat([tokens, self.registers.expand(batch, -1, -1).to(tokens.dtype)], dim=1)
        level = F.pad(level, (0, extra), value=0.0)
        place = F.pad(place, (0, 0, 0, extra), value=0.0)
        last = block.max() if len(block) else torch.zeros((), dtype=torch.int64)
        block = torch.cat([block, last.expand(extra)])
        return tokens, level, place, block, F.pad(seen, (0, extra), value=True)


def _mask(block: Tensor, seen: Tensor, prefix: Prefix | None) -> Bool[Tensor, "B 1 N M"] | None:
    """Who sees whom (true: sees), or None where everybody sees everybody."""
    order = block[None, :] <= block[:, None]
    columns = seen if prefix is None else torch.cat([prefix.seen, seen], dim=1)
    if bool(order.all()) and bool(columns.all()):
        return None
    if prefix is not None:
        order = F.pad(order, (prefix.seen.shape[1], 0), value=True)
    # A token that may see nobody (all absent) would divide by zero: it sees itself, and no one looks at it.
    alone = F.pad(torch.eye(len(block), dtype=torch.bool, device=block.device), (order.shape[1] - len(block), 0))
    return ((order[None] & columns[:, None]) | alone[None])[:, None]
