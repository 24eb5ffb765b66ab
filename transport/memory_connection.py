"""Connections and streams of `transport.memory`.

Each end of a connection has a task in its link's `serve`, which runs the end's messages at the
other end after the path's delay, in order, and waits while the path is blocked.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from transport.address import Address
from transport.link import STREAMS_MAX, VANISHED_AFTER_S, CloseCode, Closed, LinkClosedError

if TYPE_CHECKING:
    from crdt.ids import DeviceId
    from transport.memory import MemoryLink

BUFFER_SIZE: Final = 2**20  # bytes sent and not consumed, a stream; like the real one's

_Message: TypeAlias = Callable[[], None]


class MemoryConnection:
    """See `transport.link.Connection`. `other` is the same connection at the other end."""

    other: MemoryConnection

    def __init__(self, link: MemoryLink, peer: DeviceId, address: Address, *, dialled: bool):
        """Made by `MemoryLink.dial`, in pairs that `join` puts together."""
        self.peer: Final = peer
        self.address: Final = address
        self.dialled: Final = dialled
        self.closed: Closed | None = None
        self.link: Final = link
        self._gone = trio.Event()
        self._outbox: deque[tuple[float, _Message]] = deque()
        self._wake = trio.Event()
        self._streams: dict[int, MemoryStream] = {}
        self._incoming: deque[MemoryStream] = deque()
        self._changed = trio.Event()
        self._next_id = 0 if dialled else 1
        self._done: set[int] = set()  # ids whose late messages open nothing

    def join(self, other: MemoryConnection) -> None:
        """Make the two ends one connection, and start it."""
        self.other, other.other = other, self
        for end in (self, other):
            end.link.carry(end)

    async def open_stream(self) -> MemoryStream:
        """See `Connection`."""
        await trio.lowlevel.checkpoint()
        self.check()
        while sum(1 for one in self._streams if one & 1 == self._next_id & 1) >= STREAMS_MAX:
            await self._changed.wait()
            self.check()
        stream = self._streams[self._next_id] = MemoryStream(self, self._next_id)
        self._next_id += 2
        return stream

    async def accept_stream(self) -> MemoryStream:
        """See `Connection`."""
        await trio.lowlevel.checkpoint()
        while not self._incoming:
            self.check()
            await self._changed.wait()
        return self._incoming.popleft()

    async def close(self, code: CloseCode, reason: str = "") -> None:
        """See `Connection`."""
        self.close_nowait(code, reason)
        await trio.lowlevel.checkpoint()

    async def wait_closed(self) -> Closed:
        """See `Connection`."""
        await self._gone.wait()
        assert self.closed is not None
        return self.closed

    # --- for the streams and the link

    def close_nowait(self, code: CloseCode, reason: str = "") -> None:
        """See `close`."""
        if self.closed is None:
            self.send(lambda: self.other.end(Closed(code, reason, by_peer=True)))
            self.end(Closed(code, reason, by_peer=False))

    def check(self) -> None:
        """Raise LinkClosedError unless the connection lives."""
        if self.closed is not None:
            raise LinkClosedError(self.closed)

    def end(self, closed: Closed) -> None:
        """It is over at this end."""
        if self.closed is None:
            self.closed = closed
            self._gone.set()
            for stream in list(self._streams.values()):
                stream.wake()
            self._streams.clear()
            self._notify()
            self._wake.set()

    def send(self, message: _Message) -> None:
        """Have `message` run at the other end, in order, after the path's delay."""
        delay = self.link.network.delay(self.link.address, self.address)
        self._outbox.append((trio.current_time() + delay, message))
        self.wake()

    def deliver_last(self) -> None:
        """What is still to be sent, now: the task that would carry it ends."""
        while self._outbox and not self._is_blocked():
            self._outbox.popleft()[1]()

    def wake(self) -> None:
        """There is something to carry, or the path has changed."""
        self._wake.set()

    def find(self, stream_id: int) -> MemoryStream | None:
        """A stream that both ends know."""
        return self._streams.get(stream_id)

    def find_or_accept(self, stream_id: int) -> MemoryStream | None:
        """The same; or a new one if the peer has just opened it."""
        stream = self._streams.get(stream_id)
        is_theirs = (stream_id & 1 == 0) is not self.dialled
        if stream is None and is_theirs and stream_id not in self._done and self.closed is None:
            stream = self._streams[stream_id] = MemoryStream(self, stream_id)
            self._incoming.append(stream)
            self._notify()
        return stream

    def forget(self, stream: MemoryStream) -> None:
        """Both directions ended, and everything was read."""
        if self._streams.pop(stream.id, None) is not None:
            self._done.add(stream.id)
            self._notify()

    async def carry(self) -> None:
        """Deliver what this end sends, until the connection is over."""
        silent_since: float | None = None
        while self.closed is None or (self._outbox and not self.link.crashed):
            self._wake = trio.Event()
            if not (self._is_blocked() or self.other._is_blocked()):  # noqa: SLF001 - the same class
                silent_since = None
            elif silent_since is None:
                silent_since = trio.current_time()
            elif trio.current_time() >= silent_since + VANISHED_AFTER_S:
                self.end(Closed(None, f"nothing heard for {VANISHED_AFTER_S:g} s", False))
                self._outbox.clear()
                break
            vanished_at = math.inf if silent_since is None else silent_since + VANISHED_AFTER_S
            with trio.move_on_at(vanished_at):
                if self._is_blocked() or not self._outbox:
                    await self._wake.wait()
                else:
                    await trio.sleep_until(self._outbox[0][0])
                    if self._outbox and not self._is_blocked():
                        self._outbox.popleft()[1]()
        self.link.connections.pop(self, None)  # a cancelled task leaves it to `deliver_last`

    def _is_blocked(self) -> bool:
        """Whether nothing that this end sends arrives."""
        return self.other.link.is_gone or self.link.network.is_blocked(
            self.link.address, self.address
        )

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class MemoryStream:
    """See `transport.link.Stream`."""

    def __init__(self, connection: MemoryConnection, stream_id: int) -> None:
        """Made by the connection."""
        self.id: Final = stream_id
        self._connection = connection
        self._chunks: deque[bytes] = deque()
        self._in_flight = 0  # bytes sent that the other end has not consumed
        self._receive_ended = False
        self._send_ended = False
        self._reset = False  # the peer gave up sending
        self._refused = False  # the peer gave up receiving
        self._given_up = False  # we gave up both
        self._readable: trio.Event | None = None
        self._writable: trio.Event | None = None

    async def send_all(self, data: bytes) -> None:
        """See `Stream`."""
        await trio.lowlevel.checkpoint()
        if self._writable is not None:
            raise trio.BusyResourceError("another task is sending on this stream")
        sent = 0
        while True:
            self._check_sendable()
            piece = data[sent : sent + BUFFER_SIZE - self._in_flight]
            if piece:
                self._in_flight += len(piece)
                sent += len(piece)
                self._post(piece, ended=False)
            if sent >= len(data):
                return
            self._writable = trio.Event()
            try:
                await self._writable.wait()
            finally:
                self._writable = None

    async def receive_some(self) -> bytes:
        """See `Stream`."""
        await trio.lowlevel.checkpoint()
        while not self._chunks:
            if self._reset or self._given_up:
                raise LinkClosedError(Closed(None, "the stream was given up", self._reset))
            if self._receive_ended:
                return b""
            self._connection.check()
            if self._readable is not None:
                raise trio.BusyResourceError("another task is receiving from this stream")
            self._readable = trio.Event()
            try:
                await self._readable.wait()
            finally:
                self._readable = None
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._consume(len(data))
        self._maybe_forget()
        return data

    async def send_eof(self) -> None:
        """See `Stream`."""
        self._check_sendable()
        self._send_ended = True
        self._post(b"", ended=True)
        self._maybe_forget()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """See `Stream`."""
        if not self._given_up:
            self._given_up = True
            sent, stopped = not self._send_ended, not self._receive_ended
            self._send_ended = self._receive_ended = True
            self._consume(sum(map(len, self._chunks)))
            self._chunks.clear()
            if self._connection.closed is None and (sent or stopped):
                other, stream_id = self._connection.other, self.id
                self._connection.send(lambda: _give_up(other, stream_id, sent, stopped))
            self._maybe_forget()
            self.wake()
        await trio.lowlevel.checkpoint()

    # --- for the connection and the other end

    def feed(self, data: bytes, *, ended: bool) -> None:
        """Bytes arrived."""
        if self._given_up:
            self._consume(len(data))
            return
        if data:
            self._chunks.append(data)
        self._receive_ended = self._receive_ended or ended
        self._maybe_forget()
        _set(self._readable)

    def credit(self, size: int) -> None:
        """The other end consumed that much."""
        self._in_flight -= size
        _set(self._writable)

    def given_up_by_peer(self, *, sending: bool, receiving: bool) -> None:
        """The peer's `aclose`."""
        if sending and not self._receive_ended:
            self._reset = self._receive_ended = True
            self._chunks.clear()
        if receiving and not self._send_ended:
            self._refused = self._send_ended = True
        self._maybe_forget()
        self.wake()

    def wake(self) -> None:
        """Both directions, to find out what happened."""
        _set(self._readable)
        _set(self._writable)

    # --- inside

    def _post(self, data: bytes, *, ended: bool) -> None:
        other, stream_id = self._connection.other, self.id

        def arrive() -> None:
            stream = other.find_or_accept(stream_id)
            if stream is not None:
                stream.feed(data, ended=ended)

        self._connection.send(arrive)

    def _consume(self, size: int) -> None:
        other, stream_id = self._connection.other, self.id

        def arrive() -> None:
            stream = other.find(stream_id)
            if stream is not None:
                stream.credit(size)

        if size and self._connection.closed is None:
            self._connection.send(arrive)

    def _check_sendable(self) -> None:
        self._connection.check()
        if self._given_up or self._refused:
            raise LinkClosedError(Closed(None, "the stream was given up", self._refused))
        if self._send_ended:
            raise trio.ClosedResourceError("send_eof was called on this stream")

    def _maybe_forget(self) -> None:
        if self._receive_ended and self._send_ended and not self._chunks:
            self._connection.forget(self)


def _give_up(end: MemoryConnection, stream_id: int, sending: bool, receiving: bool) -> None:
    stream = end.find(stream_id)
    if stream is not None:
        stream.given_up_by_peer(sending=sending, receiving=receiving)


def _set(event: trio.Event | None) -> None:
    if event is not None:
        event.set()
