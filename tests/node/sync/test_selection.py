"""Directories that do not live on a device, on disks in memory: crashes, moves, and who keeps."""

from __future__ import annotations

import random

import pytest

from crdt.ids import DeviceId, ItemId
from crdt.roster_ops import Role
from crdt.version_vector import EMPTY
from node.sync.engine import FolderEngine
from node.sync.folder import Folder
from node.sync.peers import PeerView
from node.sync.selection import Keepers
from tests.support.crashes import ALONE_NS, MEMORY_SIZE_MAX, Mortal, mortals, twins
from tests.support.two_folders import Box, boxes, exchange
from transport.keeps import Keeps


def item_at(folder: Folder, path: str) -> ItemId:
    """The item shown at `path`."""
    row = folder.tree.resolve(path)
    assert row is not None
    return row.item


def fill(box: Box) -> None:
    """A directory to leave out, with files of three sizes and a directory in it; and one beside."""
    chance = random.Random(1)
    box.fs.mkdir("d")
    box.fs.mkdir("d/e")
    box.fs.write_file("d/small", b"small")
    box.fs.write_file("d/e/blocks", chance.randbytes(5_000))
    box.fs.write_file("d/e/large", chance.randbytes(MEMORY_SIZE_MAX + 1))
    box.fs.write_file("beside", b"beside")


async def be_sure(box: Box) -> None:
    """Scan so long after the last write that no stamp leaves a doubt."""
    box.clock.now_ns += ALONE_NS
    await box.scan()


async def settled() -> list[Mortal]:
    """Anna, and Ben, who leaves `d` out from now on."""
    anna, ben = mortals(2)
    fill(anna)
    for box in (anna, ben, anna):
        assert await box.live()
    ben.kept = True
    ben.folder.choose(item_at(ben.folder, "d"), lives_here=False)
    for box in (anna, ben):
        box.fs.sync()
    return [anna, ben]


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True], ids=["left out", "selected again"])
async def test_dying_while_it_leaves_deletes_nothing(again: bool) -> None:
    start = await settled()
    anna, ben = twins(start)
    whole, have = anna.tree(), anna.folder.have
    assert await ben.live()
    assert set(ben.tree()) == {"beside"}
    for at in range(1, ben.plan.operations + 1):
        anna, ben = twins(start)
        assert not await ben.live(until=at)
        if at % 2 == again:  # each operation is cut off in one of the two forms of this test
            ben.lose_power(at)
        ben.open(ben.folder.id, ben.folder.roster_entries)
        if again:  # before any scan could tell what is left of it
            ben.folder.choose(item_at(ben.folder, "d"), lives_here=True)
        assert await ben.live(), at
        assert await anna.live()
        exchange(anna, ben)
        assert anna.tree() == whole, at
        assert ben.tree() == (whole if again else {"beside": b"beside"}), at
        assert anna.folder.have == ben.folder.have == have, "nobody wrote a word"
        assert not ben.contents(below=".shoal/tmp/")


@pytest.mark.slow
async def test_dying_while_it_comes_back() -> None:
    start = await settled()
    assert await start[1].live()
    start[1].folder.choose(item_at(start[1].folder, "d"), lives_here=True)
    start[1].fs.sync()
    anna, ben = twins(start)
    whole, have = anna.tree(), anna.folder.have
    assert await ben.live()
    for at in range(1, ben.plan.operations + 1, 2):
        anna, ben = twins(start)
        assert not await ben.live(until=at)
        ben.lose_power(at)
        assert await ben.live(), at
        assert ben.tree() == whole, at
        assert ben.folder.have == have


