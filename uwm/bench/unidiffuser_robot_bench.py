"""Claim: one model of a robot's frames, actions and words does the work of a model for each question.

Streams: a frame now, two later ones, 7 actions, 13 words of instruction. Questions: forward, inverse, policy, video, caption, and in pairs.

The joint model has a level per modality (UniDiffuser, Bao et al. 2023). Beside it, with equal steps, size and data: a dedicated model
per question, and a joint model whose modalities share one level (PAD, Guo et al. 2024), which never saw a clean condition.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uwm.bench import clip_data, experiment
from uwm.bench.experiment import SEEDS, gate, values
from uwm.bench.gates import Gate
from uwm.bench.runner import Result
from uwm.core.patterns import Pattern
from uwm.core.streams import Layout, Stream
from uwm.learn.fit import fit
from uwm.learn.stream_objective import StreamObjective, one_hot
from uwm.media import judges
from uwm.sample.modes import generate
from uwm_envs.clips import grammar

CLAIM = "One model with a level per modality answers a robot's questions about as well as a model made for each; one shared level does not."
FULL = {"steps": 450, "batch": 16, "clips": 1200, "held": 100, "rows": 20}
QUICK = {"steps": 30, "batch": 16, "clips": 64, "held": 20, "rows": 5}
LATER = (4, 7)
SEEN = clip_data.STREAMS[0]
STREAMS = (
    Stream("now", "image", (0,), SEEN.size, SEEN.grid),
    Stream("later", "video", LATER, SEEN.size, SEEN.grid),
    Stream("action", "action", tuple(range(1, clip_data.FRAMES)), 2),
    Stream("text", "word", tuple(range(grammar.INSTRUCTION)), len(grammar.WORDS)),
)  # fmt: skip
FORWARD = Pattern(image="given", action="given", word="absent")
INVERSE = Pattern(image="given", video="given", word="absent")
POLICY = Pattern(image="given", video="absent", word="given")
VIDEO = Pattern(image="given", action="absent", word="absent")
CAPTION = Pattern(image="given", video="given", action="absent")
ARMS: dict[str, tuple[Pattern, ...]] = {
    "joint": (Pattern(image="given"), FORWARD, INVERSE, POLICY, VIDEO, CAPTION),
    "shared level": (Pattern(image="given", shared=True),),
    "forward": (FORWARD,), "inverse": (INVERSE,), "policy": (POLICY,), "video": (VIDEO,), "caption": (CAPTION,),
}  # fmt: skip
# question -> (targets, given); the frame now is always given
QUESTIONS = {
    "forward": (("later",), ("action",)),
    "inverse": (("action",), ("later",)),
    "policy": (("action",), ("text",)),
    "video": (("later",), ()),
    "caption": (("text",), ("later",)),
    "both": (("later", "action"), ()),
    "told": (("later", "text"), ()),
}


def run(quick: bool, out: Path | None) -> Result:
    """All arms, all seeds."""
    budget = QUICK if quick else FULL
    arms = {name: partial(robot, budget, name) for name in ARMS}
    seeds = SEEDS[:1] if quick else SEEDS
    if not quick:
        clip_data.tokens(budget["clips"], budget["held"])  # drawn once, before several processes want them
    found = experiment.run_arms("unidiffuser-robot", arms, seeds, budget, *experiment.where(quick))
    return Result(CLAIM, judged(found, not quick), seeds, experiment.summary(found))


def judged(found: experiment.Found, enough: bool) -> list[Gate]:
    """The joint model against those made for one question, and against one shared level."""
    joint, shared = partial(values, found, "joint"), partial(values, found, "shared level")
    gates = []
    for question in ("forward", "inverse", "policy", "video"):
        own = values(found, question, question)
        gates.append(gate(f"{question}: error / of a model made for it", joint(question) / own, "<=", 1.15, enough, "same steps and size"))
    for question in ("forward", "inverse"):
        over = joint(question) / shared(question)
        gates.append(gate(f"{question}: error / of one shared level", over, "<=", 0.6, enough, "same steps and size", paper=True))
    lost = values(found, "caption", "caption") - joint("caption")
    return [
        *gates,
        gate("caption: lost to a model made for it", lost, "<=", 0.05, enough, "the parser, and the block that is pushed"),
        gate("frames and words drawn together: the words name the way", joint("told"), ">=", 0.8, enough, "the judge, and the parser"),
        gate("actions and frames drawn together: tip apart / shuffled", joint("together"), "<=", 0.6, enough, "pairs of other draws"),
    ]


def robot(budget: dict, arm: str, seed: int) -> dict:
    """One model of clips, and every question that it was made for. Errors are squared, of one draw, over those of a plain guess."""
    data = clip_data.tokens(budget["clips"], budget["held"])
    model = clip_data.model_of(seed, STREAMS)
    train, held = _streams(data.train, data.train_clips), _streams(data.held, data.clips)
    fit(model, model.layout.pack(train), StreamObjective(ARMS[arm]), budget["steps"], budget["batch"], seed, clip_data.OPTIM)
    asked = QUESTIONS if arm in ("joint", "shared level") else {arm: QUESTIONS[arm]}
    found: dict = {}
    for question, (targets, given) in asked.items():
        told = {name: held[name] for name in ("now", *given)}
        drawn = generate(model, targets, told, rows=budget["rows"], seeds=range(len(held["now"])))
        found |= _answer(question, drawn, held, data)
    return found


def _streams(tokens: dict[str, Tensor], clips) -> dict[str, Tensor]:
    """The four streams of clips."""
    frames = tokens["top"].unflatten(1, (clip_data.FRAMES, -1))
    words = torch.tensor([grammar.numbers(text) for text in clips.instruction])
    return {
        "now": frames[:, 0], "later": frames[:, LATER].flatten(1, 2), "action": tokens["action"][:, 1:],
        "text": one_hot(words, Layout(STREAMS), "text"),
    }  # fmt: skip


def _answer(question: str, drawn: dict[str, Tensor], held: dict[str, Tensor], data: clip_data.Tokens) -> dict[str, float]:
    """Figures of one question's draws."""
    if question == "both":
        return _together(drawn, data)
    if question == "told":
        return _told(drawn, held, data)
    if question == "caption":
        right = [_names(text, clip.split()) for text, clip in zip(_texts(drawn), _pushed(data.clips), strict=True)]
        return {"caption": float(np.mean(right))}
    name = QUESTIONS[question][0][0]
    guess = held["now"].repeat(1, len(LATER), 1) if name == "later" else held["action"].mean(dim=0, keepdim=True)
    return {question: float((drawn[name] - held[name]).square().mean() / (guess - held[name]).square().mean())}


