"""ROS 2's topics over DDS on the loopback, with rosbags as the judge of the bytes."""

import io
import os
import threading
import time

import numpy as np
import pytest
from PIL import Image as Pictures

from oracle import unchecked_shapes
from uwm.robot.clock import MonotonicClock
from uwm.robot.conformance import check
from uwm.robot.interface import RobotError
from uwm.robot.robots import dds
from uwm.robot.robots.dds import DdsRobot, Stamps, picture

JOINTS = ("shoulder", "elbow", "wrist")
LIMITS = {"shoulder": (-1.0, 1.0), "elbow": (-2.0, 0.5), "wrist": (0.0, 1.5)}
START = np.array([0.1, -0.4, 0.7])
SIZE = (24, 32)
PERIOD_S = 0.05
CLOCK = MonotonicClock()
LOOPBACK = (
    "<CycloneDDS><Domain><General><Interfaces><NetworkInterface name='lo' multicast='false'/></Interfaces>"
    "<AllowMulticast>false</AllowMulticast></General><Discovery><ParticipantIndex>auto</ParticipantIndex>"
    "<Peers><Peer address='127.0.0.1'/></Peers></Discovery></Domain></CycloneDDS>"
)


@pytest.fixture(scope="module")
def ros():
    """rosbags' own idea of the messages."""
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.ROS2_HUMBLE)


@pytest.fixture(scope="module")
def messages():
    return dds._messages()


@pytest.fixture
def domain(monkeypatch):
    """A domain of this process on the loopback alone; another run of these tests on the same machine has another one."""
    monkeypatch.setenv("CYCLONEDDS_URI", LOOPBACK)
    return 20 + os.getpid() % 200


class Arm:
    """A robot of ROS 2: tells its joints at 50 Hz, other joints between them, and is at once where it is told to be."""

    def __init__(self, messages, domain, cameras=("rt/front/image_raw", "rt/wrist/image_raw/compressed"), listens=True):
        from cyclonedds.domain import DomainParticipant
        from cyclonedds.pub import DataWriter
        from cyclonedds.sub import DataReader
        from cyclonedds.topic import Topic

        self.messages, self.position, self.commands, self.paused = messages, START.copy(), [], False
        participant = DomainParticipant(domain)
        kinds = {dds.JOINT_STATES: messages.JointState} | {topic: dds._image_kind(messages, topic) for topic in cameras}
        self.writers = {topic: DataWriter(participant, Topic(participant, topic, kind), qos=dds.ros_qos()) for topic, kind in kinds.items()}
        commands = Topic(participant, dds.COMMANDS, messages.Float64MultiArray) if listens else None
        self.reader = DataReader(participant, commands, qos=dds.ros_qos()) if listens else None
        self._ended, self._thread = threading.Event(), threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def _live(self):
        while not self._ended.wait(0.02):
            for command in self.reader.take(20) if self.reader is not None else ():
                if not command.sample_info.valid_data:
                    continue  # a writer that left tells so in a sample without content
                self.commands.append(list(command.data))
                self.position = np.array(command.data)
            if not self.paused:
                self.tell(time.time())

    def tell(self, moment_s, position=None):
        header = header_of(self.messages, moment_s)
        position = self.position if position is None else position
        names, values = ["gripper", *reversed(JOINTS)], [9.0, *reversed([float(value) for value in position])]
        self.writers[dds.JOINT_STATES].write(self.messages.JointState(header, names, values, [0.5] * 4, []))
        for topic, writer in self.writers.items():
            if topic.endswith("compressed"):
                writer.write(self.messages.CompressedImage(header, "png", png(sample_picture())))
            elif topic.endswith("image_raw"):
                writer.write(image_of(self.messages, header, sample_picture()))

    def close(self):
        self._ended.set()
        self._thread.join(10)
        self.writers, self.reader = {}, None


def header_of(messages, moment_s):
    return messages.Header(messages.Time(int(moment_s), int(moment_s % 1 * 1e9)), "base")


def sample_picture():
    return np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)


def png(image):
    file = io.BytesIO()
    Pictures.fromarray(image).save(file, "PNG")
    return file.getvalue()


def image_of(messages, header, image, encoding="rgb8", padding=5):
    rows = np.pad(image.reshape(len(image), -1), ((0, 0), (0, padding)))
    return messages.Image(header, len(image), image.shape[1], encoding, 0, rows.shape[1], rows.tobytes())


@pytest.fixture
def arm(messages, domain):
    arm = Arm(messages, domain)
    yield arm
    arm.close()


def robot_of(domain, rate_hz=1 / PERIOD_S, **more):
    cameras = {"front": ("rt/front/image_raw", SIZE), "wrist": ("rt/wrist/image_raw/compressed", SIZE)}
    return DdsRobot(CLOCK, rate_hz, LIMITS, cameras=cameras, domain=domain, **more)


