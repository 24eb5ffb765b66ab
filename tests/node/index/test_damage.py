"""A value in the index that rotted, or that somebody wrote there, is damage and never a bug."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from crdt.ids import ROOT, ItemId
from node.index.damage import DamagedIndexError, is_damage, note_damage
from node.index.database import open_database
from node.index.disk_rows import Intent
from node.index.peers import PeerRow, PeerRows
from node.sync.folder import Folder
from tests.support.two_folders import Box, boxes


async def settled() -> Box:
    """A device whose index has something in every table that a start reads."""
    box, other = boxes(2)
    box.fs.write_file("a", b"hello")
    await box.settle()
    folder = box.folder
    row = folder.disk.children(ROOT)["a"]
    with folder.transaction():
        folder.disk.intend([Intent(ItemId(b"i" * 16), ROOT, "x", row.version, row.digest, None)])
        PeerRows(box.database.connection).put(
            PeerRow(other.identity.device, folder.have, folder.have, 7)
        )
    return box


def read_all(box: Box) -> None:
    """What a node reads that starts with this index."""
    folder = Folder(
        folder=box.folder.id,
        database=box.database,
        identity=box.identity,
        clock=box.clock,
        random=box.random,
        personality=box.fs.personality,
    )
    for row in folder.tree.all_rows():
        folder.tree.slots(row.item)
    folder.disk.children(ROOT)
    folder.disk.intent_at(ROOT, "x")
    PeerRows(box.database.connection).all()


@pytest.mark.parametrize(
    "rot",
    [
        "UPDATE disk SET version = x'c1'",
        "UPDATE disk SET kind = 77",
        "UPDATE intents SET version = x'00'",
        "UPDATE intents SET item = 'text'",
        "UPDATE peers SET have = x'93'",
        "UPDATE slots SET device = x'00'",
        "UPDATE slots SET data = x'c1'",
        "UPDATE log SET hash = x'00' WHERE kind != 2",
        "UPDATE log SET entry = x'c0' WHERE kind = 2",
        "UPDATE log SET lamport = -1",
    ],
)
async def test_a_value_that_does_not_decode_is_damage(rot: str) -> None:
    box = await settled()
    read_all(box)
    done = box.database.connection.execute(rot)
    assert done.rowcount > 0, "there was something to spoil"
    with pytest.raises(DamagedIndexError):
        read_all(box)


def test_damage_that_only_a_decoder_sees_is_told_to_the_next_start(tmp_path: Path) -> None:
    index = tmp_path / "index.sqlite"
    open_database(index).close()
    note_damage(index, DamagedIndexError("the index holds a slot that is none"))
    with pytest.raises(DamagedIndexError, match="a slot that is none"):
        open_database(index)
    note_damage(None, DamagedIndexError("an index in memory has no next start"))


def test_what_is_damage_and_what_is_not() -> None:
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    assert is_damage(DamagedIndexError("of a row"))
    assert is_damage(sqlite3.DatabaseError("file is not a database"))
    assert not is_damage(full)
    assert not is_damage(ValueError("a bug"))
