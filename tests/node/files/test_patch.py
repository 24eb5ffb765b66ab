"""Changing a file in place: the journal, and what a crash at any byte leaves."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.ids import BlockId
from crdt.slot import BlockRef
from crdt.version_vector import EMPTY
from node.files.memory import MemoryFileSystem
from node.files.patch import (
    After,
    Before,
    Patch,
    Stretch,
    carry_out,
    differing,
    finish,
    mend,
    read_journal,
    take_back,
    touched,
    write_journal,
)

SIZE = 20_000


def a_patch(stretches: tuple[Stretch, ...], new_size: int) -> Patch:
    before = Before(b"b" * 32, 7, SIZE, 1, 2)
    return Patch(before, After(b"a" * 32, EMPTY, new_size, 5_000, True), stretches)


class Bench:
    """An old file, the new bytes, and the journal, on a disk in memory."""

    def __init__(self, stretches: tuple[Stretch, ...], new_size: int) -> None:
        chance = random.Random(1)
        self.fs = MemoryFileSystem()
        self.patch = a_patch(stretches, new_size)
        self.old = chance.randbytes(SIZE)
        new = bytearray(self.old[:new_size].ljust(new_size, b"\0"))
        for one in stretches:
            new[one.offset : one.offset + one.new] = chance.randbytes(one.new)
        self.new = bytes(new)
        self.fs.write_file("file", self.old)
        self.fs.write_file("part", self.new)
        with (
            self.fs.create("journal") as journal,
            self.fs.open_read("file") as file,
            self.fs.open_read("part") as part,
        ):
            write_journal(journal, self.patch, file, part)

    def finish(self) -> bool:
        with self.fs.open_read("journal") as journal, self.fs.open_write("file") as file:
            found = read_journal(journal)
            assert found is not None
            assert found[0] == self.patch
            return finish(file, *found, journal)

    @property
    def file(self) -> bytes:
        return self.fs.read_file("file")


SHAPES = {
    "within": ((Stretch(1000, 3000, 3000), Stretch(9000, 700, 700)), SIZE),
    "at the end": ((Stretch(19_000, 1000, 1000),), SIZE),
    "longer": ((Stretch(500, 10, 10), Stretch(18_000, 2000, 9000)), 27_000),
    "appended": ((Stretch(SIZE, 0, 5000),), SIZE + 5000),
    "shorter": ((Stretch(5000, 2000, 2000), Stretch(12_000, 8000, 0)), 12_000),
}


@pytest.fixture(params=list(SHAPES.values()), ids=list(SHAPES))
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(*request.param)


def test_carried_out_and_taken_back(bench: Bench) -> None:
    with bench.fs.open_write("file") as file, bench.fs.open_read("part") as part:
        carry_out(file, bench.patch, part)
        assert bench.file == bench.new
        assert file.stat().mtime_ns == 5_000
        assert file.stat().executable
        with bench.fs.open_read("journal") as journal:
            take_back(file, bench.patch, journal)
    assert bench.file == bench.old


def test_finished_from_a_crash_at_any_byte(bench: Bench) -> None:
    # Everything up to some byte is written, in the order of the stretches, and the size may be set.
    total = sum(one.new for one in bench.patch.stretches)
    for written in range(0, total + 1, 97):
        state, left = bytearray(bench.old), written
        for one in bench.patch.stretches:
            now = min(left, one.new)
            state[one.offset : one.offset + now] = bench.new[one.offset : one.offset + now]
            left -= now
        for size in {len(state), bench.patch.after.size} if written == total else {len(state)}:
            bench.fs.write_file("file", bytes(state[:size].ljust(size, b"\0")))
            assert bench.finish()
            assert bench.file == bench.new, written


def test_finished_from_any_sectors_that_a_power_cut_left(bench: Bench) -> None:
    for seed in range(40):
        chance = random.Random(seed)
        size = chance.choice([len(bench.old), len(bench.new)])
        state = bytearray(bench.old[:size].ljust(size, b"\0"))
        for one in bench.patch.stretches:
            for start in range(one.offset, min(one.offset + one.new, size), 512):
                end = min(start + 512, one.offset + one.new, size)
                if chance.random() < 0.5:
                    state[start:end] = bench.new[start:end]
        bench.fs.write_file("file", bytes(state))
        assert bench.finish()
        assert bench.file == bench.new, seed


def test_what_somebody_wrote_after_the_crash_stays() -> None:
    bench = Bench(*SHAPES["within"])
    bench.fs.write_file("file", bench.old[:2000] + b"somebody's" + bench.old[2010:])
    assert not bench.finish()
    assert b"somebody's" in bench.file
    assert bench.file[9000:9700] == bench.new[9000:9700], "the rest is finished"


def test_what_somebody_appended_after_the_crash_stays(bench: Bench) -> None:
    bench.fs.write_file("file", bench.old + b"more" * 5000)
    assert not bench.finish()
    assert bench.file.endswith(b"more" * 50)


def test_what_somebody_wrote_where_the_end_was_cut_off_stays() -> None:
    bench = Bench(*SHAPES["shorter"])
    bench.fs.write_file("file", bench.old[:19_000] + b"somebody's" + bench.old[19_010:])
    assert not bench.finish()
    assert b"somebody's" in bench.file


def test_half_a_journal_is_none(bench: Bench) -> None:
    whole = bench.fs.read_file("journal")
    for size in [*range(0, len(whole), 499), len(whole) - 1]:
        bench.fs.write_file("journal", whole[:size])
        with bench.fs.open_read("journal") as journal:
            assert read_journal(journal) is None
    for place in range(0, len(whole), 501):
        bench.fs.write_file(
            "journal", whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        )
        with bench.fs.open_read("journal") as journal:
            assert read_journal(journal) is None


@given(st.binary(max_size=2000), st.binary(min_size=1, max_size=2000), st.integers(0, 2000))
def test_old_then_new_bytes_become_new_ones(old: bytes, new: bytes, cut: int) -> None:
    old = old[: len(new)]
    filled = old.ljust(
        len(new), b"\0"
    )  # where only later bytes were written, a hole reads as zeros
    for now in (new[:cut] + old[cut:], filled[:cut] + new[cut:], old, new, old[:cut]):
        assert mend(now, old, new) == new


def refs(*sizes: int, salt: int = 0) -> list[tuple[BlockRef, int]]:
    found, offset = [], 0
    for number, size in enumerate(sizes):
        block = BlockId(bytes([number, salt * (number == salt)]) * 16)
        found.append((BlockRef(block, size), offset))
        offset += size
    return found


def test_where_blocks_differ() -> None:
    old, new = refs(100, 200, 300, 400), refs(100, 200, 300, 400, salt=2)
    assert differing(old, old, 1000, 1000) == ()
    assert differing(old, new, 1000, 1000) == (Stretch(300, 300, 300),)
    assert touched(old, [(300, 300)]) == [old[2]]
    assert touched(old, [(299, 2), (999, 1)]) == [old[1], old[2], old[3]]
    assert differing(old, refs(100, 200, 300, 400, 50), 1000, 1050) == (Stretch(1000, 0, 50),)
    assert differing(old, refs(100, 200), 1000, 300) == (Stretch(300, 700, 0),)
    assert touched(old, [(300, 700)]) == [old[2], old[3]]
