"""The real Link: QUIC over one UDP socket a node, driven by trio.

`transport.quic_core` is the protocol (aioquic, sans-IO), `transport.quic_connection` and
`transport.quic_stream` what the application sees, `transport.quic_door` what strangers get,
`transport.quic_udp` the socket. This module moves bytes and time between them.

Concurrency: three tasks (read, timers, blocked sends) and one for each accepted connection's
handler, all in `serve`'s nursery. Sending happens in whichever task has something to say: it does
not wait, and what the socket does not take stays here until it does. One connection's failure ends
that connection; the socket's failure ends `serve`.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from collections.abc import Iterable
from typing import Final

import trio

from transport.address import Address
from transport.identity import Identity
from transport.link import Authorize, CloseCode, Closed, DialError, Handler, LinkClosedError
from transport.quic_connection import QuicLinkConnection, State
from transport.quic_core import QuicCore, QuicOptions
from transport.quic_door import Admit, Door, destination_cid
from transport.quic_udp import Datagram, Sockaddr, UdpSocket

DIAL_ADDRESSES_MAX: Final = 3  # of a host name, tried one after the other
TIMER_STEP_S: Final = 0.0005  # timers fire this far apart at least; the kernel's are coarser

_log = logging.getLogger("shoal.transport")


class QuicLink:
    """See `transport.link.Link`."""

    def __init__(
        self, identity: Identity, listen: Address, *, options: QuicOptions | None = None
    ) -> None:
        """Nothing happens before `serve`. Port 0 takes any free one, host "::" hears IPv4 too."""
        self._identity = identity
        self._listen = listen
        self._options = options or QuicOptions()
        self._udp: UdpSocket | None = None
        self._door = Door()
        self._by_cid: dict[bytes, QuicLinkConnection] = {}
        self._connections: dict[QuicLinkConnection, None] = {}  # a dict keeps their order
        self._half_open: set[QuicLinkConnection] = set()
        self._backlog: list[Datagram] = []
        self._starved: dict[QuicLinkConnection, None] = {}  # waiting for the backlog to go
        self._blocked = trio.Event()
        self._timers = _Timers()
        self._timer_scope: trio.CancelScope | None = None
        self._nursery: trio.Nursery | None = None
        self._authorize: Authorize = _refuse
        self._handler: Handler | None = None
        self._serving = trio.Event()
        self._stopped = trio.Event()
        self._closing = False

    @property
    def address(self) -> Address | None:
        """See `Link`."""
        return None if self._udp is None else self._udp.address

    async def serve(
        self,
        authorize: Authorize,
        handler: Handler,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """See `Link`."""
        assert self._udp is None, "serve is called once"
        self._udp = UdpSocket(self._listen)
        self._authorize, self._handler = authorize, handler
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for task in (self._read, self._keep_time, self._send_backlog):
                    nursery.start_soon(task)
                self._serving.set()
                task_status.started()
        finally:
            self._shut_down()

    async def dial(
        self, address: Address, *, identity: Identity | None = None, authorize: Authorize
    ) -> QuicLinkConnection:
        """See `Link`."""
        await self._serving.wait()
        if self._closing or self._udp is None:
            raise DialError("this device is shutting down", CloseCode.SHUTTING_DOWN)
        try:
            targets = await self._udp.resolve(address)
        except OSError as error:
            raise DialError(f"cannot reach {address}: {error.strerror or error}") from error
        failure = DialError(f"cannot reach {address}: no address found")
        for target in targets[:DIAL_ADDRESSES_MAX]:
            try:
                return await self._dial_one(address, target, identity, authorize)
            except DialError as error:
                failure = error
                if error.code is not None:
                    break  # somebody answered
        raise failure

    async def aclose(self) -> None:
        """See `Link`."""
        self._closing = True
        if self._nursery is None:
            self._serving.set()
            return
        self._shut_down()
        self._nursery.cancel_scope.cancel()
        await self._stopped.wait()

    # --- dialling

    async def _dial_one(
        self,
        address: Address,
        target: Sockaddr,
        identity: Identity | None,
        authorize: Authorize,
    ) -> QuicLinkConnection:
        if self._closing:
            raise DialError("this device is shutting down", CloseCode.SHUTTING_DOWN)
        now = trio.current_time()
        core = QuicCore(identity or self._identity, self._options)
        connection = self._add(core, target, authorize, dialled=True, now=now)
        core.connect(target, now)
        self.flush(connection)
        try:
            await connection.settled.wait()
        except trio.Cancelled:
            connection.close_nowait(CloseCode.OK, "no longer wanted")
            raise
        if connection.closed is not None:
            raise _dial_error(address, connection.closed)
        return connection

    # --- what a connection needs of us (Carrier)

    def flush(self, connection: QuicLinkConnection) -> None:
        """See `Carrier`."""
        if self._backlog:
            self._starved[connection] = None
            return
        now = trio.current_time()
        self._transmit(connection, connection.turn(now))
        if connection.state is not State.HANDSHAKE:
            self._half_open.discard(connection)
        if not connection.dead:
            self._arm(connection, now)
        if connection.dead:
            self._forget(connection)

    def opened(self, connection: QuicLinkConnection) -> None:
        """See `Carrier`."""
        if connection.dialled:
            return
        if len(self._connections) > self._options.connections_max:
            connection.close_nowait(CloseCode.TOO_BUSY)
        elif self._nursery is not None:
            self._nursery.start_soon(self._handle, connection)

    def id_issued(self, connection: QuicLinkConnection, cid: bytes) -> None:
        """See `Carrier`."""
        self._by_cid[cid] = connection
        connection.cids.add(cid)

    def id_retired(self, connection: QuicLinkConnection, cid: bytes) -> None:
        """See `Carrier`."""
        self._by_cid.pop(cid, None)
        connection.cids.discard(cid)

    # --- tasks

    async def _read(self) -> None:
        assert self._udp is not None
        while not self._closing:  # another task may have closed the socket since we were woken
            await self._udp.wait_readable()
            self._receive(self._udp.receive())

    async def _keep_time(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._timers.next_at()) as self._timer_scope:
                await trio.sleep_forever()
            now = trio.current_time()
            for connection in self._timers.due(now):
                connection.on_timer(now)
                self.flush(connection)

    async def _send_backlog(self) -> None:
        assert self._udp is not None
        while True:
            await self._blocked.wait()
            if self._closing:
                return
            await self._udp.wait_writable()
            sent, _ = self._udp.send(self._backlog)
            del self._backlog[:sent]
            if not self._backlog:
                self._blocked = trio.Event()
                starved, self._starved = self._starved, {}
                for connection in starved:
                    self.flush(connection)

    async def _handle(self, connection: QuicLinkConnection) -> None:
        assert self._handler is not None
        try:
            await self._handler(connection)
        except trio.Cancelled:
            connection.close_nowait(CloseCode.SHUTTING_DOWN)
            raise
        except LinkClosedError as error:  # the usual end, or of one stream
            connection.close_nowait(CloseCode.OK, str(error))
        except Exception:  # noqa: BLE001 - logged, and it ends one connection only
            _log.exception("the handler of a connection failed")
            connection.close_nowait(CloseCode.INTERNAL)
        else:
            connection.close_nowait(CloseCode.OK)

    # --- inside

    def _receive(self, datagrams: Iterable[Datagram]) -> None:
        now = trio.current_time()
        touched: dict[QuicLinkConnection, None] = {}
        for data, sender in datagrams:
            connection = self._by_cid.get(destination_cid(data)) or self._admit(data, sender, now)
            if connection is not None:
                connection.receive(data, sender, now)
                touched[connection] = None
        for connection in touched:
            self.flush(connection)

    def _admit(self, data: bytes, sender: Sockaddr, now: float) -> QuicLinkConnection | None:
        """A connection for a datagram that belongs to none, if it may start one."""
        assert self._udp is not None
        half_open = len(self._half_open)
        if self._closing or half_open >= self._options.half_open_max:
            return None
        verdict = self._door.judge(
            data, sender, validate=half_open >= self._options.half_open_retry, now=now
        )
        if isinstance(verdict, bytes):
            self._udp.send([(verdict, sender)])
        if not isinstance(verdict, Admit):
            return None
        core = QuicCore(
            self._identity,
            self._options,
            original_destination_connection_id=verdict.original_destination_cid,
            retry_source_connection_id=verdict.retry_source_cid,
        )
        connection = self._add(core, sender, self._authorize, dialled=False, now=now)
        self.id_issued(connection, verdict.destination_cid)
        self._half_open.add(connection)
        return connection

    def _add(
        self, core: QuicCore, remote: Sockaddr, authorize: Authorize, *, dialled: bool, now: float
    ) -> QuicLinkConnection:
        connection = QuicLinkConnection(
            core,
            self,
            dialled=dialled,
            remote=remote,
            authorize=authorize,
            options=self._options,
            now=now,
        )
        self._connections[connection] = None
        self.id_issued(connection, core.host_cid)
        return connection

    def _transmit(self, connection: QuicLinkConnection, datagrams: list[Datagram]) -> None:
        if not datagrams or self._udp is None:
            return
        sent, problem = self._udp.send(datagrams)
        if sent < len(datagrams):
            self._backlog += datagrams[sent:]
            self._blocked.set()
        if problem is not None and connection.dialled and connection.state is State.HANDSHAKE:
            connection.lose(problem.strerror or str(problem))

    def _arm(self, connection: QuicLinkConnection, now: float) -> None:
        at = connection.next_timer()
        if at is not None:
            self._timers.set(connection, max(at, now + TIMER_STEP_S))
            if self._timer_scope is not None and at < self._timer_scope.deadline:
                self._timer_scope.deadline = self._timers.next_at()

    def _forget(self, connection: QuicLinkConnection) -> None:
        for cid in connection.cids:
            self._by_cid.pop(cid, None)
        connection.cids.clear()
        self._connections.pop(connection, None)
        self._half_open.discard(connection)
        self._timers.drop(connection)

    def _shut_down(self) -> None:
        self._closing = True
        for connection in list(self._connections):
            connection.close_nowait(CloseCode.SHUTTING_DOWN)
        self._connections.clear()
        if self._udp is not None:
            self._udp.close()
        self._stopped.set()


class _Timers:
    """When each connection wants to be woken. Moving a timer later costs nothing: an entry that
    comes too early is put back.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, QuicLinkConnection]] = []
        self._order = itertools.count()
        self._wanted: dict[QuicLinkConnection, float] = {}
        self._queued: dict[QuicLinkConnection, float] = {}

    def next_at(self) -> float:
        return self._heap[0][0] if self._heap else math.inf

    def set(self, connection: QuicLinkConnection, at: float) -> None:
        self._wanted[connection] = at
        if at < self._queued.get(connection, math.inf):
            self._queued[connection] = at
            heapq.heappush(self._heap, (at, next(self._order), connection))

    def drop(self, connection: QuicLinkConnection) -> None:
        self._wanted.pop(connection, None)
        self._queued.pop(connection, None)

    def due(self, now: float) -> list[QuicLinkConnection]:
        due = []
        while self._heap and self._heap[0][0] <= now:
            at, _, connection = heapq.heappop(self._heap)
            if self._queued.get(connection) != at:
                continue  # of an earlier wish
            del self._queued[connection]
            wanted = self._wanted.pop(connection)
            if wanted <= now:
                due.append(connection)
            else:
                self.set(connection, wanted)
        return due


def _refuse(_peer: object) -> CloseCode:
    return CloseCode.TOO_BUSY


def _dial_error(address: Address, closed: Closed) -> DialError:
    who = str(address)
    match closed.code:
        case CloseCode.VERSION_MISMATCH:
            text = f"{who} speaks another version of the protocol; update shoal on both devices"
        case CloseCode.NOT_A_MEMBER:
            text = f"{who} and this device share no folder"
        case CloseCode.INVITATION_USED:
            text = f"{who} says that the invitation was used already"
        case CloseCode.INVITATION_EXPIRED:
            text = f"{who} says that the invitation has expired"
        case CloseCode.WRONG_KEY:
            text = f"{who} is not the device that was expected"
        case None:
            return DialError(f"cannot reach {who}: {closed.reason or 'no answer'}")
        case _:
            text = f"{who}: {closed}"
    return DialError(text, closed.code)
