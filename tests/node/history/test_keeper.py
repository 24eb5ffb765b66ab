"""What history keeps, on in-memory disks: settling, expiring, collecting, dying in the middle."""

from __future__ import annotations

import contextlib
import dataclasses
import random

import pytest
import trio
import trio.testing

from crdt.errors import ShoalError
from crdt.slot import Content
from node.blocks.manifest import Walk
from node.files.faulty import Crash, Fault, FaultPlan, FaultyFileSystem
from node.files.layout import HISTORY, STORE
from node.files.port import FileSystem
from node.history import keeper
from node.history.clock import CREDIT_MAX_S, HistoryClock
from node.history.keeper import GRACE_S, History, NotKeptError
from node.history.policy import DAY_S, Policy
from node.history.sealed import SealedBlocks
from node.sync.recovery import recover
from tests.support.two_folders import Box, InlineThreads, boxes, exchange

CHANCE = random.Random(7)
LARGE = CHANCE.randbytes(900_000)  # a dozen blocks
MEDIUM = LARGE[:200_000]


def edited(data: bytes, at: int) -> bytes:
    return data[:at] + b"edited" + data[at + 6 :]


async def go_across(a: Box, b: Box) -> None:
    await a.settle()
    exchange(a, b)
    await b.settle()


async def versions(a: Box, b: Box, *contents: bytes, path: str = "f") -> None:
    """Write each content at `a` and let it reach `b`, which so displaces all but the last."""
    for content in contents:
        a.fs.write_file(path, content)
        await go_across(a, b)


def kept_files(box: Box) -> dict[str, bytes]:
    return {
        entry.name: box.fs.read_file(f"{HISTORY}/{entry.name}") for entry in box.fs.scandir(HISTORY)
    }


def stored_size(box: Box) -> int:
    """What the store takes, by the disk, not by the index."""
    return sum(
        block.stat.size
        for directory in box.fs.scandir(STORE)
        for block in box.fs.scandir(f"{STORE}/{directory.name}")
    )


async def what_is_left(box: Box) -> set[bytes]:
    """Every version of every item that can be read from this disk alone."""
    others, box.others = box.others, []
    found = set()
    try:
        items = {item for (item,) in box.database.connection.execute("SELECT item FROM slots")}
        for item in items:
            for _, slot in box.folder.tree.ever_of(item):
                if slot.content is not None:
                    with contextlib.suppress(ShoalError):
                        found.add(await whole(box, slot.content))
    finally:
        box.others = others
    return found


async def whole(box: Box, content: Content) -> bytes:
    if content.manifest is None:
        return content.inline or b""
    walk = Walk(content.manifest, content.size)
    while (wanted := walk.wants()) is not None:
        walk.feed(await box.node(wanted))
    return b"".join([await box.block(ref, transfer_size=1) for ref, _ in walk.blocks()])


async def tidy(box: Box) -> None:
    """As an hour later, when nobody writes to what was displaced any more."""
    calm(box)
    await box.history.tidy()


def calm(box: Box) -> None:
    box.database.connection.execute("DELETE FROM afterlooks")


def age(box: Box, days: float) -> None:
    """All that has come by gets older."""
    for table in ("displaced", "past_slots", "stored"):
        box.database.connection.execute(
            f"UPDATE {table} SET since_s = since_s - ?", (int(days * DAY_S),)
        )


# --- settling -------------------------------------------------------------------------------------


async def test_a_small_file_needs_no_copy() -> None:
    a, b = boxes(2)
    await versions(a, b, b"one", b"two")
    assert list(kept_files(b).values()) == [b"one"]
    await tidy(b)
    assert kept_files(b) == {}
    assert b"one" in await what_is_left(b)


async def test_a_displaced_file_stays_whole_and_what_is_older_costs_what_differs() -> None:
    a, b = boxes(2)
    contents = [LARGE, *(edited(LARGE, at) for at in (100, 300_000, 600_000, 899_000))]
    await versions(a, b, *contents)
    assert len(kept_files(b)) == 4
    await tidy(b)
    assert list(kept_files(b).values()) == [contents[-2]]
    assert stored_size(b) < len(LARGE), "four versions for less than one"
    assert set(contents) <= await what_is_left(b)


async def test_an_edit_on_this_device_takes_nothing_from_what_was_displaced() -> None:
    a, b = boxes(2)
    await versions(a, b, LARGE, edited(LARGE, 500_000))
    await tidy(b)
    b.fs.write_file("f", b"something else entirely")
    await b.settle()
    await tidy(b)
    assert LARGE in await what_is_left(b)


