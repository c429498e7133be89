"""Models that see one vector, acting only: the 1-D U-Net of Diffusion Policy (Chi et al. 2023) and of Streaming Diffusion Policy (Høeg et
al. 2024), and an MLP.

```
cameras, state, words   --encoders--> one vector, kept once per observation ---+---------> MLP --> a plan
                                                                               | FiLM
executed, committed and coming actions, their levels ----------------------> U-Net --> prediction per action
```

They take the same training, policies and controllers as `UnifiedModel`. What they cannot do: there are no tokens to leave out,
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
from uwm.nn.mlp import MLP
from uwm.nn.robot_model import ModelConfig, Observation, RobotModel
from uwm.nn.unet import UNet


@dataclass(frozen=True)
class Features:
    """What was observed, as one vector per sample (B, G)."""

    vector: Float[Tensor, "B G"]

    def at(self, index: Int[Tensor, " b"]) -> "Features":
        """A choice of samples."""
        return Features(self.vector[index])


class VectorModel(RobotModel):
    """encode(observation) -> Features; forward(actions, level, role, layout, features) -> prediction.

    Its network stands under the name of its trunk, `unet` or `mlp`.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        size, side = self.width, config.autoencoder.image_size
        words = size if config.language.hears else 0
        self.see = nn.ModuleDict({name: eyes.make(config.eyes, side, config.grid, size, words) for name in config.cameras})
        self.feel = StateEncoder(config.proprio_size, size)
        self.moment = size * (1 + 2 * len(config.cameras))  # numbers that tell of one observation
        condition = self.moment * (1 + len(config.history)) + size * config.language.hears
        of_plan = config.action_size, condition, config.past + config.horizon
        self.add_module(config.trunk, MLP(config.mlp, *of_plan) if config.trunk == "mlp" else UNet(config.unet, *of_plan))
        self.blank = nn.Parameter(0.02 * torch.randn(condition))  # what stands for what was not seen or told
        self.hear = StateEncoder(config.language.width, size) if config.language.hears else None

    @property
    def _network(self) -> UNet | MLP:
        return self.get_submodule(self.config.trunk)

    @property
    def width(self) -> int:
        """Numbers of a token of what is observed."""
        return getattr(self.config, self.config.trunk).feature

    @property
    def modulation_share(self) -> float:
        """Share of the network's parameters that turn levels and observations into scales and shifts."""
        of = lambda wanted: sum(p.numel() for name, p in self._network.named_parameters() if wanted(name))  # noqa: E731
        return of(lambda name: ".film." in name or name.startswith("level.")) / of(bool)

    def encode(self, observation: Observation) -> Features:
        """Runs the encoders once; the result serves every call on this observation. Earlier ones stand behind the present one."""
        moments, (said, told) = self._moments(observation), self._heard(observation)
        blanks = self.blank[: self.moment * len(moments)].split(self.moment)
        pairs = zip(moments, blanks, strict=True)
        found = [blank[None] if seen is None else self._features(seen, said, blank) for (_, seen), blank in pairs]
        if said is not None:
            found.append(torch.where(told[:, None], said, self.blank[-said.shape[1] :]))
        return Features(torch.cat([each.expand(len(found[0]), -1) for each in found], dim=1))

    def _features(self, observation: Observation, said: Float[Tensor, "B S"] | None, blank: Float[Tensor, " g"]) -> Float[Tensor, "B g"]:
        found, there = [self.feel(self._proprio(observation))[:, 0]], [self._felt(observation)]
        for name in self.config.cameras:
            image, present = self._camera(observation, name)
            tokens = self.see[name](image, said)
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
        actions = self._own(self._read_of(x, level, role), dims)
        return self._network(actions, torch.where(roles.seen(role), level, 1.0), context.vector).to(x.dtype)
