"""Ticks of a small robot for tests of what listens to a controller; also in processes that are killed, so it imports little."""

from types import SimpleNamespace

import numpy as np

from uwm.robot.interface import ActionSpec, Reading, RobotSpec, SensorSpec
from uwm.robot.safety import Verdict

INFINITE = np.full(2, np.inf)
SPEC = RobotSpec(
    "toy arm",
    20.0,
    ActionSpec(("x", "gripper"), ("m", ""), -np.ones(2), np.ones(2), INFINITE, INFINITE, "delta", (1,)),
    {"front": SensorSpec((6, 5, 3), "uint8", 10.0), "proprio": SensorSpec((3,), "float32", 20.0, ("m", "m", "rad"))},
)


def make_tick(index, **changes):
    """A tick whose numbers are all different; the camera is new in every second one."""
    now_s, frame = 100.0 + 0.05 * index, index // 2
    values = {
        "index": index, "due_s": now_s, "began_s": now_s + 0.001,
        "readings": {
            "front": Reading(np.random.default_rng(frame).integers(0, 256, (6, 5, 3), dtype=np.uint8), 100.0 + 0.1 * frame),
            "proprio": Reading(np.arange(3, dtype=np.float32) + index, now_s - 0.003),
        },
        "proposed": np.array([0.1 * index, -1.0], np.float32), "sent": np.array([0.01 * index, -1.0], np.float32),
        "verdict": Verdict(np.zeros(2, np.float32), "send", "limited by velocity", ("velocity",)),
        "latency_s": 0.02 + index, "calls": index, "queue": 3,
    }  # fmt: skip
    return SimpleNamespace(**{**values, **changes})
