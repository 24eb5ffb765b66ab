"""Disk → tree: walks what may have changed, reads what did, and commits it.

One `Scan` serves one run, over dirty paths or over everything. It goes from the top down, so a new
directory has its item before its children name it. Creations and edits are committed in batches as
the walk goes; **deletions wait for the end of the run**, since what is missing here may turn up
there as a move, and are checked once more then.

Nothing is read under the disk lock but listings; a file is read without it, and taken only if its
stat is the same before and after. If the process dies at any point, the next full scan finds the
same differences again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import trio

from crdt.errors import WorldError
from crdt.ids import ROOT, ItemId
from crdt.slot import Kind
from node.files.port import FileSystem, Stat, StatKind, join
from node.files.scanner import Differences, Listing, compare, is_gone, lstat_exactly, observe
from node.index.disk_rows import DiskRow
from node.ports import Threads
from node.sync.commit import commit_observed
from node.sync.describe import describe_all
from node.sync.durable import sync_found, unsynced
from node.sync.folder import Folder
from node.sync.local import LocalChange, local_change
from node.sync.moves import Moves
from node.sync.observed import (
    Created,
    Deleted,
    Described,
    Edited,
    Moved,
    Observed,
    Touched,
    described_directory,
)
from node.sync.planner import GOING, still_as_agreed

logger = logging.getLogger("shoal.scan")

BATCH_FILES_MAX: Final = 1_000  # observations a commit
READ_FILES_MAX: Final = 64  # files described in one visit to a worker thread
READ_SIZE_MAX: Final = 8 * 1024 * 1024  # bytes in one such visit; a larger file goes alone
FAILED_AGAIN_S: Final = 60.0  # what the disk refused to show
MOVED_AGAIN_S: Final = 1.0  # a directory that moved; after what people wait for


@dataclass(slots=True)
class ScanReport:
    """What one run did.

    `retry` are paths that changed while they were read; `again` are trees to be looked at once more
    after so many seconds.
    """

    full: bool = False
    files: int = 0
    bytes: int = 0
    retry: set[str] = field(default_factory=set)
    again: dict[str, float] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)
    local: dict[str, LocalChange] = field(default_factory=dict)  # what a reader's disk keeps
    looked: set[str] = field(default_factory=set)  # at these paths, if not at all


@dataclass(frozen=True, slots=True)
class Candidate:
    """A path whose content must be read: new, or changed since `row`."""

    path: str
    parent: ItemId
    name: str
    stat: Stat
    row: DiskRow | None


@dataclass(frozen=True, slots=True)
class Below:
    """A directory to look at: what we take it for, and the inode by which it is that."""

    path: str
    item: ItemId
    inode: int | None


class Scan:
    """One run over dirty paths or the whole folder."""

    def __init__(
        self,
        folder: Folder,
        fs: FileSystem,
        threads: Threads,
        disk_lock: trio.Lock,
        *,
        ignored: Callable[[str, bool], bool],
        may_delete: Callable[[], Awaitable[bool]],
        progress: Callable[[int, int], None] = lambda _files, _bytes: None,
        reverts: Callable[[str], bool] = lambda _path: False,
    ) -> None:
        """Args:
        may_delete: Asks the safety rails once, before any deletion is committed.
        reverts: Whether a reader's change at this path is to be thrown away.
        """
        self._folder = folder
        self._fs = fs
        self._threads = threads
        self._lock = disk_lock
        self._ignored = ignored
        self._may_delete = may_delete
        self._progress = progress
        self._reverts = reverts
        self._at: dict[ItemId, str] = {}  # directories on the way: where they lie
        self._fold = folder.names.personality.key if folder.names.folds else None
        self._batch: list[Observed] = []
        self._missing: dict[ItemId, DiskRow] = {}
        self._moved: set[ItemId] = set()
        self._moves = Moves(folder, fs, threads, self._fold, self._moved)
        folder.disk.forget_heirs()
        self.report = ScanReport()

    async def everything(self) -> ScanReport:
        """Walk the whole folder."""
        self.report.full = True
        await self._visit(Below("", ROOT, None), names=None, deep=True)
        return await self._finish()

    async def paths(self, dirty: Iterable[str]) -> None:
        """Look at some paths; call `finish` when no more of them come."""
        await (
            self._commit()
        )  # what an earlier call found must be in the rows that this one compares with
        groups: dict[str, set[str]] = {}
        for path in dirty:
            self.report.looked.add(path)
            directory, name = self._nearest_known(path)
            groups.setdefault(directory, set()).add(name)
        for directory in sorted(groups):
            below = Below("", ROOT, None)
            if directory:
                row = self._folder.disk.resolve(directory)
                if row is None or row.kind is not Kind.DIRECTORY:
                    continue  # it went while we looked elsewhere; its parent is dirty too
                below = Below(directory, row.item, row.inode)
            await self._visit(below, names=frozenset(groups[directory]), deep=False)

    async def tree(self, path: str) -> None:
        """Look at a path, and at all that is below it."""
        if not path:
            await self._visit(Below("", ROOT, None), names=None, deep=True)
            return
        await self.paths([path])
        row = self._folder.disk.resolve(path)
        if row is not None and row.kind is Kind.DIRECTORY:
            await self._visit(Below(path, row.item, row.inode), names=None, deep=True)

    async def finish(self) -> ScanReport:
        """Commit what is left, deletions last."""
        return await self._finish()

    @property
    def has_missing(self) -> bool:
        """True when something seems deleted; a little patience may show that it moved."""
        return bool(self._missing)

    def _nearest_known(self, path: str) -> tuple[str, str]:
        """The deepest directory with a disk row on the way to `path`, and the next name below
        it.
        """
        directory, parent = "", ROOT
        parts = path.split("/")
        for name in parts[:-1]:
            row = self._folder.disk.at(parent, name)
            if row is None or row.kind is not Kind.DIRECTORY:
                return directory, name
            directory = f"{directory}/{name}" if directory else name
            parent = row.item
        return directory, parts[-1]

    async def _visit(self, top: Below, *, names: frozenset[str] | None, deep: bool) -> None:
        """Compare one directory (or some names in it) and walk down where needed."""
        stack = [(top, names)]
        while stack:
            at, names = stack.pop()
            path = self._at[at.item] = at.path
            async with self._lock:
                listing = await self._threads.run(
                    observe, self._fs, path, names, at.inode, self._fold
                )
            if listing.error is not None:
                self._warn_listing(listing)
                continue
            if listing.replaced:
                self.report.retry |= {path, *(join(path, name) for name in names or ())}
                continue
            rows = self._rows(self._folder.disk.heir(at.item), listing)
            found = compare(listing, rows, self._ignored)
            for name, why in found.unsyncable:
                self.report.warnings[join(path, name)] = f"not synced: {why}"
            # Those we were about to take off this disk, and did not: see `node.sync.selection`.
            doubted = (row for row in found.same if row.revision == GOING)
            self._batch += [Touched(row, listing.entries[row.name]) for row in doubted]
            for row in found.missing:
                self._missing.setdefault(row.item, row)
            stack += [(below, None) for below in await self._take(path, at.item, found)]
            if deep or names is not None:
                # One that was named is listed too: its hint may stand for what is in it.
                same = (row for row in found.same if row.kind is Kind.DIRECTORY)
                stack += [(Below(join(path, r.name), r.item, r.inode), None) for r in same]

    def _rows(self, item: ItemId, listing: Listing) -> dict[str, DiskRow]:
        if listing.names is None:
            return self._folder.disk.children(item)
        found = ((name, self._folder.disk.at(item, name)) for name in listing.names)
        return {name: row for name, row in found if row is not None}

    def _warn_listing(self, listing: Listing) -> None:
        assert listing.error is not None
        if not is_gone(listing.error):
            self.report.again[listing.path] = FAILED_AGAIN_S
            where = listing.path or "the folder itself"
            self.report.warnings[listing.path] = (
                f"{where} cannot be listed ({listing.error.strerror}); "
                "nothing in it is taken for deleted"
            )

    async def _take(self, path: str, parent: ItemId, found: Differences) -> list[Below]:
        """Record what `found` shows; returns the directories to walk."""
        below: list[Below] = []
        candidates: list[Candidate] = []
        # Moves first: what lies at a place that something moved away from is new, not changed.
        for row, stat in found.changed:
            place = join(path, row.name)
            if row.inode != stat.inode and await self._moves.by_inode(stat, row, place) is not None:
                self._missing.setdefault(row.item, row)
                found.new.append((row.name, stat))
        for name, stat in found.new:
            place = join(path, name)
            source = await self._moves.by_inode(stat, None, place)
            if source is not None:
                self._take_move(source, parent, name, stat)
                if source.kind is Kind.DIRECTORY:
                    below.append(Below(place, source.item, stat.inode))
                    # Hints of what happened in it before go by the place where it lay.
                    self.report.again[place] = MOVED_AGAIN_S
            else:
                self._take_new(Candidate(place, parent, name, stat, None), below, candidates)
        replaced = {name for name, _ in found.new}
        for row, stat in found.changed:
            candidate = Candidate(join(path, row.name), parent, row.name, stat, row)
            if row.name in replaced:
                continue
            if self._moved_away(row):
                self._take_new(replace(candidate, row=None), below, candidates)
            elif row.kind is Kind.DIRECTORY:
                self._batch.append(Touched(row, stat))
                below.append(Below(candidate.path, row.item, stat.inode))
            else:
                candidates.append(candidate)
        await self._read(candidates)
        return below

    def _take_new(
        self,
        candidate: Candidate,
        below: list[Below],
        candidates: list[Candidate],
    ) -> None:
        if candidate.stat.kind is not StatKind.DIRECTORY:
            candidates.append(candidate)
            return
        item = self._folder.directory_item(candidate.parent, candidate.name)
        described = described_directory(candidate.stat)
        self._batch.append(Created(item, candidate.parent, candidate.name, described))
        below.append(Below(candidate.path, item, candidate.stat.inode))

    def _take_move(self, source: DiskRow, parent: ItemId, name: str, stat: Stat) -> None:
        stale = [
            seen
            for seen in self._batch
            if isinstance(seen, Edited | Touched) and seen.row.item == source.item
        ]
        if stale:
            # Its old place was looked at first, and what lies there was taken for an edit of it.
            self._batch = [seen for seen in self._batch if seen not in stale]
            old = self._folder.disk.path(source.item)
            if old is not None:
                self.report.retry.add(old)
        self._moved.add(source.item)
        self._missing.pop(source.item, None)
        self._batch.append(Moved(source, parent, name, stat))

    async def _read(self, candidates: list[Candidate]) -> None:
        """Read the candidates' content in worker threads, small files many at a time."""
        group: list[Candidate] = []
        size = 0
        for candidate in candidates:
            if group and (
                size + candidate.stat.size > READ_SIZE_MAX or len(group) >= READ_FILES_MAX
            ):
                await self._read_group(group)
                group, size = [], 0
            group.append(candidate)
            size += candidate.stat.size
        if group:
            await self._read_group(group)

    async def _read_group(self, group: list[Candidate]) -> None:
        jobs = [self._folder.reading_job(c.path, c.stat.kind, c.row) for c in group]
        results = await self._threads.run(describe_all, self._fs, jobs, self._folder.block_key)
        for candidate, result in zip(group, results, strict=True):
            if isinstance(result, Described) and result.stat.inode != candidate.stat.inode:
                self.report.retry.add(candidate.path)  # another file by now, maybe another item
            elif isinstance(result, Described):
                await self._take_described(candidate, result)
                self.report.files += 1
                self.report.bytes += result.stat.size
            elif result.changing:
                self.report.retry.add(candidate.path)
            elif not result.gone:
                self.report.warnings[candidate.path] = result.reason
                self.report.again[candidate.path] = FAILED_AGAIN_S
        self._progress(self.report.files, self.report.bytes)
        if len(self._batch) >= BATCH_FILES_MAX:
            await self._commit()

    async def _take_described(self, candidate: Candidate, described: Described) -> None:
        row, stat = candidate.row, described.stat
        if row is not None and not self._moved_away(row):
            same = (row.digest, row.mtime_ns, row.executable)
            now = (described.digest, stat.mtime_ns, stat.executable)
            self._batch.append(Touched(row, stat) if same == now else Edited(row, described))
            if same != now and stat.links > 1:
                self._look_at_links(row, stat)
            return
        source = await self._moves.by_content(described, candidate.path)
        if source is not None:
            self._take_move(source, candidate.parent, candidate.name, stat)
            if (stat.mtime_ns, stat.executable) != (source.mtime_ns, source.executable):
                self._batch.append(Edited(source, described))
            return
        item = self._folder.new_item()
        self._batch.append(Created(item, candidate.parent, candidate.name, described))

    def _look_at_links(self, row: DiskRow, stat: Stat) -> None:
        """The other names of a file that was edited: no watcher tells of these."""
        for other in self._folder.disk.with_inode(stat.inode):
            path = self._folder.disk.path(other.item)
            if other.item != row.item and path is not None and not still_as_agreed(stat, other):
                self.report.retry.add(path)

    async def _commit(self, *, last: bool = False) -> None:
        """Commit what was found; deletions only at the end of the run, but for those whose place is
        taken: before the applier sees the newcomer there, for it would bring the old one back under
        another name.
        """
        batch, self._batch = self._batch, []
        taken = {(seen.parent, seen.name) for seen in batch if isinstance(seen, Created | Moved)}
        gone = [
            row
            for row in self._missing.values()
            if row.item not in self._moved and (last or (row.parent, row.name) in taken)
        ]
        for row in gone:
            del self._missing[row.item]
        await self._sync([*batch, *map(Deleted, gone)])
        if gone and await self._may_delete():
            async with self._lock:
                deleted: list[Observed] = []
                for row in gone:
                    if await self._is_gone(row, replaced=(row.parent, row.name) in taken):
                        deleted += [Deleted(below) for below in self._below(row)]
                # Deletions first: a newcomer robs the old item of its name, which the deleter has
                # not seen.
                self._write([*deleted, *batch])
        else:
            self._write(batch)
        for item in self._moved:
            self._missing.pop(item, None)
        self._moved.clear()  # their rows say from now on where they are

    async def _sync(self, found: Sequence[Observed]) -> None:
        """Bring what is about to be published to the disk: see `node.sync.durable`."""
        if not found:
            return
        try:
            paths = unsynced(self._folder.disk, found)
            await self._threads.run(sync_found, self._fs, paths)
        except OSError as error:
            raise WorldError(
                f"what changed here could not be synced to the disk ({error.strerror}), so it is "
                "not sent yet. Nothing was changed; it is tried again."
            ) from error

    def _moved_away(self, row: DiskRow) -> bool:
        """True when the item of `row`, read earlier in this run, was found elsewhere since."""
        now = self._folder.disk.get(row.item)
        here = now is not None and (now.parent, now.name) == (row.parent, row.name)
        return row.item in self._moved or not here

    def _write(self, batch: list[Observed]) -> None:
        for start in range(0, len(batch), BATCH_FILES_MAX):
            self._write_some(batch[start : start + BATCH_FILES_MAX])

    def _write_some(self, batch: list[Observed]) -> None:
        for seen in commit_observed(self._folder, batch, self._keeps):
            parent = self._folder.disk.path(seen.parent)
            if parent is not None:
                self.report.retry.add(join(parent, seen.name))

    def _keeps(self, seen: Observed) -> bool:
        """About a change that a reader must not write: does it stay on the disk?"""
        change = local_change(self._folder, seen, self._at)
        if self._reverts(change.path) or (change.was is not None and self._reverts(change.was)):
            return False
        self.report.local[change.path] = change
        return True

    async def _finish(self) -> ScanReport:
        await self._commit(last=True)
        return self.report

    async def _is_gone(self, row: DiskRow, *, replaced: bool) -> bool:
        """Ask once more: a listing may miss what is renamed meanwhile.

        Args: `replaced` says that something else was found at its place.
        """
        disk = self._folder.disk
        now = disk.get(disk.heir(row.item))
        if now is not None and (now.parent, now.name) != (disk.heir(row.parent), row.name):
            return False  # the applier put it elsewhere since we looked
        parent = disk.path(disk.heir(row.parent))
        if parent is None:
            return False  # its directory is being moved or went itself, with all its rows
        try:
            path = join(parent, row.name)
            stat = await self._threads.run(lstat_exactly, self._fs, path, self._fold)
        except OSError as error:
            return is_gone(error)
        if stat.inode == row.inode and int(stat.kind) == int(row.kind):
            return False
        if replaced or row.kind is Kind.DIRECTORY or int(stat.kind) != int(row.kind):
            return True
        self.report.retry.add(path)  # it was away for a moment only: this is an edit of it
        return False

    def _below(self, top: DiskRow) -> Iterator[DiskRow]:
        """`top` and what lay below it, but for what was found elsewhere in this run."""
        stack = [self._folder.disk.get(self._folder.disk.heir(top.item)) or top]
        while stack:
            row = stack.pop()
            if row.item in self._moved:
                continue
            yield row
            if row.kind is Kind.DIRECTORY:
                stack.extend(self._folder.disk.children(row.item).values())
