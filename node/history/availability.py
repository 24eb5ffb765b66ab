"""Whether a version's bytes are to be had: here, by the index, or from a peer that is asked.

A look at many versions of one large file costs what they differ in: parts of their block lists that
were found whole once are not looked at again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from crdt.ids import BlockId
from crdt.slot import BlockRef, Content
from node.blocks.manifest import parse_node
from node.sync.folder import Folder


class Exchange(Protocol):
    """What is asked of the block exchange."""

    def has(self, block: BlockId) -> bool:
        """True when this disk should have the block."""
        ...

    async def lacking(self, blocks: Sequence[BlockId]) -> set[BlockId]:
        """Those of the blocks that no connected peer has."""
        ...


class Availability:
    """Looks for the blocks of versions; remembers what it found, so make a new one each time."""

    def __init__(self, folder: Folder, exchange: Exchange) -> None:
        self._folder = folder
        self._exchange = exchange
        self._whole: set[BlockId] = set()  # nodes with all below them, and blocks, that are here

    async def of_all(self, contents: Iterable[Content]) -> list[bool]:
        """For each content, whether all of it is to be had now."""
        lacking = [self.lacking_here(content) for content in contents]
        wanted = sorted({ref.block for some in lacking for ref in some})
        nowhere = await self._exchange.lacking(wanted) if wanted else set()
        # A node that only a peer has hides what is below it; the peer that keeps it keeps that.
        return [not any(ref.block in nowhere for ref in some) for some in lacking]

    def lacking_here(self, content: Content) -> list[BlockRef]:
        """The blocks and nodes that this disk does not have; those below a missing node are not
        known.
        """
        if content.manifest is None:
            return []
        return [
            ref
            for ref in content.manifest.blocks
            for ref in self._lacking(ref, content.manifest.depth)
        ]

    def _lacking(self, ref: BlockRef, depth: int) -> list[BlockRef]:
        if ref.block in self._whole:
            return []
        if depth == 0:
            if not self._exchange.has(ref.block):
                return [ref]
            self._whole.add(ref.block)
            return []
        data = self._folder.locations.node(ref.block)
        if data is None:
            return [ref]
        missing = [one for below in parse_node(data) for one in self._lacking(below, depth - 1)]
        if not missing:
            self._whole.add(ref.block)
        return missing
