"""A replay buffer of diffusion_policy as a Source.

    data/img (N, 96, 96, 3)   data/state (N, 5)   data/action (N, 2)   ...      all N long
    meta/episode_ends (E,)    3  7  12                                          episode 1 is rows 3 .. 6

Row k holds an observation and the action taken there; there is no closing observation. Images that are kept as float32
hold whole numbers from 0 to 255: they become uint8 video, each episode is looked at, and writing the format again makes
float32 of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from uwm_data.errors import FormatError, StoreError
from uwm_data.formats import RawEpisode
from uwm_data.formats.diffusion_policy_presets import PUSHT_CARD, PUSHT_NAMES, PUSHT_RATE_HZ, PUSHT_UNITS, is_pusht
from uwm_data.formats.diffusion_policy_videos import EpisodeVideos
from uwm_data.formats.ticks import from_rows
from uwm_data.formats.turning import upright
from uwm_data.formats.zarr_v2 import Array, entries_of, read_json
from uwm_data.streams import StreamSpec, check_episode, check_names

ENDS = "meta/episode_ends"
OWN_ATTRIBUTE = "uwm"
OWN_LINES = "uwm_episodes.jsonl"
OWN_VERSION = 1
_LABELS = ("n_contacts", "timestamp", "stage", "reward", "rewards", "done", "dones", "success", "terminated", "truncated")
_MOST_EPISODES = 1 << 24
_LARGEST_LINES = 1 << 30
_SMALLEST_IMAGE = 8
UNFINISHED = "if its conversion was interrupted, run that again"


class ReplayBufferSource:
    """Episodes of a replay buffer, folder or zip (see `diffusion_policy.read`)."""

    def __init__(
        self,
        path: Path,
        rate_hz: float | None,
        images_stored: str,
        float_images: str,
        videos: Path | None = None,
        video_size: tuple[int, int] | None = None,
    ):
        self.path, self._store, self._images_stored = path, entries_of(path), images_stored
        self.left_out: list[str] = []
        if read_json(self._store, f"{ENDS}/.zarray") is None:
            raise FormatError(f"{path} has no {ENDS} of zarr format 2, so it is no replay buffer; {UNFINISHED}")
        self._arrays = self._found()
        self._ends = self._checked_ends()
        self._stored: dict[str, str] = {}
        self._own = self._own_part()
        self._videos = EpisodeVideos(videos, len(self), video_size) if videos else None
        if self._own:
            self._from_own()
        else:
            self._from_keys(rate_hz, float_images)
        check_names(self.streams)

    def __len__(self) -> int:
        return len(self._ends)

    def close(self) -> None:
        """Let go of the zip, if it is one."""
        self._store.close()

    def read(self, index: int) -> RawEpisode:
        """One episode; FormatError names path, episode and array."""
        if not 0 <= index < len(self):
            raise FormatError(f"{self.path} has episodes 0 to {len(self) - 1}, asked for {index}")
        start, stop = int(self._ends[index - 1]) if index else 0, int(self._ends[index])
        try:
            rows = {name: self._rows(name, start, stop) for name in self._keys}
            arrays = (
                self._own_arrays(rows, index, stop - start) if self._own else rows | self._derived(rows) | self._filmed(index, stop - start)
            )
            meta = self._lines[index]["meta"] if self._own else {"source": {"format": "diffusion-policy", "index": index}}
            return RawEpisode(check_episode(self.streams, arrays), meta)
        except StoreError as error:
            raise FormatError(f"{self.path}, episode {index} (rows {start} to {stop - 1}): {error}") from error

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        values = self._arrays[self._keys[name]].rows(start, stop)
        if name in self._stored:
            values = _whole(values, self._keys[name])
        return upright(values, self._images_stored) if self.streams[name].kind == "video" else values

    # ---- what is there -----------------------------------------------------------------------------------------

    def _found(self) -> dict[str, Array]:
        arrays = {}
        for key in self._store.children("data"):
            if key.startswith("."):
                continue
            if not self._store.has(f"data/{key}/.zarray"):
                self.left_out.append(f"data/{key}: it is no array")
                continue
            arrays[key] = Array(self._store, f"data/{key}")
        if not arrays:
            raise FormatError(f"{self.path} has no array below data/; copy it again")
        lengths = {key: array.shape[0] for key, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise FormatError(f"{self.path}: the arrays have different lengths, {lengths}; {UNFINISHED}")
        return arrays

    def _checked_ends(self) -> np.ndarray:
        array, steps = Array(self._store, ENDS), next(iter(self._arrays.values())).shape[0]
        if len(array.shape) != 1 or array.dtype.kind not in "iu":
            raise FormatError(f"{self.path}: {ENDS} holds {array.dtype} of shape {array.shape}, expected whole numbers, one an episode")
        if array.shape[0] > min(_MOST_EPISODES, steps):
            raise FormatError(f"{self.path}: {ENDS} tells of {array.shape[0]} episodes, and the arrays have {steps} rows")
        ends = array.rows(0, array.shape[0]).astype(np.int64)
        if len(ends) == 0:
            raise FormatError(f"{self.path} has no episodes; {UNFINISHED}")
        lengths = np.diff(ends, prepend=0)
        if (lengths <= 0).any():
            first = int(np.argmax(lengths <= 0))
            before = ends[first - 1] if first else 0
            raise FormatError(f"{self.path}: {ENDS} must grow, and episode {first} ends at {ends[first]} behind {before}; it is damaged")
        if ends[-1] != steps:
            raise FormatError(f"{self.path}: {ENDS} ends at {ends[-1]}, and the arrays have {steps} rows; {UNFINISHED}")
        return ends

    # ---- buffers that this package wrote -----------------------------------------------------------------------

    def _own_part(self) -> dict:
        own = (read_json(self._store, ".zattrs") or {}).get(OWN_ATTRIBUTE)
        if own is None:
            return {}
        if not isinstance(own, dict) or own.get("version") != OWN_VERSION:
            raise FormatError(f"{self.path}: its attribute {OWN_ATTRIBUTE!r} is of another version; update this package, or delete it")
        return own

    def _from_own(self) -> None:
        try:
            self.streams = {name: StreamSpec(**spec) for name, spec in self._own["streams"].items()}
            self._keys, self._rate = {name: self._own["keys"][name] for name in self.streams}, float(self._own["rate_hz"])
            self._stored = {name: str(self._own["stored"][name]) for name in self._own["stored"] if name in self.streams}
            card = dict(self._own["card"])
            odd = [key for key in self._keys.values() if key not in self._arrays]
            if odd or any(spec.rate_hz > self._rate for spec in self.streams.values()):
                raise ValueError(f"stream {odd[0]} has no array" if odd else "a stream has more frames than there are rows")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise FormatError(f"{self.path}: its attribute {OWN_ATTRIBUTE!r} does not fit the arrays ({error!r}); delete it") from error
        self._lines = own_lines(self._store.read(OWN_LINES, _LARGEST_LINES) or b"", self.path)
        if [line["end"] for line in self._lines] != self._ends.tolist():
            raise FormatError(
                f"{self.path}: {OWN_LINES} tells of other episodes than {ENDS}; delete it and the attribute {OWN_ATTRIBUTE!r}"
            )
        source = {"format": "diffusion-policy", "version": "zarr 2", "name": self.path.name, "names": self._keys, "stored": self._stored}
        self.card = {**card, "source": {**source, **({"source": card["source"]} if "source" in card else {})}}

    def _own_arrays(self, rows: Mapping[str, np.ndarray], index: int, ticks: int) -> dict[str, np.ndarray]:
        absent = self._lines[index]["absent"]
        return {
            name: values[:0] if name in absent else from_rows(values, self.streams[name], ticks, self._rate)
            for name, values in rows.items()
        }

    # ---- everybody else's --------------------------------------------------------------------------------------

    def _from_keys(self, rate_hz: float | None, float_images: str) -> None:
        self._keys = _names(self._arrays)
        shapes = {key: array.shape[1:] for key, array in self._arrays.items()}
        self._pusht = is_pusht(shapes)
        self._rate = rate_hz or (PUSHT_RATE_HZ if self._pusht else self._measured_rate())
        if float_images == "auto":
            self._stored = {name: self._arrays[key].dtype.name for name, key in self._keys.items() if self._is_float_video(key)}
        kinds = {name: self._kind(name, key) for name, key in self._keys.items()}
        self.streams = {
            name: self._spec(name, self._arrays[self._keys[name]], kinds[name])
            for name in sorted(self._keys, key=lambda name: (name != "action", kinds[name] != "action"))
        }
        if self._pusht and "agent_pos" not in self.streams:
            state = self.streams["state"]
            self.streams["agent_pos"] = StreamSpec((2,), state.dtype, self._rate, "state", *_told("agent_pos", 2), closing=False)
        self._cameras = {}
        for camera in self._videos.cameras if self._videos else ():
            name = f"camera_{camera}" if camera[:1].isdecimal() else camera
            if name in self.streams:
                raise FormatError(f"{self.path}: the videos {camera}.mp4 and data/{self._keys.get(name, name)} would both be {name!r}")
            self._cameras[name], self.streams[name] = camera, self._videos.spec(camera, self._rate)
            self.left_out.append(f"videos/*/{camera}.mp4: frames between two rows, and sound")
        self.card = self._card()

    def _filmed(self, index: int, rows: int) -> dict[str, np.ndarray]:
        return {name: self._videos.read(index, camera, rows, self._rate) for name, camera in self._cameras.items()}

    def _derived(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A policy may see where the pusher is, and not where the block is: the first two numbers of the state."""
        return {"agent_pos": rows["state"][:, :2]} if "agent_pos" in self.streams and "agent_pos" not in rows else {}

    def _measured_rate(self) -> float:
        """Rows a second out of the timestamps of the first episode."""
        array = self._arrays.get("timestamp")
        if array is not None and len(array.shape) == 1 and self._ends[0] > 1:
            step = float(np.median(np.diff(array.rows(0, int(self._ends[0])).astype(np.float64))))
            if step > 0 and np.isfinite(1 / step):
                return round(1 / step, 3) or 1 / step
        raise FormatError(f"{self.path}: a replay buffer does not say how many rows a second has; give rate_hz=...")

    def _is_float_video(self, key: str) -> bool:
        array = self._arrays[key]
        if array.dtype.kind != "f" or not _is_picture(array.shape[1:]):
            return False
        first = array.rows(0, min(array.chunks[0], int(self._ends[0])))
        try:
            _whole(first, key)
        except FormatError:
            self.left_out.append(f"data/{key}: it looks like images and holds no whole numbers from 0 to 255, so it is kept as numbers")
            return False
        return True

    def _kind(self, name: str, key: str) -> str:
        array = self._arrays[key]
        if name in self._stored or (array.dtype == np.uint8 and _is_picture(array.shape[1:])):
            return "video"
        if name == "action" or name.startswith("action_"):
            return "action"
        return "label" if name in _LABELS else "state"

    def _spec(self, name: str, array: Array, kind: str) -> StreamSpec:
        told = _told(name, array.shape[-1]) if self._pusht and len(array.shape) > 1 else ((), ())
        return StreamSpec(array.shape[1:], "uint8" if kind == "video" else array.dtype.name, self._rate, kind, *told, closing=False)

    def _card(self) -> dict:
        cameras = [name for name, spec in self.streams.items() if spec.kind == "video"]
        proprio = [name for name, spec in self.streams.items() if spec.kind == "state" and len(spec.shape) == 1 and "float" in spec.dtype]
        known = PUSHT_CARD if self._pusht else {"env": "unknown", "robot": "unknown", "image_orientation": "unknown", "action": {}}
        unknown = dict.fromkeys(("convention", "mode", "frame", "gripper"), "unknown")
        source = {"format": "diffusion-policy", "version": "zarr 2", "name": self.path.name, "names": self._keys, "stored": self._stored}
        if self._images_stored:
            source["images_stored"] = self._images_stored
        return {
            **known,
            "image_orientation": "upright" if self._images_stored else known["image_orientation"],
            "rate_hz": self._rate,
            "action": {"names": [], "units": [], **unknown, **known["action"]},
            "policy": {
                "cameras": cameras,
                "proprio": ["agent_pos"] if self._pusht else proprio,
                **({"action": "action"} if "action" in self.streams else {}),
            },
            "source": source,
        }


