"""The relay: accepts connections, finds out what each stream is for, and serves it.

Who is let in before a byte is read: members of hosted folders, holders of open invitations to them,
and, as far as the policy goes, strangers, who get a few seconds to bring a folder. One bad peer
loses its connection; a bug in one session ends that session.
"""

from __future__ import annotations

import hmac
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from crdt.errors import PeerError, ShoalError
from crdt.ids import DeviceId, FolderId
from crdt.roster import InvitationState
from node.ports import Clock
from node.relay.deposits import DepositStream
from node.relay.hosted import HostedFolder
from node.relay.joining import serve_join
from node.relay.limits import Counters, Limits
from node.relay.policy import Policy, PolicyKind
from node.relay.rate import Rate
from node.relay.sessions import NAME, ControlSession
from node.relay.storage import Storage
from node.relay.supply import BlockStream
from transport.admission_messages import ThisFolder, WhichFolder
from transport.fields import VersionError
from transport.frames import FrameDecoder, encode
from transport.identity import Identity
from transport.link import CloseCode, Connection, Link, LinkClosedError, Stream
from transport.messages import Bye, Hello, Join, Message, OpenBlocks, Refused
from transport.relay_messages import Host, Hosting, OpenDeposits

logger = logging.getLogger("shoal.relay")

FIRST_MESSAGE_TIMEOUT_S: Final = 10.0
# At once, of one connection for one folder: each may hold one message, of which some are large.
STREAMS_MAX: Final[dict[type[Message], int]] = {
    Hello: 1,
    OpenBlocks: 8,
    OpenDeposits: 8,
    Host: 1,
    Join: 1,
    WhichFolder: 1,
}
_STATE_CODES: Final = {
    InvitationState.USED: CloseCode.INVITATION_USED,
    InvitationState.CLOSED: CloseCode.INVITATION_USED,
    InvitationState.EXPIRED: CloseCode.INVITATION_EXPIRED,
}


@dataclass(slots=True)
class _Peer:
    """One connection."""

    connection: Connection
    known: bool  # a member, or the sponsor of a folder
    streams: Counter[tuple[type[Message], FolderId | None]] = field(default_factory=Counter)