async def test_a_very_large_file_is_kept_as_what_its_successor_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeper, "FILE_SIZE_MAX", 500_000)
    a, b = boxes(2)
    contents = [LARGE, edited(LARGE, 100), edited(edited(LARGE, 100), 700_000)]
    await versions(a, b, *contents[:2])
    await tidy(b)
    assert kept_files(b) == {}
    assert stored_size(b) < 400_000
    # Its blocks that only the current file holds are saved when that one is displaced.
    await versions(a, b, contents[2])
    await tidy(b)
    assert kept_files(b) == {}
    assert stored_size(b) < 800_000
    assert set(contents) <= await what_is_left(b)


async def test_deleted_files_stay() -> None:
    a, b = boxes(2)
    await versions(a, b, LARGE)
    a.fs.unlink("f")
    await go_across(a, b)
    await tidy(b)
    assert b.tree() == {}
    assert LARGE in await what_is_left(b)


async def test_a_file_with_another_name_is_sealed_before_somebody_writes_to_it() -> None:
    a, b = boxes(2)
    await versions(a, b, LARGE)
    b.fs.mkdir(".shoal/elsewhere")
    b.fs.link("f", ".shoal/elsewhere/link")
    await b.scan("f")
    await versions(a, b, edited(LARGE, 5))
    await tidy(b)
    assert kept_files(b) == {}
    b.fs.write_file(".shoal/elsewhere/link", b"x")
    assert LARGE in await what_is_left(b)


@pytest.mark.parametrize("content", [b"small", LARGE])
async def test_bytes_that_nobody_knows_are_never_dropped_for_a_version_they_are_not(
    content: bytes,
) -> None:
    a, b = boxes(2)
    await versions(a, b, content, b"next", content + b"!", b"last")
    for name in kept_files(b):
        b.fs.write_file(f"{HISTORY}/{name}", b"written by a program that had it open")
    await tidy(b)
    left = list(kept_files(b).values())
    assert left.count(b"written by a program that had it open") >= 3 - (content == LARGE)
    before = kept_files(b)
    await tidy(b)
    assert kept_files(b) == before


async def test_the_loser_of_a_conflict_stays_until_its_copy_lies_here() -> None:
    a, b = boxes(2)
    await versions(a, b, LARGE)
    mine, theirs = CHANCE.randbytes(300_000), CHANCE.randbytes(300_000)
    a.fs.write_file("f", mine)
    b.fs.write_file("f", theirs)
    await a.settle()
    await b.settle()
    exchange(a, b)
    for box in (a, b):
        box.history.policy = Policy(all_s=0, daily_s=0, size=0, share=0)
        await box.apply()
        await tidy(box)
        age(box, 5000)
        await tidy(box)
    for _ in range(3):
        for box in (a, b):
            await box.settle(all_blocks=False)
            await tidy(box)
    assert set(a.tree().values()) == {mine, theirs}
    assert a.tree() == b.tree()


async def test_what_somebody_may_be_writing_to_still_is_left_alone() -> None:
    a, b = boxes(2)
    await versions(a, b, LARGE, edited(LARGE, 100), b"last")
    b.history.policy = Policy(size=0, share=0)
    b.database.connection.execute(
        "INSERT INTO afterlooks SELECT file, path, digest, 1, size, 0, 0, 0, ? FROM displaced",
        (2**62,),
    )
    before = kept_files(b)
    await b.history.tidy()
    assert len(before) == 2
    assert kept_files(b) == before
    await tidy(b)
    assert kept_files(b) == {}


# --- before an overwrite in place -----------------------------------------------------------------


async def test_blocks_about_to_be_overwritten_are_kept_as_a_version() -> None:
    a, b = boxes(2)
    await versions(a, b, LARGE)
    row = b.folder.disk.resolve("f")
    assert row is not None
    blocks = b.folder.locations.blocks_of(row.item)
    first = blocks[:2]
    await b.history.keep_blocks(row, "f", first)
    assert stored_size(b) > 0
    with b.fs.open_write("f") as handle:
        for ref, offset in first:
            handle.write_at(offset, bytes(ref.length))
    assert LARGE in await what_is_left(b), "the rest is still in the file"
    (kept,) = b.history.rows.all()
    assert kept.digest == row.digest
    await tidy(b)
    age(b, 1)
    await tidy(b)
    assert LARGE in await what_is_left(b), "a kept version holds its blocks"


