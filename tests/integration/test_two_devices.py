"""Two real nodes, each in a network namespace of its own, on one bridge, with no address given.

One story, because making the devices and the first transfer are the expensive part: a source tree
and a large file go across, then everything that people do to files, on one side, on both at once,
and while the other side is down. Every step ends with equal trees. Beside it a sniffer at the
switch: it must find nothing of the tree in the packets, and hardly a packet when a directory is
renamed.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import netns
from tests.support.netns import Lan, lan
from tests.support.people_at_work import (
    check_conflicts,
    conflicts_by_anna,
    conflicts_by_ben,
    copy_standard_library,
    patch,
    replace,
    write_random,
)
from tests.support.processes import Device
from tests.support.sniffer import Sniffer
from tests.support.trees import Tree, contents, snapshot, wait_until_equal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.netns,
    pytest.mark.skipif(netns.available() is not None, reason=netns.available() or ""),
    pytest.mark.timeout(240),
]

STEP_TIMEOUT_S = 60.0  # usually below a second; other tests run beside
FIRST_TIMEOUT_S = 150.0
LARGE_SIZE = 300 * 1000 * 1000
RENAME_WIRE_MAX = 100 * 1000  # bytes on the wire for a renamed directory that holds megabytes

# What must not be in any packet. A short text does not shrink, so even a compressed one would show.
SECRET_NAME = "kanarienvogel-7f3a91.txt"
SECRET_DIRECTORY = "zeisig-ordner-5c20e4"
SECRET_TEXT = b"Xq7#der-geheime-Plan!vW2\n"
SECRET_BYTES = random.Random(7).randbytes(64)


# --- the story ------------------------------------------------------------------------------------


def test_two_devices_keep_a_folder_the_same(tmp_path: Path) -> None:
    with (
        lan(2) as net,
        Device(tmp_path, "anna-kranich-61d0", net.hosts[0]) as anna,
        Device(tmp_path, "ben-rohrdommel-9e27", net.hosts[1]) as ben,
    ):
        story = Story(tmp_path, net, anna, ben)
        with story.listening("tree") as heard:
            story.first_transfer()
        story.nothing_leaked(heard)
        with story.listening("large") as heard:
            story.large_file()
        story.large_file_did_not_leak(heard)
        story.edits()
        story.renames_and_moves()
        story.deletions_and_replacements()
        story.at_once_on_both_sides()
        story.at_once_without_hearing_each_other()
        story.restarts()
        story.conflicts_went_nowhere()


class Story:
    """The steps, in order; each ends with equal trees."""

    def __init__(self, base: Path, net: Lan, anna: Device, ben: Device) -> None:
        self.base, self.net, self.anna, self.ben = base, net, anna, ben
        self.a, self.b = anna.directory, ben.directory
        self._began = time.monotonic()

    def first_transfer(self) -> None:
        """A source tree and some curiosities, already there when the folder is made."""
        copy_standard_library(self.a / "python")
        make_curiosities(self.a)
        self.anna.up()
        self.ben.join(self.anna.invite())
        self.a_to_b("first transfer", lambda: None, timeout_s=FIRST_TIMEOUT_S)
        self.anna.wait(devices=2)
        self.ben.wait(devices=2)

    def nothing_leaked(self, heard: Sniffer) -> None:
        """No name and no content of the tree is in the packets, though they carried it all."""
        data = heard.data
        assert heard.dropped == 0
        assert heard.size > 5_000_000, "the sniffer did not see the transfer"
        needles = [
            SECRET_NAME,
            SECRET_DIRECTORY,
            self.anna.name,
            self.ben.name,
            *long_names(self.a),
        ]
        found = [name for name in needles if name.encode() in data]
        secrets = [SECRET_TEXT[:20], SECRET_BYTES[:24], SECRET_BYTES[-24:], b"copyright"]
        assert not [*found, *(secret for secret in secrets if secret in data)]

    def large_file(self) -> None:
        """300 MB of what nobody can compress."""
        self.a_to_b("large file", lambda: write_random(self.a / "large.bin", LARGE_SIZE),
                    timeout_s=FIRST_TIMEOUT_S)  # fmt: skip

    def large_file_did_not_leak(self, heard: Sniffer) -> None:
        data = heard.data
        assert heard.dropped == 0
        assert heard.size > LARGE_SIZE, "the sniffer did not see the transfer"
        with (self.a / "large.bin").open("rb") as file:
            for place in (0, 123_456_789, LARGE_SIZE - 32):
                file.seek(place)
                assert file.read(32) not in data

    def edits(self) -> None:
        """Changed content, modes, times, links; on either side."""
        a, b = self.a, self.b

        def on_a() -> None:
            (a / "python/abc.py").write_text("changed\n")
            with (a / "python/ast.py").open("a") as file:
                file.write("# appended\n")
            patch(a / "large.bin", 150_000_000, b"four")
            (a / "new.txt").write_text("new\n")

        def on_b() -> None:
            (b / "python/bisect.py").chmod(0o755)
            os.utime(b / "python/bdb.py", ns=(1, 1_234_567_890_123_456_789))
            (b / "link").unlink()
            (b / "link").symlink_to("python/bisect.py")
            (b / "empty.txt").write_bytes(b"")
            replace(b / "python/cmd.py", "as editors save\n")

        self.a_to_b("edits by anna", on_a)
        self.b_to_a("edits by ben", on_b)

    def renames_and_moves(self) -> None:
        """Files, whole directories, and from one directory into another."""
        a, b = self.a, self.b

        def files() -> None:
            (a / "python/calendar.py").rename(a / "python/kalender.py")
            (a / "python/code.py").rename(a / "code.py")
            (a / "large.bin").rename(a / "gross.bin")

        def moves() -> None:
            (b / "python/email").rename(b / "python/json/email")
            (b / "python/xml/dom").rename(b / "dom")

        def chain() -> None:
            (a / "python/asyncio").rename(a / "python/x")
            (a / "python/json").rename(a / "python/asyncio")
            (a / "python/x").rename(a / "python/json")

        self.a_to_b("renamed files", files)
        with self.listening("rename") as heard:
            self.a_to_b("renamed directory", lambda: (a / "python").rename(a / "snake"))
            self.anna.wait(devices=2)
        self.a_to_b("renamed back", lambda: (a / "snake").rename(a / "python"))
        self.b_to_a("moved directories", moves)
        self.a_to_b("swapped directories", chain)
        assert heard.size < RENAME_WIRE_MAX, f"a rename took {heard.size} bytes"

    def deletions_and_replacements(self) -> None:
        a, b = self.a, self.b

        def swap_kinds() -> None:
            (a / "python/contextvars.py").unlink()
            (a / "python/contextvars.py").mkdir()
            (a / "python/contextvars.py/inside.txt").write_text("a file became a directory\n")
            shutil.rmtree(a / "python/curses")
            (a / "python/curses").write_text("a directory became a file\n")
            (a / "python/copy.py").unlink()
            (a / "python/copy.py").symlink_to("copyreg.py")

        self.a_to_b("deleted file", (a / "python/cgi.py").unlink)
        self.b_to_a("deleted directory", lambda: shutil.rmtree(b / "python/lib2to3"))
        self.a_to_b("files became directories", swap_kinds)

    def at_once_on_both_sides(self) -> None:
        """Both act in the same moment, on the same things, while they hear each other."""
        a, b = self.a / "python", self.b / "python"
        both = {
            "edits": (
                lambda: (a / "dis.py").write_text("by anna\n"),
                lambda: (b / "doctest.py").write_text("by ben\n"),
            ),
            "edits of one file": (
                lambda: replace(a / "enum.py", "enum by anna\n"),
                lambda: replace(b / "enum.py", "enum by ben\n"),
            ),
            "new files of one name": (
                lambda: (a / "twin.txt").write_text("twin of anna\n"),
                lambda: (b / "twin.txt").write_text("twin of ben\n"),
            ),
            "renames": (
                lambda: (a / "ctypes").rename(a / "ctypes-anna"),
                lambda: (b / "dbm").rename(b / "dbm-ben"),
            ),
            "deletions": (
                (a / "fileinput.py").unlink,
                (b / "fnmatch.py").unlink,
            ),
        }
        for name, (on_a, on_b) in both.items():
            self.together(f"both at once: {name}", on_a, on_b)
        texts = contents(self.a)
        for who in ("anna", "ben"):
            for text in (f"by {who}\n", f"enum by {who}\n", f"twin of {who}\n"):
                assert text.encode() in texts, f"lost: {text}"

    def at_once_without_hearing_each_other(self) -> None:
        """The rows of the table of conflicts, each side unaware of the other."""
        a, b = self.a / "python", self.b / "python"
        for device in (self.anna, self.ben):
            device.run("pause", str(device.directory))
        conflicts_by_anna(a)
        conflicts_by_ben(b)
        for device in (self.anna, self.ben):
            device.run("resume", str(device.directory))

        tree = self.equal("apart", expected=lambda tree: "python/inspect-ben.py" in tree)
        check_conflicts(tree, self.a)

    def restarts(self) -> None:
        """Each is restarted, and the other one's edits wait for it."""
        a, b = self.a, self.b
        assert self.anna.stop() == 0
        replace(b / "while-anna-slept.txt", "by ben\n")
        (b / "python/heapq.py").rename(b / "python/heap.py")
        (a / "python/hmac.py").write_text("edited while the node was down\n")
        (a / "python/html").rename(a / "python/markup")
        self.anna.up()
        self.equal("restart of anna", expected=lambda tree: restarted(tree, "anna"))
        assert (b / "python/hmac.py").read_text() == "edited while the node was down\n"
        assert self.ben.stop() == 0
        replace(a / "while-ben-slept.txt", "by anna\n")
        (b / "python/imghdr.py").unlink()
        self.ben.up()
        self.equal("restart of ben", expected=lambda tree: restarted(tree, "ben"))
        self.a_to_b("after the restarts", lambda: replace(a / "last.txt", "by anna\n"))
        self.b_to_a("after the restarts", lambda: replace(b / "last.txt", "by ben\n"))

    def conflicts_went_nowhere(self) -> None:
        """Both say the same about the folder, and are in sync."""
        self.anna.wait(devices=2)
        self.ben.wait(devices=2)
        mine, theirs = self.anna.folder(), self.ben.folder()
        for key in ("id", "files", "bytes", "conflicts", "needs"):
            assert mine[key] == theirs[key], key
        assert mine["state"] == theirs["state"] == "in sync"
        assert mine["needs"] == {"files": 0, "bytes": 0}

    # --- how a step ends

    def a_to_b(
        self, what: str, act: Callable[[], object], *, timeout_s: float = STEP_TIMEOUT_S
    ) -> None:
        """Anna acts; then both trees are what hers was right after it."""
        self._one_way(what, act, self.a, timeout_s)

    def b_to_a(self, what: str, act: Callable[[], object]) -> None:
        self._one_way(what, act, self.b, STEP_TIMEOUT_S)

    def _one_way(self, what: str, act: Callable[[], object], root: Path, timeout_s: float) -> None:
        act()
        meant = snapshot(root)
        self.equal(what, expected=meant, timeout_s=timeout_s)

    def together(self, what: str, on_a: Callable[[], object], on_b: Callable[[], object]) -> None:
        """Both act in the same millisecond."""
        before = snapshot(self.a)
        start = threading.Barrier(2)

        def run(act: Callable[[], object]) -> None:
            start.wait()
            act()

        threads = [threading.Thread(target=run, args=(act,)) for act in (on_a, on_b)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.equal(what, expected=lambda tree: tree != before)

    def equal(
        self,
        what: str,
        *,
        expected: Tree | Callable[[Tree], object],
        timeout_s: float = STEP_TIMEOUT_S,
    ) -> Tree:
        began = time.monotonic()
        try:
            tree = wait_until_equal(self.a, self.b, timeout_s=timeout_s, expected=expected)
        except AssertionError as error:
            tails = f"{self.anna.tail()}\n--- ben\n{self.ben.tail()}"
            raise AssertionError(f"{what}: {error}\n--- anna\n{tails}") from None
        now = time.monotonic()
        print(f"{now - self._began:6.1f} s: {what} took {now - began:.2f} s")
        return tree

    @contextmanager
    def listening(self, name: str) -> Iterator[Sniffer]:
        with Sniffer(self.net.switch, self.net.port(0), self.base / f"{name}.packets") as sniffer:
            yield sniffer


# --- what people do -------------------------------------------------------------------------------


def restarted(tree: Tree, who: str) -> bool:
    there = {"anna": ["while-anna-slept.txt", "python/heap.py", "python/markup/parser.py"]}
    gone = {"anna": ["python/heapq.py", "python/html"], "ben": ["python/imghdr.py"]}
    wanted = there.get(who, ["while-ben-slept.txt"])
    return all(path in tree for path in wanted) and not any(path in tree for path in gone[who])


def make_curiosities(root: Path) -> None:
    """What a source tree has seldom: secrets for the sniffer, links, odd names, emptiness."""
    (root / SECRET_DIRECTORY).mkdir()
    (root / SECRET_DIRECTORY / SECRET_NAME).write_bytes(SECRET_TEXT)
    (root / SECRET_DIRECTORY / "random.bin").write_bytes(
        SECRET_BYTES + random.Random(8).randbytes(200_000) + SECRET_BYTES
    )
    (root / "empty directory").mkdir()
    (root / "empty file").write_bytes(b"")
    (root / "ümläut 日本 \N{PILE OF POO}.txt").write_text("unicode\n")
    (root / "Case.txt").write_text("one\n")
    (root / "case.txt").write_text("two\n")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("python/abc.py")
    (root / "dangling").symlink_to("nowhere/at all")
    (root / "up").symlink_to("../outside")
    deep = root.joinpath(*(f"level {number}" for number in range(12)))
    deep.mkdir(parents=True)
    (deep / "bottom.txt").write_text("deep\n")


def long_names(root: Path) -> list[str]:
    """Names so long that they are in no packet by chance."""
    names = {name for _, names, files in os.walk(root / "python") for name in (*names, *files)}
    return sorted(name for name in names if len(name) >= 12)[::20]


# --- that the sniffer sees something --------------------------------------------------------------


def test_the_sniffer_sees_what_is_sent_in_clear(tmp_path: Path) -> None:
    sender = "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
    sender += "[s.sendto(sys.argv[2].encode(), (sys.argv[1], 9)) for _ in range(3)]"
    with lan(2) as net:
        with Sniffer(net.switch, net.port(0), tmp_path / "packets") as heard:
            command = [sys.executable, "-c", sender, net.hosts[0].address, SECRET_NAME]
            subprocess.run(net.hosts[1].wrap(command), check=True)
        assert (
            heard.data.count(SECRET_NAME.encode()) >= 3
        )  # the answers that nobody listens quote it
        assert heard.size > 3 * len(SECRET_NAME)
        assert socket.inet_aton(net.hosts[1].address) in heard.data
