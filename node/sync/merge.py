"""Merges texts in people's place: instead of a conflict copy, one file with what everybody wrote.

When the applier is about to put a conflict copy on the disk, it asks `holds`. If the item is one
whose texts may merge, it and its copies are left alone for a moment, and an attempt begins:

    1. All texts are brought together and merged (`node.sync.merge_inquiry`, `crdt.merge_text`).
       Several devices may do so at once: they write equal content, which is no conflict.
    2. The result goes to the disk as the applier would put it there, the old content into history;
       then entry and disk row are written in one transaction. So no version is ever written whose
       bytes lie nowhere, and an edit that no scan has seen yet is never overtaken.

If the process dies between disk and index, the next scan finds what looks like an edit by a person
that holds all of one head, and it is merged again. What cannot be merged, or not within HOLD_S,
becomes a conflict copy. Where a copy lies on the disk already, people decide. A device that may
not write, or has not got the file, only waits that moment for others to merge.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from crdt.errors import ShoalError
from crdt.heads import derived_id, heads
from crdt.ids import ItemId
from crdt.lineage import Lineage
from crdt.merge_text import TEXT_SIZE_MAX
from crdt.slot import Content, Kind, Profile
from crdt.tree import ViewRow
from crdt.version_vector import VersionVector
from node.files.applier import Outcome, Verdict, execute
from node.files.port import FileSystem
from node.index.disk_rows import DiskRow
from node.ports import Threads
from node.sync.bell import Bell
from node.sync.commit import new_writer
from node.sync.folder import Folder
from node.sync.merge_inquiry import HEADS_MAX, Inquiry, Merged, Texts
from node.sync.place import record_displaced
from node.sync.planner import still_as_agreed
from node.sync.prepared import Prepared, prepare, record_prepared

logger = logging.getLogger("shoal.merge")

HOLD_S: Final = 2.0  # a conflict copy is put off for so long while its item may be merged
ATTEMPTS_MAX: Final = 16  # at once; each holds a few texts of up to 1 MiB
SETTLED_MAX: Final = 10_000  # conflicts remembered as not to be merged
LATER_NS: Final = 1_000_000  # a merge is newer than all that went into it

Key = frozenset[VersionVector]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An item in conflict that may be merged here."""

    item: ItemId
    shown: ViewRow
    row: DiskRow
    path: str
    heads: Sequence[Content]


