"""Carries sessions over a connection: one control stream a folder, block streams, join streams.

The side that dialled opens each shared folder's control stream; either side opens a block stream
for what it wants. `transport.session` decides; here bytes move. Each stream has one task that reads
and one that writes, so that two nodes which both have much to say never wait for each other.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

import trio

from crdt.errors import PeerError
from crdt.ids import DeviceId, FolderId
from crdt.roster_ops import Role
from crdt.version_vector import EMPTY, VersionVector
from node.sync.bell import Bell
from node.sync.depositor import Depositor
from node.sync.dropper import Dropper
from node.sync.engine import FolderEngine
from node.sync.intake import fork_words
from transport.frames import CONTROL, FrameDecoder, encode
from transport.keeps import Keeps
from transport.link import Connection, LinkClosedError, Stream
from transport.messages import Heads, Hello, Message, OpenBlocks
from transport.relay_messages import RELAYS_MAX, Notice, Seen
from transport.session import (
    Deliver,
    Diverged,
    Effect,
    Ended,
    FolderSession,
    LogEntry,
    PeerState,
    Push,
    Send,
    SessionState,
)

logger = logging.getLogger("shoal.sessions")

AGENT: Final = "shoal/0.1"
SEEN_EVERY_S: Final = 5.0  # at least between two words of what relays have
FIRST_MESSAGE_TIMEOUT_S: Final = 10.0


async def run_member(
    connection: Connection, folders: Mapping[FolderId, FolderEngine], name: str
) -> None:
    """Serve all streams of a member's connection until it ends.

    Raises:
        PeerError: the peer broke the protocol.
        LinkClosedError: the connection ended.
    """
    try:
        async with trio.open_nursery() as nursery:
            for engine in folders.values():
                nursery.start_soon(engine.blocks.run_wanter, connection)
                if engine.folder.roster.role(connection.peer) is Role.RELAY:
                    nursery.start_soon(Depositor(engine, connection).run)
                    nursery.start_soon(Dropper(engine, connection).run)
                if connection.dialled:
                    stream = await connection.open_stream()
                    nursery.start_soon(_Control(engine, connection, stream, name).run)
            while True:
                stream = await connection.accept_stream()
                nursery.start_soon(_serve_stream, connection, stream, folders, name)
    except BaseExceptionGroup as group:
        raise _cause(group) from None


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error of several that says why; a bug before the peer's fault before the link's."""
    leaves: list[BaseException] = []
    stack: list[BaseException] = [group]
    while stack:
        error = stack.pop()
        if isinstance(error, BaseExceptionGroup):
            stack += error.exceptions
        else:
            leaves.append(error)
    order = (trio.Cancelled, LinkClosedError, PeerError)
    return max(leaves, key=lambda e: order.index(type(e)) if type(e) in order else len(order))


async def _serve_stream(
    connection: Connection, stream: Stream, folders: Mapping[FolderId, FolderEngine], name: str
) -> None:
    """Find out what a stream that the peer opened is for."""
    decoder = FrameDecoder()
    messages: list[Message] = []
    with trio.move_on_after(FIRST_MESSAGE_TIMEOUT_S) as patience:
        while not messages:
            data = await stream.receive_some()
            if not data:
                return
            messages = decoder.feed(data)
    if patience.cancelled_caught:
        raise PeerError("opened a stream and said nothing")
    first = messages[0]
    engine = folders.get(first.folder) if isinstance(first, Hello | OpenBlocks) else None
    if engine is None:
        await stream.aclose()  # a folder that only one of us knows that we share; not a fault
        return
    if isinstance(first, Hello):
        await _Control(engine, connection, stream, name, decoder).run(messages)
    else:
        try:
            await engine.blocks.serve_wants(connection.peer, stream, decoder, messages[1:])
        except* LinkClosedError:
            pass  # the peer gave up this stream alone; whatever else ended is noticed elsewhere
        finally:
            await stream.aclose()


