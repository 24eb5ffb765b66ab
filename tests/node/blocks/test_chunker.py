"""Blocks put together again are the file; boundaries are what they always were."""

from __future__ import annotations

import random
from collections.abc import Callable

import blake3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.slot import Profile
from node.blocks import chunker
from node.blocks.chunker import LARGE_FILE_SIZE, SIZES, Cutter, FileChangedError, Sizes

TINY = Sizes(64, 256, 1024)


def reader(data: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, size: data[offset : offset + size]


def pieces(sizes: Sizes, data: bytes, start: int = 0) -> list[bytes]:
    """The blocks, each checked to lie where the one before ends."""
    found = []
    for offset, view in Cutter(sizes).cut(reader(data), start, len(data)):
        assert offset == start
        found.append(bytes(view))
        start += len(view)
    return found


def check_sizes(sizes: Sizes, blocks: list[bytes]) -> None:
    assert all(sizes.minimum <= len(block) <= sizes.maximum for block in blocks[:-1])
    assert all(0 < len(block) <= sizes.maximum for block in blocks)


@given(st.integers(0, 2**32), st.integers(0, 30_000), st.sampled_from([1, 2, 256]))
def test_blocks_make_the_file_again(seed: int, size: int, alphabet: int) -> None:
    data = bytes(random.Random(seed).choices(range(alphabet), k=size))
    blocks = pieces(TINY, data)
    assert b"".join(blocks) == data
    check_sizes(TINY, blocks)


@given(st.integers(0, 2**32), st.integers(1, 30_000), st.data())
def test_cutting_may_begin_at_any_boundary(seed: int, size: int, choices: st.DataObject) -> None:
    data = random.Random(seed).randbytes(size)
    blocks = pieces(TINY, data)
    count = choices.draw(st.integers(0, len(blocks)))
    assert pieces(TINY, data, len(b"".join(blocks[:count]))) == blocks[count:]


@given(st.integers(0, 2**32), st.integers(0, 60_000))
def test_windows_change_nothing(seed: int, size: int) -> None:
    data = random.Random(seed).randbytes(size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunker, "WINDOW_SIZE", 0)
        small = pieces(TINY, data)
        patch.setattr(chunker, "WINDOW_SIZE", 2**20)
        patch.setattr(chunker, "WINDOW_FIRST", 100)
        assert small == pieces(TINY, data)


@pytest.mark.parametrize(
    ("profile", "blocks", "digest"),
    [
        (Profile.SMALL, 84, "5e1bc6a3868b4339"),
        (Profile.LARGE, 6, "e14cbbfe6628b3a4"),
        (Profile.FIXED, 97, "e3717539e019b8dc"),
    ],
)
def test_boundaries_never_change(profile: Profile, blocks: int, digest: str) -> None:
    """Other boundaries, say from a new version of the library, would send every file again."""
    data = blake3.blake3(b"boundaries").digest(6 * 1024 * 1024 + 12_345)
    found = pieces(SIZES[profile], data)
    check_sizes(SIZES[profile], found)
    lengths = ",".join(str(len(block)) for block in found)
    assert (len(found), blake3.blake3(lengths.encode()).hexdigest(8)) == (blocks, digest), lengths


def test_a_file_that_got_shorter_is_noticed() -> None:
    with pytest.raises(FileChangedError):
        list(Cutter(TINY).cut(reader(bytes(5000)), 0, 5001))


@pytest.mark.parametrize(
    ("head", "size", "profile"),
    [
        (b"SQLite format 3\0" + bytes(100), 8192, Profile.FIXED),
        (b"QFI\xfb\0\0\0\3", 2**40, Profile.FIXED),
        (bytes(512) + b"EFI PART", 2**30, Profile.FIXED),
        (bytes(446) + b"\x80" + bytes(63) + b"\x55\xaa", 2**30, Profile.FIXED),
        (bytes(446) + b"\x81" + bytes(63) + b"\x55\xaa", 2**30, Profile.SMALL),
        (bytes(64) + b"\x7f\x10\xda\xbe", 2**30, Profile.FIXED),
        (b"SQLite format 3", 8192, Profile.SMALL),
        (b"", LARGE_FILE_SIZE - 1, Profile.SMALL),
        (b"", LARGE_FILE_SIZE, Profile.LARGE),
    ],
)
def test_the_profile_follows_magic_and_size(head: bytes, size: int, profile: Profile) -> None:
    assert chunker.choose_profile(head, size) is profile
