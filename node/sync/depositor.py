"""Deposits a folder's blocks at one relay, in the background, while it is connected.

    what      every block of every file that the tree shows, conflict copies too; versions that come
              and go between two looks are not missed, since nobody could have seen them
    order     entries first, then small files before large ones
    how       a batch of blocks is offered, what the relay lacks is sealed and put; several batches
              at once, each on a stream of its own. Every step may be repeated

What was confirmed is remembered by the tree's revision and the relay's place, so a restart asks
only about what changed. A relay whose place does not continue ours has lost something (a restored
backup, a damaged pack) and is asked about everything again.

`RelayWatch` is told up to which log position the relay durably has everything: that is
what `shoal wait` and `shoal status` count. A relay that is full is a warning; direct sync goes on.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import trio

from crdt.deposit import sealed_hash, sign_deposit
from crdt.errors import PeerError
from crdt.ids import BlockId, ItemId
from crdt.slot import Content
from node.blocks.manifest import ManifestError, Walk, blocks_and_nodes
from node.index.relays import Deposited, Relays
from node.sync.audit import relay_keeps_its_word
from node.sync.deposit_stream import DepositStream, StreamOverError
from transport.fields import WANT_MAX
from transport.link import Connection
from transport.relay_messages import Depot, Lacking, Offer, OpenDeposits, Put, Stored

if TYPE_CHECKING:
    from node.sync.engine import FolderEngine

logger = logging.getLogger("shoal.relay")

STREAMS: Final = 3  # batches on their way at once: one is read, one travels, one is stored
BATCH_SIZE_MAX: Final = 4 * 1024 * 1024  # bytes of plaintext in one batch, or one larger block
WINDOW_ITEMS: Final = 1_000  # files looked at together, and sorted by size
ENTRIES_FIRST_S: Final = 10.0  # how long blocks wait for the entries that name them
LIST_TIMEOUT_S: Final = 30.0  # for a file's list of blocks from others
AGAIN_S: Final = 30.0  # before files whose blocks we could not bring are tried again
FULL_AGAIN_S: Final = 300.0  # before a full relay is asked again
_LAST: Final = ItemId(b"\xff" * 16)  # sorts after every item of a revision
AUDIT_EVERY_S: Final = 3600.0  # on one connection; the first time as soon as all is there
CONFIRMED_MAX: Final = 200_000  # files beyond the remembered revision that are known to be there


@dataclass(slots=True, eq=False)
class _File:
    """One file on its way to the relay."""

    revision: int
    item: ItemId
    content: Content
    waiting: int = 0  # batches that hold some of it
    failed: bool = False


@dataclass(slots=True)
class _Batch:
    """Some blocks, of the files that need them."""

    blocks: list[BlockId] = field(default_factory=list)
    files: list[_File] = field(default_factory=list)
    size: int = 0

    def full_for(self, size: int) -> bool:
        return bool(self.blocks) and (
            len(self.blocks) >= WANT_MAX or self.size + size > BATCH_SIZE_MAX
        )


class Depositor:
    """One folder's deposits over one connection."""

    def __init__(self, engine: FolderEngine, connection: Connection) -> None:
        self._engine = engine
        self._folder = engine.folder
        self._connection = connection
        self._relay = connection.peer
        self._rows = Relays(engine.folder.database.connection)
        self._known = Deposited()
        self._confirmed: set[tuple[int, ItemId]] = set()
        self._full = ""
        self._audited_at_s = float("-inf")
        self._batch = _Batch()
        self._settled = trio.Event()

    async def run(self) -> None:
        """Deposit until the connection ends.

        Raises:
            PeerError: the relay broke the protocol.
            LinkClosedError: the connection ended.
        """
        while True:
            try:
                async with trio.open_nursery() as nursery:
                    send, receive = trio.open_memory_channel[_Batch](0)
                    for _ in range(STREAMS):
                        nursery.start_soon(self._work, await self._open(), receive)
                    await self._feed(send)
            except* StreamOverError:
                self._engine.relays.set_deposited(self._relay, None)
                await trio.sleep(1.0)

    # --- what to deposit ------------------------------------------------------------------------

    async def _feed(self, batches: trio.MemorySendChannel[_Batch]) -> None:
        """Hand out what the relay may lack; wait; look again."""
        engine, folder = self._engine, self._folder
        while True:
            seen, changed = folder.advanced.count, engine.changed.count
            have, revision = folder.have, self._rows.revision()
            await self._entries_first()
            left = await self._pass(batches)
            if not left and await self._is_true(revision):
                self._remember(replace(self._known, revision=revision))
                self._confirmed.clear()
                engine.relays.set_deposited(self._relay, have)
                await folder.advanced.wait_past(seen)
                continue
            engine.relays.set_deposited(self._relay, None)
            with trio.move_on_after(FULL_AGAIN_S if self._full else AGAIN_S):
                # What we could not bring may have come to this disk, or to the relay.
                while folder.advanced.count == seen and (self._full or not self._came(changed)):
                    await engine.changed.wait_past(engine.changed.count)

    async def _is_true(self, revision: int) -> bool:
        """Ask a relay that says it has everything for some of it, now and then."""
        now = trio.current_time()
        if now < self._audited_at_s + AUDIT_EVERY_S:
            return True
        true = await relay_keeps_its_word(self._connection, self._folder, self._rows, revision)
        if true is None:
            return True
        if true:
            self._audited_at_s = now
            return True
        if self._folder.pending:
            return False  # what we meant to check with may be gone from the tree
        self._engine.warn(
            "",
            f"relay {self._relay.short} does not have what it confirmed. It is not counted, and "
            "is offered everything again; do not rely on it.",
        )
        self._remember(Deposited(self._known.place, 0))
        self._confirmed.clear()
        return False

    def _came(self, changed: int) -> bool:
        return self._engine.changed.count > changed and not self._folder.pending

    async def _entries_first(self) -> None:
        """Wait until the relay has our entries: a drop by somebody who has not seen them must not
        take away the blocks that they need.
        """
        engine, have = self._engine, self._folder.have
        with trio.move_on_after(ENTRIES_FIRST_S):
            while True:
                seen = engine.changed.count
                peer = engine.peers.get(self._relay)
                if peer is not None and peer.have.dominates(have):
                    return
                await engine.changed.wait_past(seen)

    async def _pass(self, batches: trio.MemorySendChannel[_Batch]) -> bool:
        """Offer everything that changed since the remembered revision. True: some is left."""
        left = False
        at = (self._known.revision, _LAST)
        while window := self._rows.changed_since(*at, WINDOW_ITEMS):
            at = window[-1]
            files = [found for place in window if (found := self._file(place)) is not None]
            for one in sorted(files, key=lambda file: (file.content.size, -file.revision)):
                await self._offer(one, batches)
            await self._flush(batches)
            await self._until_settled(files)
            left = left or any(file.failed for file in files)
            if len(self._confirmed) < CONFIRMED_MAX:
                self._confirmed |= {(f.revision, f.item) for f in files if not f.failed}
            if self._full:
                return True
        return left

    def _file(self, place: tuple[int, ItemId]) -> _File | None:
        revision, item = place
        row = None if place in self._confirmed else self._folder.tree.row(item)
        if row is None or row.content.manifest is None:
            return None
        return _File(revision, item, row.content)

    async def _offer(self, file: _File, batches: trio.MemorySendChannel[_Batch]) -> None:
        try:
            assert file.content.manifest is not None
            if self._folder.hides(file.item):
                await self._bring_list(file.content)
            node = self._folder.locations.node
            for ref in blocks_and_nodes(file.content.manifest, file.content.size, node):
                block, size, batch = ref.block, ref.length, self._batch
                known = block in batch.blocks
                if not known and batch.full_for(size):
                    await self._flush(batches)
                    batch = self._batch
                if file not in batch.files:
                    batch.files.append(file)
                    file.waiting += 1
                if not known:
                    batch.blocks.append(block)
                    batch.size += size
        except (KeyError, ManifestError):
            file.failed = True  # its list of blocks has not reached this device

    async def _bring_list(self, content: Content) -> None:
        """Fetch the list of a file that does not live here; nobody else asks for it. What is not
        to be had now stays out.
        """
        assert content.manifest is not None
        locations, walk = self._folder.locations, Walk(content.manifest, content.size)
        with trio.move_on_after(LIST_TIMEOUT_S):
            while (wanted := walk.wants()) is not None:
                data = locations.node(wanted.block)
                if data is None:
                    data = await self._engine.blocks.node(wanted)
                    with self._folder.transaction():
                        locations.put_nodes({wanted.block: data})
                walk.feed(data)
                for _ in walk.blocks():
                    pass

    async def _flush(self, batches: trio.MemorySendChannel[_Batch]) -> None:
        batch, self._batch = self._batch, _Batch()
        if batch.blocks:
            await batches.send(batch)

    async def _until_settled(self, files: list[_File]) -> None:
        while any(file.waiting for file in files):
            await self._settled.wait()

    # --- one stream -----------------------------------------------------------------------------

    async def _open(self) -> DepositStream:
        known = self._known = self._rows.get(self._relay)
        stream = DepositStream(await self._connection.open_stream())
        await stream.send(OpenDeposits(self._folder.id, known.place))
        match await stream.next():
            case Depot(place=place, continues=continues):
                if not continues:
                    if known.revision:
                        logger.info("relay %s has less than it had; asking anew", self._relay.short)
                    self._remember(Deposited(place, 0))
                    self._confirmed.clear()
            case _:
                raise PeerError("did not say how far its deposits have got")
        return stream

    async def _work(
        self, stream: DepositStream, batches: trio.MemoryReceiveChannel[_Batch]
    ) -> None:
        number = 0
        try:
            while True:
                batch = await batches.receive()
                number += 1
                failed = not await self._deposit(stream, number, batch.blocks)
                for file in batch.files:
                    file.waiting -= 1
                    file.failed = file.failed or failed
                self._settled.set()
                self._settled = trio.Event()
        finally:
            await stream.aclose()

    async def _deposit(self, stream: DepositStream, number: int, blocks: list[BlockId]) -> bool:
        """Bring the relay what it lacks of these; True when it has them all, durably."""
        await stream.send(Offer(number, tuple(blocks)))
        match await stream.next():
            case Lacking(request=request, blocks=lacking, full=full) if request == number:
                pass
            case _:
                raise PeerError("did not answer an offer")
        if not set(lacking) <= set(blocks):
            raise PeerError("lacks what it was not offered")
        self._set_full(full)
        if full or not lacking:
            return not full
        whole = True
        for block in lacking:
            sealed = await self._engine.blocks.sealed(block)
            whole = whole and sealed is not None
            await stream.send(self._put(number, block, sealed or b""))
        match await stream.next():
            case Stored(request=request, place=place, full=full) if request == number:
                pass
            case _:
                raise PeerError("did not confirm what it was brought")
        self._set_full(full)
        if place.generation == self._known.place.generation:
            if place.number > self._known.place.number:
                self._known = replace(self._known, place=place)
        elif not full:
            raise StreamOverError
        return whole and not full

    def _put(self, number: int, block: BlockId, sealed: bytes) -> Put:
        if not sealed:
            return Put(number, block, b"", b"")
        seed, folder = self._folder.identity.seed, self._folder.id
        return Put(number, block, sealed, sign_deposit(seed, folder, block, sealed_hash(sealed)))

    # --- what is remembered ---------------------------------------------------------------------

    def _remember(self, deposited: Deposited) -> None:
        if deposited != self._rows.get(self._relay):
            with self._folder.transaction():
                self._rows.put(self._relay, deposited)
        self._known = deposited

    def _set_full(self, why: str) -> None:
        if why == self._full:
            return
        self._full = why
        self._engine.relays.set_full(self._relay, why)
