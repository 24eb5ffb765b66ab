"""What this device knows of the folder's relays: how far its deposits there have got.

A row says: at `place`, the relay durably held every block of the tree's rows up to `revision`. Kept
so that a restart does not ask about every block again. Calls happen on the event loop.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field

from crdt.ids import DeviceId, ItemId
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
        return Deposited() if row is None else Deposited(Place(*row[:3]), row[3])

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
