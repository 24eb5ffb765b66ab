"""Who we talk to: accepts and dials connections, keeps one a device, and runs the folders'
sessions.

A connection is let in when its key is a member of one of our folders, or an open invitation of one.
When both sides dial at once, the connection that the device with the smaller id dialled stays; a
later one by the same dialler replaces the earlier, which may be dead without our knowing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import trio

from crdt.errors import PeerError, ShoalError
from crdt.ids import DeviceId, FolderId
from crdt.roster import InvitationState
from discovery.candidates import Candidates, Source
from node.ports import Clock, Random
from node.sync.admit import serve_join
from node.sync.bell import Bell
from node.sync.engine import FolderEngine
from node.sync.relays import relay_addresses
from node.sync.sessions import run_member
from node.sync.spoken import SpokenCodes
from transport.address import Address
from transport.fields import VersionError
from transport.identity import Identity
from transport.link import CloseCode, Connection, DialError, Link, LinkClosedError

logger = logging.getLogger("shoal.connections")

DIALS_MAX: Final = 8  # at once
SIMULTANEOUS_S: Final = 3.0  # two dials that began within this time may have crossed
FAREWELL_S: Final = 2.0  # for a removed device to hear that it was
LOOK_EVERY_S: Final = 0.1  # at least between two looks at the candidates
_PASSING: Final = frozenset({CloseCode.DUPLICATE, CloseCode.SHUTTING_DOWN, CloseCode.TOO_BUSY})
"""It may well be another answer soon."""


@dataclass(slots=True)
class Live:
    """The connection to one device."""

    connection: Connection
    dialler: DeviceId
    since: float
    ended: trio.Event = field(default_factory=trio.Event)


class Connections:
    """All connections of a node."""

    def __init__(
        self,
        link: Link,
        identity: Identity,
        folders: Mapping[FolderId, FolderEngine],
        candidates: Candidates,
        clock: Clock,
        random: Random,
        *,
        name: str,
    ) -> None:
        self._link = link
        self._identity = identity
        self._folders = folders
        self._candidates = candidates
        self._clock = clock
        self._random = random
        self._name = name
        self._live: dict[DeviceId, Live] = {}
        self._dialling: set[Address] = set()
        self._parted: set[DeviceId] = set()  # removed devices that have been told
        self.spoken = SpokenCodes(identity, random)
        self.wake = Bell()
        self._opened = trio.Event()
        self.on_connected: Callable[[FolderEngine, Address], None] = lambda _engine, _address: None

    @property
    def addresses(self) -> dict[DeviceId, Address]:
        """Every connected device and where it is."""
        return {device: live.connection.address for device, live in self._live.items()}

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Accept and dial until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._link.serve, self._authorize, self._accept)
            task_status.started()
            nursery.start_soon(self._dial_candidates, nursery)

    def open(self) -> None:
        """The folders are there. Before, nobody could be recognised as a member."""
        self._learn_relays()
        self._opened.set()

    # --- letting in -----------------------------------------------------------------------------

    def _authorize(self, peer: DeviceId) -> CloseCode | None:
        if peer == self._identity.device:
            return CloseCode.DUPLICATE
        if not self._opened.is_set():
            return CloseCode.TOO_BUSY
        if self._shared(peer) or self._to_part_from(peer):
            return None
        now_s = self._clock.wall_ns() / 1e9
        states = {e.folder.roster.invitation_state(peer, now_s) for e in self._folders.values()}
        if InvitationState.OPEN in states or self.spoken.is_open:
            return None
        if InvitationState.USED in states or InvitationState.CLOSED in states:
            return CloseCode.INVITATION_USED
        if InvitationState.EXPIRED in states:
            return CloseCode.INVITATION_EXPIRED
        return CloseCode.NOT_A_MEMBER

    def _authorize_member(self, peer: DeviceId) -> CloseCode | None:
        if peer == self._identity.device:
            return CloseCode.DUPLICATE
        known = self._shared(peer) or self._to_part_from(peer)
        return None if known else CloseCode.NOT_A_MEMBER

    def _shared(self, peer: DeviceId) -> list[FolderEngine]:
        return [
            engine
            for engine in self._folders.values()
            if engine.folder.roster.role(peer) is not None
        ]

    def _to_part_from(self, peer: DeviceId) -> list[FolderEngine]:
        """Folders that the device was removed from, until it had a chance to hear of it."""
        if peer in self._parted:
            return []
        return [e for e in self._folders.values() if peer in e.folder.roster.removed]

    async def _accept(self, connection: Connection) -> None:
        if self._shared(connection.peer) or self._to_part_from(connection.peer):
            await self._run(connection)
            return
        for engine in self._folders.values():
            if connection.peer in engine.folder.roster.invitations:
                await serve_join(connection, engine, self._clock)
                return
        await self.spoken.serve(connection)

    # --- one connection -------------------------------------------------------------------------

    async def _run(self, connection: Connection) -> None:
        """Run the folders' sessions over a member's connection until it ends."""
        peer = connection.peer
        dialler = self._identity.device if connection.dialled else peer
        while (known := self._live.get(peer)) is not None:
            # Nobody dials a device that it is connected to. So a connection beside one that has
            # stood for a while says that the old one is dead, though we have not noticed yet.
            fresh = trio.current_time() < known.since + SIMULTANEOUS_S
            if fresh and known.dialler < dialler:
                await connection.close(CloseCode.DUPLICATE, "another connection stays")
                return
            await known.connection.close(CloseCode.DUPLICATE, "another connection stays")
            await known.ended.wait()  # its sessions must be gone before new ones take their place
        live = self._live[peer] = Live(connection, dialler, trio.current_time())
        self._candidates.up(peer)
        logger.info("connected to %s at %s", peer.short, connection.address)
        engines = (*self._shared(peer), *self._to_part_from(peer))
        shared = {engine.folder.id: engine for engine in engines}
        if not self._shared(peer):
            self._part(peer, connection)
        for engine in self._shared(peer):
            engine.warnings.pop(f"{peer.short} refuses", None)
            self.on_connected(engine, connection.address)
        code, reason = CloseCode.OK, ""
        try:
            await run_member(connection, shared, self._name)
        except LinkClosedError as error:
            logger.info("connection to %s ended: %s", peer.short, error)
            self._note_refusal(peer, error.closed.code)
        except PeerError as error:
            wrong_version = isinstance(error, VersionError)
            code = CloseCode.VERSION_MISMATCH if wrong_version else CloseCode.PROTOCOL_ERROR
            reason = str(error)
            logger.warning(
                "device %s broke the protocol and was disconnected: %s", peer.short, error
            )
            for engine in shared.values():
                engine.note(peer.short, f"device {peer.short} broke the protocol: {error}")
        except ShoalError as error:
            code, reason = CloseCode.INTERNAL, "a local error"
            logger.warning("connection to %s closed: %s", peer.short, error)
        except Exception:  # a bug in one session must not end the node
            code, reason = CloseCode.INTERNAL, "a bug"
            logger.exception("the session with %s failed", peer.short)
        finally:
            if self._live.get(peer) is live:
                del self._live[peer]
                jitter = self._random.uniform(0.5, 1.5)
                self._candidates.down(peer, trio.current_time(), jitter)
                for engine in shared.values():
                    engine.peer_gone(peer)
            live.ended.set()
            with trio.CancelScope(shield=True):
                await connection.close(code, reason)
            self.wake.ring()

    def roster_changed(self) -> None:
        """Members changed: close connections to devices that are members of nothing any more, and
        look again at addresses where we did not know each other.
        """
        self._candidates.roster_changed(trio.current_time())
        self._learn_relays()
        self.wake.ring()
        for device, live in list(self._live.items()):
            if not self._shared(device) and device not in self._parted:
                self._part(device, live.connection)

    def _learn_relays(self) -> None:
        """Relays are dialled where the rosters say that they are."""
        for engine in self._folders.values():
            for address in relay_addresses(engine.folder.roster).values():
                self._candidates.add(address, Source.STATIC, trio.current_time())

    async def redial(self, device: DeviceId) -> None:
        """End the connection to a device, so that the next one carries a new folder too."""
        if (live := self._live.get(device)) is not None:
            await live.connection.close(CloseCode.OK, "another folder is shared now")

    def _part(self, peer: DeviceId, connection: Connection) -> None:
        """End the connection to a removed device once it knows, or has had the time to."""
        engines = self._to_part_from(peer)
        self._parted.add(peer)

        async def part() -> None:
            with trio.move_on_after(FAREWELL_S):
                for engine in engines:
                    await engine.wait_told(peer)
            await connection.close(CloseCode.NOT_A_MEMBER)

        trio.lowlevel.spawn_system_task(part)

    def _note_refusal(self, peer: DeviceId, code: int | None) -> None:
        """A member that takes us for none knows something that we do not."""
        if code != CloseCode.NOT_A_MEMBER:
            return
        for engine in self._shared(peer):
            name = engine.folder.name_of(peer)
            engine.note(
                f"{peer.short} refuses",
                f"{name} says that this device is no member of the folder any more. Your files "
                "here stay as they are; ask an owner whether it was removed.",
            )

    # --- dialling -------------------------------------------------------------------------------

    async def _dial_candidates(self, nursery: trio.Nursery) -> None:
        await self._opened.wait()
        while True:
            seen = self.wake.count
            room = DIALS_MAX - len(self._dialling)
            for address in self._candidates.next_dial(trio.current_time())[:room]:
                if address not in self._dialling:
                    self._dialling.add(address)
                    nursery.start_soon(self._dial, address)
            due = self._candidates.next_due()
            soonest = trio.current_time() + LOOK_EVERY_S
            with trio.move_on_at(float("inf") if due is None else max(due, soonest)):
                await self.wake.wait_past(seen)

    async def _dial(self, address: Address) -> None:
        met: list[DeviceId] = []

        def authorize(peer: DeviceId) -> CloseCode | None:
            met.append(peer)
            # Another address of a device that we are connected to already.
            return CloseCode.DUPLICATE if peer in self._live else self._authorize_member(peer)

        try:
            connection = await self._link.dial(address, authorize=authorize)
        except DialError as error:
            logger.debug("cannot reach %s: %s", address, error)
            self._note_failure(address, met, error)
            return
        finally:
            self._dialling.discard(address)
        self._candidates.succeeded(address, trio.current_time(), connection.peer)
        await self._run(connection)

    def _note_failure(self, address: Address, met: list[DeviceId], error: DialError) -> None:
        now, jitter = trio.current_time(), self._random.uniform(0.5, 1.5)
        if met:
            self._note_refusal(met[0], error.code)
        if met and met[0] == self._identity.device:
            self._candidates.ours(address, now)
        elif met and met[0] in self._live:
            self._candidates.reached(address, met[0])
        elif error.code in _PASSING:
            self._candidates.failed(address, now, jitter)
        elif met or error.code is not None:
            self._candidates.refused(address, now, jitter)
        else:
            self._candidates.failed(address, now, jitter)
