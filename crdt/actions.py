"""Turns what a person did into slot writes: the writes of one entry.

A device writes only its own slots, and each write carries the whole new slot. Four rules make that
safe; the properties of `tests/crdt/test_histories.py` hold them.

1. **What vanishes is kept.** If this device's new version of an item makes a head vanish that is
   not what the person acted on, that head is written into its derived item, in the same entry
   (*materialised*). It is not enough to look at the heads that the new version names: own counters
   are covered without being named, so own older content and touches of it would go too.
2. **A new version covers this device's last one.** Else what that one had covered would come back
   as a head when it is overwritten. What was replaced once stays replaced.
3. A rename keeps the own content only while no other version has seen it, and never copies another
   device's content in: that would overwrite a concurrent edit of our own.
4. An edit of an item that is deleted replaces all that was deleted.

An action on an item that has neither slots nor a row does nothing: a virtual copy that lay on the
disk, and whose content somebody replaced meanwhile. An edit of one gives it slots.

Pure; an instance belongs to one entry. Failure: nothing raises but our own bugs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from crdt.heads import Slots, derived_id, heads, maximal, placements, self_alive
from crdt.ids import RECOVERED, ROOT, DeviceId, ItemId
from crdt.naming import suffixed_names
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
from crdt.tree import RECOVERED_NAME, TreeReader
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


_A_DIRECTORY: Final = Draft(Kind.DIRECTORY)


class Writer:
    """Collects the slot writes of one entry of `device`, whose seq is `counter`.

    Items are named as the view shows them: a representative, which acts for all that it unites, or
    a virtual copy; a hidden item acts for itself. Several actions on one item make one write; of
    several edits of one item the last one stands, so do not let two different ones meet here.
    """

    def __init__(
        self,
        tree: TreeReader,
        *,
        device: DeviceId,
        counter: int,
        lamport: int,
        saw: Callable[[ItemId], bool] = lambda _copy: True,
    ) -> None:
        """Args:
        tree: The view that the person acted on.
        device: Ours.
        counter: The seq of the entry to be.
        lamport: Above every one in the tree.
        saw: Whether a virtual copy has reached the person. What is done to the winner leaves a
            loser alone that had not: its author may replace it yet, and then nobody would have
            its bytes any more.
        """
        self._saw = saw
        self._tree = tree
        self._device = device
        self._counter = counter
        self._lamport = lamport
        self._known: dict[ItemId, Slots] = {}  # read from the tree, which stays as it is
        self._writes: dict[ItemId, Slot] = {}
        self._replaced: set[tuple[ItemId, VersionVector]] = set()  # by these very actions

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

    def edit(
        self,
        item: ItemId,
        draft: Draft,
        *,
        base: VersionVector,
        place: tuple[ItemId, str] | None = None,
    ) -> None:
        """Other content, made from the version `base`, which is what the person saw.

        `place` is where it lies on the person's disk, for an item that has no place yet.
        """
        self._real(item)
        seen = self._with_version(item, base)
        content = self._content(draft, self._edited_version(item, draft, base, seen), seen)
        self._keep_vanishing(item, content, base, seen)
        self._put(item, content=content)
        self._delete_twins(item)
        if place is not None and not placements(self._slots(item)):
            self._place(item, *place)

    def merge(self, item: ItemId, draft: Draft) -> None:
        """Content that was made from all heads and holds what each of them changed."""
        slots = self._slots(item)
        own, version = slots.get(self._device), EMPTY
        if own is not None and own.content is not None:
            version = own.content.version
        for content in maximal(slots):
            version |= content.version
        self._put(item, content=self._content(draft, version, None))

    def move(self, item: ItemId, parent: ItemId, name: str) -> None:
        """Another place for an item and all that it unites."""
        self._real(item)
        for member in self._members(item):
            if member != parent:  # never into itself: the two were seen apart, and united since
                self._resolve(member)
                self._place(member, parent, name)

    def delete(self, item: ItemId) -> None:
        """The person, having seen all of the item as it now is, removed it and all it unites."""
        self._real(item)
        for member in self._members(item):
            self._resolve(member)
            self._delete(member)

    def resolve(self, item: ItemId) -> None:
        """Make the virtual copies of the item (or of the one that this is a copy of) real."""
        row = self._tree.row(item)
        of = item if row is None or row.copy_of is None else row.copy_of
        for member in self._members(of):
            self._resolve(member)

    # --- what the actions are made of -----------------------------------------------------------

    def _slots(self, item: ItemId) -> Slots:
        """The item's slots, as they are after the writes so far."""
        slots = self._before(item)
        own = self._writes.get(item)
        return slots if own is None else {**slots, self._device: own}

    def _before(self, item: ItemId) -> Slots:
        slots = self._known.get(item)
        if slots is None:
            slots = self._known[item] = self._tree.slots(item)
        return slots

    def _members(self, item: ItemId) -> Iterable[ItemId]:
        """All that an item stands for and that has slots."""
        return [member for member in self._tree.members(item) if self._slots(member)]

    def withdraw(self, item: ItemId, version: VersionVector) -> None:
        """The person removed our own content `version`, not having seen the item's other heads:
        they stay, and nobody waits for bytes that are gone.
        """
        slots = self._slots(item)
        own, others = slots.get(self._device), maximal(slots)
        if own is None or own.content is None or own.content.version != version:
            return
        if own.content in others and len(others) > 1:
            self._writes[item] = Slot(
                counter=self._counter, placements=own.placements, deleted=own.deleted
            )

    def _put(
        self,
        item: ItemId,
        *,
        content: Content | None = None,
        places: tuple[Placement, ...] | None = None,
        deleted: VersionVector | None = None,
    ) -> None:
        """Write our slot of `item`.

        What is not given stays, a content only while none saw it. A deletion stays too: this slot,
        written after it, keeps the item alive, but what was deleted stays deleted.
        """
        slots = self._slots(item)
        own = slots.get(self._device)
        if content is None and own is not None and own.content in maximal(slots):
            content = own.content
        self._writes[item] = Slot(
            counter=self._counter,
            placements=own.placements if places is None and own else places or (),
            content=content,
            deleted=own.deleted if deleted is None and own is not None else deleted,
        )

    def _place(self, item: ItemId, parent: ItemId, name: str) -> None:
        if parent != ROOT:
            self._real(parent)
        own = self._slots(item).get(self._device)
        older = tuple(  # falling back to the same parent would break no cycle
            p
            for p in (own.placements if own is not None else ())
            if p.lamport < self._lamport and p.parent != parent
        )
        new = Placement(self._lamport, parent, name)
        self._put(item, places=(new, *older)[:PLACEMENTS_MAX])

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

    def _with_version(self, item: ItemId, version: VersionVector) -> Content | None:
        """The content `version`, if a slot holds it, or held it before this entry."""
        for slots in (self._slots(item), self._before(item)):
            for slot in slots.values():
                if slot.content is not None and slot.content.version == version:
                    return slot.content
        return None

    def _edited_version(
        self, item: ItemId, draft: Draft, base: VersionVector, seen: Content | None
    ) -> VersionVector:
        """What an edit of `base` has seen: its base, this device's last version (rule 2), and all
        there is if that is nothing to keep (rule 4), or if the person saw the winner's bytes; but
        then not the copies that had not reached the person.
        """
        slots = self._slots(item)
        version, shown = base, heads(slots)
        own = slots.get(self._device)
        if own is not None and own.content is not None:
            version |= own.content.version
        covered: list[Content] = []
        if draft.kind is Kind.DIRECTORY or not self_alive(slots):
            covered = maximal(slots)
        elif seen is not None and seen.digest == shown[0].digest:
            unseen = self._unseen(item)
            covered = [content for content in maximal(slots) if content.version not in unseen]
        for content in covered:
            version |= content.version
        return version

    def _resolve(self, item: ItemId) -> None:
        """Give the winner a version that has seen all heads that the person has seen, each other
        one of these an item of its own.
        """
        slots = self._slots(item)
        shown, unseen = heads(slots), self._unseen(item)
        losers = [head for head in shown[1:] if head.version not in unseen]
        if not losers or not self_alive(slots):
            return
        version = EMPTY
        for content in maximal(slots):
            if content.version not in unseen:
                version |= content.version
        for loser in losers:
            self._materialise(item, loser)
        version = version.with_counter(self._device, self._counter)
        resolved = replace(shown[0], version=version, device=self._device, lamport=self._lamport)
        self._put(item, content=resolved)

    def _unseen(self, item: ItemId) -> set[VersionVector]:
        """Versions of losers that have not reached the person. What our own slot holds is none of
        them: writing there again would make it vanish.
        """
        slots = self._slots(item)
        own = slots.get(self._device)
        return {
            head.version
            for head in heads(slots)[1:]
            if not self._saw(derived_id(item, head.version))
            and (own is None or own.content is None or own.content.version != head.version)
        }

    def _keep_vanishing(
        self, item: ItemId, content: Content, base: VersionVector, seen: Content | None
    ) -> None:
        """Materialise each head, other than what the person saw, that `content` will push out."""
        slots = self._slots(item)
        if content.kind is Kind.DIRECTORY or not self_alive(slots):
            return
        self._replaced.add((item, base))
        shown = heads({**slots, self._device: Slot(counter=self._counter, content=content)})
        left = {head.digest for head in shown}
        before = {head.version: head for head in (*heads(self._before(item)), *heads(slots))}
        for head in before.values():
            if head.version.covers(self._device, self._counter):
                continue  # an earlier edit of this very entry
            if seen is not None and head.digest == seen.digest:
                self._replaced.add((item, head.version))
            if head.digest not in left and (item, head.version) not in self._replaced:
                self._materialise(item, head)

    def _materialise(self, item: ItemId, head: Content) -> None:
        """Give the derived item of a head slots of its own, where it is shown or would be."""
        derived = derived_id(item, head.version)
        if self._slots(derived):
            return  # somebody did so already
        parent, name = self._place_of_copy(item, derived, head)
        self._writes[derived] = Slot(counter=self._counter, content=head)
        self._place(derived, parent, name)

    def _place_of_copy(self, item: ItemId, derived: ItemId, head: Content) -> tuple[ItemId, str]:
        copy = self._tree.row(derived)
        if copy is not None:
            return copy.parent, copy.name
        shown = self._tree.row(self._tree.representative(item))
        if shown is None:  # only a living item gets here, and what lives is shown
            return RECOVERED, derived.hex()
        given = {p.name for slot in self._writes.values() for p in slot.placements[:1]}
        for name in suffixed_names(shown.name, derived, head):
            if name not in given and self._tree.child(shown.parent, name) is None:
                return shown.parent, name
        raise AssertionError("names never end")

    def _real(self, item: ItemId) -> None:
        """Give a virtual item slots of its own, so that it can be acted on."""
        if self._slots(item):
            return
        if item == RECOVERED:
            self._put(item, content=self._content(_A_DIRECTORY, EMPTY, None))
            self._put(item, places=(Placement(self._lamport, ROOT, RECOVERED_NAME),))
        row = self._tree.row(item)
        if row is not None and row.copy_of is not None:
            self._materialise(row.copy_of, row.content)
            self._resolve(row.copy_of)

    def _delete(self, item: ItemId) -> None:
        unseen = self._unseen(item)
        counters = {
            device: slot.counter
            for device, slot in self._slots(item).items()
            if slot.content is None or slot.content.version not in unseen
        }
        self._put(item, deleted=VersionVector({**counters, self._device: self._counter}))

    def _delete_twins(self, item: ItemId) -> None:
        row = self._tree.row(item)
        if row is not None and row.content.kind is not Kind.DIRECTORY:
            for twin in self._members(item):
                if twin != item and twin not in self._writes:  # people act on that one too
                    self._resolve(twin)
                    self._delete(twin)
