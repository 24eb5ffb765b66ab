"""Disks that cannot hold the tree's names keep aliases for themselves; the tree stays exact."""

from __future__ import annotations

import contextlib
import random
import unicodedata

import pytest

from node.files.portable_names import Personality
from node.index.database import open_database
from tests.node.sync.test_two_folders import person
from tests.support.two_folders import Box, boxes, exchange

LINUX = Personality()
APFS = Personality(folds_case=True, folds_unicode=True)
HFS = Personality(folds_case=True, folds_unicode=True, stores_decomposed=True)
WINDOWS = Personality(folds_case=True, windows_names=True)
DISKS = {"apfs": APFS, "hfs": HFS, "windows": WINDOWS}
OTHERS = pytest.mark.parametrize("personality", DISKS.values(), ids=DISKS)

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


async def settle_all(*members: Box) -> None:
    for _ in range(8):
        for box in members:
            await box.settle(all_blocks=False)
        exchange(*members)
        if all(not box.folder.pending for box in members):
            have = members[0].folder.have
            if all(box.folder.have == have for box in members):
                break
    assert not any(box.folder.pending for box in members), "something is wanted that nobody has"
    for box in members:
        assert meant(box) == meant(members[0])


def meant(box: Box) -> dict[str, object]:
    """Tree path → content on this disk, whatever its name there."""
    found = {}
    for item in box.folder.tree.all_items():
        path, name = box.folder.tree.path(item), box.folder.disk.path(item)
        if path is not None:
            assert name is not None, f"{path} is not on this disk"
            found[path] = box.tree()[name]
    assert len(found) == len(box.tree()), (found.keys(), box.tree().keys())
    return found


def alias_of(box: Box, path: str) -> str:
    row = box.folder.tree.resolve(path)
    assert row is not None, path
    name = box.folder.disk.path(row.item)
    assert name is not None
    return name


@OTHERS
async def test_two_names_that_a_disk_takes_for_one(personality: Personality) -> None:
    other, a, b = boxes(3, personalities=[personality])
    a.fs.write_file("Makefile", b"large")
    a.fs.write_file("makefile", b"small")
    await settle_all(other, a, b)
    assert b.tree() == {"Makefile": b"large", "makefile": b"small"}
    names = {alias_of(other, "Makefile"), alias_of(other, "makefile")}
    assert len(names) == 2
    assert len(names & {"Makefile", "makefile"}) == 1
    other.fs.write_file(alias_of(other, "makefile"), b"small, edited")
    other.fs.write_file(alias_of(other, "Makefile"), b"large, edited")
    await settle_all(other, a, b)
    assert b.tree() == {"Makefile": b"large, edited", "makefile": b"small, edited"}
    kept = alias_of(other, "makefile")
    b.fs.unlink("Makefile")
    await settle_all(other, a, b)
    assert other.tree() == {kept: b"small, edited"}, "an alias stays as long as its item"
    other.fs.unlink(kept)
    await settle_all(other, a, b)
    assert a.tree() == {}


@OTHERS
async def test_an_aliased_item_that_is_moved_keeps_its_name(personality: Personality) -> None:
    other, a = boxes(2, personalities=[personality])
    a.fs.mkdir("d")
    a.fs.write_file("x", b"1")
    a.fs.write_file("X", b"2")
    await settle_all(other, a)
    for path in ("x", "X"):
        name = alias_of(other, path)
        other.fs.rename(name, f"d/{name}")
    await settle_all(other, a)
    assert a.tree() == {"d": None, "d/x": b"1", "d/X": b"2"}
    other.fs.rename(alias_of(other, "d/X"), "d/renamed")
    await settle_all(other, a)
    assert a.tree() == {"d": None, "d/x": b"1", "d/renamed": b"2"}


@OTHERS
async def test_a_rename_that_changes_only_the_case(personality: Personality) -> None:
    other, a = boxes(2, personalities=[personality])
    a.fs.mkdir("Docs")
    a.fs.write_file("Docs/Read Me", b"text")
    await settle_all(other, a)
    a.fs.rename("Docs", "docs")
    a.fs.rename("docs/Read Me", "docs/READ ME")
    await settle_all(other, a)
    assert other.tree() == {"docs": None, "docs/READ ME": b"text"}
    # As people do it on such a disk; the file system's own rename refuses.
    other.fs.rename("docs/READ ME", "t")
    other.fs.rename("t", "docs/read me")
    before = other.folder.have[other.identity.device]
    await settle_all(other, a)
    assert a.tree() == {"docs": None, "docs/read me": b"text"}
    assert other.folder.have[other.identity.device] == before + 1, "a rename, and nothing else"


