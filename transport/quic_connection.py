"""One QUIC connection and its streams, as the application sees them.

    HANDSHAKE ── keys proven, we authorize ──▶ OPEN (accepting side, which sends the greeting)
        │                    └────────────────▶ GREETING ── greeting received ──▶ OPEN (dialler)
        └── refused, timed out, broken ──▶ CLOSED ◀── closed by either side, silence ── from all

With TLS 1.3 the dialler's handshake is done before the other side has seen the dialler's key. So
the accepting side sends one byte on a unidirectional stream, to those it lets in, and the dialler
takes the connection as open only then. A stranger gets no application byte.

The wire half (`receive`, `turn`, `on_timer`) is synchronous, called by the link's tasks. Whatever
it raises ends this connection only: aioquic has bugs that hostile packets reach.
"""

from __future__ import annotations

import enum
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import trio
from aioquic.quic import events

from crdt.errors import PeerError
from transport.address import Address
from transport.link import (
    KEEP_ALIVE_S,
    REASON_SIZE_MAX,
    VANISHED_AFTER_S,
    Authorize,
    CloseCode,
    Closed,
    LinkClosedError,
)
from transport.quic_core import ACK_NOW_PACKETS, QuicCore, QuicOptions
from transport.quic_stream import QuicLinkStream
from transport.quic_udp import Datagram, Sockaddr, to_address

if TYPE_CHECKING:
    from crdt.ids import DeviceId

GREETING: Final = b"\x01"
FAREWELLS_MAX: Final = 3  # repetitions of our closing packet to a peer that goes on talking

_log = logging.getLogger("shoal.transport")


class State(enum.Enum):
    """See the module's docstring."""

    HANDSHAKE = enum.auto()
    GREETING = enum.auto()
    OPEN = enum.auto()
    CLOSED = enum.auto()


class Carrier(Protocol):
    """What a connection needs of its link."""

    def flush(self, connection: QuicLinkConnection) -> None:
        """Let the connection take its turn, and send what comes of it."""
        ...

    def opened(self, connection: QuicLinkConnection) -> None:
        """Both sides have authorized each other."""
        ...

    def id_issued(self, connection: QuicLinkConnection, cid: bytes) -> None:
        """From now on datagrams for `cid` belong to the connection."""
        ...

    def id_retired(self, connection: QuicLinkConnection, cid: bytes) -> None:
        """And no longer."""
        ...


