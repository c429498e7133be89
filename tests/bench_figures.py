"""Tiny models, batches and made-up figures for the tests of `uwm.bench`."""

import numpy as np
import torch

from uwm.learn.objective import Batch
from uwm.nn.autoencoder import AutoencoderConfig
from uwm.nn.backbone import BackboneConfig
from uwm.nn.model import UnifiedModel
from uwm.nn.robot_model import ModelConfig, Observation

CONFIG = ModelConfig(
    cameras=("left", "right"), proprio_size=5, action_size=3, past=2, horizon=8, video_frames=(3, 6), grid=2,
    backbone=BackboneConfig(width=32, depth=2, heads=2, ratio=2, registers=2, waist=16),
    autoencoder=AutoencoderConfig(image_size=32, channels=8, latent=4),
)  # fmt: skip


def tiny_model():
    """A model with random weights, also in the output layers, which start at zero."""
    torch.manual_seed(0)
    model = UnifiedModel(CONFIG).eval()
    for linear in model.write.values():
        torch.nn.init.normal_(linear.weight, std=0.1)
    return model


def windows(model, count=6, seed=0):
    """A batch of random windows, their true future frames and their present ones."""
    torch.manual_seed(seed)
    frames = {camera: torch.rand(count, 2, 3, 32, 32) for camera in CONFIG.cameras}
    present = {camera: torch.rand(count, 3, 32, 32) for camera in CONFIG.cameras}
    tokens = {"action": torch.randn(count, 10, 3), **{c: model.video.encode(frames[c]) for c in CONFIG.cameras}}
    valid = torch.ones(count, model.layout.tokens, dtype=torch.bool)
    batch = Batch(Observation(present, torch.randn(count, 5)), model.layout.pack(tokens), valid, torch.randn(count, 10, 3))
    return batch, frames, present


def closed_loop(successes, calls, rollouts=50):
    """What `evaluate.summary` and `policy_latency` give."""
    return {
        "success": successes / rollouts, "successes": successes, "interval": (0.86, 0.99), "rollouts": rollouts,
        "seeds": list(range(100, 100 + rollouts)), "failed_seeds": [100], "mean_ticks": 61.0, "calls_per_action": calls,
        "latency_ms": {"p50": 4.0 * calls, "p95": 5.0 * calls, "p99": 6.0 * calls},
    }  # fmt: skip


def action_figures(relative):
    row = {"rmse": relative, "mean_rmse": 1.0, "relative_error": relative}
    return {**row, "interval": [relative - 0.05, relative + 0.05], "dimensions": [row, {**row, "relative_error": None}]}


def image_figures(relative):
    row = {"mse": relative / 100, "copy_mse": 0.01, "floor_mse": 0.001, "relative_error": relative, "relative_floor": 0.1}
    cameras = {camera: {**row, "frames": {"3": row, "6": row}} for camera in CONFIG.cameras}
    return {**row, "interval": [relative - 0.05, relative + 0.05], "cameras": cameras}


def demo_figures():
    """Everything that the report wants except its gates."""
    card = {"env": "Lift", "robot": "Panda", "rate_hz": 20, "cameras": list(CONFIG.cameras), "versions": {"mujoco": "3.9"}}
    return {
        "streaming": closed_loop(48, 0.5), "chunked": closed_loop(49, 3.0), "inverse": action_figures(0.42),
        "policy": action_figures(0.7), "forward": image_figures(0.6), "video": image_figures(0.8),
        "joint": {"action": action_figures(0.7), "image": image_figures(0.8)}, "windows": 256, "rollouts": 50,
        "seconds": 1000.0, "card": card, "settings": {"rows": 12},
    }  # fmt: skip


def examples(count=2):
    """Random example frames as `bench.modes.measure` gives them."""
    random = np.random.default_rng(0)
    found = {"window": np.arange(count), "ticks": np.array([3, 6])}
    for camera in CONFIG.cameras:
        found[f"present/{camera}"] = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        for kind in ("true", "forward", "video", "joint"):
            found[f"{kind}/{camera}"] = random.integers(0, 256, (count, 2, 32, 32, 3), dtype=np.uint8)
    return {**found, **{f"actions/{kind}": random.normal(size=(count, 6, 3)) for kind in ("true", "joint")}}
