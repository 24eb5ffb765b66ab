"""Texts that were edited on several devices at once become one, on in-memory disks."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from crdt.ids import ROOT
from crdt.roster_ops import Role
from node.sync import base_texts
from node.sync.base_texts import BaseTexts
from tests.node.sync.test_effects import set_role
from tests.node.sync.test_two_folders import settle_all
from tests.support.two_folders import Box, InlineThreads, boxes, exchange

NOTE = b"# Title\n\nFirst paragraph.\n\nSecond paragraph.\n\nThird paragraph.\n"
PARTS = (b"First", b"Second", b"Third")


def edit(box: Box, path: str, old: bytes, new: bytes) -> None:
    text = read(box, path)
    assert old in text
    box.fs.write_file(path, text.replace(old, new))


def read(box: Box, path: str) -> bytes:
    found = box.tree()[path]
    assert isinstance(found, bytes)
    return found


async def offline(count: int, path: str = "note.md", text: bytes = NOTE) -> list[Box]:
    """Devices that all have the file, each of which then edits a paragraph of its own."""
    made = boxes(count)
    made[0].fs.write_file(path, text)
    await settle_all(*made)
    for box, part in zip(made, PARTS, strict=False):
        edit(box, path, part, part.upper())
        await box.settle()
    return made


def all_upper(count: int) -> bytes:
    text = NOTE
    for part in PARTS[:count]:
        text = text.replace(part, part.upper())
    return text


async def test_paragraphs_edited_on_two_devices_come_out_merged_with_no_copy() -> None:
    a, b = await offline(2)
    await settle_all(a, b)
    assert a.tree() == b.tree() == {"note.md": all_upper(2)}
    assert a.folder.tree.totals().conflicts == 0


async def test_both_originals_are_kept_by_who_had_them() -> None:
    a, b = await offline(2)
    texts = {read(a, "note.md"), read(b, "note.md")}
    await settle_all(a, b)
    kept = set()
    for box in (a, b):
        for path, data in box.fs.snapshot().items():
            if path.startswith(".shoal/history/") and isinstance(data, bytes):
                kept.add(data)
    assert texts <= kept


async def test_no_copy_is_on_any_disk_meanwhile() -> None:
    a, b = await offline(2)
    exchange(a, b)
    for box in (a, b):
        await box.settle(rounds=1, all_blocks=False)
        assert set(box.tree()) == {"note.md"}


@pytest.mark.parametrize("order", list(itertools.permutations(["ab", "bc", "ac"])))
async def test_three_devices_merge_in_every_order_of_meeting(order: tuple[str, ...]) -> None:
    a, b, c = members = await offline(3)
    by_name = dict(zip("abc", members, strict=True))
    for pair in order:
        met = [by_name[name] for name in pair]
        await settle_all(*met)
    await settle_all(a, b, c)
    assert a.tree() == {"note.md": all_upper(3)}


@pytest.mark.parametrize("order", list(itertools.permutations(["ab", "bc", "ac"])))
async def test_what_three_devices_append_is_there_once_each(order: tuple[str, ...]) -> None:
    members = boxes(3)
    members[0].fs.write_file("list.md", b"- bread\n")
    await settle_all(*members)
    for name, box in zip("abc", members, strict=True):
        box.fs.write_file("list.md", f"- bread\n- from {name}\n".encode())
        await box.settle()
    by_name = dict(zip("abc", members, strict=True))
    for pair in order:  # entries only: what was merged first is merged on, by several at once
        met = [by_name[name] for name in pair]
        exchange(*met)
        for box in met:
            await box.settle(all_blocks=False)
    await settle_all(*members)
    assert set(members[0].tree()) == {"list.md"}
    lines = read(members[0], "list.md").splitlines()
    assert sorted(lines) == [b"- bread", b"- from a", b"- from b", b"- from c"]


async def test_merging_goes_on_over_several_rounds() -> None:
    a, b = await offline(2)
    for number in range(6):
        await settle_all(a, b)
        edit(a, "note.md", b"# Title", b"# Title %d" % number)
        edit(b, "note.md", b"Third", b"Third %d" % number)
        await a.settle()
        await b.settle()
    await settle_all(a, b)
    assert set(a.tree()) == {"note.md"}
    assert b"# Title 5 4 3 2 1 0" in read(a, "note.md")
    assert b"Third 5 4 3 2 1 0" in read(a, "note.md")


async def test_the_same_words_become_a_conflict_copy() -> None:
    a, b = boxes(2)
    a.fs.write_file("note.md", NOTE)
    await settle_all(a, b)
    edit(a, "note.md", b"First", b"Other")
    edit(b, "note.md", b"First", b"Another")
    texts = {read(a, "note.md"), read(b, "note.md")}
    await a.settle()
    await b.settle()
    await settle_all(a, b)
    assert set(a.tree().values()) == texts


@pytest.mark.parametrize("path", ["code.py", "data.json", "Cargo.lock", "page.xml"])
async def test_other_formats_merge_where_the_lines_are_others(path: str) -> None:
    a, b = await offline(2, path)
    await settle_all(a, b)
    assert a.tree() == {path: all_upper(2)}


async def test_source_edited_in_one_line_becomes_a_conflict_copy() -> None:
    for path, copies in (("code.py", 1), ("data.json", 1), ("note.txt", 0)):
        a, b = boxes(2)
        a.fs.write_file(path, b"some words in one line\n")
        await settle_all(a, b)
        edit(a, path, b"some", b"a few")
        edit(b, path, b"line", b"row")
        await a.settle()
        await b.settle()
        await settle_all(a, b)
        assert len(a.tree()) == 1 + copies, path


async def test_bytes_that_are_no_text_become_a_conflict_copy() -> None:
    a, b = await offline(2, "picture.bin", NOTE + b"\0\xff")
    await settle_all(a, b)
    assert len(a.tree()) == 2


async def test_without_a_common_ancestor_there_are_two_files() -> None:
    a, b = boxes(2)
    a.fs.write_file("note.md", NOTE + b"a\n")
    b.fs.write_file("note.md", NOTE + b"b\n")
    await a.settle()
    await b.settle()
    await settle_all(a, b)
    assert len(a.tree()) == 2


async def test_what_people_do_not_want_merged_is_not() -> None:
    a, b = boxes(2)
    a.merging = b.merging = False
    a.fs.write_file("note.md", NOTE)
    await settle_all(a, b)
    edit(a, "note.md", b"First", b"FIRST")
    edit(b, "note.md", b"Second", b"SECOND")
    await a.settle()
    await b.settle()
    await settle_all(a, b)
    assert len(a.tree()) == 2
    # A copy that people have seen stays, whatever the rules are later.
    a.merging = b.merging = True
    await settle_all(a, b)
    assert len(a.tree()) == 2


async def test_one_device_alone_may_merge() -> None:
    for number in range(2):
        a, b = members = await offline(2)
        members[number].merging = False
        exchange(a, b)
        await members[1 - number].settle()
        await settle_all(a, b)
        assert a.tree() == {"note.md": all_upper(2)}


async def test_a_reader_writes_nothing_and_sees_no_copy_while_others_merge() -> None:
    a, b, c = await offline(3)
    c.fs.write_file("note.md", NOTE)
    await settle_all(a, c)
    set_role(a, c, Role.READER)
    exchange(a, c)
    edit(a, "note.md", b"Title", b"TITLE")
    await a.settle()
    before = c.folder.have[c.identity.device]
    c.take_from(a)
    c.take_from(b)
    await c.apply()
    assert c.folder.tree.totals().conflicts == 1
    assert set(c.tree()) == {"note.md"}, "it waits for others to merge"
    await settle_all(a, b)
    c.take_from(a)
    await c.settle()
    assert c.tree() == a.tree()
    assert set(c.tree()) == {"note.md"}
    assert c.folder.have[c.identity.device] == before


async def test_a_reader_shows_the_copy_if_nobody_merges() -> None:
    a, b, c = await offline(3)
    c.fs.write_file("note.md", NOTE)
    await settle_all(a, c)
    set_role(a, c, Role.READER)
    c.take_from(a)
    c.take_from(b)
    await c.settle()
    assert len(c.tree()) == 2


async def test_an_edit_that_no_scan_has_seen_is_never_overtaken() -> None:
    a, b = await offline(2)
    exchange(a, b)
    edit(a, "note.md", b"Third", b"THIRD")  # after the scan, before the merge
    await a.apply()
    assert b"THIRD" in read(a, "note.md")
    await settle_all(a, b)
    assert a.tree() == {"note.md": all_upper(3)}


async def test_an_edit_in_the_moment_of_the_exchange_is_kept() -> None:
    a, b = await offline(2)
    exchange(a, b)
    exchanges = a.fs.exchange
    did: list[str] = []

    def exchange_late(first: str, second: str) -> None:
        if not did:
            did.append(second)
            edit(a, "note.md", b"Third", b"THIRD")
        exchanges(first, second)

    a.clock.now_ns += 10**9  # so that a scan can be sure of what it sees
    await a.scan()
    a.fs.exchange = exchange_late  # type: ignore[method-assign]
    await a.apply()
    assert did == ["note.md"]
    assert b"THIRD" in read(a, "note.md")
    await settle_all(a, b)
    assert a.tree() == {"note.md": all_upper(3)}


async def test_dying_between_disk_and_index_loses_nothing() -> None:
    a, b = await offline(2)
    exchange(a, b)
    a.clock.now_ns += 10**9
    await a.scan()
    with a.dying_before_it_records():
        await a.apply()
    assert read(a, "note.md") == all_upper(2), "it was put there"
    assert a.folder.tree.totals().conflicts == 1, "and not recorded"
    await settle_all(a, b)
    assert a.tree() == {"note.md": all_upper(2)}


async def test_an_edit_of_a_merged_file_builds_on_it() -> None:
    a, b = await offline(2)
    await settle_all(a, b)
    edit(b, "note.md", b"Third", b"THIRD")
    await settle_all(a, b)
    assert a.tree() == {"note.md": all_upper(3)}
    row = a.folder.tree.child(ROOT, "note.md")
    assert row is not None
    assert row.conflicts == 0


async def test_a_merged_file_keeps_the_executable_bit_that_one_gave_it() -> None:
    a, b = boxes(2)
    a.fs.write_file("run.txt", NOTE)
    await settle_all(a, b)
    edit(a, "run.txt", b"First", b"FIRST")
    edit(b, "run.txt", b"Second", b"SECOND")
    b.fs.set_metadata("run.txt", mtime_ns=b.fs.lstat("run.txt").mtime_ns, executable=True)
    await a.settle()
    await b.settle()
    await settle_all(a, b)
    assert a.tree() == {"run.txt": all_upper(2)}
    assert a.fs.lstat("run.txt").executable
    assert a.fs.lstat("run.txt").mtime_ns == b.fs.lstat("run.txt").mtime_ns


async def test_a_deleted_file_comes_back_as_the_edit_not_as_a_merge() -> None:
    a, b, c = await offline(3)
    c.fs.unlink("note.md")
    await c.settle()
    await settle_all(a, b, c)
    assert a.tree() == {"note.md": all_upper(2)}


# --- texts that are too large for the log ---------------------------------------------------------

LONG = NOTE + b"".join(b"Line %d of many.\n" % number for number in range(2_000))


async def keep_texts(*members: Box) -> None:
    for box in members:
        while box.folder.unkept:
            await box.base_texts.keep_some()


async def edited_apart(*, keeping: bool) -> list[Box]:
    """Two devices that overwrite the same long text, each its own part."""
    a, b = boxes(2)
    a.fs.write_file("note.md", LONG)
    await settle_all(a, b)
    if keeping:
        await keep_texts(a)
    edit(a, "note.md", b"First", b"FIRST")
    edit(b, "note.md", b"Line 1999", b"LINE 1999")
    await a.settle()
    await b.settle()
    return [a, b]


async def test_a_long_text_that_all_have_overwritten_is_merged_from_a_kept_copy() -> None:
    a, b = await edited_apart(keeping=True)
    await settle_all(a, b)
    merged = LONG.replace(b"First", b"FIRST").replace(b"Line 1999", b"LINE 1999")
    assert a.tree() == {"note.md": merged}


async def test_without_a_copy_of_the_ancestor_there_is_a_conflict_copy() -> None:
    a, b = await edited_apart(keeping=False)
    await settle_all(a, b)
    assert len(a.tree()) == 2


async def test_a_kept_text_that_is_damaged_is_none() -> None:
    a, b = await edited_apart(keeping=True)
    (row,) = [row for row in a.folder.tree.all_rows() if row.name == "note.md"]
    texts = a.base_texts._db
    for bad in (b"", b"no zstd", texts.execute("SELECT data FROM texts").fetchone()[0][:-9]):
        texts.execute("UPDATE texts SET data = ?", (bad,))
        assert a.base_texts.get(row.content) is None
    await settle_all(a, b)
    assert len(a.tree()) == 2


async def test_only_texts_are_kept_and_the_oldest_go_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, _ = boxes(2)
    a.fs.write_file("binary", b"\0" + LONG)
    a.fs.write_file("short.md", NOTE)
    await a.settle()
    await keep_texts(a)
    kept = "SELECT count(*), coalesce(sum(length(data)), 0) FROM texts"
    assert a.base_texts._db.execute(kept).fetchone() == (0, 0)
    a.fs.write_file("0.md", b"0\n" + LONG)
    await a.settle()
    await keep_texts(a)
    _, size = a.base_texts._db.execute(kept).fetchone()
    monkeypatch.setattr(base_texts, "CACHE_SIZE_MAX", 3 * size + 100)
    for number in range(1, 6):
        a.fs.write_file(f"{number}.md", b"%d\n" % number + LONG)
        await a.settle()
        await keep_texts(a)
    assert a.base_texts._db.execute(kept).fetchone()[0] == 3
    contents = {row.name: row.content for row in a.folder.tree.all_rows()}
    assert [a.base_texts.get(contents[f"{n}.md"]) is not None for n in range(6)] == [
        False, False, False, True, True, True,
    ]  # fmt: skip


async def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    a, _ = boxes(2)
    path = tmp_path / "texts.sqlite"
    for garbage in (b"not a database", b"SQLite format 3\0" + b"\x7f" * 8_000):
        path.write_bytes(garbage)
        cache = BaseTexts(a.folder, a.fs, InlineThreads(), path)
        a.fs.write_file(f"{len(garbage)}.md", LONG + garbage.hex().encode())
        await a.settle()
        while a.folder.unkept:
            await cache.keep_some()
        contents = {row.name: row.content for row in a.folder.tree.all_rows()}
        assert cache.get(contents[f"{len(garbage)}.md"]) is not None
        cache.close()
