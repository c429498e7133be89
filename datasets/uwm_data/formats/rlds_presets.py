"""What RLDS files do not say and is known of some public datasets: control rate, meaning of the action, success.

Rates: the datasets' own papers and the table of Open X-Embodiment. DROID: its `action` is the commanded Cartesian position
and gripper position (the first six numbers equal action_dict/cartesian_position), whatever the text in features.json says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

RATES_HZ = {
    "berkeley_autolab_ur5": 5,
    "berkeley_cable_routing": 10,
    "bridge": 5,
    "droid": 15,
    "fractal20220817_data": 3,
    "jaco_play": 10,
    "kuka": 10,
    "language_table": 10,
    "roboturk": 10,
    "taco_play": 15,
    "toto": 30,
    "viola": 20,
}
# An `action` that is a dictionary becomes one stream: these parts in this order, where a dataset has them all.
ACTION_PARTS = (
    ("world_vector", "rotation_delta", "gripper_closedness_action"),
    ("world_vector", "rotation_delta", "open_gripper"),
)
_POSE = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
_POSE_UNITS = ("m", "m", "m", "rad", "rad", "rad", "1")


@dataclass(frozen=True)
class Preset:
    """Knowledge about one family of datasets; streams that are not there, or have another size, are passed over."""

    env: str = "unknown"
    robot: str = "unknown"
    action: Mapping[str, object] = field(default_factory=dict)
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    units: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cameras: tuple[str, ...] = ()
    proprio: tuple[str, ...] = ()
    image_orientation: str = "unknown"


_PRESETS = {
    "bridge": Preset(
        env="BridgeData V2 kitchens",
        robot="WidowX 250",
        action={
            "convention": "displacement of the end-effector pose per tick (position, Euler angles), and the gripper's absolute opening",
            "mode": "delta",
            "frame": "robot base",
            "gripper": "1 opens, 0 closes",
        },
        names={"state": _POSE, "action": ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")},
        units={"state": _POSE_UNITS, "action": _POSE_UNITS},
        cameras=("image_0",),  # the only one that every episode has
        proprio=("state",),
        image_orientation="upright",
    ),
    "droid": Preset(
        env="DROID scenes",
        robot="Franka Panda with Robotiq 2F-85",
        action={
            "convention": "commanded end-effector pose (position, Euler angles) and gripper position",
            "mode": "absolute",
            "frame": "robot base",
            "gripper": "0 opens, 1 closes",
        },
        names={"action": _POSE, "cartesian_position": _POSE[:6], "action_dict_cartesian_position": _POSE[:6]},
        units={"action": _POSE_UNITS, "cartesian_position": _POSE_UNITS[:6], "action_dict_cartesian_position": _POSE_UNITS[:6]},
        cameras=("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left"),
        proprio=("cartesian_position", "gripper_position"),
        image_orientation="upright",
    ),
}


def _family(name: str, table: Mapping) -> object:
    return next((known for prefix, known in table.items() if name == prefix or name.startswith(prefix + "_")), None)


def rate_of(name: str) -> float | None:
    """Ticks per second of a public dataset, by its name."""
    return _family(name, RATES_HZ)


def preset_of(name: str) -> Preset:
    """What is known of a dataset of this name; an empty preset for others."""
    return _family(name, _PRESETS) or Preset()


def success_of(texts: Mapping[str, object]) -> bool | None:
    """Success as the paths of DROID tell it (a folder named success or failure), from an episode's own texts."""
    for text in texts.values():
        folders = text.split("/") if isinstance(text, str) else ()
        if ("success" in folders) != ("failure" in folders):
            return "success" in folders
    return None
