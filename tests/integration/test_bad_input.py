"""Bad input, through the real program: a clear message, the documented exit code, nothing lost."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.processes import Device, free_port, on_loopback, two_members
from tests.support.trees import snapshot, wait_for, wait_until_equal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

# Exit codes, see docs/cli.md.
CANNOT_BE_DONE = 2
HOME_IN_USE = 12
WRONG_DIRECTORY = 13
PORT_IN_USE = 15
DAMAGED = 20


def refused(device: Device, *arguments: str) -> tuple[int, str]:
    """The exit code and message of a call that must not work."""
    done = device.run(*(arguments or up_arguments(device)), check=False)
    assert done.returncode != 0, done.stdout
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("shoal: ")
    return done.returncode, done.stderr


def up_arguments(device: Device) -> list[str]:
    return ["up", str(device.directory), *device.options]


# --- the directory --------------------------------------------------------------------------------


def test_the_directory_is_a_file(tmp_path: Path) -> None:
    device = on_loopback(tmp_path, "anna")
    device.directory.write_text("a file\n")
    code, message = refused(device)
    assert code == WRONG_DIRECTORY
    assert "is a file" in message
    assert "Nothing was changed" in message
    assert device.directory.read_text() == "a file\n"


def test_the_directory_would_lie_in_a_file(tmp_path: Path) -> None:
    device = on_loopback(tmp_path, "anna")
    device.directory.write_text("a file\n")
    code, message = refused(device, "up", str(device.directory / "below"), *device.options)
    assert code == WRONG_DIRECTORY
    assert "Nothing was changed" in message
    assert device.directory.read_text() == "a file\n"


def test_the_directory_is_not_writable(tmp_path: Path) -> None:
    device = WithoutRights(tmp_path, "anna", options=("--no-lan",))
    device.directory.mkdir()
    (device.directory / "kept.txt").write_text("kept\n")
    device.directory.chmod(0o555)
    code, message = refused(device)
    assert code == WRONG_DIRECTORY
    assert "cannot be written" in message
    assert "Nothing was changed" in message
    assert [path.name for path in device.directory.iterdir()] == ["kept.txt"]


def test_the_directory_lies_in_a_synced_one(tmp_path: Path) -> None:
    with on_loopback(tmp_path, "anna") as anna:
        anna.up()
        eve = on_loopback(tmp_path, "eve")
        inner = anna.directory / "deep" / "inner"
        code, message = refused(eve, "up", str(inner), *eve.options)
        assert code == WRONG_DIRECTORY
        assert f"inside {anna.directory}" in message
        assert "Nothing was changed" in message
        assert not inner.exists()


def test_the_directory_is_another_folders_root(tmp_path: Path) -> None:
    with on_loopback(tmp_path, "anna") as anna, on_loopback(tmp_path, "ben") as ben:
        anna.up()
        ben.up()
        eve = on_loopback(tmp_path, "eve")
        code, message = refused(eve, "up", str(anna.directory), *eve.options)
        assert code == WRONG_DIRECTORY
        assert "another home" in message
        code, message = refused(
            eve, "join", anna.invite(), str(ben.directory), "--name", "eve", *eve.options
        )
        assert code == WRONG_DIRECTORY
        assert "Nothing was changed" in message
        assert not ben.folder()["peers"]


def test_a_directory_around_a_synced_one_leaves_it_alone(tmp_path: Path) -> None:
    """Two nodes must never write the same files."""
    with on_loopback(tmp_path, "anna") as anna:
        anna.up()
        marker = (anna.directory / ".shoal/root").read_bytes()
        eve = on_loopback(tmp_path, "eve")
        code, message = refused(eve, "up", str(tmp_path), *eve.options)
        assert code == WRONG_DIRECTORY
        assert "Nothing was changed" in message
        assert (anna.directory / ".shoal/root").read_bytes() == marker


# --- ports and homes ------------------------------------------------------------------------------


def test_a_port_that_was_asked_for_is_in_use(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        device = on_loopback(tmp_path, "anna", port=taken.getsockname()[1])
        code, message = refused(device)
    assert code == PORT_IN_USE
    assert "othing was changed" in message
    assert "--listen" in message


def test_a_port_that_nobody_asked_for_is_in_use(tmp_path: Path) -> None:
    """Then another one is taken, without a word."""
    with (
        Device(tmp_path, "anna", options=("--no-lan",)) as anna,
        Device(tmp_path, "ben", options=("--no-lan",)) as ben,
    ):
        anna.up()
        ben.up()
        assert anna.status()["listening"] != ben.status()["listening"]


def test_an_address_that_is_none(tmp_path: Path) -> None:
    device = Device(tmp_path, "anna")
    for options in (["--listen", "nonsense"], ["--peer", "1.2.3.4"], ["--peer", "1.2.3.4:0"]):
        code, message = refused(device, "up", str(device.directory), "--no-lan", *options)
        assert code == CANNOT_BE_DONE
        assert options[1] in message
    assert not device.directory.exists()


def test_a_home_that_is_in_use(tmp_path: Path) -> None:
    with on_loopback(tmp_path, "anna") as anna:
        anna.up()
        second = on_loopback(tmp_path, "anna")
        second.directory = tmp_path / "other"
        code, message = refused(second)
        assert code == HOME_IN_USE
        assert "already running" in message
        assert "--home" in message
        assert anna.folder()["state"] == "in sync"
        assert not second.directory.exists()


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"", b"rubbish", None])
def test_a_damaged_identity_is_left_alone(tmp_path: Path, damage: bytes | None) -> None:
    with on_loopback(tmp_path, "anna") as anna:
        anna.up()
        (anna.directory / "kept.txt").write_text("kept\n")
        anna.wait(devices=1)
        anna.stop()
        identity = anna.home / "identity"
        sound = identity.read_bytes()
        broken = bytes([*sound[:-1], sound[-1] ^ 1]) if damage is None else damage
        identity.write_bytes(broken)
        code, message = refused(anna)
        assert code == DAMAGED
        assert str(identity) in message
        assert "was not touched" in message
        assert identity.read_bytes() == broken
        assert (anna.directory / "kept.txt").read_text() == "kept\n"
        identity.write_bytes(sound)
        anna.up()


def rubbish(index: Path) -> None:
    index.write_bytes(b"this is no database" * 1000)


def holes(index: Path) -> None:
    """A database whose pages beyond the first are rot."""
    with index.open("r+b") as file:
        size = index.stat().st_size
        for place in range(4096, size, 4096):
            file.seek(place)
            file.write(b"\xa5" * 2048)


def cut(index: Path) -> None:
    os.truncate(index, index.stat().st_size // 2)


@pytest.mark.parametrize("damage", [rubbish, holes, cut])
def test_a_damaged_index_is_put_aside_and_built_anew(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    with two_members(tmp_path) as (anna, ben):
        for number in range(30):
            (anna.directory / f"{number}.txt").write_text(f"{number}\n")
        (ben.directory / "ben.txt").write_text("ben\n")
        both = anna.directory, ben.directory
        before = wait_until_equal(*both, expected=lambda tree: len(tree) == 31)
        anna.wait(devices=2)
        anna.stop()
        (index,) = anna.home.glob("folders/*/index.sqlite")
        damage(index)
        (ben.directory / "meanwhile.txt").write_text("ben\n")
        anna.up()
        after = wait_until_equal(*both, expected=lambda tree: "meanwhile.txt" in tree)
        assert {path: node for path, node in after.items() if path != "meanwhile.txt"} == before
        assert any("damaged" in one["message"] for one in anna.folder()["warnings"])
        assert list(index.parent.glob("index.sqlite.damaged-*"))
        check_sound(index)
        (anna.directory / "0.txt").write_text("edited after the damage\n")
        (anna.directory / "1.txt").unlink()
        wait_until_equal(*both, expected=lambda tree: "1.txt" not in tree)
        assert (ben.directory / "0.txt").read_text() == "edited after the damage\n"
        assert not list(ben.directory.glob("*conflict*"))


def check_sound(index: Path) -> None:
    connection = sqlite3.connect(f"file:{index}?mode=ro", uri=True)
    assert connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
    connection.close()


def test_a_lone_device_with_a_damaged_index_keeps_everything(tmp_path: Path) -> None:
    with on_loopback(tmp_path, "anna") as anna:
        anna.up()
        (anna.directory / "kept.txt").write_text("kept\n")
        anna.wait(devices=1)
        anna.stop()
        (index,) = anna.home.glob("folders/*/index.sqlite")
        before = snapshot(anna.directory)
        rubbish(index)
        anna.up()
        anna.wait(devices=1)
        assert snapshot(anna.directory) == before


# --- the root -------------------------------------------------------------------------------------


@contextmanager
def synced_twenty(tmp_path: Path) -> Iterator[tuple[Device, Device]]:
    """Two members with 30 files, enough that to lose all of them is a matter to ask about."""
    with two_members(tmp_path) as (anna, ben):
        for number in range(30):
            (anna.directory / f"{number}.txt").write_text(f"{number}\n")
        wait_until_equal(anna.directory, ben.directory, expected=lambda tree: len(tree) == 30)
        anna.wait(devices=2)
        yield anna, ben


def lose_marker(anna: Device) -> None:
    (anna.directory / ".shoal/root").unlink()


def swap_marker(anna: Device) -> None:
    """As if another folder's disk were mounted there."""
    with on_loopback(anna.home.parent, "other") as other:
        other.up()
    shutil.copy(other.directory / ".shoal/root", anna.directory / ".shoal/root")


