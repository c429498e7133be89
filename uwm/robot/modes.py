"""Any mode of a robot's model in one call, in the robot's own units.

```
targets        given          marginal     is
action         -              -            policy
front          action         -            forward dynamics
action         front          -            inverse dynamics
front          -              -            video prediction
action, front  -              -            joint prediction
action         -              front        policy with noise in the video's place, as the UWM paper has it (sec. III-C)
```

What is not named is absent, which is exact and cheaper. `sample` is for looking at what a model knows, `ModePolicy` acts by it: along a
film, or with noise in the video's place. For policy mode alone there are faster loops (`uwm.robot.policy`).
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from uwm.core import roles
from uwm.core.shapes import Float, Int
from uwm.core.streams import Layout, Stream
from uwm.nn.robot_model import Observation, RobotModel
from uwm.robot.policy import LIMIT, PolicyConfig
from uwm.sample import loop
from uwm.sample.denoise import denoiser
from uwm.sample.modes import Assignment
from uwm.sample.randomness import Randomness
from uwm.sample.steps import rule


@torch.inference_mode()
def sample(
    model: RobotModel,
    observation: Observation,
    targets: Iterable[str],
    given: Mapping[str, Tensor] | None = None,
    marginal: Iterable[str] = (),
    executed: Float[Tensor, "B k A"] | None = None,
    rows: int = 10,
    seeds: Iterable[int] = (0,),
    step: str = "ddim",
) -> dict[str, Tensor]:
    """Samples the targets, as many as there are seeds, for one observation or one for each seed.

    Streams are named as in the model's layout, and come and go as: "action" (B, horizon, A) in physical units; a camera (B, T, 3, H, W)
    in [0, 1] at the model's `video_frames`; "state" (B, T, P) in physical units at its `state_frames`. `executed`: actions of the past, the
    last ones count. ValueError for a stream that is unknown, has two roles, a wrong shape or numbers that are not finite.
    """
    given, seeds = dict(given or {}), list(seeds)
    assignment = Assignment(tuple(targets), tuple(given), tuple(marginal))
    unknown = [name for name in assignment.names if name not in model.layout.names]
    if unknown:
        raise ValueError(f"the model has no stream {unknown[0]!r}; it has {list(model.layout.names)}")
    layout, seen = model.layout.select(assignment.names), len(observation.proprio)
    if seen not in (1, len(seeds)):
        raise ValueError(f"{len(seeds)} seeds need as many observations, or one for all, got {seen}")
    plan = assignment.plan(layout, rows)
    known = {stream.name: torch.zeros(len(seeds), stream.tokens, stream.size) for stream in layout.streams}
    for name, value in given.items():
        known[name][:, layout[name].tokens - _ahead(layout[name]) :] = _encoded(model, layout[name], value, observation)
    role = plan.role.repeat(len(seeds), 1)
    if "action" in layout.names:
        remember(model, layout, role, known["action"], executed)
    prefix = model.encode(observation)
    prefix = prefix if seen == len(seeds) else prefix.at(torch.zeros(len(seeds), dtype=torch.int64))
    denoise = denoiser(model, role, layout, prefix, LIMIT)
    x, _ = loop.follow(denoise, layout.pack(known), plan.level, Randomness.seeded(seeds), rule(step))
    tokens = layout.unpack(x)
    return {name: _decoded(model, layout[name], tokens[name], observation) for name in assignment.targets}


class ModePolicy:
    """A policy of one environment (`start`, `act`, `done`) whose plans are drawn by `sample`; the first chunk of each is sent.

    `beside`: streams that fall together with the actions; `film`: from the tick of an episode to given streams, e.g. what is to be
    seen from there on, so that the plan leads along it. ValueError for a config that keeps a buffer.
    """

    def __init__(
        self,
        model: RobotModel,
        config: PolicyConfig,
        beside: Iterable[str] = (),
        film: Callable[[int], Mapping[str, Tensor]] | None = None,
    ):
        if config.kind != "chunked" or not 1 <= config.chunk <= model.config.horizon:
            raise ValueError(f"a plan of any mode is whole: kind chunked and a chunk within {model.config.horizon} actions, got {config}")
        self.model, self.config, self.film, self.calls = model.eval(), config, film, 0
        self.targets, self.cameras, self.history = ("action", *beside), model.config.cameras, model.config.history

    def start(self, seeds: Iterable[int]) -> tuple[int, Float[Tensor, "1 n A"]]:
        """A fresh memory: the seed, and what was executed."""
        (seed,) = seeds
        return seed, torch.zeros(1, 0, self.model.normalise_action.size)

    def act(self, memory: tuple[int, Tensor], observation: Observation) -> tuple[tuple[int, Tensor], Float[Tensor, "1 C A"]]:
        """The next chunk in physical units."""
        seed, executed = memory
        tick, rows = executed.shape[1], self.config.rows
        given = self.film(tick) if self.film else {}
        own = [seed + (tick << 32)]  # other noise in every plan
        found = sample(self.model, observation, self.targets, given, (), executed, rows, own, self.config.step)
        self.calls += rows
        return memory, found["action"][:, : self.config.chunk]

    def done(self, memory: tuple[int, Tensor], executed: Float[Tensor, "1 n A"]) -> tuple[int, Tensor]:
        """The memory after `executed` really went to the robot."""
        seed, before = memory
        return seed, torch.cat([before, executed], dim=1)


def _ahead(stream: Stream) -> int:
    """Tokens of a stream that are not of the past."""
    return stream.frame_tokens * sum(frame >= 0 for frame in stream.frames)


def _encoded(model: RobotModel, stream: Stream, value: Tensor, observation: Observation) -> Tensor:
    side, count = model.config.autoencoder.image_size, sum(frame >= 0 for frame in stream.frames)
    wanted = {
        "action": (count, model.normalise_action.size), "video": (count * model.config.merge, 3, side, side),
        "state": (count, model.normalise_proprio.size),
    }[stream.kind]  # fmt: skip
    if tuple(value.shape[1:]) != wanted or not bool(torch.isfinite(value).all()):
        raise ValueError(f"given {stream.name!r} must be (B, {', '.join(map(str, wanted))}) and finite, got {tuple(value.shape)}")
    match stream.kind:
        case "action":
            return model.from_actions(value.float())
        case "video":
            return model.video.encode(value.float())
        case _:
            return model.from_proprio(observation.proprio, value.float())


def _decoded(model: RobotModel, stream: Stream, tokens: Tensor, observation: Observation) -> Tensor:
    match stream.kind:
        case "action":
            return model.to_actions(tokens[:, stream.tokens - _ahead(stream) :])
        case "video":
            return model.video.decode(tokens, len(stream.frames) * model.config.merge)
        case _:
            return model.to_proprio(observation.proprio.expand(len(tokens), -1), tokens)


def remember(
    model: RobotModel, layout: Layout, role: Int[Tensor, "B N"], tokens: Float[Tensor, "B n S"], executed: Float[Tensor, "B k A"] | None
) -> None:
    """Puts the last executed actions (physical units) in their places among the action `tokens`; what is not known is absent."""
    past = model.config.past
    count = 0 if executed is None else min(executed.shape[1], past)
    start = layout.span("action").start
    role[:, start : start + past - count] = roles.ABSENT
    if count:
        tokens[:, past - count : past] = model.from_actions(executed[:, -count:].float())
