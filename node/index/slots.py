"""The slots table: the tree's whole state, one row a `(item, device)`.

A decoded slot is kept in memory for as long as it is likely to be asked for again. The cache's key
is the stored bytes, so a transaction that is rolled back leaves nothing false in it. All calls
happen inside the caller's transaction. A row that does not decode is a `DamagedIndexError`: the
index can be rebuilt from the log.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Final

from crdt.codec import pack, unpack
from crdt.ids import DeviceId, ItemId
from crdt.slot import Content, Slot
from crdt.version_vector import VersionVector
from node.index.damage import UNREADABLE, DamagedIndexError, unreadable

SLOT_SIZE_MAX: Final = 256 * 1024  # bytes; two full version vectors and an inline file are 90 KB
CACHED_SLOTS_MAX: Final = 2_048  # decoded slots kept: twice the writes of one entry of a scan
CACHED_SIZE_MAX: Final = 8 * 1024  # bytes; a larger slot is not kept, so all take 16 MB at most

SLOTS_SCHEMA: Final = """
CREATE TABLE slots (
    item BLOB NOT NULL,
    device BLOB NOT NULL,
    counter INTEGER NOT NULL,
    data BLOB NOT NULL,               -- the slot, canonical wire
    PRIMARY KEY (item, device)
);
"""
# Not WITHOUT ROWID: inline files make rows of up to 4 KiB, which then lie one after another
# instead of being spread over the tree by random ids (a fifth less time to write, half to read).

PUT_SLOT: Final = """
INSERT INTO slots VALUES (?,?,?,?)
ON CONFLICT DO UPDATE SET counter = excluded.counter, data = excluded.data
"""


class SlotTable:
    """Reads and writes slots."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._decoded: dict[bytes, Slot] = {}

    def of(self, item: ItemId) -> dict[DeviceId, Slot]:
        """All slots of an item."""
        rows = self._db.execute("SELECT device, data FROM slots WHERE item = ?", (item,))
        return {_device(device): self.decode(data) for device, data in rows}

    def content(self, item: ItemId, device: DeviceId) -> Content:
        """The content in one slot, which holds one."""
        row = self._db.execute(
            "SELECT data FROM slots WHERE item = ? AND device = ?", (item, device)
        ).fetchone()
        content = None if row is None else self.decode(row[0]).content
        if content is None:
            raise DamagedIndexError(f"the index names a content of {item} that it does not hold")
        return content

    def put(self, writes: Iterable[tuple[ItemId, DeviceId, Slot]]) -> None:
        """Store slots, in place of older ones."""
        rows = []
        for item, device, slot in writes:
            data = pack(slot.to_wire())
            self._keep(data, slot)
            rows.append((item, device, slot.counter, data))
        rows.sort()  # neighbours lie on one page
        self._db.executemany(PUT_SLOT, rows)

    def remove(self, written: Iterable[tuple[ItemId, DeviceId, Slot]]) -> None:
        """Forget slots."""
        self._db.executemany(
            "DELETE FROM slots WHERE item = ? AND device = ?", [(i, d) for i, d, _ in written]
        )

    def put_past(self, writes: Iterable[tuple[ItemId, DeviceId, Slot]]) -> None:
        """Keep slots that were replaced, for history."""
        self._db.executemany(
            "INSERT OR IGNORE INTO past_slots (item, device, counter, data) VALUES (?, ?, ?, ?)",
            [(item, device, slot.counter, pack(slot.to_wire())) for item, device, slot in writes],
        )

    def ever_of(self, item: ItemId) -> list[tuple[DeviceId, Slot]]:
        """Every slot that an item has and had, as far as it is still known; in no order."""
        rows = self._db.execute(
            "SELECT device, data FROM slots WHERE item = ? "
            "UNION ALL SELECT device, data FROM past_slots WHERE item = ?",
            (item, item),
        )
        return [(_device(device), self.decode(data)) for device, data in rows]

    def content_of_version(self, item: ItemId, version: VersionVector) -> Content | None:
        """The item's content of just this version; None if it is not known any more.

        However long the item's past is, what is read are a few rows: a version is written by one of
        its devices, in the slot of that very counter.
        """
        slots = list(self.of(item).values())
        for device, counter in version.items():
            rows = self._db.execute(
                "SELECT data FROM past_slots WHERE item = ? AND device = ? AND counter = ?",
                (item, device, counter),
            )
            slots += [self.decode(data) for (data,) in rows]
        contents = (slot.content for slot in slots if slot.content is not None)
        return next((one for one in contents if one.version == version), None)

    def decode(self, data: bytes) -> Slot:
        """The slot that `data` encodes."""
        slot = self._decoded.get(data)
        if slot is None:
            try:
                slot = Slot.from_wire(unpack(data, size_max=SLOT_SIZE_MAX))
            except UNREADABLE as error:
                raise unreadable("a slot", error) from error
            self._keep(data, slot)
        return slot

    def _keep(self, data: bytes, slot: Slot) -> None:
        if len(data) > CACHED_SIZE_MAX:
            return
        if len(self._decoded) >= CACHED_SLOTS_MAX:
            del self._decoded[next(iter(self._decoded))]  # the oldest
        self._decoded[data] = slot


def _device(value: bytes) -> DeviceId:
    try:
        return DeviceId(value)
    except UNREADABLE as error:
        raise unreadable("a device", error) from error
