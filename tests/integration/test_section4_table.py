"""What several people did at the same time, row by row, on real disks, in every order of meeting.

Each row is a beginning, what each device does while it hears of nobody, and what must come out. Two
devices exchange both ways, or one before the other; three meet in pairs, in every order (two of the
six orders unless SHOAL_MEETINGS=all, as in `make test-meetings`). Whatever the order, all disks end
the same.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.support.real_disks import DiskBox, disk_boxes
from tests.support.two_folders import exchange

pytestmark = pytest.mark.slow

Act = Callable[[Path], object]
Tree = dict[str, object]
Check = Callable[[Tree], bool]

NOTE: Final = "# Title\n\nFirst paragraph.\n\nSecond paragraph.\n\nThird paragraph.\n"
CONFLICT: Final = "(conflict "


def write(name: str, text: str | bytes) -> Act:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda root: (root / name).write_bytes(data)


def change(name: str, old: str, new: str) -> Act:
    return lambda root: (root / name).write_text((root / name).read_text().replace(old, new))


def move(old: str, new: str) -> Act:
    return lambda root: (root / old).rename(root / new)


def delete(name: str) -> Act:
    def act(root: Path) -> None:
        path = root / name
        if path.is_dir():
            for below in sorted(path.rglob("*"), reverse=True):
                below.rmdir() if below.is_dir() else below.unlink()
            path.rmdir()
        else:
            path.unlink()

    return act


def make(name: str) -> Act:
    return lambda root: (root / name).mkdir(parents=True)


def nothing(root: Path) -> None:
    """Only listens."""


def several(*acts: Act) -> Act:
    return lambda root: [act(root) for act in acts]


def files(tree: Tree) -> list[bytes]:
    """What the files hold."""
    return sorted(what for what in tree.values() if isinstance(what, bytes))


def exactly(expected: dict[str, str | bytes | None]) -> Check:
    meant = {p: what.encode() if isinstance(what, str) else what for p, what in expected.items()}
    return lambda tree: tree == meant


def one_and_copies(name: str, *texts: str | bytes) -> Check:
    """All of these texts, one under the name, the others beside it as conflict copies."""
    meant = sorted(text.encode() if isinstance(text, str) else text for text in texts)

    def check(tree: Tree) -> bool:
        copies = [path for path in tree if path != name]
        return (
            files(tree) == meant
            and name in tree
            and all(CONFLICT in path and path.count(CONFLICT) == 1 for path in copies)
        )

    return check


@dataclass(frozen=True)
class Row:
    """One row of the table. `third` is what a third device does; it only listens by default."""

    name: str
    before: Act
    one: Act
    other: Act
    check: Check
    third: Act = nothing
    check_three: Check | None = None


TABLE: Final = (
    Row(
        "edit and edit of a text in other places: merged",
        write("note.md", NOTE),
        change("note.md", "First", "Anna's"),
        change("note.md", "Second", "Ben's"),
        exactly({"note.md": NOTE.replace("First", "Anna's").replace("Second", "Ben's")}),
        change("note.md", "Third", "Carla's"),
        exactly({"note.md": NOTE.replace("First", "Anna's").replace("Second", "Ben's")
                 .replace("Third", "Carla's")}),
    ),
    Row(
        "edit and edit otherwise: one keeps the name, the others are copies",
        write("data.bin", b"\0before"),
        write("data.bin", b"\0one"),
        write("data.bin", b"\0other"),
        one_and_copies("data.bin", b"\0one", b"\0other"),
        write("data.bin", b"\0third"),
        one_and_copies("data.bin", b"\0one", b"\0other", b"\0third"),
    ),
    Row(
        "edit and edit of the same words: copies",
        write("note.md", NOTE),
        change("note.md", "First", "Anna's"),
        change("note.md", "First", "Ben's"),
        one_and_copies(
            "note.md", NOTE.replace("First", "Anna's"), NOTE.replace("First", "Ben's")
        ),
    ),
    Row(
        "edit and edit to equal content: one",
        write("data.bin", b"\0before"),
        write("data.bin", b"\0same"),
        write("data.bin", b"\0same"),
        exactly({"data.bin": b"\0same"}),
        write("data.bin", b"\0same"),
    ),
    Row(
        "edit and delete: the edit survives",
        write("f", "before"),
        write("f", "edited"),
        delete("f"),
        exactly({"f": "edited"}),
        delete("f"),
    ),
    Row(
        "rename and rename: one file, under the newer name",
        write("f", "text"),
        move("f", "one"),
        move("f", "other"),
        lambda tree: list(tree.values()) == [b"text"] and set(tree) < {"one", "other", "third"},
        move("f", "third"),
    ),
    Row(
        "rename and edit: both apply",
        write("f", "before"),
        move("f", "renamed"),
        write("f", "edited"),
        exactly({"renamed": "edited"}),
    ),
    Row(
        "rename and delete: the file lives, under its new name",
        write("f", "text"),
        move("f", "renamed"),
        delete("f"),
        exactly({"renamed": "text"}),
        delete("f"),
    ),
    Row(
        "two new directories of one name: one, with what is in both",
        nothing,
        several(make("d"), write("d/one", "1")),
        several(make("d"), write("d/other", "2")),
        exactly({"d": None, "d/one": "1", "d/other": "2"}),
        several(make("d"), make("d/below"), write("d/below/third", "3")),
        exactly({"d": None, "d/one": "1", "d/other": "2", "d/below": None, "d/below/third": "3"}),
    ),
    Row(
        "a new file and a new directory of one name: the directory keeps it",
        nothing,
        write("x.d", "file"),
        several(make("x.d"), write("x.d/inside", "1")),
        lambda tree: tree["x.d"] is None and tree["x.d/inside"] == b"1"
        and [tree[path] for path in tree if path.startswith("x (conflict ")] == [b"file"],
    ),
    Row(
        "two new files of one name and content: one",
        nothing,
        write("f", "same"),
        write("f", "same"),
        exactly({"f": "same"}),
        write("f", "same"),
    ),
    Row(
        "two new files of one name: both, one under another name",
        nothing,
        write("f", "one"),
        write("f", "other"),
        one_and_copies("f", "one", "other"),
        write("f", "third"),
        one_and_copies("f", "one", "other", "third"),
    ),
    Row(
        "move and move into each other: the newest falls back",
        several(make("a"), make("b"), make("c"), write("a/1", "1"), write("b/2", "2")),
        move("a", "b/a"),
        move("b", "a/b"),
        lambda tree: files(tree) == [b"1", b"2"]
        and len(tree) == 5,
        move("c", "a/c"),
    ),
    Row(
        "moves in a cycle of three",
        several(make("a"), make("b"), make("c"), write("a/1", "1"), write("c/3", "3")),
        move("a", "b/a"),
        move("b", "c/b"),
        lambda tree: set(tree) == {"c", "c/b", "c/3", "c/b/a", "c/b/a/1"},
        move("c", "a/c"),
        lambda tree: files(tree) == [b"1", b"3"]
        and len(tree) == 5,
    ),
    Row(
        "delete a directory and create in it: it lives on with what the deleter had not seen",
        several(make("d"), write("d/old", "old")),
        delete("d"),
        write("d/new", "new"),
        exactly({"d": None, "d/new": "new"}),
        several(make("d/below"), write("d/below/third", "3")),
        exactly({"d": None, "d/new": "new", "d/below": None, "d/below/third": "3"}),
    ),
    Row(
        "delete a directory and move into it: it lives on with what was moved",
        several(make("d"), write("d/old", "old"), write("f", "text")),
        delete("d"),
        move("f", "d/f"),
        exactly({"d": None, "d/f": "text"}),
    ),
    Row(
        "names that differ only in case or normal form: two files",
        nothing,
        several(write("Makefile", "1"), write("caf\u00e9", "2")),
        several(write("makefile", "3"), write("cafe\u0301", "4")),
        exactly({"Makefile": "1", "caf\u00e9": "2", "makefile": "3", "cafe\u0301": "4"}),
        write("MAKEFILE", "5"),
        exactly({"Makefile": "1", "caf\u00e9": "2", "makefile": "3", "cafe\u0301": "4",
                 "MAKEFILE": "5"}),
    ),
)  # fmt: skip

rows = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)

# Each step is a meeting: (who receives, from whom), one way or both.
TWO: Final = {
    "both ways": [("a", "b"), ("b", "a")],
    "first one way": [("a", "b"), ("settle", "a"), ("b", "a")],
    "first the other way": [("b", "a"), ("settle", "b"), ("a", "b")],
}
ORDERS: Final = tuple(itertools.permutations(("ab", "bc", "ac")))
MEETINGS: Final = ORDERS if os.environ.get("SHOAL_MEETINGS") == "all" else ORDERS[:1] + ORDERS[-1:]


async def begin(base: Path, row: Row, acts: Sequence[Act]) -> list[DiskBox]:
    """All devices have what was there before; then each does its own."""
    base.mkdir()
    made = disk_boxes(len(acts), base)
    row.before(made[0].root)
    await made[0].settle()
    exchange(*made)
    for box in made[1:]:
        await box.settle()
    assert all(box.tree() == made[0].tree() for box in made)
    exchange(*made)
    for box, act in zip(made, acts, strict=True):
        act(box.root)
        await box.settle()
    return made


async def finish(made: Sequence[DiskBox]) -> Tree:
    """Everybody meets everybody until all is quiet; returns what all disks show."""
    for _ in range(6):
        exchange(*made)
        for box in made:
            await box.settle(all_blocks=False)
        if len({box.folder.have for box in made}) == 1:
            break
    trees = [box.tree() for box in made]
    assert not any(box.folder.pending for box in made)
    assert all(tree == trees[0] for tree in trees), trees
    for box in made:
        box.close()
    return trees[0]


@rows
async def test_two_devices(row: Row, tmp_path: Path) -> None:
    found = []
    for name, steps in TWO.items():
        made = await begin(tmp_path / name, row, (row.one, row.other))
        by_name = dict(zip("ab", made, strict=True))
        for who, whom in steps:
            if who == "settle":
                await by_name[whom].settle()
            else:
                by_name[who].take_from(by_name[whom])
        found.append(await finish(made))
        assert row.check(found[-1]), (name, found[-1])
    assert all(tree == found[0] for tree in found), found


@rows
async def test_three_devices(row: Row, tmp_path: Path) -> None:
    found = []
    for order in MEETINGS:
        made = await begin(tmp_path / "-".join(order), row, (row.one, row.other, row.third))
        by_name = dict(zip("abc", made, strict=True))
        for pair in order:
            met = [by_name[name] for name in pair]
            for _ in range(2):  # what one makes of it is news to the other
                exchange(*met)
                for box in met:
                    await box.settle(all_blocks=False)
        found.append(await finish(made))
        check = row.check_three or row.check
        assert check(found[-1]), (order, found[-1])
    assert all(tree == found[0] for tree in found), found


@rows
async def test_a_third_device_only_listens(row: Row, tmp_path: Path) -> None:
    found = []
    for order in MEETINGS:  # it hears of both at once, or of one before the other
        made = await begin(tmp_path / "-".join(order), row, (row.one, row.other, nothing))
        by_name = dict(zip("abc", made, strict=True))
        for pair in order:
            met = [by_name[name] for name in pair]
            exchange(*met)
            for box in met:
                await box.settle(all_blocks=False)
        found.append(await finish(made))
        assert row.check(found[-1]), (order, found[-1])
    assert all(tree == found[0] for tree in found), found
