"""How the living items of a batch are shown: rules 3 and 4 of `crdt.tree`.

The living items that want one name in one shown directory are a *group*; whenever a member comes,
goes or changes, the group is settled again. Where that gives a directory another face (another
item that stands for it), its children move to the face's listing, and their groups follow. That
is done from the top down. All members of a group lie equally deep; a member of another depth is
one whose parent has moved away from the others and is still to get its face. It counts for nothing
until it is filed anew. So what is above a depth never depends on it, and the work ends.

Losers get their names last, directory by directory, in the order of their ids: each the first
name that no living item there wants and no earlier loser has. Only those are named again for which
that may have changed: losers that are new or different; one whose name somebody now wants, or an
earlier loser took; and, when a suffixed name became free, those that had not got their first
choice.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Final

from crdt.heads import derived_id
from crdt.ids import ROOT, ItemId
from crdt.naming import MARK, suffixed_names
from crdt.slot import Content, Kind
from crdt.tree import RECOVERED_CONTENT, Sighting, settle_group
from node.index.records import (
    CHILDREN_APART,
    CHILDREN_TOGETHER,
    DEMOTED,
    KEEPS,
    NAMED,
    NAMELESS,
    SHOWN_AS,
    SUFFIXED,
    SUFFIXED_ON,
    Record,
    Records,
    holder,
)

_Key = tuple[ItemId, str]  # shown directory, wanted name
_LOST: Final = frozenset({SUFFIXED, SUFFIXED_ON})


class Groups:
    """Settles the groups that one batch touches."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._members: dict[_Key, dict[ItemId, Record]] = {}
        self._depths: dict[ItemId, int] = {ROOT: 0}
        self._loose: dict[int, dict[Record, None]] = {}  # depth -> living, to be filed
        self._dirty: dict[int, dict[_Key, None]] = {}  # depth -> groups to settle
        self._arrived: dict[ItemId, dict[Record, None]] = {}  # parent -> filed in this batch
        self._nameless: dict[ItemId, set[ItemId]] = {}  # directory -> losers to name
        self._contested: dict[ItemId, set[str]] = {}  # directory -> wanted names that look given
        self._holders: dict[_Key, Record] = {}

    def settle(self, affected: Iterable[Record]) -> None:
        """Show `affected`, and whatever else that changes."""
        for record in affected:
            if record.losers is not None:
                self._records.unname(record)
            self._lift(record)
            if record.losers is not None:
                self._renew_copies(record, record.losers if record.alive else [])
        while self._loose or self._dirty:
            depth = min((*self._loose, *self._dirty))
            for record in self._loose.pop(depth, ()):
                self._file(record, depth)
            for key in self._dirty.pop(depth, ()):
                self._settle_group(key, depth)
        for directory in sorted({*self._nameless, *self._contested, *self._records.released}):
            self._name_losers(directory)

    # --- groups ---------------------------------------------------------------------------------

    def _group(self, key: _Key) -> dict[ItemId, Record]:
        """The members of a group. It is read before anything in memory changes it."""
        found = self._members.get(key)
        if found is None:
            found = self._members[key] = {}
            directory = None if key[0] == ROOT else self._records.find(key[0])
            if directory is None or directory.stored is not None:
                for record in self._records.ask(NAMED, *key):
                    found[record.item] = record
        return found

    def _depth(self, record: Record) -> int:
        """How far below the root an item lies. United directories lie equally deep."""
        path: list[ItemId] = []
        at = record.item
        while at not in self._depths:
            path.append(at)
            at = self._records.get(at).parent or ROOT
        depth = self._depths[at]
        for item in reversed(path):
            depth += 1
            self._depths[item] = depth
        return depth

    def _lift(self, record: Record) -> None:
        """Take a record out of the group that it is in, to be filed anew if it lives."""
        if record.filed is not None:
            group = self._group(record.filed)
            group.pop(record.item, None)
            self._came_or_went(record.filed)
            for other in group.values():
                if other.exists:  # else it is about to be lifted, too
                    self._dirty.setdefault(self._depth(other), {})[record.filed] = None
        if record.alive:
            self._loose.setdefault(self._depth(record), {})[record] = None
            return
        self._records.unname(record)
        record.filed, record.directory = None, None
        record.face, record.top, record.conflicts = None, 0, 0

    def _file(self, record: Record, depth: int) -> None:
        """Put a living record into the group that it belongs to."""
        assert record.parent is not None, "only copies have no parent"
        key = (self._face(record.parent), record.name)
        if key != record.filed:
            self._records.unname(record)
            for copy in self._records.copies(record):
                self._records.unname(copy)
                copy.directory, copy.name = key
            record.filed, record.directory = key, key[0]
            self._arrived.setdefault(record.parent, {})[record] = None
        self._group(key)[record.item] = record
        self._came_or_went(key)
        self._dirty.setdefault(depth, {})[key] = None

    def _came_or_went(self, key: _Key) -> None:
        if MARK in key[1]:
            self._contested.setdefault(key[0], set()).add(key[1])

    def _face(self, item: ItemId) -> ItemId:
        return item if item == ROOT else self._records.get(item).face or item

    def _renew_copies(self, record: Record, losers: list[Content]) -> None:
        """Give a record the virtual copies that its heads ask for."""
        records = self._records
        wanted = {derived_id(record.item, head.version): head for head in losers}
        for copy in records.copies(record):
            records.drop(copy)
        record.copied = []
        for derived, head in wanted.items():
            known = records.find(derived)
            if known is not None and known.copy_of is None:
                records.derived[derived] = record.item
                continue  # materialised: it speaks for itself
            copy = records.claim(derived)
            copy.copy_of, copy.kind, copy.size = record.item, int(head.kind), head.size
            copy.winner = holder(records.slots(record), head)
            copy.directory, copy.name = record.directory, record.name
            record.copied.append(copy)
        record.copies = len(record.copied)

    def _settle_group(self, key: _Key, depth: int) -> None:
        """Show the members that lie at `depth`; others have yet to be filed elsewhere."""
        group = self._group(key)
        members = {item: one for item, one in group.items() if self._depth(one) == depth}
        if not members:
            return
        if len(members) == 1:
            (only,) = members.values()
            if not only.copies:  # by far the commonest
                only.top, only.conflicts = only.revision, 0
                self._stand_for(only, None)
                self._keep(only)
                return
        settled = settle_group(
            Sighting(record.item, key[1], self._kind_of_content(record))
            for record in members.values()
        )
        for band in (settled.united, *settled.twins.values()):
            if band:
                self._settle_band([members[item] for item in band])
        for loser in settled.losers:
            self._lose(members[loser.item])
        if settled.shown is not None:
            self._keep(members[settled.shown.item])

    def _kind_of_content(self, record: Record) -> Content:
        """The content, as far as settling a group asks: all directories are alike."""
        if record.kind == Kind.DIRECTORY:
            return RECOVERED_CONTENT
        return self._records.content(record)

    def _settle_band(self, band: list[Record]) -> None:
        """United directories, or twins: the first stands for all."""
        face = band[0]
        face.top = max(record.revision for record in band)
        face.conflicts = sum(record.copies for record in band)
        for record in band:
            for copy in self._records.copies(record):
                copy.top = face.top if record is face else record.revision
                self._lose(copy)
            if record is not face:
                self._records.unname(record)
                record.top, record.conflicts = 0, 0
        for record in band:
            self._stand_for(record, None if record is face else face.item)

    def _stand_for(self, record: Record, face: ItemId | None) -> None:
        """From now on `face` is shown for `record`; its children move there."""
        if record.face == face:
            return
        record.face = face
        if record.is_directory:
            for child in self._living_children(record):
                self._lift(child)

    def _living_children(self, record: Record) -> list[Record]:
        """What lies in a directory, except what is yet to be filed anyway."""
        item = record.item
        found = dict(self._arrived.get(item, {}))
        if record.stored is not None:
            if record.stored.face is None:
                here = self._records.ask(CHILDREN_TOGETHER, item, item)
            else:
                here = self._records.ask(CHILDREN_APART, item)
            found |= dict.fromkeys(here)
        return [child for child in found if child.alive and child.parent == item]

    def _keep(self, record: Record) -> None:
        if record.state != KEEPS:
            self._records.unname(record)
            record.state = KEEPS

    def _lose(self, record: Record) -> None:
        if record.state not in _LOST and record.directory is not None:
            record.state = NAMELESS
            self._nameless.setdefault(record.directory, set()).add(record.item)

    # --- names of losers ------------------------------------------------------------------------

    def _name_losers(self, directory: ItemId) -> None:
        """Name the losers of one directory for which anything may have changed."""
        dirty = self._nameless.get(directory, set())
        for name in self._contested.get(directory, ()):
            if self._group((directory, name)):
                loser = self._holder((directory, name))
                if loser is not None:
                    dirty.add(loser.item)
            else:
                self._records.released.add(directory)
        if directory in self._records.released:
            dirty.update(self._demoted(directory))
        pending = sorted(dirty)
        while pending:
            item = heapq.heappop(pending)
            loser = self._records.find(item)
            if loser is None or loser.directory != directory:
                continue
            if loser.state != NAMELESS and loser.state not in _LOST:
                continue
            robbed = self._rename(loser, directory)
            if robbed is not None:
                heapq.heappush(pending, robbed.item)

    def _rename(self, loser: Record, directory: ItemId) -> Record | None:
        """Give a loser the first free name. Returns the later loser that had it until now."""
        names = suffixed_names(loser.name, loser.item, self._records.content(loser))
        for attempt, name in enumerate(names):
            if self._group((directory, name)):
                continue
            other = self._holder((directory, name))
            if other is not None and other.item < loser.item:
                continue
            loser.state, loser.shown = SUFFIXED_ON if attempt else SUFFIXED, name
            self._holders[directory, name] = loser
            if other is None or other is loser:
                return None
            other.state, other.shown = NAMELESS, None
            return other
        raise AssertionError("names never run out")

    def _holder(self, key: _Key) -> Record | None:
        """The loser that now has a name."""
        known = self._holders.get(key)
        for record in (known, *self._records.ask(SHOWN_AS, *key)):
            if record is not None and record.exists and (record.directory, record.shown) == key:
                return record
        return None

    def _demoted(self, directory: ItemId) -> list[ItemId]:
        """The losers of a directory that did not get their first choice."""
        return [
            record.item
            for record in self._records.ask(DEMOTED, directory)
            if record.exists and record.directory == directory and record.state == SUFFIXED_ON
        ]
