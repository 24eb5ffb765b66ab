"""Random histories on several devices: people act on what they saw last, entries travel in random
order. Whatever happens, all end up with one tree, and nothing is gone that nobody had replaced.

`SHOAL_EXAMPLES` sets how many histories each property sees; the default keeps `make test` short.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from crdt.actions import Draft, Writer
from crdt.heads import maximal
from crdt.ids import ROOT, DeviceId, ItemId
from crdt.slot import Content, Kind
from crdt.tree import ViewRow, view
from crdt.version_vector import VersionVector
from tests.support.replicas import (
    DIRECTORY,
    Entry,
    Replica,
    State,
    check_view,
    derived,
    file,
    item,
    merged,
    plain,
    sync,
)

EXAMPLES: Final = int(os.environ.get("SHOAL_EXAMPLES", "400"))
NAMES: Final = ("a", "b", "c.txt")
POOL: Final = (b"", b"x", b"yy")  # contents that several people hit upon

# What a step does; the commoner ones stand more than once.
ACTIONS: Final = (
    *("create", "mkdir", "edit", "edit", "edit", "edit", "touch", "move", "move", "move", "delete"),
    "resolve",
)
STEPS: Final = (*ACTIONS, *["pull"] * 5, *["look"] * 5, "both", "both")


@dataclass(frozen=True)
class Write:
    """Bytes that a person saved."""

    item: ItemId
    digest: bytes
    device: DeviceId
    deps: VersionVector  # what the device had before

    @property
    def seq(self) -> int:
        return self.deps[self.device] + 1


@dataclass(frozen=True)
class Disposal:
    """Bytes that a person saw, and replaced or deleted."""

    item: ItemId
    digest: bytes
    device: DeviceId
    seq: int


class Roots:
    """Items that stand for one thing in people's eyes: an item, its copies and its twins."""

    def __init__(self, pairs: Iterable[tuple[ItemId, ItemId]]) -> None:
        self._above: dict[ItemId, ItemId] = {}
        for one, other in pairs:
            if self.of(one) != self.of(other):
                self._above[self.of(one)] = self.of(other)

    def of(self, at: ItemId) -> ItemId:
        while at in self._above:
            at = self._above[at]
        return at


