"""What LeRobot knows of the policy before it is loaded: where its checkpoint is, how its buffer runs, what it sees and gives."""

from dataclasses import dataclass, fields

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.optim.optimizers import AdamWConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from uwm.learn import checkpoint as checkpoints
from uwm.robot.policy import PolicyConfig


@PreTrainedConfig.register_subclass("uwm")
@dataclass
class UwmConfig(PreTrainedConfig):
    """`checkpoint`: a folder of `uwm train`; `member`: whose robot of a mixture; the rest as in `uwm.robot.policy.PolicyConfig`.

    Features are read from the checkpoint, and the buffer is made as short as what it was trained on. `seed` begins the first
    episode, seed + 1 the next.
    """

    checkpoint: str = ""
    member: str = ""
    kind: str = "streaming"
    rows: int = 12
    chunk: int = 3
    chunks: int = 6
    past: int = 2
    primer: str = "denoise"
    primer_rows: int = 0
    step: str = "ddim"
    shape: float = 1.0
    warm: float = 1.0
    seed: int = 0

    def __post_init__(self):
        self.device = self.device or "cpu"
        super().__post_init__()
        if self.device != "cpu":
            raise ValueError(f"uwm acts on the CPU, got device {self.device!r}: set --policy.device=cpu")
        # The model holds its own normalisers, so nothing may be normalised before it.
        self.normalization_mapping = dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)
        if self.checkpoint and not self.input_features:
            self.input_features, self.output_features = features(self.checkpoint, self.member)
            trained = checkpoints.describe(self.checkpoint)["card"]["model"]
            self.chunks = max(1, min(self.chunks, trained["horizon"] // self.chunk))
            self.past = min(self.past, trained["past"])

    @property
    def policy(self) -> PolicyConfig:
        """The same settings in uwm's words."""
        return PolicyConfig(**{each.name: getattr(self, each.name) for each in fields(PolicyConfig) if hasattr(self, each.name)})

    def validate_features(self) -> None:
        """ValueError unless the checkpoint is there to tell them."""
        if not self.checkpoint:
            raise ValueError("--policy.checkpoint must name a checkpoint folder of uwm train")

    def get_optimizer_preset(self) -> AdamWConfig:
        """LeRobot wants one; nothing is trained here."""
        return AdamWConfig()

    def get_scheduler_preset(self) -> None:
        """None."""

    @property
    def observation_delta_indices(self) -> None:
        """The present observation only."""

    @property
    def action_delta_indices(self) -> list[int]:
        """Ticks of the horizon."""
        return list(range(self.chunk * self.chunks))

    @property
    def reward_delta_indices(self) -> None:
        """None."""


def features(checkpoint: str, member: str = "") -> tuple[dict[str, PolicyFeature], dict[str, PolicyFeature]]:
    """(input, output) features of a checkpoint of uwm, by LeRobot's names."""
    model = checkpoints.describe(checkpoint)["card"]["model"]
    own = next((each for each in model.get("members", ()) if each["name"] == member), model)
    side = model["autoencoder"]["image_size"]
    seen = {f"{OBS_IMAGES}.{camera}": PolicyFeature(FeatureType.VISUAL, (3, side, side)) for camera in model["cameras"]}
    seen[OBS_STATE] = PolicyFeature(FeatureType.STATE, (own["proprio_size"],))
    return seen, {ACTION: PolicyFeature(FeatureType.ACTION, (own["action_size"],))}
