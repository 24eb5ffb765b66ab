"""Large files of which little changed: what is brought together, changed in place, and recovered.

A file is changed in place only while nobody else has it open, and whoever opens it then waits; so
no other program ever reads, or writes over, something in between. Where somebody has it open, or
this disk cannot tell, the whole file is written anew and exchanged, as smaller ones are.

The order: new bytes and old blocks on the disk, then the journal, then the file, then the index,
then the journal goes. `node.files.patch` has the journal; `recover_patches` reads it at the start.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

from crdt.errors import ShoalError
from crdt.ids import ITEM_ID_SIZE, BlockId, ItemId
from crdt.slot import BlockRef, Content, Kind
from node.blocks.manifest import Walk
from node.files.applier import Job, PatchFile
from node.files.layout import OURS, TMP
from node.files.patch import After, Before, Patch, finish, read_journal
from node.files.port import FileSystem, Stat, StatKind, join
from node.history.contents import content_of
from node.index.disk_rows import DiskRow
from node.ports import Threads
from node.sync.assemble import (
    PATCH_SIZE_MIN,
    Assembled,
    Base,
    Changes,
    Former,
    part_path,
    patch_path,
)
from node.sync.folder import Folder
from node.sync.planner import UNSURE

logger = logging.getLogger("shoal.patching")

TRIES_MAX: Final = 4  # before a file that somebody has open is written anew instead

Keep = Callable[[DiskRow, str, Sequence[tuple[BlockRef, int]]], Awaitable[None]]


class Patching:
    """What `Apply` asks about large files of one folder."""

    def __init__(
        self,
        folder: Folder,
        fs: FileSystem,
        threads: Threads,
        keep: Keep,
        *,
        size_min: int = PATCH_SIZE_MIN,
    ) -> None:
        """Args:
        keep: Saves blocks that are about to be overwritten, or raises (`node.history.keeper`).
        size_min: Smaller files are written anew.
        """
        self._folder = folder
        self._fs = fs
        self._threads = threads
        self._keep = keep
        self._size_min = size_min
        self._refused: Counter[tuple[ItemId, bytes]] = Counter()

    def base(self, item: ItemId, content: Content) -> Base | None:
        """What `content` may be made from in place; None if it has to be written anew."""
        folder, row = self._folder, self._folder.disk.get(item)
        if (
            row is None
            or row.kind is not Kind.FILE
            or min(row.size, content.size) < self._size_min
            or content.manifest is None
            or row.profile != int(content.manifest.profile)
            or self._refused[item, content.digest] >= TRIES_MAX
        ):
            return None
        path, blocks = folder.disk.path(item), folder.locations.blocks_of(item)
        if path is None or path.startswith(OURS) or not _cover(blocks, row.size):
            return None
        return Base(path, row, blocks)

    def former(self, item: ItemId) -> Former | None:
        """The list of blocks that the item's file has; what is new may be like these."""
        folder, row = self._folder, self._folder.disk.get(item)
        if row is None or not row.profile:
            return None
        content = folder.tree.content_of_version(item, row.version)
        if content is None or content.manifest is None:
            return None
        return Former(content.manifest, folder.locations.node)

    async def keep(self, item: ItemId, assembled: Assembled) -> bool:
        """Save what is about to be overwritten; False if it cannot be, so must not be.

        Raises:
            OSError: the disk refused.
        """
        changes = assembled.changes
        if changes is None:
            return True
        try:
            await self._keep(changes.base.row, changes.base.path, changes.replaced)
        except ShoalError as error:
            logger.info("%s is written anew: %s", changes.base.path, error)
            self._refused[item, assembled.digest] = TRIES_MAX
            return False
        return True

    def work(
        self, item: ItemId, path: str, row: DiskRow | None, content: Content, ready: Assembled
    ) -> PatchFile | None:
        """The job that puts `ready` in place; None if the file is another by now."""
        changes = ready.changes
        assert changes is not None, "asked for changes only"
        if row is None or (row, path) != (changes.base.row, changes.base.path):
            return None
        return PatchFile(path, ready.temporary, patch_path(item), _patch(changes, content), row)

    def refused(self, item: ItemId, digest: bytes, error: OSError | None) -> None:
        """Somebody has the file open just now (EAGAIN), or it cannot be changed in place at all."""
        passing = error is not None and error.errno == errno.EAGAIN
        self._refused[item, digest] += 1 if passing else TRIES_MAX

    async def clean(self, done: Sequence[Job]) -> None:
        """The index knows of these: their journals go."""
        patched = [work for work in done if isinstance(work, PatchFile)]
        if patched:
            paths = [path for work in patched for path in (work.journal, work.part)]
            await self._threads.run(_unlink_all, self._fs, paths)


