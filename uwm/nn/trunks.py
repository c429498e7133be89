"""The network of a config: each choice visible."""

from uwm.nn.model import UnifiedModel
from uwm.nn.robot_model import ModelConfig, RobotModel
from uwm.nn.unet_model import UNetModel


def make(config: ModelConfig) -> RobotModel:
    """A robot's model with fresh weights."""
    match config.trunk:
        case "unet":
            return UNetModel(config)
        case _:
            return UnifiedModel(config)
