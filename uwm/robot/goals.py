"""A goal image instead of an instruction: dream the way there, then do what leads along it.

```
video    now |  ~8   ~16   24        the goal is held at level 0, what lies before it falls: a film between two frames
action       | @ @ @ @ @ @ @ @       then the actions that lead along the film: inverse dynamics
```

The frame 24 ticks ahead is the goal now, in eight ticks it is the frame 16 ticks ahead, and so on. Trained with the rules `goal` (the
way is dreamt), `film` (inverse dynamics) and `goal_only` (a policy that sees the goal alone, without a film, for comparison).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from uwm.core import plans
from uwm.core.shapes import Float
from uwm.core.streams import Layout
from uwm.nn.model import UnifiedModel
from uwm.nn.robot_model import Observation
from uwm.robot.modes import remember
from uwm.robot.policy import LIMIT
from uwm.sample import loop
from uwm.sample.denoise import denoiser
from uwm.sample.randomness import Randomness


class GoalPolicy:
    """Actions toward a goal image; `film`: by way of the frames in between, else from the goal alone. `calls` counts network calls."""

    def __init__(self, model: UnifiedModel, rows: int = 12, film: bool = True):
        self.model, self.rows, self.film, self.calls = model.eval(), rows, film, 0

    @torch.inference_mode()
    def act(
        self,
        observation: Observation,
        executed: Float[Tensor, "B n A"],
        goal: Mapping[str, Float[Tensor, "B 3 H W"]],
        ticks: int,
        seeds: Sequence[int],
    ) -> Float[Tensor, "B H A"]:
        """Actions in physical units from now on, behind those that were `executed` (the last ones count).

        `goal` {camera: images in [0, 1]} is to be seen in `ticks` ticks, which must be one of the model's video frames (ValueError).
        """
        config = self.model.config
        if ticks not in config.video_frames or config.merge != 1:
            raise ValueError(f"a goal lies {config.video_frames} ticks ahead, of a model with merge 1; got {ticks} ticks")
        if set(goal) != set(config.cameras):
            raise ValueError(f"the goal must be seen by the cameras {list(config.cameras)}, got {sorted(goal)}")
        frames = tuple(frame for frame in config.video_frames if frame <= ticks)
        seen = {name: self.model.video.encode(image[:, None]) for name, image in goal.items()}
        prefix, randomness = self.model.encode(observation), Randomness.seeded(seeds)
        film = frames[-1:]
        if self.film and len(frames) > 1:
            seen, randomness = self._dream(frames, seen, prefix, randomness)
            film = frames
        return self._lead(film, seen, executed, prefix, randomness)

    def _dream(self, frames: tuple[int, ...], goal: dict[str, Tensor], prefix, randomness: Randomness) -> tuple[dict, Randomness]:
        """All frames up to the goal, whose tokens come back as they are."""
        layout = Layout(tuple(replace(self.model.layout[name], frames=frames) for name in goal))
        plan = plans.together(layout, {"video": plans.FALL}, self.rows)
        plan = plans.hold(plan, layout, {(name, frames[-1]): 0.0 for name in goal})
        empty = {name: value.new_zeros(len(value), value.shape[1] * (len(frames) - 1), value.shape[2]) for name, value in goal.items()}
        known = layout.pack({name: torch.cat([empty[name], goal[name]], dim=1) for name in goal})
        x, randomness = self._sampled(layout, plan.level, plan.role.expand(len(known), -1), known, prefix, randomness)
        return layout.unpack(x), randomness

    def _lead(self, frames: tuple[int, ...], film: dict[str, Tensor], executed: Tensor, prefix, randomness: Randomness) -> Tensor:
        """The actions that lead along a film."""
        action, past, batch = self.model.layout["action"], self.model.config.past, len(executed)
        layout = Layout((action, *(replace(self.model.layout[name], frames=frames) for name in film)))
        plan = plans.together(layout, {"action": plans.FALL, "video": plans.GIVEN}, self.rows)
        role, tokens = plan.role.repeat(batch, 1), torch.zeros(batch, action.tokens, action.size)
        remember(self.model, layout, role, tokens, executed)
        x, _ = self._sampled(layout, plan.level, role, layout.pack({"action": tokens, **film}), prefix, randomness)
        return self.model.to_actions(layout.unpack(x)["action"][:, past:])

    def _sampled(self, layout: Layout, level: Tensor, role: Tensor, known: Tensor, prefix, randomness: Randomness):
        denoise = denoiser(self.model, role, layout, prefix, LIMIT)
        found = loop.follow(denoise, known, level, randomness)
        self.calls += denoise.calls
        return found
