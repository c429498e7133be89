"""Small episodes and stores for the tests of `uwm_data`."""

import numpy as np

from uwm_data import EpisodeStore, StreamSpec

STREAMS = {
    "camera": StreamSpec((4, 5, 3), "uint8", 10, "video"),
    "state": StreamSpec((3,), "float32", 20, "state", units=("m", "m", "rad"), names=("x", "y", "angle")),
    "action": StreamSpec((2,), "float32", 20, "action"),
    "reward": StreamSpec((), "float64", 20, "label"),
}
# Small shards, so that a few episodes already cross their borders.
SHARD_BYTES = 2000


def lengths(ticks):
    """Frames of each stream in an episode of `ticks` actions; the camera runs at half the rate."""
    return {"camera": ticks // 2 + 1, "state": ticks + 1, "action": ticks, "reward": ticks + 1}


def make_episode(ticks, seed):
    """Random arrays of one legal episode."""
    random = np.random.default_rng(seed)
    arrays = {}
    for name, count in lengths(ticks).items():
        spec = STREAMS[name]
        if spec.kind == "video":
            arrays[name] = random.integers(0, 256, (count, *spec.shape), dtype=np.uint8)
        else:
            arrays[name] = random.normal(size=(count, *spec.shape)).astype(spec.dtype)
    return arrays


def make_store(path, ticks=(7, 12, 1, 30), **options):
    """A closed store at `path` with episodes of these lengths, and the episodes."""
    episodes = [make_episode(count, seed) for seed, count in enumerate(ticks)]
    with EpisodeStore.create(path, STREAMS, {"image_orientation": "upright"}, **{"shard_bytes": SHARD_BYTES, **options}) as store:
        for seed, episode in enumerate(episodes):
            store.append(episode, {"task": "lift", "seed": seed, "success": seed % 2 == 0})
    return episodes


def assert_holds(store, episodes):
    """The store has exactly these episodes, bit for bit."""
    assert len(store) == len(episodes)
    for index, episode in enumerate(episodes):
        for name, values in episode.items():
            found = store.read(index, name)
            assert found.dtype == values.dtype
            assert found.tobytes() == values.tobytes(), (index, name)
