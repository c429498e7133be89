"""Replay buffers for tests, written by zarr's own library or byte for byte: nothing of the code under test."""

import json
import shutil
import zipfile

import numpy as np
import zarr

ENDS = (4, 5, 12)


def pusht_arrays(seed=0, steps=ENDS[-1]):
    """Arrays under the keys and in the shapes and dtypes of Push-T."""
    random = np.random.default_rng(seed)
    shapes = {"state": (5,), "action": (2,), "keypoint": (9, 2), "n_contacts": (1,)}
    arrays = {name: random.uniform(0, 500, (steps, *shape)).astype(np.float32) for name, shape in shapes.items()}
    image = np.linspace(0, 255, 96)[:, None, None] * np.ones((1, 96, 3))
    image[:20, :20] = (230, 20, 20)
    return {**arrays, "img": np.stack([image.astype(np.uint8).astype(np.float32) + 0 * step for step in range(steps)])}


def write_buffer(path, arrays, ends=ENDS, chunk=3, **options):
    """A buffer written by zarr-python; `options` go to the creation of the data arrays."""
    root = zarr.open_group(path, mode="w", zarr_format=2)
    data, meta = root.create_group("data"), root.create_group("meta")
    for name, values in arrays.items():
        made = data.create_array(name, shape=values.shape, dtype=values.dtype, chunks=(chunk, *values.shape[1:]), **options)
        made[...] = values
    meta.create_array("episode_ends", shape=(len(ends),), dtype="int64", chunks=(2,), compressors=None)[...] = np.array(ends)
    return path


def raw_array(folder, values, chunks, encode=bytes, **about):
    """One array byte for byte; `encode` makes the content of each chunk (along time only)."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {"zarr_format": 2, "shape": values.shape, "chunks": chunks, "dtype": values.dtype.str, "compressor": None,
            "fill_value": 0, "order": "C", "filters": None}  # fmt: skip
    (folder / ".zarray").write_text(json.dumps({**told, **about}))
    for number in range(-(-len(values) // chunks[0])):
        part = np.zeros(chunks, values.dtype)
        rows = values[number * chunks[0] : (number + 1) * chunks[0]]
        part[: len(rows)] = rows
        (folder / ".".join([str(number), *["0"] * (values.ndim - 1)])).write_bytes(encode(part))


def raw_buffer(path, name="img", values=None, chunks=None, encode=bytes, **about):
    """A buffer of an action and one more array, byte for byte; two episodes of two rows."""
    for folder in (path, path / "data", path / "meta"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
    raw_array(path / "data" / "action", np.arange(8, dtype="<f4").reshape(4, 2), (4, 2))
    if values is not None:
        raw_array(path / "data" / name, values, chunks or (2, *values.shape[1:]), encode, **about)
    raw_array(path / "meta" / "episode_ends", np.array([2, 4], "<i8"), (2,))
    return path


def change(path, array, **about):
    """Overwrite parts of an array's description."""
    file = path / array / ".zarray"
    file.write_text(json.dumps({**json.loads(file.read_text()), **about}))


def zipped(path, target, root=""):
    """The folder as one zip, its files stored as zarr stores them."""
    with zipfile.ZipFile(target, "w") as file:
        for each in sorted(path.rglob("*")):
            if each.is_file():
                file.write(each, root + each.relative_to(path).as_posix())
    return target


def copied(path, target):
    shutil.copytree(path, target)
    return target
