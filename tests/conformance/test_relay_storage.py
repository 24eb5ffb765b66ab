"""What every storage of a relay must do; run against the embedded one and one in memory.

A storage for PostgreSQL and an object store adds itself to `KINDS`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from crdt.deposit import sealed_hash, sign_deposit
from crdt.entry import Entry
from crdt.ids import BlockId, DeviceId, FolderId
from crdt.version_vector import EMPTY
from node.ports import SystemRandom
from node.relay.sqlite_storage import SqliteStorage
from node.relay.storage import Deposit, Storage, StorageFullError, Usage
from tests.people import Person
from tests.support.memory_storage import MemoryStorage
from tests.support.two_folders import InlineThreads
from transport.relay_messages import Place

OTHER = FolderId(b"o" * 32)
SOMEBODY = DeviceId(b"s" * 32)


class Kind:
    """One implementation, and what tests may do to it that a relay cannot."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.name = name
        self.storage: Storage = self._open()

    def _open(self) -> Storage:
        if self.name == "memory":
            return MemoryStorage()
        return SqliteStorage(self.directory, InlineThreads(), SystemRandom())

    async def reopen(self) -> None:
        """As after a stop and a start."""
        if isinstance(self.storage, SqliteStorage):
            self.storage.close()
            self.storage = self._open()
            await self.storage.folders()

    async def crash(self) -> None:
        """As after a kill -9: nothing is closed in order."""
        if isinstance(self.storage, SqliteStorage):
            self.storage = self._open()
            await self.storage.folders()

    def corrupt(self, folder: FolderId, block: BlockId) -> None:
        if isinstance(self.storage, MemoryStorage):
            self.storage.corrupt(folder, block)
            return
        with sqlite3.connect(self.directory / "relay.sqlite") as db:
            pack, offset = db.execute(
                "SELECT pack, offset FROM blocks JOIN folders ON folders.id = blocks.folder "
                "WHERE folders.folder = ? AND block = ?",
                (folder, block),
            ).fetchone()
        db.close()
        with (self.directory / f"packs/{pack:08}.pack").open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 1]))


