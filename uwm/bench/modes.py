"""One checkpoint in every mode on held-out windows, each against its simplest baseline.

| mode | given | sampled | error | baseline |
|---|---|---|---|---|
| inverse | observation, future frames | actions | RMSE, normalised units | the training mean, 0 |
| forward | observation, actions | future frames | image MSE | the present frame, repeated |
| video | observation | future frames, actions deleted | image MSE | the present frame, repeated |
| joint | observation | actions and future frames | RMSE against the intended actions; image MSE | both |
| policy | observation | actions, future frames deleted | RMSE against the intended actions | the training mean, 0 |

Relative error is the model's error divided by the baseline's: RMSE by RMSE, MSE by MSE. An image is judged by one sample. An
action is judged by the mean of several samples, because its baseline is a point estimate too; what one sample reaches
stands beside it.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from uwm.core import plans, roles
from uwm.core.streams import Layout
from uwm.learn.objective import Batch, imitated
from uwm.nn.backbone import Prefix
from uwm.nn.codecs import unit_to_frames
from uwm.nn.model import UnifiedModel
from uwm.robot.policy import LIMIT
from uwm.sample import loop
from uwm.sample.denoise import denoiser
from uwm.sample.randomness import Randomness

MODES = ("inverse", "forward", "video", "joint", "policy")
ACTING = ("inverse", "joint", "policy")  # the modes that sample actions
RESAMPLES = 1000


@torch.inference_mode()
def measure(
    model: UnifiedModel,
    batch: Batch,
    frames: dict[str, Tensor],
    present: dict[str, Tensor],
    rows: int,
    seeds: Sequence[int],
    samples: int = 8,
    groups: Tensor | None = None,
    examples: int = 3,
) -> dict:
    """Figures of every mode, and under `examples` uint8 frames of some windows: seen, true and predicted.

    `frames` {camera: (B, T, 3, H, W) in [0, 1]} are the true future frames of the model's `video_frames`, `present`
    {camera: (B, 3, H, W)} what is seen now; `batch` holds the same windows, `seeds` one number per window, from which
    `samples` samples of actions and one of images are drawn in `rows` calls each. `groups` (B,) names the episode of each
    window: intervals are over episodes, since windows of one episode are alike.

    Examples are arrays by name: `window` (E,), `ticks` (T,), and per camera `present/NAME` (E, H, W, 3), `true/NAME`,
    `forward/NAME`, `video/NAME`, `joint/NAME` (E, T, H, W, 3); `actions/true` and `actions/joint` (E, n, A) are those up to the last
    frame, as they were executed and as they were sampled together with the frames of `joint`, in physical units.
    """
    _check(model, batch, frames, seeds)
    prefix = model.encode(batch.observation)
    draw = partial(_sample, model, batch, prefix, rows, seeds)
    drawn = {name: [draw(name, index) for index in range(samples if name in ACTING else 1)] for name in MODES}
    groups = torch.arange(len(batch.clean)) if groups is None else groups
    images = _Images(model, batch, frames, present, groups)
    result: dict = {"rows": rows, "samples": samples, "windows": len(batch.clean), "groups": len(groups.unique())}
    wished = imitated(model.layout, batch)
    result["inverse"] = _action_error(model, batch, drawn["inverse"], batch.clean, groups)
    result["policy"] = _action_error(model, batch, drawn["policy"], wished, groups)
    for name in ("forward", "video"):
        result[name] = images.error(drawn[name][0])
    joint = drawn["joint"]
    result["joint"] = {"action": _action_error(model, batch, joint, wished, groups), "image": images.error(joint[0])}
    shown = images.examples({name: drawn[name][0] for name in ("forward", "video", "joint")}, examples)
    tokens = {"true": model.layout.unpack(batch.clean)["action"], "joint": joint[0]["action"]}
    now = slice(model.config.past, model.config.past + max(model.config.video_frames))
    ways = {f"actions/{name}": model.to_actions(each[shown["window"], now]).numpy() for name, each in tokens.items()}
    result["examples"] = {**shown, **ways}
    return result


def _check(model: UnifiedModel, batch: Batch, frames: dict[str, Tensor], seeds: Sequence[int]) -> None:
    config = model.config
    if len(seeds) != len(batch.clean):
        raise ValueError(f"one seed per window: got {len(seeds)} seeds for {len(batch.clean)} windows")
    if not config.video_frames:
        raise ValueError("this model has no future video (video_frames is empty), so most modes do not exist for it")
    side = config.autoencoder.image_size
    wanted = (len(batch.clean), len(config.video_frames), 3, side, side)
    for name in config.cameras:
        if name not in frames or tuple(frames[name].shape) != wanted:
            got = tuple(frames[name].shape) if name in frames else "nothing"
            raise ValueError(f"true future frames of camera {name!r} must be {wanted}, got {got}")


# --------------------------------------------------------------------------------------------------------------- sampling


def _sample(
    model: UnifiedModel, batch: Batch, prefix: Prefix, rows: int, seeds: Sequence[int], name: str, index: int
) -> dict[str, Tensor]:
    """Tokens per stream of the index-th sample in a mode; absent streams are deleted, which changes nothing else."""
    whole = plans.mode(model.layout, name, rows)
    layout = _present_streams(model.layout, whole)
    columns = layout.index_in(model.layout)
    role = torch.where(batch.valid[:, columns], whole.role[columns], roles.ABSENT)
    level = whole.level[:, columns]
    # One key per window: its sample must not depend on which other windows are measured with it.
    randomness = Randomness.seeded([seed + (index << 32) for seed in seeds])
    denoise = denoiser(model, role, layout, prefix, LIMIT)
    x, _ = loop.follow(denoise, batch.clean[:, columns, : layout.size], level, randomness)
    return layout.unpack(x)


def _present_streams(layout: Layout, plan: plans.Plan) -> Layout:
    there = [name for name in layout.names if bool((plan.role[layout.span(name)] != roles.ABSENT).any())]
    return layout.select(there)


# ---------------------------------------------------------------------------------------------------------------- actions


def _action_error(model: UnifiedModel, batch: Batch, drawn: list[dict[str, Tensor]], wanted: Tensor, groups: Tensor) -> dict:
    """RMSE over the actions from now to the last future frame, of windows whose future frames all exist."""
    layout, stream = model.layout, model.layout["action"]
    own = model.normalise_action.size  # in a mixture other robots may have more numbers
    true = wanted[:, layout.span("action"), :own]
    frame = torch.tensor(stream.frames)
    valid = batch.valid[:, layout.span("action")] & (frame >= 0) & (frame < max(model.config.video_frames))
    valid &= batch.valid[:, layout.mask(*layout.of_kind("video"))].all(dim=1, keepdim=True)
    if not bool(valid.any()):
        raise ValueError("no window has all its future frames; choose windows further from the end of their episodes")
    sampled = torch.stack([sample["action"][..., :own] for sample in drawn])
    square = {"model": (sampled.mean(dim=0) - true).square(), "one": (sampled - true).square().mean(dim=0), "mean": true.square()}
    total = {name: torch.where(valid[..., None], error, 0.0).double() for name, error in square.items()}
    count = valid.sum() * own
    per_window = {name: value.sum(dim=(1, 2)) for name, value in total.items()}
    rmse = {name: float((value.sum() / count).sqrt()) for name, value in total.items()}
    low, high = interval(per_window["model"], per_window["mean"], groups)
    return {
        "rmse": rmse["model"],
        "mean_rmse": rmse["mean"],
        "relative_error": _ratio(rmse["model"], rmse["mean"]),
        "interval": [low**0.5, high**0.5],
        "relative_error_of_one_sample": _ratio(rmse["one"], rmse["mean"]),
        "actions": int(valid.sum()),
        "dimensions": _dimensions(total, int(valid.sum())),
    }


def _dimensions(total: dict[str, Tensor], count: int) -> list[dict]:
    """The same per action dimension; one that never moves in the data has no baseline error and no relative one."""
    model, mean = (((total[name].sum(dim=(0, 1)) / count).sqrt()).tolist() for name in ("model", "mean"))
    return [{"rmse": a, "mean_rmse": b, "relative_error": _ratio(a, b)} for a, b in zip(model, mean, strict=True)]


# ----------------------------------------------------------------------------------------------------------------- images


class _Images:
    """True future frames of a batch, which of them exist, and the errors of predictions against them."""

    def __init__(self, model: UnifiedModel, batch: Batch, frames: dict, present: dict, groups: Tensor):
        self.model, self.frames, self.present, self.groups = model, frames, present, groups
        layout, ticks = model.layout, model.config.video_frames
        self.cameras, self.ticks = model.config.cameras, ticks
        # The tokens of one frame (or of frames that share tokens) exist together: the first stands for all.
        merge = model.config.merge
        first = {c: batch.valid[:, layout.span(c)][:, :: layout[c].tokens * merge // len(ticks)] for c in self.cameras}
        self.valid = {c: valid.repeat_interleave(merge, dim=1) for c, valid in first.items()}
        if not any(bool(valid.any()) for valid in self.valid.values()):
            raise ValueError("no window has a true future frame; choose windows further from the end of their episodes")
        tokens = layout.unpack(batch.clean)
        self.floor = {c: self._square(c, model.video.decode(tokens[c], len(ticks))) for c in self.cameras}
        self.copy = {c: self._square(c, present[c][:, None].expand_as(frames[c])) for c in self.cameras}

    def decode(self, drawn: dict[str, Tensor], camera: str) -> Tensor:
        return self.model.video.decode(drawn[camera], len(self.ticks))

    def _square(self, camera: str, image: Tensor) -> Tensor:
        """Squared error per window and frame (B, T), 0 where there is no true frame."""
        error = (image - self.frames[camera]).square().mean(dim=(2, 3, 4))
        return torch.where(self.valid[camera], error, 0.0).double()

    def error(self, drawn: dict[str, Tensor]) -> dict:
        """MSE over all cameras and frames, per camera, and per camera and frame."""
        square = {camera: self._square(camera, self.decode(drawn, camera)) for camera in self.cameras}
        every = range(len(self.ticks))
        result = self._ratio_over(square, dict.fromkeys(self.cameras, every))
        sums = [sum(s[c].sum(dim=1) for c in self.cameras) for s in (square, self.copy)]
        result["interval"] = list(interval(*sums, self.groups))
        result["cameras"] = {}
        for camera in self.cameras:
            per_frame = {str(tick): self._ratio_over(square, {camera: [i]}) for i, tick in enumerate(self.ticks)}
            result["cameras"][camera] = {**self._ratio_over(square, {camera: every}), "frames": per_frame}
        return result

    def _ratio_over(self, square: dict[str, Tensor], chosen: dict) -> dict:
        """Errors over chosen frames of chosen cameras; `floor_mse` is what the autoencoder loses on true frames."""
        count = max(sum(int(self.valid[c][:, list(f)].sum()) for c, f in chosen.items()), 1)
        mse, copy, floor = (
            float(sum(table[c][:, list(f)].sum() for c, f in chosen.items())) / count for table in (square, self.copy, self.floor)
        )
        relative = {"relative_error": _ratio(mse, copy), "relative_floor": _ratio(floor, copy)}
        return {"mse": mse, "copy_mse": copy, "floor_mse": floor, **relative}

    def examples(self, drawn: dict[str, dict[str, Tensor]], count: int) -> dict[str, np.ndarray]:
        """Windows in which most changes (by the copy's error), one per group, as uint8 frames."""
        chosen = self._liveliest(count)
        found = {"window": np.array(chosen, np.int64), "ticks": np.array(self.ticks)}
        for camera in self.cameras:
            pictures = {"present": self.present[camera], "true": self.frames[camera]}
            pictures |= {name: self.decode(tokens, camera) for name, tokens in drawn.items()}
            found |= {f"{name}/{camera}": unit_to_frames(image[chosen]).numpy() for name, image in pictures.items()}
        return found

    def _liveliest(self, count: int) -> list[int]:
        whole = torch.stack([valid.all(dim=1) for valid in self.valid.values()]).all(dim=0)
        change = sum(table.sum(dim=1) for table in self.copy.values())
        best: dict[int, int] = {}
        for index in change.argsort(descending=True).tolist():
            if bool(whole[index]):
                best.setdefault(int(self.groups[index]), index)
        return list(best.values())[:count]


def _ratio(value: float, baseline: float) -> float | None:
    return value / baseline if baseline > 0 else None


def interval(model: Tensor, baseline: Tensor, groups: Tensor) -> tuple[float, float]:
    """95 % bootstrap interval of sum(model) / sum(baseline), whole groups (episodes) drawn with replacement."""
    _, place = groups.unique(return_inverse=True)
    sums = [np.bincount(place.numpy(), weights=value.numpy()) for value in (model, baseline)]
    drawn = np.random.default_rng(0).integers(0, len(sums[0]), (RESAMPLES, len(sums[0])))
    top, bottom = (value[drawn].sum(axis=1) for value in sums)
    ratio = top / np.where(bottom > 0, bottom, np.nan)
    return float(np.nanquantile(ratio, 0.025)), float(np.nanquantile(ratio, 0.975))
