"""What both versions of LeRobot are asked: every item of datasets that we write, and of datasets that LeRobot records."""

from typing import ClassVar

import numpy as np
import pytest

import foreign
from judges import judging
from uwm_data import StreamSpec

RATE = foreign.RATE
# Every kind of feature: two states side by side, a matrix, whole numbers, truth values, and a camera that no h264 can hold.
STREAMS = {
    **foreign.STREAMS,
    "hand": StreamSpec((2,), "float32", RATE, "state", names=("left", "right")),
    "touch": StreamSpec((3, 4), "float32", RATE, "state"),
    "phase": StreamSpec((), "int64", RATE, "label", closing=False),
    "contact": StreamSpec((2,), "bool", RATE, "label", closing=False),
    "odd": StreamSpec((25, 31, 3), "uint8", RATE, "video"),
}
CARD = {**foreign.CARD, "policy": {"cameras": ["front", "wrist", "odd"], "proprio": ["arm", "hand"], "action": "action"}}
STATE = "observation.state"
NAMES = {
    "observation.images.front": "front", "observation.images.wrist": "wrist", "observation.images.odd": "odd",
    "action": "action", "next.reward": "reward", "observation.touch": "touch", "phase": "phase", "contact": "contact",
}  # fmt: skip
WINDOWS = {
    "observation.images.front": [-0.1, -0.05, 0.0], "observation.images.odd": [0.0, 0.05], STATE: [-0.05, 0.0],
    "action": [0.0, 0.05, 0.1, 0.15, 0.2, 0.25], "observation.touch": [-0.15, 0.0],
}  # fmt: skip
SMALL = {"one_file": {}, "lossless": {"codec": "h264-lossless"}, "pictures": {"codec": "png"}, "av1": {"codec": "av1"}}
# Mean and largest difference in grey levels. The corners of the films are coloured squares, and halved colours bleed at their edges.
BOUNDS = {"one_file": (3, 90), "lossless": (0, 0), "pictures": (0, 0), "av1": (4, 190)}


def sample(ticks, seed):
    random = np.random.default_rng(seed + 40)
    arrays, meta = foreign.episode(ticks, seed)
    more = {"hand": random.normal(size=(ticks + 1, 2)), "touch": random.normal(size=(ticks + 1, 3, 4))}
    more = {name: values.astype(np.float32) for name, values in more.items()}
    more["phase"] = random.integers(-(2**62), 2**62, ticks)
    more["contact"] = random.random((ticks, 2)) < 0.5
    more["odd"] = foreign.smooth_video(random, ticks + 1, 25, 31)
    return {**arrays, **more}, meta


EPISODES = [sample(ticks, seed) for ticks, seed in ((11, 0), (2, 1), (9, 2), (7, 3))]


def rows_of(episode):
    """{feature: (T, ...)} as LeRobot shows it: no observation after the last action, two states in one vector."""
    arrays, _ = episode
    ticks = len(arrays["action"])
    rows = {key: arrays[name][:ticks] for key, name in NAMES.items()}
    rows[STATE] = np.concatenate([arrays["arm"][:ticks], arrays["hand"][:ticks]], axis=1)
    return rows


def expected_items(episodes, chosen, windows):
    """({feature: (items, window, ...)}, {feature: padded (items, window)}) for every row of the chosen episodes."""
    values, padded = {}, {}
    for number in chosen:
        for key, rows in rows_of(episodes[number]).items():
            offsets = np.round(np.array(windows.get(key, [0.0])) * RATE).astype(int)
            wanted = np.arange(len(rows))[:, None] + offsets
            inside = (wanted >= 0) & (wanted < len(rows))
            shown = rows[np.clip(wanted, 0, len(rows) - 1)]
            values.setdefault(key, []).append(shown if key in windows else shown[:, 0])
            padded.setdefault(key, []).append(~inside)
    join = lambda parts: {key: np.concatenate(arrays) for key, arrays in parts.items()}  # noqa: E731
    return join(values), {key: flags for key, flags in join(padded).items() if key in windows}


def as_bytes(images):
    """uint8 (..., H, W, C) from what LeRobot shows: (..., C, H, W) in [0, 1]."""
    return np.round(np.moveaxis(images, -3, -1) * 255).astype(np.uint8)


