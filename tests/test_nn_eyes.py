"""Eyes: one face for every network, weights from local files only, and checkpoints that need them no more."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import save_file

import tiny
from uwm.core.config import from_mapping, to_mapping
from uwm.nn import eyes, trunks
from uwm.nn.encoders import Film
from uwm.nn.eyes import EyesConfig
from uwm.nn.resnet import ResNet18
from uwm.nn.robot_model import ModelConfig

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32, "patch_size": 8}
TOWERS = {
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**SIZES), add_pooling_layer=False),
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)),
    "siglip": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIZES)),
    "clip": lambda: transformers.CLIPModel(
        transformers.CLIPConfig(text_config={**SIZES, "vocab_size": 20, "eos_token_id": 1}, vision_config=SIZES, projection_dim=8)
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind of vision transformer, as their library saves them."""
    torch.manual_seed(0)
    found = {}
    for name, made in TOWERS.items():
        found[name] = tmp_path_factory.mktemp(name)
        made().save_pretrained(found[name])
    told = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2]}
    (found["vit"] / "preprocessor_config.json").write_text(json.dumps(told))
    return found


def opened(config, image_size=64, grid=2, width=12):
    torch.manual_seed(1)
    eye = eyes.make(config, image_size, grid, width).eval()
    eyes.begin(torch.nn.ModuleDict({"top": eye}), config)
    return eye


@pytest.mark.parametrize("name", TOWERS)
def test_a_vision_transformer_begins_with_the_weights_of_its_folder(folders, name):
    eye = opened(EyesConfig("vit", str(folders[name])))
    tower = TOWERS[name]()
    tower = type(tower).from_pretrained(folders[name], local_files_only=True).eval()
    image = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        large = torch.nn.functional.interpolate(image, (32, 32), mode="bilinear", antialias=True)
        own = getattr(tower, "vision_model", tower)
        wanted = own(pixel_values=(large - eye.mean) / eye.std).last_hidden_state
        tokens = eye(image)
        summary = eye.sum_up(wanted[:, :1] if name != "siglip" else wanted.mean(dim=1, keepdim=True))
    assert tokens.shape == (3, eye.tokens, 12) and eye.tokens == len(eye.places) == 5
    torch.testing.assert_close(tokens[:, -1:], summary, rtol=1e-4, atol=1e-5)
    corner = wanted[:, -16:].unflatten(1, (4, 4))[:, :2, :2].mean(dim=(1, 2))
    torch.testing.assert_close(tokens[:, 0], eye.out(corner), rtol=1e-4, atol=1e-5)
    told = [0.5, 0.4, 0.3] if name == "vit" else [0.485, 0.456, 0.406]
    torch.testing.assert_close(eye.mean.flatten(), torch.tensor(told))


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_resnet_begins_with_torchvisions_weights(tmp_path, ending):
    torch.manual_seed(2)
    theirs = ResNet18(1000)  # torchvision's names, with a classifier and with statistics that GroupNorm has not
    saved = {**theirs.state_dict(), "bn1.running_mean": torch.zeros(64), "bn1.num_batches_tracked": torch.tensor(1)}
    path = tmp_path / f"resnet18.{ending}"
    save_file(saved, path) if ending == "safetensors" else torch.save(saved, path)
    eye = opened(EyesConfig("resnet18", str(path)))
    image = torch.rand(2, 3, 64, 64)
    maps = theirs.maps((image - eye.mean) / eye.std)
    with torch.no_grad():
        torch.testing.assert_close(eye(image)[:, -1:], eye.keypoints(maps[1]))
        torch.testing.assert_close(eye(image)[:, 3], eye.out(maps[-1][:, :, 1, 1]))
    assert theirs(image).shape == (2, 1000)
    torch.save({name: value for name, value in saved.items() if "layer4" not in name}, tmp_path / "half.pth")
    with pytest.raises(ValueError, match=r"has no ResNet-18: \d+ of \d+ weights are missing .* first layer4"):
        opened(EyesConfig("resnet18", str(tmp_path / "half.pth")))


@pytest.mark.parametrize("kind", eyes.KINDS)
def test_what_is_said_moves_every_token_once_that_is_learnt_and_nothing_said_moves_none(folders, kind):
    torch.manual_seed(0)
    eye = eyes.make(EyesConfig(kind, str(folders["vit"]) if kind == "vit" else "").resolved(), 64, 2, 12, words=5).eval()
    image, said = torch.rand(2, 3, 64, 64), torch.tensor([[1.0, -1.0, 0.5, 0.0, 2.0], [0.0] * 5])
    before = eye(image)
    torch.testing.assert_close(eye(image, said), before, rtol=0, atol=0)
    for film in eye.modules():
        if isinstance(film, Film):
            torch.nn.init.normal_(film.modulation.weight, std=0.3)
    after = eye(image, said)
    assert ((after - before)[0].abs().amax(dim=1) > 1e-4).all(), "cells and the token of the whole"
    torch.testing.assert_close(after[1], before[1], rtol=0, atol=0)
    assert not any(isinstance(module, Film) and module.modulation for module in opened(EyesConfig()).modules())


@pytest.mark.parametrize("trunk", ["transformer", "unet"])
@pytest.mark.parametrize("kind", ["resnet18", "vit"])
def test_both_trunks_see_with_any_eyes_and_a_checkpoint_needs_no_folder(folders, kind, trunk):
    given = EyesConfig(kind, str(folders["vit"]) if kind == "vit" else "").resolved()
    small = tiny.model().config
    config = replace(small, eyes=given, trunk=trunk, video_frames=(), unet=replace(small.unet, widths=(8, 16), level_size=8, feature=8))
    again = from_mapping(ModelConfig, json.loads(json.dumps(to_mapping(config))), "checkpoint")
    assert again == config
    moved = replace(again, eyes=replace(given, path="/nowhere"))
    model, other = trunks.make(config), trunks.make(moved)
    other.load_state_dict(model.state_dict())
    seen = tiny.observation(2, config=config)
    first, second = (each.eval().encode(seen) for each in (model, other))
    flat = lambda context: context.keys if trunk == "transformer" else (context.vector,)  # noqa: E731
    assert all(torch.equal(a, b) for a, b in zip(flat(first), flat(second), strict=True))


def test_frozen_eyes_stay_as_they_are(folders):
    model = tiny.model(eyes=EyesConfig("vit", str(folders["vit"]), frozen=True).resolved())
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(".trunk." in name for name in learns) and any("see.wrist.out" in name for name in learns)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"kind": "lidar"}, "eyes.kind"),
        ({"path": "x"}, "begin with random weights"),
        ({"kind": "resnet18", "frozen": True}, "frozen needs eyes.path"),
        ({"kind": "vit"}, "need eyes.path, a folder"),
        ({"kind": "vit", "path": "/nowhere"}, r"/nowhere/config.json cannot be read"),
        ({"kind": "resnet18", "path": "/nowhere.pth"}, "there is no file /nowhere.pth"),
    ],
)
def test_eyes_that_cannot_be_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        opened(EyesConfig(**wrong).resolved())


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 8}))
    with pytest.raises(ValueError, match=r"has no \['image_size', 'patch_size'\]: is it a vision transformer"):
        EyesConfig("vit", str(tmp_path)).resolved()
