"""Canonical msgpack: one value has one encoding, and every other encoding is refused.

Everything that is signed, hashed, sealed or sent goes through here. Only nil, bool, int, str,
bytes, list and dict with str keys exist; no floats, no extensions. Decoding checks size first,
then msgpack's own limits, then that encoding the result again gives the very same bytes: that
alone rules out duplicate keys, unsorted keys, over-long integers and trailing bytes (FACTS:
msgpack accepts duplicate keys).

A byte can stand for an empty list, which takes 64 bytes of memory and a microsecond, so the number
of values is bounded as well as the size.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgpack

T = TypeVar("T", list[Any], dict[str, Any])

ITEMS_MAX: Final = 2_048  # elements of one list or map; an entry has up to 2,000 slot writes
VALUES_MAX: Final = 262_144  # lists, maps and their elements; 1,000 new files hold 34,000
DEPTH_MAX: Final = 16  # nesting; the deepest real value, an entry's slot writes, uses 7

_SCALARS: Final = (bytes, int, str)  # bool is an int; ids are bytes
_PLAIN: Final = frozenset({bool, int, str, bytes, type(None)})  # the same, found by one look-up


def pack(value: object) -> bytes:
    """Encode canonically. Raises TypeError on a type that is not in the list above."""
    packed: bytes = msgpack.packb(_sorted(value, DEPTH_MAX), use_bin_type=True)
    return packed


def unpack(data: bytes, *, size_max: int, items_max: int = ITEMS_MAX) -> Any:
    """Decode strictly.

    Args:
        data: One canonical value and nothing after it.
        size_max: Bytes; checked before anything is decoded.
        items_max: Elements of one list or map.
    Raises:
        ValueError: too large, malformed, not canonical, or nested too deeply.
    """
    if len(data) > size_max:
        raise ValueError(f"{len(data)} bytes, at most {size_max} are allowed")
    items_max = min(items_max, len(data))  # room for a list is made before it is read
    budget = _Budget()
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=size_max,
            max_bin_len=size_max,
            max_array_len=items_max,
            max_map_len=items_max,
            max_ext_len=0,
            list_hook=budget.spend,
            object_hook=budget.spend,
        )
        canonical = pack(value)
    except (
        msgpack.exceptions.UnpackException,
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise ValueError(f"not valid msgpack: {error or type(error).__name__}") from None
    if canonical != data:
        raise ValueError("not canonical msgpack")
    return value


class _Budget:
    """Counts the values of one message while it is decoded, innermost lists first."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = VALUES_MAX

    def spend(self, container: T) -> T:
        self._left -= len(container) + 1
        if self._left < 0:
            raise ValueError("it holds too many values")
        return container


def _sorted(value: object, depth: int) -> object:
    """The value with every map's keys sorted; raises on foreign types and on deep nesting."""
    if value.__class__ in _PLAIN or isinstance(value, _SCALARS):
        return value
    if depth == 0:
        raise ValueError(f"nested more than {DEPTH_MAX} deep")
    if isinstance(value, list | tuple):
        return [e if e.__class__ in _PLAIN else _sorted(e, depth - 1) for e in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("map keys are text")
        return {key: _sorted(value[key], depth - 1) for key in sorted(value)}
    raise TypeError(f"{type(value).__name__} has no place in a message")
