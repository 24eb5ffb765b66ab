"""The log table: every accepted entry, as the bytes that came or went over the wire.

`have` (what is durable here) and the heads are kept in memory and follow the table; they are
reloaded after a transaction that failed. Rows are in order of acceptance, which is a causal order,
so reading them in that order gives a peer every entry after those it depends on.
"""

from __future__ import annotations

import enum
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from crdt.entry import HASH_SIZE, START, Entry, LogPosition
from crdt.ids import DeviceId
from crdt.version_vector import COUNTER_MAX, VersionVector
from node.index.damage import UNREADABLE, unreadable

BATCH_ENTRIES_MAX: Final = 256  # entries read at once


class Why(enum.IntEnum):
    """Why a tree entry in the log has no effect."""

    NOT_ENTITLED = 1  # its author was removed or may only read, and wrote it unaware
    NO_KEY = 2  # its epoch's key has not come yet
    MALFORMED = 3  # its author sealed what nobody may write


@dataclass(frozen=True, slots=True)
class LogRow:
    """One stored entry."""

    arrival: int
    device: DeviceId
    seq: int
    entry: bytes


@dataclass(frozen=True, slots=True, order=True)
class Stamp:
    """When an entry was written: in logical time, and by its author's clock, in milliseconds since
    1970 UTC. The first decides, the second is for people.
    """

    lamport: int
    time_ms: int


class Log:
    """All entries of one folder. Calls happen inside the caller's transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._positions: dict[DeviceId, LogPosition] = {}
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
            last = self._db.execute(
                "SELECT seq, hash, lamport FROM log WHERE device = ? ORDER BY seq DESC LIMIT 1",
                (device,),
            ).fetchone()
            try:
                self._positions[DeviceId(device)] = _position(*last)
            except UNREADABLE as error:
                raise unreadable("the end of a log", error) from error

    @property
    def have(self) -> VersionVector:
        """What is stored here: device → seq."""
        return VersionVector({device: at.seq for device, at in self._positions.items()})

    @property
    def heads(self) -> dict[DeviceId, bytes]:
        """The hash of each device's last entry."""
        return {device: at.head for device, at in self._positions.items()}

    @property
    def positions(self) -> Mapping[DeviceId, LogPosition]:
        """The last entry of each device's log."""
        return self._positions

    @property
    def lamport(self) -> int:
        """The greatest lamport of any entry here; the next of ours is one more."""
        return max((at.lamport for at in self._positions.values()), default=0)

    def position(self, device: DeviceId) -> LogPosition:
        """The last entry of `device`; `START` when there is none."""
        return self._positions.get(device, START)

    def hash_at(self, device: DeviceId, seq: int) -> bytes | None:
        """The hash of one stored entry."""
        row = self._db.execute(
            "SELECT hash FROM log WHERE device = ? AND seq = ?", (device, seq)
        ).fetchone()
        return None if row is None else row[0]

    def stamp(self, device: DeviceId, seq: int) -> Stamp:
        """When a stored entry was written; zeroes when it is not known here."""
        row = self._db.execute(
            "SELECT lamport, time_ms FROM log WHERE device = ? AND seq = ?", (device, seq)
        ).fetchone()
        return Stamp(0, 0) if row is None else Stamp(*row)

    def append(self, entry: Entry, *, time_ms: int = 0) -> None:
        """Store an accepted entry; the caller has checked that it follows the last one.

        `time_ms`: when it was written, in milliseconds since 1970 UTC, as well as we know.
        """
        header = entry.header
        previous = self.position(header.device).seq
        assert header.seq == previous + 1, f"entry {header.seq} cannot follow {previous}"
        self._db.execute(
            "INSERT INTO log (device, seq, hash, lamport, kind, entry, time_ms) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                header.device,
                header.seq,
                entry.hash,
                header.lamport,
                int(header.kind),
                entry.to_bytes(),
                time_ms,
            ),
        )
        self._positions[header.device] = entry.position

    def missing_from(self, theirs: VersionVector, size_max: int) -> list[LogRow]:
        """Entries that `theirs` lacks, in causal order, up to `size_max` bytes (at least one)."""
        lacking = [d for d, at in self._positions.items() if theirs[d] < at.seq]
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

    # --- entries without effect -----------------------------------------------------------------

    def set_aside(self, device: DeviceId, seq: int, why: Why) -> None:
        """Note that a stored tree entry has no effect."""
        self._db.execute(
            "INSERT OR REPLACE INTO without_effect VALUES (?, ?, ?)", (device, seq, int(why))
        )

    def take_up(self, device: DeviceId, seq: int, time_ms: int) -> None:
        """Note that a stored tree entry has an effect after all, and when it was written."""
        self._db.execute("DELETE FROM without_effect WHERE device = ? AND seq = ?", (device, seq))
        self._db.execute(
            "UPDATE log SET time_ms = ? WHERE device = ? AND seq = ?", (time_ms, device, seq)
        )

    def without_effect(self) -> list[tuple[DeviceId, int, Why]]:
        """The tree entries that have none, in causal order."""
        rows = self._db.execute(
            "SELECT device, seq, why FROM without_effect JOIN log USING (device, seq) "
            "ORDER BY arrival"
        )
        return [(DeviceId(device), seq, Why(why)) for device, seq, why in rows]

    def effective(
        self, device: DeviceId, after: int, through: int | None
    ) -> Iterator[tuple[int, bytes]]:
        """The tree entries of a device in this range that have an effect, the newest first."""
        rows = self._db.execute(
            "SELECT seq, entry FROM log WHERE device = ? AND kind = 1 AND seq > ? AND seq <= ? "
            "AND NOT EXISTS (SELECT 1 FROM without_effect AS aside "
            "WHERE aside.device = log.device AND aside.seq = log.seq) ORDER BY seq DESC",
            (device, after, COUNTER_MAX if through is None else through),
        )
        yield from rows

    def entry(self, device: DeviceId, seq: int) -> bytes:
        """A stored entry."""
        row = self._db.execute(
            "SELECT entry FROM log WHERE device = ? AND seq = ?", (device, seq)
        ).fetchone()
        data: bytes = row[0]
        return data

    # --- in the order of arrival and of time ----------------------------------------------------

    @property
    def last_arrival(self) -> int:
        """The number of the newest stored entry; 0 when there is none."""
        (newest,) = self._db.execute("SELECT max(arrival) FROM log").fetchone()
        return newest or 0

    def after(self, arrival: int) -> list[tuple[int, int]]:
        """(arrival, time_ms) of what came after `arrival`, the oldest first; at most a few
        thousand.
        """
        return self._db.execute(
            "SELECT arrival, time_ms FROM log WHERE arrival > ? ORDER BY arrival LIMIT ?",
            (arrival, BATCH_ENTRIES_MAX * 16),
        ).fetchall()

    def by_time(self) -> list[tuple[int, int]]:
        """(arrival, time_ms) of all entries, the newest first by their authors' clocks."""
        return self._db.execute(
            "SELECT arrival, time_ms FROM log ORDER BY time_ms DESC, arrival DESC"
        ).fetchall()

    def at(self, arrival: int) -> bytes:
        """The entry with this number."""
        (entry,) = self._db.execute(
            "SELECT entry FROM log WHERE arrival = ?", (arrival,)
        ).fetchone()
        data: bytes = entry
        return data


def _position(seq: int, head: bytes, lamport: int) -> LogPosition:
    if not (0 < seq <= COUNTER_MAX and 0 < lamport <= COUNTER_MAX and len(head) == HASH_SIZE):
        raise ValueError("no position in a log")
    return LogPosition(seq, bytes(head), lamport)
