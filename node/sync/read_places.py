"""Reads blocks from people's files, where the index says they lie; for worker threads."""

from __future__ import annotations

from dataclasses import dataclass

from crdt.ids import ItemId
from crdt.seal import EpochKey
from crdt.slot import BlockRef
from node.blocks.codec import seal_block
from node.blocks.read import read_block
from node.files.port import FileSystem


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block should be: in this file of this item."""

    item: ItemId
    path: str
    ref: BlockRef
    offset: int


def read_plain(fs: FileSystem, path: str, key: bytes, ref: BlockRef, offset: int) -> bytes | None:
    """The block's bytes out of a file, None if they are not there any more."""
    try:
        with fs.open_read(path) as handle:
            return read_block(handle, key, ref, offset)
    except OSError:
        return None


def read_sealed(
    fs: FileSystem, id_key: bytes, places: list[Place], key: EpochKey, nonces: list[bytes]
) -> list[bytes | None]:
    """Blocks sealed under `key`, one with each nonce; None for one that is not there any more."""
    sealed: list[bytes | None] = []
    for place, nonce in zip(places, nonces, strict=True):
        data = read_plain(fs, place.path, id_key, place.ref, place.offset)
        sealed.append(None if data is None else seal_block(key, place.ref.block, data, nonce=nonce))
    return sealed
