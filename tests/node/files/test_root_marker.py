from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from node.files.disk import DiskFileSystem
from node.files.faulty import Crash, Fault, FaultPlan, FaultyFileSystem, Operation
from node.files.memory import MemoryFileSystem
from node.files.root_marker import (
    DamagedRootMarkerError,
    RootId,
    RootState,
    check_root,
    create_root_marker,
    make_layout,
    read_root_marker,
)

ROOT = RootId(bytes(range(16)))
OTHER = RootId(bytes(16))


def made() -> MemoryFileSystem:
    fs = MemoryFileSystem()
    create_root_marker(fs, ROOT)
    return fs


def test_a_marker_is_read_back_and_survives_any_power_cut() -> None:
    assert read_root_marker(MemoryFileSystem()) is None
    for seed in range(50):
        fs = made()
        fs.power_cut(random.Random(seed))
        assert read_root_marker(fs) == ROOT


def test_a_crash_while_marking_leaves_no_half_marker() -> None:
    clean = FaultPlan()
    create_root_marker(FaultyFileSystem(MemoryFileSystem(), clean), ROOT)
    for nth in range(1, clean.operations + 1):
        inner = MemoryFileSystem()
        with pytest.raises(Crash):
            create_root_marker(FaultyFileSystem(inner, FaultPlan([Fault(None, nth=nth)])), ROOT)
        inner.power_cut(random.Random(nth))
        assert read_root_marker(inner) in (None, ROOT)
        if read_root_marker(inner) is None:
            create_root_marker(inner, ROOT)
        assert read_root_marker(inner) == ROOT


def test_a_marker_is_never_overwritten() -> None:
    fs = made()
    with pytest.raises(FileExistsError):
        create_root_marker(fs, OTHER)
    assert read_root_marker(fs) == ROOT


@pytest.mark.parametrize(
    "content", [b"", b"shoal root 1\n", b"\xff" * 100, b"shoal root 1\n" + b"0" * 32 + b"\nbad\n"]
)
def test_a_damaged_marker(content: bytes) -> None:
    fs = made()
    fs.write_file(".shoal/root", content)
    with pytest.raises(DamagedRootMarkerError):
        read_root_marker(fs)
    assert check_root(fs, ROOT, had_files=False).state is RootState.DAMAGED


def test_every_flipped_bit_is_noticed() -> None:
    fs = made()
    whole = fs.read_file(".shoal/root")
    for i in range(len(whole) * 8):
        broken = bytearray(whole)
        broken[i // 8] ^= 1 << i % 8
        fs.write_file(".shoal/root", bytes(broken))
        with pytest.raises(DamagedRootMarkerError):
            read_root_marker(fs)


def test_the_layout_is_private_and_nothing_of_others_is_used() -> None:
    fs = made()
    for path in (".shoal", ".shoal/tmp", ".shoal/store", ".shoal/history"):
        assert fs.lstat(path).permissions == 0o700
    make_layout(fs)
    trap = MemoryFileSystem()
    trap.symlink("/etc", ".shoal")
    with pytest.raises(NotADirectoryError):
        make_layout(trap)


def test_verdicts() -> None:
    fs = made()
    assert check_root(fs, ROOT, had_files=False).state is RootState.OK
    assert check_root(fs, ROOT, had_files=True).state is RootState.EMPTIED
    assert check_root(fs, OTHER, had_files=True).state is RootState.DIFFERENT
    fs.write_file("f", b"")
    assert check_root(fs, ROOT, had_files=True).state is RootState.OK
    fs.unlink(".shoal/root")
    missing = check_root(fs, ROOT, had_files=True)
    assert missing.state is RootState.MISSING
    assert "Nothing was deleted" in missing.message


def test_errors_prove_nothing() -> None:
    for operation in (Operation.OPEN_READ, Operation.SCANDIR, Operation.FILE_READ_AT):
        plan = FaultPlan([Fault(errno.EIO, operation)])
        with pytest.raises(OSError, check=lambda error: error.errno == errno.EIO):
            check_root(FaultyFileSystem(made(), plan), ROOT, had_files=True)


def test_a_folder_that_was_moved_away(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    fs = DiskFileSystem(tmp_path / "root")
    try:
        create_root_marker(fs, ROOT)
        (tmp_path / "root/f").touch()
        assert check_root(fs, ROOT, had_files=True).state is RootState.OK
        (tmp_path / "root").rename(tmp_path / "elsewhere")
        assert check_root(fs, ROOT, had_files=True).state is RootState.MISSING
    finally:
        fs.close()
