"""Drive a policy of an installed plug-in by LeRobot's own means alone: found, made, loaded, run between its processors.

Asked: {"site": where the plug-in is installed, "type", "folder": a folder for --policy.path or a checkpoint, "observations": folder
with (T, ...) arrays by LeRobot's keys, images uint8 (T, H, W, 3), "task", "other": what to do, "out"}.
Arrays in `out`: actions (T, A) through the loaded folder, again (T, A) after reset, chunk (1, C, A), other (T, A) told so.
"""

import torchvision_operators  # isort: skip # noqa: F401
import sys

import answering
import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.utils.control_utils import predict_action
from lerobot.utils.import_utils import register_third_party_plugins

request = answering.asked()
before = request["type"] in PreTrainedConfig.get_known_choices()
sys.path.append(request["site"])
register_third_party_plugins()
kind = get_policy_class(request["type"])
config = PreTrainedConfig.from_pretrained(request["folder"])  # as --policy.path does
policy = kind.from_pretrained(request["folder"], config=config)
processors = make_pre_post_processors(config, pretrained_path=request["folder"])
fresh = make_pre_post_processors(config)
observations = answering.load(request["observations"])


def episode(into, back, task=request["task"]):
    """Actions (T, A): one call a tick, as lerobot-record makes them."""
    policy.reset()
    ticks = [{key: values[t] for key, values in observations.items()} for t in range(len(observations["observation.state"]))]
    said = [predict_action(tick, policy, torch.device("cpu"), into, back, use_amp=False, task=task) for tick in ticks]
    return np.stack([np.asarray(each).reshape(-1) for each in said])


policy.episode = -1  # the next reset begins the first episode
first = episode(*processors)
second = episode(*fresh)
policy.reset()
batch = {key: torch.from_numpy(values[:1]) for key, values in observations.items()}
batch = {key: value.permute(0, 3, 1, 2).float() / 255 if value.ndim == 4 else value for key, value in batch.items()}
chunk = policy.predict_action_chunk({**batch, "task": [request["task"]]})
policy.episode = -1
other = episode(*processors, request["other"])
try:
    policy.forward(batch)
    refusal = ""
except NotImplementedError as error:
    refusal = str(error)
answering.save(request["out"], {"actions": first, "again": second, "chunk": chunk.numpy(), "other": other})
answering.answer(
    known_before=before, kind=f"{kind.__module__}.{kind.__name__}", numpy=np.__version__,
    refusal=refusal, trainable=len(policy.get_optim_params()),
    inputs={key: list(feature.shape) for key, feature in config.input_features.items()},
    outputs={key: list(feature.shape) for key, feature in config.output_features.items()},
)  # fmt: skip
