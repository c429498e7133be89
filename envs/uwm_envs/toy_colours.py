"""The toy world with four targets: which of them is wanted, only an instruction tells.

```
y +1 +-----------------+      Four places, and on them the colours in another order every episode. The wanted colour and the words
     | (y) (g) (b) (p) |      for it are drawn apart from the scene: pictures alone are right once in four.
     |                 |
     |   robot         |      The first target that is touched ends the episode, so there is no trying one after the other.
  -1 +-----------------+ x
```
Nothing stands in the way, and the robot begins anywhere in the lower half. Were there one place to begin at, and one way from it to each
target, then where the robot is would tell where it is going: a policy learns that first, and never to listen.
"""

import numpy as np

from uwm_envs.toy import SUCCESS_RADIUS_M, TARGET_RADIUS_M, Toy, _View

COLOURS = {"green": (40, 180, 70), "yellow": (250, 205, 30), "purple": (150, 60, 200), "black": (30, 30, 30)}
WORDINGS = ("go to the {} disc", "move to the {} one", "drive to the {} circle", "reach the {} target")
PLACES_M = np.array([(-0.75, 0.65), (-0.25, 0.7), (0.25, 0.7), (0.75, 0.65)])
JITTER_M = 0.08
BEGINS_M = ((-0.85, -0.85), (0.85, 0.0))  # low enough that no way to a target leads over another
NOWHERE_M = (9.0, 9.0)  # where the disc of `Toy` is


class ToyColours(Toy):
    """As `Toy`; `reset` tells the "instruction" in its info, and `reached` is the colour of the touched target, "" before."""

    def __init__(self, cameras=("agentview",), **options):
        self._targets, self._wanted, self._wording = PLACES_M.copy(), 0, ""
        super().__init__(cameras, **options)
        self.card["env"] = "ToyColours"

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        return observation, {**info, "instruction": self._wording.format(self.wanted)}

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or bool(self.reached), truncated, info

    @property
    def wanted(self) -> str:
        """The colour of the target that is asked for."""
        return tuple(COLOURS)[self._wanted]

    @property
    def reached(self) -> str:
        """The colour of the target that the robot is at."""
        near = np.linalg.norm(self._targets - self._position, axis=1) <= SUCCESS_RADIUS_M
        return next((colour for colour, there in zip(COLOURS, near, strict=True) if there), "")

    def privileged(self) -> dict[str, np.ndarray]:
        """The "position" and the wanted "target", each (2,), in m. For experts, never for a policy."""
        scene = super().privileged()
        return {name: scene[name] for name in ("position", "target")}

    def get_state(self) -> dict:
        return {**super().get_state(), "targets": self._targets.copy(), "wanted": self._wanted}

    def set_state(self, state: dict) -> None:
        self._targets, self._wanted = np.array(state["targets"]), int(state["wanted"])
        super().set_state(state)

    def _place(self) -> None:
        super()._place()
        self._position, self._obstacle = self.np_random.uniform(*BEGINS_M), np.array(NOWHERE_M)
        jitter = self.np_random.uniform(-JITTER_M, JITTER_M, PLACES_M.shape)
        self._targets = self.np_random.permutation(PLACES_M) + jitter
        self._wanted = int(self.np_random.integers(len(COLOURS)))
        self._target = self._targets[self._wanted]
        self._wording = str(self.np_random.choice(WORDINGS))

    def _draw_still(self, view: _View, image: np.ndarray) -> None:
        for centre, colour in zip(self._targets, COLOURS.values(), strict=True):
            view.disc(image, centre, TARGET_RADIUS_M, colour)
