"""One stream of a QUIC connection, as the application sees it.

Receiving is bounded by the windows, which follow `_consume`; sending by the options' send buffers,
since aioquic's own are not bounded.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from transport.link import CloseCode, Closed, LinkClosedError

if TYPE_CHECKING:
    from transport.quic_connection import QuicLinkConnection

PIECE_SIZE_MIN: Final = 64 * 1024  # bytes of room before a waiting sender is woken


class QuicLinkStream:
    """See `transport.link.Stream`."""

    def __init__(self, connection: QuicLinkConnection, stream_id: int) -> None:
        self._connection = connection
        self.id: Final = stream_id
        self._chunks: deque[bytes] = deque()
        self._consumed = 0  # bytes that the peer has been credited for
        self._receive_ended = False  # on the wire: nothing more can arrive
        self._given_up = False  # by us: what arrives is thrown away
        self._reset = False  # by the peer
        self._eof_sent = False
        self._send_ended = False  # by us, or refused by the peer
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
            room = self._room()
            if room > 0:
                # Slices are copies: none is made of what fits in one piece.
                whole = sent == 0 and len(data) <= room
                piece = data if whole else data[sent : sent + room]
                sent += len(piece)
                self._connection.core.send_stream_data(self.id, piece)
                self._connection.flush()
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
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._consume(len(data))
        self._maybe_release()
        return data

    async def send_eof(self) -> None:
        """See `Stream`."""
        self._check_sendable()
        self._eof_sent = self._send_ended = True
        self._connection.core.send_stream_data(self.id, b"", end_stream=True)
        self._maybe_release()
        self._connection.flush()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """See `Stream`."""
        self.give_up()
        await trio.lowlevel.checkpoint()

    def give_up(self) -> None:
        """End both directions as far as they have not ended."""
        if self._given_up:
            return
        self._given_up = True
        if self._connection.closed is None:
            core = self._connection.core
            if not self._send_ended:
                core.reset_stream(self.id, CloseCode.OK)
            if not self._receive_ended:
                core.stop_stream(self.id, CloseCode.OK)
            self._send_ended = True
            self._discard()
            self._maybe_release()
            self._connection.flush()
        self.wake()

    # --- for the connection

    def feed(self, data: bytes, *, ended: bool) -> None:
        """Bytes arrived, in order."""
        if data:
            self._chunks.append(data)
        self._receive_ended = self._receive_ended or ended
        if self._given_up:
            self._discard()
        elif self._readable is not None:
            self._readable.set()
        self._maybe_release()

    def reset_by_peer(self) -> None:
        """The peer gave up its direction. What we have not read yet is gone too."""
        self._receive_ended = self._reset = True
        self._chunks.clear()
        self._consume(self._connection.core.received_size(self.id) - self._consumed)
        self._maybe_release()
        if self._readable is not None:
            self._readable.set()

    def wake_sender(self) -> None:
        """If it can go on, or never will."""
        if self._writable is not None and (
            self._room() >= PIECE_SIZE_MIN or not self._connection.core.can_send(self.id)
        ):
            self._writable.set()

    def wake(self) -> None:
        """Both directions, to find out that the connection is gone."""
        for event in (self._readable, self._writable):
            if event is not None:
                event.set()

    @property
    def done(self) -> bool:
        """Neither the wire nor the application needs it any more."""
        return self._receive_ended and self._send_ended and not self._chunks

    # --- inside

    def _room(self) -> int:
        core, options = self._connection.core, self._connection.options
        return min(
            options.stream_send_buffer - core.unacknowledged(self.id),
            options.connection_send_buffer - core.unacknowledged(),
        )

    def _check_sendable(self) -> None:
        self._connection.check()
        if self._eof_sent and not self._given_up:
            raise trio.ClosedResourceError("send_eof was called on this stream")
        if self._given_up or not self._connection.core.can_send(self.id):
            raise LinkClosedError(Closed(None, "the stream was given up", not self._given_up))

    def _discard(self) -> None:
        size = sum(map(len, self._chunks))
        self._chunks.clear()
        self._consume(size)

    def _consume(self, size: int) -> None:
        self._consumed += size
        connection = self._connection
        if (
            size
            and connection.closed is None
            and connection.core.consume(self.id, size, self._consumed)
        ):
            connection.flush()

    def _maybe_release(self) -> None:
        if not self._send_ended and self._receive_ended:
            # Refused by the peer, and nothing to read: there is nothing left to use it for.
            self._send_ended = self._reset and not self._connection.core.can_send(self.id)
        if self.done:
            self._connection.release(self)
