"""Reads blocks out of people's files, which may have changed since the index noted them."""

from __future__ import annotations

from crdt.slot import BlockRef
from node.blocks.hashing import block_id
from node.files.port import ReadHandle


def read_block(handle: ReadHandle, key: bytes, ref: BlockRef, offset: int) -> bytes | None:
    """The block at `offset`, or None if other bytes lie there by now: edited, or rotten.

    An edit is known by the file's stat; where that still is what the index says, it is rot, to be
    reported and repaired from a peer. Synchronous, for worker threads.

    Args:
        handle: The file, open.
        key: The folder's block id key.
        ref: What should lie there.
        offset: In bytes.
    Raises:
        OSError: the disk refused.
    """
    data = handle.read_at(offset, ref.length)
    if len(data) != ref.length or block_id(key, data) != ref.block:
        return None
    return data
