"""`history`, `restore`, `trash` and `keep` against a real control server over a small node."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from node.cli.main import run
from node.cli.text import local_time_text
from node.control.server import serve_control
from tests.support.fake_node import ME, MOMENT, PEER, FakeNode

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
    async def call(*arguments: object) -> tuple[int, str, str]:
        words = ["--home", str(home), *map(str, arguments)]
        code = await trio.to_thread.run_sync(run, words)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def path_in(node: FakeNode, name: str) -> str:
    return f"{node.folder.path}/{name}"


async def test_history_for_people(node: FakeNode, shoal: Shoal) -> None:
    code, out, err = await shoal("history", path_in(node, "a.txt"))
    assert (code, err) == (0, "")
    when = local_time_text(MOMENT)
    assert out.splitlines() == [
        f"AAAAAAA-7   {when}       12 B  laptop  (current)",
        f"BBBBBBB-12  {when}       11 B  Desk  (not available)",
        "1 version not available here or from a connected device; others may have them",
    ]


async def test_history_json_is_what_scripts_rely_on(node: FakeNode, shoal: Shoal) -> None:
    _, out, _ = await shoal("history", path_in(node, "a.txt"), "--json")
    answer = json.loads(out)
    assert answer["path"] == "a.txt"
    first, second = answer["versions"]
    assert first == {
        "version": "AAAAAAA-7",
        "time": MOMENT,
        "device": ME,
        "name": "laptop",
        "size": 12,
        "deleted": False,
        "available": True,
        "current": True,
    }
    assert (second["device"], second["available"]) == (PEER, False)


async def test_restore_takes_a_version_a_time_or_a_place(node: FakeNode, shoal: Shoal) -> None:
    path = path_in(node, "gone/a.txt")
    assert (await shoal("restore", path))[:2] == (0, "restored a.txt\n")
    await shoal("restore", path, "--version", "AAAAAAA-7", "--to", path_in(node, "b.txt"))
    _, out, _ = await shoal("restore", path, "--at", MOMENT, "--json")
    assert json.loads(out) == {"paths": ["a.txt"], "complete": True}
    assert node.restored == [
        (path, None, None, None),
        (path, "AAAAAAA-7", None, path_in(node, "b.txt")),
        (path, None, 1_795_250_973_123, None),
    ]


@pytest.mark.parametrize(
    "options", [["--at", "yesterday"], ["--at", "2h", "--version", "X-1"], ["--at"]]
)
async def test_a_restore_that_makes_no_sense(
    options: list[str], node: FakeNode, shoal: Shoal
) -> None:
    code, _, err = await shoal("restore", path_in(node, "a.txt"), *options)
    assert code == 2
    assert "Error" in err
    assert node.restored == []


async def test_a_symlink_is_named_itself_not_what_it_leads_to(
    node: FakeNode, shoal: Shoal, tmp_path: Path
) -> None:
    (tmp_path / "folder" / "link").symlink_to("/elsewhere")
    await shoal("restore", path_in(node, "link"))
    assert node.restored[0][0] == path_in(node, "link")


async def test_trash(node: FakeNode, shoal: Shoal) -> None:
    _, out, _ = await shoal("trash", node.folder.path)
    assert out == f"{local_time_text(MOMENT)}        5 B  Desk  old\\x1b[31m.txt\n"
    _, out, _ = await shoal("trash", node.folder.path, "--json")
    (gone,) = json.loads(out)
    assert gone.items() >= {"path": "old\x1b[31m.txt", "time": MOMENT, "device": PEER}.items()
    assert (gone["size"], gone["kind"]) == (5, "file")


async def test_keep_shows_and_sets(node: FakeNode, shoal: Shoal) -> None:
    _, out, _ = await shoal("keep", node.folder.path)
    assert out.splitlines() == [
        "every version for 30 days, then one a day up to 365 days",
        "at most 20% of the folder or 10.0 GB, whichever is larger: 10.0 GB",
        "kept now: 2 versions, 500 B",
    ]
    options = ["--all", "7d", "--daily", "60d", "--percent", "50", "--size", "1.5GB"]
    _, out, _ = await shoal("keep", node.folder.path, *options, "--json")
    answer = json.loads(out)
    assert (answer["all_s"], answer["daily_s"]) == (604800, 5184000)
    assert (answer["share"], answer["size"]) == (0.5, 1_500_000_000)
    code, _, err = await shoal("keep", node.folder.path, "--size", "much")
    assert code == 2
    assert "write 500MB" in err


@pytest.mark.parametrize("verb", [["history", "a"], ["restore", "a"], ["trash"], ["keep"]])
async def test_without_a_node_every_verb_says_so(verb: list[str], shoal: Shoal) -> None:
    code, _, err = await shoal(*verb)
    assert code == 3
    assert "no node is running" in err
