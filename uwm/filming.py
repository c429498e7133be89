"""`uwm media`: a model of clips is trained and asked, and what it says is written as PNG, MP4 and text.

```
draw         clips of the pushing arm, not those of training          FOLDER/0000.mp4 .png .txt, first and last frame
train        a model of such clips and their instructions             checkpoint
generate     clips for a text, or clips and texts together            FOLDER/0000.mp4 .png .txt
interpolate  from one picture to another                              FILE.mp4 .png
extend       a video goes on                                          FILE.mp4 .png
caption      what a video shows                                       text
gallery      all of it on one page                                    FILE.html
```
"""

import argparse
import html
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from uwm.bench import pictures
from uwm.media import clip_model, text, video
from uwm.media.clip_model import TEXT, VIDEO, ClipModel, ClipTraining
from uwm.media.metrics import psnr
from uwm.sample.modes import generate
from uwm_data import FormatError
from uwm_data.formats import pictures as picture_files
from uwm_data.formats.video import VideoFile, encode
from uwm_envs import clips as drawn
from uwm_envs.clips import grammar

RATE_HZ, VIEW, FRAMES, SIDE = 4.0, "top", 8, 32
SCALE = 4  # pixels of a file per pixel of the model
AT_ONCE = 8  # samples per batch: a step of the progress bar
HELD_OUT = 1_000_000  # added to a seed: clips for showing are others than those of training


def main(parsed: argparse.Namespace) -> int:
    """One of ACTIONS; 0, or an error of a kind that the command line explains."""
    ACTIONS[parsed.action](parsed)
    return 0


def draw(parsed: argparse.Namespace) -> None:
    """Clips that the model was not trained on, to have pictures and videos to start from."""
    clips = _clips(parsed.count, parsed.seed + HELD_OUT, parsed.world)
    _write(parsed.out, torch.from_numpy(clips.frames[VIEW]), clips.instruction)
    for index, frames in enumerate(clips.frames[VIEW]):
        for name, frame in (("first", frames[0]), ("last", frames[-1])):
            (parsed.out / f"{index:04d}-{name}.png").write_bytes(pictures.png_bytes(_large(frame[None])[0]))


def train(parsed: argparse.Namespace) -> None:
    """A model of clips. The same command goes on where it stopped."""
    clips = _clips(parsed.clips, parsed.seed, parsed.world)
    about = {"made_by": "uwm_envs.clips", "world": parsed.world, "count": parsed.clips, "seed": parsed.seed, "view": VIEW}
    config = ClipTraining(steps=parsed.steps, batch=parsed.batch, seed=parsed.seed)
    with tqdm(total=config.steps, desc="train", unit="step") as bar:

        def told(step: int, figures: dict) -> None:
            bar.update(step - bar.n)
            bar.set_postfix(video=f"{figures[VIDEO]:.3f}", nats=f"{figures[TEXT]:.2f}", refresh=False)

        clip_model.train(
            parsed.out, torch.from_numpy(clips.frames[VIEW]), clips.instruction, tuple(grammar.WORDS), RATE_HZ, config, about, told
        )
    print(f"{parsed.out}: a model of clips after {config.steps} steps")


def generated(
    made: ClipModel, count: int, seed: int, rows: int, guidance: float = 0.0, said: str | None = None
) -> tuple[Tensor, list[str]]:
    """`count` clips (count, T, H, W, 3) for a text, or together with their texts."""
    frames, texts = [], []
    for seeds in _batches(count, seed, "generate"):
        if said is not None:
            out = generate(made.model, [VIDEO], {TEXT: made.code(said)}, rows=rows, guidance=guidance, seeds=seeds)
            texts += [said] * len(seeds)
        else:
            out = generate(made.model, [VIDEO, TEXT], rows=rows, guidance=guidance, seeds=seeds)
            texts += made.says(out[TEXT].argmax(dim=-1))
        frames.append(made.pictures(out[VIDEO]))
    return torch.cat(frames), texts


def filled(made: ClipModel, first: Tensor, last: Tensor, seed: int, rows: int) -> Tensor:
    """One clip (T, H, W, 3) between two frames (H, W, 3), which are held."""
    known = [{VIDEO: made.tokens(frame[None, None])} for frame in (first, last)]
    out = made.pictures(video.between(made.model, *known, [seed], rows=rows)[VIDEO])[0]
    out[0], out[-1] = first, last  # held tokens are exact; the pictures are given, not what the components make of them
    return out


