"""A checkpoint is a folder: what it is in JSON, weights in safetensors, nothing pickled.

```
runs/lift/model/
  checkpoint.json        format, step, resolved config, card: cameras, orientation, action convention, rates, data checksum,
                         split, statistics; of a mixture also each member's own card and what was drawn of it
  model.safetensors      weights as trained          average.safetensors   their moving average, which acts
  optimiser.safetensors  what resuming needs besides
  adapter_config.json, adapter_model.safetensors   of finetuning with an adapter, which is merged into average.safetensors: peft's files
```

A new checkpoint is written beside the old one and takes its place by renaming: a crash leaves one of them whole.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = "uwm-checkpoint-1"
UNTOLD = "unknown"
UNTOLD_VALUES = (None, UNTOLD, [], ())


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


def save(path: Path, checkpoint: Checkpoint, beside: Callable[[Path], None] | None = None) -> None:
    """Writes the folder in one move: `path` holds the old checkpoint or the new one, never a mixture. `beside` adds files of its own."""
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
    if beside:
        beside(fresh)
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


def refuse_mismatch(card: dict, env_card: dict, used: Sequence[str] = ()) -> None:
    """CheckpointError when a world differs from the one that a checkpoint was trained for, naming every field.

    What one of them does not tell (an older version, another format) is no difference. `used`: the cameras that must be there; () is all.
    """
    if card.get("acts") is False:
        raise CheckpointError("the checkpoint was trained without actions: it predicts video and is no policy")
    fields = ("robot", "rate_hz", "image_size", "image_orientation", "render_profile", "proprio", "action")
    differing = [each for name in fields for each in _differing(name, card.get(name), env_card.get(name))]
    wrong = [f"{name}: trained with {ours!r}, got {theirs!r}" for name, ours, theirs in differing]
    cameras, there = used or card.get("cameras", ()), env_card.get("cameras", ())
    if missing := set(cameras) - set(there):
        seen = ",".join(name for name in cameras if name in there)
        without = f"; policy.cameras=[{seen}] acts without them" if seen else ""
        wrong.insert(0, f"cameras {sorted(missing)} are missing; the world has {env_card.get('cameras')}{without}")
    if wrong:
        raise CheckpointError("the checkpoint does not fit this world: " + "; ".join(wrong))


def _differing(name: str, ours: Any, theirs: Any) -> list[tuple[str, Any, Any]]:
    """(dotted name, value here, value there) of what both tell and is not the same."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        # The words of a convention may be put otherwise; where mode and frame are told, these are what counts.
        words = {"convention"} if all(each.get("mode", UNTOLD) not in UNTOLD_VALUES for each in (ours, theirs)) else set()
        return [each for key in ours if key not in words for each in _differing(f"{name}.{key}", ours[key], theirs.get(key))]
    if any(value in UNTOLD_VALUES for value in (ours, theirs)):
        return []
    return [] if _as_json(ours) == _as_json(theirs) else [(name, ours, theirs)]


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))  # tuples are lists in a file


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().contiguous() for name, value in tensors.items()}