async def test_what_cannot_be_kept_must_not_be_overwritten() -> None:
    a, b = boxes(2)
    await versions(a, b, LARGE)
    row = b.folder.disk.resolve("f")
    assert row is not None
    blocks = b.folder.locations.blocks_of(row.item)
    b.fs.write_file("f", b"edited meanwhile")
    with pytest.raises(NotKeptError, match="stays as it is"):
        await b.history.keep_blocks(row, "f", blocks)
    assert b.history.rows.all() == []


# --- expiring and collecting ----------------------------------------------------------------------


async def test_versions_go_after_their_time_and_their_blocks_an_hour_later() -> None:
    a, b = boxes(2)
    await versions(a, b, LARGE, edited(LARGE, 100), edited(LARGE, 200))
    await tidy(b)
    age(b, 400)
    b.database.connection.execute("UPDATE stored SET since_s = 0")
    await tidy(b)
    assert kept_files(b) == {}
    assert b.history.rows.all() == []
    assert stored_size(b) > 0, "the blocks have just become needless"
    age(b, 1)
    await tidy(b)
    assert stored_size(b) == 0
    assert b.history.usage().size == 0
    assert await what_is_left(b) >= {edited(LARGE, 200)}


async def test_a_file_that_goes_leaves_the_blocks_that_others_need() -> None:
    a, b = boxes(2)
    contents = [LARGE, edited(LARGE, 100), b"x" * 5000]
    await versions(a, b, *contents)
    await tidy(b)
    # Make the newest kept one, whose file holds most of the older one's blocks, the older.
    newest = max(row.id for row in b.history.rows.all())
    b.database.connection.execute(
        "UPDATE displaced SET since_s = since_s - ? WHERE id = ?", (400 * DAY_S, newest)
    )
    await tidy(b)
    assert kept_files(b) == {}
    left = await what_is_left(b)
    assert LARGE in left
    assert contents[1] not in left


async def test_the_limit_holds() -> None:
    a, b = boxes(2)
    for number in range(6):
        await versions(a, b, CHANCE.randbytes(100_000), path=f"file {number}")
        await versions(a, b, CHANCE.randbytes(100_000), path=f"file {number}")
    a.fs.unlink("file 0")
    await go_across(a, b)
    b.history.policy = Policy(size=350_000)
    await tidy(b)
    age(b, 0.5)  # blocks that nobody needs any more have an hour
    await tidy(b)
    usage = b.history.usage()
    assert usage.size <= usage.limit == 350_000
    paths = [row.path for row in b.history.rows.all()]
    assert "file 0" in paths, "the last version of a deleted file goes last"
    assert len(kept_files(b)) == 3


async def test_a_wall_clock_that_jumps_by_years_makes_nothing_old() -> None:
    a, b = boxes(2)
    await versions(a, b, LARGE, edited(LARGE, 1), b"third")
    await tidy(b)
    before = await what_is_left(b)
    for year in (10, -20, 40):
        b.clock.now_ns += year * 365 * DAY_S * 10**9
        await tidy(b)
        again = reopened(b)  # and a restart, which sees no more than the wall clock
        await again.tidy()
    assert await what_is_left(b) == before
    assert len(b.history.rows.all()) == 2


def reopened(box: Box, fs: FileSystem | None = None) -> History:
    """History as a new process finds it."""
    sealed = SealedBlocks(box.folder, fs or box.fs, InlineThreads())
    return History(
        box.folder,
        fs or box.fs,
        InlineThreads(),
        sealed,
        allowed=box.history._allowed,
    )


async def test_history_s_clock_gains_a_day_at_most_from_a_restart() -> None:
    box, _ = boxes(2)
    db = box.database.connection
    clock = HistoryClock(db, box.clock)
    clock.save()
    start = clock.now_s()
    box.clock.now_ns += 3600 * 10**9
    assert start + 3600 <= HistoryClock(db, box.clock).now_s() <= start + 3602
    box.clock.now_ns += 3650 * DAY_S * 10**9
    assert HistoryClock(db, box.clock).now_s() <= start + CREDIT_MAX_S + 2
    box.clock.now_ns -= 7300 * DAY_S * 10**9
    assert HistoryClock(db, box.clock).now_s() >= start


# --- dying in the middle --------------------------------------------------------------------------


async def story() -> tuple[Box, list[bytes]]:
    """A box with some kept versions, and what they are."""
    a, b = boxes(2)
    contents = [MEDIUM, edited(MEDIUM, 100), b"small", edited(MEDIUM, 150_000), b"last"]
    await versions(a, b, *contents)
    calm(b)
    return b, contents


