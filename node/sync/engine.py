"""One folder's services, wired: watcher, scans, applies, sessions, and what people see of them.

    allowed()   False while paused, or stopped by a safety rail; then nothing is scanned or applied
    stop(why)   a safety rail: the folder stops, says why, and deletes nothing

Each service runs in this engine's nursery. One that fails by a bug is started again, loudly; a
damaged index or a missing root stops the folder, and with it nothing else.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from crdt.entry import Entry
from crdt.errors import ShoalError
from crdt.ids import DeviceId
from crdt.roster_ops import Role
from crdt.version_vector import EMPTY, VersionVector
from node.files.ignore import IgnoreRules, read_rules
from node.files.layout import IGNORE_FILE, NO_MERGE_FILE
from node.files.port import FileSystem
from node.files.root_marker import RootId, RootState, check_root, make_layout
from node.files.watcher import Dirty, Limited, Rescan, Watcher, WatchEvent
from node.history.keeper import History
from node.history.sealed import SealedBlocks
from node.index.damage import DamagedIndexError, is_damage, note_damage
from node.ports import Threads
from node.sync.afterlook import Afterlook
from node.sync.apply import Apply
from node.sync.assemble import Assembler
from node.sync.base_texts import BaseTexts
from node.sync.bell import Bell
from node.sync.blocks import BlockExchange
from node.sync.distrust import RelayWatch
from node.sync.effects import settle_effects
from node.sync.folder import Folder
from node.sync.intake import Intake
from node.sync.local import LocalChange, LocalChanges
from node.sync.merge import Merges
from node.sync.merge_inquiry import AssembledTexts
from node.sync.patching import Patching
from node.sync.peers import Peers
from node.sync.recovery import recover
from node.sync.rot import Rot
from node.sync.scan import Scan, ScanReport
from node.sync.scrub import Scrub
from node.sync.selection import Keepers
from node.sync.watch import ScanService

logger = logging.getLogger("shoal.engine")

PREPARE_AGAIN_S: Final = 30.0  # after the disk or the root was not what it should be at the start
RESTART_DELAY_S: Final = 1.0  # before a service that failed is started again
SETTLE_SCAN_FILES_MAX: Final = 50_000  # below this `wait` looks at every file first
WARNINGS_MAX: Final = 200
EMPTIED_MIN: Final = 20  # a folder of fewer files may well be emptied by a person


@dataclass(frozen=True, slots=True)
class Needs:
    """What this disk still lacks."""

    files: int
    bytes: int


class FolderEngine:
    """Runs one folder."""

    awaits_own_log = False
    _removed: str | None = None  # why we stopped, if it was that

    def __init__(
        self,
        *,
        folder: Folder,
        path: str,
        marker: RootId,
        fs: FileSystem,
        threads: Threads,
        watcher: Watcher,
        paused: bool = False,
        cache: Path | None = None,
    ) -> None:
        self.folder = folder
        self.path = path
        self.marker = marker
        self.paused = paused
        self.stopped: str | None = None
        self.warnings: dict[str, str] = {}
        self.peers = Peers(folder)
        self.keepers = Keepers(self)
        self.relays = RelayWatch(self)
        self.local = LocalChanges()  # what a reader's disk keeps for itself
        self._writes = folder.roster.may_write(folder.identity.device)
        self.changed = Bell()  # anything that `status` shows
        self.on_roster: Callable[[], None] = lambda: None
        self.intake = Intake(folder)
        self.fs = fs
        self.threads = threads
        self._watcher = watcher
        self.disk_lock = trio.Lock()
        self._ignore = self._never_merge = IgnoreRules.none()
        self.sealed = SealedBlocks(folder, fs, threads)
        self.blocks = BlockExchange(folder, fs, threads, self.sealed)
        self.history = History(folder, fs, threads, self.sealed, allowed=self._root_is_here)
        self.scans = ScanService(self._make_scan, allowed=self.allowed, on_report=self._take_report)
        assembler = Assembler(fs, threads, self.blocks, folder.block_key)
        self.base_texts = BaseTexts(folder, fs, threads, cache)
        self.texts = AssembledTexts(assembler, self.base_texts)
        self.merges = self._make_merges()
        self.apply = Apply(
            folder,
            fs,
            threads,
            self.disk_lock,
            assembler,
            ignored=self.ignored,
            dirty=lambda path: self.scans.hint([path]),
            allowed=self._may_work,
            patching=Patching(folder, fs, threads, self.history.keep_blocks),
            stop=self.stop,
            held=self.merges.holds,
            kept=self.keepers.keeps,
        )
        self.rot = Rot(folder, fs, threads, hint=self.scans.hint)
        self.scrub = Scrub(folder, self.rot, allowed=self._may_work, warn=self.warn)
        self.blocks.on_mismatch = self.scrub.suspect
        self.blocks.on_fault = lambda message: self.warn("", message)
        self.afterlook = Afterlook(
            folder, fs, threads, self.disk_lock, noted=self.apply.changed, found=self._recovered
        )

    def _may_work(self) -> bool:
        """True when the disk may be written to: it was looked at once, and nothing forbids it."""
        return self.allowed() and self.scans.first_done

    def _make_merges(self) -> Merges:
        return Merges(
            self.folder,
            self.fs,
            self.threads,
            self.disk_lock,
            self.texts,
            wanted=lambda path: not self._never_merge.ignores(path, is_directory=False),
            dirty=lambda path: self.scans.hint([path]),
            scanned=self.scans.done,
            allowed=self._may_work,
        )

    # --- what people see ------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """`scanning`, `syncing`, `in sync`, `paused` or `stopped`."""
        if self.stopped is not None:
            return "stopped"
        if self.paused:
            return "paused"
        looks_at_all = self.scans.progress is not None and self.scans.progress.full
        if not self.scans.first_done or looks_at_all or self.scans.is_unfinished:
            return "scanning"
        behind = any(
            not self.folder.have.dominates(peer.have)
            for device, peer in self.peers.items()
            if peer.connected and device in self.folder.roster.members
        )
        return "syncing" if self.folder.pending or behind else "in sync"

    def needs(self) -> Needs:
        """How many items need work, and how many bytes are still to come."""
        return Needs(len(self.folder.pending), sum(self.folder.pending.values()))

    def in_sync(self, device: DeviceId) -> bool:
        """True when the device last said that its disk holds our current state."""
        if self.folder.roster.role(device) is Role.RELAY:
            return self.relays.holds_all(device)
        peer = None if self.keepers.is_partial(device) else self.peers.get(device)
        return peer is not None and peer.complete.dominates(self.folder.have)

    def holders(self) -> int:
        """How many devices hold the current state on their disks, this one included."""
        if self.folder.pending or not self.scans.quiet or self.stopped is not None:
            return 0
        return 1 + sum(self.in_sync(device) for device in self.folder.roster.members)

    async def wait_held(self, devices: int) -> None:
        """Return when at least `devices` devices hold what lies on this disk now."""
        if self.folder.tree.totals().files <= SETTLE_SCAN_FILES_MAX and self.allowed():
            await self.scans.scan_now()
        while True:
            seen = self.changed.count
            if self.holders() >= devices:
                return
            await self.changed.wait_past(seen)

    # --- safety rails ---------------------------------------------------------------------------

    def stop(self, reason: str) -> None:
        """Stop the folder and say why; nothing is deleted."""
        if self.stopped is None:
            logger.error("%s stopped: %s", self.path, reason)
            self.stopped = reason
            self.changed.ring()

    def warn(self, path: str, message: str) -> None:
        """Something needs a look; everything else goes on."""
        key = path or message
        if self.warnings.get(key) != message and len(self.warnings) < WARNINGS_MAX:
            self.warnings[key] = message
            logger.warning("%s%s", f"{path}: " if path else "", message)
            self.changed.ring()

    def roster_changed(self) -> None:
        """A roster entry came in or was written: who may connect may be another now."""
        for note in settle_effects(self.folder):
            self.warn("", note)
        self._mind_removal()
        writes = self.folder.roster.may_write(self.folder.identity.device)
        if writes != self._writes:  # local changes may leave now, or some came about
            self._writes = writes
            self.scans.everything()
        self.on_roster()
        self.changed.ring()

    def note(self, key: str, message: str) -> None:
        """As `warn`, about something that goes by `key`: a later note of it takes its place."""
        if self.warnings.get(key) != message:
            self.warnings[key] = message
            logger.warning("%s", message)
            self.changed.ring()

    def _mind_removal(self) -> None:
        """Stop if we were removed; go on if that turns out to be void."""
        removal = self.folder.roster.removed.get(self.folder.identity.device)
        if removal is not None:
            remover = self.folder.name_of(removal.refs[0][0])
            self._removed = (
                f"{remover} removed this device from the folder. Your files here stay as they are; "
                "nothing is sent or received any more. To come back, ask for an invitation and "
                "join with another home (--home): a removed identity stays removed."
            )
            self.stop(self._removed)
        elif self.stopped is not None and self.stopped == self._removed:
            self.stopped = None
            self.set_paused(self.paused)

    def limit_for(self, peer: DeviceId) -> VersionVector | None:
        """What a removed device may still hear: how it was removed. None for members: everything.

        It learns that it was removed, and we what it did before it knew.
        """
        roster = self.folder.roster
        if roster.role(peer) is not None:
            return None
        removal, known = roster.removed.get(peer), EMPTY
        for device, seq in () if removal is None else removal.refs:
            entry = Entry.from_bytes(self.folder.log.entry(device, seq))
            known |= entry.header.deps.with_counter(device, seq)
        return known

    async def wait_told(self, device: DeviceId) -> None:
        """Return when a removed device knows that it was."""
        while True:
            seen = self.changed.count
            removal, peer = self.folder.roster.removed.get(device), self.peers.get(device)
            if removal is None or (peer and any(peer.have.covers(*ref) for ref in removal.refs)):
                return
            await self.changed.wait_past(seen)

    def await_own_log(self) -> None:
        """The index was lost with our own log: write nothing until a peer has told what it has of
        it, or we would sign two entries with one number.
        """
        self.awaits_own_log = True
        self.warn("", "waiting for another device to return what this one had written before")

    def set_paused(self, paused: bool) -> None:
        """Pause or resume scanning, applying and exchanging."""
        self.paused = paused
        if not paused:
            self.scans.everything()
            self.folder.work.ring()
        self.changed.ring()

    def allowed(self) -> bool:
        """False while the folder is paused or stopped: then nothing is scanned or applied."""
        if self.awaits_own_log:
            own, have = self.folder.identity.device, self.folder.have
            told = [peer.have[own] for peer in self.peers.values() if peer.connected]
            self.awaits_own_log = not any(have.covers(own, seq) for seq in told)
        return self.stopped is None and not self.paused and not self.awaits_own_log

    async def root_is_ours(self) -> bool:
        """Ask the disk whether the folder is still the one we know; stop if it is not."""
        known = self.folder.tree.totals().files > EMPTIED_MIN
        try:
            verdict = await self.threads.run(
                lambda: check_root(self.fs, self.marker, had_files=known)
            )
        except OSError as error:
            self.warn("", f"the folder cannot be looked at ({error.strerror}); trying again")
            return False
        if verdict.state is not RootState.OK:
            self.stop(verdict.message)
        return verdict.state is RootState.OK

    async def _root_is_here(self) -> bool:
        return self.stopped is None and await self.root_is_ours()

    # --- services -------------------------------------------------------------------------------

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled."""
        while (notes := await self._prepare()) is None:
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            await trio.sleep(PREPARE_AGAIN_S)
        for note in notes:
            self.warn("", note)
        await self._load_rules()
        async with trio.open_nursery() as nursery:
            send, events = trio.open_memory_channel[WatchEvent](0)
            # Watching begins before the first scan, so that nothing falls between the two.
            await nursery.start(self._watcher.serve, send)
            nursery.start_soon(self._guard, lambda: self._take_hints(events))
            for service in (
                self.scans.serve,
                self.apply.serve,
                self.merges.serve,
                self.base_texts.serve,
                self.blocks.serve,
                self.afterlook.serve,
                self.scrub.serve,
                self.relays.serve,
                self.history.serve,
            ):
                nursery.start_soon(self._guard, service)
            for bell in (self.folder.advanced, self.apply.changed, self.scans.done):
                nursery.start_soon(self._ring_on, bell)
            task_status.started()

    async def _prepare(self) -> list[str] | None:
        """Deal with what a crash left; returns notes for people, None while disk or index fail."""
        self.stopped = None
        if not await self.root_is_ours():
            self.stop("the folder cannot be looked at; nothing was changed")
            return None
        try:
            await self.threads.run(make_layout, self.fs)
            await self.threads.run(self.fs.sync)
            notes = [*recover(self.folder, self.fs), *settle_effects(self.folder)]
            self._mind_removal()
            self.folder.look_at_all()
        except DamagedIndexError as error:
            self._stop_for_damage(error)
            return None
        except OSError as error:
            self.stop(
                f"its disk fails ({error.strerror}), so nothing is sent or changed; your files are "
                "as they are. It is tried again twice a minute."
            )
            return None
        return notes

    def _stop_for_damage(self, error: Exception) -> None:
        """The index cannot be read: note it for the next start, which SQLite may not tell."""
        note_damage(self.folder.database.path, error)
        self.stop(
            f"the index is damaged ({error}). Your files are safe. Start the node again: it puts "
            "the index aside and builds a new one."
        )

    async def _guard(self, service: Callable[[], Awaitable[None]]) -> None:
        """Run a service; start it again if a bug ends it."""
        while True:
            try:
                await service()
            except (sqlite3.DatabaseError, DamagedIndexError) as error:
                if is_damage(error):
                    self._stop_for_damage(error)
                    return
                logger.exception("the index could not be used; trying again")
            except ShoalError as error:
                self.warn("", str(error))
            except Exception:  # a bug in one service must not end the node
                logger.exception("a service failed; it is started again")
            await trio.sleep(RESTART_DELAY_S)

    async def _take_hints(self, events: trio.MemoryReceiveChannel[WatchEvent]) -> None:
        async for event in events:
            match event:
                case Dirty(paths=paths):
                    if {IGNORE_FILE, NO_MERGE_FILE} & set(paths) and await self._load_rules():
                        self.scans.everything()
                        self._look_again()
                    self.scans.hint(paths)
                case Rescan():
                    self.scans.everything()
                case Limited(message=message):
                    self.warn("", message)
                    self.scans.scan_often()

    def _look_again(self) -> None:
        """What was ignored may be wanted now."""
        self.folder.look_at_all()
        self.folder.work.ring()

    async def _ring_on(self, bell: Bell) -> None:
        count = bell.count
        while True:
            count = await bell.wait_past(count)
            self.changed.ring()

    # --- scans ----------------------------------------------------------------------------------

    def _make_scan(self, progress: Callable[[int, int], None]) -> Scan:
        return Scan(
            self.folder,
            self.fs,
            self.threads,
            self.disk_lock,
            ignored=self.ignored,
            may_delete=self.root_is_ours,
            progress=progress,
            reverts=self.local.reverts,
        )

    async def revert(self, prefix: str) -> list[LocalChange]:
        """Throw a reader's changes at `prefix` and below it away; they stay in history.

        Returns: what was thrown away.
        """
        self.local.reverting = prefix
        try:
            before = [one for one in self.local.values() if self.local.reverts(one.path)]
            await self.scans.scan_now()
        finally:
            self.local.reverting = None
        return before

    def _take_report(self, report: ScanReport) -> None:
        if report.full:
            with self.folder.transaction():
                self.folder.disk.forget_intents()
            # Those about a path are found again, or are over.
            self.warnings = {key: why for key, why in self.warnings.items() if key == why}
        for path, why in report.warnings.items():
            self.warn(path, why)
        self.scans.hint(self.local.took(report.local, full=report.full, looked=report.looked))
        self.apply.retry_all()

    def _recovered(self, path: str, message: str) -> None:
        self.warn(path, message)
        self.scans.hint([path])

    def ignored(self, path: str, is_directory: bool) -> bool:
        """True for what `.shoalignore` keeps out, and for what is ours."""
        return self._ignore.ignores(path, is_directory)

    async def _load_rules(self) -> bool:
        """Read what is not to be synced, or not merged; True when it is other than before."""
        before = (self._ignore.text, self._never_merge.text)
        self._ignore = await self._read_rules(IGNORE_FILE)
        self._never_merge = await self._read_rules(NO_MERGE_FILE)
        return before != (self._ignore.text, self._never_merge.text)

    async def _read_rules(self, path: str) -> IgnoreRules:
        rules = await self.threads.run(read_rules, self.fs, path)
        for warning in rules.warnings:
            self.warn(path, warning)
        return rules

    # --- peers ----------------------------------------------------------------------------------

    def set_peer(
        self, device: DeviceId, name: str, have: VersionVector, complete: VersionVector
    ) -> None:
        """A connected peer told its state."""
        if self.folder.roster.role(device) is Role.RELAY:
            self.relays.relay_told(device, have)
        self.peers.told(device, name, have, complete)
        self.blocks.peer_advanced(device)
        self.keepers.look_again()
        self.changed.ring()

    def peer_gone(self, device: DeviceId) -> None:
        """The connection to a peer ended; what it last said stays known."""
        self.keepers.gone(device)
        if device in self.peers:
            self.peers.gone(device)
            self.changed.ring()
