"""Write an RLDS set with TensorFlow Datasets' own builder, as the builders of Open X-Embodiment do.

Asked: {"folder", "version", "images": {key: {"shape", "encoding"}}, "vectors": {key: [shape, dtype]},
        "splits": {split: [{"arrays": folder, "instruction", "file_path"}]}}.
The arrays of an episode are (steps, *shape): `action`, `reward`, and observations under their keys.
"""

import answering
import numpy as np
import tensorflow_datasets as tfds

request = answering.asked()
images = {
    key: tfds.features.Image(shape=tuple(image["shape"]), dtype=np.uint8, encoding_format=image["encoding"])
    for key, image in request["images"].items()
}
vectors = {key: tfds.features.Tensor(shape=tuple(shape), dtype=np.dtype(dtype)) for key, (shape, dtype) in request["vectors"].items()}
action = vectors.pop("action")
FEATURES = tfds.features.FeaturesDict({
    "steps": tfds.features.Dataset({
        "observation": tfds.features.FeaturesDict({**images, **vectors}),
        "action": action,
        "discount": tfds.features.Scalar(dtype=np.float32),
        "reward": tfds.features.Scalar(dtype=np.float32),
        "is_first": tfds.features.Scalar(dtype=np.bool_),
        "is_last": tfds.features.Scalar(dtype=np.bool_),
        "is_terminal": tfds.features.Scalar(dtype=np.bool_),
        "language_instruction": tfds.features.Text(),
    }),
    "episode_metadata": tfds.features.FeaturesDict({"file_path": tfds.features.Text()}),
})  # fmt: skip


def steps_of(episode):
    """The steps of one episode, one dictionary each."""
    arrays = answering.load(episode["arrays"])
    count = len(arrays["action"])
    for step in range(count):
        last = step == count - 1
        yield {
            "observation": {key: arrays[key][step] for key in (*images, *vectors)},
            "action": arrays["action"][step], "discount": 1.0, "reward": arrays["reward"][step],
            "is_first": step == 0, "is_last": last, "is_terminal": last, "language_instruction": episode["instruction"],
        }  # fmt: skip


class JudgesPlay(tfds.core.GeneratorBasedBuilder):
    """A builder like those of Open X-Embodiment: the class is the whole recipe."""

    VERSION = tfds.core.Version(request["version"])

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=FEATURES, description="written by a judge")

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(episodes) for split, episodes in request["splits"].items()}

    def _generate_examples(self, episodes):
        for episode in episodes:
            yield episode["file_path"], {"steps": list(steps_of(episode)), "episode_metadata": {"file_path": episode["file_path"]}}


builder = JudgesPlay(data_dir=request["folder"])
builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
answering.answer(path=str(builder.data_path))
