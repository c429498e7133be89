"""ResNet-18 (He et al. 2016) with GroupNorm in place of BatchNorm (channels / 16 groups), as diffusion policies use it.

Parameters carry torchvision's key names, so that its weights and the UWM authors' load as they are.
"""

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from uwm.core.shapes import Float


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(channels // 16, 1), channels)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), _norm(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), _norm(after)
        self.downsample = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), _norm(after))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(hidden + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """Normalised frames (B, 3, H, W) to features (B, `out`); `width` channels in the first stage (64 in the paper)."""

    def __init__(self, out: int, width: int = 64):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), _norm(width)
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        for index, (before, after) in enumerate(itertools.pairwise(sizes), start=1):
            stage = nn.Sequential(BasicBlock(before, after, 1 if index == 1 else 2), BasicBlock(after, after, 1))
            setattr(self, f"layer{index}", stage)
        self.fc = nn.Linear(8 * width, out)

    def forward(self, frames: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        return self.fc(self.maps(frames)[-1].mean(dim=(2, 3)))

    def maps(self, frames: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The feature maps of the four stages, at a quarter to a thirty-second of the frame's side."""
        maps = [F.max_pool2d(F.relu(self.bn1(self.conv1(frames))), 3, 2, 1)]
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps.append(stage(maps[-1]))
        return maps[1:]
