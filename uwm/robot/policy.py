"""Policies: `start(seeds) -> memory`, `act(memory, observation) -> memory, actions`, `done(memory, executed) -> memory`.

A policy holds weights and settings, nothing of an episode; the memory holds the episode and no weights. One checkpoint
serves both policies:

| policy | calls per chunk | plan |
|---|---|---|
| chunked | rows | all actions from 1 to 0 together, the first chunk is sent, the rest is thrown away |
| streaming | rows / chunks | the rolling buffer of `uwm.sample.roll` |

A controller that acts while the policy thinks uses the same parts one by one: `recall` what was executed, then `plan` behind
the actions that are under way, or sample the `whole` horizon.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from uwm.core.shapes import Float
from uwm.core.streams import Layout
from uwm.nn.robot_model import Observation, RobotModel
from uwm.noise import gaussian
from uwm.sample import roll
from uwm.sample.denoise import Denoiser
from uwm.sample.steps import Denoise, rule

LIMIT = 6.0  # normalised actions are clipped at this many spreads


@dataclass(frozen=True)
class PolicyConfig:
    """`kind` "streaming" or "chunked"; rows from noise to clean; actions sent per tick; chunks held; past actions given.

    `primer`, `loose`, `shape`: see `uwm.sample.roll.Ladder`. `warm`, of the chunked kind: every plan but the first begins from the
    one before, noised to this level, and takes this share of the rows; 1: from noise.
    """

    kind: str = "streaming"
    rows: int = 12
    chunk: int = 3
    chunks: int = 6
    past: int = 2
    primer: str = "denoise"
    step: str = "ddim"
    loose: float = 0.0
    shape: float = 1.0
    warm: float = 1.0

    def __post_init__(self):
        if not 0 < self.warm <= 1 or (self.warm < 1 and (self.kind != "chunked" or self.chunks < 2)):
            raise ValueError(f"warm lies in (0, 1], and below 1 belongs to a chunked policy of two chunks or more, got {self}")
        if self.kind not in ("streaming", "chunked"):
            raise ValueError(f"policy kind must be 'streaming' or 'chunked', got {self.kind!r}")

    @property
    def ladder(self) -> roll.Ladder:
        return roll.Ladder(self.rows, self.chunk, self.chunks, self.past, self.primer, self.loose, self.shape)


@dataclass(frozen=True)
class PolicyCard:
    """What a controller must know of a policy that lives in another process: its config, longest trained horizon, cameras."""

    config: PolicyConfig
    horizon: int
    cameras: tuple[str, ...]


class Policy:
    """A model in one of the two loops. `calls` counts network calls; observation encoding is not one of them."""

    def __init__(self, model: RobotModel, config: PolicyConfig):
        self.model, self.config = model.eval(), config
        self.layouts: dict[int, Layout] = {}
        self._layout(0)  # a horizon that was not trained is refused now, not at the first observation
        self.step = rule(config.step)
        self.calls = 0

    @property
    def horizon(self) -> int:
        """Future actions that the model was trained on: committed ones and the buffer share them."""
        return self.model.config.horizon

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras that the model can see with."""
        return self.model.config.cameras

    @property
    def card(self) -> PolicyCard:
        """What a controller must know when the policy itself stays elsewhere."""
        return PolicyCard(self.config, self.horizon, self.cameras)

    def start(self, seeds, still: Float[Tensor, "B A"] | None = None) -> roll.Buffer:
        """A fresh memory for as many environments as there are seeds.

        `still`: actions (physical units) that hold the robots where they are, which the primer "constant" begins with.
        """
        normalised = None if still is None else self.model.from_actions(still.float()[:, None])[:, 0]
        return roll.empty(self.config.ladder, seeds, self.model.config.action_size, still=normalised)

    @torch.inference_mode()
    def act(self, memory: roll.Buffer, observation: Observation) -> tuple[roll.Buffer, Float[Tensor, "B C A"]]:
        """The next chunk of actions in physical units. Tell `done` what was executed before the next call."""
        if self.config.kind == "chunked":
            memory, actions = self._whole(memory, observation, None, self.config.rows)
            return memory, actions[:, : self.config.chunk]
        return self._tick(memory, observation, None, 1)

    def done(self, memory: roll.Buffer, executed: Float[Tensor, "B C A"]) -> roll.Buffer:
        """The memory after `executed` (physical units) really went to the robot."""
        return roll.roll(memory, self.config.ladder, self.model.from_actions(executed.float()))

    @torch.no_grad()
    def recall(self, memory: roll.Buffer, executed: Float[Tensor, "B n A"]) -> roll.Buffer:
        """The memory with what was executed since the last plan, any number of actions in physical units."""
        return roll.recall(memory, self.model.from_actions(executed.float()))

    @torch.no_grad()
    def plan(
        self, memory: roll.Buffer, observation: Observation, committed: Float[Tensor, "B D A"], count: int = 1
    ) -> tuple[roll.Buffer, Float[Tensor, "B n A"]]:
        """The next `count` chunks of the streaming buffer behind D `committed` actions (physical units); the memory has rolled."""
        memory, actions = self._tick(memory, observation, self.model.from_actions(committed.float()), count)
        return roll.advance(memory, self.config.ladder, count), actions

    @torch.no_grad()
    def whole(
        self,
        memory: roll.Buffer,
        observation: Observation,
        guide: Callable[[Denoise, gaussian.GaussianPath], Denoise] | None = None,
        rows: int | None = None,
    ) -> tuple[roll.Buffer, Float[Tensor, "B H A"]]:
        """The whole horizon from pure noise, perhaps with a wrapped denoiser or another number of rows; the memory has rolled.

        One observation serves any number of memories: they are samples of the same moment.
        """
        memory, actions = self._whole(memory, observation, guide, rows or self.config.rows)
        return roll.advance(memory, self.config.ladder), actions

    def _tick(self, memory: roll.Buffer, observation: Observation, committed: Tensor | None, count: int) -> tuple[roll.Buffer, Tensor]:
        denoise = self._denoiser(memory, observation, 0 if committed is None else committed.shape[1])
        memory, chunk = roll.tick(memory, self.config.ladder, denoise, self._path, self.step, committed, count)
        return memory, self._actions(chunk, denoise)

    def _whole(self, memory: roll.Buffer, observation: Observation, guide: Callable | None, rows: int) -> tuple[roll.Buffer, Tensor]:
        """A buffer that is fresh at every call and has one chunk, primed with no calls from pure noise."""
        config = self.config
        ladder = roll.Ladder(rows, config.ladder.horizon, 1, config.past, "zero")
        denoise = self._denoiser(memory, observation, 0)
        guided = denoise if guide is None else guide(denoise, self._path)
        if config.warm < 1:
            kept, begin = ladder.horizon - config.chunk, math.ceil(config.warm * rows)
            memory, chunk = roll.again(memory, ladder, guided, self._path, self.step, kept, begin)
        else:
            memory, chunk = roll.tick(roll.restarted(memory), ladder, guided, self._path, self.step)
        return memory, self._actions(chunk, denoise)

    def _actions(self, chunk: Tensor, denoise: Denoiser) -> Tensor:
        self.calls += denoise.calls
        actions = self.model.to_actions(chunk)
        if not bool(torch.isfinite(actions).all()):
            raise ValueError("the policy produced an action that is not finite; check the observation and the checkpoint")
        return actions

    @property
    def _path(self) -> gaussian.GaussianPath:
        return gaussian.path(self.model.config.path, self.model.config.noise_shift)

    def _layout(self, committed: int) -> Layout:
        if committed not in self.layouts:
            self.layouts[committed] = Layout((self.config.ladder.stream(self.model.layout["action"], committed),))
        return self.layouts[committed]

    def _denoiser(self, memory: roll.Buffer, observation: Observation, committed: int) -> Denoiser:
        config, batch = self.model.config, len(memory.tick)
        prefix = self.model.encode(observation)
        if len(observation.proprio) != batch:
            prefix = prefix.at(torch.zeros(batch, dtype=torch.int64))
        role, layout = roll.role(memory, committed), self._layout(committed)
        return Denoiser(self.model, self._path, config.prediction, layout, role, prefix, LIMIT)
