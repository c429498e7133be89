"""LeRobot 0.4.4 judges LeRobotDataset v3.0: many episodes in one file, and in several; and our policy as its plug-in."""

from typing import ClassVar

from judges import lerobot_comparisons, lerobot_control
from judges.lerobot_control import checkpoint, driven, plugin, site  # noqa: F401 - fixtures


class TestVersion3(lerobot_comparisons.Comparisons):
    """v3.0 finds an episode's frames by time inside a film of many."""

    JUDGE, FORMAT, VERSION = "lerobot-0.4.4", "lerobot", "3.0"
    SEVERAL: ClassVar[dict] = {"data_files_size_in_mb": 0.01, "video_files_size_in_mb": 0.005, "chunks_size": 2}
    FILTERS: ClassVar[dict] = {
        "the_third": ("one_file", [2], lerobot_comparisons.WINDOWS),
        "second_and_last": ("several", [1, 3], lerobot_comparisons.WINDOWS),
    }

    def test_the_small_files_are_several(self, seen):
        """So that the case `several` is one."""
        dataset = seen["several"][-1]
        assert len(list(dataset.glob("data/*/*.parquet"))) > 1
        for camera in ("front", "wrist"):
            assert len(list(dataset.glob(f"videos/observation.images.{camera}/*/*.mp4"))) > 1
        assert len(list(dataset.glob("data/*"))) > 1, "more than one chunk folder"
        assert len(list(seen["one_file"][-1].glob("data/*/*.parquet"))) == 1


class TestControl(lerobot_control.ControlComparisons):
    """Our policy as LeRobot's plug-in, its robots as ours."""
