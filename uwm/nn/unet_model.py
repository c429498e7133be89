"""The 1-D U-Net as a robot's model: Diffusion Policy (Chi et al. 2023) and Streaming Diffusion Policy (Høeg et al. 2024), acting only.

```
cameras, state, words   --encoders--> one vector, kept once per observation ---+
                                                                               | FiLM
executed, committed and coming actions, their levels ----------------------> U-Net --> prediction per action
```

It takes the same training, policies and controllers as `UnifiedModel`. What it cannot do: convolutions have no tokens to leave out,
so an absent action is a blank of level 1, whose content has no influence, but whose place has.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from uwm.core import roles
from uwm.core.shapes import Bool, Float, Int
from uwm.core.streams import Layout
from uwm.nn import eyes
from uwm.nn.encoders import StateEncoder
from uwm.nn.robot_model import ModelConfig, Observation, RobotModel
from uwm.nn.unet import UNet


@dataclass(frozen=True)
class Features:
    """What was observed, as one vector per sample (B, G)."""

    vector: Float[Tensor, "B G"]

    def at(self, index: Int[Tensor, " b"]) -> "Features":
        """A choice of samples."""
        return Features(self.vector[index])


class UNetModel(RobotModel):
    """encode(observation) -> Features; forward(actions, level, role, layout, features) -> prediction."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        size, side = config.unet.feature, config.autoencoder.image_size
        self.see = nn.ModuleDict({name: eyes.make(config.eyes, side, config.grid, size) for name in config.cameras})
        self.feel = StateEncoder(config.proprio_size, size)
        self.moment = size * (1 + 2 * len(config.cameras))  # numbers that tell of one observation
        condition = self.moment * (1 + len(config.history)) + size * config.language.hears
        self.unet = UNet(config.unet, config.action_size, condition, config.past + config.horizon)
        self.blank = nn.Parameter(0.02 * torch.randn(condition))  # what stands for what was not seen or told
        self.hear = StateEncoder(config.language.width, size) if config.language.hears else None

    @property
    def width(self) -> int:
        """Numbers of a token of what is observed."""
        return self.config.unet.feature

    @property
    def modulation_share(self) -> float:
        """Share of the U-Net's parameters that turn levels and observations into scales and shifts."""
        of = lambda wanted: sum(p.numel() for name, p in self.unet.named_parameters() if wanted(name))  # noqa: E731
        return of(lambda name: ".film." in name or name.startswith("level.")) / of(bool)

    def encode(self, observation: Observation) -> Features:
        """Runs the encoders once; the result serves every call on this observation. Earlier ones stand behind the present one."""
        moments, (instruction, told) = self._moments(observation), self._told(observation)
        blanks = self.blank[: self.moment * len(moments)].split(self.moment)
        found = [blank[None] if seen is None else self._features(seen, blank) for (_, seen), blank in zip(moments, blanks, strict=True)]
        if self.hear:
            heard = self.hear(instruction)[:, 0]
            found.append(torch.where(told[:, None], heard, self.blank[-heard.shape[1] :]))
        return Features(torch.cat([each.expand(len(found[0]), -1) for each in found], dim=1))

    def _features(self, observation: Observation, blank: Float[Tensor, " g"]) -> Float[Tensor, "B g"]:
        found, there = [self.feel(self._proprio(observation))[:, 0]], [self._felt(observation)]
        for name in self.config.cameras:
            image, present = self._camera(observation, name)
            tokens = self.see[name](image)
            found.append(torch.cat([tokens[:, :-1].mean(dim=1), tokens[:, -1]], dim=1))  # of all cells, and the keypoints
            there.append(present)
        seen = torch.cat([each[:, None].expand_as(part) for each, part in zip(there, found, strict=True)], dim=1)
        return torch.where(seen, torch.cat(found, dim=1), blank)

    def forward(
        self,
        x: Float[Tensor, "B N S"],
        level: Float[Tensor, "B N"],
        role: Int[Tensor, "B N"],
        layout: Layout,
        context: Features,
        dims: Bool[Tensor, "B A"] | None = None,
    ) -> Float[Tensor, "B N S"]:
        """Predicts every action of `layout`: this model's frames, or any of them without a gap.

        The content of absent actions, and of numbers that a robot's action does not have (`dims`), has no influence.
        """
        if x.shape[1:] != (layout.tokens, layout.size) or layout.names != ("action",):
            raise ValueError(f"tokens must be actions (B, {layout.tokens}, {layout.size}), got {tuple(x.shape)} of {layout.names}")
        seen = roles.seen(role)
        actions = self._own(torch.where(seen[..., None], x, 0.0), dims)
        return self.unet(actions, torch.where(seen, level, 1.0), context.vector).to(x.dtype)
