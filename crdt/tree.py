"""The view: the tree that a user sees, a pure function of the slots. This is its specification.

The index keeps the same view incrementally (`node.index.view`), and tests hold the two equal.

1. *Place.* Every item sits at its newest placement, by (lamport, device). In each cycle of the
   resulting parent graph the item with the newest placement falls back to its previous one, until
   there are no cycles; with none left it goes to `Recovered/`. Cycles of a graph in which everyone
   has one parent never share a member, so breaking one leaves the others as they are, and the
   order of breaking does not matter (after Wallace, *CRDT: Mutable Tree Hierarchy*). A parent that
   nobody knows, or that is no directory, counts as `Recovered/`.
2. *Life.* An item lives unless each of its slots was seen by a deletion (`crdt.heads.self_alive`;
   not all by one: deleting twice at once deletes); a directory also lives while anything in it
   does.
3. *Content.* The winner among the heads shows under the item's name, every other head as a virtual
   copy, until somebody acts and it becomes an item of its own.
4. *Names.* Directories of one name in one directory are one, with united children. A directory
   keeps its name before files. Files of one name: equal bytes show once (*twins*); otherwise the
   least item id keeps the name, and the others get a suffix, as copies do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from crdt.heads import Placed, Slots, derived_id, heads, placements, self_alive
from crdt.ids import RECOVERED, ROOT, DeviceId, ItemId
from crdt.naming import suffixed_names
from crdt.slot import Content, Kind, Slot
from crdt.version_vector import VersionVector

RECOVERED_NAME: Final = "Recovered"
_NOBODY: Final = DeviceId(bytes(32))

RECOVERED_CONTENT: Final = Content(
    version=VersionVector({_NOBODY: 1}),
    device=_NOBODY,
    lamport=1,
    kind=Kind.DIRECTORY,
    origin=(_NOBODY, 1),
)
"""What `Recovered/` holds before anybody wrote a slot of it."""


@dataclass(frozen=True, slots=True)
class ViewRow:
    """One visible item.

    `item` stands for all that it unites; `parent` is the shown directory's; `revision` is local
    and grows whenever a slot behind the row changes; `copy_of` is the item whose losing head this
    virtual copy shows; `conflicts` counts this item's virtual copies.
    """

    item: ItemId
    parent: ItemId
    name: str
    content: Content
    revision: int
    copy_of: ItemId | None = None
    conflicts: int = 0


class TreeReader(Protocol):
    """What actions and the engine ask of a view."""

    def row(self, item: ItemId) -> ViewRow | None:
        """The row of a shown item; None for hidden, dead and unknown ones."""
        ...

    def slots(self, item: ItemId) -> Mapping[DeviceId, Slot]:
        """All slots of an item, shown or not."""
        ...

    def members(self, item: ItemId) -> Sequence[ItemId]:
        """All live items that a shown one stands for, itself included, sorted."""
        ...

    def representative(self, item: ItemId) -> ItemId:
        """The shown item that stands for `item`; `item` itself where none does."""
        ...

    def child(self, parent: ItemId, name: str) -> ViewRow | None:
        """What is shown at `name` in the shown directory `parent`."""
        ...

    def children(self, parent: ItemId) -> Iterator[ViewRow]:
        """Everything shown in the shown directory `parent`."""
        ...


@dataclass(frozen=True, slots=True)
class Sighting:
    """A live child of a directory, before names are settled."""

    item: ItemId
    name: str
    content: Content


@dataclass(frozen=True, slots=True)
class Group:
    """How the live children of one wanted name are shown."""

    shown: Sighting | None  # who keeps the name
    united: tuple[ItemId, ...]  # directories that are one, least first
    losers: tuple[Sighting, ...]  # who gets a suffix
    twins: Mapping[ItemId, tuple[ItemId, ...]]  # shown file -> all files of its bytes


def settle_group(sightings: Iterable[Sighting]) -> Group:
    """Decide who of the live children of one wanted name keeps it (rule 4)."""
    ordered = sorted(sightings, key=lambda one: one.item)
    directories = [one for one in ordered if one.content.kind is Kind.DIRECTORY]
    by_bytes: dict[bytes, list[Sighting]] = {}
    for one in ordered:
        if one.content.kind is not Kind.DIRECTORY:
            by_bytes.setdefault(one.content.digest, []).append(one)
    faces = [same[0] for same in by_bytes.values()]  # in order of their least item
    twins = {same[0].item: tuple(one.item for one in same) for same in by_bytes.values()}
    united = tuple(one.item for one in directories)
    if directories:
        return Group(directories[0], united, tuple(faces), twins)
    return Group(faces[0] if faces else None, (), tuple(faces[1:]), twins)


def settle_losers(losers: Iterable[Sighting], taken: Callable[[str], bool]) -> dict[ItemId, str]:
    """Names for everyone in one directory who lost theirs; `taken` knows the wanted names."""
    names: dict[ItemId, str] = {}
    given: set[str] = set()
    for loser in sorted(losers, key=lambda one: one.item):
        for name in suffixed_names(loser.name, loser.item, loser.content):
            if name not in given and not taken(name):
                given.add(name)
                names[loser.item] = name
                break
    return names


def places(slots: Mapping[ItemId, Slots]) -> dict[ItemId, tuple[ItemId, str]]:
    """Effective parent and name of every item that has slots (rule 1)."""
    candidates = {item: placements(of) for item, of in slots.items() if item != RECOVERED}
    directories = {item for item, of in slots.items() if _is_directory(of)} | {ROOT, RECOVERED}
    index = dict.fromkeys(candidates, 0)

    def parent(item: ItemId) -> ItemId | None:
        if item not in candidates:
            return None  # ROOT, RECOVERED
        found = _chosen(candidates[item], index[item])
        return found.parent if found is not None and found.parent in directories else RECOVERED

    pending = list(candidates)
    done: set[ItemId] = set()
    while pending:
        path: list[ItemId] = []
        on_path: set[ItemId] = set()
        at: ItemId | None = pending[-1]
        while at is not None and at not in done and at not in on_path:
            path.append(at)
            on_path.add(at)
            at = parent(at)
        if at is None or at in done:
            done.update(path)
            pending.pop()
            continue
        cycle = path[path.index(at) :]
        newest = max(cycle, key=lambda item: (_key(candidates[item], index[item]), item))
        index[newest] += 1
    return {
        item: (parent(item) or ROOT, _name(item, candidates[item], index[item]))
        for item in candidates
    }


def _is_directory(slots: Slots) -> bool:
    contents = heads(slots)
    return bool(contents) and contents[0].kind is Kind.DIRECTORY


def _chosen(placed: list[Placed], index: int) -> Placed | None:
    return placed[index] if index < len(placed) else None


def _key(placed: list[Placed], index: int) -> tuple[int, DeviceId]:
    chosen = placed[index]  # only placements make cycles, so there is one
    return (chosen.lamport, chosen.device)


def _name(item: ItemId, placed: list[Placed], index: int) -> str:
    chosen = _chosen(placed, index) or _chosen(placed, 0)
    return chosen.name if chosen is not None else item.hex()


class View:
    """The whole view in memory: for simulations and tests; the node asks its index."""

    def __init__(self) -> None:
        self.rows: dict[ItemId, ViewRow] = {}
        self.state: dict[ItemId, dict[DeviceId, Slot]] = {}
        self.united: dict[ItemId, tuple[ItemId, ...]] = {}
        self.faces: dict[ItemId, ItemId] = {}
        self.listing: dict[ItemId, dict[str, ItemId]] = {}

    def row(self, item: ItemId) -> ViewRow | None:
        """See `TreeReader`."""
        return self.rows.get(item)

    def slots(self, item: ItemId) -> Mapping[DeviceId, Slot]:
        """See `TreeReader`."""
        return self.state.get(item, {})

    def members(self, item: ItemId) -> Sequence[ItemId]:
        """See `TreeReader`."""
        return self.united.get(item, (item,))

    def representative(self, item: ItemId) -> ItemId:
        """See `TreeReader`."""
        return self.faces.get(item, item)

    def child(self, parent: ItemId, name: str) -> ViewRow | None:
        """See `TreeReader`."""
        item = self.listing.get(parent, {}).get(name)
        return None if item is None else self.rows[item]

    def children(self, parent: ItemId) -> Iterator[ViewRow]:
        """See `TreeReader`."""
        for item in self.listing.get(parent, {}).values():
            yield self.rows[item]


def view(
    slots: Mapping[tuple[ItemId, DeviceId], Slot],
    revisions: Mapping[ItemId, int] | None = None,
) -> View:
    """Compute the view of a state.

    Args:
        slots: The whole state.
        revisions: Local revision of each item, for `ViewRow.revision`.
    """
    made = View()
    for (item, device), slot in slots.items():
        of = made.state.setdefault(item, {})
        of[device] = slot
    _Show(made, revisions or {}).show()
    return made


class _Show:
    """Fills a `View` in, from the root down."""

    def __init__(self, made: View, revisions: Mapping[ItemId, int]) -> None:
        self._view = made
        self._revisions = revisions
        self._heads = {item: heads(of) for item, of in made.state.items()}
        if not _is_directory(made.state.get(RECOVERED, {})):
            self._heads.pop(RECOVERED, None)  # whatever anybody wrote, other items lie in it
        self._places = places(made.state)
        self._below: dict[ItemId, list[ItemId]] = {}

    def show(self) -> None:
        for item in sorted(self._living()):  # runs of one seed are alike, whatever the hash seed
            if item == RECOVERED:
                self._below.setdefault(ROOT, []).append(item)
            else:
                self._below.setdefault(self._places[item][0], []).append(item)
        pending: list[tuple[ItemId, tuple[ItemId, ...]]] = [(ROOT, (ROOT,))]
        while pending:
            parent, members = pending.pop()
            pending += self._show_directory(parent, members)

    def _living(self) -> set[ItemId]:
        living: set[ItemId] = set()
        for item, of in self._view.state.items():
            at: ItemId | None = item if self_alive(of) else None
            while at is not None and at != ROOT and at not in living:
                living.add(at)
                at = ROOT if at == RECOVERED else self._places[at][0]
        return living

    def _sighting(self, item: ItemId) -> Sighting:
        if item == RECOVERED:
            content = self._heads[item][0] if self._heads.get(item) else RECOVERED_CONTENT
            return Sighting(item, RECOVERED_NAME, content)
        return Sighting(item, self._places[item][1], self._heads[item][0])

    def _show_directory(
        self, parent: ItemId, members: tuple[ItemId, ...]
    ) -> list[tuple[ItemId, tuple[ItemId, ...]]]:
        wanted: dict[str, list[Sighting]] = {}
        for member in members:
            for item in self._below.get(member, ()):
                one = self._sighting(item)
                wanted.setdefault(one.name, []).append(one)
        below: list[tuple[ItemId, tuple[ItemId, ...]]] = []
        losers: list[Sighting] = []
        copies: dict[ItemId, ItemId] = {}
        shown: list[Sighting] = []
        for sightings in wanted.values():
            group = settle_group(sightings)
            losers += group.losers
            if group.shown is not None:
                shown.append(group.shown)
            if group.united:
                self._unite(group.united)
                below.append((group.united[0], group.united))
            for twins in group.twins.values():
                self._unite(twins)
            for one in sightings:  # hidden twins too: their losers have other bytes
                for copy in self._copies(one):
                    copies[copy.item] = one.item
                    losers.append(copy)
        names = settle_losers(losers, wanted.__contains__)
        for one in (*shown, *losers):
            self._put(one, parent, names.get(one.item, one.name), copies)
        return below

    def _copies(self, one: Sighting) -> list[Sighting]:
        found = []
        for loser in self._heads.get(one.item, [])[1:]:
            derived = derived_id(one.item, loser.version)
            if derived not in self._view.state:
                found.append(Sighting(derived, one.name, loser))
        return found

    def _unite(self, members: tuple[ItemId, ...]) -> None:
        if len(members) > 1:
            self._view.united[members[0]] = members
            for member in members:
                self._view.faces[member] = members[0]

    def _put(
        self, one: Sighting, parent: ItemId, name: str, copies: Mapping[ItemId, ItemId]
    ) -> None:
        copy_of = copies.get(one.item)
        behind = self._view.members(one.item if copy_of is None else copy_of)
        self._view.rows[one.item] = ViewRow(
            item=one.item,
            parent=parent,
            name=name,
            content=one.content,
            revision=max(self._revisions.get(item, 0) for item in behind),
            copy_of=copy_of,
            conflicts=0 if copy_of is not None else sum(of in behind for of in copies.values()),
        )
        self._view.listing.setdefault(parent, {})[name] = one.item