class Merges:
    """The service for one folder."""

    def __init__(
        self,
        folder: Folder,
        fs: FileSystem,
        threads: Threads,
        disk_lock: trio.Lock,
        texts: Texts,
        *,
        wanted: Callable[[str], bool],
        dirty: Callable[[str], None],
        scanned: Bell,
        allowed: Callable[[], bool],
    ) -> None:
        """Args:
        wanted: False for paths that people do not want to be merged.
        dirty: Asks for a scan of a path.
        scanned: Rings after every scan.
        allowed: False while the folder is paused or stopped.
        """
        self._folder = folder
        self._fs = fs
        self._threads = threads
        self._lock = disk_lock
        self._texts = texts
        self._wanted = wanted
        self._dirty = dirty
        self._scanned = scanned
        self._allowed = allowed
        self._attempts: dict[ItemId, Key] = {}  # that run, or wait to
        self._settled: dict[ItemId, Key] = {}  # conflicts that stay
        self._waiting: list[ItemId] = []
        self._work = Bell()
        self._places = trio.CapacityLimiter(ATTEMPTS_MAX)
        self.done = 0  # merges written since the start

    def holds(self, shown: ViewRow) -> bool:
        """Whether `shown`, or what it is a copy of, is being merged, so that the disk can wait."""
        if shown.copy_of is None and not shown.conflicts:
            return False
        item = shown.item if shown.copy_of is None else shown.copy_of
        key = self._key(item)
        if item in self._attempts:
            return self._attempts[item] == key
        if self._settled.get(item) == key or not self._may_merge(item):
            return False
        self._attempts[item] = key
        self._waiting.append(item)
        self._work.ring()
        return True

    def forget_settled(self) -> None:
        """The rules are others now: what stayed a conflict may be merged."""
        self._settled.clear()

    async def serve(self) -> None:
        """Merge until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    seen = self._work.count
                    while self._waiting:
                        nursery.start_soon(self._attempt, self._waiting.pop())
                    await self._work.wait_past(seen)
        finally:
            self._attempts.clear()
            self._waiting.clear()

    # --- which conflicts ------------------------------------------------------------------------

    def _heads(self, item: ItemId) -> list[Content]:
        return heads(self._folder.tree.slots(item))

    def _key(self, item: ItemId) -> Key:
        return frozenset(head.version for head in self._heads(item))

    def _may_merge(self, item: ItemId) -> bool:
        """True for a conflict between texts, as far as one can tell without reading them, that
        nobody has seen on this disk yet.
        """
        folder, found = self._folder, self._heads(item)
        path = folder.tree.path(item)
        if path is None or not self._wanted(path) or not 2 <= len(found) <= HEADS_MAX:
            return False
        if any(one.kind is not Kind.FILE or one.size > TEXT_SIZE_MAX for one in found):
            return False
        if len(folder.tree.members(item)) > 1:
            return False
        copies = [derived_id(item, head.version) for head in found]
        return not any(folder.disk.get(copy) or folder.tree.slots(copy) for copy in copies)

    def _candidate(self, item: ItemId) -> Candidate | None:
        """What this device can merge itself: it may write, and the file lies where it belongs."""
        folder = self._folder
        shown, row = folder.tree.row(item), folder.disk.get(item)
        path = folder.disk.path(item)
        if shown is None or row is None or path is None or not self._may_merge(item):
            return None
        place = (shown.parent, folder.disk_name(shown) or shown.name)
        if (row.parent, row.name) != place or not folder.roster.may_write(folder.identity.device):
            return None
        return Candidate(item, shown, row, path, self._heads(item))

    # --- one conflict ---------------------------------------------------------------------------

    async def _attempt(self, item: ItemId) -> None:
        key = self._attempts[item]
        try:
            with trio.move_on_after(HOLD_S):
                if self._candidate(item) is None:
                    await trio.sleep_forever()  # perhaps another device merges
                async with self._places:
                    await self._merge(item, key)
        except (OSError, ShoalError) as error:
            logger.debug("%s is not merged: %s", item, error)
        finally:
            self._attempts.pop(item, None)
        if self._key(item) == key:
            if len(self._settled) >= SETTLED_MAX:
                self._settled.clear()
            self._settled[item] = key
        self._folder.work.ring()

    async def _merge(self, item: ItemId, key: Key) -> None:
        candidate = self._candidate(item)
        if candidate is None or self._key(item) != key:
            return
        slots = self._folder.tree.ever_of(item)
        lineage = Lineage(slot.content for _, slot in slots if slot.content is not None)
        inquiry = Inquiry(item, candidate.shown.name, lineage, self._texts, self._threads)
        merged = await inquiry.merge(candidate.heads)
        seen = self._scanned.count
        while merged is not None and not await self._write(item, key, merged):
            seen = await self._scanned.wait_past(seen)

    async def _write(self, item: ItemId, key: Key, merged: Merged) -> bool:
        """Put the merged text on the disk and into the log; False if a scan has to come first."""
        async with self._lock:
            candidate = self._candidate(item)
            if candidate is None or self._key(item) != key or not self._allowed():
                return True
            prepared = await self._threads.run(self._prepare, candidate, merged)
            stat = await self._threads.run(self._fs.lstat, candidate.path)
            if not still_as_agreed(stat, candidate.row):
                self._dirty(candidate.path)
                return False
            (outcome,) = await self._threads.run(execute, self._fs, [prepared.work])
            if outcome.verdict is not Verdict.DONE:
                self._dirty(candidate.path)
                return outcome.verdict is Verdict.FAILED
            try:
                self._commit(candidate, key, prepared, outcome)
            except BaseException:
                self._dirty(candidate.path)  # as if a person had put it there
                raise
            return True

    def _prepare(self, candidate: Candidate, merged: Merged) -> Prepared:
        manifests = (source.manifest for source in merged.sources)
        return prepare(
            self._folder,
            candidate.row,
            candidate.path,
            merged.data,
            mtime_ns=max(source.mtime_ns for source in merged.sources) + LATER_NS,
            executable=merged.executable,
            profile=next((one.profile for one in manifests if one is not None), Profile.SMALL),
        )

    def _commit(self, candidate: Candidate, key: Key, prepared: Prepared, outcome: Outcome) -> None:
        """Record what was put on the disk: as a version that has seen all heads."""
        folder, item = self._folder, candidate.item
        if self._candidate(item) is None or self._key(item) != key:
            # Something came in meanwhile. What is on the disk counts as edited by a person.
            with folder.transaction():
                record_displaced(folder, candidate.row, prepared.work)
            self._dirty(candidate.path)
            return
        with folder.transaction():
            writer = new_writer(folder)
            writer.merge(item, prepared.draft)
            record_prepared(folder, item, writer, prepared, outcome)
        self.done += 1
        folder.advanced.ring()
