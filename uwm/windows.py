"""Windows of datasets as batches for the objective.

    one dataset   Windows ---> images, proprioception, actions, latents ---> Batch
    a mixture     a draw names windows of each ---> one Batch per dataset ---> joined, what one lacks masked
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from uwm.core.config import ConfigError
from uwm.core.patterns import DEMONSTRATED
from uwm.dataset import Dataset, as_tensor, resized
from uwm.learn.augment import AugmentConfig, augment
from uwm.learn.autoencode import LatentTable, merged_tokens
from uwm.learn.objective import Batch
from uwm.nn.codecs import Normaliser, VideoCodec, frames_to_unit
from uwm.nn.robot_model import Observation, RobotModel

_RATE_SLACK = 1e-6  # of one frame, as in `uwm_data.windows`


@dataclass(frozen=True)
class WindowConfig:
    """Ticks per second of the model; what is done to training frames; memory for latents of frames, or a folder for them.

    `camera_dropout`, `instruction_dropout`: the share of training samples that do without; of its cameras a sample keeps one at least.
    """

    rate_hz: float
    augment: AugmentConfig
    camera_dropout: float
    cache_bytes: int
    latents: str = ""
    instruction_dropout: float = 0.0


class ModelWindows:
    """Windows of some episodes of one dataset as objective batches; video tokens come from a table of latents.

    `member`: whose normalisers of a model of a mixture; its actions and proprioception are then padded to the model's.
    """

    def __init__(self, data: Dataset, model: RobotModel, episodes: Sequence[int], config: WindowConfig, member: str = ""):
        import uwm_data

        self.data, self.model, self.config, self.member = data, model, config, member
        ticks = range(-model.config.past, model.config.horizon)
        self.rates = rates_of(data, ticks, config.rate_hz)
        seen = (0, *(-tick for tick in model.config.history))  # of every observed stream, the present first
        offsets = {name: self._ahead(name, seen) for name in (*data.cameras.values(), *data.proprio)}
        offsets |= {name: self._ahead(name, (*seen, *model.config.state_frames)) for name in data.proprio}
        if data.action:
            offsets |= dict.fromkeys((data.action, data.intended), self.rates.offsets if self.rates else ticks)
        self.windows = uwm_data.Windows(data.store, offsets, episodes, data.anchor, config.cache_bytes)
        self.demonstrated = torch.tensor([episode not in data.failed for episode in self.windows.episodes.tolist()])
        self.told = model.words([data.instruction(index) for index in self.windows.episodes.tolist()]) if model.hears else None
        films = bool(model.config.video_frames and data.cameras)
        self.codec = model.video if films else None
        self.latents = (self._table() if config.latents or self._fits_in_memory() else self._encoded) if films else None

    def __len__(self) -> int:
        return len(self.windows)

    def batches(self, batch_size: int, seed: int, start: int) -> Iterator[np.ndarray]:
        """Window numbers of the steps from `start` on."""
        import uwm_data

        return uwm_data.shuffled(len(self), batch_size, seed, start)

    def batch(self, indices: np.ndarray, generator: Generator | None = None) -> Batch:
        """Windows by number; with a generator the frames are augmented and cameras dropped (training)."""
        read, model = self.windows.batch(indices), self.model
        observed, (instruction, told) = self._observed(read, generator), self._hear(indices, generator)
        action, intended, there = self._act(read)
        future = torch.arange(action.shape[1]) >= model.config.past
        tokens, valid = {"action": action}, [there]
        for camera in model.config.cameras if model.config.video_frames else ():
            tokens[camera], there = self._video(camera, indices, read.tick)
            valid.append(there)
        if model.config.state_frames:
            tokens["state"], there = self._will_feel(read)
            valid.append(there)
        return Batch(
            replace(observed, present=observed.present | told, instruction=instruction),
            model.layout.pack(tokens),
            torch.cat(valid, dim=1),
            torch.where(future[None, :, None], intended, action),
            self._dims(len(indices)),
            self._has(valid, indices),
        )

    def future_frames(self, indices: np.ndarray) -> dict[str, Tensor]:
        """The true future frames (B, T, 3, H, W) in [0, 1] of windows by number, clamped at the end of the episode."""
        place, tick = self.windows.locate(np.asarray(indices))
        found = {}
        for camera in self.data.cameras:
            found[camera] = frames_to_unit(self._read(camera, place, self._frames_at(camera, tick))[0])
        return found

    # ---- what is observed ------------------------------------------------------------------------------------

    def _observed(self, read, generator: Generator | None) -> Observation:
        """The present observation, with the earlier ones, which training sometimes forgets."""
        images, present = self._see(read, generator)
        moments = []
        for place in range(1 + len(self.model.config.history)):
            proprio, felt = self._feel(read, place)
            seen = {camera: image[:, place] for camera, image in images.items()}
            there = {camera: each[:, place] for camera, each in present.items()}
            moments.append(Observation(seen, proprio, there | felt, normalised=bool(self.member)))
        now, *earlier = moments
        return replace(now, earlier=tuple(earlier if generator is None else (self._forgotten(each, generator) for each in earlier)))

    def _forgotten(self, earlier: Observation, generator: Generator) -> Observation:
        """Lacks in some samples: were that so at the start of episodes only, a tick that a robot missed would look like a start."""
        kept = torch.rand(len(earlier.proprio), generator=generator) < 1 - self.config.camera_dropout
        names = (*earlier.images, "proprio")
        return replace(earlier, present={name: kept & earlier.present.get(name, kept) for name in names})

    def _see(self, read, generator: Generator | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Images (B, T, 3, H, W) and where they are there (B, T), the present ones first; one draw for all the times of a sample."""
        images, present, count = {}, {}, len(read.tick)
        for camera, own in self.data.cameras.items():
            images[camera] = frames_to_unit(resized(torch.from_numpy(np.ascontiguousarray(read.values[own])), self._side))
            if not read.valid[own].all():
                present[camera] = torch.from_numpy(read.valid[own])
        if generator is None:
            return images, present
        for camera, image in images.items():
            together = augment(image.flatten(1, 2), self.config.augment, generator)
            images[camera] = together.unflatten(1, image.shape[1:3])
        lots = {camera: torch.rand(count, generator=generator) for camera in images}
        there = {camera: present.get(camera, torch.ones(image.shape[:2], dtype=torch.bool)) for camera, image in images.items()}
        return images, {camera: kept[:, None] & there[camera] for camera, kept in self._kept(lots, there).items()}

    def _kept(self, lots: dict[str, Tensor], there: dict[str, Tensor]) -> dict[str, Tensor]:
        """Which cameras training leaves in each sample (B,), by lots in [0, 1).

        The last one that is there now always stays: an expert saw what it did, nobody acts blind (a session refuses to), and with many
        cameras and a high dropout blind samples would be a good part of all.
        """
        nearest = torch.stack([lot.where(there[camera][:, 0], torch.inf) for camera, lot in lots.items()]).amin(0) if lots else None
        return {camera: (lot < 1 - self.config.camera_dropout) | (lot == nearest) for camera, lot in lots.items()}

    def _feel(self, read, place: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Proprioception, joined from its streams, and where none of it is there; missing numbers are the mean ones."""
        count, normaliser = len(read.tick), self._normalisers[1]
        if not self.data.proprio:
            wide = self.model.config.proprio_size if self.member else normaliser.size
            return torch.zeros(count, wide), {"proprio": torch.zeros(count, dtype=torch.bool)}
        parts = [as_tensor(read.values[name][:, place]) for name in self.data.proprio]
        there = [torch.from_numpy(read.valid[name][:, place, None]) for name in self.data.proprio]
        known = torch.cat([one.expand(-1, part.shape[1]) for one, part in zip(there, parts, strict=True)], dim=1)
        proprio = torch.where(known, torch.cat(parts, dim=1), normaliser.mean)
        if self.member:
            proprio = normaliser.normalise(proprio)
            proprio = pad(proprio, (0, self.model.config.proprio_size - proprio.shape[1]))
        return proprio, {} if bool(known.all()) else {"proprio": known.any(dim=1)}

    def _hear(self, indices: np.ndarray, generator: Generator | None) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The instructions of the windows' episodes, and where there is one; None for a model without language."""
        if self.told is None:
            return None, {}
        vector, there = (each[self.windows.locate(np.asarray(indices))[0]] for each in self.told)
        if generator is not None:
            there = there & (torch.rand(len(there), generator=generator) >= self.config.instruction_dropout)
        return vector, {"instruction": there}

    # ---- what is denoised ------------------------------------------------------------------------------------

    def _act(self, read) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised executed and intended actions (B, n, A), and which are there (B, n)."""
        count, model = len(read.tick), self.model.config
        ticks = model.past + model.horizon
        if not self.data.action:
            nothing = torch.zeros(count, ticks, model.action_size)
            return nothing, nothing, torch.zeros(count, ticks, dtype=torch.bool)
        found = []
        for name in (self.data.action, self.data.intended):
            values, valid = read.values[name], read.valid[name]
            if self.rates:
                values, valid = self.rates(values, valid)
            normalised = self._normalisers[0].normalise(as_tensor(values))
            found.append((pad(normalised, (0, model.action_size - normalised.shape[-1])), valid))
        (action, valid), (intended, _) = found
        return action, intended, torch.from_numpy(np.ascontiguousarray(valid))

    def _video(self, camera: str, indices: np.ndarray, tick: np.ndarray) -> tuple[Tensor, Tensor]:
        """Tokens of the future frames of a camera, and which are there."""
        stream = self.model.layout[camera]
        if camera not in self.data.cameras:
            return torch.zeros(len(tick), stream.tokens, stream.size), torch.zeros(len(tick), stream.tokens, dtype=torch.bool)
        place = self.windows.locate(np.asarray(indices))[0]
        return self.latents(camera, torch.from_numpy(place), torch.from_numpy(self._frames_at(camera, tick)))

    def _will_feel(self, read) -> tuple[Tensor, Tensor]:
        """Tokens of future proprioception, its change since now in the normaliser's spreads, and which are there: with all parts."""
        stream, names = self.model.layout["state"], self.data.proprio
        if not names:
            return torch.zeros(len(read.tick), stream.tokens, stream.size), torch.zeros(len(read.tick), stream.tokens, dtype=torch.bool)
        felt = torch.cat([as_tensor(read.values[name]) for name in names], dim=2)
        there = torch.from_numpy(np.all([read.valid[name] for name in names], axis=0))
        ahead = 1 + len(self.model.config.history)
        change = (felt[:, ahead:] - felt[:, :1]) / self._normalisers[1].scale
        return pad(change, (0, stream.size - change.shape[2])), there[:, ahead:] & there[:, :1]

    def _ahead(self, name: str, ticks: Sequence[int]) -> np.ndarray:
        """Ticks of the model as frames of a stream."""
        own = self.data.store.streams[name].rate_hz
        return np.floor(np.array(ticks) * (own / self.config.rate_hz) + _RATE_SLACK).astype(np.int64)

    def _frames_at(self, camera: str, tick: np.ndarray) -> np.ndarray:
        """Frame numbers of the model's future frames, (B, T): the newest ones at their times."""
        own = self.data.store.streams[self.data.cameras[camera]].rate_hz
        ahead = np.array(self.model.config.video_frames) * (own / self.config.rate_hz)
        return np.floor(tick[:, None] * (own / self.data.rate_hz) + ahead + _RATE_SLACK).astype(np.int64)

    def _table(self) -> Callable[..., tuple[Tensor, Tensor]]:
        from tqdm import tqdm

        episodes, cameras = self.windows.episodes.tolist(), tuple(self.data.cameras)
        frames = tqdm(self.data.frames(episodes, self._side), "latents", len(episodes), unit="episode", delay=1.0)
        if not self.config.latents:
            return LatentTable(self.codec, frames, cameras).at
        data = self.data.store.checksum_of(episodes)
        folder = Path(self.config.latents) / f"{self.member or self.data.path.stem}-{data[:12]}"
        try:
            return LatentTable(self.codec, frames, cameras, folder, data).at
        except ValueError as error:
            raise ConfigError(f"latents={self.config.latents}: {error}") from error

    def _encoded(self, camera: str, place: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """What a table would give, encoded afresh: for data whose latents do not fit into memory."""
        image, there = self._read(camera, place.numpy(), frames.numpy())
        single = VideoCodec(self.codec.autoencoder, self.codec.patch)
        tokens = single.encode(frames_to_unit(image).flatten(0, 1)[:, None]).unflatten(0, frames.shape)
        return merged_tokens(self.codec, tokens, there)

    def _fits_in_memory(self) -> bool:
        numbers = self.codec.size // self.codec.merge * self.codec.grid[0] * self.codec.grid[1]
        return 4 * numbers * self.data.frame_count(self.windows.episodes.tolist()) <= self.config.cache_bytes

    def _read(self, camera: str, place: np.ndarray, frames: np.ndarray) -> tuple[Tensor, Tensor]:
        """uint8 frames (B, T, side, side, 3) of the place-th episodes, clamped into them, and which were there (B, T).

        Black where an episode lacks the camera.
        """
        import uwm_data

        own, store = self.data.cameras[camera], self.data.store
        starts, lengths = store.extents(own, self.windows.episodes[place])
        frames, there = uwm_data.clamp_frames(frames, np.maximum(lengths, 1)[:, None])
        there[lengths == 0] = False
        found = np.zeros((*frames.shape, *store.streams[own].shape), np.uint8)
        some = lengths > 0
        found[some] = store.read_rows(own, (starts[:, None] + frames)[some].reshape(-1)).reshape(found[some].shape)
        return resized(torch.from_numpy(found), self._side), torch.from_numpy(there)

    # ---- how it fits the model -------------------------------------------------------------------------------

    @property
    def _side(self) -> int:
        return self.model.config.autoencoder.image_size

    @property
    def _normalisers(self) -> tuple[Normaliser, Normaliser]:
        for each, own in zip(self.model.config.members, self.model.members, strict=True):
            if each.name == self.member:
                return own.action, own.proprio
        return self.model.normalise_action, self.model.normalise_proprio

    def _dims(self, count: int) -> Tensor | None:
        if not self.member:
            return None
        return (torch.arange(self.model.config.action_size) < self.data.action_size).expand(count, -1)

    def _has(self, valid: list[Tensor], indices: np.ndarray) -> dict[str, Tensor]:
        """Which samples have actions, and which video, at all: {} where all have both, as with most single datasets."""
        acts = valid[0].any(dim=1)
        has = {} if bool(acts.all()) else {"action": acts}
        if self.model.layout.of_kind("video") and not self.data.cameras:
            has["video"] = torch.zeros(len(acts), dtype=torch.bool)
        if self.model.config.state_frames and not self.data.proprio:
            has["state"] = torch.zeros(len(acts), dtype=torch.bool)
        if not bool(self.demonstrated.all()):
            has[DEMONSTRATED] = self.demonstrated[torch.from_numpy(self.windows.locate(np.asarray(indices))[0])]
        return has


def rates_of(data: Dataset, ticks: Sequence[int], rate_hz: float):
    """How the actions of a dataset are brought to `rate_hz`; None where they are at it."""
    from uwm_data.rates import ActionRates

    ratio = data.rate_hz / rate_hz
    if not data.action or abs(ratio - 1) < 1e-9:
        return None
    mode = data.card.get("action", {}).get("mode", "unknown")
    try:
        return ActionRates(ticks, ratio, mode, data.held)
    except ValueError as error:
        raise type(error)(f"{data.path} ({data.rate_hz:g} Hz, the model {rate_hz:g} Hz): {error}") from error


class MixtureWindows:
    """Windows of several datasets, drawn by a mixture, as one batch."""

    def __init__(self, members: dict[str, ModelWindows], mixture):
        self.members, self.mixture = members, mixture

    def batches(self, batch_size: int, seed: int, start: int) -> Iterator:
        """The draws of the steps from `start` on; the mixture has its own seed."""
        step = start
        while True:
            yield self.mixture.draw(step, batch_size)
            step += 1

    def batch(self, draw, generator: Generator | None = None) -> Batch:
        """The windows of a draw, dataset by dataset."""
        parts = [self.members[name].batch(numbers, generator) for name, numbers in draw.windows.items() if len(numbers)]
        joined = _joined(parts, next(iter(self.members.values())).model)
        acting = joined.has["action"].float().mean()
        shares = {f"share {name}": share for name, share in draw.shares.items()}
        return replace(joined, drawn={**shares, "share with actions": float(acting)})


def _joined(parts: list[Batch], model: RobotModel) -> Batch:
    """One batch of several."""
    has = {
        kind: torch.cat([p.has.get(kind, torch.ones(len(p.clean), dtype=torch.bool)) for p in parts])
        for kind in (*model.layout.kinds, DEMONSTRATED)
    }  # fmt: skip
    observation = _observed_by_all([p.observation for p in parts], model)
    if model.hears:
        told = torch.cat([_there(p.observation, "instruction", True) for p in parts])
        instruction = torch.cat([p.observation.instruction for p in parts])
        observation = replace(observation, present=observation.present | {"instruction": told}, instruction=instruction)
    together = [torch.cat([getattr(p, name) for p in parts]) for name in ("clean", "valid", "intended", "dims")]
    return Batch(observation, *together, has)


def _observed_by_all(parts: Sequence[Observation], model: RobotModel) -> Observation:
    """One observation of several; cameras that one lacks are black and absent there."""
    side, images, present = model.config.autoencoder.image_size, {}, {}
    for camera in model.config.cameras:
        images[camera] = torch.cat([p.images.get(camera, torch.zeros(len(p.proprio), 3, side, side)) for p in parts])
        present[camera] = torch.cat([_there(p, camera, camera in p.images) for p in parts])
    present["proprio"] = torch.cat([_there(p, "proprio", True) for p in parts])
    earlier = tuple(_observed_by_all(moment, model) for moment in zip(*(p.earlier for p in parts), strict=True))
    return Observation(images, torch.cat([p.proprio for p in parts]), present, normalised=True, earlier=earlier)


def _there(part: Observation, name: str, is_given: bool) -> Tensor:
    return part.present.get(name, torch.full((len(part.proprio),), is_given))
