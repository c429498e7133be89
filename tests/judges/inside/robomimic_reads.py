"""Open HDF5 files with robomimic's SequenceDataset and write down every window, and what robomimic says about env and shapes.

Asked: {"obs": [low-dimensional keys], "images": [keys],
        "files": {path: [{"out", "obs": keys, "data": keys, more arguments of SequenceDataset}]}}.
Arrays in `out`: data keys and `obs.<key>`, `next_obs.<key>` as (windows, frames, *shape).
"""

import torchvision_operators  # isort: skip # noqa: F401
import answering
import numpy as np
import robomimic.utils.file_utils as file_utils
import robomimic.utils.obs_utils as obs_utils
from robomimic.utils.dataset import SequenceDataset

request = answering.asked()
obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": request["obs"], "rgb": request["images"], "depth": [], "scan": []}})


def windows_of(dataset):
    """{name: (windows, frames, ...)} over all windows."""
    columns = {}
    for index in range(len(dataset)):
        for key, value in dataset[index].items():
            parts = {f"{key}.{inner}": array for inner, array in value.items()} if isinstance(value, dict) else {key: value}
            for name, array in parts.items():
                columns.setdefault(name, []).append(array)
    return {name: np.stack(arrays) for name, arrays in columns.items()}


def told(path, cases):
    """What robomimic says about a file and the demonstrations of each case; the windows go to the cases' folders."""
    demos = []
    for case in cases:
        out, obs, data = (case.pop(key) for key in ("out", "obs", "data"))
        dataset = SequenceDataset(hdf5_path=path, obs_keys=obs, dataset_keys=data, **case)
        answering.save(out, windows_of(dataset))
        demos.append(dataset.demos)
    shapes = file_utils.get_shape_metadata_from_dataset(path, all_obs_keys=request["obs"] + request["images"])
    return {
        "demos": demos, "env": file_utils.get_env_metadata_from_dataset(path), "action": int(shapes["ac_dim"]),
        "shapes": {key: list(map(int, shape)) for key, shape in shapes["all_shapes"].items()}, "images": bool(shapes["use_images"]),
    }  # fmt: skip


answering.answer(files={path: told(path, cases) for path, cases in request["files"].items()})
