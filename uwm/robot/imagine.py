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
from uwm.noise import gaussian
from uwm.robot.policy import LIMIT
from uwm.sample import loop
from uwm.sample.denoise import Denoiser
from uwm.sample.randomness import Randomness
from uwm.sample.steps import rule


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
    level, role = plan.level.clone(), plan.role.clone()
    known = torch.zeros(1, layout.tokens, layout.size)
    past, start = config.past, layout.span("action").start
    executed, planned = executed[max(0, len(executed) - past) :], planned[: config.horizon]
    role[start : start + past - len(executed)] = roles.ABSENT  # before the start of the episode
    for first, actions in ((start + past - len(executed), executed), (start + past, planned)):
        if len(actions):
            there = slice(first, first + len(actions))
            known[0, there, : config.action_size] = model.from_actions(torch.from_numpy(np.asarray(actions, np.float32)))
            level[:, there], role[there] = 0.0, roles.GIVEN
    path = gaussian.path(config.path, config.noise_shift)
    x, randomness = loop.start(path, known, level[0], Randomness.seeded([seed]))
    denoise = Denoiser(model, path, config.prediction, layout, role[None], model.encode(observation), LIMIT)
    x, _ = loop.sample(denoise, path, x, level, rule("ddim"), randomness)
    tokens, frames = layout.unpack(x), len(config.video_frames)
    return {name: unit_to_frames(model.video.decode(tokens[name], frames))[0].numpy() for name in config.cameras}
