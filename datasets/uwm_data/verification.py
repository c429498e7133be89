"""Reading a converted dataset back and comparing it with its source, frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uwm_data.errors import FormatError
from uwm_data.formats import RawEpisode, Source
from uwm_data.streams import StreamSpec
from uwm_data.workers import in_order

WORST_PSNR_DB = 20.0  # a compressed video is far above it, an upside-down or wrongly coloured one below
LARGEST_ERROR = 1e-6  # of the largest magnitude: float64 that was written as float32
SAME_META = ("task", "instruction", "success")


@dataclass(frozen=True)
class Likeness:
    """How like the source a stream is: bit for bit, or its largest relative error, or (video) its worst PSNR in dB."""

    exact: bool
    error: float = 0.0
    psnr_db: float | None = None

    def __str__(self) -> str:
        if self.exact:
            return "exact"
        return f"within {self.error:.1e}" if self.psnr_db is None else f"PSNR at least {self.psnr_db:.1f} dB"

    def worse(self, other: Likeness) -> Likeness:
        """What holds for both."""
        noise = [like.psnr_db for like in (self, other) if like.psnr_db is not None]
        return Likeness(self.exact and other.exact, max(self.error, other.error), min(noise, default=None))


def verified(source: Source, usable: Sequence[int], written: Source, path: str, is_partial: bool, workers: int) -> dict[str, Likeness]:
    """How like its source each stream of a written dataset is, over all its episodes, which are `usable` of the source.

    `is_partial`: the format said that it leaves something out. Raises FormatError when episodes, streams, frames or
    metadata are missing without that being said, or when values differ by more than the format's rounding.
    """
    if len(written) != len(usable):
        raise FormatError(f"{path} reads back as {len(written)} episodes, {len(usable)} were written")
    found: dict[str, Likeness] = {}
    comparison = _Comparison(source, tuple(usable), written, path, is_partial)
    for outcome in in_order(comparison, range(len(usable)), workers, f"{path}: episode"):
        if outcome.error:
            raise outcome.error
        for name, like in outcome.value.items():
            found[name] = like.worse(found[name]) if name in found else like
    return found


@dataclass(frozen=True)
class _Comparison:
    source: Source
    usable: tuple[int, ...]
    written: Source
    path: str
    is_partial: bool

    def __call__(self, index: int) -> dict[str, Likeness]:
        ours, theirs = self.source.read(self.usable[index]), self.written.read(index)
        where = f"{self.path}: episode {index} reads back"
        self._compare_meta(ours.meta, theirs.meta, where)
        return self._compare_streams(ours, theirs, where)

    def _compare_streams(self, ours: RawEpisode, theirs: RawEpisode, where: str) -> dict[str, Likeness]:
        found = {}
        for name, values in ours.arrays.items():
            back = theirs.arrays.get(name, values[:0])
            if len(back) != len(values) and not self.is_partial:
                raise FormatError(f"{where} with {len(back)} frames of {name!r}, {len(values)} were written")
            if len(back) and len(values):
                found[name] = compared(self.source.streams[name], values, back, f"{where} differently in {name!r}")
        return found

    def _compare_meta(self, ours: dict, theirs: dict, where: str) -> None:
        for key in SAME_META:
            is_lost = self.is_partial and theirs.get(key) is None
            if key in ours and not is_lost and ours[key] != theirs.get(key):
                raise FormatError(f"{where} with {key} {theirs.get(key)!r}, {ours[key]!r} was written")


def compared(spec: StreamSpec, values: np.ndarray, back: np.ndarray, where: str) -> Likeness:
    """How like `values` (n, *shape) the frames `back` are, over the frames that both have."""
    count = min(len(values), len(back))
    values, back = values[:count], back[:count]
    if values.shape != back.shape:
        raise FormatError(f"{where}: frames of shape {back.shape[1:]}, {values.shape[1:]} were written")
    if values.dtype == back.dtype and values.tobytes() == back.tobytes():
        return Likeness(True)
    if spec.kind == "video":
        psnr = worst_psnr_db(values, back)
        if psnr < WORST_PSNR_DB:
            raise FormatError(f"{where}: a frame has a PSNR of {psnr:.1f} dB, at least {WORST_PSNR_DB:g} is expected of any codec")
        return Likeness(False, psnr_db=psnr)
    wide, other = values.astype(np.float64), back.astype(np.float64)
    error = float(np.abs(wide - other).max() / max(np.abs(wide).max(), 1e-12))
    if not error <= LARGEST_ERROR:
        raise FormatError(f"{where}: by up to {error:.1e} of the largest value")
    return Likeness(False, error)


def worst_psnr_db(values: np.ndarray, back: np.ndarray) -> float:
    """Peak signal-to-noise ratio of the worst frame of a uint8 video (n, H, W, C)."""
    errors = [np.mean((a.astype(np.float32) - b) ** 2) for a, b in zip(values, back, strict=True)]
    return float(10 * np.log10(255**2 / max([*errors, 1e-12])))
