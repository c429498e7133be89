"""What a run is: one frozen dataclass each, filled from a config by `uwm.core.config.from_mapping`."""

import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from uwm.core.config import unknown
from uwm.learn.augment import AugmentConfig
from uwm.learn.autoencode import AutoencodeConfig
from uwm.learn.distillation import DistilConfig
from uwm.learn.finetune import AdaptConfig
from uwm.learn.loop import TrainConfig
from uwm.nn import pretrained
from uwm.nn.autoencoder import AutoencoderConfig
from uwm.nn.backbone import BackboneConfig
from uwm.nn.codecs import NormaliseConfig
from uwm.nn.eyes import EyesConfig
from uwm.nn.language import LanguageConfig
from uwm.nn.mlp import MLPSizes
from uwm.nn.robot_model import Member, ModelConfig
from uwm.nn.unet import UNetSizes
from uwm.robot.chunking import ChunkingConfig
from uwm.robot.policy import PolicyConfig
from uwm.robot.safety import SafetyConfig

ROBOTS = ("simulated", "replay", "franka", "dds", "lerobot")


@dataclass(frozen=True)
class WorldConfig:
    """Which world, which cameras, how it is drawn; `proprio`: "state" where the whole state is felt (`uwm_envs.FELT`)."""

    name: str = "Lift"
    cameras: tuple[str, ...] = ("agentview", "wrist")
    image_size: int = 64
    render: str = "fast"
    max_steps: int | None = None
    proprio: str | None = None


@dataclass(frozen=True)
class CollectRun:
    """`episodes` demonstrations with seeds from `seed` on, by `workers` processes; `noise` of the expert."""

    world: WorldConfig = field(default_factory=WorldConfig)
    out: str = "runs/lift.zarr"
    episodes: int = 100
    seed: int = 0
    noise: float = 0.08
    strategy: str = "random"
    workers: int = 2


