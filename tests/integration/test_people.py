"""People: who is let in, as what, and who is taken out again; through real processes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crdt.ids import DeviceId
from crdt.invitation import Invitation
from crdt.recovery import RecoveryPhrase
from node.control.client import ControlClient
from node.control.shapes import to_json
from tests.support.processes import ROOT, Device, members, on_loopback
from tests.support.trees import snapshot, wait_for, wait_until_equal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

USAGE = 2
INVITATION = 11
CUT_OFF_S = 30.0  # it takes well under one second; a loaded machine may take its time


def devices(device: Device) -> dict[str, dict[str, Any]]:
    """What `shoal devices --json` says, by name; without starting a Python."""
    nothing = {"last_seen": None, "behind": None}
    with ControlClient(device.home) as client:
        return {one.name: {**nothing, **to_json(one)} for one in client.devices(device.directory)}


def refused(device: Device, *arguments: str) -> str:
    """A verb that must refuse; what it said."""
    before = devices(device)
    done = device.run(*arguments, str(device.directory), check=False)
    assert done.returncode == USAGE, done
    assert "nothing was changed" in done.stderr
    after = devices(device)
    for volatile in ("last_seen", "connected", "behind"):
        for one in (*before.values(), *after.values()):
            one.pop(volatile)
    assert before == after
    return done.stderr


def connected(device: Device, name: str) -> Callable[[], bool]:
    """Whether `device` is connected to the one called `name`."""
    return lambda: any(p["name"] == name and p["connected"] for p in device.folder()["peers"])


def test_a_removed_device_is_cut_off(tmp_path: Path) -> None:
    with members(tmp_path, "anna", "ben", "cleo") as (anna, ben, cleo):
        (cleo.directory / "by cleo.txt").write_text("from before\n")
        (cleo.directory / "big.bin").write_bytes(bytes(range(256)) * 2_000)
        cleo.wait(devices=3)
        # Bad input first: nothing happens.
        assert "there are: anna, ben, cleo" in refused(anna, "remove", "zoe").lower()
        assert "last owner" in refused(anna, "remove", "anna")
        assert "only an owner" in refused(ben, "remove", "cleo")
        assert "last owner" in refused(anna, "role", "anna", "reader")
        assert "owner, editor, reader" in refused(anna, "role", "ben", "king")
        assert set(devices(anna)) == {"anna", "ben", "cleo"}

        anna.run("remove", "cleo", str(anna.directory))
        wait_for(lambda: cleo.folder()["state"] == "stopped", timeout_s=CUT_OFF_S)
        assert "anna removed this device" in cleo.folder()["reason"]
        for member in (anna, ben):
            wait_for(lambda m=member: set(devices(m)) == {"anna", "ben"}, timeout_s=CUT_OFF_S)  # type: ignore[misc]
        assert "was removed from this folder already" in refused(anna, "remove", "cleo")

        (anna.directory / "secret.txt").write_text("not for cleo\n")
        (cleo.directory / "late.txt").write_text("too late\n")
        (cleo.directory / "by cleo.txt").write_text("changed too late\n")
        anna.wait(devices=2)
        ben.wait(devices=2)
        for member in (anna, ben):
            tree = {path.name for path in member.directory.iterdir()} - {".shoal"}
            assert tree == {"by cleo.txt", "big.bin", "secret.txt"}
            assert (member.directory / "by cleo.txt").read_text() == "from before\n"
        assert not (cleo.directory / "secret.txt").exists()
        assert (cleo.directory / "late.txt").read_text() == "too late\n"

        # It knows when it starts again, and others go on refusing it.
        cleo.stop()
        cleo.up()
        assert cleo.folder()["state"] == "stopped"
        assert set(devices(anna)) == {"anna", "ben"}
        assert not (cleo.directory / "secret.txt").exists()


def test_a_device_that_was_away_hears_of_its_removal(tmp_path: Path) -> None:
    with members(tmp_path, "anna", "ben") as (anna, ben):
        (anna.directory / "shared.txt").write_text("for both\n")
        anna.wait(devices=2)
        ben.stop()
        anna.run("remove", "ben", str(anna.directory))
        (anna.directory / "secret.txt").write_text("not for ben\n")
        (ben.directory / "offline.txt").write_text("written while away\n")
        anna.wait(devices=1)
        ben.up()
        wait_for(lambda: ben.folder()["state"] == "stopped", timeout_s=30)
        assert not (ben.directory / "secret.txt").exists()
        assert (ben.directory / "offline.txt").read_text() == "written while away\n"
        assert (ben.directory / "shared.txt").read_text() == "for both\n"
        assert not (anna.directory / "offline.txt").exists()


def test_owners_who_remove_each_other(tmp_path: Path) -> None:
    with members(tmp_path, "anna", "ben", "cleo") as (anna, ben, cleo):
        anna.wait(devices=3)
        anna.run("role", "ben", "owner", str(anna.directory))
        wait_for(lambda: devices(ben)["ben"]["role"] == "owner")
        # In two partitions: nobody else runs while one removes the other.
        anna.stop()
        cleo.stop()
        ben.run("remove", "anna", str(ben.directory))
        ben.stop()
        anna.up()
        anna.run("remove", "ben", str(anna.directory))
        cleo.up()
        ben.up()

        def agreed() -> bool:
            stopped = [one for one in (anna, ben) if one.folder()["state"] == "stopped"]
            return len(stopped) == 1

        wait_for(agreed, timeout_s=60)
        (stays,) = (one for one in (anna, ben) if one.folder()["state"] != "stopped")
        wait_for(lambda: set(devices(cleo)) == {stays.name, "cleo"})
        wait_for(lambda: set(devices(stays)) == {stays.name, "cleo"})
        assert devices(cleo)[stays.name]["role"] == "owner"
        (stays.directory / "goes on.txt").write_text("under a new key\n")
        stays.wait(devices=2)
        assert (cleo.directory / "goes on.txt").read_text() == "under a new key\n"


def test_devices_and_names(tmp_path: Path) -> None:
    with members(tmp_path, "anna", "ben") as (anna, ben):
        (anna.directory / "f").write_text("f\n")
        anna.wait(devices=2)
        (first, second) = anna.run_json("devices", str(anna.directory))
        keys = {"device", "name", "person", "role", "connected", "last_seen", "behind"}
        assert keys <= first.keys()
        assert (first["name"], first["role"], first["connected"]) == ("anna", "owner", True)
        assert (second["name"], second["role"], second["behind"]) == ("ben", "editor", 0)
        assert second["last_seen"] is not None
        ben.stop()
        wait_for(lambda: not devices(anna)["ben"]["connected"])
        (anna.directory / "g").write_text("g\n")
        anna.wait(devices=1)
        wait_for(lambda: devices(anna)["ben"]["behind"] >= 1)
        anna.stop()
        anna.up()
        assert devices(anna)["ben"]["behind"] >= 1, "remembered over a restart"
        assert devices(anna)["ben"]["last_seen"] is not None


def test_invitations_are_listed_revoked_and_used_up(tmp_path: Path) -> None:
    with members(tmp_path, "anna", "ben") as (anna, ben), on_loopback(tmp_path, "eve") as eve:
        directory = str(anna.directory)
        assert anna.run_json("invitations", directory) == []
        text = anna.invite("--role", "reader", "--uses", "1", "--expires", "1h")
        (one,) = anna.run_json("invitations", directory)
        assert (one["role"], one["uses"], one["left"], one["state"]) == ("reader", 1, 1, "open")
        wait_for(lambda: len(ben.run_json("invitations", str(ben.directory))) == 1)
        assert "only an owner" in refused(ben, "revoke", one["id"])
        assert "no invitation" in refused(anna, "revoke", "ZZZZZZZ")
        anna.run("revoke", one["id"], directory)
        assert anna.run_json("invitations", directory) == []
        assert "revoked already" in refused(anna, "revoke", one["id"])
        done = eve.run("join", text, str(eve.directory), *eve.options, "--json", check=False)
        assert done.returncode == INVITATION
        assert json.loads(done.stdout)["exit_code"] == INVITATION
        assert not eve.directory.exists()
        (anna.directory / "goes on.txt").write_text("under a new key\n")
        anna.wait(devices=2)

        # An editor invites once an owner allows it, and no wider than itself.
        assert "may not invite" in refused(ben, "invite", "--role", "reader")
        anna.run("role", "ben", "editor", directory, "--may-invite")
        wait_for(lambda: devices(ben)["ben"]["may_invite"])
        assert "may not invite anybody as owner" in refused(ben, "invite", "--role", "owner")
        eve.join(ben.invite("--role", "reader"))
        wait_for(lambda: "eve" in devices(anna))
        assert devices(anna)["eve"]["role"] == "reader"
        wait_for((eve.directory / "goes on.txt").exists)
        again = eve.run("join", text, str(eve.directory), check=False)
        assert again.returncode != 0


def test_what_a_reader_changes_stays_on_its_disk(tmp_path: Path) -> None:
    with members(tmp_path, "anna") as (anna,), on_loopback(tmp_path, "rita") as rita:
        for name in ("edited", "deleted", "moved", "kept"):
            (anna.directory / f"{name}.txt").write_text(f"{name}, by anna\n")
        (anna.directory / "dir").mkdir()
        (anna.directory / "dir" / "inner.txt").write_text("inner, by anna\n")
        rita.join(anna.invite("--role", "reader"))
        anna.wait(devices=2)
        anna_before = snapshot(anna.directory)

        (rita.directory / "edited.txt").write_text("edited, by rita\n")
        (rita.directory / "deleted.txt").unlink()
        (rita.directory / "moved.txt").rename(rita.directory / "moved away.txt")
        (rita.directory / "created").mkdir()
        (rita.directory / "created" / "new.txt").write_text("new, by rita\n")
        expected = {
            "edited.txt": "edited",
            "deleted.txt": "deleted",
            "moved away.txt": "moved",
            "created": "created",
            "created/new.txt": "created",
        }

        def local() -> dict[str, str]:
            return {one["path"]: one["action"] for one in rita.folder()["local"]}

        wait_for(lambda: local() == expected, say="local changes are shown")
        assert rita.folder()["role"] == "reader"
        # What others do goes on arriving beside them; local changes stay where they are.
        (anna.directory / "kept.txt").write_text("kept, by anna again\n")
        (anna.directory / "edited.txt").write_text("edited, by anna again\n")
        wait_for(lambda: (rita.directory / "kept.txt").read_text() == "kept, by anna again\n")
        assert (rita.directory / "edited.txt").read_text() == "edited, by rita\n"
        assert local() == expected
        rita.stop()
        rita.up()
        wait_for(lambda: local() == expected, say="found again after a restart")

        # One of them, then all.
        assert (
            "here alone"
            in rita.run("revert", str(rita.directory / "created" / "new.txt"), check=False).stderr
        )
        rita.run("revert", str(rita.directory / "edited.txt"))
        wait_for(lambda: "edited.txt" not in local())
        wait_for(lambda: (rita.directory / "edited.txt").read_text() == "edited, by anna again\n")
        rita.run("revert", str(rita.directory))
        wait_until_equal(anna.directory, rita.directory)
        wait_for(lambda: local() == {})
        kept = (path.read_bytes() for path in (rita.directory / ".shoal/history").iterdir())
        assert b"edited, by rita\n" in kept, "thrown away, but not gone"
        anna.wait(devices=2)
        tree = snapshot(anna.directory)
        assert tree.keys() == anna_before.keys()
        assert authors_of_log(anna) == {id_of(anna, "anna")}, "nothing came from the reader"
        assert id_of(anna, "rita") in authors_of_log(anna, kinds=(1, 2)), "but that it joined"
        done = anna.run("revert", str(anna.directory), check=False)
        assert done.returncode == USAGE

        # One who may write again says what it has changed meanwhile.
        (rita.directory / "later.txt").write_text("by rita, later\n")
        wait_for(lambda: local() == {"later.txt": "created"})
        anna.run("role", "rita", "editor", str(anna.directory))
        wait_for((anna.directory / "later.txt").exists)
        wait_for(lambda: local() == {})


def test_who_did_what(tmp_path: Path) -> None:
    with members(tmp_path, "anna", "ben") as (anna, ben):
        follow = subprocess.Popen(
            anna.command("events", "--follow", "--json"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        with follow:
            assert follow.stderr is not None
            assert follow.stderr.readline() == "listening\n"
            save(anna.directory / "by anna.txt", "one\n")
            anna.wait(devices=2)
            save(ben.directory / "by anna.txt", "two\n")
            ben.wait(devices=2)
            (ben.directory / "by anna.txt").rename(ben.directory / "moved.txt")
            ben.wait(devices=2)
            (anna.directory / "moved.txt").unlink()
            anna.wait(devices=2)
            told = anna.run_json("log", str(anna.directory))
            assert all({"time", "device", "action", "path"} <= one.keys() for one in told)
            assert [(one["name"], one["action"], one["path"]) for one in told][:4] == [
                ("anna", "deleted", "moved.txt"),
                ("ben", "moved", "moved.txt"),
                ("ben", "edited", "by anna.txt"),
                ("anna", "created", "by anna.txt"),
            ]
            people = [(one["name"], one["action"], one.get("about")) for one in told][4:]
            assert set(people) == {
                ("ben", "joined", "anna"), ("anna", "invited", "editor"), ("anna", "founded", None),
            }  # fmt: skip
            assert ben.run_json("log", str(ben.directory))[:4] == told[:4]
            (only,) = anna.run_json("log", str(anna.directory / "moved.txt"), "--limit", "1")
            assert only["action"] == "deleted"
            assert follow.stdout is not None
            lines = [json.loads(follow.stdout.readline()) for _ in range(4)]
            assert [(one["kind"], one["action"], one["path"]) for one in lines] == [
                ("deed", "created", "by anna.txt"),
                ("deed", "edited", "by anna.txt"),
                ("deed", "moved", "moved.txt"),
                ("deed", "deleted", "moved.txt"),
            ]
            follow.terminate()


def test_a_spoken_code_lets_a_device_in_and_takes_one_guess(tmp_path: Path) -> None:
    with members(tmp_path, "anna") as (anna,), on_loopback(tmp_path, "ben") as ben:
        (anna.directory / "f.txt").write_text("f\n")
        address = anna.ready_line.rpartition(" ")[2]
        peer = ("--peer", address)
        code = anna.run("invite", str(anna.directory), "--spoken").stdout.strip()
        assert len(code.split("-")) == 3
        wrong = "zoo-zoo-zoo"
        done = ben.run("join", wrong, str(ben.directory), *ben.options, *peer, check=False)
        assert done.returncode == INVITATION, done
        assert "void" in done.stderr
        assert not ben.directory.exists()
        wait_for(lambda: "void" in str(anna.folder()["warnings"]))
        assert anna.run_json("invitations", str(anna.directory)) == [], "and what it stood for"
        # The right words come too late now: strangers are refused again.
        late = ben.command("join", code, str(ben.directory), *ben.options, *peer)
        with subprocess.Popen(late, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            code = anna.run("invite", str(anna.directory), "--spoken").stdout.strip()
            # It keeps asking, and so spends its guess at the new code.
            assert process.wait(60) == INVITATION
        code = anna.run("invite", str(anna.directory), "--spoken", "--role", "reader").stdout
        ben.join(code.strip(), *peer)
        wait_for((ben.directory / "f.txt").exists)
        assert devices(anna)["ben"]["role"] == "reader"
        mistyped = ben.run("join", "ocean-violin-tigr", str(tmp_path / "x"), check=False)
        assert mistyped.returncode == USAGE


def test_an_owner_comes_back_with_nothing_but_the_phrase(tmp_path: Path) -> None:
    with members(tmp_path, "anna", "ben") as (anna, ben), on_loopback(tmp_path, "new") as new:
        (anna.directory / "precious.txt").write_text("precious\n")
        phrase = anna.run("recovery", str(anna.directory)).stdout.strip()
        assert len(phrase.split()) == 24
        anna.wait(devices=2)
        anna.kill()  # the laptop is lost; ben is a mere editor
        peer = ("--peer", ben.ready_line.rpartition(" ")[2])
        words = phrase.split()
        for bad, code in (
            (" ".join(words[:-1]), USAGE),
            (" ".join([*words[:-1], "xyzzy"]), USAGE),
            (RecoveryPhrase(bytes(16), bytes(16)).text, INVITATION),
        ):
            done = new.run("join", bad, str(new.directory), *new.options, *peer, check=False)
            assert done.returncode == code, done
            assert not new.directory.exists()
            assert not any(word in done.stderr.split() for word in words[:12])
        new.join(phrase, *peer)
        wait_for((new.directory / "precious.txt").exists)
        assert devices(new)["new"]["role"] == "owner"
        new.run("remove", "anna", str(new.directory))
        (new.directory / "after.txt").write_text("under a new key\n")
        new.wait(devices=2)
        assert (ben.directory / "after.txt").read_text() == "under a new key\n"
        assert set(devices(ben)) == {"new", "ben"}


def test_folders_that_hold_files_already_are_united_without_sending_them(tmp_path: Path) -> None:
    size = 3_000_000
    with on_loopback(tmp_path, "anna") as anna, on_loopback(tmp_path, "ben") as ben:
        same = random.Random(7).randbytes(size)
        for one in (anna, ben):
            (one.directory / "dir").mkdir(parents=True)
            (one.directory / "same.bin").write_bytes(same)
            (one.directory / "dir" / "small.txt").write_text("the same\n")
            os.utime(one.directory / "dir" / "small.txt", (1e9, 1e9 + (one is ben)))
            (one.directory / f"by {one.name}.txt").write_text(f"by {one.name}\n")
            (one.directory / "both.txt").write_text(f"both, by {one.name}\n")
        (ben.directory / "elsewhere.bin").write_bytes(same[: size // 2])
        (anna.directory / "half.bin").write_bytes(same[: size // 2])
        anna.up()
        proxy = CountingProxy(anna.ready_line.rpartition(":")[2])
        with proxy:
            text = Invitation.from_text(anna.invite())
            by_proxy = replace(text, addresses=(("127.0.0.1", proxy.port),))
            ben.join(by_proxy.text)
            tree = wait_until_equal(
                anna.directory, ben.directory, expected=lambda tree: len(tree) == 9
            )
            ben.wait(devices=2)
        copies = [path for path in tree if "conflict" in path or "(" in path]
        assert len(copies) == 1, "equal files are no conflict, and both contents of both.txt stay"
        texts = {(anna.directory / path).read_text() for path in (*copies, "both.txt")}
        assert texts == {"both, by anna\n", "both, by ben\n"}
        assert proxy.size < 200_000, f"{proxy.size} bytes for what both had"


class CountingProxy:
    """Passes datagrams on between one client and a port on loopback, and counts their bytes."""

    def __init__(self, port: str) -> None:
        self._target = ("127.0.0.1", int(port))
        self._near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._near.bind(("127.0.0.1", 0))
        self._far.bind(("127.0.0.1", 0))
        self.port: int = self._near.getsockname()[1]
        self.size = 0
        self._client: tuple[str, int] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._pass_on)

    def _pass_on(self) -> None:
        while not self._stop.is_set():
            ready, _, _ = select.select([self._near, self._far], [], [], 0.05)
            for one in ready:
                data, sender = one.recvfrom(65_536)
                self.size += len(data)
                if one is self._near:
                    self._client = sender
                    self._far.sendto(data, self._target)
                elif self._client is not None:
                    self._near.sendto(data, self._client)

    def __enter__(self) -> CountingProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._near.close()
        self._far.close()


def id_of(device: Device, name: str) -> str:
    """The device id of the member called `name`, as `device` knows it."""
    return str(devices(device)[name]["device"])


def authors_of_log(device: Device, kinds: tuple[int, ...] = (1,)) -> set[str]:
    """Who signed the entries in a device's log: 1 for the tree, 2 for the roster."""
    (index,) = device.home.glob("folders/*/index.sqlite")
    with contextlib.closing(sqlite3.connect(f"file:{index}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT DISTINCT device, kind FROM log").fetchall()
    return {DeviceId(author).text for author, kind in rows if kind in kinds}


def save(path: Path, text: str) -> None:
    """Save in one step, as one change: the watcher may see a plain write half done."""
    whole = path.parents[1] / f"{path.name}.whole"
    whole.write_text(text)
    whole.replace(path)
