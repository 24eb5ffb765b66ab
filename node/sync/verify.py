"""Reads everything and compares it with what was agreed; mends from peers what has rotted.

Rot is other bytes under an unchanged stat. A changed stat is a person's edit: that path is scanned
as usual. A rotten file is fetched anew and exchanged; the rotten bytes go to history, since nobody
can be sure that they are worth nothing. Without a peer that has the content, nothing is touched.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import trio

from crdt.ids import ItemId
from crdt.slot import Kind
from crdt.version_vector import EMPTY
from node.files.port import StatKind
from node.index.disk_rows import DiskRow
from node.sync.describe import describe_all
from node.sync.engine import FolderEngine
from node.sync.observed import Described

REPAIR_TIMEOUT_S: Final = 60.0  # for all damaged files together, from the last progress on
ALONE_TIMEOUT_S: Final = 1.0  # no peer to ask: only other files of this disk may have the blocks


@dataclass(frozen=True, slots=True)
class Damaged:
    """A file whose content is not what was agreed."""

    path: str
    message: str
    repaired: bool


@dataclass(slots=True)
class Verified:
    """What was found."""

    files: int = 0
    bytes: int = 0
    damaged: list[Damaged] = field(default_factory=list)


async def verify_folder(engine: FolderEngine) -> Verified:
    """Read every file of the folder."""
    found, rotten = Verified(), list[tuple[ItemId, str]]()
    folder = engine.folder
    for item in list(folder.disk.all_items()):
        row, path = folder.disk.get(item), folder.disk.path(item)
        if row is None or path is None or row.kind is not Kind.FILE:
            continue
        verdict = await _check(engine, row, path)
        found.files += 1
        found.bytes += row.size
        if verdict is not None:
            rotten.append((item, path))
    if rotten:
        repaired = await _repair(engine, [item for item, _ in rotten])
        for item, path in rotten:
            mended = item in repaired
            message = (
                "its bytes had changed on the disk without an edit; they were fetched anew"
                if mended
                else "its bytes changed on the disk without an edit, and no peer could mend it yet"
            )
            found.damaged.append(Damaged(path, message, mended))
    return found


async def _check(engine: FolderEngine, row: DiskRow, path: str) -> str | None:
    """Why the file is damaged, None if it is fine or a person changed it."""
    folder = engine.folder
    job = folder.reading_job(path, StatKind.FILE, row)
    (seen,) = await engine.threads.run(describe_all, engine.fs, [job], folder.block_key)
    if not isinstance(seen, Described):
        if not seen.gone and not seen.changing:
            return seen.reason
        engine.scans.hint([path])
        return None
    stat = seen.stat
    if (stat.size, stat.mtime_ns, stat.inode) != (row.size, row.mtime_ns, row.inode):
        engine.scans.hint([path])
        return None
    return None if seen.digest == row.digest else "other bytes"


async def _repair(engine: FolderEngine, items: list[ItemId]) -> set[ItemId]:
    """Let the rotten files be fetched anew; returns those that were."""
    folder = engine.folder
    before = {item: folder.disk.get(item) for item in items}
    with folder.transaction():
        for item, row in before.items():
            if row is not None:
                folder.disk.put(replace(row, version=EMPTY, digest=bytes(32)))
                folder.locations.drop(item)
    folder.look_at(items)
    folder.work.ring()
    reachable = any(peer.connected for peer in engine.peers.values())
    with trio.move_on_after(REPAIR_TIMEOUT_S if reachable else ALONE_TIMEOUT_S):
        while any(item in folder.pending for item in items):
            await engine.changed.wait_past(engine.changed.count)
    return {item for item in items if item not in folder.pending}
