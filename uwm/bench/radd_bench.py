"""Claim: words are tokens like any other. Their level is their own mask bit, four losses are one, and cached runs are exact.

| part | what |
|---|---|
| losses | all four, on one trained model and the same held-out texts |
| against the truth | the bound over the entropy of the language, which is known |
| without a level | a model that is told how likely masks are, same steps: is it any better? |
| cache | calls against the formula, texts against uncached ones |
| plans | the share of drawn plans, word by word, that the parser reads and that reach what was asked |

Texts are instructions (13 words, given) and plans (22 words) of `uwm_envs.clips.grammar`: many valid plans per instruction. RADD
(Ou et al. 2025); nothing here is about its perplexities, which are of a network and texts ten thousand times as large.
"""

import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uwm.bench import experiment
from uwm.bench.experiment import SEEDS, gate, mean_and_error, values
from uwm.bench.gates import Gate
from uwm.bench.runner import Result
from uwm.core import roles
from uwm.core.streams import Stream
from uwm.learn.fit import fit
from uwm.learn.stream_objective import StreamBatch, one_hot
from uwm.media import text
from uwm.nn.backbone import BackboneConfig
from uwm.nn.stream_model import StreamModel, StreamModelConfig, initialised
from uwm.noise import absorbing
from uwm.sample.unmask import unmask_one
from uwm_envs.clips import grammar

CLAIM = "A time-free network over words: four losses agree, cached runs are exact and save the calls of the formula."
LENGTH, SIZE = grammar.INSTRUCTION + grammar.PLAN, len(grammar.WORDS)
FREE = torch.arange(LENGTH) >= grammar.INSTRUCTION
FULL = {"steps": 600, "batch": 64, "texts": 4000, "held_out": 512, "draws": 16, "plans": 128}
QUICK = {"steps": 40, "batch": 16, "texts": 200, "held_out": 64, "draws": 8, "plans": 16}
ROWS = (8, 22, 64)


def run(quick: bool, out: Path | None) -> Result:
    """Both arms for all seeds; the first arm's models are looked at closely."""
    budget = QUICK if quick else FULL
    arms = {"time-free": partial(measured, budget, False), "told the level": partial(measured, budget, True)}
    seeds = SEEDS[:1] if quick else SEEDS
    found = experiment.run_arms("radd", arms, seeds, budget, *experiment.where(quick))
    return Result(CLAIM, judged(found, not quick), seeds, experiment.summary(found))


def judged(found: experiment.Found, enough: bool) -> list[Gate]:
    """What must hold exactly, and what the paper found."""
    free = "time-free"
    entropy, bound = values(found, free, "entropy"), values(found, free, "level_mean")
    told = values(found, "told the level", "level_mean")
    apart = max(_apart(each, kind) for each in found[free] for kind in ("t", "order", "score"))
    calls = max(_beside_the_formula(each, rows) for each in found[free] for rows in ROWS)
    different = sum(values(found, free, "different"))
    return [
        Gate("losses: largest distance of two estimates, in standard errors", apart, "<=", 3.5, enough, "lambda-DCE, same texts"),
        Gate("cached texts that differ from uncached ones", different, "<=", 0, True, "the same random numbers"),
        Gate("calls: largest distance from the formula, in standard errors", calls, "<=", 3.5, enough, "1 + (n-1)(1-(1-1/n)^L)"),
        gate("bound over entropy", bound / entropy, "<=", 1.15, enough, "the language's own"),
        gate("nats, time-free / told the level", bound / told, "<=", 1.05, enough, "the same network, told the level", paper=True),
        gate("plans that are read and reach what was asked", values(found, free, "valid"), ">=", 0.9, enough, "the parser"),
    ]


def _apart(figures: dict, kind: str) -> float:
    return abs(figures[f"{kind}_mean"] - figures["level_mean"]) / figures[f"{kind}_apart"]


def _beside_the_formula(figures: dict, rows: int) -> float:
    return abs(figures[f"calls_{rows}"] - figures[f"formula_{rows}"]) / figures[f"calls_error_{rows}"]


def texts(count: int, seed: int) -> tuple[Tensor, list]:
    """Word numbers (count, 35) of instructions with a plan each, and the goals and plans behind them."""
    generator = np.random.default_rng(seed)
    meant = []
    for _ in range(count):
        goals = grammar.draw_instruction(generator)
        meant.append((goals, grammar.draw_plan(goals, generator)))
    return torch.tensor([grammar.numbers(f"{grammar.say_instruction(g)} {grammar.say_plan(p)}") for g, p in meant]), meant