class _Control:
    """One control stream."""

    def __init__(
        self,
        engine: FolderEngine,
        connection: Connection,
        stream: Stream,
        name: str,
        decoder: FrameDecoder | None = None,
    ) -> None:
        self._engine = engine
        self._folder = engine.folder
        self._connection = connection
        self._stream = stream
        # Whoever answers may say no at once, instead of hello.
        self._decoder = decoder or FrameDecoder(CONTROL)
        self._outbox: deque[Message] = deque()  # bounded by the session's windows
        self._posted = Bell()
        self._kept: Keeps | None = None  # what we last said of what we keep
        self._session = FolderSession(
            self._folder.id, name=name, agent=AGENT, known_hash=self._folder.log.hash_at
        )

    async def run(self, first: Sequence[Message] = ()) -> None:
        """Run until the stream or the session ends."""
        folder = self._folder
        seen = folder.advanced.count
        self._carry(self._session.start(*self._state()))
        self._receive(first)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write)
            nursery.start_soon(self._advance, seen)
            nursery.start_soon(self._tick)
            nursery.start_soon(self._watch_what_we_keep)
            if folder.roster.role(self._connection.peer) is not Role.RELAY:
                nursery.start_soon(self._tell_of_relays)
            while data := await self._stream.receive_some():
                self._receive(self._decoder.feed(data))
            self._decoder.finish()
            nursery.cancel_scope.cancel()

    def _receive(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if isinstance(message, Notice):
                self._engine.relays.set_full(self._connection.peer, message.full)
                continue
            if isinstance(message, Keeps):
                self._engine.keepers.told(self._connection.peer, message)
                self._say_what_we_keep()
                continue
            if isinstance(message, Seen):
                self._engine.relays.member_told(self._connection.peer, message.relays)
                continue
            self._carry(self._session.receive(message, now=trio.current_time()))

    async def _write(self) -> None:
        seen = 0
        while True:
            while self._outbox:
                await self._stream.send_all(encode(self._outbox.popleft()))
            seen = await self._posted.wait_past(seen)

    async def _advance(self, seen: int) -> None:
        folder = self._folder
        while True:
            seen = await folder.advanced.wait_past(seen)
            self._carry(self._session.advanced(*self._state()))

    async def _tell_of_relays(self) -> None:
        told: dict[DeviceId, VersionVector] = {}
        while True:
            seen = self._engine.changed.count
            relays = dict(sorted(self._engine.relays.seen.items())[:RELAYS_MAX])
            if relays != told and self._session.state is SessionState.OPEN:
                told = relays
                self._outbox.append(Seen(relays))
                self._posted.ring()
            await trio.sleep(SEEN_EVERY_S)
            await self._engine.changed.wait_past(seen)

    def _say_what_we_keep(self) -> None:
        """Tell a member what part of the folder we keep, when that is another one than it heard."""
        if self._folder.roster.role(self._connection.peer) in {None, Role.RELAY}:
            return
        word = self._engine.keepers.word_for(self._connection.peer)
        if word is not None and word != self._kept and self._session.state != SessionState.CLOSED:
            self._kept = word
            self._outbox.append(word)
            self._posted.ring()

    async def _watch_what_we_keep(self) -> None:
        while True:
            seen = self._engine.changed.count
            self._say_what_we_keep()
            await self._engine.changed.wait_past(seen)

    async def _tick(self) -> None:
        while True:
            at = self._session.next_tick()
            await trio.sleep_until(trio.current_time() + 1.0 if at is None else at)
            self._carry(self._session.tick(trio.current_time()))

    # --- effects: all synchronous, so that their order is the session's -------------------------

    def _carry(self, effects: Sequence[Effect]) -> None:
        queue = deque(effects)
        while queue:
            match queue.popleft():
                case Send(message=message):
                    if not isinstance(message, Hello):  # before what it is about
                        self._say_what_we_keep()
                    self._outbox.append(message)
                    self._posted.ring()
                case Push(after=after, size_max=size_max):
                    rows = self._folder.log.missing_from(after, size_max)
                    have = self._state()[0]
                    batch = [
                        LogEntry(row.device, row.seq, row.entry)
                        for row in rows
                        if have.covers(row.device, row.seq)
                    ]
                    queue.extend(self._session.send_entries(batch))
                case Deliver(entries=entries):
                    queue.extend(self._deliver(entries))
                case PeerState(have=have, complete=complete):
                    name = self._session.peer.name if self._session.peer else ""
                    self._engine.set_peer(self._connection.peer, name, have, complete)
                case Diverged(device=device, seq=seq):
                    logger.warning("%s has two entries %d", device.short, seq)
                    self._engine.warn("", fork_words(self._folder, device))
                case Ended(code=code, reason=reason):
                    logger.info("%s ended: %s %s", self._connection.peer.short, code, reason)
                    if self._folder.roster.role(self._connection.peer) is Role.RELAY:
                        self._engine.relays.set_refusal(self._connection.peer, reason)

    def _deliver(self, batch: tuple[bytes, ...]) -> list[Effect]:
        engine = self._engine
        received = engine.intake.receive(batch)
        for warning in received.warnings:
            engine.warn("", warning)
        for fork in received.forks:
            engine.warn("", fork_words(self._folder, fork.entry.header.device))
        if received.roster_changed:
            engine.roster_changed()
        return self._session.advanced(*self._state(), settled=len(batch))

    def _state(self) -> tuple[VersionVector, VersionVector, Heads]:
        """What is here, as far as it is the peer's business: see `FolderEngine.limit_for`."""
        folder = self._folder
        limit = self._engine.limit_for(self._connection.peer)
        if limit is None:
            return folder.have, folder.complete, folder.log.heads
        have = VersionVector({d: min(seq, limit[d]) for d, seq in folder.have.items() if limit[d]})
        heads = {d: folder.log.hash_at(d, seq) for d, seq in have.items()}
        return have, EMPTY, {d: head for d, head in heads.items() if head is not None}
