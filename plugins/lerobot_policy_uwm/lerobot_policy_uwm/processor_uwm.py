"""LeRobot's pipelines around the policy: batches and devices only, because the model normalises by itself."""

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
from lerobot.utils.constants import POLICY_POSTPROCESSOR_DEFAULT_NAME, POLICY_PREPROCESSOR_DEFAULT_NAME

from lerobot_policy_uwm.configuration_uwm import UwmConfig


def make_uwm_pre_post_processors(config: UwmConfig, dataset_stats: dict | None = None) -> tuple:
    """(before, after) the policy. `dataset_stats` are not needed: the checkpoint has its own."""
    into = [RenameObservationsProcessorStep(rename_map={}), AddBatchDimensionProcessorStep(), DeviceProcessorStep(device=config.device)]
    back = {"to_transition": policy_action_to_transition, "to_output": transition_to_policy_action}
    return (
        PolicyProcessorPipeline(steps=into, name=POLICY_PREPROCESSOR_DEFAULT_NAME),
        PolicyProcessorPipeline(steps=[DeviceProcessorStep(device="cpu")], name=POLICY_POSTPROCESSOR_DEFAULT_NAME, **back),
    )
