"""One value has one encoding, and nothing else is read."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.codec import DEPTH_MAX, ITEMS_MAX, VALUES_MAX, pack, unpack

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_what_is_packed_is_read_back(value: Any) -> None:
    data = pack(value)
    assert unpack(data, size_max=len(data)) == value
    assert pack(unpack(data, size_max=len(data))) == data
    with pytest.raises(ValueError, match="at most"):
        unpack(data, size_max=len(data) - 1)


@given(st.binary(max_size=64))
def test_any_bytes_are_read_canonically_or_refused(data: bytes) -> None:
    try:
        value = unpack(data, size_max=64)
    except ValueError:
        return
    assert pack(value) == data


@given(VALUES, st.binary(min_size=1, max_size=4))
def test_nothing_may_follow(value: Any, more: bytes) -> None:
    with pytest.raises(ValueError, match="msgpack"):
        unpack(pack(value) + more, size_max=10_000)


@given(VALUES, st.data())
def test_nothing_may_be_missing(value: Any, data: st.DataObject) -> None:
    packed = pack(value)
    with pytest.raises(ValueError, match="msgpack"):
        unpack(packed[: data.draw(st.integers(0, len(packed) - 1))], size_max=10_000)


@pytest.mark.parametrize(
    "data",
    [
        b"\x82\xa1a\x01\xa1a\x02",  # a key twice
        b"\x82\xa1b\x01\xa1a\x02",  # keys out of order
        b"\xcc\x01",  # a longer integer than needed
        b"\xd9\x01a",  # a longer string header than needed
        b"\xc4\x00\x00",  # trailing bytes
        b"\xa2\xc3\x28",  # not UTF-8
        b"\xa3\xed\xa0\x80",  # a surrogate
        b"\xca\x3f\x80\x00\x00",  # a float
        b"\xd4\x01\x00",  # an extension
        b"\x81\x01\x01",  # a key that is no text
        b"\xc1",  # never used
        b"\xdf\xff\xff\xff\xff",  # four billion pairs
        b"\x91" * 100_000,  # deep
        msgpack.packb(msgpack.Timestamp(1)),
    ],
    ids=lambda data: data[:6].hex(),
)
def test_what_is_not_canonical_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="msgpack"):
        unpack(data, size_max=200_000)


def test_depth_is_bounded() -> None:
    value: list[Any] = []
    for _ in range(DEPTH_MAX - 1):
        value = [value]
    assert unpack(pack(value), size_max=100) == value
    with pytest.raises(ValueError, match="deep"):
        pack([value])


@pytest.mark.parametrize("value", [1.5, {1: 2}, {b"a": 1}, object(), {1, 2}])
def test_foreign_types_are_not_packed(value: Any) -> None:
    with pytest.raises(TypeError):
        pack(value)


def _lists(count: int, one: bytes) -> bytes:
    """`count` times `one`, in lists of 2,048."""
    return b"".join(
        [b"\xdc", (count // 2048).to_bytes(2), (b"\xdc\x08\0" + one * 2048) * (count // 2048)]
    )


@pytest.mark.parametrize("one", [b"\x90", b"\x80", b"\xc0", b"\xa2zz", b"\x91\xc0"], ids=repr)
def test_a_bomb_of_tiny_values_does_not_go_off(one: bytes) -> None:
    bomb = _lists(4_000_000, one)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="too many values"):
            unpack(bomb, size_max=len(bomb))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * 2**20  # 500 MiB without the limit


def test_a_bomb_of_lists_that_only_announce_their_size_does_not_go_off() -> None:
    bomb = b"\xdc\x08\0" * 60_000
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="msgpack"):
            unpack(bomb, size_max=len(bomb))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * 2**20  # 500 MiB without the limit


def test_as_many_values_as_are_allowed_are_read() -> None:
    full = [[None] * (ITEMS_MAX - 2)] * (VALUES_MAX // ITEMS_MAX - 1)
    assert unpack(pack(full), size_max=2**20) == full
    with pytest.raises(ValueError, match="too many values"):
        unpack(pack([*full, [None] * ITEMS_MAX, [None]]), size_max=2**20)
    with pytest.raises(ValueError, match="exceeds"):
        unpack(pack([None] * (ITEMS_MAX + 1)), size_max=2**20)
