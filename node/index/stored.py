"""The stored table: which sealed blocks lie in `.shoal/store`, their lengths and what they take.

A row is written after its block is durable, and goes before the block does: so a row without a
block is rot, and a block without a row is left over from a crash (`node.history.sealed` adopts it).
Calls happen inside the caller's transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from crdt.ids import BlockId
from crdt.slot import BlockRef


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """One row; `size` is what the sealed block takes on the disk, in bytes."""

    ref: BlockRef
    size: int
    since_s: int | None  # on history's own clock; None until it came by


class Stored:
    """Reads and writes the table."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def get(self, block: BlockId) -> BlockRef | None:
        """The block with its length; None when it is not stored."""
        row = self._db.execute("SELECT length FROM stored WHERE block = ?", (block,)).fetchone()
        return None if row is None else BlockRef(block, row[0])

    def put(self, blocks: Iterable[StoredBlock]) -> None:
        """Note blocks that are durable; what is known already begins its time anew."""
        self._db.executemany(
            "INSERT OR REPLACE INTO stored (block, length, size, since_s) VALUES (?, ?, ?, ?)",
            [(one.ref.block, one.ref.length, one.size, one.since_s) for one in blocks],
        )

    def drop(self, blocks: Iterable[BlockId]) -> None:
        """Forget blocks, before they are deleted."""
        self._db.executemany("DELETE FROM stored WHERE block = ?", [(block,) for block in blocks])

    def all(self) -> Iterator[StoredBlock]:
        """Every row; for the collector."""
        rows = self._db.execute("SELECT block, length, size, since_s FROM stored").fetchall()
        for block, length, size, since_s in rows:
            yield StoredBlock(BlockRef(BlockId(block), length), size, since_s)

    def size(self) -> int:
        """Bytes that all of them take."""
        (total,) = self._db.execute("SELECT coalesce(sum(size), 0) FROM stored").fetchone()
        return int(total)
