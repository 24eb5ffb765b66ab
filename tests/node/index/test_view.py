"""The index's view is held equal to `crdt.tree.view`, batch by batch, over histories and soups."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Final

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from crdt.actions import Draft, Writer
from crdt.errors import IntegrityError
from crdt.ids import RECOVERED, ROOT, DeviceId, ItemId
from crdt.slot import Content, Kind, Placement, Slot, merge
from crdt.tree import View, ViewRow, view
from crdt.version_vector import VersionVector
from node.index import records, slots
from node.index import view as view_module
from node.index.view import TREE_DERIVED_SCHEMA, TREE_HISTORY_SCHEMA, TREE_SCHEMA, Totals, TreeIndex

DEVICES: Final = [DeviceId(bytes([n]) * 32) for n in (1, 2, 3)]
ITEMS: Final = [ItemId(bytes([n]) * 16) for n in range(1, 13)]
UNKNOWN: Final = ItemId(b"\xee" * 16)
NAMES: Final = ["a", "b", "Recovered"]
EXAMPLES: Final = int(os.environ.get("SHOAL_EXAMPLES", "60"))

Write = tuple[ItemId, DeviceId, Slot]


class Both:
    """The index and the specification, given the same slots."""

    def __init__(self) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        self.db.executescript(TREE_SCHEMA + TREE_HISTORY_SCHEMA + TREE_DERIVED_SCHEMA)
        self.index = TreeIndex(self.db)
        self.state: dict[tuple[ItemId, DeviceId], Slot] = {}
        self.revisions: dict[ItemId, int] = {}
        self.pure: View = view({})

    def apply(self, writes: Sequence[Write]) -> None:
        """Apply to both, and compare everything."""
        before = self.pure.rows
        changed = self.index.apply(writes)
        (revision,) = self.db.execute("SELECT revision FROM tree_state").fetchone()
        for item, device, slot in writes:
            old = self.state.get((item, device))
            self.state[item, device] = merge(old, slot)
            if self.state[item, device] is not old:
                self.revisions[item] = revision
        self._compare_changed(before, changed)

    def take_back(self, former: Sequence[tuple[ItemId, DeviceId, Slot | None]]) -> None:
        """Put older slots back, in both, and compare everything."""
        before = self.pure.rows
        changed, taken = self.index.take_back(former)
        (revision,) = self.db.execute("SELECT revision FROM tree_state").fetchone()
        expected = []
        for item, device, slot in former:
            now = self.state.get((item, device))
            if now is None or now == slot:
                continue
            expected.append((item, device, now))
            if slot is None:
                del self.state[item, device]
            else:
                self.state[item, device] = slot
            self.revisions[item] = revision
        assert taken == expected
        self._compare_changed(before, changed)

    def _compare_changed(self, before: Mapping[ItemId, ViewRow], changed: set[ItemId]) -> None:
        self.pure = view(self.state, self.revisions)
        self.compare()
        rows = self.pure.rows
        expected = {i for i in before.keys() | rows.keys() if before.get(i) != rows.get(i)}
        assert changed == expected

    def compare(self) -> None:
        pure, index = self.pure, self.index
        assert {row.item: row for row in index.all_rows()} == pure.rows
        assert sorted(index.all_items()) == sorted(pure.rows)
        assert {row.item for row in index.conflicts()} == {
            row.item for row in pure.rows.values() if row.conflicts
        }
        files = [row for row in pure.rows.values() if row.content.kind is not Kind.DIRECTORY]
        assert index.totals() == Totals(
            len(files),
            sum(row.content.size for row in files),
            sum(row.conflicts > 0 for row in pure.rows.values()),
        )
        everything = {item for item, _ in self.state} | set(pure.rows) | {ROOT, RECOVERED, UNKNOWN}
        for item in everything:
            assert index.row(item) == pure.row(item)
            assert index.representative(item) == pure.representative(item)
            assert list(index.members(item)) == list(pure.members(item))
            assert dict(index.slots(item)) == dict(pure.slots(item))
            shown = {row.name: row for row in index.children(item)}
            assert shown == {row.name: row for row in pure.children(item)}
            for name in {*shown, *NAMES}:
                assert index.child(item, name) == pure.child(item, name)
            path = index.path(item)
            assert (path is None) == (item != ROOT and pure.row(item) is None)
            if path:
                assert index.resolve(path) == pure.row(item)


# --- soups: slots that no honest history makes ----------------------------------------------------

FILES: Final = (Kind.FILE, Kind.FILE, Kind.SYMLINK)
KINDS: Final = {  # some items are of one kind, as they should be, some are not
    **dict.fromkeys(ITEMS[:4], (Kind.DIRECTORY,)),
    **dict.fromkeys(ITEMS[4:8], FILES),
    **dict.fromkeys((*ITEMS[8:], RECOVERED), (Kind.DIRECTORY, *FILES)),
}


class Soup:
    """Draws slots: few items, few names, so that everything clashes with everything."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.items = random.sample(ITEMS, random.randint(2, len(ITEMS)))
        self.mixed = random.random() < 0.3
        self.deletes = random.choice((0.0, 0.1, 0.3))
        self.root_share = random.random()
        self.counter = 0

    def batch(self, both: Both) -> list[Write]:
        shown = [row.name for row in both.pure.rows.values()]
        copies = [row.item for row in both.pure.rows.values() if row.copy_of is not None]
        pick, chance = self.random.choice, self.random.random
        writes = []
        for _ in range(pick((1, 1, 2, 5))):
            item = pick(self.items)
            if copies and chance() < 0.15:
                item = pick(copies)
            elif chance() < 0.02:
                item = RECOVERED
            names = shown if shown and chance() < 0.1 else NAMES
            self.counter += 1
            late = self.random.randint(1, 5) if chance() < 0.1 else 0
            writes.append((item, pick(DEVICES), self.slot(item, names, self.counter - late)))
        return writes

    def slot(self, item: ItemId, names: Sequence[str], counter: int) -> Slot:
        pick, chance = self.random.choice, self.random.random
        lamports = self.random.sample(range(1, 12), pick((0, 1, 1, 2, 4)))
        placements = []
        for lamport in sorted(lamports, reverse=True):
            parent = ROOT
            if chance() > self.root_share:
                parent = pick((*self.items, *ITEMS[:4], RECOVERED, UNKNOWN))
            placements.append(Placement(lamport, parent, pick(names)))
        deleted = None
        if chance() < self.deletes:
            seen = {d: self.random.randint(0, self.counter + 3) for d in DEVICES}
            deleted = VersionVector(seen)
        return Slot(
            counter=max(counter, 1),
            placements=tuple(placements),
            content=self.content(item) if chance() < 0.9 else None,
            deleted=deleted,
        )

    def content(self, item: ItemId) -> Content:
        pick, chance = self.random.choice, self.random.random
        kinds = KINDS.get(item, FILES) if self.mixed else KINDS.get(item, FILES)[:1]
        kind, device = pick(kinds), pick(DEVICES)
        seen = {d: self.random.randint(0, 2) for d in DEVICES if chance() < 0.3}
        version = VersionVector({**seen, device: self.random.randint(1, 4)})
        inline = pick((b"", b"x", b"yy")) if kind is Kind.FILE else None
        return Content(
            version=version,
            device=device,
            lamport=self.random.randint(1, 4),
            kind=kind,
            origin=pick(sorted(version.items())),
            size=len(inline or b""),
            mtime_ns=pick((0, 10**18)) if kind is Kind.FILE else 0,
            executable=kind is Kind.FILE and chance() < 0.2,
            inline=inline,
            target="t" if kind is Kind.SYMLINK else None,
        )


