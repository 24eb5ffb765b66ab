"""Looks again at what sync displaced: somebody may have been writing to it still.

A program that opened a file before its newer version was exchanged for it goes on writing to the
old one, which lies in `.shoal/history` by then; and an edit within the microseconds of the exchange
that keeps size and mtime shows in no stat. So what was displaced is compared with what was agreed,
a little later, and looked at twice more. If other bytes are in it, they are an edit that nobody
else has: the file is moved back into the folder under a name of its own, where the next scan finds
it, and where the program that holds it open goes on writing.

The index remembers what is to be looked at, so a restart in between loses nothing. Looking deletes
nothing. If the process dies between the move and the commit, the file lies in the folder already.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from crdt.naming import fit_name, split_name
from crdt.slot import Kind
from node.files.port import FileSystem, StatKind, join
from node.index.disk_rows import DiskRow, displaced_item
from node.ports import Threads
from node.sync.bell import Bell
from node.sync.describe import Job, describe_all
from node.sync.folder import Folder
from node.sync.observed import Described

logger = logging.getLogger("shoal.afterlook")

LOOKS_S: Final = (2.0, 60.0, 3600.0)  # after the one before; who writes still later opens anew
READ_SIZE_MAX: Final = 64 * 1024 * 1024  # bytes; of larger files only the stamps are compared
BATCH_MAX: Final = 64  # files looked at in one visit to the disk

GONE: Final = -1  # in place of a ctime
NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Look:
    """What should lie in a file of history. `ctime_ns` is 0 until its content was compared."""

    file: str
    path: str  # where it lay
    digest: bytes
    profile: int
    size: int
    mtime_ns: int
    ctime_ns: int
    looks: int


def note_displaced(folder: Folder, row: DiskRow, path: str, file: str) -> None:
    """What `row` describes was moved from `path` to `file`. In the caller's transaction."""
    if row.kind is not Kind.FILE:
        return
    due_ns = folder.clock.wall_ns() + int(LOOKS_S[0] * NS)
    folder.database.connection.execute(
        "INSERT OR REPLACE INTO afterlooks VALUES (?, ?, ?, ?, ?, ?, 0, 0, ?)",
        (file, path, row.digest, row.profile, row.size, row.mtime_ns, due_ns),
    )


