"""The location index: which file holds a block, and the nodes of manifests.

A file's list of blocks is kept in *segments*, cut where its content chooses (as the nodes of a
manifest are), and a block's place is its segment's start plus an offset within it. So what an edit
changes is a segment or two; an insertion at the front of a large file moves the other segments'
starts, one row for about 80 blocks, and renaming an item touches no block at all.

`Locations` runs on the lead's connection, in the caller's transaction: it never begins or commits.
Locations are hints: files change behind the index, so every read is verified (`node.blocks.read`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import blake3

from crdt.ids import BlockId, ItemId
from crdt.slot import BlockRef, Manifest
from node.blocks.manifest import cut_list, parse_node

FOUND_MAX: Final = 8  # places told of one block: a disk image holds its block of zeroes everywhere
_DIGEST_SIZE: Final = 16  # bytes; tells apart the segments of one file

BLOCKS_SCHEMA: Final = """
CREATE TABLE segments (
    segment INTEGER PRIMARY KEY,
    item BLOB NOT NULL,
    start INTEGER NOT NULL,           -- in the file, in bytes
    digest BLOB NOT NULL              -- of the segment's block ids
);
CREATE INDEX segments_item ON segments (item, start);

CREATE TABLE locations (
    block BLOB NOT NULL,
    segment INTEGER NOT NULL,
    offset INTEGER NOT NULL,          -- in the segment, in bytes
    length INTEGER NOT NULL,
    PRIMARY KEY (block, segment, offset)
) WITHOUT ROWID;
CREATE INDEX locations_segment ON locations (segment, offset, length);

CREATE TABLE manifest_nodes (
    block BLOB NOT NULL UNIQUE,
    data BLOB NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class Location:
    """Where a block should lie; `offset` and `length` in bytes."""

    item: ItemId
    offset: int
    length: int


class Locations:
    """Reads and writes the location index."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    # --- data blocks ----------------------------------------------------------------------------

    def find(self, block: BlockId) -> list[Location]:
        """Places where `block` should lie, at most `FOUND_MAX`."""
        rows = self._db.execute(
            "SELECT item, start + offset, length FROM locations JOIN segments USING (segment) "
            "WHERE block = ? LIMIT ?",
            (block, FOUND_MAX),
        )
        return [Location(ItemId(item), offset, length) for item, offset, length in rows]

    def blocks_of(self, item: ItemId) -> list[tuple[BlockRef, int]]:
        """The item's data blocks and their offsets, in the file's order."""
        rows = self._db.execute(
            "SELECT block, length, start + offset FROM segments JOIN locations USING (segment) "
            "WHERE item = ? ORDER BY start, offset",
            (item,),
        )
        return [(BlockRef(BlockId(block), length), offset) for block, length, offset in rows]

    def replace(self, item: ItemId, blocks: Sequence[tuple[BlockRef, int]]) -> None:
        """The item's file consists of these blocks now; only rows that differ are written."""
        kept: dict[bytes, list[tuple[int, int]]] = {}
        for segment, start, digest in self._segments(item):
            kept.setdefault(digest, []).append((segment, start))
        ids = [ref.block for ref, _ in blocks]
        for first, last in cut_list(ids):
            # Ids stand for their lengths too, so they alone tell segments apart.
            digest = blake3.blake3(b"".join(ids[first:last])).digest(_DIGEST_SIZE)
            start = blocks[first][1]
            same = kept.get(digest)
            if same:
                segment, before = same.pop(0)
                if before != start:
                    self._db.execute(
                        "UPDATE segments SET start = ? WHERE segment = ?", (start, segment)
                    )
            else:
                self._insert(item, digest, blocks[first:last])
        self._delete(segment for rest in kept.values() for segment, _ in rest)

    def drop(self, item: ItemId) -> None:
        """No file holds the item's content any more."""
        self._delete([segment for segment, _, _ in self._segments(item)])

    def rekey(self, old: ItemId, new: ItemId) -> None:
        """The file that was `old`'s is `new`'s; whatever `new` had is forgotten."""
        if old == new:
            return
        self.drop(new)
        self._db.execute("UPDATE segments SET item = ? WHERE item = ?", (new, old))

    # --- manifest nodes -------------------------------------------------------------------------

    def node(self, block: BlockId) -> bytes | None:
        """The node's bytes, as they were put."""
        row = self._db.execute(
            "SELECT data FROM manifest_nodes WHERE block = ?", (block,)
        ).fetchone()
        return None if row is None else bytes(row[0])

    def put_nodes(self, nodes: Mapping[BlockId, bytes]) -> None:
        """Keep nodes, which the caller has verified. Those that are here already cost nothing."""
        self._db.executemany(
            "INSERT OR IGNORE INTO manifest_nodes (block, data) VALUES (?, ?)", nodes.items()
        )

    def sweep_nodes(self, live: Iterable[Manifest]) -> int:
        """Forget the nodes that none of these manifests leads to.

        For the collector: it goes through all nodes, so run it rarely.

        Returns:
            How many went.
        """
        marked: set[tuple[BlockId, int]] = set()  # with the level: a node may stand on several
        for manifest in live:
            heads = [(ref.block, manifest.depth) for ref in manifest.blocks]
            while heads:
                block, depth = head = heads.pop()
                data = None if depth == 0 or head in marked else self.node(block)
                if data is not None:
                    marked.add(head)
                    heads += [(ref.block, depth - 1) for ref in parse_node(data) if depth > 1]
        named = {block for block, _ in marked}
        rows = self._db.execute("SELECT rowid, block FROM manifest_nodes").fetchall()
        gone = [(rowid,) for rowid, block in rows if block not in named]
        self._db.executemany("DELETE FROM manifest_nodes WHERE rowid = ?", gone)
        return len(gone)

    # --- segments -------------------------------------------------------------------------------

    def _segments(self, item: ItemId) -> list[tuple[int, int, bytes]]:
        return self._db.execute(
            "SELECT segment, start, digest FROM segments WHERE item = ? ORDER BY start", (item,)
        ).fetchall()

    def _insert(self, item: ItemId, digest: bytes, blocks: Sequence[tuple[BlockRef, int]]) -> None:
        start = blocks[0][1]
        cursor = self._db.execute(
            "INSERT INTO segments (item, start, digest) VALUES (?, ?, ?)", (item, start, digest)
        )
        self._db.executemany(
            "INSERT INTO locations (block, segment, offset, length) VALUES (?, ?, ?, ?)",
            [(ref.block, cursor.lastrowid, offset - start, ref.length) for ref, offset in blocks],
        )

    def _delete(self, segments: Iterable[int]) -> None:
        rows = [(segment,) for segment in segments]
        self._db.executemany("DELETE FROM locations WHERE segment = ?", rows)
        self._db.executemany("DELETE FROM segments WHERE segment = ?", rows)
