"""The disk table: what this node last agreed with its own disk about each item.

A row says where the item lies (parent item and name on this disk), which content version lies
there, and what `lstat` said of it. It is written only after the disk operation that it describes
is durable, or after a scan saw exactly that.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from crdt.codec import pack, unpack
from crdt.ids import ROOT, ItemId
from crdt.slot import Kind
from crdt.version_vector import VersionVector
from node.files.layout import HISTORY, TMP
from node.index.damage import UNREADABLE, unreadable

VERSION_SIZE_MAX: Final = 65_536
DEPTH_MAX: Final = 1_000  # directories; deeper paths cannot exist below PATH_MAX

PARKED: Final = ItemId(b"shoal parked dir")
"""Stands for `.shoal/tmp` as a parent: where an item waits while others permute their places."""

_DISPLACED_TAG: Final = b"past"

_COLUMNS: Final = (
    "item, parent, name, kind, version, digest, revision, shown_name, inode, size, mtime_ns, "
    "ctime_ns, executable, profile"
)


RELEASED: Final = -1  # `since_s` of a file in history that is no earlier version


@dataclass(frozen=True, slots=True)
class DiskRow:
    """One item on this disk. `profile` is the file's chunking profile, 0 where it has none yet."""

    item: ItemId
    parent: ItemId
    name: str
    kind: Kind
    version: VersionVector
    digest: bytes
    revision: int
    shown_name: str
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    executable: bool
    profile: int

    def moved(self, parent: ItemId, name: str) -> DiskRow:
        """The same item somewhere else."""
        return replace(self, parent=parent, name=name, shown_name=name)


def displaced_item(file: str) -> ItemId:
    """Stands for a file in `.shoal/history` as the holder of its blocks.

    What was displaced may be wanted still: as a conflict copy here, or by a peer.
    """
    return ItemId(_DISPLACED_TAG + bytes.fromhex(file.rpartition("/")[2]))


def is_displaced(item: ItemId) -> bool:
    """True for the holder of a file in `.shoal/history`."""
    return item.startswith(_DISPLACED_TAG)


@dataclass(frozen=True, slots=True)
class Intent:
    """What the applier was about to put where, noted before it touched the disk.

    If the process dies before the disk row says so, and the view moves on meanwhile, only this
    tells the next scan that what it finds is our own doing, not a person's. `history` is where what
    lay there before goes, if anything did: if it went, the intended content took its place.
    """

    item: ItemId
    parent: ItemId
    name: str
    version: VersionVector
    digest: bytes
    history: str | None = None


