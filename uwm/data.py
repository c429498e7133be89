"""The data of a run: one dataset or several that have to fit each other, their statistics, frames and windows."""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from uwm import finetuning
from uwm.core import patterns
from uwm.core.config import ConfigError
from uwm.dataset import DEFAULT_SIDE, Dataset
from uwm.nn.robot_model import Member, ModelConfig, RobotModel
from uwm.runs import MemberConfig, TrainRun
from uwm.windows import MixtureWindows, ModelWindows, WindowConfig, rates_of

# What has to agree between datasets whose robots share one normaliser.
SHARED_FIELDS = ("action.names", "action.units", "action.mode", "action.frame", "action.gripper", "proprio")
NEEDED = ("image_orientation", "action.mode", "action.frame", "action.gripper")  # of these, what has to be told
ONLY = "data"  # the name of the dataset of a run that has no mixture
SHARING = "they share a normaliser (mixture.normaliser=member: each its own)"


def members_of(run: TrainRun) -> tuple[MemberConfig, ...]:
    """The datasets of a run: the members of its mixture, or its only one."""
    return run.mixture.members or (MemberConfig(ONLY, run.data, streams=run.streams, options=run.options, declare=run.declare),)


class TrainingData:
    """The datasets of a run: one, or the members of its mixture. Raises ConfigError when they do not fit each other."""

    def __init__(self, run: TrainRun):
        self.run, self.base = run, finetuning.base_of(run)
        self.is_mixture = bool(run.mixture.members or (self.base and self.base.members))
        self.datasets = [Dataset(member, run) for member in members_of(run)]
        self.first = next((data for data in self.datasets if data.action), self.datasets[0])  # the one that a policy acts for
        self.rate_hz = self.rate_of(self.first)
        is_shared = run.mixture.normaliser == "shared"
        acting = [data for data in self.datasets if data.action and is_shared]
        filmed = [data for data in self.datasets if data.cameras]
        _refuse_disagreement(filmed, ("image_orientation",), "images of one model are turned the same way")
        _refuse_disagreement(acting, SHARED_FIELDS, SHARING)
        if is_shared:
            self._refuse_other_sizes()
        self._refuse_what_teaches_nothing()
        if run.model.language.hears and not any(data.instruction(index) for data in self.datasets for index in data.training):
            told = ", ".join(str(data.path) for data in self.datasets)
            raise ConfigError(f"{told}: no episode has an instruction, so there is no language to learn: set model.language.kind=none")

    def _refuse_other_sizes(self) -> None:
        for kind in ("action", "proprio"):
            having = [data for data in self.datasets if getattr(data, f"{kind}_size")]
            shapes = {str(data.path): [data.store.streams[name].shape for name in self._names(data, kind)] for data in having}
            if any(shape != next(iter(shapes.values())) for shape in shapes.values()):
                raise ConfigError(f"{kind} has different sizes ({shapes}), but {SHARING}")

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

    def rate_of(self, data: Dataset) -> float:
        """Ticks per second of the model on a dataset: the same on all, unless each has its own."""
        told = self.run.mixture.rate_hz
        return data.rate_hz if told == "own" else told or self.first.rate_hz

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
        own = self.run.model.model(self.cameras, proprio, action, self.side, members)
        return finetuning.placed(own, self.base, self.run.init) if self.base and self.is_mixture else own

    @cached_property
    def statistics(self) -> dict[str, dict[str, dict]]:
        """{dataset: {"action", "proprio": statistics}} of training episodes only; actions as the model sees them, at its rate."""
        groups = [self.datasets] if self.run.mixture.normaliser == "shared" else [[data] for data in self.datasets]
        found: dict[str, dict[str, dict]] = {data.name: {} for data in self.datasets}
        for group in groups:
            for kind in ("action", "proprio"):
                having = [data for data in group if getattr(data, f"{kind}_size")]
                for data in having:
                    found[data.name][kind] = found[having[0].name].get(kind) or self._summary(having, kind)
        return found

    def _summary(self, group: list[Dataset], kind: str) -> dict:
        """Statistics of a kind over some datasets together; those of several streams stand behind each other."""
        from uwm_data.statistics import summarise

        columns = []
        for place, name in enumerate(self._names(group[0], kind)):
            nothing = np.zeros((1, *group[0].store.streams[name].shape))  # for a stream that no training episode has
            parts = (part for data in group for part in self._values(data, self._names(data, kind)[place]))
            columns.append(summarise(parts) or summarise([nothing]))
        return {key: max(c[key] for c in columns) if key == "count" else [x for c in columns for x in c[key]] for key in columns[0]}

    @staticmethod
    def _names(data: Dataset, kind: str) -> tuple[str, ...]:
        return (data.action,) if kind == "action" else data.proprio

    def _values(self, data: Dataset, name: str) -> Iterator[np.ndarray]:
        """Training frames of one stream, episode by episode."""
        rates = rates_of(data, [0], self.rate_of(data)) if name == data.action else None
        for index in data.training:
            values = data.store.read(index, name)
            yield rates.episode(values) if rates and len(values) else values

    def frames(self) -> Tensor:
        """Training frames of all cameras for the autoencoder: all, or as many evenly drawn ones as fit into memory."""
        fitting = int(self.run.cache_gb * 2**30) // (3 * self.side**2)
        share = fitting / max(1, sum(data.frame_count(data.training) for data in self.datasets))
        random = np.random.default_rng(self.run.train.seed) if share < 1 else None
        each = (data.frames(data.training, self.side, share, random) for data in self.datasets)
        return torch.cat([part for episodes in each for episode in episodes for part in episode.values()])

    def mixture(self):
        """How the members of a mixture are drawn; also before there is a model."""
        import uwm_data

        config, of_windows = self.run.mixture, {}
        for data in self.datasets:
            windows = uwm_data.Windows(data.store, {}, data.training, data.anchor)
            tasks = np.array([data.task(index) if config.by == "task" else "" for index in data.training])
            of_windows[data.name] = tasks[windows.locate(np.arange(len(windows)))[0]]
        weights = (config.tasks or {}) if config.by == "task" else {member.name: member.weight for member in members_of(self.run)}
        return uwm_data.Mixture(of_windows, config.by, weights, self.run.train.seed)

    def windows(self, model: RobotModel) -> ModelWindows | MixtureWindows:
        """Training windows."""
        if not self.is_mixture:
            return self.windows_of(self.first, model, self.first.training)
        return MixtureWindows({data.name: self.windows_of(data, model, data.training) for data in self.datasets}, self.mixture())

    def windows_of(self, data: Dataset, model: RobotModel, episodes: list[int]) -> ModelWindows:
        """Windows of some episodes of one dataset."""
        return ModelWindows(data, model, episodes, window_config(self.run, self.rate_of(data)), data.name if self.is_mixture else "")

    def cards(self) -> dict[str, dict]:
        """{dataset: what a checkpoint tells of it}."""
        statistics = self.statistics
        return {data.name: {**data.about(self.side, self.rate_of(data)), "statistics": statistics[data.name]} for data in self.datasets}


def _refuse_disagreement(group: list[Dataset], fields: tuple[str, ...], reason: str) -> None:
    """ConfigError when cards of a group tell different things, or leave open what has to be told."""
    from uwm_data import cards

    for data in group[1:]:
        found = cards.differences(group[0].card, data.card, fields)
        if found:
            raise ConfigError(f"{cards.sentence(found, str(group[0].path), str(data.path))}, but {reason}")
    untold = [(data, name) for data in group for name in cards.missing(data.card) if name in fields and name in NEEDED]
    if len(group) > 1 and untold:
        data, name = untold[0]
        raise ConfigError(f"{data.path} does not tell its {name}, and {reason}: declare it for this member of the mixture")


def window_config(run: TrainRun, rate_hz: float) -> WindowConfig:
    """What windows need to know of a run; the members of a mixture share its memory."""
    memory = int(run.cache_gb * 2**30) // len(members_of(run))
    return WindowConfig(rate_hz, run.augment, run.camera_dropout, memory, run.latents, run.instruction_dropout)
