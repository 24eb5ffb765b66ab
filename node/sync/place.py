"""Records in the index what the applier did on the disk, in one transaction a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from crdt.ids import ItemId
from crdt.slot import Kind
from crdt.tree import ViewRow
from node.files.applier import (
    MakeDirectory,
    Outcome,
    PatchFile,
    Place,
    Relocate,
    Remove,
    SetMetadata,
)
from node.files.port import Stat, split_parent
from node.index.disk_rows import PARKED, DiskRow, Intent, displaced_item
from node.sync.afterlook import note_displaced
from node.sync.commit import put_row
from node.sync.folder import Folder
from node.sync.planner import UNSURE

if TYPE_CHECKING:
    from node.sync.jobs import Job


def intent_of(job: Job) -> Intent | None:
    """What the next scan must not take for a person's doing if we die before we record it."""
    shown, row, name = job.shown, job.row, split_parent(job.work.target)[1]
    if shown is None or isinstance(job.work, SetMetadata | Remove):
        return None
    if isinstance(job.work, Relocate) and row is not None:
        return Intent(job.item, shown.parent, name, row.version, row.digest)
    content = shown.content
    work, history = job.work, None
    if isinstance(work, Place) and work.expected is not None:
        history = work.history
    return Intent(job.item, shown.parent, name, content.version, content.digest, history)


def record(folder: Folder, done: Sequence[tuple[Job, Outcome]], tried: Sequence[ItemId]) -> None:
    """Make the disk rows say what lies on the disk now; what was `tried` is intended no more."""
    with folder.transaction():
        folder.disk.fulfil(tried)
        for job, outcome in done:
            _record(folder, job, outcome)
        folder.look_at([job.item for job, _ in done])
    if any(outcome.displaced for _, outcome in done):
        folder.displaced.ring()


def _record(folder: Folder, job: Job, outcome: Outcome) -> None:
    work, shown, row, stat = job.work, job.shown, job.row, outcome.stat
    if outcome.displaced and isinstance(work, Place | Remove) and row is not None:
        record_displaced(folder, row, work, released=isinstance(work, Remove) and shown is not None)
    match work:
        case Remove():
            folder.disk.drop(job.item)
            folder.locations.drop(job.item)
        case Relocate():
            assert row is not None
            assert stat is not None
            if row.ctime_ns == UNSURE:
                stat = replace(stat, ctime_ns=UNSURE)  # a doubt about the content moves along
            if shown is None:
                put_row(folder, row.moved(PARKED, f"{job.item.hex()}.parked"), stat)
                return
            moved = row.moved(shown.parent, split_parent(work.target)[1])
            moved = replace(moved, shown_name=shown.name)
            if row.version == shown.content.version or row.kind is Kind.DIRECTORY:
                moved = replace(moved, revision=shown.revision)
            put_row(folder, moved, stat)
        case MakeDirectory() | Place() | PatchFile() | SetMetadata():
            assert shown is not None
            assert stat is not None
            put_row(folder, _row_of(folder, job, shown, stat), stat)
            if job.assembled is not None:
                folder.locations.replace(job.item, job.assembled.blocks)
                folder.locations.put_nodes(job.assembled.nodes)
            elif isinstance(work, Place):
                folder.locations.drop(job.item)


def record_displaced(
    folder: Folder, row: DiskRow, work: Place | Remove, *, released: bool = False
) -> None:
    """What `row` described lies in history now, and stays a source of its blocks; if `released`,
    only until nobody can be writing to it any more.
    """
    folder.disk.add_displaced(
        row.item,
        work.target,
        row.version,
        row.digest,
        row.size,
        work.history,
        folder.clock.wall_ns(),
        released=released,
    )
    note_displaced(folder, row, work.target, work.history)
    folder.locations.rekey(row.item, displaced_item(work.history))


def _row_of(folder: Folder, job: Job, shown: ViewRow, stat: Stat) -> DiskRow:
    content = shown.content
    return DiskRow(
        item=job.item,
        parent=shown.parent,
        name=split_parent(job.work.target)[1],
        kind=content.kind,
        version=content.version,
        digest=content.digest,
        revision=shown.revision,
        shown_name=shown.name,
        inode=stat.inode,
        size=stat.size,
        mtime_ns=stat.mtime_ns,
        ctime_ns=stat.ctime_ns,
        executable=stat.executable,
        profile=0 if content.manifest is None else int(content.manifest.profile),
    )
