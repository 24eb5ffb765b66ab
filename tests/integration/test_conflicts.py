"""Conflicts and merges between two real nodes on real disks, and the verbs that end them."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crdt.errors import ShoalError
from node.control.client import ControlClient
from node.control.facade import Keep
from node.control.shapes import to_json
from tests.support.processes import Device, members, two_members
from tests.support.trees import Tree, snapshot, wait_for, wait_until_equal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

NOTE = "# Title\n\nFirst paragraph.\n\nSecond paragraph.\n"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Device, Device]]:
    with two_members(tmp_path_factory.mktemp("conflicts")) as devices:
        yield devices


class Place:
    """A directory for one test."""

    _numbers = itertools.count()

    def __init__(self, pair: tuple[Device, Device]) -> None:
        self.anna, self.ben = pair
        self.name = f"place {next(self._numbers)}"
        self.a, self.b = (device.directory / self.name for device in pair)
        self.a.mkdir()

    def put(self, name: str, text: str | bytes) -> None:
        """A file that both have."""
        write(self.a / name, text)
        self.settle(lambda tree: name in tree)

    def settle(self, expected: Callable[[Tree], object] | None = None) -> Tree:
        wait_for(self.b.exists)
        return wait_until_equal(self.a, self.b, expected=expected, timeout_s=30)

    def apart(self, name: str, mine: str | bytes | None, theirs: str | bytes | None) -> None:
        """Both change a file, neither hearing of the other; None deletes it."""
        for device in (self.anna, self.ben):
            with ControlClient(device.home) as client:
                client.pause(device.directory)
        for path, text in ((self.a / name, mine), (self.b / name, theirs)):
            if text is None:
                path.unlink()
            else:
                write(path, text)
        for device in (self.anna, self.ben):
            with ControlClient(device.home) as client:
                client.resume(device.directory)

    def conflict(self, name: str = "note.md") -> str:
        """A file in conflict on both; returns the name of the copy."""
        self.put(name, NOTE)
        self.apart(name, NOTE.replace("First", "Anna's"), NOTE.replace("First", "Ben's"))
        stem = name.removesuffix(".md")
        tree = self.settle(lambda tree: any(one.startswith(f"{stem} (") for one in tree))
        (copy,) = {one for one in tree if one.startswith(f"{stem} (")}
        assert "(conflict " in copy
        return copy

    # These ask as the CLI does, without starting a Python for every question.

    def listed(self, device: Device | None = None) -> Any:
        asked, where = (self.ben, self.b) if device is self.ben else (self.anna, self.a)
        with ControlClient(asked.home) as client:
            return to_json(client.conflicts(where))

    def resolve(self, keep: Keep, *, path: str = "note.md", file: Path | None = None) -> list[str]:
        with ControlClient(self.anna.home) as client:
            result = client.resolve(self.a / path, keep=keep, file=file)
        assert result.complete
        return list(result.paths)

    def versions(self, name: str = "note.md") -> list[str]:
        with ControlClient(self.anna.home) as client:
            return [one.version for one in client.history(self.a / name).versions]


def write(path: Path, text: str | bytes) -> None:
    """As editors save."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(text if isinstance(text, bytes) else text.encode())
    fresh.replace(path)


@pytest.fixture
def place(pair: tuple[Device, Device]) -> Place:
    return Place(pair)


# --- merging --------------------------------------------------------------------------------------


def test_paragraphs_edited_offline_come_out_merged_with_no_copy(place: Place) -> None:
    place.put("note.md", NOTE)
    mine, theirs = NOTE.replace("First", "Anna's"), NOTE.replace("Second", "Ben's")
    place.apart("note.md", mine, theirs)
    merged = mine.replace("Second", "Ben's")
    place.settle(lambda _: (place.a / "note.md").read_text() == merged)
    assert [path.name for path in place.b.iterdir()] == ["note.md"]
    assert place.listed() == []
    found = set()
    for version in place.versions():
        to = place.a / f"restored {version}"
        with ControlClient(place.anna.home) as client:
            client.restore(place.a / "note.md", version=version, at_ms=None, to=to)
        found.add(to.read_text())
    assert {NOTE, mine, theirs, merged} <= found, "both originals are in history"


