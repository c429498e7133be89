"""A model of a few thousand weights and random batches for it, for tests of everything above the network."""

from dataclasses import replace

import numpy as np
import torch

from uwm.core.patterns import Pattern
from uwm.learn.objective import Batch
from uwm.nn.autoencoder import AutoencoderConfig
from uwm.nn.backbone import BackboneConfig
from uwm.nn.model import UnifiedModel
from uwm.nn.robot_model import ModelConfig, Observation
from uwm.nn.stream_model import StreamModel, StreamModelConfig, initialised

CAMERAS = ("agentview", "wrist")
PATTERNS = (
    Pattern(0.5, "ladder", "absent", chunk=2, committed=2),
    Pattern(0.3, "constant", "constant"),
    Pattern(0.2, "absent", "constant"),
)


def model(seed: int = 0, action_size: int = 2, proprio_size: int = 2, image_size: int = 32, **sizes) -> UnifiedModel:
    """Random weights everywhere, the heads included, so that nothing is trivially zero."""
    torch.manual_seed(seed)
    sizes = {"cameras": CAMERAS, "video_frames": (4, 8), **sizes}
    config = ModelConfig(
        proprio_size=proprio_size, action_size=action_size, past=2, horizon=8, grid=2, **sizes,
        backbone=BackboneConfig(width=16, depth=2, heads=2, registers=2, waist=8),
        autoencoder=AutoencoderConfig(image_size, 8, 2),
    )  # fmt: skip
    built = UnifiedModel(config)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return built.eval()


def feeling(**sizes) -> UnifiedModel:
    """A model without cameras that foresees its three numbers of proprioception up to four ticks ahead."""
    return model(proprio_size=3, cameras=(), video_frames=(), state_frames=(1, 2, 3, 4), **sizes)


def stream_model(*streams, registers: int = 0, width: int = 32, spread: float = 0.1) -> StreamModel:
    """A model over any streams; random weights everywhere, as above."""
    built = initialised(StreamModelConfig(streams, backbone=BackboneConfig(width, 2, 2, registers=registers, waist=16)), 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return built.eval()


def trained(folder, card: dict, proprio_size: int):
    """A checkpoint of two steps on random episodes, without cameras: its motion means nothing, its shapes fit the robot of `card`."""
    import uwm_data
    from uwm import cli

    generator, size = np.random.default_rng(0), len(card["action"]["names"])
    kinds = {"proprio": (proprio_size, "state"), "action": (size, "action")}
    streams = {name: uwm_data.StreamSpec((numbers,), "float32", card["rate_hz"], kind) for name, (numbers, kind) in kinds.items()}
    with uwm_data.EpisodeStore.create(folder / "arm.zarr", streams, card) as store:
        for _ in range(4):
            arrays = {"proprio": generator.normal(size=(31, proprio_size)), "action": 0.1 * generator.normal(size=(30, size))}
            store.append({name: value.astype("f4") for name, value in arrays.items()}, {"success": True})
    training = ["model=tiny", "model.video_frames=[]", "patterns@train.objective.patterns=actions", "train.steps=2", "train.batch=4"]
    run = ["train", f"data={folder / 'arm.zarr'}", f"out={folder}", *training, "logger=off", "train.precision=float32"]
    assert cli.main(run) == 0
    return folder / "model"


def observation(batch: int, seed: int = 0, config: ModelConfig | None = None) -> Observation:
    config = config or model().config
    generator = torch.Generator().manual_seed(seed)
    side = config.autoencoder.image_size
    moments = [
        Observation(
            {name: torch.rand(batch, 3, side, side, generator=generator) for name in config.cameras},
            torch.randn(batch, config.proprio_size, generator=generator),
        )
        for _ in (0, *config.history)
    ]
    return replace(moments[0], earlier=tuple(moments[1:]))


def batch(net: UnifiedModel, count: int = 4, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    layout = net.layout
    clean = torch.randn(count, layout.tokens, layout.size, generator=generator)
    return Batch(observation(count, seed, net.config), clean, torch.ones(count, layout.tokens, dtype=torch.bool))
