"""Every verb against a real control server over a small node in memory."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from crdt.errors import WorldError
from node.cli import invite as invite_module
from node.cli.main import run
from node.cli.text import local_time_text
from node.control.facade import Event, FolderState, LocalInfo, Role
from node.control.server import serve_control
from tests.support.fake_node import DEEDS, ME, MOMENT, PEER, FakeNode

Shoal = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
async def node(home: Path, tmp_path: Path, nursery: trio.Nursery) -> FakeNode:
    (tmp_path / "folder").mkdir()
    node = FakeNode(str(tmp_path / "folder"))
    await nursery.start(serve_control, node, home)
    return node


@pytest.fixture
def shoal(home: Path, capsys: pytest.CaptureFixture[str]) -> Shoal:
    """Run the CLI off the loop, as another process would; returns code, stdout, stderr."""

    async def call(*arguments: object) -> tuple[int, str, str]:
        words = ["--home", str(home), *map(str, arguments)]
        code = await trio.to_thread.run_sync(run, words)
        out, err = capsys.readouterr()
        return code, out, err

    return call


async def ask_json(shoal: Shoal, *arguments: object) -> Any:
    code, out, _ = await shoal(*arguments, "--json")
    assert code == 0
    assert out.count("\n") == 1
    return json.loads(out)


async def test_status_for_people(node: FakeNode, shoal: Shoal) -> None:
    code, out, err = await shoal("status")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "laptop  AAAAAAA  listening on 0.0.0.0:22071",
        "",
        f"{node.folder.path}  in sync",
        "  3 files, 4.1 kB",
        "  Desk  BBBBBBB  connected, in sync",
    ]


async def test_status_of_a_busy_folder_with_a_hostile_name(node: FakeNode, shoal: Shoal) -> None:
    node.busy()
    code, out, _ = await shoal("status", node.folder.path)
    assert code == 0
    assert out.splitlines()[2:] == [
        f"{node.folder.path}  syncing",
        "  3 files, 4.1 kB",
        "  still to come: 2 files, 1.0 kB",
        "  receiving: 500 B of 1.5 kB (33 %), 1 of 3 files",
        "  1 conflict",
        "  Desk  BBBBBBB  connected, in sync",
        r"  ! a\x1b[31m\xdcff.txt: permission denied",
    ]


async def test_status_says_why_a_folder_stopped(node: FakeNode, shoal: Shoal) -> None:
    node.set_folder(state=FolderState.STOPPED, reason="its root is gone; nothing was deleted")
    _, out, _ = await shoal("status")
    assert "stopped: its root is gone; nothing was deleted" in out
    (folder,) = (await ask_json(shoal, "status"))["folders"]
    assert folder["state"] == "stopped"
    assert folder["reason"] == "its root is gone; nothing was deleted"


async def test_status_json_is_what_scripts_rely_on(node: FakeNode, shoal: Shoal) -> None:
    status = await ask_json(shoal, "status")
    assert status["device"] == ME
    (folder,) = status["folders"]
    assert set(folder) >= {
        "id", "path", "state", "files", "bytes", "needs", "conflicts", "peers"
    }  # fmt: skip
    assert folder["state"] == "in sync"
    assert folder["needs"] == {"files": 0, "bytes": 0}
    assert folder["peers"] == [{"device": PEER, "name": "Desk", "connected": True, "in_sync": True}]


async def test_status_of_a_foreign_directory(node: FakeNode, shoal: Shoal, tmp_path: Path) -> None:
    code, _, err = await shoal("status", tmp_path)
    assert code == 2
    assert "lies in no folder" in err


async def test_invite_stands_alone_on_the_first_line(node: FakeNode, shoal: Shoal) -> None:
    code, out, err = await shoal("invite", node.folder.path)
    assert (code, out, err) == (0, "shoal1-abcd\n", "")
    assert node.invited == [(Role.EDITOR, 1, 86400.0)]


async def test_invite_takes_role_uses_and_expiry(node: FakeNode, shoal: Shoal) -> None:
    words = ["--role", "reader", "--uses", 3, "--expires", "10m"]
    answer = await ask_json(shoal, "invite", node.folder.path, *words)
    assert answer == {
        "invitation": "shoal1-abcd",
        "role": "reader",
        "uses": 3,
        "expires_s": 600.0,
    }
    assert node.invited == [(Role.READER, 3, 600.0)]


async def test_invite_shows_a_qr_code_on_a_terminal(
    node: FakeNode, shoal: Shoal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invite_module, "is_terminal", lambda _: True)
    _, out, _ = await shoal("invite", node.folder.path)
    assert out.splitlines()[0] == "shoal1-abcd"
    assert "▀" in out or "█" in out
    assert "It works once, for 1 day." in out


async def test_the_directory_defaults_to_where_we_are(
    node: FakeNode, shoal: Shoal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "folder" / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "folder" / "deep")
    assert (await shoal("pause"))[0] == 0
    assert node.folder.state is FolderState.PAUSED
    monkeypatch.chdir(tmp_path)
    assert (await shoal("resume"))[0] == 2


async def test_a_symlink_to_the_folder_is_the_folder(
    node: FakeNode, shoal: Shoal, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to("folder")
    code, out, _ = await shoal("pause", tmp_path / "link")
    assert (code, out) == (0, "paused; `shoal resume` goes on\n")


async def test_pause_and_resume_answer_in_json(node: FakeNode, shoal: Shoal) -> None:
    assert await ask_json(shoal, "pause", node.folder.path) == {}
    assert await ask_json(shoal, "resume", node.folder.path) == {}


async def test_devices(node: FakeNode, shoal: Shoal) -> None:
    _, out, _ = await shoal("devices", node.folder.path)
    assert out.splitlines() == [
        f"laptop  owner   this device                    up to date          {ME}",
        f"Desk    editor  not connected                  never seen          {PEER}",
    ]
    devices = await ask_json(shoal, "devices", node.folder.path)
    assert devices[1] == {
        "device": PEER,
        "name": "Desk",
        "person": "Desk",
        "role": "editor",
        "this_device": False,
        "connected": False,
        "last_seen": None,
        "behind": None,
        "may_invite": False,
    }
    assert devices[0]["last_seen"] == MOMENT


async def test_how_a_device_that_was_seen_is_shown(
    node: FakeNode, shoal: Shoal, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.desk = replace(node.desk, last_seen=MOMENT, behind=1)
    _, out, _ = await shoal("devices", node.folder.path)
    assert f"last seen {local_time_text(MOMENT)}" in out
    assert "1 change behind" in out


async def test_remove_role_and_revoke_say_what_they_did(node: FakeNode, shoal: Shoal) -> None:
    directory = node.folder.path
    _, out, _ = await shoal("remove", "Desk", directory)
    assert out.startswith("Removed Desk. ")
    _, out, _ = await shoal("role", "Desk", "reader", directory, "--may-invite")
    assert out == "Desk is reader now, and may invite others.\n"
    assert (await ask_json(shoal, "role", "Desk", "owner", directory))["role"] == "owner"
    _, out, _ = await shoal("revoke", "BCDEFGH", directory)
    assert out == "The invitation BCDEFGH works no more.\n"
    assert node.people == [
        ("remove", "Desk"),
        ("role", "Desk", Role.READER, True),
        ("role", "Desk", Role.OWNER, None),
        ("revoke", "BCDEFGH"),
    ]


async def test_a_role_that_does_not_exist(node: FakeNode, shoal: Shoal) -> None:
    code, _, err = await shoal("role", "Desk", "king", node.folder.path)
    assert code == 2
    assert "owner, editor, reader" in err
    assert node.people == []


async def test_who_did_what(node: FakeNode, shoal: Shoal) -> None:
    _, out, _ = await shoal("log", node.folder.path)
    first, second = out.splitlines()
    assert first == f"{local_time_text(MOMENT)}  laptop  moved b.txt (was a.txt)"
    assert second == f"{local_time_text(MOMENT)}  Desk  joined laptop"
    (only,) = await ask_json(shoal, "log", node.folder.path, "--limit", 1)
    assert {"time", "device", "action", "path"} <= only.keys()
    assert (await shoal("log", node.folder.path, "--limit", 0))[0] == 2


async def test_events(node: FakeNode, shoal: Shoal, nursery: trio.Nursery) -> None:
    async def publish() -> None:
        while not node.bus.listeners:
            await trio.testing.wait_all_tasks_blocked(0.001)
        node.bus.publish(Event("status"))
        node.bus.publish(Event("deed", folder="ab12", deed=DEEDS[0]))
        node.bus.publish(Event("warning", "cannot be read", "ab12", "c.txt"))
        node.bus.close()

    nursery.start_soon(publish)
    _, out, _ = await shoal("events", "--follow", "--json")
    deed, warning = map(json.loads, out.splitlines())
    assert (deed["kind"], deed["action"], deed["path"]) == ("deed", "moved", "b.txt")
    assert warning == {
        "kind": "warning", "text": "cannot be read", "folder": "ab12", "path": "c.txt",
    }  # fmt: skip


async def test_the_hook(node: FakeNode, shoal: Shoal) -> None:
    assert (await shoal("hook", node.folder.path))[1] == "No command is run.\n"
    assert (await shoal("hook", node.folder.path, "--set", "true"))[1] == "true\n"
    assert await ask_json(shoal, "hook", node.folder.path) == {"command": "true"}
    assert (await shoal("hook", node.folder.path, "--set", "x", "--clear"))[0] == 2
    await shoal("hook", node.folder.path, "--clear")
    assert node.command == ""


async def test_local_changes(node: FakeNode, shoal: Shoal) -> None:
    node.set_folder(local=(LocalInfo("a\x1b.txt", "edited"),), role=Role.READER)
    _, out, _ = await shoal("status")
    assert "1 change on this disk alone" in out
    assert "edited: a\\x1b.txt" in out
    _, out, _ = await shoal("revert", node.folder.path)
    assert out.splitlines()[0] == "edited here, thrown away: a.txt"
    answer = await ask_json(shoal, "revert", node.folder.path)
    assert answer["reverted"][1] == {"path": "b.txt", "action": "moved", "was": "c.txt"}


async def test_what_lives_on_this_device(node: FakeNode, shoal: Shoal) -> None:
    path = f"{node.folder.path}/photos"
    _, out, _ = await shoal("select", path, "--off")
    assert out.splitlines() == [
        "not on this device: photos",
        "1 path in it, until another device is known to keep them:",
        "  photos/only here.jpg",
    ]
    _, out, _ = await shoal("select", path, "--on")
    assert out == "All of it lives here.\n"
    answer = await ask_json(shoal, "select", node.folder.path)
    assert answer == {"unselected": ["photos"], "waiting": ["photos/only here.jpg"]}
    code, _, error = await shoal("select", path, "--on", "--off")
    assert code == 2
    assert "nothing was changed" in error
    node.set_folder(unselected=("photos",))
    _, out, _ = await shoal("status")
    assert "not on this device: photos" in out


async def test_invitations(node: FakeNode, shoal: Shoal) -> None:
    _, out, _ = await shoal("invitations", node.folder.path)
    (line,) = out.splitlines()
    assert line.startswith("BCDEFGH  reader  2 of 2 uses left")
    (one,) = await ask_json(shoal, "invitations", node.folder.path)
    assert one["id"] == "BCDEFGH"
    everything = await ask_json(shoal, "invitations", node.folder.path, "--all")
    assert [one["state"] for one in everything] == ["used up", "open"]
    assert everything[0]["joined"] == ["Desk"]


async def test_wait(node: FakeNode, shoal: Shoal) -> None:
    words = ["wait", node.folder.path, "--devices", 2, "--timeout", 5]
    code, out, _ = await shoal(*words)
    assert (code, out) == (0, "2 devices hold the current state\n")
    assert await ask_json(shoal, *words) == {"reached": True, "devices": 2}


async def test_wait_times_out_with_a_code_of_its_own(node: FakeNode, shoal: Shoal) -> None:
    code, out, err = await shoal(
        "wait", node.folder.path, "--devices", 3, "--timeout", 0.01, "--json"
    )
    assert code == 4
    assert json.loads(out) == {"reached": False, "devices": 2}
    assert "2 devices of 3" in err
    assert "Nothing is lost" in err


async def test_verify(node: FakeNode, shoal: Shoal) -> None:
    code, out, _ = await shoal("verify", node.folder.path)
    assert (code, out) == (0, "checked 3 files, 4.1 kB\n")
    node.rot(repaired=True)
    code, out, _ = await shoal("verify", node.folder.path)
    assert (code, out.splitlines()[1]) == (0, "mended: a.txt: wrong content")
    node.rot(repaired=False)
    code, out, _ = await shoal("verify", node.folder.path, "--json")
    assert code == 5
    assert json.loads(out) == {
        "checked": 3,
        "bytes": 4096,
        "damaged": ["a.txt"],
        "repaired": [],
        "details": [{"path": "a.txt", "message": "wrong content", "repaired": False}],
    }


async def test_logs(node: FakeNode, shoal: Shoal) -> None:
    _, out, _ = await shoal("logs", "-n", 2)
    assert out == "line 3\nline 4\n"
    assert await ask_json(shoal, "logs", "-n", 1) == {"lines": ["line 4"]}


async def test_logs_follow_until_the_node_stops(
    node: FakeNode, shoal: Shoal, nursery: trio.Nursery
) -> None:
    async def more() -> None:
        while not node.bus.listeners:
            await trio.testing.wait_all_tasks_blocked(0.01)
        node.bus.publish(Event("status"))
        node.bus.publish(Event("log", "line 5"))
        node.bus.close()

    nursery.start_soon(more)
    code, out, _ = await shoal("logs", "-n", 1, "-f")
    assert (code, out) == (0, "line 4\nline 5\n")


async def test_the_nodes_error_becomes_ours(node: FakeNode, shoal: Shoal) -> None:
    node.failure = WorldError("the disk is full.\nFree some space; nothing was lost.")
    code, out, err = await shoal("pause", node.folder.path)
    assert (code, out) == (30, "")
    assert err == "shoal: the disk is full.\nFree some space; nothing was lost.\n"


async def test_an_error_with_json_is_json(node: FakeNode, shoal: Shoal) -> None:
    node.failure = WorldError("the disk is full")
    code, out, err = await shoal("status", "--json")
    assert code == 30
    assert json.loads(out) == {
        "error": "WorldError",
        "message": "the disk is full",
        "exit_code": 30,
    }
    assert err == "shoal: the disk is full\n"


VERBS = [
    "invite",
    "status",
    "devices",
    "invitations",
    "log",
    "events",
    "hook",
    "wait",
    "verify",
    "pause",
    "resume",
    "logs",
]


@pytest.mark.parametrize("verb", VERBS)
async def test_without_a_node_every_verb_says_so(verb: str, shoal: Shoal) -> None:
    code, _, err = await shoal(verb)
    assert code == 3
    assert "no node is running" in err
    assert "shoal up DIR" in err
