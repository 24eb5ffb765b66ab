"""Describes a file's content: its blocks, their places, and the manifest that names them.

A file whose earlier blocks are known is compared with these first: each is hashed where it should
be, and only around those that differ is the file cut again. Cutting goes on until it meets an old
block again, at whatever offset; from there the old list is followed again, shifted. The result is
exactly that of cutting the whole file anew, because

- where a block ends depends only on its own bytes, on the byte after it, and on the file's end;
- so an old block that is still there ends where it did if the *next* old block is there as well,
  or if the file ends there. The last one of a run that is neither is cut again.

Synchronous, for worker threads; memory is one window of the file and its list of blocks. Nothing is
written. A file that changes meanwhile raises `FileChangedError`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Final

from crdt.actions import Draft
from crdt.ids import BlockId
from crdt.slot import INLINE_SIZE_MAX, BlockRef, Content, Kind, Profile
from node.blocks.chunker import (
    HEAD_SIZE,
    SIZES,
    Cutter,
    FileChangedError,
    ReadAt,
    choose_profile,
    read_exactly,
)
from node.blocks.hashing import block_id
from node.blocks.manifest import build_manifest
from node.files.port import ReadHandle, Stat

__all__ = ["Blocks", "Description", "FileChangedError", "describe_file", "scan_blocks"]

SPAN_SIZE_MIN: Final = 128 * 1024  # bytes of old blocks that are read and hashed at once
SPAN_SIZE: Final = 2 * 1024 * 1024  # bytes; what that grows to
SPANS_MAX: Final = 8  # spans that workers have in hand at once; bounds memory at 16 MiB

Blocks = Sequence[tuple[BlockRef, int]]  # data blocks and their offsets, in the file's order
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Description:
    """A file's content at one moment, that of `stat`."""

    draft: Draft
    stat: Stat
    blocks: tuple[tuple[BlockRef, int], ...] = ()  # empty for inline content
    nodes: dict[BlockId, bytes] = field(default_factory=dict)  # all manifest nodes by id


def describe_file(
    handle: ReadHandle,
    key: bytes,
    *,
    previous: Content | None = None,
    blocks: Blocks = (),
    workers: Executor | None = None,
    progress: Progress | None = None,
) -> Description:
    """Read a file and describe its content.

    Args:
        handle: The file, open.
        key: The folder's block id key.
        previous: What the file held when last agreed; its profile stays the file's.
        blocks: The blocks of `previous` (`Locations.blocks_of`); a hint that saves time. Wrong
            ones do no harm.
        workers: Where old blocks are hashed in parallel; not the pool that this call runs in.
        progress: Called with the number of bytes done, every few MiB.
    Raises:
        FileChangedError: it changed meanwhile; read it again later.
        OSError: the disk refused.
    """
    before = handle.stat()
    draft = partial(
        Draft,
        Kind.FILE,
        size=before.size,
        mtime_ns=before.mtime_ns,
        executable=before.executable,
    )
    if before.size <= INLINE_SIZE_MAX:
        data = read_exactly(handle.read_at, 0, before.size)
        _check_unchanged(handle, before)
        return Description(draft(inline=data), before)
    profile = _profile(handle, before.size, previous)
    found = scan_blocks(
        handle.read_at,
        before.size,
        Cutter(SIZES[profile]),
        key,
        old=blocks,
        workers=workers,
        progress=progress,
    )
    _check_unchanged(handle, before)
    manifest, nodes = build_manifest(key, profile, [ref for ref, _ in found])
    return Description(draft(manifest=manifest), before, tuple(found), nodes)


def scan_blocks(
    read_at: ReadAt,
    size: int,
    cutter: Cutter,
    key: bytes,
    *,
    old: Blocks = (),
    workers: Executor | None = None,
    progress: Progress | None = None,
) -> list[tuple[BlockRef, int]]:
    """The data blocks of a file of `size` bytes; see `describe_file`."""
    scan = _Scan(read_at, size, key, [ref for ref, _ in old], workers=workers, progress=progress)
    scan.follow(0)
    while scan.end < size:
        for offset, data in cutter.cut(read_at, scan.end, size):
            ref = BlockRef(block_id(key, data), len(data))
            scan.add(ref)
            scan.rejoin(ref)
            if scan.end != offset + ref.length:
                break  # the old list held for a while; cut on from where it ended
    return scan.found


