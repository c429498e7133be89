"""Lay out a file as robomimic's `dataset_states_to_obs` does (it needs a simulator for the frames themselves), and let robomimic's
own split and filter functions add the masks.

Asked: {"path", "env": env_args, "demos": [folder], "filters": {name: [demo names]}, "ratio": of validation demos}. Without demos the
file at `path` stays as it is and only gets the masks. The arrays of a demo are called `actions`, `rewards`, `dones`, `states`,
`obs.<key>` and `next_obs.<key>`.
"""

import torchvision_operators  # isort: skip # noqa: F401
import json

import answering
import h5py
import numpy as np
from robomimic.scripts.split_train_val import split_train_val_from_hdf5
from robomimic.utils.file_utils import create_hdf5_filter_key, get_demos_for_filter_key

request = answering.asked()


def lay_out():
    """The whole file."""
    with h5py.File(request["path"], "w") as file:
        data = file.create_group("data")
        for number, folder in enumerate(request["demos"]):
            group = data.create_group(f"demo_{number}")
            for name, values in answering.load(folder).items():
                place, _, key = name.rpartition(".")
                packed = {"compression": "gzip"} if place else {}
                group.create_dataset(f"{place}/{key}" if place else key, data=values, **packed)
            group.attrs["num_samples"] = len(group["actions"])
        data.attrs["total"] = sum(len(group["actions"]) for group in data.values())
        data.attrs["env_args"] = json.dumps(request["env"], indent=4)


if request["demos"]:
    lay_out()
for name, demos in request["filters"].items():
    create_hdf5_filter_key(hdf5_path=request["path"], demo_keys=demos, key_name=name)
np.random.seed(0)
split_train_val_from_hdf5(request["path"], val_ratio=request["ratio"])
answering.answer(train=get_demos_for_filter_key(request["path"], "train"), valid=get_demos_for_filter_key(request["path"], "valid"))
