"""The classes of `node.control.facade` as JSON and back. Pure.

Fields that are None are left out. Names on disk that are no valid UTF-8 hold lone surrogates;
`dumps` escapes everything beyond ASCII, so they survive.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import types
import typing
from typing import Any, TypeVar, cast

T = TypeVar("T")


def to_json(value: object) -> Any:
    """Dataclasses become objects, tuples arrays, enumerations their text."""
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: to_json(one) for name, one in pairs if one is not None}
    if isinstance(value, tuple | list):
        return [to_json(one) for one in value]
    if isinstance(value, dict):
        return {name: to_json(one) for name, one in value.items()}
    return value


def dumps(value: object, *, indent: int | None = None) -> str:
    """`to_json` as text; ASCII only, so it can be printed and sent whatever the locale."""
    return json.dumps(to_json(value), indent=indent)


def from_json(shape: type[T], data: object) -> T:
    """Read what `to_json` made of a `shape`.

    Unknown fields are ignored: the node may be newer than the program that asks.

    Raises:
        ValueError: `data` has another shape.
    """
    return cast(T, _read(shape, data))


def _read(shape: Any, data: object) -> object:
    origin, arguments = typing.get_origin(shape), typing.get_args(shape)
    if origin is types.UnionType:
        return None if data is None else _read(arguments[0], data)
    if origin is tuple:
        if not isinstance(data, list):
            raise ValueError(f"expected a list, got {type(data).__name__}")
        return tuple(_read(arguments[0], one) for one in data)
    if dataclasses.is_dataclass(shape):
        return _read_object(cast(type, shape), data)
    if isinstance(shape, type) and issubclass(shape, enum.Enum):
        return shape(data)
    if type(data) is not shape:
        raise ValueError(f"expected {shape.__name__}, got {type(data).__name__}")
    return data


def _read_object(shape: type, data: object) -> object:
    if not isinstance(data, dict):
        raise ValueError(f"expected an object, got {type(data).__name__}")  # noqa: TRY004 - foreign data
    hints = typing.get_type_hints(shape)
    known = {name: _read(hints[name], one) for name, one in data.items() if name in hints}
    try:
        return shape(**known)
    except TypeError as error:
        raise ValueError(f"not a {shape.__name__}: {error}") from None
