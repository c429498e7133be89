"""A checkpoint is a folder: what it is in JSON, weights in safetensors, nothing pickled.

```
runs/lift/model/
  checkpoint.json        format, step, seed, resolved config, card (cameras, orientation, action convention, data checksum)
  model.safetensors      weights as trained          average.safetensors   their moving average, which acts
  optimiser.safetensors  what resuming needs besides
```

A new checkpoint is written beside the old one and takes its place by renaming: a crash leaves one of them whole.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = "uwm-checkpoint-1"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, and why."""


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint folder; `optimiser` is empty in one that only acts."""

    step: int
    config: dict
    card: dict
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    optimiser: dict[str, Tensor]


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the folder in one move: `path` holds the old checkpoint or the new one, never a mixture."""
    path = Path(path)
    fresh, old = path.with_name(path.name + ".new"), path.with_name(path.name + ".old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file(_plain(checkpoint.weights), fresh / "model.safetensors")
    save_file(_plain(checkpoint.average), fresh / "average.safetensors")
    if checkpoint.optimiser:
        save_file(_plain(checkpoint.optimiser), fresh / "optimiser.safetensors")
    about = {"format": FORMAT, "step": checkpoint.step, "config": checkpoint.config, "card": checkpoint.card}
    (fresh / "checkpoint.json").write_text(json.dumps(about, indent=1))
    if path.exists():
        os.replace(path, old)
    os.replace(fresh, path)
    shutil.rmtree(old, ignore_errors=True)


def load(path: Path, for_training: bool = False) -> Checkpoint:
    """Reads the folder. CheckpointError says what is missing or foreign; `for_training` wants the optimiser too."""
    path = Path(path)
    if not path.exists() and path.with_name(path.name + ".old").exists():
        path = path.with_name(path.name + ".old")  # a crash between the two renames of `save`
    about = describe(path)
    try:
        parts = {name: load_file(path / f"{name}.safetensors") for name in ("model", "average")}
        rest = load_file(path / "optimiser.safetensors") if for_training else {}
    except (FileNotFoundError, SafetensorError) as error:
        raise CheckpointError(f"{path}: weights are missing or damaged ({error}); train again or copy the folder whole") from error
    return Checkpoint(about["step"], about["config"], about["card"], parts["model"], parts["average"], rest)


def describe(path: Path) -> dict:
    """The JSON part alone, checked for format."""
    file = Path(path) / "checkpoint.json"
    if not file.is_file():
        raise CheckpointError(f"{path} is no checkpoint folder: it has no checkpoint.json")
    try:
        about = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    if about.get("format") != FORMAT:
        raise CheckpointError(f"{file} has format {about.get('format')!r}, this version reads {FORMAT!r}")
    return about


def refuse_mismatch(card: dict, env_card: dict) -> None:
    """CheckpointError when a world differs from the one that a checkpoint was trained for, naming every field."""
    fields = ("robot", "rate_hz", "image_size", "image_orientation", "render_profile", "proprio", "action")
    differing = [name for name in fields if card.get(name) != env_card.get(name)]
    wrong = [f"{name}: trained with {card.get(name)!r}, got {env_card.get(name)!r}" for name in differing]
    missing = set(card.get("cameras", ())) - set(env_card.get("cameras", ()))
    if missing:
        wrong.insert(0, f"cameras {sorted(missing)} are missing; the world has {env_card.get('cameras')}")
    if wrong:
        raise CheckpointError("the checkpoint does not fit this world: " + "; ".join(wrong))


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().contiguous() for name, value in tensors.items()}
