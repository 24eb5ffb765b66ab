"""Blocks in and out, for one folder: where the sans-IO fetcher and supplier meet streams and disks.

A wanted block is taken from this disk if some file or the store holds it, else asked of all
connected peers; of one like a block of this disk only what differs. To each peer go two block
streams, one for small transfers, one for bulk, so that the small never wait behind the large. A
block that is not what its id says costs the peer its connection and is asked of another one.
Serving reads people's files block by block, verifies and seals; SERVE_SIZE bytes or one block are
in memory for each stream, however much the peer asks for.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from crdt.deposit import sealed_hash, verify_deposit
from crdt.errors import IntegrityError, PeerError
from crdt.ids import BlockId, DeviceId, ItemId
from crdt.roster_ops import Role
from crdt.slot import BlockRef
from node.blocks.codec import epoch_of, open_block, seal_block
from node.blocks.hashing import block_id
from node.blocks.pieces import LENGTH_MIN
from node.files.port import FileSystem
from node.history.sealed import SealedBlocks
from node.ports import Threads
from node.sync.bell import Bell
from node.sync.folder import Folder
from node.sync.held import Held, seal_alike
from node.sync.read_places import Place, read_plain, read_sealed
from transport.fetch import Deliver, Effect, Fetcher, FetchStatistics, Request, priority_of
from transport.fields import WANT_MAX
from transport.frames import BLOCKS, FrameDecoder, encode
from transport.link import Connection, LinkClosedError, Stream
from transport.messages import Block, Locate, Located, Message, Missing, OpenBlocks, Pieces, Want
from transport.relay_messages import Here
from transport.supply import Supplier

logger = logging.getLogger("shoal.blocks")

LOCATE_TIMEOUT_S: Final = 3.0  # for all answers of one peer: a person waits for them
SERVE_SIZE: Final = 256 * 1024  # bytes of small blocks that are read in one visit to a thread
SERVE_BLOCKS: Final = 64
QUESTIONS_MAX: Final = 64  # `Locate`s that a peer may have outstanding on one stream


@dataclass(slots=True)
class _Awaited:
    """A block that is being fetched, and how many wait for it."""

    ref: BlockRef
    held: Held | None = None  # of what it might be built, until that failed
    waiters: int = 0
    data: bytes | None = None
    arrived: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True)
class _Outbox:
    """Requests for one of a peer's two block streams."""

    wants: deque[Want] = field(default_factory=deque)
    posted: Bell = field(default_factory=Bell)


