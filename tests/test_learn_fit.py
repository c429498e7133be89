"""Small trainings in memory: they learn, they repeat themselves, and they refuse what cannot be."""

import pytest
import torch

from uwm.core.patterns import Pattern
from uwm.core.streams import Stream
from uwm.learn.fit import fit
from uwm.learn.stream_objective import StreamObjective
from uwm.nn.backbone import BackboneConfig
from uwm.nn.stream_model import StreamModel, StreamModelConfig
from uwm.sample.modes import generate


def fresh(seed=0):
    torch.manual_seed(seed)
    streams = (Stream("image", "image", (0,), 3, (1, 2)), Stream("label", "label", (0,), 2))
    return StreamModel(StreamModelConfig(streams, backbone=BackboneConfig(32, 2, 2, registers=1, waist=16)))


def examples(count=64):
    """Two kinds of pictures with their labels."""
    kind = torch.arange(count) % 2
    label = torch.nn.functional.one_hot(kind, 2).float()[:, None] * 2 - 1
    image = torch.where(kind[:, None, None] == 1, 1.0, -1.0).expand(-1, 2, 3)
    return fresh().layout.pack({"image": image, "label": label}), image, label


def test_a_few_steps_learn_what_goes_with_what_and_the_same_seed_repeats_them():
    clean, image, label = examples()
    objective = StreamObjective((Pattern(0.5), Pattern(0.25, image="given"), Pattern(0.25, label="given")))
    losses = []
    model = fit(fresh(), clean, objective, 150, 32, on_step=lambda step, figures: losses.append(figures["loss"]))
    assert len(losses) == 150 and sum(losses[-20:]) < 0.5 * sum(losses[:20])
    drawn = generate(model, ["image"], {"label": label[:2]}, rows=8, seeds=(0, 1))["image"]
    assert torch.equal(drawn.sign(), image[:2]) and float((drawn - image[:2]).abs().mean()) < 0.4
    again = fit(fresh(), clean, objective, 150, 32)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_nothing_to_learn_from_is_refused():
    with pytest.raises(ValueError, match="there must be examples, steps and a batch, got 0, 5 and 2"):
        fit(fresh(), examples()[0][:0], StreamObjective(), 5, 2)
