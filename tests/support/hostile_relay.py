"""A relay that does as a script says: a real one, whose every word passes through the script.

A script is given each message on its way to a member, and says what goes out instead: messages, or
bytes that are none. It may also open streams of its own and change what it remembers. Waiting takes
no time (`autojump_clock`).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable

import trio

from crdt.ids import DeviceId
from tests.support.relay_world import RelayHost
from transport.address import Address
from transport.frames import (
    ADMISSION,
    BLOCKS,
    CONTROL,
    HOSTING,
    RECEIPTS,
    FrameDecoder,
    encode,
)
from transport.link import CloseCode, Closed, Connection, LinkClosedError, Stream
from transport.messages import Message

Words = Iterable[Message | bytes]
Script = Callable[["HostileRelay", Message], Words]
ALL = CONTROL | BLOCKS | ADMISSION | HOSTING | RECEIPTS


def honest(_: HostileRelay, message: Message) -> Words:
    """As a relay should."""
    return [message]


class HostileRelay(RelayHost):
    """See the module. `script` may be changed while it runs."""

    script: Script = staticmethod(honest)
    on_connect: Callable[[HostileRelay, Connection], object] | None = None
    slow_s = 0.0  # between two bytes of what it says

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self.memory: dict[str, object] = {}
        self.peer: DeviceId  # whom the script speaks to now
        self.said = 0  # messages that the script changed

    @contextlib.asynccontextmanager
    async def awake(self) -> AsyncIterator[RelayHost]:
        """Run it, with everything that it accepts wrapped."""
        async with super().awake():
            accept = self.relay._accept

            async def wrapped(connection: Connection) -> None:
                if self.on_connect is not None:
                    nursery = self.relay._nursery
                    assert nursery is not None
                    nursery.start_soon(self._misbehave, connection)
                await accept(_Connection(self, connection))

            link = self.relay._link
            link._handler = wrapped  # type: ignore[attr-defined]
            yield self

    async def _misbehave(self, connection: Connection) -> None:
        assert self.on_connect is not None
        with contextlib.suppress(LinkClosedError):
            await self.on_connect(self, connection)  # type: ignore[misc]

    def words(self, peer: DeviceId, message: Message) -> list[bytes]:
        self.peer = peer
        out = list(self.script(self, message))
        self.said += out != [message]
        return [one if isinstance(one, bytes) else encode(one) for one in out]


class _Connection:
    """A `Connection` whose streams are the script's."""

    def __init__(self, relay: HostileRelay, inner: Connection) -> None:
        self._relay = relay
        self._inner = inner

    @property
    def peer(self) -> DeviceId:
        return self._inner.peer

    @property
    def dialled(self) -> bool:
        return self._inner.dialled

    @property
    def address(self) -> Address:
        return self._inner.address

    async def open_stream(self) -> Stream:
        return await self._inner.open_stream()

    async def accept_stream(self) -> Stream:
        return _Stream(self._relay, self.peer, await self._inner.accept_stream())

    async def close(self, code: CloseCode, reason: str = "") -> None:
        await self._inner.close(code, reason)

    async def wait_closed(self) -> Closed:
        return await self._inner.wait_closed()


class _Stream:
    """A `Stream` on which the script speaks."""

    def __init__(self, relay: HostileRelay, peer: DeviceId, inner: Stream) -> None:
        self._relay = relay
        self._peer = peer
        self._inner = inner
        self._decoder = FrameDecoder(ALL)

    async def send_all(self, data: bytes) -> None:
        for message in self._decoder.feed(data):
            for words in self._relay.words(self._peer, message):
                if not self._relay.slow_s:
                    await self._inner.send_all(words)
                    continue
                for byte in words:
                    await trio.sleep(self._relay.slow_s)
                    await self._inner.send_all(bytes([byte]))

    async def receive_some(self) -> bytes:
        return await self._inner.receive_some()

    async def send_eof(self) -> None:
        await self._inner.send_eof()

    async def aclose(self) -> None:
        await self._inner.aclose()
