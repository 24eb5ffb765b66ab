"""Scan, intake and apply between folders on in-memory disks, entries carried by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from crdt.ids import ROOT
from node.sync.recovery import recover
from tests.support.two_folders import Box, boxes, exchange


async def settle_all(*members: Box) -> None:
    for _ in range(6):
        for box in members:
            await box.settle(all_blocks=False)
        exchange(*members)
        if all(not box.folder.pending for box in members):
            have = members[0].folder.have
            if all(box.folder.have == have for box in members):
                break
    assert not any(box.folder.pending for box in members), "something is wanted that nobody has"
    trees = [box.tree() for box in members]
    assert all(tree == trees[0] for tree in trees), trees


async def test_a_file_goes_across_and_comes_back_edited() -> None:
    a, b = boxes(2)
    a.fs.write_file("note.txt", b"hello")
    await a.settle()
    exchange(a, b)
    await b.settle()
    assert b.tree() == {"note.txt": b"hello"}
    b.fs.write_file("note.txt", b"hello again")
    await settle_all(a, b)
    assert a.tree() == {"note.txt": b"hello again"}


async def test_directories_moves_and_deletions() -> None:
    a, b = boxes(2)
    a.fs.mkdir("d")
    a.fs.mkdir("d/e")
    a.fs.write_file("d/e/one", b"1" * 10_000)
    a.fs.write_file("d/two", b"2")
    a.fs.symlink("two", "d/link")
    await settle_all(a, b)
    b.fs.rename("d", "moved")
    await settle_all(a, b)
    assert set(a.tree()) == {"moved", "moved/e", "moved/e/one", "moved/two", "moved/link"}
    rows = a.folder.log.have[b.identity.device]
    assert rows == 1, "a directory's rename is one entry"
    a.fs.rename("moved/e", "e")
    a.fs.unlink("moved/two")
    await settle_all(a, b)
    assert set(b.tree()) == {"moved", "moved/link", "e", "e/one"}


async def test_a_new_directory_with_the_inode_of_a_deleted_one_is_not_that_one_moved() -> None:
    # Found by two real devices on ext4, which gives a freed inode to whoever comes next: what
    # somebody made in the deleted directory turned up in the new one.
    a, b = boxes(2)
    a.fs.mkdir("deleted")
    a.fs.write_file("deleted/file", b"one")
    await settle_all(a, b)
    freed = a.fs.lstat("deleted").inode
    a.fs.unlink("deleted/file")
    a.fs.rmdir("deleted")
    a.fs.sync()
    a.fs.mkdir("new")
    assert a.fs.lstat("new").inode == freed
    a.fs.write_file("new/file", b"two")
    b.fs.write_file("deleted/by b", b"three")
    await settle_all(a, b)
    assert a.tree() == b.tree()
    assert a.tree() == {"new": None, "new/file": b"two", "deleted": None, "deleted/by b": b"three"}


async def test_both_edit_and_nothing_is_lost() -> None:
    a, b = boxes(2)
    a.fs.write_file("f", b"base")
    await settle_all(a, b)
    a.fs.write_file("f", b"mine")
    b.fs.write_file("f", b"theirs")
    await a.settle()
    await b.settle()
    await settle_all(a, b)
    assert set(a.tree().values()) == {b"mine", b"theirs"}


async def test_swapped_names() -> None:
    a, b = boxes(2)
    a.fs.write_file("x", b"was x")
    a.fs.write_file("y", b"was y")
    await settle_all(a, b)
    a.fs.rename("x", "t")
    a.fs.rename("y", "x")
    a.fs.rename("t", "y")
    await settle_all(a, b)
    assert b.tree() == {"x": b"was y", "y": b"was x"}


async def test_a_file_becomes_a_directory_and_back() -> None:
    a, b = boxes(2)
    a.fs.write_file("x", b"file")
    await settle_all(a, b)
    a.fs.unlink("x")
    a.fs.mkdir("x")
    a.fs.write_file("x/inside", b"new")
    await settle_all(a, b)
    assert b.tree() == {"x": None, "x/inside": b"new"}
    b.fs.unlink("x/inside")
    b.fs.rmdir("x")
    b.fs.write_file("x", b"file again")
    await settle_all(a, b)
    assert a.tree() == {"x": b"file again"}


async def test_equal_files_on_both_sides_unite() -> None:
    a, b = boxes(2)
    for box in (a, b):
        box.fs.mkdir("d")
        box.fs.write_file("d/same", b"same")
    await settle_all(a, b)
    assert a.tree() == {"d": None, "d/same": b"same"}
    b.fs.write_file("d/same", b"other")
    await settle_all(a, b)
    assert a.tree() == {"d": None, "d/same": b"other"}
    a.fs.unlink("d/same")
    a.fs.rmdir("d")
    await settle_all(a, b)
    assert b.tree() == {}


async def test_random_people() -> None:
    for seed in range(60):
        try:
            await random_run(seed)
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error


async def random_run(seed: int) -> None:
    chance = random.Random(seed)
    members = boxes(chance.choice([2, 3]))
    for _ in range(chance.randint(3, 15)):
        box = chance.choice(members)
        for _ in range(chance.randint(1, 4)):
            person(box, chance)
        if chance.random() < 0.7:
            await box.settle(rounds=3, all_blocks=False)
        if chance.random() < 0.4:
            one, other = chance.sample(members, 2)
            one.take_from(other)
    await settle_all(*members)


def person(box: Box, chance: random.Random, names: Sequence[str] = ("a", "b", "c.txt")) -> None:
    tree = box.tree()
    directories = ["", *(path for path, what in tree.items() if what is None)]
    parent = chance.choice(directories)
    target = f"{parent}/{chance.choice(names)}".lstrip("/")
    existing = chance.choice(sorted(tree)) if tree else None
    match chance.choice(["write", "write", "big", "mkdir", "rename", "delete", "link"]):
        case "write" if tree.get(target, b"") is not None:
            if isinstance(tree.get(target), str):
                return
            box.fs.write_file(target, chance.choice([b"x", b"y", b"z", b""]))
        case "big" if isinstance(tree.get(target, b""), bytes):
            box.fs.write_file(target, chance.randbytes(1) * 70_000)
        case "mkdir" if target not in tree:
            box.fs.mkdir(target)
        case "link" if target not in tree:
            box.fs.symlink("somewhere", target)
        case "rename" if existing is not None and target not in tree:
            if not (target + "/").startswith(existing + "/"):
                box.fs.rename(existing, target)
        case "delete" if existing is not None:
            for path in sorted(tree, reverse=True):
                if path == existing or path.startswith(existing + "/"):
                    (box.fs.rmdir if tree[path] is None else box.fs.unlink)(path)


async def test_a_new_file_that_changes_within_one_scan_run_is_one_item() -> None:
    # Found by killing nodes at random: two visits to one path before a commit made two items.
    a, b = boxes(2)
    a.fs.write_file("f", b"first")
    scan = a.make_scan()
    await scan.paths(["f"])
    a.fs.write_file("f", b"second")
    await scan.paths(["f"])
    await scan.finish()
    await settle_all(a, b)
    assert b.tree() == {"f": b"second"}


async def test_what_moves_and_is_replaced_within_one_scan_run_is_one_item() -> None:
    # Found by killing nodes: the move was committed, and what replaced it was taken for a newcomer.
    a, b = boxes(2)
    a.fs.write_file("f", b"first")
    await settle_all(a, b)
    scan = a.make_scan()
    a.fs.rename("f", "g")
    await scan.paths(["f", "g"])
    a.fs.write_file("new", b"second")
    a.fs.unlink("g")
    a.fs.rename("new", "g")
    await scan.paths(["g"])
    await scan.finish()
    await settle_all(a, b)
    assert a.tree() == b.tree() == {"g": b"second"}


@pytest.mark.parametrize("edited_before", [False, True])
async def test_what_is_away_for_a_moment_within_one_scan_run_is_not_deleted(
    edited_before: bool,
) -> None:
    # Found by `sed -i.bak`: what was seen edited was deleted in the same entry, as it had not been
    # there at another look.
    a, b = boxes(2)
    a.fs.write_file("f", b"first")
    await settle_all(a, b)
    scan = a.make_scan()
    if edited_before:
        a.fs.write_file("new", b"second")
        a.fs.replace("new", "f")
        await scan.paths(["f"])
    a.fs.rename("f", "f.bak")
    await scan.paths(["f"])
    a.fs.write_file("new", b"third")
    a.fs.rename("new", "f")
    if not edited_before:
        await scan.paths(["f"])
    report = await scan.finish()
    a.dirty += [*report.retry, "f", "f.bak"]
    await settle_all(a, b)
    assert a.tree() == b.tree()
    assert b.tree()["f"] == b"third"
    assert b.tree()["f.bak"] == (b"second" if edited_before else b"first")


async def test_what_becomes_a_directory_within_one_scan_run_is_gone() -> None:
    # Found by two real devices: the applier came between the newcomer and the deletion.
    a, b = boxes(2)
    a.fs.write_file("f", b"first")
    await settle_all(a, b)
    scan = a.make_scan()
    a.fs.unlink("f")
    a.fs.mkdir("f")
    await scan.paths(["f"])
    await scan.paths([])
    await a.apply()
    await scan.finish()
    await settle_all(a, b)
    assert a.tree() == b.tree()
    assert list(a.tree()) == ["f"]


async def test_a_large_loser_of_a_conflict_keeps_its_blocks() -> None:
    # Found by killing nodes: the winner displaced the loser's file, the only holder of its blocks.
    a, b = boxes(2)
    a.fs.write_file("f", b"0" * 10_000)
    await settle_all(a, b)
    a.fs.write_file("f", b"1" * 10_000)
    b.fs.write_file("f", b"2" * 10_000)
    await a.settle()
    await b.settle()
    await settle_all(a, b)
    assert {bytes([one[0]]) for one in a.tree().values() if isinstance(one, bytes)} == {b"1", b"2"}


async def test_what_was_placed_but_not_recorded_is_no_edit_when_the_view_has_moved_on() -> None:
    # Found by killing nodes: deleted files came back, since a crash made our own doing look new.
    a, b = boxes(2)
    a.fs.write_file("f", b"1")
    await settle_all(a, b)
    a.fs.write_file("f", b"2")
    a.fs.write_file("g", b"new")
    await a.settle()
    exchange(a, b)
    b.clock.now_ns += 10**9  # so that a scan can be sure of what it sees
    await b.scan()
    with b.dying_before_it_records():
        await b.apply()
    assert b.tree() == {"f": b"2", "g": b"new"}
    a.fs.unlink("f")
    a.fs.unlink("g")
    await a.settle()
    exchange(a, b)
    await b.settle()
    await settle_all(a, b)
    assert a.tree() == {}
    assert b.identity.device not in b.folder.have, "b had nothing to say"


@pytest.mark.parametrize("large", [False, True])
async def test_an_edit_after_an_unrecorded_exchange_replaces_what_was_put_there(
    large: bool,
) -> None:
    # Found by killing nodes: the edit seemed to replace the loser of a conflict, which was gone.
    a, b = boxes(2)
    size = 50_000 if large else 5
    a.fs.write_file("f", b"0" * size)
    await settle_all(a, b)
    b.fs.write_file("f", b"b" * size)
    b.clock.now_ns += 10**9  # so that a scan can be sure of what it sees
    await b.scan()
    for text in (b"1", b"2", b"a"):  # so that a's is the winner
        a.fs.write_file("f", text * size)
        await a.scan()
    exchange(a, b)
    with b.dying_before_it_records():
        await b.apply()
    assert b.tree()["f"] == b"a" * size
    recover(b.folder, b.fs)
    b.fs.write_file("f", b"made from a's" * size)
    await b.settle()
    await settle_all(a, b)
    found = {one for one in a.tree().values() if isinstance(one, bytes)}
    assert found == {b"made from a's" * size, b"b" * size}


async def test_an_unrecorded_exchange_is_no_edit_and_its_blocks_can_be_had() -> None:
    a, b, c = boxes(3)
    a.fs.write_file("f", b"0" * 50_000)
    await settle_all(a, b)
    a.fs.write_file("f", b"1" * 50_000)
    await a.scan()
    b.take_from(a)
    b.clock.now_ns += 10**9  # so that a scan can be sure of what it sees
    await b.scan()
    with b.dying_before_it_records():
        await b.apply()
    a.fs.write_file("f", b"2" * 50_000)  # and the view moves on
    await a.scan()
    recover(b.folder, b.fs)
    b.take_from(a)
    await b.scan()
    assert b.identity.device not in b.folder.have, "b had nothing to say"
    (found,) = b.folder.disk.with_digest(b.folder.disk.at(ROOT, "f").digest, 1)  # type: ignore[union-attr]
    assert b.folder.locations.blocks_of(found.item)
    await settle_all(a, b, c)
    assert c.tree() == {"f": b"2" * 50_000}