def damage_marker(anna: Device) -> None:
    (anna.directory / ".shoal/root").write_text("rubbish")


def empty(anna: Device) -> None:
    """As if the disk had lost everything but our own directory."""
    for path in anna.directory.glob("*.txt"):
        path.unlink()


def unmount(anna: Device) -> None:
    """As if its disk were gone and the mount point were left."""
    anna.directory.rename(anna.directory.with_name("away"))
    anna.directory.mkdir()


@pytest.mark.parametrize("act", [lose_marker, swap_marker, damage_marker, empty, unmount])
def test_a_root_that_is_not_ours_stops_the_folder(
    tmp_path: Path, act: Callable[[Device], None]
) -> None:
    with synced_twenty(tmp_path) as (anna, ben):
        before = snapshot(ben.directory)
        anna.stop()
        act(anna)
        left = snapshot(anna.directory)
        anna.up()
        wait_for(lambda: anna.folder()["state"] == "stopped")
        assert "othing was deleted" in anna.folder()["reason"]
        (ben.directory / "later.txt").write_text("goes nowhere for now\n")
        ben.wait(devices=1)
        assert snapshot(anna.directory) == left
        assert before.items() <= snapshot(ben.directory).items()
        assert anna.run("wait", str(anna.directory), "--devices", "1", "--timeout", "0.2",
                        check=False).returncode != 0  # fmt: skip


