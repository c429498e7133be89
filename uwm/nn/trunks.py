"""The network of a config: each choice visible."""

from uwm.nn.act_model import ActModel
from uwm.nn.model import UnifiedModel
from uwm.nn.robot_model import ModelConfig, RobotModel
from uwm.nn.vector_model import VectorModel


def make(config: ModelConfig) -> RobotModel:
    """A robot's model with fresh weights."""
    match config.trunk:
        case "unet" | "mlp":
            return VectorModel(config)
        case "act":
            return ActModel(config)
        case _:
            return UnifiedModel(config)
