"""Devices without disks, network or index: a state of slots, and people who act on what they saw.

What a person sees (`Replica.seen`) may be older than the replica's view, as a disk lags behind the
index. Entries are delivered as in the log: in order for each device, and after what they depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from crdt.actions import Draft, Writer
from crdt.heads import derived_id
from crdt.ids import ROOT, DeviceId, ItemId
from crdt.slot import Content, Kind, Slot, merge
from crdt.tree import View, ViewRow, view
from crdt.version_vector import VersionVector

State = dict[tuple[ItemId, DeviceId], Slot]


def device(number: int) -> DeviceId:
    return DeviceId(bytes([number]) * 32)


def item(number: int) -> ItemId:
    """Items with greater numbers have greater ids."""
    return ItemId(bytes([255]) + number.to_bytes(15, "big"))


def file(data: bytes, *, mtime_ns: int = 0, executable: bool = False) -> Draft:
    return Draft(Kind.FILE, size=len(data), mtime_ns=mtime_ns, executable=executable, inline=data)


DIRECTORY = Draft(Kind.DIRECTORY)


def merged(
    mine: Mapping[tuple[ItemId, DeviceId], Slot], theirs: Mapping[tuple[ItemId, DeviceId], Slot]
) -> State:
    """Two states as one."""
    state = dict(mine)
    for key, slot in theirs.items():
        state[key] = merge(state.get(key), slot)
    return state


@dataclass(frozen=True)
class Entry:
    """One device's writes, after `deps`."""

    device: DeviceId
    seq: int
    deps: VersionVector
    lamport: int
    writes: tuple[tuple[ItemId, Slot], ...]

    def check(self) -> None:
        """Assert what `crdt.entry` demands of an entry."""
        known = self.deps.with_counter(self.device, self.seq)
        assert len({of for of, _ in self.writes}) == len(self.writes)
        for of, slot in self.writes:
            assert of != ROOT
            assert slot.counter == self.seq
            assert all(p.lamport <= self.lamport and p.parent != of for p in slot.placements)
            assert slot.deleted is None or known.dominates(slot.deleted)
            if slot.content is not None:
                assert slot.content.lamport <= self.lamport
                assert known.dominates(slot.content.version)
            assert Slot.from_wire(_listed(slot.to_wire())) == slot


def _listed(wire: object) -> object:
    return [_listed(one) for one in wire] if isinstance(wire, list | tuple) else wire


