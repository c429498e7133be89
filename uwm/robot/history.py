"""What the policy sees: the present observation and earlier ones, by the same rule as in training.

```
tick           0    1    2    3    4            a model of history [1, 3] at tick 4, of which tick 3 was missed:
seen           o0   o1   o2   {}   o4           now o4, earlier ({}, o1)          {}: nothing was seen, all of it is absent
```

What was before the start of the episode is absent too, as `uwm_data.clamp_frames` marks it invalid (a test holds the two together).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from uwm.nn.codecs import frames_to_unit
from uwm.nn.robot_model import Observation


@dataclass(frozen=True)
class History:
    """The observations of the last `length` ticks of an episode, oldest first. A value: `add` returns a new one."""

    length: int
    seen: tuple[dict[str, np.ndarray], ...] = ()

    @classmethod
    def reaching(cls, ticks: Sequence[int]) -> "History":
        """An empty one, long enough for a model of this history."""
        return cls(1 + max(ticks, default=0))

    def add(self, observation: dict[str, np.ndarray]) -> "History":
        """The history after one more tick. Raises ValueError on NaN: a policy must never act on it."""
        for name, value in observation.items():
            value = np.asarray(value)
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                where = np.argwhere(~np.isfinite(value))[0].tolist()
                raise ValueError(f"observation {name!r} has {value[tuple(where)]} at {where}: refusing to act on it")
        return History(self.length, (*self.seen, observation)[-self.length :])

    def missed(self, ticks: int) -> "History":
        """The history after so many ticks at which nothing was seen."""
        return History(self.length, (*self.seen, *[{}] * min(ticks, self.length))[-self.length :])

    def earlier(self, ticks: Sequence[int]) -> tuple[dict[str, np.ndarray], ...]:
        """What was seen so many ticks before the newest observation, {} where nothing was. ValueError beyond the `length`."""
        if any(not 0 <= tick < self.length for tick in ticks):
            raise ValueError(f"a history of {self.length} observations reaches back 0 to {self.length - 1} ticks, asked for {list(ticks)}")
        return tuple(self.seen[-1 - tick] if tick < len(self.seen) else {} for tick in ticks)


def observe(
    observations: Sequence[dict[str, np.ndarray]],
    cameras: tuple[str, ...],
    earlier: Sequence[Sequence[dict[str, np.ndarray]]] = (),
) -> Observation:
    """Present observations of B environments as tensors; a camera that some lack is marked missing there.

    `earlier`: for each environment what it saw at the ticks of the model's history (`History.earlier`).
    """
    now = _moment(observations, cameras, len(observations[0]["proprio"]))
    moments = zip(*earlier, strict=True)
    return replace(now, earlier=tuple(_moment(moment, cameras, now.proprio.shape[1]) for moment in moments))


def _moment(observations: Sequence[dict[str, np.ndarray]], cameras: tuple[str, ...], size: int) -> Observation:
    felt = ["proprio" in o for o in observations]
    proprio = torch.from_numpy(np.stack([np.asarray(o.get("proprio", np.zeros(size)), np.float32) for o in observations]))
    images, present = {}, {} if all(felt) else {"proprio": torch.tensor(felt)}
    for camera in cameras:
        there = [camera in o for o in observations]
        if any(there):
            shape = next(o[camera].shape for o in observations if camera in o)
            frames = np.stack([o.get(camera, np.zeros(shape, np.uint8)) for o in observations])
            images[camera] = frames_to_unit(torch.from_numpy(frames))
            present[camera] = torch.tensor(there)
    return Observation(images, proprio, present)