async def test_the_case_is_changed_and_only_one_name_is_heard_of() -> None:
    other, a = boxes(2, personalities=[APFS])
    a.fs.write_file("name", b"text")
    await settle_all(other, a)
    other.fs.rename("name", "t")
    other.fs.rename("t", "NAME")
    await other.scan("name")
    await settle_all(other, a)
    assert a.tree() == {"NAME": b"text"}


async def test_a_disk_that_decomposes_names() -> None:
    other, a = boxes(2, personalities=[HFS])
    a.fs.write_file(f"{COMPOSED}.txt", b"one")
    a.fs.mkdir(f"{COMPOSED} d")
    a.fs.write_file(f"{COMPOSED} d/{COMPOSED}", b"two")
    await settle_all(other, a)
    assert set(other.tree()) == {unicodedata.normalize("NFD", path) for path in a.tree()}
    other.fs.write_file(f"{DECOMPOSED}.txt", b"edited")
    other.fs.write_file(f"{COMPOSED} new", b"new")
    await settle_all(other, a)
    assert a.tree()[f"{COMPOSED}.txt"] == b"edited"
    assert a.tree()[f"{COMPOSED} new"] == b"new", "the disk decomposed it, not a person"
    a.fs.write_file(f"{DECOMPOSED}.txt", b"a third")
    await settle_all(other, a)
    assert len([path for path in a.tree() if path.endswith(".txt")]) == 2


async def test_names_that_windows_forbids_are_escaped_there_only() -> None:
    windows, a, b = boxes(3, personalities=[WINDOWS])
    names = ["aux", "con.txt", "a:b", "what?", "trailing.", "trailing ", "tab\t", "COM1.tar.gz"]
    for name in names:
        a.fs.write_file(name, name.encode())
    a.fs.mkdir("nul")
    a.fs.write_file("nul/prn", b"inside")
    await settle_all(windows, a, b)
    assert set(b.tree()) == {*names, "nul", "nul/prn"}
    assert not set(windows.tree()) & {*names, "nul"}
    windows.fs.write_file(alias_of(windows, "nul/prn"), b"edited")
    windows.fs.write_file(f"{alias_of(windows, 'nul')}/new.txt", b"new")
    windows.fs.unlink(alias_of(windows, "what?"))
    await settle_all(windows, a, b)
    assert b.tree()["nul/prn"] == b"edited"
    assert b.tree()["nul/new.txt"] == b"new"
    assert "what?" not in b.tree()
    b.fs.rename("aux", "allowed")
    await settle_all(windows, a, b)
    assert windows.tree()["allowed"] == b"aux"


@OTHERS
async def test_an_index_that_was_lost_knows_the_aliases_again(personality: Personality) -> None:
    other, a = boxes(2, personalities=[personality])
    a.fs.write_file("x", b"1")
    a.fs.write_file("X", b"2")
    a.fs.write_file("aux", b"3")
    a.fs.mkdir("Y")
    a.fs.write_file("Y/one", b"4")
    a.fs.mkdir("y")
    a.fs.write_file("y/two", b"5")
    await settle_all(other, a)
    on_disk = other.tree()
    roster = a.folder.roster_entries
    other.database = open_database(None)
    other.open(a.folder.id, roster)
    other.take_from(a)
    await settle_all(other, a)
    assert other.tree() == on_disk
    assert set(a.tree()) == {"x", "X", "aux", "Y", "Y/one", "y", "y/two"}


@pytest.mark.slow
async def test_random_people_with_other_disks() -> None:
    for seed in range(40):
        try:
            await random_run(seed)
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error


async def random_run(seed: int) -> None:
    chance = random.Random(seed)
    members = boxes(3, personalities=[chance.choice([APFS, HFS, WINDOWS]), LINUX])
    names = ["a", "A", COMPOSED, DECOMPOSED, "aux", "b."]
    for _ in range(chance.randint(3, 12)):
        box = chance.choice(members)
        for _ in range(chance.randint(1, 4)):
            with contextlib.suppress(OSError):  # what such a disk refuses, people do not do
                person(box, chance, names)
        if chance.random() < 0.7:
            await box.settle(rounds=3, all_blocks=False)
        if chance.random() < 0.4:
            one, other = chance.sample(members, 2)
            one.take_from(other)
    await settle_all(*members)
    assert members[1].tree() == members[2].tree()
