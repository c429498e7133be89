"""Claim: a level per frame makes one video model begin from a frame and fill in between two, with nothing trained for either.

| arm | levels in training |
|---|---|
| scalar | one per clip: ptss(0) |
| ptss | one per frame in a fifth of the samples: ptss(0.2), FVDM's choice |
| independent | one per frame always: ptss(1) |

Clips of a pushing arm, 8 frames, camera above, the actions given. A model of one level knows frames by replacement (known frames are
overwritten, noised anew, at every row); a model of frame levels holds them clean. Errors are of latents, whose mean square is 1.
Beside the gates: how far the arm's tip drifts over four parts, each begun with the last two frames of the one before.
"""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from uwm.bench import clip_data, experiment
from uwm.bench.clip_data import FRAMES, PER_FRAME, error, frame
from uwm.bench.experiment import SEEDS, gate, values
from uwm.bench.gates import Gate
from uwm.bench.runner import Result
from uwm.core.patterns import Pattern
from uwm.media import video
from uwm.nn.stream_model import StreamModel
from uwm.sample.denoise import denoiser
from uwm.sample.loop import follow
from uwm.sample.modes import Assignment
from uwm.sample.randomness import Randomness
from uwm.sample.replacement import replaced
from uwm.sample.steps import by_stream, ddim

OVERLAP = 2
CLAIM = "Frame-wise levels: a video model begins from a frame and fills in between two, better than by replacement, held frames exact."
ARMS = {"scalar": "ptss(0)", "ptss": "ptss(0.2)", "independent": "ptss(1)"}
FULL = {"clips": 2400, "held": 64, "steps": 1200, "batch": 16, "rows": 12, "samples": 128, "parts": 4}
QUICK = {"clips": 64, "held": 8, "steps": 30, "batch": 8, "rows": 4, "samples": 40, "parts": 2}


def run(quick: bool, out: Path | None) -> Result:
    """All arms for all seeds, the same clips and steps."""
    budget = QUICK if quick else FULL
    arms = {name: partial(measured, budget, rule) for name, rule in ARMS.items()}
    seeds = SEEDS[:1] if quick else SEEDS
    found = experiment.run_arms("fvdm", arms, seeds, budget, *experiment.where(quick))
    return Result(CLAIM, judged(found, not quick), seeds, experiment.summary(found))


def judged(found: experiment.Found, enough: bool) -> list[Gate]:
    """What the paper found, and what must hold exactly."""
    ratio = lambda figure, other: values(found, "ptss", figure) / values(found, "scalar", other)  # noqa: E731
    begun, filled = ratio("from_frame", "from_frame_replaced"), ratio("between", "between_replaced")
    over_blend = values(found, "ptss", "between") / values(found, "ptss", "blend")
    moved = max(values(found, arm, "held_moved").max() for arm in ("ptss", "independent"))
    base = "one level per clip, replacement"
    return [
        gate("from a frame: error of frames 1 and 2, held / replaced", begun, "<=", 0.7, enough, base, paper=True),
        gate("between two: error of the middle, held / replaced", filled, "<=", 0.7, enough, base, paper=True),
        gate("between two: error of the middle / of a blend", over_blend, "<", 1.0, enough, "linear blend of first and last"),
        gate("Fréchet distance of drawn clips", ratio("frechet", "frechet"), "<=", 1.1, enough, "one level per clip", paper=True),
        Gate("largest change of a held frame", float(moved), "<=", 0.0, True, "bit for bit"),
    ]


def measured(budget: dict, rule: str, seed: int) -> dict:
    """One model: its own clips, and known frames held and replaced."""
    data = clip_data.tokens(budget["clips"], budget["held"])
    model = clip_data.trained(budget, Pattern(video=rule, action="given"), seed)
    held = data.held
    true, given, seeds, rows = held["top"], {"action": held["action"]}, range(len(held["top"])), budget["rows"]
    first, last = frame(true, 0), frame(true, FRAMES - 1)
    begun = video.from_frame(model, {"top": first}, seeds, given=given, rows=rows)["top"]
    filled = video.between(model, {"top": first}, {"top": last}, seeds, given=given, rows=rows)["top"]
    share = torch.linspace(0, 1, FRAMES).repeat_interleave(PER_FRAME)[None, :, None]
    blend = (1 - share) * first.repeat(1, FRAMES, 1) + share * last.repeat(1, FRAMES, 1)
    middle = FRAMES // 2
    return {
        "from_frame": error(begun, true, (1, 2)), "between": error(filled, true, (middle,)), "blend": error(blend, true, (middle,)),
        "from_frame_replaced": error(_replaced(model, true, given, (0,), rows), true, (1, 2)),
        "between_replaced": error(_replaced(model, true, given, (0, FRAMES - 1), rows), true, (middle,)),
        "held_moved": float((frame(begun, 0) - first).abs().max() + (frame(filled, FRAMES - 1) - last).abs().max()),
        "frechet": clip_data.frechet_of(model, budget), "floor_psnr": data.pca.floor(torch.from_numpy(data.clips.frames["top"])),
        **_drift(model, budget),
    }  # fmt: skip


def _drift(model: StreamModel, budget: dict) -> dict[str, float]:
    """Distance of the tip, in metres, at the end of every part of a long clip whose first two frames are known."""
    data, fresh = clip_data.tokens(budget["clips"], budget["held"]), FRAMES - OVERLAP
    long = clip_data.longer(budget["clips"], budget["held"], OVERLAP + budget["parts"] * fresh)
    begin = {"top": long.held["top"][:, : OVERLAP * PER_FRAME]}
    given, seeds = {"action": long.held["action"]}, range(len(begin["top"]))
    whole = video.go_on(model, begin, budget["parts"] * fresh, OVERLAP, seeds, given, rows=budget["rows"])["top"]
    apart = clip_data.tips_apart(data.places, whole, long.clips.tip)
    return {f"tip, part {part + 1}": float(apart[OVERLAP + (part + 1) * fresh - 1]) for part in range(budget["parts"])}


def _replaced(model: StreamModel, true: Tensor, given: dict[str, Tensor], places: tuple[int, ...], rows: int) -> Tensor:
    """Frames at `places` known by replacement."""
    layout = model.layout
    clean = layout.pack({"top": true, **given})
    known = layout.mask("top") & torch.isin(layout.frame, torch.tensor(places))
    plan = Assignment(("top",), ("action",)).plan(layout, rows)
    denoise = denoiser(model, plan.role[None].expand(len(true), -1))
    step = replaced(by_stream(layout, {}, ddim()), clean, known)
    with torch.inference_mode():
        out, _ = follow(denoise, clean, plan.level, Randomness.seeded(range(len(true))), step)
    return layout.unpack(out)["top"]
