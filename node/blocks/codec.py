"""Seals blocks for the wire and for the store, and opens what comes back.

    sealed block   epoch (8, big-endian) || seal of pad(stored) under the epoch's block key
    stored         0 || plaintext, or 1 || one zstd frame of it that declares its size
    seal bound to  ["shoal v1 block", folder, epoch, block id]

The same for data blocks and for nodes of manifests. Pure and thread-safe; a nonce is an argument.
Whoever opens knows from its manifest how long the block is, so nothing larger is ever decoded, and
the block's id is computed again, always. A failure is an `IntegrityError`: the bytes are not the
block, whoever sent or stored them.
"""

from __future__ import annotations

import threading
from typing import Final

import zstandard

from crdt.codec import pack
from crdt.errors import IntegrityError
from crdt.ids import BlockId, FolderId
from crdt.seal import (
    SEAL_OVERHEAD,
    EpochKey,
    FolderKeys,
    open_sealed,
    pad,
    padded_size,
    seal,
    unpad,
)
from crdt.slot import BlockRef
from node.blocks.hashing import block_id

EPOCH_SIZE: Final = 8
ZSTD_LEVEL: Final = 3  # the knee of the curve: 400 MB/s on text, 4 GB/s on what does not shrink
SAMPLE_SIZE: Final = 64 * 1024  # bytes tried first; if they do not shrink, the rest is not tried
WINDOW_SIZE_MAX: Final = 8 * 1024 * 1024  # bytes; level 3 uses 2 MiB, zstd itself advises 8

_CONTEXT: Final = "shoal v1 block"
_ANSWER_CONTEXT: Final = "shoal v1 block pieces"
_STORED: Final = b"\0"
_ZSTD: Final = b"\1"


class _Compressors(threading.local):
    """One of each a thread: they are costly to make and must not be shared."""

    def __init__(self) -> None:
        self.zstd = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        self.unzstd = zstandard.ZstdDecompressor(max_window_size=WINDOW_SIZE_MAX)


_local = _Compressors()


def seal_block(key: EpochKey, block: BlockId, data: bytes, *, nonce: bytes) -> bytes:
    """Compress, pad and encrypt.

    Args:
        key: The epoch to write under.
        block: The id of `data`.
        data: The block's plaintext, 1 byte or more.
        nonce: 24 random bytes, never used twice with one key.
    """
    sealed = seal(
        key.block_key,
        pad(_squeeze(data)),
        nonce=nonce,
        associated=_binding(key.folder, key.number, block),
    )
    return key.number.to_bytes(EPOCH_SIZE) + sealed


def open_block(keys: FolderKeys, ref: BlockRef, sealed: bytes) -> bytes:
    """The block's plaintext, checked against its id.

    Raises:
        IntegrityError: not this block, or sealed under a key that has not reached this device.
    """
    if len(sealed) > sealed_size_max(ref.length):
        raise IntegrityError(
            f"{len(sealed)} bytes cannot be a sealed block of {ref.length}; nothing was decoded"
        )
    padded = _unseal(keys, ref.block, sealed)
    try:
        data = _expand(unpad(padded), ref.length)
    except ValueError as error:
        raise IntegrityError(f"block {ref.block} was sealed wrongly: {error}") from None
    if len(data) != ref.length or block_id(keys.block_id_key, data) != ref.block:
        raise IntegrityError(f"what was sealed as block {ref.block} is something else")
    return data


def open_any(keys: FolderKeys, block: BlockId, sealed: bytes) -> bytes:
    """As `open_block`, for a block of our own store whose length got lost with the index.

    Raises:
        IntegrityError: not this block, or larger than any block is.
    """
    stored = _unseal(keys, block, sealed)
    try:
        ref = BlockRef(block, _length(unpad(stored)))
    except (ValueError, zstandard.ZstdError) as error:
        raise IntegrityError(f"block {block} was sealed wrongly: {error}") from None
    return open_block(keys, ref, sealed)


def seal_answer(key: EpochKey, block: BlockId, answer: bytes, *, nonce: bytes) -> bytes:
    """As `seal_block`, for a block as `node.blocks.pieces` sends it."""
    associated = _binding(key.folder, key.number, block, _ANSWER_CONTEXT)
    sealed = seal(key.block_key, pad(_squeeze(answer)), nonce=nonce, associated=associated)
    return key.number.to_bytes(EPOCH_SIZE) + sealed


def open_answer(keys: FolderKeys, block: BlockId, sealed: bytes, size_max: int) -> bytes:
    """What `seal_answer` sealed: a claim, for `node.blocks.pieces.build`.

    Raises:
        IntegrityError: no answer of at most `size_max` bytes.
    """
    if len(sealed) > sealed_size_max(size_max):
        raise IntegrityError(
            f"{len(sealed)} bytes cannot be an answer of {size_max}; nothing was decoded"
        )
    padded = _unseal(keys, block, sealed, _ANSWER_CONTEXT)
    try:
        plain = unpad(padded)
        length = _length(plain)
        answer = _expand(plain, length) if length <= size_max else b""
    except (ValueError, zstandard.ZstdError) as error:
        raise IntegrityError(f"pieces of block {block} were sealed wrongly: {error}") from None
    if len(answer) != length:
        raise IntegrityError(f"pieces of block {block} are not the {length} bytes they declare")
    return answer


def epoch_of(sealed: bytes) -> int:
    """The number of the epoch that a block was sealed under."""
    return int.from_bytes(sealed[:EPOCH_SIZE])


def _unseal(keys: FolderKeys, block: BlockId, sealed: bytes, context: str = _CONTEXT) -> bytes:
    key = keys.epoch(epoch_of(sealed))
    return open_sealed(
        key.block_key,
        sealed[EPOCH_SIZE:],
        associated=_binding(keys.folder, key.number, block, context),
    )


def sealed_size_max(length: int) -> int:
    """Bytes of a sealed block whose plaintext has `length` bytes and does not shrink at all."""
    return EPOCH_SIZE + SEAL_OVERHEAD + padded_size(len(_STORED) + length + 1)


def _binding(folder: FolderId, epoch: int, block: BlockId, context: str = _CONTEXT) -> bytes:
    return pack([context, folder, epoch, block])


def _squeeze(data: bytes) -> bytes:
    sample = data if len(data) <= SAMPLE_SIZE else memoryview(data)[:SAMPLE_SIZE]
    squeezed = _local.zstd.compress(sample)
    if len(squeezed) >= len(sample):
        return _STORED + data
    if len(data) > SAMPLE_SIZE:
        squeezed = _local.zstd.compress(data)
    return _ZSTD + squeezed if len(squeezed) < len(data) else _STORED + data


def _length(stored: bytes) -> int:
    """Of what was squeezed, as declared; raises ZstdError."""
    return zstandard.frame_content_size(stored[1:]) if stored[:1] == _ZSTD else len(stored) - 1


def _expand(stored: bytes, length: int) -> bytes:
    """Reverse `_squeeze`; raises ValueError rather than hold more than `length` bytes."""
    how, data = stored[:1], stored[1:]
    if how == _STORED:
        return data
    if how != _ZSTD:
        raise ValueError("unknown compression")
    try:
        # zstandard ignores `max_output_size` when the frame declares its size, and a frame may
        # lie about it: check what is declared, and read with a cap.
        declared = zstandard.frame_content_size(data)
        if declared != length:
            raise ValueError(f"it declares {declared} bytes instead of {length}")
        with _local.unzstd.stream_reader(data) as reader:
            plain: bytes = reader.read(length + 1)
    except zstandard.ZstdError as error:
        raise ValueError(f"not valid zstd: {error}") from None
    return plain
