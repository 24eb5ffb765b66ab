"""Brings a file version's blocks together: from this disk where it has them, else from peers.

A small file comes together in memory. A large one is written block by block into a file in
`.shoal/tmp` that is named after the content, so that an interrupted transfer goes on where it was:
what lies there already is read, checked against the block's id, and kept if it fits.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

import trio

from crdt.errors import ShoalError
from crdt.ids import BlockId, ItemId
from crdt.slot import BlockRef, Content, Manifest
from node.blocks.hashing import block_id
from node.blocks.manifest import ManifestError, Walk, alike, parse_node
from node.files.layout import TMP
from node.files.patch import STRETCHES_MAX, Stretch, differing, touched
from node.files.port import FileSystem, StatKind, WriteHandle, join
from node.files.sparse import write_sparsely
from node.index.disk_rows import DiskRow
from node.ports import Threads
from node.sync.planner import still_as_agreed

MEMORY_SIZE_MAX: Final = 1024 * 1024  # bytes; larger files are assembled on the disk
WINDOW_BLOCKS: Final = 64  # blocks of one large file that are asked for at once
WINDOW_SIZE: Final = 8 * 1024 * 1024  # bytes of them


PATCH_SIZE_MIN: Final = 256 * 1024 * 1024  # bytes; smaller files are written anew
PATCH_CHANGE_MAX: Final = 64 * 1024 * 1024  # bytes; others must not wait long for the file
PATCH_SHARE: Final = 4  # at most one byte in so many changes
GROWTH_MAX: Final = 2  # times the base's size; bounds what a manifest can claim
DIGEST_LENGTH: Final = 16  # hex digits of a content's digest in the names of temporary files


class BlockSource(Protocol):
    """Where plaintext blocks come from."""

    async def block(
        self, ref: BlockRef, *, transfer_size: int, like: BlockRef | None = None
    ) -> bytes:
        """The block's verified bytes; waits for a peer that has it. Small transfers go first.
        Where this disk has the block `like`, only what differs from that need come.
        """
        ...

    async def node(self, ref: BlockRef, *, like: BlockRef | None = None) -> bytes:
        """A manifest node's verified bytes."""
        ...


Likes = Mapping[BlockId, BlockRef]
"""What a block to come may be like, of those that are here."""


@dataclass(frozen=True, slots=True)
class Former:
    """The list of blocks that a file had when last agreed; `node` reads from the index."""

    manifest: Manifest
    node: Callable[[BlockId], bytes | None]


@dataclass(frozen=True, slots=True)
class Base:
    """What lies on the disk in place of the content to come, and can be changed in place."""

    path: str
    row: DiskRow
    blocks: Sequence[tuple[BlockRef, int]]


@dataclass(frozen=True, slots=True)
class Changes:
    """How a content differs from its base: few enough stretches to change them in place."""

    base: Base
    stretches: tuple[Stretch, ...]

    @property
    def replaced(self) -> list[tuple[BlockRef, int]]:
        """The base's blocks that do not stay."""
        return touched(self.base.blocks, [(one.offset, one.old) for one in self.stretches])


@dataclass(frozen=True, slots=True)
class Assembled:
    """A file's whole content: in `source`, or written and whole at `temporary`."""

    digest: bytes
    source: bytes | None
    temporary: str
    blocks: tuple[tuple[BlockRef, int], ...]
    nodes: Mapping[BlockId, bytes] = field(default_factory=dict)
    changes: Changes | None = None  # `temporary` holds no more than these, at their places