class QuicLinkConnection:
    """See `transport.link.Connection`."""

    def __init__(
        self,
        core: QuicCore,
        carrier: Carrier,
        *,
        dialled: bool,
        remote: Sockaddr,
        authorize: Authorize,
        options: QuicOptions,
        now: float,
    ) -> None:
        self.core: Final = core
        self.dialled: Final = dialled
        self.options: Final = options
        self.state = State.HANDSHAKE
        self.cids: Final[set[bytes]] = set()  # under which the link knows it
        self.settled: Final = trio.Event()  # OPEN or CLOSED
        self._carrier = carrier
        self._authorize = authorize
        self._remote = remote
        self._peer: DeviceId | None = None
        self._closed: Closed | None = None
        self._gone = trio.Event()
        self._streams: dict[int, QuicLinkStream] = {}
        self._incoming: deque[QuicLinkStream] = deque()
        self._arrival: trio.Event | None = None
        self._opening: trio.Event | None = None
        self._deadline = now + options.handshake_timeout_s
        self._heard_at = now
        self._pinged = False
        self._received = 0  # datagrams since the last turn
        self._farewell: list[Datagram] = []
        self._farewells = 0
        self._turning = False
        self.dead = False  # nothing more to send or expect; the link forgets it

    # --- the port

    @property
    def peer(self) -> DeviceId:
        """See `Connection`."""
        assert self._peer is not None, "known once the handshake is done"
        return self._peer

    @property
    def address(self) -> Address:
        """See `Connection`."""
        return to_address(self.core.get_peer_address() or self._remote)

    async def open_stream(self) -> QuicLinkStream:
        """See `Connection`."""
        await trio.lowlevel.checkpoint()
        self.check()
        while not self.core.can_open_stream():
            self._opening = self._opening or trio.Event()
            await self._opening.wait()
            self.check()
        stream_id = self.core.get_next_available_stream_id()
        self.core.send_stream_data(stream_id, b"")  # takes the id; sends nothing yet
        stream = self._streams[stream_id] = QuicLinkStream(self, stream_id)
        return stream

    async def accept_stream(self) -> QuicLinkStream:
        """See `Connection`."""
        await trio.lowlevel.checkpoint()
        while not self._incoming:
            self.check()
            self._arrival = self._arrival or trio.Event()
            await self._arrival.wait()
        return self._incoming.popleft()

    async def close(self, code: CloseCode, reason: str = "") -> None:
        """See `Connection`."""
        self.close_nowait(code, reason)
        await trio.lowlevel.checkpoint()

    async def wait_closed(self) -> Closed:
        """See `Connection`."""
        await self._gone.wait()
        assert self._closed is not None
        return self._closed

    # --- for the streams and the link

    @property
    def closed(self) -> Closed | None:
        """How it ended, if it has."""
        return self._closed

    def check(self) -> None:
        """Raise LinkClosedError unless the connection lives."""
        if self._closed is not None:
            raise LinkClosedError(self._closed)

    def flush(self) -> None:
        """Send what there is to send, unless a turn is under way, which does it anyway."""
        if not self._turning:
            self._carrier.flush(self)

    def release(self, stream: QuicLinkStream) -> None:
        """Forget a stream that is done; if the peer opened it, it may open another."""
        if self._streams.pop(stream.id, None) is not None and not self._is_ours(stream.id):
            self.core.release_stream()

    def close_nowait(self, code: CloseCode, reason: str = "") -> None:
        """See `close`."""
        if self._closed is None:
            text = reason.encode()[:REASON_SIZE_MAX].decode(errors="ignore")
            self.core.close(error_code=code, reason_phrase=text)
            self._end(Closed(code, text, by_peer=False))
            self.flush()

    def lose(self, reason: str) -> None:
        """Nobody is there any more: no use in saying goodbye."""
        self._end(Closed(None, reason, by_peer=False))
        self.dead = True

    def receive(self, data: bytes, sender: Sockaddr, now: float) -> None:
        """A datagram arrived; a turn must follow."""
        self._heard_at = now
        self._pinged = False
        self._received += 1
        self._guard(lambda: self.core.receive_datagram(data, sender, now))

    def on_timer(self, now: float) -> None:
        """Some time of `next_timer` has come; a turn must follow."""
        if self.state in {State.HANDSHAKE, State.GREETING} and now >= self._deadline:
            self.lose(f"no answer within {self.options.handshake_timeout_s:g} s")
        elif self.state is not State.CLOSED and now >= self._heard_at + VANISHED_AFTER_S:
            self.lose(f"nothing heard for {VANISHED_AFTER_S:g} s")
        elif self.state is State.OPEN and not self._pinged and now >= self._ping_at:
            self._pinged = True
            self._guard(lambda: self.core.send_ping(0))
        at = self._core_timer()
        if at is not None and now >= at:
            self._guard(lambda: self.core.handle_timer(now))

    def next_timer(self) -> float | None:
        """When `on_timer` wants to be called."""
        times = [self._core_timer()]
        if self.state in {State.HANDSHAKE, State.GREETING}:
            times.append(self._deadline)
        if self.state is State.OPEN:
            times.append(self._heard_at + VANISHED_AFTER_S if self._pinged else self._ping_at)
        return min((at for at in times if at is not None), default=None)

    def turn(self, now: float) -> list[Datagram]:
        """Act upon what has arrived, and give what to send."""
        datagrams: list[Datagram] = []

        def act() -> None:
            if not self.dialled and not self.core.has_begun:
                self.lose("its first packet was junk")  # a real one will be sent again
                return
            self._handle_events()
            if self._received >= ACK_NOW_PACKETS:
                self.core.hasten_ack(now)
            datagrams.extend(self.core.datagrams_to_send(now))
            self._handle_events()  # sending issues connection ids
            self._find_end()

        self._turning = True
        try:
            self._guard(act)
        finally:
            self._turning = False
        if self.state is State.CLOSED:
            self.dead = self.dead or self.core.terminated
            return self._last_words(datagrams)
        self._received = 0
        self._wake_senders()
        return datagrams

    # --- inside

    @property
    def _ping_at(self) -> float:
        return self._heard_at + KEEP_ALIVE_S

    def _core_timer(self) -> float | None:
        found: list[float | None] = [None]
        self._guard(lambda: found.append(self.core.get_timer()))
        return found[-1]

    def _guard(self, act: Callable[[], None]) -> None:
        """Run `act`; an exception that nobody foresaw ends this connection and no other."""
        if self.dead:
            return
        try:
            act()
        except Exception as error:  # noqa: BLE001 - see the docstring
            _log.warning("connection with %s broke: %r", to_address(self._remote), error)
            self._end(Closed(CloseCode.INTERNAL, f"internal error: {error!r}", by_peer=False))
            self.dead = True

    def _last_words(self, datagrams: list[Datagram]) -> list[Datagram]:
        """Our closing packet, and again when the peer seems to have missed it."""
        if datagrams:
            self._farewell = datagrams
        elif self._received and self._farewells < FAREWELLS_MAX and not self.dead:
            self._farewells += 1
            datagrams = self._farewell
        self._received = 0
        return datagrams

    def _is_ours(self, stream_id: int) -> bool:
        return (stream_id & 1 == 0) is self.dialled

    def _find_end(self) -> None:
        if self._closed is None and (ending := self.core.ending()) is not None:
            if ending.code is CloseCode.PROTOCOL_ERROR and not ending.by_peer:
                _log.warning("%s broke QUIC's rules: %s", self.address, ending.reason)
            self._end(ending)

    def _end(self, closed: Closed) -> None:
        if self._closed is not None:
            return
        self._closed = closed
        self.state = State.CLOSED
        self.settled.set()
        self._gone.set()
        for stream in self._streams.values():
            stream.wake()
        self._streams.clear()
        for event in (self._arrival, self._opening):
            if event is not None:
                event.set()

    def _wake_senders(self) -> None:
        for stream in self._streams.values():
            stream.wake_sender()
        if self._opening is not None and self.core.can_open_stream():
            self._opening.set()
            self._opening = None

    def _handle_events(self) -> None:
        while (event := self.core.next_event()) is not None:
            match event:
                case events.StreamDataReceived():
                    self._on_data(event)
                case events.StreamReset():
                    self._on_reset(event.stream_id)
                case events.ConnectionIdIssued():
                    self._carrier.id_issued(self, event.connection_id)
                case events.ConnectionIdRetired():
                    self._carrier.id_retired(self, event.connection_id)
                case events.HandshakeCompleted():
                    self._on_handshake()
                case _:
                    pass

    def _on_handshake(self) -> None:
        if self.state is not State.HANDSHAKE:
            return
        try:
            self._peer = self.core.proven_peer()
        except PeerError as error:
            self.close_nowait(CloseCode.WRONG_KEY, str(error))
            return
        refusal = self._authorize(self._peer)
        if refusal is not None:
            self.close_nowait(refusal)
        elif self.dialled:
            self.state = State.GREETING
        else:
            stream_id = self.core.get_next_available_stream_id(is_unidirectional=True)
            self.core.send_stream_data(stream_id, GREETING, end_stream=True)
            self._open()

    def _open(self) -> None:
        self.state = State.OPEN
        self.settled.set()
        self._carrier.opened(self)

    def _on_data(self, event: events.StreamDataReceived) -> None:
        if event.stream_id & 2:
            if self.state is not State.GREETING or event.data != GREETING or not event.end_stream:
                self.close_nowait(CloseCode.PROTOCOL_ERROR, "unexpected greeting")
            else:
                self._open()
            return
        if self.state not in {State.GREETING, State.OPEN}:
            return  # nothing is read from a peer that we did not let in
        stream = self._streams.get(event.stream_id)
        if stream is None:
            stream = self._streams[event.stream_id] = QuicLinkStream(self, event.stream_id)
            self._incoming.append(stream)
            if self._arrival is not None:
                self._arrival.set()
                self._arrival = None
        stream.feed(event.data, ended=event.end_stream)

    def _on_reset(self, stream_id: int) -> None:
        if self.state is State.CLOSED or stream_id & 2:
            return
        stream = self._streams.get(stream_id)
        if stream is None:  # given up before its first byte: nobody needs to see it
            stream = self._streams[stream_id] = QuicLinkStream(self, stream_id)
            stream.reset_by_peer()
            stream.give_up()
        else:
            stream.reset_by_peer()