class Relay:
    """See the module."""

    def __init__(
        self,
        link: Link,
        identity: Identity,
        storage: Storage,
        clock: Clock,
        *,
        policy: Policy,
        limits: Limits,
        time_s: Callable[[], int] | None = None,
        is_copy: bool = False,
    ) -> None:
        """Args:
        time_s: The clock of grace periods (`node.relay.upkeep`).
        is_copy: The storage may be older than what members have seen (`node.relay.backup`).
        """
        self._is_copy = is_copy
        self._time_s = time_s or (lambda: clock.wall_ns() // 10**9)
        self.counters = Counters()
        self.folders: dict[FolderId, HostedFolder] = {}
        self._link = link
        self._identity = identity
        self._storage = storage
        self._clock = clock
        self._policy = policy
        self._limits = limits
        self._peers: dict[Connection, _Peer] = {}
        self._by_device: Counter[DeviceId] = Counter()
        self._uploads = trio.CapacityLimiter(limits.uploads_max)
        self._reads = trio.CapacityLimiter(limits.reads_max)
        self._rate_in, self._rate_out = Rate(limits.rate_max), Rate(limits.rate_max)
        self._nursery: trio.Nursery | None = None

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Load the folders, then accept until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for folder in await self._storage.folders():
                await self._open(folder)
            await nursery.start(self._link.serve, self._authorize, self._accept)
            task_status.started()

    async def _open(self, folder: FolderId) -> HostedFolder:
        stored = await self._storage.load(folder)
        hosted = HostedFolder(stored, self._storage, self._identity, self._limits, self.counters)
        await hosted.refresh_usage()
        hosted.own_log_known = not self._is_copy
        self.folders[folder] = hosted
        assert self._nursery is not None
        self._nursery.start_soon(self._watch_roster, hosted)
        return hosted

    @property
    def connected(self) -> set[DeviceId]:
        """The devices that are connected now."""
        return set(self._by_device)

    def lost(self, folder: FolderId) -> None:
        """A stored block of this folder was damaged."""
        self.counters.blocks_lost_total += 1
        self.gone(folder)

    def gone(self, folder: FolderId) -> None:
        """Stored blocks of this folder are there no more."""
        if folder in self.folders:
            self.folders[folder].gone.ring()

    async def _watch_roster(self, hosted: HostedFolder) -> None:
        """Close the connections of whoever is a member of nothing any more."""
        seen = hosted.roster_changed.count
        while True:
            seen = await hosted.roster_changed.wait_past(seen)
            for peer in list(self._peers.values()):
                if peer.known and not self._shared(peer.connection.peer):
                    await peer.connection.close(CloseCode.NOT_A_MEMBER)

    # --- letting in -----------------------------------------------------------------------------

    def _shared(self, peer: DeviceId) -> list[HostedFolder]:
        return [hosted for hosted in self.folders.values() if hosted.role(peer) is not None]

    def _authorize(self, peer: DeviceId) -> CloseCode | None:
        code = self._judge(peer)
        if code is not None:
            self.counters.refused_connections_total += 1
        return code

    def _judge(self, peer: DeviceId) -> CloseCode | None:
        if (
            len(self._peers) >= self._limits.connections_max
            or self._by_device[peer] >= self._limits.connections_per_device_max
        ):
            return CloseCode.TOO_BUSY
        if self._shared(peer):
            return None
        now_s = self._clock.wall_ns() / 1e9
        states = {h.roster.invitation_state(peer, now_s) for h in self.folders.values()}
        if InvitationState.OPEN in states:
            return None
        for state, code in _STATE_CODES.items():
            if state in states:
                self.counters.joins_refused_total += 1
                self.counters.joins_expired_total += state is InvitationState.EXPIRED
                return code
        if not self._policy.may_knock(peer):
            return CloseCode.NOT_A_MEMBER
        strangers = sum(not one.known for one in self._peers.values())
        return None if strangers < self._limits.strangers_max else CloseCode.TOO_BUSY

    # --- one connection -------------------------------------------------------------------------

    async def _accept(self, connection: Connection) -> None:
        device = connection.peer
        peer = self._peers[connection] = _Peer(connection, bool(self._shared(device)))
        self._by_device[device] += 1
        self.counters.connections += 1
        self.counters.connections_total += 1
        code, reason = CloseCode.OK, ""
        try:
            await self._serve_connection(peer)
        except LinkClosedError as error:
            logger.info("connection to %s ended: %s", device.short, error)
        except PeerError as error:
            wrong_version = isinstance(error, VersionError)
            code = CloseCode.VERSION_MISMATCH if wrong_version else CloseCode.PROTOCOL_ERROR
            reason = str(error)
            self.counters.protocol_errors_total += 1
            logger.warning("device %s broke the protocol: %s", device.short, error)
        except ShoalError as error:
            code, reason = CloseCode.INTERNAL, "an error of the relay"
            logger.warning("connection to %s closed: %s", device.short, error)
        except Exception:  # a bug in one session must not end the relay
            code, reason = CloseCode.INTERNAL, "a bug of the relay"
            logger.exception("the session with %s failed", device.short)
        finally:
            del self._peers[connection]
            self._by_device[device] -= 1
            if not self._by_device[device]:
                del self._by_device[device]
            self.counters.connections -= 1
            with trio.CancelScope(shield=True):
                await connection.close(code, reason)

    async def _serve_connection(self, peer: _Peer) -> None:
        async def throw_out_strangers() -> None:
            await trio.sleep(self._limits.stranger_s)
            if not peer.known:
                await peer.connection.close(CloseCode.NOT_A_MEMBER, "said nothing")

        try:
            async with trio.open_nursery() as nursery:
                if not peer.known:
                    nursery.start_soon(throw_out_strangers)
                while True:
                    stream = await peer.connection.accept_stream()
                    nursery.start_soon(self._serve_stream, peer, stream)
        except BaseExceptionGroup as group:
            raise cause(group) from None

    async def _serve_stream(self, peer: _Peer, stream: Stream) -> None:
        decoder = FrameDecoder()
        messages: list[Message] = []
        with trio.move_on_after(FIRST_MESSAGE_TIMEOUT_S) as patience:
            while not messages:
                data = await stream.receive_some()
                if not data:
                    return
                messages = decoder.feed(data)
        if patience.cancelled_caught:
            raise PeerError("opened a stream and said nothing")
        first, rest = messages[0], messages[1:]
        if not isinstance(first, Hello | OpenBlocks | OpenDeposits | Host | Join | WhichFolder):
            raise PeerError(f"began a stream with {type(first).__name__}")
        kind = type(first), None if isinstance(first, WhichFolder) else first.folder
        peer.streams[kind] += 1
        try:
            if peer.streams[kind] > STREAMS_MAX[kind[0]]:
                raise PeerError(f"opened more than {STREAMS_MAX[kind[0]]} streams of a kind")
            match first:
                case Hello():
                    await self._control(peer, stream, decoder, messages)
                case OpenBlocks():
                    await self._blocks(peer, stream, decoder, first, rest)
                case OpenDeposits():
                    await self._deposits(peer, stream, decoder, first, rest)
                case Host():
                    await self._host(peer, stream, first)
                case Join():
                    await self._join(peer, stream, first)
                case WhichFolder():
                    await self._tell_folder(peer, stream)
        finally:
            peer.streams[kind] -= 1
            await stream.aclose()

    def _hosted(self, peer: _Peer, folder: FolderId) -> HostedFolder | None:
        """The folder, if we keep it and the peer is a member of it."""
        hosted = self.folders.get(folder)
        if hosted is None or hosted.role(peer.connection.peer) is None:
            self.counters.unknown_folders_total += 1
            return None
        return hosted

    # --- streams --------------------------------------------------------------------------------

    async def _control(
        self, peer: _Peer, stream: Stream, decoder: FrameDecoder, messages: list[Message]
    ) -> None:
        first = messages[0]
        assert isinstance(first, Hello)
        hosted = self._hosted(peer, first.folder)
        if hosted is None:
            reason = "this relay does not keep the folder, or does not know this device in it"
            await stream.send_all(encode(Bye(int(CloseCode.NOT_A_MEMBER), reason)))
            await stream.send_eof()
            await _drain(stream)
            return
        await ControlSession(hosted, self._storage, peer.connection, stream, decoder).run(messages)

    async def _blocks(
        self,
        peer: _Peer,
        stream: Stream,
        decoder: FrameDecoder,
        first: OpenBlocks,
        rest: list[Message],
    ) -> None:
        hosted = self._hosted(peer, first.folder)
        if hosted is not None:
            served = BlockStream(
                hosted, self._storage, stream, decoder, self.counters, self._reads, self._rate_out
            )
            await _until_given_up(lambda: served.run(rest))

    async def _deposits(
        self,
        peer: _Peer,
        stream: Stream,
        decoder: FrameDecoder,
        first: OpenDeposits,
        rest: list[Message],
    ) -> None:
        hosted = self._hosted(peer, first.folder)
        if hosted is None:
            return
        role = hosted.role(peer.connection.peer)
        if role is None or not role.reads:
            raise PeerError("wants to deposit blocks, which its role does not allow")
        served = DepositStream(
            hosted,
            self._storage,
            peer.connection.peer,
            stream,
            decoder,
            limits=self._limits,
            counters=self.counters,
            places=self._uploads,
            rate=self._rate_in,
            time_s=self._time_s,
        )
        await _until_given_up(lambda: served.run(first, rest))

    async def _host(self, peer: _Peer, stream: Stream, host: Host) -> None:
        """Take a folder in, if the policy has it so."""
        device = peer.connection.peer
        refusal = self._why_not(device, host)
        if refusal:
            self.counters.hosts_refused_total += 1
            logger.warning("device %s may not bring a folder: %s", device.short, refusal)
            await stream.send_all(encode(Refused(int(CloseCode.NOT_A_MEMBER), refusal)))
        else:
            if host.folder not in self.folders:
                await self._storage.host(host.folder, device)
                await self._open(host.folder)
                logger.info("keeping folder %s for %s", host.folder.hex()[:8], device.short)
            peer.known = True
            await stream.send_all(encode(Hosting(NAME)))
        await stream.send_eof()
        await _drain(stream)

    def _why_not(self, device: DeviceId, host: Host) -> str:
        known = self.folders.get(host.folder)
        if known is not None and known.role(device) is not None:
            return ""
        if self._policy.kind is PolicyKind.TOKEN and not hmac.compare_digest(
            host.token.encode(), self._policy.token.encode()
        ):
            self.counters.wrong_tokens_total += 1
            return "the token is wrong" if host.token else "it takes folders by token"
        if self._policy.kind is PolicyKind.OWNERS and device not in self._policy.owners:
            return "it takes folders of certain owners only"
        if known is not None:
            return "it keeps that folder, and does not know this device in it"
        if len(self.folders) >= self._limits.folders_max:
            return "it keeps as many folders as it can"
        return ""

    async def _tell_folder(self, peer: _Peer, stream: Stream) -> None:
        """Tell whoever dialled with an invitation's key which folder it is of."""
        key = peer.connection.peer
        found = next((id_ for id_, h in self.folders.items() if key in h.roster.invitations), None)
        if found is None:
            reason = "this relay does not know the invitation"
            await stream.send_all(encode(Refused(int(CloseCode.NOT_A_MEMBER), reason)))
        else:
            await stream.send_all(encode(ThisFolder(found)))
        await stream.send_eof()
        await peer.connection.wait_closed()

    async def _join(self, peer: _Peer, stream: Stream, join: Join) -> None:
        hosted = self.folders.get(join.folder)
        if hosted is None:
            self.counters.unknown_folders_total += 1
            reason = "this relay does not keep the folder"
            await stream.send_all(encode(Refused(int(CloseCode.NOT_A_MEMBER), reason)))
        elif await serve_join(hosted, peer.connection.peer, stream, join, self._clock):
            self.counters.joins_admitted_total += 1
        else:
            self.counters.joins_refused_total += 1
        await stream.send_eof()
        await peer.connection.wait_closed()


async def _until_given_up(serve: Callable[[], Awaitable[None]]) -> None:
    """Serve a stream; that its opener gives it up is no fault."""
    try:
        await serve()
    except* LinkClosedError:
        pass


async def _drain(stream: Stream) -> None:
    """Wait until the other side has ended the stream: what we said has arrived then."""
    with trio.move_on_after(FIRST_MESSAGE_TIMEOUT_S):
        try:
            while await stream.receive_some():
                pass
        except LinkClosedError:
            pass


def cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error of several that says why; a bug before the peer's fault before the link's."""
    leaves: list[BaseException] = []
    stack: list[BaseException] = [group]
    while stack:
        error = stack.pop()
        if isinstance(error, BaseExceptionGroup):
            stack += error.exceptions
        else:
            leaves.append(error)
    order = (trio.Cancelled, LinkClosedError, PeerError)
    return max(leaves, key=lambda e: order.index(type(e)) if type(e) in order else len(order))