class Replica:
    """One device's state, and the person before it."""

    def __init__(self, number: int) -> None:
        self.device = device(number)
        self.state: State = {}
        self.have = VersionVector()
        self.lamport = 0
        self.revision = 0
        self.revisions: dict[ItemId, int] = {}
        self.seen: dict[ItemId, ViewRow] = {}
        self.entries: list[Entry] = []  # written here
        self._view: View | None = None

    @property
    def view(self) -> View:
        if self._view is None:
            self._view = view(self.state, self.revisions)
        return self._view

    def look(self) -> None:
        """From now on the person sees the view as it is."""
        self.seen = dict(self.view.rows)

    def act(
        self,
        *actions: Callable[[Writer], None],
        saw: Callable[[ItemId], bool] = lambda _copy: True,
    ) -> Entry | None:
        """Do all this in one entry; None when it writes nothing."""
        writer = Writer(
            self.view,
            device=self.device,
            counter=self.have[self.device] + 1,
            lamport=self.lamport + 1,
            saw=saw,
        )
        for action in actions:
            action(writer)
        if not writer.writes:
            return None
        entry = Entry(
            self.device,
            self.have[self.device] + 1,
            self.have,
            self.lamport + 1,
            tuple(writer.writes),
        )
        entry.check()
        self.receive(entry)
        self.entries.append(entry)
        return entry

    def receive(self, entry: Entry) -> None:
        assert self.ready(entry)
        self.have = self.have.with_counter(entry.device, entry.seq)
        self.lamport = max(self.lamport, entry.lamport)
        self.revision += 1
        for of, slot in entry.writes:
            self.state[of, entry.device] = merge(self.state.get((of, entry.device)), slot)
            self.revisions[of] = self.revision
        self._view = None

    def ready(self, entry: Entry) -> bool:
        return self.have.dominates(entry.deps) and self.have[entry.device] == entry.seq - 1

    def pull(self, *others: Replica) -> None:
        """Receive all that the others have written themselves, as far as it can be received."""
        waiting = [e for o in others for e in o.entries if not self.have.covers(e.device, e.seq)]
        while ready := [entry for entry in waiting if self.ready(entry)]:
            for entry in ready:
                self.receive(entry)
            waiting = [entry for entry in waiting if not self.have.covers(entry.device, entry.seq)]

    # --- what the person does, by path ----------------------------------------------------------

    def at(self, path: str) -> ViewRow:
        """The row at `path`."""
        row = self.find(path)
        assert row is not None, f"{path} is not in {self.tree()}"
        return row

    def find(self, path: str) -> ViewRow | None:
        parent, row = ROOT, None
        for name in path.split("/"):
            row = self.view.child(parent, name)
            if row is None:
                return None
            parent = row.item
        return row

    def _place(self, path: str) -> tuple[ItemId, str]:
        above, _, name = path.rpartition("/")
        return (self.at(above).item if above else ROOT), name

    def create(self, of: ItemId, path: str, draft: Draft) -> None:
        self.act(lambda w: w.create(of, *self._place(path), draft))

    def edit(self, path: str, draft: Draft, *, base: Content | None = None) -> None:
        row = self.at(path)
        self.act(lambda w: w.edit(row.item, draft, base=(base or row.content).version))

    def move(self, path: str, to: str) -> None:
        self.act(lambda w: w.move(self.at(path).item, *self._place(to)))

    def delete(self, *paths: str) -> None:
        """In one entry."""
        items = [self.at(path).item for path in paths]

        def delete_all(writer: Writer) -> None:
            for of in items:
                writer.delete(of)

        self.act(delete_all)

    def resolve(self, path: str) -> None:
        self.act(lambda w: w.resolve(self.at(path).item))

    def tree(self) -> dict[str, bytes | str | None]:
        """What is shown: path -> bytes, a symlink's target, None for a directory."""
        found: dict[str, bytes | str | None] = {}
        pending = [(ROOT, "")]
        while pending:
            parent, prefix = pending.pop()
            for row in self.view.children(parent):
                path, content = prefix + row.name, row.content
                if content.kind is Kind.DIRECTORY:
                    found[path] = None
                    pending.append((row.item, path + "/"))
                else:
                    found[path] = content.inline if content.inline is not None else content.target
        return found


def sync(*replicas: Replica) -> None:
    """Let all have all, and check that they show the same."""
    for one in replicas:
        one.pull(*replicas)
    for one in replicas:
        check_view(one.view)
        assert plain(one.view) == plain(replicas[0].view)


def plain(of: View) -> dict[ItemId, ViewRow]:
    """The rows without their revisions, which are local."""
    return {key: replace(row, revision=0) for key, row in of.rows.items()}


def check_view(of: View) -> None:
    """Assert what every view must hold: everything hangs from the root, under one name each."""
    names: set[tuple[ItemId, str]] = set()
    for key, row in of.rows.items():
        assert key == row.item
        assert (row.parent, row.name) not in names
        names.add((row.parent, row.name))
        assert of.child(row.parent, row.name) == row
        assert key in of.members(key)
        assert all(of.representative(member) == key for member in of.members(key))
        at, steps = row, 0
        while at.parent != ROOT:
            at = of.rows[at.parent]
            assert at.content.kind is Kind.DIRECTORY
            steps += 1
            assert steps <= len(of.rows), "a cycle"
    assert sum(1 for parent in {ROOT, *of.rows} for _ in of.children(parent)) == len(of.rows)


def derived(entries: Iterable[Entry]) -> dict[ItemId, ItemId]:
    """Every item that a head in `entries` was or may be written into -> the item of that head."""
    entries = list(entries)
    written = {of for entry in entries for of, _ in entry.writes}
    found: dict[ItemId, ItemId] = {}
    for entry in entries:
        for of, slot in entry.writes:
            if slot.content is None:
                continue
            version = slot.content.version
            found[derived_id(of, version)] = of
            if of not in found and not version.covers(entry.device, entry.seq):  # made real?
                for above in (one for one in written if derived_id(one, version) == of):
                    found[of] = above
    return found
