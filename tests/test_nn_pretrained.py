"""A pretrained autoencoder: diffusers' own numbers, weights that stay where they are, and a training on its latents."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch

from oracle import unchecked_shapes
from test_training import prepared, run_of, store_of
from uwm import training
from uwm.core.config import ConfigError
from uwm.learn.checkpoint import load
from uwm.nn import pretrained


def made(folder, blocks=4, seed=0):
    """A small AutoencoderKL of random weights, as diffusers saves it."""
    torch.manual_seed(seed)
    parts = {"down_block_types": ("DownEncoderBlock2D",) * blocks, "up_block_types": ("UpDecoderBlock2D",) * blocks}
    diffusers.AutoencoderKL(block_out_channels=(8,) * blocks, latent_channels=4, norm_num_groups=4, **parts).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made(tmp_path_factory.mktemp("kl"))


def test_latents_are_the_posteriors_mean_and_come_back_as_diffusers_decodes_them(folder):
    config = pretrained.described(str(folder), 32)
    coder, theirs = pretrained.make(config), diffusers.AutoencoderKL.from_pretrained(folder).eval()
    image = torch.rand(70, 3, 32, 32)
    with torch.no_grad():
        mean = theirs.encode(2 * image - 1).latent_dist.mean
        coder.measure_spread(image)
        torch.testing.assert_close(coder.encode(image) * coder.spread + coder.shift, mean, rtol=1e-4, atol=1e-5)
        decoded = ((theirs.decode(mean).sample + 1) / 2).clamp(0, 1)
        torch.testing.assert_close(coder.decode(coder.encode(image)), decoded, rtol=1e-4, atol=1e-4)
    assert abs(float(coder.encode(image).mean())) < 1e-3 and abs(float(coder.encode(image).std()) - 1) < 0.01
    assert set(coder.state_dict()) == {"shift", "spread"} and not list(coder.parameters())


def test_a_model_learns_on_its_latents_and_its_checkpoint_names_them(folder, tmp_path):
    store_of(tmp_path / "arm.zarr", side=32)
    settings = {"data": str(tmp_path / "arm.zarr"), "image_size": 32, "latents": str(tmp_path / "latents")}
    checkpoint = training.train(run_of(tmp_path / "run", model={"latent_path": str(folder)}, **settings))
    (kept,) = (tmp_path / "latents").iterdir()
    assert json.loads((kept / "latents.json").read_text())["lengths"]
    model, _ = training.load_model(checkpoint)
    about = model.config.autoencoder
    weights = {name for name in load(checkpoint).weights if name.startswith("autoencoder.")}
    assert about.path == str(folder) and about.latent == 4 and weights == {"autoencoder.shift", "autoencoder.spread"}
    assert model.video.encode(torch.rand(1, 2, 3, 32, 32)).shape == (1, 2 * 4, 16)
    training.train(run_of(tmp_path / "second", model={"latent_path": str(folder)}, **settings))
    assert len(list((tmp_path / "latents").iterdir())) == 1, "a second run finds them"
    with pytest.raises(ConfigError, match="are of another autoencoder: remove that folder"):
        training.train(run_of(tmp_path / "third", **settings))


def test_windows_on_disk_are_those_in_memory(folder, tmp_path):
    store_of(tmp_path / "arm.zarr", side=32)
    shared = {"data": str(tmp_path / "arm.zarr"), "image_size": 32, "model": {"latent_path": str(folder)}}
    batches = [prepared(run_of(tmp_path / "x", latents=where, **shared))[2].batch(np.arange(6)) for where in ("", str(tmp_path / "kept"))]
    assert torch.equal(batches[0].clean, batches[1].clean) and torch.equal(batches[0].valid, batches[1].valid)


def test_other_weights_than_those_trained_with_are_refused_when_a_frame_is_needed(folder, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    coder = pretrained.make(pretrained.described(str(moved), 32))
    shutil.rmtree(moved)
    made(moved, seed=1)
    with pytest.raises(ValueError, match="holds other weights"):
        coder.encode(torch.rand(1, 3, 32, 32))


def test_what_is_no_such_autoencoder_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="no pretrained autoencoder in /nowhere"):
        pretrained.described("/nowhere", 32)
    with pytest.raises(ValueError, match="a latent of 4 x 4 pixels"):
        pretrained.described(str(made(tmp_path / "three", blocks=3)), 32)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with unchecked_shapes(), pytest.raises(ValueError, match="holds UNet2DModel; AutoencoderKL is read"):
        pretrained.described(str(other), 32)