@dataclass(frozen=True)
class SizeConfig:
    """The model's own choices; sizes of actions, proprioception and images come from the store.

    `latent_path`: the folder of a pretrained autoencoder in place of our own of `latent` and `latent_channels`.
    """

    past: int = 2
    horizon: int = 18
    history: tuple[int, ...] = ()
    video_frames: tuple[int, ...] = (8, 16)
    state_frames: tuple[int, ...] = ()
    grid: int = 4
    patch: int = 2
    merge: int = 1
    prediction: str = "velocity"
    path: str = "cosine"
    noise_shift: float = 2.0
    latent: int = 8
    latent_channels: int = 24
    latent_path: str = ""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    normalise: NormaliseConfig = field(default_factory=NormaliseConfig)
    trunk: str = "transformer"
    unet: UNetSizes = field(default_factory=UNetSizes)
    mlp: MLPSizes = field(default_factory=MLPSizes)
    eyes: EyesConfig = field(default_factory=EyesConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)

    def model(
        self, cameras: tuple[str, ...], proprio_size: int, action_size: int, image_size: int, members: tuple[Member, ...] = ()
    ) -> ModelConfig:
        """The whole config of a model in a world of these sizes."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        own |= {"eyes": self.eyes.resolved(), "language": self.language.resolved()}
        channels, latent, path = (own.pop(name) for name in ("latent_channels", "latent", "latent_path"))
        autoencoder = pretrained.described(path, image_size) if path else AutoencoderConfig(image_size, channels, latent)
        return ModelConfig(cameras, proprio_size, action_size, autoencoder=autoencoder, members=members, **own)


@dataclass(frozen=True)
class StreamsConfig:
    """Which streams of the data are used; what is left out (null) is as the data's own card suggests.

    `cameras`: names, or {the model's name: the data's name}; `proprio`: state streams, joined in this order; `action`: the
    stream that a policy sends, "" for none.
    """

    cameras: dict[str, str] | tuple[str, ...] | None = None
    proprio: tuple[str, ...] | None = None
    action: str | None = None


@dataclass(frozen=True)
class MemberConfig:
    """One dataset of a mixture; `options` and `declare` as in `TrainRun`; `use_actions=false` makes it video without actions.

    `episodes`: the share of its training episodes that is used, in (0, 1], one at least, drawn from `train.seed`; a smaller share is part
    of a larger one, and what is held out is the same for all. So one store may be two members: few episodes with actions, all as video.
    """

    name: str
    data: str
    weight: float = 1.0
    streams: StreamsConfig = field(default_factory=StreamsConfig)
    use_actions: bool = True
    episodes: float = 1.0
    options: dict[str, Any] | None = None
    declare: dict[str, Any] | None = None

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            raise ValueError(f"the name of a member has letters, digits, _ and - only, got {self.name!r}")
        if not 0 < self.episodes <= 1:
            raise ValueError(f"episodes of {self.name} is a share of its training episodes, in (0, 1], got {self.episodes:g}")


@dataclass(frozen=True)
class MixtureConfig:
    """Several datasets for one model.

    `by`: dataset (weights of members), task (every task the same, or as in `tasks`), balanced, proportional (to windows);
    `rate_hz`: ticks of the model, null for those of the first member with actions, "own" for each member's own, as where each robot acts
    at its rate; `normaliser`: "member", each its own, or "shared" by members whose action conventions agree.
    """

    members: tuple[MemberConfig, ...] = ()
    by: str = "dataset"
    tasks: dict[str, float] | None = None
    rate_hz: float | Literal["own"] | None = None
    normaliser: str = "member"

    def __post_init__(self):
        names = [member.name for member in self.members]
        if len(set(names)) != len(names):
            raise ValueError(f"members of a mixture need different names, got {names}")
        if self.normaliser not in ("member", "shared"):
            raise ValueError(f"normaliser must be 'member' or 'shared', got {self.normaliser!r}")
        if self.rate_hz not in (None, "own") and not self.rate_hz > 0:
            raise ValueError(f"rate_hz must be positive, got {self.rate_hz}")


@dataclass(frozen=True)
class TrainRun:
    """Data in, a checkpoint folder out.

    `data`: a store or a dataset of any format that can be read, which is converted once into `out`/data; a `mixture` with
    members stands in its place. `options`: of the reader of another format, e.g. {filter_key: valid}. `declare`: what the card
    leaves unknown, e.g. {image_orientation: upright, action: {mode: delta}}. `only_success`: failed episodes are left out;
    `failures_teach`: they teach what follows from actions, under the patterns that imitate none. `image_size`: pixels a side, null for
    the data's own where the card tells one, else 64. `cache_gb`: memory for frames and latents. `latents`: a folder that keeps the
    latents of training frames on disk, for later runs too; "" for memory. `init`: a checkpoint to begin with (finetuning), of the same
    model or with room for the data (`uwm.finetuning`): its averaged weights, normalisers and autoencoder; `adapt`: which of them learn
    on. `distil`: begin with a teacher's, and learn to say in one call where its path ends. `camera_dropout`: the share of training samples
    that do without a camera, for each by itself, though a sample keeps one at least; and the share that forgets an earlier observation.
    `instruction_dropout`: the share without an instruction.
    """

    data: str = "runs/lift.zarr"
    out: str = "runs/lift"
    validation: float = 0.08
    only_success: bool = True
    failures_teach: bool = False
    camera_dropout: float = 0.05
    instruction_dropout: float = 0.1
    logger: str = "offline"
    threads: int = 0
    image_size: int | None = None
    cache_gb: float = 2.0
    latents: str = ""
    options: dict[str, Any] | None = None
    declare: dict[str, Any] | None = None
    streams: StreamsConfig = field(default_factory=StreamsConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    model: SizeConfig = field(default_factory=SizeConfig)
    autoencoder: AutoencodeConfig = field(default_factory=AutoencodeConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    init: str = ""
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    distil: DistilConfig = field(default_factory=DistilConfig)

    def __post_init__(self):
        if not (0 <= self.camera_dropout <= 1 and 0 <= self.instruction_dropout <= 1):
            got = f"{self.camera_dropout} and {self.instruction_dropout}"
            raise ValueError(f"camera_dropout and instruction_dropout are shares of the samples, in [0, 1], got {got}")
        if self.init and self.distil.teacher:
            raise ValueError(f"a student begins with its teacher's weights, not with others: got init={self.init} and a distil.teacher")
        if self.adapt.kind != "full" and not self.init:
            raise ValueError(f"adapt.kind={self.adapt.kind} fixes what was learned before: set init to the checkpoint to begin with")


@dataclass(frozen=True)
class EvalRun:
    """`rollouts` closed-loop episodes of a checkpoint, seeds from `seed` on, in `workers` processes.

    `member`: whose robot to act for, of a checkpoint of a mixture; "" for the first with actions. `instruction`: what to do, for a model
    with language; null: what the world itself asks for, "": nothing.
    """

    checkpoint: str = "runs/lift/model"
    world: WorldConfig = field(default_factory=WorldConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    rollouts: int = 50
    seed: int = 100_000
    workers: int = 2
    keep_videos: int = 2
    out: str | None = None
    member: str = ""
    instruction: str | None = None


@dataclass(frozen=True)
class ControlRun:
    """`checkpoint` (or the policy behind the URL `server`) drives `robot` (one of ROBOTS, made with `options`) for `duration_s`
    or `episodes`, whichever is over first.

    `world` and `seed` are those of a simulated robot, whose episodes end with success or its own limit. `record`: a store
    that episodes are added to; `bag`, `audit`, `monitor`: see configs/control.yaml. `force`: begin although the budget does
    not fit. `out`: the summary as JSON. `instruction`: what to do, for a model with language; null: what the
    robot's card says, "": nothing.
    """

    checkpoint: str = "runs/lift/model"
    member: str = ""
    robot: str = "simulated"
    options: dict[str, Any] | None = None
    rate_hz: float | None = None
    world: WorldConfig = field(default_factory=WorldConfig)
    policy: PolicyConfig = field(default_factory=lambda: PolicyConfig(chunks=3, loose=0.2))
    controller: ChunkingConfig = field(default_factory=ChunkingConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    server: str | None = None
    certificate: str | None = None
    duration_s: float = 60.0
    episodes: int | None = None
    seed: int = 200_000
    worker: Literal["process", "thread"] = "process"
    threads: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    record: str | None = None
    bag: str | None = None
    audit: str | None = None
    monitor: str = "none"
    force: bool = False
    out: str | None = None
    instruction: str | None = None

    def __post_init__(self):
        if self.robot not in ROBOTS:
            raise ValueError(unknown(self.robot, ROBOTS, "robot"))
        if not self.duration_s > 0 or (self.episodes is not None and self.episodes < 1) or self.threads < 1:
            got = f"{self.duration_s}, {self.episodes}, {self.threads}"
            raise ValueError(f"duration_s must be above 0, episodes and threads at least 1, got {got}")


class ControlError(ValueError):
    """A run that cannot begin, or that ended in trouble: what happened, and what to try."""
