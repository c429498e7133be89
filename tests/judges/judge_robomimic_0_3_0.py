"""robomimic 0.3.0 judges the HDF5 files that we write: every window of its SequenceDataset, masks, env and shapes; and we read a
file in its layout with the masks that its own functions made."""

import numpy as np
import pytest

import foreign
from judges import judging
from uwm_data import StreamSpec

JUDGE = "robomimic-0.3.0"
STREAMS = {
    **foreign.STREAMS,
    "eef_quat": StreamSpec((4,), "float64", foreign.RATE, "state"),
    "joints": StreamSpec((7,), "float64", foreign.RATE, "state"),
}
OBS, IMAGES = ["arm", "eef_quat", "joints"], ["front_image", "wrist_image"]
DATA = ["actions", "rewards", "dones"]
SPLITS = ("train", "validation", "train", "train")
CASES = {
    "whole": {"frame_stack": 3, "seq_length": 4},
    "valid": {"frame_stack": 2, "seq_length": 3, "filter_by_attribute": "valid"},
    "train": {"frame_stack": 1, "seq_length": 16, "filter_by_attribute": "train"},
    "unpadded": {"frame_stack": 2, "seq_length": 1, "pad_frame_stack": False, "pad_seq_length": False},
    "cached": {"frame_stack": 2, "seq_length": 5, "hdf5_cache_mode": "all"},
    "half_cached": {"frame_stack": 4, "seq_length": 2, "hdf5_cache_mode": "low_dim", "goal_mode": "last"},
}


def sample(ticks, seed, split):
    random = np.random.default_rng(seed + 3)
    arrays, meta = foreign.episode(ticks, seed)
    more = {"eef_quat": random.normal(size=(ticks + 1, 4)), "joints": random.normal(size=(ticks + 1, 7))}
    return {**arrays, **more}, {**meta, "split": split}


EPISODES = [sample(ticks, seed, SPLITS[seed]) for ticks, seed in ((11, 0), (2, 1), (9, 2), (7, 3))]


def named(episode):
    """{robomimic's name: (T, ...)} of an episode, observations before and after each action."""
    arrays, _ = episode
    ticks = len(arrays["action"])
    found = {"actions": arrays["action"], "rewards": arrays["reward"], "dones": (np.arange(ticks) == ticks - 1) | (arrays["reward"] >= 1)}
    for name in ("arm", "eef_quat", "joints", "front", "wrist"):
        key = f"{name}_image" if name in ("front", "wrist") else name
        found |= {f"obs.{key}": arrays[name][:-1], f"next_obs.{key}": arrays[name][1:]}
    return found


def expected(case, episodes):
    """{name: (windows, frames, ...)} of a case, and its pad mask (windows, frames)."""
    stack, length = case["frame_stack"], case["seq_length"]
    found, masks = {}, []
    for episode in episodes:
        for name, rows in named(episode).items():
            first, last = (0, len(rows)) if case.get("pad_frame_stack", True) else (stack - 1, len(rows) - length + 1)
            wanted = np.arange(first, last)[:, None] + np.arange(1 - stack, length)
            found.setdefault(name, []).append(rows[np.clip(wanted, 0, len(rows) - 1)])
        masks.append((wanted >= 0) & (wanted < len(rows)))
    return {name: np.concatenate(parts) for name, parts in found.items()}, np.concatenate(masks)


