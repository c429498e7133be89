"""Finetuning: which weights of a trained model learn on.

| kind | the trunk | what reads and writes: eyes, proprioception, words, token projections |
|---|---|---|
| full | learns | learns |
| frozen | stays, bit for bit | learns |
| lora | stays, and thin matrices beside its linear layers learn (Hu et al. 2021) | learns |

The trunk is the transformer with its modulation. Tags of streams and cameras are fixed with it.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from uwm.core.config import unknown
from uwm.learn.checkpoint import Checkpoint
from uwm.nn import adapters
from uwm.nn.adapters import Adapter
from uwm.nn.robot_model import RobotModel

KINDS = ("full", "frozen", "lora")
TRUNK = "backbone"
NEVER = ("autoencoder", "members")  # outside the trunk, and nothing that learns


@dataclass(frozen=True)
class AdaptConfig:
    """`kind` one of KINDS; of lora: `rank`, `alpha` (what is added is alpha / rank times the product; null: the rank), and `modules`:
    whose linear layers: blocks, or some of qkv, out, mlp, modulation, final.
    """

    kind: str = "full"
    rank: int = 16
    alpha: float | None = None
    modules: tuple[str, ...] = ("blocks",)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(unknown(self.kind, KINDS, "adapt.kind"))
        if self.rank < 1 or (self.alpha is not None and not self.alpha > 0) or not self.modules:
            told = f"{self.rank}, {self.alpha}, {list(self.modules)}"
            raise ValueError(f"adapt.rank must be at least 1, adapt.alpha above 0, and adapt.modules name something, got {told}")


def begin(model: RobotModel, config: AdaptConfig) -> Adapter | None:
    """Fixes what does not learn. Of kind lora: an adapter, which is now the module `adapter` of the model, so that both learn as one.

    ValueError for a trunk that is no transformer, and for modules that it does not have.
    """
    if config.kind == "full":
        return None
    if model.config.trunk != "transformer":
        raise ValueError(f"adapt.kind={config.kind} is for the trunk 'transformer', the model's is {model.config.trunk!r}: adapt.kind=full")
    learning = outside_the_trunk(model)
    if config.kind == "frozen":
        adapters.freeze(model, learning)
        return None
    adapter = Adapter(model, config.rank, config.alpha, layers_of(model, config.modules), learning)
    model.add_module(adapters.PLACE, adapter)
    return adapter


def outside_the_trunk(model: nn.Module) -> list[str]:
    """Names of the modules that read and write, normalisers among them."""
    found = []
    for name, module in model.named_children():
        if name not in (TRUNK, *NEVER):
            found += [f"{name}.{each}" for each in module] if isinstance(module, nn.ModuleDict) else [name]
    return found


def layers_of(model: nn.Module, modules: tuple[str, ...]) -> list[str]:
    """Names of the trunk's linear layers that belong to `modules`. ValueError names one that has none."""
    linear = [name for name, layer in model.get_submodule(TRUNK).named_modules() if isinstance(layer, nn.Linear)]
    for module in modules:
        if not any(f".{module}." in f".{name}." for name in linear):
            raise ValueError(unknown(module, sorted({part for part in ".".join(linear).split(".") if not part.isdigit()}), "adapt.module"))
    return [f"{TRUNK}.{name}" for name in linear if any(f".{module}." in f".{name}." for module in modules)]


def unmerged(adapter: Adapter, saved: Checkpoint, folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, whose averaged weights are merged to act, as its training goes on from it."""
    _, tensors = adapters.describe(folder)
    beside = {own: tensors[name] for name, own in adapter.names.items()}
    trunk = {name: value for name, value in saved.weights.items() if name.startswith(f"{TRUNK}.")}  # never moved
    return replace(saved, average={**saved.average, **trunk, **beside})
