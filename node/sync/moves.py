"""Recognises what moved: a scan finds something new at one place, and a row whose place is empty.

By inode first, then by equal content. A wrong guess loses no byte, but takes what other people make
in a directory to a place where nobody looks for it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from crdt.ids import ItemId
from crdt.slot import Kind
from node.files.port import FileSystem, Stat, join
from node.files.scanner import Fold, is_gone, lstat_exactly, observe
from node.index.disk_rows import DiskRow
from node.ports import Threads
from node.sync.folder import Folder
from node.sync.observed import Described
from node.sync.planner import same_file_moved

TWINS_MAX: Final = 8  # rows of equal content that are asked whether they moved


class Moves:
    """What lies at a new place and lay elsewhere before.

    `known` are the items whose new place this scan has found already.
    """

    def __init__(
        self,
        folder: Folder,
        fs: FileSystem,
        threads: Threads,
        fold: Fold | None,
        known: Collection[ItemId],
    ) -> None:
        self._disk = folder.disk
        self._fs = fs
        self._threads = threads
        self._fold = fold
        self._known = known

    async def by_inode(self, stat: Stat, here: DiskRow | None, place: str) -> DiskRow | None:
        """The row of what lies at `place` now.

        Args:
            stat: What lies there.
            here: The row of what lay there before, if anything did.
            place: The path.
        """
        for row in self._disk.with_inode(stat.inode):
            if row is here or row.item in self._known or (here and row.item == here.item):
                continue
            if not same_file_moved(stat, row) or not await self._left(row, place):
                continue
            if row.kind is not Kind.DIRECTORY or await self._is_directory(row, stat, place):
                return row
        return None

    async def by_content(self, described: Described, place: str) -> DiskRow | None:
        """A row of equal content whose file is gone: copied to `place` and deleted, as `mv` does
        between disks.
        """
        if described.draft.kind is not Kind.FILE or not described.draft.size:
            return None
        for row in self._disk.with_digest(described.digest, TWINS_MAX):
            if row.item not in self._known and await self._left(row, place):
                return row
        return None

    async def _left(self, row: DiskRow, place: str) -> bool:
        """True when `row`'s own place no longer holds its inode, so what we see is a move, not a
        link.
        """
        old = self._disk.path(row.item)
        if old is None or old == place:
            return False
        try:
            stat = await self._threads.run(lstat_exactly, self._fs, old, self._fold)
        except OSError as error:
            return is_gone(error)
        return stat.inode != row.inode

    async def _is_directory(self, row: DiskRow, stat: Stat, place: str) -> bool:
        """True when something in the directory at `place` shows that it is `row`'s.

        Its inode does not: ext4 gives a freed one to whoever comes next.
        """
        stack = [(row, stat, place)]
        while stack:
            directory, now, path = stack.pop()
            if now.mtime_ns == directory.mtime_ns:
                return True  # nothing was made or removed in it since
            listing = await self._threads.run(observe, self._fs, path, None, now.inode)
            for name, child in self._disk.children(directory.item).items():
                found = listing.entries.get(name)
                if found is None or not same_file_moved(found, child):
                    continue
                if child.kind is not Kind.DIRECTORY:
                    return True
                stack.append((child, found, join(path, name)))
        return False
