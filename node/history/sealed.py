"""The blocks that no file holds: sealed, in `.shoal/store`, with a row each in the index.

Looks and notes happen on the event loop, reading and writing in worker threads. A block counts once
its row is committed, and that is after it is durable. One that turns out to be rotten is
forgotten, so that it is fetched from a peer; what a crash left without a row is adopted at the
start.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Final

import trio

from crdt.errors import IntegrityError
from crdt.ids import BlockId
from crdt.seal import FolderKeys
from crdt.slot import BlockRef
from node.blocks.codec import epoch_of, open_any, open_block, seal_block
from node.blocks.store import BlockStore
from node.files.port import FileSystem
from node.index.stored import Stored, StoredBlock
from node.ports import Threads
from node.sync.folder import Folder

logger = logging.getLogger("shoal.history")

ADOPTED_AT_ONCE: Final = 64  # blocks looked at in one visit to a worker thread


class SealedBlocks:
    """The sealed blocks of one folder."""

    def __init__(self, folder: Folder, fs: FileSystem, threads: Threads) -> None:
        self._folder = folder
        self._threads = threads
        self._store = BlockStore(fs)
        self._prepared = False
        self._lock = trio.Lock()  # of whoever adds or removes blocks
        self.index = Stored(folder.database.connection)

    def has(self, block: BlockId) -> bool:
        """True when the block should be stored; whether it is sound shows when it is read."""
        return self.index.get(block) is not None

    async def read(self, block: BlockId) -> bytes | None:
        """The block's verified plaintext; None when it is not here, or rotten."""
        ref = self.index.get(block)
        if ref is None:
            return None
        try:
            return await self._threads.run(self._open, ref, self._folder.keys)
        except IntegrityError as error:
            logger.warning("a stored block is damaged and forgotten here: %s", error)
        except FileNotFoundError:
            logger.warning("the stored block %s is gone", block)
        except OSError as error:
            logger.warning("a stored block cannot be read (%s)", error.strerror)
            return None  # it may be readable again later
        await self.forget([block])
        return None

    async def check(self, ref: BlockRef) -> str | None:
        """Why the block cannot be read, None if it can; nothing is changed."""
        try:
            await self._threads.run(self._open, ref, self._folder.keys)
        except (IntegrityError, OSError) as error:
            return str(error)
        return None

    def _open(self, ref: BlockRef, keys: FolderKeys) -> bytes:
        return open_block(keys, ref, self._store.read_sealed(ref.block))

    async def keep(self, blocks: Mapping[BlockRef, bytes], *, since_s: int | None = None) -> None:
        """Seal and store blocks that the caller has verified; durable when it returns.

        Raises:
            OSError: the disk refused; some may be stored.
            IntegrityError: no key to seal with has reached this device yet.
        """
        async with self._lock:
            sizes = await self._threads.run(self._seal_and_put, blocks)
            with self._folder.transaction():
                self.index.put(StoredBlock(ref, size, since_s) for ref, size in sizes.items())

    def _seal_and_put(self, blocks: Mapping[BlockRef, bytes]) -> dict[BlockRef, int]:
        if not self._prepared:
            self._store.prepare()
            self._prepared = True
        keys = self._folder.keys
        if keys.current is None:
            raise IntegrityError("no key to seal with has reached this device yet")
        key, random = keys.epoch(keys.current), self._folder.random
        sealed = {
            ref.block: seal_block(key, ref.block, data, nonce=random.bytes(24))
            for ref, data in blocks.items()
        }
        self._store.put_all(sealed)
        return {ref: len(sealed[ref.block]) for ref in blocks}

    async def forget(self, blocks: Iterable[BlockId]) -> None:
        """Forget blocks and delete them. A crash in between leaves blocks without rows."""
        gone = list(blocks)
        async with self._lock:  # or one that is kept anew meanwhile would lose its file
            with self._folder.transaction():
                self.index.drop(gone)
            await self._threads.run(self._delete, gone)

    def _delete(self, blocks: Iterable[BlockId]) -> None:
        for block in blocks:
            self._store.delete(block)

    async def adopt(self) -> None:
        """Note the blocks that lie in the store without a row: a crash or a lost index left them.

        Those that do not open are deleted, unless it is for want of a key.
        """
        async with self._lock:
            found = await self._threads.run(lambda: list(self._store))
            unknown = [block for block in found if not self.has(block)]
            for start in range(0, len(unknown), ADOPTED_AT_ONCE):
                some = unknown[start : start + ADOPTED_AT_ONCE]
                adopted = await self._threads.run(self._measure, some, self._folder.keys)
                with self._folder.transaction():
                    self.index.put(adopted)

    def _measure(self, blocks: Iterable[BlockId], keys: FolderKeys) -> list[StoredBlock]:
        adopted = []
        for block in blocks:
            sealed = self._store.read_sealed(block)
            if epoch_of(sealed) not in keys.epochs:
                continue
            try:
                ref = BlockRef(block, len(open_any(keys, block, sealed)))
            except IntegrityError as error:
                logger.warning("a stored block that does not open is deleted: %s", error)
                self._store.delete(block)
                continue
            adopted.append(StoredBlock(ref, len(sealed), None))
        return adopted
