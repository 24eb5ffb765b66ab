"""A part of a folder on a device: what leaves one disk stays everywhere else."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Device, members
from tests.support.trees import snapshot, wait_for, wait_until_equal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

USAGE = 2


def select(device: Device, path: str, option: str) -> dict[str, Any]:
    """What `shoal select PATH --on` or `--off` answers."""
    answer = device.run_json("select", str(device.directory / path), option)
    assert isinstance(answer, dict)
    return answer


def is_away(device: Device, path: str) -> None:
    """Wait until nothing at `path` is on this disk."""
    wait_for(lambda: not (device.directory / path).exists(), timeout_s=60, say=device.tail())


def fill(directory: Path) -> None:
    """A tree with large and small files, below `photos` and beside it."""
    (directory / "photos" / "2026" / "raw").mkdir(parents=True)
    (directory / "photos" / "large.bin").write_bytes(random.Random(1).randbytes(300_000))
    (directory / "photos" / "2026" / "small.txt").write_text("small\n")
    (directory / "photos" / "2026" / "raw" / "one.bin").write_bytes(bytes(5_000))
    (directory / "photos" / "link").symlink_to("large.bin")
    (directory / "notes.txt").write_text("notes\n")


def test_what_is_unselected_leaves_this_disk_and_no_other(tmp_path: Path) -> None:
    with members(tmp_path, "anna", "ben") as (anna, ben):
        fill(anna.directory)
        anna.wait(devices=2)
        whole = snapshot(anna.directory)
        for bad, why in (
            ("", "whole folder"),
            ("notes.txt", "no directory"),
            ("nowhere", "no such directory"),
        ):
            done = ben.run("select", str(ben.directory / bad), "--off", check=False)
            assert (done.returncode, why in done.stderr) == (USAGE, True), done
            assert "nothing was changed" in done.stderr
        assert select(ben, "photos", "--off")["unselected"] == ["photos"]
        is_away(ben, "photos")
        assert snapshot(anna.directory) == whole, "nobody deleted anything"
        assert ben.folder()["unselected"] == ["photos"]
        done = ben.run("select", str(ben.directory / "photos/2026"), "--on", check=False)
        assert "Select that first" in done.stderr

        # Life goes on, there and here; what changes where it does not live does not come.
        (anna.directory / "photos" / "2026" / "small.txt").write_text("changed\n")
        (anna.directory / "photos" / "later.txt").write_text("later\n")
        (anna.directory / "photos" / "2026" / "raw").rename(anna.directory / "photos" / "moved")
        (ben.directory / "by ben.txt").write_text("ben\n")
        wait_for((anna.directory / "by ben.txt").exists)
        (anna.directory / "mark").write_text("mark\n")
        wait_for((ben.directory / "mark").exists)
        assert {path.name for path in ben.directory.iterdir()} == {
            ".shoal", "notes.txt", "by ben.txt", "mark",
        }  # fmt: skip
        # Out of it, into it: a move across the border.
        (anna.directory / "photos" / "moved").rename(anna.directory / "moved")
        (anna.directory / "notes.txt").rename(anna.directory / "photos" / "notes.txt")
        wait_for((ben.directory / "moved" / "one.bin").exists)
        is_away(ben, "notes.txt")
        # A full scan after a restart takes nothing for deleted.
        whole = snapshot(anna.directory)
        ben.kill()
        ben.up()
        (ben.directory / "after.txt").write_text("after\n")
        wait_for((anna.directory / "after.txt").exists)
        after = snapshot(anna.directory)
        assert {path: after.get(path) for path in whole} == whole
        assert not (ben.directory / "photos").exists()
        # Whoever counts devices that hold it all does not count this one.
        done = anna.run("wait", str(anna.directory), "--timeout", "1", check=False)
        assert done.returncode == 4

        assert select(ben, "photos", "--on")["unselected"] == []
        wait_until_equal(anna.directory, ben.directory, expected=after)
        anna.wait(devices=2)


def test_a_directory_made_where_another_one_is_hidden(tmp_path: Path) -> None:
    with members(tmp_path, "anna", "ben") as (anna, ben):
        fill(anna.directory)
        anna.wait(devices=2)
        select(ben, "photos", "--off")
        is_away(ben, "photos")
        made = ben.directory.parent / "made"
        made.mkdir()
        (made / "new.txt").write_text("new\n")
        made.rename(ben.directory / "photos")
        beside = "photos (also here)"
        wait_for((anna.directory / beside / "new.txt").exists, say=ben.tail())
        wait_for((ben.directory / beside / "new.txt").exists)
        is_away(ben, "photos")
        # A directory that lived here already, under the hidden one's name.
        (ben.directory / beside).rename(ben.directory / "photos")
        (ben.directory / "mark").write_text("mark\n")
        wait_for((anna.directory / "mark").exists)
        wait_for((ben.directory / beside / "new.txt").exists, say=ben.tail())
        (ben.directory / "photos").write_text("a file\n")
        wait_for(lambda: sum(p.name.startswith("photos") for p in anna.directory.iterdir()) == 3)
        select(ben, "photos", "--on")
        tree = wait_until_equal(
            anna.directory, ben.directory, expected=lambda tree: "photos/large.bin" in tree
        )
        assert {"photos/2026/small.txt", f"{beside}/new.txt"} <= tree.keys()
        assert len([path for path in tree if path.endswith("new.txt")]) == 1


def test_only_what_another_device_keeps_leaves(tmp_path: Path) -> None:
    with members(tmp_path, "anna", "ben") as (anna, ben):
        fill(anna.directory)
        anna.wait(devices=2)
        # Nobody else has it.
        ben.stop()
        (anna.directory / "photos" / "only here.txt").write_text("only here\n")
        anna.wait(devices=1)
        answer = select(anna, "photos", "--off")
        assert "photos/only here.txt" in answer["waiting"] or not answer["waiting"]
        wait_for(
            lambda: any(
                "only here.txt" in path
                for path in anna.run_json("select", str(anna.directory))["waiting"]
            )
        )
        anna.kill()
        anna.up()
        assert (anna.directory / "photos" / "only here.txt").read_text() == "only here\n"
        ben.up()
        is_away(anna, "photos")
        assert (ben.directory / "photos" / "only here.txt").read_text() == "only here\n"
        assert (ben.directory / "photos" / "large.bin").stat().st_size == 300_000

        # Whoever comes last keeps it all, however quick it is.
        select(ben, "photos", "--off")
        wait_for(lambda: len(ben.run_json("select", str(ben.directory))["waiting"]) == 5)
        assert (ben.directory / "photos" / "large.bin").exists()
        # What is edited meanwhile is synced, and stays as well.
        (ben.directory / "photos" / "2026" / "small.txt").write_text("edited\n")
        (ben.directory / "mark").write_text("mark\n")
        wait_for((anna.directory / "mark").exists)
        assert (ben.directory / "photos" / "2026" / "small.txt").read_text() == "edited\n"
        assert not (anna.directory / "photos").exists()
        # Somebody takes it: it may go here.
        select(anna, "photos", "--on")
        wait_for((anna.directory / "photos" / "only here.txt").exists)
        is_away(ben, "photos")
        assert (anna.directory / "photos" / "2026" / "small.txt").read_text() == "edited\n"
        assert (anna.directory / "photos" / "large.bin").stat().st_size == 300_000


def test_two_who_unselect_at_the_same_moment(tmp_path: Path) -> None:
    with members(tmp_path, "anna", "ben") as (anna, ben):
        fill(anna.directory)
        anna.wait(devices=2)
        import subprocess

        from tests.support.processes import ROOT

        commands = [
            one.command("select", str(one.directory / "photos"), "--off") for one in (anna, ben)
        ]
        running = [subprocess.Popen(c, cwd=ROOT, stdout=subprocess.DEVNULL) for c in commands]
        assert [one.wait(60) for one in running] == [0, 0]

        def keeper() -> list[Device]:
            return [one for one in (anna, ben) if (one.directory / "photos" / "large.bin").exists()]

        for name in ("mark 1", "mark 2"):
            (anna.directory / name).write_text("mark\n")
            wait_for((ben.directory / name).exists)
        assert keeper()
        (anna.directory / "photos").mkdir(exist_ok=True)
        for one in (anna, ben):
            select(one, "photos", "--on")
        wait_until_equal(
            anna.directory,
            ben.directory,
            expected=lambda tree: {"photos/large.bin", "photos/2026/raw/one.bin"} <= tree.keys(),
        )
