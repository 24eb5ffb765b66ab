"""The tree that people see, kept up to date in the index, slot by slot.

`crdt.tree.view` is the specification: a property test holds this equal to it. What costs there a
walk over everything costs here what the change touches: a renamed directory is one row, whatever
lies in it. A batch of slots is applied in four steps, over `node.index.records` in memory:
merge the slots, find places and life (`node.index.places`), settle names (`node.index.groups`),
write the rows that changed.

All calls happen inside the caller's transaction, and nothing is kept in memory that a rollback
could make false. Rows name their parent item, never a path.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from crdt.ids import RECOVERED, ROOT, DeviceId, ItemId
from crdt.naming import MARK
from crdt.slot import Content, Slot, merge
from crdt.tree import RECOVERED_CONTENT, ViewRow
from crdt.version_vector import VersionVector
from node.index.damage import UNREADABLE, DamagedIndexError, unreadable
from node.index.groups import Groups
from node.index.places import Places
from node.index.records import HIDDEN, KEEPS, RECORDS_SCHEMA, Record, Records
from node.index.slots import SLOTS_SCHEMA, SlotTable

TREE_SCHEMA: Final = SLOTS_SCHEMA + RECORDS_SCHEMA
TREE_HISTORY_SCHEMA: Final = """
CREATE TABLE past_slots (             -- slots that a later write of their device replaced
    item BLOB NOT NULL,
    device BLOB NOT NULL,
    counter INTEGER NOT NULL,
    data BLOB NOT NULL,
    since_s INTEGER,                  -- on history's own clock; NULL until it came by
    PRIMARY KEY (item, device, counter)
);
CREATE INDEX past_slots_since ON past_slots (since_s);

