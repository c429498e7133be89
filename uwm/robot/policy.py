"""Policies: `start(seeds) -> memory`, `act(memory, observation) -> memory, actions`, `done(memory, executed) -> memory`.

A policy holds weights and settings, nothing of an episode; the memory holds the episode and no weights. One checkpoint
serves both policies:

| policy | calls per chunk | plan |
|---|---|---|
| chunked | rows | all actions from 1 to 0 together, the first chunk is sent, the rest is thrown away |
| chunked, `frames` | rows | the same, and what will be seen (or felt) with them: PAD, and in one row GR-1 |
| chunked, `marginal` | rows | the same, and noise in the place of what will be seen: the UWM paper's policy |
| streaming | rows / chunks | the rolling buffer of `uwm.sample.roll` |
| streaming, `frames` | the same, more after a surprise | what will be seen stands in the buffer too, and is compared with what is |

A controller that acts while the policy thinks uses the same parts one by one: `recall` what was executed, then `plan` behind
the actions that are under way, or sample the `whole` horizon.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from uwm.core import plans
from uwm.core.shapes import Float, Int
from uwm.core.streams import Layout, Stream
from uwm.nn.robot_model import REGRESSION, Observation, RobotModel
from uwm.noise import gaussian
from uwm.sample import loop, roll
from uwm.sample.denoise import Denoiser, beside_noise, denoiser, reordered
from uwm.sample.randomness import Randomness
from uwm.sample.steps import Denoise, rule

LIMIT = 6.0  # normalised actions are clipped at this many spreads


@dataclass(frozen=True)
class PolicyConfig:
    """`kind` "streaming" or "chunked"; rows from noise to clean; actions sent per tick; chunks held; past actions given.

    `primer`, `primer_rows`, `loose`, `shape`: see `uwm.sample.roll.Ladder`. `warm`, of the chunked kind: every plan but the first
    begins from the one before, noised to this level, and takes this share of the rows; 1: from noise.

    `frames`: the frame at the end of every chunk is denoised with it (of a model without video: what will be felt). What comes out is
    compared with what is seen then; in the streaming kind a `surprise` of s takes the buffer back by s * `revise` of its rows (at most
    all). `usual`: the distance of each token of the next frame from what was foreseen when all goes well, its upper quartile, as `uwm
    eval` with frames tells it; one number: the same for all.

    `marginal`, of the chunked kind: all that the model foresees stands beside the actions as noise, instead of being absent.

    `cameras`: those of the model's that the policy looks through; () is all. The others are absent to it, as in training with
    `camera_dropout`.

    `foresee`, of the streaming kind: behind committed actions the plan is made from the proprioception that the model itself foresees at
    their end (one call of its forward dynamics), and the buffer goes on as if nothing were under way. Without cameras only.
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
    frames: bool = False
    revise: float = 0.0
    usual: tuple[float, ...] = (1.0,)
    foresee: bool = False
    marginal: bool = False
    cameras: tuple[str, ...] = ()
    primer_rows: int = 0

    def __post_init__(self):
        if self.revise < 0 or not self.usual or not min(self.usual) > 0 or (self.revise and not (self.frames and self.kind == "streaming")):
            raise ValueError(f"revise is >= 0 and needs frames in the buffer of a streaming policy, usual is > 0, got {self}")
        if self.frames and self.warm < 1:
            raise ValueError(f"a plan with frames begins from noise: set warm to 1, got {self.warm:g}")
        if self.marginal and (self.kind != "chunked" or self.frames):
            raise ValueError(f"marginal belongs to a chunked policy without frames, got {self}")
        if self.foresee and (self.kind != "streaming" or self.frames):
            raise ValueError(f"foresee belongs to a streaming policy without frames, got {self}")
        if not 0 < self.warm <= 1 or (self.warm < 1 and (self.kind != "chunked" or self.chunks < 2)):
            raise ValueError(f"warm lies in (0, 1], and below 1 belongs to a chunked policy of two chunks or more, got {self}")
        if self.kind not in ("streaming", "chunked"):
            raise ValueError(f"policy kind must be 'streaming' or 'chunked', got {self.kind!r}")

    @property
    def ladder(self) -> roll.Ladder:
        return roll.Ladder(self.rows, self.chunk, self.chunks, self.past, self.primer, self.loose, self.shape, primer_rows=self.primer_rows)


