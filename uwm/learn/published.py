"""Checkpoints of the UWM authors' code into the paper preset.

A published file is a pickle. It is read with `weights_only` and an allow-list: tensors, numpy arrays of numbers, and the two
normaliser classes, for which an empty stand-in takes the place of the authors' own. Anything else in it is refused by name,
and nothing of it is ever run.

```
noise_pred_net.*               -> denoiser.*        the same names inside
obs_encoder.img_encoder.model.* -> see.model.*      torchvision's ResNet-18 names
obs_encoder.vae.vae.*          -> vae.safetensors   diffusers' AutoencoderKL names
action_normalizer, lowdim_...  -> normaliser.safetensors   value = normalised * scale + offset
```
"""

import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from uwm.core.config import from_mapping, to_mapping
from uwm.learn.checkpoint import CheckpointError
from uwm.nn.paper import PRESETS, PaperConfig, PaperModel

FORMAT = "uwm-published-1"
PREFIXES = {"noise_pred_net.": "denoiser.", "obs_encoder.img_encoder.model.": "see.model."}
VAE = "obs_encoder.vae.vae."
ARRAYS = ("numpy.dtype", "numpy.ndarray", "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
          "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A published model: its preset's name and sizes, weights in our names, autoencoder weights, normalisers, steps."""

    preset: str
    config: PaperConfig
    weights: dict[str, Tensor]
    step: int
    vae: dict[str, Tensor] = field(default_factory=dict)
    normaliser: dict[str, Tensor] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def model(self) -> PaperModel:
        """The network with these weights, ready to sample."""
        model = PaperModel(self.config)
        model.load_state_dict(self.weights)
        return model.eval()


class _Normaliser:
    """Stands in for a normaliser class of the authors: it only keeps what the file says."""


def read_file(file: Path, preset: str | None = None) -> Published:
    """Reads a file of the authors' code. CheckpointError says what is foreign, missing or does not fit a preset."""
    content = _unpickled(Path(file))
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointError(f"{file} is no published checkpoint: it needs a dictionary with a state dict under 'model'")
    state = {name.removeprefix("module."): value for name, value in content["model"].items() if isinstance(value, Tensor)}
    weights = {ours + name.removeprefix(theirs): value for theirs, ours in PREFIXES.items() for name, value in state.items()
               if name.startswith(theirs)}  # fmt: skip
    name = _fitting(weights, preset, file)
    normaliser = {
        f"{kind}.{part}": torch.as_tensor(np.asarray(getattr(content[f"{kind}_normalizer"], part)), dtype=torch.float32)
        for kind in ("action", "lowdim")
        for part in ("scale", "offset")
        if hasattr(content.get(f"{kind}_normalizer"), part)
    }
    vae = {name.removeprefix(VAE): value for name, value in state.items() if name.startswith(VAE)}
    used = (*PREFIXES, VAE)
    left = tuple(sorted(name for name in state if not name.startswith(used)))
    return Published(name, PRESETS[name], weights, int(content.get("step", 0)), vae, normaliser, left)


def _unpickled(file: Path) -> object:
    if not file.is_file():
        raise CheckpointError(f"there is no file {file}")
    try:
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{file} is no torch.save file, or it is damaged: {error}") from error
    stand_ins = {name for name in names if name.rpartition(".")[2].endswith("Normalizer")}
    foreign = sorted(names - stand_ins - set(ARRAYS))
    if foreign:
        raise CheckpointError(f"{file} holds {', '.join(foreign)}, which is not on the allow-list (tensors, arrays, normalisers)")
    kinds = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")]
    allowed = [*kinds, *((_Normaliser, name) for name in stand_ins), *((_array_maker(name), name) for name in names & set(ARRAYS))]
    with torch.serialization.safe_globals(allowed):
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(f"{file} holds something that is not on the allow-list: {str(error).splitlines()[0]}") from error


def _array_maker(name: str) -> object:
    """numpy's own callable for a name that an array's pickle uses."""
    if name in ("numpy.dtype", "numpy.ndarray"):
        return getattr(np, name.rpartition(".")[2])
    return getattr(np.core.multiarray, name.rpartition(".")[2])


def _fitting(weights: dict[str, Tensor], preset: str | None, file: Path) -> str:
    """The preset whose shapes are those of the file; an error names the first differences from the nearest one."""
    if preset is not None and preset not in PRESETS:
        raise CheckpointError(f"preset must be one of {sorted(PRESETS)}, got {preset!r}")
    found = {name: tuple(value.shape) for name, value in weights.items()}
    nearest: tuple[int, str, list[str]] | None = None
    for name in [preset] if preset else PRESETS:
        with torch.device("meta"):
            wanted = {key: tuple(value.shape) for key, value in PaperModel(PRESETS[name]).state_dict().items()}
        differing = [f"{key} is {found.get(key, 'missing')}, expected {wanted.get(key, 'nothing')}"
                     for key in sorted(set(wanted) | set(found)) if wanted.get(key) != found.get(key)]  # fmt: skip
        if not differing:
            return name
        if nearest is None or len(differing) < nearest[0]:
            nearest = (len(differing), name, differing)
    count, name, differing = nearest
    raise CheckpointError(f"{file} fits no preset; the nearest is {name} with {count} differences: {'; '.join(differing[:3])}")


def save(folder: Path, published: Published) -> None:
    """Writes a folder of safetensors and one JSON file; nothing in it is pickled."""
    folder = Path(folder)
    if (folder / "published.json").exists():
        raise CheckpointError(f"{folder} already holds an imported checkpoint: choose another `out`, or remove that folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in (("model", published.weights), ("vae", published.vae), ("normaliser", published.normaliser)):
        if tensors:
            save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")
    about = {"format": FORMAT, "preset": published.preset, "step": published.step, "config": to_mapping(published.config)}
    (folder / "published.json").write_text(json.dumps({**about, "left_out": list(published.left_out)}, indent=1))


def main(file: Path, out: Path, preset: str | None) -> int:
    """`uwm import-checkpoint`: reads, writes, and says what was found and what was left out."""
    read = read_file(file, preset)
    save(out, read)
    count = sum(value.numel() for value in read.weights.values()) / 1e6
    print(f"{file}: {read.preset}, {count:.1f} M parameters, {read.step} steps -> {out}")
    for what, tensors in (("autoencoder weights", read.vae), ("normaliser", read.normaliser)):
        print(f"  {what}: {f'{len(tensors)} tensors' if tensors else 'none in the file'}")
    if read.left_out:
        print(f"  left out: {len(read.left_out)} tensors, such as {read.left_out[0]}")
    return 0


def load(folder: Path) -> Published:
    """The inverse of `save`."""
    file = Path(folder) / "published.json"
    if not file.is_file():
        raise CheckpointError(f"{folder} is no imported checkpoint: make one with `uwm import-checkpoint FILE --out {folder}`")
    about = json.loads(file.read_text())
    if about.get("format") != FORMAT:
        raise CheckpointError(f"{file} has format {about.get('format')!r}, this version reads {FORMAT!r}")
    parts = {name: load_file(path) for name in ("model", "vae", "normaliser") if (path := Path(folder) / f"{name}.safetensors").is_file()}
    config = from_mapping(PaperConfig, about["config"], str(file))
    return Published(about["preset"], config, parts["model"], about["step"], parts.get("vae", {}), parts.get("normaliser", {}),
                     tuple(about["left_out"]))  # fmt: skip
