"""What scripts rely on: verbs, JSON shapes, exit codes, signals; through the real program."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crdt.ids import DeviceId
from node.cli.exit_codes import EXIT_CODES
from tests.support.processes import ROOT, Device, on_loopback, two_members
from tests.support.trees import wait_for, wait_until_equal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

NOT_RUNNING = 3
TIMED_OUT = 4
DAMAGE_FOUND = 5
WRONG_DIRECTORY = 13
STATES = {"scanning", "syncing", "in sync", "paused", "stopped"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Device, Device]]:
    """Two members that hold one file each of them made. Tests leave them running and in sync."""
    with two_members(tmp_path_factory.mktemp("contract")) as (anna, ben):
        (anna.directory / "anna.txt").write_text("by anna\n")
        (ben.directory / "ben.txt").write_text("by ben\n")
        anna.wait(devices=2)
        ben.wait(devices=2)
        yield anna, ben


# --- status ---------------------------------------------------------------------------------------


def test_status(pair: tuple[Device, Device]) -> None:
    anna, ben = pair
    wait_until_equal(anna.directory, ben.directory, expected=lambda tree: len(tree) == 2)
    anna.wait(devices=2)
    status = anna.run_json("status")
    assert DeviceId.from_text(status["device"]).text == status["device"]
    (folder,) = status["folders"]
    assert folder["path"] == str(anna.directory)
    assert folder["state"] == "in sync"
    assert folder["needs"] == {"files": 0, "bytes": 0}
    assert folder["files"] == 2
    assert folder["bytes"] == len("by anna\nby ben\n")
    assert folder["conflicts"] == 0
    assert "reason" not in folder
    assert folder["id"] == ben.folder()["id"]
    (peer,) = folder["peers"]
    assert {"device", "name", "connected", "in_sync"} <= peer.keys()
    assert peer["device"] == ben.status()["device"] != status["device"]
    assert peer["name"] == "ben"
    assert peer["connected"]
    assert peer["in_sync"]


def test_status_for_people(pair: tuple[Device, Device]) -> None:
    text = pair[0].run("status").stdout
    for part in (str(pair[0].directory), "in sync", "ben", "2 files"):
        assert part in text


def test_state_is_one_of_those_that_are_documented(pair: tuple[Device, Device]) -> None:
    assert pair[1].folder()["state"] in STATES


# --- wait -----------------------------------------------------------------------------------------


def test_wait(pair: tuple[Device, Device]) -> None:
    anna, ben = pair
    for number in range(5):
        (anna.directory / "waited for.txt").write_text(f"{number}\n")
        anna.wait(devices=2)
        assert (ben.directory / "waited for.txt").read_text() == f"{number}\n"
    answer = anna.run_json("wait", str(anna.directory), "--devices", "2", "--timeout", "10")
    assert answer == {"reached": True, "devices": 2}


def test_wait_for_more_devices_than_there_are(pair: tuple[Device, Device]) -> None:
    anna, _ = pair
    began = time.monotonic()
    done = anna.run(
        "wait", str(anna.directory), "--devices", "3", "--timeout", "0.5", "--json", check=False
    )
    assert done.returncode == TIMED_OUT
    assert json.loads(done.stdout) == {"reached": False, "devices": 2}
    assert "2 devices of 3" in done.stderr
    assert 0.5 <= time.monotonic() - began < 5


def test_wait_for_a_device_that_is_away(tmp_path: Path) -> None:
    with two_members(tmp_path) as (anna, ben):
        anna.wait(devices=2)
        ben.stop()
        (anna.directory / "new.txt").write_text("new\n")
        done = anna.run(
            "wait", str(anna.directory), "--devices", "2", "--timeout", "0.5", check=False
        )
        assert done.returncode == TIMED_OUT
        anna.wait(devices=1)
        ben.up()
        anna.wait(devices=2)
        assert (ben.directory / "new.txt").read_text() == "new\n"


# --- invite ---------------------------------------------------------------------------------------


def test_an_invitation_stands_alone_on_the_first_line(pair: tuple[Device, Device]) -> None:
    anna, _ = pair
    for arguments in ([], ["--uses", "3"], ["--expires", "10m"], ["--role", "reader"]):
        out = anna.run("invite", str(anna.directory), *arguments).stdout
        first = out.splitlines()[0]
        assert first.startswith("shoal1-")
        assert first == first.strip()
        assert " " not in first


def test_an_invitation_on_a_terminal_comes_with_a_qr_code(pair: tuple[Device, Device]) -> None:
    anna, _ = pair
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        anna.command("invite", str(anna.directory)), stdout=follower, cwd=ROOT
    )
    os.close(follower)
    text = read_all(leader)
    assert process.wait(20) == 0
    assert "shoal1-" in text
    assert "█" in text or "▀" in text
    assert "shoal join" in text


def read_all(descriptor: int) -> str:
    data = b""
    while True:
        try:
            more = os.read(descriptor, 4096)
        except OSError:  # Linux says EIO once nobody has the terminal open any more
            more = b""
        if not more:
            os.close(descriptor)
            return data.decode()
        data += more


def test_an_invitation_from_a_directory_within_the_folder(pair: tuple[Device, Device]) -> None:
    anna, _ = pair
    inner = anna.directory / "deep" / "deeper"
    inner.mkdir(parents=True, exist_ok=True)
    assert anna.run("invite", str(inner)).stdout.startswith("shoal1-")


def test_join_reads_an_invitation_from_stdin(pair: tuple[Device, Device], tmp_path: Path) -> None:
    anna, _ = pair
    with on_loopback(tmp_path, "carla") as carla:
        process = subprocess.Popen(
            carla.command("join", "-", str(carla.directory), *carla.options),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(anna.invite() + "\n")
            process.stdin.close()
            assert process.stdout.readline().startswith("ready: ")
        finally:
            process.terminate()
            assert process.wait(20) == 0
            if process.stdout is not None:
                process.stdout.close()


# --- up, and its end ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_node_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    with on_loopback(tmp_path, "anna") as anna:
        anna.directory.mkdir()
        (anna.directory / "a.txt").write_text("a\n")
        anna.up()
        assert anna.ready_line.startswith(f"ready: {anna.directory}")
        began = time.monotonic()
        assert anna.stop(number) == 0
        assert time.monotonic() - began < 3
        assert "Traceback" not in anna.tail()
        done = anna.run("status", check=False)
        assert done.returncode == NOT_RUNNING
        anna.up()
        wait_for(lambda: anna.folder()["files"] == 1)


def test_a_signal_stops_a_connected_node_cleanly(tmp_path: Path) -> None:
    with two_members(tmp_path) as (anna, ben):
        anna.wait(devices=2)
        assert anna.stop(signal.SIGINT) == 0
        wait_for(lambda: not ben.folder()["peers"][0]["connected"], timeout_s=3)
        assert ben.stop() == 0
        assert "Traceback" not in anna.tail() + ben.tail()


def test_ready_as_json(tmp_path: Path) -> None:
    with on_loopback(tmp_path, "anna") as anna:
        anna.up("--json")
        ready = json.loads(anna.ready_line)
        assert ready["ready"] is True
        assert ready["path"] == str(anna.directory)
        assert ready["joined"] is False
        assert ready["device"] == anna.status()["device"]


def test_up_creates_the_folder_once(tmp_path: Path) -> None:
    with on_loopback(tmp_path, "anna") as anna:
        anna.up()
        first = anna.status()
        anna.stop()
        anna.up()
        second = anna.status()
        assert first["device"] == second["device"]
        assert [one["id"] for one in first["folders"]] == [one["id"] for one in second["folders"]]


def test_join_of_a_folder_that_is_here_already_resumes_it(tmp_path: Path) -> None:
    with two_members(tmp_path) as (anna, ben):
        folder = ben.folder()["id"]
        ben.stop()
        ben.join(anna.invite())
        assert ben.folder()["id"] == folder
        assert len(anna.folder()["peers"]) == 1


# --- devices, pause, resume, verify, logs ---------------------------------------------------------


def test_devices(pair: tuple[Device, Device]) -> None:
    anna, ben = pair
    found = {one["name"]: one for one in anna.run_json("devices", str(anna.directory))}
    assert {"anna", "ben"} <= found.keys()
    assert found["anna"]["role"] == "owner"
    assert found["anna"]["this_device"]
    assert found["ben"]["role"] == "editor"
    assert not found["ben"]["this_device"]
    assert found["ben"]["connected"]
    assert found["ben"]["device"] == ben.status()["device"]


def test_pause_and_resume(pair: tuple[Device, Device]) -> None:
    anna, ben = pair
    ben.run("pause", str(ben.directory))
    assert ben.folder()["state"] == "paused"
    (anna.directory / "while paused.txt").write_text("by anna\n")
    (ben.directory / "by ben, paused.txt").write_text("by ben\n")
    done = anna.run("wait", str(anna.directory), "--timeout", "0.7", check=False)
    assert done.returncode == TIMED_OUT
    assert not (ben.directory / "while paused.txt").exists()
    assert not (anna.directory / "by ben, paused.txt").exists()
    assert ben.run_json("resume", str(ben.directory)) == {}
    wait_until_equal(
        anna.directory, ben.directory, expected=lambda tree: "by ben, paused.txt" in tree
    )
    assert (ben.directory / "while paused.txt").exists()
    ben.wait(devices=2)


def test_pause_is_remembered_over_a_restart(tmp_path: Path) -> None:
    with on_loopback(tmp_path, "anna") as anna:
        anna.up()
        anna.run("pause", str(anna.directory))
        anna.stop()
        anna.up()
        assert anna.folder()["state"] == "paused"
        anna.run("resume", str(anna.directory))
        anna.wait(devices=1)
        assert anna.folder()["state"] == "in sync"


def test_verify_finds_rot_and_mends_it_from_a_peer(tmp_path: Path) -> None:
    with two_members(tmp_path) as (anna, ben):
        content = os.urandom(300_000)
        (anna.directory / "precious.bin").write_bytes(content)
        (anna.directory / "small.txt").write_text("small\n")
        anna.wait(devices=2)
        sound = anna.run_json("verify", str(anna.directory))
        assert (sound["checked"], sound["damaged"], sound["repaired"]) == (2, [], [])
        assert sound["bytes"] == 300_006
        rot(ben, "precious.bin")
        found = ben.run_json("verify", str(ben.directory))
        assert found["damaged"] == found["repaired"] == ["precious.bin"]
        (detail,) = found["details"]
        assert detail["path"] == "precious.bin"
        assert detail["repaired"]
        assert (ben.directory / "precious.bin").read_bytes() == content
        assert (anna.directory / "precious.bin").read_bytes() == content


def test_verify_says_when_nobody_can_mend(tmp_path: Path) -> None:
    with on_loopback(tmp_path, "anna") as anna:
        anna.directory.mkdir()
        (anna.directory / "precious.bin").write_bytes(os.urandom(300_000))
        anna.up()
        anna.wait(devices=1)
        rot(anna, "precious.bin")
        done = anna.run("verify", str(anna.directory), "--json", check=False)
        assert done.returncode == DAMAGE_FOUND
        found = json.loads(done.stdout)
        assert (found["damaged"], found["repaired"]) == (["precious.bin"], [])
        assert not found["details"][0]["repaired"]
        assert "no peer could mend it" in found["details"][0]["message"]


def rot(device: Device, name: str) -> None:
    """Change bytes as a failing disk does: without an event, and with every time as it was.

    No program can set a ctime back, so the index is told the new one while nobody looks.
    """
    device.stop()
    path = device.directory / name
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(200_000)
        file.write(b"rotten")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    (index,) = device.home.glob("folders/*/index.sqlite")
    with contextlib.closing(sqlite3.connect(index)) as connection, connection:
        changed = connection.execute(
            "UPDATE disk SET ctime_ns = ? WHERE name = ?", (path.stat().st_ctime_ns, name)
        )
        assert changed.rowcount == 1
    device.up()
    wait_for(lambda: device.folder()["state"] == "in sync")


def test_logs(pair: tuple[Device, Device]) -> None:
    anna, _ = pair
    lines = anna.run_json("logs")["lines"]
    assert lines
    assert (
        anna.run("logs", "-n", "1").stdout.splitlines() == anna.run_json("logs", "-n", "1")["lines"]
    )


# --- what every verb does -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "verb", ["invite", "status", "devices", "wait", "verify", "pause", "resume", "logs"]
)
def test_without_a_node_every_verb_says_so(tmp_path: Path, verb: str) -> None:
    device = on_loopback(tmp_path, "anna")
    device.home.mkdir()
    directory = [] if verb in {"status", "logs"} else [str(device.directory)]
    done = device.run(verb, *directory, "--json", check=False)
    assert done.returncode == NOT_RUNNING
    assert json.loads(done.stdout)["exit_code"] == NOT_RUNNING
    assert "shoal up" in done.stderr


@pytest.mark.parametrize("verb", ["invite", "devices", "wait", "verify", "pause", "resume"])
def test_a_directory_that_is_in_no_folder(
    pair: tuple[Device, Device], tmp_path: Path, verb: str
) -> None:
    done = pair[0].run(verb, str(tmp_path), "--json", check=False)
    assert done.returncode == WRONG_DIRECTORY
    assert str(tmp_path) in json.loads(done.stdout)["message"]


def test_every_exit_code_used_here_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    for code in (0, NOT_RUNNING, TIMED_OUT, DAMAGE_FOUND, 11, 12, WRONG_DIRECTORY, 14, 15, 20):
        assert code in EXIT_CODES
        assert f"| {code} |" in text


def test_follow_logs_ends_with_the_node(tmp_path: Path) -> None:
    with on_loopback(tmp_path, "anna") as anna:
        anna.up()
        follow = subprocess.Popen(
            anna.command("logs", "--follow"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, cwd=ROOT,
        )  # fmt: skip
        answer: list[Any] = []
        reader = threading.Thread(target=lambda: answer.append(follow.communicate()))
        reader.start()
        wait_for(lambda: anna.folder()["state"] == "in sync")
        anna.stop()
        reader.join(10)
        if reader.is_alive():
            follow.kill()
            reader.join()
            raise AssertionError("it goes on without a node")
        assert "Traceback" not in answer[0][1]


def test_help_names_every_verb() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "node.cli.main", "--help"],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    for verb in (
        "up",
        "join",
        "invite",
        "status",
        "devices",
        "wait",
        "verify",
        "pause",
        "resume",
        "logs",
    ):
        assert f"\n  {verb} " in done.stdout
