"""Import this before torchvision in a judge whose torch is a CPU build: PyPI's torchvision is linked against CUDA.

torchvision describes the shapes of its two operators `nms` and `qnms` at import, which fails when the library that declares
them could not be loaded. Where it cannot, they are declared here; nobody calls them.
"""

import importlib.util
from pathlib import Path

import torch

_library = Path(importlib.util.find_spec("torchvision").origin).parent / "_C.so"
try:
    torch.ops.load_library(str(_library))
except OSError:
    declared = torch.library.Library("torchvision", "DEF")  # the declarations live as long as this object
    for _name in ("nms", "qnms"):
        declared.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
