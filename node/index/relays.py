"""What this device knows of the folder's relays: how far its deposits there have got.

A row says: at `place`, the relay durably held every block of the tree's rows up to `revision`. Kept
so that a restart does not ask about every block again. Calls happen on the event loop.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field

from crdt.codec import unpack
from crdt.ids import BlockId, DeviceId, ItemId
from crdt.slot import Content, Slot
from node.index.damage import UNREADABLE, unreadable
from node.index.slots import SLOT_SIZE_MAX
from transport.relay_messages import Place


@dataclass(frozen=True, slots=True)
class Deposited:
    """See the module."""

    place: Place = field(default_factory=Place)
    revision: int = 0


class Relays:
    """One folder's rows."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def get(self, relay: DeviceId) -> Deposited:
        """How far the deposits at `relay` have got."""
        row = self._db.execute(
            "SELECT generation, number, mark, revision FROM relays WHERE device = ?", (relay,)
        ).fetchone()
        try:
            return Deposited() if row is None else Deposited(Place(*row[:3]), row[3])
        except UNREADABLE as error:
            raise unreadable("a place at a relay", error) from error

    def put(self, relay: DeviceId, deposited: Deposited) -> None:
        """Remember it; in the caller's transaction."""
        place = deposited.place
        self._db.execute(
            "INSERT OR REPLACE INTO relays VALUES (?, ?, ?, ?, ?)",
            (relay, place.generation, place.number, place.mark, deposited.revision),
        )

    def revision(self) -> int:
        """The newest revision that a row of the tree has."""
        (revision,) = self._db.execute("SELECT revision FROM tree_state").fetchone()
        return int(revision)

    def random_item(self, start: ItemId, revision: int) -> ItemId | None:
        """A shown file with blocks whose row changed no later than `revision`: the first one from
        `start` on, or from the beginning.
        """
        for least in (start, ItemId(bytes(16))):
            row = self._db.execute(
                "SELECT item FROM tree WHERE item >= ? AND kind = 1 AND size > 4096 "
                "AND top <= ? AND directory IS NOT NULL AND copy_of IS NULL LIMIT 1",
                (least, revision),
            ).fetchone()
            if row is not None:
                return ItemId(row[0])
        return None

    def changed_since(self, revision: int, item: ItemId, count: int) -> list[tuple[int, ItemId]]:
        """Files with blocks, hidden ones too, whose rows changed after `(revision, item)`: the
        revision and the item of each, in this order, at most `count`.
        """
        rows = self._db.execute(
            "SELECT top, item FROM tree WHERE kind = 1 AND size > 4096 AND (top, item) > (?, ?) "
            "ORDER BY top, item LIMIT ?",
            (revision, item, count),
        )
        return [(top, ItemId(found)) for top, found in rows]

    # --- what a relay keeps for nothing ---------------------------------------------------------

    def unneeded(self, relay: DeviceId, blocks: set[BlockId], now_s: int) -> None:
        """These blocks lie at `relay`, and nothing here needs them; no others. In the caller's
        transaction.
        """
        known = {
            block
            for (block,) in self._db.execute(
                "SELECT block FROM unneeded WHERE device = ?", (relay,)
            )
        }
        self._db.executemany(
            "DELETE FROM unneeded WHERE device = ? AND block = ?",
            [(relay, block) for block in known - blocks],
        )
        self._db.executemany(
            "INSERT INTO unneeded VALUES (?, ?, ?)",
            [(relay, block, now_s) for block in blocks - known],
        )

    def unneeded_since(self, relay: DeviceId, before_s: int) -> list[BlockId]:
        """Those that have been so since `before_s` or earlier."""
        rows = self._db.execute(
            "SELECT block FROM unneeded WHERE device = ? AND since_s <= ? ORDER BY block",
            (relay, before_s),
        )
        return [BlockId(block) for (block,) in rows]

    def past_contents(self, since_s: int) -> Iterator[Content]:
        """The contents of slots that were replaced after `since_s`, on history's own clock."""
        for (data,) in self._db.execute(
            "SELECT data FROM past_slots WHERE since_s IS NULL OR since_s > ?", (since_s,)
        ):
            slot = Slot.from_wire(unpack(data, size_max=SLOT_SIZE_MAX))
            if slot.content is not None:
                yield slot.content
