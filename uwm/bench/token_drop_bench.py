"""Claim: a policy may delete its video tokens, with the same answer, for a fraction of the work.

| what | LIBERO shape | DROID shape |
|---|---|---|
| deleted | 16 action tokens, registers | the same |
| kept (a) | and 98 video tokens, absent | and 147 |
| paper (b) | the paper's network, which always reads its video tokens | the same |

Work and latency do not depend on the weights, so these are random. The observation is encoded once and not part of a call.
"""

import time
from pathlib import Path

import torch

from uwm import explain
from uwm.bench.gates import Gate
from uwm.bench.runner import Result
from uwm.build import SizeConfig
from uwm.cli import compose
from uwm.core import roles
from uwm.core.config import from_mapping
from uwm.nn.model import UnifiedModel
from uwm.nn.paper import PRESETS, PaperDenoiser
from uwm.robot.evaluate import percentiles

CLAIM = "Policy mode deletes its video tokens: the same answer from the same weights for a fraction of the FLOPs."
WANTED = {"uwm-libero": 3.0, "uwm-droid": 7.0}  # times fewer FLOPs than with the video tokens kept
FULL, QUICK = 40, 3  # timed calls of each kind
TOLERANCE = 1e-4  # of the largest output: float32 rounding through twelve blocks


def run(quick: bool, out: Path | None) -> Result:
    """FLOPs by torch's counter; latency at batch 1, the three kinds in turn, so that a slow moment meets them all."""
    gates, figures = [], {}
    for preset, wanted in WANTED.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found = measure(preset, QUICK if quick else FULL)
        figures[preset] = found
        gates += judged(preset, found, wanted, enough=not quick)
    return Result(CLAIM, gates, (0,), figures)


def judged(preset: str, found: dict, wanted: float, enough: bool) -> list[Gate]:
    """FLOPs and exactness are counts; a latency needs enough calls."""
    flops, p50 = found["flops"], {kind: times["p50"] for kind, times in found["latency_ms"].items()}
    return [
        Gate(f"{preset}: FLOPs per call, kept / deleted", flops["kept"] / flops["deleted"], ">=", wanted, True, "video tokens kept"),
        Gate(f"{preset}: FLOPs per call, paper / deleted", flops["paper"] / flops["deleted"], ">", 1.0, True, "the paper's network"),
        Gate(f"{preset}: largest difference of the answers", found["difference"], "<=", TOLERANCE, True, "video tokens kept"),
        Gate(f"{preset}: p50 latency, kept / deleted", p50["kept"] / p50["deleted"], ">", 1.0, enough, "video tokens kept"),
        Gate(f"{preset}: p50 latency, paper / deleted", p50["paper"] / p50["deleted"], ">", 1.0, enough, "the paper's network"),
    ]


@torch.inference_mode()
def measure(preset: str, repeats: int) -> dict:
    """FLOPs, latency and the difference between the answers with video tokens deleted and kept."""
    paper = PRESETS[preset]
    model, theirs = ours(preset), PaperDenoiser(paper).eval()
    for parameter in model.write.parameters():
        parameter.normal_(std=0.02)  # at the start of training these are zero, and all answers equal
    layout, actions = model.layout, model.layout.select(("action",))
    noise, features = torch.randn(1, layout.tokens, layout.size), torch.randn(1, paper.condition - paper.level_size)
    given = torch.randn(1, theirs.layout.tokens, theirs.layout.size)
    span, size = layout.span("action"), layout["action"].size
    role = roles.full(1, layout.tokens)
    absent = role.masked_fill(layout.mask(*layout.of_kind("video"))[None], roles.ABSENT)
    level, prefix = torch.full((1, layout.tokens), 0.5), model.encode(explain.example_observation(model))
    calls = {
        "deleted": lambda: model(noise[:, span, :size], level[:, span], role[:, span], actions, prefix),
        "kept": lambda: model(noise, level, absent, layout, prefix),
        "paper": lambda: theirs(given, torch.full((1, theirs.layout.tokens), 0.5), None, theirs.layout, features),
    }
    short, whole = calls["deleted"](), calls["kept"]()[:, span, :size]
    return {
        "parameters": {"ours": _count(model), "paper": _count(theirs)},
        "tokens": {"deleted": actions.tokens, "kept": layout.tokens, "paper": paper.tokens, "registers": paper.registers},
        "flops": {kind: explain.counted(call) for kind, call in calls.items()},
        "difference": float((short - whole).abs().max() / whole.abs().max()),
        "latency_ms": _timed(calls, repeats),
        "threads": torch.get_num_threads(),
    }


def ours(preset: str) -> UnifiedModel:
    """Our model at the paper's trunk, from the config of that name; the sizes of its world are those of the paper."""
    size, paper = from_mapping(SizeConfig, compose("train", [f"model={preset}"])["model"], preset), PRESETS[preset]
    return UnifiedModel(size.model(paper.views, proprio_size=8, action_size=paper.action_size, image_size=224)).eval()


def _count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _timed(calls: dict, repeats: int) -> dict[str, dict[str, float]]:
    times: dict[str, list[float]] = {kind: [] for kind in calls}
    for index in range(repeats + 2):
        for kind, call in calls.items():
            began = time.perf_counter()
            call()
            if index >= 2:  # the first two are warm-up
                times[kind].append(1e3 * (time.perf_counter() - began))
    return {kind: percentiles(each) for kind, each in times.items()}
