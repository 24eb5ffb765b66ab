"""Turns what a person did into slot writes: the writes of one entry.

A device writes only its own slots, and each write carries the whole new slot. What makes that safe
is one rule: **before this device's new version of an item dominates a head that is not what the
person acted on, that head is written into its derived item, in the same entry** (*materialised*).
That holds for the other heads of a conflict, and for this device's own older content, which its
new slot would overwrite: own counters are dominated without being named.

A rename keeps the own content only while it is still a head, and never copies another device's
content in: that would overwrite a concurrent edit of our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from crdt.heads import Slots, derived_id, heads, maximal
from crdt.ids import RECOVERED, ROOT, DeviceId, ItemId
from crdt.slot import (
    PLACEMENTS_MAX,
    Content,
    Kind,
    Manifest,
    Placement,
    Slot,
    content_body,
    content_digest,
)
from crdt.tree import RECOVERED_NAME, TreeReader, ViewRow
from crdt.version_vector import EMPTY, VersionVector


@dataclass(frozen=True, slots=True)
class Draft:
    """A content before it has a version and an author; fields as in `Content`."""

    kind: Kind
    size: int = 0
    mtime_ns: int = 0
    executable: bool = False
    inline: bytes | None = None
    manifest: Manifest | None = None
    target: str | None = None

    @property
    def digest(self) -> bytes:
        """`Content.digest` of a content with these bytes."""
        body = content_body(self.inline, self.manifest, self.target)
        return content_digest(self.kind, self.size, body)


class Writer:
    """Collects the slot writes of one entry of `device`, whose seq is `counter`.

    Items are named as the view shows them: a representative, or a virtual copy. Several actions on
    one item make one write.
    """

    def __init__(self, tree: TreeReader, *, device: DeviceId, counter: int, lamport: int) -> None:
        self._tree = tree
        self._device = device
        self._counter = counter
        self._lamport = lamport
        self._writes: dict[ItemId, Slot] = {}

    @property
    def writes(self) -> list[tuple[ItemId, Slot]]:
        """One write an item."""
        return list(self._writes.items())

    # --- actions --------------------------------------------------------------------------------

    def create(self, item: ItemId, parent: ItemId, name: str, draft: Draft) -> None:
        """A new item at `name` in `parent`."""
        assert not self._slots(item), "a new item has no slots yet"
        self._put(item, content=self._content(draft, EMPTY, None))
        self._place(item, parent, name)

    def edit(self, item: ItemId, draft: Draft, *, base: VersionVector) -> None:
        """Other content, made from the version `base`, which is what the person saw."""
        item = self._real(item)
        slots = self._slots(item)
        shown = heads(slots)
        version = base
        if shown and shown[0].version == base:
            for head in maximal(slots):
                version |= head.version
        content = self._content(draft, version, _with_version(slots, base))
        self._keep_dominated(item, content.version, base)
        self._put(item, content=content, revive=True)
        self._delete_twins(item)

    def move(self, item: ItemId, parent: ItemId, name: str) -> None:
        """Another place for an item and all that it unites."""
        item = self._real(item)
        members = self._tree.members(item)
        for member in members:
            self.resolve(member)
            self._place(member, parent, name)

    def delete(self, item: ItemId) -> None:
        """The person, having seen all of the item as it now is, removed it and all it unites."""
        item = self._real(item)
        for member in self._tree.members(item):
            self.resolve(member)
            self._delete(member)

    def resolve(self, item: ItemId) -> None:
        """Make the item's virtual copies items of their own."""
        slots = self._slots(item)
        shown = heads(slots)
        if len(shown) < 2:
            return
        winner, version = shown[0], EMPTY
        for head in maximal(slots):
            version |= head.version
        version = version.with_counter(self._device, self._counter)
        self._keep_dominated(item, version, winner.version)
        self._put(
            item,
            content=Content(
                version=version,
                device=self._device,
                lamport=self._lamport,
                kind=winner.kind,
                origin=winner.origin,
                size=winner.size,
                mtime_ns=winner.mtime_ns,
                executable=winner.executable,
                inline=winner.inline,
                manifest=winner.manifest,
                target=winner.target,
            ),
        )

    # --- what the actions are made of -----------------------------------------------------------

    def _slots(self, item: ItemId) -> Slots:
        """The item's slots, as they are after the writes so far."""
        slots = self._tree.slots(item)
        own = self._writes.get(item)
        return slots if own is None else {**slots, self._device: own}

    def _put(
        self,
        item: ItemId,
        *,
        content: Content | None = None,
        placements: tuple[Placement, ...] | None = None,
        deleted: VersionVector | None = None,
        revive: bool = False,
    ) -> None:
        """Write our slot of `item`: what is not given stays, a content only while it is a head."""
        slots = self._slots(item)
        own = slots.get(self._device)
        if content is None and own is not None and own.content in maximal(slots):
            content = own.content
        self._writes[item] = Slot(
            counter=self._counter,
            placements=own.placements if placements is None and own else placements or (),
            content=content,
            deleted=own.deleted if deleted is None and own and not revive else deleted,
        )

    def _place(self, item: ItemId, parent: ItemId, name: str) -> None:
        parent = self._real(parent) if parent != ROOT else ROOT
        own = self._slots(item).get(self._device)
        older = tuple(
            p for p in (own.placements if own is not None else ()) if p.lamport < self._lamport
        )
        new = Placement(self._lamport, parent, name)
        self._put(item, placements=(new, *older)[:PLACEMENTS_MAX])

    def _content(self, draft: Draft, version: VersionVector, base: Content | None) -> Content:
        same = base is not None and base.digest == draft.digest
        return Content(
            version=version.with_counter(self._device, self._counter),
            device=self._device,
            lamport=self._lamport,
            kind=draft.kind,
            origin=base.origin if same and base else (self._device, self._counter),
            size=draft.size,
            mtime_ns=draft.mtime_ns,
            executable=draft.executable,
            inline=draft.inline,
            manifest=draft.manifest,
            target=draft.target,
        )

    def _keep_dominated(self, item: ItemId, version: VersionVector, base: VersionVector) -> None:
        """Materialise every head but `base` that `version` is about to dominate."""
        names = {row.item: row for row in self._copies(item)}
        for head in heads(self._slots(item)):
            if head.version == base or not version.dominates(head.version):
                continue
            if head.version.covers(self._device, self._counter):
                continue  # written by an earlier action of this very entry
            derived = derived_id(item, head.version)
            if self._slots(derived):
                continue  # somebody did so already
            self._materialise(item, derived, head, names.get(derived))

    def _copies(self, item: ItemId) -> Iterator[ViewRow]:
        for head in heads(self._tree.slots(item))[1:]:
            row = self._tree.row(derived_id(item, head.version))
            if row is not None:
                yield row

    def _materialise(
        self, item: ItemId, derived: ItemId, head: Content, copy: ViewRow | None
    ) -> None:
        shown = copy or self._tree.row(self._tree.representative(item))
        parent = shown.parent if shown is not None else RECOVERED
        name = shown.name if shown is not None else derived.hex()
        self._writes[derived] = Slot(counter=self._counter, content=head)
        self._place(derived, parent, name)

    def _real(self, item: ItemId) -> ItemId:
        """Give a virtual item slots of its own, so that it can be acted on."""
        if item == RECOVERED and not self._slots(RECOVERED):
            self._put(RECOVERED, content=self._content(Draft(Kind.DIRECTORY), EMPTY, None))
            self._put(RECOVERED, placements=(Placement(self._lamport, ROOT, RECOVERED_NAME),))
        row = self._tree.row(item)
        if row is not None and row.copy_of is not None and not self._slots(item):
            self.resolve(row.copy_of)
        return item

    def _delete(self, item: ItemId) -> None:
        counters = {device: slot.counter for device, slot in self._slots(item).items()}
        self._put(item, deleted=VersionVector({**counters, self._device: self._counter}))

    def _delete_twins(self, item: ItemId) -> None:
        row = self._tree.row(item)
        if row is not None and row.content.kind is not Kind.DIRECTORY:
            for twin in self._tree.members(item):
                if twin != item:
                    self.resolve(twin)
                    self._delete(twin)


def _with_version(slots: Mapping[DeviceId, Slot], version: VersionVector) -> Content | None:
    for slot in slots.values():
        if slot.content is not None and slot.content.version == version:
            return slot.content
    return None
