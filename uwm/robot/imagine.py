"""What the model believes it will see: future video behind the actions that are planned, from the policy's own weights.

```
action   . . | . . . . . . @ @ @ @ @ @      . given: executed and planned     @ sampled with the video (joint mode)
video        |       @           @          the frames that the model was trained on
```
"""

from __future__ import annotations

import numpy as np
import torch

from uwm.core import plans, roles
from uwm.core.patterns import parsed
from uwm.nn.codecs import unit_to_frames
from uwm.nn.model import UnifiedModel
from uwm.nn.robot_model import Observation
from uwm.robot.modes import remember
from uwm.robot.policy import LIMIT
from uwm.sample import loop
from uwm.sample.denoise import denoiser
from uwm.sample.randomness import Randomness


def dreams(model: UnifiedModel, card: dict) -> bool:
    """Whether a checkpoint was trained for the joint mode: it has video, and a pattern in which actions and video fall."""
    patterns = card.get("config", {}).get("train", {}).get("objective", {}).get("patterns", ())
    return bool(model.config.video_frames) and any(
        parsed(each.get("video", ""))[0] in ("constant", "ladder", "independent") and each.get("action") not in ("absent", "given")
        for each in patterns
    )


@torch.inference_mode()
def imagine(
    model: UnifiedModel, observation: Observation, executed: np.ndarray, planned: np.ndarray, rows: int = 8, seed: int = 0
) -> dict[str, np.ndarray]:
    """{camera: (T, H, W, 3) uint8} at the model's `video_frames`, behind `executed` (n, A) and `planned` (m, A) actions.

    Both in physical units, in the order of time, either may be empty; the rest of the horizon is sampled with the video.
    """
    layout, config = model.layout, model.config
    plan = plans.mode(layout, "joint", rows)
    level, role = plan.level.clone(), plan.role[None].clone()
    known = {stream.name: torch.zeros(1, stream.tokens, stream.size) for stream in layout.streams}
    done, coming = (torch.from_numpy(np.asarray(actions, np.float32))[None] for actions in (executed, planned[: config.horizon]))
    remember(model, layout, role, known["action"], done)
    if coming.shape[1]:
        first = layout.span("action").start + config.past
        known["action"][:, config.past : config.past + coming.shape[1]] = model.from_actions(coming)
        level[:, first : first + coming.shape[1]], role[:, first : first + coming.shape[1]] = 0.0, roles.GIVEN
    denoise = denoiser(model, role, layout, model.encode(observation), LIMIT)
    x, _ = loop.follow(denoise, layout.pack(known), level, Randomness.seeded([seed]))
    tokens, frames = layout.unpack(x), len(config.video_frames)
    return {name: unit_to_frames(model.video.decode(tokens[name], frames))[0].numpy() for name in config.cameras}
