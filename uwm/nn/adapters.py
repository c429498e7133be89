"""Low-rank adapters beside a model whose own weights stay as they are (LoRA, Hu et al. 2022).

```
x ---- linear (frozen) ------------------------ + ---> y        strength 0: y is the model's own, bit for bit
  '--- down (rank) --- up ---- x strength ------'               removed: the model never knew
```

An adapter is a module of its own that listens to the model's linear layers: the model's state dict does not change. It is saved as
peft saves one: `adapter_model.safetensors` with `base_model.model.NAME.lora_A.weight` and `adapter_config.json`.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PREFIX = "base_model.model."
BLOCKS = ".blocks."  # what is adapted unless told: the linear layers of the transformer's blocks


class Low(nn.Module):
    """The two thin matrices beside one linear layer; `up` begins at zero, so that a fresh adapter changes nothing."""

    def __init__(self, linear: nn.Linear, rank: int):
        super().__init__()
        like = {"dtype": linear.weight.dtype, "device": linear.weight.device}
        self.down = nn.Parameter(torch.empty(rank, linear.in_features, **like))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank, **like))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.down.T @ self.up.T


class Adapter(nn.Module):
    """Adapters of rank `rank` beside the linear layers of `model` whose names hold `where`; `strength` may change at any time.

    What is added is strength * alpha / rank * up(down(x)); `alpha` is the rank unless told. The model's own parameters are frozen
    until `remove`. ValueError for a rank below 1 or above a layer's width, and when no layer has such a name.
    """

    def __init__(self, model: nn.Module, rank: int, alpha: float | None = None, where: str = BLOCKS):
        super().__init__()
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and where in f".{name}."}
        if not layers:
            raise ValueError(f"no linear layer has {where!r} in its name")
        narrow = {name: min(layer.in_features, layer.out_features) for name, layer in layers.items()}
        name = min(narrow, key=narrow.get)
        if not 1 <= rank <= narrow[name]:
            raise ValueError(f"the rank lies between 1 and the width of the narrowest layer, {narrow[name]} of {name}, got {rank}")
        taken = [name for name, layer in layers.items() if layer._forward_hooks]
        if taken:
            raise ValueError(f"{taken[0]} has an adapter already: remove it or merge it first")
        self.rank, self.alpha, self.where, self.strength = rank, float(rank if alpha is None else alpha), where, 1.0
        self.low = nn.ModuleDict({name.replace(".", "/"): Low(layer, rank) for name, layer in layers.items()})
        # In a list, so that the model is no part of this module.
        self._model, self._layers = [model], layers
        self._hooks = [layer.register_forward_hook(self._hook(self.low[name.replace(".", "/")])) for name, layer in layers.items()]
        self._frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False)

    def _hook(self, low: Low):
        def add(layer: nn.Linear, inputs: tuple, out: Tensor) -> Tensor | None:
            return None if self.strength == 0 else out + self.strength * self.alpha / self.rank * low(inputs[0]).to(out.dtype)

        return add

    @property
    def is_on(self) -> bool:
        """Whether it still listens to the model."""
        return bool(self._hooks)

    def remove(self) -> None:
        """The model as it was before."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for parameter in self._frozen:
            parameter.requires_grad_(True)

    @torch.no_grad()
    def merge(self) -> None:
        """Adds the adapter, at its strength, to the model's own weights, and removes it. RuntimeError the second time."""
        if not self.is_on:
            raise RuntimeError("this adapter was merged or removed already")
        for name, layer in self._layers.items():
            low = self.low[name.replace(".", "/")]
            layer.weight += self.strength * self.alpha / self.rank * (low.up @ low.down)
        self.remove()

    def change(self) -> dict[str, float]:
        """Norm of the change of every layer's weights over the norm of the weights."""
        found = {}
        for name, layer in self._layers.items():
            low = self.low[name.replace(".", "/")]
            found[name] = float(self.strength * self.alpha / self.rank * (low.up @ low.down).detach().norm() / layer.weight.norm())
        return found

    def save(self, folder: Path) -> None:
        """Writes the folder that peft would write."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for name in self._layers:
            low = self.low[name.replace(".", "/")]
            tensors[f"{PREFIX}{name}.lora_A.weight"] = low.down.detach().contiguous()
            tensors[f"{PREFIX}{name}.lora_B.weight"] = low.up.detach().contiguous()
        save_file(tensors, folder / "adapter_model.safetensors")
        told = {"peft_type": "LORA", "r": self.rank, "lora_alpha": self.alpha, "target_modules": sorted(self._layers),
                "bias": "none", "lora_dropout": 0.0, "task_type": None, "uwm_where": self.where}  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(told, indent=1))


def load(model: nn.Module, folder: Path) -> Adapter:
    """The adapter of a folder, beside `model`. ValueError when it is of another model, naming what differs."""
    folder = Path(folder)
    try:
        told = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is no adapter: {error}") from error
    adapter = Adapter(model, told["r"], told["lora_alpha"], told.get("uwm_where", BLOCKS))
    try:
        mine = {f"{PREFIX}{name}.lora_{letter}.weight" for name in adapter._layers for letter in "AB"}
        if mine != set(tensors):
            raise ValueError(f"{folder} is an adapter of another model: it differs in {sorted(mine ^ set(tensors))[0]}")
        for name in adapter._layers:
            low = adapter.low[name.replace(".", "/")]
            for letter, parameter in (("A", low.down), ("B", low.up)):
                value = tensors[f"{PREFIX}{name}.lora_{letter}.weight"]
                if value.shape != parameter.shape:
                    raise ValueError(f"{folder}: {name} has {tuple(value.shape)} where {tuple(parameter.shape)} is expected")
                parameter.data.copy_(value)
    except ValueError:
        adapter.remove()
        raise
    return adapter
