"""Checkpoints of uwm as a policy of LeRobot, which imports this package because of its name; importing it registers "uwm"."""

try:
    import lerobot  # noqa: F401
except ImportError as error:
    raise ImportError("lerobot_policy_uwm is a plug-in of LeRobot, which is not installed: pip install lerobot==0.4.4") from error

from lerobot_policy_uwm.configuration_uwm import UwmConfig
from lerobot_policy_uwm.modeling_uwm import UwmPolicy
from lerobot_policy_uwm.processor_uwm import make_uwm_pre_post_processors

__all__ = ["UwmConfig", "UwmPolicy", "make_uwm_pre_post_processors"]
