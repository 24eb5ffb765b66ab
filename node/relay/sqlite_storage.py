"""The embedded storage: one SQLite database for entries and the block table, packs for blocks.

    relay.sqlite     WAL, synchronous=FULL: a commit is durable when it returns
    packs/           see `node.relay.packs`

A put is: bytes into the newest pack, fsync, then one transaction with the rows, the folder's place
and its usage. A process that dies in between leaves bytes that no row names; the next start cuts
them off. Deleting is the other way round: rows first, then the pack.

Concurrency: calls run in worker threads, writes one at a time behind one lock and one connection,
reads behind another. A damaged database is refused, untouched.
"""

from __future__ import annotations

import errno
import functools
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import trio

from crdt.deposit import sealed_hash
from crdt.entry import Entry
from crdt.errors import WorldError
from crdt.ids import BlockId, DeviceId, FolderId
from crdt.version_vector import VersionVector
from node.ports import Random, Threads
from node.relay import rows as tables
from node.relay.packs import Extent, Packs
from node.relay.schema import connect, open_database
from node.relay.storage import (
    Deposit,
    Scrubbed,
    StorageFullError,
    StoredFolder,
    Usage,
)
from transport.relay_messages import GENERATION_SIZE, MARK_SIZE, Place
from transport.session import LogEntry

logger = logging.getLogger("shoal.relay")

BATCH_ENTRIES_MAX: Final = 256  # entries read at once
SCRUB_BLOCKS: Final = 1_024  # read in one step, at most
COLLECT_BLOCKS: Final = 4_096  # rows of one transaction
COMPACT_BELOW: Final = 0.5  # a pack of which less is alive is rewritten
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

T = TypeVar("T")


