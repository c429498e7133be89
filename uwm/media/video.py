"""Videos of a stream model whose frames have levels of their own: begin from a frame, fill in between two, go on.

```
from a frame      f0 @  @  @  @  @  @  @         held: f0
in between        f0 @  @  @  @  @  @  f7        held: f0 and f7, the goal
go on             f4 f5 f6 f7 @  @  @  @         the last frames of a part are the first of the next
                              '--> and so on, part by part
```

Held frames come back bit for bit, or, with a multiplier above 0, a little noisy so that the seam can be mended (Pusa, Liu et al. 2025).
Tokens are (B, n, S); all video streams of the model share their frames. Sources: FVDM (Liu et al. 2024), sec. 3.3; Pusa, sec. 3.2.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from uwm.core.plans import hold
from uwm.nn.stream_model import StreamModel
from uwm.sample.modes import Assignment, generate

Tokens = Mapping[str, Tensor]


def with_frames(
    model: StreamModel,
    known: Mapping[int, Tokens],
    seeds: Sequence[int],
    given: Tokens | None = None,
    levels: Mapping[int, float] | None = None,
    scale: bool = False,
    rows: int = 20,
    guidance: float = 0.0,
    limit: float | None = None,
) -> dict[str, Tensor]:
    """All frames of the video streams, where `known` {place of a frame: {stream: tokens of it}} are held.

    `levels` {place: level, or with `scale` a multiplier}, 0 unless told. `given`: whole other streams. ValueError as of `hold` and
    `generate`, for a place that is not there, for levels of frames that are not known, and for streams that know different frames.
    """
    names = _videos(known)
    layout = model.layout.select([*names, *(given or {})])
    plan = Assignment(tuple(names), tuple(given or {})).plan(layout, rows)
    levels = dict(levels or {})
    strange = sorted(set(levels) - set(known))
    if strange:
        raise ValueError(f"levels are of known frames, got some for {strange}; known are {sorted(known)}")
    held = {}
    for place in known:
        for name in names:
            stream = layout[name]
            if not -len(stream.frames) <= place < len(stream.frames):
                raise ValueError(f"{name!r} has {len(stream.frames)} frames, there is no frame at place {place}")
            held[name, stream.frames[place]] = levels.get(place, 0.0)
    plan = hold(plan, layout, held, scale)
    values = {name: _placed(model, name, known) for name in names}
    return generate(model, names, given, rows=rows, guidance=guidance, seeds=seeds, plan=plan, known=values, limit=limit)


def from_frame(model: StreamModel, first: Tokens, seeds: Sequence[int], **options) -> dict[str, Tensor]:
    """Image to video: the first frame is known. Options as of `with_frames`."""
    return with_frames(model, {0: first}, seeds, **options)


def between(model: StreamModel, first: Tokens, last: Tokens, seeds: Sequence[int], **options) -> dict[str, Tensor]:
    """Interpolation: the first frame and the last are known; a start and a goal. Options as of `with_frames`."""
    return with_frames(model, {0: first, -1: last}, seeds, **options)


def go_on(
    model: StreamModel, begin: Tokens, frames: int, overlap: int, seeds: Sequence[int], given: Tokens | None = None, **options
) -> dict[str, Tensor]:
    """`frames` more frames behind those of `begin` (at least `overlap`), part by part: each begins with the last of the one before.

    `given` {stream: tokens over all frames, those of `begin` included}: a part takes its own. Options as of `with_frames`. ValueError
    when the overlap is no number of frames from 1 to one less than a part has, or `begin` is shorter.
    """
    part = {len(model.layout[name].frames) for name in begin}
    whole = dict(begin)
    have = {name: value.shape[1] // model.layout[name].frame_tokens for name, value in begin.items()}
    if len(part) != 1 or len(set(have.values())) != 1:
        raise ValueError(f"the video streams must have as many frames, got parts of {sorted(part)} and {have}")
    length, count = part.pop(), next(iter(have.values()))
    if not 1 <= overlap < length or count < overlap or frames < 1:
        allowed = f"overlap lies between 1 and {length - 1} and not above the {count} frames that there are"
        raise ValueError(f"{allowed}, and frames is at least 1; got overlap {overlap}, frames {frames}")
    done, index = 0, 0
    while done < frames:
        first = count + done - overlap
        known = {place: {name: _cut(model, name, value, first + place, 1) for name, value in whole.items()} for place in range(overlap)}
        own = {name: _cut(model, name, value, first, length) for name, value in (given or {}).items()}
        made = with_frames(model, known, [seed + index * PARTS for seed in seeds], own, **options)
        fresh = {name: value[:, overlap * model.layout[name].frame_tokens :] for name, value in made.items()}
        whole = {name: torch.cat([whole[name].expand(len(seeds), -1, -1), fresh[name]], dim=1) for name in whole}
        done, index = done + length - overlap, index + 1
    return {name: value[:, : (count + frames) * model.layout[name].frame_tokens] for name, value in whole.items()}


PARTS = 2**20  # added to the seeds of every further part


def _videos(known: Mapping[int, Tokens]) -> list[str]:
    names = {tuple(sorted(each)) for each in known.values()}
    if len(names) != 1:
        raise ValueError(f"every known frame must be there in the same streams, got {sorted(names) or 'no frame'}")
    return list(names.pop())


def _placed(model: StreamModel, name: str, known: Mapping[int, Tokens]) -> Tensor:
    """Tokens of a whole stream with the known frames in their places."""
    stream, size = model.layout[name], model.layout[name].frame_tokens
    batch = max(each[name].shape[0] for each in known.values())
    whole = torch.zeros(batch, stream.tokens, stream.size)
    for place, each in known.items():
        if each[name].shape[1:] != (size, stream.size):
            raise ValueError(f"a frame of {name!r} is (B, {size}, {stream.size}), got {tuple(each[name].shape)}")
        begin = (place % len(stream.frames)) * size
        whole[:, begin : begin + size] = each[name]
    return whole


def _cut(model: StreamModel, name: str, value: Tensor, first: int, count: int) -> Tensor:
    size = model.layout[name].frame_tokens
    if value.shape[1] < (first + count) * size:
        raise ValueError(f"{name!r} must reach over {first + count} frames, got {value.shape[1] // size}")
    return value[:, first * size : (first + count) * size]
