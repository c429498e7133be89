"""What a config means, before anything is trained: tokens, plans as pictures, weights, work per call, calls per action."""

import json
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from uwm.core import plans, roles
from uwm.core.config import to_mapping
from uwm.core.patterns import parsed
from uwm.core.streams import Layout
from uwm.data import TrainingData
from uwm.learn.objective import ObjectiveConfig
from uwm.nn import trunks
from uwm.nn.robot_model import ModelConfig, Observation, RobotModel
from uwm.robot.policy import Policy, PolicyConfig

PICTURE_ROWS = 3  # a plan is drawn with few rows: its shape does not depend on their number
MODES = ("policy", "video", "forward", "inverse", "joint")


def explain(model_config: ModelConfig, objective: ObjectiveConfig, policy: PolicyConfig, data: TrainingData | None = None) -> str:
    """The whole explanation as text; of the data too, where it is there.

    Builds the real model with random weights to count its parameters and FLOPs.

    Raises ValueError when the policy's horizon is not one that the model is trained on.
    """
    model = trunks.make(model_config).eval()
    own, streams = policy_layout(model, policy), policy.kind == "streaming"
    parts = [
        *([("Data", _data(data))] if data else []),
        ("Streams", _streams(model)),
        ("Token layout", _layout(model.layout)),
        ("Plans, one line per network call", _plans(model.layout, policy)),
        *([(f"Streaming, {policy.chunks} chunks of {policy.chunk} actions", streaming_picture(own, policy))] if streams else []),
        ("Parameters", _parameters(model)),
        ("FLOPs (a multiply and an add are 2), batch of 1", _flops(model, policy)),
        ("Calls", _calls(policy)),
        ("Mixture of patterns in training", _mixture(objective, model.layout.kinds)),
        ("Resolved config", _resolved(model_config, objective, policy)),
    ]
    return "\n\n".join(f"{title}\n{'-' * len(title)}\n{body}" for title, body in parts)


def _columns(rows: list[tuple], right: tuple[int, ...] = ()) -> str:
    """Rows of cells with aligned columns; columns in `right` end together."""
    cells = [[str(cell) for cell in row] for row in rows]
    width = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    place = [str.rjust if column in right else str.ljust for column in range(len(width))]
    return "\n".join("  ".join(p(cell, w) for p, cell, w in zip(place, row, width, strict=True)).rstrip() for row in cells)


def _span(frames: tuple[int, ...]) -> str:
    """`-2..23` for a gapless run of ticks, else the list."""
    gapless = frames == tuple(range(frames[0], frames[-1] + 1))
    return f"{frames[0]}..{frames[-1]}" if gapless and len(frames) > 1 else ", ".join(map(str, frames))


def _data(data: TrainingData) -> str:
    """A line per dataset, or per task where a mixture is drawn by task."""
    own = {each.name: each for each in data.datasets}
    pools = [(pool.dataset, pool.task, pool.share) for pool in data.mixture().pools] if data.is_mixture else [(data.first.name, "", 1.0)]
    rows = [("dataset", "task", "share", "episodes", "Hz", "action", "proprio", "cameras")]
    for name, task, share in pools:
        each = own[name]
        cameras = ", ".join(ours if ours == theirs else f"{ours} ({theirs})" for ours, theirs in each.cameras.items())
        sizes = (len(each.training), f"{each.rate_hz:g}", each.action_size or "none", each.proprio_size or "none")
        rows.append((name, task, f"{100 * share:.1f} %", *sizes, cameras))
    rate = "each dataset's rate" if data.run.mixture.rate_hz == "own" else f"{data.rate_hz:g} Hz"
    return _columns(rows, (2, 3, 4, 5, 6)) + f"\nthe model ticks at {rate} and sees {data.side} x {data.side} pixels"


def _streams(model: RobotModel) -> str:
    config = model.config
    rows = [("stream", "kind", "ticks", "grid", "tokens", "numbers each")]
    grid, width = f"{config.grid} x {config.grid}, keypoints", model.width
    ticks, times = ", ".join(str(-tick) for tick in (*config.history[::-1], 0)), 1 + len(config.history)
    rows += [(f"see {name}", "observed", ticks, grid, times * model.see[name].tokens, width) for name in config.cameras]
    rows += [("feel proprioception", "observed", ticks, "1 x 1", times, width)]
    rows += [("hear an instruction", "observed", "0", "1 x 1", 1, width)] if model.hears else []
    rows += [(s.name, s.kind, _span(s.frames), f"{s.grid[0]} x {s.grid[1]}", s.tokens, s.size) for s in model.layout.streams]
    return _columns(rows, (4, 5))


def _layout(layout: Layout) -> str:
    rows = [("tokens", "stream", "block")]
    for stream in layout.streams:
        span = layout.span(stream.name)
        rows.append((f"{span.start}..{span.stop - 1}", stream.name, stream.block))
    tail = f"{layout.tokens} tokens; observed tokens are block 0 and are computed once per observation"
    return _columns(rows) + "\n" + tail


def _plans(layout: Layout, policy: PolicyConfig) -> str:
    note = f"(drawn with {PICTURE_ROWS} rows; the policy runs {policy.rows}. Dark is noise, a dot is given, blank is deleted)"
    usable = MODES if len(layout.kinds) > 1 else ("policy",)
    return "\n\n".join([note, *[f"{name}\n{plans.picture(plans.mode(layout, name, PICTURE_ROWS), layout)}" for name in usable]])


