"""A large file of which a little changes, between real nodes on a real disk.

It is changed in place (or in a clone, where the disk has clones): what the receiver reads and
writes follows the change. Then the receiver is killed again and again in the middle of it, found by
the journal that lies in `.shoal/tmp`, and each time has the old or the new version after a start.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import blake3
import pytest

from tests.support.processes import Device, members
from tests.support.trees import pause, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.kills, pytest.mark.timeout(2000)]

MIB = 1024 * 1024
SIZE = int(os.environ.get("SHOAL_LARGE_MIB", "300")) * MIB
KILLS = 8
KILLS_MAX = 60  # until one of them met a journal that was whole: on a busy machine that is chance
PATIENCE_S = 120.0 + SIZE // MIB / 5
POLL_S = 0.002  # another process's disk can only be looked at


def digest(path: Path) -> str:
    return blake3.blake3(max_threads=2).update_mmap(path).hexdigest()


def make(path: Path) -> None:
    chance = random.Random(1)
    with path.with_name(".shoal-tmp-making").open("wb") as file:
        for _ in range(SIZE // MIB):
            file.write(chance.randbytes(MIB))
    path.with_name(".shoal-tmp-making").rename(path)


def change(path: Path, places: list[int], data: bytes) -> None:
    with path.open("r+b") as file:
        for place in places:
            file.seek(place)
            file.write(data)


def input_output(device: Device) -> dict[str, int]:
    lines = Path(f"/proc/{device.pid}/io").read_text().splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


def test_four_bytes_cost_little(tmp_path: Path) -> None:
    with members(tmp_path, "anna", "ben") as (anna, ben):
        mine, theirs = anna.directory / "big", ben.directory / "big"
        make(mine)
        anna.wait(devices=2, timeout_s=PATIENCE_S)
        ben.wait(devices=2, timeout_s=PATIENCE_S)  # it has looked at what it wrote
        inode, before = theirs.stat().st_ino, input_output(ben)
        began = time.monotonic()
        change(mine, [SIZE // 2], b"edit")
        wanted = digest(mine)
        anna.wait(devices=2, timeout_s=PATIENCE_S)
        took_s = time.monotonic() - began
        after = input_output(ben)
        read, written = (after[name] - before[name] for name in ("rchar", "wchar"))
        print(f"{SIZE // MIB} MiB: {took_s:.2f} s, {read:,} bytes read, {written:,} written")
        assert digest(theirs) == wanted
        same = theirs.stat().st_ino == inode
        print("in place" if same else "in a clone")
        assert written < 8 * MIB
        assert read < 16 * MIB
        versions = ben.run_json("history", str(theirs))["versions"]
        assert len(versions) == 2
        assert versions[1]["available"]
        old = ben.directory / "old"
        ben.run("restore", str(theirs), "--version", versions[1]["version"], "--to", str(old))
        change(old, [SIZE // 2], b"edit")
        assert digest(old) == wanted, "the old version, but for the change"


def test_killed_in_the_middle_it_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    chance = random.Random(2)
    with members(tmp_path, "anna", "ben") as (anna, ben):
        mine, theirs = anna.directory / "big", ben.directory / "big"
        make(mine)
        anna.wait(devices=2, timeout_s=PATIENCE_S)
        inode, turn, in_the_middle = theirs.stat().st_ino, 0, 0
        while turn < KILLS or (not in_the_middle and turn < KILLS_MAX):
            turn += 1
            # Forty stretches far apart: long enough to be met.
            places = [SIZE // 40 * n + chance.randrange(SIZE // 80) for n in range(40)]
            change(mine, places, b"turn %d" % turn)
            in_the_middle += kill_in_the_middle(ben, theirs, chance)
            ben.up()
            anna.wait(devices=2, timeout_s=PATIENCE_S)
            assert digest(theirs) == digest(mine), turn
        print(f"{turn} kills, {in_the_middle} with a journal that was whole")
        assert in_the_middle, "the journal was never met"
        assert theirs.stat().st_ino == inode, "in place"
        assert sorted(os.listdir(ben.directory)) == [".shoal", "big"]
        tmp = ben.directory / ".shoal" / "tmp"
        # The version is complete before what it was made from is cleared away.
        wait_for(lambda: not os.listdir(tmp), timeout_s=PATIENCE_S, say=f"{tmp} is not empty")


def kill_in_the_middle(device: Device, file: Path, chance: random.Random) -> bool:
    """Kill the device soon after its journal appears; True if that was whole by then."""
    tmp = device.directory / ".shoal" / "tmp"
    before = file.stat().st_ctime_ns
    deadline = time.monotonic() + PATIENCE_S
    while not (journals := list(tmp.glob("*.patch"))):
        if file.stat().st_ctime_ns != before:
            break  # it came and went between two looks
        assert time.monotonic() < deadline, f"no journal\n{device.tail()}"
        pause(POLL_S)
    until = time.monotonic() + chance.uniform(0, 0.06)
    while time.monotonic() < until and file.stat().st_ctime_ns == before:
        pause(POLL_S / 4)
    device.kill()
    return bool(journals) and journals[0].exists() and file.stat().st_ctime_ns != before
