"""Adapters stand beside a model: off they are nothing, removed they never were, merged they are in, and files carry them over."""

import json

import pytest
import torch

import tiny
from uwm.core import roles
from uwm.core.streams import Stream
from uwm.learn.adapt import adapt_levels
from uwm.nn.adapters import Adapter, load


def fresh(width=32):
    return tiny.stream_model(Stream("front", "video", (0, 1, 2), 3, (1, 2)), registers=1, width=width)


def asked(model, level=0.5):
    x = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(x, level, roles.full(2, 6))


def moved(model, rank=4, **options):
    """An adapter that does something."""
    adapter = Adapter(model, rank, **options)
    with torch.no_grad():
        for number, low in enumerate(adapter.low.values()):
            low.up.copy_(0.1 * torch.randn(low.up.shape, generator=torch.Generator().manual_seed(number)))
    return adapter


def test_a_fresh_adapter_one_at_strength_zero_and_a_removed_one_change_nothing_at_all():
    model = fresh()
    before, state = asked(model), {name: value.clone() for name, value in model.state_dict().items()}
    adapter = Adapter(model, 4)
    assert torch.equal(asked(model), before)
    adapter.remove()
    adapter = moved(model)
    changed = asked(model)
    assert not torch.allclose(changed, before, atol=1e-3)
    adapter.strength = 0.0
    assert torch.equal(asked(model), before)
    adapter.strength = 1.5
    assert not torch.allclose(asked(model), changed, atol=1e-4)
    adapter.remove()
    assert torch.equal(asked(model), before) and not adapter.is_on
    assert model.state_dict().keys() == state.keys() and all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_only_the_adapter_learns_and_it_is_small():
    model = fresh()
    adapter = Adapter(model, 2)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    share = sum(p.numel() for p in adapter.parameters()) / sum(p.numel() for p in model.parameters())
    assert share < 0.15 and set(adapter.change().values()) == {0.0}
    assert all(".blocks." in f".{name}" for name in adapter.change())


def test_merged_weights_give_the_same_answers_and_can_be_merged_once():
    model = fresh()
    adapter = moved(model, alpha=8.0)
    adapter.strength = 0.7
    wanted = asked(model)
    adapter.merge()
    assert torch.allclose(asked(model), wanted, atol=1e-5)
    with pytest.raises(RuntimeError, match="merged or removed already"):
        adapter.merge()


def test_a_folder_carries_it_to_another_copy_of_the_model_in_peft_s_words(tmp_path):
    model = fresh()
    adapter = moved(model)
    wanted = asked(model)
    adapter.save(tmp_path / "a")
    told = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (told["peft_type"], told["r"], told["lora_alpha"]) == ("LORA", 4, 4.0)
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert tensors["base_model.model.backbone.blocks.0.qkv.lora_A.weight"].shape == (4, 32)
    assert tensors["base_model.model.backbone.blocks.0.qkv.lora_B.weight"].shape == (96, 4)
    other = fresh()
    load(other, tmp_path / "a")
    assert torch.equal(asked(other), wanted)
    wide = fresh(64)
    with pytest.raises(ValueError, match="is expected"):
        load(wide, tmp_path / "a")
    assert asked(wide) is not None and all(parameter.requires_grad for parameter in wide.parameters())
    with pytest.raises(ValueError, match="is no adapter"):
        load(fresh(), tmp_path)


def test_what_cannot_be_adapted_is_refused():
    model = fresh()
    for rank in (0, 33):
        with pytest.raises(ValueError, match="the rank lies between 1 and the width of the narrowest layer, 32"):
            Adapter(model, rank)
    with pytest.raises(ValueError, match="no linear layer has 'nowhere'"):
        Adapter(model, 2, where="nowhere")
    Adapter(model, 2)
    with pytest.raises(ValueError, match="has an adapter already"):
        Adapter(model, 2)


def test_levels_per_frame_are_learned_without_touching_the_model_and_equal_levels_stay_what_they_are():
    model = fresh()
    before, state = asked(model), {name: value.clone() for name, value in model.state_dict().items()}
    clean = torch.randn(64, 1, 3, generator=torch.Generator().manual_seed(2)).expand(-1, 6, -1)  # six tokens that are alike
    losses = []
    adapter = adapt_levels(model, clean, rank=8, steps=60, on_step=lambda step, figures: losses.append(figures["loss"]))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    adapter.strength = 0.0
    assert torch.equal(asked(model), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    # No new parameter in the model, and with all levels equal it is the model of one level, in float64.
    net = model.double()
    x = torch.randn(2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    one, each = (net(x, level, roles.full(2, 6)) for level in (0.4, torch.full((2, 6), 0.4, dtype=torch.float64)))
    assert torch.allclose(one, each, atol=1e-6)