class BlockExchange:
    """Fetches and serves the blocks of one folder; a `BlockSource` for the assembler."""

    def __init__(
        self, folder: Folder, fs: FileSystem, threads: Threads, sealed: SealedBlocks
    ) -> None:
        """Args: `sealed` are the blocks that no file holds."""
        self._sealed = sealed
        self._connections: dict[DeviceId, Connection] = {}
        self._folder = folder
        self._fs = fs
        self._threads = threads
        # A shuffled order makes devices that fetch the same file fetch different parts of it first.
        salt = int.from_bytes(folder.random.bytes(2), "big")
        self._fetcher = Fetcher(rank=lambda block: int.from_bytes(block[:2], "big") ^ salt)
        self._awaited: dict[BlockId, _Awaited] = {}
        self._outboxes: dict[tuple[DeviceId, bool], _Outbox] = {}
        self._changed = Bell()
        self.on_mismatch: Callable[[ItemId], None] = lambda _: None
        self.on_fault: Callable[[str], None] = lambda _: None
        self.received_size = 0  # bytes of plaintext from peers, since the start

    def statistics(self) -> FetchStatistics:
        """The fetcher's counts."""
        return self._fetcher.statistics()

    # --- getting --------------------------------------------------------------------------------

    async def block(
        self, ref: BlockRef, *, transfer_size: int, like: BlockRef | None = None
    ) -> bytes:
        """See `BlockSource`."""
        data = await self._from_disk(ref)
        if data is not None:
            return data
        return await self._fetch(ref, priority_of(transfer_size), await self._hold(ref, like))

    async def node(self, ref: BlockRef, *, like: BlockRef | None = None) -> bytes:
        """See `BlockSource`."""
        data = self._folder.locations.node(ref.block)
        return data if data is not None else await self._fetch(ref, 0, await self._hold(ref, like))

    async def _hold(self, ref: BlockRef, like: BlockRef | None) -> Held | None:
        """The pieces of the block `like`, if it is here still."""
        if like is None or ref.length < LENGTH_MIN:
            return None
        data = self._folder.locations.node(like.block) or await self._from_disk(like)
        if data is None:
            return None
        return await self._threads.run(Held.of, self._folder.block_key, data, ref.length)

    async def _from_disk(self, ref: BlockRef) -> bytes | None:
        for place in self._folder.locations.find(ref.block):
            path = self._folder.disk.path(place.item)
            if path is None or place.length != ref.length:
                continue
            key = self._folder.block_key
            data = await self._threads.run(read_plain, self._fs, path, key, ref, place.offset)
            if data is not None:
                return data
            self.on_mismatch(place.item)
        return await self._sealed.read(ref.block)

    async def lacking(self, blocks: Sequence[BlockId]) -> set[BlockId]:
        """Those of the blocks that no connected peer says it has; asks all of them at once."""
        lacking = set(blocks)

        async def ask(connection: Connection) -> None:
            with trio.move_on_after(LOCATE_TIMEOUT_S):
                lacking.difference_update(await self._located(connection, blocks))

        if blocks:
            async with trio.open_nursery() as nursery:
                for connection in list(self._connections.values()):
                    nursery.start_soon(ask, connection)
        return lacking

    async def _located(self, connection: Connection, blocks: Sequence[BlockId]) -> set[BlockId]:
        """Those that the peer has; none if it does not answer."""
        held: set[BlockId] = set()
        try:
            stream = await connection.open_stream()
            try:
                await stream.send_all(encode(OpenBlocks(self._folder.id)))
                decoder = FrameDecoder(BLOCKS)
                for number, start in enumerate(range(0, len(blocks), WANT_MAX)):
                    asked = tuple(blocks[start : start + WANT_MAX])
                    await stream.send_all(encode(Locate(number, asked)))
                    answers: list[Message] = []
                    while not answers:
                        data = await stream.receive_some()
                        if not data:
                            return held
                        answers = decoder.feed(data)
                    match answers:
                        case [Located(request=request, blocks=missing)] if request == number:
                            held |= set(asked) - set(missing)
                        case _:
                            return held
            finally:
                await stream.aclose()
        except (LinkClosedError, PeerError):
            pass  # what is wrong with the connection shows where it is served
        return held

    async def _fetch(self, ref: BlockRef, priority: int, held: Held | None = None) -> bytes:
        awaited = self._awaited.get(ref.block)
        if awaited is None:
            awaited = self._awaited[ref.block] = _Awaited(ref, held)
        awaited.waiters += 1
        self._fetcher.want(ref.block, ref.length, priority)
        self._changed.ring()
        try:
            await awaited.arrived.wait()
        finally:
            awaited.waiters -= 1
            if not awaited.waiters and awaited.data is None:
                self._awaited.pop(ref.block, None)
                self._fetcher.cancel(ref.block)
        assert awaited.data is not None
        return awaited.data

    def peer_advanced(self, peer: DeviceId) -> None:
        """A peer's disk got further: it may have by now what it said it lacked."""
        if self._fetcher.statistics().unavailable and (peer, True) in self._outboxes:
            for block in list(self._awaited):
                self._carry(self._fetcher.has(peer, block, now=trio.current_time()))

    async def serve(self) -> None:
        """Send out what was wanted since, and look after slow peers, until cancelled."""
        while True:
            self._carry(self._fetcher.tick(trio.current_time()))
            seen = self._changed.count
            at = self._fetcher.next_tick()
            with trio.move_on_at(float("inf") if at is None else at):
                await self._changed.wait_past(seen)

    async def run_wanter(self, connection: Connection) -> None:
        """Ask a member for blocks, over two streams, until the connection ends."""
        peer = connection.peer
        lanes = {urgent: await connection.open_stream() for urgent in (True, False)}
        self._connections[peer] = connection
        for urgent in lanes:
            self._outboxes[peer, urgent] = _Outbox()
        relay = self._folder.roster.role(peer) is Role.RELAY
        self._carry(self._fetcher.peer_added(peer, now=trio.current_time(), reserve=relay))
        try:
            async with trio.open_nursery() as nursery:
                for urgent, stream in lanes.items():
                    outbox = self._outboxes[peer, urgent]
                    nursery.start_soon(self._send_wants, stream, outbox)
                    nursery.start_soon(self._take_blocks, peer, stream)
        finally:
            if self._connections.get(peer) is connection:
                del self._connections[peer]
            for urgent in lanes:
                del self._outboxes[peer, urgent]
            self._carry(self._fetcher.peer_removed(peer, now=trio.current_time()))

    async def _send_wants(self, stream: Stream, outbox: _Outbox) -> None:
        await stream.send_all(encode(OpenBlocks(self._folder.id)))
        seen = 0
        while True:
            while outbox.wants:
                await stream.send_all(encode(outbox.wants.popleft()))
            seen = await outbox.posted.wait_past(seen)

    async def _take_blocks(self, peer: DeviceId, stream: Stream) -> None:
        decoder = FrameDecoder(BLOCKS)
        while data := await stream.receive_some():
            now = trio.current_time()
            self._fetcher.heard(peer, now=now)
            for message in decoder.feed(data):
                self._take_answer(peer, message, now)

    def _take_answer(self, peer: DeviceId, message: Message, now: float) -> None:
        match message:
            case Block(request=request, block=block):
                size = len(message.sealed)
                effects = self._fetcher.received(peer, request, block, size, now=now)
                self._carry(effects)
                if effects and effects[0] == Deliver(block):
                    self._deliver(peer, message)
            case Pieces(request=request, block=block):
                size = len(message.sealed)
                effects = self._fetcher.received(peer, request, block, size, now=now)
                self._carry(effects)
                if effects and effects[0] == Deliver(block):
                    self._build(peer, message, now)
            case Missing(request=request, blocks=blocks):
                self._carry(self._fetcher.missing(peer, request, blocks, now=now))
            case Here(blocks=blocks):
                for block in blocks:
                    self._carry(self._fetcher.has(peer, block, now=now))
            case _:
                raise PeerError(f"sent {type(message).__name__} where blocks were expected")

    def _deliver(self, peer: DeviceId, message: Block) -> None:
        block = message.block
        awaited = self._awaited.get(block)
        if awaited is None:
            return
        try:
            data = open_block(self._folder.keys, awaited.ref, message.sealed)
        except IntegrityError as error:
            self._pass_over(peer, message, awaited.ref.length, error)
            return
        self._arrived(awaited, data)

    def _arrived(self, awaited: _Awaited, data: bytes) -> None:
        del self._awaited[awaited.ref.block]
        self.received_size += len(data)
        awaited.data = data
        awaited.arrived.set()

    def _build(self, peer: DeviceId, message: Pieces, now: float) -> None:
        """Make a block from pieces that are here and what the peer sent. One try only: whatever
        went wrong, the block is then asked for whole.
        """
        awaited = self._awaited.get(message.block)
        if awaited is None:
            return
        ref, held, awaited.held = awaited.ref, awaited.held, None
        if held is None:  # we changed our mind meanwhile, or the peer plays with us
            self._carry(self._fetcher.useless(peer, ref.block, ref.length, 0, now=now))
            return
        try:
            data = held.build(self._folder.keys, ref, message.sealed)
        except (IntegrityError, ValueError) as error:
            self._fetcher.want(ref.block, ref.length, 0)
            raise PeerError(f"sent pieces of a block that do not fit: {error}") from None
        if block_id(self._folder.block_key, data) == ref.block:
            self._arrived(awaited, data)
        else:  # short hashes can meet by chance: that is nobody's fault
            self._fetcher.want(ref.block, ref.length, 0)
            self._changed.ring()

    def _pass_over(
        self, peer: DeviceId, message: Block, length: int, error: IntegrityError
    ) -> None:
        """A block that does not open. It is the sender's fault, unless it is a relay's, which
        cannot look into it: then it is the depositor's, if that one signed for these very bytes.
        """
        folder, now = self._folder, trio.current_time()
        if folder.roster.role(peer) is Role.RELAY and message.depositor:
            depositor = DeviceId(message.depositor)
            digest, signature = sealed_hash(message.sealed), message.signature
            if verify_deposit(depositor, folder.id, message.block, digest, signature):
                if epoch_of(message.sealed) in folder.keys.epochs:
                    name = folder.name_of(depositor)
                    self.on_fault(
                        f"{name} deposited something else than a block of this folder at relay "
                        f"{peer.short}. It was not used; another device's copy is waited for."
                    )
                self._carry(self._fetcher.useless(peer, message.block, length, 0, now=now))
                return
        self._fetcher.want(message.block, length, 0)  # of somebody else
        raise PeerError(f"sent a block that is not what it should be: {error}")

    def _carry(self, effects: Sequence[Effect]) -> None:
        self._changed.ring()  # what is due next may be due sooner now
        for effect in effects:
            if isinstance(effect, Request):
                outbox = self._outboxes[effect.peer, effect.urgent]
                outbox.wants += self._wants(effect.peer, effect.want)
                outbox.posted.ring()

    def _wants(self, peer: DeviceId, want: Want) -> list[Want]:
        """The same, with what we hold of blocks that might be built; a relay cannot do that."""
        if self._folder.roster.role(peer) is Role.RELAY:
            return [want]
        held = {
            block: awaited.held.hashes
            for block in want.blocks
            if (awaited := self._awaited.get(block)) is not None and awaited.held is not None
        }
        wants = [Want(want.request, (block,), hashes) for block, hashes in held.items()]
        whole = tuple(block for block in want.blocks if block not in held)
        return [*wants, Want(want.request, whole)] if whole else wants

    # --- serving --------------------------------------------------------------------------------

    async def serve_wants(
        self, peer: DeviceId, stream: Stream, decoder: FrameDecoder, first: Sequence[Message]
    ) -> None:
        """Answer a member's wants and questions on one block stream until it ends."""
        supplier, questions, asked = Supplier(), deque[Locate](), Bell()
        _take_wants(supplier, questions, first)

        async def read() -> None:
            while data := await stream.receive_some():
                _take_wants(supplier, questions, decoder.feed(data))
                asked.ring()
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            seen = 0
            while True:
                while questions:
                    await stream.send_all(encode(self._locate(questions.popleft())))
                while owed := supplier.first(SERVE_BLOCKS):
                    answers = await self._answers(peer, owed, supplier.held())
                    await stream.send_all(b"".join(map(encode, answers)))
                    supplier.answered(len(answers))
                seen = await asked.wait_past(seen)

    def _locate(self, question: Locate) -> Located:
        return Located(question.request, tuple(b for b in question.blocks if not self.has(b)))

    def has(self, block: BlockId) -> bool:
        """True when this disk should have the block, by the index."""
        locations = self._folder.locations
        return (
            self._sealed.has(block)
            or any(self._folder.disk.path(at.item) is not None for at in locations.find(block))
            or locations.node(block) is not None
        )

    async def _answers(
        self, peer: DeviceId, owed: Sequence[tuple[int, BlockId]], held: bytes
    ) -> list[Message]:
        """The answers to the first few, as many as are small enough for one visit to a thread. Of
        a single one, `held` may say what the peer might build it of.
        """
        role = self._folder.roster.role(peer)
        if role is None or not role.reads:
            return [Missing(request, (block,)) for request, block in owed]
        if held and (answer := await self._pieces(*owed[0], held)) is not None:
            return [answer]
        places: dict[BlockId, Place] = {}
        size = 0
        for count, (_, block) in enumerate(owed):
            place = next(self._places(block), None)
            if place is None:
                continue
            size += place.ref.length
            if places and size > SERVE_SIZE:
                owed = owed[:count]
                break
            places[block] = place
        found = await self._read_sealed(list(places.values()))
        answers: list[Message] = []
        for request, block in owed:
            sealed = found.get(block) or await self.sealed(block)
            answers.append(
                Missing(request, (block,)) if sealed is None else Block(request, block, sealed)
            )
        return answers

    def _places(self, block: BlockId) -> Iterator[Place]:
        """The files that hold a block, by the index."""
        for at in self._folder.locations.find(block):
            path = self._folder.disk.path(at.item)
            if path is not None:
                yield Place(at.item, path, BlockRef(block, at.length), at.offset)

    async def _read_sealed(self, places: list[Place]) -> dict[BlockId, bytes]:
        """The blocks that are where they should be, verified, and sealed under the newest key."""
        folder = self._folder
        if folder.keys.current is None or not places:
            return {}
        key = folder.keys.epoch(folder.keys.current)
        nonces = [folder.random.bytes(24) for _ in places]
        sealed = await self._threads.run(
            read_sealed, self._fs, folder.block_key, places, key, nonces
        )
        found: dict[BlockId, bytes] = {}
        for place, data in zip(places, sealed, strict=True):
            if data is None:
                self.on_mismatch(place.item)
            else:
                found[place.ref.block] = data
        return found

    async def _pieces(self, request: int, block: BlockId, held: bytes) -> Message | None:
        """The block for somebody who holds something like it; None as for `sealed`."""
        folder = self._folder
        data = folder.locations.node(block)
        if data is None:
            place = next(self._places(block), None)  # none: only history holds it, or nobody here
            data = None if place is None else await self._from_disk(place.ref)
        if data is None or folder.keys.current is None:
            return None
        key, nonce = folder.keys.epoch(folder.keys.current), folder.random.bytes(24)
        how, sealed = await self._threads.run(
            seal_alike, key, folder.block_key, block, data, held, nonce
        )
        return how(request, block, sealed)

    async def sealed(self, block: BlockId) -> bytes | None:
        """A block of this disk, verified and sealed under the newest key; None if it is not here,
        or there is no key to seal it with.
        """
        folder = self._folder
        if folder.keys.current is None:
            return None
        key = folder.keys.epoch(folder.keys.current)
        node = folder.locations.node(block)
        if node is not None:
            return seal_block(key, block, node, nonce=folder.random.bytes(24))
        for place in self._places(block):
            if found := await self._read_sealed([place]):
                return found[block]
        data = await self._sealed.read(block)
        if data is None:
            return None
        # Sealed anew: the peer may not have the key of the epoch that it was stored under.
        return seal_block(key, block, data, nonce=folder.random.bytes(24))


def _take_wants(supplier: Supplier, questions: deque[Locate], messages: Sequence[Message]) -> None:
    for message in messages:
        match message:
            case Want():
                supplier.wanted(message)
            case Locate() if len(questions) < QUESTIONS_MAX:
                questions.append(message)
            case Locate():
                raise PeerError(f"asked more than {QUESTIONS_MAX} questions at once")
            case _:
                raise PeerError(f"sent {type(message).__name__} where wants were expected")
