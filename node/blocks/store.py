"""The store: sealed blocks that no file holds (history, partial downloads, trash), under `.shoal/`.

One file a block, `.shoal/store/ab/ab12...`, whose content is `node.blocks.codec`'s sealed block.
A block is written under `.shoal/store/new`, fsynced, renamed, and its directory fsynced: at any
moment a name in the store leads to a whole block, and when `put` returns it survives a power cut.
What a crash leaves in `new` is removed by `prepare`.

Synchronous, for worker threads; safe to call from several at once. Every read is verified. A
rotten block raises `IntegrityError`: the caller deletes it, fetches it from a peer and puts it
again. Failures of the disk are OSErrors.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Final

from crdt.errors import IntegrityError
from crdt.ids import BlockId
from crdt.seal import FolderKeys
from crdt.slot import BlockRef
from node.blocks.codec import open_block, sealed_size_max
from node.files.layout import STORE
from node.files.port import FileSystem, StatKind, join

NEW: Final = f"{STORE}/new"
GROUP_SYNC_MIN: Final = 8  # blocks at once from which one syncfs is cheaper than an fsync each
SEALED_SIZE_MAX: Final = sealed_size_max(4 * 1024 * 1024)  # of the largest block there is
_FAN_OUT: Final = 2  # hex digits of a block's directory: 256 of them


class BlockStore:
    """The sealed blocks of one folder."""

    def __init__(self, fs: FileSystem) -> None:
        """Args: `fs` is the folder; `.shoal/store` exists. Call `prepare` before anything else."""
        self._fs = fs
        self._names = itertools.count()
        self._durable: set[str] = set()  # directories whose own names are known to be on the disk

    def prepare(self) -> None:
        """Make the directory for unfinished blocks, or empty it of what a crash left."""
        try:
            self._fs.mkdir(NEW, private=True)
        except FileExistsError:
            for entry in self._fs.scandir(NEW):
                self._fs.unlink(join(NEW, entry.name))
        else:
            self._fs.fsync_directory(STORE)

    def has(self, block: BlockId) -> bool:
        """True when the block is stored; whether it is sound shows when it is read."""
        try:
            return self._fs.lstat(_path(block)).kind is StatKind.FILE
        except FileNotFoundError:
            return False

    def get(self, keys: FolderKeys, ref: BlockRef) -> bytes | None:
        """The block's verified plaintext; None when it is not stored.

        Raises:
            IntegrityError: what is stored is not the block.
        """
        found = self._read(keys, ref)
        return None if found is None else found[1]

    def get_sealed(self, keys: FolderKeys, ref: BlockRef) -> bytes | None:
        """The block as it was sealed, verified as well: a peer must not be sent what is rotten.

        Raises:
            IntegrityError: what is stored is not the block.
        """
        found = self._read(keys, ref)
        return None if found is None else found[0]

    def read_sealed(self, block: BlockId) -> bytes:
        """What lies there as the block, unverified; whoever opens it verifies it.

        Raises:
            FileNotFoundError: it is not stored.
        """
        with self._fs.open_read(_path(block)) as handle:
            return handle.read_at(0, SEALED_SIZE_MAX + 1)

    def put(self, block: BlockId, sealed: bytes) -> None:
        """Keep a sealed block; durable when it returns. See `put_all`."""
        self.put_all({block: sealed})

    def put_all(self, blocks: Mapping[BlockId, bytes]) -> None:
        """Keep sealed blocks that the caller has opened or made; durable when it returns.

        One that is here already stays as it is. After an error some may be stored.
        """
        directories = {_directory(block) for block in blocks}
        together = len(blocks) >= GROUP_SYNC_MIN
        written: dict[str, str] = {}
        try:
            for block, sealed in blocks.items():
                written[_path(block)] = self._write(sealed, fsync=not together)
            if together:
                self._fs.sync()
            for path, temporary in written.items():
                self._move(temporary, path)
        except BaseException:
            for temporary in written.values():
                with contextlib.suppress(OSError):
                    self._fs.unlink(temporary)
            raise
        for directory in sorted(directories):
            self._fs.fsync_directory(directory)
        if not directories <= self._durable:
            self._fs.fsync_directory(STORE)
            self._durable |= directories

    def delete(self, block: BlockId) -> None:
        """Forget a block. A power cut soon after may bring it back, which does no harm."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.unlink(_path(block))

    def __iter__(self) -> Iterator[BlockId]:
        """The ids of all stored blocks, a directory at a time; other files are passed over."""
        for directory in sorted(self._fs.scandir(STORE), key=lambda entry: entry.name):
            if directory.stat.kind is not StatKind.DIRECTORY or len(directory.name) != _FAN_OUT:
                continue
            for entry in self._fs.scandir(join(STORE, directory.name)):
                with contextlib.suppress(ValueError):
                    block = BlockId(bytes.fromhex(entry.name))
                    if _path(block) == join(join(STORE, directory.name), entry.name):
                        yield block

    def _read(self, keys: FolderKeys, ref: BlockRef) -> tuple[bytes, bytes] | None:
        try:
            handle = self._fs.open_read(_path(ref.block))
        except FileNotFoundError:
            return None
        with handle:
            sealed = handle.read_at(0, sealed_size_max(ref.length) + 1)
        try:
            return sealed, open_block(keys, ref, sealed)
        except IntegrityError as error:
            raise IntegrityError(f"the store's copy is damaged: {error}") from error

    def _write(self, sealed: bytes, *, fsync: bool) -> str:
        temporary = join(NEW, f"{next(self._names)}")
        try:
            with self._fs.create(temporary) as handle:
                handle.write_at(0, sealed)
                if fsync:
                    handle.fsync()
        except BaseException:
            with contextlib.suppress(OSError):
                self._fs.unlink(temporary)
            raise
        return temporary

    def _move(self, temporary: str, path: str) -> None:
        directory = path.rpartition("/")[0]
        try:
            try:
                self._fs.rename(temporary, path)
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):  # another thread was faster
                    self._fs.mkdir(directory, private=True)
                self._fs.rename(temporary, path)
        except FileExistsError:
            self._fs.unlink(temporary)


def _directory(block: BlockId) -> str:
    return join(STORE, block.hex()[:_FAN_OUT])


def _path(block: BlockId) -> str:
    return join(_directory(block), block.hex())
