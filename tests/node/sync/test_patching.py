"""Large files changed in place, with people and their programs about; and what happens instead."""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Callable

import pytest

from node.files.faulty import Fault, Operation
from node.sync.recovery import recover
from tests.support.crashes import MEMORY_SIZE_MAX, PATCH_SIZE_MIN, Mortal, mortals

SIZE = 2 * PATCH_SIZE_MIN
OLD = random.Random(1).randbytes(SIZE)
PLACE = SIZE // 2
CHANGED = 100_000  # bytes: more than one block
NEW = OLD[:PLACE] + random.Random(2).randbytes(CHANGED) + OLD[PLACE + CHANGED :]

pytestmark = pytest.mark.slow


async def two(*, old: bytes = OLD, new: bytes = NEW) -> tuple[Mortal, Mortal]:
    """Both have the old file, and Anna's change is about to reach Ben."""
    anna, ben = mortals(2)
    anna.fs.write_file("f", old)
    for box in (anna, ben):
        assert await box.live()
    anna.fs.write_file("f", new)
    assert await anna.live()
    return anna, ben


async def settle(anna: Mortal, ben: Mortal) -> None:
    for _ in range(3):
        assert await ben.live()
        assert await anna.live()
    assert anna.tree() == ben.tree()
    assert not ben.contents(below=".shoal/tmp/")


async def died_half_way(ben: Mortal) -> None:
    """Ben's device died in the middle of writing to the file."""
    ben.faults = [Fault(None, Operation.FILE_WRITE_AT, "f")]
    assert not await ben.live()
    ben.faults = []
    assert ben.fs.read_file("f") not in (OLD, NEW)


async def test_the_same_inode_holds_the_new_bytes_and_history_the_old_blocks() -> None:
    anna, ben = await two()
    inode = ben.fs.lstat("f").inode
    assert await ben.live()
    assert ben.fs.lstat("f").inode == inode
    assert ben.fs.lstat("f").mtime_ns == anna.fs.lstat("f").mtime_ns
    assert ben.tree() == {"f": NEW}
    await settle(anna, ben)
    kept = [row for row in ben.history.rows.all() if row.path == "f"]
    assert len(kept) == 1
    assert kept[0].size == SIZE
    assert kept[0].file is None, "as blocks"
    assert ben.sealed.index.size() < SIZE // 3, "of what differs"


async def test_a_file_that_somebody_has_open_is_exchanged_whole() -> None:
    anna, ben = await two()
    with ben.fs.open_read("f") as reader:
        with contextlib.suppress(AssertionError):
            await ben.live()  # it may be waiting still
        assert reader.read_at(0, SIZE) == OLD, "who reads the old one goes on reading it"
        for _ in range(4):
            await ben.apply()
    await settle(anna, ben)
    assert ben.tree() == {"f": NEW}
    assert OLD in ben.contents(below=".shoal/history/")


async def test_what_a_hard_link_shares_is_not_changed() -> None:
    anna, ben = await two()
    ben.fs.link("f", "backup")  # as `cp -al` makes them
    await settle(anna, ben)
    assert ben.tree() == {"f": NEW, "backup": OLD}


async def test_what_is_finished_after_a_crash_leaves_nothing_before_any_scan() -> None:
    anna, ben = await two()
    await died_half_way(ben)
    assert ben.contents(below=".shoal/tmp/"), "a journal, and what was brought together"
    recover(ben.folder, ben.fs, memory_size_max=MEMORY_SIZE_MAX)
    assert not ben.contents(below=".shoal/tmp/")
    assert ben.fs.read_file("f") == NEW
    await settle(anna, ben)


async def test_moved_after_the_crash_it_is_finished_where_it_lies() -> None:
    anna, ben = await two()
    await died_half_way(ben)
    ben.fs.mkdir("d")
    ben.fs.rename("f", "d/g")
    await settle(anna, ben)
    assert ben.tree() == {"d": None, "d/g": NEW}


async def test_linked_after_the_crash_no_name_keeps_a_mix() -> None:
    anna, ben = await two()
    await died_half_way(ben)
    ben.fs.link("f", "backup")
    await settle(anna, ben)
    assert ben.tree() == {"f": NEW, "backup": NEW}


async def test_deleted_after_the_crash_it_is_no_mix_that_comes_back() -> None:
    anna, ben = await two()
    await died_half_way(ben)
    ben.fs.unlink("f")
    await settle(anna, ben)
    assert ben.tree() in ({}, {"f": NEW})


@pytest.mark.parametrize("place", [PLACE, 10, SIZE - 5], ids=["inside", "before", "after"])
async def test_edited_after_the_crash_the_edit_stands(place: int) -> None:
    anna, ben = await two()
    await died_half_way(ben)
    with ben.fs.open_write("f") as file:
        file.write_at(place, b"mine!")
    await settle(anna, ben)
    texts = [what for what in ben.tree().values() if isinstance(what, bytes)]
    assert any(b"mine!" in text for text in texts)
    assert NEW in texts or any(
        text.replace(b"mine!", NEW[place : place + 5], 1) == NEW for text in texts
    ), "what was half done is finished around it"


async def test_replaced_after_the_crash_the_replacement_stands() -> None:
    anna, ben = await two()
    await died_half_way(ben)
    ben.fs.write_file("t", b"another file")
    ben.fs.replace("t", "f")
    await settle(anna, ben)
    assert b"another file" in ben.tree().values()
    assert set(ben.tree().values()) <= {b"another file", NEW}


def on_the_file(operation: Operation, number: int = errno.EIO, times: int = 1) -> Fault:
    return Fault(number, operation, "f", times=times)


@pytest.mark.parametrize(
    "operation", [Operation.FILE_WRITE_AT, Operation.FILE_FSYNC, Operation.FILE_SET_METADATA]
)
async def test_a_disk_that_fails_half_way_gets_the_old_bytes_back(operation: Operation) -> None:
    anna, ben = await two()
    ben.faults = [on_the_file(operation)]
    with contextlib.suppress(AssertionError):
        await ben.live()
    assert ben.fs.read_file("f") in (OLD, NEW)
    ben.faults = []
    await settle(anna, ben)
    assert ben.tree() == {"f": NEW}


async def test_a_disk_that_fails_for_good_half_way_stops_the_folder() -> None:
    anna, ben = await two()
    ben.faults = [on_the_file(Operation.FILE_WRITE_AT, times=1000)]
    with contextlib.suppress(AssertionError):
        await ben.live()
    assert ben.stops, "nobody must scan what lies there now"
    assert any(name.endswith(".patch") for name in ben.fs.snapshot())
    ben.faults = []
    await settle(anna, ben)
    assert ben.tree() == {"f": NEW}


Change = Callable[[bytes], bytes]


@pytest.mark.parametrize(
    "change",
    [
        lambda old: b"x" + old,  # everything moves
        lambda old: old[: SIZE // 2],
        lambda old: random.Random(2).randbytes(len(old)),
    ],
    ids=["inserted at the front", "half of it", "all other"],
)
async def test_a_large_share_is_written_anew(change: Change) -> None:
    new = change(OLD)
    anna, ben = await two(new=new)
    inode = ben.fs.lstat("f").inode
    await settle(anna, ben)
    assert ben.tree() == {"f": new}
    assert ben.fs.lstat("f").inode != inode
