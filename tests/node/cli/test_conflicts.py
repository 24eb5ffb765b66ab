"""`conflicts`, `conflicts show` and `resolve`, against a real server over a small node."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from node.cli.main import run
from node.cli.text import local_time_text
from node.control.facade import Keep
from node.control.server import serve_control
from tests.support.fake_node import ME, MOMENT, PEER, FakeNode

Shoal = Callable[..., Awaitable[tuple[int, str, str]]]
WHEN = local_time_text(MOMENT)


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


async def test_the_list_for_people(node: FakeNode, shoal: Shoal) -> None:
    for words in (("conflicts",), ("conflicts", "list")):
        code, out, err = await shoal(*words, node.folder.path)
        assert (code, err) == (0, "")
        assert out.splitlines()[:-1] == [
            "note.md",
            f"  now      {WHEN}  laptop",
            f"  copy     {WHEN}  Desk  note (conflict BBBBBBB).md",
            f"  before   {WHEN}  Desk",
        ]
    node.in_conflict = ()
    assert await shoal("conflicts", node.folder.path) == (0, "no conflicts\n", "")


async def test_the_list_as_json_is_what_scripts_rely_on(node: FakeNode, shoal: Shoal) -> None:
    copy = {"path": "note (conflict BBBBBBB).md", "device": PEER, "name": "Desk", "time": MOMENT}
    for words in (("conflicts", node.folder.path, "--json"),
                  ("conflicts", "--json", node.folder.path)):  # fmt: skip
        code, out, _ = await shoal(*words)
        assert code == 0
        assert json.loads(out) == [
            {
                "path": "note.md",
                "device": ME,
                "name": "laptop",
                "time": MOMENT,
                "copies": [copy],
                "ancestor": {**copy, "path": "note.md"},
            }
        ]


async def test_show_compares_with_what_both_were_made_from(node: FakeNode, shoal: Shoal) -> None:
    code, out, _ = await shoal("conflicts", "show", f"{node.folder.path}/note.md")
    assert code == 0
    lines = out.splitlines()
    assert f"--- made from  (Desk, {WHEN})" in lines
    assert f"+++ note.md  (laptop, {WHEN})" in lines
    assert f"+++ note (conflict BBBBBBB).md  (Desk, {WHEN})" in lines
    assert lines.count("-b") == 2
    assert {"+mine", "+theirs"} <= set(lines)


async def test_show_without_a_common_version(node: FakeNode, shoal: Shoal) -> None:
    (one,) = node.in_conflict
    node.in_conflict = (replace(one, ancestor=None),)
    _, out, _ = await shoal("conflicts", "show", f"{node.folder.path}/note.md")
    assert {"-mine", "+theirs"} <= set(out.splitlines())


async def test_resolve_hands_over_what_to_keep(
    node: FakeNode, shoal: Shoal, tmp_path: Path
) -> None:
    path = f"{node.folder.path}/note.md"
    for words in ("mine", "theirs", "both", str(tmp_path / "mine")):
        code, out, _ = await shoal("conflicts", "resolve", path, "--keep", words)
        assert (code, out) == (0, "resolved note.md\n")
    assert node.resolved == [
        (path, Keep.MINE, None),
        (path, Keep.THEIRS, None),
        (path, Keep.BOTH, None),
        (path, Keep.FILE, str(tmp_path / "mine")),
    ]
    _, out, _ = await shoal("conflicts", "resolve", path, "--keep", "mine", "--json")
    assert json.loads(out) == {"paths": ["note.md"], "complete": True}


async def test_what_makes_no_sense_is_refused(node: FakeNode, shoal: Shoal) -> None:
    assert (await shoal("conflicts", "resolve", node.folder.path))[0] == 2
    assert (await shoal("conflicts", "show"))[0] == 2
    assert (await shoal("conflicts", "/elsewhere"))[0] == 2
    assert (await shoal("conflicts", "--help"))[0] == 0
