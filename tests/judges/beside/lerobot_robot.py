"""Our wrapper around a robot that is a real subclass of LeRobot's base class, held to our conformance, in LeRobot's environment.

Asked: {"site": where uwm is installed, "home": where calibrations go}. Answers the findings, and what reached the robot.
"""

import torchvision_operators  # isort: skip # noqa: F401
import sys
from pathlib import Path

import answering
import numpy as np
from lerobot_robot_arm import JOINTS, Arm, ArmConfig

request = answering.asked()
sys.path.append(request["site"])
from uwm.robot.clock import VirtualClock  # noqa: E402
from uwm.robot.conformance import check  # noqa: E402
from uwm.robot.robots.lerobot import LeRobotRobot  # noqa: E402

clock, arm = VirtualClock(), Arm(ArmConfig(id="test", calibration_dir=Path(request["home"])))
limits = dict.fromkeys(JOINTS, (-90.0, 90.0))
robot = LeRobotRobot(arm, clock, rate_hz=30, limits=limits, velocity=dict.fromkeys(JOINTS, 150.0))
found = check(lambda: robot, clock)
robot.connect()
arm.position = dict(zip(JOINTS, (1.0, 2.0, 3.0), strict=True))
seen = robot.read()
far = robot.send(np.array([50.0, 0.0, -50.0], np.float32))
robot.stop()
robot.close()
answering.answer(
    findings=[str(each) for each in found], proprio=seen["proprio"].value.tolist(), front=list(seen["front"].value.shape),
    sent=far.tolist(), held=list(arm.sent[-1].values()), connected=arm.is_connected,
    spec=[robot.spec.name, list(robot.spec.action.names)], gripper=list(robot.spec.action.gripper),
)  # fmt: skip