CREATE TABLE former_places (          -- where items were put that lie elsewhere now
    parent BLOB NOT NULL,
    name TEXT NOT NULL,
    item BLOB NOT NULL,
    PRIMARY KEY (parent, name, item)
) WITHOUT ROWID;
CREATE INDEX tree_gone ON tree (parent, name) WHERE directory IS NULL;
"""
TREE_DERIVED_SCHEMA: Final = """
CREATE TABLE derived (                -- items that began as virtual copies, and of which
    item BLOB PRIMARY KEY,
    copy_of BLOB NOT NULL
) WITHOUT ROWID;
"""
TREE_MARKED_SCHEMA: Final = f"""
CREATE INDEX tree_marked ON tree (item) WHERE instr(name, '{MARK}') > 0;
CREATE INDEX tree_robbed ON tree (item) WHERE shown IS NOT NULL AND copy_of IS NULL;
"""
ROWS_AT_ONCE: Final = 256  # rows read at once where there may be a million

_ROW: Final = """
SELECT tree.item, directory, name, shown, state, copy_of, conflicts, top, winner, data
FROM tree LEFT JOIN slots
ON slots.item = coalesce(tree.copy_of, tree.item) AND slots.device = tree.winner
WHERE """
ONE_ROW: Final = _ROW + "tree.item = ?"
ROWS_NAMED: Final = _ROW + f"directory = ? AND name = ? AND state = {KEEPS}"
ROWS_SUFFIXED: Final = _ROW + "directory = ? AND shown = ?"
CHILD_ROWS: Final = _ROW + (
    f"directory = ? AND (name, tree.item) > (?, ?) ORDER BY name, tree.item LIMIT {ROWS_AT_ONCE}"
)
ALL_ROWS: Final = _ROW + f"tree.item > ? ORDER BY tree.item LIMIT {ROWS_AT_ONCE}"
CONFLICT_ROWS: Final = _ROW + (
    f"tree.item > ? AND conflicts > 0 ORDER BY tree.item LIMIT {ROWS_AT_ONCE}"
)
ROBBED_ROWS: Final = _ROW + (
    "tree.item > ? AND shown IS NOT NULL AND copy_of IS NULL "
    f"ORDER BY tree.item LIMIT {ROWS_AT_ONCE}"
)
MARKED_ROWS: Final = _ROW + (
    f"tree.item > ? AND instr(name, '{MARK}') > 0 AND copy_of IS NULL AND state = {KEEPS} "
    f"ORDER BY tree.item LIMIT {ROWS_AT_ONCE}"
)
EVER_AT: Final = """
SELECT item FROM tree WHERE directory = ? AND name = ?
UNION SELECT item FROM tree WHERE directory = ? AND shown = ?
UNION SELECT item FROM tree WHERE directory IS NULL AND parent = ? AND name = ?
UNION SELECT item FROM former_places WHERE parent = ? AND name = ?
"""
EVER_IN: Final = """
SELECT item FROM tree WHERE directory = ?
UNION SELECT item FROM tree WHERE directory IS NULL AND parent = ?
UNION SELECT item FROM former_places WHERE parent = ?
"""
DELETED: Final = (
    "SELECT item, parent, name FROM tree WHERE directory IS NULL "  # noqa: S608 - constants only
    f"AND (parent, name, item) > (?, ?, ?) ORDER BY parent, name, item LIMIT {ROWS_AT_ONCE}"
)
MEMBERS: Final = "SELECT item FROM tree WHERE face = ?"


@dataclass(frozen=True, slots=True)
class Totals:
    """What the tree shows: files and symlinks, copies included, their bytes, items in conflict."""

    files: int
    bytes: int
    conflicts: int


class TreeIndex:
    """The view of one folder; a `crdt.tree.TreeReader`."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._slots = SlotTable(db)

    def apply(self, writes: Iterable[tuple[ItemId, DeviceId, Slot]]) -> set[ItemId]:
        """Merge slots into the tree.

        Returns: the ids of all rows that appeared, changed in any field or vanished.
        """
        (revision,) = self._db.execute("SELECT revision FROM tree_state").fetchone()
        records = Records(self._db, self._slots)
        written, past = self._merge(records, writes, revision + 1)
        return self._settle(records, written, past, revision + 1) if written else set()

    def take_back(
        self, former: Iterable[tuple[ItemId, DeviceId, Slot | None]]
    ) -> tuple[set[ItemId], list[tuple[ItemId, DeviceId, Slot]]]:
        """Put what slots said before in the place of what does not count any more; None where they
        said nothing.

        Returns: as `apply`, and the slots that were taken back; history still knows these.
        """
        (revision,) = self._db.execute("SELECT revision FROM tree_state").fetchone()
        records = Records(self._db, self._slots)
        taken: list[tuple[ItemId, DeviceId, Slot]] = []
        restored: list[tuple[ItemId, DeviceId, Slot]] = []
        written: dict[Record, None] = {}
        for item, device, slot in former:
            record = records.find(item)
            slots = {} if record is None or record.copy_of else dict(records.slots(record))
            now = slots.pop(device, None)
            if record is None or now is None or now == slot:
                continue
            taken.append((item, device, now))
            if slot is not None:
                slots[device] = slot
                restored.append((item, device, slot))
            record.slots, record.revision = slots, revision + 1
            written[record] = None
            of = None if slots else records.derived_from(item)
            if of is not None and (original := records.find(of)) is not None:
                written[original] = None  # it may have a virtual copy again
        self._slots.put_past(taken)
        self._slots.remove(taken)
        self._slots.put(restored)
        for record in written:
            records.look(record)
        past = [(item, slot) for item, _, slot in taken]
        return self._settle(records, list(written), past, revision + 1), taken

    def _settle(
        self,
        records: Records,
        written: list[Record],
        past: Sequence[tuple[ItemId, Slot]],
        revision: int,
    ) -> set[ItemId]:
        affected = Places(records).settle(written)
        for record in written:
            if not records.slots(record) and record.item != RECOVERED:
                record.exists = False
        Groups(records).settle(affected)
        outcome = records.flush()
        self._note_places(records, written, past)
        self._db.execute(
            "UPDATE tree_state SET revision = ?, files = files + ?, bytes = bytes + ?, "
            "conflicts = conflicts + ?",
            (revision, outcome.files, outcome.bytes, outcome.conflicts),
        )
        return outcome.changed

    def _merge(
        self, records: Records, writes: Iterable[tuple[ItemId, DeviceId, Slot]], revision: int
    ) -> tuple[list[Record], list[tuple[ItemId, Slot]]]:
        """Store what is newer than what is here; returns the records to look at, and the slots
        that were replaced.
        """
        batch: dict[ItemId, dict[DeviceId, Slot]] = {}
        past: list[tuple[ItemId, DeviceId, Slot]] = []
        for item, device, slot in writes:
            assert item != ROOT, "entries cannot write the root"
            of = batch.setdefault(item, {})
            older = of.get(device)
            of[device] = merge(older, slot)
            if older is not None and of[device] is slot:
                past.append((item, device, older))
        records.prefetch(batch)
        written: dict[Record, None] = {}
        newer: list[tuple[ItemId, DeviceId, Slot]] = []
        for item, slots in batch.items():
            record = records.find(item)
            real = record is not None and record.copy_of is None
            known = records.slots(record) if record is not None and real else {}
            merged = {device: merge(known.get(device), slot) for device, slot in slots.items()}
            changed = [(item, d, s) for d, s in merged.items() if s is not known.get(d)]
            if not changed:
                continue
            newer += changed
            past += [(item, d, known[d]) for _, d, _ in changed if d in known]
            if record is not None and record.copy_of is not None:  # materialised
                written[records.get(record.copy_of)] = None
                records.derived[item] = record.copy_of
            record = records.claim(item)
            record.slots = {**known, **merged}
            record.revision = revision
            written[record] = None
        self._slots.put(newer)
        self._slots.put_past(past)
        for record in written:
            records.look(record)
        return list(written), [(item, slot) for item, _, slot in past]

    def _note_places(
        self, records: Records, written: Sequence[Record], past: Iterable[tuple[ItemId, Slot]]
    ) -> None:
        """Remember where the written items were put before: people ask by what was where."""
        said = list(past)
        for record in written:
            if record.copy_of is None:
                said += [(record.item, slot) for slot in records.slots(record).values()]
        places = set()
        for item, slot in said:
            found = records.find(item)
            now = None if found is None else (found.parent, found.name)
            for placement in slot.placements:
                if (placement.parent, placement.name) != now:
                    places.add((placement.parent, placement.name, item))
        self._db.executemany("INSERT OR IGNORE INTO former_places VALUES (?, ?, ?)", places)

    # --- reading (see TreeReader) -----------------------------------------------------------------

    def row(self, item: ItemId) -> ViewRow | None:
        """The row of a shown item; None for hidden, dead and unknown ones."""
        return self._one(ONE_ROW, item)

    def slots(self, item: ItemId) -> Mapping[DeviceId, Slot]:
        """All slots of an item, shown or not."""
        return self._slots.of(item)

    def members(self, item: ItemId) -> Sequence[ItemId]:
        """All live items that a shown one stands for, itself included, sorted."""
        return [item, *sorted(ItemId(other) for (other,) in self._db.execute(MEMBERS, (item,)))]

    def representative(self, item: ItemId) -> ItemId:
        """The shown item that stands for `item`; `item` itself where none does."""
        found = self._db.execute("SELECT face FROM tree WHERE item = ?", (item,)).fetchone()
        return item if found is None or found[0] is None else ItemId(found[0])

    def child(self, parent: ItemId, name: str) -> ViewRow | None:
        """What is shown at `name` in the shown directory `parent`."""
        return self._one(ROWS_NAMED, parent, name) or self._one(ROWS_SUFFIXED, parent, name)

    def children(self, parent: ItemId) -> Iterator[ViewRow]:
        """Everything shown in the shown directory `parent`; in no special order."""
        at: tuple[str, bytes] | None = ("", b"")
        while at is not None:
            rows = self._db.execute(CHILD_ROWS, (parent, *at)).fetchall()
            at = (rows[-1][2], rows[-1][0]) if len(rows) == ROWS_AT_ONCE else None
            yield from self._visible(rows)

    def path(self, item: ItemId) -> str | None:
        """Shown names from the top, `a/b/c`; `""` for the root, None for what is not shown."""
        names: list[str] = []
        while item != ROOT:
            found = self._db.execute(
                "SELECT directory, coalesce(shown, name) FROM tree WHERE item = ? AND state > 0",
                (item,),
            ).fetchone()
            if found is None:
                return None
            item = ItemId(found[0])
            names.append(found[1])
        return "/".join(reversed(names))

    def resolve(self, path: str) -> ViewRow | None:
        """The row shown at `path`; None for the root, which has no row."""
        row: ViewRow | None = None
        parent = ROOT
        for name in path.split("/"):
            row = self.child(parent, name)
            if row is None:
                return None
            parent = row.item
        return row

    def ever_at(self, parent: ItemId, name: str) -> set[ItemId]:
        """Every item that lies or ever lay at `name` in directory `parent`, dead ones too.

        `parent` is the item itself, not what stands for it.
        """
        rows = self._db.execute(EVER_AT, (parent, name, parent, name, parent, name, parent, name))
        return {ItemId(item) for (item,) in rows}

    def ever_in(self, parent: ItemId) -> set[ItemId]:
        """As `ever_at`, whatever the name."""
        rows = self._db.execute(EVER_IN, (parent, parent, parent))
        return {ItemId(item) for (item,) in rows}

    def ever_of(self, item: ItemId) -> list[tuple[DeviceId, Slot]]:
        """Every slot that the item has and had; see `SlotTable.ever_of`."""
        return self._slots.ever_of(item)

    def content_of_version(self, item: ItemId, version: VersionVector) -> Content | None:
        """See `SlotTable.content_of_version`."""
        return self._slots.content_of_version(item, version)

    def deleted(self) -> Iterator[tuple[ItemId, ItemId, str]]:
        """(item, its last parent, its last name) of everything that is deleted."""
        at: tuple[bytes, str, bytes] | None = (b"", "", b"")
        while at is not None:
            rows = self._db.execute(DELETED, at).fetchall()
            last = rows[-1] if len(rows) == ROWS_AT_ONCE else None
            at = None if last is None else (last[1], last[2], last[0])
            for item, parent, name in rows:
                yield ItemId(item), ItemId(parent), name

    def last_place(self, item: ItemId) -> tuple[ItemId, str] | None:
        """Where the item was last put, whether or not it is shown."""
        row = self._db.execute("SELECT parent, name FROM tree WHERE item = ?", (item,)).fetchone()
        return None if row is None or row[0] is None else (ItemId(row[0]), row[1])

    def totals(self) -> Totals:
        """What the whole tree shows, without counting it."""
        found = self._db.execute("SELECT files, bytes, conflicts FROM tree_state").fetchone()
        return Totals(*found)

    def all_rows(self) -> Iterator[ViewRow]:
        """Every row, in the order of ids. Reads the whole table: for start-up and `verify`."""
        return self._paged(ALL_ROWS)

    def all_items(self) -> Iterator[ItemId]:
        """The ids of `all_rows`, much cheaper."""
        at: bytes | None = b""
        while at is not None:
            rows = self._db.execute(
                f"SELECT item, state FROM tree WHERE item > ? ORDER BY item LIMIT {ROWS_AT_ONCE}",  # noqa: S608
                (at,),
            ).fetchall()
            at = rows[-1][0] if len(rows) == ROWS_AT_ONCE else None
            for item, state in rows:
                if state != HIDDEN:
                    yield ItemId(item)

    def conflicts(self) -> Iterator[ViewRow]:
        """The rows that have virtual copies, in the order of ids."""
        return self._paged(CONFLICT_ROWS)

    def robbed_of_their_name(self) -> Iterator[ViewRow]:
        """The rows of items that another one of the same name stands before."""
        return self._paged(ROBBED_ROWS)

    def named_as_copies(self) -> Iterator[ViewRow]:
        """The rows of items that were put under a name such as conflict copies get."""
        return self._paged(MARKED_ROWS)

    def derived_from(self, item: ItemId) -> ItemId | None:
        """What an item was a virtual copy of before it became one of its own, if that is known."""
        row = self._db.execute("SELECT copy_of FROM derived WHERE item = ?", (item,)).fetchone()
        return None if row is None else ItemId(row[0])

    def _paged(self, query: str) -> Iterator[ViewRow]:
        at: bytes | None = b""
        while at is not None:
            rows = self._db.execute(query, (at,)).fetchall()
            at = rows[-1][0] if len(rows) == ROWS_AT_ONCE else None
            yield from self._visible(rows)

    def _one(self, query: str, *values: object) -> ViewRow | None:
        return next(self._visible(self._db.execute(query, values).fetchall()), None)

    def _visible(self, rows: Iterable[Sequence[Any]]) -> Iterator[ViewRow]:
        for item, directory, name, shown, state, copy_of, conflicts, top, winner, data in rows:
            if state == HIDDEN:
                continue
            content = RECOVERED_CONTENT
            if winner is not None:
                found = None if data is None else self._slots.decode(data).content
                if found is None:
                    raise DamagedIndexError("the index shows a content that it does not hold")
                content = found
            try:
                row = ViewRow(
                    item=ItemId(item),
                    parent=ItemId(directory),
                    name=shown or name,
                    content=content,
                    revision=top,
                    copy_of=None if copy_of is None else ItemId(copy_of),
                    conflicts=conflicts,
                )
            except UNREADABLE as error:
                raise unreadable("a row of the tree", error) from error
            yield row
