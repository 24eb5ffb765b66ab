"""Keeps the versions that sync replaced or deleted, as cheaply as they can be, and no longer.

What the applier displaces lies in `.shoal/history` as a whole file: that costs a rename, and
nothing can be lost on the way. Later, in the background, `tidy` does five things, each of which may
die at any point:

    settle   A small file whose content is in its entry goes. Of several files of one item all but
             the newest become blocks, and so does a file above FILE_SIZE_MAX: each block that no
             other file in history holds is sealed into the store, the row says what the version
             was, then the file goes. Of a very large file also those blocks stay out that its
             current version holds. A file that somebody may be writing to still is left alone
             (`node.sync.afterlook`).
    age      What came by since last time begins to age, on history's own clock.
    release  What was taken off this disk since its directory does not live here goes, once nobody
             can be writing to it: see `node.sync.selection`.
    expire   Versions go by `node.history.policy`. A file's blocks that other versions need are
             sealed first.
    collect  Sealed blocks that no kept version, no pending item and no transfer needs go, an hour
             after they came.

The order is: blocks durable, index committed, file unlinked. A file without a row is noted
again at the next start (`node.sync.recovery`), a block without one adopted.

Before blocks of a file are overwritten in place, `keep_blocks` saves them:

    await history.keep_blocks(row, path, [(ref, offset), ...])   # then overwrite them

`row` is the file's disk row, the blocks are those that are about to change. The version is in
history from then on: as these blocks, and as the rest that the file still holds. When it returns
they are durable; if it raises, nothing may be overwritten.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import trio

from crdt.errors import ShoalError, WorldError
from crdt.heads import heads
from crdt.ids import BlockId, ItemId
from crdt.slot import BlockRef, Content
from node.blocks.manifest import Walk
from node.files.layout import HISTORY
from node.files.port import FileSystem, Stat, join
from node.history.clock import HistoryClock
from node.history.contents import blocks_needed, content_of
from node.history.files import same_bytes, unlink_all, verified_blocks
from node.history.policy import Kept, Policy, drop_order, expired
from node.history.sealed import SealedBlocks
from node.index.disk_rows import RELEASED, DiskRow, displaced_item, is_displaced
from node.index.kept import KeptRow, KeptRows
from node.ports import Threads
from node.sync.folder import Folder

logger = logging.getLogger("shoal.history")

FILE_SIZE_MAX: Final = 64 * 1024 * 1024  # bytes; a larger file is not kept whole
SETTLE_DELAY_S: Final = 10.0  # after something was displaced: mostly more follows
TIDY_EVERY_S: Final = 3600.0
GRACE_S: Final = 3600  # before a sealed block goes that nothing needs
BATCH_SIZE: Final = 4 * 1024 * 1024  # bytes of blocks read, sealed and stored at once
BATCH_ROWS: Final = 256  # rows of one transaction
EXPIRED_AT_ONCE: Final = 1_000  # versions dropped in one round
PAST_AT_ONCE: Final = 10_000  # old slots forgotten in one round


class NotKeptError(WorldError):
    """What is about to be overwritten could not be saved first, so it must not be."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What history takes here; sizes in bytes."""

    versions: int
    size: int
    limit: int


@dataclass(slots=True)
class _Needs:
    """Which blocks kept versions need, and what each version alone costs."""

    blocks: set[BlockId] = field(default_factory=set)
    sizes: dict[int, int] = field(default_factory=dict)