async def test_a_copy_that_could_not_go_is_a_persons_to_delete_again() -> None:
    anna, ben = boxes(2)
    fill(anna)
    await anna.settle()
    ben.take_from(anna)
    await ben.settle()
    await be_sure(ben)
    ben.kept = True
    ben.fs.write_file("d/unknown", b"keeps the directory")
    ben.folder.choose(item_at(ben.folder, "d"), lives_here=False)
    await ben.apply()
    assert set(ben.tree()) == {"beside", "d", "d/unknown"}
    ben.folder.choose(item_at(ben.folder, "d"), lives_here=True)
    await ben.settle()
    anna.take_from(ben)
    await anna.settle()
    assert anna.tree() == ben.tree()
    assert "d/unknown" in anna.tree()
    ben.fs.unlink("d/small")
    await ben.settle()
    anna.take_from(ben)
    await anna.settle()
    assert "d/small" not in anna.tree()


async def test_deleting_by_hand_what_is_on_its_way_out_deletes_it_nowhere_else() -> None:
    anna, ben = boxes(2)
    fill(anna)
    await anna.settle()
    ben.take_from(anna)
    await ben.settle()
    ben.folder.choose(item_at(ben.folder, "d"), lives_here=False)
    for path in ("d/small", "d/e/blocks", "d/e/large"):
        ben.fs.unlink(path)
    ben.fs.rmdir("d/e")
    ben.fs.rmdir("d")
    await ben.settle()
    anna.take_from(ben)
    await anna.settle()
    assert "d/e/large" in anna.tree()
    assert set(ben.tree()) == {"beside"}


async def test_what_left_goes_from_history_too_once_nobody_can_be_writing_to_it() -> None:
    anna, ben = boxes(2)
    fill(anna)
    await anna.settle()
    ben.take_from(anna)
    await ben.settle()
    await be_sure(ben)
    ben.kept = True
    ben.folder.choose(item_at(ben.folder, "d"), lives_here=False)
    await ben.apply()
    await ben.history.tidy()
    assert len(ben.displaced()) == 3, "a program may have one of them open"
    await ben.look_again()
    await ben.history.tidy()
    assert not ben.displaced()
    ben.folder.choose(item_at(ben.folder, "d"), lives_here=True)
    await ben.settle()
    assert ben.tree() == anna.tree()


def whole_now(folder: Folder) -> tuple[bool, bool]:
    """Whether it calls itself whole before it has looked at what it lacks, and after."""
    before = folder.is_whole
    assert folder.complete == folder.have
    return before, folder.is_whole


class Engine:
    """As much of an engine as `Keepers` asks."""

    def __init__(self, box: Box) -> None:
        self.folder = box.folder
        self.peers: dict[DeviceId, PeerView] = {}


async def test_whose_word_counts() -> None:
    anna, ben = boxes(2)
    fill(anna)
    await anna.settle()
    folder, device = anna.folder, ben.identity.device
    engine = Engine(anna)
    as_engine: FolderEngine = engine  # type: ignore[assignment]
    keepers = Keepers(as_engine)
    folder.choose(item_at(folder, "d"), lives_here=False)
    row = folder.disk.get(item_at(folder, "d/small"))
    assert row is not None
    have, generation = folder.have, folder.selection.generation

    def says(keeps: Keeps | None, *, connected: bool = True, whole: bool = True) -> bool:
        complete = have if whole else EMPTY
        engine.peers[device] = PeerView(connected, "ben", have, complete)
        keepers._told.clear()
        if keeps is not None:
            keepers._told[device] = keeps
        return keepers.keeps(row)

    assert says(Keeps(0, generation, True))
    assert not says(None), "it does not say what it keeps"
    assert not says(Keeps(1, generation, False)), "it leaves something out"
    assert not says(Keeps(0, generation - 1, True)), "it had not heard of us"
    assert not says(Keeps(0, generation, True), connected=False)
    assert not says(Keeps(0, generation, True), whole=False), "it lacks this version"
    assert keepers.word_for(device) == Keeps(generation, 0, False)
    folder.choose(item_at(folder, "d"), lives_here=True)
    assert not says(Keeps(0, generation, True)), "that was said to an earlier selection"
    assert whole_now(folder) == (False, True), "only when it is all here again"
    assert folder.roster.role(device) is Role.EDITOR