def _profile(handle: ReadHandle, size: int, previous: Content | None) -> Profile:
    if previous is not None and previous.manifest is not None:
        return previous.manifest.profile
    return choose_profile(read_exactly(handle.read_at, 0, min(HEAD_SIZE, size)), size)


def _check_unchanged(handle: ReadHandle, before: Stat) -> None:
    now = handle.stat()
    if (now.size, now.mtime_ns, now.ctime_ns) != (before.size, before.mtime_ns, before.ctime_ns):
        raise FileChangedError("the file changed while it was read; it is read again later")


class _Scan:
    """The blocks found so far, and how the old list helps to find the next."""

    def __init__(
        self,
        read_at: ReadAt,
        size: int,
        key: bytes,
        old: list[BlockRef],
        *,
        workers: Executor | None,
        progress: Progress | None,
    ) -> None:
        self._read_at = read_at
        self._size = size
        self._key = key
        self._old = old
        self._workers = workers
        self._progress = progress
        self._told = 0
        self.found: list[tuple[BlockRef, int]] = []
        self.end = 0  # of the blocks found

    @cached_property
    def _places(self) -> dict[BlockId, int]:
        """Where in the old list a block stands; the first place of one that repeats."""
        places: dict[BlockId, int] = {}
        for index, ref in enumerate(self._old):
            places.setdefault(ref.block, index)
        return places

    def add(self, ref: BlockRef) -> None:
        """The next block is `ref`."""
        self.found.append((ref, self.end))
        self.end += ref.length
        if self._progress is not None and (
            self.end - self._told >= SPAN_SIZE or self.end == self._size
        ):
            self._told = self.end
            self._progress(self.end)

    def rejoin(self, ref: BlockRef) -> None:
        """Having cut `ref`, try what came after it in the old list."""
        place = self._places.get(ref.block)
        if place is not None:
            self.follow(place + 1)

    def follow(self, index: int) -> None:
        """Take over old blocks from `index` on, as far as they lie here and end where they did."""
        # A single block first, then more and more: what is read in vain past a difference stays in
        # proportion to what was found before it.
        first, span_size, spans_max = len(self.found), 1, 1
        while spans := self._spans(index, span_size, spans_max):
            run = map if self._workers is None or len(spans) == 1 else self._workers.map
            # All results are awaited: nothing reads a file that the caller may close.
            held = list(run(self._count_held, spans))
            for (start, stop, _), count in zip(spans, held, strict=True):
                for ref in self._old[start : start + count]:
                    self.add(ref)
                index = start + count
                if index < stop:
                    return self._settle(first)
            if span_size < SPAN_SIZE:
                span_size = min(max(SPAN_SIZE_MIN, 2 * span_size), SPAN_SIZE)
            elif self._workers is not None:
                spans_max = min(2 * spans_max, SPANS_MAX)
        return self._settle(first)

    def _settle(self, first: int) -> None:
        """Give the last old block back unless its end is certain; see the module's docstring."""
        if self.end != self._size and len(self.found) > first:
            _, self.end = self.found.pop()

    def _spans(self, index: int, span_size: int, count: int) -> list[tuple[int, int, int]]:
        """The next spans of old blocks: (first, past the last, where they should lie)."""
        spans: list[tuple[int, int, int]] = []
        start, offset, end = index, self.end, self.end
        while len(spans) < count and index < len(self._old):
            length = self._old[index].length
            if end + length > self._size:
                break
            index += 1
            end += length
            if end - offset >= span_size:
                spans.append((start, index, offset))
                start, offset = index, end
        if start < index:
            spans.append((start, index, offset))
        return spans

    def _count_held(self, span: tuple[int, int, int]) -> int:
        """How many blocks of a span lie where they should, up to the first that does not."""
        start, stop, offset = span
        refs = self._old[start:stop]
        data = memoryview(read_exactly(self._read_at, offset, sum(ref.length for ref in refs)))
        position = 0
        for count, ref in enumerate(refs):
            if block_id(self._key, data[position : position + ref.length]) != ref.block:
                return count
            position += ref.length
        return len(refs)
