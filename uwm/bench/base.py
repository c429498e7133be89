"""Models that several benches measure, trained once by the commands that a user would type, or of random weights; and their rollouts."""

import contextlib
import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import gymnasium
import torch

from uwm.learn.checkpoint import CheckpointError
from uwm.nn import trunks
from uwm.nn.autoencoder import AutoencoderConfig
from uwm.nn.backbone import BackboneConfig
from uwm.nn.robot_model import ModelConfig, RobotModel
from uwm.robot import evaluate as evaluation
from uwm.robot.policy import Policy

LIFT = (Path("runs/demo/model"), Path("runs/base/lift/model"))
LIFT_DATA = Path("runs/bench/lift400.zarr")
AT_ONCE = 8  # rollouts side by side, which share the calls of a policy
# world of configs: its episodes, how many, and how many steps
UNIFIED = {
    "lift": (LIFT_DATA, 400, 1200),
    "can": (Path("runs/bench/can200.zarr"), 200, 4600),
    "square": (Path("runs/bench/square200.zarr"), 200, 4600),
}


def lift() -> Path:
    """A Lift policy from images: that of the demo, or of `uwm train out=runs/base/lift`. CheckpointError when there is none."""
    found = next((path for path in LIFT if (path / "checkpoint.json").is_file()), None)
    if found is None:
        raise CheckpointError(f"there is no checkpoint in {' or '.join(map(str, LIFT))}: `python3 run.py demo` or `uwm demo` makes one")
    return found


def made(*command: str) -> None:
    """Runs a command of this package or its data; such a command goes on where it stopped, and does nothing when it is done."""
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)


def unified(world: str) -> Path:
    """A model of every mode from two cameras, of a world in `UNIFIED`: data and weights are made the first time, in an hour or two."""
    data, episodes, steps = UNIFIED[world]
    out = Path("runs/bench") / f"unified_{world}"
    made("-m", "uwm.cli", "collect", f"world={world}", f"out={data}", f"episodes={episodes}")
    made("-m", "uwm.cli", "train", f"data={data}", f"out={out}", f"train.steps={steps}", "threads=1", "logger=off")
    return out / "model"


def weights_of(checkpoint: str | Path) -> str:
    """A checksum of the averaged weights in a checkpoint's folder: what figures of a policy depend on."""
    return hashlib.sha256((Path(checkpoint) / "average.safetensors").read_bytes()).hexdigest()


def rolled_out(
    make: Callable[[], gymnasium.Env], policy: Policy, seeds: Sequence[int], watched: bool = False, at_once: int = AT_ONCE
) -> list[evaluation.Rollout]:
    """Rollouts without a delay, side by side in worlds that `make` makes."""
    with contextlib.ExitStack() as stack:
        envs = [stack.enter_context(contextlib.closing(make())) for _ in seeds[:at_once]]
        return list(evaluation.rollouts(envs, policy, seeds, watched))


def random_model(cameras: tuple[str, ...], image_size: int, proprio_size: int = 2, **sizes) -> RobotModel:
    """A small model with random weights, for two numbers of actions: it moves, and knows nothing."""
    backbone, autoencoder = BackboneConfig(16, 2, 2, registers=2, waist=8), AutoencoderConfig(image_size, 8, 2)
    config = ModelConfig(cameras, proprio_size, action_size=2, grid=2, backbone=backbone, autoencoder=autoencoder, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = trunks.make(config)
        for parameter in model.write.parameters():
            parameter.data.normal_(std=0.1)
    return model.eval()
