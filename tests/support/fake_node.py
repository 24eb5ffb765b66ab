"""A small node that lives in memory: everything the control API asks for, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import trio

from crdt.errors import CallerError
from node.control.client import ControlClient
from node.control.conflict_shapes import ConflictInfo, ConflictText, ConflictTexts, ConflictVersion
from node.control.events import EventBus
from node.control.facade import (
    Damage,
    DeedInfo,
    DeviceInfo,
    Event,
    FolderState,
    FolderStatus,
    FolderWarning,
    HistoryResult,
    InvitationInfo,
    Keep,
    KeepResult,
    LocalInfo,
    Needs,
    PeerStatus,
    Phase,
    Progress,
    ResolveResult,
    RestoreResult,
    Role,
    SelectionInfo,
    Status,
    TrashItem,
    VerifyResult,
    VersionInfo,
    WaitResult,
)
from node.control.server import serve_control

MOMENT = "2026-11-21T08:49:33.123Z"
ME = "A" * 56
PEER = "B" * 56
RELAY = "C" * 56


DEEDS = (
    DeedInfo(MOMENT, ME, "laptop", "moved", "b.txt", was="a.txt"),
    DeedInfo(MOMENT, PEER, "Desk", "joined", "", about="laptop"),
)


class FakeNode:
    """One folder, one peer. Tests change its fields; `failure` is raised by the next call."""

    def __init__(self, path: str) -> None:
        peer = PeerStatus(PEER, "Desk", connected=True, in_sync=True)
        folder = FolderStatus(
            "ab12", path, FolderState.IN_SYNC, 3, 4096, Needs(0, 0), 0, peers=(peer,)
        )
        self.now = Status(ME, "laptop", "0.0.0.0:22071", (folder,))
        self.failure: BaseException | None = None
        self.holders = 2
        self.changed = trio.Event()
        self.cancelled = trio.Event()
        self.stopped = trio.Event()
        self.bus = EventBus()
        self.desk = DeviceInfo(PEER, "Desk", Role.EDITOR, False, False, "Desk")
        self.command = ""
        self.people: list[tuple[object, ...]] = []
        self.relays: list[tuple[str, str]] = []
        self.invited: list[tuple[Role, int, float]] = []
        self.verified = VerifyResult(3, 4096)
        self.versions = (
            VersionInfo("AAAAAAA-7", MOMENT, ME, "laptop", 12, False, True, True),
            VersionInfo("BBBBBBB-12", MOMENT, PEER, "Desk", 11, False, False, False),
        )
        self.restored: list[tuple[str, str | None, int | None, str | None]] = []
        self.kept = KeepResult(2_592_000, 31_536_000, 0.2, 10**10, 2, 500, 10**10)
        copy = ConflictVersion("note (conflict BBBBBBB).md", PEER, "Desk", MOMENT)
        ancestor = ConflictVersion("note.md", PEER, "Desk", MOMENT)
        self.in_conflict: tuple[ConflictInfo, ...] = (
            ConflictInfo("note.md", ME, "laptop", MOMENT, (copy,), ancestor),
        )
        self.resolved: list[tuple[str, Keep, str | None]] = []
        self.log = tuple(f"line {number}" for number in range(5))

    @property
    def folder(self) -> FolderStatus:
        return self.now.folders[0]

    def set_folder(self, **changes: object) -> None:
        """Change fields of the only folder."""
        self.now = replace(self.now, folders=(replace(self.folder, **changes),))  # type: ignore[arg-type]

    def busy(self) -> None:
        """In the middle of a transfer, with something to say."""
        self.set_folder(
            state=FolderState.SYNCING,
            needs=Needs(2, 1000),
            conflicts=1,
            warnings=(FolderWarning("a\x1b[31m\udcff.txt", "permission denied"),),
            progress=Progress(Phase.RECEIVING, 500, 1500, 1, 3),
        )

    async def status(self) -> Status:
        self._check()
        return self.now

    async def invite(self, directory: str, *, role: Role, uses: int, expires_s: float) -> str:
        self._find(directory)
        self.invited.append((role, uses, expires_s))
        return "shoal1-abcd"

    async def add_relay(self, directory: str, *, address: str, token: str) -> str:
        self._find(directory)
        self.relays.append((address, token))
        return RELAY

    async def devices(self, directory: str) -> tuple[DeviceInfo, ...]:
        self._find(directory)
        return (
            DeviceInfo(ME, "laptop", Role.OWNER, True, True, "laptop", MOMENT, 0, True),
            self.desk,
        )

    async def remove(self, directory: str, device: str) -> DeviceInfo:
        self._find(directory)
        self.people.append(("remove", device))
        return self.desk

    async def set_role(
        self, directory: str, device: str, role: Role, may_invite: bool | None
    ) -> DeviceInfo:
        self._find(directory)
        self.people.append(("role", device, role, may_invite))
        return replace(self.desk, role=role, may_invite=bool(may_invite))

    async def say_code(self, directory: str, role: Role) -> str:
        self._find(directory)
        self.people.append(("say", role))
        return "ocean-violin-tiger"

    async def recovery(self, directory: str) -> str:
        self._find(directory)
        return " ".join(["word"] * 24)

    async def deeds(self, path: str, limit: int) -> tuple[DeedInfo, ...]:
        self._find(path)
        return DEEDS[:limit]

    async def hook(self, command: str | None) -> str:
        self.command = self.command if command is None else command
        return self.command

    async def select(self, path: str, lives_here: bool | None) -> SelectionInfo:
        self._find(path)
        if lives_here:
            return SelectionInfo(())
        return SelectionInfo(("photos",), ("photos/only here.jpg",))

    async def revert(self, path: str) -> tuple[LocalInfo, ...]:
        self._find(path)
        return (LocalInfo("a.txt", "edited"), LocalInfo("b.txt", "moved", "c.txt"))

    async def invitations(self, directory: str) -> tuple[InvitationInfo, ...]:
        self._find(directory)
        return (
            InvitationInfo("ABCDEFG", Role.EDITOR, 1, 0, MOMENT, "used up", "laptop", ("Desk",)),
            InvitationInfo("BCDEFGH", Role.READER, 2, 2, MOMENT, "open", "laptop"),
        )

    async def revoke(self, directory: str, invitation: str) -> InvitationInfo:
        self.people.append(("revoke", invitation))
        return replace((await self.invitations(directory))[1], state="revoked")

    async def wait(self, directory: str, *, devices: int, timeout_s: float) -> WaitResult:
        self._find(directory)
        try:
            with trio.move_on_after(timeout_s):
                while self.holders < devices:
                    await self.changed.wait()
                    self.changed = trio.Event()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        return WaitResult(self.holders >= devices, self.holders)

    async def verify(self, directory: str) -> VerifyResult:
        self._find(directory)
        return self.verified

    async def history(self, path: str) -> HistoryResult:
        self._find(path)
        return HistoryResult(Path(path).name, self.versions)

    async def restore(
        self, path: str, *, version: str | None, at_ms: int | None, to: str | None
    ) -> RestoreResult:
        self._find(path)
        self.restored.append((path, version, at_ms, to))
        return RestoreResult((Path(path).name,), complete=True)

    async def trash(self, directory: str) -> tuple[TrashItem, ...]:
        self._find(directory)
        return (TrashItem("old\x1b[31m.txt", MOMENT, PEER, "Desk", 5, "file"),)

    async def keep(
        self,
        directory: str,
        *,
        all_s: int | None,
        daily_s: int | None,
        share: float | None,
        size: int | None,
    ) -> KeepResult:
        self._find(directory)
        changes = {"all_s": all_s, "daily_s": daily_s, "share": share, "size": size}
        given = {name: value for name, value in changes.items() if value is not None}
        self.kept = replace(self.kept, **given)  # type: ignore[arg-type]
        return self.kept

    async def conflicts(self, directory: str) -> tuple[ConflictInfo, ...]:
        self._find(directory)
        return self.in_conflict

    async def conflict(self, path: str) -> ConflictTexts:
        self._find(path)
        (one,) = self.in_conflict
        shown = ConflictVersion(one.path, one.device, one.name, one.time)
        return ConflictTexts(
            one.path,
            (ConflictText(shown, "a\nmine\n"), ConflictText(one.copies[0], "a\ntheirs\n")),
            None if one.ancestor is None else ConflictText(one.ancestor, "a\nb\n"),
        )

    async def resolve(self, path: str, *, keep: Keep, file: str | None) -> ResolveResult:
        self._find(path)
        self.resolved.append((path, keep, file))
        return ResolveResult((Path(path).name,), complete=True)

    async def pause(self, directory: str) -> None:
        self._find(directory)
        self.set_folder(state=FolderState.PAUSED)

    async def resume(self, directory: str) -> None:
        self._find(directory)
        self.set_folder(state=FolderState.IN_SYNC)

    async def logs(self, lines: int) -> tuple[str, ...]:
        self._check()
        return self.log[-lines:]

    def events(self) -> trio.MemoryReceiveChannel[Event]:
        self._check()
        return self.bus.subscribe()

    async def shutdown(self) -> None:
        self._check()
        self.stopped.set()

    def rot(self, *, repaired: bool) -> None:
        """Let `verify` find something."""
        self.verified = VerifyResult(
            3,
            4096,
            damaged=("a.txt",),
            repaired=("a.txt",) if repaired else (),
            details=(Damage("a.txt", "wrong content", repaired),),
        )

    def _check(self) -> None:
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure

    def _find(self, directory: str) -> None:
        self._check()
        if not Path(directory).is_relative_to(self.folder.path):
            raise CallerError(f"{directory} lies in no folder of this node. Nothing was changed.")


@contextlib.asynccontextmanager
async def serving(node: FakeNode, home: Path) -> AsyncIterator[None]:
    """The real server, on a real socket, until the block ends."""
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, node, home)
        yield
        nursery.cancel_scope.cancel()


@contextlib.contextmanager
def client(home: Path) -> Iterator[ControlClient]:
    with ControlClient(home) as one:
        yield one
