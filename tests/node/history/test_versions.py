"""What history says there was: paths, renames, deletions, directories as of a time."""

from __future__ import annotations

from node.history.versions import Version, Versions
from tests.support.two_folders import Box, boxes, exchange


async def step(*members: Box) -> int:
    """Let everybody have everything; returns the time, in milliseconds, by everybody's clock."""
    for _ in range(4):
        for box in members:
            await box.settle(all_blocks=False)
        exchange(*members)
    now_ms = members[0].clock.wall_ns() // 1_000_000
    members[0].clock.now_ns += 10**9
    return now_ms


def texts(box: Box, path: str) -> list[bytes | None]:
    """What `history PATH` shows, the newest first; None for a deletion."""
    return [
        None if one.deleted else one.content.inline for one in Versions(box.folder).of_path(path)
    ]


def text_at(box: Box, path: str, time_ms: int) -> bytes | None:
    found = Versions(box.folder).at_path(path, time_ms)
    return None if found is None else found.content.inline


def tree_at(box: Box, path: str, time_ms: int) -> dict[str, bytes | None]:
    versions = Versions(box.folder)
    found = versions.below(versions.directories_at(path, time_ms), time_ms)
    return {where: None if one is None else one.content.inline for where, one in found.items()}


def current(versions: list[Version]) -> list[str]:
    return [one.id for one in versions if one.current]


async def test_versions_of_a_file_that_two_devices_edit() -> None:
    a, b = boxes(2)
    times = []
    for number, box in enumerate((a, b, b, a, a)):
        box.fs.write_file("f", b"version %d" % number)
        times.append(await step(a, b))
    for box in (a, b):
        assert texts(box, "f") == [b"version %d" % n for n in (4, 3, 2, 1, 0)]
        found = Versions(box.folder).of_path("f")
        assert [one.device for one in found] == [who.identity.device for who in (a, a, b, b, a)]
        assert current(found) == [found[0].id]
        assert len({one.id for one in found}) == 5
        for number, time_ms in enumerate(times):
            assert text_at(box, "f", time_ms) == b"version %d" % number
        assert text_at(box, "f", times[0] - 10**6) is None


async def test_a_device_that_joins_late_knows_the_past() -> None:
    a, b, late = boxes(3)
    times = []
    for content in (b"one", b"two", b"three"):
        a.fs.write_file("f", content)
        times.append(await step(a, b))
    a.fs.rename("f", "g")
    await step(a, b)
    exchange(a, b, late)
    assert texts(late, "g") == [b"three", b"two", b"one"]
    assert text_at(late, "f", times[1]) == b"two"
    assert text_at(late, "g", times[1]) is None


async def test_versions_follow_a_rename_and_the_old_path_keeps_its_own() -> None:
    a, b = boxes(2)
    a.fs.write_file("f", b"before")
    before = await step(a, b)
    a.fs.rename("f", "g")
    await step(a, b)
    a.fs.write_file("g", b"after")
    await step(a, b)
    a.fs.write_file("f", b"a new one")
    await step(a, b)
    assert texts(b, "g") == [b"after", b"before"]
    assert texts(b, "f") == [b"a new one", b"before"]
    assert text_at(b, "f", before) == b"before"


async def test_a_file_saved_by_way_of_a_backup_keeps_its_history() -> None:
    a, b = boxes(2)
    a.fs.write_file("f", b"one")
    await step(a, b)
    a.fs.rename("f", "f~")
    a.fs.write_file("f", b"two")
    await step(a, b)
    a.fs.unlink("f~")
    await step(a, b)
    assert texts(b, "f") == [b"two", b"one"]


async def test_a_deletion_is_a_version_and_a_new_file_begins_after_it() -> None:
    a, b = boxes(2)
    a.fs.write_file("f", b"one")
    await step(a, b)
    b.fs.unlink("f")
    gone = await step(a, b)
    found = Versions(a.folder).of_path("f")
    assert [(one.deleted, one.device) for one in found] == [
        (True, b.identity.device),
        (False, a.identity.device),
    ]
    assert found[0].content.inline == b"one", "what was deleted"
    assert current(found) == []
    a.fs.write_file("f", b"two")
    await step(a, b)
    assert texts(b, "f") == [b"two", None, b"one"]
    assert text_at(b, "f", gone) is None


async def test_a_deletion_that_an_edit_outlived_is_none() -> None:
    a, b = boxes(2)
    a.fs.write_file("f", b"one")
    await step(a, b)
    a.fs.unlink("f")
    b.fs.write_file("f", b"two")
    await a.settle()
    await b.settle()
    await step(a, b)
    assert a.tree() == {"f": b"two"}
    now_ms = a.clock.now_ns // 10**6
    for box in (a, b):
        assert texts(box, "f")[-1] == b"one"
        assert b"two" in texts(box, "f")
        assert text_at(box, "f", now_ms) == b"two"


