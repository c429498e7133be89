"""Best of N: several plans are drawn, the same weights foresee where each leads, and the one with the best outcome is sent.

```
observation --policy mode----> N plans --forward dynamics----> N outcomes --score--> the best plan's first chunk is sent
```

What makes an outcome good is not the model's to know: `score` is a function of what was foreseen, e.g. how near a frame is to a goal,
or how much of a target is covered. (Best-of-N planning with one network: Cosmos Policy, 2601.16163; a model with video or state streams.)
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from uwm.core.shapes import Float
from uwm.core.streams import Layout
from uwm.nn.robot_model import Observation, RobotModel
from uwm.robot.policy import Policy, PolicyConfig
from uwm.sample import roll


@dataclass(frozen=True)
class Outcome:
    """What N plans lead to, at `ticks` {stream: frames from now}: `images` {camera: (N, T, 3, H, W) in [0, 1]}, `proprio` (N, T, P)."""

    ticks: dict[str, tuple[int, ...]]
    images: dict[str, Tensor]
    proprio: Float[Tensor, "N T P"] | None = None


class BestOf(Policy):
    """A chunked policy of one environment whose plans are drawn `samples` times and chosen by `score(outcome) -> (N,)`, the largest first.

    `rows` of the forward dynamics: 1 for a model that was trained with the rule `outcome`. ValueError for a config that plans in a
    buffer, and for a model that foresees nothing.
    """

    def __init__(self, model: RobotModel, config: PolicyConfig, samples: int, score: Callable[[Outcome], Tensor], rows: int = 1):
        super().__init__(model, config)
        if config.kind != "chunked" or samples < 1:
            raise ValueError(f"best of N chooses among N >= 1 plans of a chunked policy, got {samples} of kind {config.kind!r}")
        self.samples, self.score, self.rows = samples, score, rows
        horizon = self.ladder.horizon
        ahead = {stream: tuple(frame for frame in stream.frames if frame <= horizon) for stream in model.layout.streams}
        streams = [replace(stream, frames=frames) for stream, frames in ahead.items() if frames and stream.kind != "action"]
        if not streams:
            raise ValueError(f"the model foresees nothing within {horizon} ticks: train it with model.video_frames or model.state_frames")
        action = replace(model.layout["action"], frames=tuple(range(-config.past, horizon)))
        self.outcome = Layout((action, *streams))

    def start(self, seeds: Iterable[int], still: Float[Tensor, "1 A"] | None = None) -> roll.Buffer:
        """A fresh memory of one environment: as many plans as there are samples."""
        (seed,) = seeds
        return super().start([seed * self.samples + index for index in range(self.samples)], still)

    @torch.inference_mode()
    def act(self, memory: roll.Buffer, observation: Observation) -> tuple[roll.Buffer, Float[Tensor, "1 C A"]]:
        """The first chunk of the plan whose outcome is best."""
        memory, actions = super().act(memory, observation)
        if self.samples == 1:
            return memory, actions
        scores = self.score(self.imagined(memory, observation))
        if scores.shape != (self.samples,) or not bool(torch.isfinite(scores).all()):
            raise ValueError(f"score must give {self.samples} finite numbers, one a plan, got {scores}")
        return memory, actions[scores.argmax()][None]

    def done(self, memory: roll.Buffer, executed: Float[Tensor, "1 C A"]) -> roll.Buffer:
        """The memory after `executed` really went to the robot, whichever plan it came from."""
        return super().done(memory, executed.expand(self.samples, -1, -1))

    @torch.inference_mode()
    def imagined(self, memory: roll.Buffer, observation: Observation) -> Outcome:
        """Where the plans in the memory, which `act` has just made, lead."""
        model, layout = self.model, self.outcome
        actions = torch.cat([memory.past, memory.future], dim=1)[..., : model.config.action_size]
        found, _ = self.lead(layout, memory, actions, observation, self.rows)
        ticks = {stream.name: stream.frames for stream in layout.streams if stream.kind != "action"}
        images = {name: model.video.decode(found[name], len(ticks[name]) * model.config.merge) for name in layout.of_kind("video")}
        now = observation.proprio.expand(len(actions), -1)
        return Outcome(ticks, images, model.to_proprio(now, found["state"]) if "state" in found else None)