@dataclass(frozen=True)
class PolicyCard:
    """What a controller must know of a policy that lives in another process.

    Its config, the longest queue it was trained for, its cameras, and how many ticks ago earlier observations are that it looks at.
    """

    config: PolicyConfig
    room: int
    cameras: tuple[str, ...]
    history: tuple[int, ...] = ()


class Policy:
    """A model in one of the two loops. `calls` counts network calls; observation encoding is not one of them."""

    def __init__(self, model: RobotModel, config: PolicyConfig):
        self.model, self.config = model.eval(), config
        if model.config.prediction == "regression" and (config.kind, config.rows, config.marginal) != ("chunked", 1, False):
            told = f"{config.rows} rows of kind {config.kind}{', marginal' if config.marginal else ''}"
            raise ValueError(f"{REGRESSION}: act with policy=regression (kind chunked, rows 1), not with {told}")
        if config.marginal and model.layout.kinds == ("action",):
            raise ValueError("policy.marginal puts noise in the place of what a model foresees, and this one foresees nothing")
        self.layouts: dict[int, tuple[Layout, Int[Tensor, " N"]]] = {}
        self.ladder = self._ladder()
        self._layout(0)  # a horizon that was not trained is refused now, not at the first observation
        if unknown := [name for name in config.cameras if name not in model.config.cameras]:
            raise ValueError(f"policy.cameras has {unknown}, which the model was not trained with; it has {list(model.config.cameras)}")
        if config.foresee and (model.config.cameras or not model.config.state_frames):
            raise ValueError("policy.foresee needs a model without cameras that was trained with model.state_frames")
        if config.foresee and self.history:
            raise ValueError(f"policy.foresee plans from a moment that nobody saw: not with model.history {list(self.history)}")
        if max(self.history, default=0) > self.ladder.horizon:
            raise ValueError(
                f"the model looks back {self.history[-1]} ticks, further than the {self.ladder.horizon} actions of the buffer reach ahead: "
                f"more or longer chunks, or a model of a shorter history"
            )
        tokens = sum(model.layout[name].frame_tokens for name in self.layout.of_kind("video") if name in self.cameras)
        if len(config.usual) not in (1, tokens):
            raise ValueError(
                f"policy.usual has {len(config.usual)} numbers: give one, or one for each of the {tokens} tokens of a frame that the "
                f"policy sees, as `uwm eval policy.frames=true` tells them"
            )
        self.step = rule(config.step)
        self.calls = 0

    @property
    def room(self) -> int:
        """Actions that may be under way when a plan is asked for: as far as the model foresees, or what the buffer leaves of its frames."""
        return max(self.model.config.state_frames) if self.config.foresee else self.model.config.horizon - self.ladder.horizon

    @property
    def layout(self) -> Layout:
        """The tokens of a call with nothing committed, stream after stream."""
        return self._layout(0)[0]

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras that the policy looks through."""
        return self.config.cameras or self.model.config.cameras

    @property
    def history(self) -> tuple[int, ...]:
        """How many ticks ago the earlier observations are that the model looks at."""
        return self.model.config.history

    @property
    def card(self) -> PolicyCard:
        """What a controller must know when the policy itself stays elsewhere."""
        return PolicyCard(self.config, self.room, self.cameras, self.history)

    def start(self, seeds, still: Float[Tensor, "B A"] | None = None) -> roll.Buffer:
        """A fresh memory for as many environments as there are seeds.

        `still`: actions (physical units) that hold the robots where they are, which the primer "constant" begins with.
        """
        normalised = None if still is None else self._tokens(still[:, None])[:, 0]
        return roll.empty(self.ladder, seeds, self.layout.size, still=normalised)

    @torch.inference_mode()
    def act(self, memory: roll.Buffer, observation: Observation) -> tuple[roll.Buffer, Float[Tensor, "B C A"]]:
        """The next chunk of actions in physical units. Tell `done` what was executed before the next call."""
        if self.config.kind == "chunked":
            memory, actions = self._whole(memory, observation, None, self.config.rows)
            return memory, actions[:, : self.config.chunk]
        return self._tick(memory, observation, None, 1, self._revised(memory, observation))

    def done(self, memory: roll.Buffer, executed: Float[Tensor, "B C A"]) -> roll.Buffer:
        """The memory after `executed` (physical units) really went to the robot. ValueError unless it is a whole chunk."""
        self.ladder.check(memory)
        return roll.roll(memory, self.ladder, self._tokens(executed))

    @torch.no_grad()
    def recall(self, memory: roll.Buffer, executed: Float[Tensor, "B n A"]) -> roll.Buffer:
        """The memory with what was executed since the last plan, any number of actions in physical units."""
        return roll.recall(memory, self._tokens(executed))

    @torch.no_grad()
    def surprise(self, memory: roll.Buffer, observation: Observation) -> Float[Tensor, " B"]:
        """How much further than usual what is seen lies from what the buffer foresaw, in usual distances: 0 is as expected.

        The mean over the tokens of the frame, each in its own usual distance: where the arm moves much is usual, where an object
        stands nothing is. A camera that is missing and a buffer that has foreseen nothing yet are no surprise.
        """
        far = self.distances(memory, observation) / torch.tensor(self.config.usual)
        return (far.nanmean(dim=1).nan_to_num() - 1).clamp(min=0)

    @torch.no_grad()
    def distances(self, memory: roll.Buffer, observation: Observation) -> Float[Tensor, "B V"]:
        """The mean square between what is seen and what the buffer foresaw, by token of a frame; NaN where there is nothing to compare.

        The tokens of all cameras that the policy looks through stand one after the other, in the order of the model.
        """
        found, at = [], 0
        for name in self.layout.of_kind("video"):
            count, size = self.model.layout[name].frame_tokens, self.model.layout[name].size
            foreseen, at = memory.expected[:, at : at + count, :size], at + count
            if name not in self.cameras:
                continue
            found.append(torch.full((len(foreseen), count), torch.nan))
            if name in observation.images:
                seen = self.model.video.encode(observation.images[name][:, None])
                there = observation.present.get(name, torch.ones(len(seen), dtype=torch.bool))
                found[-1] = torch.where(there[:, None], (seen - foreseen).square().mean(dim=2), torch.nan)
        foresaw = (memory.tick > 0) & ~memory.fresh
        return torch.where(foresaw[:, None], torch.cat(found, dim=1), torch.nan) if found else torch.zeros(len(memory.tick), 0)

    @torch.no_grad()
    def plan(
        self, memory: roll.Buffer, observation: Observation, committed: Float[Tensor, "B D A"], count: int = 1
    ) -> tuple[roll.Buffer, Float[Tensor, "B n A"]]:
        """The next `count` chunks of the streaming buffer behind D `committed` actions (physical units); the memory has rolled."""
        if self.config.foresee and committed.shape[1]:
            memory, observation = self.foreseen(memory, observation, committed)
            memory, committed = self.recall(memory, committed), committed[:, :0]
        revised = None if committed.shape[1] else self._revised(memory, observation)
        memory, actions = self._tick(memory, observation, self._tokens(committed), count, revised)
        return roll.advance(memory, self.ladder, count), actions

    @torch.no_grad()
    def foreseen(self, memory: roll.Buffer, observation: Observation, committed: Float[Tensor, "B D A"]) -> tuple[roll.Buffer, Observation]:
        """What will be felt once D `committed` actions (physical units) are executed, in one call; the memory drew noise for it."""
        count, batch, model = committed.shape[1], len(memory.tick), self.model
        action, state = model.layout["action"], model.layout["state"]
        if count not in state.frames:
            raise ValueError(f"the model foresees proprioception {list(state.frames)} ticks ahead, not behind {count} actions")
        layout = Layout((
            replace(action, frames=tuple(range(-self.config.past, count))),
            replace(state, frames=tuple(frame for frame in state.frames if frame <= count)),
        ))  # fmt: skip
        actions = torch.cat([memory.past, self._tokens(committed).expand(batch, -1, -1)], dim=1)[..., : action.size]
        found, randomness = self.lead(layout, memory, actions, observation)
        proprio = model.to_proprio(observation.proprio.expand(batch, -1), found["state"][:, -1:])[:, 0]
        return replace(memory, randomness=randomness), replace(observation, proprio=proprio)

    @torch.no_grad()
    def lead(
        self, layout: Layout, memory: roll.Buffer, actions: Float[Tensor, "B n A"], observation: Observation, rows: int = 1
    ) -> tuple[dict[str, Tensor], Randomness]:
        """Forward dynamics: the clean tokens of the streams of `layout` behind its `actions` (normalised; past ones as in the memory)."""
        batch, plan, past = len(actions), plans.mode(layout, "forward", rows), memory.past.shape[1]
        role = plan.role.repeat(batch, 1)
        role[:, layout.mask("action") & (layout.frame < 0)] = roll.role(memory)[:, :past]
        known = {stream.name: actions.new_zeros(batch, stream.tokens, stream.size) for stream in layout.streams}
        denoise = denoiser(self.model, role, layout, self._context(observation, batch), LIMIT)
        x, randomness = loop.follow(denoise, layout.pack({**known, "action": actions}), plan.level, memory.randomness)
        self.calls += denoise.calls
        return layout.unpack(x), randomness

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
        return roll.advance(memory, self.ladder), actions

    def _tick(
        self, memory: roll.Buffer, observation: Observation, committed: Tensor | None, count: int, revised: Tensor | None = None
    ) -> tuple[roll.Buffer, Tensor]:
        denoise = self._denoiser(memory, observation, 0 if committed is None else committed.shape[1])
        memory, chunk = roll.tick(memory, self.ladder, denoise, denoise.path, self.step, committed, count, revised)
        return memory, self._actions(chunk, denoise)

    def _revised(self, memory: roll.Buffer, observation: Observation) -> Float[Tensor, " B"] | None:
        """The share of the rows by which a surprise takes the buffer back."""
        return (self.config.revise * self.surprise(memory, observation)).clamp(max=1) if self.config.revise else None

    def _whole(self, memory: roll.Buffer, observation: Observation, guide: Callable | None, rows: int) -> tuple[roll.Buffer, Tensor]:
        """A buffer that is fresh at every call and has one chunk of all tokens, primed with no calls from pure noise."""
        config = self.config
        ladder = roll.Ladder(rows, self.ladder.unit * self.ladder.chunks, 1, config.past, "zero")
        denoise = self._denoiser(memory, observation, 0)
        if config.marginal:
            memory = self._marginalise(memory, denoise)
        guided = denoise if guide is None else guide(denoise, denoise.path)
        if config.warm < 1:
            kept, begin = ladder.horizon - config.chunk, math.ceil(config.warm * rows)
            memory, chunk = roll.again(memory, ladder, guided, denoise.path, self.step, kept, begin)
        else:
            memory, chunk = roll.tick(roll.restarted(memory), ladder, guided, denoise.path, self.step)
        return memory, self._actions(self.ladder.actions(chunk), denoise)

    def _marginalise(self, memory: roll.Buffer, denoise: Denoiser) -> roll.Buffer:
        """Puts noise beside the actions of a denoiser, the same in every row; the memory drew it."""
        layout = Layout((denoise.layout["action"], *(stream for stream in self.model.layout.streams if stream.kind != "action")))
        noise, randomness = memory.randomness.normal(layout.tokens - denoise.layout.tokens, layout.size)
        denoise.network = beside_noise(self.model, layout, noise)
        return replace(memory, randomness=randomness)

    def _actions(self, chunk: Tensor, denoise: Denoiser) -> Tensor:
        self.calls += denoise.calls
        actions = self.model.to_actions(chunk)
        if not bool(torch.isfinite(actions).all()):
            raise ValueError("the policy produced an action that is not finite; check the observation and the checkpoint")
        return actions

    def _tokens(self, actions: Float[Tensor, "B n A"]) -> Float[Tensor, "B n S"]:
        """Normalised actions, as wide as the tokens of the buffer."""
        if actions.shape[-1] != self.model.normalise_action.size:
            raise ValueError(f"actions of this robot have {self.model.normalise_action.size} numbers, got {tuple(actions.shape)}")
        normalised = self.model.from_actions(actions.float())
        return pad(normalised, (0, self.layout.size - normalised.shape[-1]))

    def _ladder(self) -> roll.Ladder:
        """The buffer's ladder: what is seen at the end of a chunk has as many tokens as the model's cameras have."""
        if not self.config.frames:
            return self.config.ladder
        if not self._foreseen_streams or self.model.config.merge != 1:
            raise ValueError("a policy with frames needs a model that was trained with video, of merge 1")
        return replace(self.config.ladder, seen=sum(stream.frame_tokens for stream in self._foreseen_streams))

    @property
    def _foreseen_streams(self) -> list[Stream]:
        """What stands in the buffer with the actions: video; what will be felt, in plans of a model without video."""
        layout, is_whole = self.model.layout, self.config.kind == "chunked"
        return [layout[name] for name in layout.of_kind("video") or (layout.of_kind("state") if is_whole else ())]

    def _layout(self, committed: int) -> tuple[Layout, Int[Tensor, " N"]]:
        """The streams of the buffer, and the order in which their tokens stand there: chunk after chunk."""
        if committed not in self.layouts:
            action = self.ladder.stream(self.model.layout["action"], committed)
            video = [self._along(stream, committed) for stream in self._foreseen_streams if self.config.frames]
            layout, chunks = Layout((action, *video)), self.ladder.chunks
            place = torch.arange(layout.tokens)
            before = action.tokens - self.ladder.horizon
            parts = [place[before : action.tokens], *(place[layout.span(stream.name)] for stream in video)]
            chunk_by_chunk = torch.cat([part.reshape(chunks, -1) for part in parts], dim=1).flatten()
            self.layouts[committed] = layout, torch.cat([place[:before], chunk_by_chunk])
        return self.layouts[committed]

    def _along(self, trained: Stream, committed: int) -> Stream:
        """A stream's frames at the ends of the chunks."""
        frames = tuple(committed + self.ladder.chunk * (index + 1) for index in range(self.ladder.chunks))
        if not set(frames) <= set(trained.frames):
            raise ValueError(
                f"a buffer of actions and frames looks {list(frames)} ticks ahead, but the model's video was trained on "
                f"{list(trained.frames)}: train with model.video_frames={list(frames)} and the rule along"
            )
        return replace(trained, frames=frames)

    def _context(self, observation: Observation, batch: int):
        """The encoded observation, of every stream or one for all."""
        seen = len(observation.proprio)
        if seen not in (1, batch):
            told = f"a memory of {batch} streams needs as many observations, or one for all, got {seen}"
            raise ValueError(f"{told}: a new batch is a new policy.start(seeds)")
        prefix = self.model.encode(observation)
        return prefix if seen == batch else prefix.at(torch.zeros(batch, dtype=torch.int64))

    def _denoiser(self, memory: roll.Buffer, observation: Observation, committed: int) -> Denoiser:
        self.ladder.check(memory)
        layout, order = self._layout(committed)
        found = denoiser(self.model, roll.role(memory, committed), layout, self._context(observation, len(memory.tick)), LIMIT)
        if self.config.frames:
            found.network = reordered(self.model, order)
        return found