def chosen(case):
    split = {"valid": "validation"}.get(case.get("filter_by_attribute"), case.get("filter_by_attribute"))
    return [number for number in range(len(EPISODES)) if split in (None, SPLITS[number])]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What robomimic told about a file of ours, and its windows by case; the last case is a file without next_obs."""
    folder = tmp_path_factory.mktemp("robomimic")
    judging.write("robomimic", folder / "ours.hdf5", EPISODES, STREAMS)
    judging.write("robomimic", folder / "short.hdf5", EPISODES, STREAMS, next_obs=False, compress=False)
    short = {"short": {"frame_stack": 2, "seq_length": 2, "load_next_obs": False}}
    usual = {"obs": OBS + IMAGES, "data": DATA, "get_pad_mask": True}
    files = {
        str(folder / file): [{"out": str(folder / case), **usual, **options} for case, options in cases.items()]
        for file, cases in {"ours.hdf5": CASES, "short.hdf5": short}.items()
    }
    told = judging.ask(JUDGE, "robomimic_reads", {"obs": OBS, "images": IMAGES, "files": files}, folder / "home")["files"]
    return list(told.values()), {case: judging.load(folder / case) for case in (*CASES, "short")}


@pytest.mark.parametrize("name", CASES)
def test_every_window_is_ours_padding_included(seen, name):
    told, windows = seen
    case, found = CASES[name], windows[name]
    wanted, mask = expected(case, [EPISODES[number] for number in chosen(case)])
    assert told[0]["demos"][list(CASES).index(name)] == [f"demo_{number}" for number in chosen(case)]
    for key, values in wanted.items():
        np.testing.assert_array_equal(found[key], values, err_msg=key)
    for key in ("pad_mask", "obs.pad_mask", "next_obs.pad_mask"):
        np.testing.assert_array_equal(found[key][..., 0], mask, err_msg=key)
    if "hdf5_cache_mode" not in case:
        assert found["obs.joints"].dtype == np.float64 and found["obs.front_image"].dtype == np.uint8


def test_the_goal_is_the_frame_after_the_last_action(seen):
    _, windows = seen
    lengths = [len(arrays["action"]) for arrays, _ in EPISODES]
    for key, stream in (("front_image", "front"), ("arm", "arm")):
        wanted = np.repeat(np.stack([arrays[stream][-1] for arrays, _ in EPISODES]), lengths, axis=0)
        np.testing.assert_array_equal(windows["half_cached"][f"goal_obs.{key}"], wanted, err_msg=key)


def test_a_file_without_next_obs_loads_without_it(seen):
    _, windows = seen
    wanted, mask = expected({"frame_stack": 2, "seq_length": 2}, EPISODES)
    assert not any(key.startswith("next_obs") for key in windows["short"])
    assert {"obs.front_image", "obs.pad_mask", "actions"} <= set(windows["short"])
    for key, values in windows["short"].items():
        np.testing.assert_array_equal(values, mask[..., None] if key.endswith("pad_mask") else wanted[key], err_msg=key)


def test_env_and_shapes_are_told(seen):
    told, _ = seen
    for about in told:
        assert about["env"]["env_name"] == "Toy" and about["env"]["type"] == 2 and about["env"]["env_kwargs"] == {}
        assert about["action"] == 2 and about["images"] is True
        # robomimic shows images with the channels first.
        assert about["shapes"] == {"arm": [3], "eef_quat": [4], "joints": [7], "front_image": [3, 32, 48], "wrist_image": [3, 24, 24]}


def theirs(folder):
    """The demonstrations of a file in robomimic's layout, as saved arrays."""
    random = np.random.default_rng(4)
    demos = []
    for number, ticks in enumerate((9, 4, 12, 3, 6)):
        film, hand = foreign.smooth_video(random, ticks + 1, 32, 48), random.normal(size=(ticks + 1, 3))
        demos.append({
            "actions": random.uniform(-1, 1, (ticks, 7)), "rewards": (np.arange(ticks) == ticks - 1).astype(float),
            "dones": (np.arange(ticks) == ticks - 1).astype(int), "states": random.normal(size=(ticks, 12)),
            "obs.agentview_image": film[:-1], "next_obs.agentview_image": film[1:],
            "obs.robot0_eef_pos": hand[:-1], "next_obs.robot0_eef_pos": hand[1:],
        })  # fmt: skip
        judging.save(folder / f"demo-{number}", demos[-1])
    return demos, [str(folder / f"demo-{number}") for number in range(len(demos))]


ENV = {"env_name": "Lift", "env_version": "1.4.1", "type": 1, "env_kwargs": {"robots": ["Panda"], "control_freq": 20}}


def test_we_read_its_layout_and_the_masks_that_it_made(tmp_path):
    demos, folders = theirs(tmp_path)
    path = tmp_path / "theirs.hdf5"
    request = {"path": str(path), "env": ENV, "demos": folders, "filters": {"few": ["demo_0", "demo_3"]}, "ratio": 0.4}
    told = judging.ask(JUDGE, "robomimic_writes", request, tmp_path / "home")
    source, read = judging.read("robomimic", path)
    assert source.card["env"] == "Lift" and source.card["rate_hz"] == 20
    names = source.card["source"]["names"]
    assert set(names.values()) == {"actions", "rewards", "dones", "states", "obs/agentview_image", "obs/robot0_eef_pos"}
    for demo, episode in zip(demos, read, strict=True):
        for stream, place in names.items():
            key = place.replace("/", ".")
            wanted = np.concatenate([demo[key], demo[f"next_{key}"][-1:]]) if f"next_{key}" in demo else demo[key]
            np.testing.assert_array_equal(episode.arrays[stream], wanted, err_msg=place)
    for mask, wanted in {**told, "few": ["demo_0", "demo_3"]}.items():
        assert [episode.meta["source"]["name"] for episode in judging.read("robomimic", path, filter_key=mask)[1]] == sorted(wanted), mask


def test_it_splits_a_file_of_ours_and_we_see_the_split(tmp_path):
    path = tmp_path / "ours.hdf5"
    without = [(arrays, {key: value for key, value in meta.items() if key != "split"}) for arrays, meta in EPISODES]
    judging.write("robomimic", path, without, STREAMS)
    request = {"path": str(path), "demos": [], "filters": {"few": ["demo_1", "demo_2"]}, "ratio": 0.5}
    told = judging.ask(JUDGE, "robomimic_writes", request, tmp_path / "home")
    assert len(told["valid"]) == 2 and len(told["train"]) == 2
    for mask, wanted in {**told, "few": ["demo_1", "demo_2"]}.items():
        _, read = judging.read("robomimic", path, filter_key=mask)
        numbers = sorted(int(name.removeprefix("demo_")) for name in wanted)
        for number, episode in zip(numbers, read, strict=True):
            for name, values in EPISODES[number][0].items():
                np.testing.assert_array_equal(episode.arrays[name], values, err_msg=f"{mask}: {name}")