@dataclass
class World:
    """Several replicas, and a record of what people did."""

    replicas: list[Replica]
    random: Random
    writes: list[Write] = field(default_factory=list)
    disposals: list[Disposal] = field(default_factory=list)
    twins: list[tuple[ItemId, ItemId]] = field(default_factory=list)  # seen as one file
    items: int = 0
    items_max: int = 100
    fresh: int = 0

    def step(self) -> None:
        one, step = self.random.choice(self.replicas), self.random.choice(STEPS)
        if step == "pull":
            self.pull(one, self.random.choice(self.replicas))
        elif step == "look":
            one.look()
        elif step == "both":
            self.act(one, [self.random.choice(ACTIONS) for _ in range(2)])
        else:
            self.act(one, [step])

    def pull(self, one: Replica, other: Replica) -> None:
        """Receive some of what another one has, from anybody, as far as it fits."""
        limit = self.random.choice((1, 3, 100))
        for author in self.random.sample(self.replicas, len(self.replicas)):
            for entry in author.entries:
                held = other.have.covers(entry.device, entry.seq)
                if limit and held and one.ready(entry):
                    one.receive(entry)
                    limit -= 1

    # --- people ---------------------------------------------------------------------------------

    def act(self, one: Replica, actions: Sequence[str]) -> None:
        """Several actions of one person in one entry, then look at what they touched."""
        touched: dict[ItemId, Content | None] = {}
        pending = [
            (action, row)
            for action in actions
            if action in {"create", "mkdir"} or one.seen
            for row in [self.random.choice(list(one.seen.values())) if one.seen else None]
        ]

        def run(writer: Writer) -> None:
            for action, row in pending:
                if row is None or action in {"create", "mkdir"}:
                    self.create(one, writer, DIRECTORY if action == "mkdir" else self.draft())
                elif row.item not in touched:
                    touched[row.item] = row.content
                    face = one.view.representative(row.item)
                    self.twins += [(face, member) for member in one.view.members(face)]
                    self.act_on(one, writer, action, row)

        one.act(run, saw=one.seen.__contains__)
        for of in touched:
            self.look_at(one, of)

    def create(self, one: Replica, writer: Writer, draft: Draft) -> None:
        if self.items == self.items_max:
            return
        self.items += 1
        of = item(self.random.randrange(1000) * 1000 + self.items)
        writer.create(of, self.directory(one), self.random.choice(NAMES), draft)
        self.writes.append(Write(of, draft.digest, one.device, one.have))

    def act_on(self, one: Replica, writer: Writer, action: str, row: ViewRow) -> None:
        shown, of = one.view.row(row.item), row.item
        is_file = row.content.kind is Kind.FILE
        place = (row.parent, row.name)
        if action == "move":
            writer.move(of, self.directory(one), self.random.choice((*NAMES, row.name)))
        elif action == "resolve":
            writer.resolve(of)
        elif action == "delete":
            if shown is not None and shown.revision == row.revision:
                self.dispose(one, row)
                writer.delete(row.item)
        elif action == "touch" and is_file:
            draft = file(row.content.inline or b"", mtime_ns=self.random.randrange(9))
            writer.edit(of, draft, base=row.content.version, place=place)
        elif action == "edit" and is_file:
            draft, same = self.draft(), row.content.digest
            knows = self.random.random() < 0.9  # else the index lost what the disk was made from
            if draft.digest == same and knows:
                return
            if knows:
                self.dispose(one, row)
            base = row.content.version if knows else VersionVector()
            writer.edit(of, draft, base=base, place=place)
            self.writes.append(Write(of, draft.digest, one.device, one.have))

    def dispose(self, one: Replica, row: ViewRow) -> None:
        for member in {row.item, *one.view.members(one.view.representative(row.item))}:
            seq = one.have[one.device] + 1
            self.disposals.append(Disposal(member, row.content.digest, one.device, seq))

    def look_at(self, one: Replica, of: ItemId) -> None:
        """The person's disk holds what was just saved, and else what it held before."""
        shown, seen = one.view.row(of), one.seen.pop(of)
        if shown is not None and shown.content.digest == seen.content.digest:
            one.seen[of] = shown
            return
        own = one.view.slots(of).get(one.device)
        if own is not None and own.content is not None:
            current = shown is not None and shown.content is own.content
            revision = shown.revision if shown is not None and current else -1
            one.seen[of] = replace(shown or seen, content=own.content, revision=revision)

    def directory(self, one: Replica) -> ItemId:
        known = [r.item for r in one.seen.values() if r.content.kind is Kind.DIRECTORY]
        return one.view.representative(self.random.choice([ROOT, *known]))

    def draft(self) -> Draft:
        if self.random.random() < 0.3:
            data = self.random.choice(POOL)
        else:
            self.fresh += 1
            data = b"fresh %d" % self.fresh
        return file(data, mtime_ns=self.random.randrange(3) * 10**18)

    # --- judges ---------------------------------------------------------------------------------

    def entries(self) -> Iterator[Entry]:
        for one in self.replicas:
            yield from one.entries

    def check_nothing_lost(self, one: Replica) -> None:
        """All bytes that this replica heard of are shown, or were disposed of by somebody who had
        seen them, in an action that it heard of, and that did not come before they were saved.
        """
        roots = Roots([*derived(self.entries()).items(), *self.twins])
        root = roots.of
        shown = {row.content.digest for row in one.view.rows.values()}
        gone: dict[tuple[ItemId, bytes], list[Disposal]] = {}
        for disposal in self.disposals:
            if one.have.covers(disposal.device, disposal.seq):
                gone.setdefault((root(disposal.item), disposal.digest), []).append(disposal)
        for write in self.writes:
            heard = one.have.covers(write.device, write.seq)
            key = (root(write.item), write.digest)
            if heard and write.digest not in shown:
                fits = gone.get(key, [])
                assert any(not write.deps.covers(d.device, d.seq) for d in fits), f"lost: {write}"


def play(seed: int, size: int, steps: int, items_max: int) -> World:
    """A world of `size` replicas in which something has happened."""
    world = World([Replica(n + 1) for n in range(size)], Random(seed), items_max=items_max)
    for _ in range(steps):
        world.step()
    return world


WORLDS: Final = st.builds(
    play,
    st.integers(0, 2**64),
    st.integers(3, 5),
    st.sampled_from((20, 60, 120)),
    st.sampled_from((2, 4, 10)),
)