class SqliteStorage:
    """See the module; implements `node.relay.storage.Storage`."""

    def __init__(self, directory: Path, threads: Threads, random: Random) -> None:
        """Raises: IntegrityError, WorldError: what lies in `directory` cannot be used."""
        self._threads = threads
        self._random = random
        self._writer = open_database(directory / "relay.sqlite")
        self._reader = connect(directory / "relay.sqlite")
        self._write_lock, self._read_lock = threading.Lock(), threading.Lock()
        ends = self._writer.execute("SELECT pack, max(offset + size) FROM blocks GROUP BY pack")
        try:
            self._packs = Packs(directory / "packs", dict(ends.fetchall()))
        except OSError as error:
            raise WorldError(f"the relay's packs cannot be used: {error.strerror}") from error
        self._ids: dict[FolderId, int] = {}
        self.on_lost: Callable[[FolderId], None] = lambda _: None
        self.lost_blocks = 0
        self.packs_stay = trio.Lock()  # held by a backup: no pack goes meanwhile

    def close(self) -> None:
        """Fold the write-ahead log in and close."""
        self._packs.close()
        self._reader.close()
        self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._writer.close()

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            with self._read_lock:
                return query(self._reader)

        return await self._threads.run(run)

    async def _write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Run `change` in one transaction."""
        return await self._threads.run(self._transact, change)

    def _transact(self, change: Callable[[sqlite3.Connection], T]) -> T:
        with self._write_lock:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                result = change(self._writer)
                self._writer.execute("COMMIT")
            except BaseException as error:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError | OSError) and _is_full(error):
                    raise StorageFullError(f"the relay's disk is full ({error})") from error
                raise
            return result

    # --- folders --------------------------------------------------------------------------------

    async def folders(self) -> list[FolderId]:
        """See `Storage`."""
        all_rows = await self._read(
            lambda db: db.execute("SELECT id, folder FROM folders").fetchall()
        )
        self._ids |= {FolderId(folder): number for number, folder in all_rows}
        return [FolderId(folder) for _, folder in all_rows]

    async def host(self, folder: FolderId, sponsor: DeviceId) -> None:
        """See `Storage`."""
        generation = self._random.bytes(GENERATION_SIZE)

        def insert(db: sqlite3.Connection) -> int:
            db.execute(
                "INSERT OR IGNORE INTO folders (folder, sponsor, generation, number, mark) "
                "VALUES (?, ?, ?, 0, ?)",
                (folder, sponsor, generation, bytes(MARK_SIZE)),
            )
            (number,) = db.execute("SELECT id FROM folders WHERE folder = ?", (folder,)).fetchone()
            return int(number)

        self._ids[folder] = await self._write(insert)

    async def load(self, folder: FolderId) -> StoredFolder:
        """See `Storage`."""
        number = self._ids[folder]

        def query(db: sqlite3.Connection) -> StoredFolder:
            (sponsor,) = db.execute(
                "SELECT sponsor FROM folders WHERE id = ?", (number,)
            ).fetchone()
            roster = db.execute(
                "SELECT entry FROM entries WHERE folder = ? AND kind = 2 ORDER BY arrival",
                (number,),
            )
            return StoredFolder(
                folder,
                DeviceId(sponsor),
                tables.positions(db, number),
                [Entry.from_bytes(entry) for (entry,) in roster],
            )

        return await self._read(query)

    # --- entries --------------------------------------------------------------------------------

    async def append(self, folder: FolderId, entries: Sequence[Entry]) -> None:
        """See `Storage`."""
        number = self._ids[folder]

        def insert(db: sqlite3.Connection) -> None:
            for entry in entries:
                header, data = entry.header, entry.to_bytes()
                db.execute(
                    "INSERT INTO entries (folder, device, seq, hash, lamport, kind, entry) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        number,
                        header.device,
                        header.seq,
                        entry.hash,
                        header.lamport,
                        int(header.kind),
                        data,
                    ),
                )
                tables.count(db, number, header.device, entries=1, entry_bytes=len(data))

        await self._write(insert)

    async def hashes(
        self, folder: FolderId, places: Iterable[tuple[DeviceId, int]]
    ) -> dict[tuple[DeviceId, int], bytes]:
        """See `Storage`."""
        number, wanted = self._ids[folder], list(places)

        def query(db: sqlite3.Connection) -> dict[tuple[DeviceId, int], bytes]:
            found = {}
            for device, seq in wanted:
                row = db.execute(
                    "SELECT hash FROM entries WHERE folder = ? AND device = ? AND seq = ?",
                    (number, device, seq),
                ).fetchone()
                if row is not None:
                    found[device, seq] = row[0]
            return found

        return await self._read(query) if wanted else {}

    async def entries(
        self, folder: FolderId, after: VersionVector, size_max: int
    ) -> list[LogEntry]:
        """See `Storage`."""
        number = self._ids[folder]
        return await self._read(lambda db: tables.missing(db, number, after, size_max))

    # --- blocks ---------------------------------------------------------------------------------

    async def place(self, folder: FolderId) -> Place:
        """See `Storage`."""
        number = self._ids[folder]
        return await self._read(lambda db: tables.place(db, number))

    async def continues(self, folder: FolderId, place: Place) -> bool:
        """See `Storage`."""
        number = self._ids[folder]

        def query(db: sqlite3.Connection) -> bool:
            now = tables.place(db, number)
            if place.generation != now.generation or place.number > now.number:
                return False
            if place.number == 0:
                return True
            row = db.execute(
                "SELECT mark FROM blocks WHERE folder = ? AND number = ?", (number, place.number)
            ).fetchone()
            return row is not None and row[0] == place.mark

        return await self._read(query)

    async def lacking(self, folder: FolderId, blocks: Iterable[BlockId]) -> set[BlockId]:
        """See `Storage`."""
        asked, number = list(blocks), self._ids[folder]
        found = await self._read(lambda db: tables.dropped_of(db, number, asked))
        if any(dropped_s is not None for dropped_s in found.values()):
            # Looked at again in there: a collection may have come in between.
            found = await self._write(lambda db: self._keep(db, number, asked))
        return set(asked) - found.keys()

    @staticmethod
    def _keep(
        db: sqlite3.Connection, number: int, asked: Sequence[BlockId]
    ) -> dict[BlockId, int | None]:
        found = tables.dropped_of(db, number, asked)
        tables.undrop(db, number, found)
        return found

    async def held(self, folder: FolderId, blocks: Iterable[BlockId]) -> set[BlockId]:
        """See `Storage`."""
        asked, number = list(blocks), self._ids[folder]
        return set(await self._read(lambda db: tables.dropped_of(db, number, asked)))

    async def put(self, folder: FolderId, deposits: Sequence[Deposit]) -> Place:
        """See `Storage`."""
        number = self._ids[folder]

        def insert(db: sqlite3.Connection) -> Place:
            place = tables.place(db, number)
            known = tables.dropped_of(db, number, [one.block for one in deposits])
            tables.undrop(db, number, [block for block, at in known.items() if at is not None])
            new = list({one.block: one for one in deposits if one.block not in known}.values())
            if not new:
                return place
            extents = self._packs.append([one.sealed for one in new])
            for one, at in zip(new, extents, strict=True):
                place = tables.following(place, one)
                db.execute(
                    "INSERT INTO blocks (folder, block, digest, depositor, signature, size, pack, "
                    "offset, number, mark) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        number,
                        one.block,
                        one.digest,
                        one.depositor,
                        one.signature,
                        at.size,
                        at.pack,
                        at.offset,
                        place.number,
                        place.mark,
                    ),
                )
                tables.count(db, number, one.depositor, blocks=1, block_bytes=at.size)
            db.execute(
                "UPDATE folders SET number = ?, mark = ? WHERE id = ?",
                (place.number, place.mark, number),
            )
            return place

        return await self._write(insert)

    async def get(self, folder: FolderId, block: BlockId) -> Deposit | None:
        """See `Storage`."""
        number = self._ids[folder]
        row = await self._read(
            lambda db: db.execute(
                "SELECT pack, offset, size, digest, depositor, signature FROM blocks "
                "WHERE folder = ? AND block = ?",
                (number, block),
            ).fetchone()
        )
        if row is None:
            return None
        extent, digest = Extent(*row[:3]), row[3]
        sealed = await self._threads.run(self._sound, extent, digest)
        if sealed is None:
            # A compaction may have moved it since its row was read; then the row is another one.
            lose = functools.partial(self._lose, number=number, block=block, extent=extent)
            if await self._write(lose):
                self.on_lost(folder)
                return None
            return await self.get(folder, block)
        return Deposit(block, sealed, digest, DeviceId(row[4]), row[5])

    def _sound(self, extent: Extent, digest: bytes) -> bytes | None:
        try:
            sealed = self._packs.read(extent)
        except OSError as error:
            logger.warning("a pack cannot be read: %s", error.strerror)
            return None
        return sealed if sealed_hash(sealed) == digest else None

    def _lose(self, db: sqlite3.Connection, number: int, block: BlockId, extent: Extent) -> bool:
        """Forget a damaged block, so that members deposit it again; False if it moved."""
        row = db.execute(
            "SELECT pack, offset, size, depositor FROM blocks WHERE folder = ? AND block = ?",
            (number, block),
        ).fetchone()
        if row is None:
            return True
        if Extent(*row[:3]) != extent:
            return False
        tables.delete(db, number, block, DeviceId(row[3]), extent.size)
        self._new_generation(db, number)
        self.lost_blocks += 1
        (folder,) = db.execute("SELECT folder FROM folders WHERE id = ?", (number,)).fetchone()
        logger.error(
            "block %s of folder %s was damaged and is forgotten; members will bring it again",
            block.hex()[:16],
            folder.hex()[:16],
        )
        return True

    def _new_generation(self, db: sqlite3.Connection, number: int) -> None:
        generation = self._random.bytes(GENERATION_SIZE)
        db.execute("UPDATE folders SET generation = ? WHERE id = ?", (generation, number))

    async def listed(self, folder: FolderId, after: bytes, count_max: int) -> list[BlockId]:
        """See `Storage`."""
        number = self._ids[folder]
        return await self._read(lambda db: tables.listed(db, number, after, count_max))

    async def drop(self, folder: FolderId, blocks: Sequence[BlockId], *, now_s: int) -> int:
        """See `Storage`."""
        number = self._ids[folder]

        def update(db: sqlite3.Connection) -> int:
            return sum(
                db.execute(
                    "UPDATE blocks SET dropped_s = ? "
                    "WHERE folder = ? AND block = ? AND dropped_s IS NULL",
                    (now_s, number, block),
                ).rowcount
                for block in blocks
            )

        return await self._write(update)

    async def usage(self, folder: FolderId) -> Usage:
        """See `Storage`."""
        number = self._ids[folder]

        def query(db: sqlite3.Connection) -> Usage:
            row = db.execute(
                "SELECT total(entries), total(entry_bytes), total(blocks), total(block_bytes) "
                "FROM usage WHERE folder = ?",
                (number,),
            ).fetchone()
            return Usage(*map(int, row))

        return await self._read(query)

    async def usage_by_device(self, folder: FolderId) -> dict[DeviceId, int]:
        """See `Storage`."""
        number = self._ids[folder]
        rows = await self._read(
            lambda db: db.execute(
                "SELECT device, block_bytes FROM usage WHERE folder = ?", (number,)
            ).fetchall()
        )
        return {DeviceId(device): size for device, size in rows}

    # --- upkeep ---------------------------------------------------------------------------------

    async def scrub(self, after: bytes, size_max: int) -> Scrubbed:
        """See `Storage`. The place is the pack and offset of the last block that was read."""
        start = (int.from_bytes(after[:8], "big"), int.from_bytes(after[8:], "big"))
        rows = await self._read(
            lambda db: db.execute(
                "SELECT folder, block, pack, offset, size, digest FROM blocks "
                "WHERE (pack, offset) >= (?, ?) ORDER BY pack, offset LIMIT ?",
                (*start, SCRUB_BLOCKS),
            ).fetchall()
        )
        size = count = 0
        at = b""
        lost: list[tuple[FolderId, BlockId]] = []
        names = {number: folder for folder, number in self._ids.items()}
        for number, block, pack, offset, length, digest in rows:
            if size >= size_max:
                at = pack.to_bytes(8, "big") + offset.to_bytes(8, "big")
                break
            extent = Extent(pack, offset, length)
            count, size = count + 1, size + length
            if await self._threads.run(self._sound, extent, digest) is None:
                lose = functools.partial(
                    self._lose, number=number, block=BlockId(block), extent=extent
                )
                if await self._write(lose):
                    lost.append((names[number], BlockId(block)))
                    self.on_lost(names[number])
        else:
            if len(rows) == SCRUB_BLOCKS:
                at = rows[-1][2].to_bytes(8, "big") + (rows[-1][3] + 1).to_bytes(8, "big")
        return Scrubbed(count, size, tuple(lost), at)

    async def collect(self, *, before_s: int) -> dict[FolderId, int]:
        """See `Storage`. Rows go first, then packs of which little is alive are rewritten."""
        gone: dict[FolderId, int] = {}
        names = {number: folder for folder, number in self._ids.items()}
        for number in await self._read(lambda db: tables.worth_collecting(db, before_s)):
            delete = functools.partial(self._delete_dropped, number=number, before_s=before_s)
            while count := await self._write(delete):
                gone[names[number]] = gone.get(names[number], 0) + count
        try:
            await self.compact()
        except StorageFullError as error:
            logger.warning("packs wait to be rewritten: %s", error)
        return gone

    def _delete_dropped(self, db: sqlite3.Connection, number: int, before_s: int) -> int:
        count = tables.delete_dropped(db, number, before_s, COLLECT_BLOCKS)
        if count:
            self._new_generation(db, number)
        return count

    async def compact(self) -> int:
        """Rewrite the packs of which less than half is alive, the deadest first, since that needs
        the least room; returns how many went.
        """
        packs = await self._read(
            lambda db: db.execute("SELECT pack, sum(size) FROM blocks GROUP BY pack").fetchall()
        )
        alive, gone = dict(packs), 0
        for pack in sorted(
            await self._threads.run(self._packs.numbers), key=lambda n: alive.get(n, 0)
        ):
            size = self._packs.size(pack)
            if not size or alive.get(pack, 0) >= COMPACT_BELOW * size:
                continue
            async with self.packs_stay:
                if await self._write(functools.partial(self._rewrite, pack=pack)):
                    await self._threads.run(self._packs.delete, [pack])
                    gone += 1
        return gone

    def _rewrite(self, db: sqlite3.Connection, pack: int) -> bool:
        """Move a pack's live blocks behind the newest pack; False if one cannot be read."""
        if pack == self._packs.current:
            self._packs.rotate()
        rows = db.execute(
            "SELECT folder, block, offset, size, digest FROM blocks WHERE pack = ?", (pack,)
        ).fetchall()
        blobs = [self._sound(Extent(pack, row[2], row[3]), row[4]) for row in rows]
        sound = [blob for blob in blobs if blob is not None]
        if len(sound) < len(rows):
            return False  # the scrub says what is damaged
        for row, at in zip(rows, self._packs.append(sound), strict=True):
            db.execute(
                "UPDATE blocks SET pack = ?, offset = ? WHERE folder = ? AND block = ?",
                (at.pack, at.offset, row[0], row[1]),
            )
        return True


def _is_full(error: sqlite3.OperationalError | OSError) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL
    return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL
