"""Pieces of a block that is here, for one that is to come; see `node.blocks.pieces`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from crdt.ids import BlockId
from crdt.seal import EpochKey, FolderKeys
from crdt.slot import BlockRef
from node.blocks.codec import open_answer, seal_answer, seal_block
from node.blocks.pieces import (
    PIECES_MAX,
    answer,
    answer_size_max,
    build,
    cut,
    hash_pieces,
)
from transport.messages import Block, Pieces


@dataclass(frozen=True, slots=True)
class Held:
    """What a block might be built of. The pieces stay in memory until it has come."""

    pieces: tuple[memoryview, ...]
    hashes: bytes

    @classmethod
    def of(cls, key: bytes, data: bytes, length: int) -> Held:
        """Of `data`, for a block of `length` bytes; `key` is the folder's block id key."""
        pieces = tuple(cut(data, length)[:PIECES_MAX])
        return cls(pieces, hash_pieces(key, pieces))

    def build(self, keys: FolderKeys, ref: BlockRef, sealed: bytes) -> bytes:
        """What the answer claims to be the block `ref`, to be compared with its id.

        Raises:
            IntegrityError, ValueError: it is no answer to these hashes.
        """
        opened = open_answer(keys, ref.block, sealed, answer_size_max(ref.length))
        return build(self.pieces, opened, ref.length)


def seal_alike(
    key: EpochKey, id_key: bytes, block: BlockId, data: bytes, held: bytes, nonce: bytes
) -> tuple[Callable[[int, BlockId, bytes], Block | Pieces], bytes]:
    """Seal what somebody with these pieces lacks of a block, or all of it if that is not much less.

    Returns: the kind of answer, and what it is sealed.
    """
    answered = answer(id_key, data, held)
    if len(answered) > answer_size_max(len(data)):
        return Block, seal_block(key, block, data, nonce=nonce)
    return Pieces, seal_answer(key, block, answered, nonce=nonce)
