"""What is known of versions' contents: which one some bytes were, and which blocks it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from crdt.ids import BlockId, DeviceId, ItemId
from crdt.slot import BlockRef, Content, Slot
from crdt.version_vector import VersionVector
from node.blocks.manifest import parse_node


class Past(Protocol):
    """What remembers slots that were replaced: the tree's index."""

    def ever_of(self, item: ItemId) -> list[tuple[DeviceId, Slot]]:
        """Every slot that the item has and had."""
        ...


def content_of(tree: Past, item: ItemId, version: VersionVector, digest: bytes) -> Content | None:
    """The content of `item` with these bytes, of that version where there is one."""
    same = [
        slot.content
        for _, slot in tree.ever_of(item)
        if slot.content is not None and slot.content.digest == digest
    ]
    exact = next((content for content in same if content.version == version), None)
    return exact if exact is not None else next(iter(same), None)


def blocks_needed(
    content: Content, node: Callable[[BlockId], bytes | None], seen: set[BlockId]
) -> set[BlockId]:
    """The data blocks of a version that are not in `seen`, nor below a node that is; both are
    added to it. What hangs on a node that is not here stays out.
    """
    needed: set[BlockId] = set()
    if content.manifest is None:
        return needed
    heads: list[tuple[BlockRef, int]] = [
        (ref, content.manifest.depth) for ref in content.manifest.blocks
    ]
    while heads:
        ref, depth = heads.pop()
        if ref.block in seen:
            continue
        if depth == 0:
            seen.add(ref.block)
            needed.add(ref.block)
            continue
        data = node(ref.block)
        if data is not None:
            seen.add(ref.block)
            heads += [(below, depth - 1) for below in parse_node(data)]
    return needed