class Assembler:
    """Assembles files of one folder."""

    def __init__(
        self,
        fs: FileSystem,
        threads: Threads,
        source: BlockSource,
        key: bytes,
        *,
        memory_size_max: int = MEMORY_SIZE_MAX,
    ) -> None:
        """Args:
        key: The folder's block id key.
        memory_size_max: Larger files, in bytes, are assembled on the disk.
        """
        self._fs = fs
        self._threads = threads
        self._source = source
        self._key = key
        self._memory_size_max = memory_size_max
        self._promised = 0  # bytes that files on their way in will still take

    async def assemble(
        self,
        item: ItemId,
        content: Content,
        base: Base | None = None,
        former: Former | None = None,
    ) -> Assembled:
        """Bring together the content of a file that has a manifest; where `base` is given, and
        little changes, only what does. `former` is what the new blocks may be like.

        Raises:
            OSError: the disk refused, or has no room for all of it; then nothing was written.
            ShoalError: the manifest makes no sense.
        """
        assert content.manifest is not None, "small files are inline"
        if content.size <= self._memory_size_max:
            nodes, blocks, likes = await self._list(content, former)
            data = await self._in_memory(blocks, content.size, likes)
            return Assembled(content.digest, data, new_path(item), tuple(blocks), nodes)
        if base is not None and content.size <= GROWTH_MAX * base.row.size:
            nodes, blocks, likes = await self._list(content, former)
            stretches = differing(base.blocks, blocks, base.row.size, content.size)
            if worth_patching(stretches, content.size):
                changes = Changes(base, stretches)
                return await self._changes(item, content, changes, nodes, blocks, likes)
        part = part_path(item, content.digest)
        # Before the manifest is walked: a few nodes may claim petabytes.
        async with self._room_for(part, content.size):
            nodes, blocks, likes = await self._list(content, former)
            await self._on_disk(part, blocks, content.size, likes)
            return Assembled(content.digest, None, part, tuple(blocks), nodes)

    @contextlib.asynccontextmanager
    async def _room_for(self, part: str, size: int) -> AsyncIterator[None]:
        free, needed = await self._threads.run(_room, self._fs, part, size)
        # What others were promised counts, or two files would fill the disk and neither be done.
        if needed > free - self._promised:
            raise OSError(errno.ENOSPC, f"no room on the disk for its {size:,} bytes")
        self._promised += needed
        try:
            yield
        finally:
            self._promised -= needed

    async def _list(
        self, content: Content, former: Former | None
    ) -> tuple[dict[BlockId, bytes], list[tuple[BlockRef, int]], dict[BlockId, BlockRef]]:
        """The manifest's nodes, the data blocks with their offsets, and what either are like."""
        manifest = content.manifest
        assert manifest is not None
        nodes: dict[BlockId, bytes] = {}
        likes: dict[BlockId, BlockRef] = {}
        if former is not None and former.manifest.depth == manifest.depth:
            likes = alike(former.manifest.blocks, manifest.blocks)
        walk = Walk(manifest, content.size)
        while (wanted := walk.wants()) is not None:
            like = likes.get(wanted.block)
            nodes[wanted.block] = data = await self._source.node(wanted, like=like)
            walk.feed(data)
            old = former.node(like.block) if former is not None and like is not None else None
            if old is not None:
                with contextlib.suppress(ManifestError):
                    likes |= alike(parse_node(old), parse_node(data))
        return nodes, list(walk.blocks()), likes

    async def _changes(
        self,
        item: ItemId,
        content: Content,
        changes: Changes,
        nodes: Mapping[BlockId, bytes],
        blocks: list[tuple[BlockRef, int]],
        likes: Likes,
    ) -> Assembled:
        """Bring together what differs from the base: in a clone of it where this disk has clones,
        which is then exchanged for it; else alone.
        """
        part = part_path(item, content.digest)
        wanted = touched(blocks, [(one.offset, one.new) for one in changes.stretches])
        size = sum(ref.length for ref, _ in wanted)
        # The part, the journal's old and new bytes, and what history keeps.
        async with self._room_for(part, 4 * size):
            cloned = await self._threads.run(_clone, self._fs, changes.base, part)
            await self._on_disk(part, wanted, content.size, likes)
        left = None if cloned else changes
        return Assembled(content.digest, None, part, tuple(blocks), nodes, left)

    async def _in_memory(
        self, blocks: list[tuple[BlockRef, int]], size: int, likes: Likes
    ) -> bytes:
        async def get(ref: BlockRef) -> bytes:
            like = likes.get(ref.block)
            return await self._source.block(ref, transfer_size=size, like=like)

        if len(blocks) == 1:
            return await get(blocks[0][0])
        whole = bytearray(size)

        async def fill(ref: BlockRef, offset: int) -> None:
            whole[offset : offset + ref.length] = await get(ref)

        async with trio.open_nursery() as nursery:
            for ref, offset in blocks:
                nursery.start_soon(fill, ref, offset)
        return bytes(whole)

    async def _on_disk(
        self, path: str, blocks: list[tuple[BlockRef, int]], size: int, likes: Likes
    ) -> None:
        handle = await self._threads.run(_open_part, self._fs, path, size)
        try:
            missing = await self._threads.run(_missing, handle, blocks, self._key)
            window = trio.CapacityLimiter(WINDOW_BLOCKS)
            room = trio.CapacityLimiter(max(1, WINDOW_SIZE // _largest(blocks)))
            async with trio.open_nursery() as nursery:
                for ref, offset in missing:
                    token = object()
                    await window.acquire_on_behalf_of(token)
                    await room.acquire_on_behalf_of(token)
                    get = partial(
                        self._source.block, ref, transfer_size=size, like=likes.get(ref.block)
                    )
                    nursery.start_soon(self._fill, handle, get, offset, (window, room), token)
        finally:
            handle.close()

    async def _fill(
        self,
        handle: WriteHandle,
        get: Callable[[], Awaitable[bytes]],
        offset: int,
        limits: tuple[trio.CapacityLimiter, ...],
        token: object,
    ) -> None:
        try:
            data = await get()
            await self._threads.run(write_sparsely, handle, offset, data)
        finally:
            for limit in limits:
                limit.release_on_behalf_of(token)


def worth_patching(stretches: Sequence[Stretch], size: int) -> bool:
    """True if little enough of a file of `size` bytes changes."""
    changed = sum(max(one.old, one.new) for one in stretches)
    return changed <= min(PATCH_CHANGE_MAX, size // PATCH_SHARE) and len(stretches) <= STRETCHES_MAX


def new_path(item: ItemId) -> str:
    """Where a small content is written; whatever lies there is unfinished, and ours."""
    return f"{TMP}/{item.hex()}.new"


def swap_path(item: ItemId, digest: bytes) -> str:
    """Where whole new content lies in the moment of its exchange, and what it displaced after it.

    The name says what the content is before the exchange, so that after a crash one can tell.
    """
    return f"{TMP}/{item.hex()}-{digest.hex()[:DIGEST_LENGTH]}.swap"


def patch_path(item: ItemId) -> str:
    """The journal of a file that is changed in place."""
    return f"{TMP}/{item.hex()}.patch"


def part_path(item: ItemId, digest: bytes) -> str:
    """Where a large content comes together."""
    return f"{TMP}/{item.hex()}-{digest.hex()[:DIGEST_LENGTH]}.part"


def remove_parts(fs: FileSystem) -> None:
    """Remove all that came together in part; only while nothing does."""
    for entry in fs.scandir(TMP):
        if entry.name.endswith(".part") and entry.stat.kind is StatKind.FILE:
            fs.unlink(join(TMP, entry.name))


def _largest(blocks: list[tuple[BlockRef, int]]) -> int:
    return max((ref.length for ref, _ in blocks), default=1)


def _room(fs: FileSystem, part: str, size: int) -> tuple[int, int]:
    """Bytes that are free, and that a file of `size` still takes, part of which may be there."""
    try:
        blocks = fs.lstat(part).blocks
    except FileNotFoundError:
        blocks = 0
    return fs.free_bytes(), max(0, size - 512 * max(0, blocks))


def _clone(fs: FileSystem, base: Base, part: str) -> bool:
    """Make `part` a clone of the base; False if this disk has none, or the base is another by now,
    or a part is here already, from before a crash.
    """
    try:
        if not still_as_agreed(fs.lstat(base.path), base.row):
            return False
        fs.clone(base.path, part)
    except OSError:
        return False
    if still_as_agreed(fs.lstat(base.path), base.row):
        return True
    fs.unlink(part)
    return False


def _open_part(fs: FileSystem, path: str, size: int) -> WriteHandle:
    try:
        handle = fs.create(path)
    except FileExistsError:
        handle = fs.open_write(path)
    try:
        handle.truncate(size)
    except BaseException:
        handle.close()
        raise
    return handle


def _missing(
    handle: WriteHandle, blocks: list[tuple[BlockRef, int]], key: bytes
) -> list[tuple[BlockRef, int]]:
    """The blocks that the part does not hold yet; what a crash tore is among them."""
    if not handle.stat().blocks:
        return blocks
    return [
        (ref, offset)
        for ref, offset in blocks
        if block_id(key, handle.read_at(offset, ref.length)) != ref.block
    ]


def reason_of(error: Exception) -> str:
    """What to tell people; a bug among several errors is raised again."""
    while isinstance(error, ExceptionGroup):
        error = next(
            (one for one in error.exceptions if not isinstance(one, OSError | ShoalError)),
            error.exceptions[0],
        )
    if not isinstance(error, OSError | ShoalError):
        raise error
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
