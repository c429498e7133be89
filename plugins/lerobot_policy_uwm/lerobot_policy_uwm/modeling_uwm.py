"""The policy as LeRobot drives it: one observation in, one action out, chunks planned when the queue is empty."""

import shutil
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import OBS_IMAGES, OBS_STATE
from torch import Tensor

from lerobot_policy_uwm.configuration_uwm import UwmConfig
from uwm.nn.model import Observation
from uwm.robot.history import History
from uwm.robot.policy import Policy
from uwm.training import load_model

FILES = ("checkpoint.json", "model.safetensors", "average.safetensors")


class UwmPolicy(PreTrainedPolicy):
    """`uwm.robot.policy.Policy` with its memory, for B robots that begin and end their episodes together (`reset`).

    A batch's "task" is the instruction of a model with language. A model that looks back sees what `select_action` was shown at the
    ticks before; who asks for a chunk at a time shows it one observation a chunk.
    """

    config_class = UwmConfig
    name = "uwm"

    def __init__(self, config: UwmConfig, **_: object):
        super().__init__(config)
        config.validate_features()
        self.model, self.card = load_model(config.checkpoint, config.member)
        self.policy = Policy(self.model, config.policy)
        told = self.card.get("action", {})
        self.low, self.high = (torch.tensor(told.get(key, end)) for key, end in (("low", -torch.inf), ("high", torch.inf)))
        self.episode = -1
        self.reset()

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig | None = None, **kwargs: object):
        """From a checkpoint folder of `uwm train`, or from one that `save_pretrained` wrote, which holds the same files."""
        folder = Path(pretrained_name_or_path)
        if not (folder / "checkpoint.json").is_file():
            raise FileNotFoundError(f"{folder} is no folder of `uwm train` or of `python -m lerobot_policy_uwm`: no checkpoint.json")
        if config is None and (folder / "config.json").is_file():
            config = PreTrainedConfig.from_pretrained(folder)
        config = UwmConfig(checkpoint=str(folder)) if config is None else replace(config, checkpoint=str(folder))
        return cls(config).eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        replace(self.config, checkpoint="")._save_pretrained(save_directory)  # a folder is its own checkpoint, wherever it is
        for file in FILES:
            shutil.copyfile(Path(self.config.checkpoint) / file, Path(save_directory) / file)

    def reset(self) -> None:
        """A new episode, with a seed of its own."""
        self.episode += 1
        self.memory, self.queue, self.history = None, deque(), History.reaching(self.policy.history)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict]:
        """Not here."""
        raise NotImplementedError(
            "lerobot_policy_uwm acts and does not train: use `uwm train data=PATH`, which reads LeRobot datasets, "
            "then `python -m lerobot_policy_uwm CHECKPOINT OUT`"
        )

    def get_optim_params(self) -> list:
        """Parameters that a training would change."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], **_: object) -> Tensor:
        """The next chunk (B, C, A) in physical units, inside the card's limits; counts as executed."""
        self.history = self.history.add(self._seen(batch))
        actions = self._chunk(batch)
        self.history = self.history.missed(actions.shape[1] - 1)
        return actions

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **_: object) -> Tensor:
        """The next action (B, A)."""
        self.history = self.history.add(self._seen(batch))
        if not self.queue:
            self.queue.extend(self._chunk(batch).unbind(dim=1))
        return self.queue.popleft()

    def _chunk(self, batch: dict[str, Tensor]) -> Tensor:
        now, *earlier = (self._observation(moment) for moment in self.history.earlier((0, *self.policy.history)))
        observation = self._told(replace(now, earlier=tuple(earlier)), batch.get("task") or "")
        if self.memory is None:
            seed = self.config.seed + self.episode
            self.memory = self.policy.start([seed + 1000 * index for index in range(len(observation.proprio))])
        self.memory, actions = self.policy.act(self.memory, observation)
        actions = actions.clamp(self.low, self.high)
        self.memory = self.policy.done(self.memory, actions)
        return actions

    def _seen(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the model looks at; cameras that are not there are absent to it. ValueError for another size of image."""
        side = self.model.config.autoencoder.image_size
        images = {name: batch[f"{OBS_IMAGES}.{name}"] for name in self.model.config.cameras if f"{OBS_IMAGES}.{name}" in batch}
        for name, image in images.items():
            if image.ndim != 4 or image.shape[1:] != (3, side, side):
                raise ValueError(f"camera {name!r} must be (B, 3, {side}, {side}) as in training, got {tuple(image.shape)}: resize it")
        if OBS_STATE not in batch:
            raise ValueError(f"{OBS_STATE} is missing; the batch has {sorted(batch)}")
        return {**images, OBS_STATE: batch[OBS_STATE].float()}

    def _observation(self, moment: dict[str, Tensor]) -> Observation:
        """A moment of the history for the model; of one at which nothing was seen all is absent."""
        images = {name: value for name, value in moment.items() if name != OBS_STATE}
        if OBS_STATE in moment:
            return Observation(images, moment[OBS_STATE])
        nothing = torch.zeros_like(self.history.seen[-1][OBS_STATE])
        return Observation(images, nothing, {"proprio": torch.zeros(len(nothing), dtype=torch.bool)})

    def _told(self, observation: Observation, task: str | Sequence[str]) -> Observation:
        """With the instruction that LeRobot gives as "task", one for all robots or one each; a model without language does not hear it."""
        if not self.model.hears:
            return observation
        instruction, there = self.model.words([task] * len(observation.proprio) if isinstance(task, str) else task)
        return replace(observation, instruction=instruction, present={**observation.present, "instruction": there})
