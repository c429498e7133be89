"""Write a replay buffer with zarr 2.18 as diffusion_policy's ReplayBuffer does: a folder grows by appending episodes, a zip gets
the finished arrays at once.

Asked: {"path", "episodes": [folder], "codecs": {key: Blosc settings or null}}. A path that ends in .zip makes one file.
"""

import answering
import numcodecs
import numpy as np
import zarr

request = answering.asked()
episodes = [answering.load(folder) for folder in request["episodes"]]
ends = np.cumsum([len(arrays["action"]) for arrays in episodes], dtype=np.int64)
as_zip = request["path"].endswith(".zip")
if as_zip:
    episodes = [{key: np.concatenate([arrays[key] for arrays in episodes]) for key in episodes[0]}]


def begin(data, arrays):
    """The first episode, which fixes chunks along time and codecs."""
    for key, values in arrays.items():
        settings = request["codecs"].get(key)
        codec = numcodecs.Blosc(**settings) if settings else None
        chunks = (max(1, len(values) // 2), *values.shape[1:])
        data.create_dataset(key, data=values, chunks=chunks, dtype=values.dtype, compressor=codec)


store = zarr.ZipStore(request["path"], mode="w") if as_zip else zarr.DirectoryStore(request["path"])
root = zarr.group(store=store)
data, meta = root.require_group("data"), root.require_group("meta")
begin(data, episodes[0])
for arrays in episodes[1:]:
    for key, values in arrays.items():
        data[key].append(values)
meta.create_dataset("episode_ends", data=ends, dtype=np.int64, compressor=None)
if as_zip:
    store.close()
answering.answer(steps=int(ends[-1]))
