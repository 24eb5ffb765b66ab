"""What `put` returned for is there after any power cut, whole; nothing else is ever a block."""

from __future__ import annotations

import errno
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.errors import IntegrityError
from crdt.ids import BlockId, FolderId
from crdt.seal import EpochKey, FolderKeys
from crdt.slot import BlockRef
from node.blocks.codec import seal_block
from node.blocks.hashing import block_id
from node.blocks.store import NEW, BlockStore
from node.files.layout import OURS, STORE
from node.files.memory import MemoryFileSystem

FOLDER = FolderId(bytes(32))
KEY = EpochKey(FOLDER, bytes(32))
KEYS = FolderKeys(FOLDER, {KEY.number: KEY}, KEY.number, KEY.number)


def make(number: int) -> tuple[BlockRef, bytes, bytes]:
    data = random.Random(number).randbytes(50 + number * 1000)
    ref = BlockRef(block_id(KEYS.block_id_key, data), len(data))
    return ref, data, seal_block(KEY, ref.block, data, nonce=bytes(24))


def file_of(block: BlockId) -> str:
    return f"{STORE}/{block.hex()[:2]}/{block.hex()}"


def new_store() -> tuple[MemoryFileSystem, BlockStore]:
    fs = MemoryFileSystem()
    fs.mkdir(OURS)
    fs.mkdir(STORE)
    fs.sync()
    store = BlockStore(fs)
    store.prepare()
    return fs, store


def test_put_get_has_delete() -> None:
    fs, store = new_store()
    blocks = [make(n) for n in range(10)]
    for ref, data, sealed in blocks:
        assert not store.has(ref.block)
        assert store.get(KEYS, ref) is None
        assert store.get_sealed(KEYS, ref) is None
        store.put(ref.block, sealed)
        assert store.has(ref.block)
        assert store.get(KEYS, ref) == data
        assert store.get_sealed(KEYS, ref) == sealed
    assert set(store) == {ref.block for ref, _, _ in blocks}
    assert not fs.scandir(NEW)
    ref = blocks[0][0]
    store.delete(ref.block)
    store.delete(ref.block)
    assert not store.has(ref.block)
    assert ref.block not in set(store)


def test_putting_again_changes_nothing() -> None:
    fs, store = new_store()
    ref, _, sealed = make(1)
    store.put(ref.block, sealed)
    before = fs.lstat(file_of(ref.block))
    store.put(ref.block, sealed)
    assert fs.lstat(file_of(ref.block)) == before
    assert not fs.scandir(NEW)


def test_other_files_are_passed_over() -> None:
    fs, store = new_store()
    ref, _, sealed = make(1)
    store.put(ref.block, sealed)
    fs.create(f"{STORE}/zz").close()
    fs.create(f"{STORE}/notes.txt").close()
    directory = f"{STORE}/{ref.block.hex()[:2]}"
    fs.create(f"{directory}/readme").close()
    fs.create(f"{directory}/{(bytes([ref.block[0] ^ 1]) + ref.block[1:]).hex()}").close()
    assert list(store) == [ref.block]


def test_rot_is_found_and_healed() -> None:
    fs, store = new_store()
    ref, data, sealed = make(3)
    store.put(ref.block, sealed)
    with fs.open_write(file_of(ref.block)) as handle:
        handle.write_at(100, bytes([sealed[100] ^ 1]))
    for read in (store.get, store.get_sealed):
        with pytest.raises(IntegrityError):
            read(KEYS, ref)
    store.delete(ref.block)
    store.put(ref.block, sealed)
    assert store.get(KEYS, ref) == data


def test_a_huge_file_in_its_place_is_not_read() -> None:
    fs, store = new_store()
    ref, _, sealed = make(1)
    store.put(ref.block, sealed)
    with fs.open_write(file_of(ref.block)) as handle:
        handle.truncate(10**6)
    with pytest.raises(IntegrityError):
        store.get(KEYS, ref)


def test_a_full_disk_leaves_nothing_behind() -> None:
    fs, store = new_store()
    ref, data, sealed = make(1)
    fs.capacity = 100
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is checked below
        store.put(ref.block, sealed)
    assert caught.value.errno == errno.ENOSPC
    assert not store.has(ref.block)
    assert not fs.scandir(NEW)
    fs.capacity = 10**6
    store.put(ref.block, sealed)
    assert store.get(KEYS, ref) == data


class Crash(BaseException):
    """The power goes."""


class Fused:
    """A file system that goes down before its n-th changing call."""

    def __init__(self, fs: MemoryFileSystem, calls: int) -> None:
        self._fs, self._calls = fs, calls

    def __getattr__(self, name: str) -> object:
        if name in {"create", "mkdir", "rename", "unlink", "fsync_directory"}:
            self._calls -= 1
            if self._calls < 0:
                raise Crash
        return getattr(self._fs, name)


@given(
    st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=3), max_size=5),
    st.integers(0, 40),
    st.randoms(use_true_random=False),
)
def test_power_cuts(batches: list[list[int]], calls: int, chance: random.Random) -> None:
    fs, _ = new_store()
    store = BlockStore(Fused(fs, calls))  # type: ignore[arg-type]
    promised: set[int] = set()
    try:
        store.prepare()
        for batch in batches:
            made = [make(n) for n in batch]
            store.put_all({ref.block: sealed for ref, _, sealed in made})
            promised.update(batch)
    except Crash:
        pass
    fs.power_cut(chance)
    after = BlockStore(fs)
    after.prepare()
    assert not fs.scandir(NEW)
    stored = set(after)
    for number in range(7):
        ref, data, sealed = make(number)
        if number in promised:
            assert after.get(KEYS, ref) == data
        elif ref.block in stored:
            assert after.get(KEYS, ref) == data, "a name in the store leads to a whole block"
        after.put(ref.block, sealed)
        assert after.get(KEYS, ref) == data
