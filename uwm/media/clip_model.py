"""One model of short clips and of the words that go with them, and everything that turns its tokens into pictures and text again.

```
clips (C, T, H, W, 3) --PatchPCA--> top  (video, T frames)  --+
instruction           --words-----> text (one-hot words)    --+--> StreamModel: generate, begin from a frame, fill in, go on, caption
```

A checkpoint is a folder as `uwm.learn.checkpoint` writes it; its card tells the streams, the words and the rate of frames.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from uwm.core.config import ConfigError, from_mapping, to_mapping
from uwm.core.patterns import Pattern
from uwm.core.shapes import Float, Int, UInt8
from uwm.core.streams import Layout, Stream
from uwm.learn import checkpoint as checkpoints
from uwm.learn import loop
from uwm.learn.checkpoint import CheckpointError
from uwm.learn.fit import batches
from uwm.learn.loop import TrainConfig, TrainState
from uwm.learn.optim import OptimConfig
from uwm.learn.stream_objective import StreamObjective, one_hot, stream_loss
from uwm.media import latents
from uwm.media.latents import PatchPCA
from uwm.nn.backbone import BackboneConfig
from uwm.nn.stream_model import StreamModel, StreamModelConfig, initialised

KIND = "clips"
VIDEO, TEXT = "top", "text"
OPTIM = OptimConfig(rate=5e-3, weight_decay=0.01, warmup=50, final=0.02, clip=1.0, average=0.99)
# A level per frame in half of the samples, so that frames can be held; words fall with the frames, are known, or are not there.
PATTERNS = (
    Pattern(0.30, video="ptss(0.5)"),
    Pattern(0.25, video="ptss(0.5)", word="given"),
    Pattern(0.25, video="ptss(0.5)", word="absent"),
    Pattern(0.20, video="given"),
)


@dataclass(frozen=True)
class ClipTraining:
    """How a model of clips is made: `patch` pixels a side and `size` components a token, transformer sizes, and the budget."""

    steps: int = 3000
    batch: int = 16
    seed: int = 0
    save_every: int = 200
    patch: int = 16
    size: int = 96
    width: int = 96
    depth: int = 6


@dataclass(frozen=True)
class ClipModel:
    """`model` of the streams `top` and `text`; `pca` its pictures; `words` its vocabulary; `rate_hz` of its frames; `about` its clips."""

    model: StreamModel
    pca: PatchPCA
    words: tuple[str, ...]
    rate_hz: float
    about: Mapping[str, object]

    @property
    def frames(self) -> int:
        """Frames of a clip."""
        return len(self.model.layout[VIDEO].frames)

    @property
    def side(self) -> int:
        """Pixels of a frame's side."""
        return self.model.layout[VIDEO].grid[0] * self.pca.patch

    def tokens(self, frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B n S"]:
        """Frames of this model's size as tokens."""
        return self.pca.encode(frames)

    def pictures(self, tokens: Float[Tensor, "B n S"]) -> UInt8[Tensor, "B T H W 3"]:
        """The inverse, as far as the components reach."""
        return self.pca.decode(tokens, self.side)

    def numbers(self, text: str) -> Int[Tensor, "1 L"]:
        """A text as word numbers. ValueError for words that it does not know and for another length."""
        said, wanted = text.split(), self.model.layout[TEXT].tokens
        strange = [word for word in said if word not in self.words]
        if strange or len(said) != wanted:
            why = f"{strange} are not among them" if strange else f"got {len(said)} words"
            raise ValueError(f"a text of this model has {wanted} words of {', '.join(self.words)}; {why}")
        return torch.tensor([[self.words.index(word) for word in said]])

    def code(self, text: str) -> Float[Tensor, "1 L V"]:
        """A text as clean tokens."""
        return one_hot(self.numbers(text), self.model.layout, TEXT)

    def says(self, words: Int[Tensor, "B L"]) -> list[str]:
        """Texts of word numbers."""
        return [" ".join(self.words[number] for number in each) for each in words.tolist()]


def train(
    out: Path,
    frames: UInt8[Tensor, "C T H W 3"],
    texts: list[str],
    words: tuple[str, ...],
    rate_hz: float,
    config: ClipTraining,
    about: Mapping[str, object],
    on_step: Callable[[int, dict], None] = lambda step, figures: None,
) -> ClipModel:
    """Trains a model of these clips and keeps it in the folder `out`; a run that was stopped goes on from its last checkpoint.

    `about`: where the clips come from. ConfigError when the folder holds a run with other settings or of other clips.
    """
    told = {"training": asdict(config), "clips": dict(about), "words": list(words), "rate_hz": rate_hz}
    saved = _unfinished(out, told)
    pca = latents.fit(frames, config.patch, config.size, whiten=False, seed=config.seed)
    grid = frames.shape[2] // config.patch
    streams = (
        Stream(VIDEO, "video", tuple(range(frames.shape[1])), config.size, (grid, grid)),
        Stream(TEXT, "word", tuple(range(len(texts[0].split()))), len(words)),
    )
    backbone = BackboneConfig(config.width, config.depth, 4, registers=4, waist=32)
    model = initialised(StreamModelConfig(streams, "clean", noise_shift=2.0, backbone=backbone), config.seed)
    made = ClipModel(model, pca, words, rate_hz, dict(about))
    # The same for every step: clips and words are small.
    clean = Layout(streams).pack({VIDEO: pca.encode(frames), TEXT: torch.cat([made.code(text) for text in texts])})
    how = TrainConfig(config.steps, config.batch, config.seed, "float32", config.save_every, optim=OPTIM)
    state = TrainState.fresh(model, how)
    if saved is not None:
        loop.restore(model, state, saved)
    objective = StreamObjective(PATTERNS)
    loss = lambda net, part, generator: stream_loss(net, part, objective, generator)  # noqa: E731
    source = batches(clean, config.batch, config.seed, state.step)
    loop.train(model, state, source, how, on_step, partial(_save, out, made, told), loss)
    model.load_state_dict(state.average.weights)
    model.eval()
    return made


def load(path: Path) -> ClipModel:
    """The model in a folder that `train` filled. CheckpointError for other folders and damaged ones."""
    saved = checkpoints.load(path)
    card = saved.card
    if card.get("kind") != KIND:
        raise CheckpointError(f"{path} is no model of clips but a robot's checkpoint: `uwm eval` and `uwm control` take it")
    model = StreamModel(from_mapping(StreamModelConfig, card["model"], f"{path}: model"))
    parts = {name: saved.average.pop(f"pca.{name}") for name in ("mean", "components", "spread")}
    model.load_state_dict(saved.average)
    return ClipModel(model.eval(), PatchPCA(**parts, patch=card["patch"]), tuple(card["words"]), float(card["rate_hz"]), card["clips"])


def _save(out: Path, made: ClipModel, told: dict, state: TrainState) -> None:
    card = {**told, "kind": KIND, "model": to_mapping(made.model.config), "patch": made.pca.patch}
    pca = {f"pca.{name}": getattr(made.pca, name) for name in ("mean", "components", "spread")}
    average = {**state.average.weights, **pca}
    saved = checkpoints.Checkpoint(state.step, told["training"], card, made.model.state_dict(), average, state.optimiser.tensors())
    checkpoints.save(out, saved)


def _unfinished(out: Path, told: dict) -> checkpoints.Checkpoint | None:
    """An earlier run with these settings, to go on with; None where there is nothing."""
    if not (Path(out) / "checkpoint.json").is_file():
        return None
    card = checkpoints.describe(out)["card"]
    differing = [name for name, value in told.items() if card.get(name) != value]
    if differing:
        raise ConfigError(f"{out} holds a model with other settings ({', '.join(differing)}): choose another folder, or remove that one")
    return checkpoints.load(out, for_training=True)
