"""LIBERO's initial states (`<task>.pruned_init`): an array inside a torch pickle, read without unpickling anything.

A pickle is a program for a stack machine that may call any function. This machine knows no function at all: names are texts that
are compared with the three that an array needs, and whatever else the program wants is a FormatError.
"""

from __future__ import annotations

import pickletools
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uwm_data.errors import FormatError

MOST_BYTES = 64 << 20
NAMES = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
LITERALS = ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "BINBYTES", "SHORT_BINBYTES")
_MARK = object()


class _Name(NamedTuple):
    """A function's name, of those that are known. Nothing is behind it."""

    does: str


class _Made:
    """What a call of a name would make: "dtype" or "array", with what it was given."""

    def __init__(self, what: str, given: Any):
        self.what = what
        self.given = given
        self.state: Any = None


def read_initial_states(path: str | Path) -> np.ndarray:
    """The states (count, numbers) in a `.pruned_init` file; FormatError on anything else than a plain array of numbers."""
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            program = _program(path, archive)
        made = _run(program)
        return _array(made)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error) as error:
        raise FormatError(f"{path} is not a file that torch saved: {error}") from error
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, MemoryError) as error:
        raise FormatError(f"{path}: {error}. One plain array of numbers is all that is read from a pickle here; nothing is run") from error


def _program(path: Path, archive: zipfile.ZipFile) -> bytes:
    entries = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
    if len(entries) != 1:
        raise FormatError(f"{path} holds {len(entries)} entries data.pkl, expected one")
    entry = entries[0]
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > min(MOST_BYTES, path.stat().st_size):
        raise FormatError(f"{path}: data.pkl is packed, or larger than {MOST_BYTES} bytes; torch saves neither")
    return archive.read(entry)


def _run(program: bytes) -> Any:
    """The value that the program leaves, made of numbers, texts, tuples and `_Made`."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for operation, argument, _ in pickletools.genops(program):
        name = operation.name
        if name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in LITERALS:
            stack.append(argument)
        elif name == "GLOBAL":
            stack.append(_named(argument))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            _collect(stack, int(name[5:]) if name[5:] else None)
        elif name == "REDUCE":
            given = stack.pop()
            stack.append(_called(stack.pop(), given))
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].state = state if isinstance(stack[-1], _Made) else _refuse("BUILD on a plain value")
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            _refuse(name)
    return _refuse("no end")


def _collect(stack: list[Any], count: int | None) -> None:
    """Replace the last `count` values, or those above the mark, by a tuple of them."""
    first = len(stack) - count if count is not None else max(place for place, value in enumerate(stack) if value is _MARK) + 1
    if first < 0:
        raise IndexError("a tuple of more than there is")
    values = tuple(stack[first:])
    del stack[first if count is not None else first - 1 :]
    stack.append(values)


def _refuse(what: str) -> Any:
    raise ValueError(f"the pickle wants {what[:100]!r}, which is refused")


def _named(name: str) -> _Name:
    return _Name(NAMES[name]) if name in NAMES else _refuse(name)


def _called(name: Any, given: Any) -> Any:
    if not isinstance(name, _Name) or not isinstance(given, tuple):
        return _refuse("a call of something that is no name")
    if name.does == "encode":
        text, coding = given
        return text.encode("latin1") if coding == "latin1" and isinstance(text, str) else _refuse(f"encode to {coding}")
    return _Made(name.does, given) if name.does in ("array", "dtype") else _refuse(f"a call of {name.does}")


def _array(made: Any) -> np.ndarray:
    if not isinstance(made, _Made) or made.what != "array" or not isinstance(made.state, tuple):
        return _refuse("something that is no array")
    _, shape, kind, is_columns_first, payload = made.state
    if not isinstance(kind, _Made) or kind.what != "dtype" or not isinstance(payload, bytes):
        return _refuse("an array of objects")
    order = kind.state[1] if isinstance(kind.state, tuple) else "="
    dtype = np.dtype(str(kind.given[0])).newbyteorder(order if order in ("<", ">") else "=")
    if dtype.kind not in "biuf" or dtype.itemsize > 8 or dtype.itemsize * int(np.prod(shape, dtype=object)) != len(payload):
        return _refuse(f"an array of {dtype}, shape {shape}, in {len(payload)} bytes")
    values = np.frombuffer(payload, dtype).reshape(shape, order="F" if is_columns_first else "C")
    if values.ndim != 2 or not np.isfinite(values).all():
        return _refuse(f"an array {values.shape} where finite states (count, numbers) are expected")
    return values.astype(dtype.newbyteorder("="))
