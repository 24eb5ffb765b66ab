"""The Link port: authenticated connections between two devices, and the streams in them.

`transport.quic` is the real one, `transport.memory` the one for tests and simulations; both pass
`tests/conformance/test_link.py`. What every Link promises:

- The peer's key is proven before any application byte moves, in either direction, and `authorize`
  has agreed to it, on both sides: `dial` returns only once the other side has let us in.
- Whatever happens to one connection stays in that connection.
- Memory is bounded: `send_all` waits for a slow receiver.
- A peer that vanishes is noticed within `VANISHED_AFTER_S`.

Concurrency: one trio loop, no threads. One task may send on a stream while another receives from
it; two tasks must not do the same thing to the same stream.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import trio

from crdt.errors import WorldError
from transport.address import Address

if TYPE_CHECKING:
    from crdt.ids import DeviceId
    from transport.identity import Identity

VANISHED_AFTER_S: Final = 20.0  # without any packet; promised in DESIGN section 10
KEEP_ALIVE_S: Final = 15.0  # between pings on an idle connection; below VANISHED_AFTER_S
HANDSHAKE_TIMEOUT_S: Final = 10.0  # from the first packet until both sides have authorized
REASON_SIZE_MAX: Final = 200  # bytes of a close reason; it must fit the closing packet
STREAMS_MAX: Final = 128  # open streams that each side may have started


class CloseCode(enum.IntEnum):
    """Why a connection ends; sent to the peer as QUIC application error code."""

    OK = 0
    NOT_A_MEMBER = 1
    INVITATION_USED = 2
    INVITATION_EXPIRED = 3
    DUPLICATE = 4
    PROTOCOL_ERROR = 5
    VERSION_MISMATCH = 6
    SHUTTING_DOWN = 7
    TOO_BUSY = 8
    WRONG_KEY = 9
    INTERNAL = 10


@dataclass(frozen=True, slots=True)
class Closed:
    """How a connection ended. `code` is None when nobody closed it: the peer vanished, the
    network failed, or the peer used a code that we do not know.
    """

    code: CloseCode | None
    reason: str
    by_peer: bool

    def __str__(self) -> str:
        who = "peer closed" if self.by_peer else "closed"
        code = "connection lost" if self.code is None else f"{who}: {self.code.name}"
        return f"{code} ({self.reason})" if self.reason else code


class LinkClosedError(WorldError):
    """The connection, or this stream of it, is gone."""

    def __init__(self, closed: Closed) -> None:
        super().__init__(str(closed))
        self.closed = closed


class DialError(WorldError):
    """No connection came about. `code` is what the other side (or our own `authorize`) closed
    with; None when nobody answered or the network refused.
    """

    def __init__(self, reason: str, code: CloseCode | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


class Stream(Protocol):
    """Ordered bytes in both directions, multiplexed with the connection's other streams."""

    async def send_all(self, data: bytes) -> None:
        """Queue `data`; waits while too much is unsent or unread at the other end.

        Raises:
            LinkClosedError: the connection died, or the peer gave up this stream.
        """
        ...

    async def receive_some(self) -> bytes:
        """The next bytes, at least one; b"" at the end of the stream.

        Raises:
            LinkClosedError: the connection died, or the peer gave up this stream.
        """
        ...

    async def send_eof(self) -> None:
        """Nothing more will be sent. The other direction is not affected."""
        ...

    async def aclose(self) -> None:
        """Give up both directions as far as they have not ended; idempotent."""
        ...


class Connection(Protocol):
    """One authenticated connection to one device."""

    @property
    def peer(self) -> DeviceId:
        """The key that the peer proved in the handshake."""
        ...

    @property
    def dialled(self) -> bool:
        """True on the side that dialled."""
        ...

    @property
    def address(self) -> Address:
        """The peer's address; for a peer that dialled us, the port it listens on too."""
        ...

    async def open_stream(self) -> Stream:
        """A new stream. The peer learns of it with the first byte sent. Waits while `STREAMS_MAX`
        are open.

        Raises:
            LinkClosedError: the connection is gone.
        """
        ...

    async def accept_stream(self) -> Stream:
        """The next stream that the peer opened.

        Raises:
            LinkClosedError: the connection is gone.
        """
        ...

    async def close(self, code: CloseCode, reason: str = "") -> None:
        """Tell the peer and end the connection; what is still in flight may be lost. Idempotent:
        the first close counts.
        """
        ...

    async def wait_closed(self) -> Closed:
        """Wait until the connection is gone, whoever ended it."""
        ...


Authorize: TypeAlias = "Callable[[DeviceId], CloseCode | None]"
"""None lets the peer in; a code closes with it. Called once, right after the handshake."""

Handler: TypeAlias = Callable[[Connection], Awaitable[None]]
"""Serves one accepted connection in a task of its own. The connection is closed when it returns
or raises; what it raises (except Cancelled) is logged and stays there.
"""


class Link(Protocol):
    """One node's end of the network."""

    @property
    def address(self) -> Address | None:
        """Where we listen; None before `serve` has started."""
        ...

    async def serve(
        self,
        authorize: Authorize,
        handler: Handler,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Carry all connections, dialled ones too, until cancelled or `aclose`; accept new ones.

        Raises:
            WorldError: the address cannot be listened on.
        """
        ...

    async def dial(
        self, address: Address, *, identity: Identity | None = None, authorize: Authorize
    ) -> Connection:
        """Connect; needs a running `serve` and waits for it. Cancelling gives up the attempt.

        Args:
            address: Host name or IP address, and port.
            identity: Whom to be, when not ourselves: an invitation's key pair.
            authorize: Whether the device that answered is one we want.

        Raises:
            DialError: nobody there, another protocol version, or refused by either side.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection with SHUTTING_DOWN and make `serve` return. Idempotent."""
        ...