def own_lines(content: bytes, place: Path) -> list[dict]:
    """{"end", "meta", "absent"} of each episode, from the whole lines of a file; FormatError when one is damaged."""
    lines = []
    for number, line in enumerate(content.split(b"\n")[:-1]):
        try:
            found = json.loads(line)
            whole = {"end": int(found["end"]), "meta": dict(found["meta"]), "absent": [str(name) for name in found["absent"]]}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(
                f"{place}: line {number} of {OWN_LINES} is damaged ({error}); delete it to read the plain replay buffer"
            ) from error
        lines.append(whole)
    return lines


def _names(arrays: Mapping[str, Array]) -> dict[str, str]:
    """{stream: key}; FormatError when two keys would be the same stream."""
    names: dict[str, str] = {}
    for key in arrays:
        name = re.sub(r"[^A-Za-z0-9_]", "_", key)
        name = name if name[:1].isalpha() else f"s_{name}"
        if name in names:
            raise FormatError(f"data/{key} and data/{names[name]} would both be the stream {name!r}; rename one")
        names[name] = key
    return names


def _told(name: str, size: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(units, names) of a stream of Push-T."""
    units, names = PUSHT_UNITS.get(name, ()), PUSHT_NAMES.get(name, ())
    return units if len(units) == size else (), names if len(names) == size else ()


def _is_picture(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[2] in (1, 3, 4) and min(shape[:2]) >= _SMALLEST_IMAGE


def _whole(values: np.ndarray, key: str) -> np.ndarray:
    """Float images as uint8; FormatError when that would change them."""
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.uint8)
    if not np.array_equal(whole, values):
        raise FormatError(f"data/{key} holds images as floats that are no whole numbers from 0 to 255; read it with float_images=keep")
    return whole
