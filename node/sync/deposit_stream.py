"""A deposit stream to a relay, as messages (`transport.relay_messages`)."""

from __future__ import annotations

from collections import deque

from transport.frames import RECEIPTS, FrameDecoder, encode
from transport.link import Stream
from transport.messages import Message


class StreamOverError(Exception):
    """The relay ended the stream: something that it kept is there no more; ask it anew."""


class DepositStream:
    """One stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._decoder = FrameDecoder(RECEIPTS)
        self._inbox: deque[Message] = deque()

    async def send(self, message: Message) -> None:
        """Raises LinkClosedError: the connection ended."""
        await self._stream.send_all(encode(message))

    async def next(self) -> Message:
        """The relay's next message.

        Raises:
            StreamOverError: the relay ended the stream.
            PeerError: it broke the protocol.
            LinkClosedError: the connection ended.
        """
        while not self._inbox:
            data = await self._stream.receive_some()
            if not data:
                raise StreamOverError
            self._inbox += self._decoder.feed(data)
        return self._inbox.popleft()

    async def aclose(self) -> None:
        """Done with it."""
        await self._stream.aclose()
