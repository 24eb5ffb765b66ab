"""What the memory file system promises beyond the port: forgetting, folding, stamps, people."""

from __future__ import annotations

import errno
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.files.memory import MemoryFileSystem
from node.files.port import ExchangeUnsupportedError, StatKind, join
from node.files.portable_names import Personality

CUTS = range(60)  # enough that each outcome of an even chance turns up


def outcomes(prepare: object) -> set[object]:
    """What a file `f` holds after cuts with many seeds; None where it is not there."""
    found: set[object] = set()
    for seed in CUTS:
        fs = MemoryFileSystem()
        prepare(fs)  # type: ignore[operator]
        fs.power_cut(random.Random(seed))
        found.add(fs.snapshot().get("f"))
    return found


def write_new(fs: MemoryFileSystem, path: str, data: bytes, *, fsync: bool) -> None:
    with fs.create(path) as file:
        file.write_at(0, data)
        if fsync:
            file.fsync()


def test_without_any_sync_anything_may_be_lost() -> None:
    def prepare(fs: MemoryFileSystem) -> None:
        write_new(fs, "f", b"data", fsync=False)

    assert outcomes(prepare) >= {None, b"", b"data"}


def test_a_renamed_file_that_was_not_fsynced_may_be_empty() -> None:
    def prepare(fs: MemoryFileSystem) -> None:
        write_new(fs, "tmp", b"data", fsync=False)
        fs.rename("tmp", "f")
        fs.fsync_directory("")

    assert outcomes(prepare) >= {b"", b"data"}
    assert None not in outcomes(prepare)


def test_a_name_needs_its_directory_synced() -> None:
    def prepare(fs: MemoryFileSystem) -> None:
        write_new(fs, "f", b"data", fsync=True)

    assert outcomes(prepare) == {None, b"data"}


def test_the_whole_sequence_is_durable() -> None:
    def prepare(fs: MemoryFileSystem) -> None:
        write_new(fs, "f", b"old", fsync=True)
        fs.fsync_directory("")
        write_new(fs, "new", b"data", fsync=True)
        fs.exchange("new", "f")
        fs.fsync_directory("")

    assert outcomes(prepare) == {b"data"}


def test_an_exchange_is_never_half_done() -> None:
    for seed in CUTS:
        fs = MemoryFileSystem()
        fs.mkdir("d")
        fs.write_file("f", b"old")
        fs.write_file("d/new", b"new")
        fs.sync()
        fs.exchange("f", "d/new")
        fs.power_cut(random.Random(seed))
        assert (fs.read_file("f"), fs.read_file("d/new")) in ((b"old", b"new"), (b"new", b"old"))


def test_sync_keeps_everything() -> None:
    def prepare(fs: MemoryFileSystem) -> None:
        write_new(fs, "f", b"data", fsync=False)
        fs.sync()

    assert outcomes(prepare) == {b"data"}


def test_a_failed_fsync_is_not_healed_by_the_next() -> None:
    def prepare(fs: MemoryFileSystem) -> None:
        with fs.create("f") as file:
            file.write_at(0, b"data")
            file.fail_fsync()
            file.fsync()
        fs.fsync_directory("")

    assert b"" in outcomes(prepare)


def test_overwritten_pages_may_be_torn() -> None:
    old, new = b"a" * 16384, b"b" * 16384

    def prepare(fs: MemoryFileSystem) -> None:
        fs.write_file("f", old)
        fs.sync()
        with fs.open_write("f") as file:
            file.write_at(0, new)

    found = outcomes(prepare)
    assert {old, new} < found
    assert all(isinstance(data, bytes) and len(data) == 16384 for data in found)


