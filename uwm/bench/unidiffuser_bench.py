"""Claim: one model of digits and their labels does the work of a model for each question.

Streams: 16 patches of an 8 x 8 digit, a label. Questions: label to image, image to label, both, image alone.

The joint model has a level per modality (UniDiffuser, Bao et al. 2023). Beside it, with equal steps, size and data: a dedicated model
per question, and a joint model whose modalities share one level (PAD, Guo et al. 2024), which never saw a clean condition. The same
of a robot's frames, actions and words: `uwm bench unidiffuser-robot`.
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
from uwm.learn.stream_objective import StreamObjective
from uwm.media import judges
from uwm.nn.backbone import BackboneConfig
from uwm.nn.stream_model import StreamModelConfig, initialised
from uwm.sample.modes import generate

CLAIM = "One model with a level per modality answers every question about digits as well as a model made for it; one shared level does not."
FULL = {"steps": 600, "batch": 64, "drawn": 300, "rows": 20}
QUICK = {"steps": 40, "batch": 32, "drawn": 40, "rows": 5}
DIGITS = (Stream("image", "image", (0,), 4, (4, 4)), Stream("label", "label", (0,), 10))
HELD = 500
# Shares of the samples. Level 0 and level 1 are drawn by themselves, since a level in between never is either.
ARMS: dict[str, tuple[Pattern, ...]] = {
    "joint": (
        Pattern(0.5), Pattern(0.15, label="given"), Pattern(0.15, image="given"), Pattern(0.1, label="noise"), Pattern(0.1, image="noise"),
    ),
    "shared level": (Pattern(shared=True),),
    "label to image": (Pattern(label="given"),),
    "image to label": (Pattern(image="given"),),
}  # fmt: skip


def run(quick: bool, out: Path | None) -> Result:
    """All arms, all seeds."""
    budget = QUICK if quick else FULL
    arms = {name: partial(digits, budget, name) for name in ARMS}
    seeds = SEEDS[:1] if quick else SEEDS
    found = experiment.run_arms("unidiffuser", arms, seeds, budget, *experiment.where(quick))
    return Result(CLAIM, judged(found, not quick), seeds, experiment.summary(found))


def judged(found: experiment.Found, enough: bool) -> list[Gate]:
    """The joint model against those made for one question, and against one shared level."""
    joint, shared = partial(values, found, "joint"), partial(values, found, "shared level")
    gates = []
    for question in ("label to image", "image to label"):
        own = values(found, question, question)
        gates.append(gate(f"{question}: lost to a model made for it", own - joint(question), "<=", 0.05, enough, "same steps and size"))
        gates.append(
            gate(f"{question}: ahead of one shared level", joint(question) - shared(question), ">=", 0.2, enough, "the same", paper=True)
        )
    guided = joint("label to image, guided") - joint("label to image")
    return [
        *gates,
        gate("digit and label drawn together agree", joint("agree"), ">=", 0.8, enough, "the judge"),
        gate("label to image: gained by guidance of weight 1", guided, ">", 0.0, enough, "weight 0", paper=True),
    ]


def digits(budget: dict, arm: str, seed: int) -> dict:
    """One model of digits, and every question that it was made for; shares of samples that a judge agrees with."""
    from sklearn.datasets import load_digits

    told = load_digits()
    pixels = torch.from_numpy(told.images).float() / 16
    images = _patches((pixels - pixels.mean()) / pixels.std())
    labels = torch.nn.functional.one_hot(torch.from_numpy(told.target), 10).float()[:, None] / 0.3 - 1 / 3
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(7))
    train, held = order[HELD:], order[:HELD]
    model = initialised(StreamModelConfig(DIGITS, "clean", noise_shift=1.0, backbone=BackboneConfig(96, 3, 4, registers=2, waist=32)), seed)
    packed = Layout(DIGITS).pack({"image": images[train], "label": labels[train]})
    fit(model, packed, StreamObjective(ARMS[arm]), budget["steps"], budget["batch"], seed, clip_data.OPTIM)

    judge = judges.of_classes(images[train], told.target[train.numpy()])
    count, rows = budget["drawn"], budget["rows"]
    asked = torch.arange(count) % 10
    ask = lambda targets, given, **more: generate(model, targets, given, rows=rows, seeds=range(count), **more)  # noqa: E731
    agree = lambda drawn, wanted: float((judge(drawn) == wanted.numpy()).mean())  # noqa: E731
    found = {"judge": judge.score}
    code = torch.nn.functional.one_hot(asked, 10).float()[:, None] / 0.3 - 1 / 3
    if arm != "image to label":
        found["label to image"] = agree(ask(["image"], {"label": code})["image"], asked)
    if arm != "label to image":
        seen = held[:count]
        said = generate(model, ["label"], {"image": images[seen]}, rows=rows, seeds=range(len(seen)))["label"][:, 0].argmax(dim=1)
        found["image to label"] = float((said == torch.from_numpy(told.target)[seen]).float().mean())
    if arm in ("joint", "shared level"):
        both = ask(["image", "label"], {})
        found["agree"] = agree(both["image"], both["label"][:, 0].argmax(dim=1))
    if arm == "joint":
        found["label to image, guided"] = agree(ask(["image"], {"label": code}, guidance=1.0)["image"], asked)
        alone = np.bincount(judge(ask(["image"], {}, marginal=["label"])["image"]), minlength=10) / count
        real = np.bincount(told.target, minlength=10) / len(told.target)
        found["image alone: classes, total variation"] = float(np.abs(alone - real).sum() / 2)
    return found


def _patches(images: Tensor) -> Tensor:
    """(B, 8, 8) as 16 patches of 2 x 2."""
    return images.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3).flatten(1, 2)
