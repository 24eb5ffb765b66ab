"""Looking after a relay: backups, restores, rot, and a disk that is full. Real processes."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from node.relay.backup import COPIED_MARK
from tests.support.processes import Device, on_loopback
from tests.support.relays import RelayProcess, add
from tests.support.trees import pause, snapshot, wait_until_equal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

NOISE = random.Random(31)


def again(device: Device) -> None:
    """Restart a device: it would notice only after 20 s that a relay is another one."""
    assert device.stop() == 0
    device.up()


def warned(device: Device, words: str) -> bool:
    return any(words in one["message"] for one in device.folder()["warnings"])


def free_tcp_address() -> str:
    """HOST:PORT on loopback that nobody listens on right now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def wait_until(what: Callable[[], object]) -> None:
    """Ask until it is so; the test's own time limit is the only one."""
    while not what():
        pause(0.1)


def rot(relay: RelayProcess) -> None:
    """Flip a byte in every 100,000 of what a relay keeps."""
    for pack in (relay.home / "packs").iterdir():
        with pack.open("r+b") as file:
            for at in range(50_000, pack.stat().st_size, 100_000):
                file.seek(at)
                byte = file.read(1)
                file.seek(at)
                file.write(bytes([byte[0] ^ 1]))


def test_yesterdays_backup_and_rotten_packs(tmp_path: Path) -> None:
    backup, metrics = tmp_path / "backup", free_tcp_address()
    with (
        RelayProcess(tmp_path, "relay", options=("--metrics", metrics)) as relay,
        on_loopback(tmp_path, "anna") as anna,
        on_loopback(tmp_path, "ben") as ben,
    ):
        relay.up()
        anna.directory.mkdir()
        (anna.directory / "old.bin").write_bytes(NOISE.randbytes(700_000))
        anna.up()
        add(anna, relay)
        invitation = anna.invite()
        anna.wait(devices=2)
        copied = relay.run_json("relay", "backup", str(backup))
        assert copied["copied"] >= 700_000
        (anna.directory / "new.bin").write_bytes(NOISE.randbytes(700_000))
        (anna.directory / "new.txt").write_text("after the backup\n")
        anna.wait(devices=2)
        blocks = relay.only_folder()["blocks"]
        told = httpx.get(f"http://{metrics}/metrics", trust_env=False).text.splitlines()
        assert f"shoal_relay_blocks_stored_total {blocks}" in told
        assert "# TYPE shoal_relay_blocks_scrubbed_total counter" in told
        assert [line for line in told if line.startswith("shoal_relay_folder_blocks{")]
        relay.kill()

        shutil.rmtree(relay.home)
        relay.run("relay", "restore", str(backup))
        assert (relay.home / COPIED_MARK).exists()
        twice = relay.run("relay", "restore", str(backup), check=False)
        assert twice.returncode == 2
        relay.up()
        again(anna)
        wait_until(lambda: warned(anna, "has forgotten entries"))
        anna.wait(devices=2)
        assert relay.only_folder()["blocks"] == blocks
        checked = relay.run_json("relay", "check")
        assert (checked["blocks"], checked["damaged_blocks"]) == (blocks, [])

        assert relay.stop() == 0
        rot(relay)
        found = relay.run("relay", "check", check=False)  # stopped
        assert found.returncode == 5, found.stdout + found.stderr
        assert "damaged, and forgotten: block" in found.stdout
        relay.up()
        again(anna)
        anna.wait(devices=2)
        assert relay.run_json("relay", "check")["blocks"] == blocks
        assert anna.stop() == 0
        ben.join(invitation)
        wait_until_equal(anna.directory, ben.directory, expected=snapshot(anna.directory))


@contextlib.contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """A disk of its own."""
    directory.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", f"size={size}", "shoal-test", str(directory))
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs root and tmpfs")
    try:
        yield directory
    finally:
        subprocess.run(("umount", str(directory)), check=True)


def test_a_full_disk(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", "5m") as disk,
        RelayProcess(disk, "relay") as relay,
        on_loopback(tmp_path, "anna") as anna,
        on_loopback(tmp_path, "ben") as ben,
    ):
        relay.log = tmp_path / "relay.log"
        relay.up()
        anna.up()
        add(anna, relay)
        invitation = anna.invite()
        (anna.directory / "small.bin").write_bytes(NOISE.randbytes(500_000))
        anna.wait(devices=2)
        (anna.directory / "large.bin").write_bytes(NOISE.randbytes(9_000_000))
        wait_until(lambda: warned(anna, "the relay's disk is full"))
        assert relay.counter("deposits_over_quota_total")
        assert not anna.folder()["peers"][0]["in_sync"]
        relay.kill()  # just then
        relay.up()
        subprocess.run(("mount", "-o", "remount,size=64m", str(disk)), check=True)
        again(anna)
        anna.wait(devices=2)
        assert not warned(anna, "is full")
        assert relay.run_json("relay", "check")["damaged_blocks"] == []
        assert anna.stop() == 0
        ben.join(invitation)
        wait_until_equal(anna.directory, ben.directory, expected=snapshot(anna.directory))
