"""The displaced table: the versions whose bytes this device keeps for history.

A row's bytes are a whole file in `.shoal/history` (`file` is set), or blocks: in `.shoal/store`,
in other files in history, and of very large versions also in the current file (`content` is set and
names them). Calls happen inside the caller's transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from crdt.codec import pack, unpack
from crdt.ids import ItemId
from crdt.slot import Content
from crdt.version_vector import EMPTY, VersionVector
from node.index.damage import UNREADABLE, unreadable
from node.index.slots import SLOT_SIZE_MAX

_COLUMNS: Final = "id, item, path, version, digest, size, file, content, since_s"
UNKNOWN_DIGEST: Final = bytes(32)  # of bytes that are no version that we know


@dataclass(frozen=True, slots=True)
class KeptRow:
    """One kept version. `size` is the file's, in bytes; `path` where it lay."""

    id: int
    item: ItemId
    path: str
    version: VersionVector
    digest: bytes
    size: int
    file: str | None
    content: Content | None
    since_s: int | None  # on history's own clock; None until it came by


class KeptRows:
    """Reads and writes the table; `DiskRows.add_displaced` adds what the applier displaces."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def all(self) -> list[KeptRow]:
        """Every row, the oldest first."""
        return self._some("1 ORDER BY id")

    def with_digest(self, digest: bytes) -> list[KeptRow]:
        """The rows with these very bytes."""
        return self._some("digest = ?", digest)

    def watched(self) -> set[str]:
        """The files that somebody may be writing to still; see `node.sync.afterlook`."""
        return {file for (file,) in self._db.execute("SELECT file FROM afterlooks")}

    def add(
        self, item: ItemId, path: str, content: Content, *, time_ns: int, since_s: int | None
    ) -> None:
        """Note a version that is kept as blocks."""
        self._db.execute(
            "INSERT INTO displaced (item, path, version, digest, size, time_ns, content, since_s) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                item, path, pack(content.version.to_wire()), content.digest, content.size,
                time_ns, pack(content.to_wire()), since_s,
            ),
        )  # fmt: skip

    def settle(self, row: int, content: Content) -> None:
        """The version is kept as blocks from now on."""
        self._db.execute(
            "UPDATE displaced SET file = NULL, content = ?, digest = ? WHERE id = ?",
            (pack(content.to_wire()), content.digest, row),
        )

    def call_unknown(self, row: int) -> None:
        """The file turned out to hold other bytes than those of the version that it was."""
        self._db.execute(
            "UPDATE displaced SET version = ?, digest = ? WHERE id = ?",
            (pack(EMPTY.to_wire()), UNKNOWN_DIGEST, row),
        )

    def drop(self, rows: Iterable[int]) -> None:
        """Forget versions."""
        self._db.executemany("DELETE FROM displaced WHERE id = ?", [(row,) for row in rows])

    def begin_time(self, now_s: int) -> None:
        """What has come by since the last call is as old as this call."""
        for table in ("displaced", "past_slots", "stored"):
            self._db.execute(
                f"UPDATE {table} SET since_s = ? WHERE since_s IS NULL",  # noqa: S608 - constants
                (now_s,),
            )

    def forget_past(self, before_s: int, limit: int) -> None:
        """Forget at most `limit` slots that were replaced before `before_s`."""
        self._db.execute(
            "DELETE FROM past_slots WHERE rowid IN "
            "(SELECT rowid FROM past_slots WHERE since_s < ? ORDER BY since_s LIMIT ?)",
            (before_s, limit),
        )

    def _some(self, where: str, *values: object) -> list[KeptRow]:
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM displaced WHERE {where}", values)  # noqa: S608
        try:
            return [_row(row) for row in rows]
        except UNREADABLE as error:
            raise unreadable("a kept version", error) from error


def _row(columns: tuple[Any, ...]) -> KeptRow:
    id_, item, path, version, digest, size, file, content, since_s = columns
    return KeptRow(
        id=id_,
        item=ItemId(item),
        path=path,
        version=VersionVector.from_wire(unpack(version, size_max=SLOT_SIZE_MAX)),
        digest=digest,
        size=size,
        file=file,
        content=None
        if content is None
        else Content.from_wire(unpack(content, size_max=SLOT_SIZE_MAX)),
        since_s=since_s,
    )
