"""What replay buffers do not say and is known of the public ones: Push-T. Source: the dataset's paper and its environment."""

from __future__ import annotations

from collections.abc import Mapping

PUSHT_SHAPES = {"img": (96, 96, 3), "state": (5,), "action": (2,)}
PUSHT_RATE_HZ = 10.0
PUSHT_CARD = {
    "env": "Push-T",
    "robot": "round pusher",
    "image_orientation": "upright",
    "action": {
        "names": ["x", "y"],
        "units": ["px", "px"],
        "convention": "position that the pusher is to reach, in a picture of 512 x 512",
        "mode": "absolute",
        "frame": "pixels",
        "gripper": "none",
    },
}
PUSHT_NAMES = {
    "action": ("x", "y"),
    "state": ("agent_x", "agent_y", "block_x", "block_y", "block_angle"),
    "agent_pos": ("agent_x", "agent_y"),
}
PUSHT_UNITS = {"action": ("px", "px"), "state": ("px", "px", "px", "px", "rad"), "agent_pos": ("px", "px"), "keypoint": ("px", "px")}


def is_pusht(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Are these (key -> shape of a row) the arrays of Push-T?"""
    return all(shapes.get(key) == shape for key, shape in PUSHT_SHAPES.items())
