"""What a robosuite controller config tells about actions: the card's words for robomimic and LIBERO files.

robosuite 1.2 to 1.4: one flat dict a robot ({"type": "OSC_POSE", "control_delta": true, ...}), deltas in the world frame.
robosuite 1.5: a composite ({"type": "BASIC", "body_parts": {"right": {"type": "OSC_POSE", "input_type": "delta", ...}}}), where
each part names its frame. A delta of 1 is `output_max`: 0.05 m and 0.5 rad as delivered. The gripper's -1 opens, +1 closes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ARM_AXES = {"OSC_POSE": ("x", "y", "z", "rx", "ry", "rz"), "IK_POSE": ("x", "y", "z", "rx", "ry", "rz"), "OSC_POSITION": ("x", "y", "z")}
GRIPPER = "-1 opens, +1 closes"


def action_card(env_kwargs: Mapping[str, Any], size: int, absolute: bool = False) -> dict:
    """The card's entry `action` for actions of `size` numbers; "unknown" for what the config does not tell.

    `absolute` is for targets stored beside the actions that were sent: the same controller with absolute input.
    """
    arms = _arms(env_kwargs)
    arm = arms[0] if arms else {}
    kind = str(arm.get("type", "unknown"))
    mode = "absolute" if absolute else _mode(arm, kind)
    names, units = _axes(arms, kind, size, mode)
    unit = "targets in m and rad (axis-angle)" if mode == "absolute" else "1 is the unit told for each number"
    return {
        "names": names,
        "units": units,
        "mode": mode,
        "frame": _frame(arm, kind),
        "gripper": GRIPPER if names or "type" in arm else "unknown",
        "convention": f"robosuite {kind}, {mode}: {unit}" if arm else "unknown",
    }


def control_rate(env_kwargs: Mapping[str, Any]) -> float | None:
    """Actions per second, where told."""
    told = env_kwargs.get("control_freq")
    return float(told) if isinstance(told, int | float) and 0 < told < 1e6 else None


def robots(env_kwargs: Mapping[str, Any]) -> list[str]:
    """The robots' names, where told."""
    told = env_kwargs.get("robots", [])
    return [told] if isinstance(told, str) else [str(name) for name in told] if isinstance(told, list) else []


def _arms(env_kwargs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """One flat controller dict for each arm."""
    told = env_kwargs.get("controller_configs", env_kwargs.get("controller_config"))
    configs = [config for config in (told if isinstance(told, list) else [told]) if isinstance(config, Mapping)]
    arms: list[Mapping[str, Any]] = []
    for config in configs:
        parts = config.get("body_parts", config.get("body_parts_controller_configs"))
        if not isinstance(parts, Mapping):
            arms.append({"input_type": "delta" if config.get("control_delta", True) else "absolute", "is_flat": True, **config})
            continue
        parts = parts["arms"] if isinstance(parts.get("arms"), Mapping) else parts
        arms += [parts[side] for side in ("right", "left") if isinstance(parts.get(side), Mapping)]
    return arms * len(robots(env_kwargs)) if len(arms) == len(configs) == 1 and len(robots(env_kwargs)) > 1 else arms


def _mode(arm: Mapping[str, Any], kind: str) -> str:
    if kind.endswith("VELOCITY"):
        return "velocity"
    if kind in ARM_AXES or kind == "JOINT_POSITION":
        told = arm.get("input_type", "unknown")
        return told if told in ("delta", "absolute") else "unknown"
    return "unknown"


def _frame(arm: Mapping[str, Any], kind: str) -> str:
    if kind.startswith("JOINT"):
        return "joints"
    if kind not in ARM_AXES:
        return "unknown"
    told = "world" if arm.get("is_flat") else arm.get("input_ref_frame", "base")
    return {"base": "robot base", "world": "world"}.get(str(told), "unknown")


def _axes(arms: list[Mapping[str, Any]], kind: str, size: int, mode: str) -> tuple[list[str], list[str]]:
    """Names and units a number, or nothing where they do not add up to the actions' size."""
    axes = ARM_AXES.get(kind, ())
    if not axes or size != len(arms) * (len(axes) + 1):
        return [], []
    prefix = "" if mode == "absolute" else "d"
    names, units = [], []
    for number, arm in enumerate(arms):
        suffix = f"_{number}" if len(arms) > 1 else ""
        names += [prefix + axis + suffix for axis in axes] + [f"gripper{suffix}"]
        units += [_unit(arm, place, mode) for place in range(len(axes))] + ["1"]
    return names, units


def _unit(arm: Mapping[str, Any], place: int, mode: str) -> str:
    unit = "m" if place < 3 else "rad"
    if mode != "delta":
        return unit
    scale = arm.get("output_max")
    scale = scale[place] if isinstance(scale, list) and place < len(scale) else scale
    return f"{scale:g} {unit}" if isinstance(scale, int | float) and abs(scale) < 1e6 and arm.get("input_max", 1) == 1 else f"? {unit}"
