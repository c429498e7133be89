"""Open a replay buffer with zarr 2.18 as diffusion_policy does: everything into memory, and what zarr says about the arrays.

Asked: {"path", "out"}. Arrays in `out`: `data.<key>` and `meta.<key>`.
"""

import answering
import zarr

request = answering.asked()
root = zarr.open(request["path"], mode="r")
arrays = {f"{group}.{key}": array for group in ("data", "meta") for key, array in root[group].arrays()}
answering.save(request["out"], {name: array[:] for name, array in arrays.items()})
answering.answer(version=zarr.__version__, groups=sorted(root.group_keys()), arrays={
    name: {
        "codec": array.compressor.get_config() if array.compressor else None, "filters": array.filters, "order": array.order,
        "chunks": list(array.chunks), "attributes": dict(array.attrs),
    }
    for name, array in arrays.items()
})  # fmt: skip
