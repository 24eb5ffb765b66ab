"""A transaction that fails leaves nothing behind, in the index or in memory."""

from __future__ import annotations

import sqlite3

import pytest

from node.index.database import IndexUnwritableError
from tests.support.two_folders import boxes, exchange


async def test_what_was_pending_follows_a_rollback() -> None:
    a, b = boxes(2)
    a.fs.write_file("f", b"one")
    await a.settle()
    have = b.folder.have
    rows = a.folder.log.missing_from(have, 1 << 20)

    def fail_in_the_middle() -> None:
        with b.folder.transaction():
            b.intake.receive([row.entry for row in rows])
            assert b.folder.pending
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_in_the_middle()
    assert b.folder.have == have
    assert not b.folder.pending
    exchange(a, b)
    await b.settle()
    assert b.tree() == {"f": b"one"}


async def test_a_full_disk_is_the_worlds_error_and_loses_nothing() -> None:
    a, b = boxes(2)
    a.fs.write_file("f", b"one")
    await a.settle()
    database = b.database.connection
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages}")  # SQLITE_FULL beyond
    a.fs.write_file("g", b"2" * 4000)
    for number in range(50):
        a.fs.write_file(f"{number}", b"3" * 4000)
    await a.settle()
    have = b.folder.have
    with pytest.raises(IndexUnwritableError, match="Nothing was lost"):
        exchange(a, b)
    assert not b.folder.pending.keys() - set(b.folder.tree.all_items())
    b.folder.log.reload()
    assert b.folder.have.dominates(have)
    database.execute("PRAGMA max_page_count = 1000000")
    exchange(a, b)
    await b.settle()
    assert b.tree() == a.tree()


async def test_damage_is_not_taken_for_a_full_disk() -> None:
    a = boxes(2)[0]
    with pytest.raises(sqlite3.OperationalError, match="no such table"), a.folder.transaction():
        a.database.connection.execute("SELECT * FROM nowhere")


async def test_a_newer_version_of_what_is_on_its_way_is_work() -> None:
    # Found by a file that was written again while it was sent: the receiver went on waiting for
    # blocks that nobody had any more.
    a, b = boxes(2)
    a.fs.write_file("f", b"first" * 2_000)
    await a.settle()
    exchange(a, b)
    a.fs.write_file("f", b"second" * 2_000)
    await a.settle()
    seen = b.folder.work.count
    exchange(a, b)
    assert b.folder.work.count > seen
    a.fs.unlink("f")
    await a.settle()
    seen = b.folder.work.count
    exchange(a, b)
    assert not b.folder.pending
    assert b.folder.work.count > seen, "it is wanted no more, so nothing need wait for it"
