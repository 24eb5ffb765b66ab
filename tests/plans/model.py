"""A disk that does what plans say and nothing else, and what must hold of it.

A device's disk is a map from items to what lies there; the agreed rows are kept beside it, as the
index keeps them. No paths, no I/O: whether system calls can carry a plan out is tested elsewhere
(crash points, races); here it is whether the plan asks for the right thing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from random import Random

from crdt.ids import ROOT, ItemId
from crdt.slot import Content, Kind
from crdt.tree import View, ViewRow
from crdt.version_vector import VersionVector
from node.files.port import Stat, StatKind
from node.index.disk_rows import DiskRow
from node.sync.planner import NOTHING, Plan, plan_item, still_as_agreed
from tests.support.replicas import DIRECTORY, Replica, device, file, item

NAMES = ("a", "b", "c")
POOL = (b"one", b"two", b"")
KINDS = {
    Kind.FILE: StatKind.FILE,
    Kind.DIRECTORY: StatKind.DIRECTORY,
    Kind.SYMLINK: StatKind.SYMLINK,
}
ALIASES = {"b": "b~1"}  # a name that this disk cannot hold, and what it gives instead


@dataclass(frozen=True, slots=True)
class Lying:
    """What lies on the disk for one item."""

    parent: ItemId
    name: str
    digest: bytes
    kind: Kind
    mtime_ns: int
    executable: bool
    stat: Stat


class Disk:
    """One device's disk and its agreed rows."""

    def __init__(self) -> None:
        self.lying: dict[ItemId, Lying] = {}
        self.agreed: dict[ItemId, DiskRow] = {}
        self._inodes = 0

    def put(self, wanted: ViewRow, name: str, inode: int | None = None) -> None:
        """Make the disk hold what a view row says."""
        if inode is None:
            self._inodes += 1
            inode = self._inodes
        content = wanted.content
        stat = Stat(
            kind=KINDS[content.kind],
            inode=inode,
            device=1,
            size=content.size,
            mtime_ns=content.mtime_ns,
            ctime_ns=1_000 + self._inodes,
            executable=content.executable,
            links=1,
        )
        self.lying[wanted.item] = Lying(
            wanted.parent, name, content.digest, content.kind, content.mtime_ns, content.executable,
            stat,
        )  # fmt: skip

    def agree(self, wanted: ViewRow, name: str) -> None:
        """The row says what lies there now."""
        content, stat = wanted.content, self.lying[wanted.item].stat
        self.agreed[wanted.item] = DiskRow(
            item=wanted.item,
            parent=wanted.parent,
            name=name,
            kind=content.kind,
            version=content.version,
            digest=content.digest,
            revision=wanted.revision,
            shown_name=wanted.name,
            inode=stat.inode,
            size=stat.size,
            mtime_ns=stat.mtime_ns,
            ctime_ns=stat.ctime_ns,
            executable=stat.executable,
            profile=0,
        )

    def carry_out(self, plan: Plan, wanted: ViewRow | None, of: ItemId, name: str) -> bool:
        """Do what a plan says. Nothing, and False, where something else lies there by now."""
        row, there = self.agreed.get(of), self.lying.get(of)
        if row is not None and (there is None or not still_as_agreed(there.stat, row)):
            return not plan.touches_disk
        if plan.remove:
            del self.lying[of], self.agreed[of]
            return True
        if plan.create:
            assert wanted is not None
            self.put(wanted, name)
        elif plan.touches_disk:
            assert wanted is not None
            assert there is not None
            before = there.stat.inode
            if plan.content:
                self.put(replace(wanted, parent=there.parent), there.name)
            elif plan.metadata:
                self.put(replace(wanted, parent=there.parent), there.name, before)
            if plan.relocate:
                moved = self.lying[of]
                self.lying[of] = replace(moved, parent=wanted.parent, name=name)
        if wanted is not None and (plan.touches_disk or plan.note):
            self.agree(wanted, name)
        return True