def test_a_long_note_that_both_overwrite_is_merged(place: Place) -> None:
    # The version that they had in common lies nowhere else than in the caches of texts.
    long = NOTE + "".join(f"Line {number} of many.\n" for number in range(2_000))

    def kept() -> int:
        (path,) = place.anna.home.glob("folders/*/texts.sqlite")
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as cache:
            (count,) = cache.execute("SELECT count(*) FROM texts").fetchone()
        return int(count)

    before = kept()
    place.put("long.md", long)
    wait_for(lambda: kept() > before)
    mine, theirs = long.replace("First", "Anna's"), long.replace("Line 1999", "Ben's line")
    place.apart("long.md", mine, theirs)
    merged = mine.replace("Line 1999", "Ben's line")
    place.settle(lambda _: (place.b / "long.md").read_text() == merged)
    assert [path.name for path in place.a.iterdir()] == ["long.md"]


def test_three_devices_merge_what_each_wrote_alone(tmp_path: Path) -> None:
    with members(tmp_path, "anna", "ben", "carla") as devices:
        paths = [device.directory / "note.md" for device in devices]
        write(paths[0], NOTE)
        for path in paths:
            wait_for(path.exists)
        devices[0].wait(devices=3)
        for device in devices:
            device.stop()
        for path, word in zip(paths, ("Title", "First", "Second"), strict=True):
            write(path, NOTE.replace(word, word.upper()))
        for device in devices:
            device.up()
        wanted = (
            NOTE.replace("Title", "TITLE").replace("First", "FIRST").replace("Second", "SECOND")
        )
        roots = [device.directory for device in devices]
        wait_until_equal(*roots, expected=lambda _: paths[0].read_text() == wanted)
        assert [path.name for path in roots[0].iterdir() if path.name != ".shoal"] == ["note.md"]


def test_what_is_named_in_shoalnomerge_is_never_merged(place: Place) -> None:
    rules = place.anna.directory / ".shoalnomerge"
    rules.write_text(f"/{place.name}/*.txt\n")
    try:
        wait_for((place.ben.directory / ".shoalnomerge").exists)
        place.put("note.md", NOTE)
        place.put("note.txt", NOTE)
        mine, theirs = NOTE.replace("First", "Anna's"), NOTE.replace("Second", "Ben's")
        place.apart("note.txt", mine, theirs)
        place.apart("note.md", mine, theirs)
        merged = mine.replace("Second", "Ben's")
        place.settle(lambda tree: len(tree) == 3 and (place.b / "note.md").read_text() == merged)
    finally:
        rules.unlink()


# --- conflicts ------------------------------------------------------------------------------------


def test_the_list_names_both_devices_times_and_the_ancestor(place: Place) -> None:
    copy = place.conflict()
    for device in (place.anna, place.ben):
        (one,) = place.listed(device)
        assert one["path"] == f"{place.name}/note.md"
        (other,) = one["copies"]
        assert other["path"] == f"{place.name}/{copy}"
        assert {one["name"], other["name"]} == {"anna", "ben"}
        assert one["device"] != other["device"]
        assert one["time"][:2] == other["time"][:2] == "20"
        assert one["ancestor"]["name"] == "anna"
        assert one["ancestor"]["time"] <= min(one["time"], other["time"])
    (printed,) = place.anna.run_json("conflicts", str(place.a))
    assert printed == place.listed()[0]
    text = place.anna.run("conflicts", str(place.a)).stdout
    assert copy in text
    assert "1 file in conflict" in text


def test_show_is_a_three_way_difference(place: Place) -> None:
    copy = place.conflict()
    for name in ("note.md", copy):
        lines = place.anna.run("conflicts", "show", str(place.a / name)).stdout.splitlines()
        assert lines.count("-First paragraph.") == 2
        assert {"+Anna's paragraph.", "+Ben's paragraph."} <= set(lines)


@pytest.mark.parametrize(
    ("keep", "left", "by_copy"), [(Keep.MINE, "Anna's", False), (Keep.THEIRS, "Ben's", True)]
)
def test_keeping_one_ends_it_on_all_devices(
    place: Place, keep: Keep, left: str, by_copy: bool
) -> None:
    copy = place.conflict()
    place.resolve(keep, path=copy if by_copy else "note.md")
    tree = place.settle(lambda tree: len(tree) == 1)
    assert list(tree) == ["note.md"]
    assert left in (place.b / "note.md").read_text()
    assert place.listed() == place.listed(place.ben) == []
    with ControlClient(place.anna.home) as client:
        (gone,) = client.trash(place.a)
    assert gone.path.endswith(copy), "what was not kept can be restored"


def test_keeping_both_gives_the_copy_a_name_of_its_own(place: Place) -> None:
    place.conflict()
    assert place.resolve(Keep.BOTH) == [f"{place.name}/note.md", f"{place.name}/note (2).md"]
    place.settle(lambda tree: set(tree) == {"note.md", "note (2).md"})
    texts = {path.read_text() for path in place.b.iterdir()}
    assert texts == {NOTE.replace("First", "Anna's"), NOTE.replace("First", "Ben's")}
    assert place.listed(place.ben) == []


