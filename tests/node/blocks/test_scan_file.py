"""A re-scan finds exactly what a fresh look at the whole file would find."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.ids import BlockId, DeviceId
from crdt.slot import INLINE_SIZE_MAX, BlockRef, Content, Kind, Profile
from crdt.version_vector import VersionVector
from node.blocks import scan_file
from node.blocks.chunker import SIZES, Cutter, FileChangedError, Sizes
from node.blocks.hashing import block_id
from node.blocks.manifest import Walk
from node.blocks.read import read_block
from node.blocks.scan_file import Blocks, Description, describe_file, scan_blocks
from node.files.memory import MemoryFileSystem

KEY = bytes(range(32))
KIB = 1024
TINY = Sizes(64, 256, 1024)


def scan(data: bytes, old: Blocks = (), sizes: Sizes = TINY, **more: object) -> Blocks:
    return scan_blocks(
        lambda offset, size: data[offset : offset + size],
        len(data),
        Cutter(sizes),
        KEY,
        old=old,
        **more,  # type: ignore[arg-type]
    )


def check_covers(data: bytes, blocks: Blocks) -> None:
    """The blocks are those of `data`, from its first byte to its last."""
    end = 0
    for ref, offset in blocks:
        assert offset == end
        end += ref.length
        assert block_id(KEY, data[offset:end]) == ref.block
    assert end == len(data)


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Noise, zeroes, text-like and repeated stretches: blocks of all sizes, some of them equal."""
    parts = draw(
        st.lists(
            st.tuples(st.integers(0, 5), st.sampled_from([1, 3, 256]), st.integers(0, 4000)),
            max_size=6,
        )
    )
    return b"".join(
        bytes(random.Random(seed).choices(range(alphabet), k=size))
        for seed, alphabet, size in parts
    )