def note(world: World) -> None:
    """Tell Hypothesis what came to pass, to see that histories are eventful enough."""
    rows = [row for one in world.replicas for row in one.view.rows.values()]
    if any(row.copy_of for row in rows):
        event("copies")
    if any(len(one.view.members(row.item)) > 1 for one in world.replicas for row in rows):
        event("united or twins")
    if any(row.name.startswith("Recovered") for row in rows):
        event("recovered")
    if any(" (conflict " in row.name and row.copy_of is None for row in rows):
        event("made real, or lost its name")


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None)
@given(WORLDS)
def test_all_replicas_end_up_with_one_tree_and_nothing_lost(world: World) -> None:
    for one in world.replicas:
        check_view(one.view)
        world.check_nothing_lost(one)
    sync(*world.replicas)
    for one in world.replicas:
        world.check_nothing_lost(one)
    note(world)


@pytest.mark.slow
@settings(max_examples=EXAMPLES // 3, deadline=None)
@given(WORLDS)
def test_what_everybody_deletes_at_once_is_gone(world: World) -> None:
    sync(*world.replicas)
    for one in world.replicas:

        def delete_all(writer: Writer, rows: Sequence[ViewRow]) -> None:
            for row in rows:
                writer.delete(row.item)

        rows = list(one.view.rows.values())
        world.random.shuffle(rows)
        one.act(lambda w, rows=rows: delete_all(w, rows))  # type: ignore[misc]
        assert one.tree() == {}
    sync(*world.replicas)
    assert world.replicas[0].tree() == {}


@pytest.mark.slow
@settings(max_examples=EXAMPLES // 3, deadline=None)
@given(WORLDS)
def test_resolving_everything_leaves_the_tree_as_it_was(world: World) -> None:
    sync(*world.replicas)
    before = world.replicas[0].tree()
    for one in world.replicas[:2]:  # two at once
        for row in list(one.view.rows.values()):
            one.act(lambda w, of=row.item: w.resolve(of))  # type: ignore[misc]
        assert not any(row.copy_of for row in one.view.rows.values())
    sync(*world.replicas)
    assert world.replicas[0].tree() == before


@settings(max_examples=EXAMPLES // 3, deadline=None)
@pytest.mark.slow
@given(WORLDS)
def test_states_merge_in_any_order_and_repeatedly(world: World) -> None:
    """Not only as the log delivers: any parts of states, in any order."""
    writes = [((of, e.device), slot) for e in world.entries() for of, slot in e.writes]

    def part() -> State:
        some = world.random.sample(writes, world.random.randint(0, len(writes)))
        state: State = {}
        for key, slot in some:
            state = merged(state, {key: slot})
        return state

    x, y, z = part(), part(), part()
    assert merged(x, y) == merged(y, x)
    assert merged(merged(x, y), z) == merged(x, merged(y, z))
    assert merged(x, x) == x
    assert merged(x, {}) == merged({}, x) == x
    one, other = view(merged(x, y)), view(merged(y, x))
    check_view(one)  # even of a state that no log delivers
    assert plain(one) == plain(other)


@settings(max_examples=EXAMPLES // 3, deadline=None)
@pytest.mark.slow
@given(WORLDS)
def test_what_a_version_replaced_stays_replaced(world: World) -> None:
    """Whatever some content of an item has seen, every later state still counts as seen; unless
    somebody deleted what had seen it, while another one renamed the item as it was before.
    """
    fresh = Replica(9)
    gone: set[tuple[ItemId, VersionVector]] = set()
    seen: set[tuple[ItemId, VersionVector]] = set()
    waiting = list(world.entries())
    while waiting:
        entry = world.random.choice([e for e in waiting if fresh.ready(e)])
        waiting.remove(entry)
        fresh.receive(entry)
        for of, slot in entry.writes:
            if slot.content is not None:
                seen.add((of, slot.content.version))
        for of, version in seen:
            slots = fresh.view.slots(of)
            current = [content.version for content in maximal(slots)]
            deletions = [slot.deleted for slot in slots.values() if slot.deleted is not None]
            if version in current:
                assert (of, version) not in gone or deletions
                gone.discard((of, version))
            elif any(other != version and other.dominates(version) for other in current):
                gone.add((of, version))
            else:
                assert deletions, "neither replaced nor deleted"
