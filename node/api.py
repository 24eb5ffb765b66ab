"""What a running node answers to the control API (`node.control.facade.NodeFacade`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from crdt.errors import CallerError
from crdt.roster_ops import Add
from crdt.roster_ops import Role as RosterRole
from node.conflicts import answers as conflicts
from node.control.conflict_shapes import ConflictInfo, ConflictTexts
from node.control.facade import (
    Damage,
    Event,
    FolderState,
    FolderStatus,
    FolderWarning,
    HistoryResult,
    Keep,
    KeepResult,
    LocalInfo,
    Needs,
    PeerStatus,
    Phase,
    Progress,
    ResolveResult,
    RestoreResult,
    Status,
    TrashItem,
    VerifyResult,
    WaitResult,
)
from node.history import answers
from node.history.settings import save_policy
from node.open_folder import OpenFolder
from node.people import PeopleApi, role_of
from node.sync.engine import FolderEngine
from node.sync.relays import bring_folder
from node.sync.verify import NOT_MENDED, verify_folder
from transport.address import Address

if TYPE_CHECKING:
    pass


class UnknownFolderError(CallerError):
    """No folder of this node contains the directory."""

    exit_code = 13


class Api(PeopleApi):
    """Implements `NodeFacade` over a running node."""

    def _find(self, directory: str) -> OpenFolder:
        wanted = Path(directory)
        for opened in self._node.folders.values():
            root = Path(opened.config.path)
            if wanted == root or root in wanted.parents:
                return opened
        raise UnknownFolderError(
            f"{directory} is in no folder of this node. `shoal status` lists the folders."
        )

    # --- what is --------------------------------------------------------------------------------

    async def status(self) -> Status:
        """See `NodeFacade`."""
        node = self._node
        return Status(
            device=node.identity.device.text,
            name=node.options.name,
            listening=str(node.listening),
            folders=tuple(self._folder_status(o.engine) for o in node.folders.values()),
        )

    def _folder_status(self, engine: FolderEngine) -> FolderStatus:
        totals, needs = engine.folder.tree.totals(), engine.needs()
        waiting = engine.apply.waiting.items()
        waits = [
            FolderWarning(engine.folder.tree.path(item) or "", why.reason)
            for item, why in waiting
            if not why.quiet
        ]
        return FolderStatus(
            id=engine.folder.id.hex(),
            path=engine.path,
            state=FolderState(engine.state),
            files=totals.files,
            bytes=totals.bytes,
            needs=Needs(needs.files, needs.bytes),
            conflicts=totals.conflicts,
            peers=tuple(self._peers(engine)),
            warnings=tuple(
                FolderWarning(p if p != m else "", m) for p, m in engine.warnings.items()
            )
            + tuple(waits)
            + tuple(FolderWarning(path, NOT_MENDED) for path in engine.rot.damaged()),
            progress=progress_of(engine),
            reason=engine.stopped,
            role=role_of(engine),
            local=tuple(LocalInfo(c.path, c.action, c.was) for c in engine.local.values()),
            unselected=tuple(engine.folder.selection.paths()),
        )

    def _peers(self, engine: FolderEngine) -> list[PeerStatus]:
        found = []
        for device, member in engine.folder.roster.members.items():
            if device != self._node.identity.device:
                peer = engine.peers.get(device)
                connected = peer is not None and peer.connected
                found.append(
                    PeerStatus(device.text, member.name, connected, engine.in_sync(device))
                )
        return found

    async def logs(self, lines: int) -> tuple[str, ...]:
        """See `NodeFacade`."""
        return tuple(self._node.log.lines)[-lines:]

    def events(self) -> trio.MemoryReceiveChannel[Event]:
        """See `NodeFacade`."""
        return self._node.events.subscribe()

    # --- what people do -------------------------------------------------------------------------

    async def add_relay(self, directory: str, *, address: str, token: str) -> str:
        """See `NodeFacade`."""
        node, engine = self._node, self._find(directory).engine
        roster, where = engine.folder.roster, Address.from_text(address)
        if roster.role(node.identity.device) is not RosterRole.OWNER:
            raise CallerError("only an owner of the folder can add a relay; nothing was changed")
        device = await bring_folder(node.link, where, engine.folder.id, token)
        known = roster.members.get(device)
        if known is not None and known.role is not RosterRole.RELAY:
            raise CallerError(f"the device at {where} is a member already; nothing was changed")
        if known is None or known.name != str(where):
            engine.folder.commit_roster([Add(device, RosterRole.RELAY, str(where))])
        engine.roster_changed()
        await node.connections.redial(device)
        return device.text

    async def wait(self, directory: str, *, devices: int, timeout_s: float) -> WaitResult:
        """See `NodeFacade`."""
        engine = self._find(directory).engine
        with trio.move_on_after(timeout_s):
            await engine.wait_held(devices)
            return WaitResult(reached=True, devices=engine.holders())
        return WaitResult(reached=False, devices=engine.holders())

    async def verify(self, directory: str) -> VerifyResult:
        """See `NodeFacade`."""
        found = await verify_folder(self._find(directory).engine)
        return VerifyResult(
            checked=found.files,
            bytes=found.bytes,
            damaged=tuple(d.path for d in found.damaged),
            repaired=tuple(d.path for d in found.damaged if d.repaired),
            details=tuple(Damage(d.path, d.message, d.repaired) for d in found.damaged),
        )

    # --- history --------------------------------------------------------------------------------

    async def history(self, path: str) -> HistoryResult:
        """See `NodeFacade`."""
        engine = self._find(path).engine
        return await answers.history_of(engine, answers.shown_path(engine, path))

    async def restore(
        self, path: str, *, version: str | None, at_ms: int | None, to: str | None
    ) -> RestoreResult:
        """See `NodeFacade`."""
        engine = self._find(path).engine
        inside = answers.shown_path(engine, path)
        return await answers.restore(engine, inside, version=version, at_ms=at_ms, to=to)

    async def trash(self, directory: str) -> tuple[TrashItem, ...]:
        """See `NodeFacade`."""
        engine = self._find(directory).engine
        return answers.trash_of(engine, answers.shown_path(engine, directory))

    async def keep(
        self,
        directory: str,
        *,
        all_s: int | None,
        daily_s: int | None,
        share: float | None,
        size: int | None,
    ) -> KeepResult:
        """See `NodeFacade`."""
        engine = self._find(directory).engine
        before = engine.history.policy
        policy = answers.changed(before, all_s=all_s, daily_s=daily_s, share=share, size=size)
        if policy != before:
            save_policy(self._node.home.directory(engine.folder.id), policy)
            engine.history.policy = policy
        return answers.kept(engine)

    # --- conflicts ------------------------------------------------------------------------------

    async def conflicts(self, directory: str) -> tuple[ConflictInfo, ...]:
        """See `NodeFacade`."""
        engine = self._find(directory).engine
        return conflicts.conflicts_of(engine, answers.shown_path(engine, directory))

    async def conflict(self, path: str) -> ConflictTexts:
        """See `NodeFacade`."""
        engine = self._find(path).engine
        return await conflicts.texts_of(engine, answers.shown_path(engine, path))

    async def resolve(self, path: str, *, keep: Keep, file: str | None) -> ResolveResult:
        """See `NodeFacade`."""
        engine = self._find(path).engine
        return await conflicts.resolve(engine, answers.shown_path(engine, path), keep, file)

    async def pause(self, directory: str) -> None:
        """See `NodeFacade`."""
        self._set_paused(self._find(directory), paused=True)

    async def resume(self, directory: str) -> None:
        """See `NodeFacade`."""
        self._set_paused(self._find(directory), paused=False)

    def _set_paused(self, opened: OpenFolder, *, paused: bool) -> None:
        opened.config = replace(opened.config, paused=paused)
        self._node.home.save(opened.config)
        opened.engine.set_paused(paused)

    async def shutdown(self) -> None:
        """See `NodeFacade`."""
        self._node.stop.set()


def progress_of(engine: FolderEngine) -> Progress | None:
    """Long work in this folder, None when there is none."""
    scan = engine.scans.progress
    if scan is not None and scan.full:
        return Progress(Phase.SCANNING, scan.bytes, 0, scan.files, 0)
    needs = engine.needs()
    if not needs.files:
        return None
    done = engine.blocks.received_size
    files = engine.apply.done_files
    return Progress(Phase.RECEIVING, done, done + needs.bytes, files, files + needs.files)
