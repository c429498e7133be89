"""The ROS 2 messages that are spoken, as CycloneDDS types: names as ROS 2 gives them to DDS, fields in the order of the .msg files."""

# The fields' types are read at runtime, so annotations stay objects here: no `from __future__ import annotations`.
from dataclasses import dataclass, field

from cyclonedds.idl import IdlStruct
from cyclonedds.idl.types import float64, int32, sequence, uint8, uint32


@dataclass
class Time(IdlStruct, typename="builtin_interfaces::msg::dds_::Time_"):
    """Seconds and nanoseconds since 1970, or since whatever the publisher's clock begins with."""

    sec: int32 = 0
    nanosec: uint32 = 0


@dataclass
class Header(IdlStruct, typename="std_msgs::msg::dds_::Header_"):
    """When, and in which frame."""

    stamp: Time = field(default_factory=Time)
    frame_id: str = ""


@dataclass
class JointState(IdlStruct, typename="sensor_msgs::msg::dds_::JointState_"):
    """Joints by name: position (rad or m), velocity, effort; velocity and effort may be empty."""

    header: Header
    name: sequence[str]
    position: sequence[float64]
    velocity: sequence[float64]
    effort: sequence[float64]


@dataclass
class Image(IdlStruct, typename="sensor_msgs::msg::dds_::Image_"):
    """A picture as it is in memory, `step` bytes a row."""

    header: Header
    height: uint32
    width: uint32
    encoding: str
    is_bigendian: uint8
    step: uint32
    data: sequence[uint8]

    @classmethod
    def deserialize(cls, *arguments, **options):
        """As any message, with `data` as bytes."""
        return _with_bytes(cls, _ImageOfBytes.deserialize(*arguments, **options))


@dataclass
class CompressedImage(IdlStruct, typename="sensor_msgs::msg::dds_::CompressedImage_"):
    """A picture as a file."""

    header: Header
    format: str
    data: sequence[uint8]

    @classmethod
    def deserialize(cls, *arguments, **options):
        """As any message, with `data` as bytes."""
        return _with_bytes(cls, _CompressedImageOfBytes.deserialize(*arguments, **options))


# On the wire bytes are a sequence of uint8, and DDS must be told that. Read as such each byte becomes an int: 640 x 480 take 6 ms, as
# bytes 0.4 ms. So messages are read through these twins, which no topic is made of.
@dataclass
class _ImageOfBytes(IdlStruct):
    header: Header
    height: uint32
    width: uint32
    encoding: str
    is_bigendian: uint8
    step: uint32
    data: bytes


@dataclass
class _CompressedImageOfBytes(IdlStruct):
    header: Header
    format: str
    data: bytes


def _with_bytes(kind: type, twin: IdlStruct) -> IdlStruct:
    return kind(**vars(twin))


@dataclass
class MultiArrayDimension(IdlStruct, typename="std_msgs::msg::dds_::MultiArrayDimension_"):
    """One dimension of an array."""

    label: str
    size: uint32
    stride: uint32


@dataclass
class MultiArrayLayout(IdlStruct, typename="std_msgs::msg::dds_::MultiArrayLayout_"):
    """The dimensions of an array; none for a plain list."""

    dim: sequence[MultiArrayDimension]
    data_offset: uint32


@dataclass
class Float64MultiArray(IdlStruct, typename="std_msgs::msg::dds_::Float64MultiArray_"):
    """Numbers: what forward command controllers take, one for each of their joints."""

    layout: MultiArrayLayout
    data: sequence[float64]
