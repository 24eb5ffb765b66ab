"""Odd names and odd files between two real nodes on real disks."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Device, two_members
from tests.support.trees import Tree, snapshot, wait_for, wait_until_equal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

COMPOSED, DECOMPOSED = "caf\u00e9.txt", "cafe\u0301.txt"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Device, Device]]:
    with two_members(tmp_path_factory.mktemp("names")) as devices:
        yield devices


class Place:
    """A directory for one test, and what both devices show in it."""

    def __init__(self, pair: tuple[Device, Device], name: str) -> None:
        self.pair = pair
        self.mine, self.theirs = (device.directory / name for device in pair)
        self.mine.mkdir()
        self.settle()

    def settle(self, meant: Tree | None = None) -> None:
        """Wait until both show what anna shows now, or `meant`."""
        expected = snapshot(self.mine) if meant is None else meant
        wait_for(self.theirs.exists)
        wait_until_equal(self.mine, self.theirs, expected=expected, timeout_s=30)

    def warnings(self) -> dict[str, str]:
        return {w["path"]: w["message"] for w in self.pair[0].folder()["warnings"]}


def write(*paths: Path) -> None:
    for path in paths:
        path.write_text(f"this is {path.name!r}\n", encoding="utf-8")


def test_composed_and_decomposed_are_two_names(pair: tuple[Device, Device]) -> None:
    place = Place(pair, "unicode")
    write(place.mine / COMPOSED, place.mine / DECOMPOSED)
    place.settle()
    assert len(os.listdir(place.theirs)) == 2
    (place.theirs / COMPOSED).rename(place.theirs / "third.txt")
    (place.theirs / DECOMPOSED).rename(place.theirs / COMPOSED)
    place.settle(snapshot(place.theirs))
    assert sorted(os.listdir(place.mine)) == sorted([COMPOSED, "third.txt"])


def test_renames_that_change_only_the_case_or_the_normal_form(
    pair: tuple[Device, Device],
) -> None:
    place = Place(pair, "case")
    write(place.mine / "Makefile", place.mine / COMPOSED)
    (place.mine / "Docs").mkdir()
    write(place.mine / "Docs" / "Read Me")
    place.settle()
    (place.mine / "Makefile").rename(place.mine / "makefile")
    (place.mine / "Docs").rename(place.mine / "docs")
    (place.mine / COMPOSED).rename(place.mine / DECOMPOSED)
    place.settle()
    assert sorted(os.listdir(place.theirs)) == sorted(["makefile", "docs", DECOMPOSED])
    (place.mine / "makefile").rename(place.mine / "t")
    write(place.mine / "MAKEFILE")
    (place.mine / "t").rename(place.mine / "Makefile")
    place.settle()
    assert {"Makefile", "MAKEFILE"} <= set(os.listdir(place.theirs))


@pytest.mark.parametrize("letter", ["x", "\u00e9", "\U0001f4a9"])
def test_names_as_long_as_they_can_be(pair: tuple[Device, Device], letter: str) -> None:
    place = Place(pair, f"long {letter}")
    count = 255 // len(letter.encode())
    longest = letter * count + "y" * (255 - count * len(letter.encode()))
    ending = f"{longest.encode()[:251].decode(errors='ignore')}.txt"
    write(place.mine / longest, place.mine / ending)
    (place.mine / f"{longest[:-1]}d").mkdir()
    write(place.mine / f"{longest[:-1]}d" / longest)
    place.settle()


def test_conflicts_and_clashes_between_names_as_long_as_they_can_be(
    pair: tuple[Device, Device],
) -> None:
    place, anna, ben = Place(pair, "long conflict"), *pair
    name = "\u00e9" * 125 + ".txt"
    write(place.mine / name)
    place.settle()
    for device in pair:
        device.run("pause", str(device.directory))
    (place.mine / name).write_text("by anna\n")
    (place.theirs / name).write_text("by ben\n")
    (place.mine / f"new {name[4:]}").write_text("new by anna\n")
    (place.theirs / f"new {name[4:]}").write_text("new by ben\n")
    for device in (anna, ben):
        device.run("resume", str(device.directory))
    texts = {"by anna\n", "by ben\n", "new by anna\n", "new by ben\n"}

    def all_there() -> bool:
        return all(
            {path.read_text() for path in root.iterdir()} == texts
            for root in (place.mine, place.theirs)
        )

    wait_for(all_there)
    place.settle()
    names = os.listdir(place.mine)
    assert len(names) == 4
    assert sum("(conflict" in one for one in names) == 2
    assert all(len(os.fsencode(one)) <= 255 for one in names)


def test_paths_deeper_than_a_path_can_be_long(pair: tuple[Device, Device]) -> None:
    place = Place(pair, "deep")
    here = os.open(place.mine, os.O_RDONLY)
    name = "a directory with a name of fifty letters, more or less"
    for _ in range(90):  # 90 * 54 is beyond PATH_MAX
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    with open(os.open("bottom", os.O_WRONLY | os.O_CREAT, dir_fd=here), "w") as file:
        file.write("deep down\n")
    os.close(here)

    def arrived() -> bool:
        at = os.open(place.theirs, os.O_RDONLY)
        try:
            for _ in range(90):
                below = os.open(name, os.O_RDONLY, dir_fd=at)
                os.close(at)
                at = below
            with open(os.open("bottom", os.O_RDONLY, dir_fd=at)) as file:
                return file.read() == "deep down\n"
        except FileNotFoundError:
            return False
        finally:
            os.close(at)

    wait_for(arrived)


def test_names_that_shells_and_terminals_trip_over(pair: tuple[Device, Device]) -> None:
    place = Place(pair, "odd")
    names = [
        "two\nlines", "-rf", "--help", "'single'", '"double"', "`date`", "$HOME", "*", "?", "~",
        " leading", "trailing ", "trailing.", "...", "..a", "tab\there", "\x1b[31mred\x1b[0m",
        "\x01\x7f", "a\\b", "a:b", "<|>", "\u202etxt.exe", "\ufeffbom", "CON", "aux.txt", "LPT1",
        "#", "%41", "semi;colon", "&", "!", "\u2028", "\u200bzero width", "shoal", ".Shoals",
    ]  # fmt: skip
    write(*(place.mine / name for name in names))
    (place.mine / "-d\n").mkdir()
    write(place.mine / "-d\n" / "-\n-")
    place.settle()
    assert set(os.listdir(place.theirs)) == {*names, "-d\n"}
    (place.theirs / "two\nlines").rename(place.theirs / "three\n\nlines")
    (place.theirs / "-rf").unlink()
    place.settle(snapshot(place.theirs))
    for verb in ("status", "verify"):
        done = pair[0].run(verb, str(pair[0].directory) if verb == "verify" else "--json")
        assert "\x1b" not in done.stdout


def test_names_that_are_no_utf_8_stay_where_they_are(pair: tuple[Device, Device]) -> None:
    place = Place(pair, "no utf-8")
    bad = os.path.join(os.fsencode(place.mine), b"caf\xe9.txt")
    Path(os.fsdecode(bad)).write_text("latin-1\n")
    directory = os.path.join(os.fsencode(place.mine), b"d\xff")
    os.mkdir(directory)
    Path(os.fsdecode(os.path.join(directory, b"inside"))).write_text("inside\n")
    os.symlink(b"\xff", os.path.join(os.fsencode(place.mine), b"link to no utf-8"))
    write(place.mine / "good.txt")
    wait_for((place.theirs / "good.txt").exists)
    wait_for(lambda: len(self_warnings(place)) == 3, say="a warning for each")
    assert all("UTF-8" in message for message in self_warnings(place).values())
    assert os.listdir(place.theirs) == ["good.txt"]
    assert Path(os.fsdecode(bad)).read_text() == "latin-1\n"
    os.rename(bad, os.path.join(os.fsencode(place.mine), "caf\u00e9.txt".encode()))
    wait_for((place.theirs / "caf\u00e9.txt").exists)
    pair[0].run("status")  # prints what no terminal can
    pair[1].wait(devices=2)


def self_warnings(place: Place) -> dict[str, str]:
    return {path: why for path, why in place.warnings().items() if path.startswith("no utf-8/")}


def test_symlinks_go_across_as_they_are(pair: tuple[Device, Device], tmp_path: Path) -> None:
    place = Place(pair, "links")
    (tmp_path / "outside").mkdir()
    write(tmp_path / "outside" / "secret")
    links = {
        "out": "../../../etc/passwd", "absolute": "/etc/passwd", "itself": "itself", "one": "two",
        "two": "one", "up": "..", "here": ".", "nowhere": "no/where", "long": "x" * 4000,
        "to a directory": str(tmp_path / "outside"), "new\nline": "a\nb",
    }  # fmt: skip
    for name, target in links.items():
        (place.mine / name).symlink_to(target)
    place.settle()
    for name, target in links.items():
        assert os.readlink(place.theirs / name) == target
    assert not [one for one in snapshot(place.theirs) if "secret" in one]
    (place.mine / "one").unlink()
    (place.mine / "one").symlink_to("elsewhere")
    (place.mine / "two").unlink()
    write(place.mine / "two")
    place.settle()
    (place.mine / "to a directory").unlink()
    (place.mine / "to a directory").mkdir()
    write(place.mine / "to a directory" / "now a real one")
    place.settle()
    assert sorted(os.listdir(tmp_path / "outside")) == ["secret"]


def test_hard_links_are_files_of_their_own(pair: tuple[Device, Device]) -> None:
    place, (_, ben) = Place(pair, "hard links"), pair
    write(place.mine / "one")
    os.link(place.mine / "one", place.mine / "other")
    os.link(place.mine / "one", place.mine / "third")
    conflicts = ben.folder()["conflicts"]
    place.settle()
    assert (place.theirs / "one").stat().st_ino != (place.theirs / "other").stat().st_ino
    (place.mine / "one").write_text("written through one name, read through all\n")
    place.settle()
    assert (place.theirs / "third").read_text().startswith("written through")
    # What comes in goes to the one name that was edited; whoever holds the others keeps them.
    (place.theirs / "other").write_text("only this one, by ben\n")
    place.settle(snapshot(place.theirs))
    assert (place.mine / "one").read_text().startswith("written through")
    assert (place.mine / "other").read_text() == "only this one, by ben\n"
    assert (place.mine / "one").stat().st_ino == (place.mine / "third").stat().st_ino
    (place.theirs / "third").chmod(0o755)
    place.settle(snapshot(place.theirs))
    assert not (place.mine / "one").stat().st_mode & 0o111
    (place.mine / "third").unlink()
    (place.mine / "one").rename(place.mine / "first")
    place.settle()
    assert ben.folder()["conflicts"] == conflicts


def test_sparse_files_stay_sparse(pair: tuple[Device, Device]) -> None:
    place = Place(pair, "sparse")
    with (place.mine / "disk.img").open("wb") as file:
        file.truncate(50_000_000)
        file.seek(20_000_000)
        file.write(os.urandom(50_000))
    with (place.mine / "small.img").open("wb") as file:
        file.truncate(900_000)  # comes together in memory
        file.seek(500_000)
        file.write(b"something")
    place.settle()
    for name, most in (("disk.img", 2_000_000), ("small.img", 400_000)):
        assert (place.theirs / name).stat().st_blocks * 512 < most, name


def test_what_is_no_file_is_never_opened(pair: tuple[Device, Device]) -> None:
    place = Place(pair, "special")
    os.mkfifo(place.mine / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(place.mine)  # the path may be too long for a socket's name
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        if os.geteuid() == 0:
            os.mknod(place.mine / "null", 0o666 | 0o020000, os.makedev(1, 3))
        write(place.mine / "file", place.mine / "becomes a fifo")
        wait_for((place.theirs / "becomes a fifo").exists)
        (place.mine / "becomes a fifo").unlink()
        os.mkfifo(place.mine / "becomes a fifo")
        wait_for(lambda: os.listdir(place.theirs) == ["file"])
        expected = {"fifo", "socket", "becomes a fifo"}
        messages = {path.rpartition("/")[2]: why for path, why in place.warnings().items()}
        assert expected <= messages.keys()
        assert "neither a file" in messages["fifo"]
        # Somebody else's file of that name does not replace it.
        write(place.theirs / "fifo")
        pair[1].wait(devices=1)
        write(place.theirs / "after")
        wait_for((place.mine / "after").exists)
        assert (place.mine / "fifo").is_fifo()
