"""Open an RLDS set with TensorFlow Datasets and write down every step of every episode.

Asked: {"path", "out"}. Arrays in `out`: `<split>.<episode>.steps.<field>...` as (steps, *shape) and
`<split>.<episode>.<episode field>...`; texts are arrays of strings.
"""

import answering
import numpy as np
import tensorflow_datasets as tfds

request = answering.asked()
builder = tfds.builder_from_directory(request["path"])


def flat(tree, before=""):
    """{dotted name: leaf} of nested dictionaries."""
    return {
        name: leaf for key, value in tree.items()
        for name, leaf in (flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}).items()
    }  # fmt: skip


def plain(values):
    """An array without objects: TensorFlow's texts are bytes."""
    values = np.asarray(values)
    return np.char.decode(values.astype(np.bytes_), "utf-8") if values.dtype.kind in "OS" else values


arrays = {}
for split in builder.info.splits:
    for number, episode in enumerate(tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False))):
        steps = [flat(step) for step in episode.pop("steps")]
        for key in steps[0]:
            arrays[f"{split}.{number}.steps.{key}"] = plain([step[key] for step in steps])
        arrays.update({f"{split}.{number}.{key}": plain(value) for key, value in flat(episode).items()})
answering.save(request["out"], arrays)
info = builder.info
answering.answer(
    name=info.name, version=str(info.version), features=str(info.features),
    splits={name: {"episodes": split.num_examples, "shards": split.num_shards} for name, split in info.splits.items()},
)  # fmt: skip
