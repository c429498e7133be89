"""`tf.train.Example` messages to and from bytes, without tensorflow and without protobuf: the wire format is a page.

    Example  = { 1: Features }     Features = { 1: Entry, 1: Entry, ... }     Entry = { 1: name, 2: Feature }
    Feature  = { 1: BytesList } or { 2: FloatList } or { 3: Int64List }
    lists    = { 1: value, 1: value, ... } one by one, or { 1: all values } packed (numbers only)

A field is a varint tag (number * 8 + wire type) and its value: wire type 0 a varint, 2 a length and so many bytes, 5 four
bytes. Floats are float32, integers int64 as varints of seven bits a byte, the last one below 128. Images stay views into the
record. Nothing nests deeper than this, so nothing recurses; whatever else the bytes say is a FormatError.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from uwm_data.errors import FormatError

Values = Sequence[bytes | memoryview] | np.ndarray  # a list of byte strings, or float32 (n,), or int64 (n,)
_VARINT, _BYTES, _FOUR_BYTES = 0, 2, 5
_LONGEST_VARINT = 10
_MOST_VALUES = 1 << 20  # byte strings in a list: more than any episode has steps, and few enough that their views fit into memory


def decode(payload: bytes) -> dict[str, Values]:
    """The features of a serialised Example by name; FormatError when it is not one."""
    features: dict[str, Values] = {}
    for example_field in _messages(memoryview(payload), "Example"):
        for entry in _messages(example_field, "Features"):
            name, values = _entry(entry)
            if name in features:
                raise FormatError(f"the feature {name!r} stands twice in one record")
            features[name] = values
    return features


def _messages(view: memoryview, place: str) -> Iterator[memoryview]:
    """The values of a message that has only field 1, all of them messages."""
    for number, wire, value in _fields(view, place):
        if (number, wire) != (1, _BYTES):
            raise _unexpected(number, wire, place)
        yield value


def _entry(view: memoryview) -> tuple[str, Values]:
    parts: dict[int, memoryview] = {}
    for number, wire, value in _fields(view, "Entry"):
        if number not in (1, 2) or wire != _BYTES or number in parts:
            raise _unexpected(number, wire, "Entry")
        parts[number] = value
    try:
        name = str(parts.get(1, b""), "utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"a feature's name is not UTF-8 ({error})") from error
    return name, _feature(parts.get(2, memoryview(b"")), name)


def _feature(view: memoryview, name: str) -> Values:
    fields = list(_fields(view, name))
    if not fields:
        return []
    (number, wire, value), *more = fields
    if more or wire != _BYTES or number not in (1, 2, 3):
        raise _unexpected(number, wire, f"feature {name!r}")
    return (_byte_strings, _floats, _integers)[number - 1](value, f"feature {name!r}")


def _byte_strings(view: memoryview, place: str) -> list[memoryview]:
    values = list(islice(_messages(view, place), _MOST_VALUES + 1))
    if len(values) > _MOST_VALUES:
        raise FormatError(f"{place} has more than {_MOST_VALUES} values; no episode is that long")
    return values


def _floats(view: memoryview, place: str) -> np.ndarray:
    pieces = []
    for number, wire, value in _fields(view, place):
        if number != 1 or wire not in (_BYTES, _FOUR_BYTES):
            raise _unexpected(number, wire, place)
        if len(value) % 4:
            raise FormatError(f"{place}: {len(value)} bytes are no whole number of float32 values")
        pieces.append(value)
    return np.frombuffer(b"".join(pieces), "<f4")


def _integers(view: memoryview, place: str) -> np.ndarray:
    pieces = []
    for number, wire, value in _fields(view, place):
        if number != 1 or wire not in (_BYTES, _VARINT):
            raise _unexpected(number, wire, place)
        pieces.append(value)
    return unpacked(np.frombuffer(b"".join(pieces), np.uint8), place)


def _fields(view: memoryview, place: str) -> Iterator[tuple[int, int, memoryview]]:
    """(field number, wire type, the value's bytes) of each field of a message."""
    at, end = 0, len(view)
    while at < end:
        tag, at = _varint(view, at, place)
        number, wire = tag >> 3, tag & 7
        if wire == _BYTES:
            size, start = _varint(view, at, place)
        elif wire == _VARINT:
            start, size = at, _varint(view, at, place)[1] - at
        elif wire == _FOUR_BYTES:
            start, size = at, 4
        else:
            raise _unexpected(number, wire, place)
        if size > end - start:
            raise FormatError(f"{place}: field {number} says {size} bytes, and {end - start} are left in its message")
        at = start + size
        yield number, wire, view[start:at]


def _varint(view: memoryview, at: int, place: str) -> tuple[int, int]:
    """(the number, the place behind it) of a varint."""
    value = 0
    for shift, byte in enumerate(view[at : at + _LONGEST_VARINT]):
        value |= (byte & 127) << (7 * shift)
        if byte < 128:
            if value >> 64:
                break
            return value, at + shift + 1
    raise FormatError(f"{place}: a number is cut off or longer than 64 bits")


def _unexpected(number: int, wire: int, place: str) -> FormatError:
    return FormatError(f"{place}: field {number} with wire type {wire} has no place there; this is no tf.train.Example")


def unpacked(data: np.ndarray, place: str) -> np.ndarray:
    """int64 (n,) from the bytes (uint8) of n varints."""
    last = np.flatnonzero(data < 128)
    if len(last) == len(data):
        return data.astype(np.int64)
    starts = np.concatenate([[0], last[:-1] + 1]).astype(np.int64)
    lengths = last + 1 - starts if len(last) else np.zeros(0, np.int64)
    if not len(last) or last[-1] != len(data) - 1 or lengths.max() > _LONGEST_VARINT:
        raise FormatError(f"{place}: a number is cut off or longer than 64 bits")
    shift = 7 * (np.arange(len(data)) - np.repeat(starts, lengths))
    if (data[shift == 63] > 1).any():
        raise FormatError(f"{place}: a number is longer than 64 bits")
    parts = (data & 127).astype(np.uint64) << shift.astype(np.uint64)
    return np.bitwise_or.reduceat(parts, starts).view(np.int64)


def packed(values: np.ndarray) -> bytes:
    """The varints of int64 (n,), one after another."""
    values = values.astype(np.int64, copy=False).view(np.uint64)
    if not len(values) or values.max() < 128:
        return values.astype(np.uint8).tobytes()
    shifts = np.arange(0, 70, 7, dtype=np.uint64)
    parts = values[:, None] >> shifts
    there = parts > 0
    there[:, 0] = True
    more = np.zeros_like(there)
    more[:, :-1] = there[:, 1:]
    return ((parts & np.uint64(127)) | (more.astype(np.uint64) << np.uint64(7)))[there].astype(np.uint8).tobytes()


def encode(features: Mapping[str, Values]) -> bytes:
    """The Example that holds these features, as bytes; the same features give the same bytes.

    Lists of byte strings become BytesLists, float arrays float32, integer and bool arrays int64.
    """
    entries = []
    for name in sorted(features):
        entry = _field(1, name.encode()) + _field(2, _encoded_feature(features[name]))
        entries.append(_field(1, entry))
    return _field(1, b"".join(entries))


def _encoded_feature(values: Values) -> bytes:
    if not isinstance(values, np.ndarray):
        return _field(1, b"".join(_field(1, value) for value in values))
    if values.dtype.kind == "f":
        return _field(2, _field(1, values.astype("<f4", copy=False).tobytes()))
    return _field(3, _field(1, packed(values.reshape(-1))))


def _field(number: int, payload: bytes | memoryview) -> bytes:
    return b"".join([bytes([number * 8 + _BYTES]), packed(np.array([len(payload)])), payload])
