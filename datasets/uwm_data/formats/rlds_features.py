"""`features.json` of TensorFlow Datasets: the tree of features, read into a flat list and written from one.

    { FeaturesDict: { steps: Dataset of { FeaturesDict: { action: Tensor, observation: FeaturesDict { image: Image, ... } } },
                      episode_metadata: FeaturesDict { file_path: Text } } }
    ->  steps/action, steps/observation/image, episode_metadata/file_path

A record keeps the values of all steps of a feature in one list, one behind the other. Numbers are float32 or int64 there; a
Tensor with encoding "bytes" keeps its own dtype in one byte string a step, which is how float64 stays exact.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uwm_data.errors import FormatError

FEATURES_FILE = "features.json"
STEPS = "steps"
_LARGEST_JSON = 64 << 20
_LARGEST_STEP = 1 << 31  # bytes of one feature of one step
_CLASSES = "tensorflow_datasets.core.features."


@dataclass(frozen=True)
class Feature:
    """A leaf of the tree. `path` from the root; `kind` tensor, image or text; a size that is not told is 0.

    `encoding`: none, bytes or zlib of a tensor; png, jpeg or "" (either) of an image.
    """

    path: str
    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = "string"
    encoding: str = "none"

    @property
    def name(self) -> str:
        """The path below `steps`, or below the root for fields of the whole episode."""
        return self.path.removeprefix(STEPS + "/")

    @property
    def step_bytes(self) -> int:
        """Bytes of one step in memory."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def read_json(path: Path) -> dict:
    """A JSON object from a file that somebody else wrote; FormatError on anything else."""
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise FormatError(f"{path} has {path.stat().st_size} bytes; that is no description of a dataset")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is no JSON ({error}); copy it again") from error
    if not isinstance(found, dict):
        raise FormatError(f"{path} holds a {type(found).__name__}, expected an object")
    return found


def read_features(path: Path) -> tuple[list[Feature], list[str]]:
    """(the leaves, what is left out in words) of a features.json."""
    features, left_out = [], []
    try:
        for found in _leaves(read_json(path), ""):
            (features if isinstance(found, Feature) else left_out).append(found)
    except RecursionError as error:
        raise FormatError(f"{path} nests too deep for a tree of features") from error
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    return features, left_out


def _leaves(node: object, path: str) -> Iterator[Feature | str]:
    name = _text_of(node, "pythonClassName", path).rpartition(".")[2]
    if name == "FeaturesDict":
        for key, child in _part(_part(node, "featuresDict", path), "features", path).items():
            yield from _leaves(child, f"{path}/{key}" if path else key)
    elif name in ("Dataset", "Sequence") and path == STEPS:
        yield from _leaves(_part(_part(node, "sequence", path), "feature", path), path)
    elif name in ("Tensor", "Scalar"):
        yield _tensor(_part(node, "tensor", path), path)
    elif name == "Image":
        yield _image(_part(node, "image", path), path)
    elif name == "Text":
        yield Feature(path, "text")
    elif name == "ClassLabel":
        yield Feature(path, "tensor", (), "int64")
    else:
        yield f"{path}: features of class {name} are not read"


def _tensor(part: Mapping, path: str) -> Feature | str:
    shape, dtype = _shape(part, path), part.get("dtype")
    if dtype in ("string", "object") and not shape:
        return Feature(path, "text")
    encoding = part.get("encoding") or "none"
    if not _is_number(dtype) or encoding not in ("none", "bytes", "zlib"):
        return f"{path}: tensors of dtype {dtype!r} with encoding {encoding!r} are not read"
    return _sized(Feature(path, "tensor", shape, np.dtype(dtype).name, encoding))


def _image(part: Mapping, path: str) -> Feature | str:
    shape, dtype = _shape(part, path), part.get("dtype") or "uint8"
    encoding = part.get("encodingFormat") or ""
    if dtype != "uint8" or len(shape) != 3 or shape[2] not in (1, 3, 4) or encoding not in ("", "png", "jpeg"):
        return f"{path}: images of dtype {dtype!r}, shape {shape} and encoding {encoding!r} are not read"
    return _sized(Feature(path, "image", shape, dtype, encoding))


def _sized(feature: Feature) -> Feature | str:
    if feature.kind == "tensor" and 0 in feature.shape:
        return f"{feature.path}: its shape changes from step to step"
    if feature.step_bytes > _LARGEST_STEP:
        raise FormatError(f"{feature.path} claims {feature.step_bytes} bytes a step (shape {feature.shape}); no sensor gives that much")
    return feature


def _is_number(dtype: object) -> bool:
    try:
        return isinstance(dtype, str) and np.dtype(dtype).kind in "biuf" and np.dtype(dtype).itemsize <= 8
    except TypeError:
        return False


def _shape(part: Mapping, path: str) -> tuple[int, ...]:
    sizes = _part(part, "shape", path).get("dimensions", []) if "shape" in part else []
    try:
        return tuple(max(int(size), 0) for size in sizes)
    except (TypeError, ValueError) as error:
        raise FormatError(f"the shape of {path!r} is {sizes!r}, expected whole numbers") from error


def _part(node: object, key: str, path: str) -> dict:
    part = node.get(key) if isinstance(node, dict) else None
    if not isinstance(part, dict):
        raise FormatError(f"the feature {path or '(root)'!r} lacks {key!r}; this is no features.json of TensorFlow Datasets")
    return part


def _text_of(node: object, key: str, path: str) -> str:
    text = node.get(key) if isinstance(node, dict) else None
    if not isinstance(text, str):
        raise FormatError(f"the feature {path or '(root)'!r} lacks {key!r}; this is no features.json of TensorFlow Datasets")
    return text


# ---- writing ---------------------------------------------------------------------------------------------------------


def features_json(features: Iterable[Feature]) -> bytes:
    """The features.json of these leaves; everything under `steps` becomes a Dataset."""
    tree: dict = {}
    for feature in features:
        *folders, leaf = feature.path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = feature
    return json.dumps(_node(tree, ""), indent=4).encode()


def _node(tree: Mapping | Feature, path: str) -> dict:
    if isinstance(tree, Feature):
        return _leaf(tree)
    children = {name: _node(child, f"{path}/{name}".lstrip("/")) for name, child in tree.items()}
    node = {"pythonClassName": _CLASSES + "features_dict.FeaturesDict", "featuresDict": {"features": children}}
    if path == STEPS:
        return {"pythonClassName": _CLASSES + "dataset_feature.Dataset", "sequence": {"feature": node, "length": "-1"}}
    return node


def _leaf(feature: Feature) -> dict:
    if feature.kind == "text":
        return {"pythonClassName": _CLASSES + "text_feature.Text", "text": {}}
    told = {"shape": {"dimensions": [str(size) for size in feature.shape]} if feature.shape else {}, "dtype": feature.dtype}
    if feature.kind == "image":
        return {"pythonClassName": _CLASSES + "image_feature.Image", "image": {**told, "encodingFormat": feature.encoding}}
    name = "tensor_feature.Tensor" if feature.shape or feature.encoding != "none" else "scalar.Scalar"
    return {"pythonClassName": _CLASSES + name, "tensor": {**told, "encoding": feature.encoding}}
