"""`shoal relay check`, `backup` and `restore`, on the embedded storage."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from crdt.errors import CallerError
from crdt.ids import BlockId
from crdt.version_vector import EMPTY
from node.ports import SystemRandom
from node.relay.admin import Admin, with_stopped_relay
from node.relay.backup import COPIED_MARK, _copy_head, back_up, restore
from node.relay.check import check
from node.relay.sqlite_storage import SqliteStorage
from tests.conformance.test_relay_storage import deposit, written
from tests.people import Person
from tests.support.two_folders import InlineThreads

pytestmark = pytest.mark.slow


@pytest.fixture
def anna() -> Person:
    person = Person("anna")
    person.found()
    return person


def opened(home: Path) -> SqliteStorage:
    home.mkdir(exist_ok=True)
    (home / "identity").touch()
    return SqliteStorage(home, InlineThreads(), SystemRandom())


async def filled(home: Path, anna: Person, blocks: int = 6) -> SqliteStorage:
    storage = opened(home)
    await storage.folders()
    await storage.host(anna.folder, anna.device)
    written(anna, 5)
    await storage.append(anna.folder, anna.arrivals)
    await storage.put(anna.folder, [deposit(anna, n, 50_000) for n in range(blocks)])
    return storage


async def contents(home: Path, anna: Person) -> tuple[list[bytes], dict[BlockId, bytes]]:
    storage = opened(home)
    await storage.folders()
    found = {}
    for block in await storage.listed(anna.folder, b"", 1_000):
        got = await storage.get(anna.folder, block)
        assert got is not None
        found[block] = got.sealed
    entries = [row.entry for row in await storage.entries(anna.folder, EMPTY, 2**30)]
    storage.close()
    return entries, found


async def test_all_is_sound(tmp_path: Path, anna: Person) -> None:
    storage = await filled(tmp_path, anna)
    found = await check(storage, InlineThreads())
    assert (found.folders, found.entries, found.blocks) == (1, len(anna.arrivals), 6)
    assert found.bytes == 300_000
    assert not found.damaged_blocks
    assert not found.damaged_entries
    storage.close()


async def test_damage_is_named(tmp_path: Path, anna: Person) -> None:
    storage = await filled(tmp_path, anna)
    (pack,) = (tmp_path / "packs").iterdir()
    with pack.open("r+b") as file:
        file.seek(60_000)
        file.write(b"rot")
    with sqlite3.connect(tmp_path / "relay.sqlite") as db:
        (data,) = db.execute("SELECT entry FROM entries WHERE seq = 3").fetchone()
        db.execute(
            "UPDATE entries SET entry = ? WHERE seq = 3", (data[:-1] + bytes([data[-1] ^ 1]),)
        )
    db.close()
    found = await check(storage, InlineThreads())
    assert [one.block for one in found.damaged_blocks] == [deposit(anna, 1).block.hex()]
    assert [one.seq for one in found.damaged_entries] == [3]
    again = await check(storage, InlineThreads())
    assert (again.blocks, again.damaged_blocks) == (5, ())
    storage.close()


def test_a_stopped_relay_is_asked_the_same(tmp_path: Path) -> None:
    opened(tmp_path).close()
    assert with_stopped_relay(tmp_path, lambda admin: admin.check()).folders == 0
    with pytest.raises(CallerError, match="no relay lies in"):
        with_stopped_relay(tmp_path / "nowhere", lambda admin: admin.check())


async def test_there_and_back(tmp_path: Path, anna: Person) -> None:
    home, backup, new = tmp_path / "home", tmp_path / "backup", tmp_path / "new"
    storage = await filled(home, anna)
    (home / "token").write_text("secret")
    admin = Admin(storage, InlineThreads(), home)
    copied = await admin.back_up(backup)
    assert (copied.packs, copied.size, copied.copied) == (1, 300_000, 300_000)
    assert (await admin.back_up(backup)).copied == 0, "nothing is new"
    meant = await contents(home, anna)

    await storage.put(anna.folder, [deposit(anna, n, 50_000) for n in range(6, 9)])
    restore(backup, new)
    assert (new / "token").read_text() == "secret"
    assert (new / COPIED_MARK).exists()
    assert await contents(new, anna) == meant, "as it was when it was backed up"
    assert (await admin.back_up(backup)).size == 450_000
    storage.close()
    assert await contents(backup, anna) == await contents(home, anna)


async def test_a_backup_loses_what_the_relay_collected(tmp_path: Path, anna: Person) -> None:
    home, backup = tmp_path / "home", tmp_path / "backup"
    storage = await filled(home, anna)
    admin = Admin(storage, InlineThreads(), home)
    await admin.back_up(backup)
    blocks = await storage.listed(anna.folder, b"", 100)
    await storage.drop(anna.folder, blocks[:4], now_s=0)
    await storage.collect(before_s=0)
    await admin.back_up(backup)
    assert sum(path.stat().st_size for path in (backup / "packs").iterdir()) == 100_000
    storage.close()
    assert await contents(backup, anna) == await contents(home, anna)


async def test_what_is_refused_changes_nothing(tmp_path: Path, anna: Person) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    storage = await filled(home, anna)
    storage.close()
    (other / "precious").mkdir(parents=True)
    with pytest.raises(CallerError, match="not empty, and no backup"):
        back_up(home, other)
    assert [path.name for path in other.iterdir()] == ["precious"]
    for place in (home, home / "packs", tmp_path):
        with pytest.raises(CallerError, match="cannot lie in"):
            back_up(home, place)
    with pytest.raises(CallerError, match="no backup of a relay"):
        restore(other, tmp_path / "new")
    back_up(home, tmp_path / "backup")
    with pytest.raises(CallerError, match="a relay lies in"):
        restore(tmp_path / "backup", home)
    (tmp_path / "backup/identity").write_bytes(b"another")
    with pytest.raises(CallerError, match="of another relay"):
        back_up(home, tmp_path / "backup")


class Dies:
    """Stands for a function: the process dies at the call with this number."""

    def __init__(self, real: Callable[..., object], at: int) -> None:
        self.real = real
        self.left = at

    def patched(self) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
            return self.real(*arguments, **options)

        return call


STEPS: dict[str, tuple[str, Callable[..., object]]] = {
    "replace": ("pathlib.Path.replace", Path.replace),
    "fsync": ("node.relay.backup.os.fsync", os.fsync),
    "write": ("node.relay.backup._copy_head", _copy_head),
}


@pytest.mark.parametrize("step", STEPS)
async def test_a_copy_that_dies_is_no_backup_or_a_whole_one(
    tmp_path: Path, anna: Person, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, backup = tmp_path / "home", tmp_path / "backup"
    storage = await filled(home, anna)
    admin = Admin(storage, InlineThreads(), home)
    meant = await contents(home, anna)
    deaths = 0
    while True:
        shutil.rmtree(backup, ignore_errors=True)
        where, real = STEPS[step]
        dies = Dies(real, deaths + 1)
        with monkeypatch.context() as patched:
            patched.setattr(where, dies.patched())
            try:
                await admin.back_up(backup)
            except KeyboardInterrupt:
                deaths += 1
            else:
                break
        if (backup / "relay.sqlite").exists():
            assert await contents(backup, anna) == meant
        await admin.back_up(backup)
        assert await contents(backup, anna) == meant
    assert deaths
    storage.close()