def _cover(blocks: Sequence[tuple[BlockRef, int]], size: int) -> bool:
    end = 0
    for ref, offset in blocks:
        if offset != end:
            return False
        end += ref.length
    return end == size


def _patch(changes: Changes, content: Content) -> Patch:
    row = changes.base.row
    return Patch(
        Before(row.digest, row.inode, row.size, row.mtime_ns, row.ctime_ns),
        After(content.digest, content.version, content.size, content.mtime_ns, content.executable),
        changes.stretches,
    )


def _unlink_all(fs: FileSystem, paths: Sequence[str]) -> None:
    for path in paths:
        # A journal that stays does no harm: the row is another one now.
        with contextlib.suppress(OSError):
            fs.unlink(path)


# --- after a crash --------------------------------------------------------------------------------


def recover_patches(folder: Folder, fs: FileSystem) -> None:
    """Finish what a crash interrupted, and record it; before any scan."""
    for entry in fs.scandir(TMP):
        stem, _, ending = entry.name.rpartition(".")
        if ending != "patch" or entry.stat.kind is not StatKind.FILE:
            continue
        journal = join(TMP, entry.name)
        with contextlib.suppress(ValueError):
            item = ItemId(bytes.fromhex(stem[: 2 * ITEM_ID_SIZE]))
            patch = _recover_patch(folder, fs, item, journal)
            if patch is not None:
                # Nothing else clears it away until the scan has read all of the file.
                _unlink_all(fs, [part_path(item, patch.after.digest)])
        fs.unlink(journal)


def _recover_patch(folder: Folder, fs: FileSystem, item: ItemId, path: str) -> Patch | None:
    """Returns: the patch, if it was begun."""
    row = folder.disk.get(item)
    with fs.open_read(path) as journal:
        found = read_journal(journal)
        if found is None:
            return None
        patch, begin = found
        if row is None:
            return patch
        before = (row.digest, row.inode, row.size, row.mtime_ns, row.ctime_ns)
        as_before = Before(*before) == patch.before
        target = _where(fs, folder.disk.path(item), row.inode) if as_before else None
        if target is None:
            return patch  # done and recorded; or the file was replaced or deleted since
        with fs.open_write(target) as file:
            whole = finish(file, patch, begin, journal)
            stat = file.stat()
    logger.warning("%s was being changed when the node died: finished", target)
    _record(folder, row, patch, stat, whole=whole)
    return patch


def _record(folder: Folder, row: DiskRow, patch: Patch, stat: Stat, *, whole: bool) -> None:
    """The new version lies there, with what somebody wrote since: the scan looks at all of it."""
    after = patch.after
    content = content_of(folder.tree, row.item, after.version, after.digest)
    blocks = None if content is None else _blocks(folder, content)
    if blocks is None:
        return  # nobody knows any more what it was to be: the scan takes it for what it is
    with folder.transaction():
        folder.disk.put(
            replace(
                row,
                version=after.version,
                digest=after.digest,
                size=stat.size,
                mtime_ns=stat.mtime_ns if whole else after.mtime_ns,
                executable=stat.executable,
                ctime_ns=UNSURE,
            )
        )
        folder.locations.replace(row.item, blocks)


def _blocks(folder: Folder, content: Content) -> list[tuple[BlockRef, int]] | None:
    if content.manifest is None:
        return None
    walk = Walk(content.manifest, content.size)
    while (wanted := walk.wants()) is not None:
        node = folder.locations.node(BlockId(wanted.block))
        if node is None:
            return None
        walk.feed(node)
    return list(walk.blocks())


def _where(fs: FileSystem, path: str | None, inode: int) -> str | None:
    """Where the file lies: at `path`, or wherever somebody moved it in the folder since."""
    if path is not None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if fs.lstat(path).inode == inode:
                return path
    waiting = [""]
    while waiting:
        directory = waiting.pop()
        for entry in fs.scandir(directory):
            below = join(directory, entry.name)
            if entry.stat.inode == inode and entry.stat.kind is StatKind.FILE:
                return below
            if entry.stat.kind is StatKind.DIRECTORY and below != OURS:
                waiting.append(below)
    return None
