"""Messages as bytes: msgpack with numpy arrays as openpi's clients and servers write them, decoded strictly.

```
{"observation/state": array(7)}   --pack-->   82 b3 "observation/state" 84 c4 0b "__ndarray__" c3 ...   --unpack-->   the same
```

An array is a map with byte-string keys `__ndarray__` (true), `data` (raw bytes, C order), `dtype` ("<f4") and `shape`; a
numpy scalar is `__npgeneric__`, `data`, `dtype`. Whatever arrives, `unpack` returns plain values and arrays of numbers or
raises `WireError`, and it never makes more than `limits` allows: nothing is unpickled, no class is looked up, and an array
is a read-only view of the bytes that arrived. Both directions are written here so that every limit is checked before the
memory is taken; `tests/test_robot_server.py` holds them to the msgpack package and to openpi's own functions.

Sources: msgpack specification (github.com/msgpack/msgpack, spec.md); openpi-client 0.1.2, `msgpack_numpy`.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

NUMBERS = re.compile(r"[<>|](b1|[iu][1248]|f[248])")  # every other dtype is refused: objects, records, complex, dates
LARGEST_RANK = 8


class WireError(ValueError):
    """Bytes that are no message, or a value that cannot be one: what was expected, and what arrived."""


@dataclass(frozen=True)
class Limits:
    """The largest message: `size` in bytes, `count` values of any kind, `depth` of maps and lists inside each other."""

    size: int = 16 * 2**20
    count: int = 10_000
    depth: int = 8


def pack(message: Any) -> bytes:
    """The bytes of plain values and arrays. Raises WireError for what has no place in a message."""
    out = bytearray()
    _write(message, out, 0)
    return bytes(out)


def unpack(data: bytes, limits: Limits = Limits()) -> Any:
    """The value of one whole message. Raises WireError on anything else."""
    if not isinstance(data, bytes):
        raise WireError(f"a message is bytes, got {type(data).__name__}: send a binary frame")
    if len(data) > limits.size:
        raise WireError(f"a message has at most {limits.size} bytes, got {len(data)}: send smaller images")
    reader = _Reader(data, limits)
    value = _closed(reader.value(0))
    if reader.at != len(data):
        raise WireError(f"{len(data) - reader.at} bytes follow the message, which ended at byte {reader.at}")
    return value


# ---------------------------------------------------------------------------------------------------------------- writing


def _write(value: Any, out: bytearray, depth: int) -> None:
    if depth > 32:
        raise WireError("maps and lists inside each other deeper than 32 levels, or one that holds itself")
    match value:
        case None:
            out += b"\xc0"
        case bool():
            out += b"\xc3" if value else b"\xc2"
        case int():
            out += _integer(value)
        case float():
            out += b"\xcb" + struct.pack(">d", value)
        case str():
            _write_sized(value.encode(), out, (0xA0, 32), (0xD9, 0xDA, 0xDB))
        case bytes() | bytearray() | memoryview():
            _write_sized(bytes(value), out, (0, 0), (0xC4, 0xC5, 0xC6))
        case np.ndarray() | np.generic():
            _write(_plain(value), out, depth)
        case dict():
            _write_head(len(value), out, (0x80, 16), (None, 0xDE, 0xDF))
            for key, each in value.items():
                _write(key, out, depth + 1)
                _write(each, out, depth + 1)
        case list() | tuple():
            _write_head(len(value), out, (0x90, 16), (None, 0xDC, 0xDD))
            for each in value:
                _write(each, out, depth + 1)
        case _:
            raise WireError(f"a message holds numbers, text, bytes, maps, lists and numpy arrays, got {type(value).__name__}")


def _plain(value: np.ndarray | np.generic) -> dict:
    """An array or a numpy scalar as the map that stands for it."""
    name = value.dtype.str
    if not NUMBERS.fullmatch(name):
        raise WireError(f"arrays hold numbers or booleans of at most 8 bytes, got dtype {value.dtype}: convert it before sending")
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": name, b"shape": value.shape}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": name}


def _integer(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack("b", value)
    for code, form, low, high in _INTEGERS:
        if low <= value <= high:
            return bytes([code]) + struct.pack(form, value)
    raise WireError(f"integers have at most 64 bits, got {value}")


_INTEGERS = [(code, form, 0, 2**bits - 1) for code, form, bits in ((0xCC, ">B", 8), (0xCD, ">H", 16), (0xCE, ">I", 32), (0xCF, ">Q", 64))]
_INTEGERS += [
    (code, form, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for code, form, bits in ((0xD0, ">b", 8), (0xD1, ">h", 16), (0xD2, ">i", 32), (0xD3, ">q", 64))
]


def _write_sized(data: bytes, out: bytearray, short: tuple[int, int], codes: tuple[int, int, int]) -> None:
    _write_head(len(data), out, short, codes)
    out += data


def _write_head(count: int, out: bytearray, short: tuple[int, int], codes: tuple[int | None, int, int]) -> None:
    """`short`: code and bound of the one-byte form; `codes`: forms with a length of 1, 2 and 4 bytes."""
    if count < short[1]:
        out += bytes([short[0] | count])
        return
    for code, form, bound in zip(codes, (">B", ">H", ">I"), (2**8, 2**16, 2**32), strict=True):
        if code is not None and count < bound:
            out += bytes([code]) + struct.pack(form, count)
            return
    raise WireError(f"too long for a message: {count}")


# ---------------------------------------------------------------------------------------------------------------- reading

_FIXED = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_SIZED = {0xC4: (">B", "bytes"), 0xC5: (">H", "bytes"), 0xC6: (">I", "bytes"), 0xD9: (">B", "text"), 0xDA: (">H", "text"),
          0xDB: (">I", "text"), 0xDC: (">H", "list"), 0xDD: (">I", "list"), 0xDE: (">H", "map"), 0xDF: (">I", "map")}  # fmt: skip


class _Reader:
    """Reads values one after the other and counts what it has made."""

    def __init__(self, data: bytes, limits: Limits):
        self.data, self.limits = memoryview(data), limits
        self.at = self.made = 0

    def value(self, depth: int) -> Any:
        self.made += 1
        if self.made > self.limits.count:
            raise WireError(f"a message has at most {self.limits.count} values: send arrays as arrays, not as lists")
        code = self.take(1)[0]
        if code < 0x80:
            return code
        if code >= 0xE0:
            return code - 256
        if code < 0xC0:
            kind, count = ("map", code & 15) if code < 0x90 else ("list", code & 15) if code < 0xA0 else ("text", code & 31)
            return self.sized(kind, count, depth)
        if code in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[code]
        if code in _FIXED:
            return self.number(_FIXED[code])
        if code in _SIZED:
            form, kind = _SIZED[code]
            return self.sized(kind, self.number(form), depth)
        raise WireError(f"byte {self.at - 1} begins no value that a message may hold (0x{code:02x}; extension types are refused)")

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.at:
            raise WireError(f"the message ends too early: {count} bytes expected at byte {self.at} of {len(self.data)}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> int | float:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def sized(self, kind: str, count: int, depth: int) -> Any:
        if kind == "bytes":
            return self.take(count)
        if kind == "text":
            return self.text(count)
        if depth >= self.limits.depth:
            raise WireError(f"maps and lists lie inside each other deeper than {self.limits.depth} levels")
        if kind == "list":
            return [_closed(self.value(depth + 1)) for _ in range(count)]
        return self.map(count, depth)

    def text(self, count: int) -> str:
        try:
            return str(self.take(count), "utf-8")
        except UnicodeDecodeError as error:
            raise WireError(f"text is UTF-8, got other bytes before byte {self.at}") from error

    def map(self, count: int, depth: int) -> Any:
        found: dict = {}
        for _ in range(count):
            key = _closed(self.value(depth + 1))
            if not isinstance(key, str | bytes):
                raise WireError(f"keys are text or bytes, got {type(key).__name__}")
            if key in found:
                raise WireError(f"the key {key!r:.40} is there twice")
            found[key] = self.value(depth + 1)
        if b"__ndarray__" in found:
            return _array(found)
        if b"__npgeneric__" in found:
            return _scalar({key: _closed(each) for key, each in found.items()})
        return {key: _closed(each) for key, each in found.items()}


def _closed(value: Any) -> Any:
    """Bytes as bytes: only an array keeps a view of the message."""
    return bytes(value) if isinstance(value, memoryview) else value


def _array(found: dict) -> np.ndarray:
    if set(found) != {b"__ndarray__", b"data", b"dtype", b"shape"} or found[b"__ndarray__"] is not True:
        raise WireError("an array is a map of exactly __ndarray__ (true), data, dtype and shape")
    data, name, shape = found[b"data"], found[b"dtype"], found[b"shape"]
    if not isinstance(name, str) or not NUMBERS.fullmatch(name):
        raise WireError(f"an array's dtype is one of booleans, integers and floats of at most 8 bytes, got {name!r:.40}")
    if not isinstance(shape, list) or len(shape) > LARGEST_RANK or not all(type(n) is int and n >= 0 for n in shape):
        raise WireError(f"an array's shape is a list of at most {LARGEST_RANK} sizes, got {shape!r:.60}")
    dtype, count = np.dtype(name), 1
    for size in shape:
        count *= size
    if not isinstance(data, memoryview) or count * dtype.itemsize != len(data):
        arrived = len(data) if isinstance(data, memoryview) else type(data).__name__
        raise WireError(f"an array {shape} of {name} has {count * dtype.itemsize} bytes of data, got {arrived}")
    try:
        return np.ndarray(shape, dtype, buffer=data)
    except (ValueError, OverflowError) as error:  # nothing times far too much is still nothing, but not for numpy
        raise WireError(f"no array has the shape {shape!r:.60}") from error


def _scalar(found: dict) -> np.generic:
    if set(found) != {b"__npgeneric__", b"data", b"dtype"} or found[b"__npgeneric__"] is not True:
        raise WireError("a numpy scalar is a map of exactly __npgeneric__ (true), data and dtype")
    data, name = found[b"data"], found[b"dtype"]
    if not isinstance(name, str) or not NUMBERS.fullmatch(name):
        raise WireError(f"a scalar's dtype is one of booleans, integers and floats of at most 8 bytes, got {name!r:.40}")
    dtype = np.dtype(name)
    wanted = {"b": bool, "i": int, "u": int, "f": float}[dtype.kind]
    if type(data) is not wanted and not (wanted is float and type(data) is int):
        raise WireError(f"a scalar of {name} holds a {wanted.__name__}, got {type(data).__name__}")
    if dtype.kind in "iu" and not np.iinfo(dtype).min <= data <= np.iinfo(dtype).max:
        raise WireError(f"{data} does not fit {name}")
    with np.errstate(over="ignore"):
        return dtype.type(data)
