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
from dataclasses import dataclass, replace
from typing import Final

import trio

from crdt.errors import ShoalError
from crdt.ids import DeviceId, ItemId
from crdt.version_vector import VersionVector
from node.files.ignore import IGNORE_FILE, IgnoreRules
from node.files.port import FileSystem
from node.files.root_marker import RootState, check_root
from node.files.watcher import Watcher, WatchEvent
from node.index.database import is_damage
from node.ports import Threads
from node.sync.apply import Apply
from node.sync.assemble import Assembler
from node.sync.bell import Bell
from node.sync.blocks import BlockExchange
from node.sync.folder import Folder
from node.sync.intake import Intake
from node.sync.recovery import recover
from node.sync.scan import Scan, ScanReport
from node.sync.watch import ScanService

logger = logging.getLogger("shoal.engine")

RESTART_DELAY_S: Final = 1.0  # before a service that failed is started again
SETTLE_SCAN_FILES_MAX: Final = 50_000  # below this `wait` looks at every file first
WARNINGS_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class PeerState:
    """What a peer last said of itself."""

    device: DeviceId
    connected: bool
    have: VersionVector
    complete: VersionVector


@dataclass(frozen=True, slots=True)
class Needs:
    """What this disk still lacks."""

    files: int
    bytes: int


