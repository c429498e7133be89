"""What the policy sees: the present and earlier observations, by the same padding rule as in training.

```
offsets -2 -1 0 at tick 1      frames seen: 0 1        read: 0 0 1        valid: . x x
```

A frame before the start of the episode is the first one repeated and marked invalid (the same rule as
`uwm_data.clamp_frames`; a test holds the two together).
"""

from dataclasses import dataclass

import numpy as np
import torch

from uwm.core.shapes import Bool
from uwm.nn.codecs import frames_to_unit
from uwm.nn.language import Words
from uwm.nn.robot_model import Observation


@dataclass(frozen=True)
class History:
    """The last `length` observations of an episode, oldest first. A value: `add` returns a new one."""

    length: int
    seen: tuple[dict[str, np.ndarray], ...] = ()

    def add(self, observation: dict[str, np.ndarray]) -> "History":
        """The history after one more tick. Raises ValueError on NaN: a policy must never act on it."""
        for name, value in observation.items():
            value = np.asarray(value)
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                where = np.argwhere(~np.isfinite(value))[0].tolist()
                raise ValueError(f"observation {name!r} has {value[tuple(where)]} at {where}: refusing to act on it")
        return History(self.length, (*self.seen, observation)[-self.length :])

    def read(self, name: str, offsets: tuple[int, ...]) -> tuple[np.ndarray, Bool[np.ndarray, " T"]]:
        """Frames of one key at offsets <= 0 from now, and which of them were really seen."""
        if not self.seen or min(offsets) <= -self.length or max(offsets) > 0:
            raise ValueError(f"offsets must lie in {1 - self.length}..0 of a history with something in it, got {offsets}")
        newest = len(self.seen) - 1
        wanted = [newest + offset for offset in offsets]
        frames = np.stack([self.seen[max(index, 0)][name] for index in wanted])
        return frames, np.array([index >= 0 for index in wanted])


def observe(observations: list[dict[str, np.ndarray]], cameras: tuple[str, ...], words: Words | None = None) -> Observation:
    """Present observations of B environments as tensors; a camera that some lack is marked missing there.

    "prompt" holds an instruction as text, which the model's `words` turn into a vector.
    """
    proprio = torch.from_numpy(np.stack([np.asarray(o["proprio"], np.float32) for o in observations]))
    images, present = {}, {}
    for camera in cameras:
        there = [camera in o for o in observations]
        if any(there):
            shape = next(o[camera].shape for o in observations if camera in o)
            frames = np.stack([o.get(camera, np.zeros(shape, np.uint8)) for o in observations])
            images[camera] = frames_to_unit(torch.from_numpy(frames))
            present[camera] = torch.tensor(there)
    texts = [str(o.get("prompt") or "").strip() for o in observations]
    if not any(texts):
        return Observation(images, proprio, present)
    instruction, present["instruction"] = (words or Words())(texts)
    return Observation(images, proprio, present, instruction=instruction)
