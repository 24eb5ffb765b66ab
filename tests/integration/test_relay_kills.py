"""`kill -9` of a relay: of its storage alone, and among members.

A few kills of the storage in `make test`, of whole relays in `make test-kills`; a hundred each with
`make relay-kills`.
"""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from node.ports import SystemRandom, TrioThreads
from node.relay.sqlite_storage import SqliteStorage
from tests.support.processes import Device, free_port, on_loopback
from tests.support.relay_churn import FOLDER, deposit
from tests.support.relays import RelayProcess, add
from tests.support.trees import pause, snapshot, wait_until_equal

STORAGE_KILLS = int(os.environ.get("SHOAL_RELAY_KILLS", "3"))
PROCESS_KILLS = int(os.environ.get("SHOAL_RELAY_KILLS", "2"))
SEED = 20_261_122

pytestmark = [pytest.mark.slow, pytest.mark.timeout(max(240, 30 * PROCESS_KILLS))]


# --- the storage alone ----------------------------------------------------------------------------


class Model:
    """What a storage may and must hold, by what its process said."""

    def __init__(self) -> None:
        self.must: set[int] = set()
        self.may: set[int] = set()
        self.next = 0

    def heard(self, line: str) -> None:
        """One line of `relay_churn`."""
        what, *words = line.split()
        numbers = set(map(int, words))
        if what in {"put", "wanted"}:
            self.must |= numbers
            self.may -= numbers
        elif what == "dropping":
            self.must -= numbers
            self.may |= numbers
        self.next = max([self.next, *(number + 5 for number in numbers)])


def live(directory: Path, model: Model, seed: int, lines: int) -> None:
    """One life of a storage: killed after it has said so many lines, wherever it is by then."""
    command = [sys.executable, "-m", "tests.support.relay_churn"]
    arguments = [str(directory), str(model.next), str(seed)]
    with subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdout is not None
        for _ in range(lines):
            model.heard(process.stdout.readline())
        process.kill()
        for line in process.stdout:  # what it still had said
            if line.endswith("\n"):
                model.heard(line)


async def problems(directory: Path, model: Model) -> list[str]:
    """What is not as it was said."""
    storage = SqliteStorage(directory, TrioThreads(2), SystemRandom())
    await storage.folders()
    found = []
    lost = (await storage.scrub(b"", 2**40)).lost
    found += [f"damaged: {block}" for _, block in lost]
    for number in sorted(model.must | model.may):
        meant = deposit(number)
        got = await storage.get(FOLDER, meant.block)
        if got is None and number in model.must:
            found.append(f"lost: {number}")
        elif got is not None and got != meant:
            found.append(f"changed: {number}")
        elif got is None:
            model.may.discard(number)
    usage = await storage.usage(FOLDER)
    with sqlite3.connect(directory / "relay.sqlite") as db:
        rows = db.execute("SELECT count(*), total(size) FROM blocks").fetchone()
        ends = dict(db.execute("SELECT pack, max(offset + size) FROM blocks GROUP BY pack"))
    db.close()
    if (usage.blocks, usage.block_bytes) != (rows[0], int(rows[1])):
        found.append(f"counted {usage}, there is {rows}")
    found += [
        f"nobody needs {path.name}"
        for path in (directory / "packs").iterdir()
        if int(path.stem) not in ends
    ]
    storage.close()
    return found


def test_a_storage_that_is_killed_keeps_what_it_said(tmp_path: Path) -> None:
    model, chance = Model(), random.Random(SEED)
    for kill in range(STORAGE_KILLS):
        live(tmp_path, model, SEED + kill, chance.randint(1, 60))
        found = trio.run(problems, tmp_path, model)
        assert not found, f"after kill {kill}, seed {SEED + kill}: {found}"
    assert model.must


# --- among members --------------------------------------------------------------------------------


def edits(chance: random.Random, device: Device, number: int) -> Iterator[None]:
    """Small and large files, new, replaced, renamed and deleted; of one person, in one place."""
    place = device.directory / device.name
    place.mkdir(exist_ok=True)
    while True:
        files = sorted(path for path in place.iterdir() if path.is_file())
        size = chance.choice((10, 3_000, 20_000, 400_000))
        path = chance.choice([place / f"{chance.randrange(30)}.bin", *files])
        what = chance.random()
        if what < 0.7 or not files:
            new = device.directory.parent / f"{device.name}.new"
            new.write_bytes(chance.randbytes(size))
            new.rename(path)
        elif what < 0.85:
            chance.choice(files).rename(place / f"moved {number} {chance.randrange(10**9)}.bin")
        else:
            chance.choice(files).unlink()
        yield


@pytest.mark.kills
def test_a_relay_that_is_killed_between_members(tmp_path: Path) -> None:
    """Uploads and downloads go on all the time. The members are restarted with the relay, since
    they would notice only after 20 s that it is another one.
    """
    chance = random.Random(SEED)
    with (
        RelayProcess(tmp_path, "relay") as relay,
        on_loopback(tmp_path, "anna") as anna,
        on_loopback(tmp_path, "ben") as ben,
        on_loopback(tmp_path, "cleo") as cleo,
    ):
        relay.up()
        anna.up()
        add(anna, relay)
        invitation, another = anna.invite(), anna.invite()
        anna.wait(devices=2)
        assert anna.stop() == 0
        ben.join(invitation)
        anna.options = ("--no-lan", "--listen", f"127.0.0.1:{free_port()}")  # ben knows another
        anna.up()
        people = [edits(random.Random(SEED + n), d, n) for n, d in enumerate((anna, ben))]
        for _ in range(PROCESS_KILLS):
            for person in people:
                for _ in range(chance.randint(1, 12)):
                    next(person)
            pause(chance.uniform(0, 0.8))  # whenever: nothing rests on it
            relay.kill()
            for device in (anna, ben):
                device.kill()
                next(people[device is ben])
            relay.up()
            anna.up()
            ben.up()
        wait_until_equal(anna.directory, ben.directory, timeout_s=120)
        anna.wait(devices=2, timeout_s=120)
        ben.wait(devices=2, timeout_s=120)
        meant = snapshot(anna.directory)
        assert anna.stop() == ben.stop() == 0
        checked = relay.run_json("relay", "check")
        assert not checked["damaged_blocks"]
        assert not checked["damaged_entries"]
        cleo.join(another)
        wait_until_equal(cleo.directory, anna.directory, expected=meant, timeout_s=120)
