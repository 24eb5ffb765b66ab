"""A device's home that comes out of a backup, and one that runs twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.processes import Device, members, on_loopback
from tests.support.trees import wait_for, wait_until_equal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def warned(device: Device, words: str) -> bool:
    return words in str(device.folder()["warnings"])


def test_a_home_from_an_old_backup_forks_nothing(tmp_path: Path) -> None:
    with members(tmp_path, "anna", "ben") as (anna, ben):
        (ben.directory / "before.txt").write_text("before the backup\n")
        ben.wait(devices=2)
        ben.stop()
        backup = tmp_path / "backup"
        shutil.copytree(ben.home, backup, copy_function=shutil.copy2)
        ben.up()
        (ben.directory / "since.txt").write_text("since the backup\n")
        (ben.directory / "before.txt").write_text("changed since the backup\n")
        wait_for((anna.directory / "since.txt").exists)
        ben.wait(devices=2)
        ben.stop()
        shutil.rmtree(ben.home)
        shutil.copytree(backup, ben.home, copy_function=shutil.copy2)

        # Nobody else is there: it could only write what it had written otherwise already.
        anna.stop()
        (ben.directory / "today.txt").write_text("today\n")
        ben.up()
        assert warned(ben, "home is a copy")
        refused = ben.run("invite", str(ben.directory), check=False)
        assert refused.returncode == 2
        anna.up()
        wait_for((anna.directory / "today.txt").exists, timeout_s=60, say=ben.tail())
        tree = wait_until_equal(anna.directory, ben.directory)
        assert set(tree) == {"before.txt", "since.txt", "today.txt"}, "no conflict, nothing lost"
        assert (anna.directory / "before.txt").read_text() == "changed since the backup\n"
        assert warned(ben, "nothing is lost")
        assert not warned(anna, "a fork")
        assert not warned(ben, "a fork")
        # It has its place again.
        ben.stop()
        ben.up()
        assert not warned(ben, "home is a copy")


def test_two_copies_that_both_write_are_found_and_named(tmp_path: Path) -> None:
    with members(tmp_path, "anna", "ben") as (anna, ben):
        (ben.directory / "both.txt").write_text("both\n")
        ben.wait(devices=2)
        ben.stop()
        # A snapshot of a whole machine: the copy does not notice that it is one.
        shutil.copytree(ben.home, tmp_path / "aside")
        shutil.copytree(ben.directory, tmp_path / "aside files", symlinks=True)
        anna.stop()
        (ben.directory / "by the one.txt").write_text("the one\n")
        ben.up()
        ben.wait(devices=1)
        ben.stop()
        one_home, one_files = tmp_path / "one home", tmp_path / "one files"
        # The home is put back as it was in place, so its files are the ones that it knows.
        shutil.copytree(ben.home, one_home)
        shutil.copytree(ben.directory, one_files, symlinks=True)
        for path in (tmp_path / "aside").rglob("*"):
            if path.is_file():
                target = ben.home / path.relative_to(tmp_path / "aside")
                target.write_bytes(path.read_bytes())
        for left in ben.home.rglob("*.sqlite-*"):
            left.unlink()
        (ben.directory / "by the one.txt").unlink()
        (ben.directory / "by the other.txt").write_text("the other\n")
        anna.up()
        ben.up()
        wait_for((anna.directory / "by the other.txt").exists, timeout_s=60, say=ben.tail())
        ben.stop()
        # Now the first one meets what the second one wrote in its place.
        shutil.rmtree(ben.home)
        one_home.rename(ben.home)
        shutil.rmtree(ben.directory)
        one_files.rename(ben.directory)
        ben.up()
        wait_for(lambda: warned(anna, "two different entries"), timeout_s=60, say=anna.tail())
        wait_for(lambda: warned(ben, "another copy of this device"), timeout_s=60, say=ben.tail())
        assert warned(anna, "shoal remove")
        assert (ben.directory / "by the one.txt").read_text() == "the one\n"
        assert (anna.directory / "by the other.txt").read_text() == "the other\n"
        # The way out that both are told.
        again = on_loopback(tmp_path, "ben-again")
        with again:
            shutil.copytree(
                ben.directory,
                again.directory,
                symlinks=True,
                ignore=shutil.ignore_patterns(".shoal"),
            )
            again.join(anna.invite())
            anna.run("remove", "ben", str(anna.directory))
            wait_for((anna.directory / "by the one.txt").exists, timeout_s=60)
