"""An autoencoder of frames with weights from a folder: diffusers' `AutoencoderKL` (Kingma & Welling 2014; Rombach et al. 2022).

```
checkpoint   path, fingerprint of the weights, mean and spread of the latents     the weights stay where they are (SDXL's: 335 MB)
acting       needs none of it
imagining    opens path when the first frame is encoded or decoded; other weights than those trained with are refused
```

Latents are the posterior's mean: a frame has one encoding, the same every time.
"""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from uwm.nn.autoencoder import Autoencoder, AutoencoderConfig, FrameCoder

WEIGHTS = "diffusion_pytorch_model.safetensors"
DOWN = 8  # pixels of a latent's side


def described(path: str, image_size: int) -> AutoencoderConfig:
    """The config of the autoencoder in a folder. ValueError where it is none, or of another geometry."""
    try:
        told = json.loads((Path(path) / "config.json").read_text())
        weights = fingerprint(Path(path) / WEIGHTS)
    except (OSError, ValueError) as error:
        raise ValueError(f"no pretrained autoencoder in {path}: {error}") from error
    if told.get("_class_name") != "AutoencoderKL":
        raise ValueError(f"{path} holds {told.get('_class_name', 'something else')}; AutoencoderKL is read")
    down = 2 ** (len(told["block_out_channels"]) - 1)
    if down != DOWN or told.get("in_channels", 3) != 3:
        raise ValueError(f"{path} makes a latent of {down} x {down} pixels of {told.get('in_channels', 3)} channels, not of 8 x 8 of three")
    return AutoencoderConfig(image_size, latent=int(told["latent_channels"]), path=str(path), fingerprint=weights)


def make(config: AutoencoderConfig) -> FrameCoder:
    """Our own autoencoder with random weights, or the pretrained one of the config."""
    return PretrainedAutoencoder(config) if config.path else Autoencoder(config)


class PretrainedAutoencoder(FrameCoder):
    """The network at `config.path`, opened when it is first needed. It is no part of the state dict; shift and spread are."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__(config)
        self._network: list[torch.nn.Module] = []  # in a list, so that it is no part of this module

    @property
    def network(self) -> torch.nn.Module:
        """The network itself, on the device and in the type of the buffers."""
        if not self._network:
            self._network = [_open(self.config)]
        return self._network[0].to(self.shift)

    def raw(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network.encode(image).latent_dist.mode()

    def unraw(self, latent: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network.decode(latent).sample


def _open(config: AutoencoderConfig) -> torch.nn.Module:
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise ImportError("a pretrained autoencoder needs diffusers: pip install 'uwm[latents]'") from error
    found = described(config.path, config.image_size)
    if found.fingerprint != config.fingerprint:
        raise ValueError(
            f"{config.path} holds other weights ({found.fingerprint}) than the model was trained with ({config.fingerprint}): "
            "its latents would mean something else"
        )
    options = {"local_files_only": True, "output_loading_info": True, "low_cpu_mem_usage": False}  # True wants accelerate
    network, told = AutoencoderKL.from_pretrained(config.path, **options)
    if told["missing_keys"]:
        raise ValueError(f"{config.path} lacks weights of its own network: {told['missing_keys'][:3]}")
    return network.eval().requires_grad_(False)


def fingerprint(file: Path) -> str:
    """Sixteen letters of the SHA-256 of weights that stay outside a checkpoint."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]