class FolderEngine:
    """Runs one folder."""

    def __init__(
        self,
        *,
        folder: Folder,
        path: str,
        marker: str,
        fs: FileSystem,
        threads: Threads,
        watcher: Watcher,
        paused: bool = False,
    ) -> None:
        self.folder = folder
        self.path = path
        self.marker = marker
        self.paused = paused
        self.stopped: str | None = None
        self.warnings: dict[str, str] = {}
        self.peers: dict[DeviceId, PeerState] = {}
        self.changed = Bell()  # anything that `status` shows
        self.intake = Intake(folder)
        self._fs = fs
        self._threads = threads
        self._watcher = watcher
        self._disk_lock = trio.Lock()
        self._ignore = IgnoreRules.parse("")
        self.blocks = BlockExchange(folder, fs, threads)
        self.scans = ScanService(
            self._make_scan, allowed=self._allowed, on_report=self._take_report
        )
        self.apply = Apply(
            folder,
            fs,
            threads,
            self._disk_lock,
            Assembler(fs, threads, self.blocks),
            ignored=self._ignored,
            dirty=lambda path: self.scans.hint([path]),
            allowed=lambda: self._allowed() and self.scans.first_done,
        )

    # --- what people see ------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """`scanning`, `syncing`, `in sync`, `paused` or `stopped`."""
        if self.stopped is not None:
            return "stopped"
        if self.paused:
            return "paused"
        if not self.scans.first_done or (self.scans.progress and self.scans.progress.full):
            return "scanning"
        behind = any(
            not self.folder.have.dominates(peer.have)
            for peer in self.peers.values()
            if peer.connected
        )
        return "syncing" if self.folder.pending or behind else "in sync"

    def needs(self) -> Needs:
        """How many files, and bytes of them, are still to come."""
        files = size = 0
        for item in list(self.folder.pending):
            row = self.folder.tree.row(item)
            if row is not None:
                known = self.folder.disk.get(item)
                files += 1
                if known is None or known.digest != row.content.digest:
                    size += row.content.size
        return Needs(files, size)

    def in_sync(self, device: DeviceId) -> bool:
        """True when the device last said that its disk holds our current state."""
        peer = self.peers.get(device)
        return peer is not None and peer.complete.dominates(self.folder.have)

    def holders(self) -> int:
        """How many devices hold the current state on their disks, this one included."""
        if self.folder.pending or not self.scans.quiet or self.stopped is not None:
            return 0
        return 1 + sum(self.in_sync(device) for device in self.peers)

    async def wait_held(self, devices: int) -> None:
        """Return when at least `devices` devices hold what lies on this disk now."""
        if self.folder.tree.totals().files <= SETTLE_SCAN_FILES_MAX and self._allowed():
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

    def set_paused(self, paused: bool) -> None:
        """Pause or resume scanning, applying and exchanging."""
        self.paused = paused
        if not paused:
            self.scans.everything()
            self.folder.work.ring()
        self.changed.ring()

    def _allowed(self) -> bool:
        return self.stopped is None and not self.paused

    async def root_is_ours(self) -> bool:
        """Ask the disk whether the folder is still the one we know; stop if it is not."""
        known = self.folder.disk.has_children(ItemId(bytes(16)))
        verdict = await self._threads.run(check_root, self._fs, self.marker, known)
        if verdict.state is not RootState.OK:
            self.stop(verdict.message)
        return verdict.state is RootState.OK

    # --- services -------------------------------------------------------------------------------

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled."""
        if not await self.root_is_ours():
            task_status.started()
            await trio.sleep_forever()
        for note in await self._threads.run(recover, self.folder, self._fs):
            self.warnings[note] = note
        await self._load_ignore()
        self.folder.look_at_all()
        async with trio.open_nursery() as nursery:
            for service in (self._watch, self.scans.serve, self.apply.serve, self._forward):
                nursery.start_soon(self._guard, service)
            nursery.start_soon(self._guard, self.blocks.serve)
            task_status.started()

    async def _guard(self, service: Callable[[], Awaitable[None]]) -> None:
        """Run a service; start it again if a bug ends it."""
        while True:
            try:
                await service()
            except sqlite3.DatabaseError as error:
                if is_damage(error):
                    self.stop(
                        f"the index is damaged ({error}). Your files are safe. Start the node "
                        "again: it puts the index aside and builds a new one."
                    )
                    return
                logger.exception("the index could not be used; trying again")
            except ShoalError as error:
                logger.warning("%s", error)
                self.warnings["service"] = str(error)
            except Exception:  # a bug in one service must not end the node
                logger.exception("a service failed; it is started again")
            self.folder.database.reset()
            await trio.sleep(RESTART_DELAY_S)

    async def _watch(self) -> None:
        async def take(event: WatchEvent) -> None:
            if event.rescan:
                self.scans.everything()
                if event.message:
                    self.warnings["watcher"] = event.message
            else:
                self.scans.hint(event.paths)

        await self._watcher.serve(take)

    async def _forward(self) -> None:
        """Whatever rings anywhere may change the status."""
        async with trio.open_nursery() as nursery:
            for bell in (self.folder.advanced, self.apply.changed, self.scans.done):
                nursery.start_soon(self._ring_on, bell)

    async def _ring_on(self, bell: Bell) -> None:
        count = bell.count
        while True:
            count = await bell.wait_past(count)
            self.changed.ring()

    # --- scans ----------------------------------------------------------------------------------

    def _make_scan(self, progress: Callable[[int, int], None]) -> Scan:
        return Scan(
            self.folder,
            self._fs,
            self._threads,
            self._disk_lock,
            ignored=self._ignored,
            may_delete=self.root_is_ours,
            progress=progress,
        )

    def _take_report(self, report: ScanReport) -> None:
        if report.full:
            self.warnings = {}
        for path, why in list(report.warnings.items())[:WARNINGS_MAX]:
            self.warnings[path] = why
        self.apply.retry_all()

    def _ignored(self, path: str, is_directory: bool) -> bool:
        return self._ignore.ignores(path, is_directory)

    async def _load_ignore(self) -> None:
        def read() -> str:
            try:
                with self._fs.open_read(IGNORE_FILE) as handle:
                    return handle.read_at(0, 1024 * 1024).decode(errors="replace")
            except OSError:
                return ""

        self._ignore = IgnoreRules.parse(await self._threads.run(read))

    # --- peers ----------------------------------------------------------------------------------

    def set_peer(
        self, device: DeviceId, have: VersionVector, complete: VersionVector
    ) -> None:
        """A connected peer told its state."""
        self.peers[device] = PeerState(device, True, have, complete)
        self.changed.ring()

    def peer_gone(self, device: DeviceId) -> None:
        """The connection to a peer ended; what it last said stays known."""
        if device in self.peers:
            self.peers[device] = replace(self.peers[device], connected=False)
            self.changed.ring()