def note(both: Both) -> None:
    """Tell Hypothesis what came to pass, to see that the soup is thick enough."""
    rows = both.pure.rows
    for what, where in {
        "cycles": "placed > 0",
        "copies": "copy_of IS NOT NULL",
        "hidden": "face IS NOT NULL",
        "united": f"face IS NOT NULL AND kind = {int(Kind.DIRECTORY)}",
        "second choices": f"state = {records.SUFFIXED_ON}",
        "unknown parents": "aim IS NOT NULL",
        "dead": "directory IS NULL",
        "kept by children": "directory IS NOT NULL AND NOT self_alive AND copy_of IS NULL",
    }.items():
        if both.db.execute(f"SELECT 1 FROM tree WHERE {where}").fetchone():
            event(what)
    if any(len(both.pure.members(i)) > 1 and both.pure.rows[i].parent != ROOT for i in rows):
        event("united below")


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, 2**64))
def test_any_slots_at_all_show_what_the_specification_says(seed: int) -> None:
    both, soup = Both(), Soup(Random(seed))
    for _ in range(soup.random.choice((5, 15, 40))):
        both.apply(soup.batch(both))
    note(both)


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, 2**64))
def test_slots_that_are_taken_back_leave_what_the_specification_says(seed: int) -> None:
    both, soup = Both(), Soup(Random(seed))
    past: dict[tuple[ItemId, DeviceId], list[Slot]] = {}
    for _ in range(soup.random.choice((5, 15, 40))):
        if soup.random.random() < 0.7 or not both.state:
            writes = soup.batch(both)
            for item, device, slot in writes:
                past.setdefault((item, device), []).append(slot)
            both.apply(writes)
            continue
        keys = soup.random.sample(sorted(both.state), soup.random.randint(1, len(both.state)))
        former: list[tuple[ItemId, DeviceId, Slot | None]] = []
        for key in keys:
            older = [slot for slot in past[key] if slot.counter < both.state[key].counter]
            former.append((*key, soup.random.choice([None, *older])))
        both.take_back(former)
    note(both)


