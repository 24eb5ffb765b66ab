"""Tells a relay which of its blocks nothing needs any more, so that it may delete them.

A look asks the relay for the blocks that it keeps, and takes out all that the tree needs here. What
has been left over in every look for as long as history keeps every version (30 days at least, on
history's own clock), and what no version of that time needed, is dropped, signed. The relay deletes
it after a grace period of its own, unless somebody offers it before.

Nothing is dropped on a guess: a look that cannot tell what a file needs, or that the relay has not
everything of, ends without a word. A drop counts only where the relay's log holds nothing that its
sender has not seen. When a relay has deleted something, all members offer it everything anew; so
even a wrong drop costs nothing that any member still has.

If the process dies at any point, the next look finds what this one did.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import trio

from crdt.deposit import sign_drop
from crdt.errors import PeerError
from crdt.ids import BlockId, ItemId
from crdt.slot import Content
from node.blocks.manifest import ManifestError, blocks_and_nodes
from node.history.policy import Policy
from node.index.disk_rows import is_displaced
from node.index.relays import Relays
from node.sync.deposit_stream import DepositStream, StreamOverError
from transport.fields import WANT_MAX
from transport.link import Connection
from transport.relay_messages import Depot, Drop, List, Listed, OpenDeposits

if TYPE_CHECKING:
    from node.sync.engine import FolderEngine

logger = logging.getLogger("shoal.relay")

LOOK_AFTER_S: Final = 600.0  # of a connection; and between two attempts at a look
LOOK_EVERY_S: Final = 24 * 3600.0
KEEP_S_MIN: Final = Policy().all_s  # whatever this device keeps itself, a relay keeps this long
CANDIDATES_MAX: Final = 100_000  # blocks in one look: 10 MB; the next look goes on
WINDOW_ITEMS: Final = 1_000  # files looked up together
_FIRST: Final = ItemId(bytes(16))
_LAST: Final = b"\xff" * 32  # no block's id comes after it


class Dropper:
    """One folder's looks at one relay."""

    def __init__(self, engine: FolderEngine, connection: Connection) -> None:
        self._engine = engine
        self._folder = engine.folder
        self._connection = connection
        self._relay = connection.peer
        self._rows = Relays(engine.folder.database.connection)

    async def run(self) -> None:
        """Look once a day, until the connection ends.

        Raises:
            PeerError: the relay broke the protocol.
            LinkClosedError: the connection ended.
        """
        await trio.sleep(LOOK_AFTER_S)
        while True:
            done = await self.look() is not None
            await trio.sleep(LOOK_EVERY_S if done else LOOK_AFTER_S)

    async def look(self) -> int | None:
        """Look once; returns how many blocks were dropped, None when this is no time for it.

        Raises:
            PeerError, LinkClosedError: as for `run`.
        """
        folder = self._folder
        if not folder.roster.may_write(folder.identity.device) or not self._is_settled():
            return None
        stream = DepositStream(await self._connection.open_stream())
        try:
            return await self._look(stream)
        except (StreamOverError, KeyError):
            return None  # the relay lost something, or we lack part of a list of blocks
        finally:
            await stream.aclose()

    def _is_settled(self) -> bool:
        return not self._folder.pending and self._engine.relays.holds_all(self._relay)

    async def _look(self, stream: DepositStream) -> int | None:
        folder, clock = self._folder, self._engine.history.clock
        keep_s = max(self._engine.history.policy.all_s, KEEP_S_MIN)
        revision = self._rows.revision()
        left = await self._listed(stream)
        await self._take_out_tree(left)
        before_s = clock.now_s() - keep_s
        ripe = left & set(self._rows.unneeded_since(self._relay, before_s))
        for content in list(self._rows.past_contents(before_s)) if ripe else ():
            await trio.lowlevel.checkpoint()
            self._take_out(ripe, content)  # it may have come and gone between two looks
        if not self._is_settled():
            return None
        # From here to the signatures nothing else runs, so `have` is what was looked at.
        at = (revision, _FIRST)
        while window := self._rows.changed_since(*at, WINDOW_ITEMS):
            self._take_out_files(left, window)
            at = window[-1]
        with folder.transaction():
            self._rows.unneeded(self._relay, left, clock.now_s())
        drops = list(self._drops(sorted(ripe & left)))
        for drop in drops:
            await stream.send(drop)
        if drops:  # it answers in order, so it has dealt with them; closing would take them back
            await stream.send(List(_LAST))
            await stream.next()
        count = sum(len(drop.blocks) for drop in drops)
        if count:
            logger.info("told relay %s that %d blocks may go", self._relay.short, count)
        return count

    def _drops(self, blocks: Sequence[BlockId]) -> Iterator[Drop]:
        folder = self._folder
        for start in range(0, len(blocks), WANT_MAX):
            some, have = tuple(blocks[start : start + WANT_MAX]), folder.have
            yield Drop(some, have, sign_drop(folder.identity.seed, folder.id, have, some))

    async def _listed(self, stream: DepositStream) -> set[BlockId]:
        """What the relay keeps, but for what surely is needed: blocks of files on this disk."""
        await stream.send(OpenDeposits(self._folder.id, self._rows.get(self._relay).place))
        if not isinstance(await stream.next(), Depot):
            raise PeerError("did not say how far its deposits have got")
        found: set[BlockId] = set()
        after = b""
        while len(found) < CANDIDATES_MAX:
            await stream.send(List(after))
            answer = await stream.next()
            if not isinstance(answer, Listed) or any(b <= after for b in answer.blocks[:1]):
                raise PeerError("did not list its blocks")
            if not answer.blocks:
                break
            found |= {block for block in answer.blocks if not self._lies_here(block)}
            after = answer.blocks[-1]
        return found

    def _lies_here(self, block: BlockId) -> bool:
        return any(
            not is_displaced(place.item) and self._folder.tree.row(place.item) is not None
            for place in self._folder.locations.find(block)
        )

    # --- what is needed -------------------------------------------------------------------------

    async def _take_out_tree(self, left: set[BlockId]) -> None:
        at = (0, _FIRST)
        while window := self._rows.changed_since(*at, WINDOW_ITEMS):
            at = window[-1]
            for one in window:
                await trio.lowlevel.checkpoint()
                self._take_out_files(left, [one])

    def _take_out_files(self, left: set[BlockId], files: Iterable[tuple[int, ItemId]]) -> None:
        for _, item in files:
            row = self._folder.tree.row(item)
            if row is not None:
                self._take_out(left, row.content)

    def _take_out(self, left: set[BlockId], content: Content) -> None:
        """Raises KeyError when part of the list of blocks is not here."""
        if content.manifest is None:
            return
        try:
            node = self._folder.locations.node
            for ref in blocks_and_nodes(content.manifest, content.size, node):
                left.discard(ref.block)
        except ManifestError:
            return  # no file can ever be made of it
