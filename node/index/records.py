"""The tree table's rows while one batch of slots is applied to them.

`Records` is a unit of work: rows are read once, changed in memory, and written together at the end.
Nothing of it outlives the batch, so a transaction that is rolled back leaves nothing false behind.

A record is an item that has slots (or `Recovered/`), or a virtual copy (`copy_of` is set).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from crdt.heads import heads, self_alive
from crdt.ids import RECOVERED, ROOT, DeviceId, ItemId
from crdt.slot import Content, Kind, Slot
from crdt.tree import RECOVERED_CONTENT, RECOVERED_NAME
from node.index.damage import UNREADABLE, unreadable
from node.index.slots import SlotTable

ASKED_AT_ONCE: Final = 500  # parameters of one statement; SQLite's old limit is 999

# How an item is shown. Up to NAMELESS, these are stored.
HIDDEN: Final = 0  # dead, or another item stands for it
KEEPS: Final = 1  # under the name that it wants
SUFFIXED: Final = 2  # under the first name that a loser tries
SUFFIXED_ON: Final = 3  # under a later one: moves up when an earlier one becomes free
NAMELESS: Final = 4  # a loser that has yet to be given a name

RECORDS_SCHEMA: Final = """
CREATE TABLE tree (
    item BLOB PRIMARY KEY,
    copy_of BLOB,                     -- the item whose losing head this virtual copy shows
    kind INTEGER NOT NULL,            -- of the winner; 0 when no slot has a content
    size INTEGER NOT NULL,            -- of the winner
    winner BLOB,                      -- the device whose slot holds the content shown
    self_alive INTEGER NOT NULL,
    parent BLOB,                      -- the effective one; NULL for a copy
    aim BLOB,                         -- the parent its placement names, where that is no directory
    name TEXT NOT NULL,               -- the wanted one
    placed INTEGER NOT NULL,          -- which placement holds; above 0 after a cycle
    live_children INTEGER NOT NULL,
    directory BLOB,                   -- the shown parent; NULL while dead
    state INTEGER NOT NULL,           -- how it is shown
    shown TEXT,                       -- the name given to a loser; NULL for all others
    face BLOB,                        -- the item that stands for this one, if another one does
    conflicts INTEGER NOT NULL,       -- virtual copies of all that this one stands for
    copies INTEGER NOT NULL,          -- its own virtual copies
    revision INTEGER NOT NULL,        -- of its own slots
    top INTEGER NOT NULL              -- of its row: the newest of all that it stands for
) WITHOUT ROWID;
CREATE INDEX tree_names ON tree (directory, name) WHERE directory IS NOT NULL;
CREATE INDEX tree_shown ON tree (directory, shown) WHERE shown IS NOT NULL;
CREATE INDEX tree_demoted ON tree (directory) WHERE state = 3;
CREATE INDEX tree_apart ON tree (parent) WHERE copy_of IS NULL AND directory IS NOT parent;
CREATE INDEX tree_aim ON tree (aim) WHERE aim IS NOT NULL;
CREATE INDEX tree_fallen ON tree (placed) WHERE placed > 0;
CREATE INDEX tree_face ON tree (face) WHERE face IS NOT NULL;
CREATE INDEX tree_copies ON tree (copy_of) WHERE copy_of IS NOT NULL;
CREATE INDEX tree_conflicts ON tree (item) WHERE conflicts > 0;

