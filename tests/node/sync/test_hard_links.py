"""Hard links: each name is a file of its own, and sync writes to none but the one it was asked for.

A new version takes the place of one name and leaves the others as they were, as it does with
programs that save by renaming. Which names were one file is not synced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.support.two_folders import Box, boxes, exchange

pytestmark = pytest.mark.slow

OLD, NEW, MINE = (bytes([n]) * 9_000 for n in b"onm")  # each a list of blocks


async def settle(*members: Box) -> None:
    for _ in range(3):
        for box in members:
            await box.settle()
            exchange(*members)
    for box in members:
        assert not box.folder.pending


async def linked_at_ben() -> list[Box]:
    """Both have `f` and `g`, which are one file on Ben's disk and two on Anna's."""
    anna, ben = boxes(2)
    ben.fs.write_file("f", OLD)
    ben.fs.link("f", "g")
    await ben.settle()
    exchange(anna, ben)
    await settle(anna, ben)
    assert ben.fs.lstat("f").inode == ben.fs.lstat("g").inode
    return [anna, ben]


@contextlib.contextmanager
def alone(box: Box) -> Iterator[None]:
    """Without help from others."""
    others, box.others = box.others, []
    yield
    box.others = others


async def test_a_version_from_elsewhere_takes_one_name_only() -> None:
    anna, ben = await linked_at_ben()
    anna.fs.write_file("f", NEW)
    await settle(anna, ben)
    assert ben.tree() == anna.tree() == {"f": NEW, "g": OLD}


async def test_an_edit_here_is_an_edit_of_every_name() -> None:
    anna, ben = await linked_at_ben()
    with ben.fs.open_write("g") as file:
        file.write_at(0, MINE)
    await ben.scan("g")
    await settle(anna, ben)
    assert ben.tree() == anna.tree() == {"f": MINE, "g": MINE}


@pytest.mark.parametrize("what", ["executable", "time"])
async def test_metadata_from_elsewhere_is_one_names_only(what: str) -> None:
    anna, ben = await linked_at_ben()
    before = ben.fs.lstat("g")
    if what == "executable":
        anna.fs.set_metadata("f", executable=True)
    else:
        anna.fs.set_metadata("f", mtime_ns=anna.clock.now_ns - 10**12)
    await settle(anna, ben)
    for box in (anna, ben):
        f, g = box.fs.lstat("f"), box.fs.lstat("g")
        assert (g.executable, g.mtime_ns) == (before.executable, before.mtime_ns)
        assert (f.executable, f.mtime_ns) != (before.executable, before.mtime_ns)
    assert ben.tree() == anna.tree() == {"f": OLD, "g": OLD}


async def test_what_was_replaced_is_safe_from_edits_by_its_other_name() -> None:
    anna, ben = await linked_at_ben()
    anna.fs.write_file("f", NEW)
    await anna.settle()
    exchange(anna, ben)
    await ben.scan()
    await ben.apply()
    await ben.history.tidy()  # ten seconds later, while the old file is watched still
    with ben.fs.open_write("g") as file:
        file.write_at(0, MINE)
    await settle(anna, ben)
    assert ben.tree() == anna.tree() == {"f": NEW, "g": MINE}
    ben.database.connection.execute("DELETE FROM afterlooks")  # as after an hour
    await ben.history.tidy()
    old = next(row.content for row in ben.history.rows.all() if row.path == "f" and row.content)
    assert old.manifest is not None
    with alone(ben):
        data = [await ben.block(ref, transfer_size=old.size) for ref in old.manifest.blocks]
    assert b"".join(data) == OLD


async def test_what_is_written_to_a_file_whose_names_are_all_gone_comes_back() -> None:
    anna, ben = await linked_at_ben()
    program = ben.fs.open_write("f")
    for name in ("f", "g"):
        anna.fs.unlink(name)
    await anna.settle()
    exchange(anna, ben)
    for _ in range(3):  # the ctime of the one changes as the other goes
        ben.clock.now_ns += 60 * 10**9
        await ben.scan()
        await ben.apply()
    assert ben.tree() == {}
    await ben.history.tidy()
    program.write_at(0, MINE)
    program.close()
    await settle(anna, ben)
    assert MINE in ben.tree().values()
    assert ben.tree() == anna.tree()
