"""New bytes for a file, which lie nowhere yet: made ready here, put on the disk by the applier, and
written into the log in the same transaction that notes them on the disk.

So no version is ever written whose bytes nobody has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from crdt.actions import Draft, Writer
from crdt.ids import BlockId, ItemId
from crdt.slot import INLINE_SIZE_MAX, BlockRef, Kind, Profile
from node.blocks.chunker import SIZES, Cutter
from node.blocks.manifest import build_manifest
from node.blocks.scan_file import scan_blocks
from node.files.applier import Outcome, Place
from node.index.disk_rows import DiskRow
from node.sync.assemble import Assembled, new_path, swap_path
from node.sync.commit import write_entry
from node.sync.folder import Folder
from node.sync.jobs import Job
from node.sync.place import record


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the applier is to do, and what it will have made of the file."""

    row: DiskRow
    draft: Draft
    work: Place
    assembled: Assembled


def prepare(
    folder: Folder,
    row: DiskRow,
    path: str,
    data: bytes,
    *,
    mtime_ns: int,
    executable: bool,
    profile: Profile,
) -> Prepared:
    """Make `data` ready to displace what `row` describes; for worker threads.

    Args:
        folder: The folder.
        row: What lies there now.
        path: Where, on this disk.
        data: The whole new content.
        mtime_ns: Its time of change.
        executable: Its executable bit.
        profile: How it is cut into blocks.
    """
    draft = Draft(Kind.FILE, size=len(data), mtime_ns=mtime_ns, executable=executable)
    blocks: list[tuple[BlockRef, int]] = []
    nodes: dict[BlockId, bytes] = {}
    if len(data) <= INLINE_SIZE_MAX:
        draft = replace(draft, inline=data)
    else:

        def read_at(offset: int, size: int) -> bytes:
            return data[offset : offset + size]

        blocks = scan_blocks(read_at, len(data), Cutter(SIZES[profile]), folder.block_key)
        refs = [ref for ref, _ in blocks]
        manifest, nodes = build_manifest(folder.block_key, profile, refs)
        draft = replace(draft, manifest=manifest)
    work = Place(
        target=path,
        temporary=new_path(row.item),
        swap=swap_path(row.item, draft.digest),
        source=data,
        mtime_ns=mtime_ns,
        executable=executable,
        expected=row,
        history=f".shoal/history/{folder.random.bytes(12).hex()}",
    )
    assembled = Assembled(draft.digest, data, work.temporary, tuple(blocks), nodes)
    return Prepared(row, draft, work, assembled)


def record_prepared(
    folder: Folder, item: ItemId, writer: Writer, prepared: Prepared, outcome: Outcome
) -> None:
    """Write the entry, and note what lies on the disk now; in the caller's transaction."""
    changed = write_entry(folder, writer)
    shown = folder.tree.row(item)
    assert shown is not None, "what was just written is shown"
    job = Job(item, shown, prepared.row, prepared.work, prepared.assembled)
    record(folder, [(job, outcome)], [item])
    folder.look_at(changed)
