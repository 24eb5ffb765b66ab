"""Devices that are never awake together, and a relay that always is: real processes on loopback.

The long story, in namespaces and with kills, is in `test_relay_story.py`.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from node.control.client import ControlClient
from tests.support.processes import Device, on_loopback
from tests.support.relays import RelayProcess, add
from tests.support.trees import snapshot, wait_until_equal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

NOISE = random.Random(11)


def fill(directory: Path) -> None:
    """A small tree: inline files, files of one block, one of many, and what has no content."""
    (directory / "deep/er").mkdir(parents=True)
    (directory / "empty").mkdir()
    (directory / "note.txt").write_text("a note\n")
    (directory / "deep/one.bin").write_bytes(NOISE.randbytes(20_000))
    (directory / "deep/er/many.bin").write_bytes(NOISE.randbytes(3_000_000))
    (directory / "text.txt").write_text("line after line\n" * 5_000)
    (directory / "link").symlink_to("note.txt")


def awake_alone(device: Device, *, holders: int = 2) -> None:
    """Run until the relay durably has all that this device has, then stop."""
    device.up()
    device.wait(devices=holders)
    assert device.stop() == 0


def test_devices_that_are_never_awake_together(tmp_path: Path) -> None:
    with (
        RelayProcess(tmp_path, "relay", policy="token") as relay,
        on_loopback(tmp_path, "anna") as anna,
        on_loopback(tmp_path, "ben") as ben,
        on_loopback(tmp_path, "cleo") as cleo,
    ):
        relay.up()
        anna.directory.mkdir()
        fill(anna.directory)
        anna.up()
        wrong = anna.run(
            "relay", "add", relay.address, str(anna.directory), "--token", "wrong", "--json",
            check=False,
        )  # fmt: skip
        assert wrong.returncode == 16
        assert "the token is wrong" in json.loads(wrong.stdout)["message"]
        assert relay.counter("wrong_tokens_total") == 1
        add(anna, relay, relay.token)
        anna.wait(devices=2)
        invitation, another = anna.invite(), anna.invite()
        anna.wait(devices=2)
        assert anna.stop() == 0

        ben.join(invitation)  # by the relay alone
        wait_until_equal(anna.directory, ben.directory)
        (ben.directory / "note.txt").write_text("by ben, while anna slept\n")
        (ben.directory / "deep/new.bin").write_bytes(NOISE.randbytes(100_000))
        (ben.directory / "text.txt").unlink()
        (ben.directory / "deep/er").rename(ben.directory / "moved")
        ben.wait(devices=2)
        assert ben.stop() == 0

        (anna.directory / "note.txt").write_text("by anna, while ben slept\n")
        awake_alone(anna)
        meant = snapshot(anna.directory)
        assert "moved/many.bin" in meant
        assert len([path for path in meant if path.startswith("note")]) == 2
        ben.up()
        wait_until_equal(anna.directory, ben.directory, expected=meant)
        ben.wait(devices=2)
        assert ben.stop() == 0

        cleo.join(another)
        wait_until_equal(cleo.directory, anna.directory, expected=meant)
        used_up = ben.run("join", another, str(tmp_path / "dora"), "--no-lan", check=False)
        assert used_up.returncode == 11
        assert relay.stop() == 0


def test_a_relay_that_has_not_everything_does_not_count(tmp_path: Path) -> None:
    with (
        RelayProcess(tmp_path, "relay") as relay,
        on_loopback(tmp_path, "anna") as anna,
    ):
        relay.up()
        anna.up()
        add(anna, relay)
        anna.wait(devices=2)
        assert relay.stop() == 0
        (anna.directory / "later.bin").write_bytes(NOISE.randbytes(50_000))
        with ControlClient(anna.home) as client:
            result = client.wait(anna.directory, devices=2, timeout_s=1.0)
        assert not result.reached
        (peer,) = anna.folder()["peers"]
        assert not peer["in_sync"]
        relay.up()
        anna.wait(devices=2)
        assert relay.only_folder()["blocks"] >= 1
