"""At the start, before anything else: what a crash left in `.shoal/tmp`.

    *.part     a transfer that goes on where it was; left alone
    *.new      a small content that was just being written, and is written again; removed
    *.swap     whole content right before an exchange, or, after one, what it displaced
    *.patch    a large file that was being changed in place: see `node.sync.patching`
    *.parked   an item that waited for its place; its disk row is told where it lies

A `*.swap` file's name says what it held before the exchange; if it still holds that, it was only on
its way in. If not, it is what was displaced, and may be the only copy of an edit made in the very
moment of the exchange. So none of them is deleted: known versions go to `.shoal/history`, and bytes
that no version of the item has are put beside the item, for the next scan to find.

Where the exchange had come to pass, the disk row is made to say so. Else an edit made before the
next start would seem to replace what was displaced, which its author never saw go.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import Final

from crdt.errors import ShoalError
from crdt.ids import ITEM_ID_SIZE, ItemId
from crdt.version_vector import EMPTY
from node.files.port import FileSystem, Stat, StatKind, join, split_parent
from node.index.disk_rows import PARKED, DiskRow, Intent, displaced_item
from node.sync.afterlook import free_name, note_displaced
from node.sync.assemble import MEMORY_SIZE_MAX, part_path, swap_path
from node.sync.commit import put_row
from node.sync.describe import describe_all
from node.sync.folder import Folder
from node.sync.observed import Described
from node.sync.patching import recover_patches
from node.sync.planner import UNSURE

logger = logging.getLogger("shoal.recovery")

TMP: Final = ".shoal/tmp"
HISTORY: Final = ".shoal/history"


def recover(folder: Folder, fs: FileSystem, *, memory_size_max: int = MEMORY_SIZE_MAX) -> list[str]:
    """Deal with what lies in `.shoal/tmp`; returns what people should know. Runs inline.

    `memory_size_max` is the assembler's.

    The caller has called `fs.sync`: what a killed process did last may lie in the kernel's memory
    only, and the index must not be told of what a power cut can still undo.
    """
    notes: list[str] = []
    recover_patches(folder, fs)
    for intent in folder.disk.exchanges():
        _recover_exchange(folder, fs, intent)
    for entry in fs.scandir(TMP):
        stem, _, ending = entry.name.rpartition(".")
        item = _item_of(stem)
        path = join(TMP, entry.name)
        if ending == "parked" and item is not None:
            _recover_parked(folder, fs, item, entry.name)
        elif ending == "new" and item is not None and entry.stat.kind is not StatKind.OTHER:
            fs.unlink(path)
        elif ending == "swap" and entry.stat.kind is not StatKind.OTHER:
            note = _recover_swap(folder, fs, item, path, memory_size_max)
            if note is not None:
                notes.append(note)
    _sync_ours(fs)
    _register_history(folder, fs)
    return notes


def _sync_ours(fs: FileSystem) -> None:
    """Names first, then the index's words about them."""
    fs.fsync_directory(HISTORY)
    fs.fsync_directory(TMP)


def _recover_exchange(folder: Folder, fs: FileSystem, intent: Intent) -> None:
    """Record an exchange that was done and not recorded."""
    assert intent.history is not None, "asked for those that displace something"
    row, path = folder.disk.get(intent.item), folder.disk.path(intent.item)
    if row is None or path is None or row.digest == intent.digest:
        return
    displaced = intent.history
    if _lstat(fs, displaced) is not None and _lstat(fs, path) is None:
        _finish_second_step(folder, fs, intent, path)
    if _lstat(fs, displaced) is None:
        swap = swap_path(intent.item, intent.digest)
        came_out = _describe(folder, fs, intent.item, swap)
        if came_out is None or came_out.digest == intent.digest:
            return  # it was not exchanged
        if came_out.digest == row.digest:
            fs.rename(swap, displaced)
            _sync_ours(fs)
        # Else a person was quicker: what came out is put beside the item.
    stat, placed = _lstat(fs, path), _describe(folder, fs, None, path)
    with folder.transaction():
        if _lstat(fs, displaced) is not None and displaced not in folder.disk.displaced_files():
            folder.disk.add_displaced(
                row.item, path, row.version, row.digest, row.size, displaced, folder.clock.wall_ns()
            )
            note_displaced(folder, row, path, displaced)
            folder.locations.rekey(row.item, displaced_item(displaced))
        now = replace(row, version=intent.version, digest=intent.digest, inode=0, profile=0)
        if stat is not None:
            now = replace(
                now,
                inode=stat.inode,
                size=stat.size,
                mtime_ns=stat.mtime_ns,
                executable=stat.executable,
            )
        if placed is not None and placed.digest == intent.digest:
            manifest = placed.draft.manifest
            now = replace(now, profile=0 if manifest is None else int(manifest.profile))
            folder.locations.replace(row.item, placed.blocks)
            folder.locations.put_nodes(placed.nodes)
        # A person may have been here since: the scan looks at the content.
        folder.disk.put(replace(now, ctime_ns=UNSURE))


