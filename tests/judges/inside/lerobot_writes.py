"""Record a dataset with LeRobot's own writer.

Asked: {"root", "fps", "robot_type", "features", "episodes": [{"arrays": folder, "task"}], "create": more for `create`}.
The arrays of an episode are (frames, *shape) under the features' names.
"""

import torchvision_operators  # isort: skip # noqa: F401
import inspect

import answering
from lerobot.datasets.lerobot_dataset import LeRobotDataset

request = answering.asked()
features = {key: {**feature, "shape": tuple(feature["shape"])} for key, feature in request["features"].items()}
known = {key: request[key] for key in ("root", "fps", "robot_type")}
dataset = LeRobotDataset.create("judged/here", features=features, **known, **request["create"])
TASK_IS_AN_ARGUMENT = "task" in inspect.signature(dataset.add_frame).parameters  # up to 0.3; an entry of the frame later
for episode in request["episodes"]:
    arrays = answering.load(episode["arrays"])
    for frame in range(len(next(iter(arrays.values())))):
        values = {key: arrays[key][frame] for key in features}
        if TASK_IS_AN_ARGUMENT:
            dataset.add_frame(values, task=episode["task"])
        else:
            dataset.add_frame({**values, "task": episode["task"]})
    dataset.save_episode()
if hasattr(dataset, "finalize"):
    dataset.finalize()
answering.answer(episodes=dataset.num_episodes, frames=dataset.num_frames)