class Afterlook:
    """The service for one folder."""

    def __init__(
        self,
        folder: Folder,
        fs: FileSystem,
        threads: Threads,
        disk_lock: trio.Lock,
        *,
        noted: Bell,
        found: Callable[[str, str], None],
    ) -> None:
        """Args:
        noted: Rings when something may have been displaced.
        found: Told where an edit lies now, and what to tell people about it.
        """
        self._folder = folder
        self._fs = fs
        self._threads = threads
        self._lock = disk_lock
        self._noted = noted
        self._found = found

    async def serve(self) -> None:
        """Look when it is time, until cancelled."""
        while True:
            seen = self._noted.count
            due_ns, now_ns = self._next_due_ns(), self._folder.clock.wall_ns()
            if due_ns is not None and due_ns <= now_ns:
                await self.look(now_ns)
                continue
            # A clock that was set back must not put it off for more than the longest distance.
            wait_s = float("inf") if due_ns is None else (due_ns - now_ns) / NS
            with trio.move_on_after(wait_s if due_ns is None else min(wait_s, LOOKS_S[-1])):
                await self._noted.wait_past(seen)

    async def look(self, now_ns: int) -> None:
        """Look at some of what is due at `now_ns`."""
        async with self._lock:
            due = self._due(now_ns)
            key = self._folder.block_key
            seen = await self._threads.run(lambda: [_compare(self._fs, one, key) for one in due])
            for n, one in enumerate(due):
                if seen[n] is None:
                    seen[n] = await self._by_another_name(one.file)
            changed = [look for look, verdict in zip(due, seen, strict=True) if verdict is None]
            back = await self._threads.run(lambda: [_bring_back(self._fs, one) for one in changed])
            with self._folder.transaction():
                for look, verdict in zip(due, seen, strict=True):
                    self._record(look, verdict, now_ns)
        for look, target in zip(changed, back, strict=True):
            if target is not None:
                self._found(
                    target,
                    f"'{look.path}' was still being written while a newer version of it arrived; "
                    f"what was written lies in '{target}'",
                )

    async def _by_another_name(self, file: str) -> int | None:
        """The ctime of a file that the folder still has under another name (a hard link): what is
        written to it is found there. None if it has not.
        """

        def is_there(path: str, inode: int) -> bool:
            try:
                return self._fs.lstat(path).inode == inode
            except OSError:
                return False

        try:
            stat = await self._threads.run(self._fs.lstat, file)
        except OSError:
            return None
        for row in self._folder.disk.with_inode(stat.inode) if stat.links > 1 else ():
            path = self._folder.disk.path(row.item)
            if path is not None and await self._threads.run(is_there, path, stat.inode):
                return stat.ctime_ns
        return None

    def _next_due_ns(self) -> int | None:
        db = self._folder.database.connection
        (due_ns,) = db.execute("SELECT min(due_ns) FROM afterlooks").fetchone()
        return None if due_ns is None else int(due_ns)

    def _due(self, now_ns: int) -> list[Look]:
        rows = self._folder.database.connection.execute(
            "SELECT file, path, digest, profile, size, mtime_ns, ctime_ns, looks FROM afterlooks "
            "WHERE due_ns <= ? ORDER BY due_ns LIMIT ?",
            (now_ns, BATCH_MAX),
        )
        return [Look(*row) for row in rows]

    def _record(self, look: Look, verdict: int | None, now_ns: int) -> None:
        db = self._folder.database.connection
        if verdict is None:  # no file of history any more
            self._folder.disk.drop_displaced(look.file)
            self._folder.locations.drop(displaced_item(look.file))
        looks = look.looks + 1
        if verdict in {None, GONE} or looks == len(LOOKS_S):
            db.execute("DELETE FROM afterlooks WHERE file = ?", (look.file,))
            return
        db.execute(
            "UPDATE afterlooks SET ctime_ns = ?, looks = ?, due_ns = ? WHERE file = ?",
            (verdict, looks, now_ns + int(LOOKS_S[looks] * NS), look.file),
        )


def _compare(fs: FileSystem, look: Look, key: bytes) -> int | None:
    """The file's ctime if it holds what it should, 0 if that is not known, None if not; or GONE."""
    try:
        stat = fs.lstat(look.file)
        if (stat.size, stat.mtime_ns) != (look.size, look.mtime_ns):
            return None
        if stat.ctime_ns == look.ctime_ns or stat.size > READ_SIZE_MAX:
            return stat.ctime_ns
    except FileNotFoundError:
        return GONE
    except OSError as error:
        logger.warning("%s cannot be looked at: %s", look.file, error)
        return 0
    (seen,) = describe_all(fs, [Job(look.file, StatKind.FILE)], key)
    if not isinstance(seen, Described):
        return None if seen.changing else 0
    manifest = seen.draft.manifest
    other_cut = manifest is not None and int(manifest.profile) != look.profile
    return stat.ctime_ns if other_cut or seen.digest == look.digest else None


def _bring_back(fs: FileSystem, look: Look) -> str | None:
    """Move the file to where it lay, or as near to that as there is a directory; None if the disk
    refuses: it stays in history.
    """
    directory, _, name = look.path.rpartition("/")
    while True:
        try:
            target = free_name(fs, join(directory, name))
            fs.rename(look.file, target)
            fs.fsync_directory(directory)
        except OSError as error:
            if not directory:
                logger.warning("%s holds an edit and cannot be moved back: %s", look.file, error)
                return None
            directory = directory.rpartition("/")[0]
        else:
            return target


def free_name(fs: FileSystem, path: str) -> str:
    """A name that nothing has, beside `path`: `letter (recovered).odt`."""
    directory, _, name = path.rpartition("/")
    stem, ending = split_name(name)
    number = 1
    while True:
        mark = " (recovered)" if number == 1 else f" (recovered {number})"
        candidate = join(directory, fit_name(stem, mark, ending))
        try:
            fs.lstat(candidate)
        except FileNotFoundError:
            return candidate
        number += 1