def name_of(wanted: ViewRow | None, *, aliases: bool) -> str:
    """What this disk calls a row."""
    if wanted is None:
        return ""
    return ALIASES.get(wanted.name, wanted.name) if aliases else wanted.name


def same(lying: Lying, wanted: ViewRow, name: str) -> bool:
    """True when what lies there is what the view wants, bytes, place and all."""
    content = wanted.content
    return (lying.parent, lying.name, lying.digest, lying.kind) == (
        wanted.parent, name, content.digest, content.kind,
    ) and (
        content.kind is not Kind.FILE
        or (lying.mtime_ns, lying.executable) == (content.mtime_ns, content.executable)
    )  # fmt: skip


# --- triples of one item -------------------------------------------------------------------------


def triple(random: Random) -> None:
    """One item: what is wanted, what was agreed, what lies there; plan, carry out, plan again."""
    disk, aliases = Disk(), random.random() < 0.3
    before = _row(random)
    wanted = _row(random, before) if random.random() < 0.85 else None
    if random.random() < 0.8:
        disk.put(before, name_of(before, aliases=aliases))
        disk.agree(before, name_of(before, aliases=aliases))
    touched = before.item in disk.lying and random.random() < 0.3 and _touch(random, disk, before)
    kept = disk.lying.get(before.item)
    name = name_of(wanted, aliases=aliases)
    plan = plan_item(wanted, disk.agreed.get(before.item), name or None)
    assert not (plan.create and plan.remove)
    assert plan == plan_item(wanted, disk.agreed.get(before.item), name or None)
    done = disk.carry_out(plan, wanted, before.item, name)
    if touched:
        assert disk.lying.get(before.item) == kept, "what a person did was not looked at first"
        assert done is not plan.touches_disk
        return
    _check(disk, plan, wanted, before.item, name)


def _check(disk: Disk, plan: Plan, wanted: ViewRow | None, of: ItemId, name: str) -> None:
    assert plan_item(wanted, disk.agreed.get(of), name or None) == NOTHING, "a second plan"
    lying = disk.lying.get(of)
    if wanted is None:
        assert lying is None
        return
    assert lying is not None
    assert same(lying, wanted, name), (plan, lying, wanted)


def _row(random: Random, before: ViewRow | None = None) -> ViewRow:
    """A view row; with `before`, a later one of the same item, of which anything may differ."""
    counter = random.randrange(1, 4)
    if before is None or random.random() < 0.6:
        kind = before.content.kind if before else random.choice(list(Kind))
        data = random.choice(POOL)
        content = Content(
            VersionVector({device(1): counter, device(2): random.randrange(3)}),
            device(1),
            random.randrange(1, 9),
            kind,
            (device(1), random.randrange(1, counter + 1)),
            size=len(data) if kind is Kind.FILE else 0,
            mtime_ns=random.randrange(3) if kind is Kind.FILE else 0,
            executable=kind is Kind.FILE and random.random() < 0.3,
            inline=data if kind is Kind.FILE else None,
            target=random.choice(NAMES) if kind is Kind.SYMLINK else None,
        )
        if before is not None and content.version == before.content.version:
            content = before.content  # one version has one content
    else:
        content = before.content
    same_place = before is not None and random.random() < 0.5
    return ViewRow(
        item(1),
        before.parent if before and same_place else random.choice((ROOT, item(2), item(3))),
        before.name if before and same_place else random.choice(NAMES),
        content,
        random.randrange(4),
    )


def _touch(random: Random, disk: Disk, row: ViewRow) -> bool:
    """A person changes what lies there; True if lstat can show it."""
    lying = disk.lying[row.item]
    changes: dict[str, object] = {"inode": lying.stat.inode + 7}
    if row.content.kind is not Kind.DIRECTORY:
        other: dict[str, object] = {
            "size": lying.stat.size + 1,
            "mtime_ns": lying.stat.mtime_ns + 1,
            "ctime_ns": lying.stat.ctime_ns + 1,
            "executable": not lying.stat.executable,
        }
        changes |= other
    field = random.choice(sorted(changes))
    stat = replace(lying.stat, **{field: changes[field]})  # type: ignore[arg-type]
    disk.lying[row.item] = replace(lying, stat=stat)
    return True


