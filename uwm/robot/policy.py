"""Policies: `start(seeds) -> memory`, `act(memory, observation) -> memory, actions`, `done(memory, executed) -> memory`.

A policy holds weights and settings, nothing of an episode; the memory holds the episode and no weights. One checkpoint
serves both policies:

| policy | calls per chunk | plan |
|---|---|---|
| chunked | rows | all actions from 1 to 0 together, the first chunk is sent, the rest is thrown away |
| streaming | rows / chunks | the rolling buffer of `uwm.sample.roll` |
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from uwm.core.shapes import Float
from uwm.core.streams import Layout
from uwm.nn.model import Observation, UnifiedModel
from uwm.noise import gaussian
from uwm.sample import roll
from uwm.sample.denoise import Denoiser
from uwm.sample.steps import rule

LIMIT = 6.0  # normalised actions are clipped at this many spreads


@dataclass(frozen=True)
class PolicyConfig:
    """`kind` "streaming" or "chunked"; rows from noise to clean; actions sent per tick; chunks held; past actions given."""

    kind: str = "streaming"
    rows: int = 12
    chunk: int = 3
    chunks: int = 6
    past: int = 2
    primer: str = "denoise"
    step: str = "ddim"

    def __post_init__(self):
        if self.kind not in ("streaming", "chunked"):
            raise ValueError(f"policy kind must be 'streaming' or 'chunked', got {self.kind!r}")

    @property
    def ladder(self) -> roll.Ladder:
        return roll.Ladder(self.rows, self.chunk, self.chunks, self.past, self.primer)


class Policy:
    """A model in one of the two loops. `calls` counts network calls; observation encoding is not one of them."""

    def __init__(self, model: UnifiedModel, config: PolicyConfig):
        self.model, self.config = model.eval(), config
        self.layout = Layout((config.ladder.stream(model.layout["action"]),))
        self.step = rule(config.step)
        self.calls = 0

    def start(self, seeds) -> roll.Buffer:
        """A fresh memory for as many environments as there are seeds."""
        return roll.empty(self.config.ladder, seeds, self.model.config.action_size)

    @torch.inference_mode()
    def act(self, memory: roll.Buffer, observation: Observation) -> tuple[roll.Buffer, Float[Tensor, "B C A"]]:
        """The next chunk of actions in physical units. Tell `done` what was executed before the next call."""
        if self.config.kind == "chunked":
            # The whole horizon from pure noise: a buffer that is fresh at every tick and has one chunk.
            memory = self._forget(memory)
        denoise = self._denoiser(memory, observation)
        memory, chunk = roll.tick(memory, self._ladder, denoise, self._path, self.step)
        self.calls += denoise.calls
        actions = self.model.to_actions(chunk[:, : self.config.chunk])
        if not bool(torch.isfinite(actions).all()):
            raise ValueError("the policy produced an action that is not finite; check the observation and the checkpoint")
        return memory, actions

    def done(self, memory: roll.Buffer, executed: Float[Tensor, "B C A"]) -> roll.Buffer:
        """The memory after `executed` (physical units) really went to the robot."""
        return roll.roll(memory, self.config.ladder, self.model.from_actions(executed.float()))

    @property
    def _path(self) -> gaussian.GaussianPath:
        return gaussian.path(self.model.config.path, self.model.config.noise_shift)

    @property
    def _ladder(self) -> roll.Ladder:
        """Streaming: as configured. Chunked: the whole horizon is one chunk, primed with no calls from pure noise."""
        c = self.config
        return c.ladder if c.kind == "streaming" else roll.Ladder(c.rows, c.chunk * c.chunks, 1, c.past, "zero")

    def _forget(self, memory: roll.Buffer) -> roll.Buffer:
        return roll.Buffer.from_tensors(
            {**memory.tensors(), "tick": torch.zeros_like(memory.tick), "fresh": torch.ones_like(memory.fresh)}
        )

    def _denoiser(self, memory: roll.Buffer, observation: Observation) -> Denoiser:
        config = self.model.config
        prefix = self.model.encode(observation)
        return Denoiser(self.model, self._path, config.prediction, self.layout, roll.role(memory), prefix, LIMIT)
