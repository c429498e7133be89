"""Eyes: which network turns a frame into tokens, and with which weights it begins.

| kind | network | weights to begin with (`path`) |
|---|---|---|
| conv | strided convolutions, tokens of cells and of keypoints (`uwm.nn.encoders.ImageEncoder`) | none |
| resnet18 | ResNet-18 with GroupNorm (He et al. 2016; Chi et al. 2023, sec. III-D) | torchvision's state dict, .pth or .safetensors |
| vit | any vision transformer that `transformers` has: ViT, DINOv2, CLIP, SigLIP | the model's folder, config.json beside it |

All give `grid` x `grid` tokens of cells and one more. Weights are read once, when a training begins; a checkpoint holds them and
the network's shape, and needs `path` no more. Every camera has eyes of its own.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn

from uwm.core.config import unknown
from uwm.core.shapes import Float
from uwm.nn.encoders import Eye, Film, ImageEncoder, Keypoints
from uwm.nn.resnet import ResNet18

KINDS = ("conv", "resnet18", "vit")
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True)
class EyesConfig:
    """`kind` one of KINDS; `path` of weights to begin with, "" for random ones; `frozen`: they stay as they are.

    `shape`: of a vit, {"config": its config.json, "image_mean", "image_std"}; null: as `path` has it (`resolved`).
    """

    kind: str = "conv"
    path: str = ""
    frozen: bool = False
    shape: dict[str, Any] | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(unknown(self.kind, KINDS, "eyes.kind"))
        if self.kind == "conv" and (self.path or self.frozen):
            raise ValueError("eyes of kind conv begin with random weights: eyes.path and eyes.frozen are for resnet18 and vit")
        if self.frozen and not (self.path or self.shape):
            raise ValueError("eyes.frozen needs eyes.path: random eyes that never learn see nothing")
        if self.kind == "vit" and not (self.path or self.shape):
            raise ValueError("eyes of kind vit need eyes.path, a folder with config.json and model.safetensors as transformers saves them")

    def resolved(self) -> Self:
        """With the shape that stands at `path`. ValueError names the file that is missing or is none of a vision transformer."""
        if self.kind != "vit" or self.shape:
            return self
        told = _read(Path(self.path) / "config.json")
        config = told
        if "vision_config" in told:  # of the two towers of a CLIP or SigLIP
            config = {"model_type": f"{told['model_type']}_vision_model", **told["vision_config"]}
        missing = [name for name in ("model_type", "image_size", "patch_size") if name not in config]
        if missing:
            raise ValueError(f"{self.path}/config.json has no {missing}: is it a vision transformer's?")
        beside = Path(self.path) / "preprocessor_config.json"
        pixels = _read(beside) if beside.is_file() else {}
        return replace(self, shape={"config": config, **{name: pixels.get(name, IMAGENET[name]) for name in IMAGENET}})


def make(config: EyesConfig, image_size: int, grid: int, width: int, words: int = 0) -> Eye:
    """Eyes with random weights. `words`: numbers of what is said, 0 in a model without language."""
    match config.kind:
        case "resnet18":
            return ResNetEye(config.frozen, image_size, grid, width, words)
        case "vit":
            return VitEye(config, image_size, grid, width, words)
        case _:
            return ImageEncoder(image_size, grid, width, words)


def begin(eyes: nn.ModuleDict, config: EyesConfig) -> None:
    """Puts the weights at `config.path` into the eyes of every camera. ValueError tells what does not fit."""
    for eye in eyes.values():
        if config.path:
            eye.read(Path(config.path))


class ResNetEye(Eye):
    """Cells from the last stage's map, keypoints from the second one's (an eighth of the image's side)."""

    def __init__(self, frozen: bool, image_size: int, grid: int, width: int, words: int = 0):
        super().__init__(image_size, grid)
        self.trunk = ResNet18(1).requires_grad_(not frozen)
        self.trunk.fc = nn.Identity()  # not used, and torchvision's does not fit
        self.out = nn.Linear(512, width)
        self.early_film, self.late_film = Film(words, 128), Film(words, 512)
        self.keypoints = Keypoints(128, -(-image_size // 8), width)
        _remember(self, IMAGENET)

    def look(self, image: Float[Tensor, "B 3 H W"], said: Float[Tensor, "B S"] | None) -> tuple[Tensor, Tensor]:
        maps = self.trunk.maps((image - self.mean) / self.std)
        cells = F.adaptive_avg_pool2d(self.late_film(maps[-1], said), self.grid)
        return self.out(rearrange(cells, "b c h w -> b (h w) c")), self.keypoints(self.early_film(maps[1], said))

    def read(self, path: Path) -> None:
        """Weights under torchvision's names; statistics of its BatchNorm and its classifier are left out."""
        if not path.is_file():
            raise ValueError(f"eyes.path: there is no file {path}")
        saved = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
        own = self.trunk.state_dict()
        lacking = [name for name, value in own.items() if name not in saved or saved[name].shape != value.shape]
        if lacking:
            told = f"{len(lacking)} of {len(own)} weights are missing or of other shapes, first {lacking[0]}"
            raise ValueError(f"{path} has no ResNet-18: {told}")
        self.trunk.load_state_dict({name: saved[name] for name in own})


class VitEye(Eye):
    """Cells from the patches' tokens, and what the transformer sums up: its class token, or the mean where it has none."""

    def __init__(self, config: EyesConfig, image_size: int, grid: int, width: int, words: int = 0):
        super().__init__(image_size, grid)
        transformers, shape = _transformers(), config.resolved().shape
        about = {name: value for name, value in shape["config"].items() if name != "model_type"}
        self.trunk = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(shape["config"]["model_type"], **about))
        self.trunk.requires_grad_(not config.frozen)
        self.side = int(about["image_size"])
        self.patches = (self.side // int(about["patch_size"])) ** 2
        hidden = self.trunk.config.hidden_size
        self.out, self.sum_up = nn.Linear(hidden, width), nn.Linear(hidden, width)
        self.film = Film(words, hidden)
        _remember(self, shape)

    def look(self, image: Float[Tensor, "B 3 H W"], said: Float[Tensor, "B S"] | None) -> tuple[Tensor, Tensor]:
        large = image
        if image.shape[-1] != self.side:
            large = F.interpolate(image, (self.side, self.side), mode="bilinear", antialias=True)
        hidden = self.trunk(pixel_values=(large - self.mean) / self.std).last_hidden_state
        hidden = self.film(hidden.mT, said).mT
        extra, side = hidden.shape[1] - self.patches, math.isqrt(self.patches)  # class and register tokens stand in front
        cells = rearrange(hidden[:, extra:], "b (h w) c -> b c h w", h=side)
        cells = rearrange(F.adaptive_avg_pool2d(cells, self.grid), "b c h w -> b (h w) c")
        return self.out(cells), self.sum_up(hidden[:, :1] if extra else hidden.mean(dim=1, keepdim=True))

    def read(self, path: Path) -> None:
        """The weights of a folder that `transformers` saved; nothing is fetched."""
        saved, told = type(self.trunk).from_pretrained(path, local_files_only=True, output_loading_info=True)
        needed = [name for name in told["missing_keys"] if "pooler" not in name]  # many are saved without
        if needed or told["mismatched_keys"]:
            raise ValueError(f"{path} lacks weights of its own network: {(needed or told['mismatched_keys'])[:3]}")
        self.trunk.load_state_dict(saved.state_dict())


def _remember(eye: Eye, told: dict) -> None:
    """Mean and spread of the pixels that the weights were trained on."""
    for name in ("mean", "std"):
        eye.register_buffer(name, torch.tensor(told[f"image_{name}"])[:, None, None], persistent=False)


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"eyes.path: {path} cannot be read: {error}") from error


def _transformers():
    try:
        import transformers
    except ImportError as error:
        raise ImportError("eyes of kind vit need transformers: pip install 'uwm[eyes]'") from error
    return transformers
