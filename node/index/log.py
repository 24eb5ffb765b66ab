"""The log table: every accepted entry, as the bytes that came or went over the wire.

`have` (what is durable here) and the heads are kept in memory and follow the table; they are reloaded after a
transaction that failed. Rows are in order of acceptance, which is a causal order, so reading them in that order
gives a peer every entry after those it depends on.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from crdt.ids import DeviceId
from crdt.version_vector import VersionVector

BATCH_ENTRIES_MAX: Final = 256  # entries read at once


@dataclass(frozen=True, slots=True)
class LogRow:
    """One stored entry."""

    arrival: int
    device: DeviceId
    seq: int
    entry: bytes


class Log:
    """All entries of one folder. Calls happen inside the caller's transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._positions: dict[DeviceId, tuple[int, bytes]] = {}
        self.reload()

    def reload(self) -> None:
        """Read the positions again, after a rollback or at the start."""
        self._positions = {}
        device = b""
        while True:  # one index seek a device, never a scan
            row = self._db.execute(
                "SELECT device FROM log WHERE device > ? ORDER BY device LIMIT 1", (device,)
            ).fetchone()
            if row is None:
                return
            device = row[0]
            seq, digest = self._db.execute(
                "SELECT seq, hash FROM log WHERE device = ? ORDER BY seq DESC LIMIT 1", (device,)
            ).fetchone()
            self._positions[DeviceId(device)] = (seq, digest)

    @property
    def have(self) -> VersionVector:
        """What is stored here: device → seq."""
        return VersionVector({device: seq for device, (seq, _) in self._positions.items()})

    @property
    def heads(self) -> dict[DeviceId, bytes]:
        """The hash of each device's last entry."""
        return {device: digest for device, (_, digest) in self._positions.items()}

    def position(self, device: DeviceId) -> tuple[int, bytes] | None:
        """`(seq, hash)` of the device's last entry."""
        return self._positions.get(device)

    def hash_at(self, device: DeviceId, seq: int) -> bytes | None:
        """The hash of one stored entry."""
        row = self._db.execute(
            "SELECT hash FROM log WHERE device = ? AND seq = ?", (device, seq)
        ).fetchone()
        return None if row is None else row[0]

    def append(self, device: DeviceId, seq: int, digest: bytes, kind: int, entry: bytes) -> None:
        """Store an accepted entry; the caller has checked that `seq` follows the last one."""
        previous = self._positions.get(device, (0, b""))[0]
        assert seq == previous + 1, f"entry {seq} cannot follow {previous}"
        self._db.execute(
            "INSERT INTO log (device, seq, hash, kind, entry) VALUES (?, ?, ?, ?, ?)",
            (device, seq, digest, kind, entry),
        )
        self._positions[device] = (seq, digest)

    def missing_from(self, theirs: VersionVector, size_max: int) -> list[LogRow]:
        """Entries that `theirs` lacks, in causal order, up to `size_max` bytes (at least one)."""
        lacking = [d for d, (seq, _) in self._positions.items() if theirs[d] < seq]
        if not lacking:
            return []
        # Merge the per-device tails by arrival: each is one range of the (device, seq) index.
        tails = " UNION ALL ".join(
            "SELECT * FROM (SELECT arrival, device, seq FROM log WHERE device = ? AND seq > ? "
            "ORDER BY seq LIMIT ?)"
            for _ in lacking
        )
        arguments: list[bytes | int] = []
        for device in lacking:
            arguments += [device, theirs[device], BATCH_ENTRIES_MAX]
        keys = self._db.execute(
            f"SELECT arrival FROM ({tails}) ORDER BY arrival LIMIT ?",  # noqa: S608 - constants only
            (*arguments, BATCH_ENTRIES_MAX),
        ).fetchall()
        rows: list[LogRow] = []
        total = 0
        for (arrival,) in keys:
            device, seq, entry = self._db.execute(
                "SELECT device, seq, entry FROM log WHERE arrival = ?", (arrival,)
            ).fetchone()
            total += len(entry)
            if rows and total > size_max:
                break
            rows.append(LogRow(arrival, DeviceId(device), seq, entry))
        return rows

    def roster_entries(self) -> Iterator[bytes]:
        """Every roster entry, in causal order."""
        for (entry,) in self._db.execute("SELECT entry FROM log WHERE kind = 2 ORDER BY arrival"):
            yield entry