def model_of(seed: int, told: bool) -> StreamModel:
    """0.35 M parameters over the words; `told`: and a token that says how likely masks are."""
    streams = [Stream("text", "word", tuple(range(LENGTH)), SIZE), *([Stream("level", "state", (0,), 1)] if told else [])]
    return initialised(StreamModelConfig(tuple(streams), backbone=BackboneConfig(96, 3, 4, registers=0, waist=32)), seed)


def loss(model: StreamModel, batch: StreamBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """The bound per word of the plan, behind a given instruction; the level is shown where there is a token for it."""
    layout, clean = model.layout, batch.clean.clone()
    span = layout.span("text")
    masks = absorbing.draw("level", len(clean), grammar.PLAN, generator)
    hidden = torch.zeros(len(clean), LENGTH, dtype=torch.bool)
    hidden[:, FREE] = masks.masked
    words = clean[:, span].argmax(dim=-1)
    clean[:, span] = absorbing.corrupt(clean[:, span], hidden)
    if "level" in layout.names:
        clean[:, layout.span("level"), 0] = masks.level.float()[:, None]
    logits = model(clean, 0.0, roles.full(len(clean), layout.tokens))[:, span][:, FREE, :SIZE]
    total = absorbing.bound("level", logits.float(), words[:, FREE], masks).float().mean() / grammar.PLAN
    return total, {"text": float(total.detach())}


def measured(budget: dict, told: bool, seed: int) -> dict:
    """One model, trained and measured on held-out texts."""
    words, _ = texts(budget["texts"], seed=seed)
    model = model_of(seed, told)
    clean = {"text": one_hot(words, model.layout, "text"), **({"level": torch.zeros(len(words), 1, 1)} if told else {})}
    fit(model, model.layout.pack(clean), loss, budget["steps"], budget["batch"], seed)
    held, meant = texts(budget["held_out"], seed=10_000 + seed)
    entropy = float(np.mean([-math.log(grammar.chance(goals, plan)) for goals, plan in meant]))
    if told:
        return {"entropy": entropy, "level_mean": _bound_when_told(model, held, budget["draws"], seed)}
    return {"entropy": entropy, **_losses(model, held, budget["draws"], seed), **_caching(model, held, budget["plans"], seed)}


def _losses(model: StreamModel, held: Tensor, draws: int, seed: int) -> dict:
    """Mean of every loss in nats per plan, and how far it may lie from that of the level by chance."""
    told = {}
    for kind in absorbing.KINDS:
        generator = torch.Generator().manual_seed(seed)
        each = torch.stack([text.bound(model, "text", held, FREE, generator, kind) for _ in range(draws)]).mean(dim=1)
        told[f"{kind}_mean"], told[f"{kind}_error"] = mean_and_error(each.tolist())
    for kind in absorbing.KINDS:
        told[f"{kind}_apart"] = math.hypot(told[f"{kind}_error"], told["level_error"])
    order = torch.arange(LENGTH)[FREE].tolist()
    told["left_to_right"] = float(text.order_nats(model, "text", held[:128], order).mean())
    return told


def _bound_when_told(model: StreamModel, held: Tensor, draws: int, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    batch = StreamBatch(model.layout.pack({"text": one_hot(held, model.layout, "text"), "level": torch.zeros(len(held), 1, 1)}))
    with torch.inference_mode():
        return float(np.mean([float(loss(model, batch, generator)[0]) for _ in range(draws)])) * grammar.PLAN


def _caching(model: StreamModel, held: Tensor, count: int, seed: int) -> dict:
    """Cached and uncached runs with the same random numbers, their calls, and what the parser says of the plans."""
    prompts, told = held[:count], {"different": 0}
    for rows in ROWS:
        plain, _ = text.fill_in(model, "text", prompts, FREE[None], rows, range(count), cache=False)
        cached, calls = text.fill_in(model, "text", prompts, FREE[None], rows, range(count))
        told["different"] += int((plain != cached).any(dim=1).sum())
        told[f"calls_{rows}"], error = mean_and_error(calls.tolist())
        told[f"calls_error_{rows}"] = max(error, 1e-9)
        told[f"formula_{rows}"] = absorbing.expected_calls(rows, grammar.PLAN)
        told[f"valid_{rows}"] = float(np.mean([_is_valid(each) for each in cached]))
    one_by_one, _ = text.fill_in(model, "text", prompts, FREE[None], grammar.PLAN, range(count), rule=unmask_one(), cache=False)
    return {**told, "valid": float(np.mean([_is_valid(each) for each in one_by_one]))}


def _is_valid(words: Tensor) -> bool:
    try:
        goals = grammar.parse_instruction(grammar.text_of(words[: grammar.INSTRUCTION]))
        return grammar.reaches(goals, grammar.parse_plan(grammar.text_of(words[grammar.INSTRUCTION :])))
    except grammar.GrammarError:
        return False
