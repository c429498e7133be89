"""Claim: forward dynamics tells what actions lead to, over a hundred frames, and not only how things go on.

| arm | frames beyond those that are known |
|---|---|
| true | drawn from the actions that were done, frame behind frame |
| shuffled | the same from the actions of another clip or episode |
| copy | the last known frame, repeated |

| of | model | as far as |
|---|---|---|
| clips of a pushing arm | that of `uwm bench streaming-video` | 100 frames behind two known ones: twelve times the trained length |
| Lift, held-out episodes | `base.unified`, both cameras | its two future frames, 8 and 16 ticks ahead |

Errors at every distance: of latents (mean square), PSNR in dB and SSIM of pixels (more is better), and `seen`: how far apart pictures are
to a network that knows real frames only (as LPIPS, Zhang et al. 2018): a judge of where the arm is, or the eyes with which a policy sees.
"""

import itertools
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from uwm.bench import base, clip_data, experiment, modes_bench, streaming_video_bench
from uwm.bench.clip_data import FRAMES, PER_FRAME, SIDE
from uwm.bench.experiment import SEEDS, gate, values
from uwm.bench.gates import Gate
from uwm.bench.modes import interval
from uwm.bench.runner import Result
from uwm.bench.streaming_video_bench import KNOWN
from uwm.media.metrics import perceptual, psnr, ssim
from uwm.nn.codecs import unit_to_frames
from uwm.robot.modes import sample
from uwm.sample.rollout import rollout
from uwm.training import held_out

CLAIM = "Forward dynamics tells what actions lead to, up to 100 frames ahead: nearer to the truth than other actions or the last frame."
FULL = {**streaming_video_bench.FULL, "flight": 3, "distances": (1, 2, 4, 8, 16, 32, 64, 100)}
QUICK = {**streaming_video_bench.QUICK, "flight": 2, "distances": (1, 2, 4, 8)}
JUDGED = (8, 32, 100)  # frames ahead
WINDOWS = 128  # of Lift


def run(quick: bool, out: Path | None) -> Result:
    """Clips for all seeds, Lift from one checkpoint; a quick run has clips only, and judges nothing."""
    budget, seeds = (QUICK, SEEDS[:1]) if quick else (FULL, SEEDS)
    found = experiment.run_arms("dynamics", {"clips": partial(measured, budget)}, seeds, budget, *experiment.where(quick))
    gates, figures = judged(found, budget, not quick), experiment.summary(found)
    if not quick:
        checkpoint = base.unified("lift")
        told = [base.weights_of(checkpoint), WINDOWS]
        lift = experiment.run_arms("dynamics", {"Lift": partial(on_lift, checkpoint)}, (0,), told, *experiment.where(quick))["Lift"][0]
        gates, figures = gates + judged_lift(lift), {**figures, "Lift": lift}
    return Result(CLAIM, gates, seeds, figures)


def judged(found: experiment.Found, budget: dict, enough: bool) -> list[Gate]:
    """True actions against both others, seed by seed."""
    gates = []
    for distance in (each for each in JUDGED if each in budget["distances"]):
        for other in ("shuffled", "copy"):
            ratio = values(found, "clips", f"latents, true, {distance}") / values(found, "clips", f"latents, {other}, {distance}")
            gates.append(gate(f"clips, {distance} ahead: error of latents, true actions / {other}", ratio, "<", 1.0, enough, other))
    return gates


def judged_lift(found: dict) -> list[Gate]:
    """The same at the last frame that the model foresees, over held-out episodes."""
    return [
        Gate(f"Lift: error of latents, true actions / {other}", ratio, "<", 1.0, True, other, tuple(ends))
        for other, (ratio, *ends) in found["latents of true actions over those of"].items()
    ]


