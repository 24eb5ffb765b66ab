"""The peers table: what each device last said of itself, so that a restart does not forget it."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

from crdt.codec import pack, unpack
from crdt.ids import DeviceId
from crdt.version_vector import VersionVector
from node.index.damage import UNREADABLE, unreadable

STATE_SIZE_MAX: Final = 128 * 1024  # bytes; a version vector of 1,024 devices takes 45 KB


@dataclass(frozen=True, slots=True)
class PeerRow:
    """What a device said, and when that was by our clock."""

    device: DeviceId
    have: VersionVector
    complete: VersionVector
    seen_ns: int


class PeerRows:
    """Reads and writes the table. Calls happen inside the caller's transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def put(self, row: PeerRow) -> None:
        """Store what a device said last."""
        self._db.execute(
            "INSERT INTO peers (device, have, complete, seen_ns) VALUES (?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET have = excluded.have, complete = excluded.complete, "
            "seen_ns = excluded.seen_ns",
            (row.device, pack(row.have.to_wire()), pack(row.complete.to_wire()), row.seen_ns),
        )

    def all(self) -> list[PeerRow]:
        """What is known of every device.

        Raises:
            DamagedIndexError: a row does not decode.
        """
        rows = self._db.execute("SELECT device, have, complete, seen_ns FROM peers").fetchall()
        try:
            return [
                PeerRow(DeviceId(device), _vector(have), _vector(complete), seen_ns)
                for device, have, complete, seen_ns in rows
            ]
        except UNREADABLE as error:
            raise unreadable("a peer's state", error) from error


def _vector(data: bytes) -> VersionVector:
    return VersionVector.from_wire(unpack(data, size_max=STATE_SIZE_MAX))
