"""People and programs at work on the very files that come in: real nodes, real disks."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Device, two_members
from tests.support.trees import contents, pause, wait_for, wait_until_equal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

LINES = 150
LARGE = 12_000_000  # bytes: some tenths of a second on the way


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Device, Device]]:
    with two_members(tmp_path_factory.mktemp("races")) as devices:
        yield devices


def settle(pair: tuple[Device, Device], *names: str) -> None:
    wait_until_equal(
        *(device.directory for device in pair),
        expected=lambda tree: all(name in tree for name in names),
    )


def test_a_file_that_is_appended_to_all_the_time(pair: tuple[Device, Device]) -> None:
    anna, ben = pair
    theirs = ben.directory / "growing.log"
    seen: list[bytes] = []
    with (anna.directory / "growing.log").open("ab", buffering=0) as log:
        for number in range(LINES):
            log.write(b"line %d of a program that never ends\n" % number)
            if theirs.exists():
                seen.append(theirs.read_bytes())
            pause(0.004)
        settle(pair, "growing.log")
        whole = theirs.read_bytes()
        assert whole.count(b"\n") == LINES
        log.write(b"and one more\n")
        wait_for(lambda: theirs.read_bytes() == whole + b"and one more\n")
    assert any(seen), "it went across while it grew"
    assert all(whole.startswith(part) for part in seen), "no version was a mixture"


def test_an_edit_of_the_old_version_while_the_new_one_is_on_its_way(
    pair: tuple[Device, Device],
) -> None:
    anna, ben = pair
    chance = random.Random(5)
    old, new = chance.randbytes(LARGE), chance.randbytes(LARGE)
    (anna.directory / "large.bin").write_bytes(old)
    settle(pair, "large.bin")
    (anna.directory / "large.bin").write_bytes(new)
    wait_for(lambda: list((ben.directory / ".shoal/tmp").glob("*.part")), say="a transfer")
    with (ben.directory / "large.bin").open("r+b") as file:
        file.write(b"edited by ben while it was coming")
    edited = b"edited by ben while it was coming" + old[33:]
    wait_until_equal(
        anna.directory, ben.directory, expected=lambda _: contents(ben.directory) >= {new, edited}
    )


def test_a_source_that_changes_while_it_is_sent(pair: tuple[Device, Device]) -> None:
    anna, ben = pair
    chance = random.Random(6)
    versions = [chance.randbytes(LARGE // 2) for _ in range(5)]
    seen = set[bytes]()
    target = ben.directory / "restless.bin"
    for version in versions:
        (anna.directory / "restless.bin").write_bytes(version)
        for _ in range(8):
            pause(0.02)
            if target.exists():
                seen.add(target.read_bytes())
    wait_for(lambda: target.exists() and target.read_bytes() == versions[-1])
    assert seen <= set(versions), "what lay there at any time was a whole version"
    settle(pair, "restless.bin")


def test_a_program_that_still_writes_to_the_version_before(pair: tuple[Device, Device]) -> None:
    anna, ben = pair
    (anna.directory / "journal.txt").write_text("one\n")
    settle(pair, "journal.txt")
    with (ben.directory / "journal.txt").open("a") as program:
        (anna.directory / "journal.txt").write_text("one\ntwo, by anna\n")
        wait_for(lambda: "anna" in (ben.directory / "journal.txt").read_text())
        program.write("two, by a program of ben's\n")
        program.flush()
        settle(pair, "journal (recovered).txt")
        program.write("three\n")
    meant = "one\ntwo, by a program of ben's\nthree\n"
    for device in pair:
        path = device.directory / "journal (recovered).txt"
        wait_for(lambda path=path: path.read_text() == meant)  # type: ignore[misc]
    messages = [warning["message"] for warning in ben.folder()["warnings"]]
    assert any("still being written" in message for message in messages)


def test_two_people_save_many_files_in_every_way(pair: tuple[Device, Device]) -> None:
    anna, ben = pair
    (anna.directory / "desk").mkdir()
    settle(pair, "desk")

    def work(device: Device, seed: int) -> None:
        chance = random.Random(seed)
        for number in range(72):
            path = device.directory / "desk" / f"{device.name} {number % 12}.txt"
            save(path, f"{device.name} {number}\n" * chance.randint(1, 2_000), chance)
            pause(0.005)

    threads = [threading.Thread(target=work, args=(one, n)) for n, one in enumerate(pair)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = [f"desk/{device.name} {n}.txt" for device in pair for n in range(12)]
    wait_until_equal(
        anna.directory,
        ben.directory,
        expected=lambda tree: sorted(p for p in tree if p.startswith("desk/")) == sorted(names),
    )
    for device in pair:
        for n in range(12):
            number = 60 + n
            text = (anna.directory / "desk" / f"{device.name} {n}.txt").read_text()
            assert text.startswith(f"{device.name} {number}\n")


def save(path: Path, text: str, chance: random.Random) -> None:
    """In one of the ways in which editors do it."""
    way = chance.choice(["truncate", "rename", "backup", "delete"]) if path.exists() else ""
    if way == "rename":
        temporary = path.with_name(f".{path.name}.swp")
        temporary.write_text(text)
        temporary.replace(path)
        return
    backup = path.with_name(f"{path.name}~")
    if way == "backup":
        path.rename(backup)
    elif way == "delete":
        path.unlink()
    with path.open("w") as file:
        file.write(text[: len(text) // 2])
        file.flush()
        os.sched_yield()
        file.write(text[len(text) // 2 :])
    backup.unlink(missing_ok=True)