class Comparisons:
    """The questions; a version fills in JUDGE, FORMAT, OPTIONS of several files, and the episodes that it can filter with windows."""

    JUDGE: str
    FORMAT: str
    VERSION: str
    SEVERAL: ClassVar[dict]
    FILTERS: ClassVar[dict]  # case -> (dataset, episodes, windows)

    @pytest.fixture(scope="class")
    @classmethod
    def seen(cls, tmp_path_factory):
        """{case: (episodes, windows, what LeRobot told, its items, dataset)}; one process answers all cases."""
        folder = tmp_path_factory.mktemp(cls.FORMAT)
        cases = {name: (name, None, WINDOWS) for name in (*SMALL, "several")} | {"no_windows": ("one_file", None, {})} | cls.FILTERS
        for name, options in {**SMALL, "several": cls.SEVERAL}.items():
            judging.write(cls.FORMAT, folder / name, EPISODES, STREAMS, CARD, **options)
        asked = [
            {"root": str(folder / dataset), "out": str(folder / f"{case}-out"), "episodes": chosen, "windows": windows}
            for case, (dataset, chosen, windows) in cases.items()
        ]
        told = judging.ask(cls.JUDGE, "lerobot_reads", {"cases": asked}, folder / "home")["cases"]
        return {
            case: (chosen, windows, said, judging.load(folder / f"{case}-out"), folder / dataset)
            for (case, (dataset, chosen, windows)), said in zip(cases.items(), told, strict=True)
        }

    def test_every_item_is_ours_padding_included(self, seen):
        for case, (chosen, windows, said, items, _) in seen.items():
            chosen = range(len(EPISODES)) if chosen is None else chosen
            values, padded = expected_items(EPISODES, chosen, windows)
            lengths = [len(EPISODES[number][0]["action"]) for number in chosen]
            assert said["length"] == sum(lengths), case
            for key, wanted in values.items():
                if "images" not in key:
                    assert items[key].dtype == wanted.dtype, f"{case}: {key}"
                    np.testing.assert_array_equal(items[key], wanted, err_msg=f"{case}: {key}")
            assert {key for key in items if key.endswith("_is_pad")} == {f"{key}_is_pad" for key in padded}, case
            for key, flags in padded.items():
                np.testing.assert_array_equal(items[f"{key}_is_pad"], flags, err_msg=f"{case}: {key}_is_pad")
                assert flags.any(axis=1).any() and not flags.all(axis=1).any()
            starts = np.cumsum([0, *(len(arrays["action"]) for arrays, _ in EPISODES)])
            frame = np.concatenate([np.arange(length) for length in lengths])
            np.testing.assert_array_equal(items["frame_index"], frame, err_msg=case)
            np.testing.assert_array_equal(items["episode_index"], np.repeat(list(chosen), lengths), err_msg=case)
            np.testing.assert_array_equal(items["index"], frame + np.repeat(starts[list(chosen)], lengths), err_msg=case)
            np.testing.assert_array_equal(items["timestamp"], (frame / RATE).astype(np.float32), err_msg=case)
            tasks = [EPISODES[number][1]["instruction"] for number in chosen]
            np.testing.assert_array_equal(items["task"], np.repeat(tasks, lengths), err_msg=case)

    def test_every_image_is_ours(self, seen):
        for case, (chosen, windows, _, items, dataset) in seen.items():
            values, _ = expected_items(EPISODES, range(len(EPISODES)) if chosen is None else chosen, windows)
            for key in (key for key in values if "images" in key):
                exact = key.endswith("odd")  # halved colours need even sizes, so it went as PNG
                mean_bound, largest_bound = (0, 0) if exact else BOUNDS.get(dataset.name, BOUNDS["one_file"])
                shown = as_bytes(items[key])
                mean, largest = judging.image_error(shown, values[key])
                print(f"{case}, {key}: mean {mean:.2f}, largest {largest} grey levels from the original")
                assert mean <= mean_bound and largest <= largest_bound, f"{case}: {key}"
                neighbour, _ = judging.image_error(shown[1:], values[key][:-1])
                assert neighbour > 2 * mean, "one frame off would not show"

    def test_what_it_tells_about_the_whole(self, seen):
        for case, (_, _, said, _, dataset) in seen.items():
            assert (said["fps"], said["robot_type"], said["version"]) == (RATE, "planar arm", self.VERSION), case
            assert (said["episodes"], said["tasks"]) == (len(EPISODES), 2), case
            assert said["frames"] == sum(len(arrays["action"]) for arrays, _ in EPISODES), case
            assert set(said["cameras"]) == {key for key in NAMES if "images" in key}, case
            assert said["names"][STATE] == ["arm.x", "arm.y", "arm.angle", "hand.left", "hand.right"], case
            assert said["shapes"]["observation.touch"] == [3, 4] and said["shapes"]["observation.images.odd"] == [25, 31, 3], case
            assert said["backend"] == "torchcodec", dataset

    def test_its_statistics_are_those_of_the_frames(self, seen):
        _, _, said, _, _ = seen["one_file"]
        rows = [rows_of(episode) for episode in EPISODES]
        for key in (STATE, "action", "observation.touch", "observation.images.front", "observation.images.odd"):
            values = np.concatenate([part[key] for part in rows]).astype(np.float64)
            told, axes = said["stats"][key], 0
            if "images" in key:
                values, axes = np.moveaxis(values, -1, 1) / 255, (0, 2, 3)
            keep = "images" in key
            for name in ("min", "max", "mean", "std"):
                wanted = getattr(values, name)(axis=axes, keepdims=keep)
                np.testing.assert_allclose(np.array(told[name]), wanted[0] if keep else wanted, atol=2e-6, err_msg=f"{key}: {name}")
            assert told["count"] == [len(values)], key

    def record(self, folder, **create):
        """(path, episodes) that LeRobot's own writer records from rows of our sample, cameras as large as its AV1 encoder wants."""
        random = np.random.default_rng(8)
        episodes, asked = [], []
        for number, ticks in enumerate((9, 5, 12)):
            rows = rows_of(sample(ticks, number))
            rows["observation.images.front"] = foreign.smooth_video(random, ticks, 64, 96)
            rows["observation.images.still"] = foreign.smooth_video(random, ticks, 25, 31)
            del rows["observation.images.wrist"], rows["observation.images.odd"]
            rows |= {key: rows[key][:, None] for key in ("phase", "next.reward")}
            episodes.append((rows, ["push the block – größer", "open the drawer"][number % 2]))
            asked.append({"arrays": judging.save(folder / f"recorded-{number}", rows), "task": episodes[-1][1]})
        features = {key: {"dtype": str(rows.dtype), "shape": list(rows.shape[1:]), "names": None} for key, rows in episodes[0][0].items()}
        for key, dtype in {"front": "video", "still": "image"}.items():
            features[f"observation.images.{key}"] |= {"dtype": dtype, "names": ["height", "width", "channels"]}
        features[STATE]["names"] = ["x", "y", "angle", "left", "right"]
        request = {"root": str(folder / "theirs"), "fps": 20, "robot_type": "so100", "features": features}
        request |= {"episodes": asked, "create": create}
        told = judging.ask(self.JUDGE, "lerobot_writes", request, folder / "home")
        assert told == {"episodes": 3, "frames": 26}
        return folder / "theirs", episodes

    def test_we_read_what_it_records(self, tmp_path):
        path, episodes = self.record(tmp_path)
        request = {"cases": [{"root": str(path), "out": str(tmp_path / "out"), "episodes": None, "windows": {}}]}
        judging.ask(self.JUDGE, "lerobot_reads", request, tmp_path / "home")
        theirs = judging.load(tmp_path / "out")
        source, read = judging.read(self.FORMAT, path)
        assert source.card["rate_hz"] == 20 and source.card["robot"] == "so100"
        assert source.streams["state"].names == ("x", "y", "angle", "left", "right")
        names = {key: name for name, key in source.card["source"]["names"].items()}
        first = 0
        for (rows, task), episode in zip(episodes, read, strict=True):
            last = first + len(rows["action"])
            assert episode.meta["instruction"] == task and set(names) == set(rows)
            for key, values in rows.items():
                ours = episode.arrays[names[key]]
                if key == "observation.images.front":
                    mean, largest = judging.image_error(ours, as_bytes(theirs[key][first:last]))
                    print(f"{key}: mean {mean:.3f}, largest {largest} grey levels between the decoders")
                    assert mean < 0.5 and largest <= 2
                    assert judging.image_error(ours, values)[0] < 4
                else:
                    np.testing.assert_array_equal(ours.reshape(values.shape), values, err_msg=key)
            first = last