@st.composite
def edits(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A file before and after: bytes replaced, inserted, removed, appended, moved."""
    before = draw(contents())
    after = before
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(after)))
        removed = draw(st.sampled_from([0, 0, 1, 4, 100, 3000]))
        inserted = draw(st.one_of(st.binary(max_size=5), contents()))
        after = after[:at] + inserted + after[at + removed :]
    if draw(st.booleans()):
        at = draw(st.integers(0, len(after)))
        after = after[at:] + after[:at]
    return before, after


@given(edits(), st.sampled_from([TINY, Sizes(64, 64, 64)]))
def test_rescan_equals_fresh(change: tuple[bytes, bytes], sizes: Sizes) -> None:
    before, after = change
    fresh = scan(after, sizes=sizes)
    check_covers(after, fresh)
    assert scan(after, scan(before, sizes=sizes), sizes) == fresh


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


@given(change=edits())
def test_workers_change_nothing(pool: ThreadPoolExecutor, change: tuple[bytes, bytes]) -> None:
    before, after = change
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_file, "SPAN_SIZE", 1500)
        patch.setattr(scan_file, "SPAN_SIZE_MIN", 300)
        assert scan(after, scan(before), workers=pool) == scan(after)


@given(edits(), st.randoms(use_true_random=False))
def test_a_wrong_hint_gives_wrong_blocks_no_chance(
    change: tuple[bytes, bytes], chance: random.Random
) -> None:
    before, after = change
    old = [(ref, chance.randrange(10**6)) for ref, _ in scan(before)]
    chance.shuffle(old)
    old = [
        (replace(ref, length=chance.randrange(1, 2000)), offset)
        if chance.random() < 0.2
        else (ref, offset)
        for ref, offset in old
    ]
    check_covers(after, scan(after, old))


@pytest.mark.slow
def test_every_single_byte_edit_and_cut() -> None:
    """Edits next to boundaries are the hard ones; here are all of them."""
    data = random.Random(7).randbytes(3000)
    old = scan(data)
    assert len(old) > 5
    for at in range(len(data)):
        changed = bytes([data[at] ^ 1])
        for after in (
            data[:at] + changed + data[at + 1 :],
            data[:at] + changed + data[at:],
            data[:at] + data[at + 1 :],
            data[:at],
            data[at:],
        ):
            assert scan(after, old) == scan(after)


def test_a_rescan_reads_little_beyond_the_file() -> None:
    data = random.Random(1).randbytes(4 * 1024 * KIB)
    sizes = SIZES[Profile.SMALL]
    old = scan(data, sizes=sizes)
    for after in (data, data[: 2**20] + b"abcd" + data[2**20 + 4 :], b"x" + data, data[1:]):
        read = 0

        def read_at(offset: int, size: int, after: bytes = after) -> bytes:
            nonlocal read
            read += size
            return after[offset : offset + size]

        found = scan_blocks(read_at, len(after), Cutter(sizes), KEY, old=old)
        assert found == scan(after, sizes=sizes)
        assert read < 1.8 * len(after)


def test_progress_grows_to_the_size() -> None:
    data = random.Random(1).randbytes(5 * 1024 * KIB)
    for old in ((), scan(data, sizes=SIZES[Profile.SMALL])):
        told: list[int] = []
        scan(data, old, SIZES[Profile.SMALL], progress=told.append)
        assert told == sorted(set(told))
        assert told[-1] == len(data)


# --- describe_file ------------------------------------------------------------------------------


def make_file(data: bytes, *, executable: bool = False) -> MemoryFileSystem:
    fs = MemoryFileSystem()
    with fs.create("f", executable=executable) as handle:
        handle.write_at(0, data)
        handle.set_metadata(mtime_ns=1234567890123456789)
    return fs


def describe(data: bytes, **more: object) -> Description:
    fs = make_file(data)
    with fs.open_read("f") as handle:
        return describe_file(handle, KEY, **more)  # type: ignore[arg-type]


def content_of(description: Description) -> Content:
    device = DeviceId(bytes(32))
    draft = description.draft
    return Content(
        version=VersionVector.from_wire([[device, 1]]),
        device=device,
        lamport=1,
        kind=Kind.FILE,
        origin=(device, 1),
        size=draft.size,
        mtime_ns=draft.mtime_ns,
        inline=draft.inline,
        manifest=draft.manifest,
    )


@pytest.mark.parametrize("size", [0, 1, INLINE_SIZE_MAX])
def test_small_files_are_inline(size: int) -> None:
    data = bytes(size)
    fs = make_file(data, executable=True)
    with fs.open_read("f") as handle:
        description = describe_file(handle, KEY)
    draft = description.draft
    assert (draft.inline, draft.manifest, draft.size) == (data, None, size)
    assert (draft.executable, draft.mtime_ns) == (True, 1234567890123456789)
    assert (description.stat, description.blocks, description.nodes) == (fs.lstat("f"), (), {})


def test_larger_files_have_a_manifest() -> None:
    data = random.Random(3).randbytes(3 * 1024 * KIB)
    description = describe(data)
    manifest = description.draft.manifest
    assert manifest is not None
    assert (manifest.profile, manifest.depth) == (Profile.SMALL, 1)
    check_covers(data, description.blocks)
    walk = Walk(manifest, len(data))
    while (wanted := walk.wants()) is not None:
        walk.feed(description.nodes[wanted.block])
    assert tuple(walk.blocks()) == description.blocks
    content_of(description)  # is valid


def test_a_file_keeps_its_profile() -> None:
    data = random.Random(3).randbytes(500 * KIB)
    first = describe(data)
    database = b"SQLite format 3\0" + data[16:]
    kept = describe(database, previous=content_of(first), blocks=first.blocks)
    fresh = describe(database)
    assert kept.draft.manifest is not None
    assert kept.draft.manifest.profile is Profile.SMALL
    assert kept.blocks[2:] == first.blocks[2:]
    assert fresh.draft.manifest is not None
    assert fresh.draft.manifest.profile is Profile.FIXED
    again = describe(data, previous=content_of(fresh), blocks=fresh.blocks)
    assert again.draft.manifest is not None
    assert again.draft.manifest.profile is Profile.FIXED
    assert again.blocks[1:] == fresh.blocks[1:]


def test_growing_out_of_inline_and_back() -> None:
    small = describe(b"x" * 100)
    large = describe(b"x" * 5000, previous=content_of(small), blocks=small.blocks)
    assert large == describe(b"x" * 5000)
    back = describe(b"x" * 100, previous=content_of(large), blocks=large.blocks)
    assert back.draft == small.draft


class Meddling:
    """A handle whose file is changed by `meddle` after the first read."""

    def __init__(self, fs: MemoryFileSystem, change: str) -> None:
        self._fs, self._change = fs, change
        self._handle = fs.open_read("f")
        self.stat = self._handle.stat

    def read_at(self, offset: int, size: int) -> bytes:
        data = self._handle.read_at(offset, size)
        change, self._change = self._change, ""
        with self._fs.open_write("f") as handle:
            match change:
                case "write":
                    handle.write_at(offset, b"new")
                case "truncate":
                    handle.truncate(3000)
                case "append":
                    handle.write_at(handle.stat().size, b"new")
                case _:
                    pass
        return data


@pytest.mark.parametrize("change", ["write", "truncate", "append"])
@pytest.mark.parametrize("size", [4096, 5000, 2_000_000])
@pytest.mark.parametrize("known", [False, True])
def test_a_file_that_changes_while_read_is_noticed(change: str, size: int, known: bool) -> None:
    data = random.Random(1).randbytes(size)
    old = describe(data).blocks if known else ()
    with pytest.raises(FileChangedError):
        describe_file(Meddling(make_file(data), change), KEY, blocks=old)  # type: ignore[arg-type]


# --- read_block ---------------------------------------------------------------------------------


def test_blocks_are_read_verified() -> None:
    data = random.Random(5).randbytes(300 * KIB)
    fs = make_file(data)
    description = describe(data)
    with fs.open_read("f") as handle:
        for ref, offset in description.blocks:
            assert read_block(handle, KEY, ref, offset) == data[offset : offset + ref.length]
            assert read_block(handle, KEY, ref, offset + 1) is None
            assert read_block(handle, bytes(32), ref, offset) is None
        assert read_block(handle, KEY, BlockRef(BlockId(bytes(32)), 9), len(data)) is None
        ref, offset = description.blocks[1]
        with fs.open_write("f") as writer:
            writer.write_at(offset, bytes([data[offset] ^ 1]))
        assert read_block(handle, KEY, ref, offset) is None
