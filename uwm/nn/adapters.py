"""Low-rank adapters beside a model whose own weights stay as they are (LoRA, Hu et al. 2022).

```
x ---- linear (frozen) ------------------------ + ---> y        strength 0: y is the model's own, bit for bit
  '--- down (rank) --- up ---- x strength ------'               removed: the model never knew
```

An adapter is a module of its own that listens to the model's linear layers: the model's state dict does not change. It is saved as
peft saves one: `adapter_model.safetensors` with `base_model.model.NAME.lora_A.weight` and `adapter_config.json`. Modules of the model
that learn beside it stand there whole, under `base_model.model.NAME` (peft's `modules_to_save`).
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PREFIX = "base_model.model."
BLOCKS = ".blocks."  # what is adapted unless told: the linear layers of the transformer's blocks
PLACE = "adapter"  # the name of an adapter that is a module of its model, so that both learn as one
PLAIN = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "layer_replication")  # of peft's: not read here


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
    """Adapters of rank `rank` beside linear layers of `model`: those whose names hold `where`, or are in it if it is no text.

    What is added is strength * alpha / rank * up(down(x)); `strength` may change at any time, `alpha` is the rank unless told. The
    model's own parameters are frozen until `remove`, but for those of the modules named in `keep`, which learn beside the adapter and are
    saved with it. ValueError for a rank below 1 or above a layer's width, and when no layer has such a name.
    """

    def __init__(
        self, model: nn.Module, rank: int, alpha: float | None = None, where: str | Collection[str] = BLOCKS, keep: Sequence[str] = ()
    ):
        super().__init__()
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and _is_meant(name, where)}
        if not layers:
            raise ValueError(f"no linear layer has {where!r} in its name")
        narrow = {name: min(layer.in_features, layer.out_features) for name, layer in layers.items()}
        name = min(narrow, key=narrow.get)
        if not 1 <= rank <= narrow[name]:
            raise ValueError(f"the rank lies between 1 and the width of the narrowest layer, {narrow[name]} of {name}, got {rank}")
        taken = [name for name, layer in layers.items() if layer._forward_hooks]
        if taken:
            raise ValueError(f"{taken[0]} has an adapter already: remove it or merge it first")
        self.rank, self.alpha, self.keep, self.strength = rank, float(rank if alpha is None else alpha), tuple(keep), 1.0
        self.low = nn.ModuleDict({name.replace(".", "/"): Low(layer, rank) for name, layer in layers.items()})
        # In a list, so that the model is no part of this module.
        self._model, self._layers = [model], layers
        self._hooks = [layer.register_forward_hook(self._hook(self.low[name.replace(".", "/")])) for name, layer in layers.items()]
        self._frozen = freeze(model, keep)

    def _hook(self, low: Low):
        def add(layer: nn.Linear, inputs: tuple, out: Tensor) -> Tensor | None:
            return None if self.strength == 0 else out + self.strength * self.alpha / self.rank * low(inputs[0]).to(out.dtype)

        return add

    @property
    def is_on(self) -> bool:
        """Whether it still listens to the model."""
        return bool(self._hooks)

    def remove(self) -> None:
        """The model as it was before, but for what modules in `keep` have learned."""
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

    # ---- as a module of its model, and in peft's files ---------------------------------------------------------

    @property
    def names(self) -> dict[str, str]:
        """{peft's name of a tensor: its name in the state dict of the model whose module `adapter` this is}."""
        low = {
            f"{PREFIX}{name}.lora_{letter}.weight": f"{PLACE}.low.{name.replace('.', '/')}.{part}"
            for name in self._layers
            for letter, part in (("A", "down"), ("B", "up"))
        }
        kept = tuple(f"{name}." for name in self.keep)
        return low | {f"{PREFIX}{name}": name for name in self._model[0].state_dict() if kept and name.startswith(kept)}

    def state(self) -> dict[str, Tensor]:
        """The state dict of the model with this adapter as its module `adapter`."""
        return {**self._model[0].state_dict(), **{f"{PLACE}.{name}": value for name, value in self.state_dict().items()}}

    @torch.no_grad()
    def merged(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of the model alone that acts as one with this adapter as its module `adapter` and this state, at strength 1."""
        own = {name: value for name, value in state.items() if not name.startswith(f"{PLACE}.")}
        for name in self._layers:
            down, up = (state[f"{PLACE}.low.{name.replace('.', '/')}.{part}"] for part in ("down", "up"))
            own[f"{name}.weight"] = own[f"{name}.weight"] + self.alpha / self.rank * (up @ down)
        return own

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None, base: str = "", revision: str = "") -> None:
        """Writes the files that peft would write, from `state` (by default as it is now), into a folder that may hold more.

        `base`, `revision`: where the weights are that it belongs to, and which.
        """
        folder, state = Path(folder), state or self.state()
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: state[own].detach().contiguous() for name, own in self.names.items()}, folder / "adapter_model.safetensors")
        told = {"peft_type": "LORA", "task_type": None, "base_model_name_or_path": base or None, "revision": revision or None,
                "inference_mode": True, "r": self.rank, "lora_alpha": self.alpha, "lora_dropout": 0.0, "bias": "none",
                "target_modules": sorted(self._layers), "modules_to_save": list(self.keep) or None}  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(told, indent=1))


def freeze(model: nn.Module, keep: Sequence[str] = ()) -> list[nn.Parameter]:
    """Fixes all parameters but those of the modules named in `keep`; returns those that were not fixed before."""
    kept = {id(parameter) for name in keep for parameter in model.get_submodule(name).parameters()}
    found = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in kept]
    for parameter in found:
        parameter.requires_grad_(False)
    return found


def _is_meant(name: str, where: str | Collection[str]) -> bool:
    return where in f".{name}." if isinstance(where, str) else name in where


def describe(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """What stands in an adapter's two files. ValueError where there is none, or one that needs more than two thin matrices a layer."""
    folder = Path(folder)
    try:
        told = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is no adapter: {error}") from error
    wrong = [name for name in PLAIN if told.get(name)] + (["bias"] if told.get("bias", "none") != "none" else [])
    if told.get("peft_type") != "LORA" or wrong:
        raise ValueError(f"{folder} is a {told.get('peft_type')} with {wrong or 'no settings'}; plain LORA is read")
    return told, tensors


def load(model: nn.Module, folder: Path) -> Adapter:
    """The adapter of a folder, beside `model`. ValueError when it is of another model, naming what differs."""
    told, tensors = describe(folder)
    linear = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    layers = {name.removeprefix(PREFIX).removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")}
    keep = tuple(told.get("modules_to_save") or ())
    foreign = sorted(layers - linear) + [name for name in keep if name not in dict(model.named_modules())]
    if foreign or not layers:
        raise ValueError(f"{folder} is an adapter of another model: it differs in {foreign[0] if foreign else 'all layers'}")
    adapter = Adapter(model, told["r"], told["lora_alpha"], layers, keep)
    try:
        names, state = adapter.names, adapter.state()
        if set(names) != set(tensors):
            raise ValueError(f"{folder} is an adapter of another model: it differs in {sorted(set(names) ^ set(tensors))[0]}")
        for name, own in names.items():
            if tensors[name].shape != state[own].shape:
                where = name.removeprefix(PREFIX)
                raise ValueError(f"{folder}: {where} has {tuple(tensors[name].shape)} where {tuple(state[own].shape)} is expected")
    except ValueError:
        adapter.remove()
        raise
    for name, own in names.items():
        state[own].copy_(tensors[name])  # tensors of a state dict share memory with the parameters
    return adapter
