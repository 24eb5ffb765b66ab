"""The location index says what was last told, and writes little to get there."""

from __future__ import annotations

import random
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.ids import BlockId, ItemId
from crdt.slot import BlockRef, Profile
from node.blocks.locate import BLOCKS_SCHEMA, FOUND_MAX, Location, Locations
from node.blocks.manifest import build_manifest

Placed = list[tuple[BlockRef, int]]
ITEMS = [ItemId(bytes([n]) * 16) for n in range(3)]


def new_locations() -> tuple[sqlite3.Connection, Locations]:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(BLOCKS_SCHEMA)
    return db, Locations(db)


def ref_of(number: int) -> BlockRef:
    chance = random.Random(number)
    return BlockRef(BlockId(chance.randbytes(32)), chance.randrange(1, 100_000))


def placed(numbers: list[int] | range) -> Placed:
    found, offset = [], 0
    for number in numbers:
        ref = ref_of(number)
        found.append((ref, offset))
        offset += ref.length
    return found


def check(locations: Locations, files: dict[ItemId, Placed]) -> None:
    blocks = {ref.block for blocks in files.values() for ref, _ in blocks}
    for item in ITEMS:
        assert locations.blocks_of(item) == files.get(item, [])
    for block in blocks:
        expected = {
            Location(item, offset, ref.length)
            for item, refs in files.items()
            for ref, offset in refs
            if ref.block == block
        }
        found = locations.find(block)
        assert len(found) == min(FOUND_MAX, len(expected))
        assert set(found) <= expected


@given(
    st.lists(
        st.tuples(
            st.sampled_from(ITEMS),
            st.one_of(st.none(), st.sampled_from(ITEMS), st.lists(st.integers(0, 5), max_size=60)),
        ),
        max_size=8,
    )
)
def test_it_says_what_was_last_told(steps: list[tuple[ItemId, ItemId | list[int] | None]]) -> None:
    db, locations = new_locations()
    files: dict[ItemId, Placed] = {}
    for item, step in steps:
        if step is None:
            locations.drop(item)
            files.pop(item, None)
        elif isinstance(step, ItemId):
            locations.rekey(item, step)
            if step != item:
                files.pop(step, None)
                files.update({step: files.pop(item)} if item in files else {})
        else:
            locations.replace(item, placed(step))
            files[item] = placed(step)
        check(locations, files)
    for item in ITEMS:
        locations.drop(item)
    for table in ("segments", "locations"):
        assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_an_unknown_block_is_nowhere() -> None:
    _, locations = new_locations()
    assert locations.find(BlockId(bytes(32))) == []
    assert locations.node(BlockId(bytes(32))) is None
    locations.drop(ITEMS[0])


@pytest.mark.parametrize(
    ("edited", "rows_max"),
    [
        (list(range(5000)), 0),
        ([*range(2000), 9999, *range(2001, 5000)], 1100),  # a segment or two go, one or two come
        ([9999, *range(5000)], 1100 + 5000 // 16),  # the others' starts move
        (list(range(4999)), 1100),
    ],
)
def test_it_writes_what_changed(edited: list[int], rows_max: int) -> None:
    db, locations = new_locations()
    locations.replace(ITEMS[0], placed(range(5000)))
    before = db.total_changes
    locations.replace(ITEMS[0], placed(edited))
    assert db.total_changes - before <= rows_max
    assert locations.blocks_of(ITEMS[0]) == placed(edited)


def test_no_query_goes_through_a_whole_table() -> None:
    db, _ = new_locations()
    for query in (
        "SELECT item, start + offset, length FROM locations JOIN segments USING (segment) "
        "WHERE block = ? LIMIT ?",
        "SELECT block, length, start + offset FROM segments JOIN locations USING (segment) "
        "WHERE item = ? ORDER BY start, offset",
        "DELETE FROM locations WHERE segment = ?",
        "UPDATE segments SET item = ? WHERE item = ?",
        "SELECT data FROM manifest_nodes WHERE block = ?",
    ):
        plan = db.execute(f"EXPLAIN QUERY PLAN {query}", (b"",) * query.count("?")).fetchall()
        assert all("SCAN" not in row[3] for row in plan), plan


def test_nothing_is_committed() -> None:
    db, locations = new_locations()
    db.execute("BEGIN")
    locations.replace(ITEMS[0], placed([1, 2, 3]))
    locations.put_nodes({BlockId(bytes(32)): b"node"})
    db.execute("ROLLBACK")
    assert locations.blocks_of(ITEMS[0]) == []
    assert locations.node(BlockId(bytes(32))) is None


def test_nodes_stay_until_no_manifest_leads_to_them() -> None:
    _, locations = new_locations()
    refs = [ref_of(number) for number in range(3000)]
    one, nodes = build_manifest(bytes(32), Profile.SMALL, refs)
    other, more = build_manifest(bytes(32), Profile.SMALL, refs[:1500])
    assert (one.depth, other.depth) == (2, 2)
    locations.put_nodes(nodes)
    locations.put_nodes(more)
    locations.put_nodes(more)
    assert all(locations.node(block) == data for block, data in (nodes | more).items())
    assert locations.sweep_nodes([one, other]) == 0
    assert locations.sweep_nodes([other]) == len(nodes.keys() - more.keys())
    assert all(locations.node(block) == data for block, data in more.items())
    assert locations.sweep_nodes([]) == len(more)
