"""Action Chunking with Transformers (Zhao et al. 2023, sec. IV): a regression of a plan that also has a style.

```
training   proprioception, actions --posterior--> mean, spread --> style ~ N(mean, spread) --+
acting                                                             style = 0 ---------------+--> a token beside what is observed
```

Demonstrators do the same thing in several ways; what the observation does not tell of the way, the style may, at the price of its
divergence from N(0, 1). Its numbers are at most as many as those of a plan.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from uwm.core.shapes import Bool, Float, Int
from uwm.nn.backbone import Backbone, Prefix
from uwm.nn.model import UnifiedModel
from uwm.nn.robot_model import ModelConfig, Observation

STYLE = 32  # numbers


class ActModel(UnifiedModel):
    """encode(observation) -> Prefix with the style 0; in training `styled(observed(observation), a guessed style)` instead."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.style_size = min(STYLE, config.horizon * config.action_size)
        self.tell = nn.Linear(self.style_size, config.backbone.width)
        self.posterior = Posterior(config, self.style_size)

    def encode(self, observation: Observation) -> Prefix:
        """What is observed, and the style 0."""
        context = self.observed(observation)
        return self.styled(context, context.keys[0].new_zeros(len(context.seen), self.style_size))

    def observed(self, observation: Observation) -> Prefix:
        """What is observed, without a style."""
        return super().encode(observation)

    def styled(self, context: Prefix, style: Float[Tensor, "B Z"]) -> Prefix:
        """What was observed, and the token of a style behind it."""
        token, level = self.tell(style)[:, None], style.new_zeros(len(style), 1)
        place, block = level.new_zeros(1, 3), level.new_zeros(1).long()
        _, told = self.backbone(token, level, place, block, level == 0, context, with_registers=False)
        join = lambda first, second: tuple(torch.cat(pair, dim=2) for pair in zip(first, second, strict=True))  # noqa: E731
        return Prefix(join(context.keys, told.keys), join(context.values, told.values), torch.cat([context.seen, told.seen], dim=1))

    def guess(
        self, observation: Observation, window: Int[Tensor, " R"], actions: Float[Tensor, "R n A"], seen: Bool[Tensor, "R n"]
    ) -> tuple[Float[Tensor, "R Z"], Float[Tensor, "R Z"]]:
        """Mean and log-variance of the style of normalised actions, each of the observation of its `window`."""
        return self.posterior(actions, seen, torch.where(self._felt(observation)[:, None], self._proprio(observation), 0.0)[window])


class Posterior(nn.Module):
    """A transformer that reads actions and proprioception, and sums their style up in one more token. In training only."""

    def __init__(self, config: ModelConfig, style_size: int):
        super().__init__()
        width = config.backbone.width
        self.backbone = Backbone(replace(config.backbone, registers=0))
        self.summary = nn.Parameter(0.02 * torch.randn(width))
        self.feel, self.read = nn.Linear(config.proprio_size, width), nn.Linear(config.action_size, width)
        self.write = nn.Linear(width, 2 * style_size)

    def forward(
        self, actions: Float[Tensor, "R n A"], seen: Bool[Tensor, "R n"], proprio: Float[Tensor, "R P"]
    ) -> tuple[Float[Tensor, "R Z"], Float[Tensor, "R Z"]]:
        """Mean and log-variance of the style; actions that are not `seen` have no influence."""
        read = self.read(torch.where(seen[..., None], actions, 0.0))
        tokens = torch.cat([self.summary.expand(len(read), 1, -1).to(read.dtype), self.feel(proprio)[:, None], read], dim=1)
        place = torch.zeros(tokens.shape[1], 3, device=read.device)
        place[:, 0] = torch.arange(len(place))
        there, level = torch.nn.functional.pad(seen, (2, 0), value=True), place.new_zeros(tokens.shape[:2])
        out, _ = self.backbone(tokens, level, place, place.new_zeros(len(place)).long(), there)
        mean, log_variance = self.write(out[:, 0]).chunk(2, dim=-1)
        return mean, log_variance
