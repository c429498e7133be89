"""A robot that is a real subclass of LeRobot's base class, as an installable plug-in of LeRobot: it registers itself when imported."""

from dataclasses import dataclass

import numpy as np
from lerobot.robots import Robot, RobotConfig
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

JOINTS = ("shoulder.pos", "elbow.pos", "gripper.pos")
MADE = []  # every arm of this process, for who asks what reached it


@RobotConfig.register_subclass("arm_of_this_test")
@dataclass(kw_only=True)
class ArmConfig(RobotConfig):
    """Three joints that are at once where they were told to be, at most `step` away from where they were; `blind`: no camera."""

    step: float = 5.0
    blind: bool = False


class Arm(Robot):
    """The smallest robot that LeRobot's base class accepts."""

    config_class, name = ArmConfig, "arm_of_this_test"

    def __init__(self, config):
        super().__init__(config)
        self.step, self.position, self.sent, self._connected = config.step, dict.fromkeys(JOINTS, 0.0), [], False
        self.camera = {} if config.blind else {"front": (24, 32, 3)}
        MADE.append(self)

    @property
    def observation_features(self):
        return {**dict.fromkeys(JOINTS, float), **self.camera}

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
        return {**self.position, **{name: np.full(shape, 7, np.uint8) for name, shape in self.camera.items()}}

    def send_action(self, action):
        if not self._connected:
            raise DeviceNotConnectedError("not connected")
        self.position = {key: float(np.clip(action[key], at - self.step, at + self.step)) for key, at in self.position.items()}
        self.sent.append(dict(self.position))
        return dict(self.position)

    def disconnect(self):
        self._connected = False