def test_a_root_that_vanishes_while_the_node_runs(tmp_path: Path) -> None:
    with synced_twenty(tmp_path) as (anna, ben):
        before = snapshot(ben.directory)
        (anna.directory / ".shoal/root").unlink()
        (anna.directory / "3.txt").unlink()
        wait_for(lambda: anna.folder()["state"] == "stopped")
        assert snapshot(ben.directory) == before


# --- files that cannot be read --------------------------------------------------------------------


def test_files_that_cannot_be_read_are_a_warning_and_never_a_deletion(tmp_path: Path) -> None:
    ports = free_port(), free_port()
    ben = on_loopback(tmp_path, "ben", port=ports[1], peers=(ports[0],))
    options = ("--no-lan", "--listen", f"127.0.0.1:{ports[0]}")
    with WithoutRights(tmp_path, "anna", options=options) as anna, ben:
        (anna.directory / "closed").mkdir(parents=True)
        for name in ("open.txt", "secret.txt", "closed/inside.txt"):
            (anna.directory / name).write_text(name)
        anna.up()
        ben.join(anna.invite())
        before = wait_until_equal(
            anna.directory, ben.directory, expected=lambda tree: len(tree) == 4
        )
        os.chmod(anna.directory / "closed", 0)
        (anna.directory / "secret.txt").write_text("changed, and closed")
        os.chmod(anna.directory / "secret.txt", 0)
        (anna.directory / "new.txt").write_text("new, and closed")
        os.chmod(anna.directory / "new.txt", 0)
        (anna.directory / "open.txt").write_text("changed, and open")
        wait_for(lambda: (ben.directory / "open.txt").read_text() == "changed, and open")
        anna.stop()
        anna.up()
        anna.run("wait", str(anna.directory), "--devices", "2", "--timeout", "3", check=False)
        assert snapshot(ben.directory).keys() == before.keys()
        assert (ben.directory / "secret.txt").read_text() == "secret.txt"
        warned = {warning["path"] for warning in anna.folder()["warnings"]}
        assert {"closed", "secret.txt", "new.txt"} <= warned
        for name in ("closed", "secret.txt", "new.txt"):
            os.chmod(anna.directory / name, 0o755)
        wait_until_equal(
            anna.directory, ben.directory, expected=lambda tree: len(tree) == 5, timeout_s=30
        )


class WithoutRights(Device):
    """A device whose node and calls are stopped by permissions, though we may be root."""

    def command(self, *arguments: str) -> list[str]:
        return without_rights(super().command(*arguments))


def without_rights(command: list[str]) -> list[str]:
    """`command`, run without the capabilities by which root passes over permissions."""
    if os.geteuid() != 0:
        return command
    become = (
        "import ctypes, os, sys; prctl = ctypes.CDLL(None).prctl\n"
        "for capability in (1, 2): assert prctl(24, capability, 0, 0, 0) == 0\n"  # DAC_*
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-c", become, *command]
