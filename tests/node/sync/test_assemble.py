"""Bringing a file together when the disk has no room for what it claims to be."""

from __future__ import annotations

import errno

import pytest

from crdt.ids import BlockId, DeviceId, ItemId
from crdt.slot import BlockRef, Content, Kind, Manifest, Profile
from crdt.version_vector import VersionVector
from node.files.faulty import Fault, FaultPlan, FaultyFileSystem, Operation
from node.files.memory import MemoryFileSystem
from node.files.root_marker import make_layout
from node.sync.assemble import Assembler, part_path
from tests.support.two_folders import InlineThreads

DEVICE = DeviceId(b"d" * 32)
PETABYTE = 2**50
ITEM = ItemId(b"i" * 16)
BLOCKS = [BlockRef(BlockId(bytes([n]) * 32), 200_000) for n in range(10)]


class NobodyHasIt:
    """Fails the test when it is asked at all."""

    async def block(
        self, ref: BlockRef, *, transfer_size: int, like: BlockRef | None = None
    ) -> bytes:
        raise AssertionError("asked for a block")

    async def node(self, ref: BlockRef, *, like: BlockRef | None = None) -> bytes:
        raise AssertionError("asked for a node")


async def test_a_file_that_claims_a_petabyte_waits_and_is_not_even_listed() -> None:
    fs = MemoryFileSystem(capacity=10_000_000)
    make_layout(fs)
    top = BlockRef(BlockId(b"b" * 32), 10_000)
    content = Content(
        version=VersionVector({DEVICE: 1}), device=DEVICE, lamport=1, kind=Kind.FILE,
        origin=(DEVICE, 1), size=PETABYTE, manifest=Manifest(Profile.LARGE, 4, (top,) * 16),
    )  # fmt: skip
    assembler = Assembler(fs, InlineThreads(), NobodyHasIt(), bytes(32))
    before = fs.snapshot()
    with pytest.raises(OSError, match="no room on the disk") as caught:
        await assembler.assemble(ITEM, content)
    assert caught.value.errno == errno.ENOSPC
    assert fs.snapshot() == before


async def test_a_part_that_the_disk_refuses_to_extend_is_not_kept_open() -> None:
    disk = MemoryFileSystem()
    make_layout(disk)
    plan = FaultPlan([Fault(errno.ENOSPC, Operation.FILE_TRUNCATE)])
    content = Content(
        version=VersionVector({DEVICE: 1}), device=DEVICE, lamport=1, kind=Kind.FILE,
        origin=(DEVICE, 1), size=2_000_000,
        manifest=Manifest(Profile.SMALL, 0, tuple(BLOCKS)),
    )  # fmt: skip
    assembler = Assembler(
        FaultyFileSystem(disk, plan), InlineThreads(), NobodyHasIt(), bytes(32), memory_size_max=0
    )
    with pytest.raises(OSError, match="No space"):
        await assembler.assemble(ITEM, content)
    disk.open_alone(part_path(ITEM, content.digest)).close()