async def test_a_touch_is_no_version() -> None:
    a, b = boxes(2)
    a.fs.write_file("f", b"one")
    await step(a, b)
    a.fs.set_metadata("f", mtime_ns=5_000_000_000)
    await step(a, b)
    (only,) = Versions(b.folder).of_path("f")
    assert only.content.mtime_ns == 5_000_000_000
    assert only.current


async def test_a_directory_as_of_a_time() -> None:
    a, b = boxes(2)
    a.fs.mkdir("d")
    a.fs.mkdir("d/e")
    a.fs.write_file("d/stays", b"1")
    a.fs.write_file("d/e/moves", b"2")
    a.fs.write_file("d/goes", b"3")
    first = await step(a, b)
    then = {"stays": b"1", "e": None, "e/moves": b"2", "goes": b"3"}
    b.fs.write_file("d/stays", b"1 edited")
    b.fs.rename("d/e/moves", "moved")
    b.fs.unlink("d/goes")
    second = await step(a, b)
    a.fs.rename("d", "renamed")
    await step(a, b)
    a.fs.write_file("renamed/came", b"4")
    third = await step(a, b)
    for box in (a, b):
        assert tree_at(box, "d", first) == then
        assert tree_at(box, "d", second) == {"stays": b"1 edited", "e": None}
        assert tree_at(box, "d", third) == {}
        assert tree_at(box, "renamed", third) == {
            "stays": b"1 edited",
            "e": None,
            "came": b"4",
        }
        assert tree_at(box, "", first) == {"d": None} | {f"d/{k}": v for k, v in then.items()}
        assert set(tree_at(box, "", second)) == {"d", "d/stays", "d/e", "moved"}
        assert tree_at(box, "d", first - 10**6) == {}


async def test_a_deleted_directory_as_of_a_time() -> None:
    a, b = boxes(2)
    a.fs.mkdir("d")
    a.fs.mkdir("d/e")
    a.fs.write_file("d/e/f", b"1")
    there = await step(a, b)
    a.fs.unlink("d/e/f")
    a.fs.rmdir("d/e")
    a.fs.rmdir("d")
    await step(a, b)
    assert b.tree() == {}
    assert tree_at(b, "d", there) == {"e": None, "e/f": b"1"}
    assert text_at(b, "d/e/f", there) == b"1"


async def test_trash_lists_what_is_gone_and_nothing_else() -> None:
    a, b = boxes(2)
    a.fs.mkdir("d")
    for name in ("d/one", "d/two", "three", "four"):
        a.fs.write_file(name, name.encode())
    await step(a, b)
    b.fs.unlink("d/one")
    await step(a, b)
    a.fs.unlink("three")
    a.fs.rename("d/two", "two")
    await step(a, b)
    a.fs.unlink("four")
    await step(a, b)
    a.fs.write_file("four", b"another")
    await step(a, b)
    for box in (a, b):
        trash = Versions(box.folder).deleted_below("")
        assert [one.path for one in trash] == ["three", "d/one"], "the newest first"
        assert [one.version.device for one in trash] == [a.identity.device, b.identity.device]
        assert [one.path for one in Versions(box.folder).deleted_below("d")] == ["d/one"]
    a.fs.rmdir("d")
    await step(a, b)
    assert {one.path for one in Versions(b.folder).deleted_below("")} == {"three", "d/one", "d"}


async def test_the_loser_of_a_conflict_is_among_the_versions() -> None:
    a, b = boxes(2)
    a.fs.write_file("f", b"base")
    await step(a, b)
    a.fs.write_file("f", b"mine")
    b.fs.write_file("f", b"theirs")
    await a.settle()
    await b.settle()
    await step(a, b)
    for box in (a, b):
        assert set(texts(box, "f")) == {b"base", b"mine", b"theirs"}
        (copy,) = [path for path in box.tree() if path != "f"]
        assert texts(box, copy) == [box.tree()[copy]]


async def test_a_clock_that_is_wrong_reorders_no_versions() -> None:
    a, b = boxes(2)
    for number, jump_s in enumerate((0, 10**9, -(10**9), 5)):
        a.clock.now_ns += jump_s * 10**9
        a.fs.write_file("f", b"%d" % number)
        await step(a, b)
    assert texts(b, "f") == [b"3", b"2", b"1", b"0"]