CREATE TABLE tree_state (
    id INTEGER PRIMARY KEY CHECK (id = 0),
    revision INTEGER NOT NULL,        -- the newest one given to an item
    files INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    conflicts INTEGER NOT NULL
);
INSERT INTO tree_state VALUES (0, 0, 0, 0, 0);
"""

_COLUMNS: Final = (
    "item, copy_of, kind, size, winner, self_alive, parent, aim, name, placed, live_children, "
    "directory, state, shown, face, conflicts, copies, revision, top"
)
_SELECT: Final = f"SELECT {_COLUMNS} FROM tree WHERE "  # noqa: S608 - constants only
_INSERT: Final = f"INSERT OR REPLACE INTO tree VALUES ({','.join('?' * 19)})"  # noqa: S608 - the same

# The questions that are asked of the table, each answered from one index.
CHILDREN_TOGETHER: Final = "directory = ? AND parent = ?"
CHILDREN_APART: Final = "parent = ? AND copy_of IS NULL AND directory IS NOT parent"
COPIES: Final = "copy_of = ?"
AIMING_AT: Final = "aim = ?"
FALLEN: Final = "placed > 0"
NAMED: Final = "directory = ? AND name = ? AND copy_of IS NULL"
SHOWN_AS: Final = "directory = ? AND shown = ?"
DEMOTED: Final = "directory = ? AND state = 3"
QUESTIONS: Final = (
    CHILDREN_TOGETHER, CHILDREN_APART, COPIES, AIMING_AT, FALLEN, NAMED, SHOWN_AS, DEMOTED,
)  # fmt: skip

_Values = tuple[object, ...]


@dataclass(slots=True, eq=False)
class Record:
    """One row, its columns first (see the schema), then what only the batch needs."""

    item: ItemId
    copy_of: ItemId | None = None
    kind: int = 0
    size: int = 0
    winner: DeviceId | None = None
    self_alive: bool = False
    parent: ItemId | None = None
    aim: ItemId | None = None
    name: str = ""
    placed: int = 0
    live_children: int = 0
    directory: ItemId | None = None
    state: int = HIDDEN
    shown: str | None = None
    face: ItemId | None = None
    conflicts: int = 0
    copies: int = 0
    revision: int = 0
    top: int = 0

    stored: Record | None = None  # as the table has it
    exists: bool = True
    alive: bool = False
    slots: dict[DeviceId, Slot] | None = None
    losers: list[Content] | None = None  # set when the slots were looked at anew
    copied: list[Record] | None = None  # the virtual copies, once they were asked for
    filed: tuple[ItemId, str] | None = None  # the group of names it is in
    counted: ItemId | None = None  # the parent that counts it among its living children

    def values(self) -> _Values:
        """The columns."""
        return (
            self.item, self.copy_of, self.kind, self.size, self.winner, self.self_alive,
            self.parent, self.aim, self.name, self.placed, self.live_children, self.directory,
            self.state, self.shown, self.face, self.conflicts, self.copies, self.revision,
            self.top,
        )  # fmt: skip

    def row(self) -> _Values | None:
        """What of it a view row shows; None while it has none. A content never changes alone:
        the revision changes with it.
        """
        if self.state == HIDDEN:
            return None
        return (self.directory, self.shown or self.name, self.top, self.copy_of, self.conflicts)

    @property
    def is_directory(self) -> bool:
        """True when other items may lie in it."""
        return self.kind == Kind.DIRECTORY and self.copy_of is None


def _id(value: bytes | None) -> ItemId | None:
    return None if value is None else ItemId(value)


def _record(row: Sequence[Any]) -> Record:
    try:
        return _decoded(row)
    except UNREADABLE as error:
        raise unreadable("a row of the tree", error) from error


def _decoded(row: Sequence[Any]) -> Record:
    made = Record(*row)
    made.item = ItemId(made.item)
    made.copy_of, made.parent, made.aim = _id(made.copy_of), _id(made.parent), _id(made.aim)
    made.directory, made.face = _id(made.directory), _id(made.face)
    made.self_alive = bool(made.self_alive)
    return made


@dataclass(slots=True)
class Outcome:
    """What a batch did: rows that changed, and by how much the totals did."""

    changed: set[ItemId] = field(default_factory=set)
    files: int = 0
    bytes: int = 0
    conflicts: int = 0


class Records:
    """The rows that one batch has to do with."""

    def __init__(self, db: sqlite3.Connection, slots: SlotTable) -> None:
        self._db = db
        self._table = slots
        self._known: dict[ItemId, Record | None] = {}
        self.derived: dict[ItemId, ItemId] = {}  # materialised copies, and of what
        self.released: set[ItemId] = set()  # directories where a loser gave up its name

    # --- reading --------------------------------------------------------------------------------

    def find(self, item: ItemId) -> Record | None:
        """The record of `item`, as it is now."""
        if item in self._known:
            found = self._known[item]
            return found if found is not None and found.exists else None
        row = self._db.execute(_SELECT + "item = ?", (item,)).fetchone()
        if row is not None:
            return self._take(row)
        self._known[item] = None
        return None

    def get(self, item: ItemId) -> Record:
        """The record of an item that has one; `Recovered/` always does."""
        found = self.find(item)
        if found is None:
            assert item == RECOVERED, f"item {item} has no record"
            found = self.claim(RECOVERED)
            found.kind, found.parent, found.name = Kind.DIRECTORY, ROOT, RECOVERED_NAME
        return found

    def prefetch(self, items: Iterable[ItemId]) -> None:
        """Read many records at once."""
        wanted = [item for item in items if item not in self._known]
        for start in range(0, len(wanted), ASKED_AT_ONCE):
            some = wanted[start : start + ASKED_AT_ONCE]
            marks = ",".join("?" * len(some))
            self._known.update(dict.fromkeys(some))
            for row in self._db.execute(f"{_SELECT}item IN ({marks})", some):
                self._take(row)

    def ask(self, question: str, *values: object) -> list[Record]:
        """The records that match one of `QUESTIONS` *in the table*: check that they still do."""
        rows = self._db.execute(_SELECT + question, values).fetchall()
        return [self._take(row) for row in rows]

    def _take(self, row: Sequence[Any]) -> Record:
        known = self._known.get(row[0])
        if known is not None:
            return known
        made = _record(row)
        made.stored = _record(row)
        if made.copy_of is None:
            made.alive = made.directory is not None
            if made.directory is not None:
                made.filed, made.counted = (made.directory, made.name), made.parent
        self._known[made.item] = made
        return made

    def slots(self, record: Record) -> dict[DeviceId, Slot]:
        """The slots of an item."""
        if record.slots is None:
            record.slots = self._table.of(record.item)
        return record.slots

    def content(self, record: Record) -> Content:
        """What a record shows."""
        if record.winner is None:
            return RECOVERED_CONTENT
        owner = record if record.copy_of is None else self.get(record.copy_of)
        if owner.slots is None:
            return self._table.content(owner.item, record.winner)
        content = owner.slots[record.winner].content
        assert content is not None, f"the winning slot of {owner.item} has no content"
        return content

    def copies(self, record: Record) -> list[Record]:
        """The virtual copies of an item."""
        if record.copied is None:
            record.copied = self.ask(COPIES, record.item) if record.copies else []
        return [copy for copy in record.copied if copy.exists and copy.copy_of == record.item]

    def derived_from(self, item: ItemId) -> ItemId | None:
        """The item whose losing head `item` was made of, if it was."""
        row = self._db.execute("SELECT copy_of FROM derived WHERE item = ?", (item,)).fetchone()
        return None if row is None else ItemId(row[0])

    # --- changing -------------------------------------------------------------------------------

    def claim(self, item: ItemId) -> Record:
        """The record of an item that is new, or was a virtual copy: blank but for its past."""
        known = self.find(item) or self._known.get(item)
        made = Record(item)
        if known is not None:
            if known.exists and known.copy_of is None:
                return known
            self.drop(known)
            made.stored = known.stored
        self._known[item] = made
        return made

    def drop(self, copy: Record) -> None:
        """A virtual copy is no more."""
        self.unname(copy)
        copy.exists = False

    def unname(self, record: Record) -> None:
        """Take a record's shown name away; it must be shown anew."""
        if record.state in {SUFFIXED, SUFFIXED_ON} and record.directory is not None:
            self.released.add(record.directory)
        record.state, record.shown = HIDDEN, None

    def look(self, record: Record) -> None:
        """Work out anew what the item's slots alone say."""
        slots = self.slots(record)
        contents = heads(slots)
        record.self_alive = self_alive(slots)
        if record.item == RECOVERED and contents and contents[0].kind is not Kind.DIRECTORY:
            contents = []  # whatever anybody wrote, other items lie in it
        record.losers = contents[1:]
        record.kind, record.size, record.winner = 0, 0, None
        if contents:
            record.kind, record.size = int(contents[0].kind), contents[0].size
            record.winner = holder(slots, contents[0])
        if record.item == RECOVERED:
            record.kind, record.parent, record.name = Kind.DIRECTORY, ROOT, RECOVERED_NAME

    # --- writing --------------------------------------------------------------------------------

    def flush(self) -> Outcome:
        """Write what changed, and say what that is."""
        outcome = Outcome()
        puts: list[_Values] = []
        gone: list[tuple[ItemId]] = []
        for record in self._known.values():
            if record is None:
                continue
            if record.item == RECOVERED and not record.alive and not record.revision:
                record.exists = False  # nobody wrote it, nothing lies in it
            stored = record.stored
            values = record.values()
            if not record.exists:
                if stored is None:
                    continue
                gone.append((record.item,))
            elif stored is None or values != stored.values():
                puts.append(values)
            else:
                continue
            assert record.state != NAMELESS, "every loser gets a name"
            _compare(stored, record if record.exists else None, outcome)
        self._db.executemany("INSERT OR IGNORE INTO derived VALUES (?, ?)", self.derived.items())
        puts.sort()  # neighbours lie on one page
        self._db.executemany("DELETE FROM tree WHERE item = ?", gone)
        self._db.executemany(_INSERT, puts)
        return outcome


def holder(slots: dict[DeviceId, Slot], content: Content) -> DeviceId:
    """The device whose slot holds this very content."""
    return next(device for device, slot in slots.items() if slot.content is content)


def _compare(before: Record | None, after: Record | None, outcome: Outcome) -> None:
    old = None if before is None else before.row()
    new = None if after is None else after.row()
    for record, row, sign in ((before, old, -1), (after, new, 1)):
        if record is not None and row is not None:
            if record.kind != Kind.DIRECTORY:
                outcome.files += sign
                outcome.bytes += sign * record.size
            outcome.conflicts += sign * (record.conflicts > 0)
    if old != new:
        shown = after if after is not None else before
        assert shown is not None, "something changed"
        outcome.changed.add(shown.item)