@pytest.fixture
def robot(arm, domain):
    robot = robot_of(domain)
    robot.connect()
    yield robot
    robot.close()


def until(holds, patience_s=10.0):
    give_up_s = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < give_up_s, "it did not happen"
        time.sleep(0.01)


# ------------------------------------------------------------------------------------------------- the bytes


def test_rosbags_reads_what_we_write_and_writes_the_same_bytes(ros, messages):
    header = header_of(messages, 1700000000.25)
    layout = messages.MultiArrayLayout([messages.MultiArrayDimension("joints", 3, 3)], 0)
    ours = {
        "sensor_msgs/msg/JointState": messages.JointState(header, list(JOINTS), [1.0, -2.5, 3.0], [0.1, 0.2, 0.3], []),
        "sensor_msgs/msg/Image": image_of(messages, header, sample_picture()),
        "sensor_msgs/msg/CompressedImage": messages.CompressedImage(header, "png", png(sample_picture())),
        "std_msgs/msg/Float64MultiArray": messages.Float64MultiArray(layout, [0.5, -0.5, 1e-9]),
    }
    for name, message in ours.items():
        data = message.serialize()
        theirs = ros.deserialize_cdr(data, name)
        again = bytes(ros.serialize_cdr(theirs, name))
        assert again.rstrip(b"\0") == data.rstrip(b"\0"), f"{name}: CDR may end in padding, nothing else may differ"
        assert type(message).deserialize(again) == type(message).deserialize(data)
    joints = ros.deserialize_cdr(ours["sensor_msgs/msg/JointState"].serialize(), "sensor_msgs/msg/JointState")
    assert joints.name == list(JOINTS) and joints.position.tolist() == [1.0, -2.5, 3.0] and len(joints.effort) == 0
    assert (joints.header.stamp.sec, joints.header.stamp.nanosec, joints.header.frame_id) == (1700000000, 250000000, "base")
    image = ros.deserialize_cdr(ours["sensor_msgs/msg/Image"].serialize(), "sensor_msgs/msg/Image")
    assert (image.height, image.width, image.encoding, image.step) == (*SIZE, "rgb8", 3 * SIZE[1] + 5)


def test_we_read_what_rosbags_writes(ros, messages):
    kinds = ros.types
    stamp = kinds["builtin_interfaces/msg/Time"](12, 345)
    header = kinds["std_msgs/msg/Header"](stamp, "world")
    theirs = kinds["sensor_msgs/msg/JointState"](header, list(JOINTS), START, np.ones(3), np.zeros(0))
    data = bytes(ros.serialize_cdr(theirs, "sensor_msgs/msg/JointState"))
    seen = messages.JointState.deserialize(data)
    assert (seen.header.stamp.sec, seen.header.stamp.nanosec, seen.header.frame_id) == (12, 345, "world")
    assert seen.name == list(JOINTS) and seen.position == START.tolist() and seen.velocity == [1.0] * 3 and seen.effort == []
    big = bytes(ros.serialize_cdr(theirs, "sensor_msgs/msg/JointState", little_endian=False))
    assert messages.JointState.deserialize(big) == seen, "also from a machine of the other byte order"


def test_the_types_are_called_as_ros_2_calls_them(messages):
    names = {kind.__idl_typename__ for kind in (messages.JointState, messages.Image, messages.CompressedImage, messages.Float64MultiArray)}
    wanted = {f"sensor_msgs::msg::dds_::{name}_" for name in ("JointState", "Image", "CompressedImage")}
    assert names == wanted | {"std_msgs::msg::dds_::Float64MultiArray_"}


# ------------------------------------------------------------------------------------------- a robot that speaks


def test_joints_and_pictures_arrive_by_name_and_stamped_in_our_seconds(robot):
    until(lambda: len(robot.read()) == 3)
    readings = robot.read()
    np.testing.assert_allclose(readings["proprio"].value, [*START, 0.5, 0.5, 0.5], rtol=1e-6)
    for name in ("front", "wrist"):
        np.testing.assert_array_equal(readings[name].value, sample_picture())
    for reading in readings.values():
        assert -1e-6 <= time.monotonic() - reading.stamp_s < 1.0


def test_actions_arrive_in_the_order_of_the_joints_and_are_clipped(robot, arm):
    sent = robot.send(np.array([5.0, -0.25, 0.5], np.float32))
    np.testing.assert_allclose(sent, [1.0, -0.25, 0.5])
    until(lambda: arm.commands)
    np.testing.assert_allclose(arm.commands[-1], [1.0, -0.25, 0.5])
    until(lambda: np.allclose(robot.read()["proprio"].value[:3], sent))