@pytest.fixture(params=["sqlite", "memory"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kind]:
    made = Kind(tmp_path, request.param)
    yield made
    if isinstance(made.storage, SqliteStorage):
        made.storage.close()


@pytest.fixture
def anna() -> Person:
    person = Person("anna")
    person.found()
    return person


def deposit(person: Person, number: int, size: int = 100) -> Deposit:
    block = BlockId(number.to_bytes(32, "big"))
    sealed = number.to_bytes(4, "big") * (size // 4)
    digest = sealed_hash(sealed)
    signature = sign_deposit(person.seed, person.folder, block, digest)
    return Deposit(block, sealed, digest, person.device, signature)


async def hosted(kind: Kind, anna: Person) -> Storage:
    await kind.storage.host(anna.folder, anna.device)
    await kind.storage.append(anna.folder, anna.arrivals)
    return kind.storage


def written(person: Person, count: int) -> list[Entry]:
    before = len(person.arrivals)
    for _ in range(count):
        person.write()
    return person.arrivals[before:]


async def test_a_folder_is_hosted_once(kind: Kind, anna: Person) -> None:
    assert await kind.storage.folders() == []
    await kind.storage.host(anna.folder, anna.device)
    await kind.storage.host(anna.folder, SOMEBODY)
    assert await kind.storage.folders() == [anna.folder]
    loaded = await kind.storage.load(anna.folder)
    assert (loaded.sponsor, dict(loaded.positions), list(loaded.roster)) == (anna.device, {}, [])
    assert await kind.storage.usage(anna.folder) == Usage()


@pytest.mark.parametrize("end", [Kind.reopen, Kind.crash])
async def test_entries_are_kept_in_order(
    kind: Kind, anna: Person, end: Callable[[Kind], Awaitable[None]]
) -> None:
    storage = await hosted(kind, anna)
    more = written(anna, 5)
    await storage.append(anna.folder, more)
    await end(kind)
    storage = kind.storage
    rows = await storage.entries(anna.folder, EMPTY, 2**30)
    assert [row.entry for row in rows] == [entry.to_bytes() for entry in anna.arrivals]
    loaded = await storage.load(anna.folder)
    assert dict(loaded.positions) == anna.positions
    assert [e.hash for e in loaded.roster] == [anna.arrivals[0].hash]
    usage = await storage.usage(anna.folder)
    assert usage.entries == len(anna.arrivals)
    assert usage.entry_bytes == sum(len(row.entry) for row in rows)


async def test_entries_come_in_batches_from_where_one_is(kind: Kind, anna: Person) -> None:
    storage = await hosted(kind, anna)
    await storage.append(anna.folder, written(anna, 6))
    after, got = EMPTY, []
    while rows := await storage.entries(anna.folder, after, 1):
        assert len(rows) == 1, "one at least, and no more than asked for"
        got.append(rows[0].entry)
        after = after.with_counter(rows[0].device, rows[0].seq)
    assert got == [entry.to_bytes() for entry in anna.arrivals]


async def test_hashes_of_what_is_there(kind: Kind, anna: Person) -> None:
    storage = await hosted(kind, anna)
    places = [(anna.device, 1), (anna.device, 9), (SOMEBODY, 1)]
    found = await storage.hashes(anna.folder, places)
    assert found == {(anna.device, 1): anna.arrivals[0].hash}


@pytest.mark.parametrize("end", [Kind.reopen, Kind.crash])
async def test_blocks_are_kept(
    kind: Kind, anna: Person, end: Callable[[Kind], Awaitable[None]]
) -> None:
    storage = await hosted(kind, anna)
    deposits = [deposit(anna, number, 40_000) for number in range(20)]
    place = await storage.put(anna.folder, deposits[:12])
    assert place.number == 12
    assert (await storage.put(anna.folder, deposits[:12])) == place, "again: nothing happens"
    place = await storage.put(anna.folder, deposits)
    await end(kind)
    storage = kind.storage
    assert await storage.place(anna.folder) == place
    for one in deposits:
        assert await storage.get(anna.folder, one.block) == one
    assert await storage.usage_by_device(anna.folder) == {anna.device: 20 * 40_000}
    assert (await storage.usage(anna.folder)).blocks == 20


async def test_folders_do_not_share_blocks(kind: Kind, anna: Person) -> None:
    storage = await hosted(kind, anna)
    await storage.host(OTHER, SOMEBODY)
    one = deposit(anna, 1)
    await storage.put(anna.folder, [one])
    assert await storage.get(OTHER, one.block) is None
    assert await storage.lacking(OTHER, [one.block]) == {one.block}
    assert await storage.lacking(anna.folder, [one.block]) == set()
    assert await storage.held(anna.folder, [one.block]) == {one.block}


async def test_places_tell_one_history_from_another(kind: Kind, anna: Person) -> None:
    storage = await hosted(kind, anna)
    begin = await storage.place(anna.folder)
    assert await storage.continues(anna.folder, begin)
    assert not await storage.continues(anna.folder, Place())
    first = await storage.put(anna.folder, [deposit(anna, 1)])
    second = await storage.put(anna.folder, [deposit(anna, 2)])
    for place in (begin, first, second):
        assert await storage.continues(anna.folder, place)
    ahead = Place(second.generation, second.number + 1, second.mark)
    other = Place(second.generation, second.number, bytes(16))
    assert not await storage.continues(anna.folder, ahead)
    assert not await storage.continues(anna.folder, other)


@pytest.mark.parametrize("way", ["read", "scrub"])
async def test_what_rotted_is_lost_and_said_so(kind: Kind, anna: Person, way: str) -> None:
    storage = await hosted(kind, anna)
    sound, rotten = deposit(anna, 1), deposit(anna, 2)
    place = await storage.put(anna.folder, [sound, rotten])
    kind.corrupt(anna.folder, rotten.block)
    if way == "read":
        assert await storage.get(anna.folder, rotten.block) is None
    else:
        assert (await storage.scrub(b"", 2**30)).lost == ((anna.folder, rotten.block),)
    assert await storage.get(anna.folder, sound.block) == sound
    assert await storage.lacking(anna.folder, [sound.block, rotten.block]) == {rotten.block}
    assert not await storage.continues(anna.folder, place)
    await storage.put(anna.folder, [rotten])
    assert await storage.get(anna.folder, rotten.block) == rotten


async def test_a_scrub_reads_everything_in_steps(kind: Kind, anna: Person) -> None:
    storage = await hosted(kind, anna)
    await storage.put(anna.folder, [deposit(anna, number, 1_000) for number in range(10)])
    after, blocks, steps = b"", 0, 0
    while True:
        step = await storage.scrub(after, 3_000)
        after, blocks, steps = step.after, blocks + step.blocks, steps + 1
        if not after:
            break
    assert blocks == 10
    assert kind.name == "memory" or steps == 4


async def test_what_was_dropped_goes_after_the_grace_period(kind: Kind, anna: Person) -> None:
    storage = await hosted(kind, anna)
    deposits = [deposit(anna, number, 1_000) for number in range(10)]
    place = await storage.put(anna.folder, deposits)
    assert await storage.drop(anna.folder, [d.block for d in deposits[:8]], now_s=1_000) == 8
    assert await storage.drop(anna.folder, [deposits[0].block], now_s=2_000) == 0
    assert await storage.listed(anna.folder, b"", 100) == [d.block for d in deposits[8:]]
    assert await storage.listed(anna.folder, deposits[8].block, 1) == [deposits[9].block]
    assert await storage.collect(before_s=999) == {}
    assert await storage.continues(anna.folder, place)
    assert await storage.lacking(anna.folder, [deposits[0].block]) == set(), "wanted after all"
    assert await storage.collect(before_s=1_000) == {anna.folder: 7}
    assert not await storage.continues(anna.folder, place)
    for number, one in enumerate(deposits):
        assert await storage.get(anna.folder, one.block) == (None if 1 <= number < 8 else one)
    assert await storage.usage_by_device(anna.folder) == {anna.device: 3_000}
    await kind.reopen()
    assert await kind.storage.get(anna.folder, deposits[9].block) == deposits[9]


async def test_what_is_put_again_is_dropped_no_more(kind: Kind, anna: Person) -> None:
    storage = await hosted(kind, anna)
    one, two = deposit(anna, 1), deposit(anna, 2)
    await storage.put(anna.folder, [one, two])
    await storage.drop(anna.folder, [one.block, two.block], now_s=0)
    await storage.put(anna.folder, [one])
    assert await storage.collect(before_s=0) == {anna.folder: 1}
    assert await storage.get(anna.folder, one.block) == one
    assert await storage.get(anna.folder, two.block) is None


async def test_a_folder_waits_until_collecting_is_worth_it(kind: Kind, anna: Person) -> None:
    storage = await hosted(kind, anna)
    deposits = [deposit(anna, number) for number in range(130)]
    place = await storage.put(anna.folder, deposits)
    await storage.drop(anna.folder, [deposits[0].block, deposits[1].block], now_s=5)
    assert await storage.collect(before_s=5) == {}
    assert await storage.continues(anna.folder, place)
    await storage.drop(anna.folder, [deposits[2].block], now_s=6)
    assert await storage.collect(before_s=6) == {anna.folder: 3}


# --- the embedded one alone -----------------------------------------------------------------------


async def test_room_of_what_went_is_given_back(tmp_path: Path, anna: Person) -> None:
    kind = Kind(tmp_path, "sqlite")
    storage = await hosted(kind, anna)
    deposits = [deposit(anna, number, 100_000) for number in range(40)]
    await storage.put(anna.folder, deposits)
    await storage.drop(anna.folder, [d.block for d in deposits[2:]], now_s=0)
    assert await storage.collect(before_s=0) == {anna.folder: 38}
    size = sum(path.stat().st_size for path in (tmp_path / "packs").iterdir())
    assert size == 200_000
    await kind.reopen()
    for one in deposits[:2]:
        assert await kind.storage.get(anna.folder, one.block) == one


async def test_bytes_that_were_never_committed_are_cut_off(tmp_path: Path, anna: Person) -> None:
    kind = Kind(tmp_path, "sqlite")
    storage = await hosted(kind, anna)
    one, two = deposit(anna, 1), deposit(anna, 2)
    await storage.put(anna.folder, [one])
    (pack,) = (tmp_path / "packs").iterdir()
    with pack.open("ab") as file:
        file.write(b"half a block")
    (tmp_path / "packs/00000007.pack").write_bytes(b"of a compaction that died")
    await kind.crash()
    assert pack.stat().st_size == 100
    assert not (tmp_path / "packs/00000007.pack").exists()
    await kind.storage.put(anna.folder, [two])
    assert await kind.storage.get(anna.folder, one.block) == one
    assert await kind.storage.get(anna.folder, two.block) == two


async def test_a_pack_that_is_gone_is_lost_block_by_block(tmp_path: Path, anna: Person) -> None:
    kind = Kind(tmp_path, "sqlite")
    storage = await hosted(kind, anna)
    deposits = [deposit(anna, number) for number in range(3)]
    await storage.put(anna.folder, deposits)
    for pack in (tmp_path / "packs").iterdir():
        pack.unlink()
    await kind.crash()
    assert len((await kind.storage.scrub(b"", 2**30)).lost) == 3
    await kind.storage.put(anna.folder, deposits)
    for one in deposits:
        assert await kind.storage.get(anna.folder, one.block) == one


async def test_a_full_disk_changes_nothing(
    tmp_path: Path, anna: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = Kind(tmp_path, "sqlite")
    storage = await hosted(kind, anna)
    assert isinstance(storage, SqliteStorage)
    one, two = deposit(anna, 1), deposit(anna, 2)
    place = await storage.put(anna.folder, [one])

    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("node.relay.packs.os.pwrite", refuse)
        with pytest.raises(StorageFullError):
            await storage.put(anna.folder, [two])
    assert await storage.place(anna.folder) == place
    assert await storage.lacking(anna.folder, [two.block]) == {two.block}
    await storage.put(anna.folder, [two])
    assert await storage.get(anna.folder, two.block) == two
    assert await storage.get(anna.folder, one.block) == one
