"""What every model of a robot has, whatever its network: its streams, its normalisers, and what it observes.

| class | network |
|---|---|
| `uwm.nn.model.UnifiedModel` | the transformer: every mode of the package |
| `uwm.nn.act_model.ActModel` | the same with a style: Action Chunking with Transformers, actions only |
| `uwm.nn.vector_model.VectorModel` | what is observed as one vector, and of it a 1-D U-Net or an MLP: actions only |

A model of prediction "regression" says everything in one call and sees nothing of what it is asked for: tokens at level 1 without noise.
"""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from uwm.core import roles
from uwm.core.config import unknown
from uwm.core.shapes import Bool, Float, Int
from uwm.core.streams import Layout, Stream
from uwm.nn.autoencoder import AutoencoderConfig
from uwm.nn.backbone import BackboneConfig
from uwm.nn.codecs import Embodiment, NormaliseConfig
from uwm.nn.eyes import EyesConfig
from uwm.nn.language import LanguageConfig, Words
from uwm.nn.mlp import MLPSizes
from uwm.nn.unet import UNetSizes

TRUNKS = ("transformer", "unet", "mlp", "act")
REGRESSION = "a regression (model.prediction=regression) says everything in one call"


@dataclass(frozen=True)
class Member:
    """One dataset of a mixture: its name and the sizes of its own action and proprioception (0: it has none)."""

    name: str
    action_size: int
    proprio_size: int


@dataclass(frozen=True)
class ModelConfig:
    """What the model sees and denoises.

    `past`: executed actions that may be shown; `horizon`: future actions; `history`: of earlier observations that are shown beside the
    present one, how many ticks ago each was, the newest first; `video_frames`: future frames, in ticks;
    `state_frames`: the same for proprioception, which is told as its change since now;
    `cameras`: names; `grid`: tokens per side of an observed image (one more holds its keypoints, or sums it up), made by
    `eyes`; `patch` and `merge`: a video token stands for patch x patch latents of merge frames (named by the first of them); `path` and
    `noise_shift`: see `uwm.noise.gaussian.path`; sizes in numbers; `normalise`: how each stream is normalised; `members`:
    the datasets of a mixture, whose actions and proprioception fill the first of `action_size` and `proprio_size` places;
    `trunk`: "transformer" or "act", of the sizes `backbone`, "unet" or "mlp", of the sizes of that name; all but the first know
    actions only, and "mlp" and "act" are regressions; `language`: how it understands instructions.
    """

    cameras: tuple[str, ...]
    proprio_size: int
    action_size: int
    past: int = 2
    horizon: int = 24
    history: tuple[int, ...] = ()
    video_frames: tuple[int, ...] = (8, 16)
    state_frames: tuple[int, ...] = ()
    grid: int = 4
    patch: int = 2
    merge: int = 1
    prediction: str = "velocity"
    path: str = "cosine"
    noise_shift: float = 1.0
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    normalise: NormaliseConfig = field(default_factory=NormaliseConfig)
    members: tuple[Member, ...] = ()
    trunk: str = "transformer"
    unet: UNetSizes = field(default_factory=UNetSizes)
    mlp: MLPSizes = field(default_factory=MLPSizes)
    eyes: EyesConfig = field(default_factory=EyesConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)

    def __post_init__(self):
        if self.trunk not in TRUNKS:
            raise ValueError(unknown(self.trunk, TRUNKS, "trunk"))
        if self.trunk != "transformer" and (self.video_frames or self.state_frames):
            told = f"{list(self.video_frames)} and {list(self.state_frames)}"
            raise ValueError(f"the trunk {self.trunk!r} knows actions only: set video_frames and state_frames to [], got {told}")
        if self.trunk in ("mlp", "act") and self.prediction != "regression":
            raise ValueError(f"the trunk {self.trunk!r} is a regression: set prediction to regression, got {self.prediction!r}")
        if self.backbone.condition and (self.trunk == "act" or self.history):
            raise ValueError("backbone.condition sums what is seen now up in one vector: it goes neither with trunk 'act' nor with history")
        if self.trunk == "mlp" and self.past:
            raise ValueError(f"an MLP reads nothing but what is observed: set past to 0, got {self.past}")
        if self.trunk == "unet" and self.unet.film == "sample" and self.past:
            raise ValueError("a U-Net of one level per sample cannot be given clean past actions: set past to 0, or film to token")
        if self.horizon < 1 or self.past < 0:
            raise ValueError(f"horizon must be >= 1 and past >= 0, got {self.horizon} and {self.past}")
        if list(self.history) != sorted(set(self.history)) or min(self.history, default=1) < 1:
            raise ValueError(f"history tells how many ticks ago, 1 or more, each once, the newest first: [1, 2]; got {list(self.history)}")
        if self.autoencoder.image_size % (8 * self.patch) or len(self.video_frames) % self.merge:
            raise ValueError(
                f"image_size must be a multiple of 8 x patch and video_frames of merge, got {self.autoencoder.image_size} "
                f"pixels, patch {self.patch}, {len(self.video_frames)} frames, merge {self.merge}"
            )

    @property
    def acting(self) -> str:
        """The member whose robot the model acts for unless told otherwise: the first that has actions. "" without members."""
        names = [member.name for member in self.members if member.action_size] + [member.name for member in self.members]
        return names[0] if names else ""

    def sizes(self, member: str) -> tuple[int, int]:
        """Numbers in an action and in the proprioception of a member."""
        found = next((each for each in self.members if each.name == member), None)
        if found is None and (member or self.members):
            raise ValueError(f"the model has no member {member!r}; it has {[each.name for each in self.members] or 'one dataset only'}")
        return (found.action_size, found.proprio_size) if found else (self.action_size, self.proprio_size)

    @property
    def layout(self) -> Layout:
        """Every token that is denoised: actions, then one video stream per camera, then proprioception."""
        action = Stream("action", "action", tuple(range(-self.past, self.horizon)), self.action_size)
        state = [Stream("state", "state", self.state_frames, self.proprio_size)] if self.state_frames else []
        if not self.video_frames:
            return Layout((action, *state))
        side, size = self.autoencoder.image_size // (8 * self.patch), self.autoencoder.latent * self.patch**2 * self.merge
        video = [Stream(name, "video", self.video_frames[:: self.merge], size, (side, side)) for name in self.cameras]
        return Layout((action, *video, *state))


