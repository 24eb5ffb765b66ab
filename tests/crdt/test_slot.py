"""Slots: what they may hold, how they merge, and that their decoding is strict."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.codec import pack, unpack
from crdt.ids import ROOT, BlockId, DeviceId, ItemId
from crdt.slot import (
    FILE_SIZE_MAX,
    INLINE_SIZE_MAX,
    MANIFEST_TOP_MAX,
    MTIME_NS_MAX,
    BlockRef,
    Content,
    Kind,
    Manifest,
    Placement,
    Profile,
    Slot,
    check_name,
    merge,
)
from crdt.version_vector import COUNTER_MAX, VersionVector

A, B = DeviceId(b"a" * 32), DeviceId(b"b" * 32)
REF = BlockRef(BlockId(b"k" * 32), 70_000)
FILE = Content(VersionVector({A: 3}), A, 5, Kind.FILE, (A, 2), size=2, mtime_ns=-7, inline=b"hi")
LARGE = Content(
    version=VersionVector({A: 3, B: 300}),
    device=B,
    lamport=70_000,
    kind=Kind.FILE,
    origin=(B, 300),
    size=140_000,
    mtime_ns=1_700_000_000_000_000_000,
    executable=True,
    manifest=Manifest(Profile.SMALL, 0, (REF, REF)),
)
LINK = Content(VersionVector({A: 1}), A, 1, Kind.SYMLINK, (A, 1), target="../\u00fc")
FOLDER = Content(VersionVector({A: 1}), A, 1, Kind.DIRECTORY, (A, 1))
PLACES = (Placement(9, ItemId(b"p" * 16), "n\u00e4me"), Placement(4, ROOT, "x"))
SLOTS = [
    Slot(1),
    Slot(2**40, PLACES),
    Slot(3, PLACES, FILE, VersionVector({A: 3, B: 1})),
    Slot(300, (), LARGE),
    Slot(4, PLACES[:1], LINK),
    Slot(5, (), FOLDER, VersionVector({A: 5})),
]


@pytest.mark.parametrize("slot", SLOTS, ids=range(len(SLOTS)))
def test_a_slot_reads_back(slot: Slot) -> None:
    data = pack(slot.to_wire())
    assert Slot.from_wire(unpack(data, size_max=10_000)) == slot


@pytest.mark.slow
@pytest.mark.parametrize("slot", SLOTS, ids=range(len(SLOTS)))
def test_every_flipped_byte_is_refused_or_another_slot(slot: Slot) -> None:
    """Nothing but ValueError, and never the same slot from other bytes."""
    data = pack(slot.to_wire())
    refused = 0
    for at in range(len(data)):
        for mask in (0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xFF):
            changed = data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]
            try:
                other = Slot.from_wire(unpack(changed, size_max=10_000))
            except ValueError:
                refused += 1
            else:
                assert other != slot
                assert pack(other.to_wire()) == changed
    assert refused


PARTS: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=2) | st.binary(max_size=32),
    lambda inner: st.lists(inner, max_size=10),
    max_leaves=20,
)


def _paths(wire: Any, path: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    found = [path]
    if isinstance(wire, list):
        for index, inner in enumerate(wire):
            found += _paths(inner, (*path, index))
    return found


def _with(wire: Any, path: tuple[int, ...], value: Any) -> Any:
    if not path:
        return value
    return [_with(w, path[1:], value) if n == path[0] else w for n, w in enumerate(wire)]


@given(st.sampled_from(SLOTS), PARTS, st.data())
def test_any_part_replaced_by_anything_is_refused_or_canonical(
    slot: Slot, part: Any, data: st.DataObject
) -> None:
    wire = unpack(pack(slot.to_wire()), size_max=10_000)
    changed = _with(wire, data.draw(st.sampled_from(_paths(wire))), part)
    try:
        parsed = Slot.from_wire(changed)
    except ValueError:
        return
    assert pack(parsed.to_wire()) == pack(changed)  # True is no 1


@pytest.mark.parametrize("slot", SLOTS, ids=range(len(SLOTS)))
def test_true_is_no_one(slot: Slot) -> None:
    wire = unpack(pack(slot.to_wire()), size_max=10_000)
    for path in _paths(wire):
        part = wire
        for index in path:
            part = part[index]
        if type(part) is int:
            with pytest.raises(ValueError):  # noqa: PT011 (every check has words of its own)
                Slot.from_wire(_with(wire, path, value=True))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "1 to 255"),
        ("n" * 256, "1 to 255"),
        ("\u00e4" * 128, "1 to 255"),
        (".", "cannot"),
        ("..", "cannot"),
        ("a/b", "cannot"),
        ("a\0b", "cannot"),
        ("\ud800", "UTF-8"),
        (".shoal", "reserved"),
        (".SHOAL", "reserved"),
    ],
)
def test_names_that_cannot_stand_in_the_tree(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "...", ".shoalignore", "n" * 255, "NUL", "a\\b", "\n"])
def test_names_that_can(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "change",
    [
        {"lamport": 0},
        {"lamport": COUNTER_MAX + 1},
        {"size": -1},
        {"size": 3},
        {"size": FILE_SIZE_MAX + 1},
        {"mtime_ns": MTIME_NS_MAX + 1},
        {"device": B},
        {"origin": (B, 1)},
        {"origin": (A, 0)},
        {"origin": (A, 4)},
        {"version": VersionVector()},
        {"inline": None},
        {"inline": bytes(INLINE_SIZE_MAX + 1), "size": INLINE_SIZE_MAX + 1},
        {"manifest": Manifest(Profile.SMALL, 0, (REF,))},
        {"target": "t"},
        {"kind": Kind.DIRECTORY},
        {"kind": Kind.SYMLINK, "inline": None, "target": "t"},
        {"kind": Kind.DIRECTORY, "inline": None},
    ],
)
def test_contents_that_contradict_themselves(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (every check has words of its own)
        replace(FILE, **change)


@pytest.mark.parametrize("target", ["", "a\0b", "t" * 4096])
def test_targets_that_no_system_holds(target: str) -> None:
    with pytest.raises(ValueError, match="target"):
        replace(LINK, target=target)


def test_manifests_are_bounded_and_add_up() -> None:
    with pytest.raises(ValueError, match="add up"):
        replace(LARGE, size=140_001)
    for refs in ((), (REF,) * (MANIFEST_TOP_MAX + 1)):
        with pytest.raises(ValueError, match="1 to 16"):
            Manifest(Profile.SMALL, 0, refs)
    with pytest.raises(ValueError, match="depth"):
        Manifest(Profile.SMALL, 6, (REF,))
    with pytest.raises(ValueError, match="block length"):
        BlockRef(REF.block, 0)


def test_placements_are_few_and_newest_first() -> None:
    with pytest.raises(ValueError, match="newest"):
        Slot(1, PLACES[::-1])
    with pytest.raises(ValueError, match="newest"):
        Slot(1, (PLACES[0], PLACES[0]))
    with pytest.raises(ValueError, match="at most 4"):
        Slot(1, tuple(Placement(n, ROOT, "x") for n in range(5, 0, -1)))


def test_equal_bytes_have_equal_digests_whoever_wrote_them() -> None:
    later = replace(FILE, lamport=9, mtime_ns=1, executable=True, origin=(A, 1))
    assert FILE.same_bytes(later)
    assert not FILE.same_bytes(replace(FILE, inline=b"ho"))
    assert not replace(LINK, target="hi").same_bytes(FILE)
    assert not LARGE.same_bytes(replace(LARGE, manifest=Manifest(Profile.LARGE, 0, (REF, REF))))


@given(st.permutations([Slot(n) for n in (1, 2, 3, 3)]))
def test_the_greater_counter_stays(slots: list[Slot]) -> None:
    kept: Slot | None = None
    for slot in slots:
        kept = merge(kept, slot)
    assert kept == Slot(3)
