"""Mappings, as YAML gives them, into frozen dataclasses and back, strictly.

Every component owns a frozen dataclass beside its class; this file is the one door from a config to them. Nothing is
guessed: an unknown key, a missing key or a value of another type is a `ConfigError` that says where, what was expected,
what arrived and what to try.

    {"width": 64, "levels": [0.0, 1.0]}   --from_mapping(Net, ...)-->   Net(width=64, levels=(0.0, 1.0))
                                          <--to_mapping(...)----------
"""

import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class ConfigError(ValueError):
    """A config that cannot be meant: says where, what was expected, what arrived, what to try."""


def from_mapping(cls: type[T], mapping: Any, where: str = "config") -> T:
    """Build the dataclass `cls` from a mapping with string keys.

    Fields may be bool, int, float (an int will do), str, None, Path, Enum (by value or by name), Literal, Optional and
    other unions, tuple, list, dict, Any, and dataclasses of all these. Lists become tuples where a tuple is declared.
    A `ValueError` of the class's own `__post_init__` comes back as a `ConfigError` that says where.

    where: the path of this mapping in the whole config, used as a prefix in errors.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where}: expected keys and values for {cls.__name__}, got {_shown(mapping)}")
    settable = {field.name: field for field in fields(cls) if field.init}
    for key in mapping:
        if key not in settable:
            raise ConfigError(f"{where}: {unknown(key, settable)}")
    required = [name for name, field in settable.items() if field.default is MISSING and field.default_factory is MISSING]
    missing = [name for name in required if name not in mapping]
    hints = get_type_hints(cls)
    if missing:
        wanted = ", ".join(f"{name} ({_name(hints[name])})" for name in missing)
        raise ConfigError(f"{where}: {cls.__name__} also needs {wanted}; given are {', '.join(map(str, mapping)) or 'no keys'}")
    values = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in mapping.items()}
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def to_mapping(value: Any) -> Any:
    """The inverse of `from_mapping`: plain dicts, lists, numbers, strings and None, fit for YAML and JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_mapping(getattr(value, field.name)) for field in fields(value) if field.init}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: to_mapping(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_mapping(item) for item in value]
    return value


def unknown(key: object, valid: Sequence[str] | Mapping, what: str = "key") -> str:
    """The words for a key that does not exist: the nearest valid one, and all valid ones."""
    names = sorted(map(str, valid))
    near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.6)
    guess = f", did you mean {near[0]!r}?" if near else ";"
    return f"unknown {what} {str(key)!r}{guess} valid {what}s: {', '.join(names) or 'none'}"


# Below: one function per family of types. Each takes (type, value, path) and returns the value as declared, or raises.


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or isinstance(kind, TypeVar):
        return value
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, where)
    if origin is Literal:
        return _literal(arguments, value, where)
    if isinstance(kind, type) and is_dataclass(kind):
        return value if isinstance(value, kind) else from_mapping(kind, value, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _member(kind, value, where)
    base = origin or kind
    if base in (tuple, list, Sequence):
        return _sequence(base, arguments, value, where)
    if base in (dict, Mapping):
        return _mapping(arguments, value, where)
    return _plain(kind, value, where)


def _plain(kind: Any, value: Any, where: str) -> Any:
    """bool, int, float, str, None and Path; True is not 1 here, and 1 is not True."""
    if kind in (None, type(None)):
        if value is None:
            return None
    elif kind is Path and isinstance(value, (str, Path)):
        return Path(value)
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: expected {_name(kind)}, got {_shown(value)}{_hint(kind, value)}")


def _hint(kind: Any, value: Any) -> str:
    if kind in (int, float) and isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return ""
        # YAML 1.1 reads 1e-3 as text, because its floats need a point
        return f"; write it without quotes and with a point, as {float(value)!r}" if kind is float else "; write it without quotes"
    if kind is int and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    return ""


def _one_of(kinds: tuple, value: Any, where: str) -> Any:
    """The first arm of the union that takes the value as it is; exact types first, so that 1 stays an int in `float | int`."""
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    if len(kinds) == 1:
        return _convert(kinds[0], value, where)
    for kind in sorted(kinds, key=lambda kind: kind is not type(value)):
        try:
            return _convert(kind, value, where)
        except ConfigError:
            continue
    raise ConfigError(f"{where}: expected {' or '.join(map(_name, kinds))}, got {_shown(value)}")


def _literal(choices: tuple, value: Any, where: str) -> Any:
    for choice in choices:
        if choice == value and type(choice) is type(value):
            return value
    near = difflib.get_close_matches(str(value), map(str, choices), n=1, cutoff=0.6)
    guess = f", did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{where}: expected one of {', '.join(map(repr, choices))}, got {_shown(value)}{guess}")


def _member(kind: type[Enum], value: Any, where: str) -> Enum:
    for member in kind:
        if value is member or value == member.value or value == member.name:
            return member
    raise ConfigError(f"{where}: expected one of {', '.join(repr(member.value) for member in kind)}, got {_shown(value)}")


def _sequence(base: Any, kinds: tuple, value: Any, where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: expected a list, got {_shown(value)}")
    if base is not tuple or not kinds or kinds[-1] is Ellipsis:
        kinds = (kinds[0] if kinds else Any,) * len(value)
    if len(kinds) != len(value):
        wanted = ", ".join(map(_name, kinds))
        raise ConfigError(f"{where}: expected {len(kinds)} values ({wanted}), got {len(value)}: {_shown(value)}")
    items = [_convert(kind, item, f"{where}[{index}]") for index, (kind, item) in enumerate(zip(kinds, value, strict=True))]
    return items if base is list else tuple(items)


def _mapping(kinds: tuple, value: Any, where: str) -> dict:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected keys and values, got {_shown(value)}")
    key_kind, item_kind = kinds or (Any, Any)
    return {_convert(key_kind, key, f"{where} (a key)"): _convert(item_kind, item, f"{where}.{key}") for key, item in value.items()}


def _name(kind: Any) -> str:
    """A type as a reader would write it."""
    if kind in (None, type(None)):
        return "nothing (null)"
    return str(kind).replace("typing.", "") if get_origin(kind) else getattr(kind, "__name__", str(kind))


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
