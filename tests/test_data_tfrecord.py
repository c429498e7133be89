"""TFRecord framing and tf.train.Example messages: the same bytes as protobuf's, and an error for every other byte."""

from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from foreign import mutations, survives
from rlds_folders import Example, crc, record, serialised
from uwm_data import FormatError
from uwm_data.formats import tf_example, tfrecord

FEATURES = {
    "steps/image": [b"", b"\xff\xd8abc", b"x" * 300],
    "steps/action": np.array([0.5, -1e30, np.inf], np.float32),
    "steps/count": np.array([0, 127, 128, -1, 2**63 - 1, -(2**63)]),
    "empty": [],
    "no floats": np.zeros(0, np.float32),
}


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for name, values in expected.items():
        if isinstance(values, list):
            assert [bytes(value) for value in found[name]] == values
        else:
            assert np.array_equal(found[name], values)


values = st.one_of(
    st.lists(st.binary(max_size=200), max_size=4),
    arrays.arrays(np.int64, st.integers(0, 9)),
    arrays.arrays(np.float32, st.integers(0, 9), elements=st.floats(width=32, allow_nan=False)),
)


@given(st.dictionaries(st.text(max_size=20), values, max_size=5))
def test_examples_are_those_of_protobuf_in_both_directions(features):
    theirs = Example.FromString(tf_example.encode(features))
    for name, some in features.items():
        kind = theirs.features.feature[name]
        if isinstance(some, list):
            assert list(kind.bytes_list.value) == some
        elif some.dtype.kind == "f":
            assert np.array_equal(np.array(kind.float_list.value, np.float32), some)
        else:
            assert list(kind.int64_list.value) == some.tolist()
    assert_equal(tf_example.decode(serialised(features)), features)


def test_numbers_may_also_stand_one_by_one_as_the_format_allows():
    feature = b"\x0a\x01f\x12\x0c" + b"\x12\x0a" + b"\x0d\x00\x00\x80\x3f" + b"\x0d\x00\x00\x00\x40"
    whole = b"\x0a\x01n\x12\x07" + b"\x1a\x05" + b"\x08\x03" + b"\x08\xac\x02"
    features = b"".join(b"\x0a" + bytes([len(entry)]) + entry for entry in (feature, whole))
    found = tf_example.decode(b"\x0a" + bytes([len(features)]) + features)
    assert found["f"].tolist() == [1, 2]
    assert found["n"].tolist() == [3, 300]


def field(number, payload):
    return bytes([number * 8 + 2, len(payload)]) + payload


ENTRY = field(1, b"a") + field(2, field(3, field(1, b"\x05")))


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (field(1, field(1, ENTRY) + field(1, ENTRY)), "twice"),
        (field(1, field(1, field(1, b"a") + ENTRY)), "no place"),
        (b"\x0b" + field(1, ENTRY) + b"\x0c", "wire type 3"),
        (field(2, ENTRY), "no place"),
        (field(1, field(1, field(1, b"\xff\xfe"))), "UTF-8"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "left in its message"),
        (b"\x0a" + b"\xff" * 12, "longer than 64 bits"),
        (field(1, field(1, field(1, b"a") + field(2, field(3, field(1, b"\x80" * 3))))), "cut off"),
        (field(1, field(1, field(1, b"a") + field(2, field(3, field(1, b"\xff" * 9 + b"\x02"))))), "64 bits"),
        (field(1, field(1, field(1, b"a") + field(2, field(2, field(1, b"123"))))), "float32"),
        (field(1, field(1, field(1, b"a") + field(2, field(3, b"") + field(2, b"")))), "no place"),
        (b"\x09" + b"\0" * 8, "wire type 1"),
    ],
)
def test_what_is_no_example_is_refused_with_its_place(payload, told):
    with pytest.raises(FormatError, match=told):
        tf_example.decode(payload)


def test_a_list_of_more_values_than_any_episode_has_steps_is_refused(monkeypatch):
    monkeypatch.setattr(tf_example, "_MOST_VALUES", 3)
    tf_example.decode(serialised({"a": [b""] * 3}))
    with pytest.raises(FormatError, match="more than 3 values"):
        tf_example.decode(serialised({"a": [b""] * 4}))


def test_records_are_framed_as_tensorflow_frames_them_and_found_by_their_headers(tmp_path):
    payloads = [b"", b"a", b"bc" * 1000]
    assert [tfrecord.framed(payload) for payload in payloads] == [record(payload) for payload in payloads]
    # What tf.io.TFRecordWriter (TensorFlow 2.21) writes for b"abc".
    assert tfrecord.framed(b"abc").hex() == "0300000000000000b099490e6162636e57f121"
    file = tmp_path / "a.tfrecord"
    file.write_bytes(b"".join(map(record, payloads)))
    borders = tfrecord.record_borders(file)
    assert [tfrecord.read_record(file, *pair) for pair in pairwise(borders)] == payloads


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda data: data[:-1], "cut off"),
        (lambda data: data[:-30], "cut off"),
        (lambda data: data + b"\0\0", "header bytes"),
        (lambda data: data + b"\0" * 40, "checksum"),
        (lambda data: b"\x1f\x8b" + data, "compressed ones are not read"),
        (lambda data: data[:3] + b"\x7f" + data[4:], "checksum"),
        (lambda data: data + record(b"x" * 9).replace(b"x" * 9, b""), "cut off"),
    ],
)
def test_a_damaged_file_says_which_record_and_where(tmp_path, damage, told):
    file = tmp_path / "a.tfrecord"
    file.write_bytes(damage(record(b"first") + record(b"second" * 9)))
    with pytest.raises(FormatError, match=told):
        tfrecord.record_borders(file)


def test_a_length_is_trusted_only_as_far_as_the_file_reaches(tmp_path):
    length = (1 << 40).to_bytes(8, "little")
    file = tmp_path / "a.tfrecord"
    file.write_bytes(length + crc(length))
    with pytest.raises(FormatError, match="claims 1099511627776 bytes"):
        tfrecord.record_borders(file)


def test_a_flipped_bit_in_a_record_is_found_when_it_is_read(tmp_path):
    file = tmp_path / "a.tfrecord"
    data = bytearray(record(b"first") + record(b"second"))
    data[-8] ^= 1
    file.write_bytes(data)
    borders = tfrecord.record_borders(file)
    assert tfrecord.read_record(file, *borders[:2]) == b"first"
    with pytest.raises(FormatError, match="checksum of the record at byte 21"):
        tfrecord.read_record(file, *borders[1:])
    file.write_bytes(data[:-5])
    with pytest.raises(FormatError, match="shorter"):
        tfrecord.read_record(file, *borders[1:])


@settings(max_examples=150)
@given(mutations(serialised(FEATURES)))
def test_a_damaged_example_decodes_or_is_refused(payload):
    with suppress(FormatError):
        tf_example.decode(payload)


def test_a_record_of_ones_alone_neither_hangs_nor_takes_memory():
    assert survives(lambda: tf_example.decode(b"\x0a\xfa\xff\xff\x07" + b"\x0a\x00" * (1 << 20)), seconds=30) == "refused"
