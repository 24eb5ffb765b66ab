"""The control API end to end: real client, real socket, real server, a small node in memory."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import trio
import trio.testing

from crdt.errors import CallerError, WorldError
from node.control import server
from node.control.address import ControlAddress
from node.control.client import ControlClient
from node.control.errors import ForwardedError, NodeNotRunningError
from node.control.facade import Event, FolderState, Role, Status
from node.control.shapes import from_json, to_json
from tests.support.fake_node import ME, PEER, FakeNode, serving

T = TypeVar("T")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


@pytest.fixture
async def node(home: Path, folder: Path, nursery: trio.Nursery) -> FakeNode:
    node = FakeNode(str(folder))
    await nursery.start(server.serve_control, node, home)
    return node


async def ask(home: Path, question: Callable[[ControlClient], T]) -> T:
    """`question` from another thread, as another program would ask it."""

    def run() -> T:
        with ControlClient(home) as client:
            return question(client)

    return await trio.to_thread.run_sync(run)


async def raw(home: Path, method: str, path: str, **options: Any) -> httpx.Response:
    """A request that no client of ours would send."""
    address = ControlAddress.load(home)
    assert address is not None

    def run() -> httpx.Response:
        with httpx.Client(transport=httpx.HTTPTransport(uds=address.socket)) as client:
            return client.request(method, f"http://shoal{path}", **options)

    return await trio.to_thread.run_sync(run)


async def test_status_arrives_as_it_was_sent(node: FakeNode, home: Path) -> None:
    node.busy()
    assert await ask(home, ControlClient.status) == node.now


async def test_status_has_the_documented_shape(node: FakeNode, home: Path, folder: Path) -> None:
    peer = {"device": PEER, "name": "Desk", "connected": True, "in_sync": True}
    response = await raw(home, "GET", "/status")
    assert response.json() == {
        "device": ME,
        "name": "laptop",
        "listening": "0.0.0.0:22071",
        "folders": [
            {
                "id": "ab12",
                "path": str(folder),
                "state": "in sync",
                "files": 3,
                "bytes": 4096,
                "needs": {"files": 0, "bytes": 0},
                "conflicts": 0,
                "peers": [peer],
                "local": [],
                "unselected": [],
                "warnings": [],
            }
        ],
    }


async def test_invite_defaults_to_one_editor_for_a_day(
    node: FakeNode, home: Path, folder: Path
) -> None:
    response = await raw(home, "POST", "/invite", json={"dir": str(folder)})
    assert response.json() == {"invitation": "shoal1-abcd"}
    assert node.invited == [(Role.EDITOR, 1, 86400.0)]


async def test_pause_resume_devices_verify_logs(node: FakeNode, home: Path, folder: Path) -> None:
    await ask(home, lambda client: client.pause(folder / "inside"))
    assert node.now.folders[0].state is FolderState.PAUSED
    await ask(home, lambda client: client.resume(folder))
    assert node.folder.state == "in sync"
    devices = await ask(home, lambda client: client.devices(folder))
    assert [device.role for device in devices] == [Role.OWNER, Role.EDITOR]
    node.rot(repaired=True)
    assert await ask(home, lambda client: client.verify(folder)) == node.verified
    assert await ask(home, lambda client: client.logs(2)) == ("line 3", "line 4")


async def test_wait_returns_when_enough_devices_hold_the_state(
    node: FakeNode, home: Path, folder: Path, nursery: trio.Nursery
) -> None:
    async def one_more() -> None:
        node.holders = 3
        node.changed.set()

    nursery.start_soon(one_more)
    result = await ask(home, lambda client: client.wait(folder, devices=3, timeout_s=30))
    assert result.reached
    assert result.devices == 3


async def test_wait_says_when_the_time_is_over(node: FakeNode, home: Path, folder: Path) -> None:
    result = await ask(home, lambda client: client.wait(folder, devices=9, timeout_s=0.01))
    assert not result.reached
    assert result.devices == 2


async def test_wait_ends_when_whoever_asked_hangs_up(
    node: FakeNode, home: Path, folder: Path
) -> None:
    address = ControlAddress.load(home)
    assert address is not None
    body = json.dumps({"dir": str(folder), "devices": 9, "timeout_s": 3600}).encode()
    stream = await trio.open_unix_socket(address.socket)
    await stream.send_all(
        b"POST /wait HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    )
    await trio.testing.wait_all_tasks_blocked(0.05)
    await stream.aclose()
    with trio.fail_after(5):
        await node.cancelled.wait()


async def test_an_error_arrives_with_its_text_and_exit_code(node: FakeNode, home: Path) -> None:
    class PeculiarError(WorldError):
        exit_code = 77

    node.failure = ExceptionGroup("from a nursery", [PeculiarError("the disk is full")])
    with pytest.raises(ForwardedError, match=r"^the disk is full$") as caught:
        await ask(home, ControlClient.status)
    assert caught.value.forwarded_exit_code == 77
    assert caught.value.name == "PeculiarError"


@pytest.mark.parametrize(
    "failure",
    [
        KeyError("x"),
        ExceptionGroup("both", [CallerError("no"), KeyError("x")]),
    ],
)
async def test_a_bug_is_named_logged_and_survived(
    node: FakeNode, home: Path, failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    node.failure = failure
    with pytest.raises(ForwardedError, match="This is a bug") as caught:
        await ask(home, ControlClient.status)
    assert caught.value.forwarded_exit_code == 1
    assert "KeyError" in caplog.text
    assert await ask(home, ControlClient.status) == node.now


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/invite", b"", "no JSON"),
        ("/invite", b"[" * 60_000, "no JSON"),
        ("/invite", b"[]", "no JSON object"),
        ("/invite", b"{}", "absolute path"),
        ("/invite", b'{"dir": "relative"}', "absolute path"),
        ("/invite", b'{"dir": "/a\\u0000b"}', "absolute path"),
        ("/invite", b'{"dir": "/a\\ud800b"}', "absolute path"),
        ("/invite", b'{"dir": "/x", "role": "king"}', "a role is one of"),
        ("/invite", b'{"dir": "/x", "role": ["owner"]}', "a role is one of"),
        ("/invite", b'{"dir": "/x", "uses": 0}', "`uses`"),
        ("/invite", b'{"dir": "/x", "uses": true}', "`uses`"),
        ("/invite", b'{"dir": "/x", "expires_s": NaN}', "`expires_s`"),
        ("/invite", b'{"dir": "/x", "expires_s": Infinity}', "`expires_s`"),
        ("/wait", b'{"dir": "/x", "timeout_s": 1}', "`devices`"),
        ("/wait", b'{"dir": "/x", "devices": "2", "timeout_s": 1}', "`devices`"),
        ("/wait", b'{"dir": "/x", "devices": 2, "timeout_s": -1}', "`timeout_s`"),
        ("/history", b'{"dir": "/x"}', "`path` must be an absolute path"),
        ("/restore", b'{"path": "/x", "to": "y"}', "`to` must be an absolute path"),
        ("/restore", b'{"path": "/x", "version": 7}', "`version`"),
        ("/restore", b'{"path": "/x", "at_ms": -1}', "`at_ms`"),
        ("/restore", b'{"path": "/x", "at_ms": 1, "version": "A-1"}', "not both"),
        ("/keep", b'{"dir": "/x", "size": "1GB"}', "`size`"),
        ("/conflict", b'{"path": "x"}', "`path` must be an absolute path"),
        ("/resolve", b'{"path": "/x", "keep": "none"}', "`keep`"),
        ("/resolve", b'{"path": "/x", "keep": "file"}', "`file`"),
        ("/resolve", b'{"path": "/x", "keep": "mine", "file": "/y"}', "`file`"),
        ("/resolve", b'{"path": "/x", "keep": "file", "file": "y"}', "`file`"),
        ("/verify", b"x" * 100_000, "at most 65536 bytes"),
    ],
)
async def test_bad_requests_are_refused(
    node: FakeNode, home: Path, path: str, body: bytes, message: str
) -> None:
    response = await raw(home, "POST", path, content=body)
    assert response.status_code == 400
    assert message in response.json()["message"]
    assert response.json()["exit_code"] == CallerError.exit_code
    assert not node.invited
    assert not node.resolved


async def test_foreign_directories_paths_and_methods(node: FakeNode, home: Path) -> None:
    with pytest.raises(ForwardedError, match="Nothing was changed"):
        await ask(home, lambda client: client.devices(Path("/elsewhere")))
    assert (await raw(home, "GET", "/nothing")).status_code == 404
    assert (await raw(home, "GET", "/pause")).status_code == 405
    assert (await raw(home, "GET", "/logs?lines=0")).status_code == 400
    assert (await raw(home, "GET", "/logs?lines=x")).status_code == 400


async def test_events_stream_until_the_node_ends_them(node: FakeNode, home: Path) -> None:
    def listen() -> list[Event]:
        with ControlClient(home) as client:
            return list(client.events())

    events = []

    async def run() -> None:
        events.extend(await trio.to_thread.run_sync(listen))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        while not node.bus.listeners:
            await trio.testing.wait_all_tasks_blocked(0.01)
        node.bus.publish(Event("log", "two\nlines"))
        node.bus.publish(Event("status", folder="ab12"))
        node.bus.close()
    assert events == [Event("log", "two\nlines"), Event("status", folder="ab12")]


async def test_a_listener_that_goes_away_is_forgotten(node: FakeNode, home: Path) -> None:
    address = ControlAddress.load(home)
    assert address is not None
    async with await trio.open_unix_socket(address.socket) as stream:
        await stream.send_all(b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200" in await stream.receive_some()
        assert node.bus.listeners == 1
    with trio.fail_after(5):
        while node.bus.listeners:
            node.bus.publish(Event("status"))
            await trio.testing.wait_all_tasks_blocked(0.01)


async def test_localhost_needs_the_token(node: FakeNode, home: Path) -> None:
    address = ControlAddress.load(home)
    assert address is not None
    token = (home / "control.token").read_text()
    url = f"http://{address.http}/status"

    def get(headers: dict[str, str]) -> httpx.Response:
        return httpx.get(url, headers=headers, trust_env=False)

    assert (await trio.to_thread.run_sync(get, {})).status_code == 401
    wrong = {"authorization": f"Bearer {token[:-1]}x"}
    assert (await trio.to_thread.run_sync(get, wrong)).status_code == 401
    right = {"authorization": f"Bearer {token}"}
    answer = await trio.to_thread.run_sync(get, right)
    assert from_json(Status, answer.json()) == node.now


async def test_files_are_private_and_go_away(home: Path, folder: Path) -> None:
    node = FakeNode(str(folder))
    async with serving(node, home):
        modes = {path.name: path.stat().st_mode & 0o777 for path in home.iterdir()}
    assert modes == {"control.sock": 0o600, "control.json": 0o600, "control.token": 0o600}
    assert {path.name for path in home.iterdir()} == {"control.token"}
    with pytest.raises(NodeNotRunningError, match="no node is running"):
        ControlClient(home)


async def test_a_dead_nodes_socket_is_replaced(home: Path, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home / "control.sock"))
    ControlAddress(str(home / "control.sock"), "127.0.0.1:1").save(home)
    with pytest.raises(NodeNotRunningError, match="no node is running"):
        await ask(home, ControlClient.status)
    node = FakeNode(str(folder))
    async with serving(node, home):
        assert await ask(home, ControlClient.status) == node.now


async def test_a_file_in_the_sockets_place_is_left_alone(home: Path, folder: Path) -> None:
    (home / "control.sock").write_text("mine")
    with pytest.raises(ExceptionGroup) as caught:
        async with serving(FakeNode(str(folder)), home):
            pass
    assert caught.group_contains(WorldError, match="control socket")
    assert (home / "control.sock").read_text() == "mine"


async def test_a_home_with_a_long_path_is_served_elsewhere(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / "r"
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    home = tmp_path / ("long" * 30)
    home.mkdir()
    node = FakeNode(str(folder))
    async with serving(node, home):
        assert await ask(home, ControlClient.status) == node.now
        address = ControlAddress.load(home)
        assert address is not None
        place = Path(address.socket)
        assert home not in place.parents
        assert place.parent.stat().st_mode & 0o777 == 0o700
    assert not place.exists()


async def test_a_stuck_reader_does_not_keep_the_node_from_stopping(
    home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SEND_TIMEOUT_S", 0.1)
    node = FakeNode(str(folder))
    with trio.fail_after(5):
        async with serving(node, home):
            address = ControlAddress.load(home)
            assert address is not None
            stream = await trio.open_unix_socket(address.socket)
            await stream.send_all(b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b"200" in await stream.receive_some()
            for _ in range(200):
                node.bus.publish(Event("log", "x" * 20_000))
            await trio.testing.wait_all_tasks_blocked(0.01)
        await stream.aclose()


async def test_a_client_that_has_hung_up_takes_no_place(
    home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 4)
    node = FakeNode(str(folder))
    async with serving(node, home):
        for _ in range(6):
            assert await ask(home, ControlClient.status) == node.now


def test_shapes_refuse_what_does_not_fit() -> None:
    good = to_json(FakeNode("/x").now)
    assert from_json(Status, {**good, "new": 1}) == FakeNode("/x").now
    bad: object
    for bad in (None, [], {}, {**good, "name": 3}, {**good, "folders": {}}, {"device": "x"}):
        with pytest.raises(ValueError, match=r"expected|not a"):
            from_json(Status, bad)
    with pytest.raises(ValueError, match="dozing"):
        from_json(FolderState, "dozing")