def streaming_picture(chosen: Layout, policy: PolicyConfig) -> str:
    """The levels of two ticks of a policy's layout, the roll between them; a frame belongs to the chunk that leads to it."""
    ladder, leads = policy.ladder, chosen.frame - (~chosen.mask("action")).long()
    unit = leads.clamp(min=0).div(ladder.chunk, rounding_mode="floor")
    given = chosen.frame < 0
    role = torch.where(given, roles.GIVEN, roles.ACTIVE)
    parts = []
    for tick in (0, 1):
        level = plans.spread(plans.streaming_tick(ladder.rows, ladder.chunks, tick, ladder.shape), unit)
        parts.append(f"tick {tick}\n{plans.picture(plans.Plan(torch.where(given, 0.0, level), role), chosen)}")
    return f"\n        first {ladder.chunk} actions are sent, the buffer rolls\n".join(parts)


def _parameters(model: RobotModel) -> str:
    count = {name: number for name, child in model.named_children() if (number := _size(child))}
    total = _size(model)
    count["tags and blanks"] = total - sum(count.values())
    rows = [(name, f"{number:,}", f"{100 * number / total:.1f} %") for name, number in count.items()]
    rows.append(("total", f"{total:,}", "100.0 %"))
    return _columns(rows, (1, 2)) + f"\nmodulation: {100 * model.modulation_share:.1f} % of the {model.config.trunk}"


def _size(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_flops(model: RobotModel, layout: Layout) -> int:
    """FLOPs of one network call on a layout, batch of 1, without encoding the observation."""
    prefix = model.encode(example_observation(model))
    x, level = torch.zeros(1, layout.tokens, layout.size), torch.ones(1, layout.tokens)
    return counted(lambda: model(x, level, roles.full(1, layout.tokens), layout, prefix))


def count_encoding_flops(model: RobotModel) -> int:
    """FLOPs of encoding one observation."""
    observation = example_observation(model)
    return counted(lambda: model.encode(observation))


@torch.no_grad()
def counted(call: Callable[[], object]) -> int:
    """FLOPs of a call; a multiply and an add are two."""
    # The counter does not know the fused attention of CPUs and would silently count it as nothing.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def example_observation(model: RobotModel) -> Observation:
    """A black observation of one sample, in the sizes that the model expects."""
    config = model.config
    side = config.autoencoder.image_size
    seen = Observation({name: torch.zeros(1, 3, side, side) for name in config.cameras}, torch.zeros(1, model.normalise_proprio.size))
    return replace(seen, earlier=(seen,) * len(config.history))


def policy_layout(model: RobotModel, policy: PolicyConfig) -> Layout:
    """The row of tokens of a policy's call: without `frames` its actions only, since the video is deleted."""
    return Policy(model, policy).layout


def _flops(model: RobotModel, policy: PolicyConfig) -> str:
    video, action = model.layout.of_kind("video"), model.layout.of_kind("action")
    rows = [("encoding an observation", "", count_encoding_flops(model))]
    own = policy_layout(model, policy)
    rows.append(("a policy's call", f"{own.tokens} tokens", count_flops(model, own)))
    if video:
        alone = model.layout.select(video)
        rows.append(("a call of video prediction", f"{alone.tokens} tokens", count_flops(model, alone)))
        named = f"a call of forward, inverse or joint ({', '.join((*action, *video))})"
        rows.append((named, f"{model.layout.tokens} tokens", count_flops(model, model.layout)))
    return _columns([(name, tokens, _short(flops)) for name, tokens, flops in rows], (1, 2))


def _short(count: float) -> str:
    power = min(int(math.log10(max(count, 1)) // 3), 4)
    return f"{count / 1000**power:.3g} {('', 'k', 'M', 'G', 'T')[power]}"


def calls_per_action(policy: PolicyConfig) -> float:
    """Network calls per action of a policy that runs for long: the primer of a fresh buffer is not in it."""
    per_chunk = policy.rows / policy.chunks if policy.kind == "streaming" else policy.rows
    return per_chunk / policy.chunk


def _calls(policy: PolicyConfig) -> str:
    both = {kind: PolicyConfig(kind, policy.rows, policy.chunk, policy.chunks) for kind in ("streaming", "chunked")}
    each = [plans.streaming_calls(policy.rows, policy.chunks, tick) for tick in range(policy.chunks)]
    span = f"{min(each)}" if min(each) == max(each) else f"{min(each)} or {max(each)}"
    filling = policy.ladder.primer_calls
    primer = f"{filling} once per episode" if filling else "none"
    rows = [
        ("policy", "rows from noise to clean", "calls per chunk", "calls per action", "calls to fill a fresh buffer"),
        *([("streaming", policy.rows, span, f"{calls_per_action(both['streaming']):.3g}", primer)] if policy.kind == "streaming" else []),
        ("chunked", policy.rows, policy.rows, f"{calls_per_action(both['chunked']):.3g}", "none"),
    ]
    return _columns(rows)


def _mixture(objective: ObjectiveConfig, kinds: tuple[str, ...]) -> str:
    total = sum(pattern.weight for pattern in objective.patterns)
    kinds = tuple(dict.fromkeys(("action", "video", *kinds)))
    rows = [("share", *kinds, "details")]
    for p in objective.patterns:
        ladder = f"chunks of {p.chunk}" if "ladder" in (parsed(p.action)[0], parsed(p.video)[0]) else ""
        prefix = f"clean prefix of 0 to {p.committed}" if p.committed else ""
        details = ", ".join(filter(None, (ladder, prefix)))
        rows.append((f"{100 * p.weight / total:.1f} %", *(getattr(p, kind) for kind in kinds), details))
    return _columns(rows, (0,)) + f"\n{objective.draws} noise draws share one observation"


def _resolved(model_config: ModelConfig, objective: ObjectiveConfig, policy: PolicyConfig) -> str:
    named = {"model": model_config, "objective": objective, "policy": policy}
    return json.dumps({name: to_mapping(value) for name, value in named.items()}, indent=1)
