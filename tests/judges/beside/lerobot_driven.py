"""`uwm control` with a robot that LeRobot's registry makes of its type and config, in LeRobot's environment, on the wall clock.

Asked: {"site": where uwm and the arm's plug-in are installed, "config": of the run}. Answers how it ended, and what reached the arm.
"""

import torchvision_operators  # isort: skip # noqa: F401
import json
import sys
from pathlib import Path

import answering

request = answering.asked()
sys.path.append(request["site"])
from lerobot.robots import RobotConfig  # noqa: E402

from uwm import control  # noqa: E402
from uwm.core.config import ConfigError  # noqa: E402

config, refused, known_before = request["config"], {}, "arm_of_this_test" in RobotConfig.get_known_choices()
code = control.control(config)
from lerobot_robot_arm import MADE  # noqa: E402 - only LeRobot has imported it so far

for name, options in request["wrong"].items():
    try:
        control.control({**config, "options": {**config["options"], **options}})
    except ConfigError as error:
        refused[name] = str(error)
answering.answer(
    code=code, told=json.loads(Path(config["out"]).read_text()), known_before=known_before, refused=refused, made=len(MADE),
    sent=[list(each.values()) for each in MADE[0].sent], step=MADE[0].step, connected=MADE[0].is_connected,
)  # fmt: skip