def test_lost_late_and_doubled_samples_do_not_move_the_stamp_back(robot, arm):
    arm.paused = True
    time.sleep(0.1)
    begin_s, stamps, places = time.time(), [robot.read()["proprio"].stamp_s], []
    for step in (1, 2, 2, 5, 3, 4, 5, 6):  # twice the same, a gap, late ones
        arm.tell(begin_s + 0.01 * step, np.full(3, 0.1 * step))
        time.sleep(0.03)
        reading = robot.read()["proprio"]
        stamps.append(reading.stamp_s)
        places.append(round(float(reading.value[0]), 3))
    assert stamps == sorted(stamps)
    assert places == [0.1, 0.2, 0.2, 0.5, 0.5, 0.5, 0.5, 0.6]


def test_a_stop_holds_the_joints_where_they_are_and_refuses_what_follows(robot, arm):
    robot.send(np.array([0.3, -1.0, 0.2], np.float32))
    until(lambda: np.allclose(robot.read()["proprio"].value[:3], [0.3, -1.0, 0.2]))
    robot.stop()
    until(lambda: len(arm.commands) == 2)
    np.testing.assert_allclose(arm.commands[-1], [0.3, -1.0, 0.2], rtol=1e-6)
    with pytest.raises(RobotError, match="was stopped"):
        robot.send(np.zeros(3, np.float32))


def test_it_conforms(arm, domain):
    def stay(spec, readings):
        return np.array(START, np.float32)

    # Both sides live in this process: a slow robot leaves room for that.
    with unchecked_shapes():
        found = check(lambda: robot_of(domain, rate_hz=5.0), CLOCK, stay)
    assert not found, "\n".join(map(str, found))


def test_a_robot_that_is_missing_or_does_not_listen_is_an_error_with_advice(messages, domain, monkeypatch):
    monkeypatch.setattr(dds, "DISCOVERY_S", 0.6)
    with pytest.raises(RobotError, match=r"no state of .*shoulder.* on rt/joint_states .*is the robot running"):
        robot_of(domain).connect()
    arm = Arm(messages, domain, listens=False)
    try:
        monkeypatch.setattr(dds, "DISCOVERY_S", 2.0)
        with pytest.raises(RobotError, match="nobody listens to rt/forward_position_controller/commands"):
            robot_of(domain).connect()
    finally:
        arm.close()


def test_a_controller_that_goes_away_is_noticed_at_the_next_action(robot, arm):
    robot.send(np.array(START, np.float32))
    arm.close()

    def refused():
        try:
            robot.send(np.array(START, np.float32))
        except RobotError as error:
            return "is the robot's controller running" in str(error)

    until(refused)


# ---------------------------------------------------------------------------------------------- stamps and pictures


def test_the_fastest_message_tells_the_offset_and_no_stamp_is_of_the_future():
    stamps, delays = Stamps(), [0.05, 0.01, 0.03, 0.002, 0.04]
    told = [stamps.monotonic(5000.0 + tick, 100.0 + tick + delay) for tick, delay in enumerate(delays)]
    ages = [100.0 + tick + delay - moment for tick, (delay, moment) in enumerate(zip(delays, told, strict=True))]
    np.testing.assert_allclose(ages, [0.0, 0.0, 0.02, 0.0, 0.038], atol=1e-9)
    assert told == sorted(told)


@pytest.mark.parametrize("jump_s", [-3600.0, 3600.0])
def test_a_publisher_whose_clock_was_set_is_followed(jump_s):
    stamps = Stamps()
    before = stamps.monotonic(5000.0, 100.0)
    after = [stamps.monotonic(5000.0 + jump_s + tick, 100.1 + tick) for tick in range(3)]
    assert [before, *after] == sorted([before, *after])
    np.testing.assert_allclose(after, [100.1, 101.1, 102.1])


def test_pictures_that_are_broken_count_as_none_and_other_sizes_are_told(messages):
    header = messages.Header()
    image = sample_picture()
    swapped = picture(image_of(messages, header, image[..., ::-1], "bgr8", 0), SIZE)
    np.testing.assert_array_equal(swapped, image)
    short = image_of(messages, header, image)
    short.data = short.data[:100]
    assert picture(short, SIZE) is None
    assert picture(messages.CompressedImage(header, "jpeg", png(image)[:50]), SIZE) is None
    assert picture(messages.CompressedImage(header, "jpeg", b"GIF89a"), SIZE) is None
    with pytest.raises(RobotError, match="change one of them"):
        picture(image_of(messages, header, image[:4]), SIZE)
    with pytest.raises(RobotError, match="16UC1"):
        picture(image_of(messages, header, image, "16UC1"), SIZE)
