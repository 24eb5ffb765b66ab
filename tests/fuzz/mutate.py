"""Makes hostile inputs out of valid ones, by a seeded `random.Random` and nothing else.

Two ways: bytes are flipped, cut, repeated, spliced; or, where the input is canonical msgpack, the
value is taken apart, changed somewhere and encoded again, so that it gets past the codec and into
what reads it. Bytes inside a value that are msgpack themselves are taken apart too.
"""

from __future__ import annotations

from random import Random
from typing import Any, Final

import msgpack

SIZE_MAX: Final = 64 * 1024  # bytes of an input
_NESTED_MAX: Final = 4  # levels of msgpack within msgpack
_EDGES: Final = (0, 1, 0x7F, 0x80, 0xC0, 0xC1, 0xDC, 0xDD, 0xDE, 0xDF, 0xFF)
_LENGTHS: Final = (0, 1, 4, 16, 32, 33, 255, 4097)
_INTEGERS: Final = (
    0, 1, 2, 3, -1, 255, 2**16, 2**31 - 1, 2**32, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1,
)  # fmt: skip
_TEXTS: Final = (
    "", ".", "..", "/", "a/b", "\0", ".shoal", ".SHOAL", "a\u0301", "\u202e", "x" * 256, "**/" * 9,
    "\ue000", "\U0001f41f", " a ", "\n",
)  # fmt: skip


def mutate(random: Random, data: bytes, others: list[bytes], packed: int | None) -> bytes:
    """A changed `data`.

    Args:
        random: All of the chance there is.
        data: A valid input, or one that was changed before.
        others: Inputs to splice with.
        packed: Where msgpack begins in it; None where there is none.
    """
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        if packed is not None and random.random() < 0.7:
            data = data[:packed] + _mutate_packed(random, data[packed:], _NESTED_MAX)
        else:
            data = _mutate_bytes(random, data, others)
    return data[:SIZE_MAX]


def _mutate_bytes(random: Random, data: bytes, others: list[bytes]) -> bytes:
    at = random.randrange(len(data) + 1)
    end = min(len(data), at + random.choice(_LENGTHS))
    match random.randrange(9):
        case 0 | 1 if data:
            at = random.randrange(len(data))
            flipped = data[at] ^ random.choice((1 << random.randrange(8), 0xFF))
            return data[:at] + bytes([flipped]) + data[at + 1 :]
        case 2 if data:
            at = random.randrange(len(data))
            return data[:at] + bytes([random.choice(_EDGES)]) + data[at + 1 :]
        case 3:
            return data[:at]
        case 4:
            return data[:at] + data[end:]
        case 5:
            return data[:at] + data[at:end] * random.choice((2, 3, 100)) + data[end:]
        case 6:
            other = random.choice(others)
            return data[:at] + other[random.randrange(len(other) + 1) :]
        case 7:
            value = random.choice((0, 1, 255, 2**31, 2**32 - 1, len(data)))
            return data[:at] + value.to_bytes(4, random.choice(("big", "little"))) + data[at + 4 :]
        case _:
            return data[:at] + random.randbytes(random.choice(_LENGTHS)) + data[end:]


def _mutate_packed(random: Random, data: bytes, depth: int) -> bytes:
    try:
        value = msgpack.unpackb(data, raw=False, strict_map_key=False)
        return packed(_mutate_value(random, value, depth))
    except (ValueError, TypeError, OverflowError, msgpack.exceptions.UnpackException):
        return _mutate_bytes(random, data, [data])


def packed(value: object) -> bytes:
    """Canonical msgpack, without the codec's limits."""
    encoded: bytes = msgpack.packb(_sorted(value), use_bin_type=True)
    return encoded


def _sorted(value: object) -> object:
    if isinstance(value, list):
        return [_sorted(one) for one in value]
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value, key=repr)}
    return value


def _mutate_value(random: Random, value: Any, depth: int) -> Any:
    """Go down a random way, and change what is there."""
    down = random.random() < 0.85
    if isinstance(value, list) and value and down:
        at = random.randrange(len(value))
        return [*value[:at], _mutate_value(random, value[at], depth), *value[at + 1 :]]
    if isinstance(value, dict) and value and down:
        key = random.choice(sorted(value, key=repr))
        return {**value, key: _mutate_value(random, value[key], depth)}
    if isinstance(value, bytes) and len(value) > 40 and depth and random.random() < 0.8:
        return _mutate_packed(random, value, depth - 1)
    return _change(random, value)


def _change(random: Random, value: Any) -> Any:
    if random.random() < 0.15:
        return _anything(random)
    match value:
        case bool():
            return not value
        case int():
            return random.choice((value + 1, value - 1, -value, *_INTEGERS))
        case str():
            return random.choice((*_TEXTS, value + random.choice(_TEXTS), value[1:], value * 40))
        case bytes():
            return _mutate_bytes(random, value, [value])
        case list() if value:
            at = random.randrange(len(value))
            match random.randrange(5):
                case 0:
                    return value[:at] + value[at + 1 :]
                case 1:
                    return [*value[:at], value[at], *value[at:]]
                case 2:
                    return [value[at]] * random.choice((0, 2, 17, 300))
                case 3:
                    return random.sample(value, len(value))
                case _:
                    return [*value, _anything(random)]
        case dict() if value:
            key = random.choice(sorted(value, key=repr))
            match random.randrange(3):
                case 0:
                    return {name: one for name, one in value.items() if name != key}
                case 1:
                    return {**value, random.choice(_TEXTS): value[key]}
                case _:
                    return {**value, key: _anything(random)}
        case _:
            return _anything(random)


def _anything(random: Random) -> Any:
    return random.choice(
        (
            None, True, False, 1.5, [], [[]], [None] * 300, {}, {"a": 1}, [[b"x" * 32, 1]], b"",
            bytes(16), bytes(32), b"\xff" * 32, bytes(64), bytes(4097), "a", random.choice(_TEXTS),
            random.choice(_INTEGERS), random.randbytes(random.choice((16, 32, 64))),
        )
    )  # fmt: skip
