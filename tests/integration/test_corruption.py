"""Rot on real disks: in people's files, in what Shoal keeps, in the index."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Device, free_port, on_loopback, two_members
from tests.support.trees import wait_for, wait_until_equal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

DAMAGE_FOUND = 5
BLOCK_SIZE = 4096
IMAGE_SIZE = 64 * 1024 * 1024
TOOLS = ("mkfs.ext4", "mount", "umount", "debugfs", "unshare", "nsenter")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Device, Device]]:
    with two_members(tmp_path_factory.mktemp("corruption")) as devices:
        yield devices


class Quarters:
    """A mount namespace of our own: a copy of a mount in anybody else's would outlive `umount`."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def wrap(self, command: list[str]) -> list[str]:
        """The command, run within."""
        return ["nsenter", "-t", str(self._pid), "-m", *command]

    def path(self, path: Path) -> Path:
        """What lies at `path` within, to be looked at from outside."""
        return Path(f"/proc/{self._pid}/root{path}")

    @contextlib.contextmanager
    def mounted(self, image: Path, target: Path) -> Iterator[None]:
        """The image's file system, within."""
        command = self.wrap(["mount", "-o", "loop", str(image), str(target)])
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no loop mounts here: {done.stderr.strip()}")
        try:
            yield
        finally:
            subprocess.run(self.wrap(["umount", str(target)]), check=True)


@contextlib.contextmanager
def quarters() -> Iterator[Quarters]:
    command = ["unshare", "-m", "--propagation", "private", "cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"in\n")
        process.stdin.flush()
        process.stdout.readline()  # `cat` answers once it is within
        try:
            yield Quarters(process.pid)
        finally:
            process.stdin.close()


def rot_on_the_medium(image: Path, inner: str, data: bytes) -> None:
    """Overwrite the first bytes of a file's fourth block below the file system's feet."""
    done = subprocess.run(
        ["debugfs", "-R", f'bmap "{inner}" 3', image], check=True, capture_output=True, text=True
    )
    (block,) = re.findall(r"^(\d+)$", done.stdout, re.MULTILINE)
    with image.open("r+b") as disk:
        disk.seek(int(block) * BLOCK_SIZE)
        disk.write(data)
        os.fsync(disk.fileno())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason="needs e2fsprogs and mount")
def test_rot_on_the_medium_is_found_mended_and_never_spread(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(IMAGE_SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-b", str(BLOCK_SIZE), image], check=True)
    port = free_port()
    with quarters() as within, on_loopback(tmp_path, "anna", port=port) as anna:
        options = (
            "--no-lan",
            "--listen",
            f"127.0.0.1:{free_port()}",
            "--peer",
            f"127.0.0.1:{port}",
        )
        ben = Device(tmp_path, "ben", within, options=options)
        ben.directory.mkdir()
        theirs = within.path(ben.directory)
        anna.up()
        content = {name: os.urandom(400_000) for name in ("one.bin", "other.bin")}
        for name, data in content.items():
            (anna.directory / name).write_bytes(data)
        with ben:
            with within.mounted(image, ben.directory):
                ben.join(anna.invite())
                wait_until_equal(
                    anna.directory, theirs, expected=lambda t: content.keys() <= t.keys()
                )
                ben.wait(devices=2)
                ben.stop()
            for name in content:
                rot_on_the_medium(image, f"/{name}", b"rotten")
            with within.mounted(image, ben.directory):
                ben.up()
                ben.wait(devices=2)
                assert b"rotten" in (theirs / "one.bin").read_bytes(), "nothing tells yet"
                assert (anna.directory / "one.bin").read_bytes() == content["one.bin"]
                found = ben.run_json("verify", str(ben.directory))
                assert sorted(found["damaged"]) == sorted(found["repaired"]) == sorted(content)
                for name, data in content.items():
                    assert (theirs / name).read_bytes() == data
                    assert (anna.directory / name).read_bytes() == data
                assert ben.run_json("verify", str(ben.directory))["damaged"] == []
                kept = (theirs / ".shoal/history").iterdir()
                assert sum(b"rotten" in path.read_bytes() for path in kept) == 2
                ben.stop()


def rot_in_the_index(device: Device, statement: str, *values: object) -> None:
    """While its node is down."""
    (index,) = device.home.glob("folders/*/index.sqlite")
    with contextlib.closing(sqlite3.connect(index)) as connection, connection:
        assert connection.execute(statement, values).rowcount == 1


def rot(device: Device, name: str, *, at: int = 200_000) -> None:
    """Other bytes under the stat that the index knows."""
    device.stop()
    path = device.directory / name
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"rotten")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    ctime_ns = path.stat().st_ctime_ns
    rot_in_the_index(device, "UPDATE disk SET ctime_ns = ? WHERE name = ?", ctime_ns, name)
    device.up()


def test_rotten_blocks_are_not_served_and_the_holder_mends_itself(
    pair: tuple[Device, Device], tmp_path: Path
) -> None:
    anna, ben = pair
    content = os.urandom(400_000)
    (anna.directory / "shared.bin").write_bytes(content)
    wait_until_equal(anna.directory, ben.directory, expected=lambda tree: "shared.bin" in tree)
    rot(ben, "shared.bin")
    with on_loopback(tmp_path, "cleo", peers=tuple(ports_of(anna, ben))) as cleo:
        cleo.join(anna.invite())
        wait_for((cleo.directory / "shared.bin").exists)
        assert (cleo.directory / "shared.bin").read_bytes() == content
        found = ben.run_json("verify", str(ben.directory))
        assert set(found["damaged"]) <= {"shared.bin"}, "mended when it was asked for, or now"
        assert (ben.directory / "shared.bin").read_bytes() == content


def ports_of(*devices: Device) -> Iterator[int]:
    for device in devices:
        at = device.options.index("--listen")
        yield int(device.options[at + 1].rpartition(":")[2])


def test_what_nobody_has_stays_as_it_is_and_is_named(tmp_path: Path) -> None:
    with on_loopback(tmp_path, "anna") as anna:
        anna.directory.mkdir()
        (anna.directory / "only.bin").write_bytes(os.urandom(300_000))
        (anna.directory / "sound.txt").write_text("sound\n")
        anna.up()
        anna.wait(devices=1)
        rot(anna, "only.bin")
        rotten = (anna.directory / "only.bin").read_bytes()
        done = anna.run("verify", str(anna.directory), check=False)
        assert done.returncode == DAMAGE_FOUND
        assert "NOT mended: only.bin" in done.stdout
        assert "stays as it is" in done.stdout
        assert (anna.directory / "only.bin").read_bytes() == rotten
        warnings = {w["path"]: w["message"] for w in anna.folder()["warnings"]}
        assert "no peer could mend it" in warnings["only.bin"]
        anna.stop()
        anna.up()
        assert {w["path"] for w in anna.folder()["warnings"]} == {"only.bin"}, "it is remembered"


def test_an_edit_that_keeps_size_and_mtime_is_an_edit(pair: tuple[Device, Device]) -> None:
    anna, ben = pair
    path = anna.directory / "converted.bin"
    path.write_bytes(b"a" * 300_000)
    wait_until_equal(anna.directory, ben.directory, expected=lambda t: "converted.bin" in t)
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"converted")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = anna.run_json("verify", str(anna.directory))
    assert found["damaged"] == []
    wait_until_equal(anna.directory, ben.directory)
    assert (ben.directory / "converted.bin").read_bytes().startswith(b"converted")