@dataclass(frozen=True)
class Observation:
    """What is seen now: `images` {camera: (B, 3, H, W) in [0, 1]}, `proprio` (B, P) in physical units.

    `earlier`: what was seen at each tick of the model's `history`, in its order; left out, nothing of it was seen.

    `present` {camera: (B,) bool} marks cameras that are missing in some samples; a camera left out is missing in all. Under
    "proprio" it marks missing proprioception. `instruction` (B, W): what to do, as the model's `words` put it; under "instruction"
    `present` marks samples without one, None is none at all. `normalised`: proprio is so already, and as wide as the model's: samples of
    several robots, each by its own normaliser.
    """

    images: dict[str, Tensor]
    proprio: Tensor
    present: dict[str, Tensor] = field(default_factory=dict)
    normalised: bool = False
    earlier: tuple["Observation", ...] = ()
    instruction: Tensor | None = None


class RobotModel(nn.Module):
    """encode(observation) -> context; forward(tokens, level, role, layout, context, dims) -> prediction of every token.

    A context is computed once per observation; `context.at(index)` gives it for a choice of samples. `words` turns instructions into
    what an observation holds.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config, self.layout = config, config.layout
        self.words = Words(config.language)
        self.members = nn.ModuleList(Embodiment(m.action_size, m.proprio_size, config.normalise) for m in config.members)
        own = Embodiment(*config.sizes(config.acting), config.normalise)
        self.normalise_action, self.normalise_proprio = own.action, own.proprio

    @property
    def hears(self) -> bool:
        """Whether instructions mean anything to it."""
        return self.config.language.hears

    def act_as(self, member: str = "") -> Self:
        """Takes over the normalisers of a member of the mixture, by default of the first that has actions; returns itself."""
        name = member or self.config.acting
        self.config.sizes(name)
        for each, own in zip(self.config.members, self.members, strict=True):
            if each.name == name:
                self.normalise_action, self.normalise_proprio = deepcopy(own.action), deepcopy(own.proprio)
        return self

    def to_actions(self, tokens: Float[Tensor, "B T A"]) -> Float[Tensor, "B T a"]:
        """Actions of the robot at hand, in physical units, from normalised tokens."""
        return self.normalise_action.restore(tokens[..., : self.normalise_action.size])

    def from_actions(self, actions: Float[Tensor, "B T a"]) -> Float[Tensor, "B T A"]:
        """The inverse of `to_actions`: normalised, and padded with zeros to the model's size."""
        return self._wide(self.normalise_action.normalise(actions), self.config.action_size)

    def to_proprio(self, now: Float[Tensor, "B P"], tokens: Float[Tensor, "B n S"]) -> Float[Tensor, "B n P"]:
        """Future proprioception in physical units, from its change since `now`."""
        return now[:, None] + tokens[..., : self.normalise_proprio.size] * self.normalise_proprio.scale

    def from_proprio(self, now: Float[Tensor, "B P"], future: Float[Tensor, "C n P"]) -> Float[Tensor, "C n S"]:
        """The inverse of `to_proprio`, padded with zeros to the model's size; `now` may be one for all."""
        return self._wide((future - now[:, None]) / self.normalise_proprio.scale, self.config.proprio_size)

    @staticmethod
    def _wide(value: Tensor, size: int) -> Tensor:
        return value if value.shape[-1] == size else pad(value, (0, size - value.shape[-1]))

    def _read_of(self, x: Float[Tensor, "B N S"], level: Float[Tensor, "B N"], role: Int[Tensor, "B N"]) -> Float[Tensor, "B N S"]:
        """What the network may read of tokens: nothing of absent ones, not even if it is NaN, and a regression nothing of active ones.

        ValueError when a regression is asked at a level other than 1.
        """
        read = roles.seen(role)
        if self.config.prediction == "regression":
            asked = role == roles.ACTIVE
            if not bool((level[asked] == 1).all()):
                told = "train with patterns@train.objective.patterns=regression, act with policy=regression, sample with rows=1"
                raise ValueError(f"{REGRESSION}, got levels below 1: {told}")
            read = read & ~asked
        return torch.where(read[..., None], x, 0.0)

    def _moments(self, observation: Observation) -> list[tuple[int, Observation | None]]:
        """(tick, what was seen then): the present, 0, then every tick of the history; None where nothing was told."""
        history, earlier, count = self.config.history, observation.earlier, len(observation.proprio)
        if len(earlier) not in (0, len(history)) or any(len(each.proprio) != count or each.earlier for each in earlier):
            told = [len(each.proprio) for each in earlier]
            raise ValueError(
                f"the model looks back {list(history)} ticks: `earlier` holds an observation of {count} samples for each, or none at all, "
                f"got {len(earlier)} of {told} samples"
            )
        ticks = [-tick for tick in history]
        return [(0, observation), *zip(ticks, earlier or [None] * len(history), strict=True)]

    def _proprio(self, observation: Observation) -> Tensor:
        """Normalised proprioception (B, proprio_size)."""
        proprio, normaliser = observation.proprio, self.normalise_proprio
        size = self.config.proprio_size if observation.normalised else normaliser.size
        if proprio.ndim != 2 or proprio.shape[1] != size:
            raise ValueError(f"proprio must be (B, {size}), got {tuple(proprio.shape)}")
        return proprio if observation.normalised else self._wide(normaliser.normalise(proprio), self.config.proprio_size)

    @staticmethod
    def _felt(observation: Observation) -> Bool[Tensor, " B"]:
        """Which samples have proprioception."""
        proprio = observation.proprio
        return observation.present.get("proprio", torch.ones(len(proprio), dtype=torch.bool, device=proprio.device))

    def _heard(self, observation: Observation) -> tuple[Float[Tensor, "B S"] | None, Bool[Tensor, " B"]]:
        """What is said as the model's `hear` tells it, zeros where nothing is (None: without language), and which samples are told."""
        instruction, told = self._told(observation)
        return (torch.where(told[:, None], self.hear(instruction)[:, 0], 0.0) if self.hears else None), told

    def _told(self, observation: Observation) -> tuple[Float[Tensor, "B W"], Bool[Tensor, " B"]]:
        """The instruction, with numbers of about one, and which samples have one."""
        proprio, vector, width = observation.proprio, observation.instruction, self.config.language.width
        if vector is None:
            return proprio.new_zeros(len(proprio), width), torch.zeros(len(proprio), dtype=torch.bool, device=proprio.device)
        if not self.hears:
            raise ValueError("the model was trained without language: leave the instruction out")
        if vector.shape != (len(proprio), width):
            raise ValueError(f"instruction must be ({len(proprio)}, {width}), got {tuple(vector.shape)}")
        there = observation.present.get("instruction", torch.ones(len(vector), dtype=torch.bool, device=vector.device))
        vector = torch.where(there[:, None], vector, 0.0)
        if not bool(torch.isfinite(vector).all()):
            raise ValueError("instruction has numbers that are not finite")
        return vector * width**0.5, there

    def _camera(self, observation: Observation, name: str) -> tuple[Tensor, Tensor]:
        """The image of one camera and where it is there; a missing camera is black and absent."""
        proprio, side = observation.proprio, self.config.autoencoder.image_size
        if name not in observation.images:
            black = proprio.new_zeros(len(proprio), 3, side, side)
            return black, torch.zeros(len(proprio), dtype=torch.bool, device=proprio.device)
        image = observation.images[name]
        if name not in observation.present:
            return image, torch.ones(len(proprio), dtype=torch.bool, device=proprio.device)
        present = observation.present[name]
        # NaN pixels of a dead camera would be masked later on, but not in the gradient of the encoder.
        return torch.where(present[:, None, None, None], image, 0.0), present

    def _own(self, actions: Float[Tensor, "B n A"], dims: Bool[Tensor, "B A"] | None) -> Float[Tensor, "B n A"]:
        """Action tokens with zeros in the numbers that a sample's robot (by default the robot at hand) does not have."""
        own, size = self.normalise_action.size, actions.shape[-1]
        if dims is None and own == size:
            return actions
        there = torch.arange(size, device=actions.device) < own if dims is None else dims[:, None]
        return torch.where(there, actions, 0.0)
