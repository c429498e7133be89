"""The data of a run: one dataset or several that have to fit each other, their statistics, frames and windows."""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from uwm.core import patterns
from uwm.core.config import ConfigError
from uwm.dataset import DEFAULT_SIDE, Dataset
from uwm.nn.model import Member, ModelConfig, UnifiedModel
from uwm.runs import MemberConfig, TrainRun
from uwm.windows import MixtureWindows, ModelWindows, WindowConfig, rates_of

# What has to agree between datasets whose robots share one normaliser.
SHARED_FIELDS = ("action.names", "action.units", "action.mode", "action.frame", "action.gripper", "proprio")


ONLY = "data"  # the name of the dataset of a run that has no mixture
NEEDED = ("image_orientation", "action.mode", "action.frame", "action.gripper")  # has to be told where datasets meet


def members_of(run: TrainRun) -> tuple[MemberConfig, ...]:
    """The datasets of a run: the members of its mixture, or its only one."""
    return run.mixture.members or (MemberConfig(ONLY, run.data, streams=run.streams, options=run.options, declare=run.declare),)


class TrainingData:
    """The datasets of a run: one, or the members of its mixture. Raises ConfigError when they do not fit each other."""

    def __init__(self, run: TrainRun):
        self.run, self.is_mixture = run, bool(run.mixture.members)
        self.datasets = [Dataset(member, run) for member in members_of(run)]
        self.first = next((data for data in self.datasets if data.action), self.datasets[0])  # the one that a policy acts for
        self.rate_hz = run.mixture.rate_hz or self.first.rate_hz
        self._refuse_disagreement()
        self._refuse_what_teaches_nothing()

    def _refuse_disagreement(self) -> None:
        from uwm_data import cards

        filmed = [data for data in self.datasets if data.cameras]
        acting = [data for data in self.datasets if data.action] if self.run.mixture.normaliser == "shared" else []
        reasons = "images of one model are turned the same way", "they share a normaliser (mixture.normaliser=member: each its own)"
        for group, fields, reason in zip((filmed, acting), (("image_orientation",), SHARED_FIELDS), reasons, strict=True):
            for data in group[1:]:
                found = cards.differences(group[0].card, data.card, fields)
                if found:
                    raise ConfigError(f"{cards.sentence(found, str(group[0].path), str(data.path))}, but {reason}")
            untold = [(data, name) for data in group for name in cards.missing(data.card) if name in fields and name in NEEDED]
            if len(group) > 1 and untold:
                data, name = untold[0]
                raise ConfigError(f"{data.path} does not tell its {name}, and {reason}: declare it for this member of the mixture")

        for kind in ("action", "proprio") if len(acting) > 1 else ():
            sizes = {str(data.path): size for data in self.datasets if (size := getattr(data, f"{kind}_size"))}
            if len(set(sizes.values())) > 1:
                raise ConfigError(f"{kind} has different sizes ({sizes}), but {reasons[1]}")

    def _refuse_what_teaches_nothing(self) -> None:
        used = [pattern for pattern in self.run.train.objective.patterns if pattern.weight > 0]
        for data in self.datasets:
            kinds = [kind for kind, there in (("action", data.action), ("video", self.films and data.cameras)) if there]
            if not any(patterns.teaches(pattern, kinds) for pattern in used):
                lacking = " and ".join({"action": "actions", "video": "video"}[kind] for kind in ("action", "video") if kind not in kinds)
                has = " or ".join(f"{kind}: constant (or independent, ladder, linear)" for kind in kinds) or "none"
                raise ConfigError(
                    f"{data.path} has no {lacking} for the model, and no pattern in train.objective.patterns denoises anything else; "
                    f"patterns that fit have {has}, as in patterns@train.objective.patterns={'video' if 'video' in kinds else 'actions'}"
                )

    @property
    def films(self) -> bool:
        """Whether the model learns video."""
        return bool(self.run.model.video_frames)

    @property
    def cameras(self) -> tuple[str, ...]:
        """All cameras of the model."""
        return tuple(dict.fromkeys(camera for data in self.datasets for camera in data.cameras))

    @property
    def side(self) -> int:
        """Pixels a side of the model's images."""
        own = {data.own_side for data in self.datasets if data.cameras} or {self.first.own_side}
        return self.run.image_size or (own.pop() if len(own) == 1 else 0) or DEFAULT_SIDE

    def model_config(self) -> ModelConfig:
        """The model for this data."""
        if self.films and not self.cameras:
            names = ", ".join(str(data.path) for data in self.datasets)
            raise ConfigError(f"{names} has no cameras, so there is no video to learn: set model.video_frames=[]")
        sizes = [(data.name, data.action_size, data.proprio_size) for data in self.datasets]
        members = tuple(Member(*each) for each in sizes) if self.is_mixture else ()
        action, proprio = (max(1, *(size[place] for size in sizes)) if len(sizes) > 1 else max(1, sizes[0][place]) for place in (1, 2))
        return self.run.model.model(self.cameras, proprio, action, self.side, members)

    @cached_property
    def statistics(self) -> dict[str, dict[str, dict]]:
        """{dataset: {stream: statistics}} of training episodes only; actions as the model sees them, at its rate."""
        from uwm_data.statistics import summarise

        kinds = ("action", "proprio")
        if self.run.mixture.normaliser == "shared" and self.is_mixture:
            together = {kind: summarise(part for data in self.datasets for part in self._frames(data, kind)) for kind in kinds}
            whole = {data.name: together for data in self.datasets}
        else:
            whole = {data.name: {kind: summarise(self._frames(data, kind)) for kind in kinds} for data in self.datasets}
        sizes = {data.name: {"action": data.action_size, "proprio": data.proprio_size} for data in self.datasets}
        return {name: {kind: found for kind, found in each.items() if found and sizes[name][kind]} for name, each in whole.items()}

    def _frames(self, data: Dataset, kind: str) -> Iterator:
        """Training frames of one dataset, episode by episode; proprioception only where all of it is there."""
        rates = rates_of(data, [0], self.rate_hz)
        names = [name for name in (data.action,) if name] if kind == "action" else data.proprio
        for index in data.training if names else ():
            parts = [data.store.read(index, name) for name in names]
            if kind == "action":
                yield rates.episode(parts[0]) if rates and len(parts[0]) else parts[0]
            elif len({len(part) for part in parts}) == 1:
                yield np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]

    def frames(self) -> Tensor:
        """Training frames of all cameras for the autoencoder: all, or as many evenly drawn ones as fit into memory."""
        fitting = int(self.run.cache_gb * 2**30) // (3 * self.side**2)
        share = fitting / max(1, sum(data.frame_count(data.training) for data in self.datasets))
        random, parts = np.random.default_rng(self.run.train.seed), []
        for data in self.datasets:
            for episode in data.frames(data.training, self.side):
                parts += episode.values() if share >= 1 else [part[random.random(len(part)) < share] for part in episode.values()]
        return torch.cat(parts)

    def windows(self, model: UnifiedModel) -> ModelWindows | MixtureWindows:
        """Training windows."""
        if not self.is_mixture:
            return self.windows_of(self.first, model, self.first.training)
        from uwm_data.mixture import Mixture

        each = {data.name: self.windows_of(data, model, data.training) for data in self.datasets}
        tasks = {data.name: [data.task(int(index)) for index in each[data.name].windows.episodes] for data in self.datasets}
        places = {name: windows.windows.locate(torch.arange(len(windows)).numpy())[0] for name, windows in each.items()}
        of_window = {name: [tasks[name][place] for place in places[name]] for name in each}
        mixture = self.run.mixture
        weights = (mixture.tasks or {}) if mixture.by == "task" else {member.name: member.weight for member in mixture.members}
        return MixtureWindows(each, Mixture(of_window, mixture.by, weights, self.run.train.seed))

    def windows_of(self, data: Dataset, model: UnifiedModel, episodes: list[int]) -> ModelWindows:
        """Windows of some episodes of one dataset."""
        return ModelWindows(data, model, episodes, window_config(self.run, self.rate_hz), data.name if self.is_mixture else "")

    def cards(self) -> dict[str, dict]:
        """{dataset: what a checkpoint tells of it}."""
        statistics = self.statistics
        return {data.name: {**data.about(self.side, self.rate_hz), "statistics": statistics[data.name]} for data in self.datasets}


def window_config(run: TrainRun, rate_hz: float) -> WindowConfig:
    return WindowConfig(rate_hz, run.augment, run.camera_dropout, int(run.cache_gb * 2**30))