def test_rot_in_history_is_named(pair: tuple[Device, Device]) -> None:
    anna, ben = pair
    (anna.directory / "f.bin").write_bytes(b"first" * 50_000)
    wait_until_equal(anna.directory, ben.directory, expected=lambda tree: "f.bin" in tree)
    (anna.directory / "f.bin").write_bytes(b"second" * 50_000)
    wait_for(lambda: (ben.directory / "f.bin").read_bytes() == b"second" * 50_000)
    ben.wait(devices=2)
    history = [
        path
        for path in (ben.directory / ".shoal/history").iterdir()
        if b"first" in path.read_bytes()
    ]
    if not history:
        pytest.skip("history lies elsewhere by now")
    ben.stop()
    (index,) = ben.home.glob("folders/*/index.sqlite")
    with contextlib.closing(sqlite3.connect(index)) as connection, connection:
        connection.execute("DELETE FROM afterlooks")  # as after an hour
    with history[0].open("r+b") as file:
        file.write(b"rotten")
    ben.up()
    done = ben.run("verify", str(ben.directory), check=False)
    assert done.returncode == DAMAGE_FOUND
    assert "earlier version of 'f.bin'" in done.stdout
    assert (ben.directory / "f.bin").read_bytes() == b"second" * 50_000


def test_rot_in_the_index_is_found_and_it_is_built_anew(pair: tuple[Device, Device]) -> None:
    anna, ben = pair
    (ben.directory / "by ben.txt").write_text("by ben\n")
    wait_until_equal(anna.directory, ben.directory, expected=lambda tree: "by ben.txt" in tree)
    ben.wait(devices=2)
    ben.stop()
    (index,) = ben.home.glob("folders/*/index.sqlite")
    with contextlib.closing(sqlite3.connect(index)) as connection:
        ((arrival, entry),) = connection.execute(
            "SELECT arrival, entry FROM log WHERE kind != 2 ORDER BY arrival LIMIT 1"
        )
    changed = bytearray(entry)
    changed[len(changed) // 2] ^= 1  # nothing that SQLite would notice
    rot_in_the_index(ben, "UPDATE log SET entry = ? WHERE arrival = ?", bytes(changed), arrival)
    ben.up()
    done = ben.run("verify", str(ben.directory), check=False)
    assert done.returncode == DAMAGE_FOUND
    assert "the index is damaged" in done.stdout
    assert ben.folder()["state"] == "stopped"
    ben.stop()
    ben.up()
    (aside,) = ben.home.glob("folders/*/index.sqlite.damaged-*[0-9]")
    assert aside.exists()
    (anna.directory / "after.txt").write_text("after\n")
    wait_until_equal(anna.directory, ben.directory, expected=lambda tree: "after.txt" in tree)
    (ben.directory / "after by ben.txt").write_text("after\n")
    wait_until_equal(anna.directory, ben.directory, expected=lambda t: "after by ben.txt" in t)
    assert "(" not in "".join(os.listdir(anna.directory)), "no conflicts, nothing doubled"
    assert ben.run_json("verify", str(ben.directory))["damaged"] == []
