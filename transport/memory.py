"""Links in memory: a network without sockets, for tests and simulations.

Deterministic under trio's MockClock and deterministic scheduling: no threads, no randomness, and
everything moves in order of time. `transport.memory_connection` has the connections.

What goes wrong is up to the test: `partition` (nothing arrives, in one direction or both; after
`VANISHED_AFTER_S` both ends notice), `cut` (connections break at once), `set_delay`, and
`MemoryLink.crash` (a power cut: the others hear nothing).
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from crdt.errors import WorldError
from crdt.ids import DeviceId
from transport.address import Address
from transport.identity import Identity
from transport.link import (
    HANDSHAKE_TIMEOUT_S,
    Authorize,
    CloseCode,
    Closed,
    DialError,
    Handler,
    LinkClosedError,
)
from transport.memory_connection import MemoryConnection

FIRST_PORT: Final = 40_000  # for links that do not care

_log = logging.getLogger("shoal.transport")


class MemoryNetwork:
    """Where `MemoryLink`s find each other by address."""

    def __init__(self, *, delay_s: float = 0.0) -> None:
        """`delay_s` is every path's delay in one direction, unless `set_delay` says otherwise."""
        self._delay_s = delay_s
        self._delays: dict[frozenset[Address], float] = {}
        self._blocked: set[tuple[Address, Address]] = set()  # from, to
        self._links: dict[Address, MemoryLink] = {}
        self._changed = trio.Event()
        self._next_port = FIRST_PORT

    def link(self, identity: Identity, address: Address | None = None) -> MemoryLink:
        """A new end of the network. Without an address, or with port 0, it gets a free one."""
        host = "10.0.0.1" if address is None else address.host
        if address is None or address.port == 0:
            address = Address(host, self._next_port)
            self._next_port += 1
        return MemoryLink(self, identity, address)

    def partition(self, one: Address, other: Address, *, both: bool = True) -> None:
        """From now on nothing passes from one to the other; nor back, unless `both` is False."""
        self._blocked.add((one, other))
        if both:
            self._blocked.add((other, one))
        self._notify()

    def heal(self, one: Address, other: Address) -> None:
        """Undo `partition`. What was sent meanwhile arrives, if the connection still lives."""
        self._blocked -= {(one, other), (other, one)}
        self._notify()

    def set_delay(self, one: Address, other: Address, delay_s: float) -> None:
        """How long a message between the two takes from now on."""
        self._delays[frozenset((one, other))] = delay_s
        self._notify()

    def cut(self, one: Address, other: Address) -> None:
        """Break every connection between the two at once, at both ends."""
        link = self._links.get(one)
        for connection in list(link.connections) if link is not None else []:
            if connection.address == other:
                for end in (connection, connection.other):
                    end.end(Closed(None, "connection cut", by_peer=False))

    # --- for the links

    def delay(self, one: Address, other: Address) -> float:
        """One direction's, in seconds."""
        return self._delays.get(frozenset((one, other)), self._delay_s)

    def is_blocked(self, one: Address, other: Address) -> bool:
        """Whether nothing passes from one to the other."""
        return (one, other) in self._blocked

    def find(self, address: Address) -> MemoryLink | None:
        """Who listens there."""
        return self._links.get(address)

    def join(self, link: MemoryLink) -> None:
        """`link` listens from now on. Raises WorldError if somebody else does."""
        if link.address in self._links:
            raise WorldError(f"cannot listen on {link.address}: another program uses this port")
        self._links[link.address] = link
        self._notify()

    def leave(self, link: MemoryLink) -> None:
        """`link` listens no more."""
        if self._links.get(link.address) is link:
            del self._links[link.address]
        self._notify()

    async def wait_changed(self) -> None:
        """Wait for any change of who can reach whom."""
        await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
        for link in self._links.values():
            for connection in link.connections:
                connection.wake()


class MemoryLink:
    """See `transport.link.Link`."""

    def __init__(self, network: MemoryNetwork, identity: Identity, address: Address) -> None:
        """Made by `MemoryNetwork.link`."""
        self.network: Final = network
        self.address: Final = address
        self.crashed = False
        self.connections: dict[MemoryConnection, None] = {}
        self._identity = identity
        self._authorize: Authorize | None = None
        self._handler: Handler | None = None
        self._nursery: trio.Nursery | None = None
        self._serving = trio.Event()
        self._stopped = trio.Event()
        self._closing = False

    async def serve(
        self,
        authorize: Authorize,
        handler: Handler,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """See `Link`."""
        self._authorize, self._handler = authorize, handler
        self.network.join(self)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._serving.set()
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._shut_down()

    async def dial(
        self, address: Address, *, identity: Identity | None = None, authorize: Authorize
    ) -> MemoryConnection:
        """See `Link`."""
        await self._serving.wait()
        ours = (identity or self._identity).device
        with trio.move_on_after(HANDSHAKE_TIMEOUT_S):
            await self._cross(address)
            target = self.network.find(address)
            while target is None or target.is_gone:
                await self.network.wait_changed()
                target = self.network.find(address)
            if self.is_gone:
                raise DialError("this device is shutting down", CloseCode.SHUTTING_DOWN)
            refusal = authorize(target.device) or target.judge(ours)
            if refusal is not None:
                await self._cross(address, back=True)
                raise DialError(f"{address}: refused ({refusal.name})", refusal)
            connection = MemoryConnection(self, target.device, address, dialled=True)
            connection.join(MemoryConnection(target, ours, self.address, dialled=False))
            try:
                await self._cross(address, back=True)
            except trio.Cancelled:
                connection.close_nowait(CloseCode.OK, "no longer wanted")
                raise
            return connection
        raise DialError(f"cannot reach {address}: no answer within {HANDSHAKE_TIMEOUT_S:g} s")

    async def aclose(self) -> None:
        """See `Link`."""
        if self._nursery is None:
            self._closing = True
            self._serving.set()
            return
        self._shut_down()
        self._nursery.cancel_scope.cancel()
        await self._stopped.wait()

    def crash(self) -> None:
        """Fall silent, as in a power cut; then cancel `serve`. The address is free again."""
        self.crashed = True
        for connection in list(self.connections):
            connection.end(Closed(None, "crashed", by_peer=False))
        self.network.leave(self)

    # --- for the network's other parts

    @property
    def device(self) -> DeviceId:
        """Whom a dialler finds here."""
        return self._identity.device

    @property
    def is_gone(self) -> bool:
        """Whether nothing leaves or enters any more."""
        return self.crashed or self._closing

    def judge(self, peer: DeviceId) -> CloseCode | None:
        """Our own `authorize`."""
        assert self._authorize is not None, "found only while it serves"
        return self._authorize(peer)

    def carry(self, connection: MemoryConnection) -> None:
        """Start the tasks of a new connection's end."""
        assert self._nursery is not None, "connects only while it serves"
        self.connections[connection] = None
        self._nursery.start_soon(connection.carry)
        if not connection.dialled:
            self._nursery.start_soon(self._handle, connection)

    async def _cross(self, address: Address, *, back: bool = False) -> None:
        """Wait as long as a message takes, there or back, longer while nothing passes."""
        way = (address, self.address) if back else (self.address, address)
        await trio.sleep(self.network.delay(*way))
        while self.network.is_blocked(*way):
            await self.network.wait_changed()

    async def _handle(self, connection: MemoryConnection) -> None:
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

    def _shut_down(self) -> None:
        for connection in list(self.connections):
            connection.close_nowait(CloseCode.SHUTTING_DOWN)
            connection.deliver_last()
        self._closing = True
        self.network.leave(self)
        self._stopped.set()
