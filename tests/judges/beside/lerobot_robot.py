"""Our wrapper around a robot that is a real subclass of LeRobot's base class, held to our conformance, in LeRobot's environment.

Asked: {"site": where uwm is installed, "home": where calibrations go}. Answers the findings, and what reached the robot.
"""

import torchvision_operators  # isort: skip # noqa: F401
import sys
from dataclasses import dataclass
from pathlib import Path

import answering
import numpy as np
from lerobot.robots import Robot, RobotConfig
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

request = answering.asked()
sys.path.append(request["site"])
from uwm.robot.clock import VirtualClock  # noqa: E402
from uwm.robot.conformance import check  # noqa: E402
from uwm.robot.robots.lerobot import LeRobotRobot  # noqa: E402

JOINTS = ("shoulder.pos", "elbow.pos", "gripper.pos")


@RobotConfig.register_subclass("arm_of_this_test")
@dataclass(kw_only=True)
class ArmConfig(RobotConfig):
    """Three joints that are at once where they were told to be, at most 5 away from where they were."""

    step: float = 5.0


class Arm(Robot):
    """The smallest robot that LeRobot's base class accepts."""

    config_class, name = ArmConfig, "arm_of_this_test"

    def __init__(self, config):
        super().__init__(config)
        self.step, self.position, self.sent, self._connected = config.step, dict.fromkeys(JOINTS, 0.0), [], False

    @property
    def observation_features(self):
        return {**dict.fromkeys(JOINTS, float), "front": (24, 32, 3)}

    @property
    def action_features(self):
        return dict.fromkeys(JOINTS, float)

    @property
    def is_connected(self):
        return self._connected

    @property
    def is_calibrated(self):
        return True

    def connect(self, calibrate=True):
        if self._connected:
            raise DeviceAlreadyConnectedError("connected")
        self._connected = True

    def calibrate(self):
        """Nothing to do."""

    def configure(self):
        """Nothing to do."""

    def get_observation(self):
        if not self._connected:
            raise DeviceNotConnectedError("not connected")
        return {**self.position, "front": np.full((24, 32, 3), 7, np.uint8)}

    def send_action(self, action):
        if not self._connected:
            raise DeviceNotConnectedError("not connected")
        self.position = {key: float(np.clip(action[key], at - self.step, at + self.step)) for key, at in self.position.items()}
        self.sent.append(dict(self.position))
        return dict(self.position)

    def disconnect(self):
        self._connected = False


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