def measured(budget: dict, seed: int) -> dict:
    """One model of clips: every error of every arm at every distance."""
    model, frames = streaming_video_bench.trained(budget, seed), KNOWN + max(budget["distances"])
    long = clip_data.longer(budget["clips"], budget["held"], frames)
    true, actions = long.held["top"], long.held["action"]
    known, rows, judge = true[:, : KNOWN * PER_FRAME], budget["rows"], clip_data.tokens(budget["clips"], budget["held"]).places
    draw = partial(rollout, model, {"top": known}, frames - KNOWN, gap=rows // budget["flight"], rows=rows, window=FRAMES)
    arms = {"copy": known[:, -PER_FRAME:].repeat(1, frames - KNOWN, 1)}
    for name, told in (("true", actions), ("shuffled", actions.roll(1, dims=0))):
        arms[name] = torch.cat([each.values["top"] for each in draw({"action": told}, seeds=range(len(true)))], dim=1)
    found = {}
    for name, tokens in arms.items():
        for distance in budget["distances"]:
            drawn, real = clip_data.frame(tokens, distance - 1), clip_data.frame(true, KNOWN + distance - 1)
            seen = torch.from_numpy(long.clips.frames["top"][:, KNOWN + distance - 1])
            pixels = long.pca.decode(drawn, SIDE)[:, 0]
            errors = _errors(drawn, real, pixels, seen, judge.layers(drawn), judge.layers(real))
            found |= {f"{error}, {name}, {distance}": value for error, value in errors.items()}
    return {"judge of places": judge.score, **found}


@torch.inference_mode()
def on_lift(checkpoint: Path, _: int) -> dict:
    """Held-out windows of a robot's model, one sample each."""
    model, windows = held_out(checkpoint)
    chosen = modes_bench.spread(windows.windows, model.config.horizon, WINDOWS)
    chosen = chosen[windows.windows.locate(chosen)[1] >= model.config.past]  # all actions were done
    batch, true = windows.batch(chosen), windows.future_frames(chosen)
    past, cameras, ticks = model.config.past, model.config.cameras, model.config.video_frames
    tokens = model.layout.unpack(batch.clean)
    actions, seen = model.to_actions(tokens["action"]), batch.observation
    draw = partial(sample, model, seen, cameras, executed=actions[:, :past], rows=12, seeds=[int(index) for index in chosen])
    arms = {"true": draw({"action": actions[:, past:]}), "shuffled": draw({"action": actions[:, past:].roll(len(chosen) // 2, dims=0)})}
    arms["copy"] = {name: seen.images[name][:, None].expand_as(true[name]) for name in cameras}
    found, square = {}, {}
    for arm, drawn in arms.items():
        square[arm] = torch.zeros(len(chosen), dtype=torch.float64)
        for name, (place, tick) in itertools.product(cameras, enumerate(ticks)):
            frames = drawn[name][:, place], true[name][:, place]
            latents = [model.video.encode(image[:, None]) for image in frames]
            errors = _errors(*latents, *map(unit_to_frames, frames), *([model.see[name](image)] for image in frames))
            found |= {f"{error}, {arm}, {name}, {tick}": value for error, value in errors.items()}
            square[arm] += (latents[0] - latents[1]).square().mean(dim=(1, 2))
    episodes = torch.from_numpy(windows.windows.locate(chosen)[0])
    ratios = {
        other: [float(square["true"].sum() / square[other].sum()), *interval(square["true"], square[other], episodes)]
        for other in ("shuffled", "copy")
    }  # fmt: skip
    return {"windows": len(chosen), "latents of true actions over those of": ratios, **found}


def _errors(drawn: Tensor, real: Tensor, pixels: Tensor, seen: Tensor, layers: list[Tensor], those: list[Tensor]) -> dict[str, float]:
    """All kinds of error of drawn tokens, pixels and what a network makes of them."""
    latents = float((drawn - real).square().mean())
    return {"latents": latents, "PSNR": psnr(pixels, seen), "SSIM": ssim(pixels, seen), "seen": perceptual(layers, those)}
