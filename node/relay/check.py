"""Reads everything that a relay keeps, and says what is damaged: `shoal relay check`.

Over the storage port, beside a running relay or on a stopped one. A damaged block is forgotten, as
in a scrub: members that hold it bring it again. A damaged entry is only named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from crdt.entry import START, Entry, LogPosition
from crdt.ids import BlockId, DeviceId, FolderId
from crdt.version_vector import EMPTY
from node.ports import Threads
from node.relay.storage import Storage
from transport.session import LogEntry

READ_SIZE: Final = 4 * 1024 * 1024  # bytes of blocks or entries in one step


@dataclass(frozen=True, slots=True)
class DamagedBlock:
    """A block that was damaged and is forgotten now; both are hexadecimal."""

    folder: str
    block: str


@dataclass(frozen=True, slots=True)
class DamagedEntry:
    """An entry that is not what its author signed, or does not follow the one before it."""

    folder: str
    device: str
    seq: int


@dataclass(frozen=True, slots=True)
class Checked:
    """What was read. `bytes` is the size of the blocks."""

    folders: int
    entries: int
    blocks: int
    bytes: int
    damaged_blocks: tuple[DamagedBlock, ...]
    damaged_entries: tuple[DamagedEntry, ...]


async def check(storage: Storage, threads: Threads) -> Checked:
    """Read everything."""
    folders = await storage.folders()
    entries, damaged_entries = 0, list[DamagedEntry]()
    for folder in folders:
        after, positions = EMPTY, dict[DeviceId, LogPosition]()
        while rows := await storage.entries(folder, after, READ_SIZE):
            for row in rows:
                after = after.with_counter(row.device, row.seq)
            entries += len(rows)
            damaged_entries += await threads.run(_bad_entries, folder, rows, positions)
    blocks, size, after_block = 0, 0, b""
    lost: list[tuple[FolderId, BlockId]] = []
    while True:
        step = await storage.scrub(after_block, READ_SIZE)
        blocks, size, after_block = blocks + step.blocks, size + step.size, step.after
        lost += step.lost
        if not after_block:
            break
    damaged_blocks = tuple(DamagedBlock(folder.hex(), block.hex()) for folder, block in lost)
    return Checked(len(folders), entries, blocks, size, damaged_blocks, tuple(damaged_entries))


def _bad_entries(
    folder: FolderId, rows: Sequence[LogEntry], positions: dict[DeviceId, LogPosition]
) -> list[DamagedEntry]:
    return [
        DamagedEntry(folder.hex(), device.text, seq)
        for device, seq in _bad_places(folder, rows, positions)
    ]


def _bad_places(
    folder: FolderId, rows: Sequence[LogEntry], positions: dict[DeviceId, LogPosition]
) -> Iterator[tuple[DeviceId, int]]:
    for row in rows:
        before = positions.get(row.device, START)
        try:
            entry = Entry.from_bytes(row.entry)
        except ValueError:
            yield row.device, row.seq
            continue
        header = entry.header
        named = (header.folder, header.device, header.seq) == (folder, row.device, row.seq)
        follows = before.seq != row.seq - 1 or header.prev_hash == before.head
        if not (named and follows and entry.verify_signature()):
            yield row.device, row.seq
        positions[row.device] = entry.position