class DiskRows:
    """Reads and writes the table. Calls happen inside the caller's transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._fold: Callable[[str], str] | None = None
        self._heirs: dict[ItemId, ItemId] = {}

    def fold_by(self, key: Callable[[str], str] | None) -> None:
        """Names with equal keys are one name on this disk; None: only equal names are."""
        self._fold = key
        if key is None:
            self._db.execute("UPDATE disk SET fold = NULL WHERE fold IS NOT NULL")
            return
        rows = self._db.execute("SELECT item, name, fold FROM disk").fetchall()
        other = [(key(name), item) for item, name, fold in rows if fold != key(name)]
        if other:  # a new column, or the folder has moved to another disk
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("UPDATE disk SET fold = ? WHERE item = ?", other)
            self._db.execute("COMMIT")

    def lying_at(self, parent: ItemId, name: str) -> list[DiskRow]:
        """The rows of what lies in `parent` under names that this disk takes for `name`."""
        if self._fold is None:
            row = self.at(parent, name)
            return [] if row is None else [row]
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM disk WHERE parent = ? AND fold = ?",  # noqa: S608
            (parent, self._fold(name)),
        )
        return [_row(row) for row in rows]

    def get(self, item: ItemId) -> DiskRow | None:
        """The row of `item`."""
        return self._one("item = ?", (item,))

    def at(self, parent: ItemId, name: str) -> DiskRow | None:
        """The row of what lies at `name` in directory `parent`; none for names that cannot be in
        the tree.
        """
        if not name.isascii() and _is_no_text(name):
            return None
        return self._one("parent = ? AND name = ?", (parent, name))

    def with_inode(self, inode: int) -> list[DiskRow]:
        """All rows whose file had this inode when last seen (hard links share one)."""
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM disk WHERE inode = ?", (inode,))  # noqa: S608
        return [_row(row) for row in rows]

    def with_digest(self, digest: bytes, limit: int) -> list[DiskRow]:
        """Files with these very bytes."""
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM disk WHERE digest = ? AND kind = 1 AND size > 0 LIMIT ?",  # noqa: S608
            (digest, limit),
        )
        return [_row(row) for row in rows]

    def children(self, parent: ItemId) -> dict[str, DiskRow]:
        """What should lie in a directory, by name on this disk."""
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM disk WHERE parent = ?", (parent,))  # noqa: S608
        return {row.name: row for row in map(_row, rows)}

    def has_children(self, parent: ItemId) -> bool:
        """True when at least one row lies in `parent`."""
        found = self._db.execute("SELECT 1 FROM disk WHERE parent = ? LIMIT 1", (parent,))
        return found.fetchone() is not None

    def put(self, row: DiskRow) -> None:
        """Insert or replace the row of `row.item`; whatever row held the same place goes."""
        self._db.execute(
            f"INSERT OR REPLACE INTO disk ({_COLUMNS}, fold) "  # noqa: S608
            "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                row.item, row.parent, row.name, int(row.kind), pack(row.version.to_wire()),
                row.digest, row.revision, row.shown_name, row.inode, row.size, row.mtime_ns,
                row.ctime_ns, row.executable, row.profile,
                None if self._fold is None else self._fold(row.name),
            ),
        )  # fmt: skip

    def drop(self, item: ItemId) -> None:
        """Forget `item`; its children, if any, are the caller's."""
        self._db.execute("DELETE FROM disk WHERE item = ?", (item,))

    def note(self, item: ItemId, version: VersionVector, revision: int) -> None:
        """Record that the view's newest state needed nothing done on the disk."""
        self._db.execute(
            "UPDATE disk SET version = ?, revision = ? WHERE item = ?",
            (pack(version.to_wire()), revision, item),
        )

    def rekey(self, old: ItemId, new: ItemId) -> None:
        """What lies here as `old` is the same thing as item `new`: carry row and children over."""
        self._db.execute("DELETE FROM disk WHERE item = ?", (new,))
        self._db.execute("UPDATE disk SET item = ? WHERE item = ?", (new, old))
        self._db.execute("UPDATE OR REPLACE disk SET parent = ? WHERE parent = ?", (new, old))
        self.note_heir(old, new)

    def note_heir(self, old: ItemId, new: ItemId) -> None:
        """What was known as `old` a moment ago is item `new`; for a scan that is under way."""
        self._heirs[old] = new

    def heir(self, item: ItemId) -> ItemId:
        """Which item `item` turned out to be, since `forget_heirs`."""
        for _ in range(len(self._heirs)):  # what was handed to and fro ends somewhere
            if item not in self._heirs or self.get(item) is not None:
                break
            item = self._heirs[item]
        return item

    def forget_heirs(self) -> None:
        """A new scan begins, which knows nothing from before."""
        self._heirs.clear()

    def path(self, item: ItemId) -> str | None:
        """Where the item lies on this disk, `""` for the root; None when it or a parent does
        not.
        """
        names: list[str] = []
        while item != ROOT:
            if item == PARKED:
                names.append(TMP)
                break
            found = self._db.execute(
                "SELECT parent, name FROM disk WHERE item = ?", (item,)
            ).fetchone()
            if found is None and not names and item.startswith(_DISPLACED_TAG):
                return f"{HISTORY}/{item[len(_DISPLACED_TAG) :].hex()}"
            if found is None or len(names) > DEPTH_MAX:
                return None
            item = ItemId(found[0])
            names.append(found[1])
        return "/".join(reversed(names))

    def resolve(self, path: str) -> DiskRow | None:
        """The row at `path`; None when any part of it is unknown."""
        row: DiskRow | None = None
        parent = ROOT
        for name in path.split("/"):
            row = self.at(parent, name)
            if row is None:
                return None
            parent = row.item
        return row

    def subtree(self, top: DiskRow) -> Iterator[DiskRow]:
        """`top` and everything below it, parents first."""
        stack = [top]
        while stack:
            row = stack.pop()
            yield row
            if row.kind is Kind.DIRECTORY:
                stack.extend(self.children(row.item).values())

    # --- intents --------------------------------------------------------------------------------

    def intend(self, intents: Iterable[Intent]) -> None:
        """Note what is about to be put where."""
        self._db.executemany(
            "INSERT OR REPLACE INTO intents (item, parent, name, version, digest, history) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            [
                (i.item, i.parent, i.name, pack(i.version.to_wire()), i.digest, i.history)
                for i in intents
            ],
        )

    def intent(self, item: ItemId) -> Intent | None:
        """What was about to happen to `item`."""
        return self._intent("item = ?", (item,))

    def intent_at(self, parent: ItemId, name: str) -> Intent | None:
        """What was about to be put at `name` in `parent`."""
        return self._intent("parent = ? AND name = ?", (parent, name))

    def fulfil(self, items: Iterable[ItemId]) -> None:
        """The disk rows say it now, or it did not come to pass."""
        self._db.executemany("DELETE FROM intents WHERE item = ?", [(item,) for item in items])

    def forget_intents(self) -> None:
        """A full scan has seen everything: what is on the disk now is in the rows."""
        self._db.execute("DELETE FROM intents")

    def exchanges(self) -> list[Intent]:
        """What was about to displace something; for start-up."""
        return self._intents("history IS NOT NULL", ())

    def _intent(self, where: str, arguments: tuple[bytes | str, ...]) -> Intent | None:
        return next(iter(self._intents(where, arguments)), None)

    def _intents(self, where: str, arguments: tuple[bytes | str, ...]) -> list[Intent]:
        rows = self._db.execute(
            f"SELECT item, parent, name, version, digest, history FROM intents WHERE {where}",  # noqa: S608
            arguments,
        )
        return [_intent_row(row) for row in rows]

    # --- history --------------------------------------------------------------------------------

    def add_displaced(
        self,
        item: ItemId,
        path: str,
        version: VersionVector,
        digest: bytes,
        size: int,
        file: str,
        time_ns: int,
        *,
        released: bool = False,
    ) -> None:
        """Note what a file in history was; a `released` one is no earlier version, and goes."""
        since_s = RELEASED if released else None
        self._db.execute(
            "INSERT INTO displaced (item, path, version, digest, size, time_ns, file, since_s) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (item, path, pack(version.to_wire()), digest, size, time_ns, file, since_s),
        )

    def drop_displaced(self, file: str) -> None:
        """That file is none of history's any more."""
        self._db.execute("DELETE FROM displaced WHERE file = ?", (file,))

    def displaced_files(self) -> set[str]:
        """Every file in history that the index knows; for start-up only."""
        rows = self._db.execute("SELECT file FROM displaced WHERE file IS NOT NULL")
        return {file for (file,) in rows}

    def newest(self, size_min: int, size_max: int, limit: int) -> list[ItemId]:
        """The files of such a size that changed last; scans, so for start-up only."""
        rows = self._db.execute(
            "SELECT item FROM disk WHERE kind = 1 AND size BETWEEN ? AND ? "
            "ORDER BY mtime_ns DESC LIMIT ?",
            (size_min, size_max, limit),
        )
        return [ItemId(item) for (item,) in rows]

    def count(self) -> int:
        """How many rows there are; scans, so for start-up only."""
        (number,) = self._db.execute("SELECT count(*) FROM disk").fetchone()
        return int(number)

    def all_items(self) -> Iterator[ItemId]:
        """Every item with a row; for start-up and verify only."""
        for (item,) in self._db.execute("SELECT item FROM disk"):
            yield ItemId(item)

    def _one(self, where: str, arguments: tuple[bytes | str, ...]) -> DiskRow | None:
        found = self._db.execute(f"SELECT {_COLUMNS} FROM disk WHERE {where}", arguments)  # noqa: S608
        row = found.fetchone()
        return None if row is None else _row(row)