def _texts(drawn: dict[str, Tensor]) -> list[str]:
    return [grammar.text_of(each) for each in drawn["text"].argmax(dim=2).tolist()]


def _pushed(clips) -> list[str]:
    """ "colour direction" of the goal that a clip shows: what comes first in its plan."""
    return [f"{part.goal.colour} {part.goal.direction}" for part in (grammar.parse_plan(plan)[0] for plan in clips.plan)]


def _names(text: str, wanted: list[str]) -> bool:
    """Whether an instruction can be read and one of its goals is the wanted one."""
    try:
        return any([goal.colour, goal.direction] == wanted for goal in grammar.parse_instruction(text))
    except grammar.GrammarError:
        return False


def _told(drawn: dict[str, Tensor], held: dict[str, Tensor], data: clip_data.Tokens) -> dict[str, float]:
    """Share of drawn texts that name the way in which the arm goes in the frames that were drawn with them."""
    train = _streams(data.train, data.train_clips)
    ways = np.array([clip.split()[1] for clip in _pushed(data.train_clips)])
    judge = judges.of_classes(torch.cat([train["now"], train["later"]], dim=1), ways)
    seen = judge(torch.cat([held["now"], drawn["later"]], dim=1))
    agree = lambda texts: float(np.mean([_goes(text, way) for text, way in zip(texts, seen, strict=True)]))  # noqa: E731
    texts = _texts(drawn)
    return {"told": agree(texts), "told, of another draw": agree(texts[1:] + texts[:1]), "judge of ways": judge.score}


def _goes(text: str, way: str) -> bool:
    """Whether an instruction can be read and one of its goals lies that way."""
    try:
        return way in [goal.direction for goal in grammar.parse_instruction(text)]
    except grammar.GrammarError:
        return False


def _together(drawn: dict[str, Tensor], data: clip_data.Tokens) -> dict[str, float]:
    """Distance of the tip in drawn last frames from where drawn actions lead, over that of pairs of different draws."""
    judge, size = data.places, SEEN.frame_tokens
    seen = judge(drawn["later"][:, -size:])
    led = data.clips.tip[:, 0] + drawn["action"].sum(dim=1).numpy() * clip_data.ACTION_SCALE
    moved = seen - data.clips.tip[:, 0]  # clips begin in different places: compare ways, not places
    way = led - data.clips.tip[:, 0]
    apart = np.linalg.norm(moved - way, axis=1).mean()
    shuffled = np.linalg.norm(moved - np.roll(way, 1, axis=0), axis=1).mean()
    return {"together": float(apart / shuffled), "judge of places": judge.score}
