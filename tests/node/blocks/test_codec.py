"""Sealed blocks open to what was sealed, or not at all."""

from __future__ import annotations

import os
import random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from crdt.codec import pack
from crdt.errors import IntegrityError
from crdt.ids import BlockId, FolderId
from crdt.seal import EpochKey, FolderKeys, pad, padded_size, seal
from crdt.slot import BlockRef
from node.blocks.codec import EPOCH_SIZE, open_block, seal_block, sealed_size_max
from node.blocks.hashing import block_id

FOLDER = FolderId(bytes(32))
FIRST, SECOND = (EpochKey(FOLDER, bytes([n]) * 32) for n in (1, 2))
KEYS = FolderKeys(FOLDER, {key.number: key for key in (FIRST, SECOND)}, FIRST.number, SECOND.number)
NONCE = bytes(24)


def ref_of(data: bytes) -> BlockRef:
    return BlockRef(block_id(KEYS.block_id_key, data), len(data))


def sealed_of(data: bytes, key: EpochKey = FIRST) -> bytes:
    return seal_block(key, ref_of(data).block, data, nonce=NONCE)


def forge(stored: bytes, ref: BlockRef) -> bytes:
    """What a member with the key could seal as block `ref`."""
    associated = pack(["shoal v1 block", FOLDER, FIRST.number, ref.block])
    body = seal(FIRST.block_key, pad(stored), nonce=NONCE, associated=associated)
    return FIRST.number.to_bytes(EPOCH_SIZE) + body


@given(st.binary(min_size=1, max_size=300), st.integers(1, 1000), st.sampled_from([FIRST, SECOND]))
def test_round_trip(data: bytes, times: int, key: EpochKey) -> None:
    data *= times
    sealed = sealed_of(data, key)
    assert len(sealed) <= sealed_size_max(len(data))
    assert open_block(KEYS, ref_of(data), sealed) == data


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 65_537, 262_144, 4 * 1024 * 1024])
def test_what_does_not_shrink_is_stored(size: int) -> None:
    data = random.Random(1).randbytes(size)
    sealed = sealed_of(data)
    assert len(sealed) == sealed_size_max(size)
    assert open_block(KEYS, ref_of(data), sealed) == data


def test_text_shrinks() -> None:
    data = b"to be or not to be, that is the question\n" * 5000
    assert len(sealed_of(data)) < len(data) / 100


def test_sizes_tell_little() -> None:
    sizes = {len(sealed_of(os.urandom(size))) for size in range(1000, 1100)}
    assert len(sizes) <= 5


@pytest.mark.parametrize("data", [b"hello", b"x" * 500])
def test_every_flipped_byte_is_refused(data: bytes) -> None:
    ref, sealed = ref_of(data), sealed_of(data)
    for at in range(len(sealed)):
        for mask in (1, 0x80):
            changed = sealed[:at] + bytes([sealed[at] ^ mask]) + sealed[at + 1 :]
            with pytest.raises(IntegrityError):
                open_block(KEYS, ref, changed)


def test_every_shortened_and_any_longer_one_is_refused() -> None:
    data = b"hello"
    ref, sealed = ref_of(data), sealed_of(data)
    for size in range(len(sealed)):
        with pytest.raises(IntegrityError):
            open_block(KEYS, ref, sealed[:size])
    for more in (b"\0", bytes(100)):
        with pytest.raises(IntegrityError):
            open_block(KEYS, ref, sealed + more)


def test_other_names_lengths_folders_and_epochs_are_refused() -> None:
    data = b"hello"
    ref, sealed = ref_of(data), sealed_of(data)
    elsewhere = FolderKeys(FolderId(b"1" * 32), KEYS.epochs, KEYS.first, KEYS.current)
    without = FolderKeys(FOLDER, {SECOND.number: SECOND}, SECOND.number, SECOND.number)
    renamed = SECOND.number.to_bytes(EPOCH_SIZE) + sealed[EPOCH_SIZE:]
    for keys, wanted, offered in (
        (KEYS, BlockRef(BlockId(bytes(32)), 5), sealed),
        (KEYS, BlockRef(ref.block, 4), sealed),
        (KEYS, BlockRef(ref.block, 6), sealed),
        (elsewhere, ref, sealed),
        (without, ref, sealed),
        (KEYS, ref, renamed),
    ):
        with pytest.raises(IntegrityError):
            open_block(keys, wanted, offered)


def test_a_member_cannot_pass_off_other_bytes() -> None:
    data, other = b"hello", b"jello"
    with pytest.raises(IntegrityError):
        open_block(KEYS, ref_of(data), forge(b"\0" + other, ref_of(data)))
    assert open_block(KEYS, ref_of(data), forge(b"\0" + data, ref_of(data))) == data


def raw_frame(declared: int, plain: bytes) -> bytes:
    """A zstd frame of `plain` that declares another size (RFC 8878, section 3.1.1)."""
    blocks = b""
    for at in range(0, len(plain), 100_000):
        piece = plain[at : at + 100_000]
        last = at + 100_000 >= len(plain)
        # Run-length blocks: three bytes of header, and one that is repeated.
        blocks += (len(piece) << 3 | 1 << 1 | last).to_bytes(3, "little") + piece[:1]
    return b"\x28\xb5\x2f\xfd" + b"\xa0" + declared.to_bytes(4, "little") + blocks


def test_frames_made_by_hand_are_read() -> None:
    plain = bytes(3000)
    assert (
        open_block(KEYS, ref_of(plain), forge(b"\1" + raw_frame(3000, plain), ref_of(plain)))
        == plain
    )


@pytest.mark.parametrize("declared", [1, 2999, 3000, 3001, 2**32 - 1])
def test_zip_bombs_are_refused(declared: int) -> None:
    """One that declares the truth, and ones that lie, about 100 MB in a few kilobytes."""
    ref = BlockRef(BlockId(bytes(32)), 3000)
    bomb = raw_frame(declared, bytes(100_000_000))[:2900]
    with pytest.raises(IntegrityError):
        open_block(KEYS, ref, forge(b"\1" + bomb, ref))


def test_frames_that_declare_nothing_or_huge_windows_are_refused() -> None:
    data = b"x" * 3000
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(data)
    window = b"\x28\xb5\x2f\xfd\x80" + b"\xb8" + (3000).to_bytes(4, "little") + b"\x03\0\0"
    for frame in (silent, window, b"", b"\x28\xb5\x2f\xfd", zstandard.compress(data)[:-3]):
        with pytest.raises(IntegrityError):
            open_block(KEYS, ref_of(data), forge(b"\1" + frame, ref_of(data)))


def test_unknown_compression_and_bad_padding_are_refused() -> None:
    data = b"hello"
    ref = ref_of(data)
    for stored in (b"", b"\2" + data, data):
        with pytest.raises(IntegrityError):
            open_block(KEYS, ref, forge(stored, ref))
    associated = pack(["shoal v1 block", FOLDER, FIRST.number, ref.block])
    for padded in (b"", bytes(8), b"\0" + data + b"\x80" + bytes(9)):
        body = seal(FIRST.block_key, padded, nonce=NONCE, associated=associated)
        with pytest.raises(IntegrityError):
            open_block(KEYS, ref, FIRST.number.to_bytes(EPOCH_SIZE) + body)


def test_what_is_too_large_is_refused_unopened() -> None:
    ref = BlockRef(BlockId(bytes(32)), 100)
    assert sealed_size_max(100) == EPOCH_SIZE + 41 + padded_size(102)
    with pytest.raises(IntegrityError, match="nothing was decoded"):
        open_block(KEYS, ref, bytes(sealed_size_max(100) + 1))