def test_keeping_a_file_takes_its_content(place: Place, tmp_path: Path) -> None:
    copy = place.conflict()
    text = (place.a / copy).read_text()
    place.resolve(Keep.FILE, file=place.a / copy)
    place.settle(lambda tree: list(tree) == ["note.md"])
    assert (place.b / "note.md").read_text() == text
    for size in (10, 100_000):
        copy = place.conflict(f"other {size}.md")
        merged = tmp_path / "merged.md"
        merged.write_text("by hand\n" * size)
        place.resolve(Keep.FILE, path=f"other {size}.md", file=merged)
        place.settle(lambda tree, name=copy: name not in tree)  # type: ignore[misc]
        assert (place.b / f"other {size}.md").read_text() == merged.read_text()
    assert place.listed() == []


def test_a_copy_deleted_by_hand_counts_as_resolved(place: Place) -> None:
    copy = place.conflict()
    (place.a / copy).unlink()
    place.settle(lambda tree: list(tree) == ["note.md"])
    assert place.listed() == place.listed(place.ben) == []


def test_a_copy_merged_by_hand_counts_as_resolved(place: Place) -> None:
    copy = place.conflict()
    write(place.a / "note.md", NOTE.replace("First", "Anna's and Ben's"))
    place.settle(lambda _: "and" in (place.b / "note.md").read_text())
    (one,) = place.listed(place.ben)
    assert one["copies"][0]["path"].endswith(copy), "while the copy is there, it is listed"
    (place.b / copy).unlink()
    place.settle(lambda tree: list(tree) == ["note.md"])
    assert place.listed() == place.listed(place.ben) == []
    assert (place.b / "note.md").read_text() == NOTE.replace("First", "Anna's and Ben's")


def test_a_copy_renamed_by_hand_counts_as_resolved(place: Place) -> None:
    copy = place.conflict()
    (place.a / copy).rename(place.a / "mine.md")
    place.settle(lambda tree: set(tree) == {"note.md", "mine.md"})
    assert place.listed() == place.listed(place.ben) == []


def test_there_is_no_conflict_copy_of_a_conflict_copy(place: Place) -> None:
    copy = place.conflict()
    place.apart(copy, "Anna again\n", "Ben again\n")
    tree = place.settle(lambda tree: len(tree) == 3)
    assert all(name.count("(conflict ") <= 1 for name in tree)
    (one,) = place.listed()
    assert len(one["copies"]) == 2
    assert one["path"] == f"{place.name}/note.md"
    place.resolve(Keep.BOTH)
    place.settle(lambda tree: not any("(conflict " in name for name in tree))


def test_equal_contents_make_no_copy(place: Place) -> None:
    place.put("note.bin", b"\0one")
    place.apart("note.bin", b"\0two", b"\0two")
    place.settle(lambda _: (place.a / "note.bin").read_bytes() == b"\0two")
    assert place.listed() == []


def test_two_new_files_of_one_name_are_listed_too(place: Place) -> None:
    place.settle()
    place.apart("new.txt", "from anna\n", "from ben\n")
    place.settle(lambda tree: len(tree) == 2)
    (one,) = place.listed()
    assert one["path"] == f"{place.name}/new.txt"
    assert {one["name"], one["copies"][0]["name"]} == {"anna", "ben"}
    assert "ancestor" not in one
    place.resolve(Keep.THEIRS, path="new.txt")
    place.settle(lambda tree: list(tree) == ["new.txt"])
    assert (place.a / "new.txt").read_text() == "from ben\n"


def test_what_cannot_be_resolved_changes_nothing(place: Place, tmp_path: Path) -> None:
    place.put("calm.md", NOTE)
    copy = place.conflict()
    before = snapshot(place.a)
    for path, file, why in (
        ("calm.md", None, "in no conflict"),
        ("missing.md", None, "in no conflict"),
        ("note.md", tmp_path / "missing", "cannot be read"),
        ("note.md", tmp_path, "is no file"),
    ):
        with pytest.raises(ShoalError, match=why) as refused:
            place.resolve(Keep.MINE if file is None else Keep.FILE, path=path, file=file)
        assert "Nothing was changed." in str(refused.value)
    words = ("conflicts", "resolve", str(place.a / "calm.md"), "--keep", "mine")
    assert place.anna.run(*words, check=False).returncode == 2
    assert snapshot(place.a) == before
    assert place.listed()[0]["copies"][0]["path"].endswith(copy)
