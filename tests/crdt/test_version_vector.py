"""The algebra of version vectors, and their one encoding."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.ids import DeviceId
from crdt.version_vector import COUNTER_MAX, DEVICES_MAX, EMPTY, VersionVector

A, B, C = (DeviceId(bytes([n]) * 32) for n in (1, 2, 3))
VECTORS = st.dictionaries(st.sampled_from([A, B, C]), st.integers(0, 5)).map(VersionVector)


@given(VECTORS, VECTORS, VECTORS)
def test_joining_makes_a_semilattice(x: VersionVector, y: VersionVector, z: VersionVector) -> None:
    assert x | y == y | x
    assert (x | y) | z == x | (y | z)
    assert x | x == x
    assert x | EMPTY == x
    assert (x | y).dominates(x)
    assert (x | y).dominates(y)


@given(VECTORS, VECTORS, VECTORS)
def test_domination_is_a_partial_order(
    x: VersionVector, y: VersionVector, z: VersionVector
) -> None:
    assert x.dominates(x)
    assert (x.dominates(y) and y.dominates(x)) == (x == y)
    if x.dominates(y) and y.dominates(z):
        assert x.dominates(z)
    assert x.dominates(y) == ((x | y) == x)
    assert x.dominates(y) == all(x.covers(d, c) for d, c in y.items())


@given(VECTORS, st.sampled_from([A, B, C]), st.integers(0, 7))
def test_counters(x: VersionVector, device: DeviceId, counter: int) -> None:
    more = x.with_counter(device, counter)
    assert more[device] == max(x[device], counter)
    assert more.dominates(x)
    assert more.covers(device, counter)
    assert all(x.values())
    assert (device in x) == (x[device] > 0)


@given(VECTORS, VECTORS)
def test_equal_vectors_are_one_key_and_one_encoding(x: VersionVector, y: VersionVector) -> None:
    assert (x == y) == (x.to_wire() == y.to_wire())
    if x == y:
        assert hash(x) == hash(y)
    assert VersionVector.from_wire(x.to_wire()) == x


@pytest.mark.parametrize(
    "wire",
    [
        None,
        {},
        [[bytes(A)]],
        [[bytes(A), 1, 2]],
        [[bytes(A), 0]],
        [[bytes(A), -1]],
        [[bytes(A), True]],
        [[bytes(A), "1"]],
        [["a", 1]],
        [[b"short", 1]],
        [(bytes(A), 1)],
        [[bytes(B), 1], [bytes(A), 1]],
        [[bytes(A), 1], [bytes(A), 1]],
        [[bytes(A), COUNTER_MAX + 1]],
        [[n.to_bytes(32, "big"), 1] for n in range(1, DEVICES_MAX + 2)],
    ],
)
def test_other_encodings_are_refused(wire: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (every check has words of its own)
        VersionVector.from_wire(wire)


def test_limits() -> None:
    assert VersionVector({A: COUNTER_MAX})[A] == COUNTER_MAX
    for counter in (-1, COUNTER_MAX + 1):
        with pytest.raises(ValueError, match="outside"):
            VersionVector({A: counter})
    with pytest.raises(ValueError, match="at most"):
        VersionVector((DeviceId(n.to_bytes(32, "big")), 1) for n in range(DEVICES_MAX + 1))
