"""An RLDS dataset as a Source: records to episodes.

A step holds an observation and the action that was taken there. What the last step's action is, the files do not say:

    real        o0 a0 | o1 a1 | o2 a2            T = 3 actions, 3 observations; streams end with the last action
    padding     o0 a0 | o1 a1 | o2 (zeros)       T = 2 actions, o2 is the closing observation

`last_action="auto"` takes what this package wrote down when it wrote the dataset; for others it looks at the first episodes:
padding, if each of them marks its last step, has only zeros (or NaN) as that step's action, and moves at all before it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uwm_data.errors import FormatError, StoreError
from uwm_data.formats import RawEpisode
from uwm_data.formats.rlds_features import FEATURES_FILE, STEPS, Feature, read_features, read_json
from uwm_data.formats.rlds_folder import Place, Records, chosen_splits, dataset_of
from uwm_data.formats.rlds_presets import ACTION_PARTS, Preset, preset_of, rate_of, success_of
from uwm_data.formats.rlds_values import decoded, steps_in, with_shape_of
from uwm_data.formats.tf_example import Values, decode
from uwm_data.formats.tfrecord import read_record
from uwm_data.formats.ticks import from_rows
from uwm_data.formats.turning import upright
from uwm_data.streams import StreamSpec, check_episode, check_names

OWN_FILE = "uwm.json"  # what RLDS has no place for, in datasets that this package wrote
EPISODE = "episode_metadata/"
OWN_FEATURE = EPISODE + "uwm"
OWN_VERSION = 1
FLAGS = ("is_first", "is_last", "is_terminal")
_LOOKED_AT = 8  # episodes, to learn whether the last action is padding
_FEW_NUMBERS = 64  # episode fields up to this size go into the metadata


@dataclass(frozen=True)
class Layout:
    """How the streams of episodes lie in the features of records.

    `features`: stream -> leaf; `joined`: stream -> leaves whose values stand beside each other in it; `own`: this package
    wrote the dataset, and `rows_close` says that its episodes have one row behind the last action.
    """

    streams: Mapping[str, StreamSpec]
    features: Mapping[str, Feature]
    joined: Mapping[str, Sequence[Feature]]
    rate_hz: float
    own: bool = False
    rows_close: bool = False


class RldsSource:
    """Episodes of an RLDS folder (see `rlds.read`). The places of all records are known; each is read when asked for."""

    def __init__(self, folder: Path, split: str, rate_hz: float | None, last_action: str, action: Sequence[str], images_stored: str):
        self.path = folder
        name, version, splits = dataset_of(folder)
        chosen, absent = chosen_splits(folder, splits, split)
        leaves, unread = read_features(folder / FEATURES_FILE)
        self._records, self._stored = Records(chosen), images_stored
        if not len(self._records):
            raise FormatError(f"{folder} has shards and no episode in them")
        first = self._records.place(0)
        with _named_place(first):
            found = self._features(first)
            leaves = [with_shape_of(leaf, found.get(leaf.path, []), leaf.path) for leaf in leaves]
        self._steps = [leaf for leaf in leaves if leaf.path.startswith(STEPS + "/")]
        self._episode = [leaf for leaf in leaves if not leaf.path.startswith(STEPS + "/")]
        if not self._steps:
            raise FormatError(f"{folder / FEATURES_FILE} has no `steps`: it is a dataset of TensorFlow Datasets, and not one of episodes")
        self._own = _own_part(folder)
        self._preset = preset_of(name)
        self._layout = self._own_layout() if self._own else self._foreign_layout(name, rate_hz, last_action, action)
        self.streams = dict(self._layout.streams)
        self.card = self._card(name, version)
        large = [f"{leaf.path}: {leaf.kind}s of {leaf.shape} for a whole episode" for leaf in self._episode if not is_small(leaf)]
        self.left_out = tuple(absent + unread + large)

    def __len__(self) -> int:
        return len(self._records)

    def close(self) -> None:
        """Nothing is open between two reads."""

    def read(self, index: int) -> RawEpisode:
        """One episode; FormatError names file, episode and feature."""
        if not 0 <= index < len(self):
            raise FormatError(f"{self.path} has episodes 0 to {len(self) - 1}, asked for {index}")
        place = self._records.place(index)
        with _named_place(place):
            return self._episode_of(self._features(place), place)

    def _features(self, place: Place) -> dict[str, Values]:
        return decode(read_record(place.file, place.start, place.stop))

    def _episode_of(self, found: Mapping[str, Values], place: Place) -> RawEpisode:
        rows = self._rows(found)
        values = {name: _of(found, leaf) for name, leaf in self._layout.features.items()}
        for name, leaves in self._layout.joined.items():
            values[name] = np.concatenate([_as_float(_of(found, leaf)) for leaf in leaves], axis=1)
        if self._layout.own:
            return self._own_episode(found, values, rows)
        arrays = {name: self._turned(name, kept[: self._frames(name, rows)]) for name, kept in values.items()}
        return RawEpisode(check_episode(self.streams, arrays), self._meta(found, place, rows))

    def _rows(self, found: Mapping[str, Values]) -> int:
        """Steps of an episode: the same for every feature."""
        counts = {leaf.path: steps_in(leaf, found.get(leaf.path, []), leaf.path) for leaf in self._steps}
        rows = max(counts.values())
        for path, count in counts.items():
            if count != rows:
                raise FormatError(f"{path} has {count} steps, others have {rows}")
        if not rows:
            raise FormatError("it has no steps")
        return rows

    def _frames(self, name: str, rows: int) -> int:
        """Rows of a foreign episode that belong to a stream: the last action may be padding."""
        return rows - 1 if self.streams[name].kind == "action" and self._layout.rows_close else rows

    def _turned(self, name: str, frames: np.ndarray) -> np.ndarray:
        return upright(frames, self._stored) if self.streams[name].kind == "video" else frames

    # ---- datasets that this package wrote ----------------------------------------------------------------------

    def _own_layout(self) -> Layout:
        try:
            streams = {name: StreamSpec(**spec) for name, spec in self._own["streams"].items()}
            check_names(streams)
            leaves = {leaf.path: leaf for leaf in self._steps}
            features = {name: leaves[f"{STEPS}/{self._own['features'][name]}"] for name in streams}
            rate = float(self._own["rate_hz"])
            if any(spec.rate_hz > rate for spec in streams.values()):
                raise ValueError("a stream has more frames than there are steps")
            return Layout(streams, features, {}, rate, True, bool(self._own["rows_close"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise FormatError(f"{self.path / OWN_FILE} does not fit {FEATURES_FILE} ({error!r}); delete it to read plain RLDS") from error

    def _own_episode(self, found: Mapping[str, Values], values: Mapping[str, np.ndarray], rows: int) -> RawEpisode:
        leaf = next((leaf for leaf in self._episode if leaf.path == OWN_FEATURE), Feature(OWN_FEATURE, "text"))
        try:
            told = json.loads("".join(decoded(leaf, found.get(leaf.path, []), leaf.path)))
            absent, meta = set(told["absent"]), dict(told["meta"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(f"{OWN_FEATURE} cannot be understood ({error})") from error
        ticks = rows - self._layout.rows_close
        arrays = {}
        for name, spec in self.streams.items():
            arrays[name] = values[name][:0] if name in absent else from_rows(values[name], spec, ticks, self._layout.rate_hz)
        return RawEpisode(check_episode(self.streams, arrays), meta)

    # ---- everybody else's --------------------------------------------------------------------------------------

    def _foreign_layout(self, name: str, rate_hz: float | None, last_action: str, action: Sequence[str]) -> Layout:
        rate = rate_hz or rate_of(name)
        if not rate:
            raise FormatError(
                f"{self.path}: RLDS does not say how many steps a second has, and {name!r} is not known here; give rate_hz=..."
            )
        leaves = [leaf for leaf in self._steps if leaf.kind != "text" and leaf.name not in FLAGS]
        features = _named(leaves)
        joined = self._joined(features, action)
        pads = last_action == "padding" or (last_action == "auto" and self._pads(features, joined))
        specs = {}
        for stream in sorted([*features, *joined], key=lambda stream: (stream != "action", not stream.startswith("action"), stream)):
            leaf = features.get(stream)
            shape = leaf.shape if leaf else (sum(math.prod(part.shape) for part in joined[stream]),)
            kind = _kind(leaf) if leaf else "action"
            specs[stream] = StreamSpec(
                shape, leaf.dtype if leaf else "float32", rate, kind,
                _fitting(self._preset.units.get(stream), shape), _fitting(self._preset.names.get(stream), shape), closing=pads,
            )  # fmt: skip
        check_names(specs)
        return Layout(specs, features, joined, float(rate), rows_close=pads)

    def _joined(self, features: Mapping[str, Feature], action: Sequence[str]) -> dict[str, list[Feature]]:
        """The stream `action`, where the dataset has a dictionary instead: its parts beside each other."""
        parts = {leaf.name: leaf for leaf in features.values()}
        if action:
            if unknown := [path for path in action if path not in parts or len(parts[path].shape) > 1]:
                raise FormatError(f"{self.path} has no vector {unknown[0]!r} for the action; there are {', '.join(parts)}")
            if list(action) == ["action"]:
                return {}
            return {"action": [parts[path] for path in action]}
        below = [path for path in parts if path.startswith("action/")]
        if "action" in features or not below:
            return {}
        for known in ACTION_PARTS:
            if all(f"action/{part}" in parts for part in known):
                return {"action": [parts[f"action/{part}"] for part in known]}
        raise FormatError(
            f"{self.path}: its action is a dictionary ({', '.join(below)}); say which parts, in which order, a policy sends: "
            f"action={','.join(below[:3])}"
        )

    def _pads(self, features: Mapping[str, Feature], joined: Mapping[str, Sequence[Feature]]) -> bool:
        """The rule for last_action="auto" (see the top of the file)."""
        leaves = [features["action"]] if "action" in features else list(joined.get("action", []))
        last = next((leaf for leaf in self._steps if leaf.path == f"{STEPS}/is_last"), None)
        if not leaves or not last:
            return False
        for place in map(self._records.place, range(min(_LOOKED_AT, len(self)))):
            with _named_place(place):
                found = self._features(place)
                self._rows(found)
                actions = np.concatenate([_as_float(_of(found, leaf)) for leaf in leaves], axis=1)
                marks = _of(found, last)
            if len(actions) < 2 or not marks[-1:].any() or np.nan_to_num(actions[-1]).any() or not actions[:-1].any():
                return False
        return True

    def _meta(self, found: Mapping[str, Values], place: Place, rows: int) -> dict:
        episode = {leaf.path.removeprefix(EPISODE): _small(leaf, found) for leaf in self._episode if is_small(leaf)}
        texts = {
            leaf.name: _constant(decoded(leaf, found.get(leaf.path, []), leaf.path))
            for leaf in self._steps if leaf.kind == "text"
        }  # fmt: skip
        flags = {
            leaf.name: np.flatnonzero(_of(found, leaf)).tolist()
            for leaf in self._steps if leaf.name in FLAGS
        }  # fmt: skip
        kept = {"episode": {key: value for key, value in episode.items() if value is not None}, "steps": texts, "flags": flags}
        meta = {"source": {"format": "rlds", "split": place.split, "index": place.number}, "rlds": kept}
        spoken = [text for path, text in sorted(texts.items()) if "instruction" in path and isinstance(text, str) and text]
        success = success_of(episode)
        return {**meta, **({"instruction": spoken[0]} if spoken else {}), **({} if success is None else {"success": success})}

    def _card(self, name: str, version: str) -> dict:
        names = {stream: leaf.name for stream, leaf in self._layout.features.items()}
        source = {
            "format": "rlds",
            "version": version,
            "name": name,
            "names": names,
            "texts": [leaf.name for leaf in self._steps if leaf.kind == "text"],
            "episode": {
                leaf.path.removeprefix(EPISODE): [leaf.dtype, list(leaf.shape)]
                for leaf in self._episode if is_small(leaf) and leaf.path != OWN_FEATURE
            },
        }  # fmt: skip
        if self._own:
            card = self._own.get("card")
            card = card if isinstance(card, dict) else {}
            return {**card, "source": {**source, **({"source": card["source"]} if "source" in card else {})}}
        if self._layout.joined:
            source["derived"] = {stream: [leaf.name for leaf in leaves] for stream, leaves in self._layout.joined.items()}
        if self._stored:
            source["images_stored"] = self._stored
        source["last_action"] = "padding" if self._layout.rows_close else "real"
        return {**_described(self._preset, self.streams, self._stored), "rate_hz": self._layout.rate_hz, "source": source}


@contextmanager
def _named_place(place: Place) -> Iterator[None]:
    """Errors inside become FormatErrors that begin with file and episode."""
    try:
        yield
    except StoreError as error:
        raise FormatError(f"{place.file}, episode {place.number} of split {place.split!r}: {error}") from error


def _own_part(folder: Path) -> dict:
    if not (folder / OWN_FILE).is_file():
        return {}
    own = read_json(folder / OWN_FILE)
    if own.get("version") != OWN_VERSION:
        raise FormatError(
            f"{folder / OWN_FILE} has version {own.get('version')!r}, this package reads {OWN_VERSION}; update it, or delete the file"
        )
    return own


def _named(leaves: Sequence[Feature]) -> dict[str, Feature]:
    """Leaves by the names of their streams; where two would have the same, both have their whole path."""

    def short(leaf):
        return _identifier(leaf.name.removeprefix("observation/"))

    counts: dict[str, int] = {}
    for leaf in leaves:
        counts[short(leaf)] = counts.get(short(leaf), 0) + 1
    named = {}
    for leaf in leaves:
        name = short(leaf) if counts[short(leaf)] == 1 else _identifier(leaf.name)
        if name in named:
            raise FormatError(f"{leaf.path} and {named[name].path} would both be the stream {name!r}; rename one")
        named[name] = leaf
    return named


def _identifier(path: str) -> str:
    name = re.sub(r"[^A-Za-z0-9_]", "_", path)
    return name if name[:1].isalpha() else f"s_{name}"


def _kind(leaf: Feature) -> str:
    if leaf.kind == "image":
        return "video"
    if leaf.name == "action" or leaf.name.startswith(("action/", "action_dict/")):
        return "action"
    return "state" if leaf.name.startswith("observation/") and "embedding" not in leaf.name else "label"


def _fitting(names: Sequence[str] | None, shape: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(names) if names and shape and len(names) == shape[-1] else ()


def _of(found: Mapping[str, Values], leaf: Feature) -> np.ndarray:
    return decoded(leaf, found.get(leaf.path, []), leaf.path)


def _as_float(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), math.prod(values.shape[1:])).astype(np.float32)


def _constant(texts: Sequence[str]) -> str | list[str]:
    return texts[0] if len(set(texts)) == 1 else list(texts)


def is_small(leaf: Feature) -> bool:
    """Whether an episode field goes into the metadata."""
    return leaf.kind == "text" or (leaf.kind == "tensor" and math.prod(leaf.shape) <= _FEW_NUMBERS)


def _small(leaf: Feature, found: Mapping[str, Values]) -> object:
    """An episode field as JSON holds it; None for what is not there."""
    values = decoded(leaf, found.get(leaf.path, []), leaf.path)
    if not len(values):
        return None
    if leaf.kind == "text":
        return _constant(values)
    return values[0].tolist() if np.isfinite(values[0]).all() else str(values[0].tolist())


def _described(preset: Preset, streams: Mapping[str, StreamSpec], images_stored: str) -> dict:
    """The card's part about robot, cameras and action."""
    cameras = [name for name, spec in streams.items() if spec.kind == "video"]
    proprio = [name for name, spec in streams.items() if spec.kind == "state" and len(spec.shape) == 1 and spec.dtype.startswith("float")]
    known = [name for name in preset.cameras if name in cameras], [name for name in preset.proprio if name in proprio]
    policy = {"cameras": known[0] or cameras, "proprio": known[1] or proprio}
    action = {"names": [], "units": [], "convention": "unknown", "mode": "unknown", "frame": "unknown", "gripper": "unknown"}
    if "action" in streams:
        policy["action"] = "action"
        action |= {"names": list(streams["action"].names), "units": list(streams["action"].units)}
        if streams["action"].names:  # the action has the size that the preset knows
            action |= dict(preset.action)
    orientation = "upright" if images_stored else preset.image_orientation
    return {"env": preset.env, "robot": preset.robot, "image_orientation": orientation, "action": action, "policy": policy}
