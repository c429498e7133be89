"""RLDS folders for tests, written with protobuf's own messages and hand-made JSON: nothing of the code under test."""

import io
import json
import struct

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image

CLASSES = "tensorflow_datasets.core.features."


def example_class():
    """tf.train.Example, described at run time."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tf", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto

    def message(name, *fields):
        made = file.message_type.add(name=name)
        for number, (label, kind, type_name, title) in enumerate(fields, 1):
            made.field.add(name=title, number=number, label=label, type=kind, type_name=type_name)
        return made

    many, one = field.LABEL_REPEATED, field.LABEL_OPTIONAL
    message("BytesList", (many, field.TYPE_BYTES, None, "value"))
    message("FloatList", (many, field.TYPE_FLOAT, None, "value"))
    message("Int64List", (many, field.TYPE_INT64, None, "value"))
    kinds = [(one, field.TYPE_MESSAGE, f".tf.{name}", title) for name, title in
             (("BytesList", "bytes_list"), ("FloatList", "float_list"), ("Int64List", "int64_list"))]  # fmt: skip
    feature = message("Feature", *kinds)
    feature.oneof_decl.add(name="kind")
    for each in feature.field:
        each.oneof_index = 0
    features = message("Features", (many, field.TYPE_MESSAGE, ".tf.Features.FeatureEntry", "feature"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=one, type=field.TYPE_STRING)
    entry.field.add(name="value", number=2, label=one, type=field.TYPE_MESSAGE, type_name=".tf.Feature")
    message("Example", (one, field.TYPE_MESSAGE, ".tf.Features", "features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tf.Example"))


Example = example_class()


def serialised(features):
    """An Example of {name: list of bytes, float array, or integer array}."""
    example = Example()
    for name, values in features.items():
        kind = example.features.feature[name]
        if isinstance(values, list):
            kind.bytes_list.value.extend(values)
        elif values.dtype.kind == "f":
            kind.float_list.value.extend(values.reshape(-1).tolist())
        else:
            kind.int64_list.value.extend(values.reshape(-1).astype(int).tolist())
    return example.SerializeToString(deterministic=True)


def crc(data):
    value = google_crc32c.value(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def record(payload):
    length = struct.pack("<Q", len(payload))
    return length + crc(length) + payload + crc(payload)


def tensor(shape, dtype="float32", encoding="none"):
    told = {"shape": {"dimensions": [str(size) for size in shape]} if shape else {}, "dtype": dtype, "encoding": encoding}
    return {"pythonClassName": CLASSES + ("tensor_feature.Tensor" if shape else "scalar.Scalar"), "tensor": told}


def picture(shape, encoding="jpeg"):
    told = {"shape": {"dimensions": [str(size) for size in shape]}, "dtype": "uint8", "encodingFormat": encoding}
    return {"pythonClassName": CLASSES + "image_feature.Image", "image": told}


def text():
    return {"pythonClassName": CLASSES + "text_feature.Text", "text": {}}


def tree(**features):
    return {"pythonClassName": CLASSES + "features_dict.FeaturesDict", "featuresDict": {"features": features}}


def episodes_of(steps, **others):
    sequence = {"pythonClassName": CLASSES + "dataset_feature.Dataset", "sequence": {"feature": steps, "length": "-1"}}
    return tree(steps=sequence, **others)


FLAGS = {"is_first": tensor((), "bool"), "is_last": tensor((), "bool"), "is_terminal": tensor((), "bool")}


def flags(count):
    place = np.arange(count)
    return {"steps/is_first": place == 0, "steps/is_last": place == count - 1, "steps/is_terminal": place == count - 1}


def write_folder(folder, name, features, splits, info=True):
    """`splits`: {split: [shard, ...]}, a shard a list of feature dicts. Returns the folder."""
    folder.mkdir(parents=True)
    (folder / "features.json").write_text(json.dumps(features))
    told = []
    for split, shards in splits.items():
        for number, episodes in enumerate(shards):
            data = b"".join(record(serialised(episode)) for episode in episodes)
            (folder / f"{name}-{split}.tfrecord-{number:05d}-of-{len(shards):05d}").write_bytes(data)
        told.append({"name": split, "numBytes": "1", "shardLengths": [str(len(shard)) for shard in shards]})
    if info:
        (folder / "dataset_info.json").write_text(json.dumps({"name": name, "version": "1.0.0", "fileFormat": "tfrecord", "splits": told}))
    return folder


def compressed(frames, kind="JPEG", **options):
    out = []
    for frame in frames:
        held = io.BytesIO()
        Image.fromarray(frame).save(held, kind, **options)
        out.append(held.getvalue())
    return out


# ---- twins of two public datasets, small ----------------------------------------------------------------------------

BRIDGE = episodes_of(
    tree(
        action=tensor((7,)), discount=tensor(()), reward=tensor(()), language_embedding=tensor((16,)), language_instruction=text(),
        observation=tree(state=tensor((7,)), **{f"image_{camera}": picture((32, 48, 3)) for camera in range(4)}), **FLAGS,
    ),
    episode_metadata=tree(file_path=text(), episode_id=tensor((), "int32"), has_language=tensor((), "bool")),
)  # fmt: skip


def bridge_episode(count, seed, video):
    random = np.random.default_rng(seed)
    black = np.zeros_like(video)
    images = {f"steps/observation/image_{camera}": compressed(video if camera < 3 else black, quality=90) for camera in range(4)}
    return {
        **images, **flags(count),
        "steps/action": random.normal(size=(count, 7)).astype(np.float32),
        "steps/observation/state": random.normal(size=(count, 7)).astype(np.float32),
        "steps/language_embedding": random.normal(size=(count, 16)).astype(np.float32),
        "steps/discount": np.ones(count, np.float32), "steps/reward": np.zeros(count, np.float32),
        "steps/language_instruction": [f"put carrot {seed} on plate".encode()] * count,
        "episode_metadata/file_path": [b"/data/out.npy"], "episode_metadata/episode_id": np.array([seed]),
        "episode_metadata/has_language": np.array([1]),
    }  # fmt: skip


_POSES = {"cartesian_position": 6, "gripper_position": 1, "joint_position": 7}
_COMMANDS = {**_POSES, "cartesian_velocity": 6, "gripper_velocity": 1, "joint_velocity": 7}
_VIEWS = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
DROID = episodes_of(
    tree(
        action=tensor((7,), "float64"), discount=tensor(()), reward=tensor(()),
        language_instruction=text(), language_instruction_2=text(), language_instruction_3=text(),
        action_dict=tree(**{name: tensor((size,), "float64") for name, size in _COMMANDS.items()}),
        observation=tree(**{name: tensor((size,), "float64") for name, size in _POSES.items()},
                         **{name: picture((18, 32, 3)) for name in _VIEWS}), **FLAGS,
    ),
    episode_metadata=tree(file_path=text(), recording_folderpath=text()),
)  # fmt: skip


def droid_episode(count, seed, success, instruction=b"put the pen away"):
    random = np.random.default_rng(seed)
    commands = {name: random.normal(size=(count, size)).astype(np.float32) for name, size in _COMMANDS.items()}
    frames = np.full((count, 18, 32, 3), 90, np.uint8)
    outcome = b"success" if success else b"failure"
    return {
        **flags(count),
        **{f"steps/action_dict/{name}": values for name, values in commands.items()},
        **{f"steps/observation/{name}": random.normal(size=(count, size)).astype(np.float32) for name, size in _POSES.items()},
        **{f"steps/observation/{name}": compressed(frames) for name in _VIEWS},
        "steps/action": np.concatenate([commands["cartesian_position"], commands["gripper_position"]], axis=1),
        "steps/discount": np.ones(count, np.float32), "steps/reward": np.zeros(count, np.float32),
        "steps/language_instruction": [instruction] * count, "steps/language_instruction_2": [b"pen"] * count,
        "steps/language_instruction_3": [b"line %d" % step for step in range(count)],
        "episode_metadata/file_path": [b"/lab/" + outcome + b"/2023/trajectory.h5"],
        "episode_metadata/recording_folderpath": [b"/lab/recordings"],
    }  # fmt: skip
