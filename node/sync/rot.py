"""Rot: other bytes under an unchanged stat. Found by reading, mended from peers, never spread.

A changed stat is somebody's edit: the path is scanned as usual. Where size, mtime, ctime and inode
are what was agreed and the bytes are not, the disk has failed. Such a row is marked *damaged*: it
says from then on that the bytes on the disk are no version of the item, so the planner wants the
item's content again. Sound blocks are taken from the file itself, the others from peers; the rotten
file goes to history, since nobody can be sure that it is worth nothing. As long as nobody has the
content, the file stays as it is. Its rotten blocks are never served: whatever is read is verified.

One kind of edit changes no stat, a write through a memory mapping (`node.sync.fresh`): in a fresh
file, other bytes are such an edit, and the file is scanned again.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from crdt.ids import ItemId
from crdt.slot import Kind
from crdt.version_vector import EMPTY
from node.files.port import FileSystem, StatKind
from node.index.disk_rows import DiskRow
from node.ports import Threads
from node.sync.describe import Job, Unreadable, describe_all
from node.sync.folder import Folder
from node.sync.observed import Described
from node.sync.planner import UNSURE, still_as_agreed


class Verdict(enum.Enum):
    """What a file turned out to be."""

    SOUND = enum.auto()
    BUSY = enum.auto()  # edited, or about to be replaced; scanned if need be
    ROTTEN = enum.auto()
    UNREADABLE = enum.auto()


@dataclass(frozen=True, slots=True)
class Checked:
    """One file's verdict. `digest` is that of rotten bytes; `reason` says why none were read."""

    path: str
    size: int
    verdict: Verdict
    digest: bytes = b""
    reason: str = ""


class Rot:
    """Checks files of one folder and marks the rotten ones."""

    def __init__(
        self,
        folder: Folder,
        fs: FileSystem,
        threads: Threads,
        *,
        hint: Callable[[list[str]], None],
    ) -> None:
        """Args: `hint` asks for a scan of paths."""
        self._folder = folder
        self._fs = fs
        self._threads = threads
        self._hint = hint

    async def check(self, item: ItemId) -> Checked | None:
        """Read one file and compare; None for what is no file on this disk. Marks nothing."""
        folder = self._folder
        row, path = folder.disk.get(item), folder.disk.path(item)
        if row is None or path is None or row.kind is not Kind.FILE:
            return None
        job = folder.reading_job(path, StatKind.FILE, row)
        seen = await self._threads.run(_read, self._fs, job, row, folder.block_key)
        if folder.disk.get(item) != row:
            return Checked(path, row.size, Verdict.BUSY)
        if isinstance(seen, Unreadable) and not seen.gone and not seen.changing:
            return Checked(path, row.size, Verdict.UNREADABLE, reason=seen.reason)
        if not isinstance(seen, Described):
            self._hint([path])
            return Checked(path, row.size, Verdict.BUSY)
        if seen.digest == row.digest:
            verdict = Verdict.ROTTEN if self.is_damaged(row) else Verdict.SOUND
            return Checked(path, row.size, verdict, seen.digest)
        if item in folder.fresh:
            with folder.transaction():
                folder.disk.put(replace(row, ctime_ns=UNSURE))
            self._hint([path])
            return Checked(path, row.size, Verdict.BUSY)
        return Checked(path, row.size, Verdict.ROTTEN, seen.digest)

    def mark(self, item: ItemId, digest: bytes) -> None:
        """What lies on the disk is no version of `item`: its content is wanted again."""
        folder = self._folder
        row = folder.disk.get(item)
        if row is None or row.digest == digest:
            return
        db = folder.database.connection
        with folder.transaction():
            db.execute("INSERT OR REPLACE INTO damaged VALUES (?, ?)", (item, digest))
            folder.disk.put(replace(row, version=EMPTY, digest=digest))
            folder.look_at([item])

    def is_damaged(self, row: DiskRow) -> bool:
        """True when what `row` describes was found rotten."""
        found = self._folder.database.connection.execute(
            "SELECT 1 FROM damaged WHERE item = ? AND digest = ?", (row.item, row.digest)
        )
        return found.fetchone() is not None

    def damaged(self) -> Iterator[str]:
        """The paths of all files that were found rotten and are not mended."""
        found = self._folder.database.connection.execute(
            "SELECT item FROM damaged JOIN disk USING (item, digest)"
        )
        for (item,) in found.fetchall():
            path = self._folder.disk.path(ItemId(item))
            if path is not None:
                yield path


def _read(fs: FileSystem, job: Job, row: DiskRow, key: bytes) -> Described | Unreadable:
    """What the file holds; `changing` where its stat is not what was agreed, before or after."""
    try:
        if not still_as_agreed(fs.lstat(job.path), row):
            return Unreadable("it was edited", changing=True)
    except OSError:
        pass  # describing it says why
    (seen,) = describe_all(fs, [job], key)
    if isinstance(seen, Described) and not still_as_agreed(seen.stat, row):
        return Unreadable("it was edited", changing=True)
    return seen