def test_handles_die_with_the_power() -> None:
    fs = MemoryFileSystem()
    file = fs.create("f")
    fs.power_cut(random.Random(0))
    with pytest.raises(OSError, check=lambda error: error.errno == errno.EBADF):
        file.write_at(0, b"x")
    file.close()


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_a_moved_file_is_never_lost(seed: int) -> None:
    """Synced files that are only ever moved about come through any cut, each exactly once."""
    chance = random.Random(seed)
    fs = MemoryFileSystem()
    directories = [""]
    for i in range(4):
        directories.append(join(chance.choice(directories), f"d{i}"))
        fs.mkdir(directories[-1])
    for i in range(5):
        fs.write_file(join(chance.choice(directories), f"f{i}"), b"%d" % i)
    fs.sync()
    for i in range(30):
        paths = list(fs.snapshot())
        homes = ["", *(path for path, data in fs.snapshot().items() if data is None)]
        source, home = chance.choice(paths), chance.choice(homes)
        try:
            match chance.randrange(6):
                case 0 | 1:
                    fs.rename(source, join(home, source.rpartition("/")[2]))
                case 2:
                    fs.exchange(source, chance.choice(paths))
                case 3:
                    fs.fsync_directory(home)
                case 4:
                    fs.rmdir(source)
                case _:
                    fs.mkdir(join(home, f"new{i}"))
        except OSError:
            pass
    fs.power_cut(chance)
    files = sorted(data for data in fs.snapshot().values() if data is not None)
    assert files == [b"0", b"1", b"2", b"3", b"4"]
    assert all(fs.lstat(path).links == 1 for path in fs.snapshot())


def test_the_same_seed_gives_the_same_world() -> None:
    def run() -> object:
        fs = MemoryFileSystem()
        for i in range(20):
            fs.write_file(f"f{i}", b"x" * i)
        fs.power_cut(random.Random(7))
        return fs.snapshot(), fs.scandir("")

    assert run() == run()


def test_folding() -> None:
    fs = MemoryFileSystem(personality=Personality(folds_case=True, folds_unicode=True))
    fs.write_file("Makefile", b"1")
    assert fs.read_file("MAKEFILE") == b"1"
    with pytest.raises(FileExistsError):
        fs.create("makefile")
    with pytest.raises(FileExistsError):
        fs.rename("Makefile", "makefile")
    fs.rename("Makefile", "tmp")
    fs.rename("tmp", "makefile")
    assert [entry.name for entry in fs.scandir("")] == ["makefile"]
    fs.write_file("caf\u00e9", b"")
    assert fs.lstat("cafe\u0301").kind is StatKind.FILE
    windows = MemoryFileSystem(personality=Personality(windows_names=True))
    with pytest.raises(OSError, check=lambda error: error.errno == errno.EINVAL):
        windows.mkdir("aux")


def test_coarse_stamps() -> None:
    now = 10**18 + 123
    fs = MemoryFileSystem(clock=lambda: now, granularity_ns=2_000_000_000)
    fs.write_file("f", b"")
    assert fs.lstat("f").mtime_ns == fs.lstat("f").ctime_ns == 10**18


def test_a_full_disk() -> None:
    fs = MemoryFileSystem(capacity=100)
    fs.write_file("f", b"x" * 60)
    assert fs.free_bytes() == 40
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOSPC):
        fs.write_file("g", b"x" * 60)
    fs.unlink("f")
    fs.write_file("g", b"x" * 60)
    assert fs.free_bytes() == 40


def test_a_disk_that_cannot_exchange() -> None:
    fs = MemoryFileSystem(exchanges=False)
    fs.write_file("a", b"1")
    fs.write_file("b", b"2")
    with pytest.raises(ExchangeUnsupportedError):
        fs.exchange("a", "b")
    assert fs.read_file("a") == b"1"


def test_people_and_listeners() -> None:
    fs = MemoryFileSystem()
    heard: list[str] = []
    fs.listeners.append(heard.append)
    fs.mkdir("d")
    fs.write_file("d/f", b"1")
    fs.rename("d", "e")
    heard.clear()
    fs.write_file("e/f", b"2")
    assert set(heard) == {"e/f"}
    fs.write_file("e/g", b"3")
    fs.replace("e/g", "e/f")
    fs.link("e/f", "hard")
    assert fs.snapshot() == {"e": None, "e/f": b"3", "hard": b"3"}
    assert fs.lstat("hard").links == 2
    heard.clear()
    fs.unlink("hard")
    fs.write_file("e/f", b"4")
    assert heard[0] == "hard"
    assert fs.read_file("e/f") == b"4"