# --- histories: what devices that follow the rules write ------------------------------------------


class Device:
    """One device of a folder: its log, its view, and what a person may do there."""

    def __init__(self, number: int, random: Random) -> None:
        self.id, self.random = DEVICES[number], random
        self.both = Both()
        self.log: list[tuple[DeviceId, int, list[Write]]] = []  # in the order of acceptance
        self.seen = dict.fromkeys(DEVICES, 0)
        self.lamport = 0

    def act(self) -> None:
        """One entry of a few actions on what is shown."""
        self.lamport += 1
        counter = self.seen[self.id] + 1
        tree = self.both.index
        writer = Writer(tree, device=self.id, counter=counter, lamport=self.lamport)
        untouched = sorted(tree.all_rows(), key=lambda row: row.item)
        for _ in range(self.random.choice((1, 1, 2, 3))):
            self._act_once(writer, untouched)
        if writer.writes:
            self.accept(self.id, counter, [(i, self.id, slot) for i, slot in writer.writes])

    def _act_once(self, writer: Writer, rows: list[ViewRow]) -> None:
        pick = self.random.choice
        row = pick(rows) if rows else None
        action = pick(("create", "edit", "edit", "edit", "move", "move", "delete", "resolve"))
        if row is None or action == "create":
            kind = pick((Kind.FILE, Kind.FILE, Kind.DIRECTORY))
            item = ItemId(self.random.randbytes(16))
            writer.create(item, self._directory(rows), pick(NAMES), self._draft(kind))
            return
        rows.remove(row)  # one action an item and entry: a scan finds no more
        if action == "edit" and row.content.kind is Kind.FILE:
            writer.edit(row.item, self._draft(Kind.FILE), base=row.content.version)
        elif action == "move":
            writer.move(row.item, self._directory(rows), pick(NAMES))
        elif action == "delete":
            writer.delete(row.item)
        elif action == "resolve":
            writer.resolve(row.copy_of or row.item)

    def _directory(self, rows: list[ViewRow]) -> ItemId:
        return self.random.choice(
            [ROOT, *(row.item for row in rows if row.content.kind is Kind.DIRECTORY)]
        )

    def _draft(self, kind: Kind) -> Draft:
        if kind is Kind.DIRECTORY:
            return Draft(kind)
        inline = self.random.choice((b"", b"x", b"yy", b"zzz"))
        return Draft(kind, size=len(inline), inline=inline, mtime_ns=self.random.randint(0, 9))

    def accept(self, device: DeviceId, counter: int, writes: list[Write]) -> None:
        self.both.apply(writes)
        self.log.append((device, counter, writes))
        self.seen[device] = counter

    def pull(self, other: Device) -> None:
        """Take in, in its order, what the other has and this one lacks."""
        for device, counter, writes in other.log:
            if counter > self.seen[device]:
                self.accept(device, counter, writes)
        self.lamport = max(self.lamport, other.lamport)


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(0, 2**64))
def test_histories_show_what_the_specification_says_and_converge(seed: int) -> None:
    random = Random(seed)
    devices = [Device(number, random) for number in range(3)]
    for _ in range(random.choice((6, 20, 40))):
        if random.random() < 0.7:
            random.choice(devices).act()
        else:
            one, other = random.sample(devices, 2)
            one.pull(other)
    for one in devices:
        for other in devices:
            one.pull(other)
    for one in devices:
        for other in devices:
            one.pull(other)
    for device in devices:
        note(device.both)
    first, *rest = (
        {item: replace(row, revision=0) for item, row in device.both.pure.rows.items()}
        for device in devices
    )
    assert all(other == first for other in rest)


# --- single cases ---------------------------------------------------------------------------------


def content(counter: int, data: bytes | None, device: DeviceId = DEVICES[0]) -> Content:
    """Written by `device` alone; None makes a directory."""
    return Content(
        version=VersionVector({device: counter}),
        device=device,
        lamport=counter,
        kind=Kind.DIRECTORY if data is None else Kind.FILE,
        origin=(device, counter),
        size=len(data or b""),
        inline=data,
    )


