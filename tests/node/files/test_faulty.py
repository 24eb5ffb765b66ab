from __future__ import annotations

import errno
import random

import pytest

from node.files.faulty import Crash, Fault, FaultPlan, FaultyFileSystem, Operation
from node.files.memory import MemoryFileSystem


def fails_with(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, check=lambda error: error.errno == number)


def test_the_chosen_operation_fails_and_the_others_do_not() -> None:
    plan = FaultPlan([Fault(errno.EACCES, Operation.LSTAT, "d", nth=2, times=2)])
    fs = FaultyFileSystem(MemoryFileSystem(), plan)
    fs.mkdir("d")
    fs.create("d/f").close()
    fs.create("dd").close()
    fs.lstat("d/f")
    fs.lstat("dd")
    for _ in range(2):
        with fails_with(errno.EACCES):
            fs.lstat("d/f")
    fs.lstat("d")
    assert plan.counts[Operation.LSTAT] == 5
    assert plan.operations == 8


def test_a_full_disk_takes_half() -> None:
    inner = MemoryFileSystem()
    plan = FaultPlan([Fault(errno.ENOSPC, Operation.FILE_WRITE_AT)])
    with FaultyFileSystem(inner, plan).create("f") as file:
        with fails_with(errno.ENOSPC):
            file.write_at(0, b"12345678")
        assert inner.read_file("f") == b"1234"
        file.write_at(0, b"12345678")
    assert inner.read_file("f") == b"12345678"


def test_after_a_crash_nothing_happens_any_more() -> None:
    inner = MemoryFileSystem()
    fs = FaultyFileSystem(inner, FaultPlan([Fault(None, Operation.RENAME, after=True)]))
    file = fs.create("f")
    with pytest.raises(Crash):
        fs.rename("f", "g")
    assert list(inner.snapshot()) == ["g"]
    for act in (lambda: fs.unlink("g"), lambda: file.write_at(0, b"xx"), lambda: fs.lstat("g")):
        with pytest.raises(Crash):
            act()
    file.close()
    assert inner.snapshot() == {"g": b""}


def test_a_failed_fsync_loses_the_data_for_good() -> None:
    lost = 0
    for seed in range(30):
        inner = MemoryFileSystem()
        fs = FaultyFileSystem(inner, FaultPlan([Fault(errno.EIO, Operation.FILE_FSYNC)]))
        with fs.create("f") as file:
            file.write_at(0, b"data")
            with fails_with(errno.EIO):
                file.fsync()
            file.fsync()
        fs.fsync_directory("")
        inner.power_cut(random.Random(seed))
        lost += inner.read_file("f") != b"data"
    assert lost
