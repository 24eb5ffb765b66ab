"""Rot: other bytes under an unchanged stat, on in-memory disks."""

from __future__ import annotations

import random

from node.files.port import Stat
from node.sync.fresh import FRESH_S
from node.sync.rot import Checked, Rot, Verdict
from node.sync.scrub import NOTE_EVERY_S, NS, PERIOD_S, Scrub
from tests.node.sync.test_two_folders import settle_all
from tests.support.two_folders import Box, InlineThreads, boxes, exchange

CONTENT = random.Random(1).randbytes(600_000)


async def two_with(**files: bytes) -> tuple[Box, Box]:
    a, b = boxes(2)
    for name, content in files.items():
        a.fs.write_file(name, content)
    await settle_all(a, b)
    for box in (a, b):
        box.clock.now_ns += 3600 * NS
        for item in list(box.folder.disk.all_items()):
            box.folder.fresh.discard(item)
    await settle_all(a, b)  # all sure of what they saw
    return a, b


def rot_of(box: Box) -> Rot:
    return Rot(box.folder, box.fs, InlineThreads(), hint=box.dirty.extend)


async def check(box: Box, path: str) -> Checked:
    row = box.folder.disk.resolve(path)
    assert row is not None
    checked = await rot_of(box).check(row.item)
    assert checked is not None
    return checked


async def check_and_mark(box: Box, path: str) -> None:
    checked = await check(box, path)
    row = box.folder.disk.resolve(path)
    assert row is not None
    assert checked.verdict is Verdict.ROTTEN
    rot_of(box).mark(row.item, checked.digest)
    assert list(rot_of(box).damaged()) == [path]


def seqs(*members: Box) -> list[int]:
    return [box.folder.have[box.identity.device] for box in members]


async def test_rot_is_no_edit() -> None:
    a, b = await two_with(large=CONTENT, small=b"small")
    before = seqs(a, b)
    b.fs.rot("large", 300_000, b"rotten")
    b.fs.rot("small", 0, b"S")
    await settle_some(b)
    exchange(a, b)
    await a.settle()
    assert seqs(a, b) == before
    assert a.tree() == {"large": CONTENT, "small": b"small"}


async def settle_some(box: Box) -> None:
    await box.scan()
    await box.apply()
    await box.scan("large", "small")


async def test_rot_is_mended_and_only_what_is_rotten_is_fetched() -> None:
    a, b = await two_with(large=CONTENT, small=b"small")
    before = seqs(a, b)
    b.fs.rot("large", 300_000, b"rotten")
    b.fetched = 0
    await check_and_mark(b, "large")
    assert (await check(b, "small")).verdict is Verdict.SOUND
    await settle_all(a, b)
    assert b.fetched == 1, "one block of several"
    assert b.fs.read_file("large") == CONTENT
    assert list(rot_of(b).damaged()) == []
    b.fs.rot("small", 0, b"S")
    await check_and_mark(b, "small")
    await settle_all(a, b)  # from the log: no peer is needed
    assert b.fs.read_file("small") == b"small"
    assert seqs(a, b) == before, "nobody had anything to say"
    kept = [what for path, what in b.fs.snapshot().items() if path.startswith(".shoal/history/")]
    assert any(isinstance(what, bytes) and b"rotten" in what for what in kept)


async def test_without_a_peer_it_stays_as_it_is_and_is_known() -> None:
    a, b = await two_with(large=CONTENT)
    b.others = []
    b.fs.rot("large", 300_000, b"rotten")
    await check_and_mark(b, "large")
    await b.settle(rounds=3, all_blocks=False)
    assert b.fs.read_file("large")[300_000:300_006] == b"rotten"
    assert b.folder.pending
    assert (await check(b, "large")).verdict is Verdict.ROTTEN, "found again"
    assert list(rot_of(b).damaged()) == ["large"]
    b.others = [a]
    await b.settle()
    assert b.fs.read_file("large") == CONTENT


async def test_an_edit_that_keeps_size_and_mtime_is_no_rot() -> None:
    a, b = await two_with(large=CONTENT)
    with b.fs.open_write("large") as file:
        stamp = file.stat().mtime_ns
        file.write_at(0, b"edited")
        file.set_metadata(mtime_ns=stamp)
    assert (await check(b, "large")).verdict is Verdict.BUSY
    assert b.dirty == ["large"]
    await settle_all(a, b)
    assert a.fs.read_file("large") == b"edited" + CONTENT[6:]


async def test_a_rotten_file_that_is_renamed_or_deleted() -> None:
    a, b = await two_with(large=CONTENT, small=b"small")
    b.others = []
    b.fs.rot("large", 300_000, b"rotten")
    await check_and_mark(b, "large")
    b.fs.rename("large", "renamed")
    await b.settle(rounds=4, all_blocks=False)
    b.others = [a]
    await settle_all(a, b)
    assert a.tree() == {"renamed": CONTENT, "small": b"small"}
    b.fs.rot("small", 0, b"S")
    await check_and_mark(b, "small")
    b.fs.unlink("small")
    await b.scan()
    await settle_all(a, b)
    assert a.tree() == {"renamed": CONTENT}


