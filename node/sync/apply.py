"""Tree → disk: one service that carries out what the pending items need.

Work goes in rounds. A round looks at pending items, asks the planner, and picks the jobs that can
be done now: directories whose parent is there, renames whose target is free, files whose content is
assembled, removals of what is empty. One batch is carried out in a worker thread under the disk
lock and recorded in one transaction; then the next round looks again. So no order has to be
computed in advance, and a crash or an error leaves nothing to resume but the comparison.

What cannot be done is put aside with a reason and looked at again later (`waiting`); everything
else goes on. Where renames permute places, one of them is parked in `.shoal/tmp` first.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable
from typing import Final

import trio

from crdt.errors import ShoalError
from crdt.ids import ItemId
from crdt.slot import Content, Kind
from crdt.tree import ViewRow
from node.files import applier
from node.files.applier import (
    HalfPatchedError,
    MakeDirectory,
    Outcome,
    PatchFile,
    Place,
    Relocate,
    Remove,
    SetMetadata,
    Verdict,
)
from node.files.port import FileSystem, join
from node.index.disk_rows import DiskRow
from node.ports import Threads
from node.sync.assemble import (
    Assembled,
    Assembler,
    new_path,
    reason_of,
    remove_parts,
    swap_path,
)
from node.sync.bell import Bell
from node.sync.folder import Folder
from node.sync.jobs import Assembly, Job, Round, Waiting
from node.sync.patching import Patching
from node.sync.place import intent_of, record
from node.sync.planner import GOING, Plan

logger = logging.getLogger("shoal.apply")

ROUND_ITEMS_MAX: Final = 1_000  # jobs of one round; bounds a batch and its transaction
STARVED_MAX: Final = 32  # files looked at in a round although no assembly is free for them
ASSEMBLIES_MAX: Final = 128  # files being assembled at once; each holds at most a few blocks
READY_SIZE_MAX: Final = 64 * 1024 * 1024  # bytes of assembled small files kept in memory
NOT_KEPT: Final = "no other device is known to keep it, so it stays here"
RETRY_MIN_S: Final = 0.05
RETRY_MAX_S: Final = 60.0


class Apply:
    """The service for one folder."""

    def __init__(
        self,
        folder: Folder,
        fs: FileSystem,
        threads: Threads,
        disk_lock: trio.Lock,
        assembler: Assembler,
        *,
        ignored: Callable[[str, bool], bool],
        dirty: Callable[[str], None],
        allowed: Callable[[], bool],
        patching: Patching | None = None,
        stop: Callable[[str], None] = logger.error,
        held: Callable[[ViewRow], bool] = lambda _: False,
        kept: Callable[[DiskRow], bool] = lambda _: False,
    ) -> None:
        """Args:
        ignored: `(path, is_directory) -> bool`; such items stay as they are on this disk.
        dirty: Asks for a scan of a path where something unknown was found.
        allowed: False while the folder is paused or stopped.
        patching: Lets large files be changed in place; without it all are written anew.
        stop: Called where the disk failed in a way that needs a new start.
        held: True for what is about to change: its conflict is being merged.
        kept: True for what another device durably keeps.
        """
        self._folder = folder
        self._fs = fs
        self._threads = threads
        self._lock = disk_lock
        self._assembler = assembler
        self._ignored = ignored
        self._dirty = dirty
        self._allowed = allowed
        self._patching = patching
        self._stop = stop
        self._held = held
        self._kept = kept
        self._ready: dict[ItemId, Assembled] = {}
        self._ready_size = 0
        self._assembling: dict[ItemId, Assembly] = {}
        self._linked: set[ItemId] = set()  # files with several names, to be written anew
        self._swept = False  # no unfinished file lies in `.shoal/tmp`
        self.waiting: dict[ItemId, Waiting] = {}
        self._looked_at = 0.0
        self.done_files = 0  # placed on the disk since the start
        self.changed = Bell()

    def retry_all(self) -> None:
        """Look at everything again now: a scan ran, space returned, a peer came."""
        for item in list(self.waiting):
            self.waiting[item].retry_at = 0.0
        self._folder.work.ring()

    async def serve(self) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                seen = self._folder.work.count
                busy = self._allowed() and await self._round(nursery)
                self.changed.ring()
                if not busy:
                    with trio.move_on_at(self._next_retry()):
                        await self._folder.work.wait_past(seen)

    def _next_retry(self) -> float:
        """When something that waits is due that was not due at the last look. What was due then and
        is not done waits for something else: its directory, its blocks, a free place.
        """
        later = (w.retry_at for w in self.waiting.values() if w.retry_at > self._looked_at)
        return min(later, default=float("inf"))

    async def _round(self, nursery: trio.Nursery) -> bool:
        """One look at what is pending; True when something was done."""
        async with self._lock:
            found = self._look(nursery)
            batch = found.jobs or found.moves[:1]
            if not batch and found.blocked:
                batch = self._park(found.blocked)
            if not batch:
                if not self._folder.pending:
                    self._folder.advanced.ring()
                    await self._sweep()
                return False
            await self._carry_out(batch)
        return True

    async def _sweep(self) -> None:
        """Nothing is pending, so nothing is unfinished: what lies there was superseded."""
        if self._swept or self._assembling:
            return
        self._swept = True
        try:
            await self._threads.run(remove_parts, self._fs)
        except OSError as error:
            logger.info("unfinished files stay in .shoal/tmp: %s", error.strerror)

    def _look(self, nursery: trio.Nursery) -> Round:
        found, now = Round(), trio.current_time()
        self._looked_at = now
        self._give_up_superseded()
        for item in list(self._folder.pending):
            if found.size >= ROUND_ITEMS_MAX or found.starved >= STARVED_MAX:
                break
            self._look_at(item, found, nursery, now)
        return found

    def _give_up_superseded(self) -> None:
        """Stop assembling what is not wanted any more: perhaps nobody has it any more, either."""
        for item in self._folder.revisited & self._assembling.keys():
            shown, assembly = self._folder.tree.row(item), self._assembling[item]
            if shown is None or shown.content.digest != assembly.content.digest:
                assembly.scope.cancel()
        self._folder.revisited.clear()

    def _look_at(self, item: ItemId, found: Round, nursery: trio.Nursery, now: float) -> None:
        """Plan one pending item, its directory first."""
        if item in found.seen or item in self._assembling:
            return
        found.seen.add(item)
        waits = self.waiting.get(item)
        if waits is not None and waits.retry_at > now:
            return
        folder = self._folder
        shown, row, plan = folder.plan(item)
        if not plan.touches_disk:
            self._done(item)
            folder.look_at([item])
            return
        if plan.release and row is not None:
            self._plan_release(item, shown, row, found)
            return
        if shown is not None and self._held(shown):
            return
        if shown is not None and shown.parent in folder.pending:
            self._look_at(shown.parent, found, nursery, now)
        self._plan(item, shown, row, plan, found, nursery)

    # --- one item -------------------------------------------------------------------------------

    def _plan(
        self,
        item: ItemId,
        shown: ViewRow | None,
        row: DiskRow | None,
        plan: Plan,
        found: Round,
        nursery: trio.Nursery,
    ) -> None:
        if shown is None:
            if row is not None:
                self._plan_removal(item, row, found)
            return
        moves = plan.create or plan.relocate
        if moves and not self._free_target(item, shown, row, found):
            return
        path = self._target(shown)
        if path is None:
            return  # its directory comes first
        if self._ignored(path, shown.content.kind is Kind.DIRECTORY):
            self._folder.leaves_out = True
            self._folder.pending.pop(item, None)
            return
        if plan.relocate and row is not None:
            source = self._folder.disk.path(item)
            if source is not None:
                job = Job(item, shown, row, Relocate(source, path, row))
                (found.moves if row.kind is Kind.DIRECTORY else found.jobs).append(job)
            return
        if shown.content.kind is Kind.DIRECTORY:
            found.jobs.append(Job(item, shown, row, MakeDirectory(path)))
        elif plan.metadata and row is not None and item not in self._linked:
            content = shown.content
            work = SetMetadata(path, content.mtime_ns, content.executable, row)
            found.jobs.append(Job(item, shown, row, work))
        else:
            self._plan_content(item, shown, row, path, found, nursery)

    def _target(self, shown: ViewRow) -> str | None:
        parent = self._folder.disk.path(shown.parent)
        if parent is None or parent.startswith(".shoal"):
            return None
        return join(parent, self._folder.disk_name(shown) or shown.name)

    def _plan_removal(self, item: ItemId, row: DiskRow, found: Round) -> None:
        path = self._folder.disk.path(item)
        if path is None:
            self._folder.disk.drop(item)
            return
        if self._ignored(path, row.kind is Kind.DIRECTORY):
            self._folder.pending.pop(item, None)
            return
        heir = self._folder.tree.child(self._folder.tree.representative(row.parent), row.shown_name)
        if heir is not None and self._same_thing(row, heir):
            self._hand_over(row, heir.item)
            return
        if row.kind is Kind.DIRECTORY and self._folder.disk.has_children(item):
            return  # they go or move first
        found.jobs.append(Job(item, None, row, Remove(path, row, self._history_path())))

    def _plan_release(
        self, item: ItemId, shown: ViewRow | None, row: DiskRow, found: Round
    ) -> None:
        """Remove the local copy of what does not live here, once somebody else keeps it."""
        path = self._folder.disk.path(item)
        if path is None or self._ignored(path, row.kind is Kind.DIRECTORY):
            self._plan_removal(item, row, found)
        elif row.kind is Kind.DIRECTORY and self._folder.disk.has_children(item):
            return  # they go first
        elif row.kind is Kind.DIRECTORY or self._kept(row):
            found.jobs.append(Job(item, shown, row, Remove(path, row, self._history_path())))
        else:
            self.waiting[item] = Waiting(NOT_KEPT, 0.0, 0.0, quiet=False)  # until a peer tells

    def _free_target(self, item: ItemId, shown: ViewRow, row: DiskRow | None, found: Round) -> bool:
        """True when nothing that we know of lies where `item` belongs."""
        folder = self._folder
        name = folder.disk_name(shown) or shown.name
        occupant = folder.names.occupant(shown.parent, name, item)
        if occupant is None:
            return True
        if folder.tree.row(occupant.item) is None:
            if self._same_thing(occupant, shown):
                self._hand_over(occupant, item)
            return False
        found.blocked.append(occupant)
        return False

    def _same_thing(self, row: DiskRow, shown: ViewRow) -> bool:
        """True when what lies here under an id that is not shown any more is what `shown` wants: a
        twin, or a directory united with this one.
        """
        return (
            self._folder.disk.get(shown.item) is None
            and row.kind is shown.content.kind
            and (row.kind is Kind.DIRECTORY or row.digest == shown.content.digest)
        )

    def _hand_over(self, row: DiskRow, heir: ItemId) -> None:
        folder = self._folder
        with folder.transaction():
            folder.disk.rekey(row.item, heir)
            folder.locations.rekey(row.item, heir)
            folder.look_at([row.item, heir])
        folder.work.ring()

    def _plan_content(
        self,
        item: ItemId,
        shown: ViewRow,
        row: DiskRow | None,
        path: str,
        found: Round,
        nursery: trio.Nursery,
    ) -> None:
        content = shown.content
        ready, patch = self._ready.get(item), None
        if ready is not None and ready.changes is not None and self._patching is not None:
            patch = self._patching.work(item, path, row, content, ready)
        stale = ready is not None and ready.changes is not None and patch is None
        if stale or (ready is not None and ready.digest != content.digest):
            self._forget_ready(item)
            ready = patch = None
        source: bytes | str | None = (
            content.target if content.target is not None else content.inline
        )
        if source is None and ready is None:
            self._start_assembly(item, shown, found, nursery)
            return
        if patch is not None:
            found.jobs.append(Job(item, shown, row, patch, ready))
            return
        if ready is not None:
            source = ready.source
        work = Place(
            target=path,
            temporary=ready.temporary if ready is not None else new_path(item),
            swap=swap_path(item, content.digest),
            source=source,
            mtime_ns=content.mtime_ns,
            executable=content.executable,
            expected=row,
            history=self._history_path(),
        )
        found.jobs.append(Job(item, shown, row, work, ready))

    def _start_assembly(
        self, item: ItemId, shown: ViewRow, found: Round, nursery: trio.Nursery
    ) -> None:
        if len(self._assembling) >= ASSEMBLIES_MAX or self._ready_size > READY_SIZE_MAX:
            found.starved += 1
            # To the end: what needs no fetching goes first.
            self._folder.pending[item] = self._folder.pending.pop(item)
            return
        self._swept = False
        assembly = self._assembling[item] = Assembly(shown.content)
        nursery.start_soon(self._assemble, item, assembly)

    async def _assemble(self, item: ItemId, assembly: Assembly) -> None:
        try:
            with assembly.scope:
                assembled = await self._bring_together(item, assembly.content)
        except (OSError, ShoalError, ExceptionGroup) as error:
            self._wait(item, reason_of(error))
        else:
            if not assembly.scope.cancelled_caught:
                self._ready[item] = assembled
                self._ready_size += len(assembled.source or b"")
        finally:
            del self._assembling[item]
            self._folder.work.ring()

    async def _bring_together(self, item: ItemId, content: Content) -> Assembled:
        patching = self._patching
        if patching is None:
            return await self._assembler.assemble(item, content)
        base, former = patching.base(item, content), patching.former(item)
        assembled = await self._assembler.assemble(item, content, base, former)
        if await patching.keep(item, assembled):
            return assembled
        return await self._assembler.assemble(item, content, None, former)

    def _forget_ready(self, item: ItemId) -> None:
        ready = self._ready.pop(item, None)
        if ready is not None:
            self._ready_size -= len(ready.source or b"")

    # --- carrying out ---------------------------------------------------------------------------

    def _park(self, blocked: Iterable[DiskRow]) -> list[Job]:
        """Nothing can be done while places are permuted: move one item out of the way."""
        for occupant in blocked:
            item = occupant.item
            source, waits = self._folder.disk.path(item), self.waiting.get(item)
            is_due = waits is None or waits.retry_at <= self._looked_at
            if item in self._folder.pending and is_due and source is not None:
                target = f".shoal/tmp/{item.hex()}.parked"
                return [Job(item, None, occupant, Relocate(source, target, occupant))]
        return []

    async def _carry_out(self, batch: list[Job]) -> None:
        works = [job.work for job in batch]
        intents = [intent for job in batch if (intent := intent_of(job)) is not None]
        with self._folder.transaction():
            self._folder.disk.intend(intents)
            for job in batch:
                if isinstance(job.work, Remove) and job.shown is not None and job.row is not None:
                    self._folder.disk.note(job.item, job.row.version, GOING)
                if isinstance(job.work, PatchFile) and job.assembled is not None:
                    self._folder.locations.put_nodes(job.assembled.nodes)  # for `recover_patches`
        try:
            outcomes = await self._threads.run(applier.execute, self._fs, works)
        except HalfPatchedError as error:
            self._stop(str(error))
            return
        except OSError as error:
            for job in batch:
                self._wait(job.item, f"the disk could not be synced: {error.strerror}")
            return
        done: list[tuple[Job, Outcome]] = []
        for job, outcome in zip(batch, outcomes, strict=True):
            if outcome.verdict is Verdict.DONE:
                done.append((job, outcome))
                self.done_files += isinstance(job.work, Place | PatchFile)
                self._done(job.item)
            else:
                self._not_done(job, outcome)
        record(self._folder, done, [job.item for job in batch])
        if self._patching is not None:
            await self._patching.clean([job.work for job, _ in done])

    def _done(self, item: ItemId) -> None:
        self.waiting.pop(item, None)
        self._linked.discard(item)
        self._forget_ready(item)

    def _not_done(self, job: Job, outcome: Outcome) -> None:
        work, error = job.work, outcome.error
        if outcome.verdict is Verdict.FAILED and error is not None:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST} and isinstance(work, Remove):
                self._dirty(work.target)
                self._wait(job.item, "it still holds files that are not synced, so it stays")
                return
            self._wait(job.item, error.strerror or str(error))
            return
        if outcome.verdict is Verdict.IN_USE and isinstance(work, SetMetadata):
            self._linked.add(job.item)
            self._folder.work.ring()
            return
        if outcome.verdict is Verdict.IN_USE and job.shown is not None and self._patching:
            self._patching.refused(job.item, job.shown.content.digest, error)
            self._forget_ready(job.item)
            self._wait(job.item, "another program has it open", quiet=True)
            return
        self._dirty(work.target)
        if isinstance(work, Relocate):
            self._dirty(work.source)
        self._wait(job.item, "it is being changed on this disk", quiet=True)

    def _wait(self, item: ItemId, reason: str, *, quiet: bool = False) -> None:
        before = self.waiting.get(item)
        delay = RETRY_MIN_S if before is None else min(RETRY_MAX_S, before.delay_s * 2)
        self.waiting[item] = Waiting(reason, trio.current_time() + delay, delay, quiet)
        logger.debug("%s waits: %s", item, reason)

    def _history_path(self) -> str:
        return f".shoal/history/{self._folder.random.bytes(12).hex()}"
