"""Frames as a few numbers per patch: principal components, fitted once, exact to invert but for what they leave out.

```
(H, W, 3) --> patches of p x p x 3 --> their `size` main components, each with unit variance --> (H / p) x (W / p) tokens
```

Not whitened, all components have one scale: errors of tokens are then errors of pixels, and a model learns first what is seen most.

For experiments on small pictures; a generator's error is told against what the components leave out (`floor`).
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from uwm.core.shapes import Float, UInt8


@dataclass(frozen=True)
class PatchPCA:
    """`mean` (D,), `components` (size, D) orthonormal and `spread` (size,) of patches with D = patch * patch * 3 numbers in [0, 1]."""

    mean: Float[Tensor, " D"]
    components: Float[Tensor, "S D"]
    spread: Float[Tensor, " S"]
    patch: int

    @property
    def size(self) -> int:
        """Numbers per token."""
        return len(self.components)

    def encode(self, frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B N S"]:
        """Tokens frame by frame, row by row."""
        patches = _patches(frames, self.patch)
        return rearrange((patches - self.mean) @ self.components.T / self.spread, "b t n s -> b (t n) s")

    def decode(self, tokens: Float[Tensor, "B N S"], side: int) -> UInt8[Tensor, "B T H W 3"]:
        """The inverse of `encode` for square frames of `side` pixels, as far as the components go."""
        grid = side // self.patch
        patches = rearrange(tokens, "b (t n) s -> b t n s", n=grid * grid) * self.spread @ self.components + self.mean
        frames = rearrange(patches, "b t (r c) (y x d) -> b t (r y) (c x) d", r=grid, y=self.patch, x=self.patch)
        return (frames * 255).round().clamp(0, 255).to(torch.uint8)

    def floor(self, frames: UInt8[Tensor, "B T H W 3"]) -> float:
        """PSNR in dB of frames that were encoded and decoded: no generator on these tokens can be nearer."""
        from uwm.media.metrics import psnr

        return psnr(self.decode(self.encode(frames), frames.shape[2]), frames)


def fit(
    frames: UInt8[Tensor, "B T H W 3"], patch: int = 8, size: int = 16, whiten: bool = True, most: int = 100_000, seed: int = 0
) -> PatchPCA:
    """The components of these frames' patches, of at most `most` of them; `whiten`: each with unit variance, else all together.

    ValueError when the frames do not divide into patches.
    """
    side = frames.shape[2]
    if frames.shape[3] != side or side % patch or not 1 <= size <= patch * patch * 3:
        raise ValueError(f"frames must be square and divide into patches, and have 1 to {patch * patch * 3} components; got "
                         f"{tuple(frames.shape)}, patch {patch}, size {size}")  # fmt: skip
    patches = _patches(frames, patch).flatten(0, 2)
    if len(patches) > most:
        patches = patches[torch.randperm(len(patches), generator=torch.Generator().manual_seed(seed))[:most]]
    mean = patches.mean(dim=0)
    values, vectors = torch.linalg.eigh((patches - mean).T.double() @ (patches - mean).double() / len(patches))
    order = values.argsort(descending=True)[:size]
    spread = values[order].clamp(min=1e-8).sqrt()
    spread = spread if whiten else spread.square().mean().sqrt().expand(size)
    return PatchPCA(mean, vectors[:, order].T.float().contiguous(), spread.float(), patch)


def _patches(frames: Tensor, patch: int) -> Tensor:
    pixels = frames.float() / 255
    return rearrange(pixels, "b t (r y) (c x) d -> b t (r c) (y x d)", y=patch, x=patch)
