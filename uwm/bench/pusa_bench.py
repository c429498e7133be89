"""Claim: a video model of one level per clip learns a level per frame in a tenth of its steps, and stays what it was.

| arm | levels of the adaptation |
|---|---|
| none | the model as it is, its frames held all the same |
| random | one per frame, independent: Pusa's choice (Liu et al. 2025, table 4) |
| ptss | one per frame in a fifth of the samples |
| first frame | the first clean, one level for the others |

An adapter of rank 8 learns on 128 clips that the model itself has drawn. Errors are of latents of held-out clips, whose mean square is
1; nothing was trained on frames between a first and a last.
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
from uwm.core import roles
from uwm.core.patterns import Pattern
from uwm.learn.adapt import adapt_levels
from uwm.media import video
from uwm.nn.stream_model import StreamModel
from uwm.sample.modes import generate

CLAIM = "A model of one level per clip learns levels per frame from its own samples in a tenth of its steps, without harm."
ARMS = {"random": "independent", "ptss": "ptss(0.2)", "first frame": "first_clean"}
FULL = {"clips": 2400, "held": 64, "steps": 1200, "batch": 16, "rows": 12, "samples": 128, "adapt": 120, "rank": 8}
QUICK = {"clips": 64, "held": 8, "steps": 30, "batch": 8, "rows": 4, "samples": 40, "adapt": 6, "rank": 4}


def run(quick: bool, out: Path | None) -> Result:
    """All arms from one base model a seed."""
    budget = QUICK if quick else FULL
    seeds = SEEDS[:1] if quick else SEEDS
    # One run trains a base and adapts it in every way: its figures are those of all arms.
    runs = experiment.run_arms("pusa", {"all": partial(measured, budget)}, seeds, budget, *experiment.where(quick))["all"]
    found = {arm: [run[arm] for run in runs] for arm in ("none", *ARMS)}
    return Result(CLAIM, judged(found, not quick), seeds, experiment.summary(found))


def judged(found: experiment.Found, enough: bool) -> list[Gate]:
    """What the paper found at its scale, and what must hold exactly."""
    of = partial(values, found)
    harm = max(float(of(arm, "changed_when_off").max()) for arm in ARMS)
    begun, ends = of("random", "from_frame") / of("none", "from_frame"), of("random", "between") / of("first frame", "between")
    near = of("random", "frechet") / of("none", "frechet")
    seen = of("random", "sees_first") / of("none", "sees_first")
    return [
        gate("from a frame: error, adapted / as it was", begun, "<=", 0.5, enough, "the frame held in the model as it is", paper=True),
        gate("between two: error, random / first frame clean", ends, "<", 1.0, enough, "a fixed pattern of the same steps", paper=True),
        gate("Fréchet distance of drawn clips, adapted / as it was", near, "<=", 1.1, enough, "the model as it is", paper=True),
        gate("what the held frame changes in the others, adapted / as it was", seen, ">", 1.0, enough, "the model as it is", paper=True),
        Gate("largest change with the adapter's strength at 0", harm, "<=", 0.0, True, "bit for bit"),
        gate("share of parameters that learn", of("random", "share"), "<=", 0.15, True, "those of the model"),
    ]


def measured(budget: dict, seed: int) -> dict:
    """{arm: its figures} of one base model."""
    base = clip_data.trained(budget, Pattern(video="constant", action="given"), seed)
    train = clip_data.tokens(budget["clips"], budget["held"]).train
    count = min(budget["samples"], len(train["top"]))
    actions = train["action"][:count]
    own = generate(base, ["top"], {"action": actions}, rows=budget["rows"], seeds=[seed * 10_000 + index for index in range(count)])
    clean = clip_data.packed({"top": own["top"], "action": actions})
    found = {"none": _figures(base, budget)}
    before = _said(base, budget)
    for arm, rule in ARMS.items():
        pattern = Pattern(video=rule, action="given")
        adapter = adapt_levels(base, clean, pattern, budget["rank"], budget["adapt"], budget["batch"], seed)
        found[arm] = {**_figures(base, budget), "share": _share(adapter, base), **_moved(adapter.change())}
        adapter.strength = 0.0
        found[arm]["changed_when_off"] = float((_said(base, budget) - before).abs().max())
        adapter.remove()
    return found


def _figures(model: StreamModel, budget: dict) -> dict[str, float]:
    held = clip_data.tokens(budget["clips"], budget["held"]).held
    true, options = held["top"], {"given": {"action": held["action"]}, "rows": budget["rows"]}
    first, last = ({"top": frame(true, place)} for place in (0, FRAMES - 1))
    begun = video.from_frame(model, first, range(len(true)), **options)["top"]
    filled = video.between(model, first, last, range(len(true)), **options)["top"]
    return {
        "from_frame": error(begun, true, range(1, FRAMES)), "between": error(filled, true, range(1, FRAMES - 1)),
        "frechet": clip_data.frechet_of(model, budget), "sees_first": _sees_first(model, budget),
    }  # fmt: skip


@torch.no_grad()
def _predicted(model: StreamModel, top: Tensor, action: Tensor, level: Tensor) -> Tensor:
    """What the model says of frames at these levels, with the actions given."""
    layout = model.layout
    video_tokens = layout.mask("top")
    levels = torch.where(video_tokens, level[layout.frame], 0.0)
    role = torch.where(video_tokens, roles.ACTIVE, roles.GIVEN).to(torch.int8).expand(len(top), -1)
    return layout.unpack(model(layout.pack({"top": top, "action": action}), levels.expand(len(top), -1), role))["top"]


def _said(model: StreamModel, budget: dict) -> Tensor:
    held = clip_data.tokens(budget["clips"], budget["held"]).held
    return _predicted(model, held["top"], held["action"], torch.full((FRAMES,), 0.5))


def _sees_first(model: StreamModel, budget: dict) -> float:
    """Mean square of what changes in the other frames, all noise, when the clean first frame is that of another clip."""
    held = clip_data.tokens(budget["clips"], budget["held"]).held
    noise = torch.randn(held["top"].shape, generator=torch.Generator().manual_seed(0))
    first, level = frame(held["top"], 0), torch.ones(FRAMES)
    level[0] = 0.0
    own, other = (
        _predicted(model, torch.cat([each, noise[:, PER_FRAME:]], dim=1), held["action"], level)[:, PER_FRAME:]
        for each in (first, first.roll(1, 0))
    )
    return float((own - other).square().mean())


def _share(adapter: torch.nn.Module, model: StreamModel) -> float:
    learns, whole = (sum(parameter.numel() for parameter in module.parameters()) for module in (adapter, model))
    return learns / whole


def _moved(change: dict[str, float]) -> dict[str, float]:
    """Relative change of weights by the last part of a layer's name: which kind of layer the adapter moves."""
    kinds = sorted({name.rsplit(".", 1)[-1] for name in change})
    of = {kind: [value for name, value in change.items() if name.rsplit(".", 1)[-1] == kind] for kind in kinds}
    return {f"weights moved, {kind}": sum(found) / len(found) for kind, found in of.items()}