class History:
    """The history of one folder on this device."""

    def __init__(
        self,
        folder: Folder,
        fs: FileSystem,
        threads: Threads,
        sealed: SealedBlocks,
        *,
        allowed: Callable[[], Awaitable[bool]],
    ) -> None:
        """Args: `allowed` asks whether the folder is still the one we know; else nothing is
        touched.
        """
        self.policy = Policy()
        self.clock = HistoryClock(folder.database.connection, folder.clock)
        self.sealed = sealed
        self.rows = KeptRows(folder.database.connection)
        self._folder = folder
        self._fs = fs
        self._threads = threads
        self._allowed = allowed
        self._lock = trio.Lock()
        self._held: dict[BlockId, int] = {}  # by transfers that run, with how many do

    # --- the service ----------------------------------------------------------------------------

    async def serve(self) -> None:
        """Tidy now and then, until cancelled."""
        seen, adopted = self._folder.displaced.count, False
        while True:
            if await self._allowed():
                try:
                    if not adopted:
                        await self.sealed.adopt()
                        adopted = True
                    await self.tidy()
                except (OSError, ShoalError) as error:
                    logger.warning("history waits: %s; nothing is lost", error)
            with trio.move_on_after(TIDY_EVERY_S):
                seen = await self._folder.displaced.wait_past(seen)
                await trio.sleep(SETTLE_DELAY_S)
                seen = self._folder.displaced.count

    async def tidy(self) -> None:
        """Settle, age, expire and collect; may be cancelled at any point.

        Raises:
            OSError: the disk refused; what was done so far stands.
        """
        async with self._lock:
            await self._settle()
            with self._folder.transaction():
                now_s = self.clock.now_s()
                self.rows.begin_time(now_s)
                keep_s = max(self.policy.all_s, self.policy.daily_s)
                self.rows.forget_past(now_s - keep_s, PAST_AT_ONCE)
                self.clock.save()
            await self._release()
            while await self._expire():
                pass
            await self._collect()

    def usage(self) -> Usage:
        """What is kept here now."""
        rows = self.rows.all()
        files = sum(row.size for row in rows if row.file is not None)
        limit = self.policy.limit(self._folder.tree.totals().bytes)
        return Usage(len(rows), files + self.sealed.index.size(), limit)

    # --- saving before something is overwritten -------------------------------------------------

    async def keep_blocks(
        self, row: DiskRow, path: str, blocks: Sequence[tuple[BlockRef, int]]
    ) -> None:
        """Save blocks of the file at `path` that are about to be overwritten; see the module.

        Raises:
            NotKeptError: the file does not hold them, or holds no version that we know.
            OSError: the disk refused.
        """
        content = content_of(self._folder.tree, row.item, row.version, row.digest)
        if content is None or content.manifest is None:
            raise NotKeptError(f"{path} is no version that is known here; it stays as it is")
        await self._seal(path, blocks)
        with self._folder.transaction():
            if not any(kept.item == row.item for kept in self.rows.with_digest(content.digest)):
                self._add_blocks(row.item, path, content)
        self._folder.displaced.ring()

    async def _seal(self, file: str, blocks: Sequence[tuple[BlockRef, int]]) -> None:
        for batch in _batches(blocks):
            key = self._folder.block_key
            data = await self._threads.run(verified_blocks, self._fs, file, key, batch)
            if any(ref not in data for ref, _ in batch):
                raise NotKeptError(f"{file} is not what it was; it stays as it is")
            await self.sealed.keep(data)

    def _add_blocks(self, item: ItemId, path: str, content: Content) -> None:
        now_ns = self._folder.clock.wall_ns()
        self.rows.add(item, path, content, time_ns=now_ns, since_s=None)

    @contextlib.contextmanager
    def holding(self, blocks: Sequence[BlockId]) -> Iterator[None]:
        """Within the block, these sealed blocks are not collected."""
        for block in blocks:
            self._held[block] = self._held.get(block, 0) + 1
        try:
            yield
        finally:
            for block in blocks:
                self._held[block] -= 1
                if not self._held[block]:
                    del self._held[block]

    # --- settling -------------------------------------------------------------------------------

    async def _settle(self) -> None:
        entries = await self._threads.run(self._fs.scandir, HISTORY)
        stats = {join(HISTORY, entry.name): entry.stat for entry in entries}
        watched = self.rows.watched()
        rows = [row for row in self.rows.all() if row.file is not None]
        lost = [row.id for row in rows if row.file not in stats]
        if lost:
            logger.info("%d files are gone from %s", len(lost), HISTORY)
            with self._folder.transaction():
                self.rows.drop(lost)
        newest = {row.item: row.id for row in rows}
        small: list[tuple[KeptRow, Content]] = []
        for row in rows:
            await trio.lowlevel.checkpoint()
            if row.file in watched:
                await self._save_shared(row, stats)
                continue
            content = self._to_settle(row, stats, newest)
            if content is not None and content.manifest is None:
                small.append((row, content))
            elif content is not None:
                try:
                    await self._to_blocks(row, content)
                except OSError as error:  # the others go on
                    logger.warning("%s stays a file in history: %s", row.path, error.strerror)
        for start in range(0, len(small), BATCH_ROWS):
            await self._drop_small(small[start : start + BATCH_ROWS])

    async def _save_shared(self, row: KeptRow, stats: dict[str, Stat]) -> None:
        """A file that has another name may be written to by that one: its blocks are saved at once,
        and it stays as long as it is watched.
        """
        stat = stats.get(row.file or "")
        if stat is None or stat.links == 1:
            return
        assert row.file is not None
        content = content_of(self._folder.tree, row.item, row.version, row.digest)
        same = self.rows.with_digest(row.digest)
        if any(kept.content is not None and kept.item == row.item for kept in same):
            return  # saved already
        if content is None or content.manifest is None:
            return  # it stands in the log, or nobody knows what it was
        blocks = self._blocks_of(content)
        if blocks is None:
            return  # its list is not at hand
        try:
            await self._seal(row.file, blocks)
        except (OSError, NotKeptError) as error:  # the others go on
            logger.warning("%s in history could not be saved: %s", row.path, error)
            return
        with self._folder.transaction():
            self._add_blocks(row.item, row.path, content)

    def _to_settle(
        self, row: KeptRow, stats: dict[str, Stat], newest: dict[ItemId, int]
    ) -> Content | None:
        """What the file is, if it is not to stay; None if it is."""
        stat = stats.get(row.file or "")
        if stat is None or row.since_s == RELEASED or self._is_wanted(row):
            return None
        twin = any(
            other.id != row.id and other.content is not None
            for other in self.rows.with_digest(row.digest)
        )
        content = content_of(self._folder.tree, row.item, row.version, row.digest)
        if content is None and twin:
            content = next(o.content for o in self.rows.with_digest(row.digest) if o.content)
        if content is None or content.digest != row.digest:
            return None
        stays = (
            newest[row.item] == row.id
            and row.size <= FILE_SIZE_MAX
            and stat.links == 1  # else somebody may still write to it by its other name
            and not twin
        )
        return None if stays and content.manifest is not None else content

    def _is_wanted(self, row: KeptRow) -> bool:
        """True for bytes that the tree shows, or will, and that lie in no file of the folder."""
        if row.since_s == RELEASED or self._folder.disk.with_digest(row.digest, 1):
            return False
        tree = self._folder.tree
        shown = heads(tree.slots(row.item)) if tree.row(row.item) is not None else []
        if any(head.digest == row.digest for head in shown):
            return True
        pending = map(tree.row, self._folder.pending)
        return any(one is not None and one.content.digest == row.digest for one in pending)

    def _is_pinned(self, row: KeptRow) -> bool:
        return self._is_wanted(row) or row.file in self.rows.watched()

    async def _drop_small(self, small: Sequence[tuple[KeptRow, Content]]) -> None:
        """What stands in the log needs no file; each is compared first."""
        pairs = [(row.file or "", content) for row, content in small]
        same = await self._threads.run(same_bytes, self._fs, pairs)
        gone = [file for (file, _), is_same in zip(pairs, same, strict=True) if is_same]
        # Files first: one without a row would be taken for something unknown after a crash.
        await self._threads.run(unlink_all, self._fs, gone)
        with self._folder.transaction():
            for (row, _), is_same in zip(small, same, strict=True):
                if is_same:
                    self.rows.drop([row.id])
                else:
                    self.rows.call_unknown(row.id)

    # --- from a file to blocks ------------------------------------------------------------------

    async def _to_blocks(self, row: KeptRow, content: Content) -> None:
        """Let a file in history go, and keep the version that it is as blocks."""
        assert row.file is not None
        holder, key = displaced_item(row.file), self._folder.block_key
        blocks = self._blocks_of(content)
        if blocks is None:
            return  # its list is not at hand, so it stays a file
        for batch in _batches(blocks):
            data = await self._threads.run(verified_blocks, self._fs, row.file, key, batch)
            if any(ref not in data for ref, _ in batch):
                logger.warning("%s in history is not what it was; it stays as it is", row.path)
                with self._folder.transaction():
                    self.rows.call_unknown(row.id)
                return
            await self._keep_what_is_nowhere(data, holder, row.size)
        with self._folder.transaction():
            twins = self.rows.with_digest(row.digest)
            if any(twin.content and twin.item == row.item for twin in twins):
                self.rows.drop([row.id])
            else:
                self.rows.settle(row.id, content)
            self._folder.locations.drop(holder)
        await self._threads.run(unlink_all, self._fs, [row.file])

    async def _drop_file(self, row: KeptRow, needed: set[BlockId]) -> None:
        """Let a version go that is a file in history, but for the blocks that others need."""
        assert row.file is not None
        holder, key = displaced_item(row.file), self._folder.block_key
        held = self._folder.locations.blocks_of(holder)
        for batch in _batches([(ref, at) for ref, at in held if ref.block in needed]):
            data = await self._threads.run(verified_blocks, self._fs, row.file, key, batch)
            await self._keep_what_is_nowhere(data, holder, row.size)
        with self._folder.transaction():
            self.rows.drop([row.id])
            self._folder.locations.drop(holder)
        await self._threads.run(unlink_all, self._fs, [row.file])

    async def _keep_what_is_nowhere(
        self, data: Mapping[BlockRef, bytes], holder: ItemId, size: int
    ) -> None:
        missing = {
            ref: plain
            for ref, plain in data.items()
            if not await self._is_elsewhere(ref, holder, size)
        }
        if missing:
            await self.sealed.keep(missing)

    def _blocks_of(self, content: Content) -> list[tuple[BlockRef, int]] | None:
        """All data blocks of a version; None when part of its list is not here."""
        assert content.manifest is not None
        walk = Walk(content.manifest, content.size)
        while (wanted := walk.wants()) is not None:
            node = self._folder.locations.node(wanted.block)
            if node is None:
                return None
            walk.feed(node)
        return list(walk.blocks())

    async def _is_elsewhere(self, ref: BlockRef, holder: ItemId, size: int) -> bool:
        """True when the block lies, verified, where nobody but us may change it; for a very large
        file, also where people may.
        """
        if self.sealed.has(ref.block):
            return True
        for place in self._folder.locations.find(ref.block):
            if place.item == holder or not (is_displaced(place.item) or size > FILE_SIZE_MAX):
                continue
            path = self._folder.disk.path(place.item)
            if path is None:
                continue
            spot = [(ref, place.offset)]
            key = self._folder.block_key
            if await self._threads.run(verified_blocks, self._fs, path, key, spot):
                return True
        return False

    # --- expiring and collecting ----------------------------------------------------------------

    async def _release(self) -> None:
        rows = self.rows.all()
        watched = self.rows.watched()
        going = [one for one in rows if one.since_s == RELEASED and one.file not in watched]
        if going:
            ids = {one.id for one in going}
            needed = self._needs([one for one in rows if one.id not in ids]).blocks
            for one in going:
                await self._drop_file(one, needed)

    async def _expire(self) -> bool:
        """Drop what the policy drops; True when there may be more."""
        rows = self.rows.all()
        kept = self._kept(rows)
        limit, now_s = self.usage().limit, self.clock.now_s()
        by_id = {row.id: row for row in rows}
        asked: set[int] = set()
        while True:
            gone = expired(kept, self.policy, now_s=now_s, limit=limit)
            # Asking is dear, so only those are asked about that are about to go.
            pinned = {i for i in gone - asked if by_id[i].file and self._is_pinned(by_id[i])}
            if not pinned:
                break
            asked |= gone
            kept = [replace(one, pinned=one.pinned or one.id in pinned) for one in kept]
        some = [one.id for one in drop_order(kept) if one.id in gone][:EXPIRED_AT_ONCE]
        with self._folder.transaction():
            self.rows.drop(id_ for id_ in some if by_id[id_].file is None)
        needed = self._needs([row for row in rows if row.id not in some]).blocks
        for id_ in some:
            if by_id[id_].file is not None:
                await self._drop_file(by_id[id_], needed)
        return len(some) == EXPIRED_AT_ONCE

    def _kept(self, rows: Sequence[KeptRow]) -> list[Kept]:
        newest = {row.item: row.id for row in rows}
        now_s, tree = self.clock.now_s(), self._folder.tree
        sketch = [
            Kept(
                id=row.id,
                item=row.item,
                since_s=now_s if row.since_s is None else row.since_s,
                size=row.size,
                last=newest[row.item] == row.id and tree.row(row.item) is None,
            )
            for row in rows
        ]
        by_id = {row.id: row for row in rows}
        sizes = self._needs([by_id[one.id] for one in drop_order(sketch)]).sizes
        return [replace(one, size=sizes[one.id]) for one in sketch]

    def _needs(self, rows: Sequence[KeptRow]) -> _Needs:
        """What `rows` need. A block that several need is charged to the last of them."""
        sizes = {one.ref.block: one.size for one in self.sealed.index.all()}
        needs, seen = _Needs(), set[BlockId]()
        for row in reversed(rows):
            needs.sizes[row.id] = row.size if row.file is not None else 0
            if row.content is not None:
                fresh = blocks_needed(row.content, self._folder.locations.node, seen)
                needs.blocks |= fresh
                needs.sizes[row.id] += sum(sizes.get(block, 0) for block in fresh)
        return needs

    async def _collect(self) -> None:
        if not self.sealed.index.size():
            return
        needed = self._needs(self.rows.all()).blocks | self._held.keys()
        seen: set[BlockId] = set()
        for item in self._folder.pending:
            shown = self._folder.tree.row(item)
            if shown is not None:
                needed |= blocks_needed(shown.content, self._folder.locations.node, seen)
        before_s = self.clock.now_s() - GRACE_S
        gone = [
            one.ref.block
            for one in self.sealed.index.all()
            if one.ref.block not in needed and one.since_s is not None and one.since_s <= before_s
        ]
        for start in range(0, len(gone), BATCH_ROWS):
            await self.sealed.forget(gone[start : start + BATCH_ROWS])


def _batches(
    blocks: Sequence[tuple[BlockRef, int]],
) -> Iterator[list[tuple[BlockRef, int]]]:
    batch: list[tuple[BlockRef, int]] = []
    size = 0
    for ref, offset in blocks:
        if batch and size + ref.length > BATCH_SIZE:
            yield batch
            batch, size = [], 0
        batch.append((ref, offset))
        size += ref.length
    if batch:
        yield batch
