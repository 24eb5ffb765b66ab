"""What the signed entries tell of who did what."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from crdt.errors import CallerError
from crdt.roster_make import removal_ops
from node.activity.deeds import Deed, deeds_of
from node.activity.hook import Hook
from node.sync.effects import settle_effects
from tests.support.two_folders import Box, boxes, exchange


def told(box: Box) -> list[tuple[str, str, str, str | None]]:
    """Everything in the log, the oldest first: who, what, where, from where."""
    folder = box.folder
    found: list[Deed] = []
    for arrival, time_ms in reversed(folder.log.by_time()):
        found += deeds_of(folder, folder.log.at(arrival), time_ms)
    return [(folder.name_of(d.device), d.action, d.path, d.was) for d in found if d.path]


async def test_creations_edits_moves_and_deletions() -> None:
    a, b = boxes(2)
    a.fs.write_file("f", b"one")
    await a.settle()
    exchange(a, b)
    await b.settle()
    b.fs.write_file("f", b"two")
    await b.settle()
    b.fs.mkdir("d")
    b.fs.rename("f", "d/g")
    await b.settle()
    exchange(a, b)
    await a.settle()
    a.fs.write_file("d/g", b"three")
    await a.settle()
    a.fs.unlink("d/g")
    await a.settle()
    exchange(a, b)
    expected = [
        ("box 1", "created", "f", None),
        ("box 2", "edited", "f", None),
        ("box 2", "created", "d", None),
        ("box 2", "moved", "d/g", "f"),
        ("box 1", "edited", "d/g", None),
        ("box 1", "deleted", "d/g", None),
    ]
    for box in (a, b):
        assert sorted(told(box)) == sorted(expected)
        assert [t for t in told(box) if t[2] != "d"] == [t for t in expected if t[2] != "d"]


async def test_people_and_entries_without_effect() -> None:
    a, b, c = boxes(3)
    exchange(a, b, c)
    device = c.identity.device
    ops = removal_ops(
        a.folder.roster, a.folder.keys, device, position=a.folder.log.position(device),
        epoch_secret=a.random.bytes(32), seed=a.random.bytes(32), now_s=0,
    )  # fmt: skip
    a.folder.commit_roster(ops)
    settle_effects(a.folder)
    c.fs.write_file("late", b"late")
    await c.settle()
    exchange(b, c)
    a.take_from(b)
    assert told(a) == []
    folder = a.folder
    every = [
        deed
        for arrival, time_ms in folder.log.by_time()
        for deed in deeds_of(folder, folder.log.at(arrival), time_ms)
    ]
    assert {(d.action, d.about) for d in every} == {
        ("founded", None), ("added", "box 2"), ("added", "box 3"), ("removed", "box 3"),
    }  # fmt: skip


# --- the hook -------------------------------------------------------------------------------------


async def test_the_hook_hears_facts_and_no_shell_does(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = tmp_path / "script"
    script.write_text('#!/bin/sh\nprintf "%s|%s\\n" "$SHOAL_ACTION" "$SHOAL_PATH" >> "$1"\n')
    script.chmod(0o755)
    hook = Hook(tmp_path)
    hook.set(f"'{script}' '{out}'")
    nasty = "$(touch pwned); `id`"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hook.serve)
        hook.tell({"action": "edited", "path": nasty})
        hook.tell({"action": "deleted", "path": "b"})
        with trio.fail_after(10):
            await hook.ran.wait_past(1)
        nursery.cancel_scope.cancel()
    assert out.read_text() == f"edited|{nasty}\ndeleted|b\n"
    assert Hook(tmp_path).command == hook.command, "remembered"


async def test_a_hook_that_cannot_run_is_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hook = Hook(tmp_path)
    hook.tell({"action": "edited"})  # none is set
    with pytest.raises(CallerError, match="nothing was changed"):
        hook.set("an 'open quote")
    assert hook.command == ""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hook.serve)
        for command in ("/does/not/exist", "false"):
            hook.set(command)
            seen = hook.ran.count
            hook.tell({})
            with trio.fail_after(10):
                await hook.ran.wait_past(seen)
        nursery.cancel_scope.cancel()
    assert "cannot be run" in caplog.text
    assert "failed with 1" in caplog.text