# --- histories of trees --------------------------------------------------------------------------


def history(random: Random, steps: int = 12) -> int:
    """Two devices act and meet; each disk follows its view. Returns how many items were planned."""
    replicas, disks = [Replica(1), Replica(2)], [Disk(), Disk()]
    planned, made = 0, 0
    for _ in range(steps):
        number = random.randrange(2)
        one, other = replicas[number], replicas[1 - number]
        if random.random() < 0.3:
            one.pull(other)
        elif random.random() < 0.5:
            made += 1
            _create(random, one, item(number * 1000 + made))
        else:
            _change(random, one)
        if random.random() < 0.6:  # else the disk lags behind, over several steps
            planned += follow(random, disks[number], one.view)
    for _ in range(2):
        replicas[0].pull(replicas[1])
        replicas[1].pull(replicas[0])
    planned += sum(
        follow(random, disk, one.view) for disk, one in zip(disks, replicas, strict=True)
    )
    assert [_shown(disk) for disk in disks[:1]] == [_shown(disk) for disk in disks[1:]]
    return planned


def follow(random: Random, disk: Disk, view: View) -> int:
    """Plan every item and carry the plans out, in any order; then there is nothing left to do."""
    of = [*view.rows, *(known for known in disk.agreed if known not in view.rows)]
    rows = {one: view.rows.get(one) for one in of}
    plans = {one: plan_item(rows[one], disk.agreed.get(one)) for one in of}
    for one in random.sample(of, len(of)):
        assert disk.carry_out(plans[one], rows[one], one, name_of(rows[one], aliases=False))
    once = dict(disk.lying)
    for one in of:
        _check(disk, plans[one], rows[one], one, name_of(rows[one], aliases=False))
        again = plan_item(rows[one], disk.agreed.get(one))
        disk.carry_out(again, rows[one], one, name_of(rows[one], aliases=False))
    assert disk.lying == once, "a second plan is not empty"
    assert disk.lying.keys() == view.rows.keys()
    places = [(lying.parent, lying.name) for lying in disk.lying.values()]
    assert len(places) == len(set(places)), "two items at one place"
    return len(of)


def _create(random: Random, one: Replica, of: ItemId) -> None:
    draft = DIRECTORY if random.random() < 0.4 else file(random.choice(POOL), mtime_ns=of[-1])
    parent, name = _directory(random, one), random.choice(NAMES)
    one.act(lambda writer: writer.create(of, parent, name, draft))


def _change(random: Random, one: Replica) -> None:
    rows = sorted(one.view.rows.values(), key=lambda row: row.item)
    if not rows:
        return
    row = random.choice(rows)
    parent, name = _directory(random, one), random.choice(NAMES)
    data, mtime_ns = random.choice(POOL), random.randrange(3)
    match random.choice(("move", "edit", "delete", "resolve")):
        case "move":
            one.act(lambda writer: writer.move(row.item, parent, name))
        case "edit" if row.content.kind is Kind.FILE:
            draft = file(data, mtime_ns=mtime_ns)
            one.act(lambda writer: writer.edit(row.item, draft, base=row.content.version))
        case "delete":
            one.act(lambda writer: writer.delete(row.item))
        case _:
            one.act(lambda writer: writer.resolve(row.item))


def _directory(random: Random, one: Replica) -> ItemId:
    known: Iterable[ViewRow] = one.view.rows.values()
    return random.choice(
        [ROOT, *sorted(row.item for row in known if row.content.kind is Kind.DIRECTORY)]
    )


def _shown(disk: Disk) -> set[tuple[ItemId, ItemId, str, bytes, int]]:
    return {(of, one.parent, one.name, one.digest, one.mtime_ns) for of, one in disk.lying.items()}
