"""One dataset as a model sees it: which of its streams, which of its episodes, and what its card tells.

Data of any format goes through the episode store: it is converted once into the run's folder and read from there.
"""

import json
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from uwm.core.config import ConfigError, unknown
from uwm.runs import MemberConfig, StreamsConfig, TrainRun

DEFAULT_SIDE = 64  # pixels, for data whose images have no size that the model takes as it is
FEW_EPISODES = 16  # are converted before worker processes would have started


class Dataset:
    """A store with the choice of its streams and the split of its episodes.

    `cameras` {the model's name: the store's}, `proprio` state streams, `action` and `intended` action streams or None,
    `anchor` the stream that counts the ticks, at `rate_hz`; `training` and `held_out` episodes, and `failed` ones among the
    former, which are not to be imitated.
    Raises ConfigError on streams that are not there and on declarations that contradict the card.
    """

    def __init__(self, member: MemberConfig, run: TrainRun):
        from uwm_data import cards
        from uwm_data.streams import reference_stream

        self.name, self.member = member.name, member
        self.store = open_store(member.data, Path(run.out) / "data", member.options or {})
        self.path = self.store.path
        self.card = declared(cards.complete(self.store.card, self.store.streams), member.declare or {}, str(self.path))
        self.cameras, self.proprio, self.action = self._chosen(member.streams)
        if not member.use_actions:
            self.action = None
        wish = f"{self.action}_intended"  # somebody else's episodes know only what was executed
        self.intended = wish if wish in self.store.streams else self.action
        self.anchor = self.action or reference_stream(self.store.streams, [*self.cameras.values(), *self.proprio])
        self.rate_hz = self.store.streams[self.anchor].rate_hz
        self.training, self.held_out, self.failed = self._split(run)

    # ---- what is there ---------------------------------------------------------------------------------------

    @property
    def action_size(self) -> int:
        """Numbers in an action; 0 without actions."""
        return self.store.streams[self.action].shape[0] if self.action else 0

    @property
    def proprio_size(self) -> int:
        """Numbers in the proprioception; 0 without."""
        return sum(self.store.streams[name].shape[0] for name in self.proprio)

    @property
    def own_side(self) -> int:
        """The side of its square images as its card tells it; 0 if it does not, or if they are not like that."""
        side = self.card.get("image_size") or 0
        return side if all(self.store.streams[own].shape[:2] == (side, side) for own in self.cameras.values()) else 0

    @property
    def held(self) -> list[bool]:
        """Dimensions of the action that are commands, not motions: the gripper's."""
        names = self._action_names()
        held = ["grip" in name.lower() for name in names]
        if not any(held) and self.card.get("action", {}).get("gripper", "unknown") not in ("none", "unknown"):
            raise ConfigError(
                f"{self.path} says how its gripper opens and not which number of the action that is (its names are {names}): "
                "declare action.names, with 'gripper' in that one"
            )
        return held

    def _action_names(self) -> list[str]:
        names = list(self.card.get("action", {}).get("names") or [])
        return names if len(names) == self.action_size else [""] * self.action_size

    def about(self, side: int, rate_hz: float) -> dict:
        """Its card for a checkpoint: with the streams as the model has them, the split, and what names the content."""
        card = {**self.card, "cameras": list(self.cameras), "rate_hz": rate_hz, "acts": self.action is not None}
        if self.cameras:
            card["image_size"] = side
        if self.proprio != ("proprio",) or "proprio" not in card:
            specs = [self.store.streams[name] for name in self.proprio]
            card["proprio"] = {key: [each for spec in specs for each in getattr(spec, key)] for key in ("names", "units")}
        if not self.action:
            card.pop("action", None)
        streams = {"cameras": self.cameras, "proprio": list(self.proprio), "action": self.action}
        split = {"training": self.training, "held_out": self.held_out}
        return card | {
            "data": str(self.member.data), "data_checksum": self.store.checksum_of(self.training), "streams": streams, "split": split,
        }  # fmt: skip

    def frames(
        self, episodes: list[int], side: int, share: float = 1.0, random: np.random.Generator | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Frames of each episode, per camera of the model, (n, side, side, 3) uint8: all, or a random share of them."""
        for index in episodes:
            found = {}
            for name, own in self.cameras.items():
                chosen = None if random is None else np.flatnonzero(random.random(self.store.length(index, own)) < share)
                found[name] = resized(torch.from_numpy(self.store.read(index, own, chosen)), side)
            yield found

    def frame_count(self, episodes: list[int]) -> int:
        """Frames of all cameras together."""
        return sum(self.store.length(index, own) for index in episodes for own in self.cameras.values())

    def task(self, index: int) -> str:
        """What an episode is about, as the data names it."""
        meta = self.store.meta(index)
        return str(meta.get("task") or meta.get("instruction") or self.name)

    def instruction(self, index: int) -> str:
        """What was to be done in an episode, in words; "" where the data do not say."""
        meta = self.store.meta(index)
        return str(meta.get("instruction") or meta.get("task") or "")

    # ---- choosing --------------------------------------------------------------------------------------------

    def _chosen(self, wanted: StreamsConfig) -> tuple[dict[str, str], tuple[str, ...], str | None]:
        suggested = self.card.get("policy")
        if not isinstance(suggested, Mapping):
            raise ConfigError(f"the card of {self.path} suggests no streams for a policy: name them in `streams`")
        cameras = suggested.get("cameras", []) if wanted.cameras is None else wanted.cameras
        cameras = dict(cameras) if isinstance(cameras, Mapping) else {name: name for name in cameras}
        proprio = tuple(suggested.get("proprio", []) if wanted.proprio is None else wanted.proprio)
        action = suggested.get("action") if wanted.action is None else wanted.action
        for name in cameras.values():
            self._refuse_other(name, "cameras", ("video",), 3)
        for name in proprio:
            self._refuse_other(name, "proprio", ("state",), 1)
        if action:
            self._refuse_other(action, "action", ("action",), 1)
        return cameras, proprio, action or None

    def _refuse_other(self, name: str, role: str, kinds: tuple[str, ...], axes: int) -> None:
        fitting = [each for each, spec in self.store.streams.items() if spec.kind in kinds]
        if name not in fitting:
            raise ConfigError(f"{self.path}, {role}: {unknown(name, fitting, 'stream')}")
        shape = self.store.streams[name].shape
        if len(shape) != axes or (axes == 3 and shape[2] != 3):
            wanted = "(H, W, 3)" if axes == 3 else "(n,)"
            raise ConfigError(f"{self.path}: stream {name!r} has frames of shape {shape}, a model takes {wanted} as {role}")

    def _split(self, run: TrainRun) -> tuple[list[int], list[int], frozenset[int]]:
        import uwm_data

        training, held_out = uwm_data.split_episodes(self.store, run.validation, run.train.seed)
        training = uwm_data.share_of_episodes(training, self.member.episodes, run.train.seed)
        failed = []
        if run.only_success:
            # Where nobody noted it, a demonstration is taken for a success.
            succeeded = lambda index: self.store.meta(index).get("success", True)  # noqa: E731
            failed = [index for index in training if run.failures_teach and not succeeded(index)]
            training, held_out = (list(filter(succeeded, part)) for part in (training, held_out))
        if not training:
            raise uwm_data.StoreError(f"{self.path} has no successful episode to train on; set only_success=false or collect more")
        return sorted([*training, *failed]), held_out, frozenset(failed)


def open_store(data: str, folder: Path, options: Mapping[str, Any]):
    """The episode store at `data`, or the one in `folder` that a dataset of another format is converted into, once.

    `options`: of the reader of that format.
    """
    import uwm_data
    from uwm_data.formats import own

    if "://" in data or own.recognise(data) or not Path(data).exists():
        return uwm_data.EpisodeStore.open(data)
    from uwm.convert import FORMATS
    from uwm_data import conversion, note

    _, source = conversion.open_source(data, options=options, formats=FORMATS)
    try:
        # The name says what was in it and how it was read: a changed source is another store, and never a stale one.
        told = json.dumps([note.fingerprint(data, source), dict(options)], sort_keys=True)
        target = folder / f"{Path(data).name.partition('.')[0]}-{blake2b(told.encode(), digest_size=6).hexdigest()}.zarr"
        workers = 0 if len(source) <= FEW_EPISODES else None
    finally:
        source.close()
    report = conversion.convert(data, target, to="store", workers=workers, source_options=options, progress=True, formats=FORMATS)
    for line in report.lines():
        print(line)
    return uwm_data.EpisodeStore.open(target)


def declared(card: dict, told: Mapping[str, Any], where: str) -> dict:
    """The card with what the user declares in place of what it leaves unknown; a contradiction is refused by name."""
    from uwm_data import cards

    nested: dict[str, Any] = {}
    for name, value in told.items():
        first, dot, rest = name.partition(".")  # {"action.mode": "delta"} is {"action": {"mode": "delta"}}
        inner = {rest: value} if dot else value
        nested[first] = {**nested.get(first, {}), **inner} if isinstance(inner, Mapping) else inner
    wrong = cards.differences(card, nested, nested)
    if wrong:
        raise ConfigError(f"`declare` contradicts the data: {cards.sentence(wrong, where, 'the config')}")
    merged = {
        key: {**card.get(key, {}), **value} if isinstance(value, Mapping) and isinstance(card.get(key, {}), Mapping) else value
        for key, value in nested.items()
    }
    return {**card, **merged}


def resized(frames: Tensor, side: int) -> Tensor:
    """uint8 frames (..., H, W, 3) as (..., side, side, 3): bilinear, averaging where it shrinks; untouched if they fit."""
    if frames.shape[-3:-1] == (side, side):
        return frames
    image = frames.reshape(-1, *frames.shape[-3:]).movedim(-1, 1)
    parts = [interpolate(part.float(), (side, side), mode="bilinear", antialias=True, align_corners=False) for part in image.split(64)]
    small = torch.cat(parts) if parts else image.new_zeros(0, 3, side, side).float()
    return small.round().clamp(0, 255).to(torch.uint8).movedim(1, -1).reshape(*frames.shape[:-3], side, side, 3)


def as_tensor(values: np.ndarray) -> Tensor:
    """Numbers of a stream for the model: float32, whatever the source keeps."""
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