def put(item: ItemId, parent: ItemId, name: str, counter: int, data: bytes | None = None) -> Write:
    placements = (Placement(counter, parent, name),)
    return item, DEVICES[0], Slot(counter, placements, content(counter, data))


def fresh(number: int) -> ItemId:
    return ItemId(number.to_bytes(16, "big"))


def full_directory(count: int) -> tuple[Both, ItemId]:
    """A directory of `count` files, in the index alone."""
    both, directory = Both(), fresh(2**64)
    both.index.apply([put(directory, ROOT, "directory", 1)])
    files = [put(fresh(n), directory, f"file {n}", 1, b"%d" % n) for n in range(1, count + 1)]
    both.index.apply(files)
    return both, directory


class Work:
    """Counts what SQLite does: rows written, and steps of its virtual machine."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._ticks = 0
        self._before = db.total_changes

        def tick() -> int:
            self._ticks += 1
            return 0

        db.set_progress_handler(tick, 100)

    @property
    def steps(self) -> int:
        return self._ticks * 100

    @property
    def rows(self) -> int:
        return self._db.total_changes - self._before


@pytest.mark.slow
@pytest.mark.parametrize("count", [10, 3_000])
def test_renaming_a_directory_costs_the_same_whatever_lies_in_it(count: int) -> None:
    both, directory = full_directory(count)
    work = Work(both.db)
    assert both.index.apply([put(directory, ROOT, "renamed", 2)]) == {directory}
    assert work.rows <= 5  # its row and slot, the old slot and place for history, the state
    assert work.steps <= 1_000
    assert both.index.path(fresh(7)) == "renamed/file 7"


@pytest.mark.slow
@pytest.mark.parametrize("count", [10, 3_000])
def test_one_more_file_costs_the_same_however_many_there_are(count: int) -> None:
    both, directory = full_directory(count)
    work = Work(both.db)
    assert both.index.apply([put(fresh(2**65), directory, "new", 2, b"new")]) == {fresh(2**65)}
    assert work.rows <= 5
    assert work.steps <= 1_000


@pytest.mark.slow
@pytest.mark.parametrize("count", [10, 1_000])
def test_one_more_loser_costs_the_same_however_many_there_are(count: int) -> None:
    both = Both()
    both.index.apply([put(fresh(n), ROOT, f"{n}", 1, b"%d" % n) for n in range(count)[1:]])
    clash = [put(fresh(n + 2**64), ROOT, f"{n}", 1, b"other") for n in range(count)[1:]]
    assert len(both.index.apply(clash)) == count - 1
    work = Work(both.db)
    assert len(both.index.apply([put(fresh(2**65), ROOT, "7", 2, b"third")])) == 1
    assert work.rows <= 5
    assert work.steps <= 2_000


def test_no_question_reads_a_whole_table() -> None:
    both, soup = Both(), Soup(Random(3))
    asked: set[str] = set()
    both.db.set_trace_callback(asked.add)
    for _ in range(30):
        both.apply(soup.batch(both))
    both.index.resolve("a/b")
    both.db.set_trace_callback(None)
    assert len({text.partition("WHERE")[2][:30] for text in asked}) > len(records.QUESTIONS)
    for text in asked:
        for *_, step in both.db.execute(f"EXPLAIN QUERY PLAN {text}"):
            assert "TEMP B-TREE" not in step, text
            assert not step.startswith("SCAN") or step == "SCAN tree_state", text


@pytest.mark.parametrize(
    ("question", "index"),
    [
        (records.CHILDREN_TOGETHER, "tree_names (directory=?)"),
        (records.CHILDREN_APART, "tree_apart (parent=?)"),
        (records.COPIES, "tree_copies (copy_of=?)"),
        (records.AIMING_AT, "tree_aim (aim=?)"),
        (records.FALLEN, "tree_fallen (placed>?)"),
        (records.NAMED, "tree_names (directory=? AND name=?)"),
        (records.SHOWN_AS, "tree_shown (directory=? AND shown=?)"),
        (records.DEMOTED, "tree_demoted (directory=?)"),
    ],
)
def test_every_question_has_its_index(question: str, index: str) -> None:
    values = [b""] * question.count("?")
    text = f"EXPLAIN QUERY PLAN SELECT * FROM tree WHERE {question}"
    plan = [step for *_, step in Both().db.execute(text, values)]
    assert plan == [f"SEARCH tree USING INDEX {index}"]


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (view_module.ONE_ROW, "PRIMARY KEY (item=?)"),
        (view_module.ROWS_NAMED, "INDEX tree_names (directory=? AND name=?)"),
        (view_module.ROWS_SUFFIXED, "INDEX tree_shown (directory=? AND shown=?)"),
        (view_module.CHILD_ROWS, "INDEX tree_names (directory=? AND (name,item)>(?,?))"),
        (view_module.ALL_ROWS, "PRIMARY KEY (item>?)"),
        (view_module.CONFLICT_ROWS, "INDEX tree_conflicts (item>?)"),
        (view_module.MEMBERS, "INDEX tree_face (face=?)"),
        (view_module.DELETED, "INDEX tree_gone ((parent,name,item)>(?,?,?))"),
    ],
)
def test_every_reading_has_its_index(query: str, index: str) -> None:
    plan = Both().db.execute(f"EXPLAIN QUERY PLAN {query}", [b""] * query.count("?"))
    steps = [step for *_, step in plan]
    assert steps[0].replace("COVERING ", "") == f"SEARCH tree USING {index}"
    assert all(step.startswith("SEARCH slots USING INDEX") for step in steps[1:])


def test_an_item_that_fell_back_returns_when_the_cycle_it_was_in_is_gone() -> None:
    both = Both()
    fallen = [Placement(9, fresh(2), "b"), Placement(1, ROOT, "a")]
    both.apply([(fresh(1), DEVICES[0], Slot(1, tuple(fallen), content(1, None)))])
    both.apply([put(fresh(2), fresh(1), "c", 2)])
    assert both.index.path(fresh(1)) == "a"
    both.apply([put(fresh(2), fresh(1), "c", 3, b"no directory any more")])
    assert both.index.path(fresh(1)) == "Recovered/b"


def test_what_arrives_while_a_union_above_breaks_up_is_shown_where_it_lies() -> None:
    both = Both()
    upper, below = (fresh(11), fresh(12)), (fresh(22), fresh(21))
    both.apply([put(item, ROOT, "u", 1) for item in upper])
    both.apply([put(item, parent, "p", 2) for item, parent in zip(below, upper, strict=True)])
    both.apply([put(fresh(31), ROOT, "x", 3), put(fresh(32), fresh(31), "y", 3)])
    assert both.index.representative(below[0]) == below[1]  # for it has the lesser id
    both.apply([put(upper[1], fresh(32), "u", 4), put(fresh(41), below[0], "new", 4, b"new")])
    assert both.index.path(fresh(41)) == "u/p/new"
    assert both.index.path(below[1]) == "x/y/u/p"


def test_a_rollback_leaves_nothing_behind() -> None:
    both = Both()
    both.apply([put(fresh(1), ROOT, "a", 1, b"first")])
    both.db.execute("BEGIN")
    both.index.apply([put(fresh(1), ROOT, "b", 2, b"lost"), put(fresh(2), ROOT, "c", 2, b"lost")])
    both.db.execute("ROLLBACK")
    both.compare()
    both.apply([put(fresh(1), ROOT, "c", 2, b"other"), put(fresh(2), fresh(1), "c", 2, b"other")])


def test_a_listing_longer_than_one_reading_is_whole() -> None:
    both, directory = full_directory(2 * view_module.ROWS_AT_ONCE)
    names = [row.name for row in both.index.children(directory)]
    assert sorted(names) == sorted(f"file {n}" for n in range(1, 2 * view_module.ROWS_AT_ONCE + 1))
    assert len(list(both.index.all_rows())) == len(list(both.index.all_items())) == len(names) + 1


def test_a_slot_that_does_not_decode_is_damage() -> None:
    both = Both()
    both.apply([put(fresh(1), ROOT, "a", 1, b"data")])
    both.db.execute("UPDATE slots SET data = x'c1'")
    with pytest.raises(IntegrityError, match="holds a slot that is none"):
        both.index.row(fresh(1))
    both.db.execute("DELETE FROM slots")
    with pytest.raises(IntegrityError, match="does not hold"):
        both.index.row(fresh(1))


def test_decoded_slots_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "CACHED_SLOTS_MAX", 3)
    both = Both()
    for number in range(1, 9):
        both.apply([put(fresh(number), ROOT, f"{number}", 1, b"data")])


@pytest.mark.slow
def test_ten_thousand_files_arrive() -> None:
    both, directory = Both(), fresh(2**64)
    both.index.apply([put(directory, ROOT, "directory", 1)])
    spent = 0.0
    for start in range(0, 10_000, 1_000):
        batch = [put(fresh(n + 1), directory, f"{n}", 2, b"x") for n in range(start, start + 1_000)]
        began = time.perf_counter()
        assert len(both.index.apply(batch)) == 1_000
        spent += time.perf_counter() - began
    print(f"10,000 files in 10 batches: {spent:.2f} s")
    assert both.index.totals() == Totals(10_000, 10_000, 0)
