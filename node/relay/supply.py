"""Serves sealed blocks, as they were deposited, to a folder's members.

One block is in memory for each stream, and no more than `Limits.reads_max` at once. What a member
asked for in vain is remembered, up to a limit: when it comes, the member hears of it at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import trio

from crdt.errors import PeerError
from crdt.ids import BlockId
from node.relay.hosted import HostedFolder
from node.relay.limits import Counters
from node.relay.rate import Rate
from node.relay.storage import Storage
from node.sync.bell import Bell
from transport.fields import WANT_MAX
from transport.frames import FrameDecoder, encode
from transport.link import Stream
from transport.messages import Block, Locate, Located, Message, Missing, Want
from transport.relay_messages import Here
from transport.supply import Supplier

QUESTIONS_MAX: Final = 64  # `Locate`s that a peer may have outstanding on one stream
REMEMBERED_MAX: Final = 4_096  # blocks that were missing, a stream; beyond, members ask again


class BlockStream:
    """One block stream that a member opened."""

    def __init__(
        self,
        hosted: HostedFolder,
        storage: Storage,
        stream: Stream,
        decoder: FrameDecoder,
        counters: Counters,
        reads: trio.CapacityLimiter,
        rate: Rate,
    ) -> None:
        self._hosted = hosted
        self._storage = storage
        self._stream = stream
        self._decoder = decoder
        self._counters = counters
        self._reads = reads
        self._rate = rate
        self._supplier = Supplier()
        self._questions: deque[Locate] = deque()
        self._missing: dict[BlockId, None] = {}
        self._asked = Bell()
        self._sending = trio.Lock()

    async def run(self, first: Sequence[Message]) -> None:
        """Answer until the stream ends.

        Raises:
            PeerError: the peer broke the protocol.
            LinkClosedError: the stream or the connection is gone.
        """
        self._take(first)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, nursery)
            nursery.start_soon(self._tell)
            seen = 0
            while True:
                while self._questions:
                    await self._send(await self._locate(self._questions.popleft()))
                while (owed := self._supplier.next()) is not None:
                    await self._send(await self._answer(*owed))
                    self._supplier.answered()
                seen = await self._asked.wait_past(seen)

    async def _read(self, nursery: trio.Nursery) -> None:
        while data := await self._stream.receive_some():
            self._take(self._decoder.feed(data))
            self._asked.ring()
        nursery.cancel_scope.cancel()

    async def _send(self, message: Message) -> None:
        async with self._sending:
            await self._stream.send_all(encode(message))

    def _take(self, messages: Sequence[Message]) -> None:
        for message in messages:
            match message:
                case Want():
                    self._supplier.wanted(message)
                case Locate() if len(self._questions) < QUESTIONS_MAX:
                    self._questions.append(message)
                case Locate():
                    raise PeerError(f"asked more than {QUESTIONS_MAX} questions at once")
                case _:
                    raise PeerError(f"sent {type(message).__name__} where wants were expected")

    async def _locate(self, question: Locate) -> Located:
        held = await self._storage.held(self._hosted.id, question.blocks)
        return Located(question.request, tuple(b for b in question.blocks if b not in held))

    async def _answer(self, request: int, block: BlockId) -> Message:
        async with self._reads:
            found = await self._storage.get(self._hosted.id, block)
        if found is None:
            self._counters.blocks_missing_total += 1
            self._missing[block] = None
            if len(self._missing) > REMEMBERED_MAX:
                del self._missing[next(iter(self._missing))]
            return Missing(request, (block,))
        await self._rate.spend(len(found.sealed))
        self._counters.blocks_served_total += 1
        self._counters.bytes_served_total += len(found.sealed)
        return Block(request, block, found.sealed, bytes(found.depositor), found.signature)

    async def _tell(self) -> None:
        """Say what has come of what was missing."""
        seen = self._hosted.deposited.count
        while True:
            seen = await self._hosted.deposited.wait_past(seen)
            asked = list(self._missing)
            for start in range(0, len(asked), WANT_MAX):
                some = asked[start : start + WANT_MAX]
                held = await self._storage.held(self._hosted.id, some)
                if held:
                    for block in held:
                        self._missing.pop(block, None)
                    await self._send(Here(0, tuple(sorted(held))))