def extended(made: ClipModel, frames: Tensor, more: int, overlap: int, seed: int, rows: int) -> Tensor:
    """A video (n, H, W, 3) with `more` frames behind it; every part begins with `overlap` frames of the one before."""
    begin = {VIDEO: made.tokens(frames[None])}
    out = made.pictures(video.go_on(made.model, begin, more, overlap, [seed], rows=rows)[VIDEO])[0]
    return torch.cat([frames, out[len(frames) :]])


def said_of(made: ClipModel, frames: Tensor, seed: int, rows: int) -> str:
    """What a clip (T, H, W, 3) shows, in the model's words."""
    length = made.model.layout[TEXT].tokens
    nothing, free = torch.zeros(1, length, dtype=torch.int64), torch.ones(1, length, dtype=torch.bool)
    words, _ = text.fill_in(made.model, TEXT, nothing, free, rows, [seed], {VIDEO: made.tokens(frames[None])})
    return made.says(words)[0]


def _generate(parsed: argparse.Namespace) -> None:
    made = clip_model.load(parsed.checkpoint)
    if parsed.text is not None:
        made.numbers(parsed.text)  # a wrong word is told before anything is made
    _write(parsed.out, *generated(made, parsed.count, parsed.seed, parsed.rows, parsed.guidance, parsed.text))


def _interpolate(parsed: argparse.Namespace) -> None:
    made = clip_model.load(parsed.checkpoint)
    first, last = (_picture(made, path) for path in (parsed.first, parsed.last))
    for seeds in _batches(1, parsed.seed, "interpolate"):
        _film(parsed.out, filled(made, first, last, seeds[0], parsed.rows), made.rate_hz)


def _extend(parsed: argparse.Namespace) -> None:
    made = clip_model.load(parsed.checkpoint)
    frames = _video(made, parsed.video, at_least=parsed.overlap)
    for seeds in _batches(1, parsed.seed, "extend"):
        _film(parsed.out, extended(made, frames, parsed.frames, parsed.overlap, seeds[0], parsed.rows), made.rate_hz)


def _caption(parsed: argparse.Namespace) -> None:
    made = clip_model.load(parsed.checkpoint)
    frames = _video(made, parsed.video, at_least=made.frames)[: made.frames]
    said = said_of(made, frames, parsed.seed, parsed.rows)
    print(said)
    if parsed.out is not None:
        parsed.out.parent.mkdir(parents=True, exist_ok=True)
        parsed.out.write_text(said + "\n")


def gallery(parsed: argparse.Namespace) -> None:
    """One page with everything that a model of clips does, beside real clips of another seed."""
    made = clip_model.load(parsed.checkpoint)
    real = _clips(parsed.count, parsed.seed + HELD_OUT, made.about["world"])
    truth = torch.from_numpy(real.frames[VIEW])
    coded = made.pictures(made.tokens(truth))
    joint, texts = generated(made, parsed.count, parsed.seed, parsed.rows)
    asked = [generated(made, 1, parsed.seed + index, parsed.rows, said=said)[0][0] for index, said in enumerate(real.instruction)]
    between = [filled(made, clip[0], clip[-1], parsed.seed + index, parsed.rows) for index, clip in enumerate(truth)]
    longer = [extended(made, clip[:4], made.frames, 4, parsed.seed + index, parsed.rows) for index, clip in enumerate(truth)]
    heard = [said_of(made, clip, parsed.seed + index, parsed.rows) for index, clip in enumerate(truth)]
    inner = torch.stack(between)[:, 1:-1]
    parts = [
        _section("Clips that the model has not seen", truth, real.instruction),
        _section(f"The same after encoding and decoding: {psnr(coded, truth):.1f} dB, the limit of all that follows", coded),
        _section("Clips and words drawn together", joint, texts),
        _section("Clips for the instructions above", torch.stack(asked), real.instruction),
        _section(f"Between the first frame and the last of each: {psnr(inner, truth[:, 1:-1]):.1f} dB from the real ones",
                 torch.stack(between)),
        _section("The first four frames, and eight more", torch.stack(longer)),
        _section("What each real clip is said to show", truth, heard),
    ]  # fmt: skip
    style = "body{font:15px system-ui;margin:2rem auto;max-width:62rem}figure{margin:.6rem 0}img{width:100%}figcaption{color:#555}"
    said = f"made by <code>uwm media gallery {html.escape(str(parsed.checkpoint))}</code>, seed {parsed.seed}, {parsed.rows} rows; "
    head = f"<!doctype html><meta charset=utf-8><title>uwm: a model of clips</title><style>{style}</style>"
    page = f"{head}<h1>A model of clips</h1><p>{said}"
    parsed.out.parent.mkdir(parents=True, exist_ok=True)
    parsed.out.write_text(f"{page}nothing is chosen: the first {parsed.count} seeds are shown.</p>{''.join(parts)}")
    print(parsed.out)