async def test_a_rotten_file_that_a_person_edits_is_beside_the_sound_one() -> None:
    a, b = await two_with(large=CONTENT)
    b.others = []
    b.fs.rot("large", 300_000, b"rotten")
    await check_and_mark(b, "large")
    b.fs.write_file("large", b"written anew by a person")
    await b.settle(rounds=3, all_blocks=False)
    b.others = [a]
    await settle_all(a, b)
    assert set(a.tree().values()) == {CONTENT, b"written anew by a person"}


async def test_a_write_through_a_mapping_is_an_edit_while_the_file_is_fresh() -> None:
    a, b = await two_with(large=CONTENT)
    with b.fs.open_write("large") as file:
        file.write_at(0, b"edited")
    await b.settle()
    b.clock.now_ns += NS
    await b.settle()
    b.fs.rot("large", 0, b"mapped")
    assert (await check(b, "large")).verdict is Verdict.BUSY
    await settle_all(a, b)
    assert a.fs.read_file("large") == b"mapped" + CONTENT[6:]


# --- the scrub ------------------------------------------------------------------------------------


class Reading:
    """Counts what is read."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.paths: list[str] = []
        self.warnings: dict[str, str] = {}
        self.rot = rot_of(box)
        inner = self.rot.check

        async def counted(item: object) -> Checked | None:
            checked = await inner(item)  # type: ignore[arg-type]
            if checked is not None:
                self.paths.append(checked.path)
            return checked

        self.rot.check = counted  # type: ignore[method-assign]

    def scrub(self) -> Scrub:
        return Scrub(
            self.box.folder, self.rot, allowed=lambda: True, warn=self.warnings.__setitem__
        )


async def test_the_scrub_reads_everything_once_in_a_period() -> None:
    files = {f"f{number}": bytes([number]) * (number * 3_000) for number in range(40)}
    _, b = await two_with(**files)
    reading, now_ns = Reading(b), b.clock.now_ns
    for _ in range(int(1.05 * PERIOD_S / 3600)):
        now_ns += 3600 * NS
        await reading.scrub().step(now_ns)  # a new one: only the index remembers
    counts = {name: reading.paths.count(name) for name in files}
    assert set(counts.values()) <= {1, 2}, counts
    assert sum(counts.values()) <= 44


async def test_the_scrub_does_little_at_a_time() -> None:
    _, b = await two_with(**{f"f{number}": b"x" * 5_000 for number in range(40)})
    reading, now_ns = Reading(b), b.clock.now_ns
    scrub = reading.scrub()
    for _ in range(100):
        now_ns += int(NOTE_EVERY_S * NS)
        await scrub.step(now_ns)
    assert len(reading.paths) <= 2
    await scrub.step(0)  # the clock was set back by years
    assert len(reading.paths) <= 3


async def test_the_scrub_finds_rot_and_lets_it_be_mended() -> None:
    a, b = await two_with(large=CONTENT, small=b"small")
    b.fs.rot("large", 300_000, b"rotten")
    reading, now_ns = Reading(b), b.clock.now_ns
    while "large" not in reading.paths:
        now_ns += 24 * 3600 * NS
        await reading.scrub().step(now_ns)
    assert "without an edit" in reading.warnings["large"]
    await settle_all(a, b)
    assert b.fs.read_file("large") == CONTENT


async def test_what_a_block_could_not_be_read_from_is_looked_at_first() -> None:
    a, b = await two_with(**{f"f{number}": CONTENT for number in range(5)}, large=CONTENT[1:])
    reading = Reading(b)
    scrub = reading.scrub()
    await scrub.step(b.clock.now_ns)
    reading.paths.clear()
    row = b.folder.disk.resolve("large")
    assert row is not None
    b.fs.rot("large", 300_000, b"rotten")
    scrub.suspect(row.item)
    await scrub.step(b.clock.now_ns)
    assert reading.paths == ["large"]
    await settle_all(a, b)
    assert b.fs.read_file("large") == CONTENT[1:]


async def test_what_was_edited_is_read_once_more_when_mappings_are_written_back() -> None:
    a, b = await two_with(large=CONTENT)
    with b.fs.open_write("large") as file:
        file.write_at(0, b"edited")
    await b.settle()
    b.clock.now_ns += NS
    await b.settle()
    reading = Reading(b)
    scrub = reading.scrub()
    row = b.folder.disk.resolve("large")
    assert row is not None
    b.folder.fresh.add(row.item, b.clock.monotonic_s() - FRESH_S - 1)
    b.fs.rot("large", 0, b"mapped")
    await scrub.step(b.clock.now_ns)
    assert reading.paths[0] == "large"
    assert row.item not in b.folder.fresh
    await settle_all(a, b)
    assert a.fs.read_file("large") == b"mapped" + CONTENT[6:]
    assert not reading.warnings


async def test_stats_stay_as_they_were_under_rot() -> None:
    """The premise of all the above."""
    _, b = await two_with(large=CONTENT)
    before: Stat = b.fs.lstat("large")
    b.fs.rot("large", 0, b"rotten")
    assert b.fs.lstat("large") == before
