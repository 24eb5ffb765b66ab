"""Reads everything and compares it with what was agreed; mends from peers what has rotted.

Files first (`node.sync.rot`), then what only this disk holds: earlier versions in `.shoal/history`,
sealed blocks in `.shoal/store`, and the index. A rotten file is fetched anew and exchanged; without
a peer that has its content, it stays as it is. Nothing is deleted but a stored block that does not
open, after another copy of it was fetched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import trio

from crdt.ids import ItemId
from crdt.slot import BlockRef
from node.files.layout import STORE
from node.files.port import StatKind
from node.index.check import index_damage
from node.sync.describe import Job, describe_all
from node.sync.engine import FolderEngine
from node.sync.observed import Described
from node.sync.rot import Checked, Verdict

REPAIR_TIMEOUT_S: Final = 60.0  # for all that is damaged together
UNAVAILABLE_S: Final = 2.0  # peers that all say they lack it are believed after so long
ALONE_TIMEOUT_S: Final = 1.0  # no peer to ask: only other files of this disk may have the blocks
LOOK_EVERY_S: Final = 0.1  # at whether anybody still has what is missing

MENDED: Final = "its bytes had changed on the disk without an edit; they were fetched anew"
NOT_MENDED: Final = (
    "its bytes changed on the disk without an edit, and no peer could mend it yet. It stays as it "
    "is, and is mended as soon as a device that has its content connects"
)


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
    """Read every file of the folder, and what Shoal keeps for itself."""
    found, rotten = Verified(), dict[ItemId, Checked]()
    if engine.allowed():
        await engine.scans.scan_now()  # edits first, so that none is taken for rot
    for item in list(engine.folder.disk.all_items()):
        checked = await engine.rot.check(item)
        if checked is None:
            continue
        found.files += 1
        found.bytes += checked.size
        if checked.verdict is Verdict.ROTTEN:
            rotten[item] = checked
            engine.rot.mark(item, checked.digest)
        elif checked.verdict is Verdict.UNREADABLE:
            found.damaged.append(Damaged(checked.path, checked.reason, repaired=False))
    if rotten:
        repaired = await _repaired(engine, set(rotten))
        for item, checked in rotten.items():
            mended = item in repaired
            found.damaged.append(Damaged(checked.path, MENDED if mended else NOT_MENDED, mended))
    found.damaged += await _check_history(engine)
    found.damaged += await _check_store(engine)
    found.damaged += await _check_index(engine)
    return found


async def _repaired(engine: FolderEngine, items: set[ItemId]) -> set[ItemId]:
    """Wait while the rotten files are fetched anew; returns those that were."""
    pending = engine.folder.pending
    with trio.move_on_after(REPAIR_TIMEOUT_S):
        idle_since = trio.current_time()
        while items & pending.keys():
            peers = any(peer.connected for peer in engine.peers.values())
            fetching = engine.blocks.statistics()
            if peers and fetching.wanted > fetching.unavailable:
                idle_since = trio.current_time()
            patience = UNAVAILABLE_S if peers else ALONE_TIMEOUT_S
            if trio.current_time() - idle_since > patience:
                break
            with trio.move_on_after(LOOK_EVERY_S):
                await engine.changed.wait_past(engine.changed.count)
    return items - pending.keys()


async def _check_history(engine: FolderEngine) -> list[Damaged]:
    """Earlier versions that lie as whole files."""
    folder, damaged = engine.folder, list[Damaged]()
    rows = folder.database.connection.execute(
        "SELECT file, path, digest FROM displaced WHERE file IS NOT NULL "
        "AND file NOT IN (SELECT file FROM afterlooks)"
    )
    for file, path, digest in rows.fetchall():
        job = Job(file, StatKind.FILE)
        (seen,) = await engine.threads.run(describe_all, engine.fs, [job], folder.block_key)
        if isinstance(seen, Described) and seen.digest != digest:
            message = f"an earlier version of '{path}', kept in history, is damaged"
            damaged.append(Damaged(file, message, repaired=False))
    return damaged


async def _check_store(engine: FolderEngine) -> list[Damaged]:
    """Sealed blocks, which peers may have as well."""
    damaged = []
    for stored in list(engine.sealed.index.all()):
        error = await engine.sealed.check(stored.ref)
        if error is not None:
            mended = await _mend_block(engine, stored.ref)
            path = f"{STORE}/{stored.ref.block.hex()}"
            damaged.append(Damaged(path, f"a block of an earlier version: {error}", mended))
    return damaged


async def _mend_block(engine: FolderEngine, ref: BlockRef) -> bool:
    """Fetch a stored block anew; the rotten copy goes when it is read."""
    if engine.folder.keys.current is None:
        return False
    with trio.move_on_after(UNAVAILABLE_S):
        data = await engine.blocks.block(ref, transfer_size=ref.length)
        await engine.sealed.keep({ref: data})
        return True
    return False


async def _check_index(engine: FolderEngine) -> list[Damaged]:
    """The index itself; a damaged one stops the folder, and is rebuilt at the next start."""
    damage = await engine.threads.run(index_damage, engine.folder.database.path)
    if damage is None:
        return []
    engine.stop(
        f"the index is damaged ({damage}). Your files are safe. Start the node again: it puts the "
        "index aside and builds a new one."
    )
    return [Damaged("", f"the index is damaged: {damage}", repaired=False)]
