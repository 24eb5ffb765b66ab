"""Questions to the relay's tables and changes of their rows, each within the caller's transaction.

`number` is a folder's row id.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

import blake3

from crdt.entry import LogPosition
from crdt.ids import BlockId, DeviceId
from crdt.version_vector import VersionVector
from node.relay.storage import COLLECT_SHARE, Deposit
from transport.relay_messages import MARK_SIZE, Place
from transport.session import LogEntry

BATCH_ENTRIES_MAX: Final = 256  # entries read at once


def positions(db: sqlite3.Connection, number: int) -> dict[DeviceId, LogPosition]:
    """Where each device's log ends."""
    found: dict[DeviceId, LogPosition] = {}
    device = b""
    while True:  # one index seek a device, never a scan
        row = db.execute(
            "SELECT device FROM entries WHERE folder = ? AND device > ? ORDER BY device LIMIT 1",
            (number, device),
        ).fetchone()
        if row is None:
            return found
        device = row[0]
        last = db.execute(
            "SELECT seq, hash, lamport FROM entries WHERE folder = ? AND device = ? "
            "ORDER BY seq DESC LIMIT 1",
            (number, device),
        ).fetchone()
        found[DeviceId(device)] = LogPosition(*last)


def missing(
    db: sqlite3.Connection, number: int, after: VersionVector, size_max: int
) -> list[LogEntry]:
    """What `after` lacks, in the order of acceptance; see `Storage.entries`."""
    lacking = [d for d, at in positions(db, number).items() if after[d] < at.seq]
    arrivals: list[int] = []
    for device in lacking:
        arrivals += (
            arrival
            for (arrival,) in db.execute(
                "SELECT arrival FROM entries WHERE folder = ? AND device = ? AND seq > ? "
                "ORDER BY seq LIMIT ?",
                (number, device, after[device], BATCH_ENTRIES_MAX),
            )
        )
    found: list[LogEntry] = []
    total = 0
    for arrival in sorted(arrivals)[:BATCH_ENTRIES_MAX]:
        device, seq, entry = db.execute(
            "SELECT device, seq, entry FROM entries WHERE arrival = ?", (arrival,)
        ).fetchone()
        total += len(entry)
        if found and total > size_max:
            break
        found.append(LogEntry(DeviceId(device), seq, entry))
    return found


def place(db: sqlite3.Connection, number: int) -> Place:
    """How far the deposits have got."""
    row = db.execute(
        "SELECT generation, number, mark FROM folders WHERE id = ?", (number,)
    ).fetchone()
    return Place(*row)


def following(place: Place, deposit: Deposit) -> Place:
    """The place after one more deposit."""
    mark = blake3.blake3(place.mark + deposit.block + deposit.digest).digest(MARK_SIZE)
    return Place(place.generation, place.number + 1, mark)


def dropped_of(
    db: sqlite3.Connection, number: int, blocks: Sequence[BlockId]
) -> dict[BlockId, int | None]:
    """Those of the blocks that are here, and when they were dropped."""
    found: dict[BlockId, int | None] = {}
    for block in blocks:
        row = db.execute(
            "SELECT dropped_s FROM blocks WHERE folder = ? AND block = ?", (number, block)
        ).fetchone()
        if row is not None:
            found[block] = row[0]
    return found


def undrop(db: sqlite3.Connection, number: int, blocks: Iterable[BlockId]) -> None:
    """Somebody needs these blocks after all."""
    for block in blocks:
        db.execute(
            "UPDATE blocks SET dropped_s = NULL WHERE folder = ? AND block = ?", (number, block)
        )


def listed(db: sqlite3.Connection, number: int, after: bytes, count_max: int) -> list[BlockId]:
    """See `Storage.listed`."""
    rows = db.execute(
        "SELECT block FROM blocks WHERE folder = ? AND block > ? AND dropped_s IS NULL "
        "ORDER BY block LIMIT ?",
        (number, after, count_max),
    )
    return [BlockId(block) for (block,) in rows]


def worth_collecting(db: sqlite3.Connection, before_s: int) -> list[int]:
    """The folders of which enough was dropped at `before_s` or earlier."""
    rows = db.execute(
        "SELECT folder, sum(size), (SELECT sum(block_bytes) FROM usage WHERE folder = b.folder) "
        "FROM blocks AS b WHERE dropped_s IS NOT NULL AND dropped_s <= ? GROUP BY folder",
        (before_s,),
    )
    return [number for number, ripe, total in rows if ripe >= COLLECT_SHARE * total]


def delete_dropped(db: sqlite3.Connection, number: int, before_s: int, limit: int) -> int:
    """Take out rows that were dropped at `before_s` or earlier; returns how many."""
    rows = db.execute(
        "SELECT block, depositor, size FROM blocks "
        "WHERE folder = ? AND dropped_s IS NOT NULL AND dropped_s <= ? LIMIT ?",
        (number, before_s, limit),
    ).fetchall()
    for block, depositor, size in rows:
        delete(db, number, BlockId(block), DeviceId(depositor), size)
    return len(rows)


def delete(
    db: sqlite3.Connection, number: int, block: BlockId, depositor: DeviceId, size: int
) -> None:
    """Take a block's row out."""
    db.execute("DELETE FROM blocks WHERE folder = ? AND block = ?", (number, block))
    count(db, number, depositor, blocks=-1, block_bytes=-size)


def count(
    db: sqlite3.Connection,
    number: int,
    device: DeviceId,
    *,
    entries: int = 0,
    entry_bytes: int = 0,
    blocks: int = 0,
    block_bytes: int = 0,
) -> None:
    """Add to what `device` takes in this folder."""
    db.execute(
        "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (folder, device) DO UPDATE SET "
        "entries = entries + excluded.entries, entry_bytes = entry_bytes + excluded.entry_bytes, "
        "blocks = blocks + excluded.blocks, block_bytes = block_bytes + excluded.block_bytes",
        (number, device, entries, entry_bytes, blocks, block_bytes),
    )
