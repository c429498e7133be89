"""LeRobot 0.3.3 judges LeRobotDataset v2.1: a table and a film per episode."""

from typing import ClassVar

from judges import lerobot_comparisons


class TestVersion21(lerobot_comparisons.Comparisons):
    """This version looks up a filtered episode by its old number, so with windows its filter works for the first ones only."""

    JUDGE, FORMAT, VERSION = "lerobot-0.3.3", "lerobot-v2.1", "2.1"
    SEVERAL: ClassVar[dict] = {"chunks_size": 2}
    FILTERS: ClassVar[dict] = {
        "the_third": ("one_file", [2], {}),
        "the_first_two": ("several", [0, 1], lerobot_comparisons.WINDOWS),
    }