ACTIONS = {
    "draw": draw, "train": train, "generate": _generate, "interpolate": _interpolate, "extend": _extend, "caption": _caption,
    "gallery": gallery,
}  # fmt: skip


def _section(title: str, clips: Tensor, texts: Sequence[str] = ()) -> str:
    """A strip of frames per clip, with what is said of it."""
    told = texts or [""] * len(clips)
    strips = [pictures.png(pictures.sheet([list(clip)], scale=2)) for clip in clips.numpy()]
    figures = [f"<figure><img src='{strip}' alt=''><figcaption>{html.escape(said)}</figcaption></figure>"
               for strip, said in zip(strips, told, strict=True)]  # fmt: skip
    return f"<h2>{html.escape(title)}</h2>{''.join(figures)}"


def _clips(count: int, seed: int, world: str) -> drawn.Clips:
    with tqdm(total=count, desc="clips", unit="clip") as bar:
        return drawn.make(count, seed, FRAMES, SIDE, (VIEW,), world=world, on_clip=lambda index: bar.update())


def _batches(count: int, seed: int, what: str) -> Iterator[list[int]]:
    """Seeds in batches, with a bar of samples; the same seeds give the same samples whatever the batch."""
    with tqdm(total=count, desc=what, unit="sample") as bar:
        for first in range(0, count, AT_ONCE):
            seeds = [seed + index for index in range(first, min(first + AT_ONCE, count))]
            yield seeds
            bar.update(len(seeds))


def _write(folder: Path, clips: Tensor, texts: Sequence[str]) -> None:
    """A film and a text each."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, (clip, said) in enumerate(zip(clips, texts, strict=True)):
        _film(folder / f"{index:04d}.mp4", clip, RATE_HZ, quiet=True)
        (folder / f"{index:04d}.txt").write_text(said + "\n")
    print(f"{folder}: {len(clips)} clips as mp4, png and txt")


def _film(path: Path, frames: Tensor, rate_hz: float, quiet: bool = False) -> None:
    """Frames (n, H, W, 3) as an mp4 and, beside it, as a strip in a png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".mp4").write_bytes(encode(_large(frames.numpy()), rate_hz))
    path.with_suffix(".png").write_bytes(pictures.png_bytes(pictures.sheet([list(frames.numpy())], scale=SCALE)))
    if not quiet:
        print(f"{path.with_suffix('.mp4')} and .png: {len(frames)} frames")


def _large(frames: np.ndarray) -> np.ndarray:
    return frames.repeat(SCALE, axis=1).repeat(SCALE, axis=2)


def _picture(made: ClipModel, path: Path) -> Tensor:
    """A PNG or JPEG at the model's size. FormatError for other files."""
    from PIL import Image

    data = path.read_bytes()
    pixels = picture_files.decode(data, (*picture_files.size_of(data, str(path)), 3), str(path))
    return torch.from_numpy(np.array(Image.fromarray(pixels).resize((made.side, made.side), Image.Resampling.BOX)))


def _video(made: ClipModel, path: Path, at_least: int) -> Tensor:
    """All frames of a video (n, H, W, 3) at the model's size. FormatError for other files and for one that is too short."""
    with VideoFile(path) as film:
        count = film.count()
        if count < at_least:
            raise FormatError(f"{path} has {count} frames, {at_least} are needed")
        return torch.from_numpy(film.pick(np.arange(count), (made.side, made.side)))
