"""People who save in the very moment in which the node works on the same file.

A change comes in from `a`; while `b` scans and applies, a person at `b` does something to the same
file, right before the n-th operation that reaches the disk: for every n, until the person is too
late to meet anything. Then all is exchanged. The trees are equal, what the person saved is there,
and so is what came in, unless the person had it before the eyes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

import pytest

from node.files.memory import MemoryFileSystem
from tests.node.sync.test_two_folders import settle_all
from tests.support.interposed import Interposed, Script
from tests.support.two_folders import Box, boxes, exchange

OLD: Final = b"old " * 3_000
INCOMING: Final = b"new " * 4_000
SAVED: Final = b"mine" * 3_000  # as long as OLD: only the stamps tell
OPERATIONS_MAX: Final = 200

Act = Callable[[MemoryFileSystem], None]


def in_place(fs: MemoryFileSystem) -> None:
    """Truncate and write."""
    fs.write_file("d/f", SAVED)


def over_the_old_bytes(fs: MemoryFileSystem) -> None:
    """Same size, no truncation."""
    with fs.open_write("d/f") as file:
        file.write_at(0, SAVED)


def with_the_old_mtime(fs: MemoryFileSystem) -> None:
    """As `touch -r` and some converters do: only the ctime tells."""
    with fs.open_write("d/f") as file:
        stamp = file.stat().mtime_ns
        file.truncate(0)
        file.write_at(0, SAVED)
        file.set_metadata(mtime_ns=stamp)


def new_and_rename(fs: MemoryFileSystem) -> None:
    fs.write_file("d/.f.tmp", SAVED)
    fs.replace("d/.f.tmp", "d/f")


def backup_and_rewrite(fs: MemoryFileSystem) -> None:
    fs.rename("d/f", "d/f~")
    fs.write_file("d/f", SAVED)
    fs.unlink("d/f~")


def backup_that_stays(fs: MemoryFileSystem) -> None:
    fs.rename("d/f", "d/f~")
    fs.write_file("d/f", SAVED)


def delete_and_create(fs: MemoryFileSystem) -> None:
    with contextlib.suppress(FileNotFoundError):
        fs.unlink("d/f")
    fs.write_file("d/f", SAVED)


def append(fs: MemoryFileSystem) -> None:
    with fs.open_write("d/f") as file:
        file.write_at(file.stat().size, SAVED)


def rename(fs: MemoryFileSystem) -> None:
    fs.rename("d/f", "d/g")


def delete(fs: MemoryFileSystem) -> None:
    fs.unlink("d/f")


def replace_by_directory(fs: MemoryFileSystem) -> None:
    fs.unlink("d/f")
    fs.mkdir("d/f")
    fs.write_file("d/f/inside", SAVED)


def rename_the_directory(fs: MemoryFileSystem) -> None:
    fs.rename("d", "e")


def beside(fs: MemoryFileSystem) -> None:
    """Where a new one or a renamed one comes in."""
    fs.write_file("d/g", SAVED)


def through_a_handle(fs: MemoryFileSystem) -> None:
    """Opened long before, and written now, wherever the file may lie by now."""
    with fs.held as file:  # type: ignore[attr-defined]
        file.truncate(0)
        file.write_at(0, SAVED)


SAVES: Final[tuple[Act, ...]] = (
    in_place, over_the_old_bytes, with_the_old_mtime, new_and_rename, backup_and_rewrite,
    backup_that_stays, delete_and_create, append, replace_by_directory, beside,
    through_a_handle,
)  # fmt: skip
OTHERS: Final[tuple[Act, ...]] = (rename, delete, rename_the_directory)


def edit_it(fs: MemoryFileSystem) -> None:
    fs.write_file("d/f", INCOMING)


def edit_it_much(fs: MemoryFileSystem) -> None:
    """Too large for memory: it comes together on the disk."""
    fs.write_file("d/f", INCOMING * 80)


def edit_it_small(fs: MemoryFileSystem) -> None:
    """Small enough to travel within its entry."""
    fs.write_file("d/f", b"new")


def delete_it(fs: MemoryFileSystem) -> None:
    fs.unlink("d/f")


def rename_it(fs: MemoryFileSystem) -> None:
    fs.rename("d/f", "d/g")


def rename_and_edit_it(fs: MemoryFileSystem) -> None:
    fs.rename("d/f", "d/g")
    fs.write_file("d/g", INCOMING)


def make_another(fs: MemoryFileSystem) -> None:
    fs.write_file("d/g", INCOMING)


def delete_all(fs: MemoryFileSystem) -> None:
    fs.unlink("d/f")
    fs.rmdir("d")


def turn_into_directory(fs: MemoryFileSystem) -> None:
    fs.unlink("d/f")
    fs.mkdir("d/f")
    fs.write_file("d/f/new", INCOMING)


COMING: Final[tuple[Act, ...]] = (
    edit_it, edit_it_much, edit_it_small, delete_it, rename_it, rename_and_edit_it, make_another,
    delete_all, turn_into_directory,
)  # fmt: skip


@pytest.mark.races
@pytest.mark.parametrize("coming", COMING)
@pytest.mark.parametrize("act", SAVES + OTHERS)
async def test_a_person_is_quicker_at_any_moment(coming: Act, act: Act) -> None:
    at = 1
    while (await run_once(coming, act, at)).done_in_time:
        at += 1
        assert at < OPERATIONS_MAX, "this should have come to an end"
    assert at > 5, "the person never met the node at work"


@pytest.mark.slow
@pytest.mark.parametrize("coming", [edit_it, edit_it_small, delete_it, rename_and_edit_it])
async def test_a_person_is_quicker_around_the_exchange(coming: Act) -> None:
    """The moments that matter most, out of all those above."""
    idle = await run_once(coming, lambda _: None, OPERATIONS_MAX)
    change = next(n for n, name in enumerate(idle.names, 1) if name in {"exchange", "rename"})
    for act in SAVES + OTHERS:
        for at in (change, change + 1):
            await run_once(coming, act, at)


async def run_once(coming: Act, act: Act, at: int) -> Script:
    """The person acts before operation `at`, or after the last one if there are not so many."""
    a, b = await two_with_a_file()
    disk = b.fs
    disk.held = disk.open_write("d/f")  # type: ignore[attr-defined]
    seen: set[bytes] = set()
    held = True

    def meddle() -> None:
        nonlocal held
        seen.update(files(disk).values())
        # Not even the person finds the file any more: what came in was quicker.
        try:
            act(disk)
        except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError):
            held = False
        except OSError:
            held = False

    script = Script(at, meddle)
    coming(a.fs)
    brought = set(files(a.fs).values()) - {OLD}
    await a.settle()
    exchange(a, b)
    b.fs = Interposed(disk, script)  # type: ignore[assignment]
    for _ in range(2):
        await b.scan()
        await b.apply()
    script.finish()
    b.fs = disk
    try:
        check_nothing_is_doubled_up(disk)
        await settle_all(a, b)
        left = set(files(a.fs).values())
        if held and act in SAVES:
            assert any(SAVED in content for content in left), "what the person saved is gone"
        for content in brought - seen:
            assert any(content in one for one in left), "what came in is gone"
        check_no_leftovers(a, b)
    except BaseException as error:
        where = f"{act.__name__} before operation {at} ({script.acted_before})"
        raise AssertionError(f"{coming.__name__}, {where}: {sorted(files(a.fs))}") from error
    return script


async def two_with_a_file() -> tuple[Box, Box]:
    a, b = boxes(2)
    a.fs.mkdir("d")
    a.fs.write_file("d/f", OLD)
    await settle_all(a, b)
    a.clock.now_ns += 10**9  # so that both are sure of what they saw
    await settle_all(a, b)
    return a, b


def files(fs: MemoryFileSystem) -> dict[str, bytes]:
    """What people see."""
    return {
        path: content
        for path, content in fs.snapshot().items()
        if isinstance(content, bytes) and not path.startswith(".shoal")
    }


def check_nothing_is_doubled_up(fs: MemoryFileSystem) -> None:
    assert len(files(fs)) <= 4, sorted(files(fs))


def check_no_leftovers(*members: Box) -> None:
    """Nothing half done lies about."""
    for box in members:
        for path in box.fs.snapshot():
            assert not path.endswith(".parked"), path