def _finish_second_step(folder: Folder, fs: FileSystem, intent: Intent, path: str) -> None:
    """Where a disk cannot exchange, a crash between two renames leaves the name free. That nothing
    lies there must not look like a deletion.
    """
    swap = swap_path(intent.item, intent.digest)
    whole = _describe(folder, fs, intent.item, swap)
    if whole is not None and whole.digest == intent.digest:
        fs.rename(swap, path)
        fs.fsync_directory(split_parent(path)[0])
        _sync_ours(fs)


def _lstat(fs: FileSystem, path: str) -> Stat | None:
    try:
        return fs.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _register_history(folder: Folder, fs: FileSystem) -> None:
    """What reached history in the moment of a crash, without a word in the index: its blocks may be
    wanted still, as the loser of a conflict that lies nowhere else, and a program may be writing to
    it still.
    """
    known = folder.disk.displaced_files()
    for entry in fs.scandir(HISTORY):
        file = join(HISTORY, entry.name)
        if file in known or entry.stat.kind is not StatKind.FILE:
            continue
        try:
            holder = displaced_item(file)
        except ValueError:
            continue  # not named by us
        described = _describe(folder, fs, None, file)
        if described is None:
            continue
        was, path = _what_was(folder, fs, entry.stat.inode)
        with folder.transaction():
            if was is not None:
                note_displaced(folder, was, path, file)
            item, version = holder, EMPTY
            if was is not None and was.digest == described.digest:
                item, version = was.item, was.version
            folder.disk.add_displaced(
                item, path or file, version, described.digest, entry.stat.size, file,
                folder.clock.wall_ns(),
            )  # fmt: skip
            folder.locations.replace(holder, described.blocks)
            folder.locations.put_nodes(described.nodes)


def _what_was(folder: Folder, fs: FileSystem, inode: int) -> tuple[DiskRow | None, str]:
    """The row of the file with this inode that lies where it says no longer, and that place."""
    for row in folder.disk.with_inode(inode):
        path = folder.disk.path(row.item)
        if path is None:
            continue
        stat = _lstat(fs, path)
        if stat is None or stat.inode != inode:
            return row, path
    return None, ""


def _item_of(stem: str) -> ItemId | None:
    try:
        return ItemId(bytes.fromhex(stem[: 2 * ITEM_ID_SIZE]))
    except ValueError:
        return None


def _recover_parked(folder: Folder, fs: FileSystem, item: ItemId, name: str) -> None:
    row = folder.disk.get(item)
    if row is None or row.parent == PARKED:
        if row is None:
            fs.rename(join(TMP, name), f"recovered {name}")
        return
    with folder.transaction():
        put_row(folder, row.moved(PARKED, name), fs.lstat(join(TMP, name)))


def _recover_swap(
    folder: Folder, fs: FileSystem, item: ItemId | None, path: str, memory_size_max: int
) -> str | None:
    described = _describe(folder, fs, item, path)
    history = join(HISTORY, folder.random.bytes(12).hex())
    if item is not None and described is not None:
        digest = described.digest
        if path == swap_path(item, digest):
            # What was to come, not what was displaced: it is in the log, or with whoever sent it.
            shown = folder.tree.row(item)
            large = shown is not None and shown.content.size > memory_size_max
            if large and shown is not None and shown.content.digest == digest:
                with contextlib.suppress(FileExistsError):
                    fs.rename(path, part_path(item, digest))  # the transfer picks it up again
                    return None
            fs.rename(path, history)
            return None
        if _is_known(folder, item, digest):
            fs.rename(path, history)
            return None
    place = None if item is None else folder.disk.path(item)
    target = free_name(fs, place if place and not place.startswith(".shoal") else "file")
    fs.rename(path, target)
    return f"an edit that was made while Shoal was stopped by force lies in '{target}'"


def _describe(folder: Folder, fs: FileSystem, item: ItemId | None, path: str) -> Described | None:
    row = None if item is None else folder.disk.get(item)
    try:
        kind = fs.lstat(path).kind
        job = folder.reading_job(path, kind, row)
        (described,) = describe_all(fs, [job], folder.block_key)
    except (OSError, ShoalError):
        return None
    return described if isinstance(described, Described) else None


def _is_known(folder: Folder, item: ItemId, digest: bytes) -> bool:
    """True for what the item is or was, here or elsewhere."""
    row = folder.disk.get(item)
    if row is not None and row.digest == digest:
        return True
    contents = (slot.content for _, slot in folder.tree.ever_of(item))
    return any(content is not None and content.digest == digest for content in contents)
