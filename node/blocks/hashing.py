"""Names blocks: BLAKE3 of the plaintext, keyed with the folder's block id key. Pure; releases the
GIL.
"""

from __future__ import annotations

from typing import Final

import blake3

from crdt.ids import BlockId

PARALLEL_SIZE_MIN: Final = 1024 * 1024  # bytes; below it, waking other threads costs more


def block_id(key: bytes, data: bytes | memoryview) -> BlockId:
    """The id of a block with this plaintext.

    Args:
        key: The folder's block id key, 32 bytes.
        data: The whole block.
    """
    threads = blake3.blake3.AUTO if len(data) >= PARALLEL_SIZE_MIN else 1
    return BlockId(blake3.blake3(data, key=key, max_threads=threads).digest())
