"""A folder's control stream at a relay: `transport.session` decides, the storage is asked.

One lock a session keeps its steps in order, since here, unlike on a device, a look into the log may
have to wait. The reader does not go on while a step runs: that is the sender's back-pressure.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import Final

import trio

from crdt.ids import DeviceId
from crdt.version_vector import EMPTY
from node.relay.hosted import HostedFolder
from node.relay.storage import Storage
from node.sync.bell import Bell
from transport.frames import FrameDecoder, encode
from transport.link import Connection, Stream
from transport.messages import Ack, Have, Message
from transport.relay_messages import Notice, Seen
from transport.session import (
    Deliver,
    Diverged,
    Effect,
    Ended,
    FolderSession,
    PeerState,
    Push,
    Send,
)

logger = logging.getLogger("shoal.relay")

AGENT: Final = "shoal-relay/0.1"
NAME: Final = "relay"


class ControlSession:
    """One control stream."""

    def __init__(
        self,
        hosted: HostedFolder,
        storage: Storage,
        connection: Connection,
        stream: Stream,
        decoder: FrameDecoder,
    ) -> None:
        self._hosted = hosted
        self._storage = storage
        self._connection = connection
        self._stream = stream
        self._decoder = decoder
        self._outbox: deque[Message] = deque()  # bounded by the session's windows
        self._posted = Bell()
        self._lock = trio.Lock()
        self._told = EMPTY  # what the member has
        self._known: dict[tuple[DeviceId, int], bytes] = {}
        self._session = FolderSession(
            hosted.id,
            name=NAME,
            agent=AGENT,
            known_hash=lambda device, seq: self._known.get((device, seq)),
        )

    async def run(self, first: Sequence[Message]) -> None:
        """Run until the stream or the session ends.

        Raises:
            PeerError: the peer broke the protocol.
            LinkClosedError: the connection ended.
        """
        hosted = self._hosted
        seen = hosted.advanced.count
        async with self._lock:
            await self._carry(self._session.start(hosted.have, EMPTY, hosted.heads))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write)
            await self._receive(first)
            nursery.start_soon(self._advance, seen)
            nursery.start_soon(self._tick)
            nursery.start_soon(self._notify)
            while data := await self._stream.receive_some():
                await self._receive(self._decoder.feed(data))
            self._decoder.finish()
            nursery.cancel_scope.cancel()

    async def _receive(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if isinstance(message, Notice | Seen):
                continue
            async with self._lock:
                if isinstance(message, Have | Ack):
                    heads = [(device, message.have[device]) for device in message.heads]
                    self._known = await self._hosted.hashes(heads)
                await self._carry(self._session.receive(message, now=trio.current_time()))

    async def _write(self) -> None:
        seen = 0
        while True:
            while self._outbox:
                await self._stream.send_all(encode(self._outbox.popleft()))
            seen = await self._posted.wait_past(seen)

    async def _advance(self, seen: int) -> None:
        hosted = self._hosted
        while True:
            seen = await hosted.advanced.wait_past(seen)
            async with self._lock:
                await self._carry(self._session.advanced(hosted.have, EMPTY, hosted.heads))

    async def _notify(self) -> None:
        seen, told = 0, ""
        while True:
            if self._hosted.full != told:
                told = self._hosted.full
                self._outbox.append(Notice(told))
                self._posted.ring()
            seen = await self._hosted.fullness.wait_past(seen)

    async def _tick(self) -> None:
        while True:
            at = self._session.next_tick()
            await trio.sleep_until(trio.current_time() + 1.0 if at is None else at)
            async with self._lock:
                await self._carry(self._session.tick(trio.current_time()))

    async def _carry(self, effects: Sequence[Effect]) -> None:
        queue = deque(effects)
        while queue:
            match queue.popleft():
                case Send(message=message):
                    self._outbox.append(message)
                    self._posted.ring()
                case Push(after=after, size_max=size_max):
                    rows = await self._storage.entries(self._hosted.id, after, size_max)
                    queue.extend(self._session.send_entries(rows))
                case Deliver(entries=entries):
                    await self._hosted.receive(entries)
                    self._hosted.member_has(self._told)
                    hosted = self._hosted
                    settled = len(entries)
                    queue.extend(
                        self._session.advanced(hosted.have, EMPTY, hosted.heads, settled=settled)
                    )
                case PeerState(have=have):
                    self._told = have
                    self._hosted.member_has(have)
                case Diverged(device=device, seq=seq):
                    logger.warning("device %s has two entries %d: a fork", device.short, seq)
                    queue.extend(await self._evidence(device, seq))
                case Ended(code=code, reason=reason):
                    peer = self._connection.peer.short
                    logger.info("%s ended a session: %s %s", peer, code, reason)

    async def _evidence(self, device: DeviceId, seq: int) -> list[Effect]:
        """Our entry where the peer holds another one."""
        before = self._hosted.have.with_counter(device, seq - 1)
        rows = await self._storage.entries(self._hosted.id, before, 1)
        found = [row.entry for row in rows if (row.device, row.seq) == (device, seq)]
        return self._session.send_evidence(found[0]) if found else []
