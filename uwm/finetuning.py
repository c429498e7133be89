"""Where finetuning begins: the network of a checkpoint on data that may be other than its own.

```
checkpoint: cameras, numbers of a token, weights --------+
                                                         +--> the run's model
data: one dataset or a mixture, a normaliser each -------+
```

| checkpoint | run | the run's model |
|---|---|---|
| of one dataset | `data` | the same in all; its normalisers stay |
| of any kind | a `mixture` | the same network; members of a name that the checkpoint knows keep its normalisers, others get their own |
| of a mixture | `data` | the same network, with one member, "data" |
"""

from dataclasses import replace
from pathlib import Path

import torch

from uwm.core.config import ConfigError, from_mapping, to_mapping
from uwm.learn import checkpoint as checkpoints
from uwm.learn.checkpoint import CheckpointError
from uwm.nn import adapters
from uwm.nn.codecs import Normaliser
from uwm.nn.pretrained import fingerprint
from uwm.nn.robot_model import ModelConfig, RobotModel
from uwm.runs import TrainRun

NORMALISERS = ("members.", "normalise_action.", "normalise_proprio.")


def config_of(path: str | Path, card: dict) -> ModelConfig:
    """The model of a checkpoint with this card. CheckpointError for one that is no robot's."""
    if card.get("kind") == "clips":
        raise CheckpointError(f"{path} is a model of clips: `uwm media` takes it")
    return from_mapping(ModelConfig, card["model"], f"{path}: model")


def base_of(run: TrainRun) -> ModelConfig | None:
    """The model that a run begins from; None for a run from scratch."""
    return config_of(run.init, checkpoints.describe(Path(run.init))["card"]) if run.init else None


def placed(own: ModelConfig, base: ModelConfig, where: str) -> ModelConfig:
    """The model of a run's data with the cameras and widths of `base`, the checkpoint at `where`. ConfigError where data do not fit."""
    if missing := [camera for camera in own.cameras if camera not in base.cameras]:
        told = f"init={where} has no cameras {missing}, it has {list(base.cameras)}"
        raise ConfigError(f"{told}: streams.cameras={{NAME THERE: NAME IN THE DATA}}, or [] for none")
    for kind in ("action", "proprio"):
        have, room = (getattr(each, f"{kind}_size") for each in (own, base))
        if have > room:
            raise ConfigError(f"the data has {have} numbers of {kind}, init={where} has room for {room}: pretrain with such a robot")
    known = {member.name: member for member in base.members}
    for member in own.members:
        if known.get(member.name, member) != member:
            raise ConfigError(f"init={where} knows {known[member.name]}, the data is {member}: give the member another name")
    return replace(own, cameras=base.cameras, action_size=base.action_size, proprio_size=base.proprio_size)


def alike(found: RobotModel, model: RobotModel, told: str, other_members: bool = False) -> RobotModel:
    """`found`, which `told` names and which must be of the config of `model`, perhaps with `other_members`."""
    mine, its = (to_mapping(each.config) for each in (model, found))
    if differing := [name for name in mine if mine[name] != its[name] and not (other_members and name == "members")]:
        how = "; ".join(f"{name} is {its[name]} there and {mine[name]} here" for name in differing)
        raise ConfigError(f"{told} is another model: {how}")
    return found


def take_over(model: RobotModel, known: RobotModel) -> list[str]:
    """Puts the weights of `known` into a model that may have other members; returns those that it knows nothing of."""
    weights = {name: value for name, value in known.state_dict().items() if not name.startswith(NORMALISERS)}
    model.load_state_dict(model.state_dict() | weights)
    its = {each.name: own for each, own in zip(known.config.members, known.members, strict=True)}
    for each, own in zip(model.config.members, model.members, strict=True):
        if each.name in its:
            own.load_state_dict(its[each.name].state_dict())
    return [each.name for each in model.config.members if each.name not in its]


# -------------------------------------------------------------------------------------------------------------- adapter files


def save_adapter(folder: Path, adapter: adapters.Adapter, average: dict[str, torch.Tensor], base: str) -> None:
    """peft's two files of an adapter beside the averaged weights of the checkpoint `base`, whose fingerprint is the revision."""
    adapter.save(folder, average, base, fingerprint(Path(base) / "average.safetensors"))


def add_adapter(model: RobotModel, checkpoint: str | Path, folder: str | Path) -> RobotModel:
    """`model`, read from a checkpoint, with the adapter of a folder merged in, and the normalisers that came with it.

    CheckpointError when the adapter belongs to other weights than the checkpoint's.
    """
    told, tensors = adapters.describe(Path(folder))
    mine = fingerprint(Path(checkpoint) / "average.safetensors")
    if told.get("revision") not in (None, mine):
        of = f"{told.get('base_model_name_or_path')} with weights {told['revision']}"
        raise CheckpointError(f"{folder} is an adapter of {of}; those of {checkpoint} are {mine}")
    for name in ("normalise_action", "normalise_proprio"):  # of another robot, perhaps
        if (mean := tensors.get(f"{adapters.PREFIX}{name}.mean")) is not None:
            setattr(model, name, Normaliser(len(mean), kind=getattr(model, name).kind))
    adapters.load(model, Path(folder)).merge()
    return model.eval()
