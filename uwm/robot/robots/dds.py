"""Robots that speak ROS 2, without ROS: its topics over CycloneDDS, with its names, its types and its default qualities of service.

```
rt/joint_states                             sensor_msgs/JointState        robot ---> "proprio": position, velocity of the named joints
rt/<camera>/image_raw[/compressed]          Image or CompressedImage      robot ---> the camera's picture
rt/forward_position_controller/commands     std_msgs/Float64MultiArray    <--- an action, in the order of the joints
```

The command is what ROS 2's forward command controllers take: one array of targets, for the joints in the controller's own order. A
joint trajectory would bring times of its own, and the times here are the controller's.

Stamps are the publisher's wall clock. They become monotonic seconds by the smallest offset seen so far between the two clocks, the
message that travelled fastest: a reading is never stamped into the future, and later than it was measured only by that journey. A
message older than the newest (reordered, sent twice) is dropped, so stamps never go back.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from uwm.robot.clock import Clock
from uwm.robot.interface import ActionSpec, Reading, RobotError, RobotSpec, SensorSpec
from uwm.robot.robots.hold import Hold
from uwm.robot.robots.simulated import clipped

JOINT_STATES = "rt/joint_states"
COMMANDS = "rt/forward_position_controller/commands"
DISCOVERY_S = 5.0
OFFSET_JUMP_S = 5.0  # a stamp that is so far ahead of all before it: the publisher's clock was set, and the offset begins anew
DEPTH = 10  # ROS 2's default: reliable, keep the last ten


class DdsRobot:
    """A robot whose joints are on `joint_states` and whose controller takes `commands`; topics are DDS names ("rt/..." for ROS's).

    `limits` {joint: (low, high)} of the commanded joints, in their order, in rad; `velocity`, `acceleration` {joint: per second} where
    there are any. `seen`: the joints of "proprio", by default the same. `cameras` {name: (topic, (H, W))}: topics that end in
    "compressed" are CompressedImage (JPEG or PNG), others Image (rgb8 or bgr8). `stale_after_s`: of all sensors. `domain`: ROS_DOMAIN_ID.
    """

    def __init__(
        self,
        clock: Clock,
        rate_hz: float,
        limits: Mapping[str, tuple[float, float]],
        velocity: Mapping[str, float] | None = None,
        acceleration: Mapping[str, float] | None = None,
        seen: tuple[str, ...] | None = None,
        cameras: Mapping[str, tuple[str, tuple[int, int]]] | None = None,
        joint_states: str = JOINT_STATES,
        commands: str = COMMANDS,
        sensor_rate_hz: float | None = None,
        stale_after_s: float = 0.5,
        domain: int = 0,
        name: str = "",
    ):
        self.clock, self.names, self.seen = clock, tuple(limits), tuple(limits) if seen is None else seen
        self.cameras, self.topics, self.domain = dict(cameras or {}), (joint_states, commands), domain
        low, high = np.array(list(limits.values()), np.float32).T.copy()
        fastest = [np.array([(given or {}).get(joint, np.inf) for joint in self.names], np.float32) for given in (velocity, acceleration)]
        action = ActionSpec(self.names, ("rad",) * len(self.names), low, high, *fastest, "absolute")
        rate = sensor_rate_hz or rate_hz
        units = ("rad",) * len(self.seen) + ("rad/s",) * len(self.seen)
        sensors = {"proprio": SensorSpec((len(units),), "float32", rate, units, stale_after_s)}
        sensors |= {key: SensorSpec((*size, 3), "uint8", rate, (), stale_after_s) for key, (_, size) in self.cameras.items()}
        card = {"robot": "ros2", "rate_hz": rate_hz, "cameras": list(self.cameras), "action": {"names": list(self.names)}}
        self.spec = RobotSpec("ROS 2 over DDS", rate_hz, action, sensors, {}, card)
        self._hold, self._guard, self._stopped = Hold(name), threading.Lock(), False
        self._participant = self._writer = None
        self._readers: dict[str, Any] = {}
        self._stamps: dict[str, Stamps] = {}
        self._newest: dict[str, Reading] = {}

    def connect(self) -> None:
        """Join the domain; wait for every sensor's first message and for a controller that listens. RobotError says what is missing."""
        messages = _messages()
        self._hold.take()
        try:
            self._join(messages)
            self._await(lambda: "proprio" in self.read(), f"no state of {list(self.seen)} on {self.topics[0]}")
            for key, (topic, _) in self.cameras.items():
                self._await(lambda key=key: key in self.read(), f"no picture on {topic}")
            self._await(lambda: bool(self._writer.get_matched_subscriptions()), f"nobody listens to {self.topics[1]}")
        except BaseException:
            self.close()
            raise

    def read(self) -> dict[str, Reading]:
        """The newest message of every topic that had one."""
        self._hold.demand()
        with self._guard:
            for key, reader in self._readers.items():
                self._note(key, self._taken(key, reader))
            return dict(self._newest)

    def send(self, action: np.ndarray) -> np.ndarray:
        """Publish `action` (A,), clipped to the limits."""
        self._hold.demand()
        wanted = clipped(self.spec.action, action)
        with self._guard:
            if self._stopped:
                raise RobotError("the robot was stopped; close and connect it again to go on")
            if not self._writer.get_matched_subscriptions():
                raise RobotError(f"nobody listens to {self.topics[1]} any more: is the robot's controller running?")
            self._publish(wanted)
        return wanted

    def stop(self) -> None:
        """Command the joints to where they are, if that was seen for all of them; actions are refused afterwards."""
        self._stopped = True
        try:
            with self._guard:
                if self._hold.taken and set(self.names) <= set(self.seen) and "proprio" in self._newest:
                    here = self._newest["proprio"].value
                    self._publish(clipped(self.spec.action, here[[self.seen.index(joint) for joint in self.names]]))
        except Exception:  # noqa: BLE001 - a stop never raises: whoever stops has trouble enough
            pass

    def close(self) -> None:
        """Stop and leave the domain."""
        if not self._hold.taken:
            return
        self.stop()
        with self._guard:
            self._readers, self._newest, self._stamps, self._writer, self._participant = {}, {}, {}, None, None
        self._hold.release()

    def _join(self, messages: Any) -> None:
        from cyclonedds.domain import DomainParticipant
        from cyclonedds.pub import DataWriter
        from cyclonedds.sub import DataReader
        from cyclonedds.topic import Topic

        kinds = {"proprio": (self.topics[0], messages.JointState)}
        kinds |= {key: (topic, _image_kind(messages, topic)) for key, (topic, _) in self.cameras.items()}
        self._participant = DomainParticipant(self.domain)
        self._readers = {
            # Several nodes may tell of different joints on one topic; of pictures only the newest is wanted.
            key: DataReader(self._participant, Topic(self._participant, topic, kind), qos=ros_qos(DEPTH if key == "proprio" else 1))
            for key, (topic, kind) in kinds.items()
        }
        self._writer = DataWriter(self._participant, Topic(self._participant, self.topics[1], messages.Float64MultiArray), qos=ros_qos())
        self._stamps = {key: Stamps() for key in kinds}
        self._messages, self._newest, self._stopped = messages, {}, False

    def _await(self, ready, what: str) -> None:
        give_up_s = self.clock.now_s() + DISCOVERY_S
        while not ready():
            if self.clock.now_s() > give_up_s:
                raise RobotError(f"{what} within {DISCOVERY_S:g} s, in domain {self.domain}: is the robot running, in that domain?")
            self.clock.sleep_until(self.clock.now_s() + 0.01)

    def _taken(self, key: str, reader: Any) -> list:
        try:
            return [sample for sample in reader.take(DEPTH) if sample.sample_info.valid_data]
        except Exception as error:
            raise RobotError(f"{key}: DDS failed: {type(error).__name__}: {error}") from error

    def _note(self, key: str, messages: list) -> None:
        """Keep the newest that says what is wanted, if it is newer than what is kept; only that one is decoded."""
        for message in sorted(messages, key=stamp_of, reverse=True):
            value = self._joints(message) if key == "proprio" else picture(message, self.cameras[key][1])
            if value is not None:
                moment_s = self._stamps[key].monotonic(stamp_of(message), self.clock.now_s())
                if moment_s is not None:
                    self._newest[key] = Reading(value, moment_s)
                return

    def _joints(self, message: Any) -> np.ndarray | None:
        """(2 N,): positions, then velocities (zeros where the robot tells none); a message without one of the joints is another's."""
        places = {joint: index for index, joint in enumerate(message.name)}
        if not set(self.seen) <= set(places) or len(message.position) != len(message.name):
            return None
        chosen = [places[joint] for joint in self.seen]
        velocity = message.velocity if len(message.velocity) == len(message.name) else np.zeros(len(message.name))
        return np.concatenate([np.asarray(each, np.float32)[chosen] for each in (message.position, velocity)])

    def _publish(self, wanted: np.ndarray) -> None:
        layout = self._messages.MultiArrayLayout(dim=[], data_offset=0)
        self._writer.write(self._messages.Float64MultiArray(layout=layout, data=[float(value) for value in wanted]))


class Stamps:
    """Stamps of one publisher as seconds of our clock, and only forwards."""

    def __init__(self):
        self._offset_s, self._newest_s = np.inf, -np.inf

    def monotonic(self, stamp_s: float, now_s: float) -> float | None:
        """When a message stamped `stamp_s` that is here at `now_s` was measured; None if it is not newer than the one before.

        A stamp far ahead of any before means that the publisher's clock was set, and one far behind the same: both begin anew.
        """
        away_s = stamp_s - self._newest_s
        if abs(away_s) > OFFSET_JUMP_S:
            self._offset_s = np.inf
        elif away_s <= 0:
            return None
        last_s, self._newest_s = self._newest_s + self._offset_s, stamp_s
        self._offset_s = min(self._offset_s, now_s - stamp_s)
        moment_s = stamp_s + self._offset_s
        return moment_s if not np.isfinite(last_s) else max(moment_s, last_s)


def stamp_of(message: Any) -> float:
    """Seconds of the publisher's clock."""
    return message.header.stamp.sec + 1e-9 * message.header.stamp.nanosec


def picture(message: Any, size: tuple[int, int]) -> np.ndarray | None:
    """uint8 (H, W, 3) of an Image (rgb8, bgr8) or CompressedImage; None when it is broken. RobotError for another size or encoding."""
    data = np.frombuffer(message.data, np.uint8)
    if hasattr(message, "format"):
        image = _decompressed(data.tobytes())
    elif message.encoding not in ("rgb8", "bgr8"):
        raise RobotError(f"pictures must be rgb8 or bgr8, the camera sends {message.encoding!r}")
    elif len(data) < message.step * message.height or message.step < 3 * message.width:
        return None
    else:
        rows = data[: message.step * message.height].reshape(message.height, message.step)[:, : 3 * message.width]
        image = rows.reshape(message.height, message.width, 3)[..., :: 1 if message.encoding == "rgb8" else -1].copy()
    if image is not None and image.shape[:2] != tuple(size):
        raise RobotError(f"the camera sends pictures of {image.shape[:2]}, the specification says {tuple(size)}: change one of them")
    return image


def _decompressed(data: bytes) -> np.ndarray | None:
    from PIL import Image

    try:
        return np.asarray(Image.open(io.BytesIO(data), formats=("JPEG", "PNG")).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def ros_qos(depth: int = DEPTH) -> Any:
    """ROS 2's default quality of service: reliable, volatile, keep the last ten. The depth is each side's own."""
    from cyclonedds.core import Policy, Qos
    from cyclonedds.util import duration

    return Qos(Policy.Reliability.Reliable(duration(milliseconds=100)), Policy.Durability.Volatile, Policy.History.KeepLast(depth))


def _image_kind(messages: Any, topic: str) -> type:
    return messages.CompressedImage if topic.endswith("compressed") else messages.Image


def _messages() -> Any:
    """The messages' types; RobotError names the extra where CycloneDDS is not installed."""
    try:
        from uwm.robot.robots import dds_messages
    except ImportError as error:
        raise RobotError(f"ROS 2 topics need CycloneDDS: pip install 'uwm[dds]' ({error})") from error
    return dds_messages
