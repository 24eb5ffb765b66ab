"""What comes from others while a scan or an apply is under way."""

from __future__ import annotations

import errno
from typing import Any

import trio
import trio.testing

from node.files.faulty import Fault, FaultPlan, FaultyFileSystem, Operation
from node.sync.apply import Apply
from node.sync.assemble import Assembler
from tests.support.interposed import Interposed, Script
from tests.support.two_folders import Box, InlineThreads, boxes, exchange


def fill(box: Box, number: int) -> None:
    """The same directories on every device, with files of their own."""
    box.fs.mkdir("d")
    box.fs.mkdir("d/e")
    box.fs.write_file(f"d/mine {number}", b"one" * number)
    box.fs.write_file(f"d/e/mine {number}", b"two" * number)
    box.fs.write_file("d/e/both", b"equal")


async def settle_all(*members: Box) -> None:
    for _ in range(4):
        for box in members:
            await box.scan()
            await box.apply()
        exchange(*members)
    for box in members:
        await box.settle()


async def meet(at: int) -> Script:
    """`b` finds its directories while those of `a` arrive before operation number `at`."""
    a, b = boxes(2)
    fill(a, 1)
    await a.settle()
    fill(b, 2)
    script = Script(at, lambda: b.take_from(a))
    disk, b.fs = b.fs, Interposed(b.fs, script)  # type: ignore[assignment]
    await b.scan()
    script.finish()
    b.fs = disk
    await settle_all(a, b)
    tree = a.tree()
    assert b.tree() == tree
    names = {"d", "d/e", "d/mine 1", "d/mine 2", "d/e/mine 1", "d/e/mine 2", "d/e/both"}
    assert set(tree) == names, f"before operation {at}, {script.acted_before}"
    return script


async def test_directories_that_others_made_arrive_while_we_find_ours() -> None:
    at, in_time = 1, True
    while in_time:
        in_time = (await meet(at)).done_in_time
        at += 1
    assert at > 10


class CountingApply(Apply):
    """Counts its rounds."""

    rounds = 0

    async def _round(self, nursery: trio.Nursery) -> bool:
        self.rounds += 1
        assert self.rounds < 1_000, "goes round and round"
        return await super()._round(nursery)


async def test_an_apply_with_nothing_to_do_but_wait_is_idle(autojump_clock: Any) -> None:
    a, b = boxes(2)
    a.fs.write_file("f", b"first")
    await a.settle()
    b.take_from(a)
    plan = FaultPlan([Fault(errno.EACCES, Operation.CREATE, times=3)])
    fs = FaultyFileSystem(b.fs, plan)
    threads = InlineThreads()
    assembler = Assembler(fs, threads, b, b.folder.block_key)
    service = CountingApply(
        b.folder, fs, threads, b.lock, assembler,
        ignored=lambda _path, _directory: False, dirty=b.dirty.append, allowed=lambda: True,
    )  # fmt: skip
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.serve)
        await trio.sleep(0.001)
        assert service.waiting, "the disk has refused"
        a.fs.unlink("f")
        await a.scan()
        b.take_from(a)  # what waits is wanted no more
        await trio.sleep(100)
        assert b.folder.pending == {}
        nursery.cancel_scope.cancel()
    assert service.rounds < 20