def _is_no_text(name: str) -> bool:
    """True for bytes on the disk that are no UTF-8; SQLite would refuse them."""
    return any("\ud800" <= character <= "\udfff" for character in name)


def _row(columns: tuple[Any, ...]) -> DiskRow:
    (
        item, parent, name, kind, version, digest, revision, shown_name,
        inode, size, mtime_ns, ctime_ns, executable, profile,
    ) = columns  # fmt: skip
    try:
        return DiskRow(
            item=ItemId(item),
            parent=ItemId(parent),
            name=name,
            kind=Kind(kind),
            version=VersionVector.from_wire(unpack(version, size_max=VERSION_SIZE_MAX)),
            digest=digest,
            revision=revision,
            shown_name=shown_name,
            inode=inode,
            size=size,
            mtime_ns=mtime_ns,
            ctime_ns=ctime_ns,
            executable=bool(executable),
            profile=profile,
        )
    except UNREADABLE as error:
        raise unreadable("a row of the disk", error) from error


def _intent_row(columns: tuple[Any, ...]) -> Intent:
    item, parent, name, version, digest, history = columns
    try:
        seen = VersionVector.from_wire(unpack(version, size_max=VERSION_SIZE_MAX))
        return Intent(ItemId(item), ItemId(parent), name, seen, digest, history)
    except UNREADABLE as error:
        raise unreadable("an intent", error) from error
