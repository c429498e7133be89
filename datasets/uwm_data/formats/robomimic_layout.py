"""Which dataset of a robomimic file becomes which stream, and what a writer of ours kept beside robomimic's own layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from uwm_data.errors import FormatError
from uwm_data.formats.demonstrations import Column, Demo, Survey, agrees_when_sampled, evenly, stream_names
from uwm_data.formats.hdf5 import Hdf5File, json_object
from uwm_data.formats.robomimic_encoding import KEPT, VERSION
from uwm_data.streams import KINDS, StreamSpec, check_names

SAMPLED_DEMOS = 12
ACTIONS = ("actions", "actions_abs")
NAMED = {"actions": "action", "actions_abs": "action_abs", "rewards": "reward", "dones": "done"}
SWAPPED = {"actions": "action_recorded", "actions_abs": "action"}


@dataclass(frozen=True)
class Kept:
    """What the attribute of our writer told: {path: (stream, spec)}, the card, paths that it made up; nothing in other files."""

    streams: dict[str, tuple[str, StreamSpec]] = field(default_factory=dict)
    card: dict = field(default_factory=dict)
    derived: tuple[str, ...] = ()

    @property
    def action(self) -> str:
        """The path of the actions that a policy sends."""
        policy = self.card.get("policy")
        acts = policy.get("action") if isinstance(policy, Mapping) else None
        return next((path for path, (name, _) in self.streams.items() if name == acts and path in ACTIONS), "actions")

    @property
    def rate_hz(self) -> float | None:
        """The rate of those actions."""
        return self.streams[self.action][1].rate_hz if self.action in self.streams else None


def kept_in(file: Hdf5File) -> Kept:
    """Read our writer's attribute; FormatError when it is of a later version, or damaged."""
    told = json_object(file.attribute("", KEPT, ""))
    if not told:
        return Kept()
    if told.get("version") != VERSION:
        raise FormatError(f"{file.path}: its attribute {KEPT} has version {told.get('version')!r}; {VERSION} is known here: a newer uwm?")
    try:
        specs = {name: dict(spec) for name, spec in told["streams"].items()}
        streams = {spec.pop("path"): (name, StreamSpec(**spec)) for name, spec in specs.items()}
        check_names(told["streams"])
        return Kept({path: kept for path, kept in streams.items() if path}, dict(told["card"]), tuple(map(str, told["derived"])))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{file.path}: its attribute {KEPT} is damaged ({error}); the file reads without that attribute") from error


class Layout:
    """Which dataset becomes which stream: `streams`, `columns`, and what finds no place."""

    def __init__(
        self,
        file: Hdf5File,
        demos: list[Demo],
        survey: Survey,
        kept: Kept,
        actions: str,
        images: bool,
        next_obs: str,
        upside_down: bool,
        rate: float,
    ):
        self.file = file
        self.demos = demos
        self.survey = survey
        self.next_obs = next_obs
        self.left_out: list[str] = []
        self._followed: dict[str, str] = {}
        self.streams: dict[str, StreamSpec] = {}
        self.columns: dict[str, Column] = {}
        paths = [path for path in survey.timed if not path.startswith("next_obs/") and path not in kept.derived]
        paths = [path for path in paths if images or not self._is_picture(path)]
        specs = {path: self._spec(path, rate, kept) for path in paths}
        names = stream_names(paths, self._names(paths, kept, actions))
        places = {path: place for place, path in enumerate(kept.streams)} if actions == kept.action else {}
        for path in sorted(paths, key=lambda path: (places.get(path, len(places)), KINDS.index(specs[path].kind), path != actions)):
            self.streams[names[path]] = specs[path]
            self.columns[names[path]] = Column(path, self._closing(path), next_obs == "check", upside_down and self._is_picture(path))
        self.action = names[actions]
        self._note_next_obs()

    def _names(self, paths: list[str], kept: Kept, actions: str) -> dict[str, str]:
        """The names that are not simply the last part of a path."""
        names = {path: NAMED.get(path) or self._short(path) for path in paths}
        names |= {path: name for path, (name, _) in kept.streams.items() if path in paths}
        if actions != kept.action:
            known = SWAPPED if actions == "actions_abs" else NAMED
            names |= {path: known[path] for path in ACTIONS if path in paths}
        return {path: name for path, name in names.items() if name}

    def _spec(self, path: str, rate: float, kept: Kept) -> StreamSpec:
        """The stream at a path; what a writer of ours told about it counts where it fits the data."""
        shape, dtype, count = self.survey.timed[path]
        _, told = kept.streams.get(path, ("", None))
        fits = told is not None and (told.shape, told.dtype) == (shape, dtype)
        kind = told.kind if fits else self._kind(path)
        found = StreamSpec(
            shape, dtype, rate, kind, closing=bool(self._closing(path)) or kind == "action", optional=count < len(self.demos)
        )
        if not fits:
            return found
        return replace(found, units=told.units, names=told.names, optional=found.optional or told.optional)

    def _is_picture(self, path: str) -> bool:
        return path.startswith("obs/") and len(self.survey.timed[path][0]) == 3

    def _kind(self, path: str) -> str:
        if path in ACTIONS or path.startswith("action_dict/"):
            return "action"
        if path.startswith("obs/"):
            return "video" if self._is_picture(path) and self.survey.timed[path][1] == "uint8" else "state"
        return "label"

    def _short(self, path: str) -> str:
        if path.startswith("action_dict/"):
            return re.sub(r"\W", "_", "action_" + path.removeprefix("action_dict/"), flags=re.ASCII)
        short = path.removeprefix("obs/").removesuffix("_image")
        return short if self._kind(path) == "video" and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", short) else ""

    def _closing(self, path: str) -> str:
        if path not in self._followed:
            self._followed[path] = self._found_closing(path)
        return self._followed[path]

    def _found_closing(self, path: str) -> str:
        """The dataset whose last row is the frame after the last action, or nothing."""
        following = f"next_{path}"
        if not path.startswith("obs/") or self.next_obs == "ignore" or self.survey.timed.get(following) != self.survey.timed[path]:
            return ""
        if self.next_obs == "check":
            for demo in evenly([demo for demo in self.demos if path in demo.datasets], SAMPLED_DEMOS):
                if following not in demo.datasets or not agrees_when_sampled(self.file, demo, Column(path, following)):
                    self.left_out.append(f"{following}: in {demo.name} it is not {path} one tick later, so it is not used")
                    return ""
        return following

    def _note_next_obs(self) -> None:
        used = {column.closing for column in self.columns.values()}
        told = " ".join(self.left_out)
        rest = [path for path in self.survey.timed if path.startswith("next_obs/") and path not in used and f"{path}:" not in told]
        if rest:
            self.left_out.append(f"{', '.join(rest)}: not used")
