"""What every store must tell about itself, what it does not tell, and in what two cards disagree.

    cameras, image_orientation          which eyes, which way up
    rate_hz, rates_hz                   ticks per second, and frames per second of each stream
    action: names, units, convention    what the numbers of an action are, in words,
            mode, frame, gripper        and in words that a program compares (below)
    policy                              the streams that a policy would use
    checksum                            added by the store: it names the content

"unknown" (for names and units: an empty list) stands where nobody told. It never disagrees with anything: what is not
known cannot be refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from uwm_data.streams import StreamSpec, reference_stream

UNKNOWN = "unknown"
# `mode` of an action: what its numbers are relative to. "mixed": not the same for all dimensions; the convention says which.
MODES = ("delta", "absolute", "velocity", "mixed", UNKNOWN)
# `frame`: in whose axes. Another simulator's own frame may be named too; these are the words for the usual ones.
FRAMES = ("world", "robot base", "gripper", "joints", "pixels", UNKNOWN)
# `gripper`: which number opens; "none" where there is no gripper.
GRIPPERS = ("-1 opens, +1 closes", "+1 opens, -1 closes", "0 opens, 1 closes", "1 opens, 0 closes", "none", UNKNOWN)
ACTION_KEYS = ("names", "units", "convention", "mode", "frame", "gripper")
# What has to agree before weights, data and a world may meet.
FIELDS = ("env", "robot", "cameras", "image_size", "image_orientation", "render_profile", "rate_hz", "proprio", "action")


def complete(card: Mapping, streams: Mapping[str, StreamSpec]) -> dict:
    """The card with every key that a store must tell: from the streams where they tell it, else "unknown".

    Nothing that the card says already is changed.
    """
    cameras = [name for name, spec in streams.items() if spec.kind == "video"]
    filled = {
        "cameras": cameras,
        "image_orientation": UNKNOWN if cameras else "none",
        "rate_hz": streams[reference_stream(streams)].rate_hz,
        "rates_hz": {name: spec.rate_hz for name, spec in streams.items()},
        "units": {name: list(spec.units) for name, spec in streams.items()},
        "policy": _policy(cameras, streams),
        "robot": UNKNOWN,
        "env": UNKNOWN,
        **card,
    }
    acts = filled["policy"].get("action") if isinstance(filled["policy"], Mapping) else None
    told = card.get("action", {})
    if acts in streams and isinstance(told, Mapping):
        spec = streams[acts]
        named = {"names": list(spec.names), "units": list(spec.units)}
        filled["action"] = {**dict.fromkeys(ACTION_KEYS, UNKNOWN), **named, **told}
    return filled


def _policy(cameras: list[str], streams: Mapping[str, StreamSpec]) -> dict:
    states = [name for name, spec in streams.items() if spec.kind == "state"]
    acts = reference_stream(streams)
    # Worlds of ours keep what only experts may see in a second state stream beside `proprio`.
    proprio = ["proprio"] if "proprio" in states else states
    return {"cameras": cameras, "proprio": proprio, "action": acts if streams[acts].kind == "action" else None}


def missing(card: Mapping) -> list[str]:
    """What a card does not tell, as dotted names: a reader of the data has to find it out from somewhere else."""
    wanted = ["env", "robot", "rate_hz", "cameras", "image_orientation", "policy"]
    policy = card.get("policy")
    if "action" in card or (isinstance(policy, Mapping) and policy.get("action")):
        wanted += [f"action.{key}" for key in ACTION_KEYS]
    return [name for name in wanted if not _is_told(name, _at(card, name))]


def differences(card: Mapping, other: Mapping, fields: Iterable[str] = FIELDS) -> dict[str, tuple[Any, Any]]:
    """{dotted name: (value here, value there)} for everything in `fields` that both cards tell and that is not the same.

    A field may be dotted ("action.mode"). What only one of them tells is no difference, so a card of an older version
    still fits; 20 and 20.0 are the same, and so are lists and tuples.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for name in fields:
        found |= _compared(name, _at(card, name), _at(other, name))
    return found


def sentence(found: Mapping[str, tuple[Any, Any]], here: str, there: str) -> str:
    """The differences in words, for an error: "action.mode is 'delta' in lift.zarr and 'absolute' in can.zarr; ..."."""
    return "; ".join(f"{name} is {ours!r} in {here} and {theirs!r} in {there}" for name, (ours, theirs) in found.items())


def _compared(name: str, ours: Any, theirs: Any) -> dict[str, tuple[Any, Any]]:
    if not (_is_told(name, ours) and _is_told(name, theirs)):
        return {}
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        inside = [_compared(f"{name}.{key}", ours[key], theirs[key]) for key in ours if key in theirs]
        return {key: value for part in inside for key, value in part.items()}
    return {} if _plain(ours) == _plain(theirs) else {name: (ours, theirs)}


def _is_told(name: str, value: Any) -> bool:
    # No cameras is something to know; no names of dimensions is not.
    is_empty = isinstance(value, list | tuple) and not value and name != "cameras"
    return value is not None and value != UNKNOWN and not is_empty


def _at(card: Mapping, name: str) -> Any:
    here: Any = card
    for part in name.split("."):
        here = here.get(part) if isinstance(here, Mapping) else None
    return here


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