async def dies(history: History) -> bool:
    try:
        await history.tidy()
    except Crash:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_dying_at_any_operation_of_settling_loses_nothing(after: bool) -> None:
    nth, operations = 0, 1
    while nth < operations:
        nth += 3 if after else 1  # after one is nearly before the next
        b, contents = await story()
        faulty = FaultyFileSystem(b.fs, FaultPlan([Fault(None, nth=nth, after=after)]))
        died = await dies(reopened(b, faulty))
        operations = faulty.plan.operations + died
        assert set(contents) <= await what_is_left(b), f"died at operation {nth}"
        recover(b.folder, b.fs)
        again = reopened(b)
        await again.sealed.adopt()
        await again.tidy()
        assert set(contents) <= await what_is_left(b), f"recovered from operation {nth}"
        assert len(kept_files(b)) == 1, f"recovered from operation {nth}"
    assert nth > 20


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_dying_at_any_operation_of_expiring_drops_no_more_than_it_must(after: bool) -> None:
    nth, operations = 0, 1
    while nth < operations:
        nth += 3 if after else 1
        b, contents = await story()
        await tidy(b)
        first, second, third = b.history.rows.all()
        assert third.file is not None
        b.database.connection.execute(
            "UPDATE displaced SET since_s = since_s - ? WHERE id = ?", (400 * DAY_S, third.id)
        )
        b.database.connection.execute("UPDATE stored SET since_s = since_s - ?", (2 * GRACE_S,))
        faulty = FaultyFileSystem(b.fs, FaultPlan([Fault(None, nth=nth, after=after)]))
        died = await dies(reopened(b, faulty))
        operations = faulty.plan.operations + died
        recover(b.folder, b.fs)
        again = reopened(b)
        await again.sealed.adopt()
        await again.tidy()
        left = await what_is_left(b)
        assert set(contents[:2]) <= left, f"died at operation {nth} of dropping another version"
        assert {first.id, second.id} <= {row.id for row in again.rows.all()}
    assert nth > 20


@pytest.mark.slow
async def test_a_power_cut_in_the_middle_of_settling_loses_nothing() -> None:
    for seed in range(15):
        b, contents = await story()
        b.fs.sync()
        chance = random.Random(seed)
        nth = chance.randrange(1, 40)
        faulty = FaultyFileSystem(b.fs, FaultPlan([Fault(None, nth=nth)]))
        await dies(reopened(b, faulty))
        b.fs.power_cut(chance)
        recover(b.folder, b.fs)
        again = reopened(b)
        await again.sealed.adopt()
        await again.tidy()
        assert set(contents) <= await what_is_left(b), f"seed {seed}, operation {nth}"


async def test_a_rotten_block_is_forgotten_and_kept_anew() -> None:
    a, b = boxes(2)
    await versions(a, b, LARGE, edited(LARGE, 100), edited(LARGE, 200))
    await tidy(b)
    (stored,) = list(b.sealed.index.all())[:1]
    name = stored.ref.block.hex()
    data = await b.sealed.read(stored.ref.block)
    assert data is not None
    b.fs.write_file(f"{STORE}/{name[:2]}/{name}", bytes(100))
    assert await b.sealed.read(stored.ref.block) is None
    assert not b.sealed.has(stored.ref.block)
    await b.sealed.keep({stored.ref: data})
    assert await b.sealed.read(stored.ref.block) == data


async def test_a_store_whose_index_was_lost_is_adopted() -> None:
    a, b = boxes(2)
    await versions(a, b, LARGE, edited(LARGE, 100), edited(LARGE, 200))
    await tidy(b)
    before = {one.ref: one.size for one in b.sealed.index.all()}
    b.database.connection.execute("DELETE FROM stored")
    again = SealedBlocks(b.folder, b.fs, InlineThreads())
    await again.adopt()
    assert before
    assert {one.ref: one.size for one in again.index.all()} == before


async def test_a_device_without_a_key_waits_and_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    a, b = boxes(2)
    await versions(a, b, LARGE, edited(LARGE, 100), edited(LARGE, 200))
    calm(b)
    keys = b.folder.keys
    b.folder.keys = dataclasses.replace(keys, current=None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.history.serve)
        await trio.sleep(60)
        assert len(kept_files(b)) == 2
        b.folder.keys = keys
        await trio.sleep(2 * keeper.TIDY_EVERY_S)
        assert len(kept_files(b)) == 1
        nursery.cancel_scope.cancel()
    assert LARGE in await what_is_left(b)
